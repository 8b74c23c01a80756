//! Tables of single decisions, and a simulated year printed as a timeline.

use std::fmt::Write as _;

use super::super::testing::{DAY, at, revision, schedule, tags};
use super::*;

/// One revision a day with the tag `daily`, the newest made at day 0, numbered from the oldest.
fn days(count: usize) -> Vec<Revision> {
    (0..count).map(|n| revision(n as u128, (n as i64 - count as i64 + 1) * DAY, "daily")).collect()
}

fn daily(keep: u32) -> Schedule {
    schedule(&[("daily", "1d", keep)])
}

/// The numbers of the revisions that go.
fn gone(plan: &Plan) -> Vec<usize> {
    (0..plan.decisions.len()).filter(|&n| plan.decisions[n].removed).collect()
}

/// Does to a list what `expire` does to a job.
fn applied(plan: &Plan) -> Vec<Revision> {
    let stays = |decision: &&Decision| !decision.removed;
    let strip = |decision: &Decision| {
        let mut revision = decision.revision.clone();
        revision.tags.retain(|tag| !decision.lost_tags.contains(tag));
        revision
    };
    plan.decisions.iter().filter(stays).map(strip).collect()
}

#[test]
fn both_age_and_number_must_be_exceeded() {
    for (count, every, keep, days_later, expected) in [
        (5, "1d", 3, 0, vec![0, 1]),
        (5, "1d", 5, 100, vec![]),
        (5, "1d", 4, 0, vec![0]),
        (5, "1d", 4, 1, vec![0]),
        (5, "2d", 2, 0, vec![0]),
        (5, "2d", 2, 1, vec![0, 1]),
        (5, "1w", 1, 0, vec![]),
        (3, "1d", 3, 1000, vec![]),
    ] {
        // A second later, so that no revision is exactly at the limit.
        let plan = plan(&days(count), &schedule(&[("daily", every, keep)]), at(days_later * DAY + 1), true);
        assert_eq!(
            gone(&plan),
            expected,
            "{count} revisions, {keep} kept every {every}, {days_later} days later"
        );
    }
}

#[test]
fn a_revision_exactly_at_the_limit_stays() {
    let revisions = days(4);
    assert!(gone(&plan(&revisions, &daily(3), at(0), true)).is_empty());
    let later = Timestamp::from_micros(at(0).as_micros() + 1).unwrap();
    assert_eq!(gone(&plan(&revisions, &daily(3), later, true)), [0]);
}

#[test]
fn only_complete_trusted_revisions_of_the_past_count_as_kept() {
    for name in ["distrusted", "incomplete", "future"] {
        let mut revisions = days(5);
        revisions[4].tags = tags("daily,manual:x");
        match name {
            "distrusted" => revisions[4].trust = Trust::Distrusted,
            "incomplete" => revisions[4].stats.duration_secs = None,
            _ => revisions[4].timestamp = at(900 * DAY),
        }
        let plan = plan(&revisions, &daily(3), at(100 * DAY), true);
        assert_eq!(gone(&plan), [0], "{name}: one less goes than without");
    }
    assert_eq!(gone(&plan(&days(5), &daily(3), at(100 * DAY), true)), [0, 1]);
}

fn suspect(revision: &mut Revision) {
    backy_store::revision::suspicion::record(&mut revision.source, &["it is empty".to_owned()], None);
}

/// What `expire` leaves when it runs every day for so many days, a suspicious revision being made before each.
fn after_suspicious_days(mut revisions: Vec<Revision>, days: i64, rules: &Schedule) -> Vec<Revision> {
    for day in 1..=days {
        let mut made = revision(1000 + day as u128, day * DAY, "daily");
        suspect(&mut made);
        revisions.push(made);
        revisions = applied(&plan(&revisions, rules, at(day * DAY + 60), false));
    }
    revisions
}

#[test]
fn suspicious_revisions_push_no_good_ones_out_and_do_not_pile_up() {
    let left = after_suspicious_days(days(1), 60, &daily(3));
    let suspicious = left.iter().filter(|revision| revision.is_suspicious()).count();
    assert_eq!((left.len() - suspicious, suspicious), (1, 3), "the good one, and as many as are kept");
    let left = after_suspicious_days(days(9), 60, &daily(3));
    assert_eq!(left.iter().filter(|revision| !revision.is_suspicious()).count(), 3, "as many as are kept");
    // Accepted, they are like all others.
    let mut accepted = left;
    accepted.iter_mut().for_each(|revision| revision.source.clear());
    let plan = plan(&accepted, &daily(3), at(61 * DAY), true);
    assert_eq!(gone(&plan), [0, 1, 2]);
}

