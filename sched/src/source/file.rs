//! The source `file`: an image file or a block device, read where it lies.
//!
//! A block device of 0 bytes has no medium: that is an error, for nobody backs up nothing.
//!
//! There is no snapshot to take: the file's size, modification time and identity are noted when it is
//! opened and compared when it was read (`check_unchanged`). A block device has no time that tells of
//! writes; there only its size and number are compared, and what changes during the backup is found by the
//! second reading (`compare`).
//!
//! Holes are found with `SEEK_DATA` and `SEEK_HOLE` and never read. Where the file system does not know
//! them, all is data; the store recognises zeros by itself.
//!
//! The workers read at several places of one open file, which the kernel's own reading ahead takes for random reads
//! where its window is small. So each worker, before it begins with a chunk, asks for the one that is next for it, as
//! long as anything comes from the disk: asking for what lies in memory would cost a tenth of comparing it.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use backy_store::{ChunkCheck, Monitor, Revision, RevisionId, Timestamp};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::resource::{UsageWho, getrusage};

use super::{ChunkPutter, CopyMode, CopyStats, ImageSink, Snapshot, Source};
use super::{device, shape};
use crate::chunks;
use crate::error::{Error, Result};
use crate::source::extents::{self, Seeker};

/// An image file or block device that may or may not be there.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
}

impl FileSource {
    /// Takes the path; a relative one counts from the working directory.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

impl Source for FileSource {
    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn snapshot(&mut self, _id: &RevisionId, _monitor: &dyn Monitor) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(FileSnapshot::open(&self.path)?))
    }
}

/// The open file and what it looked like at that moment.
#[derive(Debug)]
struct FileSnapshot {
    path: PathBuf,
    name: String,
    file: File,
    identity: Identity,
    size_bytes: u64,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    is_block_device: bool,
    /// Device and inode of a file, number of a block device.
    place: (u64, u64),
    /// Seconds and nanoseconds of the last modification of a file; nothing for a block device.
    modified: Option<(i64, i64)>,
}

impl Identity {
    fn of(metadata: &Metadata) -> Result<Self, &'static str> {
        let kind = metadata.file_type();
        if kind.is_block_device() {
            return Ok(Self { is_block_device: true, place: (metadata.rdev(), 0), modified: None });
        }
        if kind.is_file() {
            let modified = Some((metadata.mtime(), metadata.mtime_nsec()));
            return Ok(Self { is_block_device: false, place: (metadata.dev(), metadata.ino()), modified });
        }
        Err(match () {
            () if kind.is_dir() => "directory",
            () if kind.is_fifo() => "pipe",
            () if kind.is_char_device() => "character device",
            () if kind.is_socket() => "socket",
            () => "special file",
        })
    }
}

