//! The service itself: one process that lets every job run on time. It decides nothing; it tells the
//! [`Scheduler`](super::scheduler::Scheduler) what happened and does what that says.
//!
//! One thread runs the loop and the rounds, which only wait for child processes. Whatever reads or writes files has a
//! thread of its own, and so has the API: a hanging disk stops neither the answers nor the watch over the children.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backy_store::{JobName, Repository, Timestamp};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout};

use super::api::Server;
use super::core::{Fixed, Shared, Wanted};
use super::purge::Purge;
use super::reload;
use super::round::{self, Round, VERIFY_EVERY, new_task};
use super::scheduler::{Action, Ended, Neighbours, Start};
use super::{ServiceGuard, overdue, peers, supervisor};
use crate::error::{Error, Result, in_full};
use crate::histories::Histories;
use crate::policy::next_run::NextRun;
use crate::policy::pool::Pool;

/// The longest time between two looks at the clock, so that a clock that was moved is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How often the state of the jobs is looked over, for the log and for systemd.
const OVERDUE_EVERY: Duration = Duration::from_secs(300);
/// How long the end waits for children beyond the time that they have.
const END_SLACK: Duration = Duration::from_secs(15);

/// What a service needs to be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The main configuration; absolute.
    pub config_path: PathBuf,
    /// The program that the children run: this one.
    pub program: PathBuf,
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
    let (config, written_at) = reload::load(&options.config_path)?;
    for note in &config.notes {
        tracing::warn!(note = note.in_file(&options.config_path), "configuration");
    }
    let store = Repository::open(&config.base_dir)?;
    let _guard = ServiceGuard::take(&config.base_dir)?;
    let base_dir = config.base_dir.clone();
    let fixed = Fixed { config_path: options.config_path, program: options.program, base_dir };
    let now = Timestamp::now();
    let (shared, orders) = Shared::new(fixed, config, written_at, Histories::load(&store), now);
    let api = reload::start_api(&shared)?;
    let jobs = shared.core().config.jobs.len();
    tracing::info!(jobs, base_dir = %shared.fixed.base_dir.display(), "service started");
    supervisor::ready(&overdue::summary(&shared.core(), now));
    let mut service = Service {
        purge: Purge::new(store.id(), now),
        shared,
        api,
        orders,
        tasks: JoinSet::new(),
        stop: watch::channel(false).0,
    };
    service.look_over();
    service.work(&mut signals).await;
    service.end().await;
    Ok(())
}

/// The signals that the service listens to.
struct Signals {
    reload: Signal,
    ends: [Signal; 3],
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|source| Error::ServiceNotStarted { source });
        let ends = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()];
        let [terminate, interrupt, quit] = ends.map(listen);
        Ok(Self { reload: listen(SignalKind::hangup())?, ends: [terminate?, interrupt?, quit?] })
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
    api: Option<Server>,
    orders: mpsc::UnboundedReceiver<Wanted>,
    purge: Purge,
    /// Everything under way.
    tasks: JoinSet<()>,
    /// Ends what is under way and is no round.
    stop: watch::Sender<bool>,
}

