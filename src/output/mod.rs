//! What a person or a program gets to see. Data goes to standard output, all else to standard error.

pub(crate) mod drain;
pub(crate) mod interrupt;
pub(crate) mod json;
pub(crate) mod nagios;
pub(crate) mod progress;
pub(crate) mod size;
pub(crate) mod table;
pub(crate) mod terminal;
pub(crate) mod text;

use std::time::Duration;

/// How long the end of a command waits for a slow reader of its messages.
const COMMAND_PATIENCE: Duration = Duration::from_secs(10);
/// How long the end of a service does, which ends at a signal within a bound.
const SERVICE_PATIENCE: Duration = Duration::from_secs(2);

/// Dropped when the program ends, also by a panic: what waits to be written is written, within a bound.
#[derive(Debug)]
pub(crate) struct Last;

impl Drop for Last {
    fn drop(&mut self) {
        let patience = if drain::waits() { COMMAND_PATIENCE } else { SERVICE_PATIENCE };
        crate::logging::flush(patience);
    }
}
