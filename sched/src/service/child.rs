//! Child processes. Whatever a storage library does to one of them, the service goes on: what it prints is bounded,
//! a child that does nothing for too long is ended, and one that cannot even be killed is left behind.
//!
//! *Doing nothing* is measured at the process: neither its CPU time nor the bytes it has read and written change.
//! That needs no help from the child and holds for a backup of any length.
//!
//! A child starts in a state of its own ([`backy_process::prepare`]): signals as by default, no descriptor of ours, no
//! variable by which it could talk to systemd in our place.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use backy_process::Descriptors;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::config::STALL_LIMIT_DEFAULT;
use super::offload::{note_lack, offload};
use super::reaper;

/// Most that is kept of what a child prints; of standard error the end.
const STDERR_BYTES_MAX: usize = 8 << 10;
/// How long the start of a child may take.
const START: Duration = Duration::from_secs(60);
/// How long a killed child may take to die; in the kernel it may hang for ever.
const DEATH: Duration = Duration::from_secs(10);
/// How long somebody else may hold the ends of a dead child's pipes.
const PIPES: Duration = Duration::from_secs(2);

/// What to run.
#[derive(Debug)]
pub(super) struct Order {
    /// The program.
    pub(super) program: PathBuf,
    /// Its arguments.
    pub(super) arguments: Vec<OsString>,
    /// What it gets on standard input; nothing is an empty input.
    pub(super) input: Vec<u8>,
    /// Most bytes of standard output that are kept; the rest is read and dropped.
    pub(super) stdout_bytes_max: usize,
}

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// A child that does nothing for so long is ended.
    pub(super) stalled: Duration,
    /// A child that was asked to end is killed after so long.
    pub(super) grace: Duration,
    /// A callback is ended after so long, whatever it does.
    pub(super) callback: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            stalled: STALL_LIMIT_DEFAULT,
            grace: Duration::from_secs(30),
            callback: Duration::from_secs(10 * 60),
        }
    }
}

/// How a child ended.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Why it is over.
    pub(super) end: End,
    /// The beginning of its standard output.
    pub(super) stdout: Vec<u8>,
    /// The end of its standard error.
    pub(super) stderr: String,
}

/// Why a child is over.
#[derive(Debug)]
pub(super) enum End {
    /// By itself.
    Exited(ExitStatus),
    /// It could not be started.
    NotStarted(io::Error),
    /// It was ended, because it did nothing or took too long.
    Hung(Duration),
    /// It was ended, because that was wanted.
    Stopped,
}

impl Outcome {
    /// Returns the exit status of a child that ended by itself.
    pub(super) fn code(&self) -> Option<i32> {
        match &self.end {
            End::Exited(status) => status.code(),
            _ => None,
        }
    }

    /// Says in a few words why it did not succeed, with the last thing it said itself.
    pub(super) fn reason(&self) -> String {
        let end = match &self.end {
            End::Exited(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("it ended with status {code}"),
                (None, Some(signal)) => format!("signal {signal} ended it"),
                (None, None) => "it ended in an unknown way".to_owned(),
            },
            End::NotStarted(error) => format!("it could not be started: {error}"),
            End::Hung(after) => format!("it hung and was ended after {} s", after.as_secs()),
            End::Stopped => "it was stopped".to_owned(),
        };
        let said: Vec<&str> = self
            .stderr
            .lines()
            .filter(|line| line.starts_with("error:") || line.starts_with("  cause:"))
            .collect();
        let said = if said.is_empty() { self.stderr.lines().last().into_iter().collect() } else { said };
        if said.is_empty() { end } else { format!("{end}: {}", said.join(";")) }
    }
}

