//! `backy config check`: whether the main configuration can be used, without using it.

use std::path::PathBuf;

use backy_sched::service::config::PATH_DEFAULT;
use backy_sched::{Error, ServiceConfig};
use clap::{Args, Subcommand};

use super::absolute;
use crate::failure::{Outcome, Result};
use crate::output::terminal;
use crate::output::text::count;

/// Looks after the main configuration.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
enum Action {
    /// Say what is wrong with the configuration, all at once
    Check {
        /// The main configuration
        #[arg(short, long, value_name = "FILE", default_value = PATH_DEFAULT)]
        config: PathBuf,
    },
}

/// Reads the configuration and prints what is in it or what is wrong with it.
pub(crate) fn run(arguments: &Arguments) -> Result {
    let Action::Check { config: path } = &arguments.action;
    match ServiceConfig::load(&absolute(path)?) {
        Ok(config) => {
            for note in &config.notes {
                terminal::note(note.in_file(path));
            }
            let jobs = count(config.jobs.len(), "job", "jobs");
            let schedules = count(config.schedules.len(), "schedule", "schedules");
            let peers = count(config.peers.len(), "peer", "peers");
            terminal::print_line(format_args!("OK: {jobs}, {schedules}, {peers}"))?;
            Ok(Outcome::Done)
        }
        Err(Error::ConfigInvalid { problems, .. }) => {
            for problem in &problems {
                terminal::print_line(problem.in_file(path))?;
            }
            Ok(Outcome::Bad)
        }
        Err(error) => Err(error.into()),
    }
}
