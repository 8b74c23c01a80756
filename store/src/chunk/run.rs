//! A run: the pages of one chunk that a backup stored together, as one record in a group. `docs/format.md` has the bytes,
//! section "Run".
//!
//! A run has a piece for each frame of the chunk in which pages changed. A piece says which of the 16 pages of its frame
//! it holds and has their bytes one behind the other: as they are, compressed, or compressed with the base's frame as
//! prefix. So what one frame needs is read without the rest.

use super::id::seal;
use super::layout::frame_len;
use super::{FRAME_LEN, FRAMES_MAX};

/// Bytes of a page: 4 KiB.
pub(crate) const PAGE_LEN: usize = 4 << 10;

/// Pages of a whole frame.
pub(crate) const PAGES: usize = FRAME_LEN / PAGE_LEN;

const HEAD_LEN: usize = 36;
const ENTRY_LEN: usize = 8;

/// The longest list of pieces.
pub(crate) const HEADER_LEN_MAX: usize = HEAD_LEN + FRAMES_MAX * ENTRY_LEN;

const _: () = assert!(PAGES == 16);

/// How the bytes of a piece are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PieceKind {
    /// As they are.
    Raw,
    /// One zstd frame.
    Zstd,
    /// One zstd frame with the base's frame as prefix.
    Patch,
}

/// Pages of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The frame's number in its chunk.
    pub(crate) frame: u8,
    /// How the bytes are kept.
    pub(crate) kind: PieceKind,
    /// Bit n: page n of the frame is among them. Never 0.
    pub(crate) pages: u16,
    /// Offset of the stored bytes from the beginning of the run.
    pub(crate) offset: u32,
    /// Length of the stored bytes.
    pub(crate) stored_len: u32,
}

/// Returns the pages that a frame of `len` bytes has, as bits.
pub(crate) fn all_pages(len: usize) -> u16 {
    let count = len.div_ceil(PAGE_LEN);
    if count >= PAGES { u16::MAX } else { (1 << count) - 1 }
}

/// Returns the bytes of a frame of `len` bytes that are in its pages `pages`.
pub(crate) fn plain_len(pages: u16, len: usize) -> usize {
    (0..PAGES).filter(|page| pages >> page & 1 != 0).map(|page| page_range(page, len).len()).sum()
}

fn page_range(page: usize, len: usize) -> std::ops::Range<usize> {
    (page * PAGE_LEN).min(len)..((page + 1) * PAGE_LEN).min(len)
}

/// Returns in which pages two frames of the same length differ.
pub(crate) fn differing(one: &[u8], other: &[u8]) -> u16 {
    let pages = one.chunks(PAGE_LEN).zip(other.chunks(PAGE_LEN)).enumerate();
    pages.filter(|(_, (one, other))| one != other).fold(0, |bits, (page, _)| bits | 1 << page)
}

/// Collects pages of a frame, one behind the other.
pub(crate) fn gather(pages: u16, frame: &[u8], out: &mut Vec<u8>) {
    out.clear();
    for page in (0..PAGES).filter(|page| pages >> page & 1 != 0) {
        out.extend_from_slice(&frame[page_range(page, frame.len())]);
    }
}

/// Puts collected pages where they belong in a frame; only those in `wanted`.
pub(crate) fn scatter(pages: u16, wanted: u16, packed: &[u8], frame: &mut [u8]) {
    let (len, mut at) = (frame.len(), 0);
    for page in (0..PAGES).filter(|page| pages >> page & 1 != 0) {
        let range = page_range(page, len);
        let end = at + range.len();
        if wanted >> page & 1 != 0 {
            frame[range].copy_from_slice(&packed[at..end]);
        }
        at = end;
    }
}

/// Makes the record of a run.
#[derive(Debug, Default)]
pub(crate) struct RunBuilder {
    pieces: Vec<(u8, PieceKind, u16, u32)>,
    data: Vec<u8>,
}

impl RunBuilder {
    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.pieces.clear();
        self.data.clear();
    }

    /// Adds a piece. Frames come in ascending order.
    pub(crate) fn add(&mut self, frame: usize, kind: PieceKind, pages: u16, stored: &[u8]) {
        debug_assert!(pages != 0 && self.pieces.last().is_none_or(|last| usize::from(last.0) < frame));
        self.pieces.push((frame as u8, kind, pages, stored.len() as u32));
        self.data.extend_from_slice(stored);
    }

    /// Bytes of the record.
    pub(crate) fn len(&self) -> usize {
        HEAD_LEN + self.pieces.len() * ENTRY_LEN + self.data.len()
    }

    /// The frames that have a piece, as bits.
    pub(crate) fn frames(&self) -> u64 {
        self.pieces.iter().fold(0, |bits, piece| bits | 1 << piece.0)
    }

    /// Appends the record to `out`.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.pieces.len() as u16).to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        let hash_at = out.len();
        out.extend_from_slice(&[0; 32]);
        for (frame, kind, pages, len) in &self.pieces {
            let kind = match kind {
                PieceKind::Raw => 1,
                PieceKind::Zstd => 2,
                PieceKind::Patch => 4,
            };
            out.extend_from_slice(&[*frame, kind]);
            out.extend_from_slice(&pages.to_le_bytes());
            out.extend_from_slice(&len.to_le_bytes());
        }
        out.extend_from_slice(&self.data);
        let hash = seal(&[&out[hash_at + 32..]]);
        out[hash_at..hash_at + 32].copy_from_slice(&hash);
    }
}