/// Runs a child to its end. It is asked to end when `stop` turns true, when it does nothing for `stalled`, or after
/// `longest`; after `grace` it is killed with its process group.
pub(super) async fn run(
    order: Order,
    limits: &Limits,
    longest: Option<Duration>,
    mut stop: watch::Receiver<bool>,
) -> Outcome {
    let mut command = Command::new(&order.program);
    command.args(&order.arguments);
    backy_process::prepare(command.as_std_mut(), Descriptors::Close);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (mut child, _own) = match spawn(command).await {
        Ok(started) => started,
        Err(error) => {
            return Outcome { end: End::NotStarted(error), stdout: Vec::new(), stderr: String::new() };
        }
    };
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let stdin = child.stdin.take();
    let stdin = tokio::spawn(async move {
        if let Some(mut stdin) = stdin {
            // A child that does not want its input is no failure.
            let _ = stdin.write_all(&order.input).await;
        }
    });
    let stdout = tokio::spawn(read_head(child.stdout.take(), order.stdout_bytes_max));
    let stderr = tokio::spawn(read_tail(child.stderr.take()));
    let end = tokio::select! {
        status = child.wait() => exited(status),
        () = stands_still(child_number(group), limits.stalled) => End::Hung(limits.stalled),
        () = sleep(longest.unwrap_or(Duration::MAX)) => End::Hung(longest.unwrap_or(Duration::MAX)),
        () = stopped(&mut stop) => End::Stopped,
    };
    if !matches!(end, End::Exited(_)) {
        end_group(&mut child, group, limits.grace).await;
    }
    let (stdout_abort, stderr_abort) = (stdout.abort_handle(), stderr.abort_handle());
    let stdout = timeout(PIPES, stdout).await.ok().and_then(Result::ok).unwrap_or_default();
    let stderr = timeout(PIPES, stderr).await.ok().and_then(Result::ok).unwrap_or_default();
    stdin.abort();
    stdout_abort.abort();
    stderr_abort.abort();
    Outcome { end, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() }
}

/// Starts a child, in a thread: that returns only when the program's file has been read, and its disk may hang.
async fn spawn(mut command: Command) -> io::Result<(Child, Option<reaper::Own>)> {
    // A child that comes too late is killed.
    command.kill_on_drop(true);
    let started = offload(move || {
        let _starting = reaper::starting();
        let child = command.spawn().inspect_err(note_lack)?;
        let own = child.id().and_then(|id| i32::try_from(id).ok()).map(reaper::Own::enter);
        Ok((child, own))
    });
    match timeout(START, started).await {
        Ok(started) => started.flatten(),
        Err(_) => {
            let why = "no thread can be started for it, or its disk does not answer";
            Err(io::Error::new(io::ErrorKind::TimedOut, why))
        }
    }
}

fn exited(status: io::Result<ExitStatus>) -> End {
    status.map_or_else(End::NotStarted, End::Exited)
}

fn child_number(group: Option<Pid>) -> i32 {
    group.map_or(0, Pid::as_raw)
}

/// Returns when `stop` turns true. When nobody is left to turn it, never.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Asks a child and its children to end, kills them when they do not, and gives up when even that does not help.
async fn end_group(child: &mut Child, group: Option<Pid>, grace: Duration) {
    let Some(group) = group else { return };
    for (signal, patience) in [(Signal::SIGTERM, grace), (Signal::SIGKILL, DEATH)] {
        // It may be gone already.
        let _ = killpg(group, signal);
        if timeout(patience, child.wait()).await.is_ok() {
            // What it has started itself goes with it.
            let _ = killpg(group, Signal::SIGKILL);
            return;
        }
    }
    tracing::error!(pid = group.as_raw(), "a child cannot be killed and is left behind");
}

/// Returns when a process has used no CPU and moved no byte for `patience`. A process that cannot be looked at is not
/// judged.
async fn stands_still(pid: i32, patience: Duration) {
    let mut seen = Some(work_done(pid));
    let mut since = Instant::now();
    loop {
        sleep((patience / 8).clamp(Duration::from_millis(50), Duration::from_secs(30))).await;
        // What the kernel says of a process can hang with it; then it stands still as well.
        let looked = timeout(patience, offload(move || work_done(pid))).await;
        let work = looked.map_or(seen.flatten(), |work| work.ok().flatten());
        if work.is_none() || seen != Some(work) {
            seen = Some(work);
            since = Instant::now();
        } else if since.elapsed() >= patience {
            return;
        }
    }
}

