//! One thing that is wrong in a configuration file, and where.

use std::fmt;
use std::path::Path;

use backy_store::Error as StoreError;

use crate::error::in_full;

/// A line and a column, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

/// One thing that is wrong in a configuration file. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where, if that is known.
    pub mark: Option<Mark>,
    /// The keys that lead there, joined by dots; empty for the file as a whole.
    pub place: String,
    /// What is wrong.
    pub message: String,
}

impl Problem {
    /// A problem of the file as a whole.
    pub(crate) fn of_file(message: impl Into<String>) -> Self {
        Self { mark: None, place: String::new(), message: message.into() }
    }

    /// Returns `FILE:LINE:COLUMN: PLACE: MESSAGE`, as compilers write it, without what is not known.
    pub fn in_file(&self, path: &Path) -> String {
        let mark = self.mark.map_or_else(String::new, |mark| format!(":{}:{}", mark.line, mark.column));
        let place = if self.place.is_empty() { String::new() } else { format!("{}: ", self.place) };
        format!("{}{mark}: {place}{}", path.display(), self.message)
    }
}

/// Returns the problem that an owner or a mode is, with its remedy; any other error as it is.
pub(crate) fn unsafe_problem(error: &StoreError) -> Problem {
    Problem::of_file(match error {
        StoreError::Unsafe { path, fault } => {
            format!("{error}; if it can be trusted: `{} {}`", fault.remedy(), path.display())
        }
        other => in_full(other),
    })
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mark {
            Some(mark) if self.place.is_empty() => {
                write!(out, "line {} column {}: ", mark.line, mark.column)?
            }
            Some(mark) => write!(out, "line {}, ", mark.line)?,
            None => {}
        }
        if !self.place.is_empty() {
            write!(out, "{}: ", self.place)?;
        }
        out.write_str(&self.message)
    }
}

/// Returns a word from the file for a message, cut when it is very long.
pub(crate) fn clip(word: &str) -> String {
    const CHARS_MAX: usize = 80;
    match word.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}...", &word[..end]),
        None => word.to_owned(),
    }
}
