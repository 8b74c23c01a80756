//! Open files and directories. An image has one [`RevisionReader`] for all who have it open at the same time;
//! while it is open its revision's chunks stay, whatever is forgotten and purged.
//!
//! A directory is a copy of its listing from the moment it was opened, so that reading it piece by piece never
//! skips or repeats an entry.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use backy_store::{CHUNK_SIZE, FrameCache, Job, Result, Revision, RevisionReader};

/// The largest image whose holes are counted when its size on disk is asked for: 1 TiB, some 10 ms.
const COUNTED_MAX_BYTES: u64 = CHUNK_SIZE << 18;

/// An image that is open.
#[derive(Debug)]
pub(crate) struct OpenImage {
    pub(crate) job: Job,
    pub(crate) revision: Arc<Revision>,
    pub(crate) reader: RevisionReader,
}

/// One entry of an open directory.
#[derive(Clone, Debug)]
pub(crate) struct DirectoryEntry {
    pub(crate) inode: u64,
    pub(crate) kind: Kind,
    pub(crate) name: String,
}

/// What sort of file an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    Link,
    File,
}

/// Something that is open.
#[derive(Clone, Debug)]
pub(crate) enum Open {
    Image(Arc<OpenImage>),
    Text(Arc<Vec<u8>>),
    Directory(Arc<Vec<DirectoryEntry>>),
}

/// All that is open. Bounded by what the kernel lets processes open.
#[derive(Debug)]
pub(crate) struct Handles {
    next: AtomicU64,
    open: RwLock<HashMap<u64, Open>>,
    /// Open images by inode.
    images: Mutex<HashMap<u64, Weak<OpenImage>>>,
    /// Bytes in chunks of the images that were counted, by inode.
    data_bytes: Mutex<HashMap<u64, u64>>,
}

impl Handles {
    pub(crate) fn new() -> Self {
        Self {
            next: AtomicU64::new(1),
            open: RwLock::default(),
            images: Mutex::default(),
            data_bytes: Mutex::default(),
        }
    }

    /// Keeps something open; returns its number, which is never used again.
    pub(crate) fn insert(&self, open: Open) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(number, open);
        number
    }

    /// Returns what is open under a number.
    pub(crate) fn get(&self, number: u64) -> Option<Open> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    /// Closes what is open under a number.
    pub(crate) fn remove(&self, number: u64) {
        let closed = self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&number);
        // Ending a reader's session touches the disk: not under the lock.
        drop(closed);
    }

    /// Opens an image, or joins those who have it open.
    pub(crate) fn open_image(
        &self,
        inode: u64,
        job: &Job,
        revision: &Arc<Revision>,
        cache: &Arc<FrameCache>,
    ) -> Result<Arc<OpenImage>> {
        if let Some(image) = self.image(inode) {
            return Ok(image);
        }
        let reader = job.open_revision(revision, cache)?;
        let image = Arc::new(OpenImage { job: job.clone(), revision: Arc::clone(revision), reader });
        let mut images = lock(&self.images);
        images.retain(|_, image| image.strong_count() > 0);
        // Two that open at once may have two readers; both are right.
        images.insert(inode, Arc::downgrade(&image));
        Ok(image)
    }

    /// Returns an image that is open.
    pub(crate) fn image(&self, inode: u64) -> Option<Arc<OpenImage>> {
        lock(&self.images).get(&inode).and_then(Weak::upgrade)
    }

    /// Returns the bytes of an image that are not in holes, where they were counted or can be counted cheaply:
    /// the image is open.
    pub(crate) fn data_bytes(&self, inode: u64) -> Option<u64> {
        if let Some(&bytes) = lock(&self.data_bytes).get(&inode) {
            return Some(bytes);
        }
        let image = self.image(inode)?;
        let size = image.reader.size_bytes();
        let bytes = if size > COUNTED_MAX_BYTES { size } else { image.reader.data_bytes().ok()? };
        lock(&self.data_bytes).insert(inode, bytes);
        Some(bytes)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
