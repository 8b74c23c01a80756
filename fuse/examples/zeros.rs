//! The limit that FUSE itself sets: one file of zeros, served from memory with the settings of our mount.
//! `scripts/bench dd random` measures us against it.
//!
//! ```text
//! zeros MOUNTPOINT BYTES THREADS
//! ```

#![expect(clippy::unwrap_used, reason = "a tool for measuring, run by hand and by scripts/bench")]

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen, Request, Session,
};

const NAME: &str = "zeros";
const FOREVER: Duration = Duration::from_secs(86_400);
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

struct Zeros {
    size: u64,
}

impl Zeros {
    fn attr(&self, inode: u64) -> FileAttr {
        let (kind, perm, size) = match inode {
            1 => (FileType::Directory, 0o500, 0),
            _ => (FileType::RegularFile, 0o400, self.size),
        };
        let time = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino: INodeNo(inode),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 65_536,
            flags: 0,
        }
    }
}

impl Filesystem for Zeros {
    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name.to_str() {
            Some(NAME) => reply.entry(&FOREVER, &self.attr(2), Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &self.attr(inode.0));
    }

    fn open(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(1), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let length = self.size.saturating_sub(offset).min(u64::from(length)) as usize;
        reply.data(&ZEROS[..length.min(ZEROS.len())]);
    }

    fn readdir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if offset == 0 {
            let _ = reply.add(INodeNo(2), 1, FileType::RegularFile, NAME);
        }
        reply.ok();
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mountpoint, size, threads] = &arguments[..] else {
        panic!("usage: zeros MOUNTPOINT BYTES THREADS");
    };
    let mut config = Config::default();
    config.mount_options =
        vec![MountOption::RO, MountOption::NoAtime, MountOption::FSName("zeros".to_owned())];
    config.n_threads = Some(threads.parse().unwrap());
    config.clone_fd = true;
    let session = Session::new(Zeros { size: size.parse().unwrap() }, mountpoint, &config).unwrap();
    let session = session.spawn().unwrap();
    let device = std::fs::metadata(mountpoint).unwrap().dev();
    let device = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    // Like our mount: only root may raise it.
    let _ = std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), "1024");
    session.join().unwrap();
}
