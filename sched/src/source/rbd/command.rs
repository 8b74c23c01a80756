//! Runs other programs: with a time limit, as a process group of their own that is killed as a whole, and never
//! with more of their output in memory than was asked for.
//!
//! A program is given up when it is told to (`Monitor::cancelled`) or when nothing moved for the time limit; a
//! stream may take as long as it likes while bytes come. Dropping a [`Running`] kills what is left of it, so no
//! program outlives the call that started it.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backy_store::Monitor;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::error::RbdError;
use crate::error::{Error, Result};

/// Most bytes of a program's standard error that are kept, of its end.
const STDERR_BYTES_MAX: usize = 4096;
/// How long one wait takes before the monitor and the time are looked at again.
const TURN: Duration = Duration::from_millis(50);
/// How long a program has to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

/// A program with its first arguments.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) path: OsString,
    pub(crate) arguments: Vec<OsString>,
    /// How long nothing may happen.
    pub(crate) limit: Duration,
}

/// What a program left behind.
#[derive(Debug)]
pub(crate) struct Finished {
    /// What was run, for messages.
    pub(crate) command: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    /// The end of standard error on one line.
    pub(crate) said: String,
}

impl Finished {
    /// Makes an exit status other than 0 an error.
    pub(crate) fn success(self) -> Result<Self> {
        if self.status.success() { Ok(self) } else { Err(self.failure().into()) }
    }

    pub(crate) fn failure(&self) -> RbdError {
        RbdError::CommandFailed {
            command: self.command.clone(),
            status: status_text(self.status),
            said: self.said.clone(),
        }
    }
}

pub(crate) fn status_text(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}

impl Program {
    /// Runs to the end; at most `stdout_max` bytes of standard output are taken, more is an error.
    pub(crate) fn run(&self, words: &[&OsStr], stdout_max: usize, monitor: &dyn Monitor) -> Result<Finished> {
        let mut running = self.start(words, Stdio::null(), monitor)?;
        // All of it must be over in the time limit, not only something must come.
        running.is_stream = false;
        let mut stdout = Vec::new();
        let mut buf = [0; 8192];
        loop {
            let count = running.receive(&mut buf)?;
            if count == 0 {
                break;
            }
            stdout.extend_from_slice(&buf[..count]);
            if stdout.len() > stdout_max {
                let problem = format!("more than {stdout_max} bytes");
                return Err(RbdError::Garbage { command: running.command.clone(), problem }.into());
            }
        }
        let mut finished = running.finish()?;
        finished.stdout = stdout;
        Ok(finished)
    }

    /// Starts it with its standard output to be read through the [`Running`].
    pub(crate) fn start<'m>(
        &self,
        words: &[&OsStr],
        stdin: Stdio,
        monitor: &'m dyn Monitor,
    ) -> Result<Running<'m>> {
        let name = self.path.to_string_lossy().into_owned();
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).args(words);
        // The lock of a restore's note goes with its descriptor (`store/src/restore/restoring.rs`).
        backy_process::prepare(&mut command, backy_process::Descriptors::PassOn);
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let unusable = |source| RbdError::ProgramUnusable { program: name.clone(), source };
        let mut child = command.spawn().map_err(unusable)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let reader = child
            .stderr
            .take()
            .map(|stderr| std::thread::Builder::new().name("stderr".to_owned()).spawn(move || tail(stderr)));
        let stderr = match reader.transpose() {
            Ok(stderr) => stderr,
            Err(source) => {
                // It has hardly begun. What it may have started itself ends with it.
                let group = i32::try_from(child.id()).map(Pid::from_raw);
                let _ = group.map(|group| killpg(group, Signal::SIGKILL));
                let _ = child.wait();
                return Err(unusable(source).into());
            }
        };
        let shown: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        Ok(Running {
            command: format!("{name} {}", shown.join(" ")),
            child,
            stdin,
            stdout,
            stderr,
            limit: self.limit,
            moved: Instant::now(),
            is_stream: true,
            is_over: false,
            monitor,
        })
    }
}

