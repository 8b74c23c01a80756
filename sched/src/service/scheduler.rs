//! Which job runs when: the state of all jobs and the rules by which it changes. Pure: it knows no processes, no
//! files and no clock. The service tells it the time and what happened, and does what it is told; a simulation does
//! the same with a clock of its own, so what is simulated is what runs.
//!
//! A job waits for its next run ([`next_run`]), queues for a worker of its [`Pool`], runs, and waits again; after a
//! failure it waits as [`backoff`] says. Queues are served in order, runs that were asked for first.
//!
//! What the scheduler knows of a job's revisions is its [`History`]. When the time makes that stale, because the
//! clock went back or a revision of the future is not one any more, it asks for a new one and decides nothing for
//! the job before it has it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use backy_store::{JobName, Tag, Timestamp};

use crate::policy::history::History;
use crate::policy::next_run::{self, NextRun};
use crate::policy::pool::Pool;
use crate::policy::{Schedule, backoff, spread};

/// How long a job waits that another run has locked.
const BUSY_SECS: i64 = 60;
/// Clocks are corrected by less than this all the time; time stands still until they have caught up.
const STEP_BACK_SECS: i64 = 5;

/// What the service has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Start a round of a job.
    Start(Start),
    /// Ask the neighbours whether one of them does the run of this job that was due at `NextRun::at`. Before the answer
    /// `Done` is told, their revisions are to be pulled and the job's history told.
    Ask(JobName, NextRun),
    /// Look at the job's revisions again and tell.
    Look(JobName),
}

/// A round that has got its worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    /// The job.
    pub job: JobName,
    /// The tags of the revision to be made. None: the backup of a round that failed was good, only the rest of it is
    /// to be done again.
    pub tags: BTreeSet<Tag>,
    /// Whose worker it is.
    pub pool: Pool,
}

/// How a round ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Well.
    Done,
    /// Not.
    Failed,
    /// Somebody else has locked the job: nothing was done, and nobody is to blame.
    Busy,
}

impl Ended {
    /// Returns the word for it in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Busy => "busy",
        }
    }
}

/// What the neighbours say to a job that is due.
#[derive(Clone, Debug, PartialEq)]
pub enum Neighbours {
    /// None of them backs the job up.
    OursToDo,
    /// This one will, so look again later.
    Wait {
        /// Its name.
        peer: String,
        /// In so many seconds.
        secs: i64,
    },
    /// One of them did.
    Done,
}

impl std::fmt::Display for Neighbours {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OursToDo => out.write_str("ours-to-do"),
            Self::Wait { peer, secs } => write!(out, "wait {secs} s for {peer}"),
            Self::Done => out.write_str("done"),
        }
    }
}

/// What a job does.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Nothing is known of its revisions yet.
    Unknown,
    /// Its schedule is empty: it never runs by itself.
    Idle,
    /// It waits for its next run.
    Waiting(NextRun),
    /// It waits after a failure, or because it was locked.
    BackingOff(NextRun),
    /// The neighbours are being asked.
    Asking(NextRun),
    /// A neighbour will do it; `NextRun::at` is when to ask again.
    Following(NextRun, String),
    /// It waits for a worker.
    Queued(Pool, BTreeSet<Tag>),
    /// It runs, with these tags.
    Running(Pool, BTreeSet<Tag>),
}

/// One job.
#[derive(Clone, Debug)]
pub struct Entry {
    schedule: Schedule,
    spread_secs: i64,
    history: Arc<History>,
    has_neighbours: bool,
    state: State,
    /// When the run was due about which the neighbours are asked: it stays the same while one of them is followed.
    asked_for: Option<Timestamp>,
    /// The neighbour that is followed, also while it is asked again.
    follows: Option<String>,
    /// When its last round began.
    begun: Timestamp,
    failures: u32,
}

impl Entry {
    /// What it does.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Its revisions in short, as they were told last.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The neighbour that is followed, for the questions that go on about the same run.
    pub fn follows(&self) -> Option<&str> {
        match self.state {
            State::Asking(_) | State::Following(..) => self.follows.as_deref(),
            _ => None,
        }
    }

    /// Rounds that failed since one ended well.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// When it runs next and with which tags; `None` when it runs now, or nothing is decided.
    pub fn next(&self) -> Option<&NextRun> {
        match &self.state {
            State::Waiting(next)
            | State::BackingOff(next)
            | State::Asking(next)
            | State::Following(next, _) => Some(next),
            _ => None,
        }
    }

