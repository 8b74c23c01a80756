//! The answers to the kernel: asks the view, reads and writes through a handle, replies. Owner, with `mount.rs`, of
//! the crate `fuser`.
//!
//! Every method runs in one of several event loops and ends in exactly one reply; only a sync replies from a thread
//! of its own.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use nix::fcntl::OFlag;
use nix::unistd::Whence;

use crate::attributes;
use crate::disk::DiskFile;
use crate::errno::Code;
use crate::handles::{DirectoryEntry, Kind, Listing, Open};
use crate::inode::Node;
use crate::overlay::syncers::Syncers;
use crate::tree::RevisionFile;
use crate::view::{Facts, Owner, Result, View};
use crate::window::Window;
use crate::writing::{self, AttrChange};

/// For what may be something else the next time: texts change with tags and trust, and a part whose tables could not be
/// read whole may get another place when they are healed. The kernel keeps nothing of them.
const PASSING_FLAGS: FopenFlags = FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_NOFLUSH);

/// The file system that the kernel talks to.
#[derive(Debug)]
pub(crate) struct FileSystem {
    view: View,
    /// Who syncs; nobody where nothing can be written.
    syncers: Option<Syncers>,
}

impl FileSystem {
    pub(crate) fn new(view: View) -> std::io::Result<Self> {
        let syncers = view.overlay.as_ref().map(|_| Syncers::start()).transpose()?;
        Ok(Self { view, syncers })
    }

    fn disk_flags(&self) -> FopenFlags {
        match self.view.overlay {
            // The content of a revision never changes, so neither do the pages that the kernel has.
            None => FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
            // What is written to another file of the same disk it does not see: each open begins anew.
            Some(_) => FopenFlags::FOPEN_NOFLUSH,
        }
    }

    fn open_file(&self, inode: u64, node: &Node) -> Result<(u64, FopenFlags)> {
        match node {
            Node::File(job, id, RevisionFile::Image) => {
                let (view, _, revision) = self.view.revision(job.as_str(), id)?;
                let disk = self.view.open_disk(inode, &view, &revision)?;
                let window = Window::whole(disk.size_bytes());
                let file = DiskFile::new(disk, window, &self.view.ahead);
                Ok((self.view.handles.insert(Open::Disk(Arc::new(file))), self.disk_flags()))
            }
            Node::File(job, id, RevisionFile::Info) => {
                let (view, tree, revision) = self.view.revision(job.as_str(), id)?;
                let text = tree.info_json(job, view.job().repository().id(), &revision);
                Ok((self.view.handles.insert(Open::Text(Arc::new(text))), PASSING_FLAGS))
            }
            Node::Part(job, id, name) => {
                let (open, is_certain) = self.view.open_part(job, id, name)?;
                let is_disk = matches!(open, Open::Disk(_));
                let flags = if is_disk && is_certain { self.disk_flags() } else { PASSING_FLAGS };
                Ok((self.view.handles.insert(open), flags))
            }
            Node::Link(..) => Err(Code::INVALID),
            Node::Root | Node::Job(_) | Node::Revision(..) | Node::Parts(..) => Err(Code::A_DIRECTORY),
        }
    }

