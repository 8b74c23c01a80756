//! The duty of the first process of a container: processes whose parents have died become its children, and stay as
//! zombies until somebody fetches how they ended.
//!
//! The service's own children are Tokio's to wait for. So before anything is fetched it is looked at: who is in
//! [`OWN`], or may be, is left alone. A child is entered before anybody else may fetch, because that needs the same lock
//! as starting it.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, TryLockError};

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};

/// Most zombies that are fetched at once.
const AT_ONCE: usize = 1024;

/// Children that the service waits for itself.
static OWN: Mutex<Option<HashSet<i32>>> = Mutex::new(None);
/// Shared while a child is started, exclusive while others are fetched.
static STARTING: RwLock<()> = RwLock::new(());

fn own() -> MutexGuard<'static, Option<HashSet<i32>>> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// To be held while a child is started and until it is entered.
pub(super) fn starting() -> RwLockReadGuard<'static, ()> {
    STARTING.read().unwrap_or_else(PoisonError::into_inner)
}

/// The entry of a child that the service waits for, until it is dropped.
#[derive(Debug)]
pub(super) struct Own(i32);

impl Own {
    pub(super) fn enter(pid: i32) -> Self {
        own().get_or_insert_default().insert(pid);
        Self(pid)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(own) = own().as_mut() {
            own.remove(&self.0);
        }
    }
}

/// Whether this process gets orphans: it is the first one.
pub(super) fn is_needed() -> bool {
    std::process::id() == 1
}

/// Fetches how orphans ended, as far as that can be done now. Does not wait.
pub(super) fn reap() {
    // A child is being started just now, perhaps by a thread that hangs: the next time.
    let _no_start = match STARTING.try_write() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return,
    };
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    for _ in 0..AT_ONCE {
        let Some(pid) = waitid(Id::All, look).ok().as_ref().and_then(WaitStatus::pid) else { return };
        // One of ours hides the others until Tokio has fetched it, which is soon.
        if own().as_ref().is_some_and(|own| own.contains(&pid.as_raw())) {
            return;
        }
        if waitpid(pid, Some(WaitPidFlag::WNOHANG)).is_err() {
            return;
        }
    }
}
