//! The two streams of a command. A reader that goes away ends the output quietly: what the command does
//! is not undone by a closed pipe, and its exit status tells about the work.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::MetadataExt as _;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::fstat;

use super::progress;
use super::text::escape;
use crate::logging;

/// The width that is assumed of a terminal that does not tell.
const WIDTH_DEFAULT: usize = 80;

/// Writes `text`, which brings its own line ends, to standard output.
pub(crate) fn print(text: impl AsRef<[u8]>) -> anyhow::Result<()> {
    match write_all(text.as_ref()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// Not through the standard library's buffer: that takes a descriptor that cannot be written for a sink.
fn write_all(mut text: &[u8]) -> io::Result<()> {
    while !text.is_empty() {
        match nix::unistd::write(io::stdout(), text) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => text = &text[length..],
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Whether standard output was closed when the program started. The standard library then has opened `/dev/null` there for
/// reading and writing, which no shell does.
pub(crate) fn stdout_is_closed() -> bool {
    let stdout = io::stdout();
    let Ok(flags) = fcntl(&stdout, FcntlArg::F_GETFL) else { return true };
    let is_both = OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE == OFlag::O_RDWR;
    let null = std::fs::metadata("/dev/null").map(|facts| facts.rdev());
    is_both && fstat(&stdout).is_ok_and(|facts| null.is_ok_and(|null| facts.st_rdev == null))
}

/// Writes one line to standard output, made harmless.
pub(crate) fn print_line(line: impl Display) -> anyhow::Result<()> {
    print(format!("{}\n", escape(&line.to_string())))
}

/// Writes one line to standard error, above a progress bar if there is one.
pub(crate) fn note(line: impl Display) {
    let line = format!("{}\n", escape(&line.to_string()));
    // There is no other place to complain that standard error is gone.
    progress::suspended(|| drop(io::stderr().lock().write_all(line.as_bytes())));
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
