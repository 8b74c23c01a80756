//! Starts other programs in a defined state, whatever the state of this process is.
//!
//! A child inherits more than it should: the signal mask of the thread that starts it (a hook that cannot be ended by
//! SIGTERM), ignored signals, descriptors that whoever started us had open, and the variables by which a service
//! manager talks to one process (a child that says `READY=1` in our name). [`prepare`] clears all of that. The rest of
//! the environment, the working directory, the limits and the umask pass on: `PATH`, `CEPH_ARGS`, `BACKY_RBD` and the
//! variables of an administrator's hooks are meant for children.
//!
//! What this process itself was started with is known here, too: [`stdout_was_closed`].
//!
//! Besides Ceph's libraries the only `unsafe` code: what runs between fork and exec, or before `main`, makes system calls
//! and nothing else.

mod standard;

pub use standard::stdout_was_closed;

use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Variables that are meant for one process, and would let a child speak or listen in its parent's place.
pub const PRIVATE_VARIABLES: [&str; 9] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "FDSTORE",
    "MAINPID",
    "JOURNAL_STREAM",
];

/// Descriptors above standard error that are not closed when a program is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptors {
    /// The child does not get them.
    Close,
    /// The child gets them: a lock that is to live as long as the child goes with its open file.
    PassOn,
}

/// Lets a command start in a process group of its own, with every signal at its default and none blocked, without
/// [`PRIVATE_VARIABLES`].
#[expect(unsafe_code, reason = "CommandExt::pre_exec is the only hook between fork and exec")]
pub fn prepare(command: &mut Command, descriptors: Descriptors) {
    for variable in PRIVATE_VARIABLES {
        command.env_remove(variable);
    }
    command.process_group(0);
    let start_clean = move || {
        reset_signals();
        if descriptors == Descriptors::Close {
            close_on_exec();
        }
        Ok(())
    };
    // SAFETY: the closure runs in the child of a process with threads, so it may only call what is async-signal-safe:
    // it makes system calls through libc, allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(start_clean);
    }
}

/// Lets a command start without the descriptors above standard error that this process has, whoever opened them.
#[expect(unsafe_code, reason = "CommandExt::pre_exec is the only hook between fork and exec")]
pub fn close_descriptors(command: &mut Command) {
    // SAFETY: as in `prepare`.
    unsafe {
        command.pre_exec(|| {
            close_on_exec();
            Ok(())
        });
    }
}

#[expect(unsafe_code, reason = "signal dispositions have no safe interface")]
fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL installs no handler. What cannot be changed (SIGKILL, the C library's own) stays.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
    // SAFETY: an all-zero sigset_t is valid for `sigemptyset` to initialise; both calls get valid pointers.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Lets the kernel close what is above standard error when the program is executed.
#[expect(unsafe_code, reason = "close_range has no safe interface")]
fn close_on_exec() {
    const FIRST: libc::c_uint = 3;
    /// A bound for kernels before 5.11, which are asked for each descriptor.
    const LAST_ASKED: libc::c_int = 65_536;
    // SAFETY: the call takes numbers only. No descriptor is closed here, so nobody's file is closed under them.
    let done =
        unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 {
        return;
    }
    for descriptor in 3..LAST_ASKED {
        // SAFETY: as above. A number that is no descriptor is answered with EBADF.
        unsafe {
            libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(command: &mut Command) -> String {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_child_starts_with_default_signals_and_without_private_variables() {
        let script = "grep -E '^Sig(Blk|Ign)' /proc/self/status; env";
        // What this process ignores and blocks is up to the test runner.
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("NOTIFY_SOCKET", "/x").env("WATCHDOG_PID", "1").env("KEPT", "yes");
        prepare(&mut command, Descriptors::Close);
        let text = output(&mut command);
        // Two belong to the C library.
        const INTERNAL: u64 = 0b11 << 31;
        for line in text.lines().filter(|line| line.starts_with("Sig")) {
            let mask = line.split_whitespace().last().and_then(|mask| u64::from_str_radix(mask, 16).ok());
            assert_eq!(mask.map(|mask| mask & !INTERNAL), Some(0), "{text}");
        }
        assert!(text.contains("KEPT=yes"), "{text}");
        assert!(!text.contains("NOTIFY_SOCKET") && !text.contains("WATCHDOG_PID"), "{text}");
    }

    #[test]
    fn descriptors_pass_on_only_when_that_is_wanted() {
        for (descriptors, expected) in [(Descriptors::Close, false), (Descriptors::PassOn, true)] {
            let inherited = inheritable();
            let mut command = Command::new("ls");
            command.arg("/proc/self/fd");
            prepare(&mut command, descriptors);
            let listed = output(&mut command);
            let number = inherited.to_string();
            assert_eq!(listed.lines().any(|line| line == number), expected, "{descriptors:?}: {listed}");
        }
    }

    /// A descriptor of /dev/null without close-on-exec, open until the tests end; far from those that others use.
    #[expect(unsafe_code, reason = "the standard library opens no file without close-on-exec")]
    fn inheritable() -> libc::c_int {
        // SAFETY: the path is a C string; the descriptor is never closed.
        let opened = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY) };
        // SAFETY: takes numbers only.
        let moved = unsafe { libc::fcntl(opened, libc::F_DUPFD, 900) };
        assert!(moved >= 900);
        moved
    }
}
