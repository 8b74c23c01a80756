//! Decoded bytes in memory, and pools of buffers for frames and whole chunks: a fresh chunk costs a thousand page faults,
//! as much time as a quarter of its decoding.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Decoded bytes; the buffer goes back to its pool at the end.
pub(crate) struct Block {
    bytes: Vec<u8>,
    len: usize,
    pool: Option<Arc<Buffers>>,
}

impl Block {
    /// Returns the bytes of memory it takes.
    pub(crate) fn memory(&self) -> usize {
        self.bytes.len()
    }

    /// Lets go of the bytes behind the first `len`.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
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
            if spare.len() < pool.spare_max {
                spare.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

/// Buffers of one size that nobody uses at the moment.
#[derive(Debug)]
pub(crate) struct Buffers {
    size: usize,
    /// Buffers kept for the next user; more than that go back to the system.
    spare_max: usize,
    spare: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    pub(crate) fn new(size: usize, spare_max: usize) -> Arc<Self> {
        Arc::new(Self { size, spare_max, spare: Mutex::default() })
    }

    /// Returns room for `len` bytes, at most the pool's size. What is in it is not specified.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Block {
        assert!(len <= self.size);
        let spare = self.lock().pop();
        Block { bytes: spare.unwrap_or_else(|| vec![0; self.size]), len, pool: Some(Arc::clone(self)) }
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
        let pool = Buffers::new(1000, 3);
        let mut block = pool.take(10);
        block.as_mut().fill(7);
        let place = block.as_ptr();
        assert_eq!((block.len(), block.memory()), (10, 1000));
        drop(block);
        assert_eq!(pool.take(1000).as_ptr(), place);
        drop((0..6).map(|_| pool.take(1)).collect::<Vec<_>>());
        assert_eq!(pool.lock().len(), 3);
    }
}
