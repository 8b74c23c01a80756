//! Which snapshots a job may have at its source: a note `.snapshots` in the job's directory, one revision id per line.
//!
//! An id is noted, durably, before its snapshot is asked for, and crossed out only after the snapshot was seen to be
//! gone. So whatever dies in between, the next run knows every snapshot this job made, and never takes anybody else's
//! for its own. Beside it lies `.snapshots-missed`: those that were looked for once and were not there, but may come yet.
//! The store knows nothing of the snapshots themselves.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use crate::error::{Context, Error, Result};
use crate::fs::disk;
use crate::fs::lock::BackupGuard;
use crate::repository::job::Job;
use crate::revision::RevisionId;

/// The note's name.
const NOTED: &str = ".snapshots";
/// The name of the other one.
const MISSED: &str = ".snapshots-missed";
/// Largest note that is read: many thousands of ids.
const SIZE_BYTES_MAX: u64 = 1 << 20;

impl Job {
    /// Returns the revisions whose snapshots may exist. Lines that are no ids are left out.
    pub fn noted_snapshots(&self) -> Result<BTreeSet<RevisionId>> {
        read(&self.dir().join(NOTED))
    }

    /// Replaces the note, durably. The guard shows that no other run makes snapshots now.
    pub fn note_snapshots(&self, _guard: &BackupGuard, ids: &BTreeSet<RevisionId>) -> Result<()> {
        write(&self.dir().join(NOTED), ids)
    }

    /// Returns the revisions whose snapshots were looked for in vain.
    pub fn missed_snapshots(&self) -> Result<BTreeSet<RevisionId>> {
        read(&self.dir().join(MISSED))
    }

    /// Replaces these, durably.
    pub fn note_missed_snapshots(&self, _guard: &BackupGuard, ids: &BTreeSet<RevisionId>) -> Result<()> {
        write(&self.dir().join(MISSED), ids)
    }
}

fn read(path: &Path) -> Result<BTreeSet<RevisionId>> {
    let file = match disk::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        other => other.context("open", path)?,
    };
    let text = disk::read_text(&file, path, SIZE_BYTES_MAX)?.unwrap_or_default();
    Ok(text.lines().filter_map(|line| RevisionId::parse(line).ok()).collect())
}

fn write(path: &Path, ids: &BTreeSet<RevisionId>) -> Result<()> {
    let text: String = ids.iter().map(|id| format!("{id}\n")).collect();
    if text.len() as u64 > SIZE_BYTES_MAX {
        return Err(Error::io("write", path, io::Error::from(io::ErrorKind::FileTooLarge)));
    }
    disk::write_atomically(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::new_job;

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let (_dir, job) = new_job("web01");
        assert!(job.noted_snapshots().unwrap().is_empty());
        let guard = job.lock_for_backup().unwrap();
        let ids: BTreeSet<RevisionId> = (1..5).map(RevisionId::from_bits).collect();
        job.note_snapshots(&guard, &ids).unwrap();
        assert_eq!(job.noted_snapshots().unwrap(), ids);
        assert!(job.missed_snapshots().unwrap().is_empty());
        let missed = ids.iter().take(2).cloned().collect();
        job.note_missed_snapshots(&guard, &missed).unwrap();
        assert_eq!((job.noted_snapshots().unwrap(), job.missed_snapshots().unwrap()), (ids, missed));
        std::fs::write(job.dir().join(".snapshots"), b"\xff\n").unwrap();
        assert!(job.noted_snapshots().unwrap().is_empty());
        job.note_snapshots(&guard, &BTreeSet::new()).unwrap();
        assert!(job.noted_snapshots().unwrap().is_empty());
    }
}
