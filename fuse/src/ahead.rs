//! Reading ahead: who reads a disk from front to back is recognised, gets whole chunks, and the next chunks are
//! decoded on other threads before they are asked for.
//!
//! Several programs may read one file at once, and one program may read a file at several places (a loop device with a
//! file system on it), so a file has several streams. The kernel asks for the parts of one read on several
//! threads, so a stream is followed a little out of order too.
//!
//! All streams share the cache. Nothing is read ahead that would have to leave it before it is used, and where there
//! are so many streams that not even their current chunks fit, all read frame by frame.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;

use backy_store::{CHUNK_SIZE, Extent, FRAME_SIZE};

use crate::disk::Disk;
use crate::mutex::lock;

/// Places of one file that are followed.
const STREAMS_MAX: usize = 8;

/// Bytes read in sequence after which a stream is recognised: the second request of the kernel's smallest read-ahead.
const RECOGNISED_AFTER: u64 = 192 << 10;

/// How far out of order the requests of one stream may come: two requests of the kernel's largest size.
const DISORDER: u64 = 2 << 20;

/// Frames that small reads have touched and that are remembered.
const STEPS_MAX: usize = 64;

/// Chunks waiting to be loaded; what does not fit is loaded by its reader.
const WAITING_MAX: usize = 64;

/// One place of a disk that is read from front to back.
#[derive(Clone, Copy, Debug)]
struct Stream {
    /// First byte that was not asked for.
    next: u64,
    /// Bytes asked for in sequence.
    length: u64,
    /// First byte that was not sent to be read ahead.
    ahead: u64,
    /// When it was last used, counted in requests.
    used: u64,
}

impl Stream {
    fn is_recognised(&self) -> bool {
        self.length >= RECOGNISED_AFTER
    }

    fn continues(&self, offset: u64, length: u64) -> bool {
        // Before it is recognised it has to be in order: chance must not make a stream of random reads. Small requests
        // near a stream are those of a file system that looks here and there.
        let disorder = if self.is_recognised() && length >= FRAME_SIZE { DISORDER } else { 0 };
        offset.abs_diff(self.next) <= disorder
    }
}

/// The streams of one open file.
#[derive(Debug)]
pub(crate) struct Streams {
    streams: Mutex<(u64, Vec<Stream>)>,
    steps: Mutex<Steps>,
    ahead: Arc<ReadAhead>,
}

/// The frames that small reads have touched lately. A file system that is searched through goes up its tables with
/// gaps, in several places at once: that is no stream, but a frame after another is likely to have a third.
#[derive(Debug, Default)]
struct Steps(VecDeque<u64>);

impl Steps {
    /// Notes that a frame is read; returns the next one if it is likely to be wanted.
    fn next(&mut self, frame: u64) -> Option<u64> {
        if self.0.contains(&frame) {
            return None;
        }
        let goes_up = frame > 0 && self.0.contains(&(frame - 1));
        let is_new = !self.0.contains(&(frame + 1));
        self.0.truncate(STEPS_MAX - 1);
        self.0.push_front(frame);
        (goes_up && is_new).then_some(frame + 1)
    }
}

impl Streams {
    pub(crate) fn new(ahead: &Arc<ReadAhead>) -> Self {
        Self { streams: Mutex::default(), steps: Mutex::default(), ahead: Arc::clone(ahead) }
    }

    /// Notes that `length` bytes of a disk are read from `offset`, sends for what comes after them, and says what is
    /// to be loaded for them.
    pub(crate) fn note(&self, disk: &Arc<Disk>, offset: u64, length: u64) -> Extent {
        let extent =
            self.follow(offset, length, disk.size_bytes(), |at| self.ahead.send(disk, at, Extent::Chunk));
        if extent == Extent::Frame
            && length < FRAME_SIZE
            && let Some(next) =
                lock(&self.steps).next(offset.saturating_add(length).saturating_sub(1) / FRAME_SIZE)
        {
            self.ahead.send(disk, next.saturating_mul(FRAME_SIZE), Extent::Frame);
        }
        extent
    }

    /// Calls `send` with the beginning of each chunk of a disk of `size_bytes` that will be wanted next, until it says
    /// that it takes no more.
    fn follow(&self, offset: u64, length: u64, size_bytes: u64, send: impl Fn(u64) -> bool) -> Extent {
        let end = offset.saturating_add(length);
        let mut streams = lock(&self.streams);
        let (clock, streams) = &mut *streams;
        *clock += 1;
        let Some(stream) = streams.iter_mut().find(|stream| stream.continues(offset, length)) else {
            let stream = Stream { next: end, length, ahead: 0, used: *clock };
            if streams.len() < STREAMS_MAX {
                streams.push(stream);
            } else if let Some(oldest) = streams.iter_mut().min_by_key(|stream| stream.used) {
                self.ahead.count(oldest.is_recognised(), false);
                *oldest = stream;
            }
            // A reader may begin with a request that is long enough.
            self.ahead.count(false, stream.is_recognised());
            return Extent::Frame;
        };
        let before = stream.is_recognised();
        stream.length = stream.length.saturating_add(length);
        stream.next = stream.next.max(end);
        stream.used = *clock;
        self.ahead.count(before, stream.is_recognised());
        if !stream.is_recognised() {
            return Extent::Frame;
        }
        let room = self.ahead.room();
        // The chunk that is being read is in memory or is loaded by its reader.
        let first = end.next_multiple_of(CHUNK_SIZE).max(stream.ahead);
        let last = end.saturating_add(room.ahead_bytes).min(size_bytes);
        let mut at = first;
        while at < last && send(at) {
            at += CHUNK_SIZE;
        }
        stream.ahead = stream.ahead.max(at);
        // Who reads in small pieces need not wait for a whole chunk: the next ones are on their way.
        if length < FRAME_SIZE { Extent::Frame } else { room.extent }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        for stream in &lock(&self.streams).1 {
            self.ahead.count(stream.is_recognised(), false);
        }
    }
}

