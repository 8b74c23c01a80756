//! Pulling from a real service, and from peers that are none, are gone or lie.

use super::super::testing::*;
use super::*;

fn pull_from(here: &Here, peers: &BTreeMap<String, PeerConfig>) -> PeersReport {
    pull(&here.job, peers, Some("test")).unwrap()
}

fn from_one(here: &Here, peer: PeerConfig) -> PeerReport {
    let report = pull_from(here, &BTreeMap::from([(PEER.to_owned(), peer)]));
    report.peers.into_iter().next().unwrap()
}

#[test]
fn notes_follow_the_owner_and_local_changes_of_tags_wait() {
    let (here, there) = (Here::new(), There::new());
    let pull = || from_one(&here, there.config());
    std::fs::File::open(there.job.dir()).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let report = pull();
    assert_eq!((report.revisions, report.changed, &report.failures[..]), (1, 1, &[][..]), "{report:?}");
    assert_eq!(here.seen(), ["aaa backup2 daily,weekly daily,weekly"]);
    let touched = std::fs::metadata(there.job.dir()).unwrap().modified().unwrap();
    assert!(touched > std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1 << 30), "touched");
    let note = here.job.revisions().unwrap().revisions.remove(0);
    assert_eq!((note.stats.bytes_written, note.is_clean(), note.map_seal), (5, true, None));

    let generation = here.job.generation().unwrap();
    assert_eq!(pull().changed, 0);
    assert_eq!(here.job.generation().unwrap(), generation, "nothing is written when nothing changed");

    here.set_tags("aaa", "weekly");
    add(&there.job, "ccc", "daily");
    assert_eq!(pull().changed, 1);
    assert_eq!(here.seen(), ["aaa backup2 weekly daily,weekly", "ccc backup2 daily daily"]);

    set_tags(&there.job, "aaa", "monthly");
    assert_eq!(pull().changed, 1);
    assert_eq!(here.seen()[0], "aaa backup2 monthly monthly", "both changed: the owner's count");

    here.set_tags("ccc", "x");
    set_tags(&there.job, "ccc", "x");
    assert_eq!(pull().changed, 1);
    assert_eq!(here.seen()[1], "ccc backup2 x x", "both made the same change");

    delete(&there.job, "aaa");
    assert_eq!(pull().removed, 1);
    assert_eq!(here.seen(), ["ccc backup2 x x"]);
    assert!(here.job.forgotten().unwrap().is_empty());
}

#[test]
fn a_peer_that_does_not_answer_loses_nothing_and_stops_nobody() {
    let (here, there) = (Here::new(), There::new());
    let dead = nobody();
    let (name, config) = there.peers().pop_first().unwrap();
    let both = BTreeMap::from([(name, config), ("backup1".to_owned(), dead.clone())]);
    let report = pull_from(&here, &both);
    assert!(report.has_failed());
    assert!(report.peers[0].failures[0].starts_with("cannot reach the service at"), "{report:?}");
    assert_eq!((report.peers[1].changed, report.peers[1].failures.len()), (1, 0));
    assert_eq!(from_one(&here, dead).removed, 0);
    assert_eq!(here.seen().len(), 1);
}

#[test]
fn no_directory_is_an_empty_one_but_only_in_the_words_of_a_service() {
    for (status, body, left) in [
        ("404 Not Found", "404: Not Found", 0),
        ("403 Forbidden", "403: Forbidden", 0),
        ("404 Not Found", "<html>no such site</html>", 1),
        ("403 Forbidden", "", 1),
        ("401 Unauthorized", "401: Unauthorized", 1),
        ("500 Internal Server Error", "500: Internal Server Error", 1),
        ("503 Service Unavailable", "503: Service Unavailable", 1),
        ("200 OK", "hello", 1),
        ("200 OK", "{\"revisions\": []}", 1),
        ("200 OK", "[{\"uuid\": \"../../etc/passwd\"}]", 1),
        ("200 OK", "[[[[", 1),
        ("302 Found", "", 1),
        ("200 OK", "[]", 0),
    ] {
        let (here, there) = (Here::new(), There::new());
        pull_from(&here, &there.peers());
        let revisions = move |line: &str| match line.contains("/revs") {
            true => (status, body.to_owned()),
            false => ("204 No Content", String::new()),
        };
        let report = from_one(&here, liar(revisions));
        assert_eq!(here.seen().len(), left, "{status} {body}: {report:?}");
        assert_eq!(report.failures.len(), left, "{status} {body}: {report:?}");
    }
    let (here, there) = (Here::new(), There::new());
    pull_from(&here, &there.peers());
    let report = from_one(&here, liar(|_| ("404 Not Found", "404: Not Found".to_owned())));
    assert_eq!((report.removed, report.failures.len()), (1, 0), "touching tells it already");
}

