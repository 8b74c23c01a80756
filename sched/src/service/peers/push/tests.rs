//! Pushing to a real service, and what happens when it will not, cannot or did already.

use super::super::pull::pull;
use super::super::testing::*;
use super::*;
use crate::policy::testing::tags;
use crate::service::api::testing::{Fake, name};
use crate::service::rights::{ApiToken, Right, Rights};
use crate::source::Secret;
use backy_store::RevisionId;
use std::sync::atomic::Ordering;

/// A server whose revisions `aaa` and `ccc` have been pulled.
fn pulled() -> (Here, There) {
    let (here, there) = (Here::new(), There::new());
    add(&there.job, "ccc", "daily");
    assert!(!pull(&here.job, &there.peers(), None).unwrap().has_failed());
    (here, there)
}

fn push_to(here: &Here, peers: &BTreeMap<String, PeerConfig>) -> PeerReport {
    let report = push(&here.job, peers, None).unwrap();
    assert_eq!(report.peers.len(), 1, "{report:?}");
    report.peers.into_iter().next().unwrap()
}

#[test]
fn changed_tags_reach_the_owner_and_revisions_without_tags_go() {
    let (here, there) = pulled();
    assert_eq!(push(&here.job, &there.peers(), None).unwrap(), PeersReport::default());
    here.set_tags("aaa", "weekly,manual:x y");
    here.set_tags("ccc", "");
    let report = push_to(&here, &there.peers());
    assert_eq!((report.revisions, report.changed, report.removed), (2, 2, 1), "{report:?}");
    assert_eq!(there.tags_of("aaa"), Some(tags("weekly,manual:x y")));
    assert_eq!(there.tags_of("ccc"), None);
    assert_eq!(there.job.forgotten().unwrap().len(), 1, "it can be undeleted there");
    assert_eq!(there.fake.purges.load(Ordering::SeqCst), 1);
    assert_eq!(here.seen(), ["aaa backup2 manual:x y,weekly manual:x y,weekly"]);
    assert_eq!(push(&here.job, &there.peers(), None).unwrap(), PeersReport::default());
    assert_eq!(pull(&here.job, &there.peers(), None).unwrap().peers[0].changed, 0);
}

#[test]
fn a_push_that_died_before_the_note_was_changed_is_repeated() {
    let (here, there) = pulled();
    here.set_tags("aaa", "weekly");
    here.set_tags("ccc", "");
    let client = Client::new(there.config(), None);
    for note in notes_of(&here.job, None).unwrap() {
        let reply = client.set_tags(here.job.name(), &note.id, &note.orig_tags, &note.tags, true);
        assert_eq!(reply.unwrap(), Reply::Done(()));
    }
    let report = push_to(&here, &there.peers());
    assert_eq!((report.changed, report.removed, report.failures.len()), (2, 1, 0), "{report:?}");
    assert_eq!(here.seen(), ["aaa backup2 weekly weekly"]);
    assert_eq!(there.tags_of("aaa"), Some(tags("weekly")));
    // As does one after which the revision had lost its tags, but was not forgotten.
    here.set_tags("aaa", "");
    set_tags(&there.job, "aaa", "");
    add(&there.job, "ddd", "daily");
    assert_eq!(push_to(&here, &there.peers()).removed, 1);
    assert_eq!((there.tags_of("aaa"), here.seen().len()), (None, 0));
}

#[test]
fn an_owner_that_changed_the_tags_itself_is_not_overwritten() {
    let (here, there) = pulled();
    here.set_tags("aaa", "weekly");
    here.set_tags("ccc", "weekly");
    set_tags(&there.job, "aaa", "manual:keep");
    let report = push_to(&here, &there.peers());
    assert_eq!((report.changed, report.failures.len()), (1, 1), "the others go on: {report:?}");
    assert!(report.failures[0].contains("the tags of revision aaa were changed there"), "{report:?}");
    assert_eq!(there.tags_of("aaa"), Some(tags("manual:keep")));
    assert_eq!(here.seen()[0], "aaa backup2 weekly daily,weekly");
    pull(&here.job, &there.peers(), None).unwrap();
    assert_eq!(here.seen()[0], "aaa backup2 manual:keep manual:keep");
    delete(&there.job, "ccc");
    here.set_tags("ccc", "monthly");
    assert_eq!(push_to(&here, &there.peers()).failures, ["it does not have revision ccc any more"]);
}

#[test]
fn an_owner_keeps_its_last_trusted_revision_whatever_is_pushed() {
    let (here, there) = pulled();
    here.set_tags("aaa", "");
    here.set_tags("ccc", "");
    let report = push_to(&here, &there.peers());
    assert_eq!((report.changed, report.removed, report.failures.len()), (2, 1, 0), "{report:?}");
    let left: Vec<String> = seen(&there.job).into_iter().filter(|line| !line.contains("backup2")).collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(push(&here.job, &there.peers(), None).unwrap(), PeersReport::default());
    // A token that may only read is not enough to push, and is enough to pull.
    let mut fake = Fake::new();
    let token = Secret::new("r3ad".to_owned());
    let rights = Rights::new([Right::Read].into(), None);
    fake.tokens.push(ApiToken { token, name: "reader".to_owned(), rights });
    let there = There::of(fake);
    let url = there.config().url;
    let reader = BTreeMap::from([(PEER.to_owned(), PeerConfig::new(&url, "r3ad").unwrap())]);
    let here = Here::new();
    assert!(!pull(&here.job, &reader, None).unwrap().has_failed());
    here.set_tags("aaa", "");
    let report = push_to(&here, &reader);
    assert!(report.failures[0].contains("the right admin"), "{report:?}");
    assert!(there.tags_of("aaa").is_some_and(|tags| tags.len() == 2));
}

