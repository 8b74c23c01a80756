//! The service of a base directory holds a lock on `<base-dir>/.scheduler` for its life: a second one cannot
//! start, and everybody can tell whether there is one. The kernel frees the lock when the process dies, so
//! neither a pid nor a time stamp has to be believed.
//!
//! The service of the original has a lock of its own: `<base-dir>/.lock` in its releases, `<base-dir>.lock` beside the base
//! directory in later versions. Both are taken, too, so that never two services work on the same jobs.
//!
//! Who asks takes the lock shared for a moment. That could be the moment in which a service starts, so the
//! service tries for a while before it gives up; those who ask do not disturb each other.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backy_store::Error as StoreError;
use nix::fcntl::OFlag;

use super::heartbeat;
use crate::error::{Error, Result};

const TRIES_MAX: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// The right to be the service of a base directory. Dropping it gives the right up.
#[derive(Debug)]
pub struct ServiceGuard {
    file: File,
    _original: Vec<File>,
}

impl ServiceGuard {
    /// The locked file, once more: the lock lives as long as both.
    pub(super) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Takes the right, and records a first heartbeat; `Locked` while another service has it. May sleep for a fifth of a second.
    pub fn take(base_dir: &Path) -> Result<Self> {
        let path = lock_path(base_dir);
        // It is written to ([`super::heartbeat`]): a link must not lead that elsewhere.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags.bits());
        let file = options.open(&path).map_err(|error| unusable("open", &path, error))?;
        for _ in 0..TRIES_MAX {
            match file.try_lock() {
                Ok(()) => {
                    let _original = keep_original_out(base_dir)?;
                    heartbeat::record(&file);
                    return Ok(Self { file, _original });
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
                Err(TryLockError::Error(error)) => return Err(unusable("lock", &path, error)),
            }
        }
        let what = format!("base directory {} (scheduler service)", base_dir.display());
        Err(StoreError::Locked { what }.into())
    }
}

/// Takes the locks of the original's service.
fn keep_original_out(base_dir: &Path) -> Result<Vec<File>> {
    let mut beside = base_dir.as_os_str().to_owned();
    beside.push(".lock");
    let mut taken = Vec::new();
    for path in [base_dir.join(".lock"), PathBuf::from(beside)] {
        let open = |creates: bool| {
            OpenOptions::new().read(true).write(true).create(creates).truncate(false).mode(0o600).open(&path)
        };
        // Where no file can be made the original cannot make one either.
        let Ok(file) = open(false).or_else(|_| open(true)).or_else(|_| File::open(&path)) else { continue };
        match file.try_lock() {
            Ok(()) => taken.push(file),
            Err(TryLockError::WouldBlock) => {
                let what = format!("base directory {} (service of the original backy)", base_dir.display());
                return Err(StoreError::Locked { what }.into());
            }
            Err(TryLockError::Error(error)) => return Err(unusable("lock", &path, error)),
        }
    }
    Ok(taken)
}

/// Whether a service runs for this base directory.
pub fn is_running(base_dir: &Path) -> Result<bool> {
    let path = lock_path(base_dir);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened.map_err(|error| unusable("open", &path, error))?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(unusable("lock", &path, error)),
    }
}

pub(super) fn lock_path(base_dir: &Path) -> PathBuf {
    base_dir.join(".scheduler")
}

fn unusable(doing: &'static str, path: &Path, source: io::Error) -> Error {
    Error::LockUnusable { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is true at once unless a child of another test, between fork and exec, still holds what was open here.
    fn soon(what: &str, is_so: impl Fn() -> bool) {
        let begun = std::time::Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < Duration::from_secs(20), "it did not come about: {what}");
            std::thread::sleep(PAUSE);
        }
    }

    #[test]
    fn one_service_at_a_time_and_everybody_can_tell() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_running(dir.path()).unwrap());
        let guard = ServiceGuard::take(dir.path()).unwrap();
        assert!(is_running(dir.path()).unwrap());
        let second = ServiceGuard::take(dir.path()).unwrap_err();
        assert!(
            matches!(&second, Error::Store(StoreError::Locked { what }) if what.contains("scheduler")),
            "{second}"
        );
        drop(guard);
        soon("the lock is free", || !is_running(dir.path()).unwrap());
        assert!(ServiceGuard::take(dir.path()).is_ok());
    }

    #[test]
    fn the_service_of_the_original_and_ours_keep_each_other_out() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("srv");
        std::fs::create_dir(&base).unwrap();
        for lock in [base.join(".lock"), dir.path().join("srv.lock")] {
            let original = File::create(&lock).unwrap();
            original.lock().unwrap();
            let refused = ServiceGuard::take(&base).unwrap_err().to_string();
            assert!(refused.contains("the original backy"), "{refused}");
            original.unlock().unwrap();
            let ours = ServiceGuard::take(&base).unwrap();
            let original = File::open(&lock).unwrap();
            assert!(matches!(original.try_lock(), Err(TryLockError::WouldBlock)), "{}", lock.display());
            drop(ours);
            soon("the lock is free", || original.try_lock().is_ok());
        }
    }

    #[test]
    fn who_asks_does_not_keep_a_service_from_starting() {
        let dir = tempfile::tempdir().unwrap();
        drop(ServiceGuard::take(dir.path()).unwrap());
        let asking = File::open(lock_path(dir.path())).unwrap();
        asking.lock_shared().unwrap();
        assert!(!is_running(dir.path()).unwrap(), "two may ask at the same time");
        let waits = std::thread::spawn(move || {
            std::thread::sleep(PAUSE * 3);
            drop(asking);
        });
        assert!(ServiceGuard::take(dir.path()).is_ok());
        waits.join().unwrap();
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("nowhere");
        assert!(!is_running(&nowhere).unwrap());
        assert!(ServiceGuard::take(&nowhere).unwrap_err().to_string().contains("nowhere/.scheduler"));
    }
}
