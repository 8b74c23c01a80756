//! Copies from the stream of `rbd export-diff`: one thread reads it and sorts its bytes into chunks, others complete,
//! hash and store them.
//!
//! The stream may come back to a chunk (images with striping do): then the chunk is completed from what was recorded
//! for it before, and it is not opened again while a thread still has it. Memory is bounded: there are so many
//! buffers and no more. Only when the stream had its end mark **and** the program ended with status 0, the copy counts.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use backy_store::{CHUNK_SIZE, Monitor};

use super::command::Running;
use super::copying::{add, gaps, indices, part};
use super::diff::{DiffError, DiffReader, Record};
use super::error::RbdError;
use super::snapshot::RbdSnapshot;
use crate::chunks;
use crate::error::{Error, Result};
use crate::source::{ChunkPutter, ImageSink};

/// Chunks that are gathered at once; striped images come in an order that needs a few.
const OPEN_MAX: usize = 8;

/// A chunk with what the stream has of it.
struct Gathered {
    number: u64,
    buf: Vec<u8>,
    /// Which bytes of the image in it are from the stream.
    parts: Vec<Range<u64>>,
    /// Whether the rest is what is recorded, and not zeros.
    on_recorded: bool,
}

/// Copies the changes since `from`, or everything; returns how many bytes came as data.
pub(super) fn copy(
    snapshot: &RbdSnapshot,
    from: Option<&str>,
    whole_objects: bool,
    to: &dyn ImageSink,
    threads: usize,
    monitor: &dyn Monitor,
) -> Result<u64> {
    let mut running = snapshot.tool.start_diff(from, &snapshot.name, whole_objects, monitor)?;
    let threads = threads.clamp(1, 16);
    let (sender, receiver) = sync_channel(threads);
    let work = Work {
        to,
        monitor,
        size_bytes: snapshot.info.size_bytes,
        receiver: Mutex::new(receiver),
        shared: Mutex::default(),
        done: Condvar::new(),
    };
    let mut gatherer = Gatherer {
        work: &work,
        sender,
        open: VecDeque::new(),
        touched: BTreeSet::new(),
        from,
        bytes_read: 0,
    };
    let result = thread::scope(|scope| {
        let mut started = Ok(());
        for number in 0..threads {
            if let Err(source) = thread::Builder::new().spawn_scoped(scope, || work.run()) {
                // With fewer it takes longer.
                if number == 0 {
                    started = Err(Error::ThreadMissing { source });
                }
                break;
            }
        }
        let read = |()| gatherer.read(&mut running, snapshot).and_then(|()| gatherer.close_all());
        let result = started.and_then(read);
        let (bytes_read, touched) = (gatherer.bytes_read, std::mem::take(&mut gatherer.touched));
        // The threads end when nobody can send any more.
        drop(gatherer);
        result.map(|()| (bytes_read, touched))
    });
    // What a thread met comes first: the reader only saw that it stopped.
    if let Some(error) = work.lock().failure.take() {
        return Err(error);
    }
    let (bytes_read, touched) = match result {
        Ok(done) => done,
        Err(error) => return Err(explain(running, error)),
    };
    running.finish()?.success()?;
    rest(&work, from.is_some(), &touched)?;
    Ok(bytes_read)
}

/// Chunks that the stream did not name: as in the base, or holes.
fn rest(work: &Work<'_>, is_incremental: bool, touched: &BTreeSet<u64>) -> Result<()> {
    let mut putter = work.to.chunk_putter()?;
    for number in 0..chunks::count(work.size_bytes) {
        if !touched.contains(&number) {
            if !is_incremental {
                putter.hole(number)?;
            }
            work.monitor.advance(chunks::length(&chunks::range(number, work.size_bytes)) as u64);
        }
    }
    Ok(())
}

/// A stream that is cut is explained by what the program said when it ended.
fn explain(running: Running<'_>, error: Error) -> Error {
    if !matches!(
        &error,
        Error::Rbd(RbdError::Stream { source: DiffError::Cut { .. } | DiffError::Header, .. })
    ) {
        return error;
    }
    match running.finish() {
        Ok(done) if done.status.success() => error,
        Ok(done) => done.failure().into(),
        Err(also) => also,
    }
}

/// What the threads share.
struct Work<'w> {
    to: &'w dyn ImageSink,
    monitor: &'w dyn Monitor,
    size_bytes: u64,
    receiver: Mutex<Receiver<Gathered>>,
    shared: Mutex<Shared>,
    done: Condvar,
}

#[derive(Default)]
struct Shared {
    /// Chunks that were sent and are not recorded yet.
    in_flight: BTreeSet<u64>,
    /// Buffers to use again.
    spare: Vec<Vec<u8>>,
    failure: Option<Error>,
}

impl Work<'_> {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records chunks until none come. After a failure they are only taken away.
    fn run(&self) {
        let mut state = None;
        loop {
            let next = self.receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(mut chunk) = next else { return };
            if self.lock().failure.is_none()
                && let Err(error) = self.record(&mut chunk, &mut state)
            {
                self.lock().failure.get_or_insert(error);
            }
            let mut shared = self.lock();
            shared.in_flight.remove(&chunk.number);
            shared.spare.push(chunk.buf);
            self.done.notify_all();
        }
    }

    fn record<'s>(
        &'s self,
        chunk: &mut Gathered,
        state: &mut Option<Box<dyn ChunkPutter + 's>>,
    ) -> Result<()> {
        let putter = match state {
            Some(putter) => putter,
            None => state.insert(self.to.chunk_putter()?),
        };
        let range = chunks::range(chunk.number, self.size_bytes);
        let length = chunks::length(&range);
        let gaps = gaps(&chunk.parts, &range);
        if chunk.on_recorded && !gaps.is_empty() {
            putter.put_changed(chunk.number, &mut chunk.buf, &indices(&chunk.parts, &range))?;
        } else {
            gaps.iter().for_each(|gap| part(&mut chunk.buf, gap, &range).fill(0));
            putter.put(chunk.number, &chunk.buf)?;
        }
        self.monitor.advance(length as u64);
        Ok(())
    }
}

