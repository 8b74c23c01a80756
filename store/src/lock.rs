//! Locks and proofs of life, all of them advisory locks on files, which the kernel frees when a process dies.
//!
//! | lock | file | held |
//! | --- | --- | --- |
//! | sweep | `<store>/.sweep` | exclusive by a purge |
//! | backup | `<job>/.backup` | exclusive by a backup, from its first to its last step |
//! | manifests | `<job>/.manifests` | exclusive for the moments in which manifests change |
//! | restoring | `<store>/.restoring-<id>` | exclusive by a restore to Ceph and its programs, for life (`restoring.rs`) |
//! | sessions | `<store>/writers/.lock` | shared while a session begins, exclusive while a purge tells live from dead |
//! | shard | `<store>/chunks/ab` | shared for "log the id, look", exclusive while a purge deletes there |
//!
//! They are taken in this order. Neither a pid nor a clock proves anything: a session lives while its log is locked.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use crate::disk;
use crate::error::{Context, Error, Result};
use crate::ownership::{self, Secrecy};

/// How often a backup tries to take its lock: somebody may just look whether one runs.
const BACKUP_TRIES: u32 = 5;
const BACKUP_PAUSE: Duration = Duration::from_millis(10);

/// Exclusive right to make a revision in one job. Dropping it releases the right.
#[derive(Debug)]
pub struct BackupGuard {
    _file: File,
}

/// Exclusive right to change the manifests of one job, held for moments. Dropping it releases the right.
#[derive(Debug)]
pub struct ManifestGuard {
    _file: File,
}

/// Exclusive right to delete chunks of one store.
#[derive(Debug)]
pub(crate) struct SweepGuard {
    _file: File,
}

pub(crate) fn for_backup(job_dir: &Path, job: &str) -> Result<BackupGuard> {
    let path = job_dir.join(".backup");
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
    let Ok(file) = disk::open(&job_dir.join(".backup")) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

pub(crate) fn for_manifests(job_dir: &Path) -> Result<ManifestGuard> {
    let path = job_dir.join(".manifests");
    let file = disk::open_lock_file(&path)?;
    file.lock().context("lock", &path)?;
    Ok(ManifestGuard { _file: file })
}

/// As [`for_manifests`], or fails at once with `Locked`.
pub(crate) fn try_for_manifests(job_dir: &Path, job: &str) -> Result<ManifestGuard> {
    let file = try_exclusive(&job_dir.join(".manifests"), || format!("job {job} (manifests)"))?;
    Ok(ManifestGuard { _file: file })
}

pub(crate) fn for_sweep(root: &Path) -> Result<SweepGuard> {
    ownership::check(root, Secrecy::Public)?;
    let file = try_exclusive(&root.join(".sweep"), || format!("store {} (purge)", root.display()))?;
    Ok(SweepGuard { _file: file })
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
        Err(TryLockError::Error(error)) => Err(Error::io("lock", path, error)),
    }
}
