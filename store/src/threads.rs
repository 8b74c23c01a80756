//! Runs one piece of work on several threads and returns the first error.

use crate::error::Result;

/// Calls `work` on `threads` threads (one of them the caller's) until all return; the first error wins.
///
/// `work` takes its share from a counter that all threads see, so a thread that fails leaves the rest to the others:
/// whoever shares a stop flag should check it.
pub(crate) fn run(threads: usize, work: impl Fn() -> Result<()> + Sync) -> Result<()> {
    if threads <= 1 {
        return work();
    }
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(&work)).collect();
        let mut result = work();
        for other in others {
            match other.join() {
                Ok(other) => result = result.and(other),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        result
    })
}
