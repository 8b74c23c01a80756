//! A sink that remembers whole images, and a monitor that can be told to stop; for the tests of this crate.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use backy_store::{ChunkCheck, ChunkId, Finding, Monitor, Put};

use super::{ChunkPutter, ImageSink};
use crate::chunks;
use crate::error::Result;

/// Keeps every chunk; `None` is a hole.
#[derive(Debug)]
pub(crate) struct MemorySink {
    pub(crate) size_bytes: u64,
    pub(crate) chunks: Mutex<BTreeMap<u64, Option<Vec<u8>>>>,
}

impl MemorySink {
    pub(crate) fn new(size_bytes: u64) -> Self {
        Self { size_bytes, chunks: Mutex::default() }
    }

    /// The image as it was recorded; fails when a chunk was never recorded or has a wrong length.
    pub(crate) fn image(&self) -> Vec<u8> {
        let recorded = self.chunks.lock().unwrap();
        assert_eq!(recorded.len() as u64, chunks::count(self.size_bytes));
        let mut image = Vec::new();
        for (&number, chunk) in recorded.iter() {
            let length = chunks::length(&chunks::range(number, self.size_bytes));
            match chunk {
                Some(data) => {
                    assert_eq!(data.len(), length);
                    image.extend_from_slice(data);
                }
                None => image.resize(image.len() + length, 0),
            }
        }
        image
    }

    pub(crate) fn holes(&self) -> Vec<u64> {
        let recorded = self.chunks.lock().unwrap();
        recorded.iter().filter(|(_, chunk)| chunk.is_none()).map(|(&number, _)| number).collect()
    }
}

impl ImageSink for MemorySink {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn chunk_putter(&self) -> Result<Box<dyn ChunkPutter + '_>> {
        Ok(Box::new(MemoryPutter(self)))
    }
    fn check(&self, number: u64) -> Result<ChunkCheck> {
        let chunks = self.chunks.lock().unwrap();
        let chunk = chunks.get(&number).and_then(Option::as_deref);
        Ok(ChunkCheck::expecting(chunk.map(ChunkId::of)))
    }
    fn carry_end(&self) -> Result<()> {
        Ok(())
    }
}

struct MemoryPutter<'a>(&'a MemorySink);

impl ChunkPutter for MemoryPutter<'_> {
    fn put(&mut self, number: u64, data: &[u8]) -> Result<Put> {
        let is_zero = data.iter().all(|&byte| byte == 0);
        let chunk = (!is_zero).then(|| data.to_vec());
        assert!(self.0.chunks.lock().unwrap().insert(number, chunk).is_none(), "chunk {number} came twice");
        Ok(if is_zero { Put::Hole } else { Put::Stored { bytes: data.len() as u64 } })
    }
    fn hole(&mut self, number: u64) -> Result<Put> {
        assert!(self.0.chunks.lock().unwrap().insert(number, None).is_none(), "chunk {number} came twice");
        Ok(Put::Hole)
    }
    fn put_changed(&mut self, number: u64, data: &mut [u8], changed: &[Range<usize>]) -> Result<Put> {
        let mut whole =
            self.0.chunks.lock().unwrap().remove(&number).flatten().unwrap_or(vec![0; data.len()]);
        changed.iter().for_each(|part| whole[part.clone()].copy_from_slice(&data[part.clone()]));
        data.fill(0xee);
        self.put(number, &whole)
    }
    fn keep(&mut self, number: u64) -> Result<bool> {
        Ok(self.0.chunks.lock().unwrap().contains_key(&number))
    }
}

/// Counts bytes, and cancels once `stop_at` of them are done.
#[derive(Debug)]
pub(crate) struct Counting {
    pub(crate) bytes: AtomicU64,
    pub(crate) stop_at: u64,
}

impl Counting {
    pub(crate) fn new(stop_at: u64) -> Self {
        Self { bytes: AtomicU64::new(0), stop_at }
    }
}

impl Monitor for Counting {
    fn begin(&self, _label: &str, _total_bytes: Option<u64>) {}
    fn advance(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
    fn end(&self) {}
    fn finding(&self, _finding: &Finding) {}
    fn cancelled(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) >= self.stop_at
    }
}
