//! The lock of an overlay's directory: one mount at a time. The file holds the mount point, so that the next one can tell
//! a mount that is in the tree from one that is about to end.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;

use super::owner;
use crate::error::{Error, Result};
use crate::mount::table;

/// The file's name.
pub(super) const LOCK: &str = ".lock";

/// How long a mount that was taken away may need to sync what was written before the next one gives up.
pub(super) const LOCK_WAIT: Duration = Duration::from_secs(30);

/// How often it is looked at, and after how many times the log says for what is waited.
const LOCK_STEP: Duration = Duration::from_millis(100);
const LOCK_SILENT_STEPS: u32 = 10;

/// Locks an overlay. A mount that was just taken away still syncs what was written: that is waited for.
pub(super) fn lock(dir: &Path, mountpoint: &Path, wait: Duration) -> Result<File> {
    let path = dir.join(LOCK);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let opened = options.custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits()).open(&path);
    let file = opened.map_err(|source| Error::io("open", &path, source))?;
    let facts = file.metadata().map_err(|source| Error::io("examine", &path, source))?;
    owner::check_file(&facts, &path)?;
    let begun = Instant::now();
    for step in 0u32.. {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if begun.elapsed() < wait && !is_mounted(&path) => {
                if step == LOCK_SILENT_STEPS {
                    tracing::info!(overlay = %dir.display(), "waiting for the last mount to end");
                }
                std::thread::sleep(LOCK_STEP);
            }
            Err(TryLockError::WouldBlock) => {
                let reason = "another mount uses it, or has not ended yet because files are open; \
                              unmount that one or name another directory";
                return Err(Error::overlay_refused(dir, reason));
            }
            Err(TryLockError::Error(source)) => return Err(Error::io("lock", &path, source)),
        }
    }
    let noted = file.set_len(0).and_then(|()| file.write_all_at(mountpoint.as_os_str().as_bytes(), 0));
    if let Err(error) = noted {
        // A full file system can still be read. The next mount only waits longer than it must.
        tracing::debug!(
            error = backy_store::error::in_full(&error),
            path = %path.display(),
            "the mount point is not noted"
        );
    }
    Ok(file)
}

/// Whether the mount that has locked an overlay is still in the tree. In doubt it is not, and then it is waited for.
fn is_mounted(lock: &Path) -> bool {
    let mut point = Vec::new();
    // No path that the kernel takes is longer.
    let read = File::open(lock).and_then(|file| file.take(4096).read_to_end(&mut point));
    let mount = read.and_then(|_| table::at(Path::new(&OsString::from_vec(point))));
    mount.is_ok_and(|mount| mount.is_some_and(|mount| mount.kind == "fuse.backy"))
}
