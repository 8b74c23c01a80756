//! Chunks as verified data: open one, read one frame or all of it, or all that can be
//! read of a damaged one. Nothing leaves this file unverified.
//!
//! A chunk that is kept by a recipe is opened with its base. Where the base or a run is lost, the frames that do not need
//! it are read all the same, and the error of the others names what is lost.

use std::sync::{Arc, OnceLock};

use super::container::{self, Frame, Header};
use super::files::Files;
use super::frame::{Decoder, Kind, decode_patch};
use super::id::{ChunkId, FrameValue, frame_matches, zero_frame_matches};
use super::name::{FileName, Place, RecipePlace};
use super::recipe::{Recipe, Run};
use super::run::{self, Piece, PieceKind};
use super::{CHUNK_LEN, FRAME_LEN};
use crate::backend::{Backend, StoredChunk};
use crate::error::{Error, Result};

/// A chunk whose header or recipe is proven and whose frames can be read.
#[derive(Debug)]
pub(crate) enum OpenChunk {
    /// In a file of its own.
    Full(FullChunk),
    /// Made of another one and of runs.
    Made(Box<MadeChunk>),
}

/// A chunk in a file of its own.
#[derive(Debug)]
pub(crate) struct FullChunk {
    id: ChunkId,
    header: Header,
    file: Box<dyn StoredChunk>,
}

/// A chunk that is made by a recipe.
#[derive(Debug)]
pub(crate) struct MadeChunk {
    place: Place,
    recipe: Recipe,
    files: Files,
    base: Base,
    /// What the runs have, read when it is needed first.
    pieces: Vec<OnceLock<Result<Vec<Piece>, Lost>>>,
}

#[derive(Debug)]
enum Base {
    None,
    Open(FullChunk),
    Lost(Lost),
}

/// A file that cannot be read.
#[derive(Clone, Debug)]
enum Lost {
    Missing(ChunkId),
    Corrupt(ChunkId, String),
    /// A group: the chunk that cannot be made, the group, and why.
    Group(ChunkId, ChunkId, String),
}

impl Lost {
    /// Keeps an error about damage; passes on any other.
    fn of(error: Error) -> Result<Self> {
        match error {
            Error::ChunkMissing { id } => Ok(Self::Missing(id)),
            Error::ChunkCorrupt { id, reason } => Ok(Self::Corrupt(id, reason)),
            Error::GroupDamaged { chunk, group, reason } => Ok(Self::Group(chunk, group, reason)),
            other => Err(other),
        }
    }

    fn error(&self) -> Error {
        match self {
            Self::Missing(id) => Error::ChunkMissing { id: *id },
            Self::Corrupt(id, reason) => Error::ChunkCorrupt { id: *id, reason: reason.clone() },
            Self::Group(chunk, group, reason) => group_damaged(chunk, group, reason.clone()),
        }
    }
}

