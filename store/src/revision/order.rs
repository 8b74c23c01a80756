//! The order of a job's revisions, and with it which one is the newest. Selection, restores, mounts, retention,
//! scheduling, monitoring and the choice of a base all use this one definition. Pure.
//!
//! Dates come from a clock, and clocks are wrong at times. So each revision has a [`Sequence`], which grows with every
//! revision of its job: it cannot have been made after one with a higher number. The earliest date among itself and
//! those made later is the latest time at which it can have been made ([`Dated::made_by`]), and revisions are ordered by
//! that. A revision dated a month ahead comes directly before the next one that was made, a revision dated 1970 after the
//! ones that were there before it.
//!
//! Where nothing made later puts it right, a revision that is dated in the future (by more than two clocks may differ)
//! is passed over: it comes before all others, and is the newest only where there is no other.
//!
//! Numbers of different stores say nothing about each other: the directories of two servers may have been copied into
//! one. Such revisions, and those without a sequence (from backy 2, and those of peers), are ordered by their dates.

use std::borrow::Borrow;

use serde::{Deserialize, Serialize};

use super::Revision;
use crate::timestamp::Timestamp;

/// How far two clocks may differ before a revision counts as dated in the future.
pub const SKEW_SECS: i64 = 300;

/// The place of a revision among those that its job has made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Sequence {
    /// The id of the store in which it was made.
    pub store: String,
    /// One more than the highest in the job at that time.
    pub number: u64,
}

/// A revision and its time, as far as it can be believed.
#[derive(Clone, Copy, Debug)]
pub struct Dated<'r> {
    /// The revision.
    pub revision: &'r Revision,
    /// The latest time at which it can have been made.
    pub made_by: Timestamp,
    /// Whether even that lies in the future.
    pub is_ahead: bool,
}

/// Whether a date lies in the future.
pub fn is_future(at: Timestamp, now: Timestamp) -> bool {
    at > now.plus_secs(SKEW_SECS)
}

/// Returns revisions (in any order) with their times, oldest first.
pub fn dated<'r>(revisions: impl IntoIterator<Item = &'r Revision>, now: Timestamp) -> Vec<Dated<'r>> {
    let mut revisions: Vec<&Revision> = revisions.into_iter().collect();
    let times = sort_keyed(&mut revisions, now);
    let dated = revisions.into_iter().zip(times);
    dated.map(|(revision, made_by)| Dated { revision, made_by, is_ahead: is_future(made_by, now) }).collect()
}

/// Brings revisions into order, oldest first: the newest is the last one.
pub fn sort<R: Borrow<Revision>>(revisions: &mut Vec<R>, now: Timestamp) {
    sort_keyed(revisions, now);
}

/// Returns when the order of these revisions changes by itself, because one of the future becomes one of the present.
pub fn valid_until<'r>(
    revisions: impl IntoIterator<Item = &'r Revision>,
    now: Timestamp,
) -> Option<Timestamp> {
    let ahead = dated(revisions, now).into_iter().filter(|one| one.is_ahead);
    ahead.map(|one| one.made_by.plus_secs(-SKEW_SECS)).min()
}

/// Returns the complete local revisions that are dated after `chosen` and come before it all the same, given all
/// revisions in order. Whoever goes by dates would have expected one of them.
pub fn passed_over<'r>(revisions: &'r [Revision], chosen: &Revision) -> Vec<&'r Revision> {
    let before = revisions.iter().take_while(|revision| revision.id != chosen.id);
    let is_later = |one: &&Revision| {
        one.is_clean() && one.is_local() && one.timestamp > chosen.timestamp.plus_secs(SKEW_SECS)
    };
    before.filter(is_later).collect()
}

/// Sorts, and returns the times in the new order.
fn sort_keyed<R: Borrow<Revision>>(revisions: &mut Vec<R>, now: Timestamp) -> Vec<Timestamp> {
    let times = latest_times(revisions);
    let mut keyed: Vec<(Timestamp, R)> = times.into_iter().zip(revisions.drain(..)).collect();
    keyed.sort_by(|(one_by, one), (other_by, other)| {
        let (one, other): (&Revision, &Revision) = (one.borrow(), other.borrow());
        let is_present = |at: &Timestamp| !is_future(*at, now);
        (is_present(one_by), one_by, &one.sequence, one.timestamp, &one.id).cmp(&(
            is_present(other_by),
            other_by,
            &other.sequence,
            other.timestamp,
            &other.id,
        ))
    });
    let (times, sorted): (Vec<Timestamp>, Vec<R>) = keyed.into_iter().unzip();
    revisions.extend(sorted);
    times
}

