//! A disk that fails: every single change fails with EIO or ENOSPC, once or from then on.

use std::sync::Arc;

use backy_testkit::{Run, World, every};

use crate::scene::{Scene, committed, heals, recovers, scene};

const ACTIONS: [&str; 4] = ["eio", "enospc", "eio-on", "enospc-on"];

/// Whether a command may succeed although this failed: data, maps and manifests are not touched by it.
fn is_harmless(run: &Run, words: &[&str]) -> bool {
    let Some((operation, path)) = run.fault() else { return true };
    // Left-overs, marks and the reserve only cost room or work. A purge shows itself to other machines if it can.
    // When a revision exists, a purge completes its record in the register.
    let is_record = path.contains("/maps/")
        && (operation == "rename" || [".rev", "/config"].iter().any(|end| path.ends_with(end)));
    operation == "unlink"
        || operation == "create" && path.ends_with("/.reserve")
        || operation == "mkdir" && path.ends_with("/.reserve.d")
        || words[0] == "purge" && path.contains("/writers/")
        || is_record
}

fn when(run: &Run) -> String {
    let (operation, path) = run.fault().expect("the failure is told");
    format!("{operation} {path} failed")
}

/// Fails every change of `words` in all ways.
fn fail_everywhere(scene: &Scene, words: &[&str], settle: impl Fn(&mut World, &str) + Sync) {
    for action in ACTIONS {
        let trials = every(|number| {
            let mut world = scene.world.copy();
            let run = world.run_with_fault(words, &format!("{action}:{number}"));
            assert!(run.status.code().is_some_and(|code| code <= 1), "{run}");
            assert!(!run.stderr.contains("panicked"), "{run}");
            if run.fault().is_none() {
                assert_eq!(run.code(), 0, "{run}");
                return false;
            }
            let when = format!("{action}: {}", when(&run));
            // On a full disk the reserve is given back, and what needs little room goes on.
            let on_reserve = action.starts_with("enospc") && run.stderr.contains("using the reserve");
            assert!(
                run.code() == 1 || is_harmless(&run, words) || on_reserve,
                "{when}, and it said nothing\n{run}"
            );
            committed(&mut world, &scene.next, &when);
            settle(&mut world, &when);
            heals(&mut world, &scene.next, &when);
            true
        });
        assert!(trials > 2, "{words:?}: {trials}");
        println!("{words:?}: {action} at {} points", trials - 1);
    }
}

#[test]
fn a_backup_whose_disk_fails_anywhere_fails_and_the_next_one_is_exact() {
    let mut scene = scene();
    scene.world.set("BACKY_SYNCFS", "yes");
    fail_everywhere(&scene, &["backup", "daily"], |_, _| ());
}

#[test]
fn a_backup_without_syncfs_whose_disk_fails_anywhere_fails_and_the_next_one_is_exact() {
    let mut scene = scene();
    scene.world.set("BACKY_SYNCFS", "no");
    fail_everywhere(&scene, &["backup", "daily"], |_, _| ());
}

#[test]
fn a_purge_whose_disk_fails_anywhere_deletes_nothing_that_is_needed() {
    let mut scene = scene();
    scene.world.ok(&["forget", "-r", "first"]);
    scene.world.expected.remove(&scene.first);
    let dead = scene.world.run_with_fault(&["backup", "daily"], "kill:25");
    assert!(dead.was_killed(), "{dead}");
    fail_everywhere(&scene, &["purge", "--now"], |_, _| ());
}

#[test]
fn tags_are_changed_on_a_failing_disk_or_it_is_said() {
    fail_everywhere(&scene(), &["tags", "add", "first", "weekly"], |world, when| {
        let tags = &world.ok(&["status", "--json"]).json()["revisions"][0]["tags"];
        let allowed = [serde_json::json!(["daily"]), serde_json::json!(["daily", "weekly"])];
        assert!(allowed.contains(tags), "{when}: {tags}");
    });
}

#[test]
fn chunks_of_a_failed_sync_are_written_again() {
    let mut scene = scene();
    scene.world.set("BACKY_SYNCFS", "yes");
    let stored = |world: &World, id: &str| {
        let status = world.ok(&["status", "--json", "-r", id]).json();
        status["revisions"][0]["stored_bytes"].as_u64().expect("a number")
    };
    let mut whole = scene.world.copy();
    let id = whole.backup(&scene.next, "daily");
    let expected = stored(&whole, &id);
    assert!(expected > 0);
    let mut failed = 0;
    for number in 1.. {
        let mut world = scene.world.copy();
        let run = world.run_with_fault(&["backup", "daily"], &format!("eio:{number}"));
        let Some((operation, _)) = run.fault() else { break };
        if operation != "syncfs" {
            continue;
        }
        failed += 1;
        run.expect(1);
        let id = world.backup(&Arc::clone(&scene.next), "daily");
        assert!(stored(&world, &id) >= expected, "the chunks of a failed sync were believed");
        recovers(&mut world, &scene.next, "after a failed sync");
    }
    assert!(failed > 0, "no sync failed");
}
