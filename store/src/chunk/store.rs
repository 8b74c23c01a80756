//! Chunks as verified data: open one, read one frame or all of it, or all that can be
//! read of a damaged one. Nothing leaves this file unverified.

use std::sync::Arc;

use super::container::{self, Header, Refusal};
use super::frame::{Decoder, Kind};
use super::id::{ChunkId, frame_matches, zero_frame_matches};
use super::{CHUNK_LEN, FRAME_LEN};
use crate::backend::{Backend, StoredChunk};
use crate::error::{Error, Result};

/// A chunk whose header is proven and whose frames can be read.
#[derive(Debug)]
pub(crate) struct OpenChunk {
    id: ChunkId,
    header: Header,
    file: Box<dyn StoredChunk>,
}

/// Opens a chunk and proves its header.
pub(crate) fn open(backend: &dyn Backend, id: &ChunkId) -> Result<OpenChunk> {
    let Some(file) = backend.open(id)? else { return Err(Error::ChunkMissing { id: *id }) };
    let mut bytes = [0; container::HEADER_LEN_MAX];
    let length = file.read_at(&mut bytes, 0).map_err(|error| read_error(id, &error))?;
    match container::parse_header(&bytes[..length], file.len(), id) {
        Ok(header) => Ok(OpenChunk { id: *id, header, file }),
        Err(Refusal::Corrupt(reason)) => Err(Error::ChunkCorrupt { id: *id, reason }),
        Err(Refusal::Newer(found)) => Err(Error::FormatNewer {
            what: format!("chunk {id}"),
            found,
            known: u64::from(container::VERSION),
        }),
    }
}

fn read_error(id: &ChunkId, error: &std::io::Error) -> Error {
    // A medium that cannot be read is damage of this chunk: the rest of the store goes on.
    Error::ChunkCorrupt { id: *id, reason: format!("its file cannot be read: {error}") }
}

impl OpenChunk {
    /// Begins to fetch the file, without waiting for it.
    pub(crate) fn will_need(&self) {
        self.file.will_need();
    }

    /// Bytes of the image in this chunk.
    pub(crate) fn plain_len(&self) -> usize {
        self.header.plain_len
    }

    /// What the chunk's file says of its frames, proven against the id.
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// Reads and verifies all of the chunk into `out`, which has its length, and leaves the file's bytes in `stored`.
    pub(crate) fn read_keeping(
        &self,
        decoder: &mut FrameScratch,
        out: &mut [u8],
        stored: &mut Vec<u8>,
    ) -> Result<()> {
        // The header proves this to be at most a chunk and its table.
        stored.resize(usize::try_from(self.header.file_len).unwrap_or(0), 0);
        let length = self.file.read_at(stored, 0).map_err(|error| read_error(&self.id, &error))?;
        if length != stored.len() {
            return Err(self.corrupt(0, "its file became shorter"));
        }
        for (number, out) in out.chunks_mut(FRAME_LEN).enumerate() {
            let frame = &self.header.frames[number];
            let bytes = &stored[frame.offset as usize..(frame.offset + frame.stored_len) as usize];
            self.decode(number, bytes, &mut decoder.decoder, out)?;
        }
        Ok(())
    }

    /// Reads, decodes and verifies frame `number` into `out`, which has its length.
    pub(crate) fn read_frame(&self, number: usize, scratch: &mut FrameScratch, out: &mut [u8]) -> Result<()> {
        let frame = self.header.frames[number];
        let stored = &mut scratch.stored[..frame.stored_len as usize];
        let length = self
            .file
            .read_at(stored, u64::from(frame.offset))
            .map_err(|error| read_error(&self.id, &error))?;
        if length != stored.len() {
            return Err(self.corrupt(number, "its file became shorter"));
        }
        self.decode(number, stored, &mut scratch.decoder, out)
    }

    fn decode(&self, number: usize, stored: &[u8], decoder: &mut Decoder, out: &mut [u8]) -> Result<()> {
        let frame = &self.header.frames[number];
        let frames = self.header.frames.len();
        decoder.decode(frame.kind, stored, out).map_err(|reason| self.corrupt(number, &reason))?;
        let matches = match frame.kind {
            Kind::Zero => zero_frame_matches(&frame.value, number, frames, out.len()),
            _ => frame_matches(&frame.value, number, frames, out),
        };
        if matches { Ok(()) } else { Err(self.corrupt(number, "its bytes do not have the hash they should")) }
    }

