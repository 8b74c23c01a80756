//! A year of many jobs on a virtual clock: how the load spreads, whether any job starves, whether any misses its
//! service level. The scheduler is the one that the service runs. For `scripts/bench`.
//!
//!     cargo run --release -p backy-sched --example year -- [JOBS [WORKERS]]
//!
//! Nine of ten jobs take 30 s to 5 min, one takes half an hour to two hours; one round of a hundred fails, and in
//! every month the storage is away for three hours. Prints a line of JSON.

#![expect(clippy::print_stdout, reason = "it prints its result and times itself")]

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use backy_sched::policy::history::{History, LastRun};
use backy_sched::policy::{Schedule, sla};
use backy_sched::service::scheduler::{Ended, Start};
use backy_sched::service::simulation::{Simulation, World};
use backy_store::{JobName, Tag, Timestamp};

const DAY: i64 = 86_400;
const MONTH: i64 = 30 * DAY;
/// The storage is away in the first three hours of each month but the first.
const OUTAGE_SECS: i64 = 3 * 3600;

/// What is kept of a job: the newest time of each tag, and measures.
#[derive(Default)]
struct Job {
    newest_by_tag: BTreeMap<Tag, Timestamp>,
    last: Option<LastRun>,
    good: usize,
    begun_secs: Option<i64>,
    gap_secs_max: i64,
}

struct Fleet {
    jobs: HashMap<JobName, Job>,
    dice: u64,
    rounds: u64,
    failed: u64,
    starts_by_hour: Vec<u32>,
}

impl Fleet {
    fn below(&mut self, bound: i64) -> i64 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) as i64 % bound
    }
}

/// One job of ten is a slow one.
fn is_slow(job: &JobName) -> bool {
    job.as_str().ends_with('7')
}

impl World for Fleet {
    fn begin(&mut self, start: &Start, real_secs: i64, _wall: Timestamp) -> (i64, Ended) {
        self.rounds += 1;
        self.starts_by_hour[(real_secs / 3600) as usize] += 1;
        let is_away = real_secs >= MONTH && real_secs % MONTH < OUTAGE_SECS;
        if is_away || self.below(100) == 0 {
            self.failed += 1;
            return (5, Ended::Failed);
        }
        let secs = if is_slow(&start.job) { 1800 + self.below(5400) } else { 30 + self.below(270) };
        let job = self.jobs.entry(start.job.clone()).or_default();
        let before = job.begun_secs.replace(real_secs);
        job.gap_secs_max = job.gap_secs_max.max(before.map_or(0, |before| real_secs - before));
        (secs, Ended::Done)
    }

    fn end(&mut self, start: &Start, begun: Timestamp, ended: Ended, wall: Timestamp) {
        if ended != Ended::Done {
            return;
        }
        let job = self.jobs.entry(start.job.clone()).or_default();
        job.good += 1;
        job.newest_by_tag.extend(start.tags.iter().map(|tag| (tag.clone(), begun)));
        let secs = Some(wall.secs_since(begun));
        job.last = Some(LastRun { time: begun, tags: start.tags.clone(), secs });
    }

    fn history(&self, job: &JobName, wall: Timestamp) -> History {
        let Some(job) = self.jobs.get(job) else { return History::empty(wall) };
        History {
            all: job.good,
            revisions: job.good,
            local: job.good,
            newest_good: job.last.as_ref().map(|last| last.time),
            newest_by_tag: job.newest_by_tag.clone(),
            last_secs_here: job.last.as_ref().and_then(|last| last.secs),
            last: job.last.clone(),
            ..History::empty(wall)
        }
    }
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|text| text.parse::<usize>().ok());
    let count = numbers.next().unwrap_or(10_000);
    let workers = numbers.next().unwrap_or(150);
    let begun = Instant::now();
    let hours = (365 * 24) as usize + 1;
    let fleet = Fleet { jobs: HashMap::new(), dice: 1, rounds: 0, failed: 0, starts_by_hour: vec![0; hours] };
    let start = Timestamp::from_secs(1_767_225_600).unwrap_or_else(Timestamp::now);
    let mut simulation = Simulation::new(workers, start, fleet);
    let rules = Schedule::usual();
    for number in 0..count {
        if let Ok(job) = JobName::parse(&format!("vm{number:05}")) {
            simulation.configure(&job, &rules);
        }
    }
    simulation.run_until(365 * DAY);
    let fleet = &simulation.world;
    let allowed_secs = rules.shortest_secs().map_or(f64::MAX, sla::allowed_secs);
    let gaps: Vec<i64> = fleet.jobs.values().map(|job| job.gap_secs_max).collect();
    let late = gaps.iter().filter(|gap| **gap as f64 > allowed_secs).count();
    // Hours of normal days: no outage, not the day after one.
    let mut normal: Vec<u32> = (24..hours - 1)
        .filter(|hour| (*hour as i64 * 3600) % MONTH >= DAY)
        .map(|hour| fleet.starts_by_hour[hour])
        .collect();
    normal.sort_unstable();
    println!(
        "{{\"jobs\": {count}, \"workers\": {workers}, \"rounds\": {}, \"failed\": {}, \"jobs_that_ran\": {}, \
         \"starts_per_hour_min_median_max\": [{}, {}, {}], \"longest_gap_hours\": {:.1}, \"allowed_gap_hours\": {:.1}, \
         \"service_levels_missed\": {late}, \"seconds\": {:.1}}}",
        fleet.rounds,
        fleet.failed,
        fleet.jobs.values().filter(|job| job.good > 0).count(),
        normal.first().copied().unwrap_or(0),
        normal.get(normal.len() / 2).copied().unwrap_or(0),
        normal.last().copied().unwrap_or(0),
        gaps.iter().max().copied().unwrap_or(0) as f64 / 3600.0,
        allowed_secs / 3600.0,
        begun.elapsed().as_secs_f64(),
    );
}
