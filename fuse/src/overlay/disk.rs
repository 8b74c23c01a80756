//! One disk with an overlay: reads, writes, zeroing and syncing, as a disk with a volatile cache does them.
//!
//! What is always true, and why:
//!
//! - A block counts as written when its data is complete: data first, then its state in `image.written`, then its
//!   state in memory, then the answer. A process that is killed in between leaves blocks as they were.
//! - A sync takes a copy of the states, then makes the data durable, then writes the copy to `image.synced` and
//!   makes that durable. A block whose state says "data" after a power failure has its data on the disk.
//! - A block that was read from the revision never is again, so the revision can be read without a lock: what
//!   it said cannot become true once more.
//! - A failed sync is final until the system is started anew: the kernel forgets what it could not write.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use backy_store::Error as StoreError;
use nix::fcntl::{FallocateFlags, fallocate};

use super::edge::{Edge, join};
use super::files::{Files, Opened};
use super::header::{Base, BootId};
use super::sheets::next_data;
use super::space::Space;
use super::states::{BATCH_BLOCKS, BLOCK_BYTES, State, States, by_page};
use crate::error::{Error, Result};
use crate::mutex::lock;

/// How long the same complaint about a disk is not repeated: a full or broken one fails at every write.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(60);

/// Reads the revision: fills the buffer from an offset or fails.
pub(crate) trait ReadBase: Fn(u64, &mut [u8]) -> backy_store::Result<()> {}
impl<T: Fn(u64, &mut [u8]) -> backy_store::Result<()>> ReadBase for T {}

/// What was written to one disk. Shared by all who have it open in one mount.
#[derive(Debug)]
pub(crate) struct OverlayDisk {
    pub(crate) base: Base,
    dir: PathBuf,
    boot: BootId,
    space: Arc<Space>,
    /// Set at the first write.
    kept: OnceLock<Kept>,
    creating: Mutex<()>,
    /// When each error number was logged last.
    complaints: Mutex<HashMap<i32, Instant>>,
}

/// What is kept once something was written.
#[derive(Debug)]
struct Kept {
    files: Files,
    states: RwLock<Current>,
    /// Held while syncing; whether a sync has failed.
    failed: Mutex<bool>,
}

#[derive(Debug)]
struct Current {
    states: States,
    /// Pages of states that changed since the last sync.
    unsynced: BTreeSet<usize>,
    /// Whether data changed since the last sync.
    dirty: bool,
}

impl OverlayDisk {
    /// Opens what is kept below `dir` for a disk. Nothing is made before the first write.
    pub(crate) fn open(dir: PathBuf, base: Base, boot: BootId, space: Arc<Space>) -> Result<Self> {
        let opened = Files::open(&dir, &base, &boot)?;
        let (creating, complaints) = (Mutex::default(), Mutex::default());
        let disk = Self { base, dir, boot, space, kept: OnceLock::new(), creating, complaints };
        if let Some(Opened { files, states, unsynced }) = opened {
            let is_restarted = unsynced.is_none();
            // Whoever wrote it may have been killed before a sync: any of its data may be new.
            let current = Current { states, unsynced: unsynced.unwrap_or_default(), dirty: !is_restarted };
            let kept = Kept::new(files, current)?;
            if is_restarted {
                disk.give_back(&kept);
            }
            drop(disk.kept.set(kept));
        }
        Ok(disk)
    }

    /// Gives back the space of data that was not synced before the system was started anew.
    fn give_back(&self, kept: &Kept) {
        let current = kept.read();
        let mut from = 0;
        // What cannot be looked at keeps its space, which is no harm.
        while let Ok(Some(found)) = next_data(&kept.files.data, from) {
            let Range { start: mut block, end } = touched(&found);
            while block < end {
                let (state, next) = current.states.run(block, end);
                if state != State::Data {
                    kept.punch(self.span(&(block..next)));
                }
                block = next;
            }
            from = found.end;
        }
    }

    /// Whether anything may have been written.
    pub(crate) fn is_kept(&self) -> bool {
        self.kept.get().is_some()
    }

