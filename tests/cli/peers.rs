//! `pull` and `push`, and what every other command makes of revisions that lie on another server.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use backy_testkit::{Run, World};

use crate::world;

/// A server with these revisions of every job, which takes whatever it is told. It keeps requests and their bodies.
fn server(revisions: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&requests);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = Vec::new();
            let mut piece = [0; 8192];
            while let Ok(length @ 1..) = stream.read(&mut piece) {
                request.extend_from_slice(&piece[..length]);
                let text = String::from_utf8_lossy(&request);
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let length = head.to_lowercase().split_once("content-length: ").map_or(0, |(_, rest)| {
                    rest.lines().next().and_then(|number| number.parse().ok()).unwrap_or(0)
                });
                if body.len() >= length {
                    let line = head.lines().next().unwrap_or_default().replace(" HTTP/1.1", "");
                    seen.lock().expect("the requests").push(format!("{line} {body}").trim_end().to_owned());
                    break;
                }
            }
            let get = request.starts_with(b"GET");
            let (status, body) = if get { ("200 OK", revisions) } else { ("204 No Content", "") };
            let length = body.len();
            let answer =
                format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    (url, requests)
}

const REVISIONS: &str = "[
    {\"uuid\": \"remoteA\", \"timestamp\": \"2024-03-01T02:00:00+00:00\", \"tags\": [\"daily\", \"weekly\"], \
     \"stats\": {\"bytes_written\": 5, \"duration\": 1.5}, \"trust\": \"distrusted\", \"server\": \"\"},
    {\"uuid\": \"remoteB\", \"timestamp\": \"2099-03-01T02:00:00+00:00\", \"tags\": [\"daily\"], \
     \"stats\": {\"bytes_written\": 5, \"duration\": 1.5}, \"server\": \"\"}]";

fn configure(world: &World, url: &str) {
    let text = format!(
        "global: {{base-dir: {}}}\nschedules: {{}}\njobs: {{}}\npeers: {{backup2: {{url: '{url}', token: t0ken}}}}\n",
        world.store().display()
    );
    fs::write(world.path("backy.conf"), text).expect("write the configuration");
}

fn with_config(world: &World, command: &str) -> Run {
    world.run(&[command, "-c", "backy.conf"])
}

/// Three revisions here and two notes of those on `backup2`.
fn pulled() -> (World, [String; 3], Arc<Mutex<Vec<String>>>) {
    let (world, local) = world();
    let (url, requests) = server(REVISIONS);
    configure(&world, &url);
    let run = with_config(&world, "pull").expect(0);
    assert_eq!(run.line(), "backup2: 2 revisions, 2 notes written, 0 removed");
    assert_eq!(
        requests.lock().expect("the requests").clone(),
        ["POST /v1/backups/web01/touch", "GET /v1/backups/web01/revs?only_clean=1"]
    );
    (world, local, requests)
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
    let (world, _, requests) = pulled();
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
    requests.lock().expect("the requests").clear();
    let run = with_config(&world, "push").expect(0);
    assert_eq!(run.line(), "backup2: 2 pending changes, 2 pushed, 1 of them removed");
    assert_eq!(
        requests.lock().expect("the requests").clone(),
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
    let nobody = TcpListener::bind("127.0.0.1:0").expect("listen");
    let url = format!("http://{}", nobody.local_addr().expect("an address"));
    drop(nobody);
    configure(&world, &url);
    for command in ["pull", "push"] {
        let run = with_config(&world, command).expect(1).says("peer backup2: cannot reach the service at");
        assert!(!format!("{run}").contains("t0ken"), "{run}");
    }
    assert!(world.ok(&["status"]).text().contains("2 pending change(s)"));
    let text = fs::read_to_string(world.path("backy.conf")).expect("read the configuration");
    fs::write(world.path("backy.conf"), text.replace("backup2:", "backup3:"))
        .expect("write the configuration");
    with_config(&world, "push").expect(1).says("peer backup2: it is not among the peers");
    let run = with_config(&world, "pull").expect(1);
    assert!(run.text().ends_with("dropped 2 notes of servers that are no peers\n"), "{run}");
    fs::remove_file(world.path("backy.conf")).expect("remove the configuration");
    with_config(&world, "pull").expect(1).says("cannot read the configuration");
}
