//! Open files and directories. A disk is opened once for all who read its image or its partitions at the same time.
//!
//! A directory is a copy of its listing from the moment it was opened or rewound, so that reading it piece by piece never
//! skips or repeats an entry.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use backy_store::{CHUNK_SIZE, FrameCache, Job, Revision};

use crate::disk::{Disk, DiskFile};
use crate::error::Result;
use crate::mutex::lock;
use crate::overlay::Overlay;
use crate::window::Window;

/// The largest image whose holes are counted when its size on disk is asked for: 1 TiB, some 10 ms.
pub(crate) const COUNTED_MAX_BYTES: u64 = CHUNK_SIZE << 18;

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
    Disk(Arc<DiskFile>),
    Text(Arc<Vec<u8>>),
    Directory(Listing),
}

/// A directory as it was when it was opened, or rewound for the last time.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    pub(crate) entries: Arc<Vec<DirectoryEntry>>,
    /// Whether somebody has begun to read it. Reading it from the beginning once more lists the directory again.
    pub(crate) is_begun: bool,
}

/// All that is open. Bounded by what the kernel lets processes open.
#[derive(Debug)]
pub(crate) struct Handles {
    next: AtomicU64,
    open: RwLock<HashMap<u64, Open>>,
    /// Open disks by the inode of their image.
    disks: Mutex<HashMap<u64, Weak<Disk>>>,
    /// Bytes in chunks of the files that were counted, by inode.
    data_bytes: Mutex<HashMap<u64, u64>>,
}

impl Handles {
    pub(crate) fn new() -> Self {
        Self {
            next: AtomicU64::new(1),
            open: RwLock::default(),
            disks: Mutex::default(),
            data_bytes: Mutex::default(),
        }
    }

    /// Keeps something open; returns its number, which is never used again.
    pub(crate) fn insert(&self, open: Open) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(number, open);
        number
    }

    /// Replaces what is open under a number, if it still is.
    pub(crate) fn replace(&self, number: u64, open: Open) {
        let mut all = self.open.write().unwrap_or_else(PoisonError::into_inner);
        all.entry(number).and_modify(|place| *place = open);
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

    /// Opens a disk, or joins those who have it open. `image` is the inode of its image.
    pub(crate) fn open_disk(
        &self,
        image: u64,
        job: &Job,
        revision: &Arc<Revision>,
        cache: &Arc<FrameCache>,
        overlay: Option<&Overlay>,
    ) -> Result<Arc<Disk>> {
        if let Some(disk) = self.disk(image) {
            return Ok(disk);
        }
        let disk = Arc::new(Disk::open(job, revision, cache, overlay)?);
        let mut disks = lock(&self.disks);
        disks.retain(|_, disk| disk.strong_count() > 0);
        // Two that open at once may have two readers; both are right, and they have one overlay.
        disks.insert(image, Arc::downgrade(&disk));
        Ok(disk)
    }

    /// Returns a disk that is open.
    pub(crate) fn disk(&self, image: u64) -> Option<Arc<Disk>> {
        lock(&self.disks).get(&image).and_then(Weak::upgrade)
    }

    /// Returns the bytes of the file that `window` shows that are not in holes of its revision, where they were counted or can be
    /// counted cheaply: the disk is open. `image` is the inode of its image.
    pub(crate) fn data_bytes(&self, inode: u64, image: u64, window: &Window) -> Option<u64> {
        if let Some(&bytes) = lock(&self.data_bytes).get(&inode) {
            return Some(bytes);
        }
        let disk = self.disk(image)?;
        let size = window.size_bytes();
        let bytes = if size > COUNTED_MAX_BYTES { size } else { disk.data_bytes(window).ok()? };
        lock(&self.data_bytes).insert(inode, bytes);
        Some(bytes)
    }
}
