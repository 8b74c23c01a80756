//! Looks the jobs over for the log and for systemd's status line. Works on what the service knows already.

use std::collections::BTreeSet;

use backy_store::{JobName, Timestamp};

use super::core::Core;
use crate::policy::health::counted;

/// How often jobs that are overdue are logged again.
const TELL_AGAIN_SECS: f64 = 3600.0;

/// Logs the jobs that are overdue: new ones at once, all of them every hour, and those that are not any more.
pub(super) fn look_over(core: &mut Core, now: Timestamp) {
    let jobs: Vec<JobName> = core.config.jobs.keys().cloned().collect();
    let overdue: Vec<(JobName, f64)> = jobs
        .into_iter()
        .map(|job| (job.clone(), core.overdue_secs(&job, now)))
        .filter(|(_, secs)| *secs > 0.0)
        .collect();
    let again = core.told_at.is_none_or(|told| now.secs_since(told).abs() >= TELL_AGAIN_SECS);
    if again {
        core.told_at = Some(now);
    }
    for (job, secs) in &overdue {
        if again || !core.told_overdue.contains(job) {
            let last_time =
                core.facts(job).and_then(|facts| facts.newest_good).map(|newest| newest.to_rfc3339());
            tracing::warn!(%job, last_time, sla_overdue = secs, "sla violation");
        }
    }
    let overdue: BTreeSet<JobName> = overdue.into_iter().map(|(job, _)| job).collect();
    for job in core.told_overdue.difference(&overdue) {
        tracing::info!(%job, "sla met again");
    }
    core.told_overdue = overdue;
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
