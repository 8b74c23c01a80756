//! The register: the store's own names of the chunk maps of all its revisions, in `maps/<job>/`.
//!
//! A job's directory can lie on another disk, be moved, hidden below a mount point, or be half copied, and nobody
//! wants to lose its revisions for that. So which chunks are needed never depends on what can be seen of a job's
//! directory: every commit gives the map a second name here before the manifest exists, and only a purge removes
//! that name. Where a hard link cannot be made (another file system, or one without links), the second name is a copy.
//!
//! The state of a record is in its file name, so that each change is one rename:
//!
//! | name | state |
//! | --- | --- |
//! | `<id>.map` | the revision was committed |
//! | `<id>.pending-<session>` | the session's commit has not ended, or died |
//! | `<id>.dropped-<seconds>` | an operator said at this time that the revision was deleted on purpose |
//! | `<id>.purged` | a purge is removing the revision; what it names and nothing else needs can go |
//!
//! Beside a record lie `<id>.rev`, the manifest as it was committed, and in the job's directory of the register `config`,
//! as it was at the last commit: from these a job's directory that was lost can be made again (`recover.rs`).
//!
//! All of them but `purged` keep their chunks. Writers add records of their own revisions; everything else is done
//! under the sweep's lock.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};
use crate::fs::disk;
use crate::name::JobName;
use crate::repository::Repository;
use crate::revision::RevisionId;
use crate::timestamp::Timestamp;

/// The register's directory in the store.
pub(crate) const DIR: &str = "maps";

/// The name of a job's configuration, in its directory and in the register.
const CONFIG: &str = "config";

/// What is known of a record's revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Committed.
    Current,
    /// Being committed by the session of this name.
    Pending(String),
    /// Deleted on purpose, as an operator said at this time.
    Dropped(Timestamp),
    /// Being removed by a purge.
    Purged,
}

impl State {
    fn suffix(&self) -> String {
        match self {
            Self::Current => "map".to_owned(),
            Self::Pending(session) => format!("pending-{session}"),
            Self::Dropped(at) => format!("dropped-{}", at.as_secs()),
            Self::Purged => "purged".to_owned(),
        }
    }

    fn parse(suffix: &str) -> Option<Self> {
        match suffix {
            "map" => Some(Self::Current),
            "purged" => Some(Self::Purged),
            _ => match suffix.split_once('-')? {
                ("pending", session) => Some(Self::Pending(session.to_owned())),
                ("dropped", secs) => Some(Self::Dropped(Timestamp::from_secs(secs.parse().ok()?)?)),
                _ => None,
            },
        }
    }
}

/// One name in the register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The job as it was called when the revision was committed, or last seen by a purge.
    pub(crate) job: JobName,
    /// The revision.
    pub(crate) id: RevisionId,
    /// What is known of it.
    pub(crate) state: State,
}

/// The register of one store.
#[derive(Clone, Debug)]
pub(crate) struct Register {
    dir: PathBuf,
}

impl Register {
    /// The register of this store. It need not exist: an older store, or a copy that lost it, begins a new one.
    pub(crate) fn of(repository: &Repository) -> Self {
        Self { dir: repository.root().join(DIR) }
    }

    /// The file of a record.
    pub(crate) fn path(&self, record: &Record) -> PathBuf {
        self.dir.join(record.job.as_str()).join(format!("{}.{}", record.id, record.state.suffix()))
    }

    /// Lists all records, in no order. A record that its writer completes meanwhile may be left out.
    pub(crate) fn list(&self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        for job in self.jobs()? {
            records.append(&mut self.of_job(&job)?);
        }
        Ok(records)
    }

    /// Lists the jobs that have records or had some.
    pub(crate) fn jobs(&self) -> Result<Vec<JobName>> {
        Ok(names(&self.dir)?.iter().filter_map(|name| JobName::parse(name).ok()).collect())
    }

    /// Lists the records of one job.
    pub(crate) fn of_job(&self, job: &JobName) -> Result<Vec<Record>> {
        if disk::is_missing(&self.dir) {
            return Ok(Vec::new());
        }
        let parse = |name: &String| {
            let (id, suffix) = name.split_once('.')?;
            let (id, state) = (RevisionId::parse(id).ok()?, State::parse(suffix)?);
            Some(Record { job: job.clone(), id, state })
        };
        Ok(names(&self.dir.join(job.as_str()))?.iter().filter_map(parse).collect())
    }

    /// Gives `map` a name in the register, durably. A record of the same name is replaced.
    pub(crate) fn add(&self, record: Record, map: &Path) -> Result<Record> {
        let path = self.path(&record);
        let dir = self.make_dir(&record.job)?;
        disk::remove(&path)?;
        link_or_copy(map, &path)?;
        disk::sync_dir(&dir)?;
        Ok(record)
    }

