//! The jobs and their directories as they are now, without reading them again for every question.
//!
//! What was read is used for [`CHECK_EVERY`]; then one `stat` per job tells whether anything changed, and only
//! then the revisions are listed again: a `stat` each, and only manifests that have changed are read. The kernel keeps what it was told for
//! [`crate::view::FRESH`]; both together stay below a second.
//!
//! A directory that changed less than two seconds before it was read could change again without its time
//! stamp showing it, so it is listed again at every check until it has settled.
//!
//! No lock is held while the disk is read, except the right to be the one who reads: others go on with what
//! was known before.

use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use backy_store::revision::order;
use backy_store::{Error, Generation, Job, KnownRevisions, Repository, Result, Revision, Timestamp};

use crate::mount::options::Options;
use crate::mutex::lock;
use crate::tree::JobTree;

/// How long an answer is used before it is checked.
const CHECK_EVERY: Duration = Duration::from_millis(300);

/// Complaints remembered per job, so that each is logged once.
const REPORTED_MAX: usize = 10_000;

/// What is mounted.
#[derive(Debug)]
pub(crate) enum Scope {
    /// All jobs of a store.
    Store(Repository),
    /// One job.
    Job(Job),
}

/// The jobs that are shown, by name.
pub(crate) type JobsByName = BTreeMap<String, Arc<JobView>>;

/// The jobs of a mount.
#[derive(Debug)]
pub(crate) struct Jobs {
    scope: Scope,
    options: Options,
    known: Mutex<Option<(Instant, Arc<JobsByName>)>>,
    reading: Mutex<()>,
    reported: Reported,
}

impl Jobs {
    pub(crate) fn new(scope: Scope, options: Options) -> Self {
        Self {
            scope,
            options,
            known: Mutex::default(),
            reading: Mutex::default(),
            reported: Reported::default(),
        }
    }

    /// Returns the jobs as they were at most [`CHECK_EVERY`] ago.
    pub(crate) fn list(&self) -> Result<Arc<JobsByName>> {
        let known = || lock(&self.known).clone();
        let fresh = |at: Instant| at.elapsed() < CHECK_EVERY;
        let before = match known() {
            Some((at, jobs)) if fresh(at) => return Ok(jobs),
            other => other.map(|(_, jobs)| jobs),
        };
        let _reading = match (try_lock(&self.reading), &before) {
            (Some(right), _) => right,
            (None, Some(jobs)) => return Ok(Arc::clone(jobs)),
            (None, None) => lock(&self.reading),
        };
        if let Some((_, jobs)) = known().filter(|(at, _)| fresh(*at)) {
            return Ok(jobs);
        }
        let jobs = match (self.read(before.as_deref()), before) {
            (Ok(jobs), _) => Arc::new(jobs),
            // One unreadable moment must not take everything away from those who use it.
            (Err(error), Some(jobs)) => {
                self.reported.once(&error, || {
                    tracing::error!(
                        error = backy_store::error::in_full(&error),
                        "cannot list the jobs of the store"
                    )
                });
                jobs
            }
            (Err(error), None) => return Err(error),
        };
        *lock(&self.known) = Some((Instant::now(), Arc::clone(&jobs)));
        Ok(jobs)
    }

    fn read(&self, before: Option<&JobsByName>) -> Result<JobsByName> {
        let jobs = match &self.scope {
            Scope::Store(repository) => repository.jobs()?,
            Scope::Job(job) if job.dir().is_dir() => vec![job.clone()],
            Scope::Job(_) => Vec::new(),
        };
        let view = |job: Job| {
            let name = job.name().to_string();
            let known = before.and_then(|before| before.get(&name));
            let same = |known: &&Arc<JobView>| known.job.repository().id() == job.repository().id();
            (name, known.filter(same).cloned().unwrap_or_else(|| Arc::new(JobView::new(job))))
        };
        let shown = |job: &Job| self.options.shows(job.name().as_str());
        Ok(jobs.into_iter().filter(shown).map(view).collect())
    }

    /// Returns a job that is shown.
    pub(crate) fn get(&self, name: &str) -> Result<Option<Arc<JobView>>> {
        Ok(self.list()?.get(name).cloned())
    }
}

/// One job and what was last seen of it.
#[derive(Debug)]
pub(crate) struct JobView {
    job: Job,
    seen: Mutex<Option<Seen>>,
    reading: Mutex<()>,
    /// Only for who has the right to read.
    known: Mutex<KnownRevisions>,
    reported: Reported,
}

