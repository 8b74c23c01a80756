//! Looks at the jobs of the main configuration as they are on disk, for the verdicts of
//! [`policy::health`](crate::policy::health).

use backy_store::{Repository, Timestamp};

use crate::histories::{Histories, Look};
use crate::policy::health::JobFacts;
use crate::service::config::ServiceConfig;

/// Returns the facts of every configured job, sorted by name. A job without a directory has been there since
/// `configured_at`. One job after the other: the index is what takes the time when there is much to list, and
/// several readers only keep each other from it.
pub fn gather(
    config: &ServiceConfig,
    repository: &Repository,
    configured_at: Option<Timestamp>,
    now: Timestamp,
) -> Vec<JobFacts> {
    let _hold = repository.hold_index();
    let histories = Histories::load(repository);
    let jobs = config.jobs.iter();
    let facts = jobs.map(|(name, job)| {
        let look = histories.look(repository, name, now);
        let mut facts =
            facts(JobFacts::new(name.clone(), &job.config.schedule), &look, config, configured_at);
        facts.running = facts.is_late(now) && repository.job(name).is_ok_and(|job| job.is_being_backed_up());
        facts
    });
    let facts = facts.collect();
    histories.save(repository);
    facts
}

/// Adds to `facts` what a look at the job showed.
pub fn facts(
    facts: JobFacts,
    look: &Look,
    config: &ServiceConfig,
    configured_at: Option<Timestamp>,
) -> JobFacts {
    let counts = |server: &str| config.peers.get(server).is_some_and(|peer| peer.counts);
    JobFacts {
        since: look.since.or(configured_at),
        unreadable: look.unreadable,
        quarantine_reports: look.quarantine_reports,
        failure: look.failure.clone(),
        ..facts.with_history(&look.history, counts)
    }
}
