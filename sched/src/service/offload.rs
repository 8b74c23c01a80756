//! Work that may block, each piece in a thread of its own: a hanging disk keeps that thread and nothing else.
//!
//! Tokio's own pool panics where the system gives no thread (`ulimit -u`, a full pids cgroup). Here the caller waits for
//! the thread, too, and gives up when its time is over.
//!
//! A service makes a few threads in reserve when it starts, and does not start without them ([`keep_reserve`]). They do
//! the service's own work where the system gives no further thread; requests to the API cannot use them up. As long as
//! neither threads nor processes can be started, [`has_threads`] is false and the main loop gives no sign of life, so
//! that monitoring sees a service that can do nothing.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
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
/// How often it is asked for while a client of the API waits.
const TRIES_OF_REQUESTS: u32 = 3;
/// Threads in reserve.
const RESERVE_THREADS: usize = 2;
/// Threads or processes that must be possible beside those when the service starts: its API, a child, some work.
const SPARE_THREADS: usize = 4;

static THREADS: Semaphore = Semaphore::const_new(THREADS_MAX);
/// Whether a thread or a process could not be started, and none was since.
static LACKS: AtomicBool = AtomicBool::new(false);
/// Hands work to a thread in reserve that has none.
static RESERVE: OnceLock<SyncSender<Work>> = OnceLock::new();

type Work = Box<dyn FnOnce() + Send>;

/// Who the work is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    /// The service itself.
    Service,
    /// A client of the API, which can ask again.
    Client,
}

/// Does something in a thread. When nobody waits any more, what has begun goes on. Fails when the work panicked, and
/// when there has been no thread for some seconds.
pub(super) async fn offload<T, W>(work: W) -> io::Result<T>
where
    T: Send + 'static,
    W: FnOnce() -> T + Send + 'static,
{
    offload_within(TRIES, work).await
}

/// The same for a client of the API: it gets no thread of the reserve, and soon hears that there is none.
pub(super) async fn offload_for_client<T, W>(work: W) -> io::Result<T>
where
    T: Send + 'static,
    W: FnOnce() -> T + Send + 'static,
{
    offload_for(For::Client, TRIES_OF_REQUESTS, work).await
}

/// The same with another number of tries to get a thread.
pub(super) async fn offload_within<T, W>(tries: u32, work: W) -> io::Result<T>
where
    T: Send + 'static,
    W: FnOnce() -> T + Send + 'static,
{
    offload_for(For::Service, tries, work).await
}

async fn offload_for<T, W>(whom: For, tries: u32, work: W) -> io::Result<T>
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
        let do_it = move || {
            let run = taken.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(run) = run {
                run();
            }
        };
        let Err(error) = Builder::new().name("work".to_owned()).spawn(do_it.clone()) else { break };
        note_lack(&error);
        if whom == For::Service && is_taken_by_reserve(Box::new(do_it)) {
            break;
        }
        if number >= tries {
            return Err(error);
        }
        sleep(AGAIN).await;
    }
    answered.await.map_err(|_| io::Error::other("the thread ended with a panic"))
}

/// Does something in a thread, whenever there is one, for nobody who waits.
pub(super) fn offload_and_forget(work: impl FnOnce() + Send + 'static) {
    tokio::spawn(async move {
        // A panic was reported by the thread.
        let _ = offload_within(u32::MAX, work).await;
    });
}

/// Makes the threads in reserve, and proves that some more threads or processes can be started. Fails with the system's
/// error where they cannot: such a service would do nothing.
pub(super) fn keep_reserve() -> io::Result<()> {
    let (give, take) = sync_channel::<Work>(0);
    let take = Arc::new(Mutex::new(take));
    for _ in 0..RESERVE_THREADS {
        let take = Arc::clone(&take);
        Builder::new().name("reserve".to_owned()).spawn(move || serve(&take))?;
    }
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
    let spare: Vec<_> = (0..SPARE_THREADS)
        .map(|_| {
            let gate = Arc::clone(&gate);
            Builder::new().name("spare".to_owned()).spawn(move || drop(gate.lock()))
        })
        .collect();
    drop(closed);
    for thread in spare {
        // It does nothing that could panic.
        let _ = thread?.join();
    }
    // A process has one service.
    let _ = RESERVE.set(give);
    Ok(())
}

/// A thread in reserve: does what it is given. One of them waits in the channel, the others for that one.
fn serve(take: &Mutex<Receiver<Work>>) {
    loop {
        let work = take.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(work) = work else { return };
        // A panic was reported by the hook, and whoever waits for the work learns of it.
        let _ = catch_unwind(AssertUnwindSafe(work));
    }
}

/// Whether a thread in reserve was idle and does the work now.
fn is_taken_by_reserve(work: Work) -> bool {
    RESERVE.get().is_some_and(|reserve| reserve.try_send(work).is_ok())
}

/// Whether an error says that there are too many threads and processes.
pub(super) fn is_lack(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// Takes note of an error of starting a thread or a process.
pub(super) fn note_lack(error: &io::Error) {
    if is_lack(error) && !LACKS.swap(true, Ordering::Relaxed) {
        tracing::error!(
            error = crate::error::in_full(&error),
            "no thread can be started: raise TasksMax or ulimit -u"
        );
    }
}

/// Whether threads can be started, as far as is known: after a lack it tries.
pub(super) fn has_threads() -> bool {
    if !LACKS.load(Ordering::Relaxed) {
        return true;
    }
    let is_over = Builder::new().name("probe".to_owned()).spawn(|| ()).is_ok();
    if is_over && LACKS.swap(false, Ordering::Relaxed) {
        tracing::info!("threads can be started again");
    }
    is_over
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

    #[test]
    fn threads_in_reserve_take_work_while_they_have_none_and_survive_a_panic() {
        keep_reserve().unwrap();
        let (done, ended) = std::sync::mpsc::channel();
        let give = |work: Work| {
            // It comes to its channel in its own time.
            let work = Arc::new(Mutex::new(Some(work)));
            let taken = || {
                let work = Arc::clone(&work);
                is_taken_by_reserve(Box::new(move || {
                    if let Some(work) = work.lock().unwrap().take() {
                        work();
                    }
                }))
            };
            while !taken() {
                std::thread::yield_now();
            }
        };
        for _ in 0..2 * RESERVE_THREADS {
            give(Box::new(|| panic!("on purpose")));
        }
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock().unwrap();
        for _ in 0..RESERVE_THREADS {
            let (done, gate) = (done.clone(), Arc::clone(&gate));
            give(Box::new(move || {
                drop(gate.lock());
                done.send(()).unwrap();
            }));
        }
        assert!(!is_taken_by_reserve(Box::new(|| ())), "all are busy");
        drop(closed);
        for _ in 0..RESERVE_THREADS {
            ended.recv().unwrap();
        }
    }
}
