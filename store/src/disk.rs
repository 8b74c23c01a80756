//! Every change of the file system that the store makes goes through this file, so that the order of
//! writes can be read in the callers and every one of them can be interrupted by a test.
//!
//! No function here retries a failed sync: what a failed `fsync` or `syncfs` covered is lost, and the run fails.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::statfs::{self, FsType};

use crate::error::{Context, Error, Result};

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
    OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path)
}

/// Makes a new file for writing; it must not exist.
pub(crate) fn create_new(path: &Path) -> Result<File> {
    fault::point("create", path)?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .context("create", path)
}

/// Opens a file for locking, creating it empty when it is missing.
pub(crate) fn open_lock_file(path: &Path) -> Result<File> {
    match OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fault::point("create", path)?;
            OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .mode(FILE_MODE)
                .custom_flags(nix::libc::O_NOFOLLOW)
                .open(path)
                .context("create", path)
        }
        other => other.context("open", path),
    }
}

/// Makes a directory with mode 0700; it must not exist.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    fault::point("mkdir", path)?;
    DirBuilder::new().mode(DIR_MODE).create(path).context("create directory", path)
}

/// Writes everything at the file's position.
pub(crate) fn append(mut file: &File, data: &[u8], path: &Path) -> Result<()> {
    fault::write_point(path, data, |part| file.write_all(part))?;
    file.write_all(data).context("write", path)
}

/// Writes everything at `offset`.
pub(crate) fn write_at(file: &File, data: &[u8], offset: u64, path: &Path) -> Result<()> {
    fault::write_point(path, data, |part| file.write_all_at(part, offset))?;
    file.write_all_at(data, offset).context("write", path)
}

/// Sets the length of a file; new bytes read as zeros.
pub(crate) fn set_len(file: &File, length: u64, path: &Path) -> Result<()> {
    fault::point("truncate", path)?;
    file.set_len(length).context("set the length of", path)
}

/// Renames, replacing what is there.
#[expect(clippy::disallowed_methods, reason = "the one place that renames")]
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fault::point("rename", to)?;
    std::fs::rename(from, to).context("rename to", to)
}

/// Renames unless the new name exists; returns whether it did not.
pub(crate) fn rename_new(from: &Path, to: &Path) -> Result<bool> {
    fault::point("rename", to)?;
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        // File systems without the flag: a link fails when the name exists, which is the same promise in two steps.
        Err(Errno::EINVAL | Errno::ENOSYS) => match std::fs::hard_link(from, to) {
            Ok(()) => remove(from).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(Error::io("link", to, error)),
        },
        Err(errno) => Err(Error::io("rename to", to, errno.into())),
    }
}

/// Gives a file a second name.
pub(crate) fn link(from: &Path, to: &Path) -> Result<()> {
    fault::point("link", to)?;
    std::fs::hard_link(from, to).context("link", to)
}

/// Removes a file; it is no error if it is gone already.
#[expect(clippy::disallowed_methods, reason = "the one place that removes")]
pub(crate) fn remove(path: &Path) -> Result<()> {
    fault::point("unlink", path)?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// Makes a file's content durable.
pub(crate) fn sync_file(file: &File, path: &Path) -> Result<()> {
    fault::point("fsync", path)?;
    file.sync_all().context("sync", path)
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    fault::point("fsync", path)?;
    File::open(path).and_then(|dir| dir.sync_all()).context("sync directory", path)
}

/// Makes the whole file system of `dir` durable and reports write-back errors since `dir` was opened.
pub(crate) fn sync_file_system(dir: &File, path: &Path) -> Result<()> {
    fault::point("syncfs", path)?;
    nix::unistd::syncfs(dir).context("sync the file system of", path)
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
    statfs::fstatfs(dir).is_ok_and(|facts| {
        let kind = facts.filesystem_type();
        [statfs::EXT4_SUPER_MAGIC, statfs::XFS_SUPER_MAGIC, statfs::BTRFS_SUPER_MAGIC].contains(&kind)
            || [FsType(ZFS as _), FsType(F2FS as _)].contains(&kind)
    })
}

/// Returns a text that stays the same as long as `path` lies on the same file system.
pub(crate) fn file_system_id(path: &Path) -> Result<String> {
    let facts = statfs::statfs(path).context("examine the file system of", path)?;
    let kind = facts.filesystem_type();
    Ok(format!("{:?}/{:?}", kind, facts.filesystem_id())
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect())
}

/// Points at which a test can stop the program or make a call fail. Without the feature `testing` they are nothing.
///
/// `BACKY_FAULT=ACTION:K` acts at the K-th change of the file system (counting from 1, over all threads):
/// `kill` (SIGKILL before it), `torn` (as kill, after writing half of the data), `eio` and `enospc` (the call
/// fails), `eio-on` and `enospc-on` (this and every later one fails).
#[cfg(feature = "testing")]
mod fault {
    use std::io;
    use std::path::Path;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use crate::error::{Error, Result};

    static CALLS: AtomicU64 = AtomicU64::new(0);

    struct Plan {
        action: String,
        at: u64,
    }

    fn plan() -> Option<&'static Plan> {
        static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
        PLAN.get_or_init(|| {
            let text = std::env::var("BACKY_FAULT").ok()?;
            let (action, at) = text.split_once(':')?;
            Some(Plan { action: action.to_owned(), at: at.parse().ok()? })
        })
        .as_ref()
    }

    fn stop() -> ! {
        drop(nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL));
        loop {
            std::thread::park();
        }
    }

    pub(super) fn point(doing: &'static str, path: &Path) -> Result<()> {
        check(doing, path, || ())
    }

    pub(super) fn write_point(
        path: &Path,
        data: &[u8],
        mut write: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<()> {
        check("write", path, || drop(write(&data[..data.len() / 2])))
    }

    fn check(doing: &'static str, path: &Path, tear: impl FnOnce()) -> Result<()> {
        let Some(plan) = plan() else { return Ok(()) };
        let call = CALLS.fetch_add(1, Ordering::SeqCst) + 1;
        let fail = |errno: nix::errno::Errno| Err(Error::io(doing, path, errno.into()));
        match plan.action.as_str() {
            "kill" if call == plan.at => stop(),
            "torn" if call == plan.at => {
                tear();
                stop()
            }
            "eio" if call == plan.at => fail(nix::errno::Errno::EIO),
            "enospc" if call == plan.at => fail(nix::errno::Errno::ENOSPC),
            "eio-on" if call >= plan.at => fail(nix::errno::Errno::EIO),
            "enospc-on" if call >= plan.at && !["unlink", "fsync", "syncfs", "rename"].contains(&doing) => {
                fail(nix::errno::Errno::ENOSPC)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(not(feature = "testing"))]
mod fault {
    use std::io;
    use std::path::Path;

    use crate::error::Result;

    pub(super) fn point(_doing: &'static str, _path: &Path) -> Result<()> {
        Ok(())
    }

    pub(super) fn write_point(
        _path: &Path,
        _data: &[u8],
        _write: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<()> {
        Ok(())
    }
}
