//! Pages that are copied from other files: reads them from a chunk that is kept in full, or from a run.
//!
//! A copy leads to bytes, never to another copy: in a chunk all pages can be copied, in a run those that are stored there by
//! themselves. A few frames and pieces stay decoded, since content that was moved by some pages needs each of them twice.

use super::files::Files;
use super::full::{FrameScratch, corrupt_frame};
use crate::error::{Error, Result};
use crate::format::FRAME_LEN;
use crate::format::FRAMES_MAX;
use crate::format::frame::Kind;
use crate::format::id::ChunkId;
use crate::format::layout::frame_len;
use crate::format::name::FileKind;
use crate::format::run::{self, Donor, PAGE_LEN, PAGES, Piece, PieceKind, is_literal};

/// Pages that stay decoded.
const KEPT_MAX: usize = 4;

/// Pages of one frame of a donor, decoded.
struct Kept {
    donor: Donor,
    frame: usize,
    /// Which pages of the frame.
    pages: u16,
    bytes: Vec<u8>,
}

/// Pages that were decoded last.
#[derive(Default)]
pub(super) struct CopiedPages(Vec<Kept>);

impl CopiedPages {
    /// Forgets all: files that were damaged may have been replaced.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Returns the bytes of a page, where its frame is decoded.
    fn page(&self, donor: &Donor, page: usize) -> Option<Option<&[u8]>> {
        let kept = self.0.iter().find(|kept| kept.donor == *donor && kept.frame == page / PAGES)?;
        let bit = page % PAGES;
        if kept.pages >> bit & 1 == 0 {
            return Some(None);
        }
        let rank = (kept.pages & ((1 << bit) - 1)).count_ones() as usize;
        Some(kept.bytes.get(rank * PAGE_LEN..(rank + 1) * PAGE_LEN))
    }
}

/// Returns the bytes of page `page` of a donor, counted through its chunk; `None` where it has no such page, or only half
/// of one. What is missing or damaged is an error about that file. The bytes are not proven: who takes them knows what they
/// must be.
pub(crate) fn page<'s>(
    files: &Files,
    donor: &Donor,
    page: usize,
    scratch: &'s mut FrameScratch,
) -> Result<Option<&'s [u8]>> {
    if scratch.copied.page(donor, page).is_none() {
        let kept = load(files, donor, page / PAGES, scratch)?;
        if scratch.copied.0.len() == KEPT_MAX {
            scratch.copied.0.remove(0);
        }
        scratch.copied.0.push(kept);
    }
    Ok(scratch.copied.page(donor, page).flatten())
}

fn load(files: &Files, donor: &Donor, frame: usize, scratch: &mut FrameScratch) -> Result<Kept> {
    let mut kept = Kept { donor: *donor, frame, pages: 0, bytes: Vec::new() };
    match donor.file.kind {
        FileKind::Chunk => {
            let full = files.full(&donor.file.id)?;
            if frame < full.header().frames.len() {
                kept.bytes.resize(frame_len(full.header().plain_len, frame), 0);
                kept.pages = run::all_pages(kept.bytes.len());
                let decoded = full.decode(frame, None, scratch, &mut kept.bytes);
                decoded.inspect_err(|_| files.close_full(&donor.file.id))?;
            }
        }
        FileKind::Group => {
            let pieces = pieces(files, donor)?;
            let found = run::of_frame(&pieces, frame).iter().find(|piece| is_literal(piece.kind));
            if let Some(piece) = found {
                let length = run::plain_len(piece.pages, FRAME_LEN);
                kept.bytes.resize(length, 0);
                kept.pages = piece.pages;
                decode(files, donor, piece, scratch, &mut kept.bytes)?;
            }
        }
    }
    Ok(kept)
}

/// Reads the list of pieces of a run that is a donor. How long its chunk is, nobody says here.
fn pieces(files: &Files, donor: &Donor) -> Result<Vec<Piece>> {
    let mut bytes = [0; run::HEADER_LEN_MAX];
    let bytes = &mut bytes[..run::HEADER_LEN_MAX.min(donor.len as usize)];
    files.group(&donor.file.id)?.read(donor.offset, bytes)?;
    run::parse_any(bytes, donor.len).map_err(|reason| damaged(donor, &reason))
}

fn decode(
    files: &Files,
    donor: &Donor,
    piece: &Piece,
    scratch: &mut FrameScratch,
    out: &mut [u8],
) -> Result<()> {
    // No stored piece is longer than its pages.
    let stored = &mut scratch.stored[..piece.stored_len as usize];
    files.group(&donor.file.id)?.read(donor.offset.saturating_add(piece.offset), stored)?;
    let kind = if piece.kind == PieceKind::Raw { Kind::Raw } else { Kind::Zstd };
    scratch.decoder.decode(kind, stored, out).map_err(|reason| damaged(donor, &reason))
}

fn damaged(donor: &Donor, reason: &str) -> Error {
    let reason = format!("the run at byte {}: {reason}", donor.offset);
    Error::ChunkCorrupt { id: donor.file.id, reason }
}

/// Proves a donor, as far as `from` and the pages behind it need it. The error says that it is damaged.
pub(super) fn prove(files: &Files, donor: &Donor, from: u16, count: u8) -> Result<()> {
    match donor.file.kind {
        FileKind::Chunk => {
            let full = files.full(&donor.file.id)?;
            let mut scratch = FrameScratch::new();
            let (first, last) =
                (usize::from(from) / PAGES, (usize::from(from) + usize::from(count) - 1) / PAGES);
            for frame in first..=last.min(FRAMES_MAX - 1) {
                let length = frame_len(full.header().plain_len, frame);
                if frame < full.header().frames.len() {
                    full.read_frame(frame, &mut scratch, &mut vec![0; length])?;
                }
            }
            Ok(())
        }
        FileKind::Group => is_intact(files, donor),
    }
}

/// Reads all of a run that is a donor and proves it against its hash. The error says that it is damaged.
pub(crate) fn is_intact(files: &Files, donor: &Donor) -> Result<()> {
    // No longer than a run can be, before there is room for it.
    if donor.len as usize > crate::format::recipe::RUN_LEN_MAX {
        return Err(damaged(donor, "it has an impossible length"));
    }
    let mut bytes = vec![0; donor.len as usize];
    files.group(&donor.file.id)?.read(donor.offset, &mut bytes)?;
    match run::is_intact(&bytes) {
        true => Ok(()),
        false => Err(damaged(donor, "its bytes do not have the hash they should")),
    }
}

/// Says that a frame of a chunk has a copy of pages that are not there.
pub(super) fn absent(chunk: &ChunkId, number: usize, donor: &Donor) -> Error {
    corrupt_frame(chunk, number, &format!("it has copies of pages that {} does not have", donor.file))
}
