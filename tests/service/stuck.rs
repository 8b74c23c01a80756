//! Nothing that the service writes to, reads or waits for can stop it, or hide that it stands.

use std::fs;
use std::io::{PipeReader, PipeWriter, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::faults::HungMount;
use super::server::{Server, until};
use super::write_image;

/// What the manual promises: the service has ended a minute after the signal. Without work under way it takes no time
/// to speak of; a slow machine is no failure.
const END: Duration = Duration::from_secs(60);

const SCHEDULER: [&str; 3] = ["scheduler", "-c", "backy.conf"];

/// A pipe that takes no more, and whose reader does not read.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("set a flag");
    while writer.write(&[b'x'; 4096]).is_ok() {}
    while writer.write(b"x").is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).expect("clear a flag");
    (reader, writer)
}

/// The service backs up, monitoring sees it, and a signal ends it.
#[track_caller]
fn works_and_ends(server: &mut Server, what: &str) {
    server.answers();
    until("backups", || server.revisions("vm1").len() > 1);
    until("the check is green", || server.check().code() == 0);
    let begun = Instant::now();
    assert_eq!(server.stop(), Some(0), "{what}");
    assert!(begun.elapsed() < END, "{what}: {:?}", begun.elapsed());
}

fn server() -> Server {
    let server = Server::new();
    write_image(&server.world, "image1", 1);
    server.configure(&[("vm1", "image1", "quick")]);
    server
}

#[test]
fn a_stuck_reader_of_standard_error_stops_nothing() {
    let mut server = server();
    let (reader, writer) = full_pipe();
    let mut command = server.world.bare(&["-v", "-l", "scheduler.log"]);
    server.launch_as_it_is(command.args(SCHEDULER).stderr(writer));
    works_and_ends(&mut server, "-v with a full pipe");
    assert!(server.log().contains("run/service-ended"), "{}", server.log());
    drop(reader);
}

#[test]
fn a_log_that_takes_nothing_stops_nothing() {
    let mut server = server();
    // A FIFO is refused while nobody reads it, and does not hang whoever opens it.
    let fifo = server.world.path("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).expect("a FIFO");
    let refused = backy_testkit::Run::of(&mut server.world.bare(&["-l", "fifo", "status"])).expect(1);
    assert!(refused.stderr.contains("a FIFO that no process reads"), "{refused}");
    let mut options = fs::OpenOptions::new();
    let reader = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&fifo).expect("a reader");
    let mut writer = fs::OpenOptions::new();
    let mut writer = writer.write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&fifo).expect("a writer");
    while writer.write(&[b'x'; 4096]).is_ok() {}
    for log in ["fifo", "/dev/full"] {
        let mut command = server.world.bare(&["-l", log]);
        server.launch(command.args(SCHEDULER));
        works_and_ends(&mut server, log);
    }
    drop(reader);
}

#[test]
fn a_default_log_that_cannot_be_opened_is_reported_and_stops_nothing() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: a /var/log of its own needs root");
        return;
    }
    let mut server = server();
    let binary = super::BINARY;
    let script = format!("mount -t tmpfs -o ro none /var/log && exec {binary} scheduler -c backy.conf");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).current_dir(server.world.path("."));
    server.launch(&mut command);
    works_and_ends(&mut server, "a read-only /var/log");
    let errors = fs::read_to_string(server.world.path("scheduler.err")).expect("it is there");
    assert!(errors.contains("warning: cannot open the log /var/log/backy.log: "), "{errors}");
    assert_eq!(errors.matches("cannot open the log").count(), 1, "{errors}");
}

/// Such a process has the lock and nothing else.
#[test]
fn a_service_that_stands_is_critical() {
    let mut server = server();
    // No backup is due that it could miss meanwhile.
    server.configure(&[("vm1", "image1", "default")]);
    server.world.set("BACKY_TEST_SILENCE_MAX_SECS", "1");
    server.start();
    until("it is green", || server.check().code() == 0);
    server.signal(Signal::SIGSTOP);
    until("it is red", || server.check().code() == 2);
    let said = server.check().expect(2);
    assert!(said.text().starts_with("CRITICAL: the scheduler service hangs | "), "{said}");
    assert!(said.text().contains(" service=0\n"), "{said}");
    server.signal(Signal::SIGCONT);
    until("it is green again", || server.check().code() == 0);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_rotated_log_begins_again_and_questions_do_not_fill_it() {
    let mut server = server();
    server.start();
    for _ in 0..3 {
        server.client(&["jobs"]).expect(0);
        server.client(&["check"]);
    }
    let (log, rotated) = (server.world.path("scheduler.log"), server.world.path("scheduler.log.1"));
    fs::rename(&log, &rotated).expect("rotate");
    server.client(&["run", "vm1"]).expect(0);
    until("the log goes on", || server.log().contains("connection/request "));
    assert!(server.log().contains("/v1/jobs/vm1/run"), "{}", server.log());
    let before = fs::read_to_string(&rotated).expect("it is there");
    assert!(!before.contains("connection/request "), "{before}");
    assert_eq!(server.stop(), Some(0));
}

/// Whether the process has a handler for SIGTERM.
fn catches_term(pid: nix::unistd::Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (Signal::SIGTERM as u32 - 1) & 1 == 1
}

#[test]
fn a_signal_ends_a_start_and_a_reload_that_hang() {
    if !std::path::Path::new("/dev/fuse").exists() || !nix::unistd::geteuid().is_root() {
        println!("skipped: a file system that hangs needs /dev/fuse and root");
        return;
    }
    let mut server = server();
    let mount = HungMount::new(&server);
    let mut command = server.world.bare(&["-l", "scheduler.log", "scheduler", "-c", "mnt/hanging.conf"]);
    server.launch(&mut command);
    until("it listens to signals", || catches_term(server.pid()));
    let begun = Instant::now();
    assert_eq!(server.stop(), Some(0));
    assert!(begun.elapsed() < END);

    server.start();
    let idle = TcpStream::connect(("127.0.0.1", server.port)).expect("it listens");
    fs::remove_file(server.conf()).expect("remove the configuration");
    std::os::unix::fs::symlink("mnt/hanging.conf", server.conf()).expect("a link");
    server.signal(Signal::SIGHUP);
    let begun = Instant::now();
    assert_eq!(server.stop(), Some(0));
    assert!(begun.elapsed() < END, "{:?}", begun.elapsed());
    drop((idle, mount));
}

#[test]
fn a_command_is_not_stopped_by_who_does_not_read_its_messages() {
    let server = server();
    let world = &server.world;
    write_image(world, "image.img", 2);
    let (reader, writer) = full_pipe();
    let mut command = world.command(&["-v", "backup", "daily"]);
    let child = command.stderr(writer).stdin(Stdio::null()).process_group(0).spawn();
    let mut child = child.expect("the binary can be started");
    until("the revision is there", || server.revisions(backy_testkit::JOB).len() == 1);
    // At its end it waits for its reader for some seconds, unless that goes.
    drop(reader);
    until("it ends", || child.try_wait().expect("a child can be waited for").is_some());
}
