//! What happens when damage is met: the chunk is marked, the revisions that use it are distrusted, and the bytes
//! and a report are kept in the job's quarantine. Nothing is deleted.
//!
//! A mark is an empty file `damaged/<id>` in the store: the next backup that needs the chunk writes it anew
//! from its source, which heals every revision that shares it, and removes the mark.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;

use crate::backend::Backend;
use crate::error::Result;
use crate::format::id;
use crate::format::map::{files_of, ids};
use crate::format::name::FileName;
use crate::format::{CHUNK_LEN, ChunkId};
use crate::fs::disk;
use crate::fs::ownership;
use crate::legacy;
use crate::monitor::{Finding, Monitor};
use crate::name::JobName;
use crate::repository::Repository;
use crate::repository::job::Job;
use crate::revision::{Revision, RevisionId, Trust};
use crate::timestamp::Timestamp;

/// Joins damaged ranges that touch each other, for what is said of them: offset, length and what is wrong, in order of
/// their offsets. The problem of the first is kept.
pub(crate) fn merged<P>(ranges: impl IntoIterator<Item = (u64, u64, P)>) -> Vec<(u64, u64, P)> {
    let mut merged: Vec<(u64, u64, P)> = Vec::new();
    for (offset, length, problem) in ranges {
        match merged.last_mut() {
            Some(last) if last.0 + last.1 == offset => last.1 += length,
            _ => merged.push((offset, length, problem)),
        }
    }
    merged
}

/// Records damaged chunks that were met in a revision of `job`: ours as [`record_chunks`] does, of the original's the
/// revisions of this job are distrusted. Returns the revisions that were not distrusted before.
pub fn record(job: &Job, chunks: &[ChunkId], monitor: &dyn Monitor) -> Result<Vec<(JobName, RevisionId)>> {
    let (old, ours): (HashSet<ChunkId>, HashSet<ChunkId>) =
        chunks.iter().copied().partition(|id| id.original().is_some());
    let ours: Vec<ChunkId> = ours.into_iter().collect();
    let mut distrusted = legacy::job::record_chunks(job, &old, monitor)?;
    if !ours.is_empty() {
        distrusted.extend(record_chunks(job.repository(), &ours, monitor)?);
    }
    Ok(distrusted)
}

/// Marks chunks as damaged and distrusts every revision of the store that uses one of them; returns those that
/// were not distrusted before. Reads the maps of the store, pages that revisions share once. What cannot be recorded
/// keeps nothing else from being recorded; the first error is returned at the end.
pub fn record_chunks(
    repository: &Repository,
    chunks: &[ChunkId],
    monitor: &dyn Monitor,
) -> Result<Vec<(JobName, RevisionId)>> {
    let wanted: HashSet<ChunkId> = chunks.iter().copied().collect();
    let mut result = Ok(());
    for id in &wanted {
        result = result.and(mark(repository, id));
    }
    let mut distrusted = Vec::new();
    if wanted.is_empty() {
        return Ok(distrusted);
    }
    let mut clean_pages = HashSet::new();
    for job in repository.sharing_jobs()? {
        match distrust_users(&job, &wanted, &mut clean_pages, monitor) {
            Ok(ids) => distrusted.extend(ids.into_iter().map(|id| (job.name().clone(), id))),
            Err(error) => result = result.and(Err(error)),
        }
    }
    result.map(|()| distrusted)
}

