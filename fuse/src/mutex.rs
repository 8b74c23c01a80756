//! Locks that a panic does not close: what is behind every mutex of this crate is whole at every moment.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, whatever became of who had it before.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
