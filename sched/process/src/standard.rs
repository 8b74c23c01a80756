//! Whether standard output was closed when the program started. Later that cannot be seen any more: before `main` the
//! standard library opens `/dev/null` in its place, so that no file gets its number, and all that is written is lost
//! without an error.

use std::sync::atomic::{AtomicBool, Ordering};

static STDOUT_WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether there was no standard output when the program started, as after `>&-` in a shell.
pub fn stdout_was_closed() -> bool {
    STDOUT_WAS_CLOSED.load(Ordering::Relaxed)
}

extern "C" fn examine() {
    #[expect(unsafe_code, reason = "there is no safe way to name a descriptor that may be closed")]
    // SAFETY: the call takes numbers only, and may be made at any time.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
    STDOUT_WAS_CLOSED.store(flags == -1, Ordering::Relaxed);
}

// The loader calls what is listed here before `main`, and so before the standard library opens anything.
#[expect(unsafe_code, reason = "no safe code runs before the standard library's own")]
// SAFETY: the section holds pointers to functions of this type, which the loader calls once each in the only thread.
// `examine` needs nothing of the standard library that has to be made ready first: one system call and a store.
#[unsafe(link_section = ".init_array")]
#[used]
static EXAMINE: extern "C" fn() = examine;
