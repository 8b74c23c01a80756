//! Removes what the original wrote and no revision needs any more: images of revisions that were purged or upgraded,
//! then the chunks that no map of the job names.
//!
//! Chunks go under the original's exclusive lock `.purge`, so nobody reads or writes them, the original neither. A map
//! that cannot be read keeps all chunks of its job. `.purge_pending`, the original's own marker, says that there may be
//! something to free; it is made before the first change and removed when the last is durable, so whatever is cut off in between
//! is done by the next purge, of either program.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::chunk::OldChunks;
use super::lock::{self, OldPurgeGuard};
use super::map::OldMap;
use crate::error::{Context, Error, Refusal, Result};
use crate::format::ChunkId;
use crate::format::manifest;
use crate::fs::disk;
use crate::monitor::Monitor;
use crate::repository::job::{Job, job_files};
use crate::revision::{BackendType, RevisionId};

/// What was freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// Chunk files of the original that were removed.
    pub chunks: u64,
    /// Bytes of files that were removed, images too.
    pub bytes: u64,
}

impl Freed {
    pub(crate) fn add(&mut self, other: Self) {
        self.chunks += other.chunks;
        self.bytes += other.bytes;
    }
}

/// The end of the name of an image that is being removed.
const REMOVED: &str = "purged";

/// Removing files is waiting for what the file system knows of their space, so more threads than processors are of use.
const REMOVERS: usize = 4;

/// The shortest id of the original. Shorter names may be other files of the job.
const ID_LEN_MIN: usize = 20;

fn marker(job: &Job) -> PathBuf {
    job.dir().join(".purge_pending")
}

/// Whether something of the original in this job may have to be removed.
pub(crate) fn is_pending(job: &Job) -> bool {
    marker(job).exists()
}

/// Notes that something may have to be removed. Durable when it returns.
pub(crate) fn set_pending(job: &Job) -> Result<()> {
    if !is_pending(job) {
        job.repository().with_reserve(|| disk::create_new(&marker(job)).map(drop))?;
        disk::sync_dir(job.dir())?;
    }
    Ok(())
}

/// Whether the file of this id beside its manifest is an image of the original.
pub(crate) fn has_image(job: &Job, id: &RevisionId) -> bool {
    is_image(&job.old_image_path(id), id)
}

/// Whether there is an image of the original at `path`, or what is left of one.
pub(crate) fn is_image(path: &Path, id: &RevisionId) -> bool {
    let is_file = |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|facts| facts.is_file());
    id.as_str().len() >= ID_LEN_MIN
        && ["", "old", REMOVED].iter().any(|end| is_file(&path.with_extension(end)))
}

/// Removes a forgotten revision of the original for good: its image gets out of the way, then the manifest goes,
/// then the image. A removal that was cut off is told by the image's name.
pub(crate) fn remove_revision(job: &Job, id: &RevisionId, manifest: &Path) -> Result<Freed> {
    set_pending(job)?;
    set_image_aside(job, id)?;
    disk::remove(manifest)?;
    disk::sync_dir(job.dir())?;
    remove_image(job, id)
}

/// Removes the original's image of a revision that is ours now.
pub(crate) fn remove_upgraded(job: &Job, id: &RevisionId) -> Result<Freed> {
    set_pending(job)?;
    set_image_aside(job, id)?;
    remove_image(job, id)
}

fn set_image_aside(job: &Job, id: &RevisionId) -> Result<()> {
    let image = job.old_image_path(id);
    let aside = image.with_extension(REMOVED);
    match disk::rename(&image, &aside) {
        Err(error) if error.io_kind() == Some(std::io::ErrorKind::NotFound) => {}
        other => other.and_then(|()| disk::sync_dir(job.dir()))?,
    }
    Ok(())
}

fn remove_image(job: &Job, id: &RevisionId) -> Result<Freed> {
    use std::os::unix::fs::MetadataExt;
    let mut freed = Freed::default();
    for end in ["old", REMOVED] {
        let path = job.old_image_path(id).with_extension(end);
        if let Ok(facts) = std::fs::symlink_metadata(&path) {
            freed.bytes += facts.blocks() * 512;
            disk::remove(&path)?;
        }
    }
    Ok(freed)
}

/// Removes images that a removal or an upgrade left which was cut off.
pub(crate) fn remove_leftovers(job: &Job) -> Result<Freed> {
    let mut freed = Freed::default();
    if !is_pending(job) {
        return Ok(freed);
    }
    let files = job_files(job.dir())?;
    let named: HashSet<&RevisionId> = files.iter().filter_map(|(file, _)| file.of_manifest()).collect();
    for (file, path) in &files {
        let Some(id) = file.of_manifest() else { continue };
        let is_ours =
            || manifest::read(path, id).is_ok_and(|found| found.backend_type == BackendType::Framed);
        if has_image(job, id) && is_ours() {
            freed.add(remove_upgraded(job, id)?);
        }
    }
    for entry in std::fs::read_dir(job.dir()).map_err(|error| Error::io("list", job.dir(), error))?.flatten()
    {
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_suffix(REMOVED)?.strip_suffix('.'));
        if let Some(id) = id.and_then(|id| RevisionId::parse(id).ok())
            && !named.contains(&id)
        {
            freed.add(remove_image(job, &id)?);
        }
    }
    Ok(freed)
}

