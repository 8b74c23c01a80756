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
//! written". Headers never change: after a restart of the system `image.written` is replaced, not edited.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};

use super::header::{Base, BootId, HEADER_BYTES, Header, Kind};
use super::states::{BLOCK_BYTES, PAGE_BYTES, Page, States, page_count};
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
    pub(crate) written: File,
    pub(crate) synced: File,
}

/// What was found of a disk.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) files: Files,
    pub(crate) states: States,
    /// Whether the system was started anew since the last mount.
    pub(crate) is_restarted: bool,
}

impl Files {
    /// Opens what is kept below `dir` for a disk; `None` if nothing is. Fails with `OverlayDamaged` when it is not
    /// whole or belongs to another content.
    pub(crate) fn open(dir: &Path, base: &Base, boot: &BootId) -> Result<Option<Opened>> {
        if !exists(dir)? {
            return Ok(None);
        }
        let open = |name| open_file(&dir.join(name), OpenOptions::new().read(true).write(true));
        let (data, mut written, synced) = (open(DATA)?, open(WRITTEN)?, open(SYNCED)?);
        let header = read_header(&written, &dir.join(WRITTEN), Kind::Written)?;
        check_base(&header, base, &dir.join(WRITTEN))?;
        check_base(&read_header(&synced, &dir.join(SYNCED), Kind::Synced)?, base, &dir.join(SYNCED))?;
        check_length(&data, base.size_bytes, &dir.join(DATA))?;
        let is_restarted = header.boot != *boot;
        let states = if !is_restarted {
            read_states(&written, base.size_bytes, &dir.join(WRITTEN))?
        } else {
            let states = read_states(&synced, base.size_bytes, &dir.join(SYNCED))?;
            written = renew(dir, base, boot, &states)?;
            states
        };
        Ok(Some(Opened { files: Self { dir: dir.to_owned(), data, written, synced }, states, is_restarted }))
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
        if exists(&unfinished)? {
            std::fs::remove_dir_all(&unfinished)
                .map_err(|source| Error::io("remove", &unfinished, source))?;
        }
        make_dir(&unfinished)?;
        let data = create_file(&unfinished.join(DATA))?;
        set_len(&data, base.size_bytes, &unfinished.join(DATA))?;
        sync(&data, &unfinished.join(DATA))?;
        let states = |name, kind| create_states(&unfinished.join(name), kind, base, boot, None);
        let (written, synced) = (states(WRITTEN, Kind::Written)?, states(SYNCED, Kind::Synced)?);
        sync_dir(&unfinished)?;
        rename(&unfinished, dir)?;
        sync_dir(parent)?;
        Ok(Self { dir: dir.to_owned(), data, written, synced })
    }

    /// The file of the data, for messages.
    pub(crate) fn data_path(&self) -> PathBuf {
        self.dir.join(DATA)
    }

    /// Writes some bytes of a page of the present states.
    pub(crate) fn write_states(&self, number: usize, at: usize, bytes: &[u8]) -> Result<()> {
        let written = self.written.write_all_at(bytes, place(number) + at as u64);
        written.map_err(|source| Error::io("write to", self.dir.join(WRITTEN), source))
    }

    /// Takes the space for a page of states in `image.synced`: a write may fail when the file system is full, a
    /// sync of what was written before must not.
    pub(crate) fn reserve_synced(&self, number: usize) -> Result<()> {
        // A file of states is far smaller than its disk.
        match fallocate(&self.synced, FallocateFlags::empty(), place(number) as i64, PAGE_BYTES as i64) {
            Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(()),
            Err(errno) => Err(Error::io("enlarge", self.dir.join(SYNCED), errno)),
        }
    }

    /// Makes the data durable.
    pub(crate) fn sync_data(&self) -> Result<()> {
        sync(&self.data, &self.data_path())
    }

    /// Writes pages of states whose data is durable.
    pub(crate) fn write_synced(&self, pages: &[(usize, Box<Page>)]) -> Result<()> {
        for (number, page) in pages {
            let written = self.synced.write_all_at(&page[..], place(*number));
            written.map_err(|source| Error::io("write to", self.dir.join(SYNCED), source))?;
        }
        Ok(())
    }

    /// Makes durable what [`Self::write_synced`] wrote.
    pub(crate) fn sync_synced(&self) -> Result<()> {
        sync(&self.synced, &self.dir.join(SYNCED))
    }

    /// Remembers that a sync has failed: what the kernel could not write it forgets, and a second sync succeeds.
    pub(crate) fn mark_failed(&self) {
        if let Err(error) = create_file(&self.dir.join(FAILED)) {
            tracing::error!(%error, "cannot remember that a sync failed");
        }
    }

    /// Whether a sync has failed since the system was started.
    pub(crate) fn has_failed(&self) -> Result<bool> {
        exists(&self.dir.join(FAILED))
    }
}

