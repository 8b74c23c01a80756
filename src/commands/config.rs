//! `backy config check`: whether the main configuration can be used, without using it.

use backy_sched::{Error, ServiceConfig};
use clap::{Args, Subcommand};

use super::Context;
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
    Check,
}

/// Reads the configuration and prints what is in it or what is wrong with it.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    let Action::Check = arguments.action;
    context.log_call();
    let path = context.config_path()?;
    match ServiceConfig::load(&path) {
        Ok(config) => {
            // As it was given, which is what somebody recognises.
            let path = context.config_name();
            for note in &config.notes {
                terminal::note(note.in_file(path));
            }
            let doubts = config.doubts(&std::env::var_os("PATH").unwrap_or_default());
            if !doubts.is_empty() {
                for doubt in &doubts {
                    terminal::print_line(doubt.in_file(path))?;
                }
                return Ok(Outcome::Bad);
            }
            let jobs = count(config.jobs.len(), "job", "jobs");
            let schedules = count(config.schedules.len(), "schedule", "schedules");
            let peers = count(config.peers.len(), "peer", "peers");
            terminal::print_line(format_args!("OK: {jobs}, {schedules}, {peers}"))?;
            Ok(Outcome::Done)
        }
        Err(Error::ConfigInvalid { problems, .. }) => {
            for problem in &problems {
                terminal::print_line(problem.in_file(context.config_name()))?;
            }
            Ok(Outcome::Bad)
        }
        Err(error) => Err(error.into()),
    }
}
