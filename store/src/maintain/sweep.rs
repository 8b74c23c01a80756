//! Removes chunks and groups that nothing refers to, beside running backups, restores and mounts.
//!
//! # What may be deleted
//!
//! A file is **needed** when a map names it, or a running session's log does. For a chunk that is made by a recipe a map
//! names every file that the recipe refers to: the group in which it is, the groups of its runs, its base, and the files that
//! its runs copy pages from. A map names
//! no more than that, so a group goes when no needed recipe refers to it, and nothing has to be read but maps and logs. The
//! full chunk of an id that a map names by a recipe is kept where there is one, since readers prefer it.
//!
//! Maps are those in the register (`register.rs`), those in any directory of the store, and those that a reader or
//! writer has pinned. A new recipe refers to the new group of its own backup, whose id is in the log before the file
//! exists, and to files that come from a map that the writer has pinned, its base's or another disk's. The pin ends after
//! the commit, when the new map names them. Files that the page index has told of are logged before they are looked for, as
//! every chunk that is used again.
//!
//! A file that is not needed is deleted when its end is **explained**: a map names it that this or an earlier purge has
//! removed past the hold time (a `purged` record), or a session that died before its commit has written it. Without such
//! an explanation it waits until purges at least the hold time apart, and at least 7 days, have found it so
//! (`sweep/unexplained.rs`).
//!
//! # Why nothing needed is deleted: against time
//!
//! A writer logs an id with the shard locked shared, *then* looks for the chunk. The sweep (1) distinguishes dead
//! sessions from live ones, (2) removes what is past the hold time, (3) reads the logs and opens the pins, *then* lists
//! and reads the register and the directories: a writer that commits in between is in one of the two, because logs of
//! finished writers stay until a sweep that saw them dead in step 1 has ended (and what those committed is in the maps
//! read in step 3). (4) Shard by shard it takes the exclusive lock, reads what was appended to the logs and removes
//! what is still not needed. A writer that logs an id later finds the chunk gone and writes it; one that logged it
//! before is seen. No access time is part of this, and no clock but for the hold times.
//!
//! # Why nothing needed is deleted: against absence
//!
//! That something cannot be seen never makes a chunk unneeded:
//!
//! - A job's directory that is away, unmounted, hidden, renamed, moved to another folder, also while the sweep reads, or
//!   empty: the register has its maps. The sweep names the job and keeps everything, until an operator says that it was
//!   deleted on purpose (`SweepOptions::without`); then the hold time begins, and a job that comes back stays.
//! - A manifest or map that is away, deleted by hand or not copied yet: the same, for one revision. A map without a
//!   manifest is never removed for that. A map that is missing in the job's directory is made again from the register.
//! - A job directory that was copied into the store and that the register does not know: its maps count as they are
//!   seen, and are entered.
//! - A copy of a job's directory under another name is a job of its own, with records of its own: what is forgotten in the
//!   copy takes nothing from the other. A directory that was renamed is known by its map, which is the same file.
//! - The register itself: each purge leaves the names of all records in `.registered`. One that is gone, and the directories
//!   do not have it either: the sweep refuses, also with `force`. Where there is no register yet, nothing is explained.
//! - Any error but "not found", a directory nested too deep, a map that cannot be read and has no second copy, a
//!   manifest whose map is lost, another file system than before: the sweep refuses.
//! - Another store on the same directory of chunks, whose maps are all unseen: a purge runs only where the chunks are this
//!   store's own (`repository/claim.rs`).
//! - Where all that is lost at once, what was not explained still waits.
//!
//! What is needed and not in the store is reported, marked as damaged, and the revisions that use it are distrusted.
//!
//! The locks that all this takes are in the table of `lock.rs`.

mod forgotten;
mod needs;
mod records;
mod registered;
pub(crate) mod scan;
mod unexplained;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use crate::error::{Error, Refusal, Result};
use crate::format::ChunkId;
use crate::format::map::ChunkMap;
use crate::format::name::FileName;
use crate::fs::disk;
use crate::fs::lock::{self, SweepGuard};
use crate::legacy::purge::{self, Freed};
use crate::maintain::damage;
use crate::monitor::Monitor;
use crate::name::JobName;
use crate::read::files::Files;
use crate::repository::register::{self, Record, Register, State};
use crate::repository::session::{self, LogTails, Session, Sessions};
use crate::repository::{Repository, claim};
use crate::revision::RevisionId;
use crate::timestamp::Timestamp;
use crate::write::pages::PageIndex;

