//! Work on the chunks of an image, several threads at once: each takes the next number from one counter and
//! keeps its own buffers, so there are no queues and memory is bounded by the number of threads.
//!
//! The first error, or a request to stop, ends all threads at their next chunk.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use backy_store::{CHUNK_SIZE, Monitor};

use crate::error::{Error, Result};

/// Most threads that one copy starts; each has a buffer of one chunk, and so has each of the store's writers.
const THREADS_MAX: usize = 16;

/// Returns the number of chunks of an image.
pub(crate) fn count(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(CHUNK_SIZE)
}

/// Returns the bytes of the image that chunk `number` holds.
pub(crate) fn range(number: u64, size_bytes: u64) -> Range<u64> {
    let start = number.saturating_mul(CHUNK_SIZE).min(size_bytes);
    start..start.saturating_add(CHUNK_SIZE).min(size_bytes)
}

/// Returns the length of a range that lies inside one chunk, as an index.
pub(crate) fn length(range: &Range<u64>) -> usize {
    debug_assert!(range.end - range.start <= CHUNK_SIZE);
    usize::try_from(range.end - range.start).expect("a chunk fits into memory")
}

/// Bytes that are read at once for comparing: few enough to stay in the processor's cache from read to hash.
const PIECE_SIZE: u64 = 256 << 10;

/// Cuts a chunk in pieces for comparing.
pub(crate) fn pieces(chunk: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = chunk.end;
    let starts = (chunk.start..end).step_by(PIECE_SIZE as usize);
    starts.map(move |start| start..end.min(start + PIECE_SIZE))
}

/// Returns how many of up to `threads` threads work on `count` chunks.
pub(crate) fn workers(count: u64, threads: usize) -> usize {
    threads.clamp(1, THREADS_MAX).min(usize::try_from(count).unwrap_or(usize::MAX))
}

/// Calls `step` for the numbers 0 to `count`, each once, on up to `threads` threads with a state from
/// `start` each.
pub(crate) fn for_each<S>(
    count: u64,
    threads: usize,
    monitor: &dyn Monitor,
    start: impl Fn() -> Result<S> + Sync,
    step: impl Fn(&mut S, u64) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let work = || -> Result<()> {
        let mut state = start()?;
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                break;
            }
            if monitor.cancelled() {
                return Err(backy_store::Error::Cancelled.into());
            }
            step(&mut state, number)?;
        }
        Ok(())
    };
    let work = || {
        if let Err(error) = work() {
            stop.store(true, Ordering::Relaxed);
            failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(error);
        }
    };
    thread::scope(|scope| {
        // This thread works, too: where the system gives no more threads, it takes longer.
        for _ in 1..workers(count, threads) {
            if thread::Builder::new().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        if count > 0 {
            work();
        }
    });
    match failure.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use backy_store::Silent;

    use super::*;

    #[test]
    fn every_chunk_comes_once() {
        for (count, threads) in [(0, 4), (1, 4), (100, 1), (100, 7), (3, 500)] {
            let seen = Mutex::new(Vec::new());
            let record = |_: &mut (), number| {
                seen.lock().unwrap().push(number);
                Ok(())
            };
            for_each(count, threads, &Silent, || Ok(()), record).unwrap();
            let seen = seen.into_inner().unwrap();
            assert_eq!(seen.len() as u64, count);
            assert_eq!(seen.into_iter().collect::<BTreeSet<u64>>(), (0..count).collect());
        }
    }

    #[test]
    fn the_first_error_ends_the_others() {
        let calls = AtomicU64::new(0);
        let step = |_: &mut (), number| {
            calls.fetch_add(1, Ordering::Relaxed);
            match number {
                5 => Err(Error::SourceModified { name: "x".to_owned() }),
                _ => Ok(()),
            }
        };
        let error = for_each(1 << 40, 3, &Silent, || Ok(()), step).unwrap_err();
        assert!(matches!(error, Error::SourceModified { .. }));
        assert!(calls.into_inner() < 1 << 30);
    }

    #[test]
    fn ranges_cover_the_image() {
        for size in [0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, u64::MAX] {
            let count = count(size);
            assert_eq!(range(0, size).start, 0);
            assert_eq!(range(count.saturating_sub(1), size).end, size);
            assert!(range(count, size).is_empty());
        }
    }
}
