//! The scheduler service as a real process: real jobs on a real store, with intervals of seconds.

#![expect(clippy::disallowed_methods, reason = "tests handle files as anybody would")]

mod children;
mod faults;
mod peers;
mod reload;
mod server;
mod stuck;
mod systemd;
mod threads;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use backy_testkit::{CHUNK, Image, World};

use self::server::{Server, until};

const BINARY: &str = env!("CARGO_BIN_EXE_backy");

/// Writes an image of two and a half chunks.
fn write_image(world: &World, name: &str, seed: u64) -> Arc<Image> {
    let image = Arc::new(Image::zeros(CHUNK * 5 / 2).words(0, seed).noise(2, seed));
    image.write(&world.path(name));
    image
}

/// Writes a script that can be run.
fn write_script(world: &World, name: &str, text: &str) -> PathBuf {
    let path = world.path(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("write a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it a program");
    path
}

#[test]
fn every_job_runs_on_time_expires_and_can_be_restored() {
    let mut server = Server::new();
    let images = [("vm1", "image1", 1), ("vm2", "image2", 2)];
    let made: Vec<_> = images.iter().map(|(_, name, seed)| write_image(&server.world, name, *seed)).collect();
    server.configure(&[("vm1", "image1", "quick"), ("vm2", "image2", "quick")]);
    server.start();
    let mut seen = std::collections::BTreeSet::new();
    until("six backups of each job", || {
        seen.extend(server.revisions("vm1").into_iter().map(|id| ("vm1", id)));
        seen.extend(server.revisions("vm2").into_iter().map(|id| ("vm2", id)));
        ["vm1", "vm2"].iter().all(|job| seen.iter().filter(|(of, _)| of == job).count() >= 6)
    });
    for job in ["vm1", "vm2"] {
        // Two with each tag, one that has just come.
        until("expiry", || server.revisions(job).len() <= 5);
        let entry = server.entry(job);
        assert_eq!((&entry["sla"], &entry["job"]), (&"OK".into(), &job.into()), "{entry}");
        assert!(entry["last_tags"].as_str().is_some_and(|tags| tags.contains("often")), "{entry}");
    }
    let table = server.client(&["jobs"]).expect(0);
    assert!(table.text().contains("vm1") && table.text().contains("3 jobs shown"), "{table}");
    assert_eq!(server.stop(), Some(0));
    for ((job, ..), image) in images.iter().zip(&made) {
        let (run, restored) = server.world.restore_of(job, "last");
        assert_eq!((run.code(), restored.as_ref()), (0, Some(&**image)), "{run}");
    }
    let log = server.log();
    assert!(log.contains("run/service-started") && log.contains("run/service-ended"), "{log}");
    assert!(!log.contains("T0ken"), "a secret was logged");
}

#[test]
fn the_check_turns_red_when_a_source_disappears_and_green_again() {
    let mut server = Server::new();
    write_image(&server.world, "image1", 1);
    server.configure(&[("vm1", "image1", "quick")]);
    server.start();
    until("a backup", || !server.revisions("vm1").is_empty());
    server.check().expect(0);
    server.client(&["check"]).expect(0);
    let (image, away) = (server.world.path("image1"), server.world.path("away"));
    fs::rename(&image, &away).expect("take the image away");
    until("it is red", || server.check().code() == 2);
    let said = server.client(&["check"]).expect(2);
    assert!(
        said.text().starts_with("CRITICAL: 1 of 1 jobs") && said.text().contains(" vm1: overdue"),
        "{said}"
    );
    until("the failure shows", || server.entry("vm1")["status"] == "failed");
    assert_eq!(server.entry("vm1")["sla"], "TOO OLD");
    assert!(server.log().contains("does not exist"), "{}", server.log());
    fs::rename(&away, &image).expect("bring it back");
    server.client(&["run", "vm1"]).expect(0);
    until("it is green again", || server.check().code() == 0);
    server.client(&["run", "unknown"]).expect(1);
    // A dead service is told, too.
    assert_eq!(server.stop(), Some(0));
    let said = server.check();
    assert!(said.code() >= 1 && said.text().contains("does not run"), "{said}");
    server.client(&["check"]).expect(3);
}

#[test]
fn a_source_that_changed_is_told_by_log_list_and_check() {
    let mut server = Server::new();
    let image = write_image(&server.world, "image1", 1);
    server.configure(&[("vm1", "image1", "default")]);
    server.start();
    server.client(&["run", "vm1"]).expect(0);
    until("a revision", || server.revisions("vm1").len() == 1);
    fs::write(server.world.path("image1"), "").expect("empty the image");
    // What is asked for while a round still runs is ignored.
    until("another", || {
        server.client(&["run", "vm1"]).expect(0);
        server.revisions("vm1").len() >= 2
    });
    until("the log tells", || server.log().contains("source-changed"));
    let said = "it is empty and had 10485760 bytes";
    assert!(server.log().contains(said), "{}", server.log());
    until("the list tells", || server.entry("vm1")["source_changed"] == said);
    assert!(server.client(&["jobs"]).expect(0).text().contains("source changed"));
    assert!(server.client(&["check"]).expect(1).text().contains(said));
    server.check().expect(1);
    image.write(&server.world.path("image1"));
    until("it is over", || {
        server.client(&["run", "vm1"]).expect(0);
        server.check().code() == 0
    });
}

#[test]
fn the_callback_gets_the_job_and_its_revisions() {
    let server = Server::new();
    let called = server.world.path("called");
    let script = format!("echo \"$1\" >> {0}; cat >> {0}", called.display());
    let script = write_script(&server.world, "callback", &script);
    let mut server = server.with_global(&format!("backup-completed-callback: {}", script.display()));
    write_image(&server.world, "image1", 1);
    server.configure(&[("vm1", "image1", "quick")]);
    server.start();
    until("it is called", || {
        fs::read_to_string(&called).is_ok_and(|text| text.contains("backend_type: framed"))
    });
    let text = fs::read_to_string(&called).expect("read what it was told");
    assert!(text.starts_with("vm1\n- ") && text.contains("- often"), "{text}");
}

#[test]
fn a_distrusted_revision_is_verified_after_the_next_backup() {
    let mut server = Server::new();
    write_image(&server.world, "image1", 1);
    server.configure(&[("vm1", "image1", "default")]);
    server.start();
    server.client(&["run", "vm1"]).expect(0);
    until("a revision", || server.revisions("vm1").len() == 1);
    // A job that runs does not begin once more.
    until("the round is over", || server.entry("vm1")["status"] == "waiting for deadline");
    server.client(&["run", "vm1"]).expect(0);
    until("another", || server.revisions("vm1").len() == 2);
    backy_testkit::Run::of(&mut server.world.command_for("vm1", &["distrust", "-r", "all"])).expect(0);
    until("the check tells of it", || server.check().code() == 2);
    server.client(&["run", "vm1"]).expect(0);
    until("all are verified", || {
        let all = backy_testkit::Run::of(&mut server.world.command_for("vm1", &["status", "--json"])).json();
        let trust = |revision: &serde_json::Value| revision["trust"] == "distrusted";
        all["revisions"].as_array().is_some_and(|all| all.len() == 3 && !all.iter().any(trust))
    });
    server.client(&["check"]).expect(0);
}
