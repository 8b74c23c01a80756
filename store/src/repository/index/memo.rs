//! Memos: what somebody derived from the revisions of a job, kept in the index until the job changes, so that looking
//! at ten thousand jobs costs one `stat` for each and not a listing.
//!
//! A memo is a text that only its maker understands, with the [`Generation`] of the job's directory for which it was
//! made. It is of use while the directory has that generation. As everything in the index it may be missing or lost, and
//! it carries a hash, so that one that rotted is as good as none.

use std::collections::HashMap;

use rusqlite::params;

use super::{RevisionIndex, proof};
use crate::name::JobName;
use crate::repository::Repository;
use crate::repository::job::Generation;

/// What was derived from a job's revisions, and when that was right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memo {
    /// The job's directory as it was just before its revisions were listed. It must have been settled then.
    pub generation: Generation,
    /// What was derived.
    pub text: String,
}

impl Repository {
    /// Returns the memos of all jobs; none when the index cannot be read.
    pub fn memos(&self) -> HashMap<JobName, Memo> {
        RevisionIndex::open(self).memos().unwrap_or_else(|error| {
            tracing::debug!(error = crate::error::in_full(&error), "the memos cannot be read");
            HashMap::new()
        })
    }

    /// Keeps memos. That they could not be kept is no error.
    pub fn keep_memos(&self, memos: &[(JobName, Memo)]) {
        if memos.is_empty() {
            return;
        }
        if let Err(error) = RevisionIndex::open(self).keep_memos(memos) {
            tracing::debug!(error = crate::error::in_full(&error), "the memos were not kept");
        }
    }
}

impl RevisionIndex {
    fn memos(&self) -> rusqlite::Result<HashMap<JobName, Memo>> {
        let Some(connection) = &self.connection else { return Ok(HashMap::new()) };
        let mut query = connection.prepare("SELECT job, inode, mtime_nanos, text, proof FROM memo")?;
        let rows = query.query_map([], |row| {
            let (inode, mtime_nanos): (i64, i64) = (row.get(1)?, row.get(2)?);
            let (job, text): (String, String) = (row.get(0)?, row.get(3)?);
            let is_proven = row.get::<_, Vec<u8>>(4)? == proof(&[&job, &text], &[inode, mtime_nanos]);
            let generation = Generation { inode: inode as u64, mtime_nanos: mtime_nanos.into() };
            Ok(is_proven.then_some((job, Memo { generation, text })))
        })?;
        let mut found = HashMap::new();
        for row in rows {
            let Some((job, memo)) = row? else {
                tracing::warn!("a memo in the revision index is damaged: it is not used");
                continue;
            };
            found.extend(JobName::parse(&job).ok().map(|job| (job, memo)));
        }
        Ok(found)
    }

    fn keep_memos(&mut self, memos: &[(JobName, Memo)]) -> rusqlite::Result<()> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        {
            let mut insert = transaction.prepare(
                "INSERT OR REPLACE INTO memo (job, inode, mtime_nanos, text, proof) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            for (job, memo) in memos {
                let Ok(mtime_nanos) = i64::try_from(memo.generation.mtime_nanos) else { continue };
                let inode = memo.generation.inode as i64;
                let proof = proof(&[job.as_str(), &memo.text], &[inode, mtime_nanos]);
                insert.execute(params![job.as_str(), inode, mtime_nanos, memo.text, &proof[..]])?;
            }
        }
        transaction.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{commit_empty_revision, new_job};

    #[test]
    fn memos_are_kept_replaced_and_lost_without_harm() {
        let (_dir, job) = new_job("web01");
        commit_empty_revision(&job, 1);
        let store = job.repository();
        assert!(store.memos().is_empty());
        let memo = |text: &str| Memo { generation: job.generation().unwrap(), text: text.to_owned() };
        store.keep_memos(&[(job.name().clone(), memo("first"))]);
        store.keep_memos(&[(job.name().clone(), memo("second"))]);
        let kept = store.memos();
        assert_eq!((kept.len(), &kept[job.name()]), (1, &memo("second")));
        commit_empty_revision(&job, 2);
        assert_ne!(kept[job.name()].generation, job.generation().unwrap());
        let path = store.root().join("index.sqlite");
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.execute("UPDATE memo SET text = 'sebond'", []).unwrap();
        drop(connection);
        assert!(store.memos().is_empty(), "one that rotted");
        std::fs::write(store.root().join("index.sqlite"), "garbage").unwrap();
        assert!(store.memos().is_empty());
        assert_eq!(job.revisions().unwrap().revisions.len(), 2);
    }
}
