//! The header of a chunk file: write, parse, bounds. The byte layout is `docs/format.md`, section "Chunk file".
//!
//! A parsed header is proven: its frame values combine to the chunk's id and its lengths add up to the
//! file's. Only then are its frames looked at, so nothing is ever allocated from a length that was not checked.

use super::frame::Kind;
use super::id::{ChunkId, FrameValue, combine};
use super::layout::{frame_count, frame_len};
use super::{CHUNK_LEN, FRAME_LEN, FRAMES_MAX};

pub(crate) const MAGIC: &[u8; 8] = b"BACKYCHK";
pub(crate) const VERSION: u16 = 1;
const FRAME_LOG: u8 = 16;
const FIXED_LEN: usize = 32;
const ENTRY_LEN: usize = 36;

/// Bytes of the hash at the end of a chunk file.
pub(crate) const HASH_LEN: usize = 32;

/// The longest header: that of a chunk of 64 frames.
pub(crate) const HEADER_LEN_MAX: usize = FIXED_LEN + FRAMES_MAX * ENTRY_LEN;

const _: () = assert!(1 << FRAME_LOG == FRAME_LEN && HEADER_LEN_MAX == 2336);

/// Where one frame lies in the file and what it must hash to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    /// Offset from the beginning of the file.
    pub(crate) offset: u32,
    /// Bytes in the file.
    pub(crate) stored_len: u32,
    pub(crate) value: FrameValue,
}

/// A chunk file's header, proven against the chunk's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes of the image in this chunk: 1 to 4 MiB.
    pub(crate) plain_len: usize,
    pub(crate) frames: Vec<Frame>,
    /// Length of the whole file.
    pub(crate) file_len: u64,
}

/// Returns the length of the header of a full chunk of `plain_len` bytes.
pub(crate) fn header_len(plain_len: usize) -> usize {
    FIXED_LEN + frame_count(plain_len) * ENTRY_LEN
}

