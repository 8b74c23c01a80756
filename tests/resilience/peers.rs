//! `pull` and `push` killed at every change and on a disk that fails: no note is half, the local revisions are whole,
//! and doing it again brings what an undisturbed run would have.

use backy_testkit::{Peer, Run, World, every};

use crate::scene::{Scene, scene};

/// A peer with three revisions of which notes are there, changed since on both sides, and one that is news.
fn changed() -> (Scene, impl Fn(&World) -> Peer) {
    let scene = scene();
    let pulled = |world: &World| {
        let peer = Peer::start();
        for id in ["kept", "emptied", "gone"] {
            peer.put(id, &["daily", "weekly"]);
        }
        peer.configure(world);
        peer
    };
    drop(pulled(&scene.world));
    scene.world.ok(&["pull", "-c", "backy.conf"]);
    scene.world.ok(&["tags", "set", "-r", "kept", "weekly"]);
    scene.world.ok(&["forget", "-r", "emptied"]);
    (scene, pulled)
}

/// Notes and their tags.
fn notes(world: &World) -> Vec<String> {
    let status = world.ok(&["status", "--json", "-r", "remote"]).json();
    assert_eq!(status["damaged"].as_array().map(Vec::len), Some(0), "{status}");
    let line = |note: &serde_json::Value| format!("{} {} {}", note["id"], note["tags"], note["orig_tags"]);
    let mut lines: Vec<String> = status["revisions"].as_array().unwrap().iter().map(line).collect();
    lines.sort();
    lines
}

/// Disturbs `words` at every change, by `action`; `expected` is what notes and peer are after doing it again.
fn disturb(action: &str, word: &str, prepare: impl Fn(&Peer) + Sync, expected: (&[&str], &[&str])) {
    let (scene, pulled) = changed();
    let words = [word, "-c", "backy.conf"];
    let trials = every(|number| {
        let world = scene.world.copy();
        let peer = pulled(&world);
        prepare(&peer);
        let run = world.run_with_fault(&words, &format!("{action}:{number}"));
        let disturbed = run.fault().is_some();
        let when = format!("{run}");
        if disturbed {
            notes(&world);
            Run::of(&mut world.command(&words)).expect(0);
        }
        assert_eq!(notes(&world), expected.0, "{when}");
        assert_eq!(peer.revisions(), expected.1, "{when}");
        if disturbed && number % 3 == 1 {
            world.must_restore_all(&when);
            world.ok(&["backup", "daily"]);
            assert!(world.leftovers().is_empty(), "{when}");
        }
        disturbed
    });
    assert!(trials > 3, "{trials} points: are the faults built in?");
    println!("{word}: {action} at {} points", trials - 1);
}

const PUSHED: (&[&str], &[&str]) = (
    &["\"gone\" [\"daily\",\"weekly\"] [\"daily\",\"weekly\"]", "\"kept\" [\"weekly\"] [\"weekly\"]"],
    &["gone: daily,weekly", "kept: weekly"],
);

const PULLED: (&[&str], &[&str]) = (
    &[
        "\"emptied\" [] [\"daily\",\"weekly\"]",
        "\"kept\" [\"monthly\"] [\"monthly\"]",
        "\"news\" [\"daily\"] [\"daily\"]",
    ],
    &["emptied: daily,weekly", "kept: monthly", "news: daily"],
);

fn change_there(peer: &Peer) {
    peer.put("kept", &["monthly"]);
    peer.put("news", &["daily"]);
    peer.remove("gone");
}

#[test]
fn a_push_killed_at_any_change_can_be_repeated() {
    disturb("kill", "push", |_| {}, PUSHED);
}

#[test]
fn a_push_on_a_failing_disk_can_be_repeated() {
    disturb("eio", "push", |_| {}, PUSHED);
}

#[test]
fn a_pull_killed_at_any_change_can_be_repeated() {
    disturb("kill", "pull", change_there, PULLED);
}

#[test]
fn a_pull_on_a_full_disk_can_be_repeated() {
    disturb("enospc", "pull", change_there, PULLED);
}
