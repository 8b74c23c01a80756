//! What happens around the snapshot: commands that freeze and thaw, and Consul.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::TcpListener;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backy_sched::source::rbd::{Environment, Patience};

use crate::cluster;
use crate::cluster::Change::Write;
use crate::cluster::{Disk, noise};
use crate::scene::Scene;

const C: u64 = 4 << 20;

#[test]
fn a_file_system_is_frozen_only_while_the_snapshot_is_made() {
    let cluster = cluster!();
    let disk = cluster.image(C, &[]);
    let log = "pre-snapshot: echo freeze $BACKY_IMAGE >> hooks\npost-snapshot: echo thaw $(rbd snap ls $BACKY_IMAGE | wc -l) >> hooks";
    let mut scene = Scene::new(&disk, log);
    let hooks = scene.world.path("hooks");
    scene.backup(&disk);
    // A line for the head and one for the snapshot.
    assert_eq!(fs::read_to_string(&hooks).unwrap(), format!("freeze {}\nthaw 2\n", disk.spec()));
    for (pre, expected) in [("exit 7", "status 7"), ("sleep 100", "longer than 1 s")] {
        scene.configure(
            &disk.name,
            &format!("pre-snapshot: {pre}\npost-snapshot: echo thaw > hooks\nhook-timeout: 1s"),
        );
        fs::remove_file(&hooks).unwrap();
        scene.must_fail(Some(&disk), expected).says("still frozen");
        assert_eq!(fs::read_to_string(&hooks).unwrap(), "thaw\n");
    }
    scene.configure(&disk.name, "post-snapshot: exit 9");
    scene.must_fail(Some(&disk), "the post-snapshot command of the job failed: status 9");
}

