//! Every change of the file system that the store makes goes through this file, so that the order of
//! writes can be read in the callers and every one of them can be interrupted by a test.
//!
//! No function here retries a failed sync: what a failed `fsync` or `syncfs` covered is lost, and the run fails.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, RenameFlags, renameat2};
use nix::libc;
use nix::sys::statfs::{self, FsType};
use nix::unistd::linkat;

use crate::error::{Context, Error, Result};
use crate::timestamp::Timestamp;

#[cfg_attr(not(feature = "testing"), path = "disk/plain.rs")]
mod fault;

use fault::{step, step_write};

/// One change that is about to be made.
#[cfg_attr(not(feature = "testing"), expect(dead_code, reason = "only the tests look at it"))]
enum Step<'p> {
    Create(&'p Path),
    MakeDir(&'p Path),
    SetLen(&'p Path, u64),
    Rename(&'p Path, &'p Path),
    Link(&'p Path, &'p Path),
    Unlink(&'p Path),
    SyncFile(&'p Path),
    SyncDir(&'p Path),
    SyncFileSystem(&'p Path),
}

const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

/// Returns random bytes from the operating system.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::io("read random bytes from", "the operating system", io::Error::other(error.to_string()))
    })?;
    Ok(bytes)
}

/// Returns 128 random bits as 32 hex digits, for names that only have to be unique.
pub(crate) fn random_name() -> Result<String> {
    Ok(format!("{:032x}", u128::from_le_bytes(random_bytes()?)))
}

/// Opens an existing file for reading, never through a symbolic link.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Reads up to `bytes_max` of an open file; `None` if it is no text: somebody else's bytes mean nothing of ours.
pub(crate) fn read_text(file: &File, path: &Path, bytes_max: u64) -> Result<Option<String>> {
    let mut text = String::new();
    match file.take(bytes_max).read_to_string(&mut text) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        other => other.context("read", path).map(|_| Some(text)),
    }
}

/// Sets the modification time of a directory. Not durable, and nothing depends on it.
pub(crate) fn set_modified(dir: &Path, at: Timestamp) -> Result<()> {
    let secs = u64::try_from(at.as_secs()).unwrap_or_default();
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(secs);
    open(dir).and_then(|opened| opened.set_modified(at)).context("touch", dir)
}

/// Makes a new file for writing; it must not exist.
pub(crate) fn create_new(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(FILE_MODE).custom_flags(libc::O_NOFOLLOW);
    step(Step::Create(path), || options.open(path).context("create", path))
}

/// Opens a file for locking, creating it empty when it is missing.
pub(crate) fn open_lock_file(path: &Path) -> Result<File> {
    match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut options = OpenOptions::new();
            options.read(true).append(true).create(true).mode(FILE_MODE).custom_flags(libc::O_NOFOLLOW);
            step(Step::Create(path), || options.open(path).context("create", path))
        }
        other => other.context("open", path),
    }
}

/// Makes a directory with mode 0700; it must not exist.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    step(Step::MakeDir(path), || {
        DirBuilder::new().mode(DIR_MODE).create(path).context("create directory", path)
    })
}

/// Makes a directory with mode 0700 unless something of that name is there; returns whether it was made.
pub(crate) fn ensure_dir(path: &Path) -> Result<bool> {
    match create_dir(path) {
        Err(error) if error.io_kind() == Some(io::ErrorKind::AlreadyExists) => Ok(false),
        other => other.map(|()| true),
    }
}

/// Makes a directory that is missing, for who writes in it. One that is there is not touched, so that a file system that
/// cannot be written is met where it matters.
pub(crate) fn ensure_dir_for_writing(path: &Path) -> Result<()> {
    if path.is_dir() { Ok(()) } else { ensure_dir(path).map(drop) }
}

/// Lists a directory; one that is missing is empty. Copies made by programs that skip empty directories lack them.
pub(crate) fn list(dir: &Path) -> Result<Vec<std::fs::DirEntry>> {
    match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_missing(dir) => Ok(Vec::new()),
        other => other.and_then(Iterator::collect).context("list", dir),
    }
}

