//! What is wrong with the jobs of a server, and how bad that is: the rules behind `backy check`, the
//! service's API and `backy client check`, so that all three give the same verdicts. Pure.
//!
//! [`JobFacts`] is what a verdict needs to know of a job, and can travel. A job is green only by a revision
//! from which it could be restored: here, complete, not distrusted, not suspicious, not dated in the future. What another
//! server says that it has is no proof: it counts only where the configuration says so (`counts` of the peer).

use std::collections::BTreeSet;
use std::time::Duration;

use backy_store::{JobName, Tag, Timestamp};
use serde::{Deserialize, Serialize};

use super::Schedule;
use super::history::History;
use super::interval;
use super::sla::{self, Sla};

/// What a verdict needs to know of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobFacts {
    /// Its name.
    pub job: JobName,
    /// The shortest interval of its schedule.
    pub shortest_secs: Option<i64>,
    /// Since when it has been there.
    pub since: Option<Timestamp>,
    /// The newest revision that can be relied on.
    pub newest_good: Option<Timestamp>,
    /// The newest revision that another server says it has, where that does not count.
    #[serde(default)]
    pub newest_elsewhere: Option<Timestamp>,
    /// Complete revisions.
    pub revisions: usize,
    /// Distrusted ones.
    pub distrusted: usize,
    /// Whether the newest complete revision is one of them.
    pub newest_is_distrusted: bool,
    /// Revisions that are dated in the future.
    pub in_future: usize,
    /// Suspicious ones: their source was not as before, and nobody has accepted that.
    #[serde(default)]
    pub suspicious: usize,
    /// Why the newest one that is here is suspicious; empty when it is not.
    #[serde(default)]
    pub newest_suspicions: Vec<String>,
    /// Manual tags, sorted.
    pub manual_tags: BTreeSet<Tag>,
    /// Revisions of other servers whose tags were changed here and not there.
    #[serde(default)]
    pub unsynced: usize,
    /// Manifests that cannot be read.
    pub unreadable: usize,
    /// Reports in the quarantine.
    pub quarantine_reports: usize,
    /// Whether a backup of it runs.
    #[serde(default)]
    pub running: bool,
    /// Why the job could not be looked at; all else is then unknown.
    pub failure: Option<String>,
}

impl JobFacts {
    /// A job of which nothing is known but its name and schedule.
    pub fn new(job: JobName, schedule: &Schedule) -> Self {
        Self {
            job,
            shortest_secs: schedule.shortest_secs(),
            since: None,
            newest_good: None,
            newest_elsewhere: None,
            revisions: 0,
            distrusted: 0,
            newest_is_distrusted: false,
            in_future: 0,
            suspicious: 0,
            newest_suspicions: Vec::new(),
            manual_tags: BTreeSet::new(),
            unsynced: 0,
            unreadable: 0,
            quarantine_reports: 0,
            running: false,
            failure: None,
        }
    }

    /// Whether the newest good revision is older than it may be, or missing for too long.
    pub fn is_late(&self, now: Timestamp) -> bool {
        let sla = sla::judge(self.shortest_secs, self.newest_good, self.since, now);
        matches!(sla, Sla::Overdue { .. } | Sla::Never)
    }

    /// Adds what a job's history tells. `counts` says which other servers are believed.
    #[must_use]
    pub fn with_history(self, history: &History, counts: impl Fn(&str) -> bool) -> Self {
        let newest = |believed: bool| {
            let elsewhere = history.newest_elsewhere.iter();
            elsewhere.filter(|(server, _)| counts(server) == believed).map(|(_, newest)| *newest).max()
        };
        Self {
            newest_good: history.newest_good.max(newest(true)),
            newest_elsewhere: newest(false),
            revisions: history.revisions,
            distrusted: history.distrusted,
            newest_is_distrusted: history.newest_is_distrusted,
            in_future: history.in_future,
            suspicious: history.suspicious,
            newest_suspicions: history.newest_suspicions.clone(),
            unsynced: history.unsynced,
            manual_tags: history.manual_tags.clone(),
            ..self
        }
    }
}

/// How bad a problem is; the order is that of Nagios.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Somebody should look.
    Warning,
    /// Somebody must act.
    Critical,
}

