//! The unfinished file that a restore fills, so that nobody can take a half restored image for a good one.
//!
//! Where the file system can, it has no name until it is whole: whatever ends the program, nothing is left. Elsewhere it
//! has a temporary name, short enough for any target, `.backy-restore-HOST-RANDOM`. Its owner holds a lock on it for its
//! life, so a later restore to the same directory can tell files of dead restores and removes them. A lock says that
//! only among programs of one kernel; HOST, a hash of what identifies this machine, keeps those of other machines out.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;

use crate::error::{Error, Result};
use crate::fs::disk;
use crate::fs::lock;

const PREFIX: &str = ".backy-restore-";
/// Hex digits of the hash of this machine.
const HOST_DIGITS: usize = 8;
/// Hex digits that tell the files of one machine apart.
const RANDOM_DIGITS: usize = 16;
/// How often another name is tried when a peer took a new file for a dead one before it was locked.
const CREATIONS_MAX: usize = 10;

/// An unfinished file, removed when it is dropped before [`Temporary::publish`].
#[derive(Debug)]
pub(super) struct Temporary {
    pub(super) file: File,
    dir: PathBuf,
    /// `None` as long as the file has no name.
    name: Option<PathBuf>,
}

impl Temporary {
    /// Makes a new file, in a way that works on any file system. `wanted` is the name that it is going to have: where
    /// names cannot be relied on, it is tried whether that can be made.
    pub(super) fn create(dir: &Path, wanted: Option<&Path>) -> Result<Self> {
        if let Some(file) = disk::create_unnamed(dir)? {
            // Later it may get a temporary name for a moment.
            lock(&file);
            return Ok(Self { file, dir: dir.to_owned(), name: None });
        }
        if let Some(wanted) = wanted {
            // A name that this file system does not allow, for instance with a colon.
            drop(disk::create_new(wanted)?);
            disk::remove(wanted)?;
        }
        for _ in 0..CREATIONS_MAX {
            let name = new_name(dir)?;
            let file = disk::create_new(&name)?;
            lock(&file);
            if name.symlink_metadata().is_ok() {
                return Ok(Self { file, dir: dir.to_owned(), name: Some(name) });
            }
        }
        Err(Error::Locked { what: dir.display().to_string() })
    }

    /// Gives the file, which is whole and durable, the name `to`; returns whether it could. With `replaces` the file of
    /// that name goes, otherwise there must be none.
    pub(super) fn publish(mut self, to: &Path, replaces: bool) -> Result<bool> {
        if self.name.is_none() && !replaces {
            return disk::link_open(&self.file, to);
        }
        let name = match &self.name {
            Some(name) => name.clone(),
            None => {
                let name = new_name(&self.dir)?;
                disk::link_open(&self.file, &name)?;
                self.name.insert(name).clone()
            }
        };
        let is_done = match replaces {
            true => disk::rename(&name, to).map(|()| true)?,
            false => disk::rename_new(&name, to)?,
        };
        if is_done {
            self.name = None;
        }
        Ok(is_done)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(name) = &self.name
            && let Err(error) = disk::remove(name)
        {
            tracing::warn!(error = crate::error::in_full(&error), "unfinished-file-not-removed");
        }
    }
}

/// Removes what dead restores have left in a directory. Returns what was removed; what cannot be looked at stays.
pub(super) fn remove_dead(dir: &Path) -> Vec<PathBuf> {
    let Ok(list) = std::fs::read_dir(dir) else { return Vec::new() };
    let own = prefix();
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let random = name.strip_prefix(&own).unwrap_or_default();
        random.len() == RANDOM_DIGITS && random.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let found = list.flatten().map(|entry| entry.path()).filter(is_ours);
    found.filter(|path| remove_if_dead(path).unwrap_or_default()).collect()
}

/// Removes a file whose lock nobody holds.
fn remove_if_dead(path: &Path) -> Result<bool> {
    // Something else of this name must not make us wait.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|error| Error::io("open", path, error))?;
    let facts = file.metadata().map_err(|error| Error::io("examine", path, error))?;
    let euid = nix::unistd::geteuid();
    let is_ours = euid.is_root() || facts.uid() == euid.as_raw();
    if !facts.is_file() || !is_ours || !lock::try_lock(&file, path)? {
        return Ok(false);
    }
    disk::remove(path).map(|()| true)
}

/// Locks a file for as long as it is open. A file system without locks protects it from nobody, and lets nobody lock it.
fn lock(file: &File) {
    if let Err(error) = file.try_lock() {
        tracing::debug!(error = crate::error::in_full(&error), "unfinished-file-not-locked");
    }
}

fn new_name(dir: &Path) -> Result<PathBuf> {
    let random = disk::random_name()?;
    Ok(dir.join(format!("{}{}", prefix(), &random[..RANDOM_DIGITS])))
}

/// What the names of this machine's files begin with.
fn prefix() -> String {
    let read = |path: &str| -> io::Result<Vec<u8>> { std::fs::read(path) };
    let mut hash = blake3::Hasher::new();
    for path in ["/etc/machine-id", "/proc/sys/kernel/hostname"] {
        hash.update(&read(path).unwrap_or_default());
    }
    let host = &hash.finalize().to_hex()[..HOST_DIGITS];
    format!("{PREFIX}{host}-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_dead_restores_go_and_all_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let living = File::create(new_name(dir.path()).unwrap()).unwrap();
        living.lock().unwrap();
        let dead = new_name(dir.path()).unwrap();
        std::fs::write(&dead, b"half an image").unwrap();
        for name in [".backy-restore-", ".backy-restore-00000000-0123456789abcdef", "precious"] {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        let link = new_name(dir.path()).unwrap();
        std::os::unix::fs::symlink("precious", &link).unwrap();
        std::fs::create_dir(new_name(dir.path()).unwrap()).unwrap();
        assert_eq!(remove_dead(dir.path()), [dead]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 6);
        assert!(remove_dead(Path::new("/does/not/exist")).is_empty());
    }

    #[test]
    fn names_are_short() {
        let name = new_name(Path::new("")).unwrap();
        assert_eq!(name.as_os_str().len(), PREFIX.len() + HOST_DIGITS + 1 + RANDOM_DIGITS);
    }
}
