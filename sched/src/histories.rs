//! The histories of the jobs of a store, looked up cheaply: a job whose directory has not changed since its history was
//! taken is not listed again, in this process or in a later one (the store's index keeps memos of them).
//!
//! Looking only reads. A job that cannot be looked at becomes a fact, not an error, so it does not hide the others.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use backy_store::maintain::damage;
use backy_store::{
    Error as StoreError, Generation, Job, JobName, KnownRevisions, Memo, Repository, Timestamp,
};

use crate::error::in_full;
use crate::policy::health::counted;
use crate::policy::history::History;

/// What a look at a job's directory showed.
#[derive(Clone, Debug, PartialEq)]
pub struct Look {
    /// Since when the job has been there; `None` when it is not.
    pub since: Option<Timestamp>,
    /// Its revisions in short.
    pub history: Arc<History>,
    /// Manifests that cannot be read.
    pub unreadable: usize,
    /// Reports in its quarantine.
    pub quarantine_reports: usize,
    /// Why the job could not be looked at; all else is then unknown.
    pub failure: Option<String>,
}

impl Look {
    /// At a job that cannot be looked at.
    pub fn failed(why: String, now: Timestamp) -> Self {
        Self { failure: Some(why), ..Self::at_nothing(now) }
    }

    /// The same, unless `away` revisions of the job are in the store's register and cannot be seen: its directory is on a
    /// disk that is away, most likely, and nothing else that was seen there means anything.
    fn unless_away(self, away: usize, now: Timestamp) -> Self {
        match away {
            0 => self,
            _ => Self::failed(
                format!("its directory is away: {} of it cannot be seen", counted(away, "revision")),
                now,
            ),
        }
    }

    /// At a job without a directory.
    pub fn at_nothing(now: Timestamp) -> Self {
        Self {
            since: None,
            history: Arc::new(History::empty(now)),
            unreadable: 0,
            quarantine_reports: 0,
            failure: None,
        }
    }
}

/// The form of the memos. To be changed with what is in a history, or with what that means.
const MEMO_VERSION: &str = "3 ";

/// Histories that were taken, by job. Many threads may look at once; nothing is locked while one reads from the disk.
#[derive(Debug, Default)]
pub struct Histories(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    histories: HashMap<JobName, (Generation, Arc<History>)>,
    unsaved: Vec<JobName>,
}

