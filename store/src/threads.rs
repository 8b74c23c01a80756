//! Runs one piece of work on several threads and returns the first error.

use crate::error::{Error, Result};

/// Calls `work` on `threads` threads (one of them the caller's) until all return; the first error wins.
///
/// `work` takes its share from a counter that all threads see, so a thread that fails leaves the rest to the others:
/// whoever shares a stop flag should check it and fail with `Cancelled`, which gives way to any other error.
pub(crate) fn run(threads: usize, work: impl Fn() -> Result<()> + Sync) -> Result<()> {
    if threads <= 1 {
        return work();
    }
    std::thread::scope(|scope| {
        // Where the system gives no more threads, those that there are do all the work.
        let start = |_| std::thread::Builder::new().spawn_scoped(scope, &work);
        let others: Vec<_> = (1..threads).map(start).map_while(std::result::Result::ok).collect();
        let mut result = work();
        for other in others {
            match other.join() {
                Ok(Err(cause)) if matches!(result, Ok(()) | Err(Error::Cancelled)) => result = Err(cause),
                Ok(_) => {}
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        result
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_thread_that_was_told_to_stop_does_not_hide_the_reason() {
        for failing in 0..3 {
            let turn = AtomicUsize::new(0);
            let result = run(3, || match turn.fetch_add(1, Ordering::SeqCst) {
                number if number == failing => Err(Error::Cancelled),
                _ => Err(Error::Cancelled),
            });
            assert!(matches!(result, Err(Error::Cancelled)), "{failing}: {result:?}");
        }
    }
}
