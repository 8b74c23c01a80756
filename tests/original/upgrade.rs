//! The upgrade: whole, cut off at any change, and beside readers.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use backy_testkit::{Original, Run, every};

use crate::{ALL, unpack};

fn upgraded(original: &Original, when: &str) {
    let run = original.run(&["upgrade"]);
    assert_eq!(run.code(), 0, "{when}: {run}");
    assert!(original.chunks().is_empty(), "{when}: chunks of the original are left");
    for revision in &original.revisions {
        let dir = original.dir();
        let left = ["", ".old", ".purged"].map(|end| dir.join(format!("{}{end}", revision.id)));
        assert!(left.iter().all(|path| !path.exists()), "{when}: an image of the original is left");
    }
    assert!(!original.dir().join(".purge_pending").exists(), "{when}");
}

#[test]
fn an_upgrade_keeps_everything_but_the_format() {
    for name in ALL {
        let original = unpack(name);
        original.init();
        let before = original.run(&["status", "--json"]).expect(0).json();
        let told = original.run(&["upgrade", "--dry-run"]).expect(0);
        assert_eq!(told.text().matches("would upgrade").count(), original.revisions.len(), "{told}");
        upgraded(&original, name);
        original.must_restore_all(name);
        let after = original.run(&["status", "--json"]).expect(0).json();
        for (before, after) in before["revisions"]
            .as_array()
            .into_iter()
            .flatten()
            .zip(after["revisions"].as_array().into_iter().flatten())
        {
            for key in [
                "id",
                "timestamp",
                "tags",
                "trust",
                "bytes_written",
                "duration",
                "image_size",
                "parent",
                "complete",
            ] {
                assert_eq!(before[key], after[key], "{name}: {key}");
            }
            assert_eq!(after["backend_type"], "framed");
        }
        original.run(&["verify", "-r", "all"]).expect(0);
        original.run(&["purge", "--now"]).expect(0);
        original.must_restore_all("after a purge");
        let again = original.run(&["upgrade"]).expect(0);
        assert!(again.text().contains("nothing to upgrade"), "{again}");
    }
}

/// Cuts the upgrade off at every change, or unless `BACKY_TEST_SLOW` is set that of two revisions at each `step`-th; after
/// each every revision must be as it was, and the next run must end it.
fn cut_off_everywhere(name: &str, fault: &str, step: u64) -> u64 {
    let mut clean = unpack(name);
    let is_deep = std::env::var_os("BACKY_TEST_SLOW").is_some();
    if !is_deep {
        clean.keep_first(2);
    }
    clean.init();
    let step = if is_deep { 1 } else { step };
    let done = AtomicU64::new(0);
    every(|trial| {
        let number = 1 + (trial - 1) * step;
        let original = clean.copy();
        let mut command = original.command(&["upgrade", "--threads", "1"]);
        let run = Run::of(command.env("BACKY_FAULT", format!("{fault}:{number}")));
        let Some((operation, path)) = run.fault() else {
            run.expect(0);
            return false;
        };
        let when = format!("{name}: {fault} {number} at {operation} {path}");
        assert!(!run.stderr.contains("panicked"), "{when}: {run}");
        original.must_restore_all(&when);
        let listed = original.run(&["find", "-r", "all", "--uuid"]).expect(0);
        assert_eq!(listed.text().lines().count(), original.revisions.len(), "{when}");
        upgraded(&original, &when);
        original.must_restore_all(&format!("{when}, then upgraded"));
        original.run(&["purge", "--now"]).expect(0);
        original.run(&["verify", "-r", "all"]).expect(0);
        assert!(original.run(&["upgrade"]).expect(0).text().contains("nothing"), "{when}");
        done.fetch_add(1, Ordering::Relaxed);
        true
    });
    let done = done.into_inner();
    println!("{name}: {fault} at {done} points");
    done
}

#[test]
fn an_upgrade_killed_at_any_change_goes_on() {
    assert!(cut_off_everywhere("vm-cow", "kill", 2) > 20);
    assert!(cut_off_everywhere("vm-alpha", "kill", 4) > 10);
}

#[test]
fn an_upgrade_that_meets_an_error_at_any_change_goes_on() {
    assert!(cut_off_everywhere("vm-cow", "eio", 3) > 13);
    assert!(cut_off_everywhere("vm-alpha-v1", "enospc-on", 7) > 4);
}

#[test]
fn a_purge_of_the_originals_chunks_killed_at_any_change_goes_on() {
    let mut clean = unpack("vm-alpha");
    clean.init();
    let gone = clean.revisions.remove(2);
    clean.run(&["forget", "-r", &gone.id]).expect(0);
    let trials = every(|number| {
        let original = clean.copy();
        let run = Run::of(original.command(&["purge", "--now"]).env("BACKY_FAULT", format!("kill:{number}")));
        if !run.was_killed() {
            run.expect(0);
            return false;
        }
        original.must_restore_all(&format!("{:?}", run.fault()));
        original.run(&["purge", "--now"]).expect(0);
        assert!(!original.dir().join(&gone.id).exists() && !original.dir().join(".purge_pending").exists());
        original.must_restore_all("purged again");
        true
    });
    assert!(trials > 8, "{trials}");
}

#[test]
fn all_jobs_of_a_configuration_are_upgraded() {
    let original = unpack("vm-alpha");
    let other = unpack("vm-cow");
    fs::rename(other.dir(), original.base().join("vm-cow")).expect("move a job");
    original.init();
    let config = original.path("backy.conf");
    let text = format!(
        "global: {{base-dir: {}}}\nschedules: {{daily: {{daily: {{interval: 1d, keep: 7}}}}}}\njobs: {{}}\n",
        original.base().display()
    );
    fs::write(&config, text).expect("write a configuration");
    let run = original.run(&["upgrade", "-c", config.to_str().expect("a path")]).expect(0);
    assert_eq!(run.text().matches("upgraded").count(), 2, "{run}");
    original.must_restore_all("after the upgrade");
}
