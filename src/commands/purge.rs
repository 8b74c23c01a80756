//! `backy purge`: deletes the chunks that nothing refers to. Given a store it also looks after the jobs
//! that have a store of their own.

use std::collections::BTreeSet;

use anyhow::Context as _;
use backy_store::maintain::sweep::{SweepOptions, SweepReport, sweep};
use backy_store::{JobName, Location, Repository, Timestamp};
use clap::Args;
use serde_json::json;

use super::Context;
use crate::failure::{Outcome, Result};
use crate::output::progress::Progress;
use crate::output::size::{human_bytes, parse_duration};
use crate::output::text::{count, quote};
use crate::output::{json, terminal};

/// Deletes the chunks that no revision needs, and for good the revisions forgotten long enough ago.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Only count what would be deleted
    #[arg(long)]
    dry_run: bool,
    /// Delete also the revisions forgotten just now: same as --hold 0
    #[arg(long, conflicts_with = "hold")]
    now: bool,
    /// Delete even when something about the store is suspicious
    #[arg(long)]
    force: bool,
    /// The missing revisions of JOB were deleted on purpose: delete their chunks after the hold time
    #[arg(long, value_name = "JOB", value_parser = JobName::parse)]
    without: Vec<JobName>,
    /// The store was moved to its present file system on purpose, and no other store uses its chunks
    #[arg(long)]
    moved: bool,
    /// How long forgotten revisions can still be undeleted
    #[arg(long, value_name = "DURATION", default_value = "7d", value_parser = parse_duration)]
    hold: i64,
    /// Take what programs on this machine were doing in the store as ended; it is gone for good
    #[arg(long, value_name = "HOST")]
    host_gone: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Sweeps one store, and those below it.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    let stores = stores(context.location()?)?;
    let progress = Progress::start();
    let mut options = SweepOptions {
        dry_run: arguments.dry_run,
        force: arguments.force,
        moved: arguments.moved,
        without: arguments.without.clone(),
        ..SweepOptions::new(if arguments.now { 0 } else { arguments.hold }, Timestamp::now())
    };
    let mut entries = Vec::new();
    let mut is_bad = false;
    for store in &stores {
        for host in &arguments.host_gone {
            let ended = backy_store::remove_sessions_of_host(store, host)?;
            terminal::note(format_args!("{} of {host} ended", count(ended, "session", "sessions")));
        }
        let report = sweep(store, &options, &progress)
            .with_context(|| format!("cannot purge the store at {}", store.root().display()))?;
        // The jobs are those of the store that was named, not of the stores below it.
        options.without.clear();
        is_bad |= !report.missing.is_empty() || report.chunks_missing > 0 || !report.dangling.is_empty();
        if arguments.json {
            entries.push(as_json(store, &report));
        } else {
            print_report(store, &report, arguments.dry_run)?;
        }
    }
    if arguments.json {
        json::print(&json!({ "dry_run": arguments.dry_run, "stores": entries }))?;
    }
    Ok(Outcome::bad_if(is_bad || progress.findings() > 0))
}

/// Returns the store itself, then those of jobs that have their own, each once.
fn stores(location: Location) -> anyhow::Result<Vec<Repository>> {
    let mut stores = vec![location.repository];
    if location.job.is_none() {
        let mut roots = BTreeSet::from([stores[0].root().to_owned()]);
        for job in stores[0].jobs()? {
            if roots.insert(job.repository().root().to_owned()) {
                stores.push(job.repository().clone());
            }
        }
    }
    Ok(stores)
}