/// For each revision the latest time at which it can have been made.
fn latest_times<R: Borrow<Revision>>(revisions: &[R]) -> Vec<Timestamp> {
    let of = |at: usize| -> &Revision { revisions[at].borrow() };
    let mut times: Vec<Timestamp> = (0..revisions.len()).map(|at| of(at).timestamp).collect();
    let is_placed = |at: &usize| of(*at).is_local() && of(*at).sequence.is_some();
    let mut placed: Vec<usize> = (0..revisions.len()).filter(is_placed).collect();
    placed.sort_by_key(|&at| std::cmp::Reverse(&of(at).sequence));
    // The earliest date of all that were made later in the same store; equal numbers say nothing about each other.
    let mut later: Option<(&str, Timestamp)> = None;
    for group in placed.chunk_by(|&one, &other| of(one).sequence == of(other).sequence) {
        let Some(store) = of(group[0]).sequence.as_ref().map(|sequence| sequence.store.as_str()) else {
            continue;
        };
        let bound = later.filter(|(of_store, _)| *of_store == store).map(|(_, bound)| bound);
        if let Some(bound) = bound {
            group.iter().for_each(|&at| times[at] = times[at].min(bound));
        }
        let dates = group.iter().map(|&at| of(at).timestamp);
        later = dates.chain(bound).min().map(|bound| (store, bound));
    }
    times
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::RevisionId;

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_secs(1_700_000_000 + secs).unwrap()
    }

    const DAY: i64 = 86_400;

    fn revision(name: &str, secs: i64, sequence: Option<u64>) -> Revision {
        let sequence = sequence.map(|number| Sequence { store: "s".to_owned(), number });
        let json = serde_json::json!({
            "uuid": name, "timestamp": at(secs), "stats": { "duration": 1.0 }, "backend_type": "framed",
            "sequence": sequence,
        });
        serde_json::from_value(json).unwrap()
    }

    /// The names in order, at the time `now`.
    fn ordered(revisions: &[Revision], now: i64) -> String {
        let mut sorted: Vec<&Revision> = revisions.iter().rev().collect();
        sort(&mut sorted, at(now));
        sorted.iter().map(|revision| revision.id.as_str()).collect()
    }

    #[test]
    fn dates_that_are_wrong_do_not_make_a_revision_the_newest() {
        let day = |name: &str, day: i64, sequence| revision(name, day * DAY, Some(sequence));
        for (what, revisions, now, expected) in [
            ("good clocks", vec![day("a", 0, 1), day("b", 1, 2)], 2, "ab"),
            ("a month ahead, then right", vec![day("a", 30, 1), day("b", 0, 2)], 0, "ab"),
            ("the same when the month is over", vec![day("a", 30, 1), day("b", 0, 2)], 31, "ab"),
            ("and with those in between", vec![day("a", 30, 1), day("b", 0, 2), day("c", 1, 3)], 31, "abc"),
            ("ahead, and none since", vec![day("a", 0, 1), day("b", 30, 2)], 1, "ba"),
            ("until it is no more", vec![day("a", 0, 1), day("b", 30, 2)], 31, "ab"),
            ("nothing but ahead", vec![day("a", 30, 1), day("b", 31, 2)], 0, "ab"),
            ("back in 1970", vec![day("a", 0, 1), day("b", 1, 2), day("c", -9000, 3)], 1, "abc"),
            ("seen from there", vec![day("a", 0, 1), day("b", 1, 2), day("c", -9000, 3)], -9000, "abc"),
            ("and right again", vec![day("a", 1, 1), day("b", -9000, 2), day("c", 2, 3)], 2, "abc"),
        ] {
            assert_eq!(ordered(&revisions, now * DAY), expected, "{what}");
        }
        let step_back = [revision("a", 120, Some(1)), revision("b", 0, Some(2))];
        assert_eq!(ordered(&step_back, 60), "ab", "a clock that was set back by two minutes");
    }

    #[test]
    fn revisions_without_a_sequence_go_by_their_dates() {
        let mut peer = revision("p", 5, None);
        peer.server = "backup2".to_owned();
        let all = [revision("a", 3, None), revision("b", 1, None), revision("c", 10, Some(1)), peer];
        assert_eq!(ordered(&all, 20), "bapc");
        let mut other = [revision("a", DAY, Some(9)), revision("c", 5 * DAY, Some(1))];
        other[0].sequence = Some(Sequence { store: "another".to_owned(), number: 9 });
        assert_eq!(ordered(&other, 9 * DAY), "ac", "a directory that was copied from another store");
        other[0].sequence = Some(Sequence { store: "z".to_owned(), number: 9 });
        assert_eq!(ordered(&other, 9 * DAY), "ac", "whatever its name");
    }

    #[test]
    fn what_was_passed_over_is_named() {
        let mut all =
            vec![revision("a", 30 * DAY, Some(1)), revision("b", 0, Some(2)), revision("c", DAY, Some(3))];
        sort(&mut all, at(2 * DAY));
        let ids = |chosen: usize| -> Vec<&str> {
            passed_over(&all, &all[chosen]).into_iter().map(|one| one.id.as_str()).collect()
        };
        assert_eq!((ids(0), ids(1), ids(2)), (vec![], vec!["a"], vec!["a"]));
        assert_eq!(valid_until(&all, at(2 * DAY)), None);
        let ahead = [revision("a", 30 * DAY, None), revision("b", 0, None)];
        assert_eq!(valid_until(&ahead, at(0)), Some(at(30 * DAY - SKEW_SECS)));
    }

    proptest! {
        #[test]
        fn order_does_not_depend_on_the_order_before_and_keeps_sequences(
            dates in prop::collection::vec((-50i64..50, any::<bool>()), 0..20), now in -60i64..60, turn in 0usize..20,
        ) {
            let made: Vec<Revision> = dates.iter().enumerate().map(|(n, (day, has_sequence))| {
                revision(&RevisionId::from_bits(n as u128).to_string(), day * DAY, has_sequence.then_some(n as u64 + 1))
            }).collect();
            let mut turned = made.clone();
            turned.rotate_left(turn % made.len().max(1));
            let (mut one, mut other) = (made, turned);
            sort(&mut one, at(now * DAY));
            sort(&mut other, at(now * DAY));
            prop_assert_eq!(&one, &other);
            let present = one.iter().filter(|revision| revision.timestamp <= at(now * DAY));
            let sequences: Vec<&Sequence> = present.filter_map(|revision| revision.sequence.as_ref()).collect();
            prop_assert!(sequences.is_sorted(), "{:?}", sequences);
            // A revision that is dated ahead is the newest only where all others are, or were made before it.
            if let Some(last) = one.last()
                && is_future(last.timestamp, at(now * DAY))
            {
                prop_assert!(one.iter().all(|other| is_future(other.timestamp, at(now * DAY))));
            }
        }
    }
}
