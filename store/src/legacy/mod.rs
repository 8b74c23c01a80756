//! What the original backy wrote, read in place: chunks named by MurmurHash3 and packed with LZO, maps in JSON, raw
//! images. Nothing here changes a byte of it but [`purge`], which removes what no revision of the original needs
//! any more, and [`upgrade`], which makes the original's revisions ours. The formats are in `docs/format.md`.
//!
//! A chunk of the original is a [`crate::ChunkId`] of its 16 bytes and 16 zero bytes, so that caches, findings and
//! reports need no second kind of id. No chunk of ours has such an id.

pub(crate) mod chunk;
pub(crate) mod cowfile;
pub(crate) mod image;
pub(crate) mod job;
pub(crate) mod lock;
pub(crate) mod lzo;
pub(crate) mod map;
pub(crate) mod murmur;
pub mod purge;
pub mod upgrade;
