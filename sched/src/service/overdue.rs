//! Looks the jobs over for the log and for systemd's status line. Works on what the service knows already.

use std::collections::BTreeSet;
use std::sync::Arc;

use backy_store::{JobName, Timestamp};

use super::core::Core;
use crate::policy::health::counted;

/// How often jobs that are overdue are logged again.
const TELL_AGAIN_SECS: f64 = 3600.0;

/// A line for the log.
#[derive(Debug, PartialEq)]
pub(super) struct Line {
    job: JobName,
    /// Age of the newest good revision, or of the job without any; `None` when it is not overdue any more.
    overdue_secs: Option<f64>,
    newest_good: Option<Timestamp>,
}

impl Line {
    /// Writes it.
    pub(super) fn log(&self) {
        let (job, last_time) = (&self.job, self.newest_good.map(|newest| newest.to_rfc3339()));
        match self.overdue_secs {
            Some(sla_overdue) => tracing::warn!(%job, last_time, sla_overdue, "sla violation"),
            None => tracing::info!(%job, last_time, "sla met again"),
        }
    }
}

/// Returns what is to be logged: jobs that are newly overdue at once, all of them every hour, and those that are not any
/// more.
pub(super) fn look_over(core: &mut Core, now: Timestamp) -> Vec<Line> {
    let again = core.told_at.is_none_or(|told| now.secs_since(told).abs() >= TELL_AGAIN_SECS);
    if again {
        core.told_at = Some(now);
    }
    let config = Arc::clone(&core.config);
    let (mut lines, mut overdue) = (Vec::new(), BTreeSet::new());
    for job in config.jobs.keys() {
        let secs = core.overdue_secs(job, now);
        let was = core.told_overdue.contains(job);
        if secs > 0.0 {
            overdue.insert(job.clone());
        }
        if (secs > 0.0 && (again || !was)) || (secs <= 0.0 && was) {
            let newest_good = core.facts(job).and_then(|facts| facts.newest_good);
            let overdue_secs = (secs > 0.0).then_some(secs);
            lines.push(Line { job: job.clone(), overdue_secs, newest_good });
        }
    }
    core.told_overdue = overdue;
    lines
}

/// One line on what the service does.
pub(super) fn summary(core: &Core, now: Timestamp) -> String {
    let ([fast, slow], [fast_queue, slow_queue]) = (core.scheduler.running(), core.scheduler.queued());
    let mut parts = vec![counted(core.config.jobs.len(), "job")];
    let mut add = |count: usize, what: &str| {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    };
    add(fast + slow, "running");
    add(fast_queue + slow_queue, "waiting for a worker");
    add(core.told_overdue.len(), "overdue");
    if let Some(at) = core.scheduler.wake_at() {
        parts.push(format!("next in {} min", (at.secs_since(now) / 60.0).ceil().max(0.0)));
    }
    if core.vitals.reload_refused {
        parts.push("the configuration file has problems and is not in force".to_owned());
    }
    parts.join(", ")
}
