//! The signals that end a mount, waited for in one thread and blocked in all others.
//!
//! They are blocked before the first thread starts and stay so: a second one that comes while the mount ends
//! must not kill the process half way. The mount's own end is told by a signal too, one that nobody
//! notices by default, because a thread cannot wait for a signal and for something else.

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::getpid;

/// What the mount's own threads send.
const WAKE: Signal = Signal::SIGURG;

/// The signals of a mount, blocked.
#[derive(Debug)]
pub(crate) struct Signals {
    set: SigSet,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Someone wants the mount to end; the signal's name.
    End(&'static str),
    /// Something happened: look whether the mount is over.
    Look,
}

impl Signals {
    /// Blocks the signals in this thread and all that it starts.
    pub(crate) fn block() -> nix::Result<Self> {
        let mut set: SigSet = [Signal::SIGTERM, Signal::SIGINT, WAKE].into_iter().collect();
        // `nohup` asks that the end of the terminal is ignored; a blocked signal would be waited for all the same.
        if !ignores_hangup() {
            set.add(Signal::SIGHUP);
        }
        set.thread_block()?;
        // A limit on the size of files must make a write to an overlay fail, not end the process.
        SigSet::from(Signal::SIGXFSZ).thread_block()?;
        Ok(Self { set })
    }

    /// Waits for the next signal.
    pub(crate) fn wait(&self) -> Wanted {
        match self.set.wait() {
            Ok(WAKE) | Err(nix::errno::Errno::EINTR) => Wanted::Look,
            Ok(signal) => Wanted::End(signal.as_str()),
            // Cannot happen with a valid set; to end is better than to wait for ever.
            Err(_) => Wanted::End("error"),
        }
    }
}

/// Wakes the thread that waits.
pub(crate) fn wake() {
    if let Err(error) = kill(getpid(), WAKE) {
        tracing::error!(error = backy_store::error::in_full(&error), "cannot tell that the mount is over");
    }
}

/// Whether this process ignores SIGHUP, as `nohup` has it.
pub fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (Signal::SIGHUP as u32 - 1) & 1 == 1
}
