//! Revision specifications: the little language behind `-r`.
//!
//! ```text
//! list  = meet { "," meet }            in this order, without duplicates
//! meet  = range { "&" range }          what is in all of them, in the order of the first
//! range = [ term ] ".." [ term ]       from one revision or date to another, both included, oldest first
//!       | term
//! term  = [ function ] "(" list ")"    functions: first, last, not, reverse
//!       | word
//! word  = number                       n-th newest, 0 is the newest
//!       | revision id
//!       | last | latest | first        one revision
//!       | all | clean | local | remote several, oldest first
//!       | tag:T | trust:X | server:N   several, oldest first
//!       | tag                          the newest revision that carries it, when nothing else fits
//! ```
//!
//! Blanks around words and signs mean nothing. An end of a range is one revision or a date
//! (`YYYY-MM-DD[THH:MM[:SS[.ffffff]]][+HH:MM]`); a date between two revisions falls between them, and one
//! outside of the history selects nothing there. A missing end is the end of the history.
//!
//! Both steps, `parse` and `eval`, are pure and bounded: 4096 bytes of text, 64 nested parentheses.

mod eval;
mod parse;

use crate::error::{Error, Result};
use crate::revision::Revision;
use crate::timestamp::Zone;

/// Evaluates a revision specification over `revisions` (oldest first). Order of the result as the
/// specification says; a revision comes at most once. Dates without a zone are read in `zone`.
pub fn select(spec: &str, revisions: &[Revision], zone: &Zone) -> Result<Vec<Revision>> {
    let chosen = parse::parse(spec)
        .and_then(|parsed| eval::Evaluation::new(revisions, zone).list(&parsed))
        .map_err(|reason| Error::SpecInvalid { spec: spec.to_owned(), reason })?;
    Ok(chosen.into_iter().map(|position| revisions[position].clone()).collect())
}

/// As [`select`], but exactly one revision must come out.
pub fn select_one(spec: &str, revisions: &[Revision], zone: &Zone) -> Result<Revision> {
    let mut chosen = select(spec, revisions, zone)?;
    let reason = match (chosen.pop(), chosen.len()) {
        (Some(revision), 0) => return Ok(revision),
        (None, _) => "no revision matches, one is needed".to_owned(),
        (Some(_), others) => format!("{} revisions match, one is needed", others + 1),
    };
    Err(Error::SpecInvalid { spec: spec.to_owned(), reason })
}

#[cfg(test)]
mod tests;
