//! One round of a job: back up, expire, verify what is distrusted, tell others. Each step is a child process of the
//! same program with the job's log, so whatever happens in one, the service and the other jobs go on.
//!
//! Backing up and expiring decide whether the round was good. A backup that ends well without having made a revision
//! was not good. The rest is only logged.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use backy_store::{JobName, Repository, Revision, RevisionId, Tag, Timestamp, Trust};
use tokio::sync::watch;

use super::child::{self, End, Limits, Order, Outcome};
use super::offload::offload;
use super::scheduler::{Ended, Start};
use crate::config::JobConfig;
use crate::error::{Error, Result, in_full};
use crate::prepare::prepare;

/// How long the service waits for a disk.
const DISK_PATIENCE: Duration = Duration::from_secs(60);
/// The status of a command that found the job locked.
const STATUS_LOCKED: i32 = 3;
/// The id of a revision and a little more.
const ID_BYTES_MAX: usize = 256;
/// A plan of `expire` for thousands of revisions.
const PLAN_BYTES_MAX: usize = 8 << 20;
/// The manifests of thousands of revisions.
const STATUS_BYTES_MAX: usize = 64 << 20;

/// Everything a round needs to know; it sees nothing else of the service.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) start: Start,
    pub(super) config: JobConfig,
    pub(super) base_dir: PathBuf,
    /// The peers in force, as they are handed to the children that talk to them; `None` without any.
    pub(super) peers: Option<String>,
    pub(super) program: PathBuf,
    pub(super) callback: Option<PathBuf>,
    /// Whether distrusted revisions are to be verified this time.
    pub(super) verifies: bool,
    pub(super) limits: Limits,
    /// The mark of this round in all logs.
    pub(super) task: String,
    pub(super) stop: watch::Receiver<bool>,
}

/// What came of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) ended: Ended,
    /// Whether there may be something for a purge to delete.
    pub(super) leaves_garbage: bool,
    /// Whether distrusted revisions were verified.
    pub(super) verified: bool,
}

impl Report {
    /// Of a round that got nowhere.
    pub(super) fn failed() -> Self {
        Self { ended: Ended::Failed, leaves_garbage: true, verified: false }
    }
}

impl Round {
    fn job(&self) -> &JobName {
        &self.start.job
    }

    fn dir(&self) -> PathBuf {
        self.base_dir.join(self.job().as_str())
    }

    /// Runs all steps.
    pub(super) async fn run(&self) -> Report {
        let failed = Report::failed();
        if let Err(error) = self.prepare().await {
            self.log_failure("prepare", &in_full(&error));
            return failed;
        }
        if !self.start.tags.is_empty() {
            match self.back_up().await {
                Ended::Done => {}
                ended => return Report { ended, leaves_garbage: ended == Ended::Failed, ..failed },
            }
        }
        self.talk_to_peers("pull").await;
        let Some(forgot) = self.expire().await else { return failed };
        let verified = self.verifies && self.has_distrusted().await && self.verify().await;
        self.talk_to_peers("push").await;
        self.call_back().await;
        Report { ended: Ended::Done, leaves_garbage: forgot, verified }
    }

    /// What is left to do for a job that a neighbour has backed up.
    pub(super) async fn follow(&self) {
        if let Err(error) = self.prepare().await {
            return self.log_failure("prepare", &in_full(&error));
        }
        self.talk_to_peers("pull").await;
        self.call_back().await;
    }

    /// Sees to it that the job's directory is there and has the configuration in force.
    async fn prepare(&self) -> Result<()> {
        let (base_dir, job, config) = (self.base_dir.clone(), self.job().clone(), self.config.clone());
        within_patience(move || prepare(&Repository::open(&base_dir)?, &job, &config, Timestamp::now()))
            .await
            .unwrap_or(Err(Error::StoreSilent { secs: DISK_PATIENCE.as_secs() }))
    }

    async fn back_up(&self) -> Ended {
        let tags: Vec<&str> = self.start.tags.iter().map(Tag::as_str).collect();
        tracing::info!(job = %self.job(), task = self.task, tags = tags.join(","), "backup begins");
        let arguments = vec!["backup".into(), "--".into(), tags.join(",").into()];
        let outcome = self.child(arguments, ID_BYTES_MAX).await;
        if outcome.code() == Some(STATUS_LOCKED) {
            tracing::info!(job = %self.job(), task = self.task, reason = outcome.reason(), "locked");
            return Ended::Busy;
        }
        if outcome.code() != Some(0) {
            self.log_end("backup", &outcome);
            return match outcome.end {
                End::Stopped => Ended::Busy,
                _ => Ended::Failed,
            };
        }
        match self.made_revision(&outcome).await {
            Some(made) => {
                let (job, revision) = (self.job(), &made.id);
                tracing::info!(%job, task = self.task, %revision, "backup done");
                for reason in made.suspicions() {
                    // The backup is as good as its source. Whether that is right, somebody has to say.
                    tracing::warn!(%job, task = self.task, %revision, reason, "source changed");
                }
                Ended::Done
            }
            None => {
                self.log_failure("backup", "it ended with status 0 and made no revision");
                Ended::Failed
            }
        }
    }

    /// The revision that a backup says it has made, if it is there and complete.
    async fn made_revision(&self, outcome: &Outcome) -> Option<Revision> {
        let line = String::from_utf8_lossy(&outcome.stdout).lines().next().unwrap_or_default().to_owned();
        let id = RevisionId::parse(&line).ok()?;
        let (base_dir, job) = (self.base_dir.clone(), self.job().clone());
        let found = within_patience(move || Repository::open(&base_dir)?.job(&job)?.revision(&id));
        found.await?.ok().filter(Revision::is_clean)
    }

