//! Points at which a test can stop the program, make a call fail, or record what was done. Only with the feature `testing`.
//!
//! `BACKY_FAULT=ACTION:K` acts at the K-th change of the file system, counting from 1 over all threads: `kill`
//! (SIGKILL before it), `torn` (as kill, after writing half of the data), `stop` (SIGSTOP before it), `eio` and `enospc` (the call fails),
//! `eio-on` and `enospc-on` (this and every later one; without space, names can still be removed and renamed and data synced).
//! `no-links:1` is a file system without hard links and without renames that do not replace.
//! What is done is told on standard error as `fault: ACTION at OPERATION PATH`.
//!
//! `BACKY_RECORD=FILE` appends every change that succeeded to FILE, a JSON object a line, in the order in which
//! they happened. A test plays it back to what a power loss would have left at any point.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::errno::Errno;
use serde_json::{Value, json};

use super::Step;
use crate::error::{Error, Result};

static CALLS: AtomicU64 = AtomicU64::new(0);

impl Step<'_> {
    fn name_and_path(&self) -> (&'static str, &Path) {
        match self {
            Self::Create(path) => ("create", path),
            Self::MakeDir(path) => ("mkdir", path),
            Self::SetLen(path, _) => ("truncate", path),
            Self::Rename(_, path) => ("rename", path),
            Self::Link(_, path) => ("link", path),
            Self::Unlink(path) => ("unlink", path),
            Self::SyncFile(path) => ("fsync", path),
            Self::SyncDir(path) => ("fsyncdir", path),
            Self::SyncFileSystem(path) => ("syncfs", path),
        }
    }

    fn record(&self) -> Value {
        let (name, path) = self.name_and_path();
        match self {
            Self::SetLen(_, length) => json!({"op": name, "path": path, "length": length}),
            Self::Rename(from, _) | Self::Link(from, _) => json!({"op": name, "path": path, "from": from}),
            _ => json!({"op": name, "path": path}),
        }
    }
}

pub(super) fn step<T>(step: Step<'_>, change: impl FnOnce() -> Result<T>) -> Result<T> {
    let (name, path) = step.name_and_path();
    check(name, path, || ())?;
    recorded(change, || step.record())
}

pub(super) fn step_write(
    path: &Path,
    offset: Option<u64>,
    data: &[u8],
    mut write: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    check("write", path, || drop(write(&data[..data.len() / 2])))?;
    recorded(
        || write(data),
        || {
            let hex: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({"op": "write", "path": path, "offset": offset, "data": hex})
        },
    )
}

struct Plan {
    action: String,
    at: u64,
}

fn plan() -> Option<&'static Plan> {
    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
    PLAN.get_or_init(|| {
        let text = std::env::var("BACKY_FAULT").ok()?;
        let (action, at) = text.split_once(':')?;
        Some(Plan { action: action.to_owned(), at: at.parse().ok()? })
    })
    .as_ref()
}

fn check(doing: &'static str, path: &Path, tear: impl FnOnce()) -> Result<()> {
    let Some(plan) = plan() else { return Ok(()) };
    let call = CALLS.fetch_add(1, Ordering::SeqCst) + 1;
    let needs_room = !["unlink", "fsync", "fsyncdir", "syncfs", "rename"].contains(&doing);
    let errno = match plan.action.as_str() {
        "kill" if call == plan.at => {
            announce(plan, doing, path);
            return stop();
        }
        "torn" if call == plan.at => {
            announce(plan, doing, path);
            tear();
            return stop();
        }
        "stop" if call == plan.at => {
            announce(plan, doing, path);
            let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGSTOP);
            return Ok(());
        }
        "eio" if call == plan.at => Errno::EIO,
        "enospc" if call == plan.at => Errno::ENOSPC,
        "eio-on" if call >= plan.at => Errno::EIO,
        "enospc-on" if call >= plan.at && needs_room => Errno::ENOSPC,
        _ => return Ok(()),
    };
    announce(plan, doing, path);
    Err(Error::io(doing, path, errno.into()))
}

fn announce(plan: &Plan, doing: &str, path: &Path) {
    // Standard error may be closed; the test then misses the line and says so.
    let _ = writeln!(std::io::stderr(), "fault: {} at {doing} {}", plan.action, path.display());
}

fn stop() -> Result<()> {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    loop {
        std::thread::park();
    }
}

/// Makes the change and appends it to the record; the lock makes the order of the record the order of the changes.
fn recorded<T>(change: impl FnOnce() -> Result<T>, record: impl FnOnce() -> Value) -> Result<T> {
    static RECORD: OnceLock<Option<Mutex<File>>> = OnceLock::new();
    let file = RECORD.get_or_init(|| {
        let path = std::env::var_os("BACKY_RECORD")?;
        File::options().append(true).create(true).open(path).ok().map(Mutex::new)
    });
    let Some(file) = file else { return change() };
    let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
    let changed = change()?;
    writeln!(file, "{}", record())
        .map_err(|error| Error::io("record a change of", "the file system", error))?;
    Ok(changed)
}

/// `BACKY_SYNCFS=yes|no` says whether one `syncfs` is relied on, whatever the file system: so both ways of making
/// chunks durable can be tested on one.
pub(super) fn reliable_syncfs() -> Option<bool> {
    match std::env::var("BACKY_SYNCFS").ok()?.as_str() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

/// `BACKY_UNNAMED=no` stands for a file system without files that have no name.
pub(super) fn has_unnamed_files() -> bool {
    std::env::var_os("BACKY_UNNAMED").is_none_or(|told| told != "no")
}

/// Whether the file system has hard links, and renames that do not replace.
pub(super) fn has_links() -> bool {
    plan().is_none_or(|plan| plan.action != "no-links")
}

/// `BACKY_HOST=NAME` makes the process one of another machine, whose locks are not seen here.
pub(super) fn host() -> Option<String> {
    std::env::var("BACKY_HOST").ok()
}
