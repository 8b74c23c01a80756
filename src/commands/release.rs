//! `backy release`: removes the snapshots that the job has at its source.

use anyhow::Context as _;
use backy_sched::release::{self, ReleaseReport};
use backy_sched::source::rbd::snapshot_name;
use backy_store::RevisionId;
use clap::Args;

use super::{Context, ceph_environment, load_config};
use crate::failure::{Outcome, Result};
use crate::output::terminal;

/// Removes the snapshots that the job has at its source, also the one that the next backup would start from.
#[derive(Args, Debug)]
pub(crate) struct Arguments {}

/// Removes them all.
pub(crate) fn run(context: &Context, _arguments: &Arguments) -> Result {
    let job = context.job()?;
    let config = load_config(&job)?;
    let report = release::run(&job, &config, &ceph_environment())
        .with_context(|| format!("cannot remove the snapshots of job {}", job.name()))?;
    let spec = |id| format!("{}@{}", report.source, snapshot_name(id));
    for id in &report.snapshots.removed {
        terminal::print_line(format_args!("removed {}", spec(id)))?;
    }
    for id in &report.snapshots.left {
        terminal::warn(format_args!("{} is still there; `rbd children` tells what hangs on it", spec(id)));
    }
    for id in &report.unseen {
        terminal::warn(unseen(id, &report));
    }
    for id in &report.given_up {
        terminal::note(format_args!("{} was not there the last time, either: crossed out", spec(id)));
    }
    if report.snapshots.is_source_gone {
        terminal::note(format_args!("{} does not exist any more, nor do snapshots of it", report.source));
    } else if report.snapshots.removed.is_empty() && report.given_up.is_empty() && !report.is_incomplete() {
        terminal::note(format_args!("job {} has no snapshots at {}", job.name(), report.source));
    }
    Ok(Outcome::bad_if(report.is_incomplete()))
}

/// What is to be done about a snapshot that is noted and was not there.
fn unseen(id: &RevisionId, report: &ReleaseReport) -> String {
    let (name, source) = (snapshot_name(id), &report.source);
    if report.was_looked {
        format!(
            "{source}@{name} is noted but not there: a backup that ended badly may still make it, or it is at another image \
             that the job had; the next `backy release` that does not see it crosses it out"
        )
    } else {
        format!(
            "{name} may be at an image that was the job's source before {source}: set `source` back to that and release again"
        )
    }
}
