//! Makes the original's revisions of a job ours, one after the other, the newest first.
//!
//! Each step leaves a job that works. A revision is read chunk by chunk, each proven by its old hash, and written as a
//! backup writes: chunks, barrier, map. Then its manifest is replaced by one rename, the commit: before it the revision
//! is the original's, after it ours, under the same id, with the same time, tags, trust and statistics. Only then its
//! old image goes, and the old chunks that no other revision of the original needs. `.purge_pending` is set before
//! the first commit, so whatever is cut off is cleared by the next upgrade or purge.
//!
//! What cannot be read of a revision stays damage: the new map names the old chunk there, which no store has, so that
//! reading fails at that place and nowhere else. Such a revision is distrusted.

mod copy;
mod plan;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;

use self::copy::{Lost, Memo};
pub use self::plan::{Plan, plan};
use super::chunk::OldChunks;
use super::image::OldImage;
use super::lock;
use super::map::OldMap;
use super::purge::{self, Freed};
use crate::error::{Error, Result};
use crate::format::ChunkId;
use crate::fs::disk;
use crate::fs::lock::BackupGuard;
use crate::maintain::damage::{self, Difference};
use crate::monitor::{Finding, Monitor};
use crate::repository::job::{Job, job_files};
use crate::revision::{BackendType, Revision, RevisionId};
use crate::timestamp::Timestamp;
use crate::write::{NewRevision, Reuse};

/// How to upgrade.
#[derive(Clone, Copy, Debug)]
pub struct UpgradeOptions {
    /// Threads that decode and compress.
    pub threads: usize,
    /// zstd level, 1 to 19.
    pub level: i32,
    /// The present time, for reports.
    pub now: Timestamp,
}

/// What an upgrade did.
#[derive(Clone, Debug, Default)]
pub struct UpgradeReport {
    /// Revisions that are ours now.
    pub upgraded: Vec<RevisionId>,
    /// Of them, those of which something could not be read, with its ranges: they are distrusted.
    pub damaged: Vec<(RevisionId, Vec<(u64, u64)>)>,
    /// Revisions that stayed as they were, and why.
    pub left: Vec<(RevisionId, String)>,
    /// Bytes that the store grew by.
    pub stored_bytes: u64,
    /// What was freed of the original's.
    pub freed: Freed,
    /// Why chunks of the original stay, if some do.
    pub freed_later: Option<String>,
}