#[test]
fn what_is_frozen_is_thawed_even_when_backy_is_killed() {
    let cluster = cluster!();
    let disk = cluster.image(C, &[]);
    let source =
        "pre-snapshot: touch frozen; sleep 15\npost-snapshot: rm frozen; touch thawed\nhook-timeout: 1h";
    let mut scene = Scene::new(&disk, source);
    let mut command = scene.world.command(&["backup", "daily"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually(|| scene.world.path("frozen").exists());
    child.kill().unwrap();
    backy_testkit::ended(&mut child);
    eventually(|| scene.world.path("thawed").exists());
    assert!(!scene.world.path("frozen").exists());
    scene.configure(&disk.name, "");
    scene.backup(&disk);
}

fn eventually(is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A Consul that has one request at a time; with a disk it takes the snapshot that is asked for.
struct Consul {
    address: String,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Consul {
    fn start(disk: Option<&Disk>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let calls: Arc<Mutex<Vec<String>>> = Arc::default();
        let shared = Arc::clone(&calls);
        let place = disk.map(|disk| (disk.cluster.clone(), disk.spec()));
        std::thread::spawn(move || {
            let mut request: Option<(String, String)> = None;
            for mut stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut first = String::new();
                reader.read_line(&mut first).unwrap();
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    if let Some(found) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = found.trim().parse().unwrap();
                    }
                    if line.trim().is_empty() {
                        break;
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                let words: Vec<&str> = first.split(' ').collect();
                let key = words[1].trim_start_matches("/v1/kv/");
                shared.lock().unwrap().push(format!("{} {key}", words[0]));
                let mut status = 200;
                let text = match (words[0], key.split_once('?')) {
                    ("PUT", _) => {
                        let body = String::from_utf8(body).unwrap();
                        let value: serde_json::Value = serde_json::from_str(&body).unwrap();
                        if let Some((cluster, spec)) = &place {
                            let name = value["snapshot"].as_str().unwrap();
                            cluster.rbd(&["snap", "create", "--no-progress", &format!("{spec}@{name}")]);
                        }
                        request = Some((key.to_owned(), body));
                        "true".to_owned()
                    }
                    ("GET", Some((_, "keys"))) => match &request {
                        Some((key, _)) => format!("[\"{key}\"]"),
                        None => {
                            status = 404;
                            String::new()
                        }
                    },
                    ("GET", _) => request.as_ref().map(|(_, body)| body.clone()).unwrap(),
                    ("DELETE", _) => {
                        request = None;
                        "true".to_owned()
                    }
                    other => panic!("{other:?}"),
                };
                let head = format!(
                    "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    text.len()
                );
                drop(stream.write_all(format!("{head}{text}").as_bytes()));
            }
        });
        Self { address, calls }
    }

    fn calls(&self) -> Vec<String> {
        let calls = self.calls.lock().unwrap();
        let without_id = |call: &String| match call.split_once("snapshot/") {
            Some((before, id)) => {
                format!("{before}snapshot/{}", id.split_once('?').map_or("", |(_, query)| query))
            }
            None => call.clone(),
        };
        calls.iter().map(without_id).collect()
    }
}

fn source(address: &str) -> String {
    format!("vm: test01\nconsul_acl_token: 5b1c\nconsul: {address}")
}

#[test]
fn a_consistent_snapshot_is_asked_for_through_consul() {
    let cluster = cluster!();
    let disk = cluster.image(C, &[]);
    disk.change(C, &[Write(0, noise(1, 10_000))]);
    let consul = Consul::start(Some(&disk));
    let mut scene = Scene::new(&disk, &source(&consul.address));
    scene.backup_in(&disk, "full");
    let expected = ["PUT snapshot/", "GET snapshot/keys", "GET snapshot/raw", "DELETE snapshot/"];
    assert_eq!(consul.calls(), expected);
    assert!(!scene.log().contains("consul-snapshot-by-ourselves"));
    assert!(!scene.log().contains("5b1c"), "the key is in the log");
    scene.must_restore_all();
}

#[test]
fn without_consul_the_snapshot_is_made_all_the_same_and_without_an_image_nobody_is_asked() {
    let cluster = cluster!();
    let disk = cluster.image(C, &[]);
    let mut scene = Scene::new(&disk, &source("127.0.0.1:1"));
    scene.backup_in(&disk, "full");
    assert!(scene.log().contains("consul-unusable") && scene.log().contains("consul-snapshot-by-ourselves"));
    let consul = Consul::start(Some(&disk));
    scene.configure("no-such-image", &source(&consul.address));
    scene.must_fail(None, "does not exist");
    assert!(consul.calls().is_empty(), "{:?}", consul.calls());
    scene.must_restore_all();
}

/// Nobody answers the request: after the time that there is for it, we take the snapshot.
#[test]
fn a_request_that_nobody_answers_is_given_up() {
    let cluster = cluster!();
    let disk = cluster.image(C, &[]);
    let consul = Consul::start(None);
    let conf = format!("{}\nconf: {}", source(&consul.address), cluster.conf.display());
    let scene = Scene::new(&disk, &conf);
    let millis = Duration::from_millis;
    let patience = Patience { first: millis(300), between: millis(200), at_most: millis(1500) };
    let begun = Instant::now();
    let report = scene.backup_in_process(Environment { patience, ..Environment::default() });
    assert!(begun.elapsed() > patience.at_most);
    assert_eq!(report.revision.source["mode"], "full");
    assert_eq!(disk.snapshots(), [format!("backy-{}", report.revision.id)]);
    assert_eq!(
        consul.calls(),
        ["PUT snapshot/", "GET snapshot/keys", "GET snapshot/raw", "DELETE snapshot/"]
    );
}

/// The same with the patience of the original, which is that of the program.
#[test]
fn a_request_that_nobody_answers_is_given_up_after_as_long_as_the_original_waits() {
    let cluster = cluster!();
    if std::env::var_os("BACKY_TEST_SLOW").is_none() {
        println!("skipped: it takes 93 seconds; set BACKY_TEST_SLOW");
        return;
    }
    let disk = cluster.image(C, &[]);
    let consul = Consul::start(None);
    let mut scene = Scene::new(&disk, &source(&consul.address));
    let begun = Instant::now();
    scene.backup_in(&disk, "full");
    assert!(begun.elapsed() > Duration::from_secs(90));
    assert_eq!(consul.calls().last().unwrap(), "DELETE snapshot/");
}