#[test]
fn notes_of_servers_that_are_no_peers_are_dropped() {
    let (here, there) = (Here::new(), There::new());
    add(&here.job, "local", "daily");
    pull_from(&here, &there.peers());
    let renamed = BTreeMap::from([("backup9".to_owned(), there.config())]);
    let report = pull_from(&here, &renamed);
    assert_eq!((report.dropped, report.peers[0].changed, report.peers[0].clashes), (1, 1, 0));
    assert_eq!(here.seen(), ["aaa backup9 daily,weekly daily,weekly", "local  daily "]);
    assert_eq!(pull_from(&here, &BTreeMap::new()).dropped, 1);
    assert_eq!(here.seen(), ["local  daily "]);
}

#[test]
fn what_is_here_is_not_replaced_by_a_peers_revision_of_the_same_id() {
    let (here, there) = (Here::new(), There::new());
    add(&here.job, "aaa", "manual:mine");
    add(&there.job, "ccc", "daily");
    add(&here.job, "ddd", "daily");
    add(&there.job, "ddd", "daily");
    let guard = here.job.lock_manifests().unwrap();
    here.job.forget(&guard, &RevisionId::parse("ddd").unwrap(), backy_store::Timestamp::now()).unwrap();
    drop(guard);
    let report = from_one(&here, there.config());
    assert_eq!((report.changed, report.clashes, report.failures.len()), (1, 2, 0), "{report:?}");
    assert_eq!(here.seen(), ["aaa  manual:mine ", "ccc backup2 daily daily"]);
    let second = BTreeMap::from([(PEER.to_owned(), there.config()), ("copy".to_owned(), there.config())]);
    let report = pull_from(&here, &second);
    assert_eq!(
        (report.peers[0].clashes, report.peers[1].clashes),
        (2, 3),
        "two peers with the same revision"
    );
    assert_eq!(here.seen().len(), 2);
}

#[test]
fn a_liar_can_write_nothing_but_notes_and_not_too_many() {
    let here = Here::new();
    let entry = |id: &str, rest: &str| {
        format!(
            "{{\"uuid\":\"{id}\",\"timestamp\":\"2024-03-01T02:00:00+00:00\",\"stats\":{{\"duration\":1}}{rest}}}"
        )
    };
    let hostile = format!(
        "[{},{},{},{}]",
        entry(
            "good",
            ",\"server\":\"\",\"backend_type\":\"framed\",\"map_seal\":\"ab\",\"orig_tags\":[\"x\"]"
        ),
        entry("../config", ""),
        entry("x/../../y", ""),
        entry("tagged", ",\"tags\":[\"..\"]"),
    );
    let report = from_one(&here, liar(move |_| ("200 OK", hostile.clone())));
    assert_eq!((report.changed, report.failures.len()), (1, 1), "{report:?}");
    assert_eq!(report.failures[0], "3 of its revisions cannot be used");
    assert_eq!(here.seen(), ["good backup2  "]);
    let many: Vec<String> = (0..10_001).map(|number| entry(&format!("r{number}"), "")).collect();
    let many = format!("[{}]", many.join(","));
    let report = from_one(&here, liar(move |_| ("200 OK", many.clone())));
    assert!(report.failures[0].contains("more than 10000 revisions"), "{report:?}");
    let report = from_one(&here, liar(|_| ("200 OK", " ".repeat((16 << 20) + 1))));
    assert!(report.failures[0].contains("longer than 16777216 bytes"), "{report:?}");
    assert_eq!(here.seen(), ["good backup2  "]);
    let names = std::fs::read_dir(here.job.dir()).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, [".backup", ".manifests", "config", "good.rev"]);
}