    /// Reads, and replies. Less than `length` before the end of the file is an answer only where `may_be_short` says so.
    fn read_file(&self, handle: u64, offset: u64, length: usize, may_be_short: bool, reply: ReplyData) {
        match self.view.handles.get(handle) {
            Some(Open::Disk(file)) => {
                // The reply is sent from where the data lies; a failed read has not used it up.
                let mut reply = Some(reply);
                let sent = file.read(offset, length, |data| {
                    if let Some(reply) = reply.take() {
                        reply.data(data);
                    }
                });
                if let (Err(error), Some(reply)) = (sent, reply) {
                    self.view.damage.met(&file.disk, file.disk_offset(offset), &error);
                    let good = may_be_short.then(|| file.read_before_damage(offset, length));
                    match good.filter(|good| !good.is_empty()) {
                        Some(good) => reply.data(&good),
                        None => reply.error(errno(Code::from(error))),
                    }
                }
                // After the answer: nobody waits for it.
                self.view.damage.avoided(&file.disk);
            }
            Some(Open::Text(text)) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
                let end = start.saturating_add(length).min(text.len());
                reply.data(&text[start..end]);
            }
            Some(Open::Directory(_)) => reply.error(errno(Code::A_DIRECTORY)),
            None => reply.error(errno(Code::INVALID)),
        }
    }

    /// Returns the entries of an open directory; those of now, where somebody goes back to the beginning.
    fn entries(&self, inode: u64, handle: u64, from_start: bool) -> Result<Arc<Vec<DirectoryEntry>>> {
        let Some(Open::Directory(listing)) = self.view.handles.get(handle) else { return Err(Code::INVALID) };
        if !from_start {
            return Ok(listing.entries);
        }
        let entries = match listing.is_begun {
            false => listing.entries,
            true => self.view.node(inode).and_then(|node| self.view.list(inode, &node))?,
        };
        let listing = Listing { entries: Arc::clone(&entries), is_begun: true };
        self.view.handles.replace(handle, Open::Directory(listing));
        Ok(entries)
    }

    /// Finds the next data or hole.
    fn seek(&self, handle: u64, offset: i64, whence: i32) -> Result<i64> {
        let from = u64::try_from(offset).map_err(|_| Code::NO_DATA)?;
        let data = match whence {
            whence if whence == Whence::SeekData as i32 => true,
            whence if whence == Whence::SeekHole as i32 => false,
            _ => return Err(Code::INVALID),
        };
        let found = match self.view.handles.get(handle) {
            Some(Open::Disk(file)) => {
                let size = file.window.size_bytes();
                if from >= size {
                    return Err(Code::NO_DATA);
                }
                let next = file.disk.seek(&file.window, from, data).map_err(|error| {
                    self.view.damage.met(&file.disk, file.disk_offset(from), &error);
                    Code::from(error)
                })?;
                // The end of a file counts as a hole.
                if data { next } else { next.or(Some(size)) }
            }
            Some(Open::Text(text)) => {
                let size = text.len() as u64;
                (from < size).then_some(if data { from } else { size })
            }
            _ => return Err(Code::INVALID),
        };
        found.and_then(|found| i64::try_from(found).ok()).ok_or(Code::NO_DATA)
    }
}

