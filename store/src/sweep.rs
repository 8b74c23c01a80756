//! Removes chunks that nothing refers to, beside running backups, restores and mounts.
//!
//! The proof. A chunk is needed when a map names it (of a revision, a forgotten one, or one that a reader has
//! pinned), as an entry or as the base of a delta, or a writer's log does. A delta's file is needed when a map names it,
//! or a log names its chunk. What a writer leans on comes from a map that it has pinned, its base's or another disk's, or
//! was put by itself and is in its log. A writer logs an id with the shard locked shared, *then* looks for the chunk.
//! The sweep (1) tells dead sessions from live ones, (2) removes what is past the hold time, (3) reads the
//! logs and the pins, *then* lists and reads the maps: a writer that commits in between is in one of the two,
//! because logs of finished writers stay until a sweep that saw them dead in step 1 has ended (and what those
//! committed is in the maps read in step 3). (4) Shard by
//! shard it takes the exclusive lock, reads what was appended to the logs and removes what is still not named.
//! A writer that logs an id later finds the chunk gone and writes it; one that logged it before is seen.
//! No clock, age or access time is part of this.
//!
//! The sweep trusts no absence: a map that cannot be read, another file system than at creation, a store whose
//! references have all vanished or that would lose more than half of its chunks for no known reason stop it.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::backend::Backend;
use crate::backend::local::LocalBackend;
use crate::chunk::ChunkId;
use crate::chunk::forms;
use crate::chunk::name::ChunkName;
use crate::damage;
use crate::disk;
use crate::error::{Context, Error, Result};
use crate::job::{Job, JobFile, job_files};
use crate::legacy::purge::{self, Freed};
use crate::lock::{self, SweepGuard};
use crate::monitor::{Finding, Monitor};
use crate::name::{JobName, RESERVED};
use crate::repository::Repository;
use crate::revision::map::{ChunkMap, Entry, PageKey, ids};
use crate::revision::{BackendType, RevisionId, manifest};
use crate::session::{self, LogTails, Sessions};
use crate::timestamp::Timestamp;

/// Directories below the store's root in which manifests are looked for, so that a job that was moved into a
/// folder keeps its chunks.
const DEPTH_MAX: usize = 8;

/// How to sweep.
#[derive(Clone, Copy, Debug)]
pub struct SweepOptions {
    /// Delete nothing, only count.
    pub dry_run: bool,
    /// Go on where the sweep would refuse.
    pub force: bool,
    /// Revisions forgotten less than this many seconds ago stay and can be undeleted.
    pub hold_secs: i64,
    /// The present time.
    pub now: Timestamp,
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

struct Sweep<'s> {
    repository: &'s Repository,
    options: &'s SweepOptions,
    monitor: &'s dyn Monitor,
    backend: LocalBackend,
    /// What maps and logs name.
    live: HashSet<ChunkId>,
    /// The deltas that maps name.
    deltas: HashSet<ChunkName>,
    /// What the logs name.
    logged: HashSet<ChunkId>,
    tails: LogTails,
    /// Whether readers or writers alone hold chunks: those stay, and a later sweep may find them unnamed.
    has_ghosts: bool,
    report: SweepReport,
}

/// Removes forgotten revisions past the hold time and every chunk that nothing refers to.
pub fn sweep(repository: &Repository, options: &SweepOptions, monitor: &dyn Monitor) -> Result<SweepReport> {
    repository.check_ours()?;
    let guard = lock::for_sweep(repository.root())?;
    let backend = repository.backend()?;
    check_place(repository, options)?;
    let (sessions, temporary_deleted) = Sessions::scan(repository.root())?;
    let report = SweepReport { temporary_deleted, ..SweepReport::default() };
    let mut sweep = Sweep {
        repository,
        options,
        monitor,
        backend,
        live: HashSet::new(),
        deltas: HashSet::new(),
        logged: HashSet::new(),
        tails: LogTails::new(&sessions),
        has_ghosts: false,
        report,
    };
    let gone = sweep.remove_forgotten(&guard)?;
    sweep.mark(&sessions, &gone)?;
    let written_by_the_dead = sessions.suspects(repository.root())?.unproven;
    sweep.refuse_or_go_on(&written_by_the_dead)?;
    if options.dry_run {
        return Ok(sweep.report);
    }
    sweep.delete(&guard)?;
    damage::remove_stale_marks(repository, &sweep.backend, &sweep.live)?;
    sessions.remove_dead(repository.root())?;
    if !sweep.has_ghosts {
        disk::remove(&sweep.intent_path())?;
    }
    sweep.purge_originals()?;
    repository.refill_reserve();
    Ok(sweep.report)
}

