//! When a job runs next, and with which tags. Pure: schedule, history and a time in, a decision out.
//!
//! Each tag has *ideal times*: every `interval` seconds, counted from the beginning of the calendar (year 1,
//! UTC) and moved by the job's spread. They depend on nothing that happens, so a job keeps its hour after
//! restarts and failures, and time zones and their changes mean nothing to it.
//!
//! A tag is *missed* when no complete revision younger than its interval carries it, whoever made it, or when an
//! ideal time of it has passed since the newest one that does: else a service that is stopped just at that time
//! would leave nearly two intervals between two revisions. Missed tags go along with the next run; when that is far
//! away and the job has any revision at all, it runs at once with the missed tags alone. A job without revisions
//! waits for its ideal time, so that a thousand new jobs do not begin together.
//!
//! # Clocks that jump
//!
//! A run that succeeds leaves a revision of now, which covers its tags for their whole interval: whatever the
//! clock does, one jump brings at most one extra run of a job. Revisions dated in the future cover nothing,
//! else a clock that was once a year ahead would stop the job for a year.

use std::collections::BTreeSet;

use backy_store::{Tag, Timestamp};

use super::Schedule;
use super::history::History;

/// Missed tags wait for the next ideal time when it is no farther away than this; also how far the clocks of
/// two servers may differ, and how late a sleeper may wake.
const SLACK_SECS: i64 = 300;
/// Seconds from 0001-01-01, where the original begins to count, to 1970-01-01.
const YEAR_1_TO_1970_SECS: i64 = 62_135_596_800;
const MICROS_PER_SEC: i64 = 1_000_000;

/// A run that has been decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextRun {
    /// When: the ideal time, or the time of the decision.
    pub at: Timestamp,
    /// The tags of the revision to be made.
    pub tags: BTreeSet<Tag>,
    /// Whether it is an extra run for tags that were missed.
    pub catches_up: bool,
    /// When it was decided.
    pub decided_at: Timestamp,
}

/// Returns the first ideal time after `now` and all tags that fall on it; `None` for an empty schedule.
pub fn ideal(schedule: &Schedule, spread_secs: i64, now: Timestamp) -> Option<(Timestamp, BTreeSet<Tag>)> {
    let times = schedule.rules.iter().map(|(tag, rule)| (after(rule.interval_secs, spread_secs, now), tag));
    let times: Vec<(i64, &Tag)> = times.collect();
    let first = times.iter().map(|(secs, _)| *secs).min()?;
    let tags = times.iter().filter(|(secs, _)| *secs == first).map(|(_, tag)| (*tag).clone()).collect();
    // Moved from 1970, because that is held inside the years that exist.
    Some((Timestamp::from_secs(0)?.plus_secs(first), tags))
}

/// The first ideal second of an interval after `now`, counted from 1970; the last one is an interval before.
fn after(interval_secs: i64, spread_secs: i64, now: Timestamp) -> i64 {
    let micros_per_sec = i128::from(MICROS_PER_SEC);
    let interval = i128::from(interval_secs.max(1));
    let shift = i128::from(spread_secs) % interval;
    let since_year_1 = i128::from(now.as_micros()) + i128::from(YEAR_1_TO_1970_SECS) * micros_per_sec;
    let passed = (since_year_1 - shift * micros_per_sec).div_euclid(interval * micros_per_sec);
    let secs = (passed + 1) * interval + shift - i128::from(YEAR_1_TO_1970_SECS);
    i64::try_from(secs).unwrap_or(i64::MAX)
}

/// Returns the tags of the schedule that are missed. The history must be current.
pub fn missed(schedule: &Schedule, spread_secs: i64, history: &History, now: Timestamp) -> BTreeSet<Tag> {
    let is_missed = |tag: &Tag, interval_secs: i64| {
        let Some(newest) = history.newest_by_tag.get(tag) else { return true };
        let last_ideal_secs = after(interval_secs, spread_secs, now).saturating_sub(interval_secs);
        *newest <= now.plus_secs(-interval_secs)
            || newest.as_secs().saturating_add(SLACK_SECS) < last_ideal_secs
    };
    let rules = schedule.rules.iter();
    rules.filter(|(tag, rule)| is_missed(tag, rule.interval_secs)).map(|(tag, _)| tag.clone()).collect()
}

/// Returns the next run of a job with this history and spread ([`super::spread`]); `None` for an empty schedule.
pub fn next_run(schedule: &Schedule, spread_secs: i64, history: &History, now: Timestamp) -> Option<NextRun> {
    let (at, mut tags) = ideal(schedule, spread_secs, now)?;
    let missed = missed(schedule, spread_secs, history, now);
    let is_far = at.as_micros() - now.as_micros() > SLACK_SECS * MICROS_PER_SEC;
    if !missed.is_empty() && history.all > 0 && is_far {
        return Some(NextRun { at: now, tags: missed, catches_up: true, decided_at: now });
    }
    tags.extend(missed);
    Some(NextRun { at, tags, catches_up: false, decided_at: now })
}

#[cfg(test)]
mod tests;