/// Reads the stream.
struct Gatherer<'g> {
    work: &'g Work<'g>,
    sender: SyncSender<Gathered>,
    open: VecDeque<Gathered>,
    touched: BTreeSet<u64>,
    from: Option<&'g str>,
    bytes_read: u64,
}

impl Gatherer<'_> {
    fn read(&mut self, running: &mut Running<'_>, snapshot: &RbdSnapshot) -> Result<()> {
        let command = running.command.clone();
        let failed = |error| stream_error(&command, error);
        let mut expected = Expected::new(self.from, snapshot);
        let mut reader = DiffReader::new(running).map_err(failed)?;
        while let Some(record) = reader.next_record().map_err(failed)? {
            match record {
                Record::FromSnapshot(_) | Record::ToSnapshot(_) | Record::Size(_) => {
                    expected.meet(record, &command)?;
                }
                Record::Data { offset, length } => {
                    expected.check_all_met(&command)?;
                    self.bytes_read += length;
                    self.take(offset..offset + length, &mut |buf| reader.read(buf).map_err(failed))?;
                }
                Record::Zero { offset, length } => {
                    expected.check_all_met(&command)?;
                    self.take(offset..offset + length, &mut |buf| {
                        buf.fill(0);
                        Ok(())
                    })?;
                }
            }
        }
        expected.check_all_met(&command)
    }

    /// Puts a range into its chunks; `fill` gives its bytes in order.
    fn take(&mut self, range: Range<u64>, fill: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Result<()> {
        let size = self.work.size_bytes;
        let mut at = range.start;
        while at < range.end {
            let number = at / CHUNK_SIZE;
            let chunk = chunks::range(number, size);
            let piece = at..range.end.min(chunk.end);
            let open = self.open(number)?;
            fill(part(&mut open.buf, &piece, &chunk))?;
            add(&mut open.parts, piece.clone());
            at = piece.end;
        }
        Ok(())
    }

    /// Returns the chunk to put bytes in, opened if it is not.
    fn open(&mut self, number: u64) -> Result<&mut Gathered> {
        if let Some(place) = self.open.iter().position(|open| open.number == number) {
            return Ok(&mut self.open[place]);
        }
        if self.open.len() >= OPEN_MAX {
            self.close_first()?;
        }
        let is_new = self.touched.insert(number);
        let mut shared = self.work.lock();
        while shared.in_flight.contains(&number) {
            shared = self.work.done.wait(shared).unwrap_or_else(PoisonError::into_inner);
        }
        let mut buf = shared.spare.pop().unwrap_or_default();
        drop(shared);
        buf.resize(chunks::length(&chunks::range(number, self.work.size_bytes)), 0);
        let on_recorded = self.from.is_some() || !is_new;
        self.open.push_back(Gathered { number, buf, parts: Vec::new(), on_recorded });
        Ok(self.open.back_mut().expect("it was just put there"))
    }

    fn close_first(&mut self) -> Result<()> {
        let Some(chunk) = self.open.pop_front() else { return Ok(()) };
        let mut shared = self.work.lock();
        if shared.failure.is_some() {
            return Err(backy_store::Error::Cancelled.into());
        }
        shared.in_flight.insert(chunk.number);
        drop(shared);
        // The threads take until this end is dropped.
        self.sender.send(chunk).map_err(|_| backy_store::Error::Cancelled.into())
    }

    fn close_all(&mut self) -> Result<()> {
        while !self.open.is_empty() {
            self.close_first()?;
        }
        Ok(())
    }
}

/// Finds errors of this crate in those of the stream.
fn stream_error(command: &str, error: DiffError) -> Error {
    match error {
        DiffError::Io(source) => match source.downcast::<Error>() {
            Ok(error) => error,
            Err(source) => RbdError::Pipe { command: command.to_owned(), source }.into(),
        },
        source => RbdError::Stream { command: command.to_owned(), source }.into(),
    }
}

/// What a stream must say of itself before its data.
struct Expected {
    waiting: Vec<Record>,
}

impl Expected {
    fn new(from: Option<&str>, snapshot: &RbdSnapshot) -> Self {
        let mut waiting =
            vec![Record::ToSnapshot(snapshot.name.clone()), Record::Size(snapshot.info.size_bytes)];
        waiting.extend(from.map(|from| Record::FromSnapshot(from.to_owned())));
        Self { waiting }
    }

    fn meet(&mut self, record: Record, command: &str) -> Result<()> {
        match self.waiting.iter().position(|expected| *expected == record) {
            Some(place) => {
                self.waiting.swap_remove(place);
                Ok(())
            }
            None => Err(of_other(command, format!("it names {}", words(&record)))),
        }
    }

    fn check_all_met(&self, command: &str) -> Result<()> {
        match self.waiting.first() {
            None => Ok(()),
            Some(missing) => Err(of_other(command, format!("it does not name {}", words(missing)))),
        }
    }
}

fn of_other(command: &str, problem: String) -> Error {
    RbdError::StreamOfOther { command: command.to_owned(), problem }.into()
}

fn words(record: &Record) -> String {
    match record {
        Record::FromSnapshot(name) => format!("the snapshot {name} as its beginning"),
        Record::ToSnapshot(name) => format!("the snapshot {name} as its end"),
        Record::Size(size) => format!("a size of {size} bytes"),
        Record::Data { .. } | Record::Zero { .. } => "data".to_owned(),
    }
}
