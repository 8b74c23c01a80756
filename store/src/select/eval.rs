//! Tree of a revision specification -> positions in the history (0 is the oldest revision).
//!
//! A word is tried as a number, an id, a keyword and last as a tag; only as an end of a range also, before
//! the tag, as a date.

use std::cmp::Ordering;

use super::parse::{Function, List, Meet, Range, Term};
use crate::revision::{Revision, Trust};
use crate::timestamp::{Timestamp, Zone};

/// A history and the zone of its reader.
pub(super) struct Evaluation<'a> {
    revisions: &'a [Revision],
    zone: &'a Zone,
}

type Positions = Vec<usize>;

/// An end of a range.
enum End {
    BeforeAll,
    Revision(usize),
    Date(Timestamp),
    AfterAll,
}

impl<'a> Evaluation<'a> {
    pub(super) fn new(revisions: &'a [Revision], zone: &'a Zone) -> Self {
        Self { revisions, zone }
    }

    /// Evaluates a whole list; the error is the reason, naming the token.
    pub(super) fn list(&self, list: &List) -> Result<Positions, String> {
        let mut chosen = Vec::new();
        let mut taken = vec![false; self.revisions.len()];
        for part in &list.0 {
            for position in self.meet(part)? {
                if !std::mem::replace(&mut taken[position], true) {
                    chosen.push(position);
                }
            }
        }
        Ok(chosen)
    }

    fn meet(&self, meet: &Meet) -> Result<Positions, String> {
        let mut parts = meet.0.iter();
        let mut chosen = parts.next().map_or(Ok(Vec::new()), |first| self.range(first))?;
        for part in parts {
            let inside = self.mask(&self.range(part)?);
            chosen.retain(|&position| inside[position]);
        }
        Ok(chosen)
    }

    fn range(&self, range: &Range) -> Result<Positions, String> {
        let (first, last) = match range {
            Range::One(term) => return self.term(term),
            Range::Span(first, last) => (first, last),
        };
        let first = first.as_ref().map_or(Ok(End::BeforeAll), |end| self.end(end))?;
        let last = last.as_ref().map_or(Ok(End::AfterAll), |end| self.end(end))?;
        let is_inside = |position: &usize| {
            let sides = [&first, &last].map(|end| self.side(end, *position));
            sides != [Ordering::Less; 2] && sides != [Ordering::Greater; 2]
        };
        Ok((0..self.revisions.len()).filter(is_inside).collect())
    }

    /// On which side of a revision an end of a range lies. A date is compared with the revision's own date: one that is
    /// dated in the future is not among those of last year, though it comes before them.
    fn side(&self, end: &End, position: usize) -> Ordering {
        match end {
            End::BeforeAll => Ordering::Less,
            End::AfterAll => Ordering::Greater,
            End::Revision(end) => end.cmp(&position),
            End::Date(date) => date.cmp(&self.revisions[position].timestamp),
        }
    }

    fn end(&self, end: &Term) -> Result<End, String> {
        let position = match end {
            Term::Call(Some(Function::First | Function::Last), _) => self.term(end)?.first().copied(),
            Term::Call(None, inner) => match self.list(inner)?[..] {
                [position] => Some(position),
                _ => {
                    return Err("parentheses at the end of a range must hold exactly one revision".to_owned());
                }
            },
            Term::Call(Some(_), _) => {
                return Err(
                    "not(...) and reverse(...) cannot be an end of a range: use first(...) or last(...)"
                        .to_owned(),
                );
            }
            Term::Word(word) => match self.one(word)? {
                Some(position) => Some(position),
                None if self.several(word)?.is_some() => {
                    return Err(format!(
                        "{word:?} cannot be an end of a range: use first({word}) or last({word})"
                    ));
                }
                None => match Timestamp::parse(word, self.zone) {
                    Some(date) => return self.date(word, date),
                    None => self.newest_tagged(word),
                },
            },
        };
        position.map(End::Revision).ok_or_else(|| unknown(end))
    }

    fn date(&self, word: &str, date: Timestamp) -> Result<End, String> {
        match self.revisions.iter().filter(|revision| revision.timestamp == date).count() {
            0 | 1 => Ok(End::Date(date)),
            count => Err(format!("{count} revisions were made exactly at {word:?}: name one by its id")),
        }
    }

