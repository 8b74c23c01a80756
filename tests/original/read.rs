//! Reading in place: no byte, no time and no mode of the original's directory changes.

use std::fs::File;

use backy_testkit::Run;

use crate::{ALL, unpack};

#[test]
fn every_revision_restores_exactly_and_the_directory_stays_as_it_is() {
    for name in ALL {
        let original = unpack(name);
        let before = original.fingerprint();
        for words in [
            &["status"][..],
            &["status", "--json"],
            &["find", "-r", "all"],
            &["find", "-r", "tag:daily&trust:trusted", "--uuid"],
        ] {
            let run = original.run(words);
            assert!(run.code() <= 1 && !run.stderr.contains("panicked"), "{run}");
        }
        original.must_restore_all(name);
        let run = original.run(&["verify", "-r", "all"]).expect(0);
        assert_eq!(run.text().matches(" good").count(), original.revisions.len(), "{run}");
        let mut command = original.command(&["upgrade", "--dry-run"]);
        Run::of(&mut command).expect(0);
        assert!(original.fingerprint() == before, "{name}: the directory changed");
    }
}

#[test]
fn what_needs_a_store_says_how_to_make_one_and_changes_nothing() {
    let original = unpack("vm-alpha");
    let before = original.fingerprint();
    for words in [&["backup", "daily"][..], &["purge"], &["upgrade"], &["index", "rebuild"]] {
        original.run(words).expect(1).says("backy init ");
    }
    assert!(original.fingerprint() == before, "the directory changed");
}

#[test]
fn the_originals_answers_to_revision_specifications_hold() {
    // What is not in this list of the original's defects must be answered as it did (see the store's own test).
    const DEFECTS: [&str; 4] = ["..2024-01-01", "2025-01-01..", "2024-03-04T02:10:00.123456..", "daily"];
    let original = unpack("vm-alpha");
    let recorded: serde_json::Value =
        serde_json::from_str(include_str!("../fixtures/vm-alpha.revspec.json")).expect("it is JSON");
    let answers = recorded["answers"].as_object().expect("an object");
    for (spec, answer) in answers.iter().filter(|(spec, _)| !DEFECTS.contains(&spec.as_str())) {
        let run = original.run(&["find", "--uuid", "-r", spec]);
        assert_eq!(i64::from(run.code()), answer["rc"].as_i64().unwrap_or(-1), "{spec}: {run}");
        let found: Vec<&str> = run.text().lines().collect();
        assert_eq!(serde_json::json!(found), answer["uuids"], "{spec}");
    }
    assert!(answers.len() > 50);
}

#[test]
fn a_check_tells_of_the_originals_jobs() {
    let original = unpack("vm-alpha");
    let config = original.path("backy.conf");
    let text = format!(
        "global: {{base-dir: {}}}\nschedules: {{usual: {{daily: {{interval: 1d, keep: 7}}}}}}\n\
         jobs: {{vm-alpha: {{schedule: usual, source: {{type: file, filename: /x}}}}}}\n",
        original.base().display()
    );
    std::fs::write(&config, text).expect("write a configuration");
    let before = original.fingerprint();
    let run = Run::of(&mut original.bare(&["check", "-c", config.to_str().expect("a path")]));
    assert!(run.code() == 2 && run.text().contains("vm-alpha"), "an overdue job: {run}");
    assert!(original.fingerprint() == before, "the directory changed");
}

#[test]
fn tags_and_trust_are_written_as_the_original_writes_them() {
    let original = unpack("vm-alpha");
    let id = &original.revisions[3].id;
    original.run(&["tags", "set", "-r", id, "weekly,manual:x"]).code();
    let run = original.run(&["tags", "set", id, "weekly,manual:x"]);
    assert_eq!(run.code(), 0, "{run}");
    original.run(&["distrust", "-r", id]).expect(0);
    let text = std::fs::read_to_string(original.dir().join(format!("{id}.rev"))).expect("a manifest");
    let old = "# Please use the `backy tags` subcommand to edit tags\nbackend_type: chunked\norig_tags: []\n\
        parent: NasmZPQrm9pQg5pU2YqsRq\nserver: ''\nstats:\n  bytes_written: 29361664\n  duration: 0.18463993072509766\n\
        tags:\n- manual:x\n- weekly\ntimestamp: 2024-03-06 02:10:00.000001+00:00\ntrust: distrusted\n\
        uuid: nLtZRhDykuHTLKWoFJ9Twg\n";
    assert_eq!(text, old);
    original.must_restore_all("with other tags");
}

#[test]
fn the_originals_locks_are_respected() {
    let original = unpack("vm-alpha");
    let id = original.revisions[0].id.clone();
    let purge = File::open(original.dir().join(".purge")).expect("the lock file");
    purge.lock().expect("it is free");
    original.run(&["restore", "-r", &id, "-"]).expect(3).says("purge");
    purge.unlock().expect("it was ours");
    purge.lock_shared().expect("it is free");
    assert!(original.sha256(&id).is_ok(), "readers share the lock");
    original.init();
    original.run(&["forget", "-r", &id]).expect(0);
    original.run(&["purge", "--now"]).expect(0).says("wait for a later purge");
    drop(purge);
    original.run(&["purge", "--now"]).expect(0);
    let backup = File::open(original.dir().join(".backup")).expect("the lock file");
    backup.lock().expect("it is free");
    original.run(&["upgrade"]).expect(3);
}
