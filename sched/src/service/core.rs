//! What the service knows: the configuration in force, the scheduler, what the last looks at the jobs showed, and what
//! runs. Shared by the main loop, the rounds and the API.
//!
//! The core is locked for moments, and never during input or output: a disk that hangs, the log's too, must stop neither
//! the loop nor the API. Whoever looks at job directories holds no lock. A job whose directory does not answer keeps one
//! thread, and the others go round it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backy_store::{JobName, Repository, Timestamp};
use tokio::sync::{Notify, mpsc, watch};

use super::child::Limits;
use super::config::ServiceConfig;
use super::control::Vitals;
use super::heartbeat::Heartbeat;
use super::rights::ApiToken;
use super::scheduler::{Scheduler, State};
use crate::check;
use crate::error::{Result, in_full};
use crate::histories::{Histories, Look};
use crate::policy::health::JobFacts;
use crate::policy::sla::{self, Sla};
use crate::prepare::prepare;

/// How long a look at a job may take before others say that its directory does not answer.
const LOOK_PATIENCE: Duration = Duration::from_secs(10);

/// Orders that may wait for the main loop.
const ORDERS_MAX: usize = 16;

/// What is wanted of the main loop.
#[derive(Debug)]
pub(super) enum Wanted {
    /// Read the configuration again, and answer.
    Reload(SyncSender<Result<()>>),
}

/// What does not change while the service runs.
#[derive(Debug)]
pub(super) struct Fixed {
    /// The main configuration; absolute.
    pub(super) config_path: PathBuf,
    /// The program of the children.
    pub(super) program: PathBuf,
    /// The base directory.
    pub(super) base_dir: PathBuf,
}

/// All that the parts of the service share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) fixed: Fixed,
    histories: Histories,
    /// Jobs that are being looked at, and since when.
    looking: Mutex<HashMap<JobName, Instant>>,
    /// Numbers the looks, so that what an earlier one saw does not replace what a later one did.
    number: AtomicU64,
    /// How often it was wanted that former jobs with snapshots are named; 0 when nobody is at it.
    pub(super) tellings: AtomicU64,
    core: Mutex<Core>,
    /// Wakes the main loop: something was told to the scheduler.
    pub(super) wake: Notify,
    pub(super) wanted: mpsc::Sender<Wanted>,
    /// Says without a lock how the main loop is.
    pub(super) heartbeat: Heartbeat,
}

/// What changes.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) config: Arc<ServiceConfig>,
    pub(super) tokens: Arc<Vec<ApiToken>>,
    /// When the configuration in force was read.
    pub(super) configured_at: Timestamp,
    /// When its file was written: a job without a directory has been there since then at the latest.
    pub(super) written_at: Option<Timestamp>,
    pub(super) scheduler: Scheduler,
    /// What the last look at a job showed beside its history, and the number of that look.
    looks: HashMap<JobName, (u64, Look)>,
    /// Rounds under way, and how to stop them.
    pub(super) rounds: BTreeMap<JobName, watch::Sender<bool>>,
    /// When distrusted revisions of a job were last verified.
    pub(super) verified_at: HashMap<JobName, Timestamp>,
    /// Whether there may be something for a purge to delete.
    pub(super) garbage: bool,
    /// Whether somebody wants a purge soon.
    pub(super) purge_asked: bool,
    /// Whether one runs.
    pub(super) purging: bool,
    /// When one that was asked for began last.
    pub(super) asked_purge_at: Option<Timestamp>,
    /// Jobs whose being overdue has been logged.
    pub(super) told_overdue: BTreeSet<JobName>,
    /// When all of them were logged last.
    pub(super) told_at: Option<Timestamp>,
    pub(super) vitals: Vitals,
    pub(super) stopping: bool,
}

impl Shared {
    pub(super) fn new(
        fixed: Fixed,
        config: ServiceConfig,
        written_at: Option<Timestamp>,
        histories: Histories,
        heartbeat: Heartbeat,
        now: Timestamp,
    ) -> (Arc<Self>, mpsc::Receiver<Wanted>) {
        let (wanted, orders) = mpsc::channel(ORDERS_MAX);
        let mut core = Core {
            tokens: Arc::new(config.api.tokens.clone()),
            configured_at: now,
            written_at,
            scheduler: Scheduler::new(config.worker_limit as usize, now),
            looks: HashMap::new(),
            rounds: BTreeMap::new(),
            verified_at: HashMap::new(),
            // What earlier services have left is not known.
            garbage: true,
            purge_asked: false,
            purging: false,
            asked_purge_at: None,
            told_at: None,
            told_overdue: BTreeSet::new(),
            vitals: Vitals { started_at: Some(now), seen_at: Some(now), ..Vitals::default() },
            config: Arc::new(config),
            stopping: false,
        };
        core.configure_jobs();
        let (looking, core) = (Mutex::default(), Mutex::new(core));
        (
            Arc::new(Self {
                fixed,
                histories,
                looking,
                number: AtomicU64::new(1),
                tellings: AtomicU64::new(0),
                core,
                wake: Notify::new(),
                wanted,
                heartbeat,
            }),
            orders,
        )
    }

    /// A thread that panicked has left the core as it was between two statements; the others go on with that.
    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store, opened anew: it may have been unmounted.
    pub(super) fn open_store(&self) -> Result<Repository> {
        Ok(Repository::open(&self.fixed.base_dir)?)
    }

