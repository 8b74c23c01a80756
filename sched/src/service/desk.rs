//! Where the API asks: the service as [`Control`] shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use backy_store::{JobName, Repository, Tag, Timestamp};
use serde_json::Value;
use tokio::sync::mpsc::error::TrySendError;

use super::control::{Control, JobEntry, Silence, StatusEntry, Vitals};
use super::core::{Core, Shared, Wanted};
use super::scheduler::{Entry, State};
use crate::error::{Error, Result};
use crate::policy::Schedule;
use crate::policy::health::JobFacts;
use crate::policy::pool::Pool;
use crate::service::rights::ApiToken;

/// How long somebody waits until the configuration was read again; the API waits no longer for an answer.
const RELOAD_PATIENCE: Duration = Duration::from_secs(30);

/// The service's side of the API.
#[derive(Debug)]
pub(super) struct Desk(pub(super) Arc<Shared>);

impl Control for Desk {
    fn tokens(&self) -> Arc<Vec<ApiToken>> {
        Arc::clone(&self.0.core().tokens)
    }

    fn status(&self, wanted: &dyn Fn(&str) -> bool) -> Vec<StatusEntry> {
        let now = Timestamp::now();
        self.0.look_at_some(wanted, now);
        let dead = self.dead(wanted).unwrap_or_default().into_iter();
        let core = self.0.core();
        let jobs = core.scheduler.jobs().iter().filter(|(job, _)| wanted(job.as_str()));
        let mut entries: Vec<StatusEntry> =
            jobs.map(|(job, entry)| status_entry(&core, job, entry, now)).collect();
        entries.extend(dead.map(|job| StatusEntry {
            job: job.to_string(),
            status: "Dead".to_owned(),
            ..StatusEntry::default()
        }));
        entries
    }

    fn jobs(&self) -> Vec<JobEntry> {
        // Writing settings down takes its time, in which nobody must wait for the core.
        let (config, states) = {
            let core = self.0.core();
            let states = core.scheduler.jobs().iter();
            let states: BTreeMap<JobName, String> =
                states.map(|(job, entry)| (job.clone(), status_text(entry.state()))).collect();
            (Arc::clone(&core.config), states)
        };
        let jobs = config.jobs.iter().map(|(name, job)| {
            let settings = serde_yaml::from_str::<Value>(&job.config.to_yaml()).unwrap_or_default();
            JobEntry {
                name: name.to_string(),
                status: states.get(name).cloned().unwrap_or_default(),
                source: without_secrets(settings["source"].clone()),
                schedule: settings["schedule"].clone(),
            }
        });
        jobs.collect()
    }

    fn facts(&self, now: Timestamp) -> Vec<JobFacts> {
        self.0.look_at_all(now);
        let core = self.0.core();
        core.config.jobs.keys().filter_map(|job| core.facts(job)).collect()
    }

    fn run(&self, job: &JobName) -> bool {
        let is_known = self.0.core().scheduler.request(job);
        self.0.wake.notify_one();
        is_known
    }

    fn reload(&self) -> Result<()> {
        let (answer, answered) = sync_channel(1);
        let silent = || Error::StoreSilent { secs: RELOAD_PATIENCE.as_secs() };
        self.0.wanted.try_send(Wanted::Reload(answer)).map_err(|error| match error {
            TrySendError::Full(_) => silent(),
            TrySendError::Closed(_) => Error::ServiceEnding,
        })?;
        // One that hangs in a disk must not keep the few threads that take orders.
        answered.recv_timeout(RELOAD_PATIENCE).unwrap_or_else(|error| match error {
            RecvTimeoutError::Timeout => Err(silent()),
            RecvTimeoutError::Disconnected => Err(Error::ServiceEnding),
        })
    }

    fn is_active(&self, job: &JobName) -> bool {
        self.0.core().config.jobs.contains_key(job)
    }

    fn dead_jobs(&self) -> Result<Vec<JobName>> {
        self.dead(&|_| true)
    }

    fn repository(&self) -> Result<Repository> {
        self.0.open_store()
    }

    fn request_purge(&self) {
        self.0.core().purge_asked = true;
        self.0.wake.notify_one();
    }

    fn silence(&self) -> Silence {
        let heartbeat = &self.0.heartbeat;
        Silence { lasted: heartbeat.silence(), max: heartbeat.silence_max() }
    }