    /// Bytes that are kept as data.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.kept.get().map_or(0, |kept| kept.read().states.data_blocks() * BLOCK_BYTES)
    }

    /// Whether all of a range of the disk is to be read from the revision.
    pub(crate) fn is_untouched(&self, range: Range<u64>) -> bool {
        let Some(kept) = self.kept.get() else { return true };
        let blocks = touched(&range);
        blocks.is_empty() || kept.read().states.run(blocks.start, blocks.end) == (State::Base, blocks.end)
    }

    /// Returns where a byte of the disk is to be read from, and where a piece with another place begins, at most
    /// the end of the disk.
    pub(crate) fn run(&self, offset: u64) -> (State, u64) {
        let Some(kept) = self.kept.get() else { return (State::Base, self.base.size_bytes) };
        let end = self.base.size_bytes.div_ceil(BLOCK_BYTES);
        let (state, end) = kept.read().states.run(offset / BLOCK_BYTES, end);
        (state, (end * BLOCK_BYTES).min(self.base.size_bytes))
    }

    /// Fills `out` from `offset`; all of it must lie on the disk. Only what was not written is read from `base`.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8], base: impl ReadBase) -> backy_store::Result<()> {
        let Some(kept) = self.kept.get() else { return base(offset, out) };
        let end = offset + out.len() as u64;
        let inside = |from: u64, to: u64| (from - offset) as usize..(to - offset) as usize;
        let mut untouched = Vec::new();
        let current = kept.read();
        let mut at = offset;
        while at < end {
            let (state, run_end) = current.states.run(at / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
            let next = (run_end * BLOCK_BYTES).min(end);
            let piece = &mut out[inside(at, next)];
            match state {
                State::Base => untouched.push(at..next),
                State::Zero => piece.fill(0),
                // Under the lock, so that nobody reads a block of which a part is written.
                State::Data => kept.read_data(at, piece)?,
            }
            at = next;
        }
        drop(current);
        untouched
            .into_iter()
            .try_for_each(|range| base(range.start, &mut out[inside(range.start, range.end)]))
    }

    /// Writes `data` at `offset`; all of it must lie on the disk. The rest of a block that is written for the first
    /// time comes from `base`. Fails with `OverlayFull` at the limit, and then has changed nothing.
    pub(crate) fn write(&self, offset: u64, data: &[u8], base: impl ReadBase) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let kept = self.kept_or_created()?;
        let range = offset..offset + data.len() as u64;
        let blocks = touched(&range);
        let mut edges = self.edges(kept, &range, &base)?;

        let mut current = kept.write();
        edges.retain_mut(|edge| edge.is_needed(current.states.get(edge.block)));
        let before = current.states.data_blocks();
        let wanted = current.states.others(blocks.clone(), State::Data);
        self.space.reserve(wanted * BLOCK_BYTES)?;
        current.dirty = true;
        let whole = join(offset, data, &edges);
        let (at, bytes) = whole.as_ref().map_or((offset, data), |(at, bytes)| (*at, bytes));
        let done = kept.write_data(at, bytes).and_then(|()| kept.set(&mut current, blocks, State::Data));
        let gained = current.states.data_blocks() - before;
        self.space.release((wanted - gained) * BLOCK_BYTES);
        done
    }

    /// Makes a range zeros; all of it must lie on the disk. Whole blocks take no space.
    pub(crate) fn zero(&self, range: Range<u64>, base: impl ReadBase) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let whole = self.whole_blocks(&range);
        if whole.is_empty() {
            return touched(&range).try_for_each(|block| self.zero_part(block, &range, &base));
        }
        let (first, last) = (range.start / BLOCK_BYTES, (range.end - 1) / BLOCK_BYTES);
        for block in [first, last] {
            if !whole.contains(&block) {
                self.zero_part(block, &range, &base)?;
            }
        }
        let kept = self.kept_or_created()?;
        let mut start = whole.start;
        while start < whole.end {
            // Others need not wait for all of a large disk. Each block is zeroed or not, as on any disk.
            let end = whole.end.min((start / BATCH_BLOCKS + 1) * BATCH_BLOCKS);
            let mut current = kept.write();
            let before = current.states.data_blocks();
            let done = kept.set(&mut current, start..end, State::Zero);
            self.space.release((before - current.states.data_blocks()) * BLOCK_BYTES);
            done?;
            // Under the lock: a block that is written again must not be punched.
            kept.punch(self.span(&(start..end)));
            start = end;
        }
        Ok(())
    }

    /// Makes all durable that was written before. An error stays: later syncs fail as well.
    pub(crate) fn sync(&self) -> Result<()> {
        let Some(kept) = self.kept.get() else { return Ok(()) };
        let mut failed = lock(&kept.failed);
        if *failed {
            let reason =
                "a sync failed and what was written may be lost; copy what you need, then restart the system";
            return Err(Error::overlay_damaged(&kept.files.data_path(), reason));
        }
        let mut current = kept.write();
        if !std::mem::take(&mut current.dirty) && current.unsynced.is_empty() {
            return Ok(());
        }
        let unsynced = std::mem::take(&mut current.unsynced);
        let pages: Vec<_> = unsynced.into_iter().map(|number| current.states.sheet(number)).collect();
        drop(current);
        let synced = match kept.files.sync_data().map(|()| kept.files.write_synced(&pages)) {
            // The data is durable, only the note of it is missing: that can be written later.
            Ok(Err(error)) => {
                let mut current = kept.write();
                current.dirty = true;
                current.unsynced.extend(pages.iter().map(|page| page.number));
                return Err(error);
            }
            Ok(Ok(())) if pages.is_empty() => Ok(()),
            Ok(Ok(())) => kept.files.sync_synced(),
            Err(error) => Err(error),
        };
        if synced.is_err() {
            *failed = true;
            kept.files.mark_failed();
        }
        synced
    }

    /// Makes all durable, also what only a later process of this start of the system needs.
    pub(crate) fn finish(&self) -> Result<()> {
        self.sync()?;
        self.kept.get().map_or(Ok(()), |kept| kept.files.sync_written())
    }

    /// Whether a complaint about this disk is to be logged: each error number once a minute.
    pub(crate) fn is_new_complaint(&self, number: i32) -> bool {
        let mut said = lock(&self.complaints);
        let now = Instant::now();
        if said.get(&number).is_some_and(|&last| now.duration_since(last) < COMPLAINT_PAUSE) {
            return false;
        }
        said.insert(number, now);
        true
    }

    fn kept_or_created(&self) -> Result<&Kept> {
        if let Some(kept) = self.kept.get().filter(|kept| kept.files.is_renewed()) {
            return Ok(kept);
        }
        let _creating = lock(&self.creating);
        if let Some(kept) = self.kept.get() {
            if !kept.files.is_renewed() {
                // Nobody can write before, so the states are those of the last sync.
                kept.files.renew(&self.base, &self.boot, &kept.read().states)?;
            }
        } else {
            let files = Files::create(&self.dir, &self.base, &self.boot)?;
            let states = States::new(self.base.size_bytes);
            let kept = Kept::new(files, Current { states, unsynced: BTreeSet::new(), dirty: false })?;
            drop(self.kept.set(kept));
        }
        self.kept.get().ok_or_else(|| Error::overlay_damaged(&self.dir, "it vanished while it was made"))
    }

    /// Returns the blocks that `range` covers in part only, with what the revision has there for those that are not
    /// written yet. Call it without the lock.
    fn edges(&self, kept: &Kept, range: &Range<u64>, base: &impl ReadBase) -> Result<Vec<Edge>> {
        let (first, last) = (range.start / BLOCK_BYTES, (range.end - 1) / BLOCK_BYTES);
        let mut edges = Vec::new();
        for block in std::iter::once(first).chain((last != first).then_some(last)) {
            let span = self.span(&(block..block + 1));
            if range.start <= span.start && span.end <= range.end {
                continue;
            }
            let mut content = vec![0; (span.end - span.start) as usize];
            let state = kept.read().states.get(block);
            if state == State::Base {
                base(span.start, &mut content)?;
            }
            edges.push(Edge { block, content });
        }
        Ok(edges)
    }

    /// Makes zeros of the part of a block that lies in `range`.
    fn zero_part(&self, block: u64, range: &Range<u64>, base: &impl ReadBase) -> Result<()> {
        let span = self.span(&(block..block + 1));
        if self.run(span.start).0 == State::Zero {
            return Ok(());
        }
        let (start, end) = (span.start.max(range.start), span.end.min(range.end));
        self.write(start, &vec![0; (end - start) as usize], base)
    }

    /// The blocks that lie wholly in a range; the last one of the disk may be shorter than others.
    fn whole_blocks(&self, range: &Range<u64>) -> Range<u64> {
        let at_end = range.end == self.base.size_bytes;
        let end = if at_end { range.end.div_ceil(BLOCK_BYTES) } else { range.end / BLOCK_BYTES };
        range.start.div_ceil(BLOCK_BYTES)..end
    }

    /// The bytes of the disk in some blocks.
    fn span(&self, blocks: &Range<u64>) -> Range<u64> {
        blocks.start * BLOCK_BYTES..(blocks.end * BLOCK_BYTES).min(self.base.size_bytes)
    }
}

