//! `backy forget -r SPEC`: removes revisions, undoably until a purge past the hold time.

use std::collections::BTreeSet;

use anyhow::Context as _;
use backy_store::select;
use backy_store::{Job, Timestamp};
use clap::Args;

use super::{Context, join_tags, note_nothing_selected, revisions};
use crate::failure::{Outcome, Result};
use crate::output::terminal;

/// Removes revisions; `undelete` brings them back until they are purged.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The revisions
    #[arg(short, long, value_name = "SPEC", required = true, allow_hyphen_values = true)]
    revision: String,
}

/// Forgets all that is selected. What lies on another server loses its tags here, which its owner is told.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    let job = context.job()?;
    let guard = job.lock_manifests()?;
    let selected = select::select(&arguments.revision, &revisions(&job)?, &context.zone)?;
    if selected.is_empty() {
        return Ok(note_nothing_selected(&arguments.revision));
    }
    let now = Timestamp::now();
    for revision in &selected {
        let doing = || format!("cannot forget revision {}", revision.id);
        if revision.is_local() {
            job.forget(&guard, &revision.id, now).with_context(doing)?;
            tracing::info!(target: crate::logging::QUIET, revision = %revision.id, "forgotten");
            let date = revision.timestamp.format(&context.zone);
            terminal::print_line(format_args!(
                "forgot {} of {date} ({})",
                revision.id,
                join_tags(&revision.tags)
            ))?;
        } else {
            job.set_tags(&guard, &revision.id, BTreeSet::new()).with_context(doing)?;
            terminal::print_line(format_args!(
                "removed the tags of {}, on {}",
                revision.id, revision.server
            ))?;
        }
    }
    if selected.iter().any(backy_store::Revision::is_local) {
        terminal::note("`backy undelete -r ID` brings them back until they are purged");
        // All that was asked for is done: what cannot be read now is no failure of it.
        if let Err(error) = note_snapshots(&job) {
            tracing::warn!(error = format!("{error:#}"), "snapshots-unknown");
        }
    }
    Ok(Outcome::Done)
}

/// A job without a revision to start from needs no snapshots any more, but only a backup or `release` removes them.
fn note_snapshots(job: &Job) -> anyhow::Result<()> {
    let has_base = job.revisions()?.revisions.iter().any(backy_store::Revision::is_fit_as_base);
    if !has_base && !job.noted_snapshots()?.is_empty() {
        terminal::note(
            "the source has a snapshot of this job: the next backup removes it, or `backy release`",
        );
    }
    Ok(())
}
