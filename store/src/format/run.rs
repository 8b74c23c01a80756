//! A run: the pages of one chunk that a backup stored together, as one record in a group. `docs/format.md` has the bytes,
//! section "Run".
//!
//! A run has a piece for each frame of the chunk in which pages changed. A piece says which of the 16 pages of its frame
//! it holds and has their bytes one behind the other: as they are, compressed, or compressed with the base's frame as
//! prefix. So what one frame needs is read without the rest. A second piece of a frame may say where the bytes of other
//! pages are: in chunks that are kept in full, or in other runs.

use super::id::seal;
use super::layout::frame_len;
use super::name::{FileKind, FileName};
use super::{FRAME_LEN, FRAMES_MAX};

/// Bytes of a page: 4 KiB.
pub(crate) const PAGE_LEN: usize = 4 << 10;

/// Pages of a whole frame.
pub(crate) const PAGES: usize = FRAME_LEN / PAGE_LEN;

const HEAD_LEN: usize = 36;
const ENTRY_LEN: usize = 8;

/// The most pieces of a run: two of each frame.
const PIECES_MAX: usize = 2 * FRAMES_MAX;

/// The longest list of pieces.
pub(crate) const HEADER_LEN_MAX: usize = HEAD_LEN + PIECES_MAX * ENTRY_LEN;

/// Bytes of a copy.
const COPY_LEN: usize = 16;

/// Pages of a whole chunk.
pub(crate) const CHUNK_PAGES: usize = FRAMES_MAX * PAGES;

/// In the place of a number in a group's list of files: the group itself.
const OWN: u32 = u32::MAX;

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
    /// Copies: where the bytes are.
    Copy,
}

/// Where bytes of pages are kept: a chunk in full, or a run in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Donor {
    /// The file.
    pub(crate) file: FileName,
    /// Offset of the run in its group; 0 of a chunk.
    pub(crate) offset: u32,
    /// Length of the run; 0 of a chunk.
    pub(crate) len: u32,
}

impl Donor {
    /// The pages of a chunk that is kept in full.
    pub(crate) fn chunk(file: FileName) -> Self {
        Self { file, offset: 0, len: 0 }
    }
}

/// Pages of a frame whose bytes are those of as many pages elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageCopy {
    /// Where they are.
    pub(crate) donor: Donor,
    /// The first page there, counted through the whole chunk.
    pub(crate) from: u16,
    /// The first page in the frame.
    pub(crate) to: u8,
    /// Number of pages, 1 to 16.
    pub(crate) count: u8,
}

impl PageCopy {
    /// Its pages in the frame, as bits.
    pub(crate) fn pages(&self) -> u16 {
        (((1u32 << self.count) - 1) << self.to) as u16
    }
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
    /// The copies of all pieces of that kind, in order; their room in `data` is filled when the run is written.
    copies: Vec<PageCopy>,
}