    /// Gives a record another state. Durable when it returns.
    pub(crate) fn change(&self, record: &Record, state: State) -> Result<Record> {
        let changed = Record { state, ..record.clone() };
        disk::rename(&self.path(record), &self.path(&changed))?;
        disk::sync_dir(&self.dir.join(record.job.as_str()))?;
        Ok(changed)
    }

    /// Keeps the manifest of a record, and the job's configuration, for the case that the job's directory is lost. Not
    /// durable: a loss costs only tags.
    pub(crate) fn keep_manifest(&self, record: &Record, manifest: &Path) -> Result<()> {
        let kept = self.manifest_path(record);
        disk::remove(&kept)?;
        link_or_copy(manifest, &kept)?;
        let config = std::fs::read(manifest.with_file_name(CONFIG)).ok();
        let path = self.config_path(&record.job);
        match config {
            Some(text) if std::fs::read(&path).ok().as_ref() != Some(&text) => {
                disk::write_atomically(&path, &text)
            }
            _ => Ok(()),
        }
    }

    /// Where the manifest of a record is kept.
    pub(crate) fn manifest_path(&self, record: &Record) -> PathBuf {
        self.dir.join(record.job.as_str()).join(format!("{}.rev", record.id))
    }

    /// Where the configuration of a job is kept.
    pub(crate) fn config_path(&self, job: &JobName) -> PathBuf {
        self.dir.join(job.as_str()).join(CONFIG)
    }

    /// Ends a commit: the pending record becomes current. Not durable: a purge completes what a power loss undoes.
    pub(crate) fn confirm(&self, pending: &Record) -> Result<()> {
        let current = Record { state: State::Current, ..pending.clone() };
        disk::rename(&self.path(pending), &self.path(&current))
    }

    /// Moves a record to the job in whose directory its manifest lies now.
    pub(crate) fn assign(&self, record: &Record, job: &JobName) -> Result<()> {
        let moved = Record { job: job.clone(), ..record.clone() };
        let dir = self.make_dir(job)?;
        disk::rename(&self.path(record), &self.path(&moved))?;
        match disk::rename(&self.manifest_path(record), &self.manifest_path(&moved)) {
            Err(error) if error.io_kind() != Some(io::ErrorKind::NotFound) => return Err(error),
            _ => {}
        }
        disk::sync_dir(&dir)
    }

    /// Gives the map of a record a name outside the register, unless there is one.
    pub(crate) fn copy_out(&self, record: &Record, map: &Path) -> Result<()> {
        match link_or_copy(&self.path(record), map) {
            Err(error) if error.io_kind() == Some(io::ErrorKind::AlreadyExists) => return Ok(()),
            other => other?,
        }
        disk::sync_dir(map.parent().unwrap_or(Path::new(".")))
    }

    /// Removes a record; it is no error when it is gone.
    pub(crate) fn remove(&self, record: &Record) -> Result<()> {
        if record.state == State::Purged {
            disk::remove(&self.manifest_path(record))?;
        }
        disk::remove(&self.path(record))
    }

    /// Makes the directory of a job's records where it is missing.
    fn make_dir(&self, job: &JobName) -> Result<PathBuf> {
        let dir = self.dir.join(job.as_str());
        for (dir, parent) in [(&self.dir, self.dir.parent()), (&dir, Some(&*self.dir))] {
            if disk::ensure_dir(dir)? {
                disk::sync_dir(parent.unwrap_or(Path::new(".")))?;
            }
        }
        Ok(dir)
    }
}

/// Gives a file a second name, or makes a copy where that cannot be. A copy gets its name when it is whole and durable.
fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    match disk::link(from, to) {
        Err(error) if error.is_link_impossible() => {
            let bytes = std::fs::read(from).context("read", from)?;
            disk::write_atomically(to, &bytes)
        }
        other => other,
    }
}

/// Lists the names in a directory; a missing one has none. One behind a link that leads nowhere is not missing.
fn names(dir: &Path) -> Result<Vec<String>> {
    Ok(disk::list(dir)?.into_iter().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{new_job, now};

    #[test]
    fn state_is_read_back_from_the_file_name() {
        let (dir, job) = new_job("web01");
        let map = dir.path().join("a.map");
        std::fs::write(&map, b"a map").unwrap();
        let register = Register::of(job.repository());
        assert!(register.list().unwrap().is_empty(), "a missing register is empty");
        let id = RevisionId::parse("abc").unwrap();
        let mut record = Record { job: job.name().clone(), id, state: State::Pending("f0".to_owned()) };
        register.add(record.clone(), &map).unwrap();
        for state in [State::Current, State::Dropped(now()), State::Purged] {
            record = register.change(&record, state).unwrap();
            assert_eq!(register.list().unwrap(), [record.clone()]);
            assert_eq!(std::fs::read(register.path(&record)).unwrap(), b"a map");
        }
        let other = JobName::parse("web02").unwrap();
        register.assign(&record, &other).unwrap();
        assert!(register.of_job(job.name()).unwrap().is_empty());
        assert_eq!(register.of_job(&other).unwrap().len(), 1);
    }
}
