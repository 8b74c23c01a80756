//! The image of a revision of the original, in either of its two kinds, in pieces of 4 MiB.
//!
//! The last chunk may be longer than the image needs, and is cut, or shorter: nothing was ever written behind its
//! end, so zeros are read there. Inside of an image a short chunk is damage, as it is for the original: what it
//! holds can be read, what it lacks cannot.

use super::chunk::OldChunks;
use super::cowfile::RawImage;
use super::lock::{self, OldReadGuard};
use super::map::OldMap;
use crate::error::{Error, Result};
use crate::format::layout::{chunk_count, chunk_len, frame_count, frame_len};
use crate::format::{CHUNK_LEN, CHUNK_SIZE, ChunkId, FRAME_SIZE};
use crate::read::chunk::{PlainChunk, Scratch};
use crate::repository::job::Job;
use crate::revision::{BackendType, Revision};

/// An image that is open. As long as it is, the original deletes none of its chunks.
#[derive(Debug)]
pub(crate) struct OldImage {
    kind: Kind,
    key: u64,
    _lock: OldReadGuard,
}

#[derive(Debug)]
enum Kind {
    Chunked { map: OldMap, chunks: OldChunks },
    Raw(RawImage),
}

impl OldImage {
    /// Opens the image of a revision of the original.
    pub(crate) fn open(job: &Job, revision: &Revision) -> Result<Self> {
        let lock = lock::for_reading(job.dir(), job.name())?;
        let path = job.old_image_path(&revision.id);
        let (kind, key) = match revision.backend_type {
            BackendType::Cowfile => {
                let raw = RawImage::open(&path)?;
                let key = raw.key();
                (Kind::Raw(raw), key)
            }
            _ => {
                let chunks = OldChunks::open(job.dir())?;
                (Kind::Chunked { map: OldMap::open(&path)?, chunks }, job.old_key())
            }
        };
        Ok(Self { kind, key, _lock: lock })
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        match &self.kind {
            Kind::Chunked { map, .. } => map.size_bytes(),
            Kind::Raw(raw) => raw.size_bytes(),
        }
    }

    /// A number that tells its chunks from others' in a cache.
    pub(crate) fn key(&self) -> u64 {
        self.key
    }

    /// Whether it is read in whole chunks only, because only those can be proven.
    pub(crate) fn is_chunked(&self) -> bool {
        matches!(self.kind, Kind::Chunked { .. })
    }

    /// The map, of a chunked one.
    pub(crate) fn map(&self) -> Option<&OldMap> {
        match &self.kind {
            Kind::Chunked { map, .. } => Some(map),
            Kind::Raw(_) => None,
        }
    }

    /// What lies at place `number`: a chunk, or `None` for zeros.
    pub(crate) fn get(&self, number: u64) -> Option<ChunkId> {
        match &self.kind {
            Kind::Chunked { map, .. } => map.get(number),
            Kind::Raw(raw) => raw.get(number),
        }
    }

    /// The first place from `number` to before `end` that is data (or, with `data` false, zeros).
    pub(crate) fn next(&self, number: u64, end: u64, data: bool) -> Option<u64> {
        match &self.kind {
            Kind::Chunked { map, .. } => map.next(number, end, data),
            Kind::Raw(raw) => {
                (number..end.min(chunk_count(raw.size_bytes()))).find(|at| raw.get(*at).is_some() == data)
            }
        }
    }

    /// Bytes that the file of a raw image takes on the disk.
    pub(crate) fn disk_bytes(&self) -> u64 {
        match &self.kind {
            Kind::Chunked { .. } => 0,
            Kind::Raw(raw) => raw.disk_bytes(),
        }
    }

    /// Begins to fetch a chunk's file without waiting for it.
    pub(crate) fn will_need(&self, id: &ChunkId) {
        if let Kind::Chunked { chunks, .. } = &self.kind {
            chunks.will_need(id);
        }
    }

    /// Reads all of a chunk into `out`, which has room for 4 MiB; returns its length as it is stored.
    pub(crate) fn read_stored(
        &self,
        number: u64,
        id: &ChunkId,
        file: &mut Vec<u8>,
        out: &mut [u8],
    ) -> Result<usize> {
        match &self.kind {
            Kind::Chunked { chunks, .. } => chunks.read(id, file, out),
            Kind::Raw(raw) => {
                let length = chunk_len(raw.size_bytes(), number);
                raw.read(number * CHUNK_SIZE, &mut out[..length]).map(|()| length)
            }
        }
    }

    /// Reads at `offset` of a raw image.
    pub(crate) fn read_raw(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        match &self.kind {
            Kind::Raw(raw) => raw.read(offset, out),
            Kind::Chunked { .. } => Ok(()),
        }
    }

    /// Reads what can be read of the chunk at place `number`; an error where none of it can.
    pub(crate) fn read<'s>(
        &self,
        number: u64,
        id: &ChunkId,
        scratch: &'s mut Scratch,
    ) -> Result<PlainChunk<'s>> {
        let expected = chunk_len(self.size_bytes(), number);
        let (file, plain) = scratch.buffers();
        plain.resize(CHUNK_LEN, 0);
        let stored = self.read_stored(number, id, file, plain)?;
        let mut bad = Vec::new();
        if stored < expected {
            plain[stored..expected].fill(0);
            if let Err(error) = self.check_len(number, id, stored) {
                let lacking = (0..frame_count(expected))
                    .filter(|frame| frame * FRAME_SIZE as usize + frame_len(expected, *frame) > stored);
                bad.extend(lacking.map(|frame| (frame, short(id, stored))));
                drop(error);
            }
        }
        Ok(PlainChunk { data: &mut plain[..expected], bad })
    }

    /// Refuses a chunk of `stored` bytes that ends before its place does, unless it is the last one.
    pub(crate) fn check_len(&self, number: u64, id: &ChunkId, stored: usize) -> Result<()> {
        let is_last = number + 1 == chunk_count(self.size_bytes());
        if stored >= chunk_len(self.size_bytes(), number) || is_last {
            Ok(())
        } else {
            Err(short(id, stored))
        }
    }
}

fn short(id: &ChunkId, stored: usize) -> Error {
    Error::ChunkCorrupt {
        id: *id,
        reason: format!("it holds only {stored} bytes, and the image goes on behind it"),
    }
}