    /// Returns whether revisions were forgotten; `None` when it failed.
    async fn expire(&self) -> Option<bool> {
        let outcome = self.child(vec!["expire".into(), "--json".into()], PLAN_BYTES_MAX).await;
        if outcome.code() != Some(0) {
            self.log_end("expire", &outcome);
            return None;
        }
        let plan: Option<serde_json::Value> = serde_json::from_slice(&outcome.stdout).ok();
        let decisions = plan.as_ref().and_then(|plan| plan["decisions"].as_array());
        // A plan too long to be kept is one that forgot something, most likely.
        Some(decisions.is_none_or(|decisions| decisions.iter().any(|one| one["removed"] == true)))
    }

    async fn has_distrusted(&self) -> bool {
        let (base_dir, job) = (self.base_dir.clone(), self.job().clone());
        let listed = within_patience(move || -> backy_store::Result<bool> {
            let listing = Repository::open(&base_dir)?.job(&job)?.revisions()?;
            let is_doubtful = |revision: &Revision| {
                revision.is_local() && revision.is_clean() && revision.trust == Trust::Distrusted
            };
            Ok(listing.revisions.iter().any(is_doubtful))
        });
        matches!(listed.await, Some(Ok(true)))
    }

    /// Calls the program that wants to know of completed backups, with the job's name and, on standard input, what
    /// `status --yaml` prints.
    async fn call_back(&self) {
        let Some(callback) = &self.callback else { return };
        if *self.stop.borrow() {
            return;
        }
        let status = self.child(vec!["status".into(), "--yaml".into()], STATUS_BYTES_MAX).await;
        if status.code() != Some(0) {
            // Who is called back must not take half a list for all there is.
            return self.log_end("status", &status);
        }
        let order = Order {
            program: callback.clone(),
            arguments: vec![self.job().as_str().into()],
            input: status.stdout,
            stdout_bytes_max: ID_BYTES_MAX,
        };
        let longest = Some(self.limits.callback);
        let outcome = child::run(order, &self.limits, longest, self.stop.clone()).await;
        let output = String::from_utf8_lossy(&outcome.stdout).trim_end().to_owned();
        match outcome.code() {
            Some(0) => tracing::info!(job = %self.job(), task = self.task, output, "callback done"),
            _ => self.log_end("callback", &outcome),
        }
    }

    /// Verifies the distrusted revisions; returns whether that came to an end, good or bad.
    async fn verify(&self) -> bool {
        let outcome = self.child(vec!["verify".into()], ID_BYTES_MAX).await;
        if outcome.code() != Some(0) {
            self.log_end("verify", &outcome);
        }
        outcome.code().is_some()
    }

    /// Pulls or pushes, if there are peers. How that ends is only logged.
    async fn talk_to_peers(&self, what: &str) {
        let Some(peers) = &self.peers else { return };
        if *self.stop.borrow() {
            return;
        }
        let arguments = vec![what.into(), "--peers-from-stdin".into()];
        let order = Order { input: peers.clone().into_bytes(), ..self.order(arguments, ID_BYTES_MAX) };
        let outcome = child::run(order, &self.limits, None, self.stop.clone()).await;
        if outcome.code() != Some(0) {
            self.log_end(what, &outcome);
        }
    }

    async fn child(&self, arguments: Vec<OsString>, stdout_bytes_max: usize) -> Outcome {
        child::run(self.order(arguments, stdout_bytes_max), &self.limits, None, self.stop.clone()).await
    }

    fn order(&self, arguments: Vec<OsString>, stdout_bytes_max: usize) -> Order {
        let dir = self.dir();
        order(&self.program, &self.task, dir, arguments, stdout_bytes_max)
    }

    /// Logs the end of a step that did not succeed. That somebody stopped it is nobody's failure.
    fn log_end(&self, step: &str, outcome: &Outcome) {
        match outcome.end {
            End::Stopped => tracing::info!(job = %self.job(), task = self.task, step, "step stopped"),
            _ => self.log_failure(step, &outcome.reason()),
        }
    }

    fn log_failure(&self, step: &str, reason: &str) {
        tracing::error!(job = %self.job(), task = self.task, step, reason, "step failed");
    }
}

/// Does something with files in a thread of its own; `None` when it takes too long. It goes on there until the disk
/// answers.
pub(super) async fn within_patience<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    tokio::time::timeout(DISK_PATIENCE, offload(work)).await.ok()?.ok()
}

/// A child of our own program for a directory. It logs to the `backy.log` there by itself: as a path that follows from a
/// rule, which is not followed through a link.
pub(super) fn order(
    program: &std::path::Path,
    task: &str,
    dir: PathBuf,
    arguments: Vec<OsString>,
    stdout_bytes_max: usize,
) -> Order {
    let mut all: Vec<OsString> = vec!["-t".into(), task.into(), "-b".into(), dir.into()];
    all.extend(arguments);
    Order { program: program.to_owned(), arguments: all, input: Vec::new(), stdout_bytes_max }
}

/// A mark for one round in all logs: four letters and digits.
pub(super) fn new_task() -> String {
    let id = RevisionId::random().map(String::from).unwrap_or_default();
    // The last digits of an id are the evenly distributed ones.
    id.get(id.len().saturating_sub(4)..).unwrap_or("none").to_owned()
}

/// How long a job with distrusted revisions is left alone after they were verified.
pub(super) const VERIFY_EVERY: Duration = Duration::from_secs(86_400);