impl fuser::Filesystem for FileSystem {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // An older kernel does without.
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.view.node(parent.0).and_then(|parent| self.view.lookup(&parent, name)) {
            Ok(facts) => {
                let attr = attr(&facts, self.view.owner);
                reply.entry_with_ttls(&facts.attr_ttl, &facts.entry_ttl, &attr, Generation(0));
            }
            Err(code) => reply.error(errno(code)),
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.view.node(inode.0).and_then(|node| self.view.facts(inode.0, &node)) {
            Ok(facts) => reply.attr(&facts.attr_ttl, &attr(&facts, self.view.owner)),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn readlink(&self, _request: &Request, inode: INodeNo, reply: ReplyData) {
        match self.view.node(inode.0).and_then(|node| self.view.target(&node)) {
            Ok(target) => reply.data(target.as_str().as_bytes()),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn open(&self, _request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let writes = flags.acc_mode() != OpenAccMode::O_RDONLY;
        if writes && self.view.overlay.is_none() {
            return reply.error(errno(Code::READ_ONLY));
        }
        let node = self.view.node(inode.0).and_then(|node| {
            let allowed = !writes || self.view.facts(inode.0, &node)?.writable;
            if allowed { Ok(node) } else { Err(Code::FORBIDDEN) }
        });
        match node.and_then(|node| self.open_file(inode.0, &node)) {
            Ok((handle, flags)) => reply.opened(FileHandle(handle), flags),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u32,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // What goes into the page cache is filled up with zeros if it is short. Such a read has no owner; those past the
        // page cache have one, and a file that is open for them can still be mapped into memory.
        let may_be_short = flags.0 & OFlag::O_DIRECT.bits() != 0 && lock_owner.is_some();
        self.read_file(handle.0, offset, length as usize, may_be_short, reply);
    }

    fn write(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.view.write_file(handle.0, offset, data) {
            Ok(written) => reply.written(written),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn flush(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Nothing waits to be written when a file is closed; what shall be durable is synced.
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        let open = self.view.handles.get(handle.0);
        match &self.syncers {
            Some(syncers) => syncers.run(move || done(reply, writing::sync(open.as_ref()))),
            None => done(reply, writing::sync(open.as_ref())),
        }
    }

    fn fallocate(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        done(reply, self.view.zero_file(handle.0, offset, length, mode));
    }

    fn setattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let owner_or_mode = mode.is_some() || uid.is_some() || gid.is_some();
        match self.view.check_change(inode.0, &AttrChange { size_bytes: size, owner_or_mode }) {
            Ok(facts) => reply.attr(&facts.attr_ttl, &attr(&facts, self.view.owner)),
            Err(code) => reply.error(errno(code)),
        }
    }

    // With an overlay the mount is writable in the kernel's eyes, so these are asked for too.

    fn mknod(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _device: u32,
        reply: ReplyEntry,
    ) {
        reply.error(errno(Code::READ_ONLY));
    }

    fn mkdir(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(errno(Code::READ_ONLY));
    }

    fn unlink(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(Code::READ_ONLY));
    }

    fn rmdir(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(Code::READ_ONLY));
    }

    fn rename(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(errno(Code::READ_ONLY));
    }

    fn lseek(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.seek(handle.0, offset, whence) {
            Ok(found) => reply.offset(found),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn release(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if let Some(Open::Disk(file)) = self.view.handles.get(handle.0) {
            // Reading ahead may have met more than the last read did.
            self.view.damage.avoided(&file.disk);
        }
        self.view.handles.remove(handle.0);
        reply.ok();
    }

    fn getxattr(&self, _request: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = self.view.node(inode.0).and_then(|node| self.view.revision_of(&node)).and_then(|found| {
            let (job, revision) = found.ok_or(Code::NO_ATTRIBUTE)?;
            let value = name.to_str().and_then(|name| attributes::value(&job, &revision, name));
            value.map(String::into_bytes).ok_or(Code::NO_ATTRIBUTE)
        });
        reply_attribute(value, size, reply);
    }

    fn listxattr(&self, _request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self.view.node(inode.0).and_then(|node| self.view.revision_of(&node));
        let names =
            names.map(|found| found.map_or(Vec::new(), |(job, revision)| attributes::names(&job, &revision)));
        reply_attribute(names, size, reply);
    }

    fn opendir(&self, _request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.view.node(inode.0).and_then(|node| self.view.list(inode.0, &node)) {
            Ok(entries) => {
                let listing = Listing { entries, is_begun: false };
                let handle = self.view.handles.insert(Open::Directory(listing));
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(code) => reply.error(errno(code)),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = match self.entries(inode.0, handle.0, offset == 0) {
            Ok(entries) => entries,
            Err(code) => return reply.error(errno(code)),
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, entry) in entries.iter().enumerate().skip(start) {
            if reply.add(INodeNo(entry.inode), place as u64 + 1, file_type(entry.kind), &entry.name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.view.handles.remove(handle.0);
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        // The store's file system has a size, this tree has none.
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }
}

/// Answers with a value, or with its length where only that is asked for.
fn reply_attribute(value: Result<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match value {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() as u64 <= u64::from(size) => reply.data(&value),
        Ok(_) => reply.error(errno(Code::TOO_LONG)),
        Err(code) => reply.error(errno(code)),
    }
}

fn errno(code: Code) -> Errno {
    Errno::from_i32(code.number())
}

fn done(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(code) => reply.error(errno(code)),
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::Link => FileType::Symlink,
        Kind::File => FileType::RegularFile,
    }
}

fn attr(facts: &Facts, owner: Owner) -> FileAttr {
    let perm = match facts.kind {
        Kind::Link => 0o777,
        Kind::Directory => owner.dir_mode,
        Kind::File => owner.file_mode | if facts.writable { 0o200 } else { 0 },
    };
    FileAttr {
        ino: INodeNo(facts.inode),
        size: facts.size_bytes,
        blocks: facts.data_bytes.div_ceil(512),
        atime: facts.time,
        mtime: facts.time,
        ctime: facts.time,
        crtime: facts.time,
        kind: file_type(facts.kind),
        perm,
        // One means "not counted" for directories: tools must not infer the number of directories inside.
        nlink: 1,
        uid: owner.uid,
        gid: owner.gid,
        rdev: 0,
        blksize: 65_536,
        flags: 0,
    }
}
