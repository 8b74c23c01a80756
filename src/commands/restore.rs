//! `backy restore [-r SPEC] TARGET`, `backy restore --to rbd:POOL/IMAGE`: copies an image out. With `-` standard output carries the image, so
//! every word about it goes to standard error.

use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use backy_sched::JobConfig;
use backy_sched::source::SourceConfig;
use backy_sched::source::rbd::leftovers::{self, Fate, Leftover};
use backy_sched::source::rbd::{self, RbdTarget};
use backy_store::restore::{RestoreOptions, RestoreReport, Target};
use backy_store::revision::order;
use backy_store::select;
use backy_store::{Job, Monitor as _, Revision, Timestamp, Trust};
use clap::Args;

use super::{Context, ceph_environment, revisions, thread_count, threads_parser};
use crate::failure::{Outcome, Result, refused, usage};
use crate::output::progress::Progress;
use crate::output::size::human_bytes;
use crate::output::terminal;
use crate::output::text::quote;

/// Copies a revision's image to a file, a block device, standard output or a new RBD image, checking every byte.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// A new or existing file, a block device, or `-` for standard output
    #[arg(required_unless_present = "to", conflicts_with = "to")]
    target: Option<PathBuf>,
    /// A new image in a Ceph cluster
    #[arg(long, value_name = "rbd:POOL/IMAGE")]
    to: Option<String>,
    /// The revision [default: the latest that is complete]
    #[arg(short, long, value_name = "SPEC", allow_hyphen_values = true)]
    revision: Option<String>,
    /// Overwrite a target that holds data
    #[arg(long)]
    force: bool,
    /// Go on past damage: what is lost is left as zeros and listed
    #[arg(long)]
    salvage: bool,
    /// Threads that decompress [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = threads_parser())]
    threads: Option<u16>,
}

/// Restores one revision.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    let place = place(arguments)?;
    let job = context.job()?;
    let revision = choose(context, &job, arguments.revision.as_deref())?;
    if revision.trust == Trust::Distrusted {
        terminal::warn(format_args!("revision {} is distrusted: it may be damaged", revision.id));
    }
    let options = RestoreOptions {
        force: arguments.force,
        salvage: arguments.salvage,
        threads: thread_count(arguments.threads),
    };
    let progress = Progress::start();
    let (report, begun) = match place {
        Place::Target(target) => (
            backy_store::restore::restore(&job, &revision, target, &options, &progress).map_err(Into::into),
            None,
        ),
        Place::Rbd(target) => restore_to_rbd(&job, &revision, target, &options, &progress),
    };
    if let Ok(report) = &report {
        note_report(&revision, report);
    }
    if let Some(target) = begun {
        let was_in_vain = !report.as_ref().is_ok_and(|report| report.lost.is_empty());
        tidy(&target, &job, was_in_vain, &progress);
    }
    drop(progress);
    let report =
        report.with_context(|| format!("cannot restore revision {} of job {}", revision.id, job.name()))?;
    Ok(Outcome::bad_if(!report.lost.is_empty()))
}

/// Restores to a new image. If it came so far that it wrote there, the place is returned, however it ended.
fn restore_to_rbd(
    job: &Job,
    revision: &Revision,
    mut target: Box<RbdTarget>,
    options: &RestoreOptions,
    progress: &Progress,
) -> (anyhow::Result<RestoreReport>, Option<Box<RbdTarget>>) {
    adopt_source(&mut target, job);
    match open_rbd(job, revision, &target, progress) {
        Ok(opened) => {
            let report = backy_store::restore::restore(job, revision, opened, options, progress);
            (report.map_err(Into::into), Some(target))
        }
        Err(error) => (Err(error), None),
    }
}

/// Removes what killed restores to the image have left, or names it after a restore that was in vain: it may be all there
/// is of the image. That it cannot is no failure of this one.
fn tidy(target: &RbdTarget, job: &Job, was_in_vain: bool, progress: &Progress) {
    if progress.cancelled() {
        return;
    }
    match leftovers::tidy(target, &ceph_environment(), job.repository(), was_in_vain, progress) {
        Ok(found) => found.iter().for_each(note_leftover),
        Err(error) => {
            let error = anyhow::Error::from(error);
            terminal::warn(format_args!("cannot look for what killed restores have left: {error:#}"));
        }
    }
}

fn note_leftover(found: &Leftover) {
    let image = &found.image;
    let words: Vec<_> = found.command.iter().map(|word| quote(word)).collect();
    let command = words.join(" ");
    match &found.fate {
        Fate::Removed => {
            terminal::note(format_args!("removed {image}, which a restore that was killed had left"))
        }
        Fate::IsFilled => terminal::note(format_args!("another restore is filling {image}")),
        Fate::Unknown => terminal::warn(format_args!(
            "{image} was begun by a restore that this store does not know; if that is not running any more, `{command}` removes it"
        )),
        Fate::Spared => terminal::warn(format_args!(
            "{image}, which a restore has left, may be whole: it stays until one ends well"
        )),
        Fate::Stays(error) => terminal::warn(format_args!(
            "cannot remove {image}, which a restore that was killed had left: {error}; `{command}` removes it"
        )),
    }
}