use needs::Needs;
pub(crate) use records::seen_in;
use registered::Registered;
use scan::Tree;
use unexplained::Unexplained;

/// How to sweep.
#[derive(Clone, Debug)]
pub struct SweepOptions {
    /// Delete nothing, only count.
    pub dry_run: bool,
    /// Go on where the sweep would refuse.
    pub force: bool,
    /// The store was moved to its present file system on purpose, and the chunks that it uses are its own.
    pub moved: bool,
    /// Jobs whose missing revisions were deleted on purpose.
    pub without: Vec<JobName>,
    /// Revisions forgotten less than this many seconds ago stay and can be undeleted.
    pub hold_secs: i64,
    /// The present time.
    pub now: Timestamp,
}

impl SweepOptions {
    /// An ordinary purge with this hold time in seconds.
    pub fn new(hold_secs: i64, now: Timestamp) -> Self {
        Self { dry_run: false, force: false, moved: false, without: Vec::new(), hold_secs, now }
    }
}

/// What a sweep did, or would do.
#[derive(Clone, Debug, Default)]
pub struct SweepReport {
    /// Chunks that stay.
    pub chunks_kept: u64,
    /// Chunks removed.
    pub chunks_deleted: u64,
    /// Bytes of their files.
    pub bytes_deleted: u64,
    /// Of those that stay, the ones that nothing refers to for no known reason. A purge after 7 days, or the hold time if
    /// that is longer, deletes them if it is still so.
    pub chunks_waiting: u64,
    /// Chunks that revisions need and that are not in the store.
    pub chunks_missing: u64,
    /// Revisions that were distrusted because they need missing chunks.
    pub distrusted: Vec<(JobName, RevisionId)>,
    /// Revisions that were committed and whose manifests are nowhere in the store; their chunks stay.
    pub missing: BTreeMap<JobName, Vec<RevisionId>>,
    /// Revisions that were given up as deleted on purpose, now or less than the hold time ago.
    pub dropped: u64,
    /// Links in the store that lead nowhere.
    pub dangling: Vec<PathBuf>,
    /// Revisions whose chunk map was made again from the register.
    pub maps_repaired: Vec<RevisionId>,
    /// Chunk maps without a manifest that the register does not know.
    pub stray_maps: Vec<PathBuf>,
    /// Forgotten revisions that are gone for good.
    pub revisions_deleted: Vec<(JobName, RevisionId)>,
    /// Forgotten revisions that can still be undeleted.
    pub revisions_held: u64,
    /// Files that dead runs left.
    pub temporary_deleted: u64,
    /// What was freed of the original's images and chunks.
    pub old: Freed,
    /// Jobs in which chunks of the original wait for a later purge, and why.
    pub old_left: Vec<(JobName, String)>,
}

/// What a dry run takes as removed. In a real run the files and the states of the records tell.
type Gone = HashSet<(JobName, RevisionId)>;

struct Sweep<'s> {
    repository: &'s Repository,
    options: &'s SweepOptions,
    monitor: &'s dyn Monitor,
    backend: Files,
    register: Register,
    needs: Needs,
    tails: LogTails,
    /// What `purged` records and dead sessions name, sorted: reasons for a deletion.
    explained: Vec<ChunkId>,
    unexplained: Unexplained,
    /// Whether readers or writers alone hold chunks: those stay, with the reason for which they can go later.
    has_ghosts: bool,
    /// Jobs of which something is missing, or was given up before.
    incomplete: HashSet<JobName>,
    report: SweepReport,
}

