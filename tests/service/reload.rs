//! Configuration that changes, disappears or makes no sense.

use std::fs;

use backy_testkit::Run;
use nix::sys::signal::Signal;

use super::server::{Server, until};
use super::write_image;

#[test]
fn a_reload_is_all_or_nothing_and_a_job_that_vanished_loses_nothing() {
    let mut server = Server::new();
    write_image(&server.world, "image1", 1);
    write_image(&server.world, "image2", 2);
    server.configure(&[("vm1", "image1", "quick"), ("vm2", "image2", "quick")]);
    server.start();
    until("backups", || server.revisions("vm1").len() > 1 && server.revisions("vm2").len() > 1);
    let good = fs::read_to_string(server.conf()).expect("read the configuration");
    for (bad, why) in [
        (String::new(), "it is empty"),
        (good.replace("schedule: quick", "schedule: quikc"), "did you mean quick"),
        (good.replace("jobs:", "job:"), "unknown key"),
        (good[..good.len() / 2].to_owned(), "cannot be used"),
        (good.replace("/srv\n", "/elsewhere\n"), "base-dir was changed"),
    ] {
        fs::write(server.conf(), &bad).expect("write");
        let conf = "good.conf";
        fs::write(server.world.path(conf), &good).expect("write");
        let run = Run::of(&mut server.world.bare(&["client", "-c", conf, "reload"])).expect(1);
        assert!(run.stderr.contains(why) || run.text().contains(why), "{why}\n{run}");
        let jobs =
            Run::of(&mut server.world.bare(&["client", "-c", conf, "--json", "jobs"])).expect(0).json();
        assert_eq!(jobs["jobs"].as_array().map(Vec::len), Some(3), "what was in force stays");
    }
    fs::remove_file(server.conf()).expect("remove");
    server.signal(Signal::SIGHUP);
    until("it is refused", || server.log().contains("No such file"));
    let count = server.revisions("vm1").len() + server.revisions("vm2").len();
    assert!(count >= 4);
    // A job goes, another comes.
    write_image(&server.world, "image3", 3);
    server.configure(&[("vm1", "image1", "quick"), ("vm3", "image3", "quick")]);
    server.signal(Signal::SIGHUP);
    until("the new job runs", || !server.revisions("vm3").is_empty());
    assert_eq!(server.entry("vm2")["status"], "Dead");
    let left = server.revisions("vm2");
    assert!(!left.is_empty());
    let round = server.revisions("vm1").last().cloned();
    until("others go on", || server.revisions("vm1").last().cloned() != round);
    assert_eq!(server.revisions("vm2"), left, "nobody expires it");
    // It comes back with all it had.
    server.configure(&[("vm1", "image1", "quick"), ("vm2", "image2", "quick")]);
    server.client(&["reload"]).expect(0);
    until("it runs again", || server.revisions("vm2").iter().any(|id| !left.contains(id)));
}

#[test]
fn the_api_moves_with_the_configuration_and_never_to_a_place_that_is_taken() {
    let mut server = Server::new();
    server.configure(&[]);
    server.start();
    let good = fs::read_to_string(server.conf()).expect("read");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken_port = taken.local_addr().expect("it has an address").port();
    fs::write(server.world.path("good.conf"), &good).expect("write");
    let moved = |port: u16| good.replace(&format!("port: {}", server.port), &format!("port: {port}"));
    fs::write(server.conf(), moved(taken_port)).expect("write");
    let run = Run::of(&mut server.world.bare(&["client", "-c", "good.conf", "reload"])).expect(1);
    assert!(run.stderr.contains(&taken_port.to_string()), "{run}");
    drop(taken);
    Run::of(&mut server.world.bare(&["client", "-c", "good.conf", "reload"])).expect(0);
    until("it answers there", || server.client(&["status"]).code() == 0);
    Run::of(&mut server.world.bare(&["client", "-c", "good.conf", "status"])).expect(1);
    // Without tokens there is no API; with a token there is one again.
    fs::write(server.conf(), moved(taken_port).replace("  tokens: {T0ken: tests}\n", "")).expect("write");
    server.signal(Signal::SIGHUP);
    until("nobody answers", || server.client(&["status"]).code() == 1);
    fs::write(server.conf(), &good).expect("write");
    server.signal(Signal::SIGHUP);
    until("it answers again", || server.client(&["status"]).code() == 0);
}

