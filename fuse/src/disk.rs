//! The disk of one revision while it is open, shared by all who have its image or one of its partitions open.
//! As long as it lives, the revision's chunks stay, whatever is forgotten and purged.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use backy_store::{Extent, FRAME_SIZE, FrameCache, Job, Result, Revision, RevisionReader};

use crate::ahead::{ReadAhead, Streams};
use crate::error::{Error as MountError, Result as MountResult};
use crate::overlay::disk::OverlayDisk;
use crate::overlay::{Overlay, State};
use crate::window::{Segment, Window};

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
    /// What was written to it; `None` where nothing can be.
    overlay: Option<Arc<OverlayDisk>>,
}

impl Disk {
    /// Opens the disk of a revision, and what was written to it.
    pub(crate) fn open(
        job: &Job,
        revision: &Arc<Revision>,
        cache: &Arc<FrameCache>,
        overlay: Option<&Overlay>,
    ) -> MountResult<Self> {
        let reader = job.open_revision(revision, cache)?;
        let overlay =
            overlay.map(|overlay| overlay.disk(job.name(), revision, reader.size_bytes())).transpose()?;
        Ok(Self { job: job.clone(), revision: Arc::clone(revision), reader, overlay })
    }

    /// Size of the disk.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.reader.size_bytes()
    }

    /// Loads the frame or the chunk at `offset` of the disk, if it is not in memory. With a chunk the one `further` on
    /// is fetched meanwhile.
    pub(crate) fn load_ahead(&self, offset: u64, extent: Extent, further: u64) -> Result<()> {
        if extent == Extent::Chunk {
            self.reader.will_need(offset.saturating_add(further));
        }
        self.reader.load_ahead(offset, extent)
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

    /// Returns the overlay if it has anything in a range of the file.
    fn written_in(&self, window: &Window, offset: u64, length: usize) -> Option<&OverlayDisk> {
        let overlay = self.overlay.as_deref()?;
        let mut pieces = window.pieces(offset, length as u64);
        pieces.any(|piece| !overlay.is_untouched(range(piece))).then_some(overlay)
    }

    /// Reads a range of which something was written.
    fn read_written<T>(
        &self,
        overlay: &OverlayDisk,
        window: &Window,
        offset: u64,
        length: usize,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<T> {
        let mut data = vec![0; length];
        let mut done = 0;
        for piece in window.pieces(offset, length as u64) {
            // A piece is never longer than the buffer.
            let out = &mut data[done..done + piece.length as usize];
            overlay.read(piece.disk_offset, out, |at, out| self.read_base(at, out))?;
            done += piece.length as usize;
        }
        Ok(take(&data[..done]))
    }

    /// Fills a buffer from the revision.
    fn read_base(&self, at: u64, out: &mut [u8]) -> Result<()> {
        self.reader.read_at(at, out).map(drop)
    }

    /// Returns the overlay; fails with `ReadOnly` where there is none.
    fn writable(&self) -> MountResult<&OverlayDisk> {
        self.overlay.as_deref().ok_or(MountError::ReadOnly)
    }

    /// Writes to the file that `window` shows, at `offset`. Returns how many bytes were written: fewer only at the end
    /// of the file.
    pub(crate) fn write(&self, window: &Window, offset: u64, data: &[u8]) -> MountResult<usize> {
        let overlay = self.writable()?;
        let mut done = 0;
        for piece in window.pieces(offset, data.len() as u64) {
            let part = &data[done..done + piece.length as usize];
            overlay.write(piece.disk_offset, part, |at, out| self.read_base(at, out))?;
            done += part.len();
        }
        Ok(done)
    }

    /// Makes zeros of a range of the file that `window` shows.
    pub(crate) fn zero(&self, window: &Window, offset: u64, length: u64) -> MountResult<()> {
        let overlay = self.writable()?;
        let mut pieces = window.pieces(offset, length);
        pieces.try_for_each(|piece| overlay.zero(range(piece), |at, out| self.read_base(at, out)))
    }

    /// Makes durable what was written.
    pub(crate) fn sync(&self) -> MountResult<()> {
        self.overlay.as_deref().map_or(Ok(()), OverlayDisk::sync)
    }

    /// Whether a complaint about the overlay is to be logged, and is not the same as before.
    pub(crate) fn is_new_complaint(&self, number: i32) -> bool {
        self.overlay.as_deref().is_none_or(|overlay| overlay.is_new_complaint(number))
    }

    /// First byte in a range of the disk that is data (or, with `data` false, that lies in a hole), with what was
    /// written. Looks at nothing beyond the range: a volume of a hostile disk may have very many pieces.
    fn next(&self, range: Range<u64>, data: bool) -> Result<Option<u64>> {
        let mut at = range.start;
        while at < range.end {
            let run = self.overlay.as_deref().map(|overlay| overlay.run(at));
            let (state, end) = run.unwrap_or((State::Base, range.end));
            let end = end.min(range.end);
            let found = match state {
                State::Base if data => self.reader.next_data(at..end)?,
                State::Base => self.reader.next_hole(at..end)?,
                State::Data | State::Zero => (data == (state == State::Data)).then_some(at),
            };
            if found.is_some() {
                return Ok(found);
            }
            at = end;
        }
        Ok(None)
    }

    /// First byte of the file at or after `offset` that is data (or, with `data` false, that lies in a hole);
    /// `None` when there is none.
    pub(crate) fn seek(&self, window: &Window, offset: u64, data: bool) -> Result<Option<u64>> {
        let mut at = offset;
        for piece in window.pieces(offset, u64::MAX) {
            if let Some(found) = self.next(range(piece), data)? {
                return Ok(Some(at + (found - piece.disk_offset)));
            }
            at += piece.length;
        }
        Ok(None)
    }

    /// Bytes of the file that `window` shows that are not in holes of the revision. Reads the map of what it shows and
    /// nothing beyond, for the pieces of a logical volume can be many.
    pub(crate) fn data_bytes(&self, window: &Window) -> Result<u64> {
        let mut sum = 0;
        for piece in window.pieces(0, u64::MAX) {
            let mut rest = range(piece);
            while let Some(start) = self.reader.next_data(rest.clone())? {
                rest.start = self.reader.next_hole(start..rest.end)?.unwrap_or(rest.end);
                sum += rest.start - start;
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
        if let Some(overlay) = self.disk.written_in(&self.window, offset, length as usize) {
            return self.disk.read_written(overlay, &self.window, offset, length as usize, take);
        }
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

    /// Where a byte of the file lies on the disk.
    pub(crate) fn disk_offset(&self, offset: u64) -> u64 {
        self.window.pieces(offset, 1).next().map_or(offset, |piece| piece.disk_offset)
    }

    /// Reads the same up to the first frame that cannot be read.
    pub(crate) fn read_before_damage(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut good = Vec::new();
        for piece in self.window.pieces(offset, length as u64) {
            let (mut at, end) = (piece.disk_offset, piece.disk_offset + piece.length);
            while at < end {
                let next = (at - at % FRAME_SIZE).saturating_add(FRAME_SIZE).min(end);
                let from = offset + good.len() as u64;
                let read = self.read(from, (next - at) as usize, |data| good.extend_from_slice(data));
                if read.is_err() {
                    return good;
                }
                at = next;
            }
        }
        good
    }
}

/// The bytes of the disk in a piece.
fn range(piece: Segment) -> Range<u64> {
    piece.disk_offset..piece.disk_offset + piece.length
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    use backy_store::{JobName, NewRevision, Repository, Reuse, RevisionId, Stats, Timestamp};

    use super::*;

    fn revision_of(dir: &Path, data: &[u8]) -> (Job, Arc<Revision>) {
        let at = Timestamp::from_secs(1_700_000_000).unwrap();
        let repository = Repository::create(&dir.join("srv"), at).unwrap();
        let job = repository.create_job(&JobName::parse("web01").unwrap(), false, "{}\n", at).unwrap();
        let new = NewRevision {
            id: RevisionId::random().unwrap(),
            timestamp: at,
            tags: BTreeSet::new(),
            image_size_bytes: data.len() as u64,
            base: None,
            parent: None,
            reuse: Reuse::Header,
            level: 1,
            with_others: false,
        };
        let guard = job.lock_for_backup().unwrap();
        let writer = job.new_revision(&guard, new).unwrap();
        writer.chunk_writer().unwrap().put(0, data).unwrap();
        let revision = writer.finish(&guard, Stats::default(), BTreeMap::new()).unwrap();
        (job.clone(), Arc::new(revision))
    }

    #[test]
    fn what_is_written_through_a_window_lies_at_its_place_on_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut data: Vec<u8> = (0..200_001u32).map(|n| (n % 251) as u8 + 1).collect();
        let (job, revision) = revision_of(dir.path(), &data);
        let cache = Arc::new(FrameCache::new(1 << 20));
        let overlay = Overlay::open(&dir.path().join("over"), None, Path::new("/nowhere")).unwrap();
        let open = || Arc::new(Disk::open(&job, &revision, &cache, Some(&overlay)).unwrap());
        let ahead = Arc::new(ReadAhead::start(1, 1 << 22, 1 << 20).unwrap());
        // Both were open before the first write, as two are that open at once.
        let (disk, other) = (open(), open());
        let segments = [(100_001, 5000), (3, 7000)];
        let segment = |(disk_offset, length)| Segment { disk_offset, length };
        let window = Window::new(segments.map(segment)).unwrap();

        assert_eq!(disk.write(&window, 4000, &[1; 3000]).unwrap(), 3000);
        data[104_001..105_001].fill(1);
        data[3..2003].fill(1);
        assert_eq!(other.write(&window, 11_990, &[2; 100]).unwrap(), 10);
        data[6993..7003].fill(2);
        disk.zero(&window, 4990, 6000).unwrap();
        data[104_991..105_001].fill(0);
        data[3..5993].fill(0);
        for disk in [&disk, &other, &open()] {
            let read = |window: &Window| {
                let file = DiskFile::new(Arc::clone(disk), window.clone(), &ahead);
                file.read(0, 300_000, <[u8]>::to_vec).unwrap()
            };
            assert!(read(&Window::whole(200_001)) == data);
            assert!(read(&window) == [&data[100_001..105_001], &data[3..7003]].concat());
        }
        assert_eq!(disk.seek(&window, 0, false).unwrap(), None, "no block was zeroed as a whole");
        disk.zero(&Window::whole(200_001), 0, 200_001).unwrap();
        assert_eq!(disk.seek(&window, 0, true).unwrap(), None);
        assert_eq!(disk.seek(&window, 77, false).unwrap(), Some(77));
        assert_eq!(overlay.written_bytes(job.name(), &revision.id), 0);
    }

    #[test]
    fn without_an_overlay_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (job, revision) = revision_of(dir.path(), b"data");
        let disk = Disk::open(&job, &revision, &Arc::new(FrameCache::new(1 << 20)), None).unwrap();
        let window = Window::whole(4);
        assert!(matches!(disk.write(&window, 0, b"x"), Err(MountError::ReadOnly)));
        assert!(matches!(disk.zero(&window, 0, 4), Err(MountError::ReadOnly)));
        disk.sync().unwrap();
        let ahead = Arc::new(ReadAhead::start(1, 1 << 22, 1 << 20).unwrap());
        let file = DiskFile::new(Arc::new(disk), window, &ahead);
        assert_eq!(file.read(0, 9, <[u8]>::to_vec).unwrap(), b"data");
    }
}
