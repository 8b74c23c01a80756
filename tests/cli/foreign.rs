//! What other programs write for backy, and read of what it writes.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use backy_testkit::Run;

use crate::world;

/// What Python's reader, which knows YAML 1.1, understands.
fn as_python_reads(yaml: &str) -> serde_json::Value {
    let script = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout, default=str)";
    let mut python = Command::new("python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 with python3-yaml");
    python.stdin.take().unwrap().write_all(yaml.as_bytes()).unwrap();
    let output = backy_testkit::output_of(python);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

#[test]
fn odd_words_mean_themselves_to_other_readers_of_yaml() {
    let (world, [first, ..]) = world();
    let odd = ["no", "12:30", "1_000", "=", "<<", "~", "0x1F", "1e5", "on", "y", "null", ".inf"];
    world.ok(&["tags", "set", "-f", &first, &odd.join(",")]);
    let status = world.ok(&["status", "--yaml", "-r", &first]);
    let tags = as_python_reads(status.text())[0]["tags"].clone();
    let mut read: Vec<&str> = tags.as_array().unwrap().iter().filter_map(serde_json::Value::as_str).collect();
    let mut given = odd.to_vec();
    read.sort_unstable();
    given.sort_unstable();
    assert_eq!(read, given, "{status}");
    let manifest = fs::read_to_string(world.job().join(format!("{first}.rev"))).unwrap();
    assert_eq!(as_python_reads(&manifest)["tags"], tags);
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_configuration() {
    let (world, _) = world();
    let config = world.job().join("config");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("\u{feff}{text}")).unwrap();
    world.ok(&["backup", "daily"]);
    let main =
        format!("\u{feff}global: {{base-dir: {}}}\nschedules: {{}}\njobs: {{}}\n", world.store().display());
    fs::write(world.path("backy.conf"), main).unwrap();
    Run::of(&mut world.bare(&["config", "check", "-c", "backy.conf"])).expect(0);
}

#[test]
fn tags_that_could_not_be_selected_later_are_refused_when_they_are_given() {
    let (world, [first, ..]) = world();
    for tag in [
        "last",
        "first",
        "all",
        "local",
        "7",
        "2024-01-01",
        "a&b",
        "a..b",
        "(x)",
        "tag:x",
        "\"x\"",
        "a\u{202e}b",
    ] {
        for words in [
            &["backup", "-f", tag][..],
            &["tags", "set", "-f", &first, tag],
            &["tags", "add", "-f", &first, tag],
        ] {
            world.run(words).expect(1).says("invalid tag").says("hint: tags are words");
        }
        world.ok(&["tags", "remove", &first, tag]);
    }
    world.ok(&["tags", "add", &first, "manual:last,manual:a b"]);
    assert_eq!(world.ok(&["find", "--uuid", "-r", "tag:\"manual:a b\""]).line(), first);
}

#[test]
fn the_log_holds_values_as_people_write_them() {
    let (world, _) = world();
    let log = fs::read_to_string(world.job().join("backy.log")).unwrap();
    assert!(log.contains(" tags=daily") && log.contains(" tags='daily,manual:keep'"), "{log}");
    assert!(!log.contains("Tag(") && !log.contains('{'), "{log}");
}
