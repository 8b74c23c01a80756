//! Clusters, users, programs and streams as they should not be: a clear error, no revision, tidy snapshots.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::cluster;
use crate::cluster::Change::Write;
use crate::cluster::{Cluster, noise};
use crate::scene::Scene;

const C: u64 = 4 << 20;

#[test]
fn what_is_not_there_is_named() {
    let cluster = cluster!();
    let (disk, mut scene) = Scene::of(&cluster, C, "auto");
    scene.configure("no-such-image", "");
    scene.must_fail(None, "the RBD image rbd/no-such-image does not exist").says("hint: `rbd ls rbd`");
    scene.configure(&disk.name, "");
    let config = fs::read_to_string(scene.world.job().join("config")).unwrap();
    scene.world.configure(backy_testkit::JOB, &config.replace("pool: rbd", "pool: no-such-pool"));
    scene.must_fail(Some(&disk), "no-such-pool");
    scene.configure(&disk.name, "");
    scene.world.set("BACKY_RBD", "/nowhere/rbd");
    scene.must_fail(Some(&disk), "cannot start the program /nowhere/rbd").says("ceph-common");
    scene.restore_rbd();
    scene.world.set("CEPH_CONF", "/nowhere/ceph.conf");
    scene.must_fail(Some(&disk), "rbd info");
}

#[test]
fn users_have_what_they_are_given() {
    let cluster = cluster!();
    let disk = cluster.image(C, &[]);
    disk.change(C, &[Write(0, noise(1, 5000))]);
    let user = |name: &str, osd: &str| {
        let words = ["auth", "get-or-create", &format!("client.{name}"), "mon", "profile rbd", "osd", osd];
        let made = cluster.run("ceph", &words, b"");
        assert!(made.status.success());
        let keyring = cluster.conf.with_file_name(format!("{name}.keyring"));
        fs::write(&keyring, made.stdout).unwrap();
        // `keyring` of the configuration names one file; these users have their own.
        let text = fs::read_to_string(&cluster.conf).unwrap();
        let conf = cluster.conf.with_file_name(format!("{name}.conf"));
        let own = format!("keyring = {}", keyring.display());
        let lines = text.lines().map(|line| if line.starts_with("keyring =") { own.as_str() } else { line });
        fs::write(&conf, lines.collect::<Vec<_>>().join("\n") + "\n").unwrap();
        format!("user: {name}\nconf: {}", conf.display())
    };
    // A user of the pool alone is enough, with both ways.
    let restricted = user("backy", "profile rbd pool=rbd");
    for way in ["librbd", "rbd"] {
        let mut scene = Scene::new(&disk, &format!("{restricted}\nread-with: {way}"));
        scene.backup_in(&disk, "full");
        disk.change(C, &[Write(9000, noise(2, 5000))]);
        scene.backup_in(&disk, "incremental");
        scene.must_restore_all();
        for snapshot in disk.snapshots() {
            disk.remove_snapshot(&snapshot);
        }
    }
    // One who may only read cannot make a snapshot; one who is unknown cannot do anything.
    let reader = Scene::new(&disk, &user("reader", "profile rbd-read-only pool=rbd"));
    reader.must_fail(Some(&disk), "snap create");
    let nobody = Scene::new(&disk, &restricted.replace("user: backy", "user: nobody"));
    nobody.must_fail(Some(&disk), "rbd info").says("CEPH_ARGS");
    // The same by the environment.
    let mut scene = Scene::new(&disk, "");
    let conf = restricted.split("conf: ").nth(1).unwrap().to_owned();
    scene.world.set("CEPH_CONF", &conf).set("CEPH_ARGS", "--id backy");
    scene.world.ok(&["backup", "daily"]);
}

#[test]
fn programs_that_answer_nonsense_are_not_believed() {
    let cluster = cluster!();
    let (disk, mut scene) = Scene::of(&cluster, 2 * C, "rbd");
    disk.change(2 * C, &[Write(0, noise(1, 3 << 20))]);
    scene.backup(&disk);
    disk.change(2 * C, &[Write(1 << 20, noise(2, 1 << 20))]);
    for (script, expected) in [
        ("case $1 in info) echo garbage ;; *) exec $RBD \"$@\" ;; esac", "cannot be understood"),
        ("case $1 in info) echo '{}' ;; *) exec $RBD \"$@\" ;; esac", "does not tell the image's size"),
        ("case $1 in info) yes ;; *) exec $RBD \"$@\" ;; esac", "cannot be understood"),
        ("case $1$2 in snapls) echo '[{}]' ;; *) exec $RBD \"$@\" ;; esac", "no list of snapshots"),
        (
            "case $1 in export-diff) echo '<html><body></body></html>' ;; *) exec $RBD \"$@\" ;; esac",
            "does not begin",
        ),
        ("case $1 in export-diff) $RBD \"$@\"; exit 1 ;; *) exec $RBD \"$@\" ;; esac", "status 1"),
        (
            "case $1 in export-diff) $RBD \"$@\"; echo more ;; *) exec $RBD \"$@\" ;; esac",
            "bytes follow the end",
        ),
        ("case $1 in export-diff) $RBD \"$@\" | head -c 700000 ;; *) exec $RBD \"$@\" ;; esac", "ends early"),
        ("case $1 in export-diff) echo no >&2; exit 5 ;; *) exec $RBD \"$@\" ;; esac", "status 5: no"),
        ("case $1 in export-diff) kill -9 $$ ;; *) exec $RBD \"$@\" ;; esac", "signal 9"),
    ] {
        scene.replace_rbd(script);
        let run = scene.world.run(&["backup", "daily"]).expect(1).says(expected);
        assert!(run.stderr.contains("error: cannot back up"), "{run}");
        assert_eq!(scene.world.ids().len(), 1);
    }
    // With a list of snapshots that made no sense nothing could be tidied up; the next run does.
    scene.restore_rbd();
    scene.backup_in(&disk, "incremental");
    // A version that tells nothing, and a program without whole objects.
    scene.replace_rbd(
        "case $1 in --version|-v) echo 'ceph version Development' ;; help) echo 'no such command'; exit 1 ;;
            *) exec $RBD \"$@\" ;; esac",
    );
    scene.backup_in(&disk, "incremental");
    scene.must_restore_all();
}