    /// Looks at jobs on disk and takes to heart what is seen. Blocks.
    pub(super) fn look(&self, jobs: &[JobName], now: Timestamp) {
        let number = self.number.fetch_add(1, Ordering::SeqCst);
        let store = self.open_store();
        let _hold = store.as_ref().ok().filter(|_| jobs.len() > 1).map(Repository::hold_index);
        for some in jobs.chunks(64) {
            let looks: Vec<(&JobName, Look)> = some
                .iter()
                .filter_map(|job| match &store {
                    Ok(store) => Some((job, self.look_at(store, job, now)?)),
                    Err(error) => Some((job, Look::failed(crate::error::in_full(error), now))),
                })
                .collect();
            let mut core = self.core();
            looks.into_iter().for_each(|(job, look)| core.take_in(job, look, number));
        }
        if let Ok(store) = &store {
            self.histories.save(store);
        }
        self.wake.notify_one();
    }

    /// As [`Shared::look`], for one job whose state has just changed: a look that began before does not do.
    pub(super) fn look_anew(&self, job: &JobName) {
        let begun = Instant::now();
        while self.looking().contains_key(job) && begun.elapsed() < LOOK_PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.look(std::slice::from_ref(job), Timestamp::now());
    }

    /// Looks at one job. Nothing is new while another thread does the same, unless that has been waiting for too long.
    fn look_at(&self, store: &Repository, job: &JobName, now: Timestamp) -> Option<Look> {
        match self.looking().entry(job.clone()) {
            Entry::Occupied(since) if since.get().elapsed() < LOOK_PATIENCE => return None,
            Entry::Occupied(_) => return Some(Look::failed("its directory does not answer".to_owned(), now)),
            Entry::Vacant(place) => place.insert(Instant::now()),
        };
        let look = self.histories.look(store, job, now);
        self.looking().remove(job);
        Some(look)
    }

    fn looking(&self) -> MutexGuard<'_, HashMap<JobName, Instant>> {
        self.looking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that every configured job has its directory and the configuration in force. Blocks.
    pub(super) fn prepare_all(&self, now: Timestamp) {
        let config = Arc::clone(&self.core().config);
        let store = match self.open_store() {
            Ok(store) => store,
            Err(error) => return tracing::error!(reason = in_full(&error), "jobs not prepared"),
        };
        for (job, configured) in &config.jobs {
            if let Err(error) = prepare(&store, job, &configured.config, now) {
                tracing::error!(%job, reason = in_full(&error), "job not prepared");
            }
        }
    }

    /// As [`Shared::look`], for all configured jobs.
    pub(super) fn look_at_all(&self, now: Timestamp) {
        self.look_at_some(&|_| true, now);
    }

    /// As [`Shared::look`], for the configured jobs with wanted names.
    pub(super) fn look_at_some(&self, wanted: &dyn Fn(&str) -> bool, now: Timestamp) {
        let config = Arc::clone(&self.core().config);
        let jobs: Vec<JobName> = config.jobs.keys().filter(|job| wanted(job.as_str())).cloned().collect();
        self.look(&jobs, now);
    }

    /// The limits in force.
    pub(super) fn limits(&self) -> Limits {
        self.core().limits()
    }
}

impl Core {
    pub(super) fn limits(&self) -> Limits {
        Limits { stalled: self.config.stall_limit, ..Limits::default() }
    }

    /// Brings the scheduler in line with the configuration: jobs come, change and go.
    pub(super) fn configure_jobs(&mut self) {
        let config = Arc::clone(&self.config);
        self.scheduler.set_workers(config.worker_limit as usize);
        let gone = self.scheduler.jobs().keys().filter(|job| !config.jobs.contains_key(*job));
        for job in gone.cloned().collect::<Vec<_>>() {
            self.scheduler.remove(&job);
            self.looks.remove(&job);
            self.told_overdue.remove(&job);
            if let Some(stop) = self.rounds.get(&job) {
                stop.send_replace(true);
            }
        }
        for (job, configured) in &config.jobs {
            self.scheduler.configure(job, &configured.config.schedule, !config.peers.is_empty());
        }
    }

    /// Takes in what a look at a job showed. A job that could not be looked at keeps the history it has; one that has
    /// none is taken for new, so that it waits for its time.
    fn take_in(&mut self, job: &JobName, look: Look, number: u64) {
        if self.looks.get(job).is_some_and(|(last, _)| *last > number) {
            return;
        }
        let is_unknown = self.scheduler.jobs().get(job).is_some_and(|entry| *entry.state() == State::Unknown);
        if look.failure.is_none() || is_unknown {
            self.scheduler.tell(job, look.history.clone());
        }
        if self.config.jobs.contains_key(job) {
            self.looks.insert(job.clone(), (number, look));
        }
    }

    /// What the verdicts on a job stand on.
    pub(super) fn facts(&self, job: &JobName) -> Option<JobFacts> {
        let facts = JobFacts::new(job.clone(), &self.config.jobs.get(job)?.config.schedule);
        Some(JobFacts {
            running: self.is_running(job),
            ..check::facts(facts, self.look(job)?, &self.config, self.written_at)
        })
    }

    fn is_running(&self, job: &JobName) -> bool {
        self.scheduler.jobs().get(job).is_some_and(|entry| matches!(entry.state(), State::Running(..)))
    }

    /// What the last look at a job showed beside its history.
    pub(super) fn look(&self, job: &JobName) -> Option<&Look> {
        self.looks.get(job).map(|(_, look)| look)
    }

    /// How long the newest good revision of a job has been too old; 0 when it is not, or while the job runs.
    pub(super) fn overdue_secs(&self, job: &JobName, now: Timestamp) -> f64 {
        let Some(facts) = self.facts(job).filter(|facts| !facts.running) else { return 0.0 };
        match sla::judge(facts.shortest_secs, facts.newest_good, facts.since, now) {
            Sla::Overdue { age_secs } => age_secs,
            Sla::Never => facts.since.map_or(0.0, |since| now.secs_since(since)),
            Sla::InTime | Sla::Waiting => 0.0,
        }
    }
}
