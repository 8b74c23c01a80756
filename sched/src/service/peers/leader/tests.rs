//! The rule as a table, and two services on loopback.

use std::collections::BTreeSet;

use super::super::testing::{There, liar, nobody};
use super::*;
use crate::policy::testing::at;
use crate::service::api::testing::{Fake, name};

const HOUR: i64 = 3600;

fn next() -> NextRun {
    NextRun { at: at(0), tags: BTreeSet::new(), catches_up: false, decided_at: at(0) }
}

fn state(local_revs: usize, status: &str, last: Option<i64>, next: Option<i64>) -> StatusEntry {
    let time = |secs: Option<i64>| secs.map(|secs| at(secs).to_rfc3339());
    let (status, last_time, next_time) = (status.to_owned(), time(last), time(next));
    StatusEntry {
        job: "web01".to_owned(),
        local_revs,
        status,
        last_time,
        next_time,
        ..StatusEntry::default()
    }
}

fn wait(peer: &str) -> Neighbours {
    Neighbours::Wait { peer: peer.to_owned(), secs: 300 }
}

#[test]
fn the_leader_is_judged_by_its_last_and_its_next_backup() {
    let waiting = "waiting for deadline";
    for (status, last, following, asked, expected) in [
        // It did it, or has done so by now.
        (waiting, Some(0), Some(24 * HOUR), 0, "done"),
        (waiting, Some(-300), Some(24 * HOUR), 0, "done"),
        (waiting, Some(-301), Some(24 * HOUR), 0, "ours"),
        (waiting, Some(200), Some(24 * HOUR), 300, "done"),
        ("running (slow)", Some(5), None, 300, "done"),
        // A clock that is ahead is no backup.
        (waiting, Some(HOUR), Some(24 * HOUR), 0, "ours"),
        (waiting, Some(HOUR), Some(0), 0, "wait"),
        // It will.
        (waiting, Some(-24 * HOUR), Some(0), 0, "wait"),
        (waiting, None, Some(300), 0, "wait"),
        (waiting, None, Some(301), 0, "ours"),
        (waiting, None, None, 0, "ours"),
        ("checking neighbours", Some(-24 * HOUR), Some(0), 0, "wait"),
        ("failed", Some(-24 * HOUR), Some(120), 0, "wait"),
        ("failed", Some(-24 * HOUR), Some(3 * HOUR), 0, "ours"),
        ("running (fast)", Some(-24 * HOUR), None, 0, "wait"),
        ("running (fast)", Some(-24 * HOUR), Some(24 * HOUR), 0, "wait"),
        ("waiting for worker slot (slow)", None, None, HOUR, "wait"),
        // It will not.
        ("", None, Some(0), 0, "ours"),
        ("Dead", Some(-HOUR), None, 0, "ours"),
        ("monitoring (backup3)", None, Some(0), 0, "ours"),
        // It takes too long.
        ("running (slow)", None, None, 6 * HOUR, "wait"),
        ("running (slow)", None, None, 6 * HOUR + 1, "ours"),
        (waiting, None, Some(0), 6 * HOUR + 1, "ours"),
        // What is no time is none.
        ("\u{1b}[2J", None, None, 0, "ours"),
    ] {
        let expected = match expected {
            "done" => Neighbours::Done,
            "wait" => wait("b"),
            _ => Neighbours::OursToDo,
        };
        let state = state(9, status, last, following);
        assert_eq!(judge("b", &state, &next(), at(asked)), expected, "{state:?} after {asked}");
    }
    let garbage = StatusEntry { last_time: Some("soon".to_owned()), ..state(9, "x", None, None) };
    assert_eq!(judge("b", &garbage, &next(), at(0)), Neighbours::OursToDo);
}

#[test]
fn the_one_with_most_revisions_leads_if_it_makes_any() {
    let due = |revs| state(revs, "waiting for deadline", None, Some(0));
    let dead = |revs| state(revs, "Dead", None, None);
    let follower = |revs| state(revs, "monitoring (x)", None, Some(0));
    for (states, local, expected) in [
        (vec![], 0, Neighbours::OursToDo),
        (vec![("b", due(3))], 3, Neighbours::OursToDo),
        (vec![("b", due(3))], 4, Neighbours::OursToDo),
        (vec![("b", due(3))], 2, wait("b")),
        (vec![("b", due(3)), ("c", due(4))], 2, wait("c")),
        (vec![("b", due(4)), ("c", due(4))], 2, wait("b")),
        (vec![("a", dead(30)), ("b", due(4))], 2, wait("b")),
        (vec![("a", dead(30))], 2, Neighbours::OursToDo),
        (vec![("a", follower(30)), ("b", due(4))], 2, wait("b")),
        (vec![("a", follower(30))], 2, Neighbours::OursToDo),
    ] {
        let states = states.into_iter().map(|(name, state)| (name.to_owned(), state)).collect();
        assert_eq!(decide(&states, local, &next(), at(0)), expected, "{states:?} {local}");
    }
}

