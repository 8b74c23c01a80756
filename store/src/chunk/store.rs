//! Chunks as verified data: open one, read one frame or all of it, or all that can be
//! read of a damaged one. Nothing leaves this file unverified.
//!
//! A delta is opened together with its base. Where the base is lost, the frames that do not lean on it are read all
//! the same, and the error of the others names the base.

use std::sync::Arc;

use super::container::{self, Delta, Frame, Header};
use super::frame::{Decoder, Kind, decode_patch};
use super::id::{ChunkId, frame_matches, zero_frame_matches};
use super::name::ChunkName;
use super::{CHUNK_LEN, FRAME_LEN};
use crate::backend::{Backend, StoredChunk};
use crate::error::{Error, Result};

/// A chunk whose header is proven and whose frames can be read.
#[derive(Debug)]
pub(crate) struct OpenChunk {
    name: ChunkName,
    header: Header,
    file: Box<dyn StoredChunk>,
    base: Option<Base>,
}

/// What a delta leans on.
#[derive(Debug)]
enum Base {
    Open(Box<OpenChunk>),
    Missing(ChunkId),
    Corrupt(ChunkId, String),
}

/// Opens a chunk and proves its header. Whatever form a map names, the full one is as good, and is taken where it is.
pub(crate) fn open(backend: &dyn Backend, name: &ChunkName) -> Result<OpenChunk> {
    let full = open_file(backend, &ChunkName::full(name.id));
    let Some(base) = name.base else { return full };
    match full {
        Err(error) if error.is_damage() => match open_delta(backend, name, &base) {
            // That the full form is damaged says more than that there is no other.
            Err(Error::ChunkMissing { .. }) => Err(error),
            other => other,
        },
        other => other,
    }
}

/// Opens just this file of a chunk, and what it leans on.
pub(crate) fn open_form(backend: &dyn Backend, name: &ChunkName) -> Result<OpenChunk> {
    match &name.base {
        Some(base) => open_delta(backend, name, base),
        None => open_file(backend, name),
    }
}

fn open_delta(backend: &dyn Backend, name: &ChunkName, base: &ChunkId) -> Result<OpenChunk> {
    let mut chunk = open_file(backend, name)?;
    chunk.base = Some(match open_file(backend, &ChunkName::full(*base)) {
        Ok(open) if open.plain_len() == chunk.plain_len() => Base::Open(Box::new(open)),
        Ok(_) => return Err(chunk.corrupt(0, "its base has another length")),
        Err(Error::ChunkMissing { .. }) => Base::Missing(*base),
        Err(Error::ChunkCorrupt { reason, .. }) => Base::Corrupt(*base, reason),
        Err(error) => return Err(error),
    });
    Ok(chunk)
}

/// Opens one file, without what it leans on.
fn open_file(backend: &dyn Backend, name: &ChunkName) -> Result<OpenChunk> {
    let id = &name.id;
    let Some(file) = backend.open(name)? else { return Err(Error::ChunkMissing { id: *id }) };
    let mut bytes = [0; container::HEADER_LEN_MAX];
    let length = file.read_at(&mut bytes, 0).map_err(|error| read_error(id, &error))?;
    match container::parse_header(&bytes[..length], file.len(), id) {
        Ok(header) if header.delta.map(|delta| delta.base) == name.base => {
            Ok(OpenChunk { name: *name, header, file, base: None })
        }
        Ok(_) => {
            let reason = "its file leans on another base than its name says".to_owned();
            Err(Error::ChunkCorrupt { id: *id, reason })
        }
        Err(reason) => Err(Error::ChunkCorrupt { id: *id, reason }),
    }
}

fn read_error(id: &ChunkId, error: &std::io::Error) -> Error {
    // A medium that cannot be read is damage of this chunk: the rest of the store goes on.
    Error::ChunkCorrupt { id: *id, reason: format!("its file cannot be read: {error}") }
}

impl OpenChunk {
    /// Begins to fetch what it is read from, without waiting for it.
    pub(crate) fn will_need(&self) {
        self.file.will_need();
        if let Some(Base::Open(base)) = &self.base {
            base.file.will_need();
        }
    }

