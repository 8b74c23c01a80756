//! Hashes: the id of a chunk, the values of its frames, and the seals of maps and manifests. Owner of the
//! crate `blake3`.
//!
//! BLAKE3 is a binary tree over 1 KiB leaves whose left subtrees are powers of two, so every full 64 KiB
//! frame of a chunk is a complete subtree with a value of its own, and the values of all frames combine to
//! the plain BLAKE3 of the chunk. A chunk of one frame has no inner subtree: its only value is the id itself.

use std::fmt;
use std::sync::OnceLock;

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use super::{CHUNK_LEN, FRAME_LEN, FRAMES_MAX, is_zero};

/// The plain BLAKE3 of a chunk's bytes. Equal ids mean equal bytes. Written as 64 lower-case hex digits.
///
/// A chunk of the original has its 16 bytes of MurmurHash3 and 16 zero bytes, written as 32 digits: equal ids mean equal
/// bytes there only within one job, and only as far as nobody has made two chunks with one hash on purpose.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId([u8; 32]);

/// The value of one frame in the hash tree of its chunk.
pub(crate) type FrameValue = [u8; 32];

impl ChunkId {
    /// Takes the 32 bytes of an id.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Hashes a chunk's bytes.
    pub fn of(data: &[u8]) -> Self {
        Self(*blake3::hash(data).as_bytes())
    }

    /// Parses 64 lower-case hex digits, and nothing else.
    pub fn parse(text: &str) -> Option<Self> {
        parse_hex(text).map(Self)
    }

    /// Takes the name of a chunk of the original.
    pub(crate) fn of_original(name: [u8; 16]) -> Self {
        let mut id = [0; 32];
        id[..16].copy_from_slice(&name);
        Self(id)
    }

    /// Parses the name of a chunk of the original: 32 lower-case hex digits, and nothing else.
    pub(crate) fn parse_original(text: &str) -> Option<Self> {
        let mut name = [0; 16];
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != name.len() || !rest.is_empty() {
            return None;
        }
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        for (byte, [high, low]) in name.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Some(Self::of_original(name))
    }

    /// The name of a chunk of the original; `None` for one of ours.
    pub(crate) fn original(&self) -> Option<[u8; 16]> {
        let (name, rest) = self.0.split_first_chunk::<16>()?;
        (rest == [0; 16]).then_some(*name)
    }

    /// The directory this chunk lies in: the first byte.
    pub(crate) fn shard(&self) -> u8 {
        self.0[0]
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = hex(&self.0);
        out.write_str(if self.original().is_some() { &text[..32] } else { &text })
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "ChunkId({self})")
    }
}

/// Compares bytes that come piece by piece with a chunk of an image. Small pieces stay in the processor's cache from
/// the read to the hash, which makes looking at unchanged data a third cheaper than reading whole chunks.
#[derive(Clone, Debug)]
pub struct ChunkCheck {
    expected: Option<ChunkId>,
    hasher: blake3::Hasher,
    is_zero: bool,
}

impl ChunkCheck {
    /// Expects the chunk with this id, or zeros.
    pub fn expecting(expected: Option<ChunkId>) -> Self {
        Self { expected, hasher: blake3::Hasher::new(), is_zero: true }
    }

    /// Whether zeros are expected.
    pub fn expects_hole(&self) -> bool {
        self.expected.is_none()
    }

    /// Takes the next bytes.
    pub fn update(&mut self, piece: &[u8]) {
        match self.expected {
            Some(_) => {
                self.hasher.update(piece);
            }
            None => self.is_zero &= is_zero(piece),
        }
    }

    /// Whether all bytes together are what was expected.
    pub fn agrees(&self) -> bool {
        match self.expected {
            Some(id) => *self.hasher.finalize().as_bytes() == id.0,
            None => self.is_zero,
        }
    }
}

/// Returns 64 lower-case hex digits.
pub(crate) fn hex(bytes: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*bytes).to_hex().to_string()
}

/// Parses 64 lower-case hex digits.
pub(crate) fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let lower =
        text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if !lower {
        return None;
    }
    blake3::Hash::from_hex(text).ok().map(|hash| *hash.as_bytes())
}

/// Hashes small data, for seals.
pub(crate) fn seal(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// Hashes a file that is written or read in parts.
#[derive(Clone, Default)]
pub(crate) struct Sealer(blake3::Hasher);

impl Sealer {
    /// Takes the next bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the hash of all bytes so far.
    pub(crate) fn seal(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Sealer")
    }
}

/// Returns the value of frame `number` of a chunk with more than one frame.
pub(crate) fn frame_value(number: usize, frame: &[u8]) -> FrameValue {
    debug_assert!(number < FRAMES_MAX && !frame.is_empty() && frame.len() <= FRAME_LEN);
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset((number * FRAME_LEN) as u64);
    hasher.update(frame);
    hasher.finalize_non_root()
}

/// Returns the value of a full frame of zeros at place `number`, computed once.
fn zero_value(number: usize) -> FrameValue {
    static VALUES: OnceLock<Vec<FrameValue>> = OnceLock::new();
    VALUES.get_or_init(|| (0..FRAMES_MAX).map(|number| frame_value(number, &[0; FRAME_LEN])).collect())
        [number]
}

/// Whether `frame` is what `value` says for place `number` of a chunk of `frames` frames.
pub(crate) fn frame_matches(value: &FrameValue, number: usize, frames: usize, frame: &[u8]) -> bool {
    match frames {
        1 => ChunkId::of(frame).0 == *value,
        _ => frame_value(number, frame) == *value,
    }
}

/// Whether a frame of `length` zeros is what `value` says; without hashing for a full frame.
pub(crate) fn zero_frame_matches(value: &FrameValue, number: usize, frames: usize, length: usize) -> bool {
    match (frames, length) {
        (2.., FRAME_LEN) => zero_value(number) == *value,
        _ => frame_matches(value, number, frames, &[0; FRAME_LEN][..length]),
    }
}

/// Combines the values of all frames to the chunk's id. `values` must not be empty.
pub(crate) fn combine(values: &[FrameValue]) -> ChunkId {
    match values {
        [only] => ChunkId(*only),
        _ => {
            let (left, right) = values.split_at(left_count(values.len()));
            let root = merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash);
            ChunkId(*root.as_bytes())
        }
    }
}

