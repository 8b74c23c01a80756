//! The disk of one revision while it is open, shared by all who have its image or one of its partitions open.
//! As long as it lives, the revision's chunks stay, whatever is forgotten and purged.

use std::cell::RefCell;
use std::sync::Arc;

use backy_store::{Extent, FrameCache, Job, Result, Revision, RevisionReader};

use crate::ahead::{ReadAhead, Streams};
use crate::window::Window;

thread_local! {
    /// What is read, per event loop: grows to the largest request, 1 MiB.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A disk that is open.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) job: Job,
    pub(crate) revision: Arc<Revision>,
    pub(crate) reader: RevisionReader,
}

impl Disk {
    /// Opens the disk of a revision.
    pub(crate) fn open(job: &Job, revision: &Arc<Revision>, cache: &Arc<FrameCache>) -> Result<Self> {
        let reader = job.open_revision(revision, cache)?;
        Ok(Self { job: job.clone(), revision: Arc::clone(revision), reader })
    }

    /// Size of the disk.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.reader.size_bytes()
    }

    /// Loads the chunk at `offset` of the disk, if it is not in memory.
    pub(crate) fn load_ahead(&self, offset: u64) -> Result<()> {
        self.reader.load_ahead(offset)
    }

    fn append(&self, mut offset: u64, length: u64, extent: Extent, buffer: &mut Vec<u8>) -> Result<()> {
        let end = offset + length;
        while offset < end {
            let piece = self.reader.piece(offset, (end - offset) as usize, extent)?;
            if piece.is_empty() {
                break;
            }
            buffer.extend_from_slice(&piece);
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// First byte of the file at or after `offset` that is data (or, with `data` false, that lies in a hole);
    /// `None` when there is none.
    pub(crate) fn seek(&self, window: &Window, offset: u64, data: bool) -> Result<Option<u64>> {
        let mut at = offset;
        for piece in window.pieces(offset, u64::MAX) {
            let end = piece.disk_offset + piece.length;
            let found = if data {
                self.reader.next_data(piece.disk_offset)?
            } else {
                Some(self.reader.next_hole(piece.disk_offset)?)
            };
            if let Some(found) = found.filter(|&found| found < end) {
                return Ok(Some(at + (found - piece.disk_offset)));
            }
            at += piece.length;
        }
        Ok(None)
    }

    /// Bytes of the file that `window` shows that are not in holes. Reads the map of all that it shows.
    pub(crate) fn data_bytes(&self, window: &Window) -> Result<u64> {
        let mut sum = 0;
        for piece in window.pieces(0, u64::MAX) {
            let end = piece.disk_offset + piece.length;
            let mut at = piece.disk_offset;
            while let Some(start) = self.reader.next_data(at)?.filter(|&start| start < end) {
                at = self.reader.next_hole(start)?.min(end);
                sum += at - start;
            }
        }
        Ok(sum)
    }
}

/// An open file that shows a disk or a part of it.
#[derive(Debug)]
pub(crate) struct DiskFile {
    pub(crate) disk: Arc<Disk>,
    pub(crate) window: Window,
    streams: Streams,
}

impl DiskFile {
    pub(crate) fn new(disk: Arc<Disk>, window: Window, ahead: &Arc<ReadAhead>) -> Self {
        Self { disk, window, streams: Streams::new(ahead) }
    }

    /// Reads up to `length` bytes of the file from `offset` and hands them to `take`; there are fewer only at the end
    /// of the file. Damage is `ImageDamaged` with its offset on the disk.
    pub(crate) fn read<T>(&self, offset: u64, length: usize, take: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let length = self.window.size_bytes().saturating_sub(offset).min(length as u64);
        let mut pieces = self.window.pieces(offset, length).peekable();
        let Some(first) = pieces.peek().copied() else { return Ok(take(&[])) };
        let extent = self.streams.note(&self.disk, first.disk_offset, first.length);
        if first.length == length {
            // Mostly all of it lies in one frame or chunk, and the kernel takes it from there.
            let found = self.disk.reader.piece(first.disk_offset, length as usize, extent)?;
            if found.len() as u64 == length {
                return Ok(take(&found));
            }
        }
        BUFFER.with_borrow_mut(|buffer| {
            buffer.clear();
            for piece in pieces {
                self.disk.append(piece.disk_offset, piece.length, extent, buffer)?;
            }
            Ok(take(buffer))
        })
    }
}
