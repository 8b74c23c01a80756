//! Removes the snapshots that a job has at its source, for instance before the job is dropped: with its directory goes
//! what is known of them.

use std::collections::BTreeSet;

use backy_store::{Job, Revision, RevisionId};

use crate::config::JobConfig;
use crate::error::Result;
use crate::source::{self, Snapshots, rbd::Environment};

/// What came of it, by the revisions of the snapshots.
#[derive(Clone, Debug, Default)]
pub struct ReleaseReport {
    /// The source's name for people.
    pub source: String,
    /// Whether snapshots can be there at all: the source of the job's configuration, which may have been another, makes
    /// them.
    pub was_looked: bool,
    /// Those that were there, and which are still.
    pub snapshots: Snapshots,
    /// Those that are noted and were not there, for the first time. They stay noted.
    pub unseen: BTreeSet<RevisionId>,
    /// Those that were not there the last time, either. They are crossed out.
    pub given_up: BTreeSet<RevisionId>,
}

impl ReleaseReport {
    /// Whether snapshots are left, or may be.
    pub fn is_incomplete(&self) -> bool {
        !self.snapshots.left.is_empty() || !self.unseen.is_empty()
    }
}

/// Removes all snapshots of the job, also the one that the next backup would start from: that one then reads the whole
/// source and compares. Holds the job as a backup does, so none runs meanwhile.
///
/// One that is noted and not there proves nothing: a program of a killed backup may still come to make it, or it is at
/// another source that the job had. It is crossed out only when the next call, at a time that a person has chosen, does not
/// see it either.
pub fn run(job: &Job, config: &JobConfig, environment: &Environment) -> Result<ReleaseReport> {
    job.repository().check_ours()?;
    let guard = job.lock_for_backup()?;
    let mut source = source::open(&config.source, environment);
    let mut report = ReleaseReport {
        source: source.describe(),
        was_looked: source.makes_snapshots(),
        ..ReleaseReport::default()
    };
    let noted = job.noted_snapshots()?;
    if !report.was_looked {
        report.unseen = noted;
        return Ok(report);
    }
    let own = own(job, &noted, &job.revisions()?.revisions)?;
    report.snapshots = source.release(&own, None)?;
    let missed = job.missed_snapshots()?;
    (report.unseen, report.given_up) = absent(&noted, &missed, &report.snapshots);
    // In this order: whoever dies in between has crossed out nothing, and given up nothing too early.
    if report.unseen != missed {
        job.note_missed_snapshots(&guard, &report.unseen)?;
    }
    let still = report.snapshots.left.union(&report.unseen).cloned().collect();
    job.note_snapshots(&guard, &still)?;
    Ok(report)
}

/// Returns which of those that are noted were not there, for the first time and again.
fn absent(
    noted: &BTreeSet<RevisionId>,
    missed: &BTreeSet<RevisionId>,
    found: &Snapshots,
) -> (BTreeSet<RevisionId>, BTreeSet<RevisionId>) {
    if found.is_source_gone {
        return (BTreeSet::new(), BTreeSet::new());
    }
    let is_absent = |id: &&RevisionId| !found.removed.contains(*id) && !found.left.contains(*id);
    noted.iter().filter(is_absent).cloned().partition(|id| !missed.contains(id))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(bits: &[u128]) -> BTreeSet<RevisionId> {
        bits.iter().copied().map(RevisionId::from_bits).collect()
    }

    #[test]
    fn what_is_not_there_is_given_up_the_second_time() {
        let found = Snapshots { removed: ids(&[1, 9]), left: ids(&[2]), is_source_gone: false };
        assert_eq!(absent(&ids(&[1, 2, 3, 4]), &ids(&[]), &found), (ids(&[3, 4]), ids(&[])));
        assert_eq!(absent(&ids(&[1, 2, 3, 4]), &ids(&[1, 2, 3, 5]), &found), (ids(&[4]), ids(&[3])));
        let gone = Snapshots { is_source_gone: true, ..Snapshots::default() };
        assert_eq!(absent(&ids(&[1, 2]), &ids(&[2]), &gone), (ids(&[]), ids(&[])));
    }
}
