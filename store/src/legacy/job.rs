//! What a job's directory holds of the original, and what our own commands need to know of it.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use super::cowfile;
use super::image::OldImage;
use super::map::OldMap;
use crate::error::Result;
use crate::format::layout::chunk_len;
use crate::format::{CHUNK_LEN, CHUNK_SIZE, ChunkId};
use crate::monitor::{Finding, Monitor};
use crate::name::JobName;
use crate::repository::job::Job;
use crate::revision::{BackendType, Revision, RevisionId, Trust};

impl Revision {
    /// Whether its image lies here as the original wrote it.
    pub fn is_old(&self) -> bool {
        self.is_local() && matches!(self.backend_type, BackendType::Chunked | BackendType::Cowfile)
    }
}

impl Job {
    /// The original's map or raw image of a revision.
    pub fn old_image_path(&self, id: &RevisionId) -> PathBuf {
        self.dir().join(id.as_str())
    }

    /// A number that tells the original's chunks of this job from all others in a cache.
    pub(crate) fn old_key(&self) -> u64 {
        let seal = crate::format::id::seal(&[b"original", self.dir().as_os_str().as_encoded_bytes()]);
        seal[..8].iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
    }

    /// Fills in what manifests of the original do not say: the size of the image. What cannot be found out stays
    /// unknown; who opens the image is told why.
    pub(crate) fn complete(&self, mut revision: Revision) -> Revision {
        if revision.is_old() && revision.is_clean() {
            let path = self.old_image_path(&revision.id);
            revision.image_size = match revision.backend_type {
                BackendType::Chunked => OldMap::read_size(&path).ok(),
                _ => std::fs::symlink_metadata(cowfile::path(&path))
                    .ok()
                    .filter(std::fs::Metadata::is_file)
                    .map(|facts| facts.len()),
            };
        }
        revision
    }
}

/// Distrusts every revision of a job that uses one of these chunks of the original; returns those that were not
/// distrusted before.
pub(crate) fn record_chunks(
    job: &Job,
    chunks: &HashSet<ChunkId>,
    monitor: &dyn Monitor,
) -> Result<Vec<(JobName, RevisionId)>> {
    if chunks.is_empty() || job.repository().is_original() {
        return Ok(Vec::new());
    }
    let mut users = BTreeSet::new();
    for revision in job.revisions()?.revisions {
        if !revision.is_old()
            || revision.backend_type != BackendType::Chunked
            || revision.trust == Trust::Distrusted
        {
            continue;
        }
        match OldMap::open(&job.old_image_path(&revision.id)) {
            Ok(map) if !map.names().any(|id| chunks.contains(&id)) => {}
            Ok(_) => drop(users.insert(revision.id)),
            Err(error) => {
                monitor.finding(&Finding::of_revision(job.name(), &revision.id, error));
                users.insert(revision.id);
            }
        }
    }
    Ok(job.distrust(&users)?.into_iter().map(|id| (job.name().clone(), id)).collect())
}

/// A revision of the original that a backup continues: what it reads is compared with what that had at the place.
#[derive(Debug)]
pub(crate) struct Known(OldImage);

impl Known {
    pub(crate) fn open(job: &Job, revision: &Revision) -> Result<Self> {
        OldImage::open(job, revision).map(Self)
    }

    /// Whether the original had these bytes at place `number`: by the hash in its map, without reading its chunk, or by
    /// the bytes of a raw image. `room` is for those.
    pub(crate) fn has(&self, number: u64, data: &[u8], room: &mut Vec<u8>) -> bool {
        let Some(id) = self.0.get(number) else { return false };
        if self.0.is_chunked() {
            return id.original() == Some(super::murmur::hash(data));
        }
        if chunk_len(self.0.size_bytes(), number) != data.len() {
            return false;
        }
        room.resize(CHUNK_LEN, 0);
        let room = &mut room[..data.len()];
        self.0.read_raw(number * CHUNK_SIZE, room).is_ok() && room == data
    }
}

/// Whether a directory is a job of the original that our programs have made no revision in: it has manifests, or a
/// configuration beside chunks or locks of the original, and no map of ours. A store of ours that lost its mark is none.
pub(crate) fn is_original_job(dir: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    let (mut has_manifests, mut is_ours) = (false, false);
    for entry in entries.flatten() {
        let path = entry.path();
        match path.extension().and_then(|end| end.to_str()) {
            Some("rev") => has_manifests |= path.is_file(),
            Some("map") => is_ours = true,
            _ => is_ours |= entry.file_name() == "backy.store",
        }
    }
    let beside = || [".purge", "chunks"].iter().any(|name| dir.join(name).exists());
    !is_ours && (has_manifests || dir.join("config").is_file() && beside())
}
