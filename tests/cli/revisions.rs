//! Selecting, tagging, distrusting, forgetting, expiring and purging revisions.

use std::collections::BTreeMap;
use std::fs;

use backy_testkit::{JOB, Tree, World};

use crate::world;

fn select(world: &World, spec: &str) -> Vec<String> {
    world.ok(&["find", "--uuid", "-r", spec]).text().lines().map(str::to_owned).collect()
}

/// Tags and trust of each revision, by id.
fn facts(world: &World) -> BTreeMap<String, (String, String)> {
    let status = world.ok(&["status", "--json"]).json();
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let facts = status["revisions"].as_array().expect("a list").iter().map(|revision| {
        let tags: Vec<String> = revision["tags"].as_array().expect("a list").iter().map(text).collect();
        (text(&revision["id"]), (tags.join(","), text(&revision["trust"])))
    });
    facts.collect()
}

#[test]
fn the_grammar_of_the_manual_selects_what_it_says() {
    let (world, [a, b, c]) = world();
    world.ok(&["distrust", "-r", &b]);
    let cases: [(&str, &[&String]); 20] = [
        (&a, &[&a]),
        ("0", &[&c]),
        ("2", &[&a]),
        ("last", &[&c]),
        ("latest", &[&c]),
        ("first", &[&a]),
        ("all", &[&a, &b, &c]),
        ("clean", &[&a, &b, &c]),
        ("local", &[&a, &b, &c]),
        ("remote", &[]),
        ("tag:daily", &[&a, &c]),
        ("last(tag:daily)", &[&c]),
        ("first(tag:daily)", &[&a]),
        ("trust:distrusted", &[&b]),
        ("not(tag:daily)", &[&b]),
        ("reverse(all)", &[&c, &b, &a]),
        ("tag:daily&tag:manual:keep", &[&c]),
        ("1,first", &[&b, &a]),
        ("first..1", &[&a, &b]),
        ("weekly", &[&b]),
    ];
    for (spec, wanted) in cases {
        assert_eq!(select(&world, spec).iter().collect::<Vec<_>>(), wanted, "{spec}");
    }
    assert_eq!(select(&world, "1970-01-01..2000-01-01"), Vec::<String>::new());
    assert_eq!(select(&world, "2000-01-01.."), [a, b, c]);
    world.ok(&["status", "-r", "tag:none"]);
}

#[test]
fn tags_are_set_added_and_removed() {
    let (world, [a, b, c]) = world();
    world.ok(&["tags", "set", "last", "weekly"]);
    world.ok(&["tags", "add", "-r", "all", "manual:x"]);
    world.ok(&["tags", "remove", &a, "daily"]);
    let tags = |id: &String| facts(&world)[id].0.clone();
    assert_eq!([tags(&a), tags(&b), tags(&c)], ["manual:x", "manual:x,weekly", "manual:x,weekly"]);
    world.ok(&["tags", "add", "-f", &a, "unknown"]);
    world.ok(&["tags", "remove", &a, "unknown"]);
    let run = world.ok(&["tags", "set", &a, ""]);
    assert_eq!(run.text().trim_end(), a);
    assert_eq!(tags(&a), "");
    world.must_restore_all("after changes of tags");
}

#[test]
fn expect_changes_all_or_nothing() {
    let (world, [a, b, _]) = world();
    let before = Tree::of(&world.store());
    world.run(&["tags", "set", "--expect", "daily", "-r", "all", "weekly"]).expect(1).says(&b);
    before.must_equal(&Tree::of(&world.store()), "--expect");
    world.ok(&["tags", "set", "--expect", "daily", &a, "weekly"]);
    assert_eq!(facts(&world)[&a].0, "weekly");
}

#[test]
fn autoremove_forgets_what_has_no_tags() {
    let (world, [a, b, c]) = world();
    let run = world.ok(&["tags", "remove", "--autoremove", "-r", "all", "daily"]);
    assert!(run.text().contains(&format!("{a} forgotten")), "{run}");
    assert_eq!(select(&world, "all"), [b, c]);
    world.ok(&["undelete", "-r", "last"]);
    world.must_restore_all("after undelete");
}

