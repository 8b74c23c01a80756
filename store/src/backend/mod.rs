//! Where chunk files are kept. A backend knows names and bytes, nothing of hashes or frames.
//!
//! What can be seen under a name is whole and never changes, except that a damaged chunk is replaced. Only
//! [`Backend::barrier`] promises durability. S3 and RADOS are further implementations of this trait.

pub(crate) mod local;
#[cfg(feature = "rados")]
pub(crate) mod rados;

use std::fmt::Debug;
use std::io;

use crate::chunk::name::FileName;
use crate::error::Result;

/// A chunk file opened for reading; stays readable when the chunk is deleted.
pub(crate) trait StoredChunk: Debug + Send + Sync {
    /// Length of the file in bytes.
    fn len(&self) -> u64;
    /// Reads into `buf` from `offset` until it is full or the file ends; returns the number of bytes.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Begins to fetch a part of it, without waiting: it will be read soon. A length of 0 means up to the end.
    fn will_need(&self, offset: u64, len: u64);
}

/// A file that is being written from beginning to end. Nobody sees it before it is placed; dropped before, it is gone.
pub(crate) trait NewFile: Debug + Send + Sync {
    /// Appends bytes.
    fn append(&mut self, bytes: &[u8]) -> Result<()>;
    /// Opens what is written for reading; also what is appended later.
    fn reader(&self) -> Result<Box<dyn StoredChunk>>;
    /// Gives the file its name, for all to see.
    fn place(&mut self) -> Result<()>;
}

/// Keeps chunk files.
pub(crate) trait Backend: Debug + Send + Sync {
    /// Opens a chunk's file, `None` when it is not there.
    fn open(&self, name: &FileName) -> Result<Option<Box<dyn StoredChunk>>>;

    /// Returns the length of a chunk's file, `None` when it is not there.
    fn len(&self, name: &FileName) -> Result<Option<u64>>;

    /// Keeps `bytes` under `name`. What is there already stays, unless `replace` says that it is damaged.
    /// `temporary` is a name that nothing else uses now; it is gone when this returns or shows a dead run.
    fn put(&self, name: &FileName, bytes: &[u8], temporary: &str, replace: bool) -> Result<()>;

    /// Begins a new file that is going to be called `name`; there is none of this name. `temporary` is as for
    /// [`Backend::put`].
    fn begin(&self, name: &FileName, temporary: &str) -> Result<Box<dyn NewFile>>;

    /// Promises that [`Backend::barrier`] covers a file that this run found and uses.
    fn use_existing(&self, name: &FileName);

    /// Makes all chunks put and used so far durable. Not to be repeated after an error.
    fn barrier(&self) -> Result<()>;

    /// Removes a chunk's file; it is no error when it is gone.
    fn delete(&self, name: &FileName) -> Result<()>;

    /// Calls `visit` with the name of every chunk's file in the shard (first byte of the id). Other names are skipped.
    fn list(&self, shard: u8, visit: &mut dyn FnMut(FileName)) -> Result<()>;

    /// Locks a shard against the sweep (shared) or for it (exclusive); waits. Dropping the lock releases it.
    fn lock_shard(&self, shard: u8, exclusive: bool) -> Result<ShardLock>;
}

/// Holds a shard locked.
#[derive(Debug)]
pub(crate) struct ShardLock {
    _dir: std::fs::File,
}
