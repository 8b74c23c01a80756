//! `pull` and `push`, and what every other command makes of revisions that lie on another server.

use std::fs;

use backy_testkit::{Peer, Run, World};

use crate::world;

fn with_config(world: &World, command: &str) -> Run {
    world.run(&[command, "-c", "backy.conf"])
}

/// Three revisions here and two notes of those on `backup2`.
fn pulled() -> (World, [String; 3], Peer) {
    let (world, local) = world();
    let peer = Peer::start();
    peer.put("remoteA", &["daily", "weekly"]);
    peer.put("remoteB", &["daily"]);
    peer.configure(&world);
    let run = with_config(&world, "pull").expect(0);
    assert_eq!(run.line(), "backup2: 2 revisions, 2 notes written, 0 removed");
    assert_eq!(peer.requests(), ["POST /v1/backups/web01/touch", "GET /v1/backups/web01/revs?only_clean=1"]);
    (world, local, peer)
}

#[test]
fn revisions_of_other_servers_are_listed_and_never_taken_for_local_ones() {
    let (world, [.., newest], _) = pulled();
    let status = world.ok(&["status"]);
    assert_eq!(status.text().matches("backup2").count(), 2, "{status}");
    assert!(!status.text().contains("pending"), "{status}");
    assert_eq!(world.ok(&["find", "-r", "remote", "--uuid"]).text(), "remoteA\nremoteB\n");
    assert_eq!(world.ok(&["find", "-r", "server:backup2", "--uuid"]).text().lines().count(), 2);
    let found = world.ok(&["find", "-r", "remote", "--json"]).json();
    assert!(found["revisions"][0]["path"].is_null(), "{found}");
    world.run(&["restore", "-r", "remoteA", "out.img"]).expect(1).says("lies on the server backup2");
    world.ok(&["restore", "out.img"]).says(&newest);
    world.run(&["distrust", "-r", "remote"]).expect(1);
    assert_eq!(world.ok(&["verify", "-r", "all"]).text().matches("good").count(), 3);
    let purged = world.on_store(&["purge", "--now"]).expect(0);
    assert_eq!(world.ok(&["find", "-r", "all", "--uuid"]).text().lines().count(), 5, "{purged}");
    let backup = world.ok(&["backup", "daily"]).line();
    assert_eq!(world.ok(&["find", "-r", "local", "--uuid"]).text().lines().last(), Some(backup.as_str()));
}

#[test]
fn changed_tags_are_shown_until_they_are_pushed() {
    let (world, _, peer) = pulled();
    assert_eq!(world.ok(&["forget", "-r", "remoteB"]).line(), "removed the tags of remoteB, on backup2");
    world.ok(&["tags", "set", "-r", "remoteA", "weekly,manual:x"]);
    let status = world.ok(&["status"]);
    assert!(status.text().contains("+manual:x,-daily,weekly"), "{status}");
    assert!(status.text().ends_with("\n2 pending change(s) (Push changes with `backy push`)\n"), "{status}");
    let entry = world.ok(&["status", "--json", "-r", "remoteA"]).json()["revisions"][0].clone();
    assert_eq!(entry["orig_tags"], serde_json::json!(["daily", "weekly"]));
    assert_eq!(
        with_config(&world, "pull").expect(0).line(),
        "backup2: 2 revisions, 0 notes written, 0 removed"
    );
    peer.requests();
    let run = with_config(&world, "push").expect(0);
    assert_eq!(run.line(), "backup2: 2 pending changes, 2 pushed, 1 of them removed");
    assert_eq!(
        peer.requests(),
        [
            "PUT /v1/backups/web01/revs/remoteA/tags?autoremove=1 \
         {\"new_tags\":[\"manual:x\",\"weekly\"],\"old_tags\":[\"daily\",\"weekly\"]}",
            "PUT /v1/backups/web01/revs/remoteB/tags?autoremove=1 {\"new_tags\":[],\"old_tags\":[\"daily\"]}",
            "POST /v1/backups/web01/purge"
        ]
    );
    let status = world.ok(&["status"]);
    assert!(!status.text().contains("pending") && !status.text().contains("remoteB"), "{status}");
    with_config(&world, "push").expect(0).says("no tags were changed that a peer does not know of");
}

#[test]
fn a_note_without_tags_stays_until_its_server_knows() {
    let (world, _, _) = pulled();
    world.ok(&["tags", "set", "--autoremove", "-r", "remoteB", ""]);
    assert_eq!(world.ok(&["find", "-r", "remote", "--uuid"]).text().lines().count(), 2);
    assert!(world.ok(&["status"]).text().contains("-daily"));
    assert_eq!(world.ok(&["undelete", "--json"]).json()["forgotten"].as_array().map(Vec::len), Some(0));
}

#[test]
fn a_peer_that_errs_is_named_and_shows_in_the_status() {
    let (world, _, _) = pulled();
    world.ok(&["forget", "-r", "remote"]);
    let text = fs::read_to_string(world.path("backy.conf")).expect("read the configuration");
    let (_, url) = text.split_once("url: ").expect("the address of the peer");
    let url = url.split(',').next().unwrap_or_default();
    // Nobody listens on port 1.
    let text = text.replace(url, "'http://127.0.0.1:1'");
    let write = |text: &str| fs::write(world.path("backy.conf"), text).expect("write the configuration");
    write(&text);
    for command in ["pull", "push"] {
        let run = with_config(&world, command).expect(1).says("peer backup2: cannot reach the service at");
        assert!(!format!("{run}").contains("t0ken"), "{run}");
    }
    assert!(world.ok(&["status"]).text().contains("2 pending change(s)"));
    write(&text.replace("backup2:", "backup3:"));
    with_config(&world, "push").expect(1).says("peer backup2: it is not among the peers");
    let run = with_config(&world, "pull").expect(1);
    assert!(run.text().ends_with("dropped 2 notes of servers that are no peers\n"), "{run}");
    fs::remove_file(world.path("backy.conf")).expect("remove the configuration");
    with_config(&world, "pull").expect(1).says("cannot read the configuration");
}
