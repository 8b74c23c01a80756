//! Which snapshots there are after a run, and what becomes of a run when they are not as they should be.

use std::fs;

use backy_testkit::Image;

use crate::cluster;
use crate::cluster::Change::Write;
use crate::cluster::{Disk, noise};
use crate::scene::{Scene, WAYS};

const C: u64 = 4 << 20;

fn write(disk: &Disk, seed: u64) {
    disk.change(4 * C, &[Write(seed * 100_000, noise(seed, 50_000))]);
}

#[test]
fn a_lost_or_foreign_snapshot_means_comparing_and_nothing_is_stored_twice() {
    let cluster = cluster!();
    for way in WAYS {
        let (disk, mut scene) = Scene::of(&cluster, 4 * C, way);
        disk.change(4 * C, &[Write(0, noise(9, 9 << 20))]);
        let first = scene.backup_in(&disk, "full");
        disk.remove_snapshot(&format!("backy-{first}"));
        let second = scene.backup_in(&disk, "compared");
        assert_eq!(scene.revision(&second)["stored_bytes"], 0, "unchanged data are not stored again");
        // Made again by hand, after a change: the same name, another snapshot.
        disk.remove_snapshot(&format!("backy-{second}"));
        write(&disk, 1);
        disk.make_snapshot(&format!("backy-{second}"));
        scene.backup_in(&disk, "compared");
        write(&disk, 2);
        scene.backup_in(&disk, "incremental");
        assert!(scene.log().contains("the snapshot of the revision before is gone"), "the log says why");
        scene.must_restore_all();
    }
}

#[test]
fn a_new_image_of_the_same_name_a_renamed_one_and_one_rolled_back() {
    let cluster = cluster!();
    for way in WAYS {
        let (disk, mut scene) = Scene::of(&cluster, 4 * C, way);
        write(&disk, 1);
        let first = scene.backup_in(&disk, "full");
        write(&disk, 2);
        disk.make_snapshot("mine");
        write(&disk, 3);
        scene.backup_in(&disk, "incremental");
        disk.change(4 * C, &[Write(300_000, noise(77, 3 << 20))]);
        cluster.rbd(&["snap", "rollback", "--no-progress", &disk.at("mine")]);
        scene.backup(&disk);
        disk.remove_snapshot("mine");
        // Renamed: away under the old name, found with its snapshots under the new one.
        let other = format!("{}-new", disk.name);
        cluster.rbd(&["rename", &disk.spec(), &format!("rbd/{other}")]);
        scene.must_fail(None, "does not exist");
        scene.configure(&other, &format!("read-with: {way}"));
        let renamed = Disk { cluster: cluster.clone(), name: other };
        write(&renamed, 4);
        scene.backup_in(&renamed, "incremental");
        // Made anew, with a snapshot of the expected name.
        let last = scene.backup(&renamed);
        renamed.remove();
        cluster.rbd(&["create", "--size", "16M", &renamed.spec()]);
        write(&renamed, 5);
        renamed.make_snapshot(&format!("backy-{last}"));
        scene.backup_in(&renamed, "compared");
        assert_ne!(first, last);
        scene.must_restore_all();
    }
}

#[test]
fn a_distrusted_revision_is_no_base() {
    let cluster = cluster!();
    let (disk, mut scene) = Scene::of(&cluster, 4 * C, "auto");
    write(&disk, 1);
    scene.backup_in(&disk, "full");
    write(&disk, 2);
    let second = scene.backup_in(&disk, "incremental");
    scene.world.ok(&["distrust", "-r", &second]);
    scene.backup_in(&disk, "compared");
    scene.world.ok(&["distrust", "-r", "all"]);
    scene.backup_in(&disk, "full");
    scene.must_restore_all();
}