impl Histories {
    /// Begins with what the index of the store remembers.
    pub fn load(repository: &Repository) -> Self {
        let remembered = repository.memos().into_iter().filter_map(|(job, memo)| {
            // A memo of another version is as good as none.
            let history: History = serde_json::from_str(memo.text.strip_prefix(MEMO_VERSION)?).ok()?;
            Some((job, (memo.generation, Arc::new(history))))
        });
        Self(Mutex::new(Known { histories: remembered.collect(), unsaved: Vec::new() }))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at one job: a few system calls, and a listing of its revisions if its directory has changed.
    pub fn look(&self, repository: &Repository, name: &JobName, now: Timestamp) -> Look {
        let looked = match repository.job(name) {
            Ok(job) => self.look_at(&job, now),
            Err(StoreError::JobUnknown { .. }) => Ok(Look::at_nothing(now)),
            Err(error) => Err(error),
        };
        let looked = looked.and_then(|look| match look.history.local {
            0 => repository.registered_revisions(name).map(|away| look.unless_away(away, now)),
            _ => Ok(look),
        });
        looked.unwrap_or_else(|error| Look::failed(in_full(&error), now))
    }

    fn look_at(&self, job: &Job, now: Timestamp) -> backy_store::Result<Look> {
        // Taken before the revisions are listed: what changes in between makes the history stale at once.
        let generation = job.generation()?;
        let known = self.known().histories.get(job.name()).cloned();
        let (history, unreadable) = match known {
            Some((known, history)) if known == generation && history.is_current(now) => (history, 0),
            _ => self.take(job, generation, now)?,
        };
        let quarantine_reports = damage::quarantine_reports(job)?;
        let since = since(job.dir(), &job.config_path());
        Ok(Look { since, history, unreadable, quarantine_reports, failure: None })
    }

    fn take(
        &self,
        job: &Job,
        generation: Generation,
        now: Timestamp,
    ) -> backy_store::Result<(Arc<History>, usize)> {
        let (revisions, damaged) = job.revisions_again(&mut KnownRevisions::default())?;
        let history = Arc::new(History::of(revisions.iter().map(AsRef::as_ref), now));
        // A manifest can be repaired in its place, which the directory does not show.
        if damaged.is_empty() && generation.is_settled(now) {
            let mut known = self.known();
            known.histories.insert(job.name().clone(), (generation, Arc::clone(&history)));
            known.unsaved.push(job.name().clone());
        } else {
            self.known().histories.remove(job.name());
        }
        Ok((history, damaged.len()))
    }

    /// Lets the index remember what was taken since it was asked to last.
    pub fn save(&self, repository: &Repository) {
        let unsaved: Vec<(JobName, Generation, Arc<History>)> = {
            let mut known = self.known();
            let names = std::mem::take(&mut known.unsaved).into_iter();
            let entry = |job: JobName| {
                known
                    .histories
                    .get(&job)
                    .map(|(generation, history)| (job.clone(), *generation, Arc::clone(history)))
            };
            names.filter_map(entry).collect()
        };
        let memos = unsaved.into_iter().filter_map(|(job, generation, history)| {
            let text = serde_json::to_string(&*history).ok()?;
            Some((job, Memo { generation, text: format!("{MEMO_VERSION}{text}") }))
        });
        let memos: Vec<(JobName, Memo)> = memos.collect();
        repository.keep_memos(&memos);
    }
}

/// Since when a job has been there: its directory's birth or its configuration's last change, whichever is
/// earlier. So neither editing the configuration nor copying the directory makes a job look new.
fn since(dir: &Path, config: &Path) -> Option<Timestamp> {
    let changed = std::fs::metadata(config).ok().and_then(|facts| Timestamp::from_secs(facts.mtime()));
    let born = std::fs::metadata(dir).and_then(|facts| facts.created()).ok();
    let born = born.and_then(|born| born.duration_since(UNIX_EPOCH).ok());
    let born = born.and_then(|born| Timestamp::from_secs(i64::try_from(born.as_secs()).ok()?));
    changed.into_iter().chain(born).min()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A store with the job `web01`, whose directory looks as if it had been quiet for an hour.
    fn quiet_job() -> (tempfile::TempDir, Repository, JobName) {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::create(&dir.path().join("srv"), Timestamp::now()).unwrap();
        let name = JobName::parse("web01").unwrap();
        repository
            .create_job(&name, false, "source: {type: file, filename: /x}\n", Timestamp::now())
            .unwrap();
        age(&repository, 3600);
        (dir, repository, name)
    }

    fn age(repository: &Repository, secs: u64) {
        let dir = std::fs::File::open(repository.root().join("web01")).unwrap();
        let then = u64::try_from(Timestamp::now().as_secs()).unwrap() - secs;
        dir.set_modified(UNIX_EPOCH + Duration::from_secs(then)).unwrap();
    }

    fn add(repository: &Repository, id: &str) {
        let text = format!(
            "uuid: {id}\ntimestamp: 2024-03-01 12:00:00+00:00\nstats: {{duration: 1.0}}\ntags: [daily]\nbackend_type: ''\nserver: backup2\n"
        );
        std::fs::write(repository.root().join("web01").join(format!("{id}.rev")), text).unwrap();
    }

    #[test]
    fn what_has_not_changed_is_remembered_and_what_has_is_seen() {
        let (_dir, repository, name) = quiet_job();
        add(&repository, "aaa");
        age(&repository, 3600);
        let now = Timestamp::now();
        let histories = Histories::load(&repository);
        let look = histories.look(&repository, &name, now);
        assert_eq!((look.history.revisions, look.history.local, look.unreadable), (1, 0, 0), "{look:?}");
        histories.save(&repository);
        // A later process believes the memo: it does not even notice a file of the same directory state.
        let later = Timestamp::now();
        let histories = Histories::load(&repository);
        assert_eq!(histories.look(&repository, &name, later).history, look.history);
        assert!(histories.known().unsaved.is_empty());
        add(&repository, "bbb");
        assert_eq!(histories.look(&repository, &name, later).history.revisions, 2);
        assert!(
            histories.known().unsaved.is_empty(),
            "a directory that has just changed may change again unseen"
        );
        age(&repository, 60);
        histories.look(&repository, &name, Timestamp::now());
        assert_eq!(histories.known().unsaved.len(), 1);
    }

    #[test]
    fn what_cannot_be_read_is_a_fact_and_looked_at_again() {
        let (_dir, repository, name) = quiet_job();
        add(&repository, "aaa");
        std::fs::write(repository.root().join("web01/bbb.rev"), "{").unwrap();
        age(&repository, 3600);
        let histories = Histories::load(&repository);
        let look = histories.look(&repository, &name, Timestamp::now());
        assert_eq!((look.history.revisions, look.unreadable), (1, 1));
        assert!(histories.known().histories.is_empty());
        let missing = JobName::parse("web02").unwrap();
        let look = histories.look(&repository, &missing, Timestamp::now());
        assert_eq!((look.since, look.failure, look.history.all), (None, None, 0));
        std::fs::write(repository.root().join("web01/quarantine"), "").unwrap();
        let look = histories.look(&repository, &name, Timestamp::now());
        assert!(look.failure.unwrap().contains("quarantine"));
    }
}