    fn corrupt(&self, number: usize, reason: &str) -> Error {
        Error::ChunkCorrupt { id: self.id, reason: format!("frame {number}: {reason}") }
    }
}

/// What reading single frames needs: a decoder and room for the stored bytes of one.
pub(crate) struct FrameScratch {
    decoder: Decoder,
    stored: Box<[u8; FRAME_LEN]>,
}

impl FrameScratch {
    pub(crate) fn new() -> Self {
        // The only way to fail is to run out of memory for a context of fixed size.
        let decoder = Decoder::new().expect("a zstd decoding context can be allocated");
        Self { decoder, stored: Box::new([0; FRAME_LEN]) }
    }
}

/// Bytes of a chunk's file that are read at once: many frames, few megabytes for all threads together.
const STORED_LEN: usize = 512 << 10;

const _: () = assert!(STORED_LEN >= FRAME_LEN);

/// What reading whole chunks needs; one per thread, reused.
pub(crate) struct Scratch {
    frames: FrameScratch,
    stored: Vec<u8>,
    plain: Vec<u8>,
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Scratch")
    }
}

/// The frames of one chunk after reading all of it.
pub(crate) struct PlainChunk<'s> {
    /// The bytes; zeros where a frame was bad.
    pub(crate) data: &'s [u8],
    /// Numbers and errors of the frames that could not be read.
    pub(crate) bad: Vec<(usize, Error)>,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { frames: FrameScratch::new(), stored: Vec::new(), plain: Vec::new() }
    }

    /// Room for a file and for a chunk, for who decodes in another way.
    pub(crate) fn buffers(&mut self) -> (&mut Vec<u8>, &mut Vec<u8>) {
        (&mut self.stored, &mut self.plain)
    }

    /// Reads and verifies all of a chunk; the first bad frame is the error.
    pub(crate) fn read(&mut self, chunk: &OpenChunk) -> Result<&[u8]> {
        let PlainChunk { data, bad } = self.salvage(chunk);
        match bad.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(data),
        }
    }

    /// Reads what can be read of a chunk.
    pub(crate) fn salvage(&mut self, chunk: &OpenChunk) -> PlainChunk<'_> {
        let mut plain = std::mem::take(&mut self.plain);
        plain.resize(CHUNK_LEN, 0);
        let bad = self.read_into(chunk, &mut plain[..chunk.plain_len()]);
        self.plain = plain;
        PlainChunk { data: &self.plain[..chunk.plain_len()], bad }
    }

    /// Reads what can be read of a chunk into `out`, which has its length; returns numbers and errors of the frames
    /// that could not be read, which are zeros there.
    pub(crate) fn read_into(&mut self, chunk: &OpenChunk, out: &mut [u8]) -> Vec<(usize, Error)> {
        // Many frames are read at once; where that fails or is short, they are read one by one to find the bad ones.
        self.stored.resize(STORED_LEN, 0);
        let mut bad = Vec::new();
        // What part of the file is in `stored`.
        let (mut start, mut end) = (0, 0);
        for (number, out) in out.chunks_mut(FRAME_LEN).enumerate() {
            let frame = chunk.header.frames[number];
            let (first, last) = (frame.offset as usize, (frame.offset + frame.stored_len) as usize);
            if last > end {
                let length = STORED_LEN.min(chunk.header.file_len as usize - first);
                let read = chunk.file.read_at(&mut self.stored[..length], first as u64);
                (start, end) = (first, first + read.unwrap_or(0));
            }
            let decoded = if first >= start && last <= end {
                chunk.decode(number, &self.stored[first - start..last - start], &mut self.frames.decoder, out)
            } else {
                chunk.read_frame(number, &mut self.frames, out)
            };
            if let Err(error) = decoded {
                out.fill(0);
                bad.push((number, error));
            }
        }
        bad
    }

    /// Reads and verifies one frame into `out`, which has its length.
    pub(crate) fn read_frame(&mut self, chunk: &OpenChunk, number: usize, out: &mut [u8]) -> Result<()> {
        chunk.read_frame(number, &mut self.frames, out)
    }
}

/// A chunk that is open for a while, shared between readers.
pub(crate) type SharedChunk = Arc<OpenChunk>;
