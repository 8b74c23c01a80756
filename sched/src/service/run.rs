//! The service itself: one process that lets every job run on time. It decides nothing; it tells the
//! [`Scheduler`](super::scheduler::Scheduler) what happened and does what that says.
//!
//! One thread runs the loop and the rounds, which only wait for child processes. Whatever reads or writes files has a
//! thread of its own (`offload.rs`), the start and the API, too: a hanging disk stops neither the answers nor the watch
//! over the children, nor the end at a signal.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use backy_store::{JobName, Repository, Timestamp};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::api::Server;
use super::clock::Clock;
use super::core::{Fixed, Shared, Wanted};
use super::heartbeat::Heartbeat;
use super::offload::{has_threads, keep_reserve, offload, offload_and_forget, offload_within};
use super::purge::Purge;
use super::round::{self, Round, VERIFY_EVERY, new_task};
use super::scheduler::{Action, Ended, Neighbours, Start};
use super::{ServiceGuard, limits, overdue, peers, supervisor};
use super::{reaper, reload};
use crate::error::{Error, Result};
use crate::histories::Histories;
use crate::policy::next_run::NextRun;
use crate::policy::pool::Pool;

/// The longest time between two looks at the clock, so that a clock that was moved is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How often the start asks for a thread.
const START_TRIES: u32 = 2;
/// How many jobs talk to their neighbours at once.
const ASKS_MAX: usize = 16;
/// How long the end waits for children beyond the time that they have.
const END_SLACK: Duration = Duration::from_secs(15);

/// What a service needs to be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The main configuration; absolute.
    pub config_path: PathBuf,
    /// The program that the children run: this one.
    pub program: PathBuf,
    /// After how long without a turn of the main loop the service counts as hung.
    pub silence_max: Duration,
}

/// Runs the service until a signal ends it.
pub fn run(options: Options) -> Result<()> {
    let failed = |source| Error::ServiceNotStarted { source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let ended = runtime.block_on(serve(options));
    // A thread that hangs on a dead disk must not keep the process.
    runtime.shutdown_background();
    ended
}

async fn serve(options: Options) -> Result<()> {
    let mut signals = Signals::new()?;
    let started = tokio::select! {
        started = offload_within(START_TRIES, move || start(options)) => started,
        () = Signals::end(&mut signals.ends) => {
            tracing::info!("service ended while it started");
            return Ok(());
        }
    };
    let Started { shared, orders, api, purge, _guard } =
        started.unwrap_or_else(|source| Err(Error::ServiceNotStarted { source }))?;
    let jobs = shared.core().config.jobs.len();
    tracing::info!(jobs, base_dir = %shared.fixed.base_dir.display(), "service started");
    let summary = overdue::summary(&shared.core(), Timestamp::now());
    supervisor::ready(&summary);
    let mut service = Service {
        purge,
        shared,
        api: Api::Here(api),
        orders,
        waiting: VecDeque::new(),
        api_doubtful: false,
        asking: Arc::new(Semaphore::new(ASKS_MAX)),
        tasks: JoinSet::new(),
        stop: watch::channel(false).0,
    };
    service.look_over();
    service.work(&mut signals).await;
    service.end().await;
    Ok(())
}

/// What the start of a service makes.
struct Started {
    shared: Arc<Shared>,
    orders: mpsc::Receiver<Wanted>,
    api: Option<Server>,
    purge: Purge,
    _guard: ServiceGuard,
}

/// Reads the configuration, opens the store and the API, and makes the threads that it cannot be without. Blocks.
fn start(options: Options) -> Result<Started> {
    let (config, written_at) = reload::load(&options.config_path)?;
    for note in &config.notes {
        tracing::warn!(note = note.in_file(&options.config_path), "configuration");
    }
    let store = Repository::open(&config.base_dir)?;
    let guard = ServiceGuard::take(&config.base_dir)?;
    let heartbeat = Heartbeat::start(&guard, options.silence_max)?;
    limits::raise(config.worker_limit);
    keep_reserve().map_err(|source| Error::ServiceNotStarted { source })?;
    let base_dir = config.base_dir.clone();
    let fixed = Fixed { config_path: options.config_path, program: options.program, base_dir };
    let now = Timestamp::now();
    let histories = Histories::load(&store);
    let (shared, orders) = Shared::new(fixed, config, written_at, histories, heartbeat, now);
    let api = reload::start_api(&shared)?;
    Ok(Started { shared, orders, api, purge: Purge::new(store.id(), now), _guard: guard })
}

/// The signals that the service listens to.
struct Signals {
    reload: Signal,
    child: Signal,
    ends: [Signal; 3],
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|source| Error::ServiceNotStarted { source });
        let ends = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()];
        let [terminate, interrupt, quit] = ends.map(listen);
        let (reload, child) = (listen(SignalKind::hangup())?, listen(SignalKind::child())?);
        Ok(Self { reload, child, ends: [terminate?, interrupt?, quit?] })
    }

    /// Waits for a signal that ends the service.
    async fn end(ends: &mut [Signal; 3]) {
        let [one, two, three] = ends;
        tokio::select! { _ = one.recv() => {}, _ = two.recv() => {}, _ = three.recv() => {} }
    }
}