fn subtree(values: &[FrameValue]) -> FrameValue {
    match values {
        [only] => *only,
        _ => {
            let (left, right) = values.split_at(left_count(values.len()));
            merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

/// The largest power of two below `count`: the left subtree is the largest complete one that leaves something right.
fn left_count(count: usize) -> usize {
    debug_assert!(count >= 2);
    count.next_power_of_two() / 2
}

/// A chunk's id and the values of its frames; which frames are all zero.
#[derive(Debug, Default)]
pub(crate) struct Digest {
    pub(crate) values: Vec<FrameValue>,
    /// Bit n: frame n holds only zeros.
    pub(crate) zero_frames: u64,
}

impl Digest {
    /// Hashes a chunk; returns `None` when all its bytes are zero.
    pub(crate) fn update(&mut self, data: &[u8]) -> Option<ChunkId> {
        self.update_but(data, |_| None)
    }

    /// As [`Digest::update`], without hashing the frames whose value `known` tells, and whether they are kept as zeros.
    pub(crate) fn update_but(
        &mut self,
        data: &[u8],
        known: impl Fn(usize) -> Option<(FrameValue, bool)>,
    ) -> Option<ChunkId> {
        assert!(!data.is_empty() && data.len() <= CHUNK_LEN, "a chunk has 1 byte to 4 MiB");
        self.values.clear();
        self.zero_frames = 0;
        let frames = data.len().div_ceil(FRAME_LEN);
        for (number, frame) in data.chunks(FRAME_LEN).enumerate() {
            if let Some((value, zero)) = known(number) {
                self.zero_frames |= u64::from(zero) << number;
                self.values.push(value);
                continue;
            }
            let zero = is_zero(frame);
            self.zero_frames |= u64::from(zero) << number;
            self.values.push(match (zero, frames) {
                (true, 2..) if frame.len() == FRAME_LEN => zero_value(number),
                (_, 1) => ChunkId::of(frame).0,
                _ => frame_value(number, frame),
            });
        }
        let all = if frames == FRAMES_MAX { u64::MAX } else { (1 << frames) - 1 };
        (self.zero_frames != all).then(|| combine(&self.values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_values_combine_to_the_plain_hash() {
        let data: Vec<u8> = (0..CHUNK_LEN).map(|at| (at * 7 + at / 991) as u8 | 1).collect();
        let mut digest = Digest::default();
        for length in [
            1,
            1023,
            1024,
            FRAME_LEN - 1,
            FRAME_LEN,
            FRAME_LEN + 1,
            3 * FRAME_LEN,
            5 * FRAME_LEN + 77,
            CHUNK_LEN - 1,
            CHUNK_LEN,
        ] {
            assert_eq!(digest.update(&data[..length]), Some(ChunkId::of(&data[..length])), "{length}");
            let frames = digest.values.len();
            for (number, frame) in data[..length].chunks(FRAME_LEN).enumerate() {
                assert!(frame_matches(&digest.values[number], number, frames, frame));
            }
        }
    }

    #[test]
    fn zeros_are_recognised_and_hash_as_zeros_at_their_place() {
        let mut digest = Digest::default();
        assert_eq!(digest.update(&[0; 1]), None);
        assert_eq!(digest.update(&vec![0; CHUNK_LEN]), None);
        let mut data = vec![0; CHUNK_LEN - 5];
        data[70_000] = 1;
        assert_eq!(digest.update(&data), Some(ChunkId::of(&data)));
        assert_eq!(digest.zero_frames, !(1 << 1));
        assert!(zero_frame_matches(&digest.values[0], 0, 64, FRAME_LEN));
        assert!(zero_frame_matches(&digest.values[63], 63, 64, FRAME_LEN - 5));
        assert!(!zero_frame_matches(&digest.values[1], 1, 64, FRAME_LEN));
    }

    #[test]
    fn only_sixty_four_lower_case_digits_are_an_id() {
        let id = ChunkId::of(b"backy");
        assert_eq!(ChunkId::parse(&id.to_string()), Some(id));
        for text in
            ["", "00", &"A".repeat(64), &"g".repeat(64), &"0".repeat(65), &format!("../{}", "0".repeat(61))]
        {
            assert_eq!(ChunkId::parse(text), None, "{text}");
        }
    }
}
