//! Removes the snapshots that a job has at its source, for instance before the job is dropped: with its directory goes
//! what is known of them.

use std::collections::BTreeSet;

use backy_store::{Job, Revision, RevisionId};

use crate::config::JobConfig;
use crate::error::Result;
use crate::source::{self, Snapshots, rbd::Environment};

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct ReleaseReport {
    /// The source's name for people.
    pub source: String,
    /// The revisions whose snapshots were there, and which are still.
    pub snapshots: Snapshots,
}

/// Removes all snapshots of the job, also the one that the next backup would start from: that one then reads the whole
/// source and compares. Holds the job as a backup does, so none runs meanwhile.
pub fn run(job: &Job, config: &JobConfig, environment: &Environment) -> Result<ReleaseReport> {
    job.repository().check_ours()?;
    let guard = job.lock_for_backup()?;
    let mut source = source::open(&config.source, environment);
    let mut report = ReleaseReport { source: source.describe(), snapshots: Snapshots::default() };
    if source.makes_snapshots() {
        let own = own(job, &job.noted_snapshots()?, &job.revisions()?.revisions)?;
        report.snapshots = source.release(&own, None)?;
        job.note_snapshots(&guard, &report.snapshots.left)?;
    }
    Ok(report)
}

/// Returns the revisions whose snapshots are this job's. Those that are noted come from its runs, finished or not;
/// revisions may be older than the note.
pub(crate) fn own(
    job: &Job,
    noted: &BTreeSet<RevisionId>,
    history: &[Revision],
) -> Result<BTreeSet<RevisionId>> {
    let mut own = noted.clone();
    own.extend(history.iter().filter(|revision| revision.is_local()).map(|revision| revision.id.clone()));
    own.extend(job.forgotten()?.into_iter().map(|forgotten| forgotten.revision.id));
    Ok(own)
}
