//! The files of one overlaid disk, in a directory of their own:
//!
//! ```text
//! image.data      what was written, sparse, at the offsets of the disk
//! image.written   the states of the blocks at this moment
//! image.synced    the states at the last sync, written after the data of that moment was made durable
//! image.failed    a sync has failed: until the next start of the system none is believed
//! ```
//!
//! The directory appears complete, by a rename, so a file that is missing is damage and never taken for "nothing
//! written". Headers never change: after a restart of the system `image.written` is replaced, not edited, and not
//! before somebody writes, so that a full file system can be opened and read.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};

use super::header::{Base, BootId, Header, Kind};
use super::owner;
use super::sheets::{self, check_length, place, read_header};
use super::states::{PAGE_BYTES, Sheet, States};
use crate::error::{Error, Result};

const DATA: &str = "image.data";
const WRITTEN: &str = "image.written";
const WRITTEN_NEW: &str = "image.written.new";
const SYNCED: &str = "image.synced";
const FAILED: &str = "image.failed";

/// Before a directory is complete; a revision's id never begins like this.
const UNFINISHED_PREFIX: &str = ".unfinished-";

/// The open files of one disk.
#[derive(Debug)]
pub(crate) struct Files {
    dir: PathBuf,
    pub(crate) data: File,
    /// Not there as long as `image.written` is not to be believed and nothing was written since.
    written: OnceLock<File>,
    synced: File,
}

/// What was found of a disk.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) files: Files,
    pub(crate) states: States,
    /// Pages in which `image.synced` is behind; `None` if only that file is to be believed, for instance because the
    /// system was started anew since the last mount.
    pub(crate) unsynced: Option<BTreeSet<usize>>,
}

impl Files {
    /// Opens what is kept below `dir` for a disk; `None` if nothing is. Fails with `OverlayDamaged` when it is not
    /// whole or belongs to another content.
    pub(crate) fn open(dir: &Path, base: &Base, boot: &BootId) -> Result<Option<Opened>> {
        let parent = dir.parent().unwrap_or(dir);
        if !exists(parent)? {
            return Ok(None);
        }
        owner::check_dir(parent)?;
        if !exists(dir)? {
            return Ok(None);
        }
        owner::check_dir(dir)?;
        let open = |name| open_file(&dir.join(name));
        let (data, written, synced) = (open(DATA)?, open(WRITTEN)?, open(SYNCED)?);
        let header = read_header(&written, &dir.join(WRITTEN), Kind::Written)?;
        check_base(&header, base, &dir.join(WRITTEN))?;
        check_base(&read_header(&synced, &dir.join(SYNCED), Kind::Synced)?, base, &dir.join(SYNCED))?;
        check_length(&data, base.size_bytes, &dir.join(DATA))?;
        let mut states = sheets::read(&synced, base.size_bytes, &dir.join(SYNCED))?;
        let mut unsynced = None;
        if header.boot == *boot {
            let path = dir.join(WRITTEN);
            let found = sheets::read(&written, base.size_bytes, &path)?;
            if found.can_follow(&states) {
                unsynced = Some(found.differing(&states));
                states = found;
            } else {
                // The boot id does not show that the device was lost and came back while the system ran.
                tracing::warn!(path = %path.display(), "it is older than the last sync: what was not synced is lost");
            }
        }
        let written = if unsynced.is_some() { OnceLock::from(written) } else { OnceLock::new() };
        let files = Self { dir: dir.to_owned(), data, written, synced };
        Ok(Some(Opened { files, states, unsynced }))
    }