#[derive(Clone, Debug)]
struct Seen {
    checked: Instant,
    generation: Generation,
    /// Whether an equal generation proves that nothing changed.
    settled: bool,
    /// For how long the order of the revisions holds: those that are dated in the future come to their time.
    in_order: Range<Timestamp>,
    tree: Arc<JobTree>,
}

impl JobView {
    fn new(job: Job) -> Self {
        Self {
            job,
            seen: Mutex::default(),
            reading: Mutex::default(),
            known: Mutex::default(),
            reported: Reported::default(),
        }
    }

    /// Returns the job.
    pub(crate) fn job(&self) -> &Job {
        &self.job
    }

    /// Returns the job's directory as it was at most [`CHECK_EVERY`] ago.
    pub(crate) fn tree(&self) -> Result<Arc<JobTree>> {
        let seen = || lock(&self.seen).clone();
        let fresh = |seen: &Seen| seen.checked.elapsed() < CHECK_EVERY;
        let before = seen();
        if let Some(seen) = before.as_ref().filter(|seen| fresh(seen)) {
            return Ok(Arc::clone(&seen.tree));
        }
        let _reading = match (try_lock(&self.reading), &before) {
            (Some(right), _) => right,
            (None, Some(seen)) => return Ok(Arc::clone(&seen.tree)),
            (None, None) => lock(&self.reading),
        };
        let before = seen();
        if let Some(seen) = before.as_ref().filter(|seen| fresh(seen)) {
            return Ok(Arc::clone(&seen.tree));
        }
        let now = match (self.read(before.as_ref()), before) {
            (Ok(seen), _) => seen,
            (Err(error), Some(seen)) if error.io_kind() != Some(ErrorKind::NotFound) => {
                self.reported.once(&error, || {
                    tracing::error!(job = %self.job.name(), error = backy_store::error::in_full(&error), "cannot list the revisions of a job");
                });
                Seen { checked: Instant::now(), settled: false, ..seen }
            }
            (Err(error), _) => return Err(error),
        };
        let tree = Arc::clone(&now.tree);
        *lock(&self.seen) = Some(now);
        Ok(tree)
    }

    /// For how long revisions stay in the order that they have at the time `now`. Names those whose dates are wrong.
    fn in_order(&self, revisions: &[Arc<Revision>], now: Timestamp) -> Range<Timestamp> {
        let (job, plain) = (self.job.name(), || revisions.iter().map(AsRef::as_ref));
        for one in plain().filter(|one| order::is_future(one.timestamp, now)) {
            self.reported.once(&format!("future: {}", one.id), || {
                let (revision, timestamp) = (&one.id, one.timestamp);
                tracing::warn!(%job, %revision, %timestamp, "a revision is dated in the future: no link leads to it for that");
            });
        }
        // A clock that is set back by less than two clocks may differ changes nothing.
        let until = order::valid_until(plain(), now).unwrap_or(now.plus_secs(i64::MAX));
        now.plus_secs(-order::SKEW_SECS)..until
    }

    fn read(&self, before: Option<&Seen>) -> Result<Seen> {
        // The generation is taken before the list: what changes in between shows as a difference next time.
        let generation = self.job.generation()?;
        let checked = Instant::now();
        // A mount lives for months: it is a place where the clock has to be read.
        let now = Timestamp::now();
        let is_same =
            |seen: &&Seen| seen.settled && seen.generation == generation && seen.in_order.contains(&now);
        if let Some(seen) = before.filter(is_same) {
            return Ok(Seen { checked, ..seen.clone() });
        }
        let settled = generation.is_settled(now);
        let (revisions, damaged) = self.job.revisions_again(&mut lock(&self.known))?;
        let in_order = self.in_order(&revisions, now);
        let tree = JobTree::new(revisions);
        for finding in damaged {
            self.reported.once(&finding, || tracing::error!(%finding, "a revision is hidden"));
        }
        for (revision, reason) in tree.left_out() {
            self.reported.once(&format!("{revision}: {reason}"), || {
                tracing::warn!(job = %self.job.name(), %revision, reason, "a revision is not shown");
            });
        }
        Ok(Seen { checked, generation, settled, in_order, tree: Arc::new(tree) })
    }
}

/// What was logged already.
#[derive(Debug, Default)]
struct Reported(Mutex<HashSet<String>>);

impl Reported {
    fn once(&self, what: &dyn std::fmt::Display, log: impl FnOnce()) {
        let mut reported = lock(&self.0);
        if reported.len() < REPORTED_MAX && reported.insert(what.to_string()) {
            drop(reported);
            log();
        }
    }
}

/// Whether a lookup failed because the job is gone.
pub(crate) fn is_gone(error: &Error) -> bool {
    error.io_kind() == Some(ErrorKind::NotFound)
}

fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poison)) => Some(poison.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}