    fn term(&self, term: &Term) -> Result<Positions, String> {
        let (function, inner) = match term {
            Term::Word(word) => return self.word(word),
            Term::Call(function, inner) => (function, self.list(inner)?),
        };
        let one = |position: Option<&usize>, name| {
            position
                .map(|&position| vec![position])
                .ok_or_else(|| format!("{name}(...) of nothing: no revision matches inside"))
        };
        match function {
            None => Ok(inner),
            Some(Function::First) => one(inner.first(), "first"),
            Some(Function::Last) => one(inner.last(), "last"),
            Some(Function::Not) => {
                let inside = self.mask(&inner);
                Ok((0..self.revisions.len()).filter(|&position| !inside[position]).collect())
            }
            Some(Function::Reverse) => Ok(inner.into_iter().rev().collect()),
        }
    }

    fn word(&self, word: &str) -> Result<Positions, String> {
        if let Some(position) = self.one(word)? {
            return Ok(vec![position]);
        }
        if let Some(positions) = self.several(word)? {
            return Ok(positions);
        }
        match self.newest_tagged(word) {
            Some(position) => Ok(vec![position]),
            None if Timestamp::parse(word, self.zone).is_some() => {
                Err(format!("the date {word:?} can only be an end of a range: {word}.. or ..{word}"))
            }
            None => Err(unknown(&Term::Word(word.to_owned()))),
        }
    }

    /// Words that mean one revision: numbers, ids, `last`, `latest`, `first`.
    fn one(&self, word: &str) -> Result<Option<usize>, String> {
        let count = self.revisions.len();
        let digits = word.strip_prefix(['-', '+']).unwrap_or(word);
        if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return match word.parse::<usize>() {
                Ok(number) if number < count => Ok(Some(count - 1 - number)),
                _ if count == 0 => Err(format!("there is no revision {word}: the job has no revisions")),
                _ => Err(format!(
                    "there is no revision {word}: counts go from 0, the newest, to {}",
                    count - 1
                )),
            };
        }
        if let Some(position) = self.revisions.iter().position(|revision| revision.id.as_str() == word) {
            return Ok(Some(position));
        }
        match word {
            "last" | "latest" | "first" if count == 0 => {
                Err(format!("there is no {word} revision: the job has no revisions"))
            }
            "last" | "latest" => Ok(Some(count - 1)),
            "first" => Ok(Some(self.first())),
            _ => Ok(None),
        }
    }

    /// Words that mean any number of revisions.
    fn several(&self, word: &str) -> Result<Option<Positions>, String> {
        let chosen = match word {
            "all" => self.filter(|_| true),
            "clean" => self.filter(Revision::is_clean),
            "local" => self.filter(Revision::is_local),
            "remote" => self.filter(|revision| !revision.is_local()),
            _ => match word.split_once(':').map(|(key, value)| (key.trim_ascii(), value.trim_ascii())) {
                Some(("tag", tag)) => self.filter(|revision| carries(revision, tag)),
                Some(("server", server)) => self.filter(|revision| revision.server == server),
                Some(("trust", name)) => {
                    let trust = trust(name)?;
                    self.filter(|revision| revision.trust == trust)
                }
                _ => return Ok(None),
            },
        };
        Ok(Some(chosen))
    }

    /// The oldest revision. Those dated in the future come before all others, but nobody means them by it.
    fn first(&self) -> usize {
        let newest = self.revisions.last().map(|revision| revision.timestamp);
        self.revisions.iter().position(|revision| Some(revision.timestamp) <= newest).unwrap_or(0)
    }

    fn newest_tagged(&self, tag: &str) -> Option<usize> {
        self.revisions.iter().rposition(|revision| carries(revision, tag))
    }

    fn filter(&self, wanted: impl Fn(&Revision) -> bool) -> Positions {
        (0..self.revisions.len()).filter(|&position| wanted(&self.revisions[position])).collect()
    }

    fn mask(&self, positions: &[usize]) -> Vec<bool> {
        let mut mask = vec![false; self.revisions.len()];
        for &position in positions {
            mask[position] = true;
        }
        mask
    }
}

/// Whether a revision carries a tag, which may stand in quotes.
fn carries(revision: &Revision, tag: &str) -> bool {
    let quoted = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
    revision.tags.iter().any(|carried| carried.as_str() == tag || Some(carried.as_str()) == quoted)
}

fn trust(name: &str) -> Result<Trust, String> {
    [Trust::Trusted, Trust::Verified, Trust::Distrusted]
        .into_iter()
        .find(|trust| trust.as_str().eq_ignore_ascii_case(name))
        .ok_or_else(|| format!("there is no trust state {name:?}, only trusted, verified and distrusted"))
}

fn unknown(term: &Term) -> String {
    match term {
        Term::Word(word) => format!("no revision, tag or keyword is called {word:?}"),
        Term::Call(..) => "no revision matches".to_owned(),
    }
}
