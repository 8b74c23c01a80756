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
//! A tag with signs of the language in it stands in double quotes: `tag:"a&b"`. [`check_new_tags`] refuses such tags
//! where they are given, so only old ones need that.
//!
//! Blanks around words and signs mean nothing. An end of a range is one revision or a date
//! (`YYYY-MM-DD[THH:MM[:SS[.ffffff]]][+HH:MM]`); a date between two revisions falls between them, and one
//! outside of the history selects nothing there. A missing end is the end of the history.
//!
//! What is newest and oldest is decided by [`crate::revision::order`], not by dates alone.
//!
//! Both steps, `parse` and `eval`, are pure and bounded: 4096 bytes of text, 64 nested parentheses.

mod eval;
mod parse;

use self::parse::{List, Meet, Range, Term};
use crate::error::{Error, Result};
use crate::name::Tag;
use crate::revision::Revision;
use crate::timestamp::{Timestamp, Zone};

/// Evaluates a revision specification over `revisions` (in the order of [`crate::revision::order`]: oldest first). Order of the result as the
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

/// Fails with `NameInvalid` for a tag that would mean something else in a specification: it could be given to a revision,
/// and the revision never be found by it.
pub fn check_new_tags<'t>(tags: impl IntoIterator<Item = &'t Tag>) -> Result<()> {
    for tag in tags {
        if let Some(reason) = reason_against(tag.as_str()) {
            return Err(Error::NameInvalid { kind: "tag", name: tag.to_string(), reason });
        }
    }
    Ok(())
}

/// Why a text is no good as a new tag. Pure.
fn reason_against(tag: &str) -> Option<&'static str> {
    const KEYWORDS: [&str; 7] = ["last", "latest", "first", "all", "clean", "local", "remote"];
    if tag.trim() != tag {
        return Some("it begins or ends with a blank");
    }
    if tag.chars().any(is_invisible) {
        return Some("it has characters that cannot be seen");
    }
    let digits = tag.strip_prefix(['-', '+']).unwrap_or(tag);
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some("a number selects revisions by their count");
    }
    if KEYWORDS.contains(&tag) {
        return Some("as a word of `-r` it selects revisions by itself");
    }
    if let Some(("tag" | "trust" | "server", _)) = tag.split_once(':').map(|(key, value)| (key.trim(), value))
    {
        return Some("`tag:`, `trust:` and `server:` select revisions");
    }
    if Timestamp::parse(tag, &Zone::utc()).is_some() {
        return Some("a date is the end of a range of revisions");
    }
    let is_word = |list: &List| match &list.0[..] {
        [Meet(parts)] => matches!(&parts[..], [Range::One(Term::Word(word))] if word == tag),
        _ => false,
    };
    if tag.contains('"') || !parse::parse(tag).is_ok_and(|list| is_word(&list)) {
        return Some("`(`, `)`, `,`, `&`, `..` and quotes have a meaning where revisions are selected");
    }
    None
}

/// Characters that change how a text looks and cannot be seen themselves.
fn is_invisible(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(letter, '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests;
