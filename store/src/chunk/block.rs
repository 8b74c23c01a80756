//! Decoded bytes in memory, and a pool of buffers for whole chunks: a fresh one costs a thousand page faults, as much
//! time as a quarter of its decoding.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::CHUNK_LEN;

/// Buffers kept for the next chunk; more than that go back to the system.
const SPARE_MAX: usize = 8;

/// Decoded bytes; a whole chunk's buffer goes back to its pool at the end.
pub(crate) struct Block {
    bytes: Vec<u8>,
    len: usize,
    pool: Option<Arc<ChunkBuffers>>,
}

impl Block {
    /// Returns the bytes of memory it takes.
    pub(crate) fn memory(&self) -> usize {
        self.bytes.len()
    }

    /// Returns all bytes, to be written.
    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl From<Vec<u8>> for Block {
    fn from(bytes: Vec<u8>) -> Self {
        Self { len: bytes.len(), bytes, pool: None }
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Block({} bytes)", self.len)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            let mut spare = pool.lock();
            if spare.len() < SPARE_MAX {
                spare.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

/// Buffers of the size of a chunk that nobody uses at the moment.
#[derive(Debug, Default)]
pub(crate) struct ChunkBuffers {
    spare: Mutex<Vec<Vec<u8>>>,
}

impl ChunkBuffers {
    /// Returns room for a chunk of `len` bytes, at most 4 MiB. What is in it is not specified.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Block {
        assert!(len <= CHUNK_LEN);
        let spare = self.lock().pop();
        Block { bytes: spare.unwrap_or_else(|| vec![0; CHUNK_LEN]), len, pool: Some(Arc::clone(self)) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        // The list is whole at every moment.
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_and_few_are_kept() {
        let pool = Arc::new(ChunkBuffers::default());
        let mut block = pool.take(10);
        block.as_mut().fill(7);
        let place = block.as_ptr();
        assert_eq!((block.len(), block.memory()), (10, CHUNK_LEN));
        drop(block);
        assert_eq!(pool.take(CHUNK_LEN).as_ptr(), place);
        drop((0..SPARE_MAX + 3).map(|_| pool.take(1)).collect::<Vec<_>>());
        assert_eq!(pool.lock().len(), SPARE_MAX);
    }
}
