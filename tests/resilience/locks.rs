//! Locks end with the process that held them, however it ended.

use std::fs;

use backy_testkit::Stopped;

use crate::scene::{recovers, scene};

#[test]
fn the_lock_of_a_killed_backup_or_purge_is_free_at_once() {
    let scene = scene();
    for (words, refused) in [(&["backup", "daily"][..], "backup"), (&["purge", "--now"], "purge")] {
        let mut world = scene.world.copy();
        world.ok(&["forget", "-r", "first"]);
        world.expected.remove(&scene.first);
        let stopped = Stopped::start(world.command(words).env("BACKY_FAULT", "stop:6")).expect("it stops");
        world.run(words).expect(3).says(refused);
        assert!(stopped.kill().was_killed());
        world.ok(words);
        recovers(&mut world, &scene.next, "after a killed holder");
    }
}

#[test]
fn lock_files_that_lie_around_hold_nobody_up() {
    let scene = scene();
    let mut world = scene.world.copy();
    for path in ["srv/.sweep", "srv/web01/.backup", "srv/web01/.manifests", "srv/writers/.lock"] {
        fs::write(world.path(path), "1\n").unwrap();
    }
    let refs = world.store().join("writers").join(format!("{}.refs", "0".repeat(32)));
    fs::write(refs, [7; 45]).unwrap();
    recovers(&mut world, &scene.next, "with old lock files");
}

#[test]
fn manifests_wait_for_a_stopped_run_and_readers_do_not() {
    let scene = scene();
    let world = scene.world.copy();
    // Stopped at every change in turn: listing and restoring never wait for it.
    for number in 1.. {
        let stop = format!("stop:{number}");
        let Ok(stopped) =
            Stopped::start(world.command(&["tags", "add", "first", "weekly"]).env("BACKY_FAULT", stop))
        else {
            break;
        };
        assert_eq!(world.ids().len(), 2);
        world.must_restore_all("beside a stopped change of tags");
        stopped.finish().expect(0);
        world.ok(&["tags", "remove", "first", "weekly"]);
    }
}