/// CPU ticks, and bytes read and written so far; proc(5).
fn work_done(pid: i32) -> Option<(u64, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; utime and stime are the 14th and 15th field.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |place: usize| fields.get(place)?.parse::<u64>().ok();
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let bytes = io
        .lines()
        .filter(|line| line.starts_with("rchar:") || line.starts_with("wchar:"))
        .filter_map(|line| line.split_once(':')?.1.trim().parse::<u64>().ok())
        .fold(0, u64::wrapping_add);
    Some((ticks(11)?.wrapping_add(ticks(12)?), bytes))
}

/// Reads to the end and keeps the beginning.
async fn read_head(from: Option<impl AsyncRead + Unpin>, bytes_max: usize) -> Vec<u8> {
    read(from, |kept, new| kept.extend_from_slice(&new[..new.len().min(bytes_max - kept.len())])).await
}

/// Reads to the end and keeps the end.
async fn read_tail(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    read(from, |kept, new| {
        kept.extend_from_slice(new);
        kept.drain(..kept.len().saturating_sub(STDERR_BYTES_MAX));
    })
    .await
}

async fn read(from: Option<impl AsyncRead + Unpin>, mut keep: impl FnMut(&mut Vec<u8>, &[u8])) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut from) = from else { return kept };
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        keep(&mut kept, &buffer[..length]);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Order {
        Order {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            input: b"input".to_vec(),
            stdout_bytes_max: 10,
        }
    }

    fn run_it(
        order: Order,
        limits: Limits,
        longest: Option<Duration>,
        stop_after: Option<Duration>,
    ) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (sender, receiver) = watch::channel(false);
            tokio::spawn(async move {
                sleep(stop_after.unwrap_or(Duration::from_secs(3600))).await;
                let _ = sender.send(true);
                std::future::pending::<()>().await;
            });
            timeout(Duration::from_secs(60), run(order, &limits, longest, receiver)).await.expect("it ends")
        })
    }

    const SHORT: Limits = Limits {
        stalled: Duration::from_millis(800),
        grace: Duration::from_millis(200),
        callback: Duration::from_secs(1),
    };

    #[test]
    fn what_it_prints_is_bounded_and_its_status_told() {
        let outcome = run_it(
            shell("cat; yes | head -c 1000000; echo 'error: no' >&2; echo '  cause: why' >&2; exit 3"),
            Limits::default(),
            None,
            None,
        );
        assert_eq!((outcome.code(), outcome.stdout.as_slice()), (Some(3), &b"inputy\ny\ny"[..]));
        assert_eq!(outcome.reason(), "it ended with status 3: error: no;  cause: why");
        let outcome = run_it(shell("kill -9 $$"), Limits::default(), None, None);
        assert_eq!((outcome.code(), outcome.reason().as_str()), (None, "signal 9 ended it"));
        let missing = Order { program: "/nonexistent".into(), ..shell("") };
        assert!(run_it(missing, SHORT, None, None).reason().starts_with("it could not be started"));
    }

    #[test]
    fn a_child_that_does_nothing_is_ended_even_if_it_does_not_want_to() {
        let outcome = run_it(shell("trap '' TERM; sleep 1000 & wait; sleep 1000"), SHORT, None, None);
        assert!(matches!(outcome.end, End::Hung(_)), "{outcome:?}");
    }

    #[test]
    fn a_child_that_works_is_left_alone_however_long_it_takes() {
        let busy = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do echo; sleep 0.1; done; exit 0";
        assert_eq!(run_it(shell(busy), SHORT, None, None).code(), Some(0));
        let outcome = run_it(shell("while :; do :; done"), SHORT, Some(Duration::from_secs(1)), None);
        assert!(matches!(outcome.end, End::Hung(_)), "{outcome:?}");
    }

    #[test]
    fn a_child_is_stopped_when_that_is_wanted_and_its_children_go_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        let script = format!("(sleep 1; touch {}) & trap 'exit 7' TERM; echo up; wait", mark.display());
        let outcome = run_it(shell(&script), Limits::default(), None, Some(Duration::from_millis(300)));
        assert!(matches!(outcome.end, End::Stopped), "{outcome:?}");
        std::thread::sleep(Duration::from_millis(1200));
        assert!(!mark.exists(), "a child of the child lives on");
    }
}