impl Severity {
    /// Returns the word for it in JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// What kind of problem it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The newest good revision is too old.
    Overdue,
    /// There is no good revision although there should be one by now.
    NeverRan,
    /// The newest revision is distrusted.
    NewestDistrusted,
    /// The job could not be looked at.
    Unknown,
    /// The newest revision is suspicious: its source is not as it was.
    SourceChanged,
    /// Revisions are distrusted.
    Distrusted,
    /// Manifests cannot be read.
    Unreadable,
    /// There are reports in the quarantine.
    Quarantined,
    /// Revisions are dated in the future.
    InFuture,
    /// The service runs, but its main loop does not come round, or it can start neither threads nor processes.
    HungService,
    /// The service does not run.
    NoService,
    /// Revisions are kept by hand.
    ManualTags,
    /// Revisions of other servers have tags that those do not know of yet.
    Unsynced,
    /// The job is late, and a backup of it runs.
    Running,
}

impl Kind {
    /// All kinds, the worst first.
    pub const ALL: [Self; 14] = [
        Self::Overdue,
        Self::NeverRan,
        Self::NewestDistrusted,
        Self::Unknown,
        Self::SourceChanged,
        Self::Distrusted,
        Self::Unreadable,
        Self::Quarantined,
        Self::InFuture,
        Self::HungService,
        Self::NoService,
        Self::ManualTags,
        Self::Unsynced,
        Self::Running,
    ];

    /// Returns how bad it is.
    pub fn severity(self) -> Severity {
        match self {
            Self::Overdue | Self::NeverRan | Self::NewestDistrusted | Self::Unknown | Self::HungService => {
                Severity::Critical
            }
            Self::ManualTags | Self::Unsynced | Self::Running => Severity::Info,
            _ => Severity::Warning,
        }
    }

    /// Returns the word for it in JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overdue => "overdue",
            Self::NeverRan => "never-ran",
            Self::NewestDistrusted => "newest-distrusted",
            Self::Unknown => "unknown",
            Self::SourceChanged => "source-changed",
            Self::Distrusted => "distrusted",
            Self::Unreadable => "unreadable",
            Self::Quarantined => "quarantined",
            Self::InFuture => "in-future",
            Self::HungService => "hung-service",
            Self::NoService => "no-service",
            Self::ManualTags => "manual-tags",
            Self::Unsynced => "unsynced",
            Self::Running => "running",
        }
    }
}

/// One thing that is wrong or worth knowing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// What it is.
    pub kind: Kind,
    /// The job; `None` for the server as a whole.
    pub job: Option<JobName>,
    /// A sentence without a full stop, for people.
    pub message: String,
}

impl Problem {
    fn new(kind: Kind, job: Option<&JobName>, message: String) -> Self {
        Self { severity: kind.severity(), kind, job: job.cloned(), message }
    }
}

/// Returns what is wrong with one job, worst first.
pub fn judge_job(facts: &JobFacts, now: Timestamp) -> Vec<Problem> {
    if let Some(failure) = &facts.failure {
        return vec![Problem::new(
            Kind::Unknown,
            Some(&facts.job),
            format!("cannot be looked at: {failure}"),
        )];
    }
    let mut problems = Vec::new();
    let mut add = |kind, message: String| problems.push(Problem::new(kind, Some(&facts.job), message));
    add_sla(facts, now, &mut add);
    if !facts.newest_suspicions.is_empty() {
        let reasons = facts.newest_suspicions.join("; ");
        add(
            Kind::SourceChanged,
            format!("its source is not as it was, and nobody has accepted that: {reasons}"),
        );
    }
    match facts.distrusted {
        0 => {}
        n if facts.newest_is_distrusted => {
            add(
                Kind::NewestDistrusted,
                format!("the newest revision is distrusted, {n} of {} are", facts.revisions),
            );
        }
        n => add(Kind::Distrusted, format!("{n} of {} revisions are distrusted", facts.revisions)),
    }
    if facts.unreadable > 0 {
        add(Kind::Unreadable, format!("{} cannot be read", counted(facts.unreadable, "manifest")));
    }
    if facts.quarantine_reports > 0 {
        add(Kind::Quarantined, format!("{} in its quarantine", counted(facts.quarantine_reports, "report")));
    }
    if facts.in_future > 0 {
        add(Kind::InFuture, format!("{} dated in the future", counted(facts.in_future, "revision")));
    }
    if !facts.manual_tags.is_empty() {
        let tags: Vec<&str> = facts.manual_tags.iter().map(Tag::as_str).collect();
        add(Kind::ManualTags, format!("kept by hand: {}", tags.join(", ")));
    }
    if facts.unsynced > 0 {
        let revisions = counted(facts.unsynced, "revision");
        add(Kind::Unsynced, format!("{revisions} of other servers with tags that were changed only here"));
    }
    problems.sort_by_key(|problem| std::cmp::Reverse(problem.severity));
    problems
}

