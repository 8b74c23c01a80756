//! What the API asks of the running service: facts to show, and the few things that can be ordered. The service
//! implements [`Control`]; the API, and tests without a service, see nothing else of it.

use std::sync::Arc;
use std::time::Duration;

use backy_store::{JobName, Repository, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::policy::health::{self, JobFacts, Report};
use crate::service::rights::ApiToken;

/// The service as the API sees it. Every method may block for a moment (it may look at the directories of all
/// jobs), none for as long as a backup. `tokens` and `vitals` do not block: the API asks for them in its own loop.
pub trait Control: Send + Sync + 'static {
    /// Tokens, who has them and what they allow, as the configuration in force says.
    fn tokens(&self) -> Arc<Vec<ApiToken>>;

    /// The state of every configured job with a wanted name, by name, then of such dead directories, by name. No other
    /// is looked at.
    fn status(&self, wanted: &dyn Fn(&str) -> bool) -> Vec<StatusEntry>;

    /// What is configured for every job, by name.
    fn jobs(&self) -> Vec<JobEntry>;

    /// What the verdicts on all jobs stand on, by name, as `check::gather` finds it.
    fn facts(&self, now: Timestamp) -> Vec<JobFacts>;

    /// The verdicts on the jobs with a wanted name, the same as those of `backy check`.
    fn report(&self, wanted: &dyn Fn(&str) -> bool, now: Timestamp) -> Report {
        let mut facts = self.facts(now);
        facts.retain(|facts| wanted(facts.job.as_str()));
        let report = health::judge(&facts, Some(true), now);
        let silence = self.silence();
        if silence.is_too_long() { report.with_hung_service(Some(silence.lasted)) } else { report }
    }

    /// Lets a job run as soon as a worker is free; `false` when no such job is configured. A job that runs is
    /// left alone, one that waits for a worker comes next.
    fn run(&self, job: &JobName) -> bool;

    /// Reads the configuration again, wholly or not at all. Returns when it is in force or refused.
    fn reload(&self) -> Result<()>;

    /// Whether the job is configured here.
    fn is_active(&self, job: &JobName) -> bool;

    /// The job directories that no configured job owns, by name.
    fn dead_jobs(&self) -> Result<Vec<JobName>>;

    /// The store, opened anew: it may have been unmounted.
    fn repository(&self) -> Result<Repository>;

    /// Lets the next purge come soon, once a day; else with the daily one. A purge reads all maps of the store.
    fn request_purge(&self);

    /// Figures of the service itself.
    fn vitals(&self) -> Vitals;

    /// How long the service has shown no sign of life. Takes no lock: it answers when nothing else does.
    fn silence(&self) -> Silence;
}

/// How long the service has shown no sign of life: its main loop has not come round, or had no thread for its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// The time since the last turn.
    pub lasted: Duration,
    /// From when on the service counts as hung.
    pub max: Duration,
}

impl Silence {
    /// Whether the service counts as hung.
    pub fn is_too_long(self) -> bool {
        self.lasted > self.max
    }
}

/// What is shown of a job or of a dead directory. Fields and their forms are those of the original's API: times are
/// RFC 3339, tags are joined by commas, and what there is not is null.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusEntry {
    /// Its name.
    pub job: String,
    /// `OK` or `TOO OLD`; `UNKNOWN` when the job could not be read; null for a dead directory.
    pub sla: Option<String>,
    /// Age in seconds of the newest good revision when the job is overdue, else 0; null for a dead directory.
    pub sla_overdue: Option<f64>,
    /// What it does, `Dead` for a dead directory.
    pub status: String,
    /// Start of the newest complete revision.
    pub last_time: Option<String>,
    /// Its tags, those with the shortest intervals first.
    pub last_tags: Option<String>,
    /// How many seconds it took.
    pub last_duration: Option<f64>,
    /// When the next run is due.
    pub next_time: Option<String>,
    /// The tags of the next run.
    pub next_tags: Option<String>,
    /// All manual tags of its revisions.
    pub manual_tags: String,
    /// Reports in its quarantine.
    pub quarantine_reports: usize,
    /// Revisions of other servers whose tags were changed here and not there.
    pub unsynced_revs: usize,
    /// Complete revisions that are here.
    pub local_revs: usize,
    /// Why the newest of them is suspicious, joined by `; `; missing when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_changed: Option<String>,
    /// Why the job could not be read at the last look: what is said of its revisions is from an earlier one then, or
    /// nothing. Missing when it could.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// What is configured for a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobEntry {
    /// Its name.
    pub name: String,
    /// What it does.
    pub status: String,
    /// The source's settings; secrets are replaced by `***`.
    pub source: serde_json::Value,
    /// Tag -> `interval` and `keep`.
    pub schedule: serde_json::Value,
}

/// Figures of the service itself, for `/metrics` and `/healthz`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vitals {
    /// When it started.
    pub started_at: Option<Timestamp>,
    /// When its main loop last came round; it does so every minute at least.
    pub seen_at: Option<Timestamp>,
    /// Jobs that are running, by pool: fast, slow.
    pub running: [usize; 2],
    /// Jobs that wait for a worker, by pool.
    pub queued: [usize; 2],
    /// Workers of each pool.
    pub workers: u32,
    /// Jobs that wait after a failure.
    pub backing_off: usize,
    /// Rounds that ended well since the start.
    pub rounds_done: u64,
    /// Rounds that failed since the start.
    pub rounds_failed: u64,
    /// When the configuration in force was read.
    pub configured_at: Option<Timestamp>,
    /// Whether the last order to read it again was refused.
    pub reload_refused: bool,
}