    /// Makes the files of a disk of which nothing was written yet, durably.
    pub(crate) fn create(dir: &Path, base: &Base, boot: &BootId) -> Result<Self> {
        let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
            return Err(Error::overlay_damaged(dir, "its path makes no sense"));
        };
        let mut unfinished = std::ffi::OsString::from(UNFINISHED_PREFIX);
        unfinished.push(name);
        let unfinished = parent.join(unfinished);
        make_dir(parent)?;
        owner::check_dir(parent)?;
        if exists(&unfinished)? {
            std::fs::remove_dir_all(&unfinished)
                .map_err(|source| Error::io("remove", &unfinished, source))?;
        }
        make_dir(&unfinished)?;
        let data = create_file(&unfinished.join(DATA))?;
        set_len(&data, base.size_bytes, &unfinished.join(DATA))?;
        sync(&data, &unfinished.join(DATA))?;
        let states = |name, kind| sheets::create(&unfinished.join(name), kind, base, boot, None);
        let (written, synced) = (states(WRITTEN, Kind::Written)?, states(SYNCED, Kind::Synced)?);
        sync_dir(&unfinished)?;
        rename(&unfinished, dir)?;
        sync_dir(parent)?;
        Ok(Self { dir: dir.to_owned(), data, written: OnceLock::from(written), synced })
    }

    /// Whether `image.written` is of this start of the system, so that it can be written.
    pub(crate) fn is_renewed(&self) -> bool {
        self.written.get().is_some()
    }

    /// Makes `image.written` anew from the states at the last sync, before the first write after a restart of the
    /// system: nobody knows which pages of the old one and of the data reached the disk. The old file stays until the
    /// new one is durable. Not to be called by two at once.
    pub(crate) fn renew(&self, base: &Base, boot: &BootId, states: &States) -> Result<()> {
        // A failed sync is forgotten first: on the disk is what is there now. Were it the other way round, somebody
        // who is killed in between would leave a mark that says that a sync of this start has failed.
        for name in [FAILED, WRITTEN_NEW] {
            remove(&self.dir.join(name))?;
        }
        let new = self.dir.join(WRITTEN_NEW);
        let written = sheets::create(&new, Kind::Written, base, boot, Some(states))?;
        rename(&new, &self.dir.join(WRITTEN))?;
        sync_dir(&self.dir)?;
        drop(self.written.set(written));
        Ok(())
    }

    /// The file of the data, for messages.
    pub(crate) fn data_path(&self) -> PathBuf {
        self.dir.join(DATA)
    }

    fn written(&self) -> Result<&File> {
        let not_renewed = || Error::overlay_damaged(&self.dir.join(WRITTEN), "it was not made anew");
        self.written.get().ok_or_else(not_renewed)
    }

    /// Writes some bytes of a page of the present states.
    pub(crate) fn write_states(&self, number: usize, at: usize, bytes: &[u8]) -> Result<()> {
        let written = self.written()?.write_all_at(bytes, place(number) + at as u64);
        written.map_err(|source| Error::io("write to", self.dir.join(WRITTEN), source))
    }

    /// Writes pages of the present states.
    pub(crate) fn write_pages(&self, sheets: impl IntoIterator<Item = Sheet>) -> Result<()> {
        sheets::write(self.written()?, &self.dir.join(WRITTEN), sheets)
    }

    /// Takes the space for pages of states: a write may fail when the file system is full, a sync of what was
    /// written before must not.
    pub(crate) fn reserve(&self, numbers: Range<usize>) -> Result<()> {
        let length = (numbers.len() * PAGE_BYTES) as i64;
        for (file, name) in [(self.written()?, WRITTEN), (&self.synced, SYNCED)] {
            // A file of states is far smaller than its disk.
            match fallocate(file, FallocateFlags::empty(), place(numbers.start) as i64, length) {
                Ok(()) | Err(Errno::EOPNOTSUPP) => {}
                Err(errno) => return Err(Error::io("enlarge", self.dir.join(name), errno)),
            }
        }
        Ok(())
    }

    /// Makes the data durable.
    pub(crate) fn sync_data(&self) -> Result<()> {
        sync(&self.data, &self.data_path())
    }

    /// Writes pages of states whose data is durable.
    pub(crate) fn write_synced(&self, sheets: &[Sheet]) -> Result<()> {
        sheets::write(&self.synced, &self.dir.join(SYNCED), sheets.iter().cloned())
    }

    /// Makes durable what [`Self::write_synced`] wrote.
    pub(crate) fn sync_synced(&self) -> Result<()> {
        sync(&self.synced, &self.dir.join(SYNCED))
    }

    /// Makes the present states durable. No sync needs it; it is for a file system that is taken away and comes back
    /// while the system runs.
    pub(crate) fn sync_written(&self) -> Result<()> {
        self.written.get().map_or(Ok(()), |written| sync(written, &self.dir.join(WRITTEN)))
    }

    /// Remembers that a sync has failed: what the kernel could not write it forgets, and a second sync succeeds.
    pub(crate) fn mark_failed(&self) {
        if let Err(error) = create_file(&self.dir.join(FAILED)) {
            tracing::error!(
                error = backy_store::error::in_full(&error),
                "cannot remember that a sync failed"
            );
        }
    }

    /// Whether a sync has failed since the system was started.
    pub(crate) fn has_failed(&self) -> Result<bool> {
        Ok(self.is_renewed() && exists(&self.dir.join(FAILED))?)
    }
}

