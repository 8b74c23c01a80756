//! Pure arithmetic between byte offsets of an image and its chunks and frames.

use super::{CHUNK_SIZE, FRAME_SIZE};

/// The largest image: 2^60 bytes. Anything larger in a file is damage.
pub const IMAGE_SIZE_MAX: u64 = 1 << 60;

/// Returns the number of chunks of an image of `size_bytes`.
pub fn chunk_count(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(CHUNK_SIZE)
}

/// Returns the length of chunk `number` of an image of `size_bytes`: 4 MiB, or less for the last one, 0 past it.
pub fn chunk_len(size_bytes: u64, number: u64) -> usize {
    let start = number.saturating_mul(CHUNK_SIZE);
    size_bytes.saturating_sub(start).min(CHUNK_SIZE) as usize
}

/// Returns the number of frames of a chunk of `length` bytes.
pub fn frame_count(length: usize) -> usize {
    length.div_ceil(FRAME_SIZE as usize)
}

/// Returns the length of frame `number` of a chunk of `length` bytes.
pub fn frame_len(length: usize, number: usize) -> usize {
    length.saturating_sub(number.saturating_mul(FRAME_SIZE as usize)).min(FRAME_SIZE as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_chunk_and_frame_are_short() {
        assert_eq!(
            (chunk_count(0), chunk_count(1), chunk_count(CHUNK_SIZE), chunk_count(CHUNK_SIZE + 1)),
            (0, 1, 1, 2)
        );
        assert_eq!(
            (chunk_len(CHUNK_SIZE + 5, 0), chunk_len(CHUNK_SIZE + 5, 1), chunk_len(5, 1)),
            (4 << 20, 5, 0)
        );
        assert_eq!(chunk_len(5, u64::MAX), 0);
        assert_eq!((frame_count(65536), frame_count(65537)), (1, 2));
        assert_eq!((frame_len(65537, 0), frame_len(65537, 1), frame_len(65537, 2)), (65536, 1, 0));
    }
}