    fn vitals(&self) -> Vitals {
        let core = self.0.core();
        let is_backing_off = |entry: &&Entry| matches!(entry.state(), State::BackingOff(_));
        Vitals {
            running: core.scheduler.running(),
            queued: core.scheduler.queued(),
            workers: core.config.worker_limit,
            backing_off: core.scheduler.jobs().values().filter(is_backing_off).count(),
            configured_at: Some(core.configured_at),
            ..core.vitals.clone()
        }
    }
}

impl Desk {
    /// The directories with wanted names that are jobs and are not configured, by name.
    fn dead(&self, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<JobName>> {
        let store = self.repository()?;
        let config = Arc::clone(&self.0.core().config);
        let mut names = store.job_names()?;
        names.retain(|name| {
            wanted(name.as_str()) && !config.jobs.contains_key(name) && store.job(name).is_ok()
        });
        Ok(names)
    }
}

/// The words of the original for what a job does.
pub(super) fn status_text(state: &State) -> String {
    let pool = |pool: &Pool| pool.as_str();
    match state {
        State::Unknown | State::Idle => String::new(),
        State::Waiting(_) => "waiting for deadline".to_owned(),
        State::BackingOff(_) => "failed".to_owned(),
        State::Asking(_) => "checking neighbours".to_owned(),
        State::Following(_, peer) => format!("monitoring ({peer})"),
        State::Queued(used, _) => format!("waiting for worker slot ({})", pool(used)),
        State::Running(used, _) => format!("running ({})", pool(used)),
    }
}

fn status_entry(core: &Core, job: &JobName, entry: &Entry, now: Timestamp) -> StatusEntry {
    let schedule = core.config.jobs.get(job).map(|job| &job.config.schedule);
    let tags = |tags: &BTreeSet<Tag>| by_interval(tags, schedule);
    let history = entry.history();
    let overdue_secs = core.overdue_secs(job, now);
    let manual: Vec<&str> = history.manual_tags.iter().map(Tag::as_str).collect();
    let (last, next) = (history.last.as_ref(), entry.next());
    let failure = core.look(job).and_then(|look| look.failure.clone());
    let sla = match () {
        () if failure.is_some() => "UNKNOWN",
        () if overdue_secs > 0.0 => "TOO OLD",
        () => "OK",
    };
    StatusEntry {
        job: job.to_string(),
        sla: Some(sla.to_owned()),
        sla_overdue: Some(overdue_secs),
        status: status_text(entry.state()),
        last_time: last.map(|last| last.time.to_rfc3339()),
        last_tags: last.map(|last| tags(&last.tags)),
        last_duration: last.and_then(|last| last.secs),
        next_time: next.map(|next| next.at.to_rfc3339()),
        next_tags: next.map(|next| tags(&next.tags)),
        manual_tags: manual.join(", "),
        quarantine_reports: core.look(job).map_or(0, |look| look.quarantine_reports),
        unsynced_revs: history.unsynced,
        local_revs: history.local,
        source_changed: (!history.newest_suspicions.is_empty()).then(|| history.newest_suspicions.join("; ")),
        failure,
    }
}

/// Tags joined by commas: those that no schedule knows first, then by interval, shortest first.
fn by_interval(tags: &BTreeSet<Tag>, schedule: Option<&Schedule>) -> String {
    let interval = |tag: &Tag| schedule?.rules.get(tag).map(|rule| rule.interval_secs);
    let mut tags: Vec<&Tag> = tags.iter().collect();
    tags.sort_by_key(|tag| interval(tag));
    tags.into_iter().map(Tag::as_str).collect::<Vec<_>>().join(",")
}

/// Replaces what only the storage may know.
fn without_secrets(mut source: Value) -> Value {
    if let Some(settings) = source.as_object_mut() {
        settings
            .iter_mut()
            .filter(|(key, _)| key.contains("token") || key.ends_with("-snapshot"))
            .for_each(|(_, value)| *value = "***".into());
    }
    source
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::tags;
    use serde_json::json;

    #[test]
    fn tags_are_listed_by_interval() {
        let usual = Schedule::usual();
        assert_eq!(
            by_interval(&tags("monthly,daily,weekly,manual:x"), Some(&usual)),
            "manual:x,daily,weekly,monthly"
        );
        assert_eq!(by_interval(&tags("b,a"), None), "a,b");
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = without_secrets(json!({"type": "flyingcircus", "vm": "x", "consul_acl_token": "s3cret"}));
        assert_eq!(shown, json!({"type": "flyingcircus", "vm": "x", "consul_acl_token": "***"}));
        assert_eq!(without_secrets(Value::Null), Value::Null);
    }
}