/// Whether there is something at `path`. Only "not found" means no; what cannot be examined is an error.
pub(crate) fn exists(path: &Path) -> Result<bool> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.context("examine", path).map(|_| true),
    }
}

/// Whether there is nothing of this name in a directory that is there. A link whose disk is away is not missing.
pub(crate) fn is_missing(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        && path.parent().is_some_and(Path::is_dir)
}

/// Writes everything at the file's position.
pub(crate) fn append(mut file: &File, data: &[u8], path: &Path) -> Result<()> {
    step_write(path, None, data, |part| file.write_all(part).context("write", path))
}

/// Writes everything at `offset`.
pub(crate) fn write_at(file: &File, data: &[u8], offset: u64, path: &Path) -> Result<()> {
    step_write(path, Some(offset), data, |part| file.write_all_at(part, offset).context("write", path))
}

/// Sets the length of a file; new bytes read as zeros.
pub(crate) fn set_len(file: &File, length: u64, path: &Path) -> Result<()> {
    step(Step::SetLen(path, length), || file.set_len(length).context("set the length of", path))
}

/// Gives a file space for `length` bytes: where that cannot be asked for, by writing them.
pub(crate) fn allocate(file: &File, length: u64, path: &Path) -> Result<()> {
    let flags = nix::fcntl::FallocateFlags::empty();
    let whole = i64::try_from(length).unwrap_or(i64::MAX);
    match nix::fcntl::fallocate(file, flags, 0, whole).context("allocate", path) {
        Err(error) if error.is_unsupported() => {
            // Bytes that a file system which compresses cannot do without.
            let block = random_bytes::<{ 64 << 10 }>()?;
            (0..length.div_ceil(block.len() as u64)).try_for_each(|_| append(file, &block, path))
        }
        other => other,
    }
}

/// Renames, replacing what is there.
#[expect(clippy::disallowed_methods, reason = "the one place that renames")]
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    step(Step::Rename(from, to), || std::fs::rename(from, to).context("rename to", to))
}

/// Renames a file of a cache. That it fails, or is lost, is nobody's loss, so it is no change that tests make fail.
#[expect(clippy::disallowed_methods, reason = "the one place that renames")]
pub(crate) fn rename_cached(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::rename(from, to)
}

/// Renames unless the new name exists; returns whether it did not.
///
/// Where the file system cannot do that in one step, a link fails when the name exists, which is the same promise in
/// two. Where it has no links either, the name is looked for first. That is enough for names that are made under the
/// exclusive lock of a job's manifests, and for chunks, whose files under one name are equal. Elsewhere a file that appears
/// in the moment between both is replaced.
pub(crate) fn rename_new(from: &Path, to: &Path) -> Result<bool> {
    let rename = || match fault::has_links() {
        true => renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE),
        false => Err(nix::errno::Errno::EINVAL),
    };
    match step(Step::Rename(from, to), || rename().context("rename to", to)) {
        Ok(()) => return Ok(true),
        Err(error) if error.io_kind() == Some(io::ErrorKind::AlreadyExists) => return Ok(false),
        Err(error) if error.is_unsupported() => {}
        Err(error) => return Err(error),
    }
    match link(from, to) {
        Ok(()) => return remove(from).map(|()| true),
        Err(error) if error.io_kind() == Some(io::ErrorKind::AlreadyExists) => return Ok(false),
        Err(error) if error.is_unsupported() || error.io_kind() == Some(io::ErrorKind::PermissionDenied) => {}
        Err(error) => return Err(error),
    }
    match std::fs::symlink_metadata(to) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => self::rename(from, to).map(|()| true),
        Err(error) => Err(Error::io("examine", to, error)),
    }
}