/// Opens a chunk and proves its header or recipe. Whatever a map says, the full chunk is as good, and is taken where it is.
pub(crate) fn open(files: &Files, place: &Place) -> Result<OpenChunk> {
    let full = open_full(files, &place.id).map(OpenChunk::Full);
    match (full, &place.recipe) {
        (Err(error), Some(recipe)) if error.is_damage() => match open_made(files, place, recipe) {
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
        Some(recipe) => open_made(files, place, recipe),
        None => open_full(files, &place.id).map(OpenChunk::Full),
    }
}

fn open_made(files: &Files, place: &Place, at: &RecipePlace) -> Result<OpenChunk> {
    let group = of_group(files.group(&at.group), &place.id)?;
    let recipe = of_group(group.recipe(&place.id, at.offset, at.len), &place.id)?;
    // A purge keeps what the map names, and nothing for being in a recipe.
    if recipe.place(at.group, at.offset) != *at {
        return Err(corrupt(&place.id, "its map names other files than its recipe refers to".to_owned()));
    }
    let base = match recipe.base.map(|base| open_full(files, &base)) {
        None => Base::None,
        Some(Ok(base)) if base.header.plain_len == recipe.plain_len => Base::Open(base),
        Some(Ok(_)) => return Err(corrupt(&place.id, "its base has another length".to_owned())),
        Some(Err(error)) => Base::Lost(Lost::of(error)?),
    };
    let pieces = recipe.runs.iter().map(|_| OnceLock::new()).collect();
    Ok(OpenChunk::Made(Box::new(MadeChunk {
        place: place.clone(),
        recipe,
        files: files.clone(),
        base,
        pieces,
    })))
}

fn open_full(files: &Files, id: &ChunkId) -> Result<FullChunk> {
    let Some(file) = files.open(&FileName::chunk(*id))? else { return Err(Error::ChunkMissing { id: *id }) };
    let mut bytes = [0; container::HEADER_LEN_MAX];
    let length = file.read_at(&mut bytes, 0).map_err(|error| read_error(id, &error))?;
    match container::parse_header(&bytes[..length], file.len(), id) {
        Ok(header) => Ok(FullChunk { id: *id, header, file }),
        Err(reason) => Err(corrupt(id, reason)),
    }
}

fn group_damaged(chunk: &ChunkId, group: &ChunkId, reason: String) -> Error {
    Error::GroupDamaged { chunk: *chunk, group: *group, reason }
}

/// Turns damage of a group into what it means for a chunk.
fn of_group<T>(result: Result<T>, chunk: &ChunkId) -> Result<T> {
    result.map_err(|error| match error {
        Error::ChunkMissing { id } => group_damaged(chunk, &id, "is missing from the store".to_owned()),
        Error::ChunkCorrupt { id, reason } => group_damaged(chunk, &id, format!("is damaged: {reason}")),
        other => other,
    })
}

fn corrupt(id: &ChunkId, reason: String) -> Error {
    Error::ChunkCorrupt { id: *id, reason }
}

fn corrupt_frame(id: &ChunkId, number: usize, reason: &str) -> Error {
    corrupt(id, format!("frame {number}: {reason}"))
}

fn read_error(id: &ChunkId, error: &std::io::Error) -> Error {
    // A medium that cannot be read is damage of this chunk: the rest of the store goes on.
    corrupt(id, format!("its file cannot be read: {error}"))
}

impl OpenChunk {
    /// Begins to fetch what it is read from, without waiting for it.
    pub(crate) fn will_need(&self) {
        match self {
            Self::Full(full) => full.file.will_need(0, 0),
            Self::Made(made) => {
                if let Base::Open(base) = &made.base {
                    base.file.will_need(0, 0);
                }
                for run in &made.recipe.runs {
                    if let Ok(group) = made.files.group(&run.group) {
                        group.will_need(run.offset, run.len);
                    }
                }
            }
        }
    }

    /// Bytes of the image in this chunk.
    pub(crate) fn plain_len(&self) -> usize {
        match self {
            Self::Full(full) => full.header.plain_len,
            Self::Made(made) => made.recipe.plain_len,
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
            Self::Full(full) => &full.id,
            Self::Made(made) => &made.place.id,
        }
    }

    /// Where it was opened.
    pub(crate) fn place(&self) -> Place {
        match self {
            Self::Full(full) => Place::full(full.id),
            Self::Made(made) => made.place.clone(),
        }
    }

    /// Number of its frames.
    pub(crate) fn frame_count(&self) -> usize {
        match self {
            Self::Full(full) => full.header.frames.len(),
            Self::Made(made) => made.recipe.values.len(),
        }
    }

    /// The value of a frame, proven against the chunk's id.
    pub(crate) fn value(&self, number: usize) -> &FrameValue {
        match self {
            Self::Full(full) => &full.header.frames[number].value,
            Self::Made(made) => &made.recipe.values[number],
        }
    }

    /// Whether a frame is known to be all zeros without being read.
    pub(crate) fn is_zero(&self, number: usize) -> bool {
        match (self.whole(number), self) {
            (Some((_, frame)), _) => frame.kind == Kind::Zero,
            (None, Self::Made(made)) => matches!(made.base, Base::None) && made.recipe.is_untouched(number),
            (None, Self::Full(_)) => false,
        }
    }

    /// Returns the full chunk in whose file a frame lies as it is, and how.
    pub(crate) fn whole(&self, number: usize) -> Option<(&FullChunk, &Frame)> {
        let full = match self {
            Self::Full(full) => full,
            Self::Made(made) => match &made.base {
                Base::Open(base) if made.recipe.is_untouched(number) => base,
                _ => return None,
            },
        };
        Some((full, &full.header.frames[number]))
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
        let Self::Made(made) = self else { return Ok(true) };
        if matches!(made.base, Base::Lost(_)) {
            return Ok(false);
        }
        for run in &made.recipe.runs {
            match made.files.group(&run.group) {
                Ok(_) => {}
                Err(error) if error.is_damage() => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Returns the full chunk on which runs are put: its base, or itself; an error where it is lost.
    pub(crate) fn ground(&self) -> Result<Option<&FullChunk>> {
        match self {
            Self::Full(full) => Ok(Some(full)),
            Self::Made(made) => match &made.base {
                Base::None => Ok(None),
                Base::Open(base) => Ok(Some(base)),
                Base::Lost(lost) => Err(lost.error()),
            },
        }
    }

    /// Reads, decodes and verifies frame `number` into `out`, which has its length.
    pub(crate) fn read_frame(&self, number: usize, scratch: &mut FrameScratch, out: &mut [u8]) -> Result<()> {
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

impl FullChunk {
    /// The chunk.
    pub(crate) fn id(&self) -> &ChunkId {
        &self.id
    }

    /// What its file says of its frames, proven against the id.
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// Reads, decodes and verifies frame `number` into `out`, which has its length.
    pub(crate) fn read_frame(&self, number: usize, scratch: &mut FrameScratch, out: &mut [u8]) -> Result<()> {
        self.read(number, None, scratch, out)
    }

    fn read(
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
    fn decode(
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

fn verify(
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

/// The number of a run, its piece of a frame, and the pages of it that no later run has.
type NeededPiece = (usize, Piece, u16);

impl MadeChunk {
    /// How it is made.
    pub(crate) fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Returns what run `number` has; damage of it is the error.
    pub(crate) fn pieces(&self, number: usize) -> Result<&[Piece]> {
        let read = match self.pieces[number].get() {
            Some(read) => read,
            None => {
                let read = match self.read_pieces(&self.recipe.runs[number]) {
                    Ok(pieces) => Ok(pieces),
                    Err(error) => Err(Lost::of(error)?),
                };
                self.pieces[number].get_or_init(|| read)
            }
        };
        read.as_deref().map_err(Lost::error)
    }

    fn read_pieces(&self, run: &Run) -> Result<Vec<Piece>> {
        let mut bytes = [0; run::HEADER_LEN_MAX];
        let bytes = &mut bytes[..run::HEADER_LEN_MAX.min(run.len as usize)];
        let read = self.files.group(&run.group).and_then(|group| group.read(run.offset, bytes));
        of_group(read, &self.place.id)?;
        run::parse(bytes, run.len, self.recipe.plain_len).map_err(|reason| self.run_damaged(run, &reason))
    }

    fn run_damaged(&self, run: &Run, reason: &str) -> Error {
        let reason = format!("is damaged: the run at byte {}: {reason}", run.offset);
        group_damaged(&self.place.id, &run.group, reason)
    }

    /// Finds the run that makes a frame wrong; where all are as they were written, it is the recipe.
    fn blame(&self, number: usize, runs: impl Iterator<Item = usize>, error: Error) -> Error {
        for at in runs {
            let run = &self.recipe.runs[at];
            let mut bytes = vec![0; run.len as usize];
            let read = self.files.group(&run.group).and_then(|group| group.read(run.offset, &mut bytes));
            match of_group(read, &self.place.id) {
                Ok(()) if run::is_intact(&bytes) => {}
                Ok(()) => {
                    let reason = format!("frame {number}: its bytes do not have the hash they should");
                    return self.run_damaged(run, &reason);
                }
                Err(error) => return error,
            }
        }
        error
    }

    /// Finds what a frame of `length` bytes needs of the runs, the newest first: number of the run, its piece, and the
    /// pages that no later run has.
    fn needed(&self, number: usize, length: usize) -> Result<(Vec<NeededPiece>, u16)> {
        let (mut needed, mut covered, all) = (Vec::new(), 0, run::all_pages(length));
        for (at, run) in self.recipe.runs.iter().enumerate().rev() {
            if run.frames >> number & 1 == 0 || covered == all {
                continue;
            }
            let pieces = self.pieces(at)?;
            let Ok(found) = pieces.binary_search_by_key(&(number as u8), |piece| piece.frame) else {
                let error = corrupt_frame(&self.place.id, number, "a run does not have what the recipe says");
                return Err(self.blame(number, std::iter::once(at), error));
            };
            let wanted = pieces[found].pages & !covered;
            if wanted != 0 {
                needed.push((at, pieces[found], wanted));
                covered |= wanted;
            }
        }
        Ok((needed, covered))
    }

    fn read(
        &self,
        number: usize,
        mut windows: Option<&mut Windows>,
        scratch: &mut FrameScratch,
        out: &mut [u8],
    ) -> Result<()> {
        let value = &self.recipe.values[number];
        let place = (number, self.recipe.values.len());
        let (needed, covered) = self.needed(number, out.len())?;
        if needed.is_empty() {
            return match &self.base {
                Base::None => {
                    out.fill(0);
                    verify(&self.place.id, place, value, true, out)
                }
                Base::Lost(lost) => Err(lost.error()),
                Base::Open(base) if base.header.frames[number].value != *value => {
                    Err(corrupt_frame(&self.place.id, number, "its base has another frame there"))
                }
                Base::Open(base) => base.read(number, windows.map(|windows| &mut windows.full), scratch, out),
            };
        }
        // Patches need the base's frame as it is, beside the one that is made.
        let has_patch = needed.iter().any(|(_, piece, _)| piece.kind == PieceKind::Patch);
        let needs_base = has_patch || covered != run::all_pages(out.len());
        if needs_base {
            self.decode_base(number, windows.as_deref_mut(), scratch, out)?;
        }
        let mut on = std::mem::take(&mut scratch.base);
        if has_patch {
            on.resize(FRAME_LEN, 0);
            on[..out.len()].copy_from_slice(out);
        }
        let put = needed.iter().rev().try_for_each(|(at, piece, wanted)| {
            self.put(*at, piece, *wanted, windows.as_deref_mut(), scratch, &on, out)
        });
        scratch.base = on;
        // The value of the frame that is made proves everything that it was made of, so the base's is not looked at before.
        let made = put.and_then(|()| verify(&self.place.id, place, value, false, out));
        made.map_err(|error| {
            let is_proven = !needs_base || self.base_is_good(number, scratch, out.len());
            match &self.base {
                Base::Open(base) if !is_proven => {
                    corrupt_frame(&base.id, number, "its bytes do not have the hash they should")
                }
                _ if matches!(error, Error::ChunkCorrupt { .. }) => {
                    self.blame(number, needed.iter().map(|(at, ..)| *at), error)
                }
                _ => error,
            }
        })
    }

    /// Decodes the base's frame, unproven.
    fn decode_base(
        &self,
        number: usize,
        windows: Option<&mut Windows>,
        scratch: &mut FrameScratch,
        out: &mut [u8],
    ) -> Result<()> {
        match &self.base {
            Base::None => out.fill(0),
            Base::Lost(lost) => return Err(lost.error()),
            Base::Open(base) => {
                base.decode(number, windows.map(|windows| &mut windows.full), scratch, out)?;
            }
        }
        Ok(())
    }

    /// Whether the base's frame is what it should be: when something made of it is not.
    fn base_is_good(&self, number: usize, scratch: &mut FrameScratch, length: usize) -> bool {
        let Base::Open(base) = &self.base else { return true };
        let mut plain = vec![0; length];
        base.read(number, None, scratch, &mut plain).is_ok()
    }

    /// Puts the wanted pages of a piece into a frame.
    #[expect(clippy::too_many_arguments, reason = "what reading one piece needs")]
    fn put(
        &self,
        at: usize,
        piece: &Piece,
        wanted: u16,
        windows: Option<&mut Windows>,
        scratch: &mut FrameScratch,
        on: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        let run = &self.recipe.runs[at];
        let stored = match windows.and_then(|windows| windows.piece(self, at, piece)) {
            Some(stored) => stored,
            None => {
                let stored = &mut scratch.stored[..piece.stored_len as usize];
                let offset = run.offset.saturating_add(piece.offset);
                let read = self.files.group(&run.group).and_then(|group| group.read(offset, stored));
                of_group(read, &self.place.id)?;
                stored
            }
        };
        let length = run::plain_len(piece.pages, out.len());
        let packed = &mut scratch.packed[..length];
        let decoded = match piece.kind {
            PieceKind::Raw => {
                packed.copy_from_slice(stored);
                Ok(())
            }
            PieceKind::Zstd => scratch.decoder.decode(Kind::Zstd, stored, packed),
            PieceKind::Patch => decode_patch(stored, &on[..out.len()], packed),
        };
        decoded.map_err(|reason| self.run_damaged(run, &format!("frame {}: {reason}", piece.frame)))?;
        run::scatter(piece.pages, wanted, packed, out);
        Ok(())
    }
}

/// What reading single frames needs: a decoder, and room for the bytes of one.
pub(crate) struct FrameScratch {
    decoder: Decoder,
    stored: Box<[u8; FRAME_LEN]>,
    /// The pages of a piece.
    packed: Box<[u8; FRAME_LEN]>,
    /// A base's frame; empty until one is needed.
    base: Vec<u8>,
}

impl FrameScratch {
    pub(crate) fn new() -> Self {
        // The only way to fail is to run out of memory for a context of fixed size.
        let decoder = Decoder::new().expect("a zstd decoding context can be allocated");
        let (stored, packed) = (Box::new([0; FRAME_LEN]), Box::new([0; FRAME_LEN]));
        Self { decoder, stored, packed, base: Vec::new() }
    }

    /// What was read from a file for the last frame, as [`OpenChunk::whole`] describes it.
    pub(crate) fn stored(&self, whole: &Frame) -> &[u8] {
        &self.stored[..whole.stored_len as usize]
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

/// A run that is longer is read piece by piece.
const WHOLE_RUN_LEN: u32 = 512 << 10;

/// What is in memory of the files that a chunk is read from.
#[derive(Default)]
struct Windows {
    /// On the file of a full chunk.
    full: Window,
    /// The runs of a recipe, each read at once; empty where that has not been done or has failed.
    runs: Vec<Vec<u8>>,
}

impl Windows {
    /// Forgets the files that they were on.
    fn leave(&mut self) {
        self.full.leave();
        self.runs.iter_mut().for_each(Vec::clear);
    }

    /// Returns the stored bytes of a piece, reading all of its run where it is not too long.
    fn piece(&mut self, chunk: &MadeChunk, at: usize, piece: &Piece) -> Option<&[u8]> {
        let run = &chunk.recipe.runs[at];
        if run.len > WHOLE_RUN_LEN {
            return None;
        }
        if self.runs.len() <= at {
            self.runs.resize_with(at + 1, Vec::new);
        }
        let bytes = &mut self.runs[at];
        if bytes.is_empty() {
            bytes.resize(run.len as usize, 0);
            let read = chunk.files.group(&run.group).and_then(|group| group.read(run.offset, bytes));
            if read.is_err() {
                bytes.clear();
            }
        }
        bytes.get(piece.offset as usize..(piece.offset + piece.stored_len) as usize)
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
        (&mut self.windows.full.bytes, &mut self.plain)
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