/// What the cache has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    /// What a recognised stream loads.
    extent: Extent,
    /// How far it is read ahead.
    ahead_bytes: u64,
}

/// The threads that read ahead, for all files of a mount. They end when it is dropped.
#[derive(Debug)]
pub(crate) struct ReadAhead {
    /// Recognised streams of all open files.
    active: AtomicUsize,
    cache_bytes: u64,
    ahead_bytes: u64,
    queue: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl ReadAhead {
    /// Starts `threads` threads that read up to `ahead_bytes` ahead of each stream into a cache of `cache_bytes`.
    pub(crate) fn start(threads: usize, ahead_bytes: u64, cache_bytes: u64) -> std::io::Result<Self> {
        let (queue, waiting) = sync_channel(WAITING_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        let threads = if ahead_bytes == 0 { 0 } else { threads };
        let start = |number| {
            let waiting = Arc::clone(&waiting);
            let name = format!("ahead-{number}");
            // Each thread fetches from the disk what the thread after all others will decode next.
            let further = threads as u64 * CHUNK_SIZE;
            std::thread::Builder::new().name(name).spawn(move || load_all(&waiting, further))
        };
        let threads = (0..threads).map(start).collect::<std::io::Result<Vec<_>>>()?;
        Ok(Self { active: AtomicUsize::new(0), cache_bytes, ahead_bytes, queue: Some(queue), threads })
    }

    fn count(&self, before: bool, now: bool) {
        match (before, now) {
            (false, true) => drop(self.active.fetch_add(1, Ordering::Relaxed)),
            (true, false) => drop(self.active.fetch_sub(1, Ordering::Relaxed)),
            _ => {}
        }
    }

    fn room(&self) -> Room {
        let share = self.cache_bytes / self.active.load(Ordering::Relaxed).max(1) as u64;
        // A stream needs the chunk it reads and one more, because it may lie across the border of two.
        match share.checked_sub(2 * CHUNK_SIZE) {
            // Half of what is left is for what was read before.
            Some(left) => Room { extent: Extent::Chunk, ahead_bytes: self.ahead_bytes.min(left / 2) },
            None => Room { extent: Extent::Frame, ahead_bytes: 0 },
        }
    }

    /// Sends for a frame or a chunk; `false` when too many are waited for.
    fn send(&self, disk: &Arc<Disk>, offset: u64, extent: Extent) -> bool {
        let job = Job { disk: Arc::downgrade(disk), offset, extent };
        self.queue.as_ref().is_some_and(|queue| queue.try_send(job).is_ok())
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that reads ahead broke off");
            }
        }
    }
}

/// What is to be loaded before it is asked for.
#[derive(Debug)]
struct Job {
    disk: Weak<Disk>,
    offset: u64,
    extent: Extent,
}

