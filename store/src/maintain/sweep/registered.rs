//! Which records of each job a purge has left in the register: `.registered` in the store, a JSON object of job names and
//! arrays of revision ids. Between purges the register only grows, so that a missing one shows a loss.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::error::{Context, Error, Result};
use crate::fs::disk;
use crate::name::JobName;
use crate::repository::Repository;
use crate::repository::register::Record;
use crate::revision::RevisionId;

/// Longest file that is read: a million jobs.
const LEN_MAX: u64 = 256 << 20;

/// Records by job.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Registered(BTreeMap<JobName, BTreeSet<RevisionId>>);

fn path(repository: &Repository) -> PathBuf {
    repository.root().join(".registered")
}

impl Registered {
    /// Takes these records.
    pub(super) fn of(records: impl IntoIterator<Item = Record>) -> Self {
        let mut jobs: BTreeMap<JobName, BTreeSet<RevisionId>> = BTreeMap::new();
        for record in records {
            jobs.entry(record.job).or_default().insert(record.id);
        }
        Self(jobs)
    }

    /// Reads what the last purge left. A missing file knows of nothing that could be lost.
    pub(super) fn load(repository: &Repository) -> Result<Self> {
        let path = path(repository);
        let file = match disk::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other.context("open", &path)?,
        };
        let text = disk::read_text(&file, &path, LEN_MAX)?.unwrap_or_default();
        // What was there before this file was damaged is not known, so nothing may be deleted.
        serde_json::from_str(&text).map(Self).map_err(|error| Error::StoreDamaged {
            path: repository.root().to_owned(),
            reason: format!(
                "`.registered` cannot be understood: {error}; when all jobs are there, remove it"
            ),
        })
    }

    /// Replaces the file, unless nothing changed since `before`.
    pub(super) fn save(&self, repository: &Repository, before: &Self) -> Result<()> {
        if self == before {
            return Ok(());
        }
        let text = serde_json::to_string(&self.0).unwrap_or_default();
        repository.with_reserve(|| disk::write_atomically(&path(repository), text.as_bytes()))
    }

    /// The jobs whose records are not all there any more, and the revisions of those that are missing.
    pub(super) fn lost(
        &self,
        records: impl IntoIterator<Item = Record>,
    ) -> BTreeMap<JobName, BTreeSet<RevisionId>> {
        let present = Self::of(records);
        let lost = |(job, before): (&JobName, &BTreeSet<RevisionId>)| {
            let is_lost = |id: &&RevisionId| !present.0.get(job).is_some_and(|ids| ids.contains(*id));
            let lost: BTreeSet<RevisionId> = before.iter().filter(is_lost).cloned().collect();
            (!lost.is_empty()).then(|| (job.clone(), lost))
        };
        self.0.iter().filter_map(lost).collect()
    }
}
