//! What the owner of a token may ask for. Pure.
//!
//! Each right stands for itself, but that `admin` includes the others. A token may be limited to jobs by patterns of
//! their names: other jobs are neither shown to it nor changed by it.

use std::collections::BTreeSet;
use std::fmt;

use crate::source::Secret;

/// The header of an answer 403 that names the right which the token lacks. It tells that answer from others of its kind.
pub(crate) const MISSING_RIGHT: &str = "missing-right";

/// A right of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// To fetch `/metrics`.
    Metrics,
    /// To see states, verdicts and lists.
    Read,
    /// To let jobs run.
    Run,
    /// Everything, also what changes the service or revisions.
    Admin,
}

impl Right {
    /// All rights, the smallest first.
    pub const ALL: [Self; 4] = [Self::Metrics, Self::Read, Self::Run, Self::Admin];

    /// Returns the word for it in the configuration and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Read => "read",
            Self::Run => "run",
            Self::Admin => "admin",
        }
    }

    /// Returns the right that a word means.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|right| right.as_str() == word)
    }
}

impl fmt::Display for Right {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// A pattern of names of jobs: `*` stands for any text, `?` for one character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// The longest pattern.
    const BYTES_MAX: usize = 256;

    /// Checks a pattern; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-*?".contains(&byte);
        if text.is_empty() || text.len() > Self::BYTES_MAX {
            Err("a pattern of jobs has 1 to 256 characters")
        } else if !text.bytes().all(is_known) {
            Err("a pattern of jobs consists of letters, digits, '.', '_', '-', '*' and '?'")
        } else {
            Ok(Self(text.to_owned()))
        }
    }

    /// Whether a name matches. Takes at most the product of both lengths.
    fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut at, mut in_name) = (0, 0);
        // Where the last `*` stands, and what it stands for ends: it is the only one that is ever made longer.
        let mut star: Option<(usize, usize)> = None;
        while in_name < name.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    star = Some((at, in_name));
                    at += 1;
                }
                Some(&byte) if byte == b'?' || byte == name[in_name] => {
                    at += 1;
                    in_name += 1;
                }
                _ => {
                    let Some((place, end)) = star else { return false };
                    star = Some((place, end + 1));
                    (at, in_name) = (place + 1, end + 1);
                }
            }
        }
        pattern[at..].iter().all(|&byte| byte == b'*')
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// What a token allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    rights: BTreeSet<Right>,
    /// `None` for all jobs.
    jobs: Option<Vec<Pattern>>,
}

impl Rights {
    /// Everything on all jobs: what a token without `rights` has.
    pub fn all() -> Self {
        Self { rights: BTreeSet::from([Right::Admin]), jobs: None }
    }

    /// These rights, on the jobs with these names; `None` for all jobs.
    pub fn new(rights: BTreeSet<Right>, jobs: Option<Vec<Pattern>>) -> Self {
        Self { rights, jobs }
    }

    /// Whether it has a right, on some jobs at least.
    pub fn has(&self, right: Right) -> bool {
        self.rights.contains(&right) || self.rights.contains(&Right::Admin)
    }

    /// Whether its rights are on this job.
    pub fn covers(&self, job: &str) -> bool {
        self.jobs.as_ref().is_none_or(|patterns| patterns.iter().any(|pattern| pattern.matches(job)))
    }

    /// The patterns of the jobs that its rights are on; `None` for all jobs.
    pub fn jobs(&self) -> Option<&[Pattern]> {
        self.jobs.as_deref()
    }
}

/// A token of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiToken {
    /// What is shown to the service.
    pub token: Secret,
    /// Who has it, for the log.
    pub name: String,
    /// What it allows.
    pub rights: Rights,
}

impl ApiToken {
    /// A token that allows everything.
    pub fn of_admin(token: Secret, name: &str) -> Self {
        Self { token, name: name.to_owned(), rights: Rights::all() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, matches) in [
            ("web01", "web01", true),
            ("web01", "web011", false),
            ("web*", "web", true),
            ("web*", "web01.example", true),
            ("web*", "db-web", false),
            ("*.example", "a.example.example", true),
            ("*a*b?", "xxaxxbxxabc", true),
            ("*a*b?", "xxaxxbxxab", false),
            ("?", "", false),
            ("*", "x", true),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(name), matches, "{pattern} {name}");
        }
        let evil = Pattern::parse(&"*a".repeat(128)).unwrap();
        assert!(!evil.matches(&"a".repeat(127)));
        for bad in ["", "a/b", "[a]", "a b", "ä", &"x".repeat(257)] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn admin_includes_the_others_and_they_include_nothing() {
        for right in Right::ALL {
            assert_eq!(Right::parse(right.as_str()), Some(right));
            let rights = Rights::new(BTreeSet::from([right]), None);
            for other in Right::ALL {
                assert_eq!(rights.has(other), other == right || right == Right::Admin);
            }
        }
        assert!(Rights::all().has(Right::Admin) && Rights::all().covers("web01"));
        let none = Rights::new(BTreeSet::from([Right::Read]), Some(Vec::new()));
        assert!(!none.covers("web01"));
    }
}
