//! What the schedule says: which tags there are, how often each is due and how many of each are kept.
//!
//! Everything below this folder is pure: data and a time in, a decision out.

pub mod backoff;
pub mod health;
pub mod history;
pub mod interval;
pub mod next_run;
pub mod pool;
pub mod retention;
pub mod sla;
pub mod spread;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::{BTreeMap, BTreeSet};

use backy_store::Tag;

use crate::error::{Error, Result};

/// The rules of one job, by tag. An empty schedule knows no tags and lets nothing expire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Tag -> its rule.
    pub rules: BTreeMap<Tag, Rule>,
}

/// How often a tag is due, and how many revisions keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Seconds from one revision with this tag to the next, at least 1.
    pub interval_secs: i64,
    /// How many revisions keep the tag whatever their age, at least 1.
    pub keep: u32,
}

impl Rule {
    /// Returns how long every revision keeps the tag, however many there are: `keep` intervals.
    pub fn window_secs(&self) -> i64 {
        self.interval_secs.saturating_mul(i64::from(self.keep))
    }
}

impl Schedule {
    /// Returns the schedule of a new job: seven daily, four weekly and three monthly revisions.
    pub fn usual() -> Self {
        let rule = |tag: &str, days: i64, keep| {
            Tag::parse(tag).ok().map(|tag| (tag, Rule { interval_secs: days * 86_400, keep }))
        };
        let rules = [rule("daily", 1, 7), rule("weekly", 7, 4), rule("monthly", 30, 3)];
        Self { rules: rules.into_iter().flatten().collect() }
    }

    /// Returns the length of the shortest interval; `None` for an empty schedule.
    pub fn shortest_secs(&self) -> Option<i64> {
        self.rules.values().map(|rule| rule.interval_secs).min()
    }

    /// Returns the length of the longest interval; `None` for an empty schedule.
    pub fn longest_secs(&self) -> Option<i64> {
        self.rules.values().map(|rule| rule.interval_secs).max()
    }

    /// Checks tags for `backup` and `tags`: every one that is not manual must be in the schedule, else
    /// `TagsUnknown`.
    pub fn check_tags(&self, tags: &BTreeSet<Tag>) -> Result<()> {
        let unknown = |tag: &&Tag| !tag.is_manual() && !self.rules.contains_key(*tag);
        let unknown: Vec<String> = tags.iter().filter(unknown).map(Tag::to_string).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        Err(Error::TagsUnknown { tags: unknown, known: self.rules.keys().map(Tag::to_string).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_must_be_manual_or_in_the_schedule() {
        let schedule = Schedule::usual();
        let check = |tags: &str| schedule.check_tags(&Tag::parse_list(tags).unwrap());
        assert!(check("daily,weekly,manual:before upgrade").is_ok());
        match check("daily,hourly,manual,manual:x").unwrap_err() {
            Error::TagsUnknown { tags, known } => {
                assert_eq!(tags, ["hourly", "manual"]);
                assert_eq!(known, ["daily", "monthly", "weekly"]);
            }
            other => panic!("{other}"),
        }
        assert!(Schedule::default().check_tags(&Tag::parse_list("manual:x").unwrap()).is_ok());
    }

    #[test]
    fn windows_of_the_longest_rules_do_not_overflow() {
        let rule = Rule { interval_secs: interval::INTERVAL_SECS_MAX, keep: u32::MAX };
        assert_eq!(rule.window_secs(), i64::MAX);
    }
}
