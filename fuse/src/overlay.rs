//! Writes to mounted images, kept in a directory beside the store: the revisions themselves never change.
//!
//! ```text
//! DIR/.lock                          one mount at a time; holds its mount point
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
mod lock;
mod owner;
mod sheets;
mod space;
mod states;
pub(crate) mod syncers;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use self::disk::OverlayDisk;
use self::header::{Base, BootId};
use self::lock::{LOCK, LOCK_WAIT, lock};
use self::space::Space;
pub(crate) use self::states::State;
use crate::error::{Error, Result};
use crate::mutex;
use backy_store::{ChunkId, JobName, Revision, RevisionId};

/// Marks the root of a store.
const STORE_MARK: &str = "backy.store";

/// Names this start of the system: as long as it stays the same, what was written is at least in memory.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The overlay of a mount; clones are the same one. [`Overlay::finish`] must be called at the end.
#[derive(Clone, Debug)]
pub(crate) struct Overlay(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    boot: BootId,
    space: Arc<Space>,
    /// One for each disk: two would not know of each other's writes. Those that hold files stay to the end.
    disks: Mutex<HashMap<Key, Arc<Place>>>,
    /// Locked as long as the mount lives.
    _lock: File,
}

type Key = (JobName, RevisionId);

/// Where the disk of a revision is, once it was opened. Locked by who opens it, so that nobody waits for another disk.
type Place = Mutex<Option<Arc<OverlayDisk>>>;

impl Overlay {
    /// Opens the overlay in `dir`, or makes an empty one there if its parent exists. No more than `max_bytes` may be
    /// kept as data, with what is there already. `mountpoint` is absolute.
    pub(crate) fn open(dir: &Path, max_bytes: Option<u64>, mountpoint: &Path) -> Result<Self> {
        Self::open_in(dir, max_bytes, mountpoint, boot_id()?, LOCK_WAIT)
    }

    fn open_in(
        dir: &Path,
        max_bytes: Option<u64>,
        mountpoint: &Path,
        boot: BootId,
        lock_wait: Duration,
    ) -> Result<Self> {
        let dir = prepare(dir, mountpoint)?;
        let lock = lock(&dir, mountpoint, lock_wait)?;
        let space = Arc::new(Space::new(max_bytes));
        take_over(&dir, &boot, &space)?;
        tracing::info!(overlay = %dir.display(), used_bytes = space.used_bytes(), max_bytes, "images can be written");
        Ok(Self(Arc::new(Inner { dir, boot, space, disks: Mutex::default(), _lock: lock })))
    }

    /// Returns what is kept of the disk of a revision. Fails with `OverlayDamaged` when it does not fit.
    pub(crate) fn disk(
        &self,
        job: &JobName,
        revision: &Revision,
        size_bytes: u64,
    ) -> Result<Arc<OverlayDisk>> {
        let Inner { dir, boot, space, .. } = &*self.0;
        let dir = dir.join(job.as_str()).join(revision.id.as_str());
        let seal = revision.map_seal.as_deref().and_then(ChunkId::parse);
        let seal = seal.ok_or_else(|| Error::overlay_damaged(&dir, "its revision has no seal"))?;
        let base = Base { revision: revision.id.clone(), seal, size_bytes };
        let place = self.place((job.clone(), revision.id.clone()));
        let mut place = mutex::lock(&place);
        if let Some(disk) = &*place {
            if disk.base != base {
                return Err(Error::overlay_damaged(&dir, "the revision's content has changed"));
            }
            return Ok(Arc::clone(disk));
        }
        let disk = Arc::new(OverlayDisk::open(dir, base, *boot, Arc::clone(space))?);
        *place = Some(Arc::clone(&disk));
        Ok(disk)
    }

    /// Bytes that were written to the disk of a revision, which need not be open: then it is the space they take.
    pub(crate) fn written_bytes(&self, job: &JobName, revision: &RevisionId) -> u64 {
        let place = mutex::lock(&self.0.disks).get(&(job.clone(), revision.clone())).cloned();
        let disk = place.and_then(|place| mutex::lock(&place).clone());
        disk.map_or_else(
            || files::allocated_bytes(&self.0.dir.join(job.as_str()).join(revision.as_str())),
            |disk| disk.data_bytes(),
        )
    }

    /// Returns where a disk is or will be. Waits for no disk.
    fn place(&self, key: Key) -> Arc<Place> {
        let mut places = mutex::lock(&self.0.disks);
        // Who opens a disk holds its place.
        places.retain(|_, place| {
            let is_used = |disk: &Arc<OverlayDisk>| disk.is_kept() || Arc::strong_count(disk) > 1;
            Arc::strong_count(place) > 1 || mutex::lock(place).as_ref().is_some_and(is_used)
        });
        Arc::clone(places.entry(key).or_default())
    }

    /// Makes durable what was written to all disks; goes on after an error and returns the first.
    pub(crate) fn sync(&self) -> Result<()> {
        self.each_disk(OverlayDisk::sync)
    }

    /// Like [`Self::sync`], at the end of the mount.
    pub(crate) fn finish(&self) -> Result<()> {
        let finished = self.each_disk(OverlayDisk::finish);
        tracing::debug!(used_bytes = self.0.space.used_bytes(), "the overlay is closed");
        finished
    }

    fn each_disk(&self, what: impl Fn(&OverlayDisk) -> Result<()>) -> Result<()> {
        let places: Vec<_> = mutex::lock(&self.0.disks).values().cloned().collect();
        let mut all = Ok(());
        for place in places {
            let disk = mutex::lock(&place).clone();
            if let Some(Err(error)) = disk.map(|disk| what(&disk)) {
                tracing::error!(cause = %failure(&error), "cannot sync what was written to an image");
                all = all.and(Err(error));
            }
        }
        all
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
    let check_owner = || match owner::objection(&absolute)? {
        Some(objection) => {
            Err(Error::overlay_refused(dir, format!("{objection}; name a directory of your own")))
        }
        None => Ok(()),
    };
    // Without a slash at the end, which would follow a link.
    let named: PathBuf = dir.components().collect();
    if named.is_symlink() {
        return refused(format!("it is a symbolic link; name {} if that is meant", absolute.display()));
    }
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
            check_owner()?;
            Ok(absolute)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            check_owner()?;
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

/// Counts what is kept in a directory, and syncs what a process that was killed has not. What cannot be read is counted
/// by the space it takes.
fn take_over(dir: &Path, boot: &BootId, space: &Arc<Space>) -> Result<()> {
    for job in subdirectories(dir)? {
        for dir in subdirectories(&job)? {
            let opened = files::base(&dir)
                .and_then(|base| OverlayDisk::open(dir.clone(), base, *boot, Arc::clone(space)));
            let used_bytes = opened.map(|disk| {
                if let Err(error) = disk.sync() {
                    tracing::error!(cause = %failure(&error), "cannot sync what was written to an image");
                }
                disk.data_bytes()
            });
            space.count(used_bytes.unwrap_or_else(|error| {
                tracing::warn!(cause = %failure(&error), "an overlay cannot be used; its image will not open");
                files::allocated_bytes(&dir)
            }));
        }
    }
    Ok(())
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
