//! Chunk files in memory, for tests and as the model of an object store: whole objects that do not change, reads of ranges,
//! no rename, no append to what is visible. A new file is collected where nobody sees it and becomes an object when it is
//! placed.
//!
//! A test can make reads and writes fail, and simulate a power loss, which removes each object that no barrier covers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::{Backend, NewFile, ShardLock, StoredChunk};
use crate::error::{Error, Result};
use crate::format::name::FileName;

/// The objects of a store. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryStore(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    objects: Mutex<BTreeMap<FileName, Object>>,
    /// Temporary names of files that are being written.
    unfinished: Mutex<HashSet<String>>,
    shards: Mutex<HashMap<u8, Holders>>,
    /// Notified when a lock of a shard is released.
    released: Condvar,
    faults: Mutex<Faults>,
}

#[derive(Clone, Debug)]
struct Object {
    file: MemoryFile,
    is_durable: bool,
}

/// Who holds a shard locked.
#[derive(Debug, Default)]
struct Holders {
    shared: usize,
    exclusive: bool,
}

#[derive(Debug, Default)]
struct Faults {
    unreadable: HashSet<FileName>,
    /// Bytes that can be written before writes fail.
    room: Option<usize>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The content is complete at every moment; a test that fails in one thread must not hide its reason.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryStore {
    /// Opens the store for one run.
    pub(crate) fn open(&self) -> MemoryBackend {
        MemoryBackend { store: self.clone(), touched: Arc::default() }
    }

    /// Removes all objects that no barrier covers.
    pub(crate) fn lose_power(&self) {
        lock(&self.0.objects).retain(|_, object| object.is_durable);
    }

    /// Makes reads of this object fail.
    pub(crate) fn make_unreadable(&self, name: &FileName) {
        lock(&self.0.faults).unreadable.insert(*name);
    }

    /// Makes writes fail after this number of bytes; `None` lets them succeed again.
    pub(crate) fn set_room(&self, room: Option<usize>) {
        lock(&self.0.faults).room = room;
    }

    /// Returns the number of files that are being written.
    pub(crate) fn unfinished_count(&self) -> usize {
        lock(&self.0.unfinished).len()
    }

    fn object(&self, name: &FileName) -> Option<Object> {
        lock(&self.0.objects).get(name).cloned()
    }

    /// Appends bytes to a file that is being written.
    fn write(&self, name: &FileName, file: &MemoryFile, bytes: &[u8]) -> Result<()> {
        let mut faults = lock(&self.0.faults);
        let length = faults.room.map_or(bytes.len(), |room| room.min(bytes.len()));
        lock(&file.0).extend_from_slice(&bytes[..length]);
        if let Some(room) = &mut faults.room {
            *room -= length;
        }
        match length == bytes.len() {
            true => Ok(()),
            false => Err(Error::io("write", name.to_string(), io::ErrorKind::StorageFull.into())),
        }
    }
}

/// A run's access to a [`MemoryStore`].
#[derive(Debug)]
pub(crate) struct MemoryBackend {
    store: MemoryStore,
    /// Objects that the next barrier covers.
    touched: Arc<Mutex<HashSet<FileName>>>,
}

impl Backend for MemoryBackend {
    fn open(&self, name: &FileName) -> Result<Option<Box<dyn StoredChunk>>> {
        let Some(Object { file, .. }) = self.store.object(name) else { return Ok(None) };
        Ok(Some(Box::new(MemoryChunk { name: *name, file, store: self.store.clone() })))
    }

    fn len(&self, name: &FileName) -> Result<Option<u64>> {
        Ok(self.store.object(name).map(|object| object.file.len()))
    }

    fn put(&self, name: &FileName, bytes: &[u8], _temporary: &str, replace: bool) -> Result<()> {
        self.use_existing(name);
        let file = MemoryFile::default();
        self.store.write(name, &file, bytes)?;
        let mut objects = lock(&self.store.0.objects);
        if replace || !objects.contains_key(name) {
            objects.insert(*name, Object { file, is_durable: replace });
        }
        Ok(())
    }

    fn begin(&self, name: &FileName, temporary: &str) -> Result<Box<dyn NewFile>> {
        if !lock(&self.store.0.unfinished).insert(temporary.to_owned()) {
            return Err(Error::io("create", temporary, io::ErrorKind::AlreadyExists.into()));
        }
        Ok(Box::new(UnfinishedFile {
            name: *name,
            temporary: temporary.to_owned(),
            file: MemoryFile::default(),
            store: self.store.clone(),
            touched: Arc::clone(&self.touched),
        }))
    }

    fn use_existing(&self, name: &FileName) {
        lock(&self.touched).insert(*name);
    }

    fn barrier(&self) -> Result<()> {
        let mut objects = lock(&self.store.0.objects);
        for name in lock(&self.touched).drain() {
            if let Some(object) = objects.get_mut(&name) {
                object.is_durable = true;
            }
        }
        Ok(())
    }

    fn delete(&self, name: &FileName) -> Result<()> {
        lock(&self.store.0.objects).remove(name);
        Ok(())
    }

    fn list(&self, shard: u8, visit: &mut dyn FnMut(FileName)) -> Result<()> {
        // `visit` may call the backend, so it is called without the lock.
        let names: Vec<FileName> =
            lock(&self.store.0.objects).keys().filter(|name| name.id.shard() == shard).copied().collect();
        names.into_iter().for_each(visit);
        Ok(())
    }