fn as_json(store: &Repository, report: &SweepReport) -> serde_json::Value {
    let revision = |(job, id): &(_, _)| json!({ "job": job, "id": id });
    json!({
        "store": store.root().to_string_lossy(),
        "revisions_deleted": report.revisions_deleted.iter().map(revision).collect::<Vec<_>>(),
        "revisions_held": report.revisions_held,
        "chunks_deleted": report.chunks_deleted,
        "bytes_deleted": report.bytes_deleted,
        "temporary_deleted": report.temporary_deleted,
        "chunks_kept": report.chunks_kept,
        "chunks_waiting": report.chunks_waiting,
        "chunks_missing": report.chunks_missing,
        "distrusted": report.distrusted.iter().map(revision).collect::<Vec<_>>(),
        "missing": report.missing,
        "revisions_dropped": report.dropped,
        "old_chunks_deleted": report.old.chunks,
        "old_bytes_deleted": report.old.bytes,
    })
}

/// Prints what should be in the store and is not, each with its remedy.
fn print_problems(store: &Repository, report: &SweepReport) -> anyhow::Result<()> {
    let root = quote(&store.root().to_string_lossy()).into_owned();
    for (job, revisions) in &report.missing {
        terminal::warn(format_args!(
            "job {job}: {} missing from the store; the chunks are kept: {}",
            count(revisions.len(), "revision is", "revisions are"),
            revisions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        ));
        terminal::note(format_args!(
            "hint: bring the directory of job {job} back; if it was deleted on purpose, run \
             `backy -b {root} purge --without {job}`"
        ));
    }
    for link in &report.dangling {
        terminal::warn(format_args!("{} is a link to a directory that is not there", link.display()));
    }
    for map in &report.stray_maps {
        terminal::warn(format_args!("{} has no manifest beside it; its chunks are kept", map.display()));
    }
    for id in &report.maps_repaired {
        terminal::note(format_args!("restored the chunk map of revision {id} from its copy"));
    }
    if report.chunks_missing > 0 {
        terminal::warn(format_args!(
            "{} needed by revisions and missing from the store",
            count(usize::try_from(report.chunks_missing).unwrap_or(usize::MAX), "chunk is", "chunks are")
        ));
        for (job, id) in &report.distrusted {
            terminal::warn(format_args!("revision {id} of job {job} is distrusted now"));
        }
        terminal::note("hint: run the next backup of these jobs, then `backy verify -r all`");
    }
    if report.dropped > 0 {
        terminal::note(format_args!(
            "{} given up; the hold time of the chunks is not over",
            count(usize::try_from(report.dropped).unwrap_or(usize::MAX), "revision was", "revisions were")
        ));
    }
    if report.chunks_waiting > 0 {
        terminal::note(format_args!(
            "{} not referenced for no known reason; a purge after 7 days deletes what is still not referenced",
            count(usize::try_from(report.chunks_waiting).unwrap_or(usize::MAX), "chunk is", "chunks are")
        ));
    }
    Ok(())
}

fn print_report(store: &Repository, report: &SweepReport, dry_run: bool) -> anyhow::Result<()> {
    let verb = if dry_run { "would delete" } else { "deleted" };
    for (job, id) in &report.revisions_deleted {
        terminal::print_line(format_args!("{verb} the forgotten revision {id} of job {job}"))?;
    }
    terminal::print_line(format_args!(
        "{}: {verb} {} ({}) and {}, kept {}",
        store.root().display(),
        count(report.chunks_deleted, "chunk", "chunks"),
        human_bytes(report.bytes_deleted),
        count(report.temporary_deleted, "left-over file", "left-over files"),
        count(report.chunks_kept, "chunk", "chunks")
    ))?;
    if report.old.bytes > 0 {
        terminal::print_line(format_args!(
            "{}: deleted {} and images of the original's jobs ({})",
            store.root().display(),
            count(report.old.chunks, "chunk", "chunks"),
            human_bytes(report.old.bytes)
        ))?;
    }
    print_problems(store, report)?;
    for (job, reason) in &report.old_left {
        terminal::warn(format_args!("the original's chunks of job {job} wait for a later purge: {reason}"));
    }
    if report.revisions_held > 0 {
        terminal::note(format_args!(
            "{} can still be undeleted; `--now` deletes them",
            count(report.revisions_held, "forgotten revision", "forgotten revisions")
        ));
    }
    Ok(())
}
