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

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::chunk::OldChunks;
use super::image::OldImage;
use super::lock;
use super::map::OldMap;
use super::purge::{self, Freed};
use crate::chunk::layout::{chunk_count, chunk_len};
use crate::chunk::store::Scratch;
use crate::chunk::{CHUNK_SIZE, ChunkId};
use crate::damage::{self, Difference};
use crate::disk;
use crate::error::{Context, Error, Result};
use crate::job::{Job, JobFile, job_files};
use crate::lock::BackupGuard;
use crate::monitor::{Finding, Monitor};
use crate::revision::map::PAGE_ENTRIES;
use crate::revision::writer::{ChunkWriter, NewRevision, Reuse, RevisionWriter};
use crate::revision::{BackendType, Revision, RevisionId};
use crate::timestamp::Timestamp;

/// What our files can take more than the data in them, for each chunk: the header, and a page of the file system.
const CHUNK_OVERHEAD: u64 = 8 << 10;

/// What an upgrade would do.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The revisions that would become ours, in this order.
    pub revisions: Vec<Revision>,
    /// Revisions of the original that stay as they are, and why.
    pub left: Vec<(RevisionId, String)>,
    /// Bytes of all images together.
    pub image_bytes: u64,
    /// The most space that is needed beside what is there.
    pub needed_bytes_max: u64,
    /// What the data takes now, which is more than it will mostly need.
    pub needed_bytes: u64,
    /// Space that is free in the store.
    pub free_bytes: u64,
}

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

/// Looks what there is to upgrade in a job. Changes nothing.
pub fn plan(job: &Job) -> Result<Plan> {
    let mut plan = Plan::default();
    let mut chunks = HashSet::new();
    let mut old: Vec<Revision> = job.revisions()?.revisions;
    old.retain(Revision::is_old);
    old.reverse();
    for revision in old {
        if !revision.is_clean() {
            let reason = "its backup did not finish: forget it if it is not running".to_owned();
            plan.left.push((revision.id, reason));
            continue;
        }
        let image = match OldImage::open(job, &revision) {
            Err(error) if error.is_damage() => {
                plan.left.push((revision.id, error.to_string()));
                continue;
            }
            other => other?,
        };
        plan.image_bytes += image.size_bytes();
        match image.map() {
            Some(map) => chunks.extend(map.used_names()),
            None => {
                plan.needed_bytes += image.disk_bytes();
                plan.needed_bytes_max +=
                    image.disk_bytes() + chunk_count(image.size_bytes()) * CHUNK_OVERHEAD;
            }
        }
        plan.revisions.push(revision);
    }
    let files = OldChunks::open(job.dir())?;
    plan.needed_bytes += chunks.iter().map(|id| files.file_len(id)).sum::<u64>();
    plan.needed_bytes_max += chunks.len() as u64 * (CHUNK_SIZE + CHUNK_OVERHEAD);
    let space = nix::sys::statvfs::statvfs(job.repository().root())
        .context("examine the file system of", job.repository().root())?;
    plan.free_bytes = space.blocks_available() as u64 * space.fragment_size() as u64;
    Ok(plan)
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
    monitor.begin("upgrade", Some(plan.image_bytes));
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
            let (JobFile::Manifest(id) | JobFile::Forgotten(id, _)) = file else { continue };
            match crate::revision::manifest::read(&path, &id) {
                Ok(revision) if !revision.is_old() || revision.backend_type == BackendType::Cowfile => {
                    continue;
                }
                _ => {}
            }
            match OldMap::open(&job.old_image_path(&id)) {
                Ok(map) => distinct(&map).into_iter().for_each(|id| *this.counts.entry(id).or_default() += 1),
                Err(_) => this.is_unsure = true,
            }
        }
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

/// An old chunk, cut to a length, and what it became: one of ours, or a hole.
type Memo = HashMap<(ChunkId, u32), Option<ChunkId>>;

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
        let lost = self.copy(&image, &writer)?;
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
        }
    }

    /// Copies all chunks; returns what could not be read, in order.
    fn copy(&self, image: &OldImage, writer: &RevisionWriter) -> Result<Vec<Lost>> {
        let lost = Mutex::new(Vec::new());
        let stop = AtomicBool::new(false);
        let next = AtomicU64::new(0);
        let count = chunk_count(image.size_bytes());
        // A page is a bound for what one thread may be ahead, not more.
        let threads = self.options.threads.max(1).min(count.div_ceil(PAGE_ENTRIES.min(16)).max(1) as usize);
        crate::threads::run(threads, || {
            let mut copier = Copier {
                upgrade: self,
                image,
                chunks: writer.chunk_writer()?,
                scratch: Scratch::new(),
                lost: &lost,
            };
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(());
                }
                if self.monitor.cancelled() || stop.load(Ordering::Relaxed) {
                    return Err(Error::Cancelled);
                }
                copier.chunk(number).inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
                self.monitor.advance(chunk_len(image.size_bytes(), number) as u64);
            }
        })?;
        let mut lost = lost.into_inner().unwrap_or_else(PoisonError::into_inner);
        lost.sort_by_key(|lost| lost.offset);
        Ok(lost)
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

/// A place that could not be read.
struct Lost {
    id: ChunkId,
    offset: u64,
    length: u64,
    problem: String,
}

/// Copies chunks in one thread.
struct Copier<'c> {
    upgrade: &'c Upgrade<'c>,
    image: &'c OldImage,
    chunks: ChunkWriter<'c>,
    scratch: Scratch,
    lost: &'c Mutex<Vec<Lost>>,
}

impl Copier<'_> {
    fn chunk(&mut self, number: u64) -> Result<()> {
        let Some(id) = self.image.get(number) else { return Ok(()) };
        let length = chunk_len(self.image.size_bytes(), number);
        let key = (id, length as u32);
        let memo = || self.upgrade.memo.lock().unwrap_or_else(PoisonError::into_inner);
        let known = memo().get(&key).copied();
        match known {
            // A hole is what the place is already.
            Some(None) => return Ok(()),
            Some(Some(ours)) if self.chunks.place(number, &ours)? => return Ok(()),
            _ => {}
        }
        let problem = match self.image.read(number, &id, &mut self.scratch) {
            Ok(plain) => match plain.bad.into_iter().next() {
                None => {
                    let ours = self.chunks.put_id(number, plain.data)?;
                    // Of raw images the ids are places, which come once.
                    if self.image.is_chunked() {
                        memo().insert(key, ours);
                    }
                    return Ok(());
                }
                Some((_, error)) => error.to_string(),
            },
            Err(error) if error.is_damage() => error.to_string(),
            Err(error) => return Err(error),
        };
        self.chunks.lose(number, &id)?;
        let (offset, length) = (number * CHUNK_SIZE, length as u64);
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.push(Lost { id, offset, length, problem });
        Ok(())
    }
}
