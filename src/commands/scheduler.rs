//! `backy scheduler`: the service that lets every job run on time, in the foreground.

use std::path::PathBuf;

use anyhow::Context as _;
use backy_sched::service::run::{self, Options};
use backy_store::Error as StoreError;
use clap::Args;

use super::Context;
use super::check::silence_max;
use crate::failure::{Outcome, Result};
use crate::output::drain;

/// The status of a service that finds another one in its base directory, as in the original: EX_UNAVAILABLE.
const EXIT_SECOND: u8 = 69;
/// Where the service logs, unless told otherwise.
const LOG_DEFAULT: &str = "/var/log/backy.log";

/// Runs all jobs of the main configuration when they are due, until a signal ends it. SIGHUP lets it read the
/// configuration again.
#[derive(Args, Debug)]
pub(crate) struct Arguments {}

/// Runs until a signal comes.
pub(crate) fn run(context: &Context, _arguments: &Arguments) -> Result {
    // Whatever becomes of log and standard error, the service goes on.
    drain::never_wait();
    context.log_to(LOG_DEFAULT.as_ref());
    let options =
        Options { config_path: context.config_path()?, program: program()?, silence_max: silence_max() };
    match run::run(options) {
        Err(backy_sched::Error::Store(error @ StoreError::Locked { .. })) => {
            crate::failure::tell(anyhow::Error::from(error).context("another service runs already"));
            Ok(Outcome::Status(EXIT_SECOND))
        }
        ended => Ok(ended.map(|()| Outcome::Done)?),
    }
}

/// The program of the child processes: this one. `BACKY_CMD` names another, as it did for the original.
fn program() -> anyhow::Result<PathBuf> {
    match std::env::var_os("BACKY_CMD").filter(|program| !program.is_empty()) {
        Some(program) => Ok(program.into()),
        None => std::env::current_exe().context("cannot tell where this program is"),
    }
}