#[test]
fn full_always_keeps_no_snapshot() {
    let cluster = cluster!();
    let disk = cluster.image(4 * C, &[]);
    let mut scene = Scene::new(&disk, "full-always: true");
    for seed in 1..3 {
        write(&disk, seed);
        let id = scene.world.ok(&["backup", "daily"]).line();
        assert!(disk.snapshots().is_empty());
        assert_eq!(scene.revision(&id)["mode"], "full");
        disk.make_snapshot("now");
        scene.expected.insert(id, disk.export("now"));
        disk.remove_snapshot("now");
    }
    scene.must_restore_all();
}

#[test]
fn protected_snapshots_go_and_those_of_others_stay() {
    let cluster = cluster!();
    let (disk, mut scene) = Scene::of(&cluster, 4 * C, "auto");
    for name in ["before-upgrade", "backy-before-upgrade", "backy-MPSxF8qWSzaZzDJyRZCYhK"] {
        disk.make_snapshot(name);
    }
    write(&disk, 1);
    let first = format!("backy-{}", scene.world.ok(&["backup", "daily"]).line());
    cluster.rbd(&["snap", "protect", &disk.at(&first)]);
    let second = format!("backy-{}", scene.world.ok(&["backup", "daily"]).line());
    assert!(!disk.snapshots().contains(&first), "protected, without children");
    // A clone of it makes it stay, and no more than that.
    cluster.rbd(&["snap", "protect", &disk.at(&second)]);
    let child = cluster.image(C, &[]);
    child.remove();
    cluster.rbd(&["clone", &disk.at(&second), &child.spec()]);
    let third = format!("backy-{}", scene.world.ok(&["backup", "daily"]).says("snapshot-not-removed").line());
    assert!(disk.snapshots().contains(&second) && disk.snapshots().contains(&third));
    drop(child);
    let fourth = format!("backy-{}", scene.world.ok(&["backup", "daily"]).line());
    let mut expected = vec![
        fourth,
        "backy-MPSxF8qWSzaZzDJyRZCYhK".into(),
        "backy-before-upgrade".into(),
        "before-upgrade".into(),
    ];
    expected.sort();
    assert_eq!(disk.snapshots(), expected);
    // Another store with the same image: each keeps to its own.
    let mut other = Scene::new(&disk, "");
    let theirs = format!("backy-{}", other.world.ok(&["backup", "daily"]).line());
    scene.world.ok(&["backup", "daily"]);
    assert!(disk.snapshots().contains(&theirs));
    other.expected.clear();
    scene.expected.clear();
}

#[test]
fn the_snapshot_of_a_forgotten_revision_goes_with_the_next_run() {
    let cluster = cluster!();
    let (disk, mut scene) = Scene::of(&cluster, 4 * C, "auto");
    write(&disk, 1);
    scene.backup_in(&disk, "full");
    let second = scene.backup_in(&disk, "incremental");
    scene.world.ok(&["forget", "-r", &second]);
    scene.expected.remove(&second);
    scene.backup_in(&disk, "compared");
    scene.must_restore_all();
}

/// What a job is dropped with.
#[test]
fn released_snapshots_are_all_of_the_job_and_none_of_others() {
    let cluster = cluster!();
    let (disk, mut scene) = Scene::of(&cluster, 4 * C, "auto");
    let others = ["backy-MPSxF8qWSzaZzDJyRZCYhK", "mine"];
    for name in others {
        disk.make_snapshot(name);
    }
    write(&disk, 1);
    let other = Scene::new(&disk, "");
    let theirs = format!("backy-{}", other.world.ok(&["backup", "daily"]).line());
    let first = scene.world.ok(&["backup", "daily"]).line();
    write(&disk, 2);
    // One that a killed run has left.
    let run = scene.world.run_with_fault(&["backup", "daily"], "kill:12");
    assert!(run.was_killed(), "{run}");
    let count = disk.snapshots().len();
    assert_eq!(count, 5, "{:?}", disk.snapshots());
    // The directory knows enough, whatever becomes of the revisions.
    scene.world.ok(&["forget", "-r", "all"]).says("`backy release`");
    scene.world.on_store(&["purge", "--now"]).expect(0);
    let run = scene.world.ok(&["release"]);
    assert!(run.text().contains(&format!("removed {}\n", disk.at(&format!("backy-{first}")))), "{run}");
    assert_eq!(run.text().lines().count(), 2, "{run}");
    let mut expected = vec![others[0].to_owned(), others[1].to_owned(), theirs];
    expected.sort();
    assert_eq!(disk.snapshots(), expected);
    scene.world.ok(&["release"]).says("job web01 has no snapshots at");
    for name in &expected {
        disk.remove_snapshot(name);
    }
    // It is no end: a job can go on.
    scene.backup_in(&disk, "full");
    scene.world.ok(&["release"]);
    scene.backup_in(&disk, "compared");
    scene.must_restore_all();
}

