//! Copies the image of one revision of the original: each chunk is read, decoded, proven by its old hash, and put as a
//! backup puts it. Nothing is decoded twice: a chunk that several revisions share is taken from the memo.
//!
//! It is the processors that this takes, most of all for compressing, so nothing waits while there are chunks left: files
//! that will be needed are fetched from the disk ahead, and what was stored is written out beside the work. Else the
//! barrier at the end would have all of it to write, with every processor idle.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Upgrade;
use crate::error::{Error, Result};
use crate::format::layout::{chunk_count, chunk_len};
use crate::format::map::PAGE_ENTRIES;
use crate::format::{CHUNK_SIZE, ChunkId};
use crate::legacy::image::OldImage;
use crate::read::chunk::Scratch;
use crate::write::{ChunkWriter, RevisionWriter};

/// An old chunk, cut to a length, and what it became: one of ours, or a hole.
pub(super) type Memo = HashMap<(ChunkId, u32), Option<ChunkId>>;

/// So many stored bytes are written out at once; in tests so few that they come to it.
const WRITE_OUT_BYTES: u64 = if cfg!(any(test, feature = "testing")) { 1 << 20 } else { 64 << 20 };

/// A place that could not be read.
pub(super) struct Lost {
    pub(super) id: ChunkId,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) problem: String,
}

/// Copies all chunks; returns what could not be read, in order.
pub(super) fn copy(upgrade: &Upgrade<'_>, image: &OldImage, writer: &RevisionWriter) -> Result<Vec<Lost>> {
    let (ask, asked) = sync_channel(1);
    let copy = Copy {
        upgrade,
        image,
        writer,
        count: chunk_count(image.size_bytes()),
        threads: threads_for(upgrade.options.threads, image.size_bytes()),
        next: AtomicU64::new(0),
        asked_bytes: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        lost: Mutex::new(Vec::new()),
    };
    let asked = Mutex::new(asked);
    std::thread::scope(|scope| {
        // Without a thread nothing is written out early, and the barrier at the end has more to do.
        let writing = std::thread::Builder::new().spawn_scoped(scope, || copy.write_out(&asked));
        let copied = crate::threads::run(copy.threads, || copy.run(&ask));
        drop(ask);
        let written = writing.map_or(Ok(()), |writing| {
            writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        // Where writing out failed, the others were only told to stop.
        written.and(copied)
    })?;
    let mut lost = copy.lost.into_inner().unwrap_or_else(PoisonError::into_inner);
    lost.sort_by_key(|lost| lost.offset);
    Ok(lost)
}

/// A page is a bound for what one thread may be ahead, not more.
fn threads_for(wanted: usize, image_size_bytes: u64) -> usize {
    let useful = chunk_count(image_size_bytes).div_ceil(PAGE_ENTRIES.min(16)).max(1);
    wanted.max(1).min(useful as usize)
}

/// What the threads share.
struct Copy<'c> {
    upgrade: &'c Upgrade<'c>,
    image: &'c OldImage,
    writer: &'c RevisionWriter,
    /// Chunks of the image.
    count: u64,
    threads: usize,
    /// The chunk that is taken next.
    next: AtomicU64,
    /// Stored bytes when writing out was asked for last.
    asked_bytes: AtomicU64,
    stop: AtomicBool,
    lost: Mutex<Vec<Lost>>,
}

impl Copy<'_> {
    /// Copies chunks in one thread until none is left.
    fn run(&self, ask: &SyncSender<()>) -> Result<()> {
        let mut copier = Copier { copy: self, chunks: self.writer.chunk_writer()?, scratch: Scratch::new() };
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.count {
                return Ok(());
            }
            if self.upgrade.monitor.cancelled() || self.stop.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            self.fetch_ahead(number + self.threads as u64);
            copier.chunk(number).inspect_err(|_| self.stop.store(true, Ordering::Relaxed))?;
            self.ask_to_write_out(ask)?;
            self.upgrade.monitor.advance(chunk_len(self.image.size_bytes(), number) as u64);
        }
    }

    fn memo(&self) -> MutexGuard<'_, Memo> {
        self.upgrade.memo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an old chunk is known by at a place.
    fn key(&self, number: u64, id: ChunkId) -> (ChunkId, u32) {
        (id, chunk_len(self.image.size_bytes(), number) as u32)
    }

    /// Begins to read a chunk that some thread will soon take.
    fn fetch_ahead(&self, number: u64) {
        if number < self.count
            && let Some(id) = self.image.get(number)
            && !self.memo().contains_key(&self.key(number, id))
        {
            self.image.will_need(&id);
        }
    }

    fn ask_to_write_out(&self, ask: &SyncSender<()>) -> Result<()> {
        let (stored, asked) = (self.writer.stats().stored_bytes, self.asked_bytes.load(Ordering::Relaxed));
        if stored < asked + WRITE_OUT_BYTES {
            return Ok(());
        }
        self.asked_bytes.store(stored, Ordering::Relaxed);
        match ask.try_send(()) {
            // It is still busy with what was stored before.
            Ok(()) | Err(TrySendError::Full(())) => Ok(()),
            Err(TrySendError::Disconnected(())) => Err(Error::Cancelled),
        }
    }

    /// Makes durable what was stored, as often as it is asked to. Nothing counts on that: the barrier before the commit
    /// is a sync of its own, with less to wait for. An error ends the run as any failed barrier does.
    fn write_out(&self, asked: &Mutex<Receiver<()>>) -> Result<()> {
        // Nobody else receives.
        let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        for () in asked.iter() {
            self.writer.barrier().inspect_err(|_| self.stop.store(true, Ordering::Relaxed))?;
        }
        Ok(())
    }
}

/// Copies chunks in one thread.
struct Copier<'c> {
    copy: &'c Copy<'c>,
    chunks: ChunkWriter<'c>,
    scratch: Scratch,
}

impl Copier<'_> {
    fn chunk(&mut self, number: u64) -> Result<()> {
        let Some(id) = self.copy.image.get(number) else { return Ok(()) };
        let key = self.copy.key(number, id);
        let known = self.copy.memo().get(&key).copied();
        match known {
            // A hole is what the place is already.
            Some(None) => return Ok(()),
            Some(Some(ours)) if self.chunks.place(number, &ours)? => return Ok(()),
            _ => {}
        }
        let problem = match self.copy.image.read(number, &id, &mut self.scratch) {
            Ok(plain) => match plain.bad.into_iter().next() {
                None => {
                    let ours = self.chunks.put_id(number, plain.data)?;
                    // Of raw images the ids are places, which come once.
                    if self.copy.image.is_chunked() {
                        self.copy.memo().insert(key, ours);
                    }
                    return Ok(());
                }
                Some((_, error)) => error.to_string(),
            },
            Err(error) if error.is_damage() => error.to_string(),
            Err(error) => return Err(error),
        };
        self.chunks.lose(number, &id)?;
        let (offset, length) = (number * CHUNK_SIZE, u64::from(key.1));
        let mut lost = self.copy.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.push(Lost { id, offset, length, problem });
        Ok(())
    }
}
