//! Locks and proofs of life, all of them advisory locks on files, which the kernel frees when a process dies.
//!
//! | lock | file | shared by | exclusive by |
//! | --- | --- | --- | --- |
//! | sweep | `.sweep` in the store | | a purge |
//! | backup | `.backup` in the job | | a backup, from its first to its last step; a second one fails at once |
//! | manifests | `.manifests` in the job | | commit, tags, forget, undelete, trust, notes, purge of what is forgotten: for moments, waits |
//! | restoring | `.restoring-<id>` in the store | | the restore to Ceph that made it, and its programs, for life; who removes what it left |
//! | sessions | `writers/.lock` | a session that begins | telling live sessions from dead ones |
//! | session | `writers/<name>.refs` | | the process that owns it, for life |
//! | the original's purge | `.purge` in the job | who has an image of the original open | deleting chunks of the original |
//! | shard | the directory `chunks/ab` | a writer, for "log the id, look" | a purge, while it deletes there |
//! | page index | `.pages/table` | | who changes it; whoever does not get it at once leaves it |
//!
//! They are taken in this order. Neither a pid nor a clock proves anything: a session lives while its log is locked.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use crate::error::{Context, Error, Result};
use crate::fs::disk;
use crate::fs::ownership::{self, Secrecy};

/// How often a backup tries to take its lock: somebody may just look whether one runs.
const BACKUP_TRIES: u32 = 5;
const BACKUP_PAUSE: Duration = Duration::from_millis(10);

pub(crate) const SWEEP: &str = ".sweep";
const BACKUP: &str = ".backup";
const MANIFESTS: &str = ".manifests";

/// Exclusive right to make a revision in one job. Dropping it releases the right.
#[derive(Debug)]
pub struct BackupGuard {
    _file: File,
}

/// Exclusive right to change the manifests of one job, held for moments. Dropping it releases the right.
#[derive(Debug)]
pub struct ManifestGuard {
    /// `None` for who only looks where nothing can be written.
    _file: Option<File>,
}

/// Exclusive right to delete chunks of one store.
#[derive(Debug)]
pub(crate) struct SweepGuard {
    /// `None` for who only looks where nothing can be written.
    _file: Option<File>,
}

pub(crate) fn for_backup(job_dir: &Path, job: &str) -> Result<BackupGuard> {
    let path = job_dir.join(BACKUP);
    let file = disk::open_lock_file(&path)?;
    for _ in 0..BACKUP_TRIES {
        if try_lock(&file, &path)? {
            return Ok(BackupGuard { _file: file });
        }
        std::thread::sleep(BACKUP_PAUSE);
    }
    Err(Error::Locked { what: format!("job {job} (backup)") })
}

/// Whether a backup of the job runs. Takes its lock shared for a moment, which a backup that begins waits for.
pub(crate) fn is_held_for_backup(job_dir: &Path) -> bool {
    let Ok(file) = disk::open(&job_dir.join(BACKUP)) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

pub(crate) fn for_manifests(job_dir: &Path) -> Result<ManifestGuard> {
    let path = job_dir.join(MANIFESTS);
    let file = disk::open_lock_file(&path)?;
    file.lock().map_err(|error| lock_error(&path, error))?;
    Ok(ManifestGuard { _file: Some(file) })
}

/// As [`for_manifests`], for who only looks: where no lock file can be made, nothing is changed either.
pub(crate) fn for_looking_at_manifests(job_dir: &Path) -> Result<ManifestGuard> {
    match for_manifests(job_dir) {
        Err(error) if error.is_unwritable() => Ok(ManifestGuard { _file: None }),
        other => other,
    }
}

/// As [`for_manifests`], or fails at once with `Locked`.
pub(crate) fn try_for_manifests(job_dir: &Path, job: &str) -> Result<ManifestGuard> {
    let file = try_exclusive(&job_dir.join(MANIFESTS), || format!("job {job} (manifests)"))?;
    Ok(ManifestGuard { _file: Some(file) })
}

pub(crate) fn for_sweep(root: &Path) -> Result<SweepGuard> {
    ownership::check(root, Secrecy::Public)?;
    let path = root.join(SWEEP);
    let file = try_exclusive(&path, || format!("store {} (purge)", root.display()))?;
    prove(&path)?;
    Ok(SweepGuard { _file: Some(file) })
}

/// As [`for_sweep`], for a sweep that deletes nothing: where no lock file can be made, none is needed.
pub(crate) fn for_looking(root: &Path) -> Result<SweepGuard> {
    match for_sweep(root) {
        Err(error) if error.is_unwritable() => Ok(SweepGuard { _file: None }),
        other => other,
    }
}

/// Makes the lock files of a store, so that a full file system is no reason not to take them. No error where that fails:
/// whoever takes the lock makes its file.
pub(crate) fn prepare_store(root: &Path) {
    drop(disk::open_lock_file(&root.join(SWEEP)));
    drop(disk::open_lock_file(&root.join("writers").join(".lock")));
}

/// The same for a job's directory.
pub(crate) fn prepare_job(dir: &Path) {
    drop(disk::open_lock_file(&dir.join(BACKUP)));
    drop(disk::open_lock_file(&dir.join(MANIFESTS)));
}

fn try_exclusive(path: &Path, what: impl FnOnce() -> String) -> Result<File> {
    let file = disk::open_lock_file(path)?;
    if try_lock(&file, path)? { Ok(file) } else { Err(Error::Locked { what: what() }) }
}

/// Takes the exclusive lock if nobody has one; returns whether it was taken.
pub(crate) fn try_lock(file: &File, path: &Path) -> Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(lock_error(path, error)),
    }
}

/// Proves that a lock which this process holds keeps others out: a second open of the file is as good as another
/// process.
pub(crate) fn prove(path: &Path) -> Result<()> {
    let second = disk::open(path).context("open", path)?;
    if try_lock(&second, path)? {
        let reason = "a file that is locked can be locked again".to_owned();
        return Err(Error::LocksUnusable { path: path.to_owned(), reason });
    }
    Ok(())
}

/// Tells file systems without locks from other failures. EBADF is what NFS says to an exclusive lock on a file that is
/// open for reading.
pub(crate) fn lock_error(path: &Path, error: std::io::Error) -> Error {
    use nix::libc::{EBADF, ENOLCK, ENOSYS, EOPNOTSUPP};
    match error.raw_os_error() {
        Some(EBADF | ENOLCK | ENOSYS | EOPNOTSUPP) => {
            Error::LocksUnusable { path: path.to_owned(), reason: error.to_string() }
        }
        _ => Error::io("lock", path, error),
    }
}