#[test]
fn distrust_takes_revisions_or_days() {
    let (world, [a, b, c]) = world();
    let trust = || facts(&world).into_values().map(|(_, trust)| trust).collect::<Vec<_>>();
    world
        .ok(&["distrust", "-f", "2000-01-01", "-u", "2000-12-31"])
        .says("was made from 2000-01-01 to 2000-12-31");
    let run = world
        .ok(&["distrust", "-u", "2020-01-01"])
        .says("no revision of this server was made on 2020-01-01 or earlier");
    assert_eq!(run.stderr.lines().count(), 1, "{run}");
    assert!(trust().iter().all(|trust| trust == "trusted"));
    world.ok(&["distrust", "-r", "first"]);
    assert_eq!(facts(&world)[&a].1, "distrusted");
    assert_eq!((&*facts(&world)[&b].1, &*facts(&world)[&c].1), ("trusted", "trusted"));
    world.ok(&["distrust", "-f", "2000-01-01"]);
    assert!(trust().iter().all(|trust| trust == "distrusted"));
    let run = world.ok(&["verify"]);
    assert_eq!(run.text().lines().filter(|line| line.ends_with(" good")).count(), 3, "{run}");
    assert!(trust().iter().all(|trust| trust == "verified"));
    world.ok(&["distrust", "-u", "2999-01-01"]);
    assert!(trust().iter().all(|trust| trust == "distrusted"));
}

#[test]
fn what_is_forgotten_comes_back_until_it_is_purged() {
    let (mut world, [a, b, c]) = world();
    world.ok(&["forget", "-r", "first,last"]);
    assert_eq!(select(&world, "all"), std::slice::from_ref(&b));
    let held = world.ok(&["purge"]);
    assert!(held.stderr.contains("2 forgotten"), "{held}");
    for id in [&a, &c] {
        world.ok(&["undelete", "-r", id]);
    }
    world.must_restore_all("after undelete");
    // Its chunk that changed leans on the first revision's, so what it frees is its own.
    world.ok(&["forget", "-r", &b]);
    let chunks = world.chunks();
    let before = Tree::of(&world.store());
    let dry = world.ok(&["purge", "--now", "--dry-run"]);
    assert!(dry.text().contains("would delete") && dry.text().contains(&b), "{dry}");
    before.must_equal(&Tree::of(&world.store()), "purge --dry-run");
    let real = world.ok(&["purge", "--now"]);
    assert_eq!(real.text().replace("deleted", "would delete").lines().count(), dry.text().lines().count());
    assert!(world.chunks().len() < chunks.len());
    world.expected.remove(&b);
    world.must_restore_all("after the purge");
    world.run(&["undelete", "-r", &b]).expect(1).says(&b);
    world.run(&["restore", "-r", &b, "out"]).expect(1).says(&b);
}

#[test]
fn what_status_calls_exclusive_is_what_a_purge_frees() {
    let (world, [a, b, c]) = world();
    let space = world.ok(&["status", "--space", "--json"]).json();
    let rows = space["revisions"].as_array().expect("a list");
    let ids: Vec<&str> = rows.iter().filter_map(|row| row["id"].as_str()).collect();
    assert_eq!(ids, [&a, &b, &c]);
    // Both later ones changed their words in a chunk, and no other byte.
    let changed: Vec<u64> = rows.iter().filter_map(|row| row["changed_bytes"].as_u64()).collect();
    assert!(changed[0] > changed[1] && changed[1] > 0, "{space}");
    let number = |value: &serde_json::Value| value.as_u64().expect("a number");
    let sizes = |world: &World| {
        let chunks = world.chunks();
        chunks.iter().map(|path| fs::metadata(path).expect("a chunk").len()).sum::<u64>()
    };
    let before = sizes(&world);
    assert_eq!(number(&space["store"]["chunk_bytes"]), before);
    assert_eq!(number(&space["store"]["chunks"]), world.chunks().len() as u64);
    let facts = |id: &str| {
        let paths = ["rev", "map"].map(|end| world.job().join(format!("{id}.{end}")));
        paths.iter().map(|path| fs::metadata(path).expect("a file").len()).sum::<u64>()
    };
    let (exclusive, own) = (number(&rows[1]["exclusive_bytes"]), facts(&b));
    // Two together free what they share, too.
    let two = world.ok(&["status", "--space", "--json", "-r", &format!("{b},{c}")]).json();
    let (together, owned) = (number(&two["together_bytes"]), own + facts(&c));
    world.ok(&["forget", "-r", &b]);
    world.ok(&["purge", "--now"]);
    assert_eq!(before - sizes(&world), exclusive - own);
    world.ok(&["forget", "-r", &c]);
    world.ok(&["purge", "--now"]);
    assert_eq!(before - sizes(&world), together - owned);
    // And for people: the same lines, and the job in the store's.
    let text = world.ok(&["status", "--space"]);
    assert!(text.text().contains("forgotten together and purged") && text.text().contains(&a), "{text}");
    let jobs = world.on_store(&["status", "--space"]).expect(0);
    assert!(jobs.text().contains(JOB) && jobs.text().contains("of images"), "{jobs}");
}

