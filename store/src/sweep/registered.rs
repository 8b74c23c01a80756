//! How many records of each job a purge has left in the register: `.registered` in the store, a JSON object of job names
//! and numbers. Between purges the register only grows, so that fewer records show a loss.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::disk;
use crate::error::{Context, Result};
use crate::name::JobName;
use crate::register::Record;
use crate::repository::Repository;

/// Longest file that is read: a million jobs.
const LEN_MAX: u64 = 256 << 20;

/// Numbers of records by job.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Registered(BTreeMap<JobName, u64>);

fn path(repository: &Repository) -> PathBuf {
    repository.root().join(".registered")
}

impl Registered {
    /// Counts records.
    pub(super) fn of(records: impl IntoIterator<Item = Record>) -> Self {
        let mut counts = BTreeMap::new();
        for record in records {
            *counts.entry(record.job).or_default() += 1;
        }
        Self(counts)
    }

    /// Reads what the last purge left. A missing or damaged file knows of nothing that could be lost.
    pub(super) fn load(repository: &Repository) -> Result<Self> {
        let path = path(repository);
        let file = match disk::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other.context("open", &path)?,
        };
        let text = disk::read_text(&file, &path, LEN_MAX)?.unwrap_or_default();
        Ok(Self(serde_json::from_str(&text).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "registered-counts-damaged");
            BTreeMap::new()
        })))
    }

    /// Replaces the file, unless nothing changed since `before`.
    pub(super) fn save(&self, repository: &Repository, before: &Self) -> Result<()> {
        if self == before {
            return Ok(());
        }
        let text = serde_json::to_string(&self.0).unwrap_or_default();
        repository.with_reserve(|| disk::write_atomically(&path(repository), text.as_bytes()))
    }

    /// The jobs that have fewer records now, and how many fewer.
    pub(super) fn lost(&self, records: impl IntoIterator<Item = Record>) -> BTreeMap<JobName, u64> {
        let present = Self::of(records);
        let lost = |(job, before): (&JobName, &u64)| {
            let lost = before.saturating_sub(present.0.get(job).copied().unwrap_or(0));
            (lost > 0).then(|| (job.clone(), lost))
        };
        self.0.iter().filter_map(lost).collect()
    }
}
