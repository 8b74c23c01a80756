//! Single decisions, a simulated year as a committed timeline, and seeded faults on a virtual clock.

use std::collections::HashMap;
use std::fmt::Write as _;

use backy_store::{Revision, Zone};

use super::*;
use crate::policy::retention;
use crate::policy::testing::{DAY, at, revision, schedule, tags};
use crate::service::simulation::{Simulation, World};

const HOUR: i64 = 3600;

fn name(text: &str) -> JobName {
    JobName::parse(text).unwrap()
}

/// A scheduler with jobs of one schedule that have had a revision a minute ago, unless they are new.
fn scheduler(workers: usize, jobs: &[&str], rules: &Schedule, revisions: &[Revision]) -> Scheduler {
    let mut scheduler = Scheduler::new(workers, at(0));
    for job in jobs {
        scheduler.configure(&name(job), rules, false);
        scheduler.tell(&name(job), History::of(revisions, at(0)));
    }
    scheduler
}

fn starts(actions: &[Action]) -> Vec<&str> {
    let job = |action: &Action| match action {
        Action::Start(start) => Some(start.job.as_str().to_owned().leak() as &str),
        _ => None,
    };
    actions.iter().filter_map(job).collect()
}

#[test]
fn a_request_starts_at_once_and_keeps_the_count_of_failures() {
    let rules = Schedule::usual();
    let mut scheduler = scheduler(1, &["a"], &rules, &[revision(1, -60, "daily,weekly,monthly")]);
    assert_eq!(scheduler.advance(at(0)), []);
    assert!(scheduler.request(&name("a")) && !scheduler.request(&name("unknown")));
    let actions = scheduler.advance(at(0));
    let [Action::Start(start)] = &actions[..] else { panic!("{actions:?}") };
    assert!(!start.tags.is_empty());
    assert!(scheduler.request(&name("a")), "it runs already");
    assert_eq!(scheduler.advance(at(1)), []);
    for failures in 1..=3 {
        scheduler.ended(&name("a"), Ended::Failed);
        let entry = &scheduler.jobs()[&name("a")];
        assert_eq!(entry.failures(), failures);
        let wait = backoff::delay_secs(failures);
        assert_eq!(entry.next().unwrap().at, at(1 + wait), "{failures}");
        assert!(entry.next().unwrap().tags.is_superset(&start.tags), "the tags of that time");
        scheduler.request(&name("a"));
        assert_eq!(starts(&scheduler.advance(at(1))), ["a"]);
    }
    scheduler.ended(&name("a"), Ended::Done);
    assert_eq!(scheduler.jobs()[&name("a")].failures(), 0);
}

#[test]
fn a_locked_job_is_tried_again_in_a_minute_and_nobody_is_blamed() {
    let mut scheduler = scheduler(1, &["a"], &Schedule::usual(), &[revision(1, -2 * DAY, "daily")]);
    assert_eq!(starts(&scheduler.advance(at(0))), ["a"]);
    scheduler.ended(&name("a"), Ended::Busy);
    assert_eq!((scheduler.jobs()[&name("a")].failures(), scheduler.wake_at()), (0, Some(at(60))));
    assert_eq!(starts(&scheduler.advance(at(60))), ["a"]);
}

#[test]
fn workers_are_given_in_order_and_to_those_asked_for_first() {
    let fast = |number, secs| {
        let mut made = revision(number, secs, "daily");
        made.stats.duration_secs = Some(5.0);
        made
    };
    let mut scheduler = scheduler(2, &["a", "b", "c", "d", "e"], &Schedule::usual(), &[fast(1, -2 * DAY)]);
    scheduler.tell(&name("e"), History::of(&[fast(1, -60)], at(0)));
    assert_eq!(starts(&scheduler.advance(at(0))), ["a", "b"]);
    assert_eq!((scheduler.running(), scheduler.queued()), ([2, 0], [3, 0]));
    assert_eq!(
        scheduler.jobs()[&name("c")].state(),
        &State::Queued(Pool::Fast, tags("daily,monthly,weekly"))
    );
    scheduler.request(&name("e"));
    scheduler.ended(&name("a"), Ended::Failed);
    assert_eq!(starts(&scheduler.advance(at(1))), ["e"]);
    scheduler.set_workers(3);
    assert_eq!(starts(&scheduler.advance(at(1))), ["c"]);
    // A slow one does not wait for the fast ones.
    scheduler.configure(&name("slow"), &Schedule::usual(), false);
    scheduler.tell(&name("slow"), History::empty(at(1)));
    scheduler.request(&name("slow"));
    assert_eq!(starts(&scheduler.advance(at(1))), ["slow"]);
    assert_eq!(scheduler.running(), [3, 1]);
}