#[test]
fn a_good_revision_after_suspicious_ones_counts_and_they_do_not() {
    let mut revisions = days(6);
    revisions[2..5].iter_mut().for_each(suspect);
    // Newer than the oldest are two good ones and three suspicious ones.
    assert!(!gone(&plan(&revisions, &daily(3), at(100 * DAY), true)).contains(&0));
    assert_eq!(gone(&plan(&revisions, &daily(2), at(100 * DAY), true)), [0, 2, 3]);
}

#[test]
fn the_last_trusted_revision_is_a_good_one() {
    let mut revisions = days(4);
    revisions[2..].iter_mut().for_each(suspect);
    let other = schedule(&[("hourly", "1h", 2)]);
    let first = plan(&revisions, &other, at(0), true);
    assert_eq!(gone(&first), [0, 2, 3], "of the good ones the newest stays");
    revisions.iter_mut().for_each(suspect);
    assert_eq!(gone(&plan(&revisions, &other, at(0), true)), [0, 1, 2], "where all are suspicious, of these");
}

#[test]
fn old_distrusted_revisions_go_when_enough_trusted_ones_are_newer() {
    let mut revisions = days(5);
    revisions[0].trust = Trust::Distrusted;
    assert_eq!(gone(&plan(&revisions, &daily(3), at(100 * DAY), true)), [0, 1]);
}

#[test]
fn incomplete_revisions_are_left_alone() {
    let mut revisions = days(5);
    revisions[0].stats.duration_secs = None;
    revisions[1].stats.duration_secs = None;
    revisions[1].tags.clear();
    let plan = plan(&revisions, &daily(1), at(100 * DAY), true);
    assert_eq!(gone(&plan), [2, 3]);
    assert!(plan.decisions[0].reasons[0].contains("incomplete"));
}

#[test]
fn manual_tags_are_never_touched() {
    let mut revisions = days(5);
    revisions[0].tags = tags("daily,manual:before upgrade");
    let plan = plan(&revisions, &daily(3), at(100 * DAY), true);
    assert_eq!(gone(&plan), [1]);
    assert_eq!(plan.decisions[0].lost_tags, tags("daily"));
    assert_eq!(
        plan.decisions[0].reasons,
        [
            "daily falls: older than 3 times 1d, and 4 newer trusted revisions carry it",
            "manual:before upgrade stays: manual tags are never taken away",
        ]
    );
    assert_eq!(plan.decisions[4].reasons, ["daily stays: 0 newer trusted revisions carry it, 3 are kept"]);
}

#[test]
fn the_last_trusted_revision_stays_without_tags() {
    let mut revisions = days(3);
    revisions[2].trust = Trust::Distrusted;
    let other = schedule(&[("hourly", "1h", 2)]);
    for force in [false, true] {
        let first = plan(&revisions, &other, at(0), true);
        assert_eq!(gone(&first), [0, 2]);
        assert_eq!(first.decisions[1].lost_tags, tags("daily"));
        assert_eq!(first.held_back.len(), 1);
        let second = plan(&applied(&first), &other, at(1), force);
        assert!(gone(&second).is_empty(), "and it stays in every later run");
    }
    let mut later = applied(&plan(&revisions, &other, at(0), true));
    later.push(revision(9, DAY, "hourly"));
    assert_eq!(gone(&plan(&later, &other, at(DAY), false)), [0], "until there is another one");
}

#[test]
fn an_empty_schedule_and_a_job_without_trust_lose_nothing() {
    let mut revisions = days(5);
    revisions[0].tags.clear();
    let empty = plan(&revisions, &Schedule::default(), at(999 * DAY), true);
    assert!(gone(&empty).is_empty() && empty.held_back[0].contains("schedule is empty"));
    for revision in &mut revisions {
        revision.trust = Trust::Distrusted;
    }
    let distrusted = plan(&revisions, &schedule(&[("hourly", "1h", 1)]), at(999 * DAY), true);
    assert!(gone(&distrusted).is_empty() && distrusted.held_back[0].contains("trusted"));
    assert!(distrusted.decisions.iter().all(|decision| decision.lost_tags.is_empty()));
    assert!(plan(&[], &daily(1), at(0), false).decisions.is_empty());
}

#[test]
fn one_run_changes_two_or_a_fifth_oldest_first() {
    for (count, bound) in [(3, 2), (5, 2), (10, 2), (11, 3), (100, 20)] {
        let unforced = plan(&days(count), &daily(1), at(1000 * DAY), false);
        let expected: Vec<usize> = (0..bound.min(count - 1)).collect();
        assert_eq!(gone(&unforced), expected, "{count} revisions");
        assert_eq!(unforced.held_back.is_empty(), count - 1 <= bound);
        assert_eq!(gone(&plan(&days(count), &daily(1), at(1000 * DAY), true)).len(), count - 1);
    }
}