/// Distrusts the revisions of one job that use a wanted chunk.
fn distrust_users(
    job: &Job,
    wanted: &HashSet<ChunkId>,
    clean_pages: &mut HashSet<[u8; 32]>,
    monitor: &dyn Monitor,
) -> Result<Vec<RevisionId>> {
    let mut users = BTreeSet::new();
    for revision in job.revisions()?.revisions {
        if !revision.has_chunks() || revision.trust == Trust::Distrusted {
            continue;
        }
        match uses(job, &revision, wanted, clean_pages) {
            Ok(false) => {}
            Ok(true) => drop(users.insert(revision.id)),
            Err(error) if error.is_damage() => {
                monitor.finding(&Finding::of_revision(job.name(), &revision.id, error));
                users.insert(revision.id);
            }
            Err(crate::Error::RevisionUnknown { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    job.distrust(&users)
}

fn uses(
    job: &Job,
    revision: &Revision,
    wanted: &HashSet<ChunkId>,
    clean: &mut HashSet<[u8; 32]>,
) -> Result<bool> {
    let map = job.open_map(revision)?;
    for page in 0..map.page_count() {
        let mut is_in = |hash: Option<&[u8; 32]>, named: &dyn Fn() -> Result<Vec<ChunkId>>| -> Result<bool> {
            let Some(hash) = hash.filter(|hash| !clean.contains(*hash)) else { return Ok(false) };
            let found = named()?.iter().any(|id| wanted.contains(id));
            if !found {
                clean.insert(*hash);
            }
            Ok(found)
        };
        let named_by_places = || {
            let places = map.read_places(page)?.unwrap_or_default();
            Ok(files_of(&places).unwrap_or_default().iter().map(|file| file.id).collect())
        };
        // A revision uses what its recipes refer to, too.
        if is_in(Some(map.page_hash(page)), &|| Ok(ids(&map.read_page(page)?).collect()))?
            || is_in(map.places_hash(page), &named_by_places)?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn mark(repository: &Repository, id: &ChunkId) -> Result<()> {
    ownership::refuse_link(&repository.root().join("damaged"))?;
    let path = repository.damage_mark(id);
    if path.exists() {
        return Ok(());
    }
    repository.with_reserve(|| {
        disk::ensure_dir_for_writing(&repository.root().join("damaged"))?;
        disk::create_new(&path).map(drop)
    })
}

/// Removes the marks of chunks and groups that are not in the store any more, and that `is_named` does not know: one that is
/// missing and needed stays marked, to be written in full. Returns how many there were.
pub(crate) fn remove_stale_marks(
    repository: &Repository,
    backend: &dyn Backend,
    is_named: &dyn Fn(&ChunkId) -> bool,
) -> Result<u64> {
    let dir = repository.root().join("damaged");
    ownership::refuse_link(&dir)?;
    let mut removed = 0;
    for entry in disk::list(&dir)? {
        if let Some(id) = entry.file_name().to_str().and_then(ChunkId::parse)
            && !is_named(&id)
            && backend.open(&FileName::chunk(id))?.is_none()
            && backend.open(&FileName::group(id))?.is_none()
        {
            disk::remove(&entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// One difference between what a source or a map says and what was found.
#[derive(Debug)]
pub struct Difference<'d> {
    /// The revision in which it was met.
    pub revision: &'d RevisionId,
    /// First byte of the piece in the image.
    pub offset: u64,
    /// What the source holds there, when it was read.
    pub source: Option<&'d [u8]>,
    /// What the store holds there, when it can be read.
    pub stored: Option<&'d [u8]>,
    /// What is wrong, as a sentence without a full stop.
    pub problem: &'d str,
}

/// Keeps a difference for a person to look at: a report `quarantine/<id>.report` and the bytes of both sides under
/// `quarantine/chunks/<BLAKE3>`. Returns the report's path.
pub fn quarantine(job: &Job, difference: &Difference<'_>, now: Timestamp) -> Result<PathBuf> {
    let dir = job.dir().join("quarantine");
    for dir in [&dir, &dir.join("chunks")] {
        ownership::refuse_link(dir)?;
        disk::ensure_dir_for_writing(dir)?;
    }
    let keep = |data: Option<&[u8]>| -> Result<String> {
        let Some(data) = data else { return Ok("''".to_owned()) };
        let name = id::hex(&id::seal(&[data]));
        let path = dir.join("chunks").join(&name);
        if !path.exists() {
            disk::write_atomically(&path, &data[..data.len().min(CHUNK_LEN)])?;
        }
        Ok(name)
    };
    let (source, stored) = (keep(difference.source)?, keep(difference.stored)?);
    let id = RevisionId::random()?;
    let text = format!(
        "uuid: {id}\nrevision: {}\noffset: {}\nsource_hash: {source}\ntarget_hash: {stored}\ntimestamp: {now}\nproblem: {}\n",
        difference.revision,
        difference.offset,
        serde_json::Value::from(difference.problem),
    );
    let path = dir.join(format!("{id}.report"));
    disk::write_atomically(&path, text.as_bytes())?;
    Ok(path)
}

/// Number of reports in the job's quarantine.
pub fn quarantine_reports(job: &Job) -> Result<usize> {
    match std::fs::read_dir(job.dir().join("quarantine")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(crate::Error::io("list", job.dir().join("quarantine"), error)),
        Ok(entries) => Ok(entries
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|end| end == "report"))
            .count()),
    }
}
