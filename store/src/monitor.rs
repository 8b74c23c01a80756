//! What a long operation tells its caller while it runs: how much is to do, how much is done, what was
//! found; and the one thing the caller tells it: stop.
//!
//! The libraries never print. A terminal, a log and a test are listeners behind [`Monitor`].

use crate::revision::RevisionId;
use crate::{ChunkId, JobName};

/// Listener to one long operation. Every method may be called from several threads at once.
pub trait Monitor: Send + Sync {
    /// A stage begins: `label` names it for people, `total_bytes` is its size where it is known.
    fn begin(&self, label: &str, total_bytes: Option<u64>);
    /// `bytes` more of the stage are done.
    fn advance(&self, bytes: u64);
    /// The stage is over.
    fn end(&self);
    /// Damage or another thing a person must see was found; the operation goes on.
    fn finding(&self, finding: &Finding);
    /// Something that a person should know and that harms nothing in the store.
    fn warn(&self, message: &str) {
        tracing::warn!("{message}");
    }
    /// Whether the operation should stop at the next safe point and fail with `Cancelled`.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Listens to nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Monitor for Silent {
    fn begin(&self, _label: &str, _total_bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn end(&self) {}
    fn finding(&self, _finding: &Finding) {}
}

/// One piece of damage: where it is and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The job in which it was met.
    pub job: JobName,
    /// The revision in which it was met, if it belongs to one.
    pub revision: Option<RevisionId>,
    /// First affected byte of the image and number of affected bytes.
    pub range: Option<(u64, u64)>,
    /// The chunk concerned.
    pub chunk: Option<ChunkId>,
    /// What is wrong, as a sentence without a full stop.
    pub problem: String,
}

impl Finding {
    /// What is wrong with a revision as a whole: its manifest or its map.
    pub fn of_revision(job: &JobName, revision: &RevisionId, problem: impl std::fmt::Display) -> Self {
        let (job, revision) = (job.clone(), Some(revision.clone()));
        Self { job, revision, range: None, chunk: None, problem: problem.to_string() }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "job {}", self.job)?;
        if let Some(revision) = &self.revision {
            write!(out, ", revision {revision}")?;
        }
        if let Some((offset, length)) = self.range {
            write!(out, ", bytes {offset} to {}", offset.saturating_add(length))?;
        }
        write!(out, ": {}", self.problem)
    }
}
