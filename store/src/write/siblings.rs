//! What the first backup of a machine may lean on: the disks of other machines that were made from the same image.
//!
//! Full chunks that are equal are found by their ids, wherever they lie. Those of which a few pages differ are what this
//! is for: of the disks that have had the most in common so far, the one with the chunk at the same place. The maps are
//! pinned while the run lasts, so a purge keeps all that is named in them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::format::id::{ChunkId, Digest};
use crate::format::map::{ChunkMap, Entry, PAGE_ENTRIES};
use crate::format::name::Place;
use crate::name::JobName;
use crate::read::chunk::OpenChunk;
use crate::read::reader::pin_for_writing;
use crate::repository::job::Job;
use crate::repository::session::Session;
use crate::revision::Revision;

/// So many disks are compared with. Each costs two descriptors, a session and the page of its map that is looked at.
const SIBLINGS_MAX: usize = 16;

/// So many jobs are looked at to find them.
const JOBS_MAX: usize = 2000;

/// A disk with fewer chunks in common is none that was made from the same image.
const SAME_MIN: u64 = 4;

/// Of the frames that are not zeros at least one of so many must be the same, or a chunk is taken for another one.
const SAME_FRAMES_PART: usize = 4;

/// Other machines' disks.
#[derive(Debug)]
pub(super) struct Siblings(Vec<Sibling>);

#[derive(Debug)]
struct Sibling {
    /// Keeps the chunks that the map names; nothing on a read-only file system.
    _session: Session,
    map: ChunkMap,
    /// Chunks that were the same at the same place.
    same: AtomicU64,
    /// The page that was looked at last.
    page: Mutex<(u64, Vec<Entry>)>,
}

impl Siblings {
    /// Finds the newest good revisions of the store's other jobs: those of disks of about the same size. What cannot be
    /// read is none.
    pub(super) fn find(job: &Job, size_bytes: u64) -> Result<Self> {
        let repository = job.repository();
        // A job that is a link lies on another disk, which may hang: that is no reason for this run to hang as well.
        let is_here = |name: &JobName| {
            std::fs::symlink_metadata(repository.root().join(name.as_str())).is_ok_and(|facts| facts.is_dir())
        };
        let names = repository.job_names()?.into_iter().filter(|name| name != job.name() && is_here(name));
        let mut found: Vec<(u64, Job, Revision)> = Vec::new();
        for other in names.take(JOBS_MAX).filter_map(|name| repository.job(&name).ok()) {
            if other.repository().id() != repository.id() {
                continue;
            }
            let Ok(listing) = other.revisions() else { continue };
            if let Some(newest) = listing.revisions.into_iter().rfind(Revision::is_fit_as_base)
                && let Some(size) = newest.image_size
            {
                found.push((size.abs_diff(size_bytes), other, newest));
            }
        }
        found.sort_by_key(|(difference, _, newest)| (*difference, std::cmp::Reverse(newest.timestamp)));
        let opened = found.iter().take(SIBLINGS_MAX).filter_map(|(_, job, newest)| {
            let (session, map) = pin_for_writing(job, newest).ok()?;
            let page = Mutex::new((u64::MAX, Vec::new()));
            Some(Sibling { _session: session, map, same: AtomicU64::new(0), page })
        });
        Ok(Self(opened.collect()))
    }

    /// Compares the chunk `id` at place `number` with what the others have there, and returns the file of the chunk that
    /// a run may be put on: of the disk that had the most in common.
    pub(super) fn compare(&self, number: u64, id: &ChunkId) -> Option<Place> {
        let mut best = (SAME_MIN, None);
        for sibling in &self.0 {
            let Some(there) = sibling.entry(number) else { continue };
            if there.id == *id {
                sibling.same.fetch_add(1, Ordering::Relaxed);
            }
            let same = sibling.same.load(Ordering::Relaxed);
            // The same chunk is better than any that it could be built on.
            if there.id == *id {
                return Some(there);
            }
            if same >= best.0 {
                best = (same + 1, Some(there));
            }
        }
        best.1
    }
}

impl Sibling {
    fn entry(&self, number: u64) -> Entry {
        let wanted = number / PAGE_ENTRIES;
        if wanted >= self.map.page_count() {
            return None;
        }
        let mut page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        if page.0 != wanted {
            // Of a damaged page nothing is compared.
            *page = (wanted, self.map.read_entries(wanted).unwrap_or_default());
        }
        page.1.get((number % PAGE_ENTRIES) as usize).cloned().flatten()
    }
}

/// Whether a chunk with this digest has so much in common with another disk's that a run is worth trying.
pub(super) fn is_near(digest: &Digest, other: &OpenChunk) -> bool {
    if other.frame_count() != digest.values.len() {
        return false;
    }
    let (mut data, mut same) = (0, 0);
    for (number, value) in digest.values.iter().enumerate().filter(|(number, _)| !other.is_zero(*number)) {
        data += 1;
        same += usize::from(value == other.value(number));
    }
    same > 0 && same >= data / SAME_FRAMES_PART
}
