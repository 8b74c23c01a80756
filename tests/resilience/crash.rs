//! SIGKILL before every single change that a command makes to the file system, and after half of every write.

use std::fs;
use std::process::Command;
use std::sync::Arc;

use backy_testkit::{Image, Random, Run, World, every};

use crate::scene::{BINARY, Scene, committed, recovers, scene};

/// Kills `words` at every change; after each, `settle` checks and notes what the command may have done, and
/// everything must recover.
fn kill_everywhere(scene: &Scene, words: &[&str], settle: impl Fn(&mut World, &str) + Sync) {
    let trials = every(|number| {
        let mut world = scene.world.copy();
        let run = world.run_with_fault(words, &format!("kill:{number}"));
        if !run.was_killed() {
            assert!(run.fault().is_none() && run.code() <= 1, "{run}");
            return false;
        }
        let when = after(&run);
        settle(&mut world, &when);
        recovers(&mut world, &scene.next, &when);
        true
    });
    assert!(trials > 2, "{words:?} has {} points: are the faults built in?", trials - 1);
    println!("{words:?}: killed at {} points", trials - 1);
}

fn after(run: &Run) -> String {
    let (operation, path) = run.fault().expect("a killed run names where");
    format!("killed before {operation} {path}")
}

/// Brings back what was forgotten, as anybody would.
fn undelete(world: &mut World, when: &str) {
    let listed = world.ids();
    for id in world.expected.keys().filter(|id| !listed.contains(id)) {
        let run = world.run(&["undelete", "-r", id]);
        assert_eq!(run.code(), 0, "{when}: {run}");
    }
}

fn kill_backups(syncfs: &str, action: &str) {
    let mut scene = scene();
    scene.world.set("BACKY_SYNCFS", syncfs);
    let trials = every(|number| {
        let mut world = scene.world.copy();
        let run = world.run_with_fault(&["backup", "daily"], &format!("{action}:{number}"));
        if !run.was_killed() {
            run.expect(0);
            return false;
        }
        // Only a write can be torn; at the others this is the plain kill.
        if action == "kill" || run.fault().is_some_and(|(operation, _)| operation == "write") {
            recovers(&mut world, &scene.next, &after(&run));
        }
        true
    });
    assert!(trials > 20, "{trials} points");
    println!("backup, syncfs {syncfs}: {action} at {} points", trials - 1);
}

/// A purge removes the list of chunks that a dead run may not have made durable: what stays of them is durable by then.
#[test]
fn a_purge_syncs_before_it_removes_the_list_of_what_was_not_synced() {
    let mut scene = scene();
    scene.world.set("BACKY_SYNCFS", "yes");
    let recorded = |world: &World, command: &mut Command| {
        let record = world.path("record");
        Run::of(command.env("BACKY_RECORD", &record)).expect(0);
        fs::read_to_string(&record).expect("changes were recorded")
    };
    let place = |text: &str, operation: &str, end: &str| {
        let operation = format!("\"op\":\"{operation}\"");
        text.lines().position(|line| line.contains(&operation) && line.contains(end))
    };
    let whole = scene.world.copy();
    let text = recorded(&whole, whole.command(&["backup", "daily"]).args(["--threads", "1"]));
    let number = place(&text, "syncfs", "").expect("a backup syncs") + 1;
    let world = scene.world.copy();
    let run = world.run_with_fault(&["backup", "daily"], &format!("kill:{number}"));
    assert!(run.was_killed() && run.fault().is_some_and(|(operation, _)| operation == "syncfs"), "{run}");
    let text = recorded(&world, &mut world.bare(&["-b", "srv", "purge", "--now"]));
    let (synced, removed) = (place(&text, "syncfs", ""), place(&text, "unlink", ".new\""));
    assert!(removed.is_some() && synced.is_some() && synced < removed, "{text}");
}

#[test]
fn a_backup_killed_at_any_change_leaves_every_revision_and_the_next_one_works() {
    kill_backups("yes", "kill");
}

#[test]
fn a_backup_killed_at_any_change_on_a_file_system_without_syncfs_is_no_different() {
    kill_backups("no", "kill");
}

#[test]
fn a_backup_whose_any_write_was_torn_leaves_every_revision_and_the_next_one_works() {
    kill_backups("yes", "torn");
    kill_backups("no", "torn");
}

#[test]
fn a_purge_killed_at_any_change_deletes_nothing_that_is_needed() {
    let mut scene = scene();
    scene.world.ok(&["forget", "-r", "first"]);
    let forgotten = scene.world.expected.remove(&scene.first).expect("it was there");
    // Also what a dead backup left has to go.
    let dead = scene.world.run_with_fault(&["backup", "daily"], "kill:25");
    assert!(dead.was_killed(), "{dead}");
    let oldest = Image::clone(&forgotten);
    kill_everywhere(&scene, &["purge", "--now"], |world, when| {
        // What can still be undeleted is whole.
        let held = world.ok(&["undelete", "--json"]).json();
        if held["forgotten"].as_array().is_some_and(|held| !held.is_empty()) {
            let world = world.copy();
            world.ok(&["undelete", "-r", "last"]);
            world.must_restore(&scene.first, &oldest, when);
        }
    });
}

#[test]
fn a_forget_killed_at_any_change_can_be_undone() {
    kill_everywhere(&scene(), &["forget", "-r", "first"], undelete);
}