/// Writes the header of a chunk into `out`, which has exactly [`header_len`] bytes.
pub(crate) fn write_header(
    out: &mut [u8],
    plain_len: usize,
    frames: &[(Kind, usize)],
    values: &[FrameValue],
) {
    assert!(
        out.len() == header_len(plain_len)
            && frames.len() == values.len()
            && frames.len() == frame_count(plain_len)
    );
    let stored: usize = frames.iter().map(|(_, length)| length).sum();
    out.fill(0);
    out[0..8].copy_from_slice(MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    out[10] = FRAME_LOG;
    out[12..16].copy_from_slice(&(plain_len as u32).to_le_bytes());
    out[16..20].copy_from_slice(&(frames.len() as u32).to_le_bytes());
    out[20..24].copy_from_slice(&(stored as u32).to_le_bytes());
    let entries = out[FIXED_LEN..].chunks_exact_mut(ENTRY_LEN);
    for ((entry, (kind, length)), value) in entries.zip(frames).zip(values) {
        let kind = match kind {
            Kind::Zero => 0u32,
            Kind::Raw => 1,
            Kind::Zstd => 2,
        };
        entry[..4].copy_from_slice(&(kind << 24 | *length as u32).to_le_bytes());
        entry[4..].copy_from_slice(value);
    }
}

/// Parses and proves the header at the beginning of `bytes`, the first [`HEADER_LEN_MAX`] bytes of a file (or
/// all of a shorter one) of `file_len` bytes. An error says what is wrong with it. Another version is damage like any
/// other: which versions the files of a store can have, its mark says.
pub(crate) fn parse_header(bytes: &[u8], file_len: u64, id: &ChunkId) -> Result<Header, String> {
    let corrupt = |reason: &str| Err(reason.to_owned());
    if file_len == 0 {
        return corrupt("its file is empty");
    }
    let Some(fixed) = bytes.first_chunk::<FIXED_LEN>() else {
        return corrupt("its file is cut off in the header");
    };
    let word = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    if &fixed[..8] != MAGIC {
        return corrupt("its file does not begin with the mark of a chunk");
    }
    let version = u16::from_le_bytes([fixed[8], fixed[9]]);
    if version != VERSION {
        return Err(format!(
            "its header says format version {version}, and the store's files have version {VERSION}"
        ));
    }
    if fixed[10] != FRAME_LOG || fixed[11] != 0 || fixed[24..] != [0; 8] {
        let (log, flags) = (fixed[10], fixed[11]);
        return Err(format!(
            "its header has the frame size {log} and the flags {flags:#x}, which this version does not know"
        ));
    }
    let plain_len = word(12) as usize;
    if plain_len == 0 || plain_len > CHUNK_LEN || word(16) as usize != frame_count(plain_len) {
        return corrupt("its header has impossible lengths");
    }
    let start = header_len(plain_len);
    if (start as u64) + u64::from(word(20)) + HASH_LEN as u64 != file_len {
        return corrupt("its file does not have the length that its header says");
    }
    let Some(table) = bytes.get(FIXED_LEN..start) else {
        return corrupt("its file is cut off in the frame table");
    };
    let frames = parse_table(table, start as u32, plain_len).map_err(str::to_owned)?;
    let end = frames.last().map_or(start as u32, |frame| frame.offset + frame.stored_len);
    if u64::from(end) + HASH_LEN as u64 != file_len {
        return corrupt("its frames do not fill the file");
    }
    let values: Vec<FrameValue> = frames.iter().map(|frame| frame.value).collect();
    if combine(&values) != *id {
        return corrupt("its frame table does not belong to this id");
    }
    Ok(Header { plain_len, frames, file_len })
}

fn parse_table(table: &[u8], start: u32, plain_len: usize) -> Result<Vec<Frame>, &'static str> {
    let mut frames = Vec::with_capacity(table.len() / ENTRY_LEN);
    let mut offset = start;
    for (number, entry) in table.chunks_exact(ENTRY_LEN).enumerate() {
        let word = u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]);
        let stored_len = word & 0xff_ffff;
        let kind = match word >> 24 {
            0 => Kind::Zero,
            1 => Kind::Raw,
            2 => Kind::Zstd,
            _ => return Err("a frame is of a kind that this version does not know"),
        };
        let plain = frame_len(plain_len, number) as u32;
        let fits = match kind {
            Kind::Zero => stored_len == 0,
            Kind::Raw => stored_len == plain,
            Kind::Zstd => stored_len > 0 && stored_len < plain,
        };
        if !fits {
            return Err("a frame has an impossible length");
        }
        let mut value = [0; 32];
        value.copy_from_slice(&entry[4..]);
        frames.push(Frame { kind, offset, stored_len, value });
        offset += stored_len;
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::id::{Digest, seal};
    use super::*;

    fn sample() -> (ChunkId, Vec<u8>) {
        let data = [vec![7; FRAME_LEN], vec![0; FRAME_LEN], vec![1, 2, 3]].concat();
        let mut digest = Digest::default();
        let id = digest.update(&data).unwrap();
        let mut file = vec![0; header_len(data.len())];
        write_header(
            &mut file,
            data.len(),
            &[(Kind::Zstd, 20), (Kind::Zero, 0), (Kind::Raw, 3)],
            &digest.values,
        );
        file.extend_from_slice(&[5; 23]);
        file.extend_from_slice(&seal(&[&file]));
        (id, file)
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let (id, file) = sample();
        let header = parse_header(&file, file.len() as u64, &id).unwrap();
        let start = header_len(header.plain_len) as u32;
        let places: Vec<_> =
            header.frames.iter().map(|frame| (frame.kind, frame.offset - start, frame.stored_len)).collect();
        assert_eq!(places, [(Kind::Zstd, 0, 20), (Kind::Zero, 20, 0), (Kind::Raw, 20, 3)]);
        assert!(parse_header(&file, file.len() as u64, &ChunkId::of(b"other")).is_err());
    }

    #[test]
    fn every_cut_and_every_flipped_bit_of_the_header_is_refused() {
        let (id, file) = sample();
        for length in 0..file.len() {
            assert!(parse_header(&file[..length], length as u64, &id).is_err(), "cut to {length}");
        }
        for bit in 0..header_len(2 * FRAME_LEN + 3) * 8 {
            let mut flipped = file.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(parse_header(&flipped, file.len() as u64, &id).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn another_version_is_damage_and_named() {
        let (id, mut file) = sample();
        for version in [0, 2] {
            file[8] = version;
            let refused = parse_header(&file, file.len() as u64, &id);
            let said = format!("format version {version}");
            assert!(matches!(&refused, Err(reason) if reason.contains(&said)), "{refused:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000), length in any::<u64>()) {
            let mut bytes = bytes;
            let _ = parse_header(&bytes, length, &ChunkId::of(b""));
            if bytes.len() > 12 {
                bytes[..12].copy_from_slice(b"BACKYCHK\x01\x00\x10\x00");
                let _ = parse_header(&bytes, bytes.len() as u64, &ChunkId::of(b""));
            }
        }
    }
}
