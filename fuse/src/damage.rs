//! What happens when a reader meets damage: it is logged once with its place, and a thread of its own distrusts
//! the revisions concerned, so that no reader waits for that.

use std::collections::{BTreeMap, HashSet};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, MutexGuard};
use std::thread::JoinHandle;

use backy_store::maintain::damage::record_chunks;
use backy_store::{ChunkId, Error, Job, JobName, Repository, Revision, RevisionId, Silent, Trust};

use crate::disk::Disk;
use crate::mutex::lock;

/// Places of damage remembered, so that each is logged once.
const PLACES_MAX: usize = 100_000;

/// Damage waiting to be recorded; what does not fit is met again by the next reader.
const WAITING_MAX: usize = 1024;

/// A piece of damage that must be recorded in the store.
#[derive(Debug)]
enum Damage {
    Chunk(Repository, ChunkId),
    Map(Job, RevisionId),
}

/// Where damage was met.
type Place = (JobName, RevisionId, Spot);

/// Where in an image.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Spot {
    /// It did not open.
    Whole,
    /// At this byte, which could not be read.
    Lost(u64),
    /// From this byte on, where a damaged chunk, or a page of the map, was got around.
    Avoided(u64, Option<ChunkId>),
}

/// The damage met by one mount. Dropping it waits until what was met is recorded.
#[derive(Debug)]
pub(crate) struct DamageLog {
    places: Mutex<HashSet<Place>>,
    queue: Option<SyncSender<Damage>>,
    recorder: Option<JoinHandle<()>>,
}

impl DamageLog {
    /// Starts the thread that records.
    pub(crate) fn start() -> std::io::Result<Self> {
        let (queue, waiting) = sync_channel(WAITING_MAX);
        let recorder =
            std::thread::Builder::new().name("damage".to_owned()).spawn(move || record_all(&waiting))?;
        Ok(Self { places: Mutex::default(), queue: Some(queue), recorder: Some(recorder) })
    }

    /// Notes that a disk could not be read at `offset`.
    pub(crate) fn met(&self, disk: &Disk, offset: u64, error: &Error) {
        let (offset, cause) = match error {
            Error::ImageDamaged { offset, cause, .. } => (*offset, &**cause),
            other => (offset, other),
        };
        let place = (disk.job.name().clone(), disk.revision.id.clone(), Spot::Lost(offset));
        if !self.is_new(&place) {
            return;
        }
        let chunk = cause.damaged_chunk().or_else(|| disk.reader.chunk_at(offset).ok().flatten());
        tracing::error!(
            job = %place.0,
            revision = %place.1,
            offset,
            chunk = chunk.map(|id| id.to_string()),
            cause = %cause,
            "cannot read from an image"
        );
        self.record_cause(disk, &place, cause, chunk);
    }

    /// Notes what reads of a disk got around since the last call: the reader has lost nothing, but a purge may take what
    /// it was read from.
    pub(crate) fn avoided(&self, disk: &Disk) {
        for error in disk.reader.take_avoided() {
            let Error::ImageDamaged { offset, cause, .. } = error else { continue };
            let chunk = cause.damaged_chunk();
            let spot = Spot::Avoided(offset, chunk);
            let place = (disk.job.name().clone(), disk.revision.id.clone(), spot);
            if self.is_new(&place) {
                tracing::warn!(
                    job = %place.0,
                    revision = %place.1,
                    offset,
                    chunk = chunk.map(|id| id.to_string()),
                    %cause,
                    "got around damage of an image"
                );
                self.record_cause(disk, &place, &cause, chunk);
            }
        }
    }

    fn record_cause(&self, disk: &Disk, place: &Place, cause: &Error, chunk: Option<ChunkId>) {
        match (cause, chunk) {
            (Error::MapCorrupt { .. }, _) => {
                self.record(place, Damage::Map(disk.job.clone(), place.1.clone()));
            }
            (cause, Some(id)) if cause.is_damage() => {
                let mut files = cause.damaged_files();
                files.push(id);
                files.dedup();
                for id in files {
                    self.record(place, Damage::Chunk(disk.job.repository().clone(), id));
                }
            }
            // A failing system says nothing about the data.
            _ => {}
        }
    }

    /// Notes that an image could not be opened.
    pub(crate) fn met_at_open(&self, job: &Job, revision: &Revision, error: &Error) {
        let place = (job.name().clone(), revision.id.clone(), Spot::Whole);
        if matches!(error, Error::RevisionUnknown { .. }) {
            return;
        }
        if !error.is_damage() {
            // What the system lacks at the moment it may have the next time.
            tracing::error!(job = %place.0, revision = %place.1, cause = backy_store::error::in_full(&error), "cannot open an image");
        } else if self.is_new(&place) {
            tracing::error!(job = %place.0, revision = %place.1, cause = backy_store::error::in_full(&error), "cannot open an image");
            self.record(&place, Damage::Map(job.clone(), revision.id.clone()));
        }
    }

    fn is_new(&self, place: &Place) -> bool {
        let mut places = self.places();
        if places.len() >= PLACES_MAX {
            // Rather told once more than never again.
            places.clear();
        }
        places.insert(place.clone())
    }

    fn places(&self) -> MutexGuard<'_, HashSet<Place>> {
        lock(&self.places)
    }

    fn record(&self, place: &Place, damage: Damage) {
        let Some(queue) = &self.queue else { return };
        if let Err(TrySendError::Full(_)) = queue.try_send(damage) {
            self.places().remove(place);
        }
    }
}

impl Drop for DamageLog {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(Err(_)) = self.recorder.take().map(JoinHandle::join) {
            tracing::error!("the thread that records damage broke off");
        }
    }
}

fn record_all(waiting: &Receiver<Damage>) {
    while let Ok(first) = waiting.recv() {
        // What came in meanwhile is recorded together: the maps of a store are read once for all of it.
        let mut chunks: BTreeMap<String, (Repository, Vec<ChunkId>)> = BTreeMap::new();
        for damage in std::iter::once(first).chain(waiting.try_iter().take(WAITING_MAX)) {
            match damage {
                Damage::Chunk(repository, id) => {
                    chunks.entry(repository.id().to_owned()).or_insert((repository, Vec::new())).1.push(id);
                }
                Damage::Map(job, revision) => distrust(&job, &revision),
            }
        }
        for (repository, ids) in chunks.into_values() {
            match record_chunks(&repository, &ids, &Silent) {
                Ok(distrusted) => {
                    for (job, revision) in distrusted {
                        tracing::warn!(%job, %revision, "distrusted: it uses a damaged chunk");
                    }
                }
                Err(error) => tracing::error!(
                    error = backy_store::error::in_full(&error),
                    "cannot record damaged chunks"
                ),
            }
        }
    }
}

/// Distrusts one revision, if it is still there.
fn distrust(job: &Job, revision: &RevisionId) {
    let set = || -> backy_store::Result<()> {
        let guard = job.lock_manifests()?;
        job.set_trust(&guard, revision, Trust::Distrusted)
    };
    match set() {
        Ok(()) => tracing::warn!(job = %job.name(), %revision, "distrusted: its map is damaged"),
        Err(Error::RevisionUnknown { .. }) => {}
        Err(error) => {
            tracing::error!(job = %job.name(), %revision, error = backy_store::error::in_full(&error), "cannot distrust a revision")
        }
    }
}
