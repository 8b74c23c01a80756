//! Tells systemd, where it runs, how the service is. Without it nobody listens.
//!
//! The main loop calls this, the watchdog's keep-alive above all: so it never waits for systemd. What finds no room in
//! the socket is tried again for a moment, then given up; the next keep-alive comes at half the watchdog's time.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;

const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(10);

fn tell(states: &[NotifyState<'_>]) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else { return };
    let mut message = String::new();
    for state in states {
        // Writing to a string cannot fail.
        let _ = writeln!(message, "{state}");
    }
    if let Err(error) = send(&socket, message.as_bytes()) {
        tracing::warn!(error = crate::error::in_full(&error), "cannot tell systemd how the service is");
    }
}

fn send(socket: &OsStr, message: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    for _ in 1..TRIES {
        match sender.send_to_addr(message, &address) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
            sent => return sent.map(drop),
        }
    }
    sender.send_to_addr(message, &address).map(drop)
}

/// The service has started, or has read its configuration again.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The configuration is being read again.
pub(super) fn reloading() {
    let mut states = vec![NotifyState::Reloading];
    states.extend(NotifyState::monotonic_usec_now().ok());
    tell(&states);
}

/// The service is about to end.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// What it does, for people.
pub(super) fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// Sends the watchdog's keep-alive. Only the main loop does.
pub(super) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often systemd wants the keep-alive.
pub(super) fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|patience| patience / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_that_does_not_listen_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), b"READY=1\n").unwrap();
        let mut buffer = [0; 64];
        assert_eq!(manager.recv(&mut buffer).unwrap(), 8);
        // It takes so many messages and then no more.
        let full = (0..100_000).find_map(|_| send(path.as_os_str(), b"WATCHDOG=1\n").err()).unwrap();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        drop(manager);
        assert!(send(path.as_os_str(), b"READY=1\n").is_err());
    }
}