/// Collects the names of all chunks that revisions of the job need, forgotten ones too.
fn needed(job: &Job) -> Result<HashSet<ChunkId>> {
    let mut needed = HashSet::new();
    for (file, path) in job_files(job.dir())? {
        let Some(id) = file.of_manifest() else { continue };
        let found = manifest::read(&path, id);
        match &found {
            Ok(revision) if !revision.is_old() || revision.backend_type == BackendType::Cowfile => continue,
            Err(error) if error.io_kind() == Some(std::io::ErrorKind::NotFound) => continue,
            _ => {}
        }
        match OldMap::open(&job.old_image_path(id)) {
            Ok(map) => needed.extend(map.names()),
            // What was never complete and has no map yet needs nothing.
            Err(_) if found.is_ok_and(|revision| !revision.is_clean()) && !has_image(job, id) => {}
            Err(error) => {
                return Err(unknown_needs(job, id, &error.to_string()));
            }
        }
    }
    for id in images_without_manifest(job)? {
        // Its manifest may be away, or not be copied yet.
        match OldMap::open(&job.old_image_path(&id)) {
            Ok(map) => needed.extend(map.names()),
            Err(error) => {
                return Err(unknown_needs(job, &id, &format!("it has no manifest, and {error}")));
            }
        }
    }
    Ok(needed)
}

fn unknown_needs(job: &Job, id: &RevisionId, reason: &str) -> Error {
    let text = format!("the chunks that revision {id} of job {} needs are not known: {reason}", job.name());
    Error::SweepRefused { refusal: Refusal::Legacy(text) }
}

/// The images of backy 2 in a job's directory that have no manifest there, forgotten ones included.
pub(crate) fn images_without_manifest(job: &Job) -> Result<Vec<RevisionId>> {
    let files = job_files(job.dir())?;
    let named: HashSet<&RevisionId> = files.iter().filter_map(|(file, _)| file.of_manifest()).collect();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(job.dir()).context("list", job.dir())? {
        let entry = entry.context("list", job.dir())?;
        let name = entry.file_name();
        let Some(id) = name.to_str().and_then(|name| RevisionId::parse(name).ok()) else { continue };
        let is_file = || entry.file_type().is_ok_and(|kind| kind.is_file());
        if id.as_str().len() >= ID_LEN_MIN && !named.contains(&id) && is_file() {
            found.push(id);
        }
    }
    Ok(found)
}

/// Removes the chunks of the original in a job that no revision needs. `Locked` while somebody reads them.
pub(crate) fn purge(job: &Job, monitor: &dyn Monitor) -> Result<Freed> {
    let guard = lock::for_purge(job.dir(), job.name())?;
    let dir = disk::open(job.dir()).context("open", job.dir())?;
    let needed = needed(job)?;
    let chunks = OldChunks::open(job.dir())?;
    let mut unneeded = Vec::new();
    chunks.list(&mut |id| {
        if !needed.contains(&id) {
            unneeded.push(id);
        }
    })?;
    let freed = remove(&chunks, &guard, &unneeded, monitor)?;
    sync_removals(job, &dir, &chunks)?;
    disk::remove(&marker(job))?;
    Ok(freed)
}

/// Makes all removals durable, those of a run that was killed as well. If the marker's could survive a power loss and theirs
/// could not, nobody would remove those files any more.
fn sync_removals(job: &Job, dir: &File, chunks: &OldChunks) -> Result<()> {
    if disk::has_reliable_syncfs(dir) {
        return disk::sync_file_system(dir, job.dir());
    }
    chunks.sync_dirs()?;
    disk::sync_dir(job.dir())
}

/// Removes these chunks, on several threads.
pub(crate) fn remove(
    chunks: &OldChunks,
    guard: &OldPurgeGuard,
    unneeded: &[ChunkId],
    monitor: &dyn Monitor,
) -> Result<Freed> {
    let (next, freed) = (AtomicUsize::new(0), Mutex::new(Freed::default()));
    let threads = REMOVERS.min(unneeded.len().div_ceil(REMOVERS)).max(1);
    crate::threads::run(threads, || {
        while let Some(id) = unneeded.get(next.fetch_add(1, Ordering::Relaxed)) {
            if monitor.cancelled() {
                return Err(Error::Cancelled);
            }
            let bytes = chunks.remove(guard, id)?;
            let mut freed = freed.lock().unwrap_or_else(PoisonError::into_inner);
            freed.add(Freed { chunks: u64::from(bytes > 0), bytes });
        }
        Ok(())
    })?;
    Ok(freed.into_inner().unwrap_or_else(PoisonError::into_inner))
}