    /// When something is to be done about it.
    fn due(&self) -> Option<Timestamp> {
        match &self.state {
            State::Waiting(next) | State::BackingOff(next) | State::Following(next, _) => Some(next.at),
            _ => None,
        }
    }
}

/// All jobs.
#[derive(Debug)]
pub struct Scheduler {
    jobs: BTreeMap<JobName, Entry>,
    due: BTreeSet<(Timestamp, JobName)>,
    queues: [VecDeque<JobName>; 2],
    /// Every worker that is taken, also by a job that is not configured any more.
    running: BTreeMap<JobName, Pool>,
    workers: usize,
    /// Jobs whose history the time has made stale, since the last actions.
    stale: Vec<JobName>,
    now: Timestamp,
}

impl Scheduler {
    /// No jobs yet, and so many workers in each pool.
    pub fn new(workers: usize, now: Timestamp) -> Self {
        Self {
            jobs: BTreeMap::new(),
            due: BTreeSet::new(),
            queues: [VecDeque::new(), VecDeque::new()],
            running: BTreeMap::new(),
            workers,
            stale: Vec::new(),
            now,
        }
    }

    /// All jobs by name.
    pub fn jobs(&self) -> &BTreeMap<JobName, Entry> {
        &self.jobs
    }

    /// How many jobs run in the fast and the slow pool.
    pub fn running(&self) -> [usize; 2] {
        let count = |pool| self.running.values().filter(|&&used| used == pool).count();
        [count(Pool::Fast), count(Pool::Slow)]
    }

    /// How many jobs wait for a worker of the fast and the slow pool.
    pub fn queued(&self) -> [usize; 2] {
        [self.queues[0].len(), self.queues[1].len()]
    }

    /// Changes the number of workers of each pool. What runs goes on.
    pub fn set_workers(&mut self, workers: usize) {
        self.workers = workers;
    }

    /// Takes a job in, or gives one another schedule. A new one is decided about when its history is told. A round
    /// that runs goes on.
    pub fn configure(&mut self, job: &JobName, schedule: &Schedule, has_neighbours: bool) {
        let spread_secs = spread::spread_secs(job.as_str(), schedule.longest_secs().unwrap_or(0));
        if let Some(entry) = self.jobs.get_mut(job) {
            entry.has_neighbours = has_neighbours;
            if entry.schedule != *schedule {
                entry.schedule = schedule.clone();
                entry.spread_secs = spread_secs;
                // A tag that the schedule has lost would fail every backup that is given it.
                let is_known = |tag: &Tag| schedule.rules.contains_key(tag);
                match &mut entry.state {
                    State::Waiting(_) | State::Following(..) | State::Idle => self.decide(job),
                    State::BackingOff(next) | State::Asking(next) => next.tags.retain(is_known),
                    State::Queued(_, tags) => tags.retain(is_known),
                    State::Unknown | State::Running(..) => {}
                }
            }
            return;
        }
        // Its worker is still taken when it was removed and comes back meanwhile.
        let running = |pool: &Pool| State::Running(*pool, BTreeSet::new());
        let state = self.running.get(job).map_or(State::Unknown, running);
        let history = Arc::new(History::empty(self.now));
        let schedule = schedule.clone();
        let entry = Entry {
            schedule,
            spread_secs,
            history,
            has_neighbours,
            state,
            asked_for: None,
            follows: None,
            begun: self.now,
            failures: 0,
        };
        self.jobs.insert(job.clone(), entry);
    }

    /// Forgets a job that is not configured any more. Its worker stays taken until its round has ended.
    pub fn remove(&mut self, job: &JobName) {
        self.leave(job);
        self.jobs.remove(job);
    }

    /// Tells the job's history, taken at the present time.
    pub fn tell(&mut self, job: &JobName, history: impl Into<Arc<History>>) {
        let history = history.into();
        self.now = self.now.max(history.taken_at);
        let Some(entry) = self.jobs.get_mut(job) else { return };
        let is_news =
            entry.history.newest_by_tag != history.newest_by_tag || entry.history.all != history.all;
        entry.history = history;
        match entry.state {
            State::Unknown => self.decide(job),
            State::Waiting(_) if is_news => self.decide(job),
            _ => {}
        }
    }

