//! Copies through librbd: every thread takes a window of the image, asks what changed in it, and reads exactly that.
//!
//! Where the image has a list of changed objects (fast-diff), it is asked for once for the whole image, which costs
//! next to nothing; only the objects in it are then looked into for the exact places, and only those are read. What
//! else belongs to a chunk comes from the sink, which has it from the base and verifies it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use backy_librbd::{CephError, Image};
use backy_store::{CHUNK_SIZE, Monitor};

use super::copying::{add, cut, gaps, indices, part};
use super::error::RbdError;
use super::snapshot::RbdSnapshot;
use crate::chunks;
use crate::error::{Error, Result};
use crate::source::{ChunkPutter, ImageSink};

/// Chunks that one thread takes at once.
const WINDOW_CHUNKS: u64 = 8;
/// Threads that wait for Ceph beside those that compute.
const THREADS_FACTOR: usize = 2;

/// Copies what changed since the snapshot `from`, or everything; returns how many bytes were read.
pub(super) fn copy(
    snapshot: &RbdSnapshot,
    image: &Image,
    from: Option<&str>,
    to: &dyn ImageSink,
    threads: usize,
    monitor: &dyn Monitor,
) -> Result<u64> {
    let copy = Copy { snapshot, image, from, monitor, bytes_read: AtomicU64::new(0) };
    let size = snapshot.info.size_bytes;
    let candidates = copy.candidates()?;
    let start = || Ok((to.chunk_putter()?, vec![0; chunks::length(&chunks::range(0, size))]));
    let step = |(putter, buf): &mut (Box<dyn ChunkPutter + '_>, Vec<u8>), window: u64| {
        copy.window(window, &candidates, &mut **putter, buf)
    };
    let windows = chunks::count(size).div_ceil(WINDOW_CHUNKS);
    chunks::for_each(windows, threads.saturating_mul(THREADS_FACTOR), monitor, start, step)?;
    Ok(copy.bytes_read.into_inner())
}

struct Copy<'c> {
    snapshot: &'c RbdSnapshot,
    image: &'c Image,
    from: Option<&'c str>,
    monitor: &'c dyn Monitor,
    bytes_read: AtomicU64,
}

/// What a window has.
#[derive(Default)]
struct Changes {
    data: Vec<Range<u64>>,
    zeros: Vec<Range<u64>>,
}

impl Copy<'_> {
    /// Returns where there can be changes, quickly if the image has a list of changed objects.
    fn candidates(&self) -> Result<Vec<Range<u64>>> {
        let all = 0..self.snapshot.info.size_bytes;
        let mut found = Vec::new();
        match self.snapshot.info.has_fast_diff && !all.is_empty() {
            true => self.list(&all, true, &mut |range, _| add(&mut found, range))?,
            false => add(&mut found, all),
        }
        Ok(found)
    }

    fn window(
        &self,
        window: u64,
        candidates: &[Range<u64>],
        putter: &mut dyn ChunkPutter,
        buf: &mut [u8],
    ) -> Result<()> {
        let size = self.snapshot.info.size_bytes;
        let start = window * WINDOW_CHUNKS;
        let numbers = start..(start + WINDOW_CHUNKS).min(chunks::count(size));
        let bytes = numbers.start * CHUNK_SIZE..(numbers.end * CHUNK_SIZE).min(size);
        let mut changes = Changes::default();
        for candidate in cut(candidates, &bytes) {
            self.list(&candidate, false, &mut |range, has_data| {
                add(if has_data { &mut changes.data } else { &mut changes.zeros }, range);
            })?;
        }
        for number in numbers {
            if self.monitor.cancelled() {
                return Err(backy_store::Error::Cancelled.into());
            }
            let chunk = chunks::range(number, size);
            let length = chunks::length(&chunk);
            self.chunk(number, &chunk, &changes, putter, &mut buf[..length])?;
            self.monitor.advance(length as u64);
        }
        Ok(())
    }

    fn chunk(
        &self,
        number: u64,
        chunk: &Range<u64>,
        changes: &Changes,
        putter: &mut dyn ChunkPutter,
        buf: &mut [u8],
    ) -> Result<()> {
        let data: Vec<Range<u64>> = cut(&changes.data, chunk).collect();
        let mut changed = data.clone();
        cut(&changes.zeros, chunk).for_each(|range| add(&mut changed, range));
        if changed.is_empty() {
            // Nothing changed: it is as in the base; from nothing, it is a hole.
            return if self.from.is_some() { Ok(()) } else { putter.hole(number).map(drop) };
        }
        let is_partial = !gaps(&changed, chunk).is_empty();
        match is_partial && self.from.is_some() {
            true => cut(&changes.zeros, chunk).for_each(|range| part(buf, &range, chunk).fill(0)),
            false => buf.fill(0),
        }
        for range in &data {
            let read = self.image.read_at(range.start, part(buf, range, chunk));
            read.map_err(|error| self.error("read", error))?;
            self.bytes_read.fetch_add(range.end - range.start, Ordering::Relaxed);
        }
        match is_partial && self.from.is_some() {
            true => putter.put_changed(number, buf, &indices(&changed, chunk)).map(drop),
            false => putter.put(number, buf).map(drop),
        }
    }

    /// Lists changes, never outside of `range`.
    fn list(
        &self,
        range: &Range<u64>,
        whole_objects: bool,
        visit: &mut dyn FnMut(Range<u64>, bool),
    ) -> Result<()> {
        let mut take = |found: Range<u64>, has_data| {
            visit(found.start.max(range.start)..found.end.min(range.end), has_data);
            !self.monitor.cancelled()
        };
        let listed = self.image.changes(self.from, range, whole_objects, &mut take);
        listed.map_err(|error| self.error("list the changes of", error))
    }

    fn error(&self, doing: &'static str, source: CephError) -> Error {
        if source.is_stopped() && self.monitor.cancelled() {
            return backy_store::Error::Cancelled.into();
        }
        RbdError::Library { doing, image: self.snapshot.spec(), source }.into()
    }
}
