//! `backy verify [-r SPEC]`: reads revisions back. Damage distrusts, it deletes nothing.

use anyhow::Context as _;
use backy_store::select;
use clap::Args;

use super::{Context, listing, note_nothing_selected, thread_count, threads_parser};
use crate::failure::{Outcome, Result, in_short};
use crate::output::progress::Progress;
use crate::output::size::human_bytes;
use crate::output::terminal;
use crate::output::text::count;

/// Reads every chunk of the revisions: the good become verified, the others distrusted.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The revisions
    #[arg(
        short,
        long,
        value_name = "SPEC",
        default_value = "trust:distrusted&local",
        allow_hyphen_values = true
    )]
    revision: String,
    /// Threads that decompress [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = threads_parser())]
    threads: Option<u16>,
}

/// Verifies and prints a line for each revision.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    let job = context.job()?;
    let listing = listing(&job)?;
    let mut selected = select::select(&arguments.revision, &listing.revisions, &context.zone)?;
    for remote in selected.iter().filter(|revision| !revision.is_local()) {
        terminal::note(format_args!(
            "skipping revision {}, which lies on server {}",
            remote.id, remote.server
        ));
    }
    selected.retain(backy_store::Revision::is_local);
    // A manifest that cannot be read may be one of those that were asked for, unless that is one by its id.
    let is_the_one = matches!(&selected[..], [one] if one.id.as_str() == arguments.revision);
    let hidden = !listing.damaged.is_empty() && !is_the_one;
    if selected.is_empty() {
        note_nothing_selected(&arguments.revision);
        return Ok(Outcome::bad_if(hidden));
    }
    let progress = Progress::start();
    let threads = thread_count(arguments.threads);
    let report = backy_store::maintain::verify::verify(
        &job,
        &selected,
        threads,
        backy_store::Timestamp::now(),
        &progress,
    )
    .with_context(|| format!("cannot verify job {}", job.name()))?;
    let findings = progress.findings();
    drop(progress);
    let mut all_good = !hidden;
    for revision in &selected {
        if report.gone.contains(&revision.id) {
            terminal::note(format_args!("revision {} was forgotten and purged meanwhile", revision.id));
            continue;
        }
        let good = report.good.contains(&revision.id) && !report.bad.contains(&revision.id);
        all_good &= good;
        terminal::print_line(format_args!("{} {}", revision.id, if good { "good" } else { "bad" }))?;
    }
    for (name, id) in &report.distrusted {
        terminal::warn(format_args!(
            "revision {id} of job {name} uses a damaged chunk and is distrusted now"
        ));
    }
    if findings > 0 {
        terminal::note(format_args!("{} of damage", count(findings, "finding", "findings")));
    }
    if let Some(error) = report.not_recorded {
        let (text, _) = in_short(error.into());
        terminal::warn(format_args!(
            "the store cannot be written, so damaged chunks are not marked and trust is not changed: {text}"
        ));
    }
    if job.repository().is_original() {
        terminal::note("nothing was recorded: there is no store here yet");
    }
    let chunks = count(report.chunks, "chunk", "chunks");
    terminal::note(format_args!("read {} in {chunks}", human_bytes(report.bytes)));
    Ok(Outcome::bad_if(!all_good))
}