impl RunBuilder {
    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.pieces.clear();
        self.data.clear();
        self.copies.clear();
    }

    /// Adds a piece. Frames come in ascending order.
    pub(crate) fn add(&mut self, frame: usize, kind: PieceKind, pages: u16, stored: &[u8]) {
        debug_assert!(pages != 0 && self.pieces.last().is_none_or(|last| usize::from(last.0) < frame));
        debug_assert!(kind != PieceKind::Copy);
        self.pieces.push((frame as u8, kind, pages, stored.len() as u32));
        self.data.extend_from_slice(stored);
    }

    /// Adds copies of a frame, in ascending order of pages, behind the other piece of the frame, if any.
    pub(crate) fn add_copies(&mut self, frame: usize, copies: &[PageCopy]) {
        debug_assert!(self.pieces.last().is_none_or(|last| usize::from(last.0) <= frame));
        let pages = copies.iter().fold(0, |pages, copy| pages | copy.pages());
        let stored_len = copies.len() * COPY_LEN;
        self.pieces.push((frame as u8, PieceKind::Copy, pages, stored_len as u32));
        self.data.resize(self.data.len() + stored_len, 0);
        self.copies.extend_from_slice(copies);
    }

    /// The copies of all frames.
    pub(crate) fn copies(&self) -> &[PageCopy] {
        &self.copies
    }

    /// Frame and pages of each piece that can be copied from.
    pub(crate) fn literal_pages(&self) -> impl Iterator<Item = (usize, u16)> {
        let literal = self.pieces.iter().filter(|piece| is_literal(piece.1));
        literal.map(|(frame, _, pages, _)| (usize::from(*frame), *pages))
    }

    /// Bytes of the record.
    pub(crate) fn len(&self) -> usize {
        HEAD_LEN + self.pieces.len() * ENTRY_LEN + self.data.len()
    }

    /// The frames that have a piece, as bits.
    pub(crate) fn frames(&self) -> u64 {
        self.pieces.iter().fold(0, |bits, piece| bits | 1 << piece.0)
    }

    /// Appends the record to `out`. `own` is the group in which it is going to be, `number` finds a file in its list.
    pub(crate) fn write(&self, own: &FileName, number: &mut dyn FnMut(FileName) -> u32, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.pieces.len() as u16).to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        let hash_at = out.len();
        out.extend_from_slice(&[0; 32]);
        for (frame, kind, pages, len) in &self.pieces {
            let kind = match kind {
                PieceKind::Raw => 1,
                PieceKind::Zstd => 2,
                PieceKind::Patch => 4,
                PieceKind::Copy => 5,
            };
            out.extend_from_slice(&[*frame, kind]);
            out.extend_from_slice(&pages.to_le_bytes());
            out.extend_from_slice(&len.to_le_bytes());
        }
        let (mut at, mut copies) = (out.len(), self.copies.iter());
        out.extend_from_slice(&self.data);
        for (_, kind, _, len) in &self.pieces {
            if *kind == PieceKind::Copy {
                let room = &mut out[at..at + *len as usize];
                for (room, copy) in room.chunks_exact_mut(COPY_LEN).zip(&mut copies) {
                    let file = if copy.donor.file == *own { OWN } else { number(copy.donor.file) };
                    room[..4].copy_from_slice(&file.to_le_bytes());
                    room[4..8].copy_from_slice(&copy.donor.offset.to_le_bytes());
                    room[8..12].copy_from_slice(&copy.donor.len.to_le_bytes());
                    room[12..14].copy_from_slice(&copy.from.to_le_bytes());
                    room[14..].copy_from_slice(&[copy.to, copy.count]);
                }
            }
            at += *len as usize;
        }
        let hash = seal(&[&out[hash_at + 32..]]);
        out[hash_at..hash_at + 32].copy_from_slice(&hash);
    }
}

/// Whether pages of such a piece can be copied.
pub(crate) fn is_literal(kind: PieceKind) -> bool {
    matches!(kind, PieceKind::Raw | PieceKind::Zstd)
}

/// Parses the stored bytes of a piece of copies with these pages. `own` is the group in which the run is, `file` finds a
/// file in its list. An error says what is wrong.
pub(crate) fn parse_copies(
    stored: &[u8],
    pages: u16,
    own: &FileName,
    file: &dyn Fn(u32) -> Option<FileName>,
) -> Result<Vec<PageCopy>, String> {
    let mut copies = Vec::with_capacity(stored.len() / COPY_LEN);
    let mut seen = 0u16;
    for entry in stored.chunks_exact(COPY_LEN) {
        let word = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        let file = match word(0) {
            OWN => *own,
            number => file(number).ok_or("a copy refers to a file that its group does not name")?,
        };
        let donor = Donor { file, offset: word(4), len: word(8) };
        let (from, to, count) = (u16::from_le_bytes([entry[12], entry[13]]), entry[14], entry[15]);
        let fits = count > 0
            && usize::from(to) + usize::from(count) <= PAGES
            && usize::from(from) + usize::from(count) <= CHUNK_PAGES
            && (file.kind == FileKind::Group) == (donor.len > 0)
            && (file.kind == FileKind::Group || donor.offset == 0);
        if !fits {
            return Err("a copy has impossible pages".to_owned());
        }
        let copy = PageCopy { donor, from, to, count };
        // In ascending order, so a page is there once.
        if copy.pages() <= seen || copy.pages() & seen != 0 {
            return Err("the copies of a frame are not in order".to_owned());
        }
        seen |= copy.pages();
        copies.push(copy);
    }
    if seen == pages { Ok(copies) } else { Err("the copies of a frame are of other pages".to_owned()) }
}

