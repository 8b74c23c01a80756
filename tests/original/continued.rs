//! Going on where the original ended: a store beside its jobs, backups, forgetting and purging.

use std::fs;
use std::process::{Command, Stdio};

use backy_testkit::Original;

use crate::unpack;

/// Makes a revision's image the source of the job.
fn make_source(original: &Original, id: &str) {
    let config = fs::read_to_string(original.dir().join("config")).expect("the original's configuration");
    let name = config.lines().find_map(|line| line.trim().strip_prefix("filename: ")).expect("a source");
    let source = fs::File::create(original.path(name)).expect("a file");
    let mut restore = original.command(&["restore", "-r", id, "-"]);
    assert!(restore.stdout(Stdio::from(source)).status().expect("it runs").success());
}

#[test]
fn the_next_backup_continues_the_job_and_recognises_what_has_not_changed() {
    for name in ["vm-alpha", "vm-cow"] {
        let original = unpack(name);
        let last = original.revisions.last().expect("it has some").clone();
        make_source(&original, &last.id);
        original.init();
        let id = original.run(&["backup", "daily"]).expect(0).line();
        assert_eq!(original.sha256(&id).expect("it restores"), last.sha256);
        let text = fs::read_to_string(original.dir().join(format!("{id}.rev"))).expect("a manifest");
        let fact = |key: &str| {
            let line =
                text.lines().find_map(|line| line.trim().strip_prefix(key)).expect("the fact is there");
            line.trim_start_matches(": ").to_owned()
        };
        assert_eq!(fact("continues"), last.id);
        assert_eq!(fact("parent"), last.id);
        let stored: u64 = fact("new_bytes").parse::<u64>().expect("a number")
            + fact("known_bytes").parse::<u64>().expect("a number");
        let recognised: u64 = fact("recognised_bytes").parse().expect("a number");
        // The last chunk of vm-alpha's newest revision is longer than the image: it has another hash.
        assert!(recognised > 0 && stored - recognised < 4 << 20, "{recognised} of {stored}");
        original.must_restore_all("after a backup");
        let next = original.run(&["backup", "daily"]).expect(0).line();
        assert_eq!(original.sha256(&next).expect("it restores"), last.sha256);
        original.run(&["verify", "-r", "all"]).expect(0);
    }
}

#[test]
fn what_is_forgotten_can_be_undeleted_and_is_freed_by_a_purge_alone() {
    for name in ["vm-alpha", "vm-alpha-v1"] {
        let mut original = unpack(name);
        original.init();
        let (all, before) = (original.chunks(), original.fingerprint());
        let gone = original.revisions.remove(2);
        original.run(&["forget", "-r", &gone.id]).expect(0);
        original.run(&["purge"]).expect(0);
        assert_eq!(original.chunks(), all, "it is held");
        original.run(&["undelete", "-r", &gone.id]).expect(0);
        let manifest = original.dir().join(format!("{}.rev", gone.id));
        assert_eq!(original.fingerprint().get(&manifest), before.get(&manifest));
        assert_eq!(original.sha256(&gone.id).expect("it restores"), gone.sha256);
        original.run(&["forget", "-r", &gone.id]).expect(0);
        original.run(&["purge", "--now", "--dry-run"]).expect(0);
        assert_eq!(original.chunks(), all);
        original.run(&["purge", "--now"]).expect(0);
        assert!(original.chunks().len() < all.len(), "{name}: what nobody needs goes");
        assert!(!original.dir().join(&gone.id).exists() && !original.dir().join(".purge_pending").exists());
        original.must_restore_all("after a purge");
        original.run(&["verify", "-r", "all"]).expect(0);
    }
}

#[test]
fn expire_works_on_the_originals_revisions_with_its_own_configuration() {
    let original = unpack("vm-alpha");
    original.init();
    original.run(&["expire"]).expect(0);
    let listed = original.run(&["find", "-r", "all", "--uuid"]).expect(0);
    // `keep: 7` daily ones: there are not so many that one could go.
    assert_eq!(listed.text().lines().count(), 4);
    original.must_restore_all("after an expire");
}

#[test]
fn a_raw_image_goes_with_its_revision() {
    let mut original = unpack("vm-cow");
    original.init();
    let gone = original.revisions.remove(0);
    original.run(&["forget", "-r", &gone.id]).expect(0);
    original.run(&["purge", "--now"]).expect(0);
    assert!(!original.dir().join(&gone.id).exists());
    assert!(
        Command::new("test")
            .arg("-f")
            .arg(original.dir().join(&original.revisions[0].id))
            .status()
            .is_ok_and(|status| status.success())
    );
    original.must_restore_all("after a purge");
}