#[test]
fn a_service_that_cannot_run_says_why() {
    let mut server = Server::new();
    server.configure(&[]);
    let scheduler = |server: &Server| {
        Run::of(&mut server.world.bare(&["-l", "other.log", "scheduler", "-c", "backy.conf"]))
    };
    server.start();
    scheduler(&server).expect(69).says("another service runs already");
    assert_eq!(server.stop(), Some(0));
    // The base directory's file system is not mounted.
    let (store, away) = (server.world.store(), server.world.path("away"));
    fs::rename(&store, &away).expect("take the store away");
    fs::create_dir(&store).expect("an empty mount point");
    scheduler(&server).expect(1).says("hint: create one with `backy init");
    assert_eq!(fs::read_dir(&store).expect("list").count(), 0, "nothing is made there");
    fs::remove_file(server.conf()).expect("remove");
    scheduler(&server).expect(1).says("backy.conf");
    // `-b` has no effect.
    Run::of(&mut server.world.bare(&["-b", "x", "scheduler", "-c", "backy.conf"]))
        .expect(1)
        .says("backy.conf");
}

/// A configuration that cannot be read to its end must not keep the service from its work, nor from ending.
#[test]
fn a_configuration_that_hangs_hangs_alone() {
    let mut server = Server::new();
    write_image(&server.world, "image1", 1);
    server.configure(&[("vm1", "image1", "quick")]);
    server.start();
    until("a backup", || !server.revisions("vm1").is_empty());
    fs::rename(server.conf(), server.world.path("good.conf")).expect("move it away");
    nix::unistd::mkfifo(&server.conf(), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    server.signal(Signal::SIGHUP);
    until("it is refused", || server.log().contains("not a regular file"));
    let before = server.revisions("vm1");
    until("the jobs go on", || server.revisions("vm1").last() != before.last());
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_former_job_that_hangs_delays_no_reload() {
    let mut server = Server::new();
    write_image(&server.world, "image1", 1);
    server.configure(&[("vm1", "image1", "quick")]);
    server.start();
    let former = server.world.store().join("former");
    fs::create_dir(&former).expect("a directory");
    fs::write(former.join("config"), "source: {type: rbd, pool: rbd, image: former}\n").expect("write");
    // Who opens it waits, as for a disk that hangs.
    let note = former.join(".snapshots");
    nix::unistd::mkfifo(&note, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    for _ in 0..3 {
        server.client(&["reload"]).expect(0);
    }
    write_image(&server.world, "image2", 2);
    server.configure(&[("vm2", "image2", "quick")]);
    server.client(&["reload"]).expect(0);
    until("the new job runs", || !server.revisions("vm2").is_empty());
    assert!(!server.log().contains("backy release"), "{}", server.log());
    // Once it answers, the job is named.
    fs::write(&note, "MPSxF8qWSzaZzDJyRZCYhK\n").expect("write");
    until("it is named", || server.log().contains("`backy release` removes it"));
    fs::remove_file(&note).expect("remove");
}

#[test]
fn the_files_of_jobs_follow_the_configuration_and_the_original_is_kept_out() {
    let mut server = Server::new();
    write_image(&server.world, "image1", 1);
    server.configure(&[("vm1", "image1", "default")]);
    server.start();
    let config = server.world.store().join("vm1/config");
    until("the directory is made before the first round", || config.exists());
    // A job on another disk, which is away, is not made anew.
    std::os::unix::fs::symlink("/no/such/disk", server.world.store().join("vm2")).expect("a link");
    server.configure(&[("vm1", "image2", "default"), ("vm2", "image1", "default")]);
    server.client(&["reload"]).expect(0);
    let text = fs::read_to_string(&config).expect("the configuration of the job");
    assert!(text.contains("image2"), "{text}");
    until("it is told", || server.log().contains("job-not-prepared"));
    assert!(server.check().expect(2).text().contains("CRITICAL vm2: cannot be looked at"));
    // The scheduler of the original takes this lock, and ours respects it.
    let lock = fs::File::open(server.world.store().join(".lock")).expect("the lock of the original");
    assert!(matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)));
    assert_eq!(server.stop(), Some(0));
    lock.lock().expect("a lock");
    let second = Run::of(&mut server.world.bare(&["-c", "backy.conf", "-l", "log", "scheduler"])).expect(69);
    assert!(second.stderr.contains("service of the original"), "{second}");
    lock.unlock().expect("a lock");
}
