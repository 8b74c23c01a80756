//! What goes to which stream, closed pipes, completion and help.

use std::process::{Command, Stdio};

use backy_testkit::Run;

use crate::{BINARY, world};

#[test]
fn data_goes_to_standard_output_and_the_rest_to_standard_error() {
    let (world, [.., last]) = world();
    let run = world.ok(&["backup", "daily"]);
    assert_eq!(run.text().lines().count(), 1, "{run}");
    assert!(run.stderr.contains("read "), "{run}");
    let run = world.ok(&["restore", "-r", &last, "-"]);
    assert!(run.stdout == world.expected[&last].0);
    let run = world.ok(&["find", "--uuid", "-r", &last]);
    assert_eq!(run.text(), format!("{last}\n"));
    assert_eq!(run.stderr, "");
}

/// `rbd import $(backy find) ...` must not import a chunk map.
#[test]
fn find_prints_nothing_that_could_be_taken_for_an_image() {
    let (world, [first, .., last]) = world();
    let run = world.run(&["find"]).expect(1).says(&last).says("`backy mount`").says("`backy restore`");
    assert!(run.stdout.is_empty(), "{run}");
    let run = world.run(&["find", "-r", "all"]).expect(1).says(&first);
    assert!(run.stdout.is_empty(), "{run}");
    let found = world.ok(&["find", "--json"]).json();
    assert!(found["revisions"][0]["path"].is_null(), "{found}");
    let map = world.path(&format!("srv/web01/{last}.map"));
    assert_eq!(found["revisions"][0]["map"], map.to_string_lossy().as_ref());
}

#[test]
fn results_that_cannot_be_printed_are_an_error() {
    let (world, [first, .., last]) = world();
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let undelete = ["undelete", "-r", &last];
    world.ok(&["forget", "-r", &last]);
    for words in [
        &["status"][..],
        &["status", "--json"],
        &["status", "--yaml"],
        &["status", "--space"],
        &["find", "--uuid"],
        &["find", "--json"],
        &["verify", "-r", "all"],
        &["tags", "set", "-r", &first, "weekly"],
        &["expire", "--dry-run", "--explain"],
        &undelete,
        &["forget", "-r", &last],
        &["undelete"],
        &["backup", "daily"],
        &["doctor"],
        &["completion", "bash"],
        &["--help"],
        &["restore", "--help"],
        &["--version"],
    ] {
        let output = world.command(words).stdout(full()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
        let mut closed = Command::new("sh");
        closed.args(["-c", "exec \"$0\" \"$@\" >&-", BINARY, "-b", "srv/web01"]).args(words);
        // What was undone for the first run is done for the second.
        match words {
            ["undelete", "-r", _] => drop(world.run(&["forget", "-r", &last])),
            ["forget", ..] => drop(world.run(&undelete)),
            _ => {}
        }
        Run::of(closed.current_dir(world.path(""))).expect(1);
    }
    let output = world.bare(&[]).stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let closed = format!("{BINARY} check >&-");
    Run::of(Command::new("sh").args(["-c", &closed]).current_dir(world.path(""))).expect(3);
    // Not closed: programs that start others often open it so.
    let null = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
    assert!(world.command(&["status"]).stdout(null).status().unwrap().success());
    let output = world.command(&["check"]).stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    // A descriptor for reading only.
    let null = std::fs::File::open("/dev/null").unwrap();
    let output = world.command(&["status"]).stdout(null).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn a_listing_into_a_closed_pipe_is_no_error() {
    let (world, _) = world();
    let script = format!("{{ {BINARY} -b srv/web01 status --json; echo $? >&2; }} | head -c 1");
    let run = Run::of(Command::new("sh").args(["-c", &script]).current_dir(world.path("")));
    assert_eq!(run.stderr, "0\n", "{run}");
    let mut child = world.command(&["status"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(backy_testkit::ended(&mut child).success());
}

#[test]
fn an_image_into_a_closed_pipe_is_an_error() {
    let (world, _) = world();
    let mut child =
        world.command(&["restore", "-"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = backy_testkit::output_of(child);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("error: "));
}

#[test]
fn completion_help_and_version_need_no_store() {
    let (world, _) = world();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let run = Run::of(&mut world.bare(&["completion", shell])).expect(0);
        assert!(run.text().contains("backy") && run.text().contains("undelete"), "{run}");
    }
    for words in [&["--help"][..], &[], &["restore", "--help"], &["--version"]] {
        let run = Run::of(&mut world.bare(words)).expect(0);
        assert!(run.text().contains("backy") && run.stderr.is_empty(), "{run}");
    }
}

#[test]
fn tables_are_plain_when_piped_and_name_the_zone() {
    let (world, [first, ..]) = world();
    let run = world.ok(&["status"]);
    assert!(run.text().starts_with("Date (UTC)"), "{run}");
    assert!(run.text().is_ascii() && !run.text().contains('\x1b'), "{run}");
    assert!(run.text().contains(&first) && run.text().contains("3 revisions containing"), "{run}");
}
