//! `backy completion SHELL`: prints a completion script.

use clap::{Args, CommandFactory as _};

use crate::cli::Cli;
use crate::failure::{Outcome, Result};
use crate::output::terminal;

/// Prints a completion script for a shell.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Prints the script.
pub(crate) fn run(arguments: &Arguments) -> Result {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "backy", &mut script);
    terminal::print(script)?;
    Ok(Outcome::Done)
}