#[test]
fn expire_does_what_its_dry_run_explains() {
    let (world, [a, b, c]) = world();
    world.configure(
        JOB,
        "source: {type: file, filename: image.img}\nschedule: {daily: {interval: 1d, keep: 2}}\n",
    );
    let before = Tree::of(&world.store());
    let explained = world.ok(&["expire", "--dry-run", "--explain"]);
    for id in [&a, &b, &c] {
        assert!(explained.text().contains(id.as_str()), "{explained}");
    }
    let plan = world.ok(&["expire", "--dry-run", "--json"]).json();
    before.must_equal(&Tree::of(&world.store()), "expire --dry-run");
    let removed: Vec<&str> = plan["decisions"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|decision| decision["removed"] == true)
        .filter_map(|decision| decision["id"].as_str())
        .collect();
    assert_eq!(removed, [b.as_str()], "{plan}");
    world.ok(&["expire"]);
    assert_eq!(select(&world, "all"), [a, c]);
    world.ok(&["undelete", "-r", "last"]);
    world.must_restore_all("after expire and undelete");
}

#[test]
fn a_job_with_its_own_store_can_be_moved() {
    let (world, _) = world();
    let bare = |words: &[&str]| backy_testkit::Run::of(&mut world.bare(words)).expect(0);
    bare(&["-b", "srv/alone", "init", "--own-store", "file", "filename=image.img"]);
    let id = bare(&["-b", "srv/alone", "backup", "daily"]).line();
    assert!(world.store().join("alone/chunks").is_dir());
    // The store's purge looks after it and harms neither.
    bare(&["-b", "srv", "purge", "--now"]);
    fs::rename(world.store().join("alone"), world.path("moved")).unwrap();
    bare(&["-b", "moved", "restore", "-r", &id, "out"]);
    assert_eq!(fs::read(world.path("out")).unwrap(), fs::read(world.path("image.img")).unwrap());
    let next = bare(&["-b", "moved", "backup", "weekly"]).line();
    bare(&["-b", "moved", "purge", "--now"]);
    bare(&["-b", "moved", "verify", "-r", "all"]);
    bare(&["-b", "moved", "restore", "--force", "-r", &next, "out"]);
    bare(&["-b", "srv", "purge", "--now"]);
    world.must_restore_all("after its neighbour has gone");
}

#[test]
fn a_job_of_a_file_has_no_snapshots_to_release() {
    let (world, ids) = world();
    let run = world.ok(&["release"]).says("job web01 has no snapshots at image.img");
    assert!(run.stdout.is_empty());
    let run = world.ok(&["forget", "-r", "all"]);
    assert!(!run.stderr.contains("release"), "{run}");
    assert_eq!(run.text().lines().count(), ids.len());
    // It had another source once.
    let note = world.job().join(".snapshots");
    fs::write(&note, "MPSxF8qWSzaZzDJyRZCYhK\n").unwrap();
    for _ in 0..3 {
        let run = world.run(&["release"]).expect(1).says("set `source` back");
        assert!(run.stderr.contains("backy-MPSxF8qWSzaZzDJyRZCYhK may be at an image"), "{run}");
    }
    assert_eq!(fs::read_to_string(&note).unwrap(), "MPSxF8qWSzaZzDJyRZCYhK\n");
}

#[test]
fn forgetting_is_done_even_if_nobody_can_say_what_the_source_has() {
    let (world, ids) = world();
    fs::create_dir(world.job().join(".snapshots")).unwrap();
    let run = world.ok(&["forget", "-r", "all"]).says("snapshots-unknown");
    assert_eq!(run.text().lines().count(), ids.len());
    assert!(world.ids().is_empty());
}

#[test]
fn a_locked_job_or_store_has_a_status_of_its_own() {
    let (world, _) = world();
    let hold = |path: &str| {
        let file = fs::File::options().create(true).append(true).open(world.path(path)).unwrap();
        file.lock().unwrap();
        file
    };
    // Released by name: a program that another test is starting has a copy of the descriptor until it runs.
    let release = |file: fs::File| file.unlock().unwrap();
    let backup = hold("srv/web01/.backup");
    world.run(&["backup", "daily"]).expect(3).says("web01").says("hint: wait");
    world.run(&["release"]).expect(3).says("cannot remove the snapshots of job web01");
    release(backup);
    let purge = hold("srv/.sweep");
    world.run(&["purge"]).expect(3).says("srv").says("hint: wait");
    world.ok(&["backup", "daily"]);
    release(purge);
    world.ok(&["purge"]);
}
