//! Changes of the file system as they are. With the feature `testing`, `fault.rs` stands in for this file.

use std::path::Path;

use super::Step;
use crate::error::Result;

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

pub(super) fn has_unnamed_files() -> bool {
    true
}

pub(super) fn reliable_syncfs() -> Option<bool> {
    None
}

pub(super) fn has_links() -> bool {
    true
}

pub(super) fn host() -> Option<String> {
    None
}
