//! `backy release`: removes the snapshots that the job has at its source.

use anyhow::Context as _;
use backy_sched::release;
use backy_sched::source::rbd::snapshot_name;
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
    if report.snapshots.removed.is_empty() && report.snapshots.left.is_empty() {
        terminal::note(format_args!("job {} has no snapshots at {}", job.name(), report.source));
    }
    Ok(Outcome::bad_if(!report.snapshots.left.is_empty()))
}
