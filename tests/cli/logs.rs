//! Where a command logs, and what is no log.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use backy_testkit::Run;

use super::world;

#[test]
fn a_log_asked_for_by_name_has_a_line_of_every_command() {
    let (world, _) = world();
    let log = world.path("own.log");
    for (words, command) in [(&["status"][..], "status"), (&["verify"], "verify"), (&["doctor"], "doctor")] {
        drop(fs::remove_file(&log));
        Run::of(world.command(&["-l", "own.log"]).args(words));
        let text = fs::read_to_string(&log).expect("it is there");
        assert!(text.contains(" command/invoked "), "{text}");
        assert!(text.contains(&format!("command={command}")), "{text}");
        assert_eq!(fs::metadata(&log).expect("it is there").permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn links_are_followed_only_where_a_person_named_them() {
    let (world, _) = world();
    let (victim, own) = (world.path("victim"), world.job().join("backy.log"));
    fs::write(&victim, "precious\n").expect("write a file");
    drop(fs::remove_file(&own));
    symlink(&victim, &own).expect("plant a link");
    let run = world.ok(&["backup", "daily"]);
    assert!(run.stderr.contains("backy.log: it is a symbolic link"), "{run}");
    assert_eq!(fs::read_to_string(&victim).expect("it is there"), "precious\n");
    // A link to nothing makes nothing.
    fs::remove_file(&victim).expect("remove it");
    world.ok(&["backup", "daily"]);
    assert!(!victim.exists());

    symlink("elsewhere", world.path("link")).expect("make a link");
    world.ok(&["-l", "link", "backup", "daily"]);
    assert!(fs::read_to_string(world.path("elsewhere")).expect("it is there").contains("command=backup"));
}

#[test]
fn what_is_no_log_is_refused_and_devices_are_none_the_worse() {
    let (world, _) = world();
    let run = world.run(&["-l", "srv", "status"]).expect(1);
    assert!(run.stderr.contains("cannot open the log file srv"), "{run}");
    for device in ["/dev/null", "/dev/full"] {
        world.ok(&["-l", device, "backup", "daily"]);
    }
    let run = world.ok(&["-l", "/dev/stderr", "status"]);
    assert!(run.stderr.contains("command=status"), "{run}");
}

#[test]
fn details_are_logged_only_with_verbose_and_harmless_lines_stay_as_they_are() {
    let (world, _) = world();
    let run = world.ok(&["-v", "verify", "-r", "all"]);
    assert!(run.stderr.lines().any(|line| line.contains(" I web01 ")), "{run}");
    assert!(!run.stderr.contains("\\t"), "{run}");
}

/// Programs that read logs take one line for one event.
#[test]
fn an_error_is_one_line_with_its_causes_and_its_hint_as_fields() {
    let (world, [first, ..]) = world();
    for map in fs::read_dir(world.job()).expect("list").flatten().map(|entry| entry.path()) {
        if map.extension().is_some_and(|end| end == "map") {
            fs::remove_file(map).expect("remove a map");
        }
    }
    for words in
        [&["restore", "-r", &first, "x"][..], &["restore", "-r", "nothing", "x"], &["backup", "no", "no"]]
    {
        let log = world.path("own.log");
        drop(fs::remove_file(&log));
        let run = Run::of(world.command(&["-l", "own.log"]).args(words));
        assert_ne!(run.code(), 0, "{run}");
        let text = fs::read_to_string(&log).unwrap_or_default();
        assert!(!text.contains("\n>"), "{text}");
        let failed: Vec<&str> = text.lines().filter(|line| line.contains(" command/failed ")).collect();
        let said = run.stderr.lines().find_map(|line| line.strip_prefix("error: "));
        match said {
            Some(said) if !text.is_empty() => {
                assert_eq!(failed.len(), 1, "{text}");
                assert!(failed[0].contains(" error='") && failed[0].contains(said), "{text}\n{run}");
                let hinted = run.stderr.contains("hint: ");
                assert_eq!(failed[0].contains(" hint='"), hinted, "{text}\n{run}");
            }
            _ => assert!(run.code() == 2, "{run}"),
        }
    }
}