#[test]
fn a_snapshot_that_cannot_be_released_is_named_and_stays_known() {
    let cluster = cluster!();
    let (disk, mut scene) = Scene::of(&cluster, C, "auto");
    let id = scene.backup(&disk);
    let snapshot = disk.at(&format!("backy-{id}"));
    cluster.rbd(&["snap", "protect", &snapshot]);
    let child = cluster.image(C, &[]);
    child.remove();
    cluster.rbd(&["clone", &snapshot, &child.spec()]);
    scene.world.run(&["release"]).expect(1).says(&format!("{snapshot} is still there"));
    drop(child);
    scene.world.ok(&["forget", "-r", "all"]);
    scene.world.on_store(&["purge", "--now"]).expect(0);
    scene.world.ok(&["release"]);
    assert!(disk.snapshots().is_empty());
    // Nothing is crossed out when nobody answers.
    scene.expected.clear();
    let id = scene.backup(&disk);
    scene.replace_rbd("exit 1");
    scene.world.run(&["release"]).expect(1).says("cannot remove the snapshots of job web01");
    scene.restore_rbd();
    assert_eq!(scene.world.ok(&["release"]).line(), format!("removed {}", disk.at(&format!("backy-{id}"))));
}

/// A backup that died before its snapshot was made, and one that the job made of another image.
#[test]
fn what_is_not_seen_is_crossed_out_at_the_second_look() {
    let cluster = cluster!();
    let (disk, mut scene) = Scene::of(&cluster, C, "auto");
    let id = scene.backup(&disk);
    scene.replace_rbd("case $1-$2 in snap-create) kill -9 $PPID ;; *) exec $RBD \"$@\" ;; esac");
    assert!(scene.world.run(&["backup", "daily"]).was_killed());
    scene.restore_rbd();
    let path = scene.world.job().join(".snapshots");
    let note = || fs::read_to_string(&path).unwrap();
    let late = note().lines().find(|noted| *noted != id).unwrap().to_owned();
    let run = scene.world.run(&["release"]).expect(1).says(&format!("{late} is noted but not there"));
    assert_eq!(run.line(), format!("removed {}", disk.at(&format!("backy-{id}"))));
    // It comes after all.
    disk.make_snapshot(&format!("backy-{late}"));
    let run = scene.world.ok(&["release"]);
    assert_eq!(run.line(), format!("removed {}", disk.at(&format!("backy-{late}"))));
    assert!(note().is_empty() && disk.snapshots().is_empty());
    // The configuration names another image by now.
    let id = scene.world.ok(&["backup", "daily"]).line();
    let other = cluster.image(C, &[]);
    scene.configure(&other.name, "");
    scene.world.run(&["release"]).expect(1).says(&format!("{id} is noted but not there"));
    scene.configure(&disk.name, "");
    assert_eq!(scene.world.ok(&["release"]).line(), format!("removed {}", disk.at(&format!("backy-{id}"))));
    // It never comes.
    scene.replace_rbd("case $1-$2 in snap-create) exit 1 ;; *) exec $RBD \"$@\" ;; esac");
    scene.world.run(&["backup", "daily"]).expect(1);
    scene.restore_rbd();
    scene.world.run(&["release"]).expect(1).says("is noted but not there");
    scene.world.ok(&["release"]).says("was not there the last time, either");
    scene.world.ok(&["release"]).says("job web01 has no snapshots at");
}