#[test]
fn two_servers_never_follow_each_other() {
    let states =
        [("waiting for deadline", Some(0)), ("checking neighbours", Some(0)), ("running (slow)", None)];
    for (ours, theirs) in (0..5).flat_map(|ours| (0..5).map(move |theirs| (ours, theirs))) {
        for (status, time) in states {
            let seen = |revs| BTreeMap::from([("x".to_owned(), state(revs, status, None, time))]);
            let we = decide(&seen(theirs), ours, &next(), at(0));
            let they = decide(&seen(ours), theirs, &next(), at(0));
            assert!(we == Neighbours::OursToDo || they == Neighbours::OursToDo, "{ours} {theirs} {status}");
        }
    }
    // Their numbers changed after we had begun to follow: they see a follower, and do it.
    let we = BTreeMap::from([("x".to_owned(), state(7, "monitoring (y)", None, Some(300)))]);
    assert_eq!(decide(&we, 6, &next(), at(0)), Neighbours::OursToDo);
}

fn due_now() -> NextRun {
    let now = Timestamp::now();
    NextRun { at: now, decided_at: now, ..next() }
}

#[test]
fn peers_are_asked_for_exactly_the_job() {
    let next = due_now();
    let time = Some(next.at.to_rfc3339());
    let entry = |job: &str, local_revs, status: &str| StatusEntry {
        job: job.to_owned(),
        local_revs,
        status: status.to_owned(),
        next_time: time.clone(),
        ..StatusEntry::default()
    };
    let entries = vec![entry("web.01", 5, "running (fast)"), entry("webx01", 50, "running (fast)")];
    let there = There::of(Fake { entries, ..Fake::new() });
    let peers = BTreeMap::from([("backup1".to_owned(), nobody()), ("backup2".to_owned(), there.config())]);
    let ask =
        |job: &str, local, following| super::ask(&peers, &name(job), local, &next, following, Some("id"));
    assert_eq!(ask("web.01", 4, None), wait("backup2"));
    assert_eq!(ask("web.01", 5, None), Neighbours::OursToDo);
    assert_eq!(ask("web.01", 9, Some("backup2")), wait("backup2"), "who is followed stays so");
    assert_eq!(ask("web.01", 4, Some("backup1")), Neighbours::OursToDo, "it fails to answer");
    assert_eq!(ask("web.01", 4, Some("gone")), wait("backup2"), "it is no peer any more");
    assert_eq!(ask("nobodys", 0, None), Neighbours::OursToDo);
    assert_eq!(super::ask(&BTreeMap::new(), &name("a"), 0, &next, None, None), Neighbours::OursToDo);
    // A server that does not look at the filter.
    let all = serde_json::to_string(&there.fake.entries).unwrap();
    let peers = BTreeMap::from([("liar".to_owned(), liar(move |_| ("200 OK", all.clone())))]);
    assert_eq!(super::ask(&peers, &name("webx01"), 49, &next, None, None), wait("liar"));
    assert_eq!(super::ask(&peers, &name("w"), 0, &next, None, None), Neighbours::OursToDo);
}

/// They are asked beside each other, and a fault with one of them is no fault with the others.
#[test]
fn many_peers_are_asked_at_once() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let peer = |number| PeerConfig { url: format!("http://p{number}"), ..nobody() };
    let peers = (0..32).map(|number| (format!("p{number}"), peer(number))).collect();
    let (asked, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let answers = each(&peers, |peer| {
        most.fetch_max(asked.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(std::time::Duration::from_millis(50));
        asked.fetch_sub(1, Ordering::SeqCst);
        assert!(peer.url != "http://p7", "a fault of the program");
        Ok(())
    });
    assert!(most.into_inner() > 1);
    assert_eq!(answers.values().filter(|answer| answer.is_ok()).count(), 31);
    assert!(answers["p7"].is_err());
}