#[test]
fn a_job_that_is_removed_gives_its_worker_back_at_its_end() {
    let old = [revision(1, -2 * DAY, "daily")];
    let mut scheduler = scheduler(1, &["a", "b"], &Schedule::usual(), &old);
    assert_eq!(starts(&scheduler.advance(at(0))), ["a"]);
    scheduler.remove(&name("a"));
    assert_eq!(starts(&scheduler.advance(at(1))), Vec::<&str>::new());
    // It comes back while its round still runs: no second one beside it.
    scheduler.configure(&name("a"), &Schedule::usual(), false);
    assert!(matches!(scheduler.jobs()[&name("a")].state(), State::Running(..)));
    scheduler.remove(&name("a"));
    scheduler.ended(&name("a"), Ended::Failed);
    assert_eq!(starts(&scheduler.advance(at(2))), ["b"]);
    scheduler.remove(&name("b"));
    scheduler.ended(&name("b"), Ended::Done);
    assert_eq!((scheduler.advance(at(3)), scheduler.wake_at()), (vec![], None));
}

#[test]
fn a_new_schedule_counts_from_now_on() {
    let daily = schedule(&[("daily", "1d", 7)]);
    let mut scheduler = scheduler(1, &["a"], &daily, &[revision(1, -60, "daily")]);
    let before = scheduler.jobs()[&name("a")].next().unwrap().clone();
    scheduler.configure(&name("a"), &daily, false);
    assert_eq!(scheduler.jobs()[&name("a")].next(), Some(&before));
    scheduler.configure(&name("a"), &schedule(&[("daily", "1d", 7), ("often", "1h", 24)]), false);
    assert_eq!(starts(&scheduler.advance(at(1))), ["a"], "the new tag is missed");
    scheduler.configure(&name("a"), &daily, false);
    assert!(matches!(scheduler.jobs()[&name("a")].state(), State::Running(..)));
}

