//! Writes to mounted images, kept in a directory beside the store: the revisions themselves never change.
//!
//! ```text
//! DIR/.lock                          one mount at a time
//! DIR/web01/7Qk2mB9xTfLw4RzHc8NvYe/  what was written to this image, `files.rs`
//! ```
//!
//! An image behaves like a disk with a volatile cache. What was written is there when the process that serves the
//! mount is killed; what was synced is there after a power failure, and every block that was not is old or new,
//! never anything else. Where an overlay does not fit its image the image cannot be opened, for without
//! it people would see what they had overwritten.

pub(crate) mod disk;
mod edge;
mod files;
mod header;
mod space;
mod states;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use backy_store::{ChunkId, JobName, Revision, RevisionId};
use nix::fcntl::OFlag;

use self::disk::OverlayDisk;
use self::header::{Base, BootId};
use self::space::Space;
pub(crate) use self::states::State;
use crate::error::{Error, Result};

const LOCK: &str = ".lock";

/// Marks the root of a store.
const STORE_MARK: &str = "backy.store";

/// Names this start of the system: as long as it stays the same, what was written is at least in memory.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The overlay of a mount. Dropping it syncs what was written.
#[derive(Debug)]
pub(crate) struct Overlay {
    dir: PathBuf,
    boot: BootId,
    space: Arc<Space>,
    /// One for each disk: two would not know of each other's writes. Those that hold files stay to the end.
    disks: Mutex<HashMap<(JobName, RevisionId), Arc<OverlayDisk>>>,
    /// Locked as long as the mount lives.
    _lock: File,
}

impl Overlay {
    /// Opens the overlay in `dir`, or makes an empty one there if its parent exists. No more than `max_bytes` may be
    /// kept as data, with what is there already. `mountpoint` is absolute.
    pub(crate) fn open(dir: &Path, max_bytes: Option<u64>, mountpoint: &Path) -> Result<Self> {
        Self::open_in(dir, max_bytes, mountpoint, boot_id()?)
    }

    fn open_in(dir: &Path, max_bytes: Option<u64>, mountpoint: &Path, boot: BootId) -> Result<Self> {
        let dir = prepare(dir, mountpoint)?;
        let lock = lock(&dir)?;
        let used_bytes = used_bytes(&dir, &boot)?;
        tracing::info!(overlay = %dir.display(), used_bytes, max_bytes, "images can be written");
        let space = Arc::new(Space::new(used_bytes, max_bytes));
        Ok(Self { dir, boot, space, disks: Mutex::default(), _lock: lock })
    }

    /// Returns what is kept of the disk of a revision. Fails with `OverlayDamaged` when it does not fit.
    pub(crate) fn disk(
        &self,
        job: &JobName,
        revision: &Revision,
        size_bytes: u64,
    ) -> Result<Arc<OverlayDisk>> {
        let dir = self.dir.join(job.as_str()).join(revision.id.as_str());
        let seal = revision.map_seal.as_deref().and_then(ChunkId::parse);
        let seal = seal.ok_or_else(|| Error::overlay_damaged(&dir, "its revision has no seal"))?;
        let base = Base { revision: revision.id.clone(), seal, size_bytes };
        let key = (job.clone(), revision.id.clone());
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(disk) = disks.get(&key) {
            if disk.base != base {
                return Err(Error::overlay_damaged(&dir, "the revision's content has changed"));
            }
            return Ok(Arc::clone(disk));
        }
        disks.retain(|_, disk| disk.is_kept() || Arc::strong_count(disk) > 1);
        let disk = Arc::new(OverlayDisk::open(dir, base, self.boot, Arc::clone(&self.space))?);
        disks.insert(key, Arc::clone(&disk));
        Ok(disk)
    }