#[test]
fn a_misspelt_schedule_is_undone_by_correcting_it() {
    let mut revisions = days(20);
    for revision in revisions.iter_mut().step_by(4) {
        revision.tags = tags("daily,weekly");
    }
    let misspelt = schedule(&[("daliy", "1d", 20), ("weekly", "1w", 4)]);
    let first = plan(&revisions, &misspelt, at(0), false);
    assert_eq!(gone(&first), [1, 2, 3], "revision 0 loses a tag, and four changes are all");
    assert_eq!(first.decisions[0].lost_tags, tags("daily"));
    let left = applied(&first);
    assert_eq!(left.len(), 17);
    assert!(left[1..].iter().all(|revision| revision.tags.contains(&Tag::parse("daily").unwrap())));
    assert!(
        first.held_back[0].starts_with("12 more revisions would go and 4 more lose a tag"),
        "{:?}",
        first.held_back
    );
}

#[test]
fn a_second_run_removes_only_what_was_put_off() {
    let mut revisions = days(30);
    let mut runs = 0;
    loop {
        let plan = plan(&revisions, &daily(7), at(400 * DAY), false);
        revisions = applied(&plan);
        if gone(&plan).is_empty() {
            assert!(plan.held_back.is_empty());
            break;
        }
        runs += 1;
    }
    assert_eq!((revisions.len(), runs), (7, 6), "6, 5, 4, 3, 3 and 2 of them");
}

#[test]
fn remote_revisions_lose_tags_and_stay() {
    let mut revisions = days(5);
    revisions[0].server = "backup2".to_owned();
    let plan = plan(&revisions, &daily(3), at(100 * DAY), true);
    assert_eq!(gone(&plan), [1]);
    assert_eq!(plan.decisions[0].lost_tags, tags("daily"));
}

#[test]
fn a_clock_that_jumps_deletes_nothing_extra() {
    let ordinary = applied(&plan(&days(30), &daily(7), at(1), true));
    assert_eq!(ordinary.len(), 7);
    assert!(gone(&plan(&ordinary, &daily(7), at(365 * DAY), true)).is_empty());
    let behind = plan(&ordinary, &daily(7), at(-365 * DAY), true);
    assert!(gone(&behind).is_empty());
}