impl Kept {
    fn new(files: Files, current: Current) -> Result<Self> {
        let failed = Mutex::new(files.has_failed()?);
        Ok(Self { files, states: RwLock::new(current), failed })
    }

    fn read(&self) -> RwLockReadGuard<'_, Current> {
        self.states.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Current> {
        self.states.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_data(&self, offset: u64, out: &mut [u8]) -> backy_store::Result<()> {
        let read = self.files.data.read_exact_at(out, offset);
        read.map_err(|source| StoreError::io("read", self.files.data_path(), source))
    }

    fn write_data(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let written = self.files.data.write_all_at(bytes, offset);
        written.map_err(|source| Error::io("write to", self.files.data_path(), source))
    }

    /// Sets the state of blocks whose data is complete. What was set before an error stays set.
    fn set(&self, current: &mut Current, blocks: Range<u64>, state: State) -> Result<()> {
        let is_changed =
            |(_, part): &(usize, Range<u64>)| current.states.run(part.start, part.end) != (state, part.end);
        let parts: Vec<_> = by_page(blocks).filter(is_changed).collect();
        let (whole, partly): (Vec<_>, Vec<_>) =
            parts.into_iter().partition(|(number, part)| current.states.is_whole(*number, part));
        for (number, part) in partly {
            if current.states.is_untouched(number) {
                self.files.reserve(number..number + 1)?;
            }
            let (page, bytes) = current.states.changed(&part, state);
            self.files.write_states(number, bytes.start, &page[bytes])?;
            current.states.put(number, page);
            current.unsynced.insert(number);
        }
        if let (Some((first, _)), Some((last, _))) = (whole.first(), whole.last()) {
            self.files.reserve(*first..last + 1)?;
            self.files.write_pages(whole.iter().map(|(number, _)| current.states.uniform(*number, state)))?;
            for (number, _) in whole {
                current.states.put_all(number, state);
                current.unsynced.insert(number);
            }
        }
        Ok(())
    }

    /// Gives the space of blocks back that need none any more. Nobody reads them, so it is no harm if it fails.
    fn punch(&self, span: Range<u64>) {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        // A disk is never larger than a file can be.
        let (start, length) = (span.start as i64, (span.end - span.start) as i64);
        if let Err(error) = fallocate(&self.files.data, flags, start, length) {
            tracing::debug!(error = backy_store::error::in_full(&error), path = %self.files.data_path().display(), "cannot give space back");
        }
    }
}

/// The blocks that a range touches.
fn touched(range: &Range<u64>) -> Range<u64> {
    range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES)
}
