//! Chunks that are made by a recipe: of a base, which may be missing, of runs, and of pages that runs copy from elsewhere.
//!
//! Where the base, a run or a donor is lost, the frames that do not need it are read all the same, and the error of the
//! others names what is lost.

use std::collections::HashSet;
use std::sync::OnceLock;

use super::copied;
use super::files::Files;
use super::full::{FrameScratch, FullChunk, Window, corrupt, corrupt_frame, open_full, verify};
use crate::error::{Error, Result};
use crate::format::FRAME_LEN;
use crate::format::frame::Kind;
use crate::format::id::ChunkId;
use crate::format::name::{FileKind, FileName, Place, RecipePlace};
use crate::format::recipe::{Recipe, Run};
use crate::format::run::{self, PAGE_LEN, PageCopy, Piece, PieceKind};

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
pub(super) enum Base {
    None,
    Open(FullChunk),
    Lost(Lost),
}

/// A file that cannot be read.
#[derive(Clone, Debug)]
pub(super) enum Lost {
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

/// Opens a chunk by its recipe, and proves that.
pub(super) fn open_made(files: &Files, place: &Place, at: &RecipePlace) -> Result<MadeChunk> {
    let group = of_group(files.group(&at.group), &place.id)?;
    let recipe = of_group(group.recipe(&place.id, at.offset, at.len), &place.id)?;
    // A purge keeps what the map names, and nothing for being in a recipe.
    if recipe.place(at.group, at.offset) != *at {
        return Err(corrupt(&place.id, "its map names other files than its recipe refers to".to_owned()));
    }
    let base = match recipe.base.map(|base| open_full(&**files, &base)) {
        None => Base::None,
        Some(Ok(base)) if base.header().plain_len == recipe.plain_len => Base::Open(base),
        Some(Ok(_)) => return Err(corrupt(&place.id, "its base has another length".to_owned())),
        Some(Err(error)) => Base::Lost(Lost::of(error)?),
    };
    let pieces = recipe.runs.iter().map(|_| OnceLock::new()).collect();
    Ok(MadeChunk { place: place.clone(), recipe, files: files.clone(), base, pieces })
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

/// The number of a run, its piece of a frame, and the pages of it that no later run has.
type NeededPiece = (usize, Piece, u16);

impl MadeChunk {
    /// The chunk, and where its recipe is.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// How it is made.
    pub(crate) fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    pub(super) fn base(&self) -> &Base {
        &self.base
    }

    /// Returns the full chunk on which the runs are put, `None` for zeros; an error where it is lost.
    pub(crate) fn ground(&self) -> Result<Option<&FullChunk>> {
        match &self.base {
            Base::None => Ok(None),
            Base::Open(base) => Ok(Some(base)),
            Base::Lost(lost) => Err(lost.error()),
        }
    }

    /// Begins to fetch what it is read from, without waiting for it.
    pub(super) fn will_need(&self) {
        if let Base::Open(base) = &self.base {
            base.will_need();
        }
        for run in &self.recipe.runs {
            if let Ok(group) = self.files.group(&run.group) {
                group.will_need(run.offset, run.len);
            }
        }
        for donor in self.recipe.donors.iter().filter(|donor| donor.file.kind == FileKind::Chunk) {
            if let Ok(full) = self.files.full(&donor.file.id) {
                full.will_need();
            }
        }
    }

    /// Whether what it is made of is there, as far as that is known without reading it.
    pub(super) fn is_whole(&self) -> Result<bool> {
        let runs = self.recipe.runs.iter().map(|run| FileName::group(run.group));
        let mut files = runs.chain(self.recipe.donors.iter().map(|donor| donor.file));
        let opened = files.try_for_each(|file| match file.kind {
            FileKind::Group => self.files.group(&file.id).map(drop),
            FileKind::Chunk => self.files.full(&file.id).map(drop),
        });
        match opened {
            Ok(()) => Ok(!matches!(self.base, Base::Lost(_))),
            Err(error) if error.is_damage() => Ok(false),
            Err(error) => Err(error),
        }
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
        self.read_stored(run, 0, bytes)?;
        run::parse(bytes, run.len, self.recipe.plain_len).map_err(|reason| self.run_damaged(run, &reason))
    }

    /// Reads all of `out` from byte `offset` of a run.
    fn read_stored(&self, run: &Run, offset: u32, out: &mut [u8]) -> Result<()> {
        let group = self.files.group(&run.group);
        of_group(group.and_then(|group| group.read(run.offset.saturating_add(offset), out)), &self.place.id)
    }

    fn run_damaged(&self, run: &Run, reason: &str) -> Error {
        let reason = format!("is damaged: the run at byte {}: {reason}", run.offset);
        group_damaged(&self.place.id, &run.group, reason)
    }

    /// Returns the copies of a piece of run `number`.
    pub(crate) fn copies(&self, number: usize, piece: &Piece) -> Result<Vec<PageCopy>> {
        let run = &self.recipe.runs[number];
        let mut stored = vec![0; piece.stored_len as usize];
        self.read_stored(run, piece.offset, &mut stored)?;
        self.parse_copies(number, piece, &stored)
    }

    fn parse_copies(&self, number: usize, piece: &Piece, stored: &[u8]) -> Result<Vec<PageCopy>> {
        let run = &self.recipe.runs[number];
        let group = of_group(self.files.group(&run.group), &self.place.id)?;
        let own = FileName::group(run.group);
        let copies = run::parse_copies(stored, piece.pages, &own, &|number| group.file(number));
        let copies = copies.map_err(|reason| self.run_damaged(run, &reason))?;
        // The map names the donors that the recipe has, and a purge keeps no other.
        let is_named = |copy: &PageCopy| {
            let mut donors = self.recipe.donors.iter();
            donors.any(|donor| donor.run == number && donor.file == copy.donor.file)
        };
        if !copies.iter().all(is_named) {
            return Err(self.run_damaged(run, "it has copies from a file that the recipe does not name"));
        }
        Ok(copies)
    }

    /// Finds what makes a frame wrong: a run, or what a run copies from; where all are as they were written, it is the
    /// recipe.
    fn blame(&self, number: usize, needed: &[NeededPiece], error: Error) -> Error {
        let mut proven = HashSet::new();
        for (at, piece, _) in needed {
            let run = &self.recipe.runs[*at];
            let mut bytes = vec![0; run.len as usize];
            match self.read_stored(run, 0, &mut bytes) {
                Ok(()) if run::is_intact(&bytes) => {}
                Ok(()) => {
                    let reason = format!("frame {number}: its bytes do not have the hash they should");
                    return self.run_damaged(run, &reason);
                }
                Err(error) => return error,
            }
            if piece.kind != PieceKind::Copy {
                continue;
            }
            let donors = self.copies(*at, piece).and_then(|copies| {
                copies.iter().filter(|copy| proven.insert((copy.donor, copy.from))).try_for_each(|copy| {
                    let proven = copied::prove(&self.files, &copy.donor, copy.from, copy.count);
                    self.of_donor(copy, proven)
                })
            });
            if let Err(error) = donors {
                return error;
            }
        }
        error
    }

    /// Turns damage of a donor into what it means for this chunk.
    fn of_donor<T>(&self, copy: &PageCopy, result: Result<T>) -> Result<T> {
        match copy.donor.file.kind {
            FileKind::Chunk => result.inspect_err(|_| self.files.close_full(&copy.donor.file.id)),
            FileKind::Group => of_group(result, &self.place.id),
        }
    }

    /// Finds what a frame of `length` bytes needs of the runs, the newest first: number of the run, its piece, and the
    /// pages that no later run has.
    fn needed(&self, number: usize, length: usize) -> Result<(Vec<NeededPiece>, u16)> {
        let (mut needed, mut covered, all) = (Vec::new(), 0, run::all_pages(length));
        for (at, run) in self.recipe.runs.iter().enumerate().rev() {
            if run.frames >> number & 1 == 0 || covered == all {
                continue;
            }
            let found = run::of_frame(self.pieces(at)?, number);
            if found.is_empty() {
                return Err(
                    self.run_damaged(run, &format!("it lacks frame {number}, which the recipe needs"))
                );
            }
            for piece in found {
                let wanted = piece.pages & !covered;
                if wanted != 0 {
                    needed.push((at, *piece, wanted));
                    covered |= wanted;
                }
            }
        }
        Ok((needed, covered))
    }

    pub(super) fn read(
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
                Base::Open(base) if base.header().frames[number].value != *value => {
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
        let put = needed
            .iter()
            .rev()
            .try_for_each(|needed| self.put(number, needed, windows.as_deref_mut(), scratch, &on, out));
        scratch.base = on;
        // The value of the frame that is made proves everything that it was made of, so the base's is not looked at before.
        let made = put.and_then(|()| verify(&self.place.id, place, value, false, out));
        made.map_err(|error| {
            let is_proven = !needs_base || self.base_is_good(number, scratch, out.len());
            match &self.base {
                Base::Open(base) if !is_proven => {
                    corrupt_frame(base.id(), number, "its bytes do not have the hash they should")
                }
                _ if matches!(&error, Error::ChunkCorrupt { id, .. } if *id == self.place.id) => {
                    self.blame(number, &needed, error)
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

    /// Puts the wanted pages of a piece into frame `number`.
    fn put(
        &self,
        number: usize,
        (at, piece, wanted): &NeededPiece,
        windows: Option<&mut Windows>,
        scratch: &mut FrameScratch,
        on: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        let run = &self.recipe.runs[*at];
        let stored = match windows.and_then(|windows| windows.piece(self, *at, piece)) {
            Some(stored) => stored,
            None => {
                let stored = &mut scratch.stored[..piece.stored_len as usize];
                self.read_stored(run, piece.offset, stored)?;
                stored
            }
        };
        if piece.kind == PieceKind::Copy {
            let copies = self.parse_copies(*at, piece, stored)?;
            return copies.iter().try_for_each(|copy| self.copy(number, copy, *wanted, scratch, out));
        }
        let length = run::plain_len(piece.pages, out.len());
        let packed = &mut scratch.packed[..length];
        let decoded = match piece.kind {
            PieceKind::Raw => {
                packed.copy_from_slice(stored);
                Ok(())
            }
            PieceKind::Patch => scratch.decoder.decode_patch(stored, &on[..out.len()], packed),
            PieceKind::Zstd | PieceKind::Copy => scratch.decoder.decode(Kind::Zstd, stored, packed),
        };
        decoded.map_err(|reason| self.run_damaged(run, &format!("frame {}: {reason}", piece.frame)))?;
        run::scatter(piece.pages, *wanted, packed, out);
        Ok(())
    }

    /// Puts the wanted pages of a copy into frame `number`.
    fn copy(
        &self,
        number: usize,
        copy: &PageCopy,
        wanted: u16,
        scratch: &mut FrameScratch,
        out: &mut [u8],
    ) -> Result<()> {
        for step in (0..copy.count).filter(|step| wanted >> (copy.to + step) & 1 != 0) {
            let from = usize::from(copy.from) + usize::from(step);
            let page = self.of_donor(copy, copied::page(&self.files, &copy.donor, from, scratch))?;
            let Some(page) = page else {
                return Err(copied::absent(&self.place.id, number, &copy.donor));
            };
            let to = usize::from(copy.to + step) * PAGE_LEN;
            out[to..to + PAGE_LEN].copy_from_slice(page);
        }
        Ok(())
    }
}

/// A run that is longer is read piece by piece.
const WHOLE_RUN_LEN: u32 = 512 << 10;

/// What is in memory of the files that a chunk is read from.
#[derive(Default)]
pub(super) struct Windows {
    /// On the file of a full chunk.
    pub(super) full: Window,
    /// The runs of a recipe, each read at once; empty where that has not been done or has failed.
    runs: Vec<Vec<u8>>,
}

impl Windows {
    /// Forgets the files that they were on.
    pub(super) fn leave(&mut self) {
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
            if chunk.read_stored(run, 0, bytes).is_err() {
                bytes.clear();
            }
        }
        bytes.get(piece.offset as usize..(piece.offset + piece.stored_len) as usize)
    }
}