/// Keeps the end of what comes, as one line.
fn tail(mut from: impl Read) -> String {
    let mut kept = Vec::new();
    let mut buf = [0; 4096];
    loop {
        match from.read(&mut buf) {
            Ok(0) => break,
            Ok(count) => {
                kept.extend_from_slice(&buf[..count]);
                let surplus = kept.len().saturating_sub(STDERR_BYTES_MAX);
                kept.drain(..surplus);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    let text = String::from_utf8_lossy(&kept);
    let mut lines: Vec<&str> = Vec::new();
    for line in text.split(['\n', '\r']).map(str::trim) {
        // Ceph's programs like to say things twice.
        if !line.is_empty() && !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.join("; ")
}

/// A program that runs.
pub(crate) struct Running<'m> {
    pub(crate) command: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<JoinHandle<String>>,
    limit: Duration,
    moved: Instant,
    /// Whether the limit begins anew with every byte.
    is_stream: bool,
    is_over: bool,
    monitor: &'m dyn Monitor,
}

impl Running<'_> {
    /// Reads what is there, waiting for it; 0 at the end.
    pub(crate) fn receive(&mut self, buf: &mut [u8]) -> Result<usize> {
        loop {
            let Some(stdout) = &mut self.stdout else { return Ok(0) };
            if is_ready(stdout.as_fd(), PollFlags::POLLIN) {
                match stdout.read(buf) {
                    Ok(count) => {
                        self.note_move();
                        return Ok(count);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(source) => return Err(self.pipe(source)),
                }
            }
            self.check()?;
        }
    }

    /// Writes all of `data` to its standard input, which must be a pipe.
    pub(crate) fn give(&mut self, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            let Some(stdin) = &mut self.stdin else {
                return Err(self.pipe(io::Error::from(io::ErrorKind::BrokenPipe)));
            };
            if is_ready(stdin.as_fd(), PollFlags::POLLOUT) {
                match stdin.write(data) {
                    Ok(count) => {
                        data = &data[count..];
                        self.note_move();
                    }
                    Err(error)
                        if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                    }
                    Err(source) => return Err(self.pipe(source)),
                }
            }
            self.check()?;
        }
        Ok(())
    }

    /// Makes writes to its standard input return instead of waiting, so that a program that hangs is noticed.
    pub(crate) fn prepare_to_give(&mut self) -> Result<()> {
        let Some(stdin) = &self.stdin else { return Ok(()) };
        fcntl(stdin, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .map(drop)
            .map_err(|errno| self.pipe(io::Error::from(errno)))
    }

    /// Waits for its end.
    pub(crate) fn finish(mut self) -> Result<Finished> {
        drop(self.stdin.take());
        self.note_move();
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) => {}
                Err(source) => return Err(self.pipe(source)),
            }
            self.check()?;
            std::thread::sleep(Duration::from_millis(2));
        };
        self.is_over = true;
        // Whoever inherited its standard error may keep it open: they are killed first.
        signal(&self.child, Signal::SIGKILL);
        let said = self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        Ok(Finished { command: std::mem::take(&mut self.command), status, stdout: Vec::new(), said })
    }

    /// Waits for its end, but no longer than that.
    fn wait_until(&mut self, end: Instant) {
        while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn note_move(&mut self) {
        if self.is_stream {
            self.moved = Instant::now();
        }
    }

    fn check(&self) -> Result<()> {
        if self.monitor.cancelled() {
            return Err(backy_store::Error::Cancelled.into());
        }
        if self.moved.elapsed() > self.limit {
            let secs = self.limit.as_secs();
            return Err(RbdError::TimeOut { command: self.command.clone(), secs }.into());
        }
        Ok(())
    }

    fn pipe(&self, source: io::Error) -> Error {
        RbdError::Pipe { command: self.command.clone(), source }.into()
    }
}

/// As a reader: errors of this crate are inside of the `io::Error`.
impl Read for Running<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.receive(buf).map_err(io::Error::other)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        // A program that is fed sees the end of its input and closes its image. One that is killed seems to have it open for
        // half a minute, and so long Ceph removes no image.
        if self.stdin.take().is_some() {
            self.wait_until(Instant::now() + GRACE);
        }
        signal(&self.child, Signal::SIGTERM);
        self.wait_until(Instant::now() + GRACE);
        signal(&self.child, Signal::SIGKILL);
        // It was killed: this does not wait for long, and there is nobody to tell of an error.
        let _ = self.child.wait();
    }
}

/// Sends a signal to the child's process group. That it is gone already is no error.
fn signal(child: &Child, signal: Signal) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(pid), signal);
    }
}

/// Waits a turn for a descriptor. A failure of the wait itself shows when it is used.
fn is_ready(fd: BorrowedFd<'_>, what: PollFlags) -> bool {
    let timeout = PollTimeout::try_from(TURN).unwrap_or(PollTimeout::ZERO);
    poll(&mut [PollFd::new(fd, what)], timeout).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use backy_store::Silent;

    use super::*;
    use crate::source::testing::Counting;

    fn shell(limit_secs: u64) -> Program {
        Program {
            path: "/bin/sh".into(),
            arguments: vec!["-c".into()],
            limit: Duration::from_secs(limit_secs),
        }
    }

    fn run(program: &Program, script: &str) -> Result<Finished> {
        program.run(&[OsStr::new(script)], 100, &Silent)
    }

    #[test]
    fn output_status_and_errors_are_told() {
        let done = run(&shell(60), "echo out; echo one >&2; echo two >&2; exit 3").unwrap();
        assert_eq!((done.stdout.as_slice(), done.said.as_str()), (&b"out\n"[..], "one; two"));
        let message = done.success().unwrap_err().to_string();
        assert!(message.ends_with("failed with status 3: one; two"), "{message}");
        let killed = run(&shell(60), "kill -9 $$").unwrap().success().unwrap_err().to_string();
        assert!(killed.ends_with("failed with signal 9"), "{killed}");
    }

    #[test]
    fn too_much_output_and_a_missing_program_are_errors() {
        let much = run(&shell(60), "yes").unwrap_err();
        assert!(matches!(much, Error::Rbd(RbdError::Garbage { .. })), "{much}");
        let none = Program { path: "/nowhere/rbd".into(), ..shell(1) };
        assert_eq!(run(&none, "").unwrap_err().to_string(), "cannot start the program /nowhere/rbd");
    }

    #[test]
    fn who_hangs_is_killed_with_all_its_children() {
        let begun = Instant::now();
        for script in ["sleep 100", "sleep 100 | sleep 100", "trap '' TERM; sleep 100 & wait; sleep 100"] {
            let error = run(&shell(1), script).unwrap_err();
            assert!(matches!(error, Error::Rbd(RbdError::TimeOut { secs: 1, .. })), "{error}");
        }
        let stopped = shell(60).run(&[OsStr::new("sleep 100")], 100, &Counting::new(0)).unwrap_err();
        assert!(stopped.is_cancelled());
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn an_answer_counts_even_if_a_grandchild_holds_standard_error() {
        let begun = Instant::now();
        assert_eq!(run(&shell(60), "sleep 100 > /dev/null & echo x").unwrap().stdout, b"x\n");
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}
