//! The process that serves a mount: it ends well on signals and when someone unmounts from outside, its mount
//! can be made anew after it was killed, and in the background it returns when the mount is ready.
//!
//! This program is its own subject: with `foreground` or `background` as first argument it serves. It has no
//! test harness, because [`backy_fuse::run`] wants to wait for signals in the main thread.

#![allow(clippy::unwrap_used, missing_docs)]

mod place;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use backy_fuse::Options;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use place::{Place, can_mount, is_mounted, soon};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode @ ("foreground" | "background"), base, point] =
        arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice()
    {
        let options = Options::parse(&["cache=8M".to_owned()]).unwrap();
        backy_fuse::run(Path::new(base), Path::new(point), &options, *mode == "background").unwrap();
        return;
    }
    if can_mount() {
        signals_end_the_process_well();
        unmounting_from_outside_ends_the_process_well();
        a_busy_mount_ends_when_its_last_file_is_closed();
        a_second_signal_does_not_wait();
        a_killed_mount_can_be_made_anew();
        in_the_background_it_returns_when_the_mount_is_ready();
    }
}

fn command(place: &Place, mode: &str) -> Command {
    // What starts the tests may ignore signals (`nohup`, a shell's background), and children inherit that.
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP,INT,TERM").arg(std::env::current_exe().unwrap());
    command.arg(mode).arg(place.store()).arg(place.point()).stdin(Stdio::null()).stderr(Stdio::null());
    command
}

/// A process that serves a mount. A test that fails leaves neither behind.
struct Served {
    child: Child,
    point: PathBuf,
}

impl Drop for Served {
    fn drop(&mut self) {
        if std::thread::panicking() {
            drop(self.child.kill());
            drop(Command::new("umount").arg("-l").arg(&self.point).status());
        }
    }
}

fn serve() -> (Place, Served) {
    let place = Place::new();
    place.add(1, "", b"one");
    let served = serve_again(&place);
    (place, served)
}

fn serve_again(place: &Place) -> Served {
    let child = command(place, "foreground").spawn().unwrap();
    let served = Served { child, point: place.point() };
    soon("the mount is ready", || std::fs::read(place.path("web01/last/image")).is_ok());
    served
}

fn send(served: &Served, signal: Signal) {
    kill(Pid::from_raw(served.child.id() as i32), signal).unwrap();
}

fn end_of(mut served: Served) -> ExitStatus {
    let mut status = None;
    soon("the process ends", || {
        status = served.child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

fn signals_end_the_process_well() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let (place, served) = serve();
        send(&served, signal);
        assert!(end_of(served).success(), "{signal}");
        assert!(!is_mounted(&place.point()));
    }
}

fn unmounting_from_outside_ends_the_process_well() {
    let (place, served) = serve();
    assert!(Command::new("umount").arg(place.point()).status().unwrap().success());
    assert!(end_of(served).success());
}

fn a_busy_mount_ends_when_its_last_file_is_closed() {
    let (place, mut served) = serve();
    let file = File::open(place.path("web01/last/image")).unwrap();
    send(&served, Signal::SIGTERM);
    soon("the mount is out of the tree", || !is_mounted(&place.point()));
    assert_eq!(file.read_at(&mut [0; 3], 0).unwrap(), 3);
    assert!(served.child.try_wait().unwrap().is_none());
    drop(file);
    assert!(end_of(served).success());
}

fn a_second_signal_does_not_wait() {
    let (place, served) = serve();
    let file = File::open(place.path("web01/last/image")).unwrap();
    send(&served, Signal::SIGTERM);
    soon("the mount is out of the tree", || !is_mounted(&place.point()));
    send(&served, Signal::SIGTERM);
    assert_eq!(end_of(served).code(), Some(101), "this program panics on every error");
    drop(file);
}

fn a_killed_mount_can_be_made_anew() {
    let (place, served) = serve();
    send(&served, Signal::SIGKILL);
    end_of(served);
    assert!(is_mounted(&place.point()), "a killed process leaves a dead mount");
    let served = serve_again(&place);
    send(&served, Signal::SIGTERM);
    assert!(end_of(served).success());
    assert!(!is_mounted(&place.point()), "the dead mount is gone as well");
}

fn in_the_background_it_returns_when_the_mount_is_ready() {
    let place = Place::new();
    place.add(1, "", b"one");
    assert!(command(&place, "background").status().unwrap().success());
    assert_eq!(std::fs::read(place.path("web01/last/image")).unwrap(), b"one");
    let output = command(&place, "background").output().unwrap();
    assert!(!output.status.success(), "a second mount at the same place");
    assert!(output.stdout.is_empty());
    assert!(Command::new("umount").arg(place.point()).status().unwrap().success());
    soon("its readers' sessions are gone", || !is_mounted(&place.point()));
}
