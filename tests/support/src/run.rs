//! What a run of the binary said and how it ended.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

/// How long a process may take to its end. A slow machine is no failure, but a test that waits for ever hides which one
/// failed.
const PATIENCE: Duration = Duration::from_secs(300);

/// Waits for the end of a child. One that does not end is killed, and the test fails.
#[track_caller]
pub fn ended(child: &mut Child) -> ExitStatus {
    match ended_within(child, PATIENCE) {
        Some(status) => status,
        None => {
            end(child);
            panic!("process {} does not end", child.id());
        }
    }
}

/// Waits so long for the end of a child.
fn ended_within(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return Some(status);
        }
        if begun.elapsed() > patience {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Kills a child, for what ends with the test. One that a dead disk holds even then is left behind.
pub fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = ended_within(child, Duration::from_secs(10));
}

/// Asks a child to end, and kills one that does not.
pub fn end_gently(child: &mut Child) {
    let pid = Pid::from_raw(child.id().cast_signed());
    for signal in [Signal::SIGTERM, Signal::SIGCONT] {
        let _ = kill(pid, signal);
    }
    if ended_within(child, Duration::from_secs(10)).is_none() {
        end(child);
    }
}

/// Collects what a child prints until it ends, within the same time.
#[track_caller]
pub fn output_of(mut child: Child) -> Output {
    fn read(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
        let (all, whole) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                let _ = pipe.read_to_end(&mut bytes);
            }
            let _ = all.send(bytes);
        });
        whole
    }
    drop(child.stdin.take());
    let (stdout, stderr) = (read(child.stdout.take()), read(child.stderr.take()));
    let status = ended(&mut child);
    // Whoever has inherited a pipe may keep it open.
    let all = |pipe: mpsc::Receiver<Vec<u8>>| pipe.recv_timeout(PATIENCE).expect("the output has an end");
    Output { status, stdout: all(stdout), stderr: all(stderr) }
}

/// One run that has ended.
#[derive(Clone, Debug)]
pub struct Run {
    /// The command, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output, as it is.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Run {
    /// Runs to the end.
    pub fn of(command: &mut Command) -> Self {
        let output = command.stdin(Stdio::null()).output().expect("the binary can be started");
        Self {
            command: format!("{command:?}"),
            status: output.status,
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Waits for a child whose standard output somebody else has read.
    pub(crate) fn of_ended(child: Child, command: &str) -> Self {
        let output = output_of(child);
        Self {
            command: command.to_owned(),
            status: output.status,
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The exit status; -1 when a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Whether SIGKILL ended it.
    pub fn was_killed(&self) -> bool {
        self.status.signal() == Some(9)
    }

    /// Standard output as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("text on standard output")
    }

    /// The first line of standard output.
    pub fn line(&self) -> String {
        self.text().lines().next().unwrap_or_default().to_owned()
    }

    /// Standard output as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("no JSON: {error}\n{self}"))
    }

    /// Fails the test unless it ended with `code`. No run may panic.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert!(!self.stderr.contains("panicked at"), "it panicked\n{self}");
        assert_eq!(self.code(), code, "wrong exit status\n{self}");
        self
    }

    /// Fails the test unless standard error has `part`.
    #[track_caller]
    pub fn says(self, part: &str) -> Self {
        assert!(self.stderr.contains(part), "standard error lacks {part:?}\n{self}");
        self
    }

    /// Operation and path of the injected fault, if it came to pass.
    pub fn fault(&self) -> Option<(&str, &str)> {
        let line = self.stderr.lines().find_map(|line| line.strip_prefix("fault: "))?;
        line.split_once(" at ")?.1.split_once(' ')
    }
}

/// A run that has stopped itself at the fault `stop:K`. Dropping it kills it.
#[derive(Debug)]
pub struct Stopped {
    child: Option<Child>,
    command: String,
}

impl Stopped {
    /// Starts a command and waits until it has stopped; `Err` with the run if it ended without.
    pub fn start(command: &mut Command) -> Result<Self, Run> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("the binary can be started");
        let this = Self { command: format!("{command:?}"), child: Some(child) };
        // The status is left for `wait` to collect.
        let what = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(this.pid()), what) {
            Ok(WaitStatus::Stopped(..)) => Ok(this),
            Ok(_) => Err(this.collect()),
            Err(error) => panic!("cannot wait for {}: {error}", this.command),
        }
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.as_ref().expect("it runs until it is collected").id().cast_signed())
    }

    /// Lets it go on.
    pub fn resume(&self) {
        kill(self.pid(), Signal::SIGCONT).expect("a child can be continued");
    }

    /// Kills it, for good.
    pub fn kill(self) -> Run {
        kill(self.pid(), Signal::SIGKILL).expect("a child can be killed");
        self.collect()
    }

    /// Lets it go on to its end.
    pub fn finish(self) -> Run {
        self.resume();
        self.collect()
    }

    fn collect(mut self) -> Run {
        let child = self.child.take().expect("it runs until it is collected");
        let output = output_of(child);
        Run {
            command: std::mem::take(&mut self.command),
            status: output.status,
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            end(&mut child);
        }
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(4000)]);
        write!(out, "{}\n{}\n--- stdout\n{text}--- stderr\n{}", self.command, self.status, self.stderr)
    }
}
