//! Damage that reads of an image got around: what was read is right, but the store does not promise to keep what it was
//! read from. It is kept here until whoever reads takes it, to be recorded.
//!
//! Reads of an image without damage look at one flag.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::Error;
use crate::format::ChunkId;

/// So many are kept; what does not fit is met again when it is loaded the next time.
const AVOIDED_MAX: usize = 256;

/// Damage that was got around and that nobody has taken yet, each place once.
#[derive(Debug, Default)]
pub(crate) struct Avoided {
    is_any: AtomicBool,
    errors: Mutex<Vec<Error>>,
}

impl Avoided {
    /// Keeps an error.
    pub(crate) fn note(&self, error: Error) {
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        if errors.len() < AVOIDED_MAX && errors.iter().all(|known| place(known) != place(&error)) {
            errors.push(error);
            self.is_any.store(true, Ordering::Relaxed);
        }
    }

    /// Returns what was kept, and keeps it no longer.
    pub(crate) fn take(&self) -> Vec<Error> {
        if !self.is_any.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_any.store(false, Ordering::Relaxed);
        std::mem::take(&mut errors)
    }
}

/// Where it was met, and which chunk is damaged: a chunk that cannot be made and its base both may be.
fn place(error: &Error) -> (Option<u64>, Option<ChunkId>) {
    let offset = match error {
        Error::ImageDamaged { offset, .. } => Some(*offset),
        _ => None,
    };
    (offset, error.damaged_chunk())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_damaged_chunk_is_kept_once_and_no_more_than_fit() {
        let avoided = Avoided::default();
        let missing = |number: usize| Error::ChunkMissing { id: ChunkId::of(&number.to_le_bytes()) };
        assert!(avoided.take().is_empty());
        [1, 2, 1].into_iter().for_each(|number| avoided.note(missing(number)));
        assert_eq!(avoided.take().len(), 2);
        assert!(avoided.take().is_empty());
        (0..2 * AVOIDED_MAX).for_each(|number| avoided.note(missing(number)));
        assert_eq!(avoided.take().len(), AVOIDED_MAX);
    }
}
