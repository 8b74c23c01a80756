//! `backy backup TAGS`: makes a revision. Its id goes to standard output, so that a script can keep it.

use std::path::Path;

use anyhow::Context as _;
use backy_sched::ServiceConfig;
use backy_sched::backup::{BackupReport, BackupRequest};
use backy_sched::prepare::prepare;
use backy_sched::source::shape::Suspicion;
use backy_store::select;
use backy_store::{Error as StoreError, Job, JobName, Repository, Tag, Timestamp};
use clap::Args;

use super::{Context, load_config, thread_count, threads_parser};
use crate::failure::{Outcome, Result, usage};
use crate::output::progress::Progress;
use crate::output::size::{human_bytes, human_duration};
use crate::output::terminal;
use crate::output::text::count;

/// Makes a new revision of the job's source.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The revision's tags, separated by commas
    tags: String,
    /// Take tags that the schedule does not know
    #[arg(short, long)]
    force: bool,
    /// The source is right as it is, even if it shrank, lost data or is another disk
    #[arg(long)]
    accept_change: bool,
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
    select::check_new_tags(&tags)?;
    let job = find_job(context)?;
    let config = load_config(&job)?;
    let request = BackupRequest {
        tags,
        force_tags: arguments.force,
        accept_change: arguments.accept_change,
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
    note_suspicions(&report, arguments.accept_change);
    Ok(Outcome::Done)
}

/// Finds the job. One that the main configuration names and that has no directory yet gets it, as the service would make
/// it; so does an existing one its configuration, where the main configuration was named.
fn find_job(context: &Context) -> anyhow::Result<Job> {
    let found = context.job();
    let is_unknown = |error: &anyhow::Error| {
        matches!(error.downcast_ref::<StoreError>(), Some(StoreError::JobUnknown { .. }))
    };
    match &found {
        Ok(_) if context.has_given_config() => {}
        Err(error) if is_unknown(error) => {}
        _ => return found,
    }
    // The usual main configuration may be missing, or be that of another store.
    let config = match ServiceConfig::load(&context.config_path()?) {
        Err(error) if context.has_given_config() => return Err(error.into()),
        Err(_) => return found,
        Ok(config) => config,
    };
    let dir = context.dir()?;
    let name = dir.file_name().and_then(|name| JobName::parse(&name.to_string_lossy()).ok());
    let Some((name, wanted)) =
        name.and_then(|name| config.jobs.get_key_value(&name).map(|(name, job)| (name.clone(), job)))
    else {
        return found;
    };
    let real = |dir: &Path| dir.canonicalize().ok();
    if dir.parent().and_then(real).is_none_or(|parent| real(&config.base_dir) != Some(parent)) {
        return found;
    }
    prepare(&Repository::open(&config.base_dir)?, &name, &wanted.config, Timestamp::now())?;
    context.job()
}

/// Says how the source differs from before. The backup itself is exact: the status does not change.
fn note_suspicions(report: &BackupReport, is_accepted: bool) {
    for suspicion in &report.suspicions {
        terminal::warn(format_args!("the source is not as it was: {suspicion}"));
    }
    if report.suspicions.iter().any(Suspicion::is_grave) && !is_accepted {
        terminal::note(format_args!(
            "revision {} is suspicious and expires no good one; if the source is right, `backy accept` says so",
            report.revision.id
        ));
    }
}

/// Says on standard error what the run did.
fn note_report(report: &BackupReport) {
    if report.unfinished_removed > 0 {
        terminal::note(format_args!(
            "removed what {} had left",
            count(report.unfinished_removed, "unfinished run", "unfinished runs")
        ));
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
