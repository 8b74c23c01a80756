//! Every change of the file system that the store makes goes through this file, so that the order of
//! writes can be read in the callers and every one of them can be interrupted by a test.
//!
//! No function here retries a failed sync: what a failed `fsync` or `syncfs` covered is lost, and the run fails.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
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

/// Renames, replacing what is there.
#[expect(clippy::disallowed_methods, reason = "the one place that renames")]
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    step(Step::Rename(from, to), || std::fs::rename(from, to).context("rename to", to))
}

/// Renames unless the new name exists; returns whether it did not.
pub(crate) fn rename_new(from: &Path, to: &Path) -> Result<bool> {
    let rename = || renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE);
    match step(Step::Rename(from, to), || rename().context("rename to", to)) {
        Ok(()) => Ok(true),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        // File systems without the flag: a link fails when the name exists, which is the same promise in two steps.
        Err(Error::Io { source, .. })
            if [Some(libc::EINVAL), Some(libc::ENOSYS)].contains(&source.raw_os_error()) =>
        {
            match link(from, to) {
                Ok(()) => remove(from).map(|()| true),
                Err(error) if error.io_kind() == Some(io::ErrorKind::AlreadyExists) => Ok(false),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

/// As [`rename_new`], also on file systems that know neither the flag nor links, such as exFAT: there a file that appears
/// in the moment between looking and renaming is replaced.
pub(crate) fn rename_new_anywhere(from: &Path, to: &Path) -> Result<bool> {
    match rename_new(from, to) {
        Err(Error::Io { source, .. })
            if [libc::EPERM, libc::EOPNOTSUPP, libc::ENOSYS, libc::EMLINK]
                .map(Some)
                .contains(&source.raw_os_error()) =>
        {
            match to.symlink_metadata() {
                Ok(_) => Ok(false),
                Err(error) if error.kind() == io::ErrorKind::NotFound => rename(from, to).map(|()| true),
                Err(error) => Err(Error::io("examine", to, error)),
            }
        }
        other => other,
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
    step(Step::Link(from, to), || std::fs::hard_link(from, to).context("link", to))
}

/// Removes a file; it is no error if it is gone already.
#[expect(clippy::disallowed_methods, reason = "the one place that removes")]
pub(crate) fn remove(path: &Path) -> Result<()> {
    step(Step::Unlink(path), || match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
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

/// Returns a text that stays the same as long as `path` lies on the same file system: type and id in hex.
pub(crate) fn file_system_id(path: &Path) -> Result<String> {
    let kind = statfs::statfs(path).context("examine the file system of", path)?.filesystem_type();
    let id = nix::sys::statvfs::statvfs(path).context("examine the file system of", path)?.filesystem_id();
    Ok(format!("{:x}-{id:x}", kind.0))
}
