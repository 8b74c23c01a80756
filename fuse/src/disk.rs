//! The disk of one revision while it is open, shared by all who have its image or one of its partitions open.
//! As long as it lives, the revision's chunks stay, whatever is forgotten and purged.

use std::cell::RefCell;
use std::sync::Arc;

use backy_store::{FrameCache, Job, Result, Revision, RevisionReader};

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

    /// Reads up to `length` bytes of the file that `window` shows, from `offset`, and hands them to `take`; there
    /// are fewer only at the end of the file. Damage is `ImageDamaged` with its offset on the disk.
    pub(crate) fn read<T>(
        &self,
        window: &Window,
        offset: u64,
        length: usize,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<T> {
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            let mut done = 0;
            for piece in window.pieces(offset, length as u64) {
                // A piece is never longer than the buffer.
                let out = &mut buffer[done..done + piece.length as usize];
                done += self.reader.read_at(piece.disk_offset, out)?;
            }
            Ok(take(&buffer[..done]))
        })
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