/// Why most jobs are dropped.
#[test]
fn an_image_that_is_gone_has_taken_its_snapshots_along() {
    let cluster = cluster!();
    let (disk, mut scene) = Scene::of(&cluster, C, "auto");
    scene.backup(&disk);
    let path = scene.world.job().join(".snapshots");
    let note = || fs::read_to_string(&path).unwrap();
    disk.remove();
    // A pool that is missing may be on another cluster.
    let config = scene.world.job().join("config");
    let good = fs::read_to_string(&config).unwrap();
    fs::write(&config, good.replace("pool: rbd", "pool: no-such-pool")).unwrap();
    scene.world.run(&["release"]).expect(1).says("there is no pool no-such-pool");
    fs::write(&config, &good).unwrap();
    scene.replace_rbd("case $1 in ls) exit 1 ;; *) exec $RBD \"$@\" ;; esac");
    scene.world.run(&["release"]).expect(1).says("cannot remove the snapshots");
    assert_eq!(note().lines().count(), 1);
    scene.restore_rbd();
    scene.world.ok(&["release"]).says(&format!("{} does not exist any more", disk.spec()));
    assert!(note().is_empty());
    scene.world.ok(&["release"]).says(&format!("{} does not exist any more", disk.spec()));
    scene.must_restore_all();
}

#[test]
fn damage_of_the_base_is_noticed_and_not_carried_on() {
    let cluster = cluster!();
    for way in WAYS {
        let (disk, mut scene) = Scene::of(&cluster, 4 * C, way);
        disk.change(4 * C, &[Write(0, noise(3, 6 << 20))]);
        let first = scene.backup_in(&disk, "full");
        for path in scene.world.chunks() {
            let mut bytes = fs::read(&path).unwrap();
            let at = bytes.len() - 100;
            bytes[at] ^= 1;
            fs::remove_file(&path).unwrap();
            fs::write(&path, bytes).unwrap();
        }
        disk.change(4 * C, &[Write(C - 600, noise(4, 500))]);
        // The changed frame of the first chunk is completed from the base, and found damaged. The second chunk nobody
        // would have looked at, but now everything is.
        let second = scene.backup_in(&disk, "compared");
        assert_eq!(scene.revision(&second)["trust"], "trusted");
        scene.world.ok(&["verify", "-r", &second]);
        assert_eq!(scene.revision(&first)["trust"], "distrusted", "the source has not its bytes any more");
        scene.expected.remove(&first);
        scene.world.must_restore(&second, &Image(scene.expected[&second].clone()), "after damage");
    }
}

/// An object is written behind the back of RBD, without keeping what snapshots have of it: they change, and no list of
/// changes knows.
#[test]
fn an_untrue_list_of_changes_is_found_and_ends_the_chain() {
    let cluster = cluster!();
    let disk = cluster.image(C, &[]);
    disk.change(C, &[Write(0, noise(1, C as usize))]);
    let mut scene = Scene::new(&disk, "");
    let first = scene.backup_in(&disk, "full");
    let second = scene.backup_in(&disk, "incremental");
    let info: serde_json::Value =
        serde_json::from_slice(&cluster.rbd(&["info", &disk.spec(), "--format", "json"])).unwrap();
    let object = format!("{}.{:016x}", info["block_name_prefix"].as_str().unwrap(), 0);
    let put = cluster.run("rados", &["-p", "rbd", "put", &object, "-"], &noise(2, C as usize));
    assert!(put.status.success());
    let run = scene.must_fail(Some(&disk), "the list of changes");
    assert!(run.stderr.contains("the next backup reads the whole image"), "{run}");
    let reports = fs::read_dir(scene.world.job().join("quarantine")).unwrap();
    assert_eq!(reports.filter(|entry| entry.as_ref().unwrap().path().extension().is_some()).count(), 1);
    for id in [&first, &second] {
        assert_eq!(scene.revision(id)["trust"], "distrusted");
    }
    // What these held is in nobody's snapshot any more, but in the store.
    scene.backup_in(&disk, "full");
    scene.backup_in(&disk, "incremental");
    scene.must_restore_all();
}