/// A running service.
struct Service {
    shared: Arc<Shared>,
    api: Api,
    orders: mpsc::Receiver<Wanted>,
    /// Who waits for the configuration to be read again; nobody, for a signal.
    waiting: VecDeque<Option<SyncSender<Result<()>>>>,
    /// Whether it is time to see whether the API listens where it should.
    api_doubtful: bool,
    /// Bounds how many jobs ask their neighbours, or follow them, at once.
    asking: Arc<Semaphore>,
    purge: Purge,
    /// Everything under way.
    tasks: JoinSet<()>,
    /// Ends what is under way and is no round.
    stop: watch::Sender<bool>,
}

/// The API, or the thread that has it while it reads the configuration again: that may hang in a disk, and must hang
/// alone.
enum Api {
    Here(Option<Server>),
    Away(JoinHandle<Option<Server>>),
}

impl Service {
    /// The main loop.
    async fn work(&mut self, signals: &mut Signals) {
        let mut alive_at = Instant::now();
        let mut look_over_at = Instant::now() + LOOK_EVERY;
        let mut clock = Clock::start();
        let watchdog = supervisor::watchdog();
        let is_first_process = reaper::is_needed();
        loop {
            let now = Timestamp::now();
            // A service that can start nothing is as good as none: monitoring must see it.
            if has_threads() {
                self.shared.heartbeat.beat();
            }
            self.shared.core().vitals.seen_at = Some(now);
            if is_first_process {
                reaper::reap();
            }
            if clock.jumped(now) {
                self.purge.put_off();
            }
            if let Some(every) = watchdog.filter(|_| alive_at <= Instant::now()) {
                supervisor::alive();
                alive_at = Instant::now() + every;
            }
            if look_over_at <= Instant::now() {
                self.report(now);
                self.api_doubtful = true;
                look_over_at = Instant::now() + LOOK_EVERY;
            }
            let actions = self.shared.core().scheduler.advance(now);
            self.act(actions);
            self.purge_if_due(now);
            self.settle();
            let beat_at = Instant::now() + self.shared.heartbeat.every();
            let wake_at = self.wake_at(now).min(look_over_at).min(beat_at);
            let wake_at = watchdog.map_or(wake_at, |_| wake_at.min(alive_at));
            tokio::select! {
                () = sleep_until(wake_at) => {}
                () = self.shared.wake.notified() => {}
                Some(ended) = self.tasks.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(error = crate::error::in_full(&error), "a task of the service panicked");
                    }
                }
                Some(Wanted::Reload(answer)) = self.orders.recv() => self.waiting.push_back(Some(answer)),
                api = self.api.back() => self.api = Api::Here(api),
                // One reload serves all signals before it.
                _ = signals.reload.recv() => match self.waiting.iter().any(Option::is_none) {
                    true => {}
                    false => self.waiting.push_back(None),
                },
                _ = signals.child.recv(), if is_first_process => {}
                () = Signals::end(&mut signals.ends) => return,
            }
        }
    }

    /// Tells log and systemd how the jobs are.
    fn report(&mut self, now: Timestamp) {
        let (lines, summary) = {
            let mut core = self.shared.core();
            (overdue::look_over(&mut core, now), overdue::summary(&core, now))
        };
        lines.iter().for_each(overdue::Line::log);
        supervisor::status(&summary);
    }

    /// Lets a thread read the configuration again when that is wanted, or open the API where it could not be before.
    fn settle(&mut self) {
        let Api::Here(api) = &mut self.api else { return };
        let asker = self.waiting.pop_front();
        let is_doubtful = std::mem::take(&mut self.api_doubtful);
        if asker.is_none() && !(is_doubtful && reload::wants_api(&self.shared, api.as_ref())) {
            return;
        }
        let (shared, api) = (Arc::clone(&self.shared), api.take());
        let settled = async move {
            // Without a thread the API stays as it is until there is one.
            let settle = move || reload::settle(&shared, api, asker);
            offload_within(u32::MAX, settle).await.unwrap_or_else(|error| {
                tracing::error!(error = crate::error::in_full(&error), "the API is off");
                None
            })
        };
        self.api = Api::Away(tokio::spawn(settled));
    }

    /// When the loop has to come round again.
    fn wake_at(&self, now: Timestamp) -> Instant {
        let due = self.shared.core().scheduler.wake_at();
        let due = due.into_iter().chain(self.purge.due(&self.shared.core())).min();
        let secs = due.map_or(f64::MAX, |due| due.secs_since(now).max(0.0));
        // A little later than due, so that it is.
        let wait =
            Duration::try_from_secs_f64(secs).unwrap_or(LOOK_EVERY).saturating_add(Duration::from_millis(1));
        Instant::now() + wait.min(LOOK_EVERY)
    }

    fn act(&mut self, actions: Vec<Action>) {
        let mut looks = Vec::new();
        for action in actions {
            match action {
                Action::Start(start) => self.begin(start),
                Action::Ask(job, next) => self.ask(job, next),
                Action::Look(job) => looks.push(job),
            }
        }
        if !looks.is_empty() {
            let shared = Arc::clone(&self.shared);
            offload_and_forget(move || shared.look(&looks, Timestamp::now()));
        }
    }

    /// Looks at all jobs, in the background.
    fn look_over(&self) {
        let shared = Arc::clone(&self.shared);
        offload_and_forget(move || {
            shared.look_at_all(Timestamp::now());
            tracing::info!("jobs known");
            shared.prepare_all(Timestamp::now());
        });
    }

    /// Asks the neighbours whether one of them backs a job up. If one did, its revisions are pulled before the answer
    /// counts, so that they cover their tags.
    fn ask(&mut self, job: JobName, next: NextRun) {
        let start = Start { job: job.clone(), tags: next.tags.clone(), pool: Pool::Fast };
        let Some(round) = self.round(start, self.stop.subscribe()) else { return };
        let (shared, asking) = (Arc::clone(&self.shared), Arc::clone(&self.asking));
        self.tasks.spawn(async move {
            let _permit = asking.acquire_owned().await;
            let answer = ask_neighbours(&shared, &job, next, &round.task).await;
            if answer == Neighbours::Done {
                round.follow().await;
                look_after(&shared, &job).await;
            }
            shared.core().scheduler.answered(&job, answer);
            shared.wake.notify_one();
        });
    }

    /// Begins a round. Whatever happens to it, it ends.
    fn begin(&mut self, start: Start) {
        let (stop, stopped) = watch::channel(false);
        let job = start.job.clone();
        let Some(round) = self.round(start, stopped) else {
            return self.shared.core().scheduler.ended(&job, Ended::Busy);
        };
        self.shared.core().rounds.insert(job.clone(), stop);
        let shared = Arc::clone(&self.shared);
        self.tasks.spawn(async move {
            let task = round.task.clone();
            let report = tokio::spawn(async move { round.run().await }).await;
            let mut report = report.unwrap_or_else(|error| {
                tracing::error!(%job, task, error = crate::error::in_full(&error), "a round panicked");
                round::Report::failed()
            });
            if !look_after(&shared, &job).await {
                tracing::error!(%job, task, "the job's directory does not answer");
                report.ended = Ended::Failed;
            }
            finish(&shared, &job, &task, report);
        });
    }

    /// Everything that a round needs to know; `None` for a job that is not configured any more.
    fn round(&self, start: Start, stop: watch::Receiver<bool>) -> Option<Round> {
        let core = self.shared.core();
        let now = Timestamp::now();
        let verified_at = core.verified_at.get(&start.job);
        let config = core.config.jobs.get(&start.job)?.config.clone();
        Some(Round {
            config,
            base_dir: self.shared.fixed.base_dir.clone(),
            program: self.shared.fixed.program.clone(),
            callback: core.config.completed_callback.clone(),
            peers: (!core.config.peers.is_empty()).then(|| peers::to_json(&core.config.peers)),
            verifies: verified_at.is_none_or(|at| now.secs_since(*at).abs() >= VERIFY_EVERY.as_secs_f64()),
            limits: core.limits(),
            task: new_task(),
            stop,
            start,
        })
    }

    fn purge_if_due(&mut self, now: Timestamp) {
        let shared = Arc::clone(&self.shared);
        let purge = self.purge.begin(&mut shared.core(), now, &shared.fixed, self.stop.subscribe());
        if let Some(purge) = purge {
            let done = Arc::clone(&shared);
            self.tasks.spawn(async move {
                let leaves_garbage = purge.await;
                let mut core = done.core();
                core.garbage |= leaves_garbage;
                core.purging = false;
            });
        }
    }

    /// Ends everything within a bound.
    async fn end(mut self) {
        supervisor::stopping();
        tracing::info!("service ending");
        {
            let mut core = self.shared.core();
            core.stopping = true;
            core.rounds.values().for_each(|stop| {
                stop.send_replace(true);
            });
        }
        self.stop.send_replace(true);
        let patience = self.shared.limits().grace + END_SLACK;
        let all = async { while self.tasks.join_next().await.is_some() {} };
        // Answers under way get their time, meanwhile.
        let api = async {
            if let Api::Here(Some(api)) = self.api {
                let _ = timeout(END_SLACK, offload(move || api.stop())).await;
            }
        };
        if tokio::join!(timeout(patience, all), api).0.is_err() {
            tracing::error!("children that do not end are left behind");
        }
        tracing::info!("service ended");
    }
}

