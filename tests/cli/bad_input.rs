//! Whatever is wrong is named, the status says failed or wrong usage, and nothing is changed or made.

use std::fs;

use backy_testkit::{JOB, Run, Tree, World};

use crate::world;

/// Runs with exactly these arguments, which must fail with `code`, name `parts`, print nothing on standard output and
/// change nothing.
#[track_caller]
fn refuse(world: &World, words: &[&str], code: i32, parts: &[&str]) {
    let before = Tree::of(&world.path(""));
    let mut run = Run::of(&mut world.bare(words)).expect(code);
    assert!(run.stderr.contains("error: "), "{run}");
    assert_eq!(run.text(), "", "{run}");
    for part in parts {
        run = run.says(part);
    }
    before.must_equal(&Tree::of(&world.path("")), &format!("{words:?}"));
}

/// The same for the job.
#[track_caller]
fn refuse_job(world: &World, words: &[&str], code: i32, parts: &[&str]) {
    refuse(world, &[&["-b", "srv/web01"], words].concat(), code, parts);
}

/// Every command that needs a job.
const ON_A_JOB: [&[&str]; 14] = [
    &["backup", "daily"],
    &["backup", "-f", "x"],
    &["restore", "out"],
    &["status"],
    &["find"],
    &["verify"],
    &["distrust"],
    &["tags", "set", "all", "daily"],
    &["expire"],
    &["forget", "-r", "last"],
    &["undelete"],
    &["undelete", "-r", "last"],
    &["purge"],
    &["index", "rebuild"],
];

#[test]
fn where_there_is_no_store_nothing_is_made() {
    let (world, _) = world();
    fs::create_dir(world.path("mountpoint")).unwrap();
    for words in ON_A_JOB {
        refuse(
            &world,
            &[&["-b", "mountpoint"], words].concat(),
            1,
            &["no backy store", "mountpoint", "hint: "],
        );
        refuse(&world, &[&["-b", "missing/web01"], words].concat(), 1, &["no backy store", "missing/web01"]);
    }
    refuse(&world, &["-b", "mountpoint/web01", "backup", "daily"], 1, &["no backy store"]);
}

#[test]
fn a_job_that_is_not_there_is_named() {
    let (world, _) = world();
    for words in ON_A_JOB {
        refuse(&world, &[&["-b", "srv/web02"], words].concat(), 1, &["web02", "status"]);
    }
    refuse(&world, &["-b", "srv", "backup", "daily"], 1, &["not a job", "web01"]);
}

#[test]
fn unknown_revisions_and_malformed_specifications_are_named() {
    let (world, [first, ..]) = world();
    for (spec, problem) in [
        ("nope", "nope"),
        ("9", "9"),
        ("last(", "last("),
        ("reverse(all", "reverse(all"),
        ("all)", "all)"),
        ("first(last", "first(last"),
        ("trust:maybe", "maybe"),
        ("2024-13-01..", "2024-13-01"),
        ("2024-02-30..", "2024-02-30"),
        ("all..last", "all"),
        ("&", "&"),
        ("", "\"\""),
        ("not()", "not()"),
    ] {
        for words in [&["status", "-r", spec][..], &["find", "-r", spec], &["forget", "-r", spec]] {
            refuse_job(&world, words, 1, &["revision specification", problem]);
        }
        refuse_job(&world, &["restore", "-r", spec, "out"], 1, &[problem]);
        refuse_job(&world, &["tags", "set", "-r", spec, "daily"], 1, &[problem]);
    }
    // One revision is needed, and this is several.
    refuse_job(&world, &["restore", "-r", "all", "out"], 1, &["all"]);
    refuse_job(&world, &["undelete", "-r", &first], 1, &[&first]);
    refuse_job(&world, &["undelete", "-r", "../web01"], 1, &["../web01"]);
    refuse_job(&world, &["undelete", "-r", "zzz"], 1, &["forgotten revision zzz", "`backy undelete` lists"]);
}

