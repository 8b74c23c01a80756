//! What an image goes through between two backups, and that every revision has exactly its bytes.

use crate::cluster;
use crate::cluster::Change::{Write, Zero};
use crate::cluster::{Cluster, noise};
use crate::scene::{Scene, WAYS};

const C: u64 = 4 << 20;

/// Goes through everything that can happen to an image; `options` are for `rbd create`.
fn go_through(cluster: &Cluster, way: &str, options: &[&str]) {
    let disk = cluster.image(5 * C + 1024, options);
    let mut scene = Scene::new(&disk, &format!("read-with: {way}"));
    scene.backup_in(&disk, "full");
    let first =
        [Write(100, noise(1, 70_000)), Write(2 * C - 300, noise(2, 9 << 20)), Write(5 * C, noise(3, 1024))];
    disk.change(5 * C + 1024, &first);
    scene.backup_in(&disk, "incremental");
    let id = scene.backup_in(&disk, "incremental");
    assert_eq!(scene.revision(&id)["bytes_written"], 0, "nothing changed");
    // Small changes in a chunk that has more, over its edge, and zeros written and discarded.
    let small = [
        Write(2 * C + 512, noise(4, 512)),
        Write(3 * C - 5000, noise(5, 10_000)),
        Write(2 * C + 70_000, vec![0; 130_000]),
        Zero(3 * C + (1 << 20), 1 << 20),
    ];
    disk.change(5 * C + 1024, &small);
    scene.backup_in(&disk, "incremental");
    // A whole chunk goes; the image grows, with and without data behind the old end.
    disk.change(9 * C + 7 * 512, &[Zero(2 * C, C), Write(7 * C + 4096, noise(6, 4096))]);
    scene.backup_in(&disk, "incremental");
    // It shrinks into a chunk with data, and grows again: what was behind must not come back.
    disk.change(3 * C + 2_000_384, &[]);
    scene.backup_in(&disk, "incremental");
    disk.change(2 * C + 512 * 3, &[]);
    disk.change(6 * C, &[]);
    scene.backup_in(&disk, "incremental");
    disk.change(512, &[]);
    scene.backup_in(&disk, "incremental");
    disk.change(4 * C, &[Write(C, noise(7, 5000))]);
    scene.backup_in(&disk, "incremental");
    scene.must_restore_all();
}

#[test]
fn every_change_comes_back_with_both_ways() {
    let cluster = cluster!();
    for way in WAYS {
        go_through(&cluster, way, &[]);
    }
}

#[test]
fn images_without_a_list_of_changed_objects_and_with_small_objects_and_stripes() {
    let cluster = cluster!();
    for way in WAYS {
        go_through(&cluster, way, &["--image-feature", "layering"]);
        go_through(&cluster, way, &["--object-size", "64K"]);
        go_through(&cluster, way, &["--object-size", "16M"]);
        go_through(&cluster, way, &["--stripe-unit", "65536", "--stripe-count", "4"]);
    }
}

#[test]
fn a_clone_is_its_parent_and_its_own_changes() {
    let cluster = cluster!();
    for way in WAYS {
        let parent = cluster.image(4 * C, &[]);
        parent.change(4 * C, &[Write(0, noise(1, 5 << 20)), Write(3 * C, noise(2, 4096))]);
        parent.make_snapshot("golden");
        cluster.rbd(&["snap", "protect", &parent.at("golden")]);
        let child = cluster.image(C, &[]);
        child.remove();
        cluster.rbd(&["clone", &parent.at("golden"), &child.spec()]);
        let mut scene = Scene::new(&child, &format!("read-with: {way}"));
        scene.backup_in(&child, "full");
        child.change(4 * C, &[Write(4096, noise(3, 4096)), Write(2 * C, noise(4, 9000))]);
        scene.backup_in(&child, "incremental");
        // What the parent has, and what nobody has.
        child.change(4 * C, &[Zero(C, C), Zero(64 << 10, 64 << 10), Zero(3 * C + 8192, 4096)]);
        scene.backup_in(&child, "incremental");
        cluster.rbd(&["flatten", "--no-progress", &child.spec()]);
        child.change(4 * C, &[Write(100, noise(5, 100))]);
        scene.backup(&child);
        scene.must_restore_all();
        drop(child);
    }
}

#[test]
fn random_histories_come_back() {
    let cluster = cluster!();
    for way in WAYS {
        let (disk, mut scene) = Scene::of(&cluster, 6 * C, way);
        let mut random = backy_testkit::Random::new(42);
        let mut size = 6 * C;
        for round in 0..12_u64 {
            if random.below(3) == 0 {
                size = 512 * (1 + random.below(10 * C / 512));
            }
            let mut changes = Vec::new();
            for number in 0..random.below(6) {
                let offset = random.below(size);
                let length = (1 + random.below(if number == 0 { 2 * C } else { 100_000 })).min(size - offset);
                changes.push(match random.below(3) {
                    0 => Zero(offset, length),
                    _ => Write(offset, noise(round * 100 + number, length as usize)),
                });
            }
            disk.change(size, &changes);
            if random.below(5) == 0 {
                // A snapshot of somebody else in between.
                disk.make_snapshot(&format!("other{round}"));
            }
            scene.backup(&disk);
        }
        scene.must_restore_all();
    }
}

#[test]
fn no_more_is_read_than_what_changed() {
    let cluster = cluster!();
    for way in WAYS {
        let (disk, mut scene) = Scene::of(&cluster, 8 * C, way);
        disk.change(8 * C, &[Write(0, noise(1, 8 * C as usize))]);
        scene.backup_in(&disk, "full");
        let changes: Vec<_> =
            (0..16).map(|n| Write(n * C / 2 + (64 << 10), noise(n + 9, 64 << 10))).collect();
        disk.change(8 * C, &changes);
        let id = scene.backup_in(&disk, "incremental");
        assert_eq!(scene.revision(&id)["bytes_written"], 16 << 16, "{way}");
        scene.must_restore_all();
    }
}
