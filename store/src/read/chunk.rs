//! Chunks as verified data: open one, read one frame or all of it, or all that can be
//! read of a damaged one. Nothing leaves this file unverified.
//!
//! A chunk that is kept by a recipe is opened with its base. Where the base or a run is lost, the frames that do not need
//! it are read all the same, and the error of the others names what is lost.

use std::sync::Arc;

use super::files::Files;
use super::full::{FrameScratch, FullChunk, corrupt, corrupt_frame, open_full};
use super::made::{Base, MadeChunk, Windows, open_made};
use crate::error::{Error, Result};
use crate::format::container::Frame;
use crate::format::frame::Kind;
use crate::format::id::{ChunkId, FrameValue};
use crate::format::name::Place;
use crate::format::{CHUNK_LEN, FRAME_LEN};

/// A chunk whose header or recipe is proven and whose frames can be read.
#[derive(Debug)]
pub(crate) enum OpenChunk {
    /// In a file of its own.
    Full(FullChunk),
    /// Made of another one and of runs.
    Made(Box<MadeChunk>),
}

fn made(chunk: MadeChunk) -> OpenChunk {
    OpenChunk::Made(Box::new(chunk))
}

/// Opens a chunk and proves its header or recipe. Whatever a map says, the full chunk is as good, and is taken where it is.
pub(crate) fn open(files: &Files, place: &Place) -> Result<OpenChunk> {
    let full = open_full(&**files, &place.id).map(OpenChunk::Full);
    match (full, &place.recipe) {
        (Err(error), Some(recipe)) if error.is_damage() => match open_made(files, place, recipe).map(made) {
            // That the full chunk is damaged says more than that its recipe cannot be read.
            Err(Error::GroupDamaged { .. }) if !matches!(error, Error::ChunkMissing { .. }) => Err(error),
            other => other,
        },
        (full, _) => full,
    }
}

/// Opens a chunk just as this place says.
pub(crate) fn open_as(files: &Files, place: &Place) -> Result<OpenChunk> {
    match &place.recipe {
        Some(recipe) => open_made(files, place, recipe).map(made),
        None => open_full(&**files, &place.id).map(OpenChunk::Full),
    }
}

impl OpenChunk {
    /// Begins to fetch what it is read from, without waiting for it.
    pub(crate) fn will_need(&self) {
        match self {
            Self::Full(full) => full.will_need(),
            Self::Made(made) => made.will_need(),
        }
    }

    /// Bytes of the image in this chunk.
    pub(crate) fn plain_len(&self) -> usize {
        match self {
            Self::Full(full) => full.header().plain_len,
            Self::Made(made) => made.recipe().plain_len,
        }
    }

    /// Refuses a chunk that is not as long as its place in an image.
    pub(crate) fn must_have_len(&self, length: usize) -> Result<()> {
        if self.plain_len() == length {
            return Ok(());
        }
        let reason = format!("it holds {} bytes where the image has {length}", self.plain_len());
        Err(corrupt(self.id(), reason))
    }

    /// The chunk.
    pub(crate) fn id(&self) -> &ChunkId {
        match self {
            Self::Full(full) => full.id(),
            Self::Made(made) => &made.place().id,
        }
    }

    /// Where it was opened.
    pub(crate) fn place(&self) -> Place {
        match self {
            Self::Full(full) => Place::full(*full.id()),
            Self::Made(made) => made.place().clone(),
        }
    }

    /// Number of its frames.
    pub(crate) fn frame_count(&self) -> usize {
        match self {
            Self::Full(full) => full.header().frames.len(),
            Self::Made(made) => made.recipe().values.len(),
        }
    }

    /// The value of a frame, proven against the chunk's id.
    pub(crate) fn value(&self, number: usize) -> &FrameValue {
        match self {
            Self::Full(full) => &full.header().frames[number].value,
            Self::Made(made) => &made.recipe().values[number],
        }
    }

    /// Whether a frame is known to be all zeros without being read.
    pub(crate) fn is_zero(&self, number: usize) -> bool {
        match (self.whole(number), self) {
            (Some((_, frame)), _) => frame.kind == Kind::Zero,
            (None, Self::Made(made)) => {
                matches!(made.base(), Base::None) && made.recipe().is_untouched(number)
            }
            (None, Self::Full(_)) => false,
        }
    }

    /// Returns the full chunk in whose file a frame lies as it is, and how.
    pub(crate) fn whole(&self, number: usize) -> Option<(&FullChunk, &Frame)> {
        let full = match self {
            Self::Full(full) => full,
            Self::Made(made) => match made.base() {
                Base::Open(base) if made.recipe().is_untouched(number) => base,
                _ => return None,
            },
        };
        Some((full, &full.header().frames[number]))
    }

    /// How it is made; `None` for a full chunk.
    pub(crate) fn made(&self) -> Option<&MadeChunk> {
        match self {
            Self::Full(_) => None,
            Self::Made(made) => Some(made),
        }
    }

    /// Whether what it is made of is there, as far as that is known without reading it.
    pub(crate) fn is_whole(&self) -> Result<bool> {
        match self {
            Self::Full(_) => Ok(true),
            Self::Made(made) => made.is_whole(),
        }
    }

    /// Returns the full chunk on which runs are put: its base, or itself; an error where it is lost.
    pub(crate) fn ground(&self) -> Result<Option<&FullChunk>> {
        match self {
            Self::Full(full) => Ok(Some(full)),
            Self::Made(made) => made.ground(),
        }
    }

    /// Reads, decodes and verifies frame `number` into `out`, which has its length.
    pub(crate) fn read_frame(&self, number: usize, scratch: &mut FrameScratch, out: &mut [u8]) -> Result<()> {
        scratch.copied.clear();
        self.read_frame_through(number, None, scratch, out)
    }

    /// As [`OpenChunk::read_frame`], taking what is stored from windows.
    fn read_frame_through(
        &self,
        number: usize,
        windows: Option<&mut Windows>,
        scratch: &mut FrameScratch,
        out: &mut [u8],
    ) -> Result<()> {
        match self {
            Self::Full(full) => full.read(number, windows.map(|windows| &mut windows.full), scratch, out),
            Self::Made(made) => made.read(number, windows, scratch, out),
        }
    }

    /// Says that something is wrong with a frame of this chunk.
    pub(crate) fn corrupt(&self, number: usize, reason: &str) -> Error {
        corrupt_frame(self.id(), number, reason)
    }
}

/// What reading whole chunks needs; one per thread, reused.
pub(crate) struct Scratch {
    frames: FrameScratch,
    windows: Windows,
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
        Self { frames: FrameScratch::new(), windows: Windows::default(), plain: Vec::new() }
    }

    /// Room for a file and for a chunk, for who decodes in another way.
    pub(crate) fn buffers(&mut self) -> (&mut Vec<u8>, &mut Vec<u8>) {
        (self.windows.full.room(), &mut self.plain)
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
        self.windows.leave();
        self.frames.copied.clear();
        let mut bad = Vec::new();
        for (number, out) in out.chunks_mut(FRAME_LEN).enumerate() {
            let read = chunk.read_frame_through(number, Some(&mut self.windows), &mut self.frames, out);
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
