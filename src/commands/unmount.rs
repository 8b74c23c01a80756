//! `backy unmount MOUNTPOINT`: takes a mount away and says who is in the way.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use backy_fuse::Error;
use clap::Args;

use super::Context;
use crate::failure::{Outcome, Result};
use crate::output::terminal;

/// How often it is tried again with `--wait`.
const AGAIN: Duration = Duration::from_millis(200);

/// Takes a mount away, unless somebody uses it.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// Wait until nobody uses it any more
    #[arg(long, conflicts_with = "lazy")]
    wait: bool,
    /// Take it away from sight at once; whoever uses it goes on until he is done
    #[arg(long)]
    lazy: bool,
}

/// Unmounts.
pub(crate) fn run(_context: &Context, arguments: &Arguments) -> Result {
    let mountpoint = super::absolute(&arguments.mountpoint)?;
    let unmounted = match (arguments.lazy, arguments.wait) {
        (true, _) => backy_fuse::detach(&mountpoint),
        (false, true) => wait(&mountpoint),
        (false, false) => backy_fuse::unmount(&mountpoint),
    };
    unmounted.with_context(|| format!("cannot unmount {}", arguments.mountpoint.display()))?;
    Ok(Outcome::Done)
}

fn wait(mountpoint: &std::path::Path) -> backy_fuse::Result<()> {
    let mut said = String::new();
    loop {
        match backy_fuse::unmount(mountpoint) {
            Err(error @ Error::InUse { .. }) => {
                let text = error.to_string();
                if text != said {
                    terminal::note(format_args!("waiting: {text}"));
                    said = text;
                }
                std::thread::sleep(AGAIN);
            }
            other => return other,
        }
    }
}
