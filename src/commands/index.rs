//! `backy index rebuild`: makes the index of revisions anew from the manifests.

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::Context;
use crate::failure::{Outcome, Result};
use crate::output::terminal;
use crate::output::text::count;

/// Looks after the index of revisions, which is only a view and can always be made anew.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

/// What to do with the index.
#[derive(Clone, Copy, Debug, Subcommand)]
enum Action {
    /// Make the index anew from the manifests
    Rebuild,
}

/// Rebuilds the index of the store and prints how many revisions are in it.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    match arguments.action {
        Action::Rebuild => {
            let repository = context.location()?.repository;
            let (jobs, revisions, damaged) = backy_store::repository::index::rebuild(&repository)
                .with_context(|| format!("cannot rebuild the index of {}", repository.root().display()))?;
            terminal::print_line(format_args!(
                "{} of {} in the index",
                count(revisions, "revision", "revisions"),
                count(jobs, "job", "jobs")
            ))?;
            for finding in &damaged {
                terminal::warn(format_args!("{finding}"));
            }
            Ok(if damaged.is_empty() { Outcome::Done } else { Outcome::Bad })
        }
    }
}
