//! Decoded frames, whole chunks and map pages, least recently used first out, bounded in bytes for all images of a
//! process.
//! A missing entry is loaded once, however many readers want it at the same time. Owner of the crate `lru`.
//!
//! The lock is never held while something is loaded. A load that fails leaves nothing behind: the next reader
//! tries again.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::block::{Block, Buffers};
use crate::format::id::ChunkId;
use crate::format::{CHUNK_LEN, FRAME_LEN, FRAMES_MAX};
use crate::read::chunk::SharedChunk;

/// Open chunk files kept with their frame tables: each costs a descriptor and about 4 KiB, one that is made by a recipe twice that.
const OPEN_CHUNKS_MAX: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Failed loads that are remembered.
const FAILED_MAX: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// How long a failed load is remembered: a backup may heal it.
const FAILED_FOR: Duration = Duration::from_secs(1);

/// Buffers kept for the next chunks.
const SPARE_CHUNKS_MAX: usize = 2;

/// Buffers kept for the next frames: those of one chunk that went.
const SPARE_FRAMES_MAX: usize = FRAMES_MAX;

/// What an entry holds. The number tells stores apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// A frame of a chunk.
    Frame(u64, ChunkId, u8),
    /// All of a chunk.
    Chunk(u64, ChunkId),
    /// A page of the map with this seal.
    MapPage([u8; 32], u64),
}

/// The cache. Share it with `Arc`.
pub struct FrameCache {
    bytes_max: usize,
    state: Mutex<State>,
    loaded: Condvar,
    chunks: Arc<Buffers>,
    frames: Arc<Buffers>,
}

struct State {
    entries: LruCache<Key, Arc<Block>>,
    bytes: usize,
    loading: HashSet<Key>,
    chunks: LruCache<(u64, ChunkId), SharedChunk>,
    /// Chunks that could not be loaded as a whole, and when: who reads on takes their frames one by one.
    failed: LruCache<Key, Instant>,
}

impl std::fmt::Debug for FrameCache {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "FrameCache({} bytes)", self.bytes_max)
    }
}