/// Removes forgotten revisions past the hold time and every chunk that is not needed, as the head of this file says.
pub fn sweep(repository: &Repository, options: &SweepOptions, monitor: &dyn Monitor) -> Result<SweepReport> {
    repository.check_ours()?;
    let root = repository.root();
    let guard = match options.dry_run {
        true => lock::for_looking(root)?,
        false => repository.with_reserve(|| lock::for_sweep(root))?,
    };
    repository.check_chunks()?;
    if !options.moved {
        claim::check(root)?;
    }
    let backend = repository.backend()?;
    check_file_system(repository, options)?;
    // A purge is seen by other machines before it looks who may be using the store there.
    let _session = if options.dry_run { None } else { Session::begin_sweep(root)? };
    if !options.dry_run {
        repository.with_reserve(|| claim::for_purging(root, options.moved))?;
    }
    let (sessions, temporary_deleted) = match options.dry_run {
        true => Sessions::count(root)?,
        false => repository.with_reserve(|| Sessions::scan(root))?,
    };
    sessions.must_be_seen(root)?;
    let mut sweep = Sweep {
        repository,
        options,
        monitor,
        backend,
        register: Register::of(repository),
        needs: Needs::new(),
        tails: LogTails::new(&sessions),
        explained: Vec::new(),
        unexplained: Unexplained::load(repository, options.hold_secs, options.now),
        has_ghosts: false,
        incomplete: HashSet::new(),
        report: SweepReport { temporary_deleted, ..SweepReport::default() },
    };
    let suspects = sessions.suspects(root)?;
    sweep.needs.doubt(suspects.unproven.into_iter().chain(suspects.failed));
    let registered = Registered::load(repository)?;
    let has_register = disk::exists(&repository.root().join(register::DIR))?;
    let mut gone = sweep.remove_forgotten(&guard)?;
    sweep.settle(&mut gone)?;
    let (tree, records) = sweep.collect_needs(&sessions, &gone)?;
    let unregistered = records::unregistered(&sweep.register, &tree, &records)?;
    sweep.check_register(&registered, &tree, &records, &unregistered)?;
    sweep.check_needs_are_known(&tree, &records)?;
    // Before there was a register, jobs may have gone away that nothing knows of: then nothing is explained.
    if has_register {
        sweep.explain(&sessions, &records, &gone)?;
    }
    if !tree.dangling.is_empty() {
        sweep.unexplained.suspend();
    }
    sweep.find_missing_chunks(&tree)?;
    if options.dry_run {
        sweep.count()?;
        return Ok(sweep.report);
    }
    sweep.repair(&tree, &records, &unregistered)?;
    sweep.delete(&guard)?;
    let is_named = |id: &ChunkId| sweep.needs.has(id) || sweep.unexplained.is_waiting(id);
    damage::remove_stale_marks(repository, &*sweep.backend, &is_named)?;
    sweep.unexplained.save(repository)?;
    if sweep.report.chunks_deleted > 0
        && let Some(pages) = PageIndex::open(root)
    {
        pages.compact(&|file| sweep.needs.needs(file));
    }
    sweep.close_register(&registered, &tree)?;
    if !sessions.suspects(repository.root())?.unproven.is_empty() {
        // The lists of what must be read before it is used go now: what stays of it has to be durable.
        sweep.backend.barrier()?;
    }
    sessions.remove_dead(repository.root())?;
    sweep.purge_originals()?;
    repository.refill_reserve();
    Ok(sweep.report)
}

fn check_file_system(repository: &Repository, options: &SweepOptions) -> Result<()> {
    if repository.is_on_its_file_system()? {
        return Ok(());
    }
    if options.dry_run {
        tracing::warn!("purge-would-refuse: the store is on another file system than when it was made");
        return Ok(());
    }
    if !options.moved && !options.force {
        return Err(Error::SweepRefused { refusal: Refusal::Moved { root: repository.root().to_owned() } });
    }
    repository.adopt_file_system()
}

