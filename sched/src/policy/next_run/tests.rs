//! The original's vectors, and tables of single decisions.

use backy_store::{Revision, Zone};

use super::super::spread;
use super::super::testing::{DAY, at, revision, schedule, tags};
use super::*;

const HOUR: i64 = 3600;

fn usual() -> Schedule {
    Schedule::usual()
}

fn of_job(job: &str, schedule: &Schedule, revisions: &[Revision], now: Timestamp) -> Option<NextRun> {
    let spread_secs = spread::spread_secs(job, schedule.longest_secs().unwrap_or(0));
    next_run(schedule, spread_secs, &History::of(revisions, now), now)
}

fn decide(schedule: &Schedule, revisions: &[Revision], now: Timestamp) -> NextRun {
    of_job("test01", schedule, revisions, now).unwrap()
}

#[test]
fn every_ideal_time_of_the_original_is_reproduced() {
    let vectors: serde_json::Value =
        serde_json::from_str(include_str!("../testdata/schedule-vectors.json")).unwrap();
    let times = vectors["next_ideal"].as_array().unwrap();
    assert_eq!(times.len(), 72);
    for vector in times {
        let text = |key: &str| vector[key].as_str().unwrap();
        let time = |key: &str| Timestamp::parse(text(key), &Zone::utc()).unwrap();
        let rules = vectors["schedules"][text("schedule")].as_object().unwrap().iter();
        let rules: Vec<(&str, &str, u32)> = rules
            .map(|(tag, rule)| {
                (tag.as_str(), rule["interval"].as_str().unwrap(), rule["keep"].as_u64().unwrap() as u32)
            })
            .collect();
        let schedule = schedule(&rules);
        let spread_secs = spread::spread_secs(text("job"), schedule.longest_secs().unwrap());
        let (next, next_tags) = ideal(&schedule, spread_secs, time("relative")).unwrap();
        let expected: BTreeSet<Tag> = vector["tags"]
            .as_array()
            .unwrap()
            .iter()
            .map(|tag| Tag::parse(tag.as_str().unwrap()).unwrap())
            .collect();
        assert_eq!((next, next_tags), (time("next"), expected), "{vector}");
    }
}

#[test]
fn an_ideal_time_is_always_later_and_at_most_an_interval_away() {
    for spread_secs in [0, 1, 639_092, i64::MAX] {
        for now in [at(0), at(-60_000 * DAY), Timestamp::from_secs(0).unwrap().plus_secs(i64::MIN)] {
            let (next, _) = ideal(&schedule(&[("hourly", "1h", 1)]), spread_secs, now).unwrap();
            let wait = next.secs_since(now);
            assert!(wait > 0.0 && wait <= 3600.0, "{spread_secs} {now}: {wait}");
        }
        let last = Timestamp::from_secs(0).unwrap().plus_secs(i64::MAX);
        assert!(ideal(&usual(), spread_secs, last).is_some());
    }
    assert_eq!(ideal(&Schedule::default(), 0, at(0)), None);
    assert_eq!(of_job("x", &Schedule::default(), &[revision(1, 0, "daily")], at(0)), None);
}

#[test]
fn a_new_job_waits_for_its_ideal_time_with_all_tags() {
    let next = decide(&usual(), &[], at(0));
    assert!(!next.catches_up && next.at > at(0) && next.at <= at(DAY));
    assert_eq!(next.tags, tags("daily,weekly,monthly"));
}

#[test]
fn missed_tags_run_at_once_unless_the_ideal_time_is_near() {
    let (daily, now) = (schedule(&[("daily", "1d", 7)]), at(0));
    let ideal_at = ideal(&daily, spread::spread_secs("test01", DAY), now).unwrap().0;
    let until = |secs: i64| ideal_at.plus_secs(-secs);
    // A revision of two days before: `daily` is missed.
    let old = |now: Timestamp| vec![revision(1, now.as_secs() - at(0).as_secs() - 2 * DAY, "daily")];
    for (secs, runs_at_once) in [(HOUR, true), (301, true), (300, false), (10, false)] {
        let next = decide(&daily, &old(until(secs)), until(secs));
        assert_eq!(next.catches_up, runs_at_once, "{secs} s before");
        assert_eq!(next.at, if runs_at_once { until(secs) } else { ideal_at });
        assert_eq!(next.tags, tags("daily"));
    }
}

#[test]
fn what_covers_a_tag() {
    let schedule = schedule(&[("daily", "1d", 7), ("weekly", "1w", 4)]);
    // The ideal times of both tags come in a second.
    let spread_secs = (at(1).as_secs() + YEAR_1_TO_1970_SECS) % (7 * DAY);
    let missed =
        |revisions: &[Revision]| missed(&schedule, spread_secs, &History::of(revisions, at(0)), at(0));
    let changed = |secs: i64, list: &str, change: fn(&mut Revision)| {
        let mut made = revision(1, secs, list);
        change(&mut made);
        made
    };
    for (what, made, expected) in [
        ("a young one", revision(1, -HOUR, "daily,weekly"), ""),
        ("the tags it has", revision(1, -HOUR, "weekly"), "daily"),
        ("a second younger than the interval", revision(1, 1 - DAY, "daily,weekly"), ""),
        ("one of just before the last ideal time", revision(1, 2 - DAY - 300, "daily,weekly"), "daily"),
        ("exactly one interval old does not", revision(1, -DAY, "daily,weekly"), "daily"),
        ("one of another server", changed(-HOUR, "daily,weekly", |r| r.server = "backup2".into()), ""),
        (
            "an incomplete one does not",
            changed(-HOUR, "daily,weekly", |r| r.stats.duration_secs = None),
            "daily,weekly",
        ),
        ("a neighbour's clock a little ahead", revision(1, 300, "daily,weekly"), ""),
        ("one of the future does not", revision(1, 301, "daily,weekly"), "daily,weekly"),
    ] {
        assert_eq!(missed(std::slice::from_ref(&made)), tags(expected), "{what}");
    }
}

#[test]
fn an_ideal_time_that_passed_unseen_is_made_up_for() {
    let daily = schedule(&[("daily", "1d", 7)]);
    let ideal_at = ideal(&daily, spread::spread_secs("test01", DAY), at(0)).unwrap().0;
    // The last run came an hour late, the service was stopped for the ten minutes in which the next one was due.
    let late = ideal_at.as_secs() - at(0).as_secs() - DAY + HOUR;
    let now = ideal_at.plus_secs(600);
    let next = decide(&daily, &[revision(1, late, "daily")], now);
    assert_eq!((next.at, next.catches_up), (now, true));
    // One whose clock is a little behind was made for this time.
    let next = decide(&daily, &[revision(1, late + DAY - HOUR - 299, "daily")], now);
    assert_eq!(next.at, ideal_at.plus_secs(DAY));
}

#[test]
fn a_thousand_new_jobs_do_not_begin_together() {
    let mut minutes = std::collections::BTreeMap::new();
    for number in 0..1000 {
        let next = of_job(&format!("vm{number:04}"), &usual(), &[], at(0)).unwrap();
        *minutes.entry(next.at.as_secs() / 60).or_insert(0) += 1;
    }
    assert!(minutes.values().max().unwrap() <= &8, "{:?}", minutes.values().max());
}