impl FileSnapshot {
    fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let unusable = |doing| {
            let name = name.clone();
            move |source: io::Error| match source.kind() {
                io::ErrorKind::NotFound => Error::SourceMissing { name },
                _ => Error::SourceUnusable { name, doing, source },
            }
        };
        let kind = |kind| Error::SourceKind { name: name.clone(), kind };
        // Looked at before it is opened, for opening a pipe would wait for a writer; and again afterwards,
        // for what counts is what was opened. The standard library opens with O_CLOEXEC.
        Identity::of(&std::fs::metadata(path).map_err(unusable("look at"))?).map_err(kind)?;
        let file = File::open(path).map_err(unusable("open"))?;
        let metadata = file.metadata().map_err(unusable("look at"))?;
        let identity = Identity::of(&metadata).map_err(kind)?;
        let size_bytes = size_of(&file, &identity, &metadata).map_err(unusable("measure"))?;
        if identity.is_block_device && size_bytes == 0 {
            // A loop device that is detached, a drive without medium, a volume that is not active.
            return Err(Error::SourceWithoutMedium { name });
        }
        // Only advice: what does not help does not harm.
        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL);
        Ok(Self { path: path.to_owned(), name, file, identity, size_bytes })
    }

    fn read_error(&self, offset: u64, source: io::Error) -> Error {
        Error::SourceRead { name: self.name.clone(), offset, source }
    }

    /// Lets the kernel fetch a chunk while another one is worked on. What it has already is not read again.
    fn fetch(&self, chunk: &Range<u64>) {
        // In pieces: of one request the kernel fetches no more than the device takes at once, which may be little.
        for piece in chunks::pieces(chunk) {
            let (Ok(start), Ok(length)) = (piece.start.try_into(), (piece.end - piece.start).try_into())
            else {
                return;
            };
            // Only advice, too.
            let _ = posix_fadvise(&self.file, start, length, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
        }
    }

    /// Returns the parts of a chunk that hold data.
    fn parts(&self, chunk: &Range<u64>) -> Result<Vec<Range<u64>>> {
        extents::data_inside(&FileSeeker(&self.file), chunk.clone())
            .map_err(|source| self.read_error(chunk.start, source))
    }

    /// Fills `buf` with the bytes of `range`: what lies in `parts` is read, the rest is zeros.
    fn read_parts(&self, parts: &[Range<u64>], range: &Range<u64>, buf: &mut [u8]) -> Result<()> {
        let index = |offset: u64| chunks::length(&(range.start..offset));
        let mut filled = range.start;
        for part in parts {
            let (start, end) = (part.start.max(range.start), part.end.min(range.end));
            if start < end {
                buf[index(filled)..index(start)].fill(0);
                self.read_at(start, &mut buf[index(start)..index(end)])?;
                filled = end;
            }
        }
        buf[index(filled)..].fill(0);
        Ok(())
    }

    /// Whether the chunk still is what the base has there. Read in small pieces: a chunk that changed is read once more.
    fn agrees(
        &self,
        mut check: ChunkCheck,
        parts: &[Range<u64>],
        chunk: &Range<u64>,
        buf: &mut [u8],
    ) -> Result<bool> {
        for piece in chunks::pieces(chunk) {
            let buf = &mut buf[..chunks::length(&piece)];
            self.read_parts(parts, &piece, buf)?;
            check.update(buf);
        }
        Ok(check.agrees())
    }

    /// Records one chunk that may hold data; returns the bytes read.
    fn copy_chunk(
        &self,
        number: u64,
        has_base: bool,
        to: &dyn ImageSink,
        putter: &mut dyn ChunkPutter,
        buf: &mut [u8],
    ) -> Result<u64> {
        let chunk = chunks::range(number, self.size_bytes);
        let parts = self.parts(&chunk)?;
        if parts.is_empty() {
            putter.hole(number)?;
            return Ok(0);
        }
        let bytes_read = parts.iter().map(|part| part.end - part.start).sum();
        if has_base {
            let check = to.check(number)?;
            if !check.expects_hole() && self.agrees(check, &parts, &chunk, buf)? && putter.keep(number)? {
                return Ok(bytes_read);
            }
        }
        let buf = &mut buf[..chunks::length(&chunk)];
        self.read_parts(&parts, &chunk, buf)?;
        putter.put(number, buf)?;
        Ok(bytes_read)
    }
}

/// Returns the size of a file, or of a block device, whose metadata do not tell.
fn size_of(mut file: &File, identity: &Identity, metadata: &Metadata) -> io::Result<u64> {
    if identity.is_block_device { file.seek(SeekFrom::End(0)) } else { Ok(metadata.len()) }
}