impl Service {
    /// The main loop.
    async fn work(&mut self, signals: &mut Signals) {
        let mut alive_at = Instant::now();
        let mut overdue_at = Instant::now() + LOOK_EVERY;
        let watchdog = supervisor::watchdog();
        loop {
            let now = Timestamp::now();
            self.shared.core().vitals.seen_at = Some(now);
            if let Some(every) = watchdog.filter(|_| alive_at <= Instant::now()) {
                supervisor::alive();
                alive_at = Instant::now() + every;
            }
            if overdue_at <= Instant::now() {
                overdue::look_over(&mut self.shared.core(), now);
                supervisor::status(&overdue::summary(&self.shared.core(), now));
                overdue_at = Instant::now() + OVERDUE_EVERY;
            }
            let actions = self.shared.core().scheduler.advance(now);
            actions.into_iter().for_each(|action| self.act(action));
            self.purge_if_due(now);
            let wake_at = self.wake_at(now).min(overdue_at);
            let wake_at = watchdog.map_or(wake_at, |_| wake_at.min(alive_at));
            tokio::select! {
                () = sleep_until(wake_at) => {}
                () = self.shared.wake.notified() => {}
                Some(_) = self.tasks.join_next() => {}
                Some(Wanted::Reload(answer)) = self.orders.recv() => {
                    let reloaded = self.reload().await;
                    // Who asked may be gone.
                    let _ = answer.send(reloaded);
                    self.move_api().await;
                }
                _ = signals.reload.recv() => {
                    // The reason was logged.
                    let _ = self.reload().await;
                    self.move_api().await;
                }
                () = Signals::end(&mut signals.ends) => return,
            }
        }
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

    fn act(&mut self, action: Action) {
        let shared = Arc::clone(&self.shared);
        match action {
            Action::Start(start) => self.begin(start),
            Action::Look(job) => drop(spawn_blocking(move || shared.look(&[job], Timestamp::now()))),
            Action::Ask(job, next) => self.ask(job, next),
        }
    }

    /// Looks at all jobs, in the background.
    fn look_over(&self) {
        let shared = Arc::clone(&self.shared);
        drop(spawn_blocking(move || {
            shared.look_at_all(Timestamp::now());
            tracing::info!("jobs known");
        }));
    }

    /// Asks the neighbours whether one of them backs a job up. If one did, its revisions are pulled before the answer
    /// counts, so that they cover their tags.
    fn ask(&mut self, job: JobName, next: NextRun) {
        let start = Start { job: job.clone(), tags: next.tags.clone(), pool: Pool::Fast };
        let Some(round) = self.round(start, self.stop.subscribe()) else { return };
        let shared = Arc::clone(&self.shared);
        self.tasks.spawn(async move {
            let answer = ask_neighbours(&shared, &job, next, &round.task).await;
            if answer == Neighbours::Done {
                round.follow().await;
                let looker = (Arc::clone(&shared), job.clone());
                drop(spawn_blocking(move || looker.0.look(&[looker.1], Timestamp::now())).await);
            }
            shared.core().scheduler.answered(&job, answer);
            shared.wake.notify_one();
        });
    }

    /// Begins a round.
    fn begin(&mut self, start: Start) {
        let (stop, stopped) = watch::channel(false);
        let Some(round) = self.round(start, stopped) else { return };
        let job = round.start.job.clone();
        self.shared.core().rounds.insert(job.clone(), stop);
        let shared = Arc::clone(&self.shared);
        self.tasks.spawn(async move {
            let report = round.run().await;
            let looker = (Arc::clone(&shared), job.clone());
            let looked = spawn_blocking(move || looker.0.look(&[looker.1], Timestamp::now())).await;
            if let Err(error) = looked {
                tracing::error!(%job, %error, "the job could not be looked at");
            }
            finish(&shared, &job, &round.task, report);
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
            config_path: self.shared.fixed.config_path.clone(),
            program: self.shared.fixed.program.clone(),
            callback: core.config.completed_callback.clone(),
            has_peers: !core.config.peers.is_empty(),
            verifies: verified_at.is_none_or(|at| now.secs_since(*at).abs() >= VERIFY_EVERY.as_secs_f64()),
            limits: core.limits(),
            task: new_task(),
            stop,
            start,
        })
    }

    fn purge_if_due(&mut self, now: Timestamp) {
        let shared = Arc::clone(&self.shared);
        if let Some(purge) = self.purge.begin(&mut shared.core(), now, &shared.fixed, self.stop.subscribe()) {
            let done = Arc::clone(&shared);
            self.tasks.spawn(async move {
                let leaves_garbage = purge.await;
                let mut core = done.core();
                core.garbage |= leaves_garbage;
                core.purging = false;
            });
        }
    }

    /// Reads the configuration again. The answer is logged, too.
    async fn reload(&mut self) -> Result<()> {
        supervisor::reloading();
        let shared = Arc::clone(&self.shared);
        let api = self.api.take();
        let (reloaded, api) = spawn_blocking(move || {
            let reloaded = reload::reload(&shared, api.as_ref(), Timestamp::now());
            (reloaded, api)
        })
        .await
        .unwrap_or((Err(Error::ServiceEnding), None));
        self.api = api;
        self.shared.core().vitals.reload_refused = reloaded.is_err();
        match &reloaded {
            Ok(_) => {
                tracing::info!("configuration reloaded");
                self.look_over();
            }
            Err(Error::ConfigInvalid { path, problems }) => {
                for problem in problems {
                    tracing::error!(problem = problem.in_file(path), "configuration refused");
                }
            }
            Err(error) => tracing::error!(reason = in_full(error), "configuration refused"),
        }
        supervisor::ready(&overdue::summary(&self.shared.core(), Timestamp::now()));
        reloaded.map(drop)
    }

    /// Lets the API listen where the configuration in force wants it.
    async fn move_api(&mut self) {
        let (shared, api) = (Arc::clone(&self.shared), self.api.take());
        let moved = spawn_blocking(move || {
            let config = Arc::clone(&shared.core().config);
            if api.as_ref().is_some_and(|api| api.serves(&config.api)) {
                return Ok(api);
            }
            if let Some(api) = api {
                api.stop();
            }
            reload::start_api(&shared)
        });
        match moved.await {
            Ok(Ok(api)) => self.api = api,
            Ok(Err(error)) => tracing::error!(reason = in_full(&error), "the API is off"),
            Err(error) => tracing::error!(%error, "the API is off"),
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
        if timeout(patience, all).await.is_err() {
            tracing::error!("children that do not end are left behind");
        }
        if let Some(api) = self.api {
            // Answers under way get their time.
            let _ = timeout(END_SLACK, spawn_blocking(move || api.stop())).await;
        }
        tracing::info!("service ended");
    }
}

/// What the neighbours say. When that cannot be found out, the job is backed up here.
async fn ask_neighbours(shared: &Arc<Shared>, job: &JobName, next: NextRun, task: &str) -> Neighbours {
    let (config, local, follows) = {
        let core = shared.core();
        let Some(entry) = core.scheduler.jobs().get(job) else { return Neighbours::OursToDo };
        (Arc::clone(&core.config), entry.history().local, entry.follows().map(str::to_owned))
    };
    let (job, task) = (job.clone(), task.to_owned());
    let asked = spawn_blocking(move || {
        peers::ask(&config.peers, &job, local, &next, follows.as_deref(), Some(&task))
    });
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
    tracing::info!(%job, task, ended = ?report.ended, next, "round over");
    drop(core);
    shared.wake.notify_one();
}