/// A year of one job, day by day at the same hour: the schedule's tags when they are due, plus what befalls
/// it.
#[test]
fn a_simulated_year_is_the_committed_timeline() {
    let rules = schedule(&[("daily", "1d", 7), ("weekly", "1w", 4), ("monthly", "30d", 3)]);
    let mut revisions: Vec<Revision> = Vec::new();
    let mut born = BTreeMap::new();
    let mut timeline = String::from(
        "# day: revisions, what went today, then the age in days of what is there and its tags (d, w, m, M manual)\n",
    );
    for day in 0..365_i64 {
        let mut due = vec!["daily"];
        due.extend((day % 7 == 0).then_some("weekly"));
        due.extend((day % 30 == 0).then_some("monthly"));
        due.extend((day == 100).then_some("manual:before-upgrade"));
        // The clock is a year ahead for a day.
        let now = if day == 300 { (day + 365) * DAY } else { day * DAY };
        // Two weeks without a backup; the source is away.
        if !(150..164).contains(&day) {
            let made = revision(day as u128, now, &due.join(","));
            born.insert(made.id.clone(), day);
            revisions.push(made);
            revisions.sort_by_key(|revision| revision.timestamp);
        }
        // A disk went bad: the ten newest are in doubt for twenty days.
        match day {
            200 => {
                revisions.iter_mut().rev().take(10).for_each(|revision| revision.trust = Trust::Distrusted)
            }
            220 => revisions.iter_mut().for_each(|revision| revision.trust = Trust::Verified),
            _ => {}
        }
        let plan = plan(&revisions, &rules, at(now + 60), false);
        let went: Vec<String> =
            gone(&plan).iter().map(|&n| (day - born[&plan.decisions[n].revision.id]).to_string()).collect();
        revisions = applied(&plan);
        if day % 7 != 6 && !(199..203).contains(&day) && !(299..302).contains(&day) {
            continue;
        }
        write!(timeline, "{day:3}: {:2} [{}]", revisions.len(), went.join(" ")).unwrap();
        for revision in &revisions {
            let initial = |tag: &Tag| if tag.is_manual() { "M" } else { &tag.as_str()[..1] }.to_owned();
            let initials: String = revision.tags.iter().map(initial).collect();
            let doubt = if revision.trust == Trust::Distrusted { "?" } else { "" };
            write!(timeline, " {}{initials}{doubt}", day - born[&revision.id]).unwrap();
        }
        timeline.push('\n');
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/policy/testdata/year.txt");
    if std::env::var_os("BACKY_UPDATE_TESTDATA").is_some() {
        std::fs::write(path, &timeline).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap();
    for (ours, theirs) in timeline.lines().zip(committed.lines()) {
        assert_eq!(ours, theirs, "set BACKY_UPDATE_TESTDATA=1 to accept");
    }
    assert_eq!(timeline.lines().count(), committed.lines().count());
}

/// Numbers from a seed, the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[test]
fn whatever_the_history_and_the_clock_the_promises_hold() {
    let rules = schedule(&[("daily", "1d", 3), ("weekly", "1w", 2)]);
    for seed in 0..1000 {
        let mut random = Random(seed);
        let mut revisions: Vec<Revision> = (0..random.below(25))
            .map(|n| {
                let list =
                    ["", "daily", "weekly", "daily,weekly", "former", "daily,manual:x", "manual:y,former"];
                let mut made =
                    revision(n.into(), random.below(40) as i64 * DAY, list[random.below(7) as usize]);
                made.trust = [Trust::Trusted, Trust::Verified, Trust::Distrusted][random.below(3) as usize];
                made.stats.duration_secs = (random.below(8) > 0).then_some(1.0);
                if random.below(4) == 0 {
                    suspect(&mut made);
                }
                made.server = if random.below(8) > 0 { String::new() } else { "backup2".to_owned() };
                made
            })
            .collect();
        revisions.sort_by_key(|revision| revision.timestamp);
        let now = at([40 * DAY, -365 * DAY, 405 * DAY, 20 * DAY][random.below(4) as usize]);
        let before = revisions.clone();
        let at_once = plan(&revisions, &rules, now, true);
        let forced = applied(&at_once);
        assert!(
            gone(&plan(&forced, &rules, now, true)).is_empty(),
            "seed {seed}: a second run removes nothing"
        );
        for decision in &at_once.decisions {
            let must_stay = decision.revision.tags.iter().any(Tag::is_manual)
                || !decision.revision.is_clean()
                || !decision.revision.is_local();
            assert!(!(decision.removed && must_stay), "seed {seed}: {decision:?}");
            assert!(!decision.lost_tags.iter().any(Tag::is_manual), "seed {seed}: {decision:?}");
            assert!(!decision.reasons.is_empty(), "seed {seed}: every decision gives a reason");
        }
        loop {
            let plan = plan(&revisions, &rules, now, false);
            assert!(gone(&plan).len() <= revisions.len().div_ceil(5).max(2), "seed {seed}");
            let after = applied(&plan);
            if after == revisions {
                break;
            }
            revisions = after;
        }
        assert_eq!(revisions, forced, "seed {seed}: many bounded runs end where one forced run does");
        let is_good = |revision: &Revision| is_trusted_here(revision) && !revision.is_suspicious();
        if before.iter().any(is_good) {
            assert!(revisions.iter().any(is_good), "seed {seed}: the last good revision stays");
            let good = |list: &[Revision]| -> Vec<Revision> {
                list.iter().filter(|revision| !revision.is_suspicious()).cloned().collect()
            };
            let alone = applied(&plan(&good(&before), &rules, now, true));
            assert_eq!(good(&revisions), alone, "seed {seed}: good ones are kept as if there were no others");
        }
        let trusted = before.iter().any(is_trusted_here);
        assert_eq!(
            trusted,
            revisions.iter().any(is_trusted_here),
            "seed {seed}: the last trusted revision stays"
        );
    }
}

#[test]
fn what_a_peer_lists_makes_no_local_revision_fall() {
    let local = days(9);
    let alone = plan(&local, &daily(3), at(DAY), false);
    // Any number of newer revisions on a peer, also just now and with every tag.
    let mut invented: Vec<Revision> = (0..50).map(|n| revision(100 + n, -(n as i64), "daily")).collect();
    invented.iter_mut().for_each(|note| note.server = "backup2".to_owned());
    let mut all = [local, invented].concat();
    all.sort_by_key(|revision| revision.timestamp);
    let with_notes = plan(&all, &daily(3), at(DAY), false);
    let fate = |plan: &Plan| -> Vec<(String, bool, usize)> {
        let here = plan.decisions.iter().filter(|decision| decision.revision.is_local());
        here.map(|one| (one.revision.id.to_string(), one.removed, one.lost_tags.len())).collect()
    };
    assert_eq!(fate(&with_notes), fate(&alone));
    assert_eq!(alone.decisions.iter().filter(|decision| decision.removed).count(), 2);
    // With force, as many stay as without the peer.
    assert_eq!(fate(&plan(&all, &daily(3), at(DAY), true)), fate(&plan(&days(9), &daily(3), at(DAY), true)));
}