impl Api {
    /// Waits until it is back; for ever when it is not away.
    async fn back(&mut self) -> Option<Server> {
        match self {
            Self::Here(_) => std::future::pending().await,
            Self::Away(thread) => thread.await.unwrap_or_else(|error| {
                tracing::error!(error = crate::error::in_full(&error), "the API is off");
                None
            }),
        }
    }
}

/// Looks at a job whose state has changed; `false` when its directory does not answer.
async fn look_after(shared: &Arc<Shared>, job: &JobName) -> bool {
    let (shared, job) = (Arc::clone(shared), job.clone());
    round::within_patience(move || shared.look_anew(&job)).await.is_some()
}

/// What the neighbours say. When that cannot be found out, the job is backed up here.
async fn ask_neighbours(shared: &Arc<Shared>, job: &JobName, next: NextRun, task: &str) -> Neighbours {
    let (config, local, follows) = {
        let core = shared.core();
        let Some(entry) = core.scheduler.jobs().get(job) else { return Neighbours::OursToDo };
        (Arc::clone(&core.config), entry.history().local, entry.follows().map(str::to_owned))
    };
    let (job, task) = (job.clone(), task.to_owned());
    let asked =
        offload(move || peers::ask(&config.peers, &job, local, &next, follows.as_deref(), Some(&task)));
    asked.await.unwrap_or(Neighbours::OursToDo)
}

/// Takes in how a round ended.
fn finish(shared: &Shared, job: &JobName, task: &str, report: round::Report) {
    let now = Timestamp::now();
    let mut core = shared.core();
    core.rounds.remove(job);
    core.garbage |= report.leaves_garbage;
    if report.verified {
        core.verified_at.insert(job.clone(), now);
    }
    match report.ended {
        Ended::Done => core.vitals.rounds_done += 1,
        Ended::Failed => core.vitals.rounds_failed += 1,
        Ended::Busy => {}
    }
    core.scheduler.ended(job, report.ended);
    let next = core.scheduler.jobs().get(job).and_then(|entry| entry.next()).map(|next| next.at.to_rfc3339());
    drop(core);
    tracing::info!(%job, task, ended = report.ended.as_str(), next, "round over");
    shared.wake.notify_one();
}