/// Reads how many bytes are kept as data in a directory made by [`Files::create`], without changing anything.
pub(crate) fn data_bytes(dir: &Path, boot: &BootId) -> Result<u64> {
    let open = |name| open_file(&dir.join(name), OpenOptions::new().read(true));
    let (path, file) = (dir.join(WRITTEN), open(WRITTEN)?);
    let header = read_header(&file, &path, Kind::Written)?;
    let states = if header.boot == *boot {
        read_states(&file, header.base.size_bytes, &path)?
    } else {
        read_states(&open(SYNCED)?, header.base.size_bytes, &dir.join(SYNCED))?
    };
    Ok(states.data_blocks() * BLOCK_BYTES)
}

/// Returns the space that the data of a directory takes; 0 if that cannot be found out.
pub(crate) fn allocated_bytes(dir: &Path) -> u64 {
    dir.join(DATA).symlink_metadata().map_or(0, |facts| facts.blocks() * 512)
}

/// The system was started anew, and nobody knows which pages of `image.written` and of the data reached the disk
/// before: what was synced counts. The old file stays until the new one is durable.
fn renew(dir: &Path, base: &Base, boot: &BootId, states: &States) -> Result<File> {
    // A failed sync is forgotten first: on the disk is what is there now.
    for name in [FAILED, WRITTEN_NEW] {
        remove(&dir.join(name))?;
    }
    let written = create_states(&dir.join(WRITTEN_NEW), Kind::Written, base, boot, Some(states))?;
    rename(&dir.join(WRITTEN_NEW), &dir.join(WRITTEN))?;
    sync_dir(dir)?;
    Ok(written)
}

/// Makes a file of states, durably but for its name. Without `states` nothing was written.
fn create_states(
    path: &Path,
    kind: Kind,
    base: &Base,
    boot: &BootId,
    states: Option<&States>,
) -> Result<File> {
    let file = create_file(path)?;
    set_len(&file, place(page_count(base.size_bytes)), path)?;
    let header = Header { kind, base: base.clone(), boot: *boot };
    let write =
        |bytes: &[u8], at| file.write_all_at(bytes, at).map_err(|source| Error::io("write to", path, source));
    write(&header.to_bytes(), 0)?;
    for (number, page) in states.iter().flat_map(|states| states.pages()) {
        write(page, place(number))?;
    }
    sync(&file, path)?;
    Ok(file)
}

/// Where a page of states lies in its file.
fn place(number: usize) -> u64 {
    (HEADER_BYTES + number * PAGE_BYTES) as u64
}

fn read_header(file: &File, path: &Path, kind: Kind) -> Result<Header> {
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, 0).map_err(|source| unreadable(path, source))?;
    Header::parse(&bytes, kind).map_err(|reason| Error::overlay_damaged(path, reason))
}

fn read_states(file: &File, size_bytes: u64, path: &Path) -> Result<States> {
    check_length(file, place(page_count(size_bytes)), path)?;
    let mut at = HEADER_BYTES as u64;
    let states = States::load(size_bytes, |page| {
        file.read_exact_at(page, at).map_err(|source| unreadable(path, source))?;
        at += PAGE_BYTES as u64;
        Ok::<(), Error>(())
    })?;
    states.ok_or_else(|| Error::overlay_damaged(path, "it has blocks that make no sense"))
}

fn check_base(header: &Header, base: &Base, path: &Path) -> Result<()> {
    if header.base == *base {
        return Ok(());
    }
    let reason = format!("it was made for another content of revision {}", base.revision);
    Err(Error::overlay_damaged(path, reason))
}

fn check_length(file: &File, wanted: u64, path: &Path) -> Result<()> {
    let length = file.metadata().map_err(|source| Error::io("examine", path, source))?.len();
    if length == wanted {
        return Ok(());
    }
    Err(Error::overlay_damaged(path, format!("it has {length} bytes instead of {wanted}")))
}

fn unreadable(path: &Path, source: io::Error) -> Error {
    match source.kind() {
        ErrorKind::UnexpectedEof => Error::overlay_damaged(path, "it is too short"),
        _ => Error::io("read", path, source),
    }
}

fn open_file(path: &Path, options: &mut OpenOptions) -> Result<File> {
    options.custom_flags(OFlag::O_NOFOLLOW.bits()).open(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => Error::overlay_damaged(path, "it is missing"),
        _ => Error::io("open", path, source),
    })
}

fn create_file(path: &Path) -> Result<File> {
    let created = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    created.map_err(|source| Error::io("create", path, source))
}

fn set_len(file: &File, length: u64, path: &Path) -> Result<()> {
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

fn sync(file: &File, path: &Path) -> Result<()> {
    file.sync_data().map_err(|source| Error::io("sync", path, source))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|dir| dir.sync_all());
    synced.map_err(|source| Error::io("sync", path, source))
}
