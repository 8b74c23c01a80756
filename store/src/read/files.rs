//! The files of a store's chunks: the backend, and the groups that are open, least recently used closed first.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use lru::LruCache;

use super::full::{FullChunk, open_full};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::format::group::{GroupWriter, OpenGroup};
use crate::format::id::ChunkId;
use crate::format::name::FileName;

/// Groups that are kept open at most: each costs a descriptor.
const OPEN_MAX: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Chunks kept in full that stay open because others have copies of their pages: each costs a descriptor and 4 KiB.
const FULL_MAX: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// Names of files that the open groups may have in memory together, 33 bytes each.
const NAMES_MAX: usize = 1 << 20;

/// The groups of a store that are open.
#[derive(Debug)]
struct Opened {
    groups: LruCache<ChunkId, Arc<OpenGroup>>,
    full: LruCache<ChunkId, Arc<FullChunk>>,
    /// Names of files that they have in memory.
    names: usize,
}

impl Opened {
    fn new() -> Self {
        Self { groups: LruCache::new(OPEN_MAX), full: LruCache::new(FULL_MAX), names: 0 }
    }

    /// Adds a group, and closes the least recently used ones for it.
    fn put(&mut self, id: ChunkId, group: Arc<OpenGroup>) {
        self.names += group.file_count();
        if let Some((_, old)) = self.groups.push(id, group) {
            self.names -= old.file_count();
        }
        while self.names > NAMES_MAX && self.groups.len() > 1 {
            let Some((_, old)) = self.groups.pop_lru() else { break };
            self.names -= old.file_count();
        }
    }
}

/// The groups that are open, for all that read a store in this process. They are closed when the last of these ends, so
/// that a mount that nobody reads keeps no file of a purged group. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct OpenGroups(Arc<Mutex<Weak<Mutex<Opened>>>>);

impl OpenGroups {
    fn get(&self) -> Arc<Mutex<Opened>> {
        let mut shared = lock(&self.0);
        shared.upgrade().unwrap_or_else(|| {
            let opened = Arc::new(Mutex::new(Opened::new()));
            *shared = Arc::downgrade(&opened);
            opened
        })
    }
}

/// The files of a store. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Files(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    backend: Box<dyn Backend>,
    open: Arc<Mutex<Opened>>,
    /// Groups that this run is writing: nobody else knows them.
    unfinished: Mutex<HashMap<ChunkId, Arc<OpenGroup>>>,
}

impl Deref for Files {
    type Target = dyn Backend;

    fn deref(&self) -> &Self::Target {
        &*self.0.backend
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in them is whole at every moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Files {
    /// The files that a backend keeps.
    pub(crate) fn new(backend: Box<dyn Backend>, open: &OpenGroups) -> Self {
        Self(Arc::new(Inner { backend, open: open.get(), unfinished: Mutex::default() }))
    }

    /// Returns a group, opening it when it is not open. A missing one is `ChunkMissing` with its id.
    pub(crate) fn group(&self, id: &ChunkId) -> Result<Arc<OpenGroup>> {
        if let Some(group) = lock(&self.0.unfinished).get(id) {
            return Ok(Arc::clone(group));
        }
        if let Some(group) = lock(&self.0.open).groups.get(id) {
            return Ok(Arc::clone(group));
        }
        let Some(file) = self.0.backend.open(&FileName::group(*id))? else {
            return Err(Error::ChunkMissing { id: *id });
        };
        let group = Arc::new(OpenGroup::open(*id, file)?);
        lock(&self.0.open).put(*id, Arc::clone(&group));
        Ok(group)
    }

    /// Returns a chunk that is kept in full, opening it when it is not open.
    pub(crate) fn full(&self, id: &ChunkId) -> Result<Arc<FullChunk>> {
        if let Some(full) = lock(&self.0.open).full.get(id) {
            return Ok(Arc::clone(full));
        }
        let full = Arc::new(open_full(&*self.0.backend, id)?);
        lock(&self.0.open).full.put(*id, Arc::clone(&full));
        Ok(full)
    }

    /// Closes a chunk that turned out to be damaged: its file may be replaced.
    pub(crate) fn close_full(&self, id: &ChunkId) {
        lock(&self.0.open).full.pop(id);
    }

    /// Begins a group. It can be read here from now on, and by others when it is finished.
    pub(crate) fn begin_group(&self, id: ChunkId, temporary: &str) -> Result<GroupWriter> {
        let writer = GroupWriter::begin(id, self.0.backend.begin(&FileName::group(id), temporary)?)?;
        lock(&self.0.unfinished).insert(id, writer.reader());
        Ok(writer)
    }

    /// Finishes a group: from now on it is opened by its name. Returns its length.
    pub(crate) fn finish_group(&self, id: &ChunkId, writer: GroupWriter) -> Result<u64> {
        let length = writer.finish()?;
        lock(&self.0.unfinished).remove(id);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Memory;

    /// An open group that has this number of names.
    fn group(seed: u32, names: usize) -> (ChunkId, Arc<OpenGroup>) {
        let id = ChunkId::of(&seed.to_le_bytes());
        (id, Arc::new(OpenGroup::of_names(id, Memory::default().file(), names)))
    }

    fn sums(opened: &Mutex<Opened>) -> (usize, usize) {
        let opened = lock(opened);
        (opened.groups.len(), opened.names)
    }

    #[test]
    fn few_groups_with_many_names_are_open_and_none_when_nobody_reads() {
        let shared = OpenGroups::default();
        let opened = shared.get();
        for seed in 0..10 {
            let (id, group) = group(seed, NAMES_MAX / 4);
            lock(&opened).put(id, group);
        }
        assert_eq!(sums(&opened), (4, NAMES_MAX));
        // The same again, as two threads may open it, counts once; one that is too large by itself is open alone.
        let (id, again) = group(9, NAMES_MAX / 4);
        lock(&opened).put(id, again);
        assert_eq!(sums(&opened), (4, NAMES_MAX));
        let (id, large) = group(11, NAMES_MAX * 2);
        lock(&opened).put(id, large);
        assert_eq!(sums(&opened), (1, NAMES_MAX * 2));
        assert!(Arc::ptr_eq(&opened, &shared.get()));
        drop(opened);
        assert_eq!(sums(&shared.get()), (0, 0));
    }
}