#[test]
fn tags_with_blanks_that_cannot_be_seen_are_refused_and_not_trimmed() {
    let (world, _) = world();
    for tag in ["manual:x\u{a0}", "\u{2028}manual:x", "\u{3000}daily"] {
        refuse_job(&world, &["backup", tag], 1, &["blank"]);
        refuse_job(&world, &["tags", "set", "all", tag], 1, &["blank"]);
        refuse_job(&world, &["tags", "add", "--force", "all", tag], 1, &["blank"]);
    }
    world.ok(&["tags", "add", "last", " manual:x , manual:y "]);
}

#[test]
fn tags_that_the_schedule_does_not_know_are_named_with_those_it_does() {
    let (world, _) = world();
    refuse_job(&world, &["backup", "dayly"], 1, &["dayly", "daily, weekly", "manual:"]);
    refuse_job(&world, &["backup", "daily,hourly"], 1, &["hourly"]);
    refuse_job(&world, &["tags", "add", "last", "hourly"], 1, &["hourly"]);
    refuse_job(&world, &["backup", "a/b"], 1, &["a/b"]);
    refuse_job(&world, &["tags", "set", "last", "a/b"], 1, &["a/b"]);
    refuse_job(&world, &["backup", ""], 2, &["tag"]);
    refuse_job(&world, &["backup", &"x".repeat(200)], 1, &["xxx"]);
}

#[test]
fn a_broken_configuration_is_named_by_file_line_and_column() {
    let (world, _) = world();
    let cases: [(&str, &[&str]); 9] = [
        ("source: {type: file\n", &["line 2 column 1"]),
        ("source: [\n  a: b: c\n", &["line 2 column 7"]),
        ("source:\n  type: file\n  filenam: x\n", &["line 3", "filenam", "did you mean filename?"]),
        ("source: {type: file, filename: x}\nverfy: full\n", &["line 2", "verfy", "did you mean verify?"]),
        (
            "source: {type: file, filename: x}\nschedule: {daily: {intervall: 1d, keep: 1}}\n",
            &["intervall", "interval"],
        ),
        ("source: {type: file, filename: x}\nschedule: {daily: {interval: 1x, keep: 1}}\n", &["1x"]),
        ("source: {type: fil, filename: x}\n", &["fil", "file"]),
        (
            "source: {type: file, filename: x}\ncompression-level: 99\n",
            &["line 2", "compression-level", "1 to 19"],
        ),
        ("", &["mapping of keys"]),
    ];
    for (text, parts) in cases {
        world.configure(JOB, text);
        for words in [&["backup", "daily"][..], &["expire"], &["tags", "add", "last", "weekly"]] {
            refuse_job(&world, words, 1, &["srv/web01/config"]);
            refuse_job(&world, words, 1, parts);
        }
        // What does not need it goes on.
        world.ok(&["status"]);
    }
    world.must_restore_all("with a broken configuration");
}

#[test]
fn names_that_are_no_jobs_are_refused() {
    let (world, _) = world();
    for name in
        ["a b", "..hidden", ".hidden", "-x", "chunks", "a\nb", "a\x1b[2Jb", "ä", "index.sqlite", "a..b"]
    {
        let dir = format!("srv/{name}");
        refuse(&world, &["-b", &dir, "init", "file", "filename=image.img"], 1, &["job"]);
    }
    let long = format!("srv/{}", "x".repeat(129));
    refuse(&world, &["-b", &long, "init", "file", "filename=image.img"], 1, &["128"]);
    // A control character is shown, not sent to the terminal.
    let run = Run::of(&mut world.bare(&["-b", "srv/a\x1b[2Jb", "status"])).expect(1);
    assert!(!run.stderr.contains('\x1b'), "{run}");
    refuse(&world, &["-b", "srv/new/deeper", "init", "file", "filename=x"], 1, &["inside the store"]);
    refuse(&world, &["-b", "srv/web01", "init", "file", "filename=image.img"], 1, &["web01", "exists"]);
    refuse(&world, &["init", "srv"], 1, &["srv"]);
    fs::create_dir(world.path("full")).unwrap();
    fs::write(world.path("full/file"), "x").unwrap();
    refuse(&world, &["init", "full"], 1, &["not empty"]);
    refuse(&world, &["-b", "full/web", "init", "file", "filename=image.img"], 1, &["full"]);
}

