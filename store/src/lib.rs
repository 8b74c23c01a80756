//! What backy keeps: chunks, chunk maps, manifests and the revision index.
//!
//! # The model
//!
//! A *store* is a directory. It has *jobs*, one for each disk that is backed up, and a job has *revisions*: the content of the
//! disk at one time, which never changes. The image of a revision is cut into *chunks* of 4 MiB, which are named by their
//! hash and shared by all revisions of the store. A chunk is kept in full in a file of its own, or by a *recipe* in a
//! *group*: a full chunk as its base, and the pages that have changed since. A *chunk map* says for each place of an image
//! which chunk lies there and which files it needs, and a *manifest* vouches for the map. A revision exists once its
//! manifest does. `docs/format.md` describes all files byte by byte.
//!
//! # The rooms
//!
//! Data flows from the top of this list to its end, and a module uses those above it:
//!
//! | module | what it does |
//! | --- | --- |
//! | [`fs`] | every change of the file system, locks, ownership |
//! | `backend` | where the files of chunks are kept: the trait `Backend` |
//! | [`format`](mod@format) | bytes to values and back: ids, frames, chunks, groups, maps, manifests |
//! | [`revision`], [`name`], [`timestamp`] | the values that everybody speaks of |
//! | [`repository`] | the store and its jobs: directories, commits, sessions, the register, the index of revisions |
//! | [`select`] | revision specifications such as `last(tag:daily)` |
//! | [`read`] | opens chunks in whatever form they are kept, verifies and caches them |
//! | [`write`](mod@write) | makes a revision: what is new, what changed, what is elsewhere already |
//! | [`restore`] | writes an image to a file, a device or a stream |
//! | [`maintain`] | purge, verify, damage, space, recovery |
//! | [`legacy`] | what the original program left, read as it is |
//!
//! # The order of writes
//!
//! A backup writes the ids to its session's log, then chunks and groups, then makes them durable, then writes the map,
//! then the manifest, and with that the revision exists. A crash at any moment leaves only files that nothing refers to.
//! Deletion goes the other way: manifest, map, chunks. The head of [`maintain::sweep`] is the proof that a purge deletes
//! nothing that is needed, also while backups, restores and mounts go on.
//!
//! # Locks
//!
//! All locks, and the order in which they are taken, are in the table at the head of [`fs::lock`].
//!
//! # Example
//!
//! ```
//! use std::collections::{BTreeMap, BTreeSet};
//! use std::sync::Arc;
//!
//! use backy_store::{CHUNK_SIZE, FrameCache, JobName, NewRevision, Repository, Reuse, RevisionId, Stats, Timestamp};
//!
//! # fn main() -> backy_store::Result<()> {
//! # let dir = tempfile::tempdir().expect("a directory");
//! # let root = dir.path().join("store");
//! let now = Timestamp::from_secs(1_700_000_000).expect("a time");
//! let store = Repository::create(&root, now)?;
//! let job = store.create_job(&JobName::parse("web01")?, false, "{}\n", now)?;
//!
//! // One chunk of data and one of zeros, which takes no space.
//! let image = [vec![7; CHUNK_SIZE as usize], vec![0; CHUNK_SIZE as usize]].concat();
//! let guard = job.lock_for_backup()?;
//! let new = NewRevision {
//!     id: RevisionId::random()?,
//!     timestamp: now,
//!     tags: BTreeSet::new(),
//!     image_size_bytes: image.len() as u64,
//!     base: None,
//!     parent: None,
//!     reuse: Reuse::Header,
//!     level: 1,
//!     with_others: true,
//! };
//! let writer = job.new_revision(&guard, new)?;
//! let mut chunks = writer.chunk_writer()?;
//! for (number, chunk) in (0..).zip(image.chunks(CHUNK_SIZE as usize)) {
//!     chunks.put(number, chunk)?;
//! }
//! drop(chunks);
//! let revision = writer.finish(&guard, Stats::default(), BTreeMap::new())?;
//!
//! let reader = job.open_revision(&revision, &Arc::new(FrameCache::new(1 << 20)))?;
//! let mut read = vec![1; image.len()];
//! reader.read_at(0, &mut read)?;
//! assert_eq!(read, image);
//! # Ok(())
//! # }
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub(crate) mod backend;
mod bounds;
pub mod error;
pub mod format;
pub mod fs;
#[cfg(feature = "testing")]
pub mod fuzzing;
pub mod legacy;
pub mod maintain;
pub mod monitor;
pub mod name;
pub mod nearest;
pub mod read;
pub mod repository;
pub mod restore;
pub mod revision;
pub mod select;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod threads;
pub mod timestamp;
pub mod write;
pub mod yaml;

#[cfg(feature = "rados")]
pub use backend::rados::{ClusterFacts, cluster_facts};
pub use error::{Error, Refusal, Result};
pub use format::frame::DEFAULT_LEVEL;
pub use format::{CHUNK_SIZE, ChunkCheck, ChunkId, FRAME_SIZE};
pub use monitor::{Finding, Monitor, Silent};
pub use name::{JobName, Tag};
pub use read::cache::FrameCache;
pub use read::reader::{Extent, Piece, RevisionReader};
pub use repository::index::memo::Memo;
pub use repository::index::{IndexHold, KnownRevisions};
pub use repository::job::Unfinished;
pub use repository::job::{Forgotten, Generation, Job, Listing};
pub use repository::notes::Notes;
pub use repository::session::remove_sessions_of_host;
pub use repository::{Location, Repository, is_furniture};
pub use restore::restoring::{FoundRestore, RestoreNote};
pub use revision::{BackendType, Revision, RevisionId, Stats, Trust};
pub use timestamp::{Timestamp, Zone};
pub use write::{ChunkWriter, NewRevision, Put, Reuse, RevisionWriter, WriteStats};
