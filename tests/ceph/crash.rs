//! A backup that is killed at any point leaves nothing that the next one does not find.

use std::process::Stdio;
use std::time::Duration;

use crate::cluster;
use crate::cluster::Change::Write;
use crate::cluster::noise;
use crate::scene::{Scene, WAYS};

const C: u64 = 4 << 20;

#[test]
fn killed_at_any_change_of_the_store() {
    let cluster = cluster!();
    let (disk, mut scene) = Scene::of(&cluster, 4 * C, "auto");
    disk.change(4 * C, &[Write(0, noise(1, 5 << 20))]);
    scene.backup(&disk);
    let mut at = 1;
    loop {
        disk.change(4 * C, &[Write(at * 1000, noise(at, 5000))]);
        let run = scene.world.run_with_fault(&["backup", "daily"], &format!("kill:{at}"));
        if !run.was_killed() {
            run.expect(0);
            break;
        }
        // All but the snapshots of unfinished runs are as before; the next run takes those away.
        if at % 4 == 0 {
            scene.backup(&disk);
        }
        at += 1;
    }
    assert!(at > 10, "only {at} changes");
    // The last run was not noted: what it made is checked by the next one.
    scene.backup(&disk);
    scene.must_restore_all();
}

#[test]
fn killed_at_any_time() {
    let cluster = cluster!();
    for way in WAYS {
        let (disk, mut scene) = Scene::of(&cluster, 8 * C, way);
        disk.change(8 * C, &[Write(0, noise(1, 30 << 20))]);
        scene.backup(&disk);
        for round in 0..10 {
            disk.change(8 * C, &[Write(round * 3000, noise(round, 3 << 20))]);
            let mut command = scene.world.command(&["backup", "daily"]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            std::thread::sleep(Duration::from_millis(30 * round));
            drop(child.kill());
            backy_testkit::ended(&mut child);
            if round % 3 == 2 {
                // What `rbd` was doing may still come to its end.
                std::thread::sleep(Duration::from_millis(300));
                scene.backup(&disk);
            }
        }
        std::thread::sleep(Duration::from_millis(300));
        scene.backup(&disk);
        scene.must_restore_all();
    }
}

#[test]
fn asked_to_stop_it_stops_and_tidies_up() {
    let cluster = cluster!();
    for way in WAYS {
        let (disk, mut scene) = Scene::of(&cluster, 4 * C, way);
        disk.change(4 * C, &[Write(0, noise(1, 9 << 20))]);
        scene.backup(&disk);
        let before = disk.snapshots();
        scene.replace_rbd("case \"$*\" in *'snap create'*|*export-diff*) sleep 30 ;; esac\nexec $RBD \"$@\"");
        let mut command = scene.world.command(&["backup", "daily"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(700));
        drop(std::process::Command::new("kill").arg(child.id().to_string()).status());
        let begun = std::time::Instant::now();
        assert!(!backy_testkit::ended(&mut child).success());
        assert!(begun.elapsed() < Duration::from_secs(10), "it waited for what it should have killed");
        assert_eq!(disk.snapshots(), before);
        assert_eq!(scene.world.ids().len(), 1);
        scene.restore_rbd();
        scene.backup(&disk);
        scene.must_restore_all();
    }
}
