//! The chunk: up to 4 MiB of an image, named by its BLAKE3 hash, kept as frames of 64 KiB that can be read
//! and verified one by one. `docs/format.md` describes the file byte by byte.

pub(crate) mod container;
pub(crate) mod frame;
pub(crate) mod group;
pub(crate) mod id;
pub mod layout;
pub mod manifest;
pub(crate) mod map;
pub(crate) mod name;
pub(crate) mod recipe;
pub(crate) mod run;

pub use id::{ChunkCheck, ChunkId};

/// Bytes of an image in one chunk: 4 MiB.
pub const CHUNK_SIZE: u64 = 4 << 20;

/// Bytes of a chunk in one frame: 64 KiB.
pub const FRAME_SIZE: u64 = 64 << 10;

/// The same sizes as lengths in memory.
pub(crate) const CHUNK_LEN: usize = CHUNK_SIZE as usize;
pub(crate) const FRAME_LEN: usize = FRAME_SIZE as usize;

/// Frames of a full chunk.
pub(crate) const FRAMES_MAX: usize = CHUNK_LEN / FRAME_LEN;

const _: () = assert!(FRAMES_MAX == 64 && CHUNK_LEN.is_multiple_of(FRAME_LEN));

/// Whether all bytes are zero. Stops at the first that is not.
pub fn is_zero(data: &[u8]) -> bool {
    static ZEROS: [u8; FRAME_LEN] = [0; FRAME_LEN];
    data.chunks(FRAME_LEN).all(|part| *part == ZEROS[..part.len()])
}