/// Whether all of a run is as it was written. Tells who is to blame when a frame that was made of several runs is wrong.
pub(crate) fn is_intact(bytes: &[u8]) -> bool {
    bytes.len() > HEAD_LEN && seal(&[&bytes[HEAD_LEN..]]) == bytes[4..HEAD_LEN]
}

/// Parses the list of pieces at the beginning of a run of `record_len` bytes, of a chunk of `chunk_len` bytes. `bytes` are
/// the first [`HEADER_LEN_MAX`] of it, or all of a shorter one. An error says what is wrong.
pub(crate) fn parse(bytes: &[u8], record_len: u32, chunk_len: usize) -> Result<Vec<Piece>, String> {
    let Some(head) = bytes.first_chunk::<HEAD_LEN>() else { return Err("it is cut off".to_owned()) };
    let count = usize::from(u16::from_le_bytes([head[0], head[1]]));
    if head[2..4] != [0; 2] || count == 0 || count > FRAMES_MAX {
        return Err("its head has impossible values".to_owned());
    }
    let mut offset = (HEAD_LEN + count * ENTRY_LEN) as u32;
    let Some(list) = bytes.get(HEAD_LEN..offset as usize) else {
        return Err("its list of pieces is cut off".to_owned());
    };
    let mut pieces: Vec<Piece> = Vec::with_capacity(count);
    for entry in list.chunks_exact(ENTRY_LEN) {
        let frame = entry[0];
        let kind = match entry[1] {
            1 => PieceKind::Raw,
            2 => PieceKind::Zstd,
            4 => PieceKind::Patch,
            kind => return Err(format!("a piece is of kind {kind}, which this version does not know")),
        };
        let pages = u16::from_le_bytes([entry[2], entry[3]]);
        let stored_len = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let frame_len = frame_len(chunk_len, usize::from(frame));
        let plain = plain_len(pages, frame_len) as u32;
        let fits = match kind {
            PieceKind::Raw => stored_len == plain,
            PieceKind::Zstd | PieceKind::Patch => stored_len > 0 && stored_len < plain,
        };
        let is_ascending = pieces.last().is_none_or(|last| last.frame < frame);
        if !fits || !is_ascending || pages == 0 || pages & !all_pages(frame_len) != 0 {
            return Err(format!("its piece of frame {frame} is impossible"));
        }
        pieces.push(Piece { frame, kind, pages, offset, stored_len });
        offset = offset.checked_add(stored_len).ok_or("its pieces are impossibly long")?;
    }
    if offset == record_len { Ok(pieces) } else { Err("its pieces do not fill it".to_owned()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Vec<u8> {
        let mut builder = RunBuilder::default();
        builder.add(3, PieceKind::Raw, 0b101, &[7; 2 * PAGE_LEN]);
        builder.add(9, PieceKind::Zstd, 1 << 15, &[8; 100]);
        builder.add(63, PieceKind::Patch, u16::MAX, &[9; 10]);
        let mut bytes = Vec::new();
        builder.write(&mut bytes);
        assert_eq!((bytes.len(), builder.frames()), (builder.len(), 1 << 3 | 1 << 9 | 1 << 63));
        bytes
    }

    #[test]
    fn a_run_is_read_as_it_was_written() {
        let bytes = sample();
        let pieces = parse(&bytes, bytes.len() as u32, 4 << 20).unwrap();
        let seen: Vec<_> = pieces.iter().map(|piece| (piece.frame, piece.kind, piece.pages)).collect();
        assert_eq!(
            seen,
            [(3, PieceKind::Raw, 5), (9, PieceKind::Zstd, 1 << 15), (63, PieceKind::Patch, u16::MAX)]
        );
        assert_eq!(bytes[pieces[1].offset as usize..][..100], [8; 100]);
        assert!(is_intact(&bytes));
        for bit in 32..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_intact(&flipped), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(parse(&bytes[..length], length as u32, 4 << 20).is_err(), "cut to {length}");
        }
        // Of a shorter chunk it cannot be.
        assert!(parse(&bytes, bytes.len() as u32, 63 * FRAME_LEN).is_err());
    }

    #[test]
    fn pages_come_back_where_they_were() {
        for len in [1, PAGE_LEN, PAGE_LEN + 1, 3 * PAGE_LEN - 5, FRAME_LEN] {
            let old = vec![1; len];
            let mut new = old.clone();
            new[len - 1] = 2;
            new[0] = 3;
            let pages = differing(&old, &new);
            let mut packed = Vec::new();
            gather(pages, &new, &mut packed);
            assert_eq!(packed.len(), plain_len(pages, len));
            let mut back = old.clone();
            scatter(pages, all_pages(len), &packed, &mut back);
            assert_eq!(back, new, "{len}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), length in any::<u32>(), chunk in 0usize..(4 << 20) + 1) {
            let mut bytes = bytes;
            let _ = parse(&bytes, length, chunk);
            if bytes.len() > 4 {
                bytes[..4].copy_from_slice(&[3, 0, 0, 0]);
                let _ = parse(&bytes, length, chunk);
            }
        }
    }
}