impl FrameCache {
    /// Makes a cache of at most `bytes_max` bytes of decoded data.
    pub fn new(bytes_max: usize) -> Self {
        let chunks = LruCache::new(OPEN_CHUNKS_MAX);
        let failed = LruCache::new(FAILED_MAX);
        let state =
            State { entries: LruCache::unbounded(), bytes: 0, loading: HashSet::new(), chunks, failed };
        Self {
            bytes_max,
            state: Mutex::new(state),
            loaded: Condvar::new(),
            chunks: Buffers::new(CHUNK_LEN, SPARE_CHUNKS_MAX),
            frames: Buffers::new(FRAME_LEN, SPARE_FRAMES_MAX),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held; if it did, the state would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the entry, loading it with `load` when it is missing.
    pub(crate) fn get_or_load<E>(
        &self,
        key: &Key,
        load: impl FnOnce() -> Result<Block, E>,
    ) -> Result<Arc<Block>, E> {
        let mut state = self.lock();
        loop {
            if let Some(data) = state.entries.get(key) {
                return Ok(Arc::clone(data));
            }
            if state.loading.insert(key.clone()) {
                break;
            }
            state = self.loaded.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        self.load(key, load)
    }

    /// Loads the entry with `load` unless it is there or somebody is loading it: nobody needs it yet.
    pub(crate) fn load_ahead<E>(&self, key: &Key, load: impl FnOnce() -> Result<Block, E>) -> Result<(), E> {
        let mut state = self.lock();
        if state.entries.contains(key) || !state.loading.insert(key.clone()) {
            return Ok(());
        }
        drop(state);
        self.load(key, load).map(drop)
    }

    /// Returns the first of these entries that is there.
    pub(crate) fn find<const N: usize>(&self, keys: [&Key; N]) -> Option<(usize, Arc<Block>)> {
        let mut state = self.lock();
        let mut keys = keys.into_iter().enumerate();
        keys.find_map(|(number, key)| state.entries.get(key).map(|data| (number, Arc::clone(data))))
    }

    /// Loads an entry that is marked as being loaded.
    fn load<E>(&self, key: &Key, load: impl FnOnce() -> Result<Block, E>) -> Result<Arc<Block>, E> {
        // A chunk counts from the moment that it is loaded: many threads may load at once.
        let expected = if matches!(key, Key::Chunk(..)) { CHUNK_LEN } else { 0 };
        self.make_room(expected, None);
        // Whatever happens to the load, those who wait for it must be woken.
        let ticket = Ticket { cache: self, key, expected };
        let data = Arc::new(load().inspect_err(|_| {
            self.lock().failed.put(key.clone(), Instant::now());
        })?);
        self.make_room(data.memory(), Some((key, &data)));
        drop(ticket);
        Ok(data)
    }

    /// Counts bytes, enters what they belong to, and lets go of what was not used for longest.
    fn make_room(&self, bytes: usize, entry: Option<(&Key, &Arc<Block>)>) {
        let mut gone = Vec::new();
        let mut state = self.lock();
        state.bytes += bytes;
        if let Some((key, data)) = entry
            && let Some(old) = state.entries.put(key.clone(), Arc::clone(data))
        {
            state.bytes -= old.memory();
            gone.push(old);
        }
        while state.bytes > self.bytes_max {
            let Some((_, oldest)) = state.entries.pop_lru() else { break };
            state.bytes -= oldest.memory();
            gone.push(oldest);
        }
        drop(state);
        // Memory is given back without the lock.
        drop(gone);
    }

    /// Whether an entry could not be loaded a moment ago.
    pub(crate) fn has_failed(&self, key: &Key) -> bool {
        self.lock().failed.get(key).is_some_and(|at| at.elapsed() < FAILED_FOR)
    }

    /// Returns room for a frame or a chunk of `len` bytes.
    pub(crate) fn buffer(&self, len: usize) -> Block {
        if len <= FRAME_LEN { self.frames.take(len) } else { self.chunks.take(len) }
    }

    /// Returns the open chunk, opening it with `open` when it is not kept.
    pub(crate) fn chunk<E>(
        &self,
        store: u64,
        id: &ChunkId,
        open: impl FnOnce() -> Result<SharedChunk, E>,
    ) -> Result<SharedChunk, E> {
        if let Some(chunk) = self.lock().chunks.get(&(store, *id)) {
            return Ok(Arc::clone(chunk));
        }
        let chunk = open()?;
        self.lock().chunks.put((store, *id), Arc::clone(&chunk));
        Ok(chunk)
    }

    /// Forgets an open chunk, so that the next reader sees a repaired file.
    pub(crate) fn forget_chunk(&self, store: u64, id: &ChunkId) {
        self.lock().chunks.pop(&(store, *id));
    }

    /// The most bytes that it holds.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }
}

struct Ticket<'c> {
    cache: &'c FrameCache,
    key: &'c Key,
    /// Bytes that were counted for it before it was there.
    expected: usize,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = self.cache.lock();
        state.loading.remove(self.key);
        state.bytes -= self.expected;
        drop(state);
        self.cache.loaded.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn key(number: u8) -> Key {
        Key::Frame(0, ChunkId::of(b"x"), number)
    }

    #[test]
    fn memory_is_bounded_and_the_least_used_goes_first() {
        let cache = FrameCache::new(300);
        for number in [1, 2, 3, 1, 4] {
            cache.get_or_load::<()>(&key(number), || Ok(vec![number; 100].into())).unwrap();
        }
        assert_eq!(cache.bytes(), 300);
        assert!(cache.get_or_load(&key(1), || Err(())).is_ok());
        assert!(cache.get_or_load(&key(2), || Err(())).is_err());
    }

    #[test]
    fn a_chunk_counts_while_it_is_loaded() {
        let cache = FrameCache::new(CHUNK_LEN + 300);
        let chunk = |number: u8| Key::Chunk(0, ChunkId::of(&[number]));
        for number in 1..4 {
            cache.get_or_load::<()>(&key(number), || Ok(vec![number; 150].into())).unwrap();
        }
        let load = || {
            assert_eq!(cache.bytes(), CHUNK_LEN + 300, "two of three frames are left");
            Err("broken")
        };
        assert!(cache.get_or_load(&chunk(1), load).is_err());
        assert_eq!(cache.bytes(), 300);
        cache.get_or_load::<()>(&chunk(1), || Ok(cache.buffer(5))).unwrap();
        assert!(cache.bytes() <= CHUNK_LEN + 300);
    }

    #[test]
    fn an_entry_larger_than_the_cache_is_served_but_not_kept() {
        let cache = FrameCache::new(10);
        assert_eq!(cache.get_or_load::<()>(&key(1), || Ok(vec![1; 100].into())).unwrap().len(), 100);
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn many_readers_of_one_missing_frame_load_it_once() {
        let cache = FrameCache::new(1000);
        let loads = AtomicUsize::new(0);
        let barrier = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    let load = || {
                        loads.fetch_add(1, Ordering::SeqCst);
                        std::thread::yield_now();
                        Ok::<_, ()>(vec![1; 10].into())
                    };
                    assert_eq!(cache.get_or_load(&key(1), load).unwrap().len(), 10);
                });
            }
        });
        assert_eq!(loads.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_failed_load_does_not_block_the_next() {
        let cache = FrameCache::new(1000);
        assert_eq!(cache.get_or_load(&key(1), || Err("broken")).unwrap_err(), "broken");
        assert!(cache.get_or_load::<()>(&key(1), || Ok(vec![].into())).is_ok());
    }

    #[test]
    fn what_is_loaded_ahead_is_loaded_once_and_found() {
        let cache = FrameCache::new(1000);
        cache.load_ahead::<()>(&key(1), || Ok(vec![1; 10].into())).unwrap();
        cache.load_ahead(&key(1), || Err("it is there")).unwrap();
        assert_eq!(cache.find([&key(0), &key(1)]).map(|(number, data)| (number, data[0])), Some((1, 1)));
        assert!(cache.find([&key(2)]).is_none());
        assert_eq!(cache.load_ahead(&key(2), || Err("broken")), Err("broken"));
        assert!(cache.find([&key(2)]).is_none());
    }
}