    fn lock_shard(&self, shard: u8, exclusive: bool) -> Result<ShardLock> {
        let mut shards = lock(&self.store.0.shards);
        loop {
            let holders = shards.entry(shard).or_default();
            match exclusive {
                true if !holders.exclusive && holders.shared == 0 => holders.exclusive = true,
                false if !holders.exclusive => holders.shared += 1,
                _ => {
                    shards = self.store.0.released.wait(shards).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
            }
            return Ok(ShardLock::new(HeldShard { store: self.store.clone(), shard, exclusive }));
        }
    }

    fn is_away(&self) -> Result<bool> {
        Ok(false)
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn prepare(&self) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct HeldShard {
    store: MemoryStore,
    shard: u8,
    exclusive: bool,
}

impl Drop for HeldShard {
    fn drop(&mut self) {
        if let Some(holders) = lock(&self.store.0.shards).get_mut(&self.shard) {
            match self.exclusive {
                true => holders.exclusive = false,
                false => holders.shared -= 1,
            }
        }
        self.store.0.released.notify_all();
    }
}

/// An object that is open. It keeps its bytes when it is deleted or replaced.
#[derive(Debug)]
struct MemoryChunk {
    name: FileName,
    file: MemoryFile,
    store: MemoryStore,
}

impl StoredChunk for MemoryChunk {
    fn len(&self) -> u64 {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if lock(&self.store.0.faults).unreadable.contains(&self.name) {
            return Err(io::Error::other("injected read error"));
        }
        self.file.read_at(buf, offset)
    }

    fn will_need(&self, _offset: u64, _len: u64) {}
}

/// A file that is not an object yet.
#[derive(Debug)]
struct UnfinishedFile {
    name: FileName,
    temporary: String,
    file: MemoryFile,
    store: MemoryStore,
    touched: Arc<Mutex<HashSet<FileName>>>,
}

impl NewFile for UnfinishedFile {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.store.write(&self.name, &self.file, bytes)
    }

    fn reader(&self) -> Result<Box<dyn StoredChunk>> {
        Ok(self.file.file())
    }

    fn place(&mut self) -> Result<()> {
        lock(&self.touched).insert(self.name);
        let object = Object { file: self.file.clone(), is_durable: false };
        lock(&self.store.0.objects).insert(self.name, object);
        lock(&self.store.0.unfinished).remove(&self.temporary);
        Ok(())
    }
}

impl Drop for UnfinishedFile {
    fn drop(&mut self) {
        lock(&self.store.0.unfinished).remove(&self.temporary);
    }
}

/// The bytes of a file, also without a store. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryFile(Arc<Mutex<Vec<u8>>>);

impl MemoryFile {
    /// A file that has these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(Arc::new(Mutex::new(bytes.to_vec())))
    }

    /// Returns a copy of the bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        lock(&self.0).clone()
    }

    /// Opens it for reading.
    pub(crate) fn file(&self) -> Box<dyn StoredChunk> {
        Box::new(self.clone())
    }

    /// Opens it for appending.
    pub(crate) fn new_file(&self) -> Box<dyn NewFile> {
        Box::new(self.clone())
    }
}

impl StoredChunk for MemoryFile {
    fn len(&self) -> u64 {
        lock(&self.0).len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = lock(&self.0);
        let from = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
        let length = from.len().min(buf.len());
        buf[..length].copy_from_slice(&from[..length]);
        Ok(length)
    }

    fn will_need(&self, _offset: u64, _len: u64) {}
}

impl NewFile for MemoryFile {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(())
    }

    fn reader(&self) -> Result<Box<dyn StoredChunk>> {
        Ok(self.file())
    }

    fn place(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ChunkId;

    #[test]
    fn a_power_loss_takes_what_no_barrier_covers() {
        let store = MemoryStore::default();
        let names = [0u8, 1, 2, 3].map(|seed| FileName::chunk(ChunkId::of(&[seed])));
        let dead = store.open();
        dead.put(&names[0], b"used", "t", false).unwrap();
        dead.put(&names[1], b"not used", "t", false).unwrap();
        let run = store.open();
        run.use_existing(&names[0]);
        run.put(&names[2], b"new", "t", false).unwrap();
        run.barrier().unwrap();
        run.put(&names[3], b"late", "t", false).unwrap();
        store.lose_power();
        let is_there = names.map(|name| run.len(&name).unwrap().is_some());
        assert_eq!(is_there, [true, false, true, false]);
    }

    #[test]
    fn a_write_that_fails_in_the_middle_leaves_no_object() {
        let store = MemoryStore::default();
        let (chunk, group) = (FileName::chunk(ChunkId::of(b"1")), FileName::group(ChunkId::of(b"2")));
        let backend = store.open();
        store.set_room(Some(5));
        backend.put(&chunk, b"abcdefgh", "t", false).unwrap_err();
        store.set_room(Some(5));
        let mut file = backend.begin(&group, "t").unwrap();
        file.append(b"abc").unwrap();
        file.append(b"defgh").unwrap_err();
        drop(file);
        store.set_room(None);
        assert_eq!((backend.len(&chunk).unwrap(), backend.len(&group).unwrap()), (None, None));
        assert_eq!(store.unfinished_count(), 0);
        backend.put(&chunk, b"abcdefgh", "t", false).unwrap();
        assert_eq!(backend.len(&chunk).unwrap(), Some(8));
    }
}
