//! Ctrl-C, SIGTERM and SIGHUP (a connection that broke) during long work: the first asks it to stop at the next safe
//! point, the second ends the program at once. Either way the store is whole; the first also tidies up.
//!
//! The signals are blocked in the thread that calls [`watch`], and so in all that it starts later; one
//! thread waits for them. Commands without long work leave the signals alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};

use super::terminal;

/// The status of a program that a second Ctrl-C ended.
const EXIT_INTERRUPTED: i32 = 130;
/// How long messages may still take then.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Begins to watch and returns what turns true at the first signal. To be called before threads start.
pub(crate) fn watch() -> Arc<AtomicBool> {
    let asked = Arc::new(AtomicBool::new(false));
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    // `nohup` asks that the end of the terminal is ignored; a blocked signal would be waited for all the same.
    if !backy_fuse::ignores_hangup() {
        signals.add(Signal::SIGHUP);
    }
    if signals.thread_block().is_err() {
        return asked;
    }
    let seen = Arc::clone(&asked);
    let waiting = thread::Builder::new().name("signals".to_owned()).spawn(move || wait(signals, &seen));
    if waiting.is_err() {
        // Without the thread the signals must do what they always do.
        let _ = signals.thread_unblock();
    }
    asked
}

#[expect(clippy::disallowed_methods, reason = "the second signal means at once: main cannot be waited for")]
fn wait(signals: SigSet, asked: &AtomicBool) {
    loop {
        match signals.wait() {
            Ok(_) if asked.swap(true, Ordering::SeqCst) => {
                crate::logging::flush(LAST_WORDS);
                std::process::exit(EXIT_INTERRUPTED)
            }
            Ok(_) => terminal::note("stopping at the next safe point; once more stops at once"),
            Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}