impl Snapshot for FileSnapshot {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Reads everything that is not a hole: a file does not tell what changed since the base.
    fn copy_changes(
        &self,
        base: Option<&Revision>,
        to: &dyn ImageSink,
        threads: usize,
        monitor: &dyn Monitor,
    ) -> Result<CopyStats> {
        assert_eq!(to.size_bytes(), self.size_bytes, "the revision is made for this snapshot");
        let runs = extents::chunks_with_data(&FileSeeker(&self.file), self.size_bytes)
            .map_err(|source| self.read_error(0, source))?;
        let bytes_read = AtomicU64::new(0);
        let count = chunks::count(self.size_bytes);
        let workers = chunks::workers(count, threads) as u64;
        let start = || {
            let buf = vec![0; chunks::length(&chunks::range(0, self.size_bytes))];
            Ok((to.chunk_putter()?, buf, DiskReads::new()))
        };
        let step = |(putter, buf, disk): &mut (Box<dyn ChunkPutter + '_>, Vec<u8>, DiskReads), number| {
            if extents::contains(&runs, number) {
                let ahead = number.saturating_add(workers);
                if disk.is_read() && extents::contains(&runs, ahead) {
                    self.fetch(&chunks::range(ahead, self.size_bytes));
                }
                let read = self.copy_chunk(number, base.is_some(), to, &mut **putter, buf)?;
                bytes_read.fetch_add(read, Ordering::Relaxed);
            } else {
                putter.hole(number)?;
            }
            monitor.advance(chunks::length(&chunks::range(number, self.size_bytes)) as u64);
            Ok(())
        };
        chunks::for_each(count, threads, monitor, start, step)?;
        let mode = if base.is_some() { CopyMode::Compared } else { CopyMode::Full };
        Ok(CopyStats { bytes_read: bytes_read.into_inner(), mode })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            match self.file.read_at(&mut buf[done..], at) {
                Ok(0) => {
                    let size_bytes = self.size_bytes;
                    return Err(Error::SourceShort { name: self.name.clone(), offset: at, size_bytes });
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.read_error(at, error)),
            }
        }
        Ok(())
    }

    fn is_hole(&self, offset: u64, length: u64) -> Result<bool> {
        let data = FileSeeker(&self.file).data(offset).map_err(|source| self.read_error(offset, source))?;
        Ok(data.is_none_or(|data| data >= offset.saturating_add(length)))
    }

    fn facts(&self) -> BTreeMap<String, serde_json::Value> {
        let modified = self.identity.modified.and_then(|(secs, nanos)| {
            Timestamp::from_micros(secs.checked_mul(1_000_000)?.checked_add(nanos / 1_000)?)
        });
        let kind = if self.identity.is_block_device { "block device" } else { "regular file" };
        let mut facts = BTreeMap::from([
            ("type".to_owned(), "file".into()),
            ("filename".to_owned(), self.name.clone().into()),
            ("kind".to_owned(), kind.into()),
            ("size".to_owned(), self.size_bytes.into()),
        ]);
        if let Some(modified) = modified {
            facts.insert("mtime".to_owned(), modified.to_rfc3339().into());
        }
        facts
    }

    fn identity(&self) -> shape::Identity {
        match self.identity.is_block_device {
            true => shape::Identity {
                kind: "block-device".to_owned(),
                marks: device::marks(self.identity.place.0),
            },
            // Images are replaced by copies: neither inode nor device says which disk it is.
            false => shape::Identity { kind: "file".to_owned(), marks: BTreeMap::new() },
        }
    }

    fn check_unchanged(&self) -> Result<()> {
        let name = || self.name.clone();
        let unusable = |source| Error::SourceUnusable { name: name(), doing: "look again at", source };
        let metadata = self.file.metadata().map_err(unusable)?;
        let after_bytes = size_of(&self.file, &self.identity, &metadata).map_err(unusable)?;
        if after_bytes != self.size_bytes {
            return Err(Error::SourceResized { name: name(), before_bytes: self.size_bytes, after_bytes });
        }
        if Identity::of(&metadata) != Ok(self.identity) {
            return Err(Error::SourceModified { name: name() });
        }
        match std::fs::metadata(&self.path) {
            Ok(there) if Identity::of(&there).map(|identity| identity.place) == Ok(self.identity.place) => {
                Ok(())
            }
            Ok(_) => Err(Error::SourceReplaced { name: name() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::SourceMissing { name: name() })
            }
            Err(error) => Err(unusable(error)),
        }
    }
}

/// Whether a thread reads from a disk, or finds all in memory.
#[derive(Debug)]
struct DiskReads {
    /// Blocks that the thread had read until it was asked last.
    blocks: i64,
}

impl DiskReads {
    /// Begins as if something had been read.
    fn new() -> Self {
        Self { blocks: -1 }
    }

    /// Whether the calling thread has read or fetched anything from a disk since the last question.
    fn is_read(&mut self) -> bool {
        let blocks = getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.block_reads());
        std::mem::replace(&mut self.blocks, blocks) != blocks
    }
}

/// Asks the file system where data and holes are.
struct FileSeeker<'a>(&'a File);

impl Seeker for FileSeeker<'_> {
    fn data(&self, offset: u64) -> io::Result<Option<u64>> {
        extents::seek_data(self.0, offset)
    }

    fn hole(&self, offset: u64) -> io::Result<Option<u64>> {
        extents::seek_hole(self.0, offset)
    }
}

#[cfg(test)]
mod tests;