impl Sweep<'_> {
    fn refuse(&self, refusal: Refusal) -> Result<()> {
        if self.options.force {
            tracing::warn!(reason = %refusal, "refusal-overridden");
            return Ok(());
        }
        Err(Error::SweepRefused { refusal })
    }

    fn is_held(&self, since: Timestamp) -> bool {
        self.options.now.as_secs().saturating_sub(since.as_secs()) < self.options.hold_secs
    }

    /// Collects every chunk that is needed. The order is part of the proof: logs, pins, then maps.
    fn collect_needs(&mut self, sessions: &Sessions, gone: &Gone) -> Result<(Tree, Vec<Record>)> {
        self.monitor.begin("collecting references", None);
        let root = self.repository.root();
        let mut logged = HashSet::new();
        self.tails.read(root, &mut |id| {
            logged.insert(id);
        })?;
        let pins = open_pins(root, sessions)?;
        let records = self.register.list()?;
        let tree = scan::scan(root)?;
        for (id, path) in &tree.maps {
            let job = path.parent().and_then(records::job_of);
            if job.is_some_and(|job| gone.contains(&(job, id.clone()))) {
                continue;
            }
            self.needs.add_map(id, path, &self.backend, self.monitor)?;
        }
        for record in records.iter().filter(|record| record.state != State::Purged) {
            if !gone.contains(&(record.job.clone(), record.id.clone())) {
                let path = self.register.path(record);
                self.needs.add_map(&record.id, &path, &self.backend, self.monitor)?;
            }
        }
        for pin in &pins {
            self.has_ghosts |= self.needs.add_pinned(pin, &self.backend)?;
        }
        // What only a running writer names may have no name at all when that writer fails.
        for id in logged {
            self.has_ghosts |= self.needs.add_logged(id);
        }
        self.report_absence(&tree, &records)?;
        self.monitor.end();
        Ok((tree, records))
    }

    /// Collects the reasons for deletions: what revisions named that a purge has removed, and what dead sessions wrote.
    fn explain(&mut self, sessions: &Sessions, records: &[Record], gone: &Gone) -> Result<()> {
        let Self { needs, explained, register, .. } = self;
        let mut add = |id: ChunkId| explained.push(id);
        let is_going = |record: &&Record| {
            record.state == State::Purged || gone.contains(&(record.job.clone(), record.id.clone()))
        };
        for record in records.iter().filter(is_going) {
            match ChunkMap::open(&register.path(record)) {
                Ok(map) => needs.visit_unneeded(&map, &mut add)?,
                // Nothing is explained by it: what it named waits.
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        sessions.written_in_vain(self.repository.root(), &mut add)?;
        explained.sort_unstable();
        explained.dedup();
        Ok(())
    }

    fn is_explained(&self, id: &ChunkId) -> bool {
        self.explained.binary_search(id).is_ok()
    }

    /// Reports chunks that are needed and not there, marks them, and distrusts the revisions that use them.
    fn find_missing_chunks(&mut self, tree: &Tree) -> Result<()> {
        let mut missing = HashSet::new();
        for shard in 0..=255 {
            let mut present = HashSet::new();
            self.backend.list(shard, &mut |name| {
                present.insert(name);
            })?;
            missing.extend(self.needs.of_shard(shard).filter(|file| !present.contains(file)));
        }
        // A writer logs a chunk before it writes it. What an upgrade found damaged was never written.
        missing.retain(|file| !self.needs.is_logged(&file.id) && file.id.original().is_none());
        // One that a backup repaired while its directory was listed can have been left out.
        let mut missing: Vec<FileName> = missing.into_iter().collect();
        let mut error = None;
        missing.retain(|file| match self.backend.len(file) {
            Ok(length) => length.is_none(),
            Err(failed) => {
                error = Some(failed);
                true
            }
        });
        error.map_or(Ok(()), Err)?;
        let missing = self.missed(missing, tree)?;
        self.report.chunks_missing = missing.len() as u64;
        if !self.options.dry_run && !missing.is_empty() {
            let missing: Vec<ChunkId> = missing.iter().map(|file| file.id).collect();
            self.report.distrusted = damage::record_chunks(self.repository, &missing, self.monitor)?;
        }
        Ok(())
    }

    /// Leaves out the missing files that are not missed: a chunk that was written again in full needs neither its group nor
    /// its base. What no map explains so is missed.
    fn missed(&self, missing: Vec<FileName>, tree: &Tree) -> Result<Vec<FileName>> {
        if missing.is_empty() {
            return Ok(missing);
        }
        let wanted: HashSet<FileName> = missing.iter().copied().collect();
        let (mut missed, mut done_without, mut seen) = (HashSet::new(), HashSet::new(), HashSet::new());
        let records = self.register.list()?;
        let records = records.iter().filter(|record| record.state != State::Purged);
        let paths = records.map(|record| self.register.path(record));
        for path in paths.chain(tree.maps.iter().map(|(_, path)| path.clone())) {
            let map = match ChunkMap::open(&path) {
                // What a damaged map needs is not known: nothing that is missing is done without.
                Err(error) if error.is_damage() => return Ok(missing),
                other => other?,
            };
            for page in 0..map.page_count() {
                if !seen.insert(map.page_key(page)) {
                    continue;
                }
                let entries = match map.read_entries(page) {
                    Err(error) if error.is_damage() => return Ok(missing),
                    other => other?,
                };
                for place in entries.into_iter().flatten() {
                    let mut lacks = place.files().filter(|file| wanted.contains(file)).peekable();
                    if lacks.peek().is_none() {
                        continue;
                    }
                    let is_full = self.backend.len(&FileName::chunk(place.id))?.is_some();
                    if is_full { &mut done_without } else { &mut missed }.extend(lacks);
                }
            }
        }
        Ok(missing.into_iter().filter(|file| missed.contains(file) || !done_without.contains(file)).collect())
    }

    /// Counts what a purge would delete.
    fn count(&mut self) -> Result<()> {
        for shard in 0..=255 {
            for name in self.candidates(shard)? {
                if self.may_go(&name) {
                    self.report.chunks_deleted += 1;
                    self.report.bytes_deleted += self.backend.len(&name)?.unwrap_or(0);
                } else {
                    self.report.chunks_waiting += 1;
                    self.report.chunks_kept += 1;
                }
            }
        }
        Ok(())
    }

    /// Lists the files of a shard that are not needed, and counts the others as kept.
    fn candidates(&mut self, shard: u8) -> Result<Vec<FileName>> {
        let (mut candidates, mut kept) = (Vec::new(), 0);
        let needs = &self.needs;
        self.backend.list(shard, &mut |name| match needs.needs(&name) {
            true => kept += 1,
            false => candidates.push(name),
        })?;
        self.report.chunks_kept += kept;
        Ok(candidates)
    }

    /// Whether a file that is not needed can be deleted now.
    fn may_go(&mut self, name: &FileName) -> bool {
        self.is_explained(&name.id) || self.unexplained.is_due(name.id)
    }

    fn delete(&mut self, _guard: &SweepGuard) -> Result<()> {
        self.monitor.begin("deleting chunks", None);
        for shard in 0..=255 {
            if self.monitor.cancelled() {
                return Err(Error::Cancelled);
            }
            let mut deletable = Vec::new();
            for name in self.candidates(shard)? {
                if self.may_go(&name) {
                    deletable.push((name, self.backend.len(&name)?.unwrap_or(0)));
                } else {
                    self.report.chunks_waiting += 1;
                    self.report.chunks_kept += 1;
                }
            }
            if !deletable.is_empty() {
                self.delete_in(shard, deletable)?;
            }
        }
        self.monitor.end();
        Ok(())
    }

    /// Deletes files of a shard, but for those that a writer has named since.
    fn delete_in(&mut self, shard: u8, files: Vec<(FileName, u64)>) -> Result<()> {
        let _shard = self.backend.lock_shard(shard, true)?;
        let needs = &mut self.needs;
        self.tails.read(self.repository.root(), &mut |id| {
            needs.add_logged(id);
        })?;
        for (name, length) in files {
            if self.needs.needs(&name) {
                self.has_ghosts = true;
                self.report.chunks_kept += 1;
                continue;
            }
            self.backend.delete(&name)?;
            self.report.chunks_deleted += 1;
            self.report.bytes_deleted += length;
            self.monitor.advance(length);
        }
        Ok(())
    }

    /// Frees the original's chunks, job by job. What is in use there waits, and keeps nothing else from being purged.
    fn purge_originals(&mut self) -> Result<()> {
        for job in self.repository.sharing_jobs()?.into_iter().filter(purge::is_pending) {
            match purge::purge(&job, self.monitor) {
                Ok(freed) => self.report.old.add(freed),
                Err(error @ (Error::Locked { .. } | Error::SweepRefused { .. })) => {
                    self.report.old_left.push((job.name().clone(), error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Opens the maps that running sessions have pinned: they stay readable from now on, whatever becomes of their names.
fn open_pins(root: &Path, sessions: &Sessions) -> Result<Vec<ChunkMap>> {
    let mut pins = Vec::new();
    for path in session::pinned_maps(root, sessions)? {
        match ChunkMap::open(&path) {
            Ok(map) => pins.push(map),
            // Its reader has ended.
            Err(error) if error.is_damage() && !disk::exists(&path)? => {}
            Err(error) => return Err(error),
        }
    }
    Ok(pins)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::repository::job::Job;
    use crate::testing::{image, new_job, new_revision, now, write_revision};
    use crate::{FrameCache, Silent, Stats};

    fn options() -> SweepOptions {
        SweepOptions::new(0, now())
    }

    fn run(job: &Job, options: SweepOptions) -> Result<SweepReport> {
        sweep(job.repository(), &options, &Silent)
    }

    fn forget(job: &Job, id: &RevisionId) {
        job.forget(&job.lock_manifests().unwrap(), id, now()).unwrap();
    }

    fn is_whole(job: &Job, revision: &crate::Revision, data: &[u8]) -> bool {
        let reader = job.open_revision(revision, &Arc::new(FrameCache::new(1 << 20))).unwrap();
        let mut read = vec![1; data.len()];
        reader.read_at(0, &mut read).is_ok() && read == data
    }

    #[test]
    fn a_forgotten_revision_holds_its_chunks_until_the_hold_time_is_over() {
        let (_dir, job) = new_job("web01");
        let (one, two) = (image(1, 3 << 22), image(2, 2 << 22));
        let (first, second) = (write_revision(&job, &one, None), write_revision(&job, &two, None));
        forget(&job, &first.id);
        let held = SweepOptions { hold_secs: 60, ..options() };
        let report = run(&job, held).unwrap();
        assert_eq!((report.chunks_kept, report.chunks_deleted, report.revisions_held), (5, 0, 1));
        job.undelete(&job.lock_manifests().unwrap(), &first.id).unwrap();
        assert!(is_whole(&job, &first, &one));
        forget(&job, &first.id);
        let dry = run(&job, SweepOptions { dry_run: true, ..options() }).unwrap();
        let report = run(&job, options()).unwrap();
        assert_eq!((dry.chunks_deleted, dry.bytes_deleted), (report.chunks_deleted, report.bytes_deleted));
        assert_eq!((report.chunks_kept, report.chunks_deleted, report.revisions_deleted.len()), (2, 3, 1));
        assert!(is_whole(&job, &second, &two));
        assert!(job.undelete(&job.lock_manifests().unwrap(), &first.id).is_err());
    }

    #[test]
    fn sweep_keeps_chunks_of_an_unfinished_revision() {
        let (_dir, job) = new_job("web01");
        let data = image(1, 2 << 22);
        let old = write_revision(&job, &data, None);
        let guard = job.lock_for_backup().unwrap();
        let writer = job.new_revision(&guard, new_revision(&data, None)).unwrap();
        let mut chunks = writer.chunk_writer().unwrap();
        chunks.put(0, &data[..1 << 22]).unwrap();
        // The only committed user goes away while the writer counts on the chunk.
        forget(&job, &old.id);
        assert_eq!(run(&job, options()).unwrap().chunks_kept, 1);
        chunks.put(1, &data[1 << 22..]).unwrap();
        drop(chunks);
        let revision = writer.finish(&guard, Stats::default(), BTreeMap::new()).unwrap();
        // The log of a finished writer protects until a sweep has seen it dead before it read the maps.
        run(&job, options()).unwrap();
        assert!(is_whole(&job, &revision, &data));
    }

    #[test]
    fn a_base_that_is_forgotten_and_purged_during_the_backup_keeps_what_the_backup_takes_over() {
        let (_dir, job) = new_job("web01");
        let mut data = image(1, 3 << 22);
        let base = write_revision(&job, &data, None);
        let guard = job.lock_for_backup().unwrap();
        let writer = job.new_revision(&guard, new_revision(&data, Some(base.clone()))).unwrap();
        forget(&job, &base.id);
        run(&job, options()).unwrap();
        data[0] ^= 1;
        writer.chunk_writer().unwrap().put(0, &data[..1 << 22]).unwrap();
        let revision = writer.finish(&guard, Stats::default(), BTreeMap::new()).unwrap();
        run(&job, options()).unwrap();
        assert!(is_whole(&job, &revision, &data));
    }

    #[test]
    fn an_open_image_stays_readable_through_forget_and_purge() {
        let (_dir, job) = new_job("web01");
        let data = image(1, 2 << 22);
        let revision = write_revision(&job, &data, None);
        let reader = job.open_revision(&revision, &Arc::new(FrameCache::new(1 << 20))).unwrap();
        forget(&job, &revision.id);
        assert_eq!(run(&job, options()).unwrap().chunks_deleted, 0);
        let mut read = vec![1; data.len()];
        reader.read_at(0, &mut read).unwrap();
        assert!(read == data);
        drop(reader);
        assert_eq!(run(&job, options()).unwrap().chunks_deleted, 2, "and goes when nobody reads it any more");
    }

    #[test]
    fn a_job_that_vanishes_keeps_its_chunks_and_a_map_that_rots_stops_the_sweep() {
        let (dir, job) = new_job("web01");
        let data = image(1, 2 << 22);
        let revision = write_revision(&job, &data, None);
        let elsewhere = dir.path().join("elsewhere");
        disk::rename(job.dir(), &elsewhere).unwrap();
        let report = run(&job, options()).unwrap();
        assert_eq!((report.chunks_kept, report.missing[job.name()].len()), (2, 1));
        assert_eq!(job.repository().revisions_away(job.name()).unwrap(), 1);
        std::fs::create_dir(job.repository().root().join("folder")).unwrap();
        let nested = job.repository().root().join("folder/web02");
        disk::rename(&elsewhere, &nested).unwrap();
        let report = run(&job, options()).unwrap();
        assert_eq!((report.chunks_kept, report.missing.len()), (2, 0), "a job in a folder is there");
        let records = Register::of(job.repository()).list().unwrap();
        assert_eq!(records[0].job.as_str(), "web02", "the record follows the manifest");
        disk::rename(&nested, job.dir()).unwrap();
        let map = job.map_path(&revision.id);
        let good = std::fs::read(&map).unwrap();
        let mut bytes = good.clone();
        bytes[100] ^= 1;
        std::fs::write(&map, &bytes).unwrap();
        assert!(matches!(run(&job, options()), Err(Error::SweepRefused { .. })));
        // Another file, as on another file system, of which one is enough.
        disk::remove(&map).unwrap();
        std::fs::write(&map, &good).unwrap();
        assert_eq!(run(&job, options()).unwrap().chunks_kept, 2);
        let register = Register::of(job.repository());
        let record = register.list().unwrap().swap_remove(0);
        register.remove(&record).unwrap();
        disk::remove(&map).unwrap();
        assert!(matches!(run(&job, options()), Err(Error::SweepRefused { .. })));
    }

    #[test]
    fn what_a_run_that_failed_wrote_is_removed_without_force() {
        let (_dir, job) = new_job("web01");
        std::fs::create_dir(job.repository().root().join(register::DIR)).unwrap();
        let data = image(1, 2 << 22);
        let guard = job.lock_for_backup().unwrap();
        let writer = job.new_revision(&guard, new_revision(&data, None)).unwrap();
        writer.chunk_writer().unwrap().put(0, &data[..1 << 22]).unwrap();
        drop(writer);
        let report = run(&job, options()).unwrap();
        assert_eq!((report.chunks_kept, report.chunks_deleted), (0, 1));
        assert_eq!(run(&job, options()).unwrap().chunks_deleted, 0);
    }
}