    /// Bytes of the image in this chunk.
    pub(crate) fn plain_len(&self) -> usize {
        self.header.plain_len
    }

    /// Refuses a chunk that is not as long as its place in an image.
    pub(crate) fn must_have_len(&self, length: usize) -> Result<()> {
        if self.plain_len() == length {
            return Ok(());
        }
        let reason = format!("it holds {} bytes where the image has {length}", self.plain_len());
        Err(Error::ChunkCorrupt { id: self.name().id, reason })
    }

    /// The file that was opened.
    pub(crate) fn name(&self) -> &ChunkName {
        &self.name
    }

    /// What the chunk's file says of its frames, proven against the id.
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// What a delta says of itself.
    pub(crate) fn delta(&self) -> Option<&Delta> {
        self.header.delta.as_ref()
    }

    /// The base of a delta; an error for it when it is lost, and for a full chunk.
    pub(crate) fn base(&self) -> Result<&OpenChunk> {
        match &self.base {
            Some(Base::Open(base)) => Ok(base),
            Some(Base::Missing(id)) => Err(Error::ChunkMissing { id: *id }),
            Some(Base::Corrupt(id, reason)) => Err(Error::ChunkCorrupt { id: *id, reason: reason.clone() }),
            None => Err(self.corrupt(0, "it has no base")),
        }
    }

    /// Returns how a frame is kept, in this file or, where it is the same there, in the base's.
    pub(crate) fn kept(&self, number: usize) -> Result<&Frame> {
        let frame = &self.header.frames[number];
        if frame.kind == Kind::Same { self.base()?.kept(number) } else { Ok(frame) }
    }

    /// Reads, decodes and verifies frame `number` into `out`, which has its length.
    pub(crate) fn read_frame(&self, number: usize, scratch: &mut FrameScratch, out: &mut [u8]) -> Result<()> {
        self.read_frame_through(number, &mut [], scratch, out)
    }

    /// As [`OpenChunk::read_frame`], taking what is stored from `windows`: on this file and on the base's.
    fn read_frame_through(
        &self,
        number: usize,
        windows: &mut [Window],
        scratch: &mut FrameScratch,
        out: &mut [u8],
    ) -> Result<()> {
        let frame = self.header.frames[number];
        let (own, of_base) = match windows.split_first_mut() {
            Some((own, rest)) => (Some(own), rest),
            None => (None, windows),
        };
        match frame.kind {
            Kind::Same => {
                let base = self.base()?;
                if base.header.frames[number].value != frame.value {
                    return Err(self.corrupt(number, "its base has another frame there"));
                }
                base.read_frame_through(number, of_base, scratch, out)
            }
            Kind::Patch => {
                let mut plain = std::mem::take(&mut scratch.base);
                plain.resize(FRAME_LEN, 0);
                let on = &mut plain[..out.len()];
                let read = self.base().and_then(|base| base.read_frame_through(number, of_base, scratch, on));
                let decoded = read.and_then(|()| {
                    let stored = self.stored(number, own, &mut scratch.stored[..])?;
                    decode_patch(stored, on, out).map_err(|reason| self.corrupt(number, &reason))
                });
                scratch.base = plain;
                decoded.and_then(|()| self.verify(number, out))
            }
            Kind::Zero | Kind::Raw | Kind::Zstd => {
                let stored = self.stored(number, own, &mut scratch.stored[..])?;
                let decoded = scratch.decoder.decode(frame.kind, stored, out);
                decoded.map_err(|reason| self.corrupt(number, &reason))?;
                self.verify(number, out)
            }
        }
    }

