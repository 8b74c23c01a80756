//! Runs the [`Scheduler`] on a clock of its own: what takes a service a year takes this seconds. For tests, and for the
//! benchmark that shows how ten thousand jobs spread over the day.
//!
//! There are two clocks. *Real* seconds only go forward and count from the beginning of the simulation. The *wall*
//! clock, which is all that the scheduler sees, is the real one moved by a skew that may jump. As the service does,
//! the simulation looks at the wall clock once a minute at least.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use backy_store::{JobName, Timestamp};

use super::scheduler::{Action, Ended, Neighbours, Scheduler, Start};
use crate::policy::Schedule;
use crate::policy::history::History;

/// The longest time between two looks at the wall clock.
const LOOK_EVERY_SECS: i64 = 60;

/// What happens in the world around the scheduler.
pub trait World {
    /// A round begins: returns how many seconds it takes and how it will end.
    fn begin(&mut self, start: &Start, real_secs: i64, wall: Timestamp) -> (i64, Ended);

    /// A round that began at `begun` by the wall clock has ended.
    fn end(&mut self, start: &Start, begun: Timestamp, ended: Ended, wall: Timestamp);

    /// The neighbours are asked about a job. There are none unless a world says so.
    fn ask(&mut self, _job: &JobName) -> Neighbours {
        Neighbours::OursToDo
    }

    /// The revisions of a job in short.
    fn history(&self, job: &JobName, wall: Timestamp) -> History;
}

/// A scheduler, a world and a clock.
#[derive(Debug)]
pub struct Simulation<W> {
    /// The world.
    pub world: W,
    /// Whether jobs that are configured from now on have neighbours.
    pub has_neighbours: bool,
    scheduler: Scheduler,
    began: Timestamp,
    real_secs: i64,
    skew_secs: i64,
    rounds: BinaryHeap<Reverse<Round>>,
    number: u64,
}

/// A round under way. Ordered by its end.
#[derive(Debug)]
struct Round {
    ends_secs: i64,
    number: u64,
    start: Start,
    begun: Timestamp,
    ended: Ended,
}

impl Round {
    fn key(&self) -> (i64, u64) {
        (self.ends_secs, self.number)
    }
}

impl PartialEq for Round {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Round {}

impl PartialOrd for Round {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Round {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl<W: World> Simulation<W> {
    /// Begins at the wall time `began` with so many workers in each pool.
    pub fn new(workers: usize, began: Timestamp, world: W) -> Self {
        let scheduler = Scheduler::new(workers, began);
        Self {
            world,
            has_neighbours: false,
            scheduler,
            began,
            real_secs: 0,
            skew_secs: 0,
            rounds: BinaryHeap::new(),
            number: 0,
        }
    }

    /// The scheduler as it is now.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Real seconds since the beginning.
    pub fn real_secs(&self) -> i64 {
        self.real_secs
    }

    /// What the wall clock shows.
    pub fn wall(&self) -> Timestamp {
        self.began.plus_secs(self.real_secs.saturating_add(self.skew_secs))
    }

    /// Adds a job, or gives it another schedule.
    pub fn configure(&mut self, job: &JobName, schedule: &Schedule) {
        self.scheduler.configure(job, schedule, self.has_neighbours);
        let history = self.world.history(job, self.wall());
        self.scheduler.tell(job, history);
    }

    /// Takes a job away.
    pub fn remove(&mut self, job: &JobName) {
        self.scheduler.remove(job);
    }

    /// Asks for a run of a job.
    pub fn request(&mut self, job: &JobName) -> bool {
        self.scheduler.request(job)
    }

    /// Moves the wall clock, so that it shows `skew_secs` more than the real one.
    pub fn set_skew(&mut self, skew_secs: i64) {
        self.skew_secs = skew_secs;
    }

    /// Stops the service for so many seconds and starts a new one with these jobs. Rounds under way die.
    pub fn restart<'j>(
        &mut self,
        workers: usize,
        down_secs: i64,
        jobs: impl IntoIterator<Item = (&'j JobName, &'j Schedule)>,
    ) {
        self.rounds.clear();
        self.real_secs += down_secs;
        self.scheduler = Scheduler::new(workers, self.wall());
        jobs.into_iter().for_each(|(job, schedule)| self.configure(job, schedule));
    }

    /// Lets real time pass until `until_secs`.
    pub fn run_until(&mut self, until_secs: i64) {
        while self.real_secs < until_secs {
            self.act();
            let wake_secs = self.scheduler.wake_at().map_or(i64::MAX, |at| {
                self.real_secs.saturating_add((at.secs_since(self.wall()).ceil().max(0.0)) as i64)
            });
            let end_secs = self.rounds.peek().map_or(i64::MAX, |Reverse(round)| round.ends_secs);
            let next_secs = wake_secs.min(end_secs).min(self.real_secs + LOOK_EVERY_SECS);
            self.real_secs = next_secs.max(self.real_secs + 1).min(until_secs);
            self.end_rounds();
        }
        self.act();
    }

    /// Ends the rounds whose time has come.
    fn end_rounds(&mut self) {
        let wall = self.wall();
        while self.rounds.peek().is_some_and(|Reverse(round)| round.ends_secs <= self.real_secs) {
            let Some(Reverse(round)) = self.rounds.pop() else { break };
            let job = &round.start.job;
            self.world.end(&round.start, round.begun, round.ended, wall);
            self.scheduler.tell(job, self.world.history(job, wall));
            self.scheduler.ended(job, round.ended);
        }
    }

    /// Does what the scheduler wants, until it wants nothing more.
    fn act(&mut self) {
        loop {
            let wall = self.wall();
            let actions = self.scheduler.advance(wall);
            if actions.is_empty() {
                return;
            }
            for action in actions {
                match action {
                    Action::Start(start) => self.begin(start, wall),
                    Action::Look(job) => self.scheduler.tell(&job, self.world.history(&job, wall)),
                    Action::Ask(job, _) => self.scheduler.answered(&job, self.world.ask(&job)),
                }
            }
        }
    }

    fn begin(&mut self, start: Start, begun: Timestamp) {
        let (secs, ended) = self.world.begin(&start, self.real_secs, begun);
        self.number += 1;
        let ends_secs = self.real_secs + secs.max(1);
        self.rounds.push(Reverse(Round { ends_secs, number: self.number, start, begun, ended }));
    }
}
