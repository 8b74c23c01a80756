//! What systemd is told, by a socket that stands for it.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;

use super::server::{Server, until};

#[test]
fn systemd_hears_of_readiness_reload_life_and_end() {
    let mut server = Server::new();
    server.configure(&[]);
    let path = server.world.path("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    let heard = Arc::new(Mutex::new(String::new()));
    let hears = Arc::clone(&heard);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length) = socket.recv(&mut buffer) {
            let mut heard = hears.lock().expect("the lock is whole");
            heard.push_str(&String::from_utf8_lossy(&buffer[..length]));
            heard.push('\n');
        }
    });
    let hears = |what: &str| heard.lock().expect("the lock is whole").matches(what).count();
    server.start_with(&[("NOTIFY_SOCKET", &path), ("WATCHDOG_USEC", Path::new("400000"))]);
    until("it is ready", || hears("READY=1") == 1);
    until("it lives", || hears("WATCHDOG=1") > 5);
    server.signal(Signal::SIGHUP);
    until("it reloads", || {
        hears("RELOADING=1") == 1 && hears("MONOTONIC_USEC=") == 1 && hears("READY=1") == 2
    });
    assert_eq!(server.stop(), Some(0));
    until("it ends", || hears("STOPPING=1") == 1);
    assert!(hears("STATUS=0 jobs") >= 1);
}
