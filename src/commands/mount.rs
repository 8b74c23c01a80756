//! `backy mount MOUNTPOINT`: the read-only tree of all revisions. Signals are the mount's own business:
//! they unmount.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::Context;
use crate::failure::{Outcome, Result};

/// Shows the revisions of a job, or of all jobs of a store, as files below a directory.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// An empty directory
    mountpoint: PathBuf,
    /// Mount options, separated by commas
    #[arg(short, value_name = "OPTS", value_delimiter = ',', allow_hyphen_values = true)]
    options: Vec<String>,
    /// Return when the tree is ready, and go on in the background
    #[arg(long)]
    background: bool,
}

/// Mounts, and returns when it is unmounted or, in the background, ready.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    // The store is looked for here too, so that a wrong path gets the same words as everywhere.
    context.location()?;
    backy_fuse::run(&context.dir()?, &arguments.mountpoint, &arguments.options, arguments.background)
        .with_context(|| format!("cannot mount at {}", arguments.mountpoint.display()))?;
    Ok(Outcome::Done)
}
