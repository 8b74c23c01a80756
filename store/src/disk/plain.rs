//! Changes of the file system as they are. With the feature `testing`, `fault.rs` stands in for this file.

use std::path::Path;

use crate::error::Result;

/// One change that is about to be made.
#[expect(dead_code, reason = "only the tests look at it")]
pub(super) enum Step<'p> {
    Create(&'p Path),
    MakeDir(&'p Path),
    SetLen(&'p Path, u64),
    Rename(&'p Path, &'p Path),
    Link(&'p Path, &'p Path),
    Unlink(&'p Path),
    SyncFile(&'p Path),
    SyncDir(&'p Path),
    SyncFileSystem(&'p Path),
}

pub(super) fn step<T>(_step: Step<'_>, change: impl FnOnce() -> Result<T>) -> Result<T> {
    change()
}

pub(super) fn step_write(
    _path: &Path,
    _offset: Option<u64>,
    data: &[u8],
    mut write: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    write(data)
}

pub(super) fn reliable_syncfs() -> Option<bool> {
    None
}