/// Makes the revisions of a plan ours. It can be stopped and begun again at any time.
pub fn upgrade(
    job: &Job,
    guard: &BackupGuard,
    plan: &Plan,
    options: &UpgradeOptions,
    monitor: &dyn Monitor,
) -> Result<UpgradeReport> {
    job.repository().check_ours()?;
    job.remove_unfinished(guard)?;
    let mut report = UpgradeReport { left: plan.left.clone(), ..UpgradeReport::default() };
    if !plan.revisions.is_empty() {
        purge::set_pending(job)?;
        // A marker that was found may be of a run that was killed before it was durable.
        disk::sync_dir(job.dir())?;
    }
    report.freed.add(purge::remove_leftovers(job)?);
    let (references, memo) = (References::count(job)?, Mutex::default());
    let mut upgrade = Upgrade { job, guard, options, monitor, references, memo, report };
    monitor.begin("upgrading", Some(plan.image_bytes));
    let done = plan.revisions.iter().try_for_each(|revision| upgrade.revision(revision));
    monitor.end();
    done?;
    let mut report = upgrade.report;
    if purge::is_pending(job) {
        match purge::purge(job, monitor) {
            Ok(freed) => report.freed.add(freed),
            Err(error @ (Error::Locked { .. } | Error::SweepRefused { .. })) => {
                report.freed_later = Some(error.to_string());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(report)
}

/// How many maps of the original name each of its chunks.
struct References {
    counts: HashMap<ChunkId, u32>,
    /// Whether some map could not be read: then nothing is freed before all is looked at again.
    is_unsure: bool,
}

impl References {
    fn count(job: &Job) -> Result<Self> {
        let mut this = Self { counts: HashMap::new(), is_unsure: false };
        for (file, path) in job_files(job.dir())? {
            let Some(id) = file.of_manifest() else { continue };
            match crate::format::manifest::read(&path, id) {
                Ok(revision) if !revision.is_old() || revision.backend_type == BackendType::Cowfile => {
                    continue;
                }
                _ => {}
            }
            match OldMap::open(&job.old_image_path(id)) {
                Ok(map) => distinct(&map).into_iter().for_each(|id| *this.counts.entry(id).or_default() += 1),
                Err(_) => this.is_unsure = true,
            }
        }
        // Images whose manifests are away need their chunks as well.
        this.is_unsure |= !purge::images_without_manifest(job)?.is_empty();
        Ok(this)
    }

    /// Takes a map out; returns the chunks that no other names.
    fn release(&mut self, names: HashSet<ChunkId>) -> Vec<ChunkId> {
        let mut unneeded = Vec::new();
        for id in names {
            if let Some(count) = self.counts.get_mut(&id) {
                *count = count.saturating_sub(1);
                if *count == 0 && !self.is_unsure {
                    unneeded.push(id);
                }
            }
        }
        unneeded
    }
}

fn distinct(map: &OldMap) -> HashSet<ChunkId> {
    map.names().collect()
}

struct Upgrade<'u> {
    job: &'u Job,
    guard: &'u BackupGuard,
    options: &'u UpgradeOptions,
    monitor: &'u dyn Monitor,
    references: References,
    memo: Mutex<Memo>,
    report: UpgradeReport,
}

impl Upgrade<'_> {
    fn revision(&mut self, revision: &Revision) -> Result<()> {
        let image = match OldImage::open(self.job, revision) {
            // Damaged or forgotten since the plan was made.
            Err(error) if error.is_damage() => {
                self.report.left.push((revision.id.clone(), error.to_string()));
                return Ok(());
            }
            other => other?,
        };
        let writer = self.job.new_revision(self.guard, self.as_new(revision, image.size_bytes()))?;
        let lost = copy::copy(self, &image, &writer)?;
        self.quarantine(revision, &lost)?;
        let (stored, is_damaged) = (writer.stats().stored_bytes, !lost.is_empty());
        // A purge may have found nothing to do meanwhile.
        purge::set_pending(self.job)?;
        let names = image.map().map(distinct).unwrap_or_default();
        let kind = String::from(revision.backend_type.clone());
        match writer.finish_over(
            self.guard,
            revision,
            is_damaged,
            BTreeMap::from([("upgraded_from".to_owned(), kind.into())]),
        ) {
            // Forgotten while it was read: it stays as it is.
            Err(Error::RevisionUnknown { .. }) => return Ok(()),
            other => drop(other?),
        }
        tracing::info!(job = %self.job.name(), revision = %revision.id, is_damaged, "revision-upgraded");
        drop(image);
        self.report.stored_bytes += stored;
        self.report.upgraded.push(revision.id.clone());
        if is_damaged {
            let ranges = lost.iter().map(|lost| (lost.offset, lost.length)).collect();
            self.report.damaged.push((revision.id.clone(), ranges));
        }
        self.report.freed.add(purge::remove_upgraded(self.job, &revision.id)?);
        self.free(names)
    }

    fn as_new(&self, revision: &Revision, image_size_bytes: u64) -> NewRevision {
        NewRevision {
            id: revision.id.clone(),
            timestamp: revision.timestamp,
            tags: revision.tags.clone(),
            image_size_bytes,
            base: None,
            parent: None,
            reuse: Reuse::Header,
            level: self.options.level,
            // Each chunk is placed again where a later revision has it, as what it was put.
            with_others: false,
        }
    }

    /// Keeps the files of damaged chunks before anything can remove them, and tells every place.
    fn quarantine(&self, revision: &Revision, lost: &[Lost]) -> Result<()> {
        let mut kept = HashSet::new();
        for lost in lost {
            self.monitor.finding(&Finding {
                job: self.job.name().clone(),
                revision: Some(revision.id.clone()),
                range: Some((lost.offset, lost.length)),
                chunk: Some(lost.id),
                problem: lost.problem.clone(),
            });
            if kept.insert(lost.id) {
                let mut file = Vec::new();
                let read =
                    OldChunks::open(self.job.dir()).and_then(|chunks| chunks.read_file(&lost.id, &mut file));
                let stored = read.is_ok().then_some(&file[..]);
                let (offset, problem) = (lost.offset, &*lost.problem);
                let difference = Difference { revision: &revision.id, offset, source: None, stored, problem };
                damage::quarantine(self.job, &difference, self.options.now)?;
            }
        }
        Ok(())
    }

    /// Frees the chunks that only this revision needed. Where somebody reads there, a later purge does it.
    fn free(&mut self, names: HashSet<ChunkId>) -> Result<()> {
        let unneeded = self.references.release(names);
        if unneeded.is_empty() {
            return Ok(());
        }
        match lock::for_purge(self.job.dir(), self.job.name()) {
            Err(Error::Locked { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(guard) => {
                let chunks = OldChunks::open(self.job.dir())?;
                self.report.freed.add(purge::remove(&chunks, &guard, &unneeded, self.monitor)?);
                Ok(())
            }
        }
    }
}
