//! When the store is purged: once a day at a time that depends on the store alone, when there may be something to
//! delete. The service cannot know that exactly; a round that forgot revisions or failed says that there may be, and
//! so does a purge that leaves revisions whose hold time is not over.

use std::future::Future;
use std::time::{Duration, Instant};

use backy_store::Timestamp;
use tokio::sync::watch;

use super::child;
use super::core::{Core, Fixed};
use super::round::{new_task, order};
use crate::policy::health::counted;
use crate::policy::{Rule, Schedule, next_run, spread};

const DAY_SECS: i64 = 86_400;
/// The report of a purge.
const REPORT_BYTES_MAX: usize = 1 << 20;

/// When the next purge is due.
#[derive(Debug)]
pub(super) struct Purge {
    spread_secs: i64,
    at: Timestamp,
    /// No purge before: the clock was moved, and it says how long forgotten revisions have been held.
    not_before: Option<Instant>,
}

impl Purge {
    /// Of the store with this id.
    pub(super) fn new(store_id: &str, now: Timestamp) -> Self {
        let spread_secs = spread::spread_secs(&format!("purge {store_id}"), DAY_SECS);
        Self { spread_secs, at: next(spread_secs, now), not_before: None }
    }

    /// Puts the next purge off by a day.
    pub(super) fn put_off(&mut self) {
        self.not_before = Some(Instant::now() + Duration::from_secs(DAY_SECS.unsigned_abs()));
    }

    /// When it is due; `None` when there is nothing to purge, or one runs.
    pub(super) fn due(&self, core: &Core) -> Option<Timestamp> {
        let is_put_off = self.not_before.is_some_and(|until| Instant::now() < until);
        (core.garbage && !core.purging && !is_put_off).then_some(self.at)
    }

    /// Returns the purge to be run, if one is due or was asked for. It returns whether there is more to do later.
    pub(super) fn begin(
        &mut self,
        core: &mut Core,
        now: Timestamp,
        fixed: &Fixed,
        stop: watch::Receiver<bool>,
    ) -> Option<impl Future<Output = bool> + use<>> {
        let is_far_off = self.at.secs_since(now) > DAY_SECS as f64;
        if is_far_off {
            // The clock went back.
            self.at = next(self.spread_secs, now);
        }
        // A purge that somebody asks for comes soon, but once a day only: it reads all maps.
        let is_asked = core.purge_asked
            && core.asked_purge_at.is_none_or(|last| now.secs_since(last).abs() >= DAY_SECS as f64);
        core.garbage |= core.purge_asked;
        let is_put_off = self.not_before.is_some_and(|until| Instant::now() < until);
        let is_due = (self.due(core).is_some_and(|at| at <= now) || is_asked) && !is_put_off;
        core.purge_asked &= is_asked;
        if !is_due || core.purging || core.stopping {
            return None;
        }
        self.at = next(self.spread_secs, now);
        if is_asked {
            core.asked_purge_at = Some(now);
        }
        (core.purge_asked, core.garbage, core.purging) = (false, false, true);
        let (limits, task, dir) = (core.limits(), new_task(), fixed.base_dir.clone());
        let arguments = vec!["purge".into(), "--json".into()];
        let order = order(&fixed.program, &task, dir, arguments, REPORT_BYTES_MAX);
        Some(async move {
            tracing::info!(task, "purge begins");
            let outcome = child::run(order, &limits, None, stop).await;
            let report = serde_json::from_slice::<serde_json::Value>(&outcome.stdout).unwrap_or_default();
            match outcome.code() {
                Some(0) => {}
                // It was done, and revisions or chunks are missing.
                Some(1) if report["stores"].is_array() => {
                    let missing = missing(&report);
                    tracing::error!(task, missing, "purge found something missing; see the log of the store");
                }
                _ => {
                    tracing::error!(task, reason = outcome.reason(), "purge failed");
                    return true;
                }
            }
            let held =
                |store: &serde_json::Value| store["revisions_held"].as_u64().is_none_or(|held| held > 0);
            tracing::info!(task, "purge done");
            report["stores"].as_array().is_none_or(|stores| stores.iter().any(held))
        })
    }
}

/// Names the jobs of which a purge found revisions missing, and how many chunks.
fn missing(report: &serde_json::Value) -> String {
    let mut parts = Vec::new();
    for store in report["stores"].as_array().into_iter().flatten() {
        for (job, revisions) in store["missing"].as_object().into_iter().flatten() {
            let count = revisions.as_array().map_or(0, Vec::len);
            parts.push(format!("job {job}: {}", counted(count, "revision")));
        }
        match store["chunks_missing"].as_u64() {
            None | Some(0) => {}
            Some(chunks) => parts.push(counted(usize::try_from(chunks).unwrap_or(usize::MAX), "chunk")),
        }
    }
    parts.join(", ")
}

fn next(spread_secs: i64, now: Timestamp) -> Timestamp {
    let mut daily = Schedule::default();
    if let Ok(tag) = backy_store::Tag::parse("daily") {
        daily.rules.insert(tag, Rule { interval_secs: DAY_SECS, keep: 1 });
    }
    next_run::ideal(&daily, spread_secs, now).map_or_else(|| now.plus_secs(DAY_SECS), |(at, _)| at)
}
