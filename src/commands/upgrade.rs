//! `backy upgrade`: makes the original's revisions ours. It can be stopped and begun again at any time.

use anyhow::Context as _;
use backy_sched::ServiceConfig;
use backy_store::legacy::upgrade::{Plan, UpgradeOptions, UpgradeReport, plan, upgrade};
use backy_store::{DEFAULT_LEVEL, Job, Repository, Timestamp};
use clap::Args;

use super::{Context, load_config, thread_count, threads_parser};
use crate::failure::{Outcome, Result, refused};
use crate::output::progress::Progress;
use crate::output::size::human_bytes;
use crate::output::terminal;
use crate::output::text::count;

/// Converts revisions that the original backy wrote, one by one, and frees what they took. With -c converts all jobs of
/// the base directory that the main configuration names.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Say what would be done and how much space it needs, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Begin even where the space that is free may not suffice
    #[arg(long)]
    force: bool,
    /// Threads that convert [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = threads_parser())]
    threads: Option<u16>,
}

/// Upgrades the job, or all jobs. One that cannot be upgraded does not keep the others from it.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    let jobs = jobs(context)?;
    if let [job] = &jobs[..] {
        return Ok(Outcome::bad_if(!one(job, arguments)?));
    }
    let mut all_good = true;
    for job in &jobs {
        match one(job, arguments) {
            Ok(good) => all_good &= good,
            Err(error) => {
                terminal::warn(format_args!("{error:#}"));
                all_good = false;
            }
        }
    }
    Ok(Outcome::bad_if(!all_good))
}

fn jobs(context: &Context) -> anyhow::Result<Vec<Job>> {
    if context.has_given_config() {
        let config = ServiceConfig::load(&context.config_path()?)?;
        let store = Repository::discover(&config.base_dir)?.repository;
        if !store.is_original() {
            context.log_to(&store.root().join("backy.log"));
        }
        return Ok(store.jobs()?);
    }
    Ok(vec![context.job()?])
}

/// Upgrades one job; returns whether all of it is whole and ours now.
fn one(job: &Job, arguments: &Arguments) -> anyhow::Result<bool> {
    let cannot = || format!("cannot upgrade job {}", job.name());
    if arguments.dry_run {
        let plan = plan(job).with_context(cannot)?;
        print_plan(job, &plan, true)?;
        return Ok(plan.left.is_empty());
    }
    job.repository().check_ours().with_context(cannot)?;
    // Nobody makes or upgrades revisions from the plan to the end.
    let guard = job.lock_for_backup().with_context(cannot)?;
    let plan = plan(job).with_context(cannot)?;
    print_plan(job, &plan, false)?;
    if plan.free_bytes < plan.needed_bytes && !arguments.force {
        return Err(refused(
            format!("job {} may need more space than is free", job.name()),
            "make room, or begin all the same with `--force`: it can be gone on with at any time",
        ));
    }
    let options = UpgradeOptions {
        threads: thread_count(arguments.threads),
        level: load_config(job).map_or(DEFAULT_LEVEL, |config| config.compression_level),
        now: Timestamp::now(),
    };
    let progress = Progress::start();
    let report = upgrade(job, &guard, &plan, &options, &progress).with_context(cannot)?;
    drop(progress);
    print_report(job, &report)?;
    Ok(report.damaged.is_empty() && report.left.is_empty())
}

fn print_plan(job: &Job, plan: &Plan, is_all: bool) -> anyhow::Result<()> {
    let name = job.name();
    if plan.revisions.is_empty() {
        terminal::print_line(format_args!("job {name}: nothing to upgrade"))?;
    } else {
        terminal::print_line(format_args!(
            "job {name}: {} with {}; needs up to {} beside what is there, probably less than {}; {} are free",
            count(plan.revisions.len(), "revision", "revisions"),
            human_bytes(plan.image_bytes),
            human_bytes(plan.needed_bytes_max),
            human_bytes(plan.needed_bytes),
            human_bytes(plan.free_bytes)
        ))?;
    }
    if is_all {
        for revision in &plan.revisions {
            let size = human_bytes(revision.image_size.unwrap_or_default());
            terminal::print_line(format_args!("would upgrade {} ({size})", revision.id))?;
        }
        warn_left(&plan.left);
    }
    Ok(())
}

fn warn_left(left: &[(backy_store::RevisionId, String)]) {
    for (id, reason) in left {
        terminal::warn(format_args!("revision {id} stays as it is: {reason}"));
    }
}

fn print_report(job: &Job, report: &UpgradeReport) -> anyhow::Result<()> {
    for (id, ranges) in &report.damaged {
        let lost: u64 = ranges.iter().map(|(_, length)| length).sum();
        terminal::warn(format_args!(
            "revision {id} is distrusted: {} in {} could not be read",
            human_bytes(lost),
            count(ranges.len(), "place", "places")
        ));
    }
    warn_left(&report.left);
    if let Some(reason) = &report.freed_later {
        terminal::warn(format_args!("chunks of the original wait for a later purge: {reason}"));
    }
    if !report.upgraded.is_empty() || report.freed.bytes > 0 {
        terminal::print_line(format_args!(
            "job {}: upgraded {}, stored {}, freed {}",
            job.name(),
            count(report.upgraded.len(), "revision", "revisions"),
            human_bytes(report.stored_bytes),
            human_bytes(report.freed.bytes)
        ))?;
    }
    Ok(())
}
