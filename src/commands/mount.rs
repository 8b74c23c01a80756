//! `backy mount MOUNTPOINT`: the tree of all revisions, whose images can be written with an overlay. Signals are the mount's own business:
//! they unmount.

use std::path::PathBuf;

use anyhow::Context as _;
use backy_fuse::{Error, Manner, Options};
use clap::Args;

use super::Context;
use crate::failure::{self, EXIT_FAILED, Outcome, Result};

/// Shows the revisions of a job, or of all jobs of a store, as files below a directory.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// An empty directory
    mountpoint: PathBuf,
    /// Mount options, separated by commas
    #[arg(short, value_name = "OPTS", value_delimiter = ',', allow_hyphen_values = true)]
    options: Vec<String>,
    /// Make images writable: what is written is kept below DIR, never in the store
    #[arg(long, value_name = "DIR")]
    overlay: Option<PathBuf>,
    /// Keep no more than SIZE bytes below DIR; K, M, G and T are understood
    #[arg(long, value_name = "SIZE")]
    overlay_max: Option<String>,
    /// Return when the tree is ready, and go on in the background
    #[arg(long)]
    background: bool,
    /// Take the options as `mount` passes them
    #[arg(long, hide = true)]
    helper: bool,
    /// Ignore unknown options
    #[arg(long, hide = true)]
    sloppy: bool,
}

impl Arguments {
    fn parse_options(&self) -> backy_fuse::Result<Options> {
        let manner = match (self.sloppy, self.helper) {
            (true, _) => Manner::Sloppy,
            (false, true) => Manner::Helper,
            (false, false) => Manner::Exact,
        };
        Options::parse_for(&self.options, manner, self.overlay.as_deref(), self.overlay_max.as_deref())
    }
}

/// Mounts, and returns when it is unmounted or, in the background, ready.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    let cannot = || format!("cannot mount at {}", arguments.mountpoint.display());
    let options = match arguments.parse_options().with_context(cannot) {
        Ok(options) => options,
        // For mount(8), 2 is an error of the system.
        Err(error) if arguments.helper => {
            failure::tell(error);
            return Ok(Outcome::Status(EXIT_FAILED));
        }
        Err(error) => return Err(error),
    };
    // The store is looked for here too, so that a wrong path gets the same words as everywhere.
    context.location()?;
    match backy_fuse::run(&context.dir()?, &arguments.mountpoint, &options, arguments.background) {
        Ok(()) => Ok(Outcome::Done),
        // The process in the background has said why.
        Err(Error::BackgroundFailed { status }) if status.code().is_some() => {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            Ok(Outcome::Status(code.unwrap_or(EXIT_FAILED)))
        }
        Err(error) => Err(error).with_context(cannot),
    }
}