/// Whether all of a run is as it was written. Tells who is to blame when a frame that was made of several runs is wrong.
pub(crate) fn is_intact(bytes: &[u8]) -> bool {
    bytes.len() > HEAD_LEN && seal(&[&bytes[HEAD_LEN..]]) == bytes[4..HEAD_LEN]
}

/// Returns the pieces of a frame, of which there are two at most.
pub(crate) fn of_frame(pieces: &[Piece], frame: usize) -> &[Piece] {
    let first = pieces.partition_point(|piece| usize::from(piece.frame) < frame);
    let count = pieces[first..].iter().take_while(|piece| usize::from(piece.frame) == frame).count();
    &pieces[first..first + count]
}

/// Parses the list of pieces at the beginning of a run of `record_len` bytes, of a chunk of `chunk_len` bytes. `bytes` are
/// the first [`HEADER_LEN_MAX`] of it, or all of a shorter one. An error says what is wrong.
pub(crate) fn parse(bytes: &[u8], record_len: u32, chunk_len: usize) -> Result<Vec<Piece>, String> {
    let pieces = parse_any(bytes, record_len)?;
    match pieces.iter().find(|piece| !fits(piece, chunk_len)) {
        Some(piece) => Err(format!("its piece of frame {} is impossible", piece.frame)),
        None => Ok(pieces),
    }
}

/// Whether a chunk of this length can have the piece.
fn fits(piece: &Piece, chunk_len: usize) -> bool {
    let frame_len = frame_len(chunk_len, usize::from(piece.frame));
    let plain = plain_len(piece.pages, frame_len) as u32;
    let is_possible = match piece.kind {
        PieceKind::Raw => piece.stored_len == plain,
        PieceKind::Zstd | PieceKind::Patch => piece.stored_len < plain,
        // Of whole pages only.
        PieceKind::Copy => plain == piece.pages.count_ones() * PAGE_LEN as u32,
    };
    is_possible && piece.pages & !all_pages(frame_len) == 0
}

