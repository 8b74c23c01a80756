//! Work that may block, each piece in a thread of its own: a hanging disk keeps that thread and nothing else.
//!
//! Tokio's own pool panics where the system gives no thread (`ulimit -u`, a full pids cgroup). Here whoever waits for
//! the work waits for the thread, too, and gives up when his time is over.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::sleep;

/// Most threads at a time, those that hang included.
const THREADS_MAX: usize = 512;
/// How long to wait before a thread is asked for again.
const AGAIN: Duration = Duration::from_millis(500);
/// How often it is asked for.
const TRIES: u32 = 20;

static THREADS: Semaphore = Semaphore::const_new(THREADS_MAX);
/// Whether the lack of threads was logged.
static LACKS: AtomicBool = AtomicBool::new(false);

/// Does something in a thread. When nobody waits any more, what has begun goes on. Fails when the work panicked, and
/// when there has been no thread for some seconds.
pub(super) async fn offload<T, W>(work: W) -> io::Result<T>
where
    T: Send + 'static,
    W: FnOnce() -> T + Send + 'static,
{
    offload_within(TRIES, work).await
}

/// The same with another number of tries to get a thread.
pub(super) async fn offload_within<T, W>(tries: u32, work: W) -> io::Result<T>
where
    T: Send + 'static,
    W: FnOnce() -> T + Send + 'static,
{
    let closed = |error| io::Error::other(error);
    let permit = THREADS.acquire().await.map_err(closed)?;
    let (answer, answered) = oneshot::channel();
    let runtime = Handle::current();
    let run = move || {
        let _runtime = runtime.enter();
        // Nobody may wait any more.
        let _ = answer.send(work());
        drop(permit);
    };
    // A thread that is not started takes the closure with it: it is given out on the other side.
    let run = Arc::new(Mutex::new(Some(run)));
    for number in 1.. {
        let taken = Arc::clone(&run);
        let take = move || taken.lock().unwrap_or_else(PoisonError::into_inner).take();
        let started = Builder::new().name("work".to_owned()).spawn(move || {
            if let Some(run) = take() {
                run();
            }
        });
        match started {
            Ok(_) => break,
            Err(error) if number >= tries => return Err(error),
            Err(error) if !LACKS.swap(true, Ordering::Relaxed) => {
                tracing::error!(%error, "no thread can be started: raise TasksMax or ulimit -u");
            }
            Err(_) => {}
        }
        sleep(AGAIN).await;
    }
    LACKS.store(false, Ordering::Relaxed);
    answered.await.map_err(|_| io::Error::other("the thread ended with a panic"))
}

/// Does something in a thread, whenever there is one, for nobody who waits.
pub(super) fn offload_and_forget(work: impl FnOnce() + Send + 'static) {
    tokio::spawn(async move {
        // A panic was reported by the thread.
        let _ = offload_within(u32::MAX, work).await;
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_elsewhere_and_a_panic_is_an_error() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let here = std::thread::current().id();
        let there = runtime.block_on(offload(|| std::thread::current().id())).unwrap();
        assert_ne!(here, there);
        let failed = runtime.block_on(offload(|| panic!("on purpose")));
        assert_eq!(failed.unwrap_err().to_string(), "the thread ended with a panic");
    }
}
