//! Restore to a stream: decoded on several threads, written in order, with a bounded number of chunks waiting.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use super::target::runs;
use super::{Piece, Run};
use crate::error::{Error, Result};
use crate::format::CHUNK_SIZE;
use crate::format::layout::chunk_len;
use crate::format::map::{Entry, PAGE_ENTRIES};
use crate::read::chunk::Scratch;

/// Chunks that may wait to be written, for each thread.
const WAITING_PER_THREAD: u64 = 2;

/// What the threads share: chunks that are ready and the next one to be written.
struct Queue {
    ready: BTreeMap<u64, Option<Vec<u8>>>,
    next: u64,
    failed: Option<Error>,
    stopped: bool,
}

pub(super) fn copy(run: &Run<'_>, mut out: Box<dyn Write + Send>) -> Result<()> {
    for page in 0..run.image.page_count() {
        let entries = run.page(page)?;
        copy_page(run, page * PAGE_ENTRIES, &entries, &mut out)?;
    }
    out.flush().map_err(|error| Error::io("write to", "standard output", error).of_target())
}

fn copy_page(run: &Run<'_>, first: u64, entries: &[Entry], out: &mut Box<dyn Write + Send>) -> Result<()> {
    let threads = run.options.threads.max(1) as u64;
    let taken = AtomicU64::new(0);
    let queue = Mutex::new(Queue { ready: BTreeMap::new(), next: 0, failed: None, stopped: false });
    let changed = Condvar::new();
    let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        let mut started = 0;
        for _ in 0..threads {
            let decode = || {
                let mut scratch = Scratch::new();
                loop {
                    let at = taken.fetch_add(1, Ordering::Relaxed);
                    let Some(entry) = entries.get(at as usize) else { return };
                    let mut state = lock();
                    while at >= state.next + threads * WAITING_PER_THREAD && !state.stopped {
                        state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    }
                    if state.stopped {
                        return;
                    }
                    drop(state);
                    let piece =
                        run.piece(first + at, entry.as_ref(), &mut scratch).map(|piece| match piece {
                            Piece::Hole => None,
                            Piece::Data(data) => Some(data.to_vec()),
                        });
                    let mut state = lock();
                    match piece {
                        Ok(piece) => drop(state.ready.insert(at, piece)),
                        // The first error in the order of the image is not worth waiting for.
                        Err(error) => drop(state.failed.get_or_insert(error)),
                    }
                    changed.notify_all();
                }
            };
            if std::thread::Builder::new().spawn_scoped(scope, decode).is_err() {
                break;
            }
            started += 1;
        }
        if started == 0 {
            return copy_alone(run, first, entries, out);
        }
        let result = write_in_order(run, first, entries.len() as u64, out, &queue, &changed);
        lock().stopped = true;
        changed.notify_all();
        result
    })
}

/// Copies in this thread: the system gives no other.
fn copy_alone(run: &Run<'_>, first: u64, entries: &[Entry], out: &mut Box<dyn Write + Send>) -> Result<()> {
    let zeros = vec![0; CHUNK_SIZE as usize];
    let mut scratch = Scratch::new();
    for (number, entry) in (first..).zip(entries) {
        run.check_stop()?;
        let length = chunk_len(run.image.size_bytes(), number);
        let data = match run.piece(number, entry.as_ref(), &mut scratch)? {
            Piece::Hole => None,
            Piece::Data(data) => Some(data),
        };
        write(run, data, &zeros[..length], out)?;
    }
    Ok(())
}

/// Writes data, or zeros in the place of a hole. Zeros are in the stream, too, and do not count as data.
fn write(run: &Run<'_>, data: Option<&[u8]>, zeros: &[u8], out: &mut Box<dyn Write + Send>) -> Result<()> {
    let bytes = data.unwrap_or(zeros);
    out.write_all(bytes).map_err(|error| Error::io("write to", "standard output", error).of_target())?;
    let data = data.into_iter().flat_map(runs).filter(|(_, is_zero)| !is_zero);
    run.written.fetch_add(data.map(|(run, _)| run.len() as u64).sum(), Ordering::Relaxed);
    run.monitor.advance(bytes.len() as u64);
    Ok(())
}

fn write_in_order(
    run: &Run<'_>,
    first: u64,
    count: u64,
    out: &mut Box<dyn Write + Send>,
    queue: &Mutex<Queue>,
    changed: &Condvar,
) -> Result<()> {
    let zeros = vec![0; CHUNK_SIZE as usize];
    for at in 0..count {
        run.check_stop()?;
        let mut state = queue.lock().unwrap_or_else(PoisonError::into_inner);
        let piece = loop {
            if let Some(error) = state.failed.take() {
                return Err(error);
            }
            if let Some(piece) = state.ready.remove(&at) {
                break piece;
            }
            state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.next = at + 1;
        drop(state);
        changed.notify_all();
        let length = chunk_len(run.image.size_bytes(), first + at);
        write(run, piece.as_deref(), &zeros[..length], out)?;
    }
    Ok(())
}
