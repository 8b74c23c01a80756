//! What a run of the binary said and how it ended.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

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
        let output = child.wait_with_output().expect("a child can be waited for");
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
        let output = child.wait_with_output().expect("a child can be waited for");
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
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(4000)]);
        write!(out, "{}\n{}\n--- stdout\n{text}--- stderr\n{}", self.command, self.status, self.stderr)
    }
}
