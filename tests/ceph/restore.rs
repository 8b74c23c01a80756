//! Back into Ceph: with `restore --to`, and with `rbd import` from a mount.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cluster;
use crate::cluster::Change::Write;
use crate::cluster::{Cluster, Disk, noise};
use crate::scene::{Scene, WAYS};

const C: u64 = 4 << 20;

/// A name for an image that is not there yet; what is made of it is removed.
pub(crate) fn new_disk(cluster: &Cluster) -> Disk {
    let disk = cluster.image(C, &[]);
    disk.remove();
    disk
}

/// The image, and those whose names are this one's, a dot and more.
pub(crate) fn names(disk: &Disk) -> Vec<String> {
    let list: Vec<String> =
        serde_json::from_slice(&disk.cluster.rbd(&["ls", "--format", "json", "rbd"])).unwrap();
    let is_of = |rest: &str| rest.is_empty() || rest.starts_with('.');
    list.into_iter().filter(|name| name.strip_prefix(&disk.name).is_some_and(is_of)).collect()
}

/// What the image holds.
pub(crate) fn content(disk: &Disk) -> Vec<u8> {
    disk.cluster.rbd(&["export", "--no-progress", &disk.spec(), "-"])
}

#[test]
fn a_revision_becomes_a_new_sparse_image() {
    let cluster = cluster!();
    for way in WAYS {
        let (disk, mut scene) = Scene::of(&cluster, 100 * C + 512, way);
        let changes = [
            Write(3 * C + 5, noise(1, 3 << 20)),
            Write(50 * C - 100, noise(2, 200)),
            Write(100 * C, noise(3, 512)),
        ];
        disk.change(100 * C + 512, &changes);
        let id = scene.backup(&disk);
        let new = new_disk(&cluster);
        let to = format!("rbd:{}", new.spec());
        scene.world.ok(&["restore", "--to", &to]).says("restored revision");
        assert!(content(&new) == scene.expected[&id], "{way}");
        assert_eq!(names(&new), std::slice::from_ref(&new.name), "nothing else is left");
        // Only objects with data exist.
        let list = cluster.rbd(&["diff", &new.spec(), "--format", "json", "--whole-object"]);
        let list: Vec<serde_json::Value> = serde_json::from_slice(&list).unwrap();
        let bytes: u64 = list.iter().map(|extent| extent["length"].as_u64().unwrap()).sum();
        assert!(bytes <= 5 * C, "{bytes} bytes in objects");
        // It is there now.
        scene.world.run(&["restore", "--to", &to]).expect(1).says("exists already").says("--force");
        new.change(100 * C + 512, &[Write(77, noise(4, 1000))]);
        scene.world.ok(&["restore", "--to", &to, "--force"]);
        assert!(content(&new) == scene.expected[&id], "{way}, replaced");
        // What hangs on an image is not taken away from it.
        new.make_snapshot("mine");
        scene
            .world
            .run(&["restore", "--to", &to, "--force"])
            .expect(1)
            .says("it has 1 snapshots, one of them mine");
        assert_eq!(names(&new).len(), 1);
    }
}

#[test]
fn a_restore_that_fails_leaves_no_image() {
    let cluster = cluster!();
    for way in WAYS {
        let (disk, mut scene) = Scene::of(&cluster, 4 * C, way);
        disk.change(4 * C, &[Write(0, noise(1, 9 << 20))]);
        scene.backup(&disk);
        let new = new_disk(&cluster);
        let to = format!("rbd:{}", new.spec());
        let last = scene.world.chunks().pop().unwrap();
        let whole = fs::read(&last).unwrap();
        fs::remove_file(&last).unwrap();
        scene.world.run(&["restore", "--to", &to]).expect(1).says("missing");
        assert!(names(&new).is_empty(), "{:?}", names(&new));
        fs::write(&last, whole).unwrap();
        if way == "librbd" {
            continue;
        }
        scene.replace_rbd("case $1 in import-diff) exit 3 ;; *) exec $RBD \"$@\" ;; esac");
        scene.world.run(&["restore", "--to", &to]).expect(1);
        assert!(names(&new).is_empty(), "{:?}", names(&new));
        scene.restore_rbd();
        scene
            .world
            .run(&["restore", "--to", "rbd:no-such-pool/x"])
            .expect(1)
            .says("there is no pool no-such-pool");
    }
}

#[test]
fn wrong_places_are_wrong_usage() {
    let cluster = cluster!();
    let (_disk, scene) = Scene::of(&cluster, C, "auto");
    scene.world.run(&["restore", "--to", "nfs:x"]).expect(2).says("rbd:POOL/IMAGE");
    scene.world.run(&["restore"]).expect(2);
    scene.world.run(&["restore", "--to", "rbd:a/b", "file"]).expect(2);
    scene.world.run(&["restore", "--to", "rbd:a"]).expect(1).says("POOL/IMAGE");
}

#[test]
fn rbd_imports_from_a_mount() {
    let cluster = cluster!();
    if !Path::new("/dev/fuse").exists() {
        println!("skipped: there is no /dev/fuse");
        return;
    }
    let (disk, mut scene) = Scene::of(&cluster, 20 * C, "auto");
    disk.change(20 * C, &[Write(C, noise(1, 5 << 20))]);
    let id = scene.backup(&disk);
    let point = scene.world.path("mnt");
    fs::create_dir(&point).unwrap();
    let mut mount = scene.world.bare(&["-b", "srv", "mount", "mnt"]);
    let mut child = mount.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let image = point.join(backy_testkit::JOB).join("last/image");
    let begun = Instant::now();
    while !image.exists() && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let new = new_disk(&cluster);
    let imported =
        cluster.run("rbd", &["import", "--no-progress", &image.to_string_lossy(), &new.spec()], b"");
    drop(Command::new("umount").arg(&point).output());
    backy_testkit::ended(&mut child);
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    assert!(content(&new) == scene.expected[&id]);
}