/// Where to restore to, as far as it can be told before the revision is known.
enum Place {
    Target(Target<'static>),
    Rbd(Box<RbdTarget>),
}

fn place(arguments: &Arguments) -> anyhow::Result<Place> {
    let Some(to) = &arguments.to else {
        let path = arguments.target.as_deref().unwrap_or(Path::new("-"));
        return target(path).map(Place::Target);
    };
    let Some(name) = to.strip_prefix("rbd:") else {
        return Err(usage(format!("cannot restore to {to:?}"), "`--to` takes rbd:POOL/IMAGE"));
    };
    Ok(Place::Rbd(Box::new(RbdTarget::parse(name, arguments.force)?)))
}

/// A job whose source is an RBD image says how to reach the cluster.
fn adopt_source(target: &mut RbdTarget, job: &Job) {
    if let Ok(JobConfig { source: SourceConfig::Rbd(source), .. }) = JobConfig::load(&job.config_path()) {
        target.config.user = source.user;
        target.config.conf = source.conf;
        target.config.read_with = source.read_with;
        target.config.timeout_secs = source.timeout_secs;
    }
}

/// Makes the new image.
fn open_rbd<'m>(
    job: &Job,
    revision: &Revision,
    target: &RbdTarget,
    monitor: &'m Progress,
) -> anyhow::Result<Target<'m>> {
    let Some(size) = revision.image_size else {
        return Err(refused(format!("the size of revision {} is not known", revision.id), ""));
    };
    let opened = rbd::open_target(target, &ceph_environment(), job.repository(), size, monitor)?;
    Ok(Target::Image(opened))
}

fn target(path: &Path) -> anyhow::Result<Target<'static>> {
    if let Some(image) = path.to_str().and_then(|name| name.strip_prefix("rbd:")) {
        return Err(usage(
            format!("{:?} names an RBD image, and TARGET is a file or a device", path.display().to_string()),
            format!(
                "`backy restore --to {to}` makes the image, as does `backy restore - | rbd import - {image}`; a file of \
                 this name is {file}",
                to = quote(&format!("rbd:{image}")),
                image = quote(image),
                file = quote(&format!("./rbd:{image}")),
            ),
        ));
    }
    if path.as_os_str() != "-" {
        return Ok(Target::Path(path.to_owned()));
    }
    let stdout = io::stdout();
    if terminal::stdout_is_closed() {
        return Err(usage("standard output is closed", "send it into a file or a pipe"));
    }
    if stdout.is_terminal() {
        return Err(usage("a disk image does not belong on a terminal", "send it into a file or a pipe"));
    }
    // Not through the buffer of standard output, which looks for line ends.
    let stream = stdout.as_fd().try_clone_to_owned().context("cannot use standard output")?;
    Ok(Target::Stream(Box::new(File::from(stream))))
}

/// Selects the revision. Unasked, it is one that can be restored: complete, and on this server.
fn choose(context: &Context, job: &Job, spec: Option<&str>) -> anyhow::Result<Revision> {
    let mut all = revisions(job)?;
    let Some(spec) = spec else {
        all.retain(|revision| revision.is_clean() && revision.is_local());
        let revision = select::select_one("latest", &all, &context.zone)?;
        warn_of_choice(&all, &revision, context);
        return Ok(revision);
    };
    let revision = select::select_one(spec, &all, &context.zone)?;
    warn_of_choice(&all, &revision, context);
    if !revision.is_local() {
        return Err(refused(
            format!("revision {} lies on the server {}", revision.id, revision.server),
            "restore it there",
        ));
    }
    if !revision.is_clean() {
        terminal::warn(format_args!("revision {} is incomplete: its backup did not end well", revision.id));
    }
    Ok(revision)
}

/// Says what a person who is in a hurry may not know of the revision that is restored: that others have later dates, and
/// that its source was not as before.
fn warn_of_choice(all: &[Revision], chosen: &Revision, context: &Context) {
    let date = |revision: &Revision| revision.timestamp.format(&context.zone);
    if let Some(passed) = order::passed_over(all, chosen).last() {
        terminal::warn(format_args!(
            "revision {} is dated {}, later than {} of {}, but that date is wrong: it was passed over; `-r {}` restores it",
            passed.id,
            date(passed),
            chosen.id,
            date(chosen),
            passed.id
        ));
    }
    if order::is_future(chosen.timestamp, Timestamp::now()) {
        terminal::warn(format_args!("revision {} is dated in the future, {}", chosen.id, date(chosen)));
    }
    for reason in chosen.suspicions() {
        terminal::warn(format_args!(
            "revision {} is suspicious, its source was not as before: {reason}",
            chosen.id
        ));
    }
    let before = all.iter().take_while(|revision| revision.id != chosen.id);
    let is_good = |one: &&Revision| one.is_clean() && one.is_local() && !one.is_suspicious();
    if let Some(good) = before.filter(is_good).last().filter(|_| chosen.is_suspicious()) {
        terminal::warn(format_args!("the last one before that is {} of {}", good.id, date(good)));
    }
}

fn note_report(revision: &Revision, report: &RestoreReport) {
    for (offset, length) in &report.lost {
        terminal::note(format_args!(
            "lost: bytes {offset} to {} ({})",
            offset.saturating_add(*length),
            human_bytes(*length)
        ));
    }
    if !report.lost.is_empty() {
        let lost_bytes = report.lost.iter().fold(0u64, |sum, (_, length)| sum.saturating_add(*length));
        terminal::warn(format_args!("{} could not be read and are zeros now", human_bytes(lost_bytes)));
    }
    terminal::note(format_args!(
        "restored revision {}: {}, of which {} are data",
        revision.id,
        human_bytes(report.bytes),
        human_bytes(report.bytes_written)
    ));
}
