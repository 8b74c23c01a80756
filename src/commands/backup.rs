//! `backy backup TAGS`: makes a revision. Its id goes to standard output, so that a script can keep it.

use anyhow::Context as _;
use backy_sched::backup::{BackupReport, BackupRequest};
use backy_store::{Tag, Timestamp};
use clap::Args;

use super::{Context, load_config, thread_count, threads_parser};
use crate::failure::{Outcome, Result, usage};
use crate::output::progress::Progress;
use crate::output::size::{human_bytes, human_duration};
use crate::output::terminal;

/// Makes a new revision of the job's source.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The revision's tags, separated by commas
    tags: String,
    /// Take tags that the schedule does not know
    #[arg(short, long)]
    force: bool,
    /// Threads that compress [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = threads_parser())]
    threads: Option<u16>,
}

/// Makes the revision and prints its id.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    let tags = Tag::parse_list(&arguments.tags)?;
    if tags.is_empty() {
        return Err(usage("a revision needs at least one tag", "`expire` would remove it otherwise"));
    }
    let job = context.job()?;
    let config = load_config(&job)?;
    let request = BackupRequest {
        tags,
        force_tags: arguments.force,
        threads: thread_count(arguments.threads),
        clock: Timestamp::now,
        environment: super::ceph_environment(),
    };
    let progress = Progress::start();
    let report = backy_sched::backup::run(&job, &config, &request, &progress)
        .with_context(|| format!("cannot back up job {}", job.name()))?;
    drop(progress);
    terminal::print_line(&report.revision.id)?;
    note_report(&report);
    Ok(Outcome::Done)
}

/// Says on standard error what the run did.
fn note_report(report: &BackupReport) {
    if report.unfinished_removed > 0 {
        terminal::note(format_args!("removed what {} unfinished runs had left", report.unfinished_removed));
    }
    let stats = &report.revision.stats;
    terminal::note(format_args!(
        "read {}, stored {}, {}",
        human_bytes(stats.bytes_written),
        human_bytes(report.stats.stored_bytes),
        stats.duration_secs.map_or_else(|| "-".to_owned(), human_duration),
    ));
    match &report.reverified {
        Some((id, true)) => terminal::note(format_args!("revision {id} was distrusted and is verified now")),
        Some((id, false)) => terminal::warn(format_args!("revision {id} is still damaged")),
        None => {}
    }
}
