//! How much an overlay may hold, over all disks of a mount.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Bytes in use, and how many there may be.
#[derive(Debug)]
pub(crate) struct Space {
    used_bytes: AtomicU64,
    max_bytes: Option<u64>,
}

impl Space {
    /// Makes a space of which nothing is in use.
    pub(crate) fn new(max_bytes: Option<u64>) -> Self {
        Self { used_bytes: AtomicU64::new(0), max_bytes }
    }

    /// Counts what is in use already, possibly more than allowed.
    pub(crate) fn count(&self, bytes: u64) {
        let more = |used: u64| Some(used.saturating_add(bytes));
        // It never says no.
        let _ = self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// Takes some bytes, or fails with `OverlayFull` and takes none. To take none always succeeds.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let max_bytes = self.max_bytes.unwrap_or(u64::MAX);
        let more = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= max_bytes);
        match self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::OverlayFull { max_bytes }),
        }
    }

    /// Gives bytes back that were taken.
    pub(crate) fn release(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        // It never says no.
        let _ = self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Bytes in use.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }
}
