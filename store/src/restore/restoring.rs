//! Which places outside the store restores are filling: a file `.restoring-<id>` in the store's directory for each, with
//! the name of the place and the number of its own inode in it.
//!
//! The file is there, durably, before the place is made, and goes after the place was finished or removed. It is locked
//! by the restore for all its life, and by every program that the restore starts, because the lock goes with the open
//! file that they inherit: while anything can still work on the place, the note is locked. So a note that can be locked
//! names what a dead restore has left, and neither a pid nor a clock has to be believed. A copy of a note, as in a store
//! that was copied during a restore, can be locked by anybody: it is another inode than it says, and names nothing. The
//! store knows nothing of the places themselves.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::error::{Context, Error, Result};
use crate::fs::disk;
use crate::fs::lock;
use crate::repository::Repository;
use crate::revision::RevisionId;

/// What the names of notes begin with. No job's name begins with a dot.
const PREFIX: &str = ".restoring-";
/// Longest note that is read.
const NOTE_BYTES_MAX: u64 = 4096;
/// How often a new note is begun again.
const CREATIONS_MAX: usize = 10;

/// The right to the place that a note names: nobody else has it. Dropping it gives up the right and leaves the note.
#[derive(Debug)]
pub struct RestoreNote {
    path: PathBuf,
    _file: File,
}

/// A note that was found.
#[derive(Debug)]
pub struct FoundRestore {
    /// The place.
    pub place: String,
    /// The right to it if its restore is dead; `None` while it lives.
    pub dead: Option<RestoreNote>,
}

impl RestoreNote {
    /// Removes the note: nothing is left of the place, or it is finished.
    pub fn remove(self) -> Result<()> {
        disk::remove(&self.path)
    }
}

impl Repository {
    /// Notes, durably, that a restore is about to make `place`. Programs started from now on hold the lock as well.
    pub fn note_restore(&self, id: &RevisionId, place: &str) -> Result<RestoreNote> {
        self.check_ours()?;
        let path = self.root().join(format!("{PREFIX}{id}"));
        let file = create(&path)?;
        if let Err(error) = write(&file, &path, place, self.root()) {
            drop(disk::remove(&path));
            return Err(error);
        }
        Ok(RestoreNote { path, _file: file })
    }

    /// Finds all notes. What a restore left that died while it wrote its note, before it made anything, is removed.
    pub fn noted_restores(&self) -> Result<Vec<FoundRestore>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.root()).context("list", self.root())? {
            let entry = entry.context("list", self.root())?;
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX)) {
                found.extend(look_at(entry.path())?);
            }
        }
        Ok(found)
    }
}

/// Makes a file and locks it, for this process and those that it starts.
fn create(path: &Path) -> Result<File> {
    for _ in 0..CREATIONS_MAX {
        let file = disk::create_new(path)?;
        file.lock().context("lock", path)?;
        // Between both somebody may have found it empty and unlocked, and removed it.
        if is_linked(&file, path)? {
            fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).context("keep open", path)?;
            return Ok(file);
        }
    }
    Err(Error::Locked { what: path.display().to_string() })
}

fn is_linked(file: &File, path: &Path) -> Result<bool> {
    Ok(file.metadata().context("examine", path)?.nlink() > 0)
}

fn write(file: &File, path: &Path, place: &str, root: &Path) -> Result<()> {
    let inode = file.metadata().context("examine", path)?.ino();
    disk::append(file, format!("{place}\n{inode}\n").as_bytes(), path)?;
    disk::sync_file(file, path)?;
    disk::sync_dir(root)
}

/// Reads one note; `None` if it is not whole, a copy, or gone by now.
fn look_at(path: PathBuf) -> Result<Option<FoundRestore>> {
    let file = match disk::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.context("open", &path)?,
    };
    // Locked before it is read: what a dead restore wrote does not change any more.
    let is_dead = lock::try_lock(&file, &path)?;
    let Some(text) = disk::read_text(&file, &path, NOTE_BYTES_MAX)? else { return Ok(None) };
    // Its restore may have come to its end between the listing and the lock.
    let facts = file.metadata().context("examine", &path)?;
    if facts.nlink() == 0 {
        return Ok(None);
    }
    let dead = is_dead.then_some(RestoreNote { path, _file: file });
    match parse(&text) {
        Some((_, inode)) if inode != facts.ino() => Ok(None),
        Some((place, _)) => Ok(Some(FoundRestore { place: place.to_owned(), dead })),
        // The place is made only after the whole note is durable.
        None => match dead.map_or(Ok(()), RestoreNote::remove) {
            // It says nothing, so it can as well stay.
            Err(error) if error.is_unwritable() => Ok(None),
            other => other.map(|()| None),
        },
    }
}

/// Takes place and inode out of a note that is whole.
fn parse(text: &str) -> Option<(&str, u64)> {
    let (place, inode) = text.strip_suffix('\n')?.split_once('\n')?;
    Some((place, inode.parse().ok()?)).filter(|_| !place.is_empty())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::testing::new_job;

    fn places(store: &Repository) -> Vec<(String, bool)> {
        let found = store.noted_restores().unwrap();
        found.into_iter().map(|found| (found.place, found.dead.is_some())).collect()
    }

    #[test]
    fn a_note_is_of_the_living_until_its_owner_and_its_programs_are_gone() {
        let (_dir, job) = new_job("web01");
        let store = job.repository();
        let note = store.note_restore(&RevisionId::from_bits(1), "rbd/a").unwrap();
        assert_eq!(places(store), [("rbd/a".to_owned(), false)]);
        assert_eq!(store.job_names().unwrap().len(), 1, "it is no job");
        // A copy is nobody's, though nobody has it locked.
        let copy = store.root().join(format!("{PREFIX}copy"));
        std::fs::copy(&note.path, &copy).unwrap();
        assert_eq!(places(store), [("rbd/a".to_owned(), false)]);
        drop(note);
        assert_eq!(places(store), [("rbd/a".to_owned(), true)]);
        let mut found = store.noted_restores().unwrap();
        assert_eq!(places(store), [("rbd/a".to_owned(), false)], "one alone may deal with it");
        found.pop().unwrap().dead.unwrap().remove().unwrap();
        assert!(places(store).is_empty());
        assert!(copy.exists(), "it is left alone");
        // Programs that it has started keep it alive. Not in a test of its own: they inherit what others lock, too.
        let note = store.note_restore(&RevisionId::from_bits(2), "rbd/b").unwrap();
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        drop(note);
        assert_eq!(places(store), [("rbd/b".to_owned(), false)]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(places(store), [("rbd/b".to_owned(), true)]);
    }

    #[test]
    fn what_is_no_whole_note_names_nothing() {
        let (_dir, job) = new_job("web01");
        let path = |name: &str| job.repository().root().join(format!("{PREFIX}{name}"));
        let cases = [
            ("a", &b""[..], false),
            ("b", b"rbd/cut", false),
            ("c", b"\xff\n", true),
            ("d", b"\n", false),
            ("f", b"rbd/cut\n", false),
            ("g", b"rbd/cut\n1", false),
            ("h", b"\n1\n", false),
            ("i", b"rbd/of-another-inode\n1\n", true),
        ];
        for (name, bytes, _) in cases {
            std::fs::write(path(name), bytes).unwrap();
        }
        let unfinished = create(&path("e")).unwrap();
        assert!(places(job.repository()).is_empty());
        for (name, _, stays) in cases {
            assert_eq!(path(name).exists(), stays, "{name}");
        }
        assert!(path("e").exists(), "its restore lives");
        drop(unfinished);
    }
}