/// Makes a new file for writing that has no name; `None` where the file system, or this machine, cannot do that.
pub(crate) fn create_unnamed(dir: &Path) -> Result<Option<File>> {
    if !fault::has_unnamed_files() {
        return Ok(None);
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(FILE_MODE).custom_flags(libc::O_TMPFILE);
    let file = match step(Step::Create(dir), || options.open(dir).context("create a file in", dir)) {
        Err(Error::Io { source, .. })
            if [libc::EOPNOTSUPP, libc::EISDIR, libc::EINVAL, libc::ENOENT, libc::ENOSYS]
                .map(Some)
                .contains(&source.raw_os_error()) =>
        {
            return Ok(None);
        }
        other => other?,
    };
    // The only way to it, without special rights, when it gets a name.
    Ok(descriptor(&file).exists().then_some(file))
}

fn descriptor(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Gives an open file a name; returns whether it was free.
pub(crate) fn link_open(file: &File, to: &Path) -> Result<bool> {
    let from = descriptor(file);
    let link = || linkat(AT_FDCWD, &from, AT_FDCWD, to, AtFlags::AT_SYMLINK_FOLLOW);
    match step(Step::Link(&from, to), || link().context("create", to)) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        other => other.map(|()| true),
    }
}

/// Fails if a regular file could not be replaced or removed, for the rights of its directory for instance. Nothing is
/// changed: the kernel checks these rights before it finds that the file is no directory.
pub(crate) fn check_removable(file: &Path, told: &Path) -> Result<()> {
    match std::fs::remove_dir(file) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(()),
        other => other.context("replace", told),
    }
}

/// Gives a file a second name.
pub(crate) fn link(from: &Path, to: &Path) -> Result<()> {
    step(Step::Link(from, to), || match fault::has_links() {
        true => std::fs::hard_link(from, to).context("link", to),
        false => Err(Error::io("link", to, nix::errno::Errno::EPERM.into())),
    })
}

/// What a reserve of names is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Names {
    count: usize,
    target_len: usize,
}

/// btrfs wants some 3 MiB of free metadata before it renames anything, and a file that is removed gives data space back,
/// not metadata: there each name is a link with a long target, which lies in the metadata. Elsewhere inodes are kept.
const NAMES_BTRFS: Names = Names { count: 1024, target_len: 3800 };
const NAMES: Names = Names { count: 8, target_len: 1 };

/// Makes a directory of names that [`remove_names`] gives back: what a full file system needs besides data blocks.
pub(crate) fn create_names(dir: &Path) -> Result<()> {
    step(Step::MakeDir(dir), || {
        DirBuilder::new().mode(DIR_MODE).create(dir).context("create directory", dir)?;
        let is_btrfs =
            statfs::statfs(dir).is_ok_and(|facts| facts.filesystem_type() == statfs::BTRFS_SUPER_MAGIC);
        let names = if is_btrfs { NAMES_BTRFS } else { NAMES };
        let target = "x".repeat(names.target_len);
        (0..names.count).try_for_each(|number| {
            let path = dir.join(number.to_string());
            let made = match names.target_len {
                1 => OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&path).map(drop),
                _ => std::os::unix::fs::symlink(&target, &path),
            };
            made.context("create", &path)
        })
    })
}

/// Removes what [`create_names`] made; it is no error if it is gone already.
pub(crate) fn remove_names(dir: &Path) -> Result<()> {
    step(Step::Unlink(dir), || match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", dir, error)),
        _ => Ok(()),
    })
}

/// Removes a file; it is no error if it is gone already.
#[expect(clippy::disallowed_methods, reason = "the one place that removes")]
pub(crate) fn remove(path: &Path) -> Result<()> {
    step(Step::Unlink(path), || match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    })
}

/// Removes a file of a cache, if it is there.
#[expect(clippy::disallowed_methods, reason = "the one place that removes")]
pub(crate) fn remove_cached(path: &Path) {
    let _ = std::fs::remove_file(path);
}

/// Removes an empty directory; it is no error if it is gone already.
pub(crate) fn remove_empty_dir(path: &Path) -> Result<()> {
    step(Step::Unlink(path), || match std::fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove directory", path, error))
        }
        _ => Ok(()),
    })
}

/// Makes a file's content durable.
pub(crate) fn sync_file(file: &File, path: &Path) -> Result<()> {
    step(Step::SyncFile(path), || file.sync_all().context("sync", path))
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    step(Step::SyncDir(path), || {
        File::open(path).and_then(|dir| dir.sync_all()).context("sync directory", path)
    })
}