#[test]
fn an_owner_that_runs_the_job_itself_refuses_once() {
    let mut fake = Fake::new();
    fake.active.insert(name(JOB));
    let (here, there) = (Here::new(), There::of(fake));
    add(&there.job, "ccc", "daily");
    assert!(!pull(&here.job, &there.peers(), None).unwrap().has_failed());
    here.set_tags("aaa", "");
    here.set_tags("ccc", "");
    let report = push_to(&here, &there.peers());
    assert_eq!((report.revisions, report.changed), (2, 0));
    assert_eq!(report.failures, ["the job is configured there, so it takes no changes of tags"]);
    assert_eq!(here.seen().len(), 2, "the notes stay until the owner knows");
}

#[test]
fn trouble_changes_nothing_here() {
    let (here, there) = pulled();
    here.set_tags("aaa", "weekly");
    here.set_tags("ccc", "");
    let before = here.seen();
    let one = |peer| BTreeMap::from([(PEER.to_owned(), peer)]);
    let guard = there.job.lock_manifests().unwrap();
    assert_eq!(push_to(&here, &there.peers()).failures, ["another run has the job locked there"]);
    drop(guard);
    for (peers, reason) in [
        (one(nobody()), "cannot reach"),
        (one(liar(|_| ("200 garbage\r\n\0", String::new()))), ""),
        (one(liar(|_| ("500 No", "no".to_owned()))), "answers 500"),
        (one(liar(|_| ("404 Not Found", "<html>".to_owned()))), "answers 404"),
        (BTreeMap::new(), "it is not among the peers"),
    ] {
        let report = push_to(&here, &peers);
        assert!(report.failures.len() == 1 && report.failures[0].contains(reason), "{reason}: {report:?}");
        assert_eq!(here.seen(), before, "{reason}");
    }
    let report = push_to(&here, &there.peers());
    assert_eq!((report.changed, report.removed, report.failures.len()), (2, 1, 0));
}

#[test]
fn tags_that_were_changed_once_more_meanwhile_are_kept() {
    let (here, there) = pulled();
    here.set_tags("aaa", "weekly");
    let pushed = here.job.revision(&RevisionId::parse("aaa").unwrap()).unwrap();
    here.set_tags("aaa", "monthly");
    let (client, mut report) = (Client::new(there.config(), None), PeerReport::new(PEER));
    Pusher { job: &here.job, client, list: None, report: &mut report }.push(&[pushed]).unwrap();
    assert_eq!(here.seen()[0], "aaa backup2 monthly weekly");
    assert_eq!(push_to(&here, &there.peers()).changed, 1);
    assert_eq!(there.tags_of("aaa"), Some(tags("monthly")));
}

#[test]
fn two_servers_see_each_others_revisions_and_a_job_that_has_moved_expires_from_afar() {
    let (old, new) = (There::new(), There::new());
    for (server, id) in [(&old, "bbb"), (&new, "aaa"), (&new, "bbb")] {
        delete(&server.job, id);
    }
    add(&new.job, "ccc", "daily");
    let peer = |name: &str, server: &There| BTreeMap::from([(name.to_owned(), server.config())]);
    for news in [1, 0] {
        for (server, peers) in [(&old, peer("new", &new)), (&new, peer("old", &old))] {
            let report = pull(&server.job, &peers, None).unwrap();
            let one = &report.peers[0];
            assert_eq!(
                (one.revisions, one.changed, one.clashes),
                (1, news, 0),
                "no echo of notes: {report:?}"
            );
        }
    }
    assert_eq!(seen(&old.job), ["aaa  daily,weekly ", "ccc new daily daily"]);
    assert_eq!(seen(&new.job), ["aaa old daily,weekly daily,weekly", "ccc  daily "]);
    // Expiry on the new server takes one tag for its age and one that its schedule does not know. The note stays until
    // the push.
    let schedule = crate::policy::testing::schedule(&[("daily", "1d", 1)]);
    for _ in 0..2 {
        crate::expire::expire(&new.job, &schedule, backy_store::Timestamp::now(), false, false).unwrap();
        assert_eq!(seen(&new.job), ["aaa old  daily,weekly", "ccc  daily "]);
    }
    assert!(!push(&new.job, &peer("old", &old), None).unwrap().has_failed());
    assert_eq!(
        (seen(&new.job), seen(&old.job)),
        (
            vec!["aaa old  ".to_owned(), "ccc  daily ".to_owned()],
            vec!["aaa   ".to_owned(), "ccc new daily daily".to_owned()]
        ),
        "the old server keeps its last trusted revision, without tags"
    );
    assert_eq!(push(&new.job, &peer("old", &old), None).unwrap(), PeersReport::default());
}
