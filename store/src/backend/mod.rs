//! Storage of a store's chunk files. A backend knows names and bytes, nothing of hashes or frames.
//!
//! [`Backend`] is the only interface to it. Local files implement it in `local.rs`; `memory.rs` keeps the files in memory,
//! for tests and as the model of an object store. S3 and RADOS are to come. Every implementation must pass the tests of
//! `contract.rs`, which check the following rules.
//!
//! **A file is whole and does not change.** A name either has no file or has a complete one: a file becomes visible in one
//! step, at the end of [`Backend::put`] or [`NewFile::place`]. A call that fails leaves the name as it was. If the answer of
//! a remote server is lost, the name may also have the complete new file, but never a part of it. The only change is the
//! replacement of a damaged file by a good one, also in one step. A file that is open keeps its bytes until it is closed,
//! even if it is replaced or deleted meanwhile.
//!
//! **A change is visible at once.** After a call has returned, `open`, `len` and `list` of every backend of the store show
//! its effect, in all threads and processes.
//!
//! **Only a barrier makes files durable.** After a power loss, each file that was put or placed since the last barrier may be
//! missing or damaged. [`Backend::barrier`] makes durable what was put, placed or used through the same backend before.
//! A replacement is durable before it is visible: the damaged file may have good frames that no other file has. A deletion
//! may be undone by a power loss.
//!
//! **All methods may be called by several threads and processes at the same time.** Files of the same name are
//! interchangeable, since a name determines the content: if several writers put the same name, all of them succeed and one of
//! the files stays. The name of a group is random, so it has one writer. The caller makes sure that nothing deletes a file
//! that another program is about to use: a writer logs the id under the shared lock of the shard, and a purge deletes
//! under the exclusive one. The backend itself does not check who holds a lock.
//!
//! One backend is opened for each run, before its first write, so that a barrier reports every write error since then.

#[cfg(test)]
mod contract;
pub(crate) mod local;
#[cfg(test)]
pub(crate) mod memory;
#[cfg(feature = "rados")]
pub(crate) mod rados;
#[cfg(test)]
mod stores;

use std::fmt::Debug;
use std::io;
use std::path::Path;

use crate::error::Result;
use crate::format::name::FileName;

/// A chunk file opened for reading. It can be read until it is dropped, even if it is deleted or replaced meanwhile.
/// Several threads may read it at the same time.
pub(crate) trait StoredChunk: Debug + Send + Sync {
    /// Returns the length of the file in bytes. It is not known of a file that is being written: see [`NewFile::reader`].
    fn len(&self) -> u64;
    /// Reads into `buf` from `offset` until it is full or the file ends, and returns the number of bytes. A range that
    /// begins at the end or after it has no bytes; that is no error.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Begins to fetch a range that will be read soon, without waiting. A length of 0 means up to the end. Errors are left
    /// to the read.
    fn will_need(&self, offset: u64, len: u64);
}

/// A file that is being written from beginning to end. It is invisible before it is placed. If it is dropped before, nothing
/// of it stays.
pub(crate) trait NewFile: Debug + Send + Sync {
    /// Appends bytes. After an error it is not known which of them were written, and the file must be dropped.
    fn append(&mut self, bytes: &[u8]) -> Result<()>;
    /// Opens the file for reading. The reader sees what has been appended so far and what is appended later, and can be used
    /// after the file was placed. The length that it returns has no meaning.
    fn reader(&self) -> Result<Box<dyn StoredChunk>>;
    /// Makes the complete file visible under its name. Nothing is appended afterwards.
    fn place(&mut self) -> Result<()>;
}

/// Keeps chunk files. The head of this module has the rules that every implementation follows.
pub(crate) trait Backend: Debug + Send + Sync {
    /// Opens a file; `None` if there is none of this name.
    fn open(&self, name: &FileName) -> Result<Option<Box<dyn StoredChunk>>>;

    /// Returns the length of a file; `None` if there is none of this name.
    fn len(&self, name: &FileName) -> Result<Option<u64>>;

    /// Keeps `bytes` under `name`. A file that is there already stays, unless `replace` says that it is damaged; both count as
    /// success, and the next barrier covers the file in both cases. `temporary` is a name that nothing else uses now, for an
    /// implementation that writes a file before it gives it its name; nothing has that name when this returns. If the program
    /// is killed, `temporary` tells the next run which dead session has left the file.
    fn put(&self, name: &FileName, bytes: &[u8], temporary: &str, replace: bool) -> Result<()>;

    /// Begins a new file that will be placed as `name`. There is none of this name, and no other writer makes one.
    /// `temporary` is as for [`Backend::put`] and stays in use until the file is placed or dropped.
    fn begin(&self, name: &FileName, temporary: &str) -> Result<Box<dyn NewFile>>;

    /// Includes a file that this run found and uses in the next barrier: another run may have written it and died before its
    /// own barrier. It costs nothing and cannot fail.
    fn use_existing(&self, name: &FileName);

    /// Makes durable all files that were put, placed or used through this backend so far. After an error, some of them may be
    /// lost, and the run must fail: a second call would report success without having written what the first one lost.
    fn barrier(&self) -> Result<()>;

    /// Removes a file. A name without a file is no error.
    fn delete(&self, name: &FileName) -> Result<()>;

    /// Calls `visit` with the name of each file of a shard (the first byte of the id), in no particular order. Every file
    /// that is there from beginning to end is listed once; one that is put, replaced or deleted meanwhile may be left out.
    /// Names that are no names of chunk files are skipped. `visit` may call other methods of the backend.
    fn list(&self, shard: u8, visit: &mut dyn FnMut(FileName)) -> Result<()>;

    /// Locks a shard, shared for a writer or exclusive for a purge, against all threads and processes that use the store. It
    /// waits until the lock is free. The lock is held for moments, and a thread that holds it takes no other one of this
    /// shard.
    fn lock_shard(&self, shard: u8, exclusive: bool) -> Result<ShardLock>;

    /// Returns whether nothing shows that chunk files were ever kept here: the disk is not mounted, say, and only its mount
    /// point is there. Then a missing file is no damage.
    fn is_away(&self) -> Result<bool>;

    /// Checks that the backend can be used. Changes nothing.
    fn check(&self) -> Result<()>;

    /// Makes directories or containers that are missing, and checks as [`Backend::check`] does. A run that writes calls this
    /// before it opens the backend that it writes with.
    fn prepare(&self) -> Result<()>;
}

/// A locked shard. Dropping it releases the lock.
#[derive(Debug)]
pub(crate) struct ShardLock {
    _held: Box<dyn Debug + Send + Sync>,
}

impl ShardLock {
    /// A lock that is held as long as `held` is not dropped.
    pub(crate) fn new(held: impl Debug + Send + Sync + 'static) -> Self {
        Self { _held: Box::new(held) }
    }
}

/// Which backend a store has.
#[derive(Clone, Debug, Default)]
pub(crate) enum BackendKind {
    /// Files in the store's own directory.
    #[default]
    Local,
    /// Files in memory.
    #[cfg(test)]
    Memory(memory::MemoryStore),
}

impl BackendKind {
    /// Opens the backend of the store at `root`, for one run.
    pub(crate) fn open(&self, root: &Path) -> Result<Box<dyn Backend>> {
        match self {
            Self::Local => Ok(Box::new(local::LocalBackend::open(root)?)),
            #[cfg(test)]
            Self::Memory(store) => Ok(Box::new(store.open())),
        }
    }
}