/// Makes the whole file system of `dir` durable and reports write-back errors since `dir` was opened.
pub(crate) fn sync_file_system(dir: &File, path: &Path) -> Result<()> {
    step(Step::SyncFileSystem(path), || nix::unistd::syncfs(dir).context("sync the file system of", path))
}

/// Writes a small file whole or not at all: temporary file, fsync, rename, fsync of the directory.
pub(crate) fn write_atomically(path: &Path, data: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let temporary = temporary_in(dir)?;
    let written = create_new(&temporary).and_then(|file| {
        append(&file, data, &temporary)?;
        sync_file(&file, &temporary)
    });
    if let Err(error) = written.and_then(|()| rename(&temporary, path)) {
        drop(remove(&temporary));
        return Err(error);
    }
    sync_dir(dir)
}

/// The beginning of the names of unfinished files in a job's directory.
pub(crate) const TEMPORARY_PREFIX: &str = ".unfinished-";

/// Returns a fresh name for an unfinished file in `dir`.
pub(crate) fn temporary_in(dir: &Path) -> Result<PathBuf> {
    Ok(dir.join(format!("{TEMPORARY_PREFIX}{}", random_name()?)))
}

/// Whether one `syncfs` is known to make all data and names of this file system durable, errors included.
pub(crate) fn has_reliable_syncfs(dir: &File) -> bool {
    const ZFS: i64 = 0x2fc1_2fc1;
    const F2FS: i64 = 0xf2f5_2010;
    if let Some(told) = fault::reliable_syncfs() {
        return told;
    }
    statfs::fstatfs(dir).is_ok_and(|facts| {
        let kind = facts.filesystem_type();
        [statfs::EXT4_SUPER_MAGIC, statfs::XFS_SUPER_MAGIC, statfs::BTRFS_SUPER_MAGIC].contains(&kind)
            || [FsType(ZFS as _), FsType(F2FS as _)].contains(&kind)
    })
}

/// What tells a file system from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileSystem {
    /// Its type and the id that it gives itself, in hex.
    pub(crate) id: String,
    /// Whether it has an id of its own: FUSE and some others say 0.
    pub(crate) has_id: bool,
    /// Whether it cannot be in use by two kernels at once, so that a lock on it is seen by everybody who has it.
    pub(crate) is_local: bool,
}

/// Examines the file system of `path`.
pub(crate) fn file_system(path: &Path) -> Result<FileSystem> {
    let kind = statfs::statfs(path).context("examine the file system of", path)?.filesystem_type();
    let id = nix::sys::statvfs::statvfs(path).context("examine the file system of", path)?.filesystem_id();
    Ok(FileSystem { id: format!("{:x}-{id:x}", kind.0), has_id: id != 0, is_local: is_local(kind.0 as i64) })
}

fn is_local(kind: i64) -> bool {
    // ext2 to ext4, xfs, btrfs, zfs, f2fs, bcachefs, jfs, nilfs2, tmpfs, ramfs, exfat, vfat, ntfs3.
    const KINDS: [i64; 13] = [
        0xef53,
        0x5846_5342,
        0x9123_683e,
        0x2fc1_2fc1,
        0xf2f5_2010,
        0xca45_1a4e,
        0x3153_464a,
        0x3434,
        0x0102_1994,
        0x8584_58f6,
        0x2011_bab0,
        0x4d44,
        0x7366_746e,
    ];
    KINDS.contains(&(kind & 0xffff_ffff))
}

/// Returns a text that names the making of a file: a copy has another one, whatever else is copied with it.
pub(crate) fn birth(path: &Path) -> Option<String> {
    let facts = std::fs::symlink_metadata(path).ok()?;
    let since_epoch = |at: std::time::SystemTime| at.duration_since(std::time::UNIX_EPOCH).ok();
    Some(match facts.created().ok().and_then(since_epoch) {
        Some(born) => format!("b{}", born.as_nanos()),
        None => format!("c{}.{:09}", facts.ctime(), facts.ctime_nsec()),
    })
}

/// The number of the device on which `path` lies, links followed.
pub(crate) fn device(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).context("examine", path)?.dev())
}

/// In tests, another machine that this process shall pretend to run on.
pub(crate) fn pretended_host() -> Option<String> {
    fault::host()
}