/// Reads for which disk a directory was made by [`Files::create`].
pub(crate) fn base(dir: &Path) -> Result<Base> {
    owner::check_dir(dir)?;
    let path = dir.join(WRITTEN);
    let base = read_header(&open_file(&path)?, &path, Kind::Written)?.base;
    // Before anybody takes memory for a disk of this size.
    check_length(&open_file(&dir.join(DATA))?, base.size_bytes, &dir.join(DATA))?;
    Ok(base)
}

/// Returns the space that the data of a directory takes; 0 if that cannot be found out.
pub(crate) fn allocated_bytes(dir: &Path) -> u64 {
    dir.join(DATA).symlink_metadata().map_or(0, |facts| facts.blocks() * 512)
}

fn check_base(header: &Header, base: &Base, path: &Path) -> Result<()> {
    if header.base == *base {
        return Ok(());
    }
    let reason = format!("it was made for another content of revision {}", base.revision);
    Err(Error::overlay_damaged(path, reason))
}

/// Opens one of the files, which must be ours; whatever lies there instead is not waited for.
fn open_file(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
    let file = options.open(path).map_err(|source| match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => Error::overlay_damaged(path, "it is missing"),
        // A link, or something that cannot be opened.
        Some(Errno::ELOOP | Errno::ENXIO) => Error::overlay_damaged(path, "it is no regular file"),
        _ => Error::io("open", path, source),
    })?;
    let facts = file.metadata().map_err(|source| Error::io("examine", path, source))?;
    owner::check_file(&facts, path).map(|()| file)
}

pub(super) fn create_file(path: &Path) -> Result<File> {
    let created = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    created.map_err(|source| Error::io("create", path, source))
}

pub(super) fn set_len(file: &File, length: u64, path: &Path) -> Result<()> {
    file.set_len(length).map_err(|source| Error::io("enlarge", path, source))
}

/// Makes a directory for the owner alone, durably, unless it is there.
fn make_dir(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(Error::io("create", path, error)),
        // Who made it before may have died before it was durable.
        _ => path.parent().map_or(Ok(()), sync_dir),
    }
}

fn exists(path: &Path) -> Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("examine", path, error)),
    }
}

#[expect(clippy::disallowed_methods, reason = "an overlay is no part of a store")]
fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|source| Error::io("rename", from, source))
}

#[expect(clippy::disallowed_methods, reason = "an overlay is no part of a store")]
fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

pub(super) fn sync(file: &File, path: &Path) -> Result<()> {
    file.sync_data().map_err(|source| Error::io("sync", path, source))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|dir| dir.sync_all());
    synced.map_err(|source| Error::io("sync", path, source))
}