#[test]
fn a_stream_cut_at_many_places_is_never_a_revision() {
    let cluster = cluster!();
    let (disk, mut scene) = Scene::of(&cluster, C, "rbd");
    scene.backup(&disk);
    disk.change(C, &[Write(0, noise(1, 100)), Write(8192, noise(2, 100))]);
    disk.make_snapshot("now");
    let last = disk.snapshots().into_iter().find(|name| name.starts_with("backy-")).unwrap();
    let words = ["export-diff", "--no-progress", "--from-snap", &last, &disk.at("now"), "-"];
    // The real name of the new snapshot is longer than this one.
    let length = cluster.rbd(&words).len() + 25;
    disk.remove_snapshot("now");
    for end in (0..length).step_by(length / 40 + 1) {
        scene.replace_rbd(&format!(
            "case $1 in export-diff) $RBD \"$@\" | head -c {end} ;; *) exec $RBD \"$@\" ;; esac"
        ));
        scene.must_fail(Some(&disk), "cannot be used");
    }
    scene.restore_rbd();
    scene.backup_in(&disk, "incremental");
    scene.must_restore_all();
}

#[test]
fn an_image_that_disappears_during_the_backup() {
    let cluster = cluster!();
    for way in ["librbd", "rbd"] {
        let (disk, mut scene) = Scene::of(&cluster, 2 * C, way);
        disk.change(2 * C, &[Write(0, noise(1, 3 << 20))]);
        // After the snapshot was looked at: it is removed, and the image with it.
        scene.replace_rbd(
            "case $1$2 in snapls) $RBD \"$@\"; s=$?
            if [ ! -e gone ]; then touch gone; $RBD snap purge --no-progress $3 >&2; $RBD rm --no-progress $3 >&2; fi
            exit $s ;; *) exec $RBD \"$@\" ;; esac",
        );
        let run = scene.world.run(&["backup", "daily"]).expect(1);
        assert!(run.stderr.contains("error: cannot back up"), "{run}");
        assert!(scene.world.ids().is_empty());
        scene.restore_rbd();
        scene.must_fail(None, "does not exist");
        drop(fs::remove_file(scene.world.path("gone")));
    }
}

#[test]
fn a_program_that_hangs_is_killed() {
    let cluster = cluster!();
    let disk = cluster.image(C, &[]);
    let mut scene = Scene::new(&disk, "read-with: rbd\ntimeout: 2s");
    disk.change(C, &[Write(0, noise(1, 100_000))]);
    for hanging in ["info", "export-diff", "snap"] {
        scene.replace_rbd(&format!(
            "case $1$3$4 in {hanging}*) trap '' TERM; sleep 1000 & wait; sleep 1000 ;; *) exec $RBD \"$@\" ;; esac"
        ));
        let begun = Instant::now();
        scene.world.run(&["backup", "daily"]).expect(1).says("was killed: does the cluster answer?");
        assert!(begun.elapsed() < Duration::from_secs(40), "{hanging}");
        assert!(scene.world.ids().is_empty());
    }
    scene.restore_rbd();
    scene.backup(&disk);
    scene.must_restore_all();
}

/// A cluster of its own, whose OSD is stopped for a while.
#[test]
fn a_cluster_that_hangs_ends_in_time() {
    let cluster = cluster!();
    let root = cluster.conf.parent().unwrap().with_extension("hangs");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/ceph-cluster");
    let run = |word: &str| Command::new(script).arg(word).env("CEPH_CLUSTER_DIR", &root).output().unwrap();
    let started = run("start");
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    let hanging = Cluster { conf: root.join("ceph.conf") };
    for way in ["librbd", "rbd"] {
        let disk = hanging.image(8 * C, &[]);
        disk.change(8 * C, &[Write(0, noise(1, 20 << 20))]);
        let mut scene = Scene::new(&disk, &format!("read-with: {way}\ntimeout: 3s"));
        // It stops answering when the snapshot was made and looked at.
        let pid = fs::read_to_string(root.join("osd.0.pid")).unwrap();
        let pid = pid.trim();
        let again = Path::new("stopped-once");
        scene.replace_rbd(&format!(
            "case $1$2 in snapls) $RBD \"$@\"; s=$?
            if [ ! -e {0} ]; then touch {0}; kill -STOP {pid}; fi; exit $s ;; *) exec $RBD \"$@\" ;; esac",
            again.display()
        ));
        let begun = Instant::now();
        let run = scene.world.run(&["backup", "daily"]);
        drop(Command::new("kill").args(["-CONT", pid]).status());
        assert_eq!(run.code(), 1, "{run}");
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}\n{run}", begun.elapsed());
        assert!(scene.world.ids().is_empty());
        scene.restore_rbd();
        scene.backup(&disk);
        scene.must_restore_all();
    }
    run("stop");
}