    /// Lets a job run as soon as there is a worker; `false` when it is not known. The count of failures stays.
    pub fn request(&mut self, job: &JobName) -> bool {
        let Some(entry) = self.jobs.get(job) else { return false };
        match &entry.state {
            State::Running(..) => {}
            State::Queued(pool, _) => {
                let queue = &mut self.queues[slot(*pool)];
                queue.retain(|queued| queued != job);
                queue.push_front(job.clone());
            }
            _ => {
                let mut tags = entry.next().map(|next| next.tags.clone()).unwrap_or_default();
                if tags.is_empty() {
                    // Nothing is missed: it is the next run that comes early.
                    let next = next_run::ideal(&entry.schedule, entry.spread_secs, self.now);
                    tags = next.map(|(_, tags)| tags).unwrap_or_default();
                }
                self.enqueue(job, tags, true);
            }
        }
        true
    }

    /// Tells how the round of a job ended. Its history is to be told before.
    pub fn ended(&mut self, job: &JobName, ended: Ended) {
        self.running.remove(job);
        let now = self.now;
        let Some(entry) = self.jobs.get_mut(job) else { return };
        let State::Running(_, tags) = &mut entry.state else { return };
        let mut tags = std::mem::take(tags);
        let wait_secs = match ended {
            Ended::Done => {
                entry.failures = 0;
                return self.decide(job);
            }
            Ended::Failed => {
                entry.failures = entry.failures.saturating_add(1);
                backoff::delay_secs(entry.failures)
            }
            Ended::Busy => BUSY_SECS,
        };
        // Neither what the schedule has lost meanwhile, nor what the round did make before it failed.
        let has =
            |tag: &Tag| entry.history.newest_by_tag.get(tag).is_some_and(|newest| *newest >= entry.begun);
        tags.retain(|tag| entry.schedule.rules.contains_key(tag) && !has(tag));
        tags.extend(next_run::missed(&entry.schedule, entry.spread_secs, &entry.history, now));
        let at = now.plus_secs(wait_secs);
        self.enter(job, State::BackingOff(NextRun { at, tags, catches_up: true, decided_at: now }));
    }

    /// Tells what the neighbours say to the [`Action::Ask`] of a job.
    pub fn answered(&mut self, job: &JobName, answer: Neighbours) {
        let Some(Entry { state: State::Asking(next), .. }) = self.jobs.get(job) else { return };
        let next = next.clone();
        match answer {
            Neighbours::OursToDo => self.enqueue(job, next.tags, false),
            Neighbours::Wait { peer, secs } => {
                let (at, decided_at) = (self.now.plus_secs(secs), self.now);
                if let Some(entry) = self.jobs.get_mut(job) {
                    entry.follows = Some(peer.clone());
                }
                self.enter(job, State::Following(NextRun { at, decided_at, ..next }, peer));
            }
            Neighbours::Done => self.wait_for_ideal(job),
        }
    }

    /// Comes to the time `now` and returns what to do. Call it again when something was told, and at the latest when
    /// [`Scheduler::wake_at`] says.
    pub fn advance(&mut self, now: Timestamp) -> Vec<Action> {
        let went_back = now.plus_secs(STEP_BACK_SECS) < self.now;
        self.now = if went_back { now } else { self.now.max(now) };
        let now = self.now;
        let mut actions = Vec::new();
        if went_back {
            // Every time that waits was computed for a later clock.
            let waiting = self.due.iter().map(|(_, job)| job.clone()).collect::<Vec<_>>();
            waiting.iter().for_each(|job| self.moved(job));
        }
        while let Some((at, job)) = self.due.first().cloned()
            && at <= now
        {
            self.come_due(&job, &mut actions);
        }
        actions.extend(std::mem::take(&mut self.stale).into_iter().map(Action::Look));
        self.fill_workers(&mut actions);
        actions
    }

    /// Returns when the next job is due.
    pub fn wake_at(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }

    /// A job whose time has come.
    fn come_due(&mut self, job: &JobName, actions: &mut Vec<Action>) {
        let Some(entry) = self.jobs.get_mut(job) else { return };
        match entry.state.clone() {
            // However late it is: the run is due, whether the machine slept or the clock jumped.
            State::Waiting(next) if entry.has_neighbours => {
                (entry.asked_for, entry.follows) = (Some(next.at), None);
                self.ask(job, next, actions);
            }
            State::Waiting(next) => self.enqueue(job, next.tags, false),
            State::Following(next, _) => {
                let at = entry.asked_for.unwrap_or(next.at);
                self.ask(job, NextRun { at, ..next }, actions);
            }
            State::BackingOff(next) => self.enqueue(job, next.tags, false),
            _ => {}
        }
    }

