//! The original's vectors, tables of single decisions, and a simulated year.

use std::fmt::Write as _;

use backy_store::{Revision, Zone};

use super::super::testing::{DAY, at, revision, schedule, tags};
use super::super::{backoff, retention, spread};
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
    let missed = |revisions: &[Revision]| missed(&schedule, &History::of(revisions, at(0)), at(0));
    let changed = |secs: i64, list: &str, change: fn(&mut Revision)| {
        let mut made = revision(1, secs, list);
        change(&mut made);
        made
    };
    for (what, made, expected) in [
        ("a young one", revision(1, -HOUR, "daily,weekly"), ""),
        ("the tags it has", revision(1, -HOUR, "weekly"), "daily"),
        ("a second younger than the interval", revision(1, 1 - DAY, "daily,weekly"), ""),
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
fn who_waits_runs_in_time_and_notices_a_moved_clock() {
    let next = NextRun { at: at(HOUR), tags: tags("daily"), catches_up: false, decided_at: at(0) };
    for (now, expected) in [
        (0, Step::Sleep(60)),
        (HOUR - 30, Step::Sleep(30)),
        (HOUR - 1, Step::Sleep(1)),
        (HOUR, Step::Run),
        (HOUR + 300, Step::Run),
        (HOUR + 301, Step::Decide),
        (365 * DAY, Step::Decide),
        (-1, Step::Decide),
        (-365 * DAY, Step::Decide),
    ] {
        assert_eq!(Step::now(&next, at(now)), expected, "{now}");
    }
}

/// A job's loop as the service runs it: it sleeps, runs, waits after failures, expires.
struct Simulation {
    schedule: Schedule,
    revisions: Vec<Revision>,
    runs: u64,
    number: u128,
    failures: u32,
}

/// One run of a simulation.
struct Ran {
    at: Timestamp,
    tags: BTreeSet<Tag>,
    catches_up: bool,
    failed: bool,
}

impl Simulation {
    fn new(schedule: Schedule) -> Self {
        Self { schedule, revisions: Vec::new(), runs: 0, number: 0, failures: 0 }
    }

    /// Passes `secs` seconds on a clock that shows `skew_secs` too much, from `from` on.
    fn pass(&mut self, from: i64, secs: i64, skew_secs: i64, source_is_away: bool) -> Vec<Ran> {
        let mut ran = Vec::new();
        let mut clock = from;
        let mut next: Option<NextRun> = None;
        while clock < from + secs {
            let now = at(clock + skew_secs);
            let waiting = next.get_or_insert_with(|| decide(&self.schedule, &self.revisions, now));
            match Step::now(waiting, now) {
                Step::Decide => next = None,
                Step::Sleep(secs) => clock += secs,
                Step::Run => {
                    let run = next.take().unwrap();
                    self.runs += 1;
                    ran.push(Ran {
                        at: now,
                        tags: run.tags.clone(),
                        catches_up: run.catches_up,
                        failed: source_is_away,
                    });
                    if source_is_away {
                        self.failures += 1;
                        clock += backoff::delay_secs(self.failures);
                        continue;
                    }
                    self.failures = 0;
                    self.number += 1;
                    let mut made = revision(self.number, clock + skew_secs, "");
                    made.tags = run.tags;
                    self.revisions.push(made);
                    self.revisions.sort_by_key(|revision| revision.timestamp);
                    self.expire(now);
                    clock += 60;
                }
            }
        }
        ran
    }

    fn expire(&mut self, now: Timestamp) {
        let plan = retention::plan(&self.revisions, &self.schedule, now, false);
        let kept = plan.decisions.into_iter().filter(|decision| !decision.removed).map(|decision| {
            let mut revision = decision.revision;
            revision.tags.retain(|tag| !decision.lost_tags.contains(tag));
            revision
        });
        self.revisions = kept.collect();
    }
}

#[test]
fn clocks_that_jump_bring_one_extra_run_each_and_no_storm() {
    for jump in [365 * DAY, -365 * DAY, HOUR, -HOUR, 40 * DAY, -40 * DAY, 600, -600] {
        let mut job = Simulation::new(usual());
        job.pass(0, 60 * DAY, 0, false);
        assert_eq!(job.runs, 60);
        job.pass(60 * DAY, 20 * DAY, jump, false);
        let on_the_wrong_clock = job.runs - 60;
        assert!((19..=22).contains(&on_the_wrong_clock), "{jump}: {on_the_wrong_clock}");
        job.pass(80 * DAY, 20 * DAY, 0, false);
        let after = job.runs - 60 - on_the_wrong_clock;
        assert!((19..=22).contains(&after), "{jump}: {after}");
    }
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

/// A year of one job with the usual schedule: what was run when, and what befell it.
#[test]
fn a_simulated_year_is_the_committed_timeline() {
    let events: [(&str, i64, i64, bool, bool); 9] = [
        ("all is well", 0, 0, false, false),
        ("the service is stopped", 100, 0, true, false),
        ("it runs again", 110, 0, false, false),
        ("the source is away", 150, 0, false, true),
        ("the source is back", 151, 0, false, false),
        ("the clock is a year ahead", 200, 365, false, false),
        ("the clock is right again", 202, 0, false, false),
        ("the clock is a year behind", 250, -365, false, false),
        ("the clock is right again", 252, 0, false, false),
    ];
    let mut job = Simulation::new(usual());
    let mut timeline = String::from(
        "# time by the job's clock, how it came to run, tags; plain runs for `daily` are only counted\n",
    );
    for (place, &(what, day, skew_days, is_stopped, source_is_away)) in events.iter().enumerate() {
        let end = events.get(place + 1).map_or(365, |next| next.1);
        writeln!(timeline, "day {day}: {what}").unwrap();
        let ran = match is_stopped {
            true => Vec::new(),
            false => job.pass(day * DAY, (end - day) * DAY, skew_days * DAY, source_is_away),
        };
        let mut plain = 0;
        for run in &ran {
            if !run.catches_up && !run.failed && run.tags == tags("daily") {
                plain += 1;
                continue;
            }
            let how = match (run.failed, run.catches_up) {
                (true, _) => "failed",
                (_, true) => "at once",
                _ => "ideal",
            };
            let list: Vec<&str> = run.tags.iter().map(Tag::as_str).collect();
            writeln!(timeline, "  {} {how:7} {}", run.at.format(&Zone::utc()), list.join(",")).unwrap();
        }
        writeln!(timeline, "  and {plain} times daily; {} revisions", job.revisions.len()).unwrap();
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/policy/testdata/schedule-year.txt");
    if std::env::var_os("BACKY_UPDATE_TESTDATA").is_some() {
        std::fs::write(path, &timeline).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    for (ours, theirs) in timeline.lines().zip(committed.lines()) {
        assert_eq!(ours, theirs, "set BACKY_UPDATE_TESTDATA=1 to accept");
    }
    assert_eq!(timeline.lines().count(), committed.lines().count(), "set BACKY_UPDATE_TESTDATA=1 to accept");
}