fn load_all(waiting: &Mutex<Receiver<Job>>, further: u64) {
    loop {
        let next = lock(waiting).recv();
        let Ok(job) = next else { return };
        // Nobody waits for a disk that was closed meanwhile; damage is told to who reads it.
        if let Some(disk) = job.disk.upgrade() {
            let _ = disk.load_ahead(job.offset, job.extent, further);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const KIB: u64 = 1 << 10;
    const SIZE: u64 = 1 << 40;

    fn ahead(cache_chunks: u64, ahead_chunks: u64) -> Arc<ReadAhead> {
        Arc::new(ReadAhead::start(0, ahead_chunks * CHUNK_SIZE, cache_chunks * CHUNK_SIZE).unwrap())
    }

    /// Reads `length` at `offset`; returns what is loaded for it and the chunks that are sent for.
    fn read(streams: &Streams, offset: u64, length: u64) -> (Extent, Vec<u64>) {
        let sent = RefCell::new(Vec::new());
        let extent = streams.follow(offset, length, SIZE, |at| {
            assert_eq!(at % CHUNK_SIZE, 0);
            sent.borrow_mut().push(at / CHUNK_SIZE);
            true
        });
        (extent, sent.into_inner())
    }

    #[test]
    fn a_sequential_reader_is_recognised_and_read_ahead_once() {
        let streams = Streams::new(&ahead(32, 2));
        assert_eq!(read(&streams, 0, 128 * KIB), (Extent::Frame, vec![]));
        assert_eq!(read(&streams, 128 * KIB, 128 * KIB), (Extent::Chunk, vec![1, 2]));
        assert_eq!(read(&streams, 256 * KIB, 1024 * KIB), (Extent::Chunk, vec![]));
        let sent: Vec<u64> = (1..20).flat_map(|n| read(&streams, (n << 20) + 256 * KIB, 1 << 20).1).collect();
        assert_eq!(sent, [3, 4, 5, 6, 7]);
    }

    #[test]
    fn requests_of_one_stream_may_come_in_another_order() {
        let streams = Streams::new(&ahead(32, 1));
        for at in [0, 1, 3, 2, 4, 5, 7, 6] {
            read(&streams, at << 20, 1 << 20);
        }
        assert_eq!(read(&streams, 8 << 20, 1 << 20), (Extent::Chunk, vec![3]));
        assert_eq!(lock(&streams.streams).1.len(), 1);
    }

    #[test]
    fn small_reads_are_read_ahead_but_wait_for_no_whole_chunk_and_are_followed_strictly() {
        let streams = Streams::new(&ahead(32, 1));
        let sent: Vec<u64> = (0..100).flat_map(|n| read(&streams, n * 4096, 4096).1).collect();
        assert_eq!(sent, [1]);
        assert_eq!(read(&streams, 100 * 4096, 4096), (Extent::Frame, vec![]));
        assert_eq!(read(&streams, 1 << 20, 4096), (Extent::Frame, vec![]), "near the stream, not in it");
        assert_eq!(lock(&streams.streams).1.len(), 2);
    }

    #[test]
    fn the_frame_after_two_neighbours_is_wanted_next() {
        let mut steps = Steps::default();
        let wanted: Vec<_> = [7, 7, 100, 8, 8, 101, 9, 50, 11, 10, 102].map(|frame| steps.next(frame)).into();
        let none = None;
        assert_eq!(
            wanted,
            [none, none, none, Some(9), none, Some(102), Some(10), none, none, none, Some(103)],
            "10 is followed by 11, which is there"
        );
        (200..400).step_by(2).for_each(|frame| assert_eq!(steps.next(frame), None));
        assert_eq!(steps.0.len(), STEPS_MAX);
        assert_eq!(steps.next(103), None, "what was long ago is forgotten");
    }

    #[test]
    fn random_reads_load_frames_and_send_for_nothing() {
        let streams = Streams::new(&ahead(32, 4));
        for number in 0..1000u64 {
            let offset = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % SIZE / 4096 * 4096;
            assert_eq!(read(&streams, offset, 4096), (Extent::Frame, vec![]));
        }
        assert_eq!(streams.ahead.active.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn several_readers_of_one_file_are_told_apart() {
        let streams = Streams::new(&ahead(64, 1));
        for turn in 0..40u64 {
            for reader in 0..STREAMS_MAX as u64 {
                let (extent, _) = read(&streams, (reader << 30) + turn * 128 * KIB, 128 * KIB);
                assert_eq!(extent, if turn < 1 { Extent::Frame } else { Extent::Chunk }, "{reader} {turn}");
            }
        }
        assert_eq!(streams.ahead.active.load(Ordering::Relaxed), STREAMS_MAX);
        // New places take the place of the oldest, and all are given back at the end.
        read(&streams, SIZE / 2, 4096);
        let ahead = Arc::clone(&streams.ahead);
        assert_eq!(ahead.active.load(Ordering::Relaxed), STREAMS_MAX - 1);
        drop(streams);
        assert_eq!(ahead.active.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_does_not_fit_into_the_cache_is_not_read_ahead() {
        let small = ahead(2, 8);
        let (one, other) = (Streams::new(&small), Streams::new(&small));
        for at in 0..4 {
            assert!(read(&one, at << 20, 1 << 20).1.is_empty());
        }
        assert_eq!(read(&one, 4 << 20, 1 << 20), (Extent::Chunk, vec![]));
        for at in 0..4 {
            read(&other, at << 20, 1 << 20);
        }
        assert_eq!(read(&one, 5 << 20, 1 << 20), (Extent::Frame, vec![]), "two streams, room for one");
        drop(other);
        assert_eq!(read(&one, 6 << 20, 1 << 20), (Extent::Chunk, vec![]));
        let large = ahead(12, 100);
        let streams = Streams::new(&large);
        read(&streams, 0, 1 << 20);
        assert_eq!(read(&streams, 1 << 20, 1 << 20).1, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn the_end_of_the_disk_is_the_end() {
        let streams = Streams::new(&ahead(64, 8));
        read(&streams, SIZE - (2 << 20), 1 << 20);
        assert_eq!(read(&streams, SIZE - (1 << 20), 1 << 20), (Extent::Chunk, vec![]));
        assert_eq!(read(&streams, u64::MAX - 5, 100), (Extent::Frame, vec![]));
    }
}