    fn ask(&mut self, job: &JobName, next: NextRun, actions: &mut Vec<Action>) {
        self.enter(job, State::Asking(next.clone()));
        actions.push(Action::Ask(job.clone(), next));
    }

    /// A waiting job after the clock went back.
    fn moved(&mut self, job: &JobName) {
        let now = self.now;
        let Some(entry) = self.jobs.get(job) else { return };
        match entry.state.clone() {
            State::BackingOff(next) => {
                let at = next.at.min(now.plus_secs(backoff::delay_secs(entry.failures).max(BUSY_SECS)));
                self.enter(job, State::BackingOff(NextRun { at, decided_at: now, ..next }));
            }
            _ => self.decide(job),
        }
    }

    /// Computes the next run of a job that does nothing else.
    fn decide(&mut self, job: &JobName) {
        let now = self.now;
        let Some(entry) = self.jobs.get(job) else { return };
        let state = if !entry.history.is_current(now) {
            self.stale.push(job.clone());
            State::Unknown
        } else {
            next_run::next_run(&entry.schedule, entry.spread_secs, &entry.history, now)
                .map_or(State::Idle, State::Waiting)
        };
        self.enter(job, state);
    }

    /// Lets a job wait for its next ideal time, whatever it missed: a neighbour has just backed it up.
    fn wait_for_ideal(&mut self, job: &JobName) {
        let now = self.now;
        let Some(entry) = self.jobs.get(job) else { return };
        let next = next_run::ideal(&entry.schedule, entry.spread_secs, now);
        let state = next.map_or(State::Idle, |(at, tags)| {
            State::Waiting(NextRun { at, tags, catches_up: false, decided_at: now })
        });
        self.enter(job, state);
    }

    /// Puts a job into the queue of its pool, or to its front.
    fn enqueue(&mut self, job: &JobName, tags: BTreeSet<Tag>, first: bool) {
        let Some(entry) = self.jobs.get(job) else { return };
        let pool = Pool::choose(&entry.history);
        self.enter(job, State::Queued(pool, tags));
        let queue = &mut self.queues[slot(pool)];
        if first {
            queue.push_front(job.clone());
        } else {
            queue.push_back(job.clone());
        }
    }

    /// Gives free workers to those who wait longest. A job of which nothing is known yet waits in its place.
    fn fill_workers(&mut self, actions: &mut Vec<Action>) {
        for pool in [Pool::Fast, Pool::Slow] {
            while self.running.values().filter(|&&used| used == pool).count() < self.workers
                && let Some(job) = self.queues[slot(pool)].pop_front()
            {
                actions.extend(self.start(&job, pool));
            }
        }
    }

    fn start(&mut self, job: &JobName, pool: Pool) -> Option<Action> {
        let now = self.now;
        let entry = self.jobs.get_mut(job)?;
        let State::Queued(_, tags) = &mut entry.state else { return None };
        let mut tags = std::mem::take(tags);
        // What has been missed while it waited goes along, so that no second run is needed for it.
        tags.extend(next_run::missed(&entry.schedule, entry.spread_secs, &entry.history, now));
        entry.begun = now;
        entry.state = State::Running(pool, tags.clone());
        self.running.insert(job.clone(), pool);
        Some(Action::Start(Start { job: job.clone(), tags, pool }))
    }

    /// Changes the state of a job, and what follows from it.
    fn enter(&mut self, job: &JobName, state: State) {
        self.leave(job);
        let Some(entry) = self.jobs.get_mut(job) else { return };
        entry.state = state;
        if let Some(at) = entry.due() {
            self.due.insert((at, job.clone()));
        }
    }

    /// Takes a job out of the queues and of what is due.
    fn leave(&mut self, job: &JobName) {
        let Some(entry) = self.jobs.get(job) else { return };
        if let Some(at) = entry.due() {
            self.due.remove(&(at, job.clone()));
        }
        if let State::Queued(pool, _) = entry.state {
            self.queues[slot(pool)].retain(|queued| queued != job);
        }
    }
}

fn slot(pool: Pool) -> usize {
    match pool {
        Pool::Fast => 0,
        Pool::Slow => 1,
    }
}

#[cfg(test)]
mod tests;
