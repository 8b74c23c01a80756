//! What backy keeps: chunks, chunk maps, manifests and the revision index.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub(crate) mod backend;
mod bounds;
pub mod chunk;
pub mod damage;
pub(crate) mod disk;
pub mod error;
#[cfg(feature = "testing")]
pub mod fuzzing;
pub mod index;
pub mod job;
pub mod legacy;
pub mod lock;
pub mod monitor;
pub mod name;
pub mod nearest;
pub mod notes;
pub mod ownership;
mod pages;
pub mod recover;
mod register;
pub mod repository;
pub mod restore;
mod restoring;
pub mod revision;
pub(crate) mod session;
mod snapshots;
pub mod space;
pub mod sweep;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod threads;
pub mod timestamp;
pub mod verify;
pub mod yaml;

#[cfg(feature = "rados")]
pub use backend::rados::{ClusterFacts, cluster_facts};
pub use chunk::cache::FrameCache;
pub use chunk::frame::DEFAULT_LEVEL;
pub use chunk::{CHUNK_SIZE, ChunkCheck, ChunkId, FRAME_SIZE};
pub use error::{Error, Refusal, Result};
pub use index::memo::Memo;
pub use index::{IndexHold, KnownRevisions};
pub use job::Unfinished;
pub use job::{Forgotten, Generation, Job, Listing};
pub use monitor::{Finding, Monitor, Silent};
pub use name::{JobName, Tag};
pub use notes::Notes;
pub use repository::{Location, Repository, is_furniture};
pub use restoring::{FoundRestore, RestoreNote};
pub use revision::reader::{Extent, Piece, RevisionReader};
pub use revision::writer::{ChunkWriter, NewRevision, Put, Reuse, RevisionWriter, WriteStats};
pub use revision::{BackendType, Revision, RevisionId, Stats, Trust};
pub use session::remove_sessions_of_host;
pub use timestamp::{Timestamp, Zone};
