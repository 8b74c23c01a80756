//! The command line of backy: reads the arguments, runs one command, returns its exit status.
//!
//! Everything is written with owner-only rights: backups hold whatever the disks hold.

mod cli;
mod commands;
mod failure;
mod helper;
mod logging;
mod output;

use std::process::ExitCode;

use clap::Parser as _;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};

fn main() -> ExitCode {
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    // A limit on the size of files then makes the write fail, which is reported, instead of ending the program.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    let _ = signals.thread_block();
    logging::report_panics();
    let _last = output::Last;
    let Some(arguments) = helper::translate(std::env::args_os().collect()) else { return ExitCode::SUCCESS };
    match cli::Cli::try_parse_from(&arguments) {
        Ok(cli) if cli.command.is_none() && arguments.len() > 1 => cli::without_command(&arguments),
        Ok(cli) => commands::run(cli),
        Err(error) => cli::report(&error, &arguments),
    }
}
