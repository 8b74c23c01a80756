//! The command line of backy: reads the arguments, runs one command, returns its exit status.
//!
//! Everything is written with owner-only rights: backups hold whatever the disks hold.

mod cli;
mod commands;
mod failure;
mod logging;
mod output;

use std::process::ExitCode;

use clap::Parser as _;
use nix::sys::stat::{Mode, umask};

fn main() -> ExitCode {
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    match cli::Cli::try_parse() {
        Ok(cli) => commands::run(cli),
        Err(error) => cli::report(&error),
    }
}
