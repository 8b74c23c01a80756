//! A mount in the background: this program started once more with the same arguments, which writes one line
//! when its mount answers. Forking a process with threads would need unsafe code and care; this needs neither.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::error::{Error, Result};

/// Set for the process in the background.
const VARIABLE: &str = "BACKY_MOUNT_READY";

/// What it writes when the mount answers.
const READY: &str = "ready\n";

/// Whether this is the process in the background.
pub(crate) fn is_child() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Starts the process in the background; returns when its mount is ready, or fails as it did.
pub(crate) fn start() -> Result<()> {
    let program = std::env::current_exe().map_err(|source| Error::io("find", "this program", source))?;
    let failed = |source| Error::io("start", &program, source);
    let mut arguments = std::env::args_os();
    let mut command = Command::new(&program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments).env(VARIABLE, "1").stdin(Stdio::null()).stdout(Stdio::piped());
    // What others had open when they started us, a lock of a script for instance, must not stay open as long as the mount.
    backy_process::close_descriptors(&mut command);
    let mut child = command.spawn().map_err(failed)?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        // An error means the same as an early end.
        drop(BufReader::new(output).read_line(&mut line));
    }
    if line == READY {
        return Ok(());
    }
    let status = child.wait().map_err(failed)?;
    Err(Error::BackgroundFailed { status })
}

/// Makes this process independent of the terminal and of the shell's groups of processes.
pub(crate) fn leave_terminal() {
    if let Err(error) = nix::unistd::setsid() {
        tracing::debug!(
            error = backy_store::error::in_full(&error),
            "staying in the session of the terminal"
        );
    }
}

/// Tells the process that waits that the mount is ready, and lets go of it and of the working directory.
pub(crate) fn announce() -> Result<()> {
    let mut output = std::io::stdout().lock();
    output
        .write_all(READY.as_bytes())
        .and_then(|()| output.flush())
        .map_err(|source| Error::io("write to", "standard output", source))?;
    let null = std::fs::File::options().write(true).open("/dev/null");
    let null = null.map_err(|source| Error::io("open", "/dev/null", source))?;
    nix::unistd::dup2_stdout(&null).map_err(|errno| Error::io("redirect", "standard output", errno))?;
    // Whoever reads the end of standard error, through a pipe for instance, must not wait for the mount to end.
    nix::unistd::dup2_stderr(&null).map_err(|errno| Error::io("redirect", "standard error", errno))?;
    std::env::set_current_dir("/").map_err(|source| Error::io("enter", "/", source))
}
