//! The original's lock `.purge` of a job: shared by who reads its chunks, exclusive by who deletes them. It is taken
//! as the original takes it, so that both programs can work on one store. (`.backup` is the lock of our own
//! backups, too.)

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use crate::error::{Error, Result};
use crate::fs::disk;
use crate::name::JobName;

/// Keeps the original from deleting chunks of a job. `None` inside where there is no lock file: who only reads
/// makes none.
#[derive(Debug)]
pub(crate) struct OldReadGuard {
    _file: Option<File>,
}

/// The right to delete the original's chunks of a job.
#[derive(Debug)]
pub(crate) struct OldPurgeGuard {
    _file: File,
}

fn locked(job: &JobName) -> Error {
    Error::Locked { what: format!("job {job} (purge of the original's chunks)") }
}

/// Takes the lock for reading, or fails at once with `Locked`.
pub(crate) fn for_reading(job_dir: &Path, job: &JobName) -> Result<OldReadGuard> {
    let path = job_dir.join(".purge");
    let file = match disk::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(OldReadGuard { _file: None }),
        other => other.map_err(|error| Error::io("open", &path, error))?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(OldReadGuard { _file: Some(file) }),
        Err(TryLockError::WouldBlock) => Err(locked(job)),
        Err(TryLockError::Error(error)) => Err(Error::io("lock", path, error)),
    }
}

/// Takes the lock for deleting, or fails at once with `Locked`.
pub(crate) fn for_purge(job_dir: &Path, job: &JobName) -> Result<OldPurgeGuard> {
    let path = job_dir.join(".purge");
    let file = disk::open_lock_file(&path)?;
    if crate::fs::lock::try_lock(&file, &path)? {
        Ok(OldPurgeGuard { _file: file })
    } else {
        Err(locked(job))
    }
}