#[test]
fn settings_that_make_no_sense_make_no_job() {
    let (world, _) = world();
    let init = |settings: &[&'static str]| [&["-b", "srv/web02", "init"], settings].concat();
    refuse(&world, &init(&["file", "filenam=x"]), 2, &["filenam", "did you mean filename?"]);
    refuse(&world, &init(&["fil", "filename=x"]), 2, &["fil"]);
    refuse(&world, &init(&["file", "filename"]), 2, &["filename"]);
    refuse(&world, &init(&["file"]), 2, &["file"]);
    refuse(&world, &init(&["file", "filename=x", "filename=y"]), 2, &["filename"]);
}

#[test]
fn options_without_a_command_are_wrong_usage() {
    let (world, _) = world();
    for (words, part) in [
        (&["-l", "status"][..], "no command was given: `-l` takes a FILE, and took `status` for it"),
        (&["-v", "--backupdir", "purge"], "`backy --backupdir DIR purge`"),
        (&["-c", "c.conf"], "no command was given"),
        (&["-v"], "no command was given"),
    ] {
        let run = Run::of(&mut world.bare(words)).expect(2).says(part);
        assert!(run.stdout.is_empty(), "{run}");
    }
    assert!(!world.path("status").exists());
    let run = Run::of(&mut world.bare(&[])).expect(0);
    assert!(run.text().contains("Usage: backy"), "{run}");
}

#[test]
fn wrong_usage_has_status_2() {
    let (world, _) = world();
    let cases: [(&[&str], &str); 14] = [
        (&["mount", "-o", "foo", "mnt"], "unknown mount option \"foo\"\n"),
        (&["mount", "-o", "cahce=1M", "mnt"], "did you mean cache?"),
        (&["mount", "-o", "cache=x", "mnt"], "cache=x"),
        (&["restroe", "x"], "restore"),
        (&["status", "--jsn"], "--json"),
        (&["forget"], "--revision"),
        (&["backup"], "TAGS"),
        (&["purge", "--hold", "5x"], "5x"),
        (&["purge", "--hold", "1d", "--now"], "--now"),
        (&["verify", "--threads", "0"], "0"),
        (&["distrust", "-f", "yesterday"], "yesterday"),
        (&["distrust", "-r", "all", "-f", "2024-01-01"], "--revision"),
        (&["tags", "set", "daily"], "revisions"),
        (&["status", "--yaml", "--json"], "--json"),
    ];
    for (words, part) in cases {
        refuse_job(&world, words, 2, &[part]);
    }
    refuse(&world, &["-b", "", "status"], 2, &[]);
    refuse(&world, &["completion", "cmd"], 2, &["cmd"]);
}

#[test]
fn a_target_that_may_hold_something_is_not_overwritten() {
    let (world, [first, ..]) = world();
    refuse_job(&world, &["restore", "image.img"], 1, &["image.img", "--force"]);
    refuse_job(&world, &["restore", "srv"], 1, &["srv"]);
    refuse_job(&world, &["restore", "no/such/dir"], 1, &["no/such"]);
    let out = fs::read(world.path("image.img")).unwrap();
    world.ok(&["restore", "--force", "-r", &first, "image.img"]);
    assert_ne!(fs::read(world.path("image.img")).unwrap(), out);
    assert_eq!(fs::read(world.path("image.img")).unwrap(), world.expected[&first].0);
}

#[test]
fn a_log_that_cannot_be_written_is_an_error_only_when_asked_for() {
    let (world, _) = world();
    refuse_job(&world, &["-l", "no/such/log", "status"], 1, &["no/such/log"]);
    drop(fs::remove_file(world.job().join("backy.log")));
    fs::create_dir(world.job().join("backy.log")).unwrap();
    world.ok(&["backup", "daily"]);
}