fn refuse(options: &SweepOptions, reason: String) -> Result<()> {
    if options.force {
        tracing::warn!(%reason, "refusal overridden");
        return Ok(());
    }
    Err(Error::SweepRefused { reason })
}

fn check_place(repository: &Repository, options: &SweepOptions) -> Result<()> {
    if repository.is_on_its_file_system()? {
        return Ok(());
    }
    let reason = "the store is on another file system than when it was made; if it was moved on purpose, use --force once";
    refuse(options, reason.to_owned())?;
    if options.dry_run { Ok(()) } else { repository.adopt_file_system() }
}

impl Sweep<'_> {
    fn refuse(&self, reason: String) -> Result<()> {
        refuse(self.options, reason)
    }

    /// While this file is there, a sweep that removed revisions has not ended, or left chunks to readers: what it
    /// left unnamed has a reason.
    fn intent_path(&self) -> PathBuf {
        self.repository.root().join(".purging")
    }

    /// Removes the manifests and maps past the hold time and what dead runs left in the jobs. Returns the maps
    /// that a dry run has to take as removed.
    fn remove_forgotten(&mut self, _guard: &SweepGuard) -> Result<HashSet<PathBuf>> {
        let mut gone = HashSet::new();
        for job in self.repository.sharing_jobs()? {
            let manifests = job.lock_manifests()?;
            if !self.options.dry_run {
                self.report.old.add(purge::remove_leftovers(&job)?);
                self.report.temporary_deleted += job.remove_orphan_maps(&manifests)?;
            }
            let files = job_files(job.dir())?;
            for (file, path) in &files {
                let JobFile::Forgotten(id, at) = file else { continue };
                if self.options.now.as_secs().saturating_sub(at.as_secs()) < self.options.hold_secs {
                    self.report.revisions_held += 1;
                    continue;
                }
                self.report.revisions_deleted.push((job.name().clone(), id.clone()));
                let lives =
                    files.iter().any(|(other, _)| matches!(other, JobFile::Manifest(other) if other == id));
                if !lives && !job.map_path(id).exists() && purge::has_image(&job, id) {
                    if !self.options.dry_run {
                        self.report.old.add(purge::remove_revision(&job, id, path)?);
                    }
                    continue;
                }
                if !lives {
                    gone.insert(job.map_path(id));
                }
                if !self.options.dry_run {
                    self.remove_revision(&job, path, (!lives).then(|| job.map_path(id)))?;
                }
            }
        }
        Ok(gone)
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

    /// Manifest first, durably; only then the map.
    fn remove_revision(&self, job: &Job, manifest: &Path, map: Option<PathBuf>) -> Result<()> {
        let intent = self.intent_path();
        if !intent.exists() {
            self.repository.with_reserve(|| disk::create_new(&intent).map(drop))?;
            disk::sync_dir(self.repository.root())?;
        }
        disk::remove(manifest)?;
        disk::sync_dir(job.dir())?;
        map.map_or(Ok(()), |map| disk::remove(&map))
    }

    /// Collects every id that is needed. The order is part of the proof: logs, pins, maps.
    fn mark(&mut self, sessions: &Sessions, gone: &HashSet<PathBuf>) -> Result<()> {
        self.monitor.begin("collect references", None);
        let root = self.repository.root();
        let mut logged = HashSet::new();
        self.tails.read(root, &mut |id| {
            logged.insert(id);
        })?;
        let mut seen_pages = HashSet::new();
        for map in session::pinned_maps(root, sessions)? {
            self.has_ghosts |= std::fs::metadata(&map).is_ok_and(|facts| facts.nlink() == 1);
            self.mark_map(&map, &mut seen_pages)?;
        }
        self.mark_below(root, 0, gone, &mut seen_pages)?;
        // What only a running writer names may have no name at all when that writer fails.
        self.has_ghosts |= !logged.is_subset(&self.live);
        self.live.extend(&logged);
        self.logged = logged;
        self.monitor.end();
        Ok(())
    }

    fn mark_below(
        &mut self,
        dir: &Path,
        depth: usize,
        gone: &HashSet<PathBuf>,
        seen: &mut HashSet<PageKey>,
    ) -> Result<()> {
        let files = job_files(dir)?;
        let maps: HashSet<&RevisionId> = files
            .iter()
            .filter_map(|(file, _)| if let JobFile::Map(id) = file { Some(id) } else { None })
            .collect();
        for (file, path) in &files {
            match file {
                JobFile::Map(_) if !gone.contains(path) => self.mark_map(path, seen)?,
                JobFile::Manifest(id) if !maps.contains(id) => self.check_mapless(path, id)?,
                _ => {}
            }
        }
        if depth == DEPTH_MAX {
            return Ok(());
        }
        for entry in std::fs::read_dir(dir).context("list", dir)? {
            let entry = entry.context("list", dir)?;
            let path = entry.path();
            let kind = entry.file_type().context("examine", &path)?;
            // Links are followed at the top only: there they are jobs that lie on another disk.
            if !(kind.is_dir() || depth == 0 && kind.is_symlink() && path.is_dir()) {
                continue;
            }
            let own = depth == 0 && RESERVED.iter().any(|&name| entry.file_name() == name)
                // The original's chunks: very many files, and no manifest among them.
                || entry.file_name() == "chunks" && path.join("store").is_file();
            if !own && !path.join("backy.store").exists() {
                self.mark_below(&path, depth + 1, gone, seen)?;
            }
        }
        Ok(())
    }

    /// A manifest without a map: of the original, whose chunks are not ours, or damage.
    fn check_mapless(&self, path: &Path, id: &RevisionId) -> Result<()> {
        let problem = match manifest::read(path, id) {
            Ok(revision) if revision.backend_type != BackendType::Framed => return Ok(()),
            // Committed after the list was read; its chunks are in its log.
            Ok(_) if std::fs::symlink_metadata(path.with_extension("map")).is_ok_and(|map| map.is_file()) => {
                return Ok(());
            }
            Err(error) if error.io_kind() == Some(std::io::ErrorKind::NotFound) => return Ok(()),
            // Beside an image of the original, it is one of its manifests: the chunks that it needs are not ours.
            Err(_) if purge::is_image(&path.with_extension(""), id) => return Ok(()),
            Ok(_) => "its chunk map is missing".to_owned(),
            Err(error) => error.to_string(),
        };
        self.refuse(format!(
            "revision {id} in {} may need chunks that are not known: {problem}; forget it or use --force",
            path.parent().unwrap_or(path).display()
        ))
    }

    fn mark_map(&mut self, path: &Path, seen: &mut HashSet<PageKey>) -> Result<()> {
        if self.monitor.cancelled() {
            return Err(Error::Cancelled);
        }
        let map = match ChunkMap::open(path) {
            Ok(map) => map,
            // Gone between listing and opening: forgotten and removed by nobody but us, or a pin whose reader ended.
            Err(_) if !path.exists() => return Ok(()),
            Err(error) if error.is_damage() => return self.damaged_map(path, &error),
            Err(error) => return Err(error),
        };
        for page in 0..map.page_count() {
            let key = (*map.page_hash(page), map.bases_hash(page).copied());
            if seen.contains(&key) {
                continue;
            }
            match map.read_entries(page) {
                Ok(entries) => {
                    self.mark_entries(&entries);
                    // Only what was read: the same page of another map may be whole.
                    seen.insert(key);
                }
                Err(error) if error.is_damage() => {
                    self.damaged_map(path, &error)?;
                    self.mark_half(&map, page)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Where the user goes on in spite of a damaged page, half of it is better than nothing. Which deltas of its chunks
    /// are meant cannot be told, so all that there are stay, with their bases.
    fn mark_half(&mut self, map: &ChunkMap, page: u64) -> Result<()> {
        if let Ok(Some(bases)) = map.read_bases(page) {
            self.live.extend(ids(&bases));
        }
        if let Ok(page) = map.read_page(page) {
            self.live.extend(ids(&page));
            let files = forms::find(&self.backend, &ids(&page).collect())?;
            files.into_iter().for_each(|name| self.mark_entries(&[Some(name)]));
        }
        Ok(())
    }

    fn mark_entries(&mut self, entries: &[Entry]) {
        for name in entries.iter().flatten() {
            // What a delta leans on is needed as long as it is.
            self.live.extend(name.ids());
            if name.base.is_some() {
                self.deltas.insert(*name);
            }
        }
    }

    /// Whether a file is needed. A full chunk serves whoever names the chunk in any form; a delta those who name just it,
    /// and a writer who has found it.
    fn is_live(&self, name: &ChunkName) -> bool {
        match name.base {
            None => self.live.contains(&name.id),
            Some(_) => self.deltas.contains(name) || self.logged.contains(&name.id),
        }
    }

    fn damaged_map(&self, path: &Path, error: &Error) -> Result<()> {
        if let Ok(job) =
            JobName::parse(&path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy())
        {
            let revision = path.file_stem().and_then(|id| RevisionId::parse(&id.to_string_lossy()).ok());
            self.monitor.finding(&Finding {
                job,
                revision,
                range: None,
                chunk: None,
                problem: error.to_string(),
            });
        }
        self.refuse(format!(
            "{error}; what it refers to is not known; forget its revision and purge it, or use --force"
        ))
    }

    /// Counts what stays and what goes, and stops where that cannot be right.
    fn refuse_or_go_on(&mut self, written_by_the_dead: &HashSet<ChunkId>) -> Result<()> {
        let (mut total, mut unnamed, mut unexplained) = (0u64, Vec::new(), 0u64);
        for shard in 0..=255 {
            self.backend.list(shard, &mut |name| {
                total += 1;
                if !self.is_live(&name) {
                    unexplained += u64::from(!written_by_the_dead.contains(&name.id));
                    unnamed.push(name);
                }
            })?;
        }
        self.report.chunks_kept = total - unnamed.len() as u64;
        if self.options.dry_run {
            self.report.chunks_deleted = unnamed.len() as u64;
            for name in &unnamed {
                self.report.bytes_deleted += self.backend.len(name)?.unwrap_or(0);
            }
        }
        let explained = !self.report.revisions_deleted.is_empty() || self.intent_path().exists();
        if explained || unexplained == 0 {
            return Ok(());
        }
        if self.live.is_empty() {
            return self.refuse(format!(
                "nothing refers to any of the {total} chunks; are the jobs' directories missing?"
            ));
        }
        if unexplained > total / 2 {
            return self.refuse(format!(
                "{unexplained} of {total} chunks, more than half, lost their references although no revision was removed; \
                 if job directories were deleted on purpose, use --force"
            ));
        }
        Ok(())
    }

    fn delete(&mut self, _guard: &SweepGuard) -> Result<()> {
        self.monitor.begin("delete chunks", None);
        self.report.chunks_kept = 0;
        for shard in 0..=255 {
            if self.monitor.cancelled() {
                return Err(Error::Cancelled);
            }
            let (mut candidates, mut kept) = (Vec::new(), 0);
            self.backend.list(shard, &mut |name| match self.is_live(&name) {
                true => kept += 1,
                false => candidates.push((name, 0)),
            })?;
            self.report.chunks_kept += kept;
            for (name, length) in &mut candidates {
                *length = self.backend.len(name)?.unwrap_or(0);
            }
            if candidates.is_empty() {
                continue;
            }
            let _shard = self.backend.lock_shard(shard, true)?;
            let (live, logged) = (&mut self.live, &mut self.logged);
            self.tails.read(self.repository.root(), &mut |id| {
                live.insert(id);
                logged.insert(id);
            })?;
            for (name, length) in candidates {
                if self.is_live(&name) {
                    self.has_ghosts = true;
                    self.report.chunks_kept += 1;
                    continue;
                }
                self.backend.delete(&name)?;
                self.report.chunks_deleted += 1;
                self.report.bytes_deleted += length;
                self.monitor.advance(length);
            }
        }
        self.monitor.end();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::testing::{image, new_job, new_revision, now, write_revision};
    use crate::{FrameCache, Silent, Stats};

    fn options() -> SweepOptions {
        SweepOptions { dry_run: false, force: false, hold_secs: 0, now: now() }
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
    fn jobs_that_vanish_and_maps_that_rot_stop_the_sweep() {
        let (dir, job) = new_job("web01");
        let data = image(1, 2 << 22);
        let revision = write_revision(&job, &data, None);
        run(&job, options()).unwrap();
        let elsewhere = dir.path().join("elsewhere");
        disk::rename(job.dir(), &elsewhere).unwrap();
        assert!(matches!(run(&job, options()), Err(Error::SweepRefused { .. })));
        std::fs::create_dir(job.repository().root().join("folder")).unwrap();
        let nested = job.repository().root().join("folder/web01");
        disk::rename(&elsewhere, &nested).unwrap();
        assert_eq!(run(&job, options()).unwrap().chunks_kept, 2, "a job in a folder is a reference");
        disk::rename(&nested, job.dir()).unwrap();
        let map = job.map_path(&revision.id);
        let mut bytes = std::fs::read(&map).unwrap();
        bytes[100] ^= 1;
        std::fs::write(&map, bytes).unwrap();
        assert!(matches!(run(&job, options()), Err(Error::SweepRefused { .. })));
        disk::remove(&map).unwrap();
        assert!(matches!(run(&job, options()), Err(Error::SweepRefused { .. })));
    }

    #[test]
    fn what_a_run_that_failed_wrote_is_removed_without_force() {
        let (_dir, job) = new_job("web01");
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