#[test]
fn an_undelete_killed_at_any_change_can_be_repeated() {
    let scene = scene();
    scene.world.ok(&["forget", "-r", "first"]);
    kill_everywhere(&scene, &["undelete", "-r", "last"], undelete);
}

#[test]
fn tags_are_the_old_or_the_new_ones_wherever_the_change_is_killed() {
    let scene = scene();
    kill_everywhere(&scene, &["tags", "set", "all", "daily,weekly"], |world, when| {
        let status = world.ok(&["status", "--json"]).json();
        for (revision, old) in status["revisions"].as_array().expect("a list").iter().zip(["daily", "weekly"])
        {
            let tags = &revision["tags"];
            assert!(
                *tags == serde_json::json!([old]) || *tags == serde_json::json!(["daily", "weekly"]),
                "{when}: {tags}"
            );
        }
    });
}

#[test]
fn an_expire_killed_at_any_change_can_be_undone() {
    let scene = scene();
    // Neither tag is in this schedule, so both fall; the last revision stays all the same.
    let config = "source: {type: file, filename: image.img}\nschedule:\n  monthly: {interval: 1d, keep: 2}\n";
    let usual = std::fs::read_to_string(scene.world.job().join("config")).unwrap();
    scene.world.configure(backy_testkit::JOB, config);
    let plan = scene.world.ok(&["expire", "--dry-run", "--json"]).json();
    assert_eq!(plan["decisions"][0]["removed"], true, "{plan}");
    kill_everywhere(&scene, &["expire"], |world, when| {
        world.configure(backy_testkit::JOB, &usual);
        undelete(world, when);
    });
}

#[test]
fn a_verify_killed_at_any_change_finds_the_damage_the_next_time() {
    let scene = scene();
    let before = scene.world.chunks();
    let damaged = damage_the_oldest(&scene);
    assert_eq!(before, scene.world.chunks());
    kill_everywhere(&scene, &["verify", "-r", "all"], |world, when| {
        world.must_restore(&scene.second, &world.expected[&scene.second], when);
        let (run, _) = world.restore(&scene.first);
        assert_eq!(run.code(), 1, "{when}: {run}");
        let run = world.run(&["verify", "-r", "all"]).expect(1);
        assert!(run.text().contains(&format!("{} bad", scene.first)), "{when}: {run}");
        assert!(run.text().contains(&format!("{} good", scene.second)), "{when}: {run}");
        world.backup(&scene.oldest_image(), "daily");
        assert!(
            !world.store().join("damaged").join(&damaged).exists(),
            "{when}: the mark of {damaged} stays"
        );
        world.write_image(&scene.next);
    });
}

/// Flips a bit in the chunk that only the first revision has; returns its name.
fn damage_the_oldest(scene: &Scene) -> String {
    let world = scene.world.copy();
    world.ok(&["forget", "-r", "first"]);
    world.ok(&["purge", "--now"]);
    let kept: Vec<_> = world.chunks().iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    let mut own = scene.world.chunks();
    own.retain(|path| !kept.iter().any(|name| path.file_name() == Some(name)));
    let [path] = &own[..] else { panic!("{own:?}") };
    let mut bytes = std::fs::read(path).unwrap();
    let last = bytes.len() - 100;
    bytes[last] ^= 4;
    std::fs::write(path, bytes).unwrap();
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn a_distrust_killed_at_any_change_can_be_repeated() {
    let scene = scene();
    kill_everywhere(&scene, &["distrust", "-r", "all"], |_, _| ());
}

#[test]
fn a_run_killed_after_a_killed_run_changes_nothing() {
    let scene = scene();
    let seed = Random::from_env("BACKY_TEST_SEED", 7);
    let points = every(|number| {
        let mut random = seed.clone();
        (0..number).for_each(|_| {
            let _ = random.bits();
        });
        let mut world = scene.world.copy();
        let mut when = String::new();
        for words in
            [&["backup", "daily"][..], &["backup", "daily"], &["purge", "--now"], &["backup", "daily"]]
        {
            let run = world.run_with_fault(words, &format!("kill:{}", 1 + random.below(45)));
            if run.was_killed() {
                when = format!("{when}, {words:?} {}", after(&run));
            }
            committed(&mut world, &scene.next, &when);
        }
        recovers(&mut world, &scene.next, &when);
        number < 16
    });
    println!("{points} sequences of kills");
}

#[test]
fn an_init_killed_anywhere_can_be_repeated() {
    let trials = every(|number| {
        // All but the last of the 256 shards are alike.
        let at = if number <= 4 { number } else { number + 248 };
        let world = World::new(BINARY);
        let words = ["-b", "other/web02", "init", "file", "filename=image.img"];
        let run = Run::of(world.bare(&words).env("BACKY_FAULT", format!("kill:{at}")));
        if !run.was_killed() {
            run.expect(0);
            return false;
        }
        let again = Run::of(&mut world.bare(&words));
        assert!(again.code() == 0 || again.stderr.contains("exists"), "{}: {again}", after(&run));
        world.write_image(&Arc::new(Image::zeros(5000).words(0, 1)));
        Run::of(&mut world.bare(&["-b", "other/web02", "backup", "daily"])).expect(0);
        Run::of(&mut world.bare(&["-b", "other/web02", "verify", "-r", "all"])).expect(0);
        true
    });
    assert!(trials > 10, "{trials}");
}