/// As [`parse`], of a chunk of any length.
pub(crate) fn parse_any(bytes: &[u8], record_len: u32) -> Result<Vec<Piece>, String> {
    let Some(head) = bytes.first_chunk::<HEAD_LEN>() else { return Err("it is cut off".to_owned()) };
    let count = usize::from(u16::from_le_bytes([head[0], head[1]]));
    if head[2..4] != [0; 2] || count == 0 || count > PIECES_MAX {
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
            5 => PieceKind::Copy,
            kind => return Err(format!("a piece is of kind {kind}, which this version does not know")),
        };
        let pages = u16::from_le_bytes([entry[2], entry[3]]);
        let stored_len = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let is_possible = match kind {
            PieceKind::Raw | PieceKind::Zstd | PieceKind::Patch => {
                (1..=pages.count_ones() * PAGE_LEN as u32).contains(&stored_len)
            }
            PieceKind::Copy => {
                let copies = stored_len / COPY_LEN as u32;
                stored_len.is_multiple_of(COPY_LEN as u32) && (1..=pages.count_ones()).contains(&copies)
            }
        };
        let is_second = |last: &Piece| {
            last.frame == frame
                && last.kind != PieceKind::Copy
                && kind == PieceKind::Copy
                && last.pages & pages == 0
        };
        let is_ascending = pieces.last().is_none_or(|last| last.frame < frame || is_second(last));
        if !is_possible || !is_ascending || usize::from(frame) >= FRAMES_MAX {
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

    use super::super::ChunkId;
    use super::*;

    fn sample() -> Vec<u8> {
        let mut builder = RunBuilder::default();
        builder.add(3, PieceKind::Raw, 0b101, &[7; 2 * PAGE_LEN]);
        builder.add(9, PieceKind::Zstd, 1 << 15, &[8; 100]);
        builder.add(63, PieceKind::Patch, u16::MAX, &[9; 10]);
        let mut bytes = Vec::new();
        builder.write(&own(), &mut |file| panic!("{file} is not needed"), &mut bytes);
        assert_eq!((bytes.len(), builder.frames()), (builder.len(), 1 << 3 | 1 << 9 | 1 << 63));
        bytes
    }

    fn own() -> FileName {
        FileName::group(ChunkId::of(b"own"))
    }

    #[test]
    fn copies_are_read_as_they_were_written() {
        let (chunk, group) = (FileName::chunk(ChunkId::of(b"a")), FileName::group(ChunkId::of(b"b")));
        let of = |file, len| Donor { file, offset: len * 2, len };
        let copies = [
            PageCopy { donor: of(chunk, 0), from: 1021, to: 0, count: 3 },
            PageCopy { donor: of(own(), 70), from: 0, to: 5, count: 1 },
            PageCopy { donor: of(group, 90), from: 16, to: 6, count: 10 },
        ];
        let mut builder = RunBuilder::default();
        builder.add(3, PieceKind::Raw, 0b1000, &[7; PAGE_LEN]);
        builder.add_copies(3, &copies[..2]);
        builder.add_copies(4, &copies[2..]);
        let (mut bytes, mut files) = (Vec::new(), Vec::new());
        let mut number = |file| {
            files.push(file);
            files.len() as u32 - 1
        };
        builder.write(&own(), &mut number, &mut bytes);
        assert_eq!((bytes.len(), builder.copies()), (builder.len(), &copies[..]));
        assert_eq!(files, [chunk, group]);
        let pieces = parse(&bytes, bytes.len() as u32, 4 << 20).unwrap();
        let kinds: Vec<_> = pieces.iter().map(|piece| (piece.frame, piece.kind, piece.pages)).collect();
        let expected =
            [(3, PieceKind::Raw, 8), (3, PieceKind::Copy, 0b10_0111), (4, PieceKind::Copy, 0xffc0)];
        assert_eq!(kinds, expected);
        assert_eq!(
            (of_frame(&pieces, 2).len(), of_frame(&pieces, 3).len(), of_frame(&pieces, 4).len()),
            (0, 2, 1)
        );
        let find = |number: u32| files.get(number as usize).copied();
        let stored = |piece: &Piece| &bytes[piece.offset as usize..][..piece.stored_len as usize];
        let read = |piece: &Piece| parse_copies(stored(piece), piece.pages, &own(), &find);
        assert_eq!(read(&pieces[1]).unwrap(), copies[..2]);
        assert_eq!(read(&pieces[2]).unwrap(), copies[2..]);
        // Other pages than the piece says, and any byte that cannot be.
        assert!(parse_copies(stored(&pieces[2]), 0xff80, &own(), &find).is_err());
        let good = stored(&pieces[1]).to_vec();
        for (at, value) in [(0, 9), (4, 1), (8, 1), (13, 4), (14, 1), (14, 16), (15, 0), (15, 200), (30, 1)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(parse_copies(&bad, pieces[1].pages, &own(), &find).is_err(), "byte {at}");
        }
        // In a chunk of which the last page of the frame is not whole.
        assert!(parse(&bytes, bytes.len() as u32, 4 * FRAME_LEN + FRAME_LEN - 1).is_err());
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
            let _ = parse_copies(&bytes, length as u16, &own(), &|_| Some(own()));
            if bytes.len() > 4 {
                bytes[..4].copy_from_slice(&[3, 0, 0, 0]);
                let _ = parse(&bytes, length, chunk);
            }
        }
    }
}