/// A job that fails was given another schedule: with the tag that it has lost it would have failed for ever.
#[test]
fn a_tag_that_the_schedule_loses_is_not_asked_for_again() {
    let both = schedule(&[("old", "1d", 7), ("new", "1d", 7)]);
    let new = schedule(&[("new", "1d", 7)]);
    let a = name("a");
    let mut scheduler = scheduler(1, &["a"], &both, &[revision(1, -9 * DAY, "old,new")]);
    let tags_of = |actions: &[Action]| match actions {
        [Action::Start(start)] => start.tags.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(tags_of(&scheduler.advance(at(0))), tags("old,new"));
    // It is lost while the round runs,
    scheduler.configure(&a, &new, false);
    scheduler.ended(&a, Ended::Failed);
    assert_eq!(scheduler.jobs()[&a].next().unwrap().tags, tags("new"));
    // while the job waits after a failure,
    scheduler.configure(&a, &both, false);
    assert_eq!(tags_of(&scheduler.advance(at(HOUR))), tags("old,new"));
    scheduler.ended(&a, Ended::Failed);
    scheduler.configure(&a, &new, false);
    assert_eq!(scheduler.jobs()[&a].next().unwrap().tags, tags("new"));
    // and while it waits for a worker.
    scheduler.configure(&a, &both, false);
    scheduler.set_workers(0);
    assert_eq!(scheduler.advance(at(2 * HOUR)), []);
    scheduler.configure(&a, &new, false);
    scheduler.set_workers(1);
    assert_eq!(tags_of(&scheduler.advance(at(2 * HOUR))), tags("new"));
}

/// While `expire` fails, every retry would make another backup.
#[test]
fn a_round_that_failed_after_its_backup_is_repeated_without_it() {
    let rules = Schedule::usual();
    let a = name("a");
    let mut scheduler = scheduler(1, &["a"], &rules, &[revision(1, -9 * DAY, "daily")]);
    assert_eq!(starts(&scheduler.advance(at(0))), ["a"]);
    scheduler.tell(&a, History::of(&[revision(2, 1, "daily,weekly,monthly")], at(5)));
    scheduler.ended(&a, Ended::Failed);
    let actions = scheduler.advance(at(HOUR));
    let [Action::Start(start)] = &actions[..] else { panic!("{actions:?}") };
    assert!(start.tags.is_empty(), "{start:?}");
    scheduler.ended(&a, Ended::Failed);
    // Who asks for a run wants a backup.
    scheduler.request(&a);
    let actions = scheduler.advance(at(HOUR));
    let [Action::Start(start)] = &actions[..] else { panic!("{actions:?}") };
    assert!(!start.tags.is_empty());
    scheduler.ended(&a, Ended::Done);
    assert!(matches!(scheduler.jobs()[&a].state(), State::Waiting(_)));
}

#[test]
fn neighbours_are_asked_before_a_run_but_not_before_one_that_was_asked_for() {
    let mut scheduler = Scheduler::new(1, at(0));
    let a = name("a");
    scheduler.configure(&a, &Schedule::usual(), true);
    scheduler.tell(&a, History::of(&[revision(1, -2 * DAY, "daily")], at(0)));
    assert!(matches!(&scheduler.advance(at(0))[..], [Action::Ask(..)]));
    assert_eq!(scheduler.advance(at(5)), []);
    scheduler.answered(&a, Neighbours::Wait { peer: "backup2".to_owned(), secs: 300 });
    assert!(matches!(scheduler.jobs()[&a].state(), State::Following(_, peer) if peer == "backup2"));
    assert_eq!(scheduler.wake_at(), Some(at(305)));
    let asked = scheduler.advance(at(305));
    assert!(
        matches!(&asked[..], [Action::Ask(_, next)] if next.at == at(0)),
        "the time does not move: {asked:?}"
    );
    scheduler.request(&a);
    assert_eq!(starts(&scheduler.advance(at(305))), ["a"]);
    scheduler.answered(&a, Neighbours::OursToDo);
    assert_eq!(scheduler.advance(at(306)), [], "an answer that comes late");
    scheduler.tell(&a, History::of(&[revision(2, 305, "daily,weekly,monthly")], at(400)));
    scheduler.ended(&a, Ended::Done);
    let next = scheduler.jobs()[&a].next().unwrap().at;
    assert!(matches!(&scheduler.advance(next)[..], [Action::Ask(..)]));
    scheduler.tell(
        &a,
        History::of(&[revision(3, next.as_secs() - at(0).as_secs(), "daily,weekly,monthly")], next),
    );
    scheduler.answered(&a, Neighbours::Done);
    assert!(matches!(scheduler.jobs()[&a].state(), State::Waiting(_)));
}

#[test]
fn a_neighbour_that_did_something_else_is_not_asked_again_and_again() {
    let mut scheduler = Scheduler::new(1, at(0));
    let a = name("a");
    scheduler.configure(&a, &Schedule::usual(), true);
    scheduler.tell(&a, History::of(&[revision(1, -2 * DAY, "daily")], at(0)));
    assert!(matches!(&scheduler.advance(at(0))[..], [Action::Ask(..)]));
    scheduler.tell(&a, History::of(&[revision(1, -2 * DAY, "daily"), revision(2, 0, "hourly")], at(1)));
    scheduler.answered(&a, Neighbours::Done);
    assert_eq!(scheduler.advance(at(1)), []);
    let State::Waiting(next) = scheduler.jobs()[&a].state().clone() else { panic!() };
    assert!(next.at > at(1));
    assert!(matches!(&scheduler.advance(next.at)[..], [Action::Ask(_, asked)] if *asked == next));
    assert_eq!(scheduler.jobs()[&a].follows(), None);
}

#[test]
fn after_a_jump_histories_are_taken_again_before_anything_is_decided() {
    let mut scheduler = scheduler(1, &["a"], &Schedule::usual(), &[revision(1, -60, "daily,weekly,monthly")]);
    let year = 365 * DAY;
    assert_eq!(scheduler.advance(at(-year)), [Action::Look(name("a"))]);
    assert_eq!(scheduler.jobs()[&name("a")].state(), &State::Unknown);
    assert_eq!(scheduler.advance(at(-year)), []);
    let history = History::of(&[revision(1, -60, "daily,weekly,monthly")], at(-year));
    scheduler.tell(&name("a"), history);
    assert_eq!(starts(&scheduler.advance(at(-year))), ["a"], "what is of the future covers nothing");
    // A correction by a second is no jump.
    scheduler.ended(&name("a"), Ended::Busy);
    let due = scheduler.wake_at();
    scheduler.advance(at(-year - 1));
    assert_eq!(scheduler.wake_at(), due);
}

/// Jobs with real revisions and real expiry. What goes wrong is set from outside.
struct Jobs {
    rules: Schedule,
    revisions: HashMap<JobName, Vec<Revision>>,
    ran: Vec<Ran>,
    secs: i64,
    is_away: bool,
    fails: Box<dyn FnMut() -> Option<Ended>>,
    answers: Box<dyn FnMut() -> Neighbours>,
    number: u128,
}

/// One round of a simulation.
struct Ran {
    job: JobName,
    real_secs: i64,
    wall: Timestamp,
    tags: BTreeSet<Tag>,
    failed: bool,
}

impl Jobs {
    fn new(rules: Schedule) -> Self {
        let fails = Box::new(|| None);
        let answers = Box::new(|| Neighbours::OursToDo);
        Self {
            answers,
            rules,
            revisions: HashMap::new(),
            ran: vec![],
            secs: 60,
            is_away: false,
            fails,
            number: 0,
        }
    }
}

impl World for Jobs {
    fn begin(&mut self, start: &Start, real_secs: i64, wall: Timestamp) -> (i64, Ended) {
        let ended = (self.fails)().unwrap_or(if self.is_away { Ended::Failed } else { Ended::Done });
        let (job, tags) = (start.job.clone(), start.tags.clone());
        self.ran.push(Ran { job, real_secs, wall, tags, failed: ended != Ended::Done });
        (self.secs, ended)
    }

    fn end(&mut self, start: &Start, begun: Timestamp, ended: Ended, wall: Timestamp) {
        if ended != Ended::Done {
            return;
        }
        self.number += 1;
        let revisions = self.revisions.entry(start.job.clone()).or_default();
        let mut made = revision(self.number, begun.as_secs() - at(0).as_secs(), "");
        made.tags = start.tags.clone();
        revisions.push(made);
        revisions.sort_by_key(|revision| revision.timestamp);
        let plan = retention::plan(revisions, &self.rules, wall, false);
        *revisions = plan
            .decisions
            .into_iter()
            .filter(|decision| !decision.removed)
            .map(|decision| {
                let mut revision = decision.revision;
                revision.tags.retain(|tag| !decision.lost_tags.contains(tag));
                revision
            })
            .collect();
    }

    fn ask(&mut self, _job: &JobName) -> Neighbours {
        (self.answers)()
    }

    fn history(&self, job: &JobName, wall: Timestamp) -> History {
        History::of(self.revisions.get(job).into_iter().flatten(), wall)
    }
}

fn one_job() -> Simulation<Jobs> {
    let mut simulation = Simulation::new(1, at(0), Jobs::new(Schedule::usual()));
    simulation.configure(&name("test01"), &Schedule::usual());
    simulation
}

#[test]
fn clocks_that_jump_bring_one_extra_run_each_and_no_storm() {
    for jump in [365 * DAY, -365 * DAY, HOUR, -HOUR, 40 * DAY, -40 * DAY, 600, -600] {
        let mut job = one_job();
        job.run_until(60 * DAY);
        assert_eq!(job.world.ran.len(), 60);
        job.set_skew(jump);
        job.run_until(80 * DAY);
        let on_the_wrong_clock = job.world.ran.len() - 60;
        assert!((19..=22).contains(&on_the_wrong_clock), "{jump}: {on_the_wrong_clock}");
        job.set_skew(0);
        job.run_until(100 * DAY);
        let after = job.world.ran.len() - 60 - on_the_wrong_clock;
        assert!((19..=22).contains(&after), "{jump}: {after}");
        let longest = longest_gap_secs(&job.world.ran, &name("test01"));
        assert!(longest <= DAY * 3 / 2, "{jump}: {longest}");
    }
}

/// The longest real time between two good rounds of a job.
fn longest_gap_secs(ran: &[Ran], job: &JobName) -> i64 {
    let good: Vec<i64> =
        ran.iter().filter(|ran| ran.job == *job && !ran.failed).map(|ran| ran.real_secs).collect();
    good.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(i64::MAX)
}

/// A year of one job with the usual schedule: what was run when, and what befell it.
#[test]
fn a_simulated_year_is_the_committed_timeline() {
    let events: [(&str, i64, i64, i64, bool); 8] = [
        ("all is well", 0, 0, 0, false),
        ("the service was stopped for ten days", 110, 0, 10, false),
        ("the source is away", 150, 0, 0, true),
        ("the source is back", 151, 0, 0, false),
        ("the clock is a year ahead", 200, 365, 0, false),
        ("the clock is right again", 202, 0, 0, false),
        ("the clock is a year behind", 250, -365, 0, false),
        ("the clock is right again", 252, 0, 0, false),
    ];
    let (job, rules) = (name("test01"), Schedule::usual());
    let mut year = one_job();
    let mut timeline = String::from(
        "# time by the job's clock, how it went, tags; good rounds for `daily` alone are only counted\n",
    );
    for (place, &(what, day, skew_days, down_days, is_away)) in events.iter().enumerate() {
        let end = events.get(place + 1).map_or(365, |next| next.1 - next.3);
        writeln!(timeline, "day {day}: {what}").unwrap();
        year.set_skew(skew_days * DAY);
        year.world.is_away = is_away;
        if down_days > 0 {
            year.restart(1, down_days * DAY, [(&job, &rules)]);
        }
        year.run_until(end * DAY);
        let mut plain = 0;
        for ran in std::mem::take(&mut year.world.ran) {
            if !ran.failed && ran.tags == tags("daily") {
                plain += 1;
                continue;
            }
            let how = if ran.failed { "failed" } else { "good" };
            let list: Vec<&str> = ran.tags.iter().map(Tag::as_str).collect();
            writeln!(timeline, "  {} {how:6} {}", ran.wall.format(&Zone::utc()), list.join(",")).unwrap();
        }
        let left = year.world.revisions.get(&job).map_or(0, Vec::len);
        writeln!(timeline, "  and {plain} times daily; {left} revisions").unwrap();
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/service/scheduler/testdata/year.txt");
    if std::env::var_os("BACKY_UPDATE_TESTDATA").is_some() {
        std::fs::write(path, &timeline).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    for (ours, theirs) in timeline.lines().zip(committed.lines()) {
        assert_eq!(ours, theirs, "set BACKY_UPDATE_TESTDATA=1 to accept");
    }
    assert_eq!(timeline.lines().count(), committed.lines().count(), "set BACKY_UPDATE_TESTDATA=1 to accept");
}

/// A small random generator, so that a seed is a story that can be told again.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Whatever is thrown at it for two months (rounds that fail or find the job locked, restarts, jumps of the clock,
/// requests, jobs that go and come back), the scheduler stays consistent, and a month after it ended every job has
/// run in time again.
#[test]
fn whatever_befalls_it_every_job_runs_in_time_again_afterwards() {
    for seed in 0..12 {
        let mut dice = Dice(seed);
        let jobs: Vec<JobName> = (0..20).map(|number| name(&format!("vm{number:02}"))).collect();
        let rules = schedule(&[("often", "6h", 4), ("daily", "1d", 7)]);
        let mut world = Jobs::new(rules.clone());
        let mut fate = dice.clone();
        world.fails = Box::new(move || match fate.below(10) {
            0..=2 => Some(Ended::Failed),
            3 => Some(Ended::Busy),
            _ => None,
        });
        let mut gossip = Dice(seed + 1000);
        world.answers = Box::new(move || match gossip.below(6) {
            0 => Neighbours::Done,
            1..=3 => Neighbours::Wait { peer: "backup2".to_owned(), secs: 300 },
            _ => Neighbours::OursToDo,
        });
        world.secs = 900;
        let mut simulation = Simulation::new(2, at(0), world);
        simulation.has_neighbours = seed % 2 == 0;
        jobs.iter().for_each(|job| simulation.configure(job, &rules));
        while simulation.real_secs() < 60 * DAY {
            let until = simulation.real_secs() + dice.below(8 * HOUR as u64) as i64;
            simulation.run_until(until);
            let job = &jobs[dice.below(jobs.len() as u64) as usize];
            match dice.below(7) {
                6 => {
                    let other = schedule(&[("often", "6h", 4), ("weekly", "1w", 7)]);
                    simulation.configure(job, &other);
                }
                0 => simulation.restart(
                    2,
                    dice.below(2 * DAY as u64) as i64,
                    jobs.iter().map(|job| (job, &rules)),
                ),
                1 => simulation.set_skew(dice.below(800) as i64 * DAY - 400 * DAY),
                2 => simulation.set_skew(dice.below(7200) as i64 - HOUR),
                3 => assert!(simulation.request(job)),
                4 => simulation.remove(job),
                _ => jobs.iter().for_each(|job| simulation.configure(job, &rules)),
            }
            jobs.iter().for_each(|job| simulation.configure(job, &rules));
            must_be_consistent(simulation.scheduler(), seed);
        }
        simulation.set_skew(0);
        simulation.world.fails = Box::new(|| None);
        simulation.world.answers = Box::new(|| Neighbours::OursToDo);
        let calm = simulation.real_secs();
        simulation.run_until(calm + 30 * DAY);
        for job in &jobs {
            let ran: Vec<&Ran> =
                simulation.world.ran.iter().filter(|ran| ran.job == *job && ran.real_secs >= calm).collect();
            // Six hours of back-off may still be ahead of it.
            assert!(
                ran[0].real_secs - calm <= 7 * HOUR,
                "seed {seed}, {job}: first after {}",
                ran[0].real_secs - calm
            );
            let gaps = ran.windows(2).map(|pair| pair[1].real_secs - pair[0].real_secs);
            assert!(gaps.max().unwrap() <= 9 * HOUR, "seed {seed}, {job}");
            assert!(ran.len() <= 30 * 4 + 4, "seed {seed}, {job}: {} rounds", ran.len());
        }
    }
}

fn must_be_consistent(scheduler: &Scheduler, seed: u64) {
    for (job, entry) in scheduler.jobs() {
        let is_due = scheduler.due.iter().filter(|(_, due)| due == job).count();
        let is_queued = scheduler.queues.iter().flatten().filter(|queued| *queued == job).count();
        let expected = match entry.state() {
            State::Waiting(_) | State::BackingOff(_) | State::Following(..) => (1, 0),
            State::Queued(..) => (0, 1),
            _ => (0, 0),
        };
        assert_eq!((is_due, is_queued), expected, "seed {seed}: {job} {:?}", entry.state());
    }
    assert!(scheduler.running().iter().all(|running| *running <= 2), "seed {seed}");
}