    /// Returns the bytes of a frame as they are in this file: from the window, or read into `room`.
    fn stored<'a>(
        &self,
        number: usize,
        window: Option<&'a mut Window>,
        room: &'a mut [u8],
    ) -> Result<&'a [u8]> {
        let frame = &self.header.frames[number];
        if let Some(window) = window
            && window.cover(self, frame)
        {
            return Ok(window.bytes(frame));
        }
        let stored = &mut room[..frame.stored_len as usize];
        let length = self
            .file
            .read_at(stored, u64::from(frame.offset))
            .map_err(|error| read_error(&self.name.id, &error))?;
        if length != stored.len() {
            return Err(self.corrupt(number, "its file became shorter"));
        }
        Ok(stored)
    }

    fn verify(&self, number: usize, plain: &[u8]) -> Result<()> {
        let frame = &self.header.frames[number];
        let frames = self.header.frames.len();
        let matches = match frame.kind {
            Kind::Zero => zero_frame_matches(&frame.value, number, frames, plain.len()),
            _ => frame_matches(&frame.value, number, frames, plain),
        };
        if matches { Ok(()) } else { Err(self.corrupt(number, "its bytes do not have the hash they should")) }
    }

    /// Says that something is wrong with a frame of this chunk.
    pub(crate) fn corrupt(&self, number: usize, reason: &str) -> Error {
        Error::ChunkCorrupt { id: self.name.id, reason: format!("frame {number}: {reason}") }
    }
}

/// What reading single frames needs: a decoder, room for the stored bytes of one and for a base's.
pub(crate) struct FrameScratch {
    decoder: Decoder,
    stored: Box<[u8; FRAME_LEN]>,
    /// Empty until a patch is read.
    base: Vec<u8>,
}

impl FrameScratch {
    pub(crate) fn new() -> Self {
        // The only way to fail is to run out of memory for a context of fixed size.
        let decoder = Decoder::new().expect("a zstd decoding context can be allocated");
        Self { decoder, stored: Box::new([0; FRAME_LEN]), base: Vec::new() }
    }

    /// What was read from a file for the last frame, as [`OpenChunk::kept`] describes it.
    pub(crate) fn stored(&self, kept: &Frame) -> &[u8] {
        &self.stored[..kept.stored_len as usize]
    }
}

/// Bytes of a chunk's file that are read at once: many frames, few megabytes for all threads together.
const STORED_LEN: usize = 512 << 10;

const _: () = assert!(STORED_LEN >= FRAME_LEN);

/// A part of a chunk's file in memory.
#[derive(Default)]
struct Window {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Window {
    /// Forgets the file that it was on.
    fn leave(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Whether it holds a frame of this file, after moving on to it. Where reading fails or is short, frames are to
    /// be read one by one to find the bad ones.
    fn cover(&mut self, chunk: &OpenChunk, frame: &Frame) -> bool {
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

/// What reading whole chunks needs; one per thread, reused.
pub(crate) struct Scratch {
    frames: FrameScratch,
    /// On the chunk's file, and on its base's.
    windows: [Window; 2],
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
    pub(crate) data: &'s mut [u8],
    /// Numbers and errors of the frames that could not be read.
    pub(crate) bad: Vec<(usize, Error)>,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { frames: FrameScratch::new(), windows: Default::default(), plain: Vec::new() }
    }

    /// Room for a file and for a chunk, for who decodes in another way.
    pub(crate) fn buffers(&mut self) -> (&mut Vec<u8>, &mut Vec<u8>) {
        (&mut self.windows[0].bytes, &mut self.plain)
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
        PlainChunk { data: &mut self.plain[..chunk.plain_len()], bad }
    }

    /// Reads what can be read of a chunk into `out`, which has its length; returns numbers and errors of the frames
    /// that could not be read, which are zeros there.
    pub(crate) fn read_into(&mut self, chunk: &OpenChunk, out: &mut [u8]) -> Vec<(usize, Error)> {
        self.windows.iter_mut().for_each(Window::leave);
        let mut bad = Vec::new();
        for (number, out) in out.chunks_mut(FRAME_LEN).enumerate() {
            let read = chunk.read_frame_through(number, &mut self.windows, &mut self.frames, out);
            if let Err(error) = read {
                out.fill(0);
                bad.push((number, error));
            }
        }
        bad
    }

    /// What reading single frames needs.
    pub(crate) fn frames(&mut self) -> &mut FrameScratch {
        &mut self.frames
    }

    /// Reads and verifies one frame into `out`, which has its length.
    pub(crate) fn read_frame(&mut self, chunk: &OpenChunk, number: usize, out: &mut [u8]) -> Result<()> {
        chunk.read_frame(number, &mut self.frames, out)
    }
}

/// A chunk that is open for a while, shared between readers.
pub(crate) type SharedChunk = Arc<OpenChunk>;