fn add_sla(facts: &JobFacts, now: Timestamp, add: &mut impl FnMut(Kind, String)) {
    let every = interval::format(facts.shortest_secs.unwrap_or_default());
    if facts.running && facts.is_late(now) {
        // The backup that is late is on its way. A backup that hangs does not excuse a job for ever: the service ends it.
        let newest = match facts.newest_good {
            Some(newest) => format!("the newest good revision is {} old", age(now.secs_since(newest))),
            None => "there is no good revision yet".to_owned(),
        };
        return add(Kind::Running, format!("a backup runs: {newest}, one is due every {every}"));
    }
    match sla::judge(facts.shortest_secs, facts.newest_good, facts.since, now) {
        Sla::InTime | Sla::Waiting => {}
        Sla::Overdue { age_secs } => {
            let age = age(age_secs);
            add(
                Kind::Overdue,
                format!(
                    "overdue: the newest good revision is {age} old, one is due every {every}{}",
                    elsewhere(facts, now)
                ),
            );
        }
        Sla::Never => {
            let since = facts.since.map_or(0.0, |since| now.secs_since(since));
            let had = if facts.revisions == 0 { "never ran" } else { "has no good revision" };
            let elsewhere = elsewhere(facts, now);
            add(
                Kind::NeverRan,
                format!("{had}, but is there for {}, one is due every {every}{elsewhere}", age(since)),
            );
        }
    }
}

/// What to say of a newer revision that another server says it has.
fn elsewhere(facts: &JobFacts, now: Timestamp) -> String {
    match facts.newest_elsewhere.filter(|newest| Some(*newest) > facts.newest_good) {
        Some(newest) => {
            format!("; a peer lists one that is {} old, which does not count", age(now.secs_since(newest)))
        }
        None => String::new(),
    }
}

/// What is wrong with a server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Jobs that were looked at.
    pub jobs: usize,
    /// Their complete revisions.
    pub revisions: usize,
    /// All problems, worst first, then by job.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Returns how many jobs (or the server, for its own problems) have a problem of this kind.
    pub fn count(&self, kind: Kind) -> usize {
        self.problems.iter().filter(|problem| problem.kind == kind).count()
    }

    /// Adds that the service hangs, for so long if that is known.
    #[must_use]
    pub fn with_hung_service(mut self, silence: Option<Duration>) -> Self {
        let since = silence.map_or_else(String::new, |silence| format!(" for {} s", silence.as_secs()));
        let message = format!("the scheduler service hangs: it has shown no sign of life{since}");
        self.problems.insert(0, Problem::new(Kind::HungService, None, message));
        self
    }

    /// Returns the worst problem's severity; `Info` when there is none.
    pub fn severity(&self) -> Severity {
        self.problems.iter().map(|problem| problem.severity).max().unwrap_or(Severity::Info)
    }
}

/// Judges a server by its jobs; `service_runs` is `None` when nobody expects a service.
pub fn judge(jobs: &[JobFacts], service_runs: Option<bool>, now: Timestamp) -> Report {
    let mut problems: Vec<Problem> = jobs.iter().flat_map(|facts| judge_job(facts, now)).collect();
    if service_runs == Some(false) {
        let message = "the scheduler service does not run: nothing is backed up by itself".to_owned();
        problems.push(Problem::new(Kind::NoService, None, message));
    }
    problems.sort_by(|one, other| {
        (other.severity, &one.job, one.kind).cmp(&(one.severity, &other.job, other.kind))
    });
    let revisions = jobs.iter().map(|facts| facts.revisions).sum();
    Report { jobs: jobs.len(), revisions, problems }
}

/// Returns a number with a thing, in the plural where it is one.
pub(crate) fn counted(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// The two largest units of an age: `3d 4h`.
fn age(secs: f64) -> String {
    let minutes = (secs.max(0.0) / 60.0) as u64;
    match (minutes / 1440, minutes / 60 % 24, minutes % 60) {
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests;
