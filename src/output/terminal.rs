//! The two streams of a command. A reader that goes away ends the output quietly: what the command does
//! is not undone by a closed pipe, and its exit status tells about the work.
//!
//! Standard output is the result: whoever asked for it is waited for. Standard error can hold up nobody
//! ([`super::drain`]); nothing else in this program writes to it.

use std::fmt::Display;
use std::io::{self, IsTerminal as _};
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::Context as _;

use super::drain::{self, Drain, Outlet};
use super::progress;
use super::text::escape;
use crate::logging;

/// The width that is assumed of a terminal that does not tell.
const WIDTH_DEFAULT: usize = 80;

static STDERR: LazyLock<Drain<StandardError>> = LazyLock::new(|| Drain::new("stderr", StandardError));

/// The outlet to standard error, whatever that is at the moment: a mount in the background replaces it.
#[derive(Debug)]
struct StandardError;

impl Outlet for StandardError {
    type Order = std::convert::Infallible;

    fn write(&mut self, text: &str) -> io::Result<()> {
        drain::write_all(io::stderr(), text.as_bytes(), &mut false)
    }

    fn follow(&mut self, order: Self::Order) {
        match order {}
    }

    fn loss(&self, lines: u64) -> String {
        format!("warning: {lines} lines could not be written here\n")
    }
}

/// Writes `text`, which brings its own line ends, to standard output.
pub(crate) fn print(text: impl AsRef<[u8]>) -> anyhow::Result<()> {
    if stdout_is_closed() {
        return Err(anyhow::anyhow!("standard output is closed").context("cannot write to standard output"));
    }
    // Not through the standard library's buffer: that takes a descriptor that cannot be written for a sink.
    match drain::write_all(io::stdout(), text.as_ref(), &mut false) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// Whether standard output was closed when the program started. All that is written there then is lost: the standard library
/// has opened `/dev/null` in its place.
pub(crate) fn stdout_is_closed() -> bool {
    backy_process::stdout_was_closed()
}

/// Writes one line to standard output, made harmless.
pub(crate) fn print_line(line: impl Display) -> anyhow::Result<()> {
    print(format!("{}\n", escape(&line.to_string())))
}

/// Writes one line to standard error, above a progress bar if there is one.
pub(crate) fn note(line: impl Display) {
    note_harmless(&format!("{}\n", escape(&line.to_string())));
}

/// The same with lines that are harmless already, as those of the log.
pub(crate) fn note_harmless(lines: &str) {
    progress::suspended(|| STDERR.push(lines));
}

/// Writes lines to standard error at once, bar or not: for a program that breaks off.
pub(crate) fn note_at_once(lines: &str) {
    STDERR.push(lines);
}

/// Draws on the terminal; what it cannot take now is not drawn.
pub(super) fn draw(text: &str) {
    STDERR.push_if_idle(text);
}

/// Waits until all is written to standard error, but no longer than this.
pub(crate) fn flush(within: Duration) {
    STDERR.flush(within);
}

/// Warns on standard error and in the log.
pub(crate) fn warn(message: impl Display) {
    let message = message.to_string();
    note(format_args!("warning: {message}"));
    tracing::warn!(target: logging::QUIET, "{message}");
}

/// Returns how wide tables may be; `None` when standard output is not a terminal.
pub(crate) fn stdout_width() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let told =
        std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).filter(|&width| width > 0);
    let seen = || console::Term::stdout().size_checked().map(|(_, columns)| usize::from(columns));
    told.or_else(seen).or(Some(WIDTH_DEFAULT))
}