    /// Bytes that were written to the disk of a revision, which need not be open: then it is the space they take.
    pub(crate) fn written_bytes(&self, job: &JobName, revision: &RevisionId) -> u64 {
        let key = (job.clone(), revision.clone());
        let disk = self.disks.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        disk.map_or_else(
            || files::allocated_bytes(&self.dir.join(job.as_str()).join(revision.as_str())),
            |disk| disk.data_bytes(),
        )
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let disks = self.disks.get_mut().unwrap_or_else(PoisonError::into_inner);
        for disk in disks.values() {
            if let Err(error) = disk.sync() {
                tracing::error!(cause = %failure(&error), "cannot sync what was written to an image");
            }
        }
        tracing::debug!(used_bytes = self.space.used_bytes(), "the overlay is closed");
    }
}

/// An error with its cause, for the log.
pub(crate) fn failure(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Checks where an overlay shall lie and makes the directory; returns it as an absolute path.
fn prepare(dir: &Path, mountpoint: &Path) -> Result<PathBuf> {
    let absolute = absolute(dir)?;
    let refused = |reason: String| Err(Error::overlay_refused(dir, reason));
    if absolute.starts_with(mountpoint) || mountpoint.starts_with(&absolute) {
        return refused("it and the mount point lie inside each other; choose another directory".to_owned());
    }
    if let Some(store) = absolute.ancestors().find(|dir| dir.join(STORE_MARK).exists()) {
        return refused(format!("it lies inside the store {}; choose a directory outside", store.display()));
    }
    match DirBuilder::new().mode(0o700).create(&absolute) {
        Ok(()) => {
            if let Some(parent) = absolute.parent() {
                files::sync_dir(parent)?;
            }
            Ok(absolute)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            if !absolute.is_dir() {
                return refused("it is not a directory".to_owned());
            }
            // Jobs get directories here, which must not mix with what somebody else keeps.
            let is_empty = std::fs::read_dir(&absolute).is_ok_and(|mut entries| entries.next().is_none());
            if !is_empty && !absolute.join(LOCK).exists() {
                return refused(
                    "it is not empty and holds no overlay; name an empty or a new directory".to_owned(),
                );
            }
            Ok(absolute)
        }
        Err(error) => Err(Error::io("create", &absolute, error)),
    }
}

/// Makes a path absolute, whose last component need not exist.
fn absolute(dir: &Path) -> Result<PathBuf> {
    let resolved = dir.canonicalize().or_else(|error| match (dir.parent(), dir.file_name()) {
        (Some(parent), Some(name)) if error.kind() == ErrorKind::NotFound => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(parent.canonicalize()?.join(name))
        }
        _ => Err(error),
    });
    resolved.map_err(|source| match source.kind() {
        ErrorKind::NotFound => {
            Error::overlay_refused(dir, "the directory above it does not exist; make it first")
        }
        _ => Error::io("open", dir, source),
    })
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let opened = options.custom_flags(OFlag::O_NOFOLLOW.bits()).open(&path);
    let file = opened.map_err(|source| Error::io("open", &path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::overlay_refused(
            dir,
            "another mount uses it; unmount that one or name another directory",
        )),
        Err(TryLockError::Error(source)) => Err(Error::io("lock", &path, source)),
    }
}

/// Bytes that are kept as data in a directory. What cannot be read is counted by the space it takes.
fn used_bytes(dir: &Path, boot: &BootId) -> Result<u64> {
    let mut sum = 0u64;
    for job in subdirectories(dir)? {
        for disk in subdirectories(&job)? {
            sum = sum.saturating_add(files::data_bytes(&disk, boot).unwrap_or_else(|error| {
                tracing::warn!(cause = %failure(&error), "an overlay cannot be used; its image will not open");
                files::allocated_bytes(&disk)
            }));
        }
    }
    Ok(sum)
}

/// The directories in a directory but for hidden ones, which are unfinished or not ours.
fn subdirectories(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = |source| Error::io("list", dir, source);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_dir = entry.file_type().map_err(failed)?.is_dir();
        if is_dir && !OsStr::as_encoded_bytes(&entry.file_name()).starts_with(b".") {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn boot_id() -> Result<BootId> {
    let text = std::fs::read_to_string(BOOT_ID).map_err(|source| Error::io("read", BOOT_ID, source))?;
    let id = text.trim_end().as_bytes();
    id.try_into().map_err(|_| Error::io("understand", BOOT_ID, std::io::Error::from(ErrorKind::InvalidData)))
}
