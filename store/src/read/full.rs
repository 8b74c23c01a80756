//! Chunks that are kept in full, in files of their own: open one, read one frame. What a reader gets is verified.

use super::copied::CopiedPages;
use crate::backend::{Backend, StoredChunk};
use crate::error::{Error, Result};
use crate::format::FRAME_LEN;
use crate::format::container::{self, Frame, Header};
use crate::format::frame::{Decoder, Kind};
use crate::format::id::{ChunkId, FrameValue, frame_matches, zero_frame_matches};
use crate::format::name::FileName;

/// A chunk in a file of its own.
#[derive(Debug)]
pub(crate) struct FullChunk {
    id: ChunkId,
    header: Header,
    file: Box<dyn StoredChunk>,
}

/// Opens a chunk that is kept in full, and proves its header.
pub(crate) fn open_full(files: &dyn Backend, id: &ChunkId) -> Result<FullChunk> {
    let Some(file) = files.open(&FileName::chunk(*id))? else { return Err(Error::ChunkMissing { id: *id }) };
    let mut bytes = [0; container::HEADER_LEN_MAX];
    let length = file.read_at(&mut bytes, 0).map_err(|error| read_error(id, &error))?;
    match container::parse_header(&bytes[..length], file.len(), id) {
        Ok(header) => Ok(FullChunk { id: *id, header, file }),
        Err(reason) => Err(corrupt(id, reason)),
    }
}

/// An error about a chunk.
pub(super) fn corrupt(id: &ChunkId, reason: String) -> Error {
    Error::ChunkCorrupt { id: *id, reason }
}

/// An error about a frame of a chunk.
pub(super) fn corrupt_frame(id: &ChunkId, number: usize, reason: &str) -> Error {
    corrupt(id, format!("frame {number}: {reason}"))
}

fn read_error(id: &ChunkId, error: &std::io::Error) -> Error {
    // A medium that cannot be read is damage of this chunk: the rest of the store goes on.
    corrupt(id, format!("its file cannot be read: {error}"))
}

impl FullChunk {
    /// The chunk.
    pub(crate) fn id(&self) -> &ChunkId {
        &self.id
    }

    /// What its file says of its frames, proven against the id.
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// Begins to fetch its file, without waiting for it.
    pub(crate) fn will_need(&self) {
        self.file.will_need(0, 0);
    }

    /// Reads, decodes and verifies frame `number` into `out`, which has its length.
    pub(crate) fn read_frame(&self, number: usize, scratch: &mut FrameScratch, out: &mut [u8]) -> Result<()> {
        self.read(number, None, scratch, out)
    }

    /// As [`FullChunk::read_frame`], taking what is stored from a window.
    pub(super) fn read(
        &self,
        number: usize,
        window: Option<&mut Window>,
        scratch: &mut FrameScratch,
        out: &mut [u8],
    ) -> Result<()> {
        self.decode(number, window, scratch, out)?;
        self.verify(number, out)
    }

    /// Reads and decodes a frame; what comes out is to be proven by the caller.
    pub(super) fn decode(
        &self,
        number: usize,
        window: Option<&mut Window>,
        scratch: &mut FrameScratch,
        out: &mut [u8],
    ) -> Result<()> {
        let frame = &self.header.frames[number];
        let stored = self.stored(frame, window, &mut scratch.stored[..])?;
        let decoded = scratch.decoder.decode(frame.kind, stored, out);
        decoded.map_err(|reason| corrupt_frame(&self.id, number, &reason))
    }

    fn verify(&self, number: usize, plain: &[u8]) -> Result<()> {
        let frame = &self.header.frames[number];
        let is_zero = frame.kind == Kind::Zero;
        verify(&self.id, (number, self.header.frames.len()), &frame.value, is_zero, plain)
    }

    /// Returns the bytes of a frame as they are in the file: from the window, or read into `room`.
    fn stored<'a>(
        &self,
        frame: &Frame,
        window: Option<&'a mut Window>,
        room: &'a mut [u8],
    ) -> Result<&'a [u8]> {
        if let Some(window) = window
            && window.cover(self, frame)
        {
            return Ok(window.bytes(frame));
        }
        let stored = &mut room[..frame.stored_len as usize];
        let length = self
            .file
            .read_at(stored, u64::from(frame.offset))
            .map_err(|error| read_error(&self.id, &error))?;
        if length != stored.len() {
            return Err(corrupt(&self.id, "its file became shorter".to_owned()));
        }
        Ok(stored)
    }
}

/// Proves the bytes of a frame against its value.
pub(super) fn verify(
    id: &ChunkId,
    (number, frames): (usize, usize),
    value: &FrameValue,
    is_zero: bool,
    plain: &[u8],
) -> Result<()> {
    let matches = match is_zero {
        true => zero_frame_matches(value, number, frames, plain.len()),
        false => frame_matches(value, number, frames, plain),
    };
    match matches {
        true => Ok(()),
        false => Err(corrupt_frame(id, number, "its bytes do not have the hash they should")),
    }
}

/// What reading single frames needs: a decoder, and room for the bytes of one.
pub(crate) struct FrameScratch {
    pub(super) decoder: Decoder,
    pub(super) stored: Box<[u8; FRAME_LEN]>,
    /// The pages of a piece.
    pub(super) packed: Box<[u8; FRAME_LEN]>,
    /// A base's frame; empty until one is needed.
    pub(super) base: Vec<u8>,
    /// Pages that were decoded to be copied.
    pub(super) copied: CopiedPages,
}

impl FrameScratch {
    pub(crate) fn new() -> Self {
        // The only way to fail is to run out of memory for a context of fixed size.
        let decoder = Decoder::new().expect("a zstd decoding context can be allocated");
        let (stored, packed) = (Box::new([0; FRAME_LEN]), Box::new([0; FRAME_LEN]));
        Self { decoder, stored, packed, base: Vec::new(), copied: CopiedPages::default() }
    }

    /// What was read from a file for the last frame, as [`crate::read::chunk::OpenChunk::whole`] describes it.
    pub(crate) fn stored(&self, whole: &Frame) -> &[u8] {
        &self.stored[..whole.stored_len as usize]
    }
}

/// Bytes of a chunk's file that are read at once: many frames, few megabytes for all threads together.
const STORED_LEN: usize = 512 << 10;

const _: () = assert!(STORED_LEN >= FRAME_LEN);

/// A part of a chunk's file in memory.
#[derive(Default)]
pub(super) struct Window {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Window {
    /// Its room, for who decodes in another way.
    pub(super) fn room(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Forgets the file that it was on.
    pub(super) fn leave(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Whether it holds a frame of this file, after moving on to it. Where reading fails or is short, frames are to
    /// be read one by one to find the bad ones.
    fn cover(&mut self, chunk: &FullChunk, frame: &Frame) -> bool {
        let (first, last) = (frame.offset as usize, (frame.offset + frame.stored_len) as usize);
        if last > self.end {
            self.bytes.resize(STORED_LEN, 0);
            let length = STORED_LEN.min(chunk.header.file_len as usize - first);
            let read = chunk.file.read_at(&mut self.bytes[..length], first as u64);
            (self.start, self.end) = (first, first + read.unwrap_or(0));
        }
        first >= self.start && last <= self.end
    }

    fn bytes(&self, frame: &Frame) -> &[u8] {
        let first = frame.offset as usize - self.start;
        &self.bytes[first..first + frame.stored_len as usize]
    }
}
