//! Looks at the jobs of the main configuration as they are on disk, for the verdicts of
//! [`policy::health`](crate::policy::health). Reads only; a job that cannot be looked at becomes a fact, not an
//! error, so it does not hide the others.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::UNIX_EPOCH;

use backy_store::{Error as StoreError, Job, JobName, KnownRevisions, Repository, Timestamp, damage};

use crate::policy::health::JobFacts;
use crate::service::config::{ServiceConfig, ServiceJob};

/// Returns the facts of every configured job, sorted by name. A job without a directory has been there since
/// `configured_at`. One job after the other: most of the work is in the index, which several readers only
/// keep from each other.
pub fn gather(
    config: &ServiceConfig,
    repository: &Repository,
    configured_at: Option<Timestamp>,
    now: Timestamp,
) -> Vec<JobFacts> {
    let look = |(name, job): (&JobName, &ServiceJob)| {
        let facts = JobFacts::new(name.clone(), &job.config.schedule);
        match repository.job(name) {
            Ok(job) => look_at(&job, facts, now),
            Err(StoreError::JobUnknown { .. }) => JobFacts { since: configured_at, ..facts },
            Err(error) => JobFacts { failure: Some(in_full(&error)), ..facts },
        }
    };
    config.jobs.iter().map(look).collect()
}

/// Adds to `facts` what the job's directory tells.
pub fn look_at(job: &Job, facts: JobFacts, now: Timestamp) -> JobFacts {
    let facts = JobFacts { since: since(job.dir(), &job.config_path()), ..facts };
    let listed = job.revisions_again(&mut KnownRevisions::default());
    let reports = damage::quarantine_reports(job);
    match (listed, reports) {
        (Ok((revisions, damaged)), Ok(quarantine_reports)) => JobFacts {
            unreadable: damaged.len(),
            quarantine_reports,
            ..facts.with_revisions(revisions.iter().map(AsRef::as_ref), now)
        },
        (Err(error), _) | (_, Err(error)) => JobFacts { failure: Some(in_full(&error)), ..facts },
    }
}

/// Since when a job has been there: its directory's birth or its configuration's last change, whichever is
/// earlier. So neither editing the configuration nor copying the directory makes a job look new.
fn since(dir: &Path, config: &Path) -> Option<Timestamp> {
    let changed = std::fs::metadata(config).ok().and_then(|facts| Timestamp::from_secs(facts.mtime()));
    let born = std::fs::metadata(dir).and_then(|facts| facts.created()).ok();
    let born = born.and_then(|born| born.duration_since(UNIX_EPOCH).ok());
    let born = born.and_then(|born| Timestamp::from_secs(i64::try_from(born.as_secs()).ok()?));
    changed.into_iter().chain(born).min()
}

fn in_full(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
