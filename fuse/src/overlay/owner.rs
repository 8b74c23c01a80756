//! Whose the files of an overlay are. They decide what an image shows to who repairs it, often root, and hold what he
//! writes: what others can replace or change is not used.
//!
//! A directory that only its owner can write keeps what lies in it, so each is looked at before what it holds.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::geteuid;

use crate::error::{Error, Result};

/// Returns why a directory must not be used; `None` if nothing is wrong with it. Links are not followed.
pub(crate) fn objection(dir: &Path) -> Result<Option<String>> {
    let facts = dir.symlink_metadata().map_err(|source| Error::io("examine", dir, source))?;
    Ok(if facts.is_dir() { foreign(&facts) } else { Some("it is not a directory".to_owned()) })
}

/// Checks a directory inside an overlay.
pub(crate) fn check_dir(dir: &Path) -> Result<()> {
    objection(dir)?.map_or(Ok(()), |reason| Err(Error::overlay_damaged(dir, reason)))
}

/// Checks a file inside an overlay, after it was opened.
pub(crate) fn check_file(facts: &Metadata, path: &Path) -> Result<()> {
    let objection = if facts.is_file() { foreign(facts) } else { Some("it is no regular file".to_owned()) };
    objection.map_or(Ok(()), |reason| Err(Error::overlay_damaged(path, reason)))
}

fn foreign(facts: &Metadata) -> Option<String> {
    let user = geteuid().as_raw();
    if facts.uid() != user {
        return Some(format!("it belongs to the user {} and not to {user}, who mounts", facts.uid()));
    }
    (facts.mode() & 0o022 != 0)
        .then(|| format!("other users may write to it (mode {:o})", facts.mode() & 0o7777))
}
