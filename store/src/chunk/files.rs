//! The files of a store's chunks: the backend, and the groups that are open, least recently used closed first.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use super::group::{GroupWriter, OpenGroup};
use super::id::ChunkId;
use super::name::FileName;
use crate::backend::Backend;
use crate::backend::local::LocalBackend;
use crate::error::{Error, Result};

/// Groups that are kept open: each costs a descriptor and 33 bytes for each file that it refers to.
const OPEN_MAX: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// The groups of a store that are open, for all that read it in this process. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct OpenGroups(Arc<Mutex<LruCache<ChunkId, Arc<OpenGroup>>>>);

impl Default for OpenGroups {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(LruCache::new(OPEN_MAX))))
    }
}

/// The files of a store. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Files(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    backend: LocalBackend,
    open: OpenGroups,
    /// Groups that this run is writing: nobody else knows them.
    unfinished: Mutex<HashMap<ChunkId, Arc<OpenGroup>>>,
}

impl Deref for Files {
    type Target = LocalBackend;

    fn deref(&self) -> &LocalBackend {
        &self.0.backend
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in them is whole at every moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Files {
    /// The files that a backend keeps.
    pub(crate) fn new(backend: LocalBackend, open: &OpenGroups) -> Self {
        Self(Arc::new(Inner { backend, open: open.clone(), unfinished: Mutex::default() }))
    }

    /// Returns a group, opening it when it is not open. A missing one is `ChunkMissing` with its id.
    pub(crate) fn group(&self, id: &ChunkId) -> Result<Arc<OpenGroup>> {
        if let Some(group) = lock(&self.0.unfinished).get(id) {
            return Ok(Arc::clone(group));
        }
        if let Some(group) = lock(&self.0.open.0).get(id) {
            return Ok(Arc::clone(group));
        }
        let Some(file) = self.0.backend.open(&FileName::group(*id))? else {
            return Err(Error::ChunkMissing { id: *id });
        };
        let group = Arc::new(OpenGroup::open(*id, file)?);
        lock(&self.0.open.0).put(*id, Arc::clone(&group));
        Ok(group)
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
