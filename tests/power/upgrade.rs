//! Power loss during an upgrade of the original's revisions, chunked and raw: on each outcome every revision is there and
//! exact, from its old form or from the new one, and the next upgrade ends it and leaves nothing of the old.
//!
//! One case reads every revision twice, so of several hundred only some are tried: all around a change of a name in the
//! job, where a revision changes hands or its old image goes, and some spread over the others. `BACKY_POWER_CASES` says
//! how many others.

use std::fs;
use std::path::Path;

use backy_testkit::Original;

use crate::disk::{self, Change, Disk, Loss};
use crate::{LOSSES, command, listed, ok, play, restores_to};

const CASES: usize = 24;

/// A job of the original under the name that `command` takes, of which only the first `count` revisions are left, and what
/// they hold.
fn job(name: &str, count: usize) -> (Original, Vec<(String, Vec<u8>)>) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/original");
    let mut original = Original::unpack(env!("CARGO_BIN_EXE_backy"), &fixtures, name);
    let dir = original.base().join("job");
    fs::rename(original.dir(), &dir).expect("rename a job");
    original.job = "job".to_owned();
    original.keep_first(count);
    original.init();
    original.must_restore_all("before the upgrade");
    let content = |id: &str| {
        let output = command(&original.base(), &["restore", "-r", id, "-"]).output().expect("it starts");
        assert!(output.status.success());
        output.stdout
    };
    let kept = original.revisions.iter().map(|it| (it.id.clone(), content(&it.id))).collect();
    (original, kept)
}

fn recorded_upgrade(original: &Original, syncfs: &str) -> Vec<Change> {
    let record = original.path("record");
    let mut run = command(&original.base(), &["upgrade"]);
    ok(&run.env("BACKY_RECORD", &record).env("BACKY_SYNCFS", syncfs).output().expect("it starts"));
    disk::read_record(&record, &original.base())
}

/// Whether a change gives or takes a name in the job's directory.
fn is_of_a_name(change: &Change) -> bool {
    match change {
        Change::Rename(_, path) | Change::Unlink(path) => path.parent() == Some(Path::new("job")),
        _ => false,
    }
}

/// All losses just before and after each change of a name in the job, and others spread over the points of the run.
fn chosen(changes: &[Change]) -> Vec<(usize, Loss)> {
    let wanted = std::env::var("BACKY_POWER_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(CASES);
    let is_near = |count: usize| changes[count.saturating_sub(1)..].iter().take(2).any(is_of_a_name);
    let (near, others): (Vec<usize>, Vec<usize>) = (0..=changes.len()).partition(|&count| is_near(count));
    let all = |counts: Vec<usize>| counts.into_iter().flat_map(|count| LOSSES.map(|loss| (count, loss)));
    // Any number of steps that the losses do not divide comes to all of them in turn.
    let mut step = (others.len() * LOSSES.len()).div_ceil(wanted.max(1));
    step += usize::from(step > 1 && step.is_multiple_of(LOSSES.len()));
    all(near).chain(all(others).step_by(step.max(1))).collect()
}

fn check(store: &Path, kept: &[(String, Vec<u8>)], case: &str) {
    let must_restore = |when: &str| {
        assert_eq!(listed(store).len(), kept.len(), "{case}, {when}");
        for (id, content) in kept {
            assert!(restores_to(store, id, content), "{case}, {when}: revision {id}");
        }
    };
    must_restore("when the power is back");
    ok(&command(store, &["upgrade"]).output().expect("it starts"));
    must_restore("upgraded");
    let status: serde_json::Value =
        serde_json::from_str(&ok(&command(store, &["status", "--json"]).output().expect("it starts")))
            .expect("it is JSON");
    for revision in status["revisions"].as_array().expect("a list") {
        assert_eq!(revision["backend_type"], "framed", "{case}");
    }
    let left = old_files(&store.join("job"), kept);
    assert!(left.is_empty(), "{case}: {left:?} is left of the original");
    ok(&command(store, &["verify", "-r", "all"]).output().expect("it starts"));
    ok(&command(store, &["purge", "--now"]).output().expect("it starts"));
    must_restore("purged");
    assert_eq!(fs::read_dir(store.join("tmp")).expect("it is there").count(), 0, "{case}: temporary files");
}

/// Files of a job that an upgrade must have removed.
fn old_files(job: &Path, kept: &[(String, Vec<u8>)]) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![job.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            let is_image =
                |id: &String| ["", ".old", ".purged"].iter().any(|end| name == format!("{id}{end}"));
            if path.is_dir() {
                dirs.push(path);
            } else if name.ends_with(".lzo")
                || name == ".purge_pending"
                || name.starts_with(".unfinished-")
                || kept.iter().any(|(id, _)| is_image(id))
            {
                found.push(name);
            }
        }
    }
    found
}

fn upgrade_survives(name: &str, syncfs: &str) {
    let (original, kept) = job(name, 2);
    let before = Disk::of(&original.base());
    let changes = recorded_upgrade(&original, syncfs);
    let cases = chosen(&changes);
    let what = format!("upgrade of {name}");
    let dir = original.path("trials");
    play(&dir, &before, &changes, &cases, &what, &|store, _, case| check(store, &kept, case));
}

#[test]
fn an_upgrade_of_chunks_survives_power_loss() {
    upgrade_survives("vm-alpha", "yes");
}

#[test]
fn an_upgrade_of_chunks_survives_power_loss_where_every_file_is_synced_by_itself() {
    upgrade_survives("vm-alpha-v1", "no");
}

#[test]
fn an_upgrade_of_raw_images_survives_power_loss() {
    upgrade_survives("vm-cow", "yes");
}
