//! The scheduler service with a job of this type.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use backy_testkit::{Run, World};

use crate::cluster;
use crate::cluster::Change::Write;
use crate::cluster::noise;

const C: u64 = 4 << 20;

/// Ends the service with the test.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        backy_testkit::end_gently(&mut self.0);
    }
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(90), "it did not come about: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn the_service_backs_images_up_and_reads_only_what_changed() {
    let cluster = cluster!();
    let disk = cluster.image(10 * C, &[]);
    disk.change(10 * C, &[Write(C, noise(1, 2 << 20))]);
    let mut world = World::new(env!("CARGO_BIN_EXE_backy"));
    let conf = cluster.conf.to_string_lossy().into_owned();
    world.set("CEPH_CONF", &conf);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = format!(
        "global: {{base-dir: {}}}\napi: {{addrs: 127.0.0.1, port: {port}, tokens: {{T0ken: tests}}, cli-default: {{token: T0ken}}}}\n\
         schedules: {{default: {{daily: {{interval: 1d, keep: 7}}}}}}\n\
         jobs:\n  disk1: {{schedule: default, source: {{type: ceph-rbd, pool: rbd, image: {}}}}}\n",
        world.store().display(),
        disk.name
    );
    fs::write(world.path("backy.conf"), text).unwrap();
    let mut command = world.bare(&["-l", "scheduler.log", "scheduler", "-c", "backy.conf"]);
    let _service = Service(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let client = |words: &[&str]| {
        let all: Vec<&str> = ["client", "-c", "backy.conf"].iter().chain(words).copied().collect();
        Run::of(&mut world.bare(&all))
    };
    let log = || fs::read_to_string(world.path("scheduler.log")).unwrap_or_default();
    until("the service answers", || client(&["status"]).code() == 0);
    let ids = || {
        let run = Run::of(&mut world.command_for("disk1", &["find", "-r", "all", "--uuid"]));
        run.text().lines().map(str::to_owned).collect::<Vec<String>>()
    };
    let mut expected = Vec::new();
    for number in 1..=2 {
        expected.push(cluster.rbd(&["export", "--no-progress", &disk.spec(), "-"]));
        client(&["run", "disk1"]).expect(0);
        until("a revision", || {
            assert!(!log().contains("step-failed"), "{}", log());
            ids().len() == number && log().matches("run/round-over").count() == number
        });
        disk.change(10 * C, &[Write(5 * C, noise(2, 100_000))]);
    }
    client(&["check"]).expect(0);
    for (id, bytes) in ids().iter().zip(&expected) {
        let (run, restored) = world.restore_of("disk1", id);
        assert!(run.code() == 0 && restored.is_some_and(|image| image.0 == *bytes), "{run}");
    }
    let status = Run::of(&mut world.command_for("disk1", &["status", "--json"])).json();
    assert_eq!(status["revisions"][1]["mode"], "incremental", "{status}");
    let last = format!("backy-{}", ids()[1]);
    assert_eq!(disk.snapshots(), std::slice::from_ref(&last), "only that of the newest revision");
    // The job is taken out: its directory knows how to get rid of the snapshot.
    let text = fs::read_to_string(world.path("backy.conf")).unwrap();
    let (without, _) = text.split_once("jobs:").unwrap();
    fs::write(world.path("backy.conf"), format!("{without}jobs: {{}}\n")).unwrap();
    client(&["reload"]).expect(0);
    until("a hint", || log().contains("`backy release` removes it"));
    let run = Run::of(&mut world.command_for("disk1", &["release"])).expect(0);
    assert_eq!(run.line(), format!("removed {}", disk.at(&last)));
    assert!(disk.snapshots().is_empty());
}
