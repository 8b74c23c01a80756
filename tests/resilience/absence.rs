//! What cannot be seen is not deleted: job directories, manifests and maps that are away, hidden, moved or half copied
//! while a store is purged.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use backy_testkit::{CHUNK, Image, JOB, Run, Stopped, World, every};

use crate::scene::BINARY;

/// A store with `web01` (two revisions) and `db01` (one), which share a chunk.
fn two_jobs() -> (World, String) {
    let mut world = World::new(BINARY);
    let one = Image::zeros(3 * CHUNK).words(0, 1).noise(1, 2).words(2, 3);
    world.backup(&Arc::new(one.clone()), "daily");
    world.backup(&Arc::new(one.clone().noise(1, 5)), "daily");
    one.words(0, 7).noise(1, 8).write(&world.path("db.img"));
    world.add_job("db01", "db.img");
    let other = Run::of(&mut world.command_for("db01", &["backup", "daily"])).expect(0).line();
    (world, other)
}

/// Where a directory waits until it is back.
fn elsewhere(world: &World) -> PathBuf {
    world.path("elsewhere")
}

fn purge(world: &World, words: &[&str]) -> Run {
    let run = world.on_store(&[&["purge"], words].concat());
    assert!(!run.stderr.contains("panicked at"), "{run}");
    run
}

/// Whoever lists the store sees that a job is missing, and which.
#[test]
fn status_names_each_job_that_cannot_be_read() {
    let (world, _) = two_jobs();
    let list = || world.on_store(&["status"]);
    list().expect(0);
    let expect_missing = |why: &str| {
        let run = list().expect(1).says("warning: ").says("web01").says(why);
        assert!(run.text().contains("cannot be listed") && run.text().contains("2 jobs shown"), "{run}");
        let json = world.on_store(&["status", "--json"]).expect(1).json();
        assert!(json["jobs"][0]["failure"].is_null() && json["jobs"][0]["job"] == "db01", "{json}");
        assert!(json["jobs"][1]["failure"].as_str().is_some_and(|text| text.contains(why)), "{json}");
    };
    let (job, away) = (world.job(), elsewhere(&world));
    for (way, why) in [
        ("gone", "none of them is in"),
        ("empty", "none of them is in"),
        ("a dangling link", "which is not there"),
    ] {
        hide(&world, way);
        expect_missing(why);
        drop((fs::remove_dir(&job), fs::remove_file(&job)));
        let back = if away.exists() { away.clone() } else { world.path("away") };
        fs::rename(back, &job).unwrap();
        list().expect(0);
    }
    fs::write(job.join("backy.store"), "format: 99\n").unwrap();
    expect_missing("99");
    world.on_store(&["status", "--space"]).expect(1).says("web01");
}

fn revision_file(dir: &Path, end: &str) -> PathBuf {
    let is_wanted = |path: &PathBuf| path.extension().is_some_and(|found| found == end);
    let mut found: Vec<PathBuf> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).filter(is_wanted).collect();
    found.sort();
    found.swap_remove(0)
}

/// Takes the directory of `web01` out of sight in every way, one after the other. Returns what puts it back.
const WAYS: [&str; 6] = ["gone", "empty", "a dangling link", "a link", "in a folder", "without manifests"];

fn hide(world: &World, way: &str) {
    let (job, away) = (world.job(), elsewhere(world));
    if way == "without manifests" {
        // As a copy has it that goes by the alphabet, or somebody's slip.
        fs::create_dir(&away).unwrap();
        for id in world.ids() {
            fs::rename(job.join(format!("{id}.rev")), away.join(format!("{id}.rev"))).unwrap();
        }
        return;
    }
    fs::rename(&job, &away).unwrap();
    match way {
        "empty" => fs::create_dir(&job).unwrap(),
        "a dangling link" => symlink(world.path("nowhere"), &job).unwrap(),
        "a link" => symlink(&away, &job).unwrap(),
        "in a folder" => {
            fs::create_dir(world.store().join("folder")).unwrap();
            fs::rename(&away, world.store().join("folder/other-name")).unwrap();
        }
        _ => {}
    }
}

fn show(world: &World, way: &str) {
    let (job, away) = (world.job(), elsewhere(world));
    match way {
        "without manifests" => {
            for entry in fs::read_dir(&away).unwrap() {
                let path = entry.unwrap().path();
                fs::rename(&path, job.join(path.file_name().unwrap())).unwrap();
            }
            fs::remove_dir(&away).unwrap();
            return;
        }
        "empty" => fs::remove_dir_all(&job).unwrap(),
        "a dangling link" | "a link" => fs::remove_file(&job).unwrap(),
        "in a folder" => {
            fs::rename(world.store().join("folder/other-name"), &away).unwrap();
            fs::remove_dir(world.store().join("folder")).unwrap();
        }
        _ => {}
    }
    fs::rename(&away, &job).unwrap();
}

#[test]
fn purge_keeps_a_job_that_cannot_be_seen_and_frees_what_was_forgotten_elsewhere() {
    let (world, other) = two_jobs();
    for way in WAYS {
        let mut world = world.copy();
        hide(&world, way);
        let before = world.chunks().len();
        Run::of(&mut world.command_for("db01", &["forget", "-r", &other])).expect(0);
        for words in [&["--now"][..], &["--now"], &["--now", "--force"]] {
            let run = purge(&world, words);
            let is_seen = ["a link", "in a folder"].contains(&way);
            assert_eq!(run.code(), i32::from(!is_seen), "{way}: {run}");
            if !is_seen {
                let run = run.says("web01").says("--without web01");
                assert!(!run.stderr.contains("--force"), "{way}: {run}");
            }
        }
        assert_eq!(world.chunks().len(), before - 2, "{way}: only what was forgotten goes");
        show(&world, way);
        world.must_restore_all(way);
        assert_eq!(purge(&world, &["--now"]).code(), 0, "{way}");
        let image = Arc::clone(world.expected.values().next().unwrap());
        world.backup(&image, "daily");
        world.must_restore_all(way);
    }
}

#[test]
fn a_job_that_is_away_is_not_begun_again_below_its_mount_point() {
    let (world, _) = two_jobs();
    hide(&world, "gone");
    world.run(&["init", "file", "filename=image.img"]).expect(1).says("2 revisions").says("mount");
    assert!(!world.job().exists(), "nothing is made below the mount point");
    fs::create_dir(world.job()).unwrap();
    world.run(&["init", "file", "filename=image.img"]).expect(1).says("--without web01");
    // As an earlier program, or a person, may have left it.
    world.configure(
        JOB,
        "source: {type: file, filename: image.img}\nschedule: {daily: {interval: 1d, keep: 1}}\n",
    );
    world.run(&["backup", "daily"]).expect(1).says("2 revisions").says("mount");
    fs::remove_dir_all(world.job()).unwrap();
    fs::rename(elsewhere(&world), world.job()).unwrap();
    world.must_restore_all("back");
    // Under another name it is the same job, and its old name is free.
    fs::rename(world.job(), world.store().join("web02")).unwrap();
    world.run(&["init", "file", "filename=image.img"]).expect(0);
    assert_eq!(purge(&world, &["--now"]).code(), 0);
}

#[test]
fn a_job_deleted_on_purpose_goes_after_the_hold_time_and_only_when_an_operator_says_so() {
    let (world, _) = two_jobs();
    let all = world.chunks().len();
    // By mistake, it comes back without any copy.
    fs::remove_dir_all(world.job()).unwrap();
    world.on_store(&["undelete", "--lost", JOB]).expect(0);
    world.on_store(&["undelete", "--lost", JOB]).expect(1).says("nothing of job web01 is lost");
    world.must_restore_all("made again from the register");
    world.run(&["backup", "daily"]).expect(0);
    purge(&world, &["--now"]).expect(0);
    let id = world.ids().swap_remove(2);
    world.ok(&["forget", "-r", &id]);
    purge(&world, &["--now"]).expect(0);
    purge(&world, &["--without", JOB]).expect(1).says("nothing of job web01 is missing");
    hide(&world, "gone");
    for _ in 0..3 {
        assert_eq!(purge(&world, &["--now"]).code(), 1);
    }
    purge(&world, &["--without", JOB, "--dry-run"]).expect(0);
    assert_eq!(purge(&world, &["--now"]).code(), 1, "a dry run changes nothing");
    purge(&world, &["--without", JOB]).expect(0).says("hold time");
    assert_eq!(world.chunks().len(), all);
    purge(&world, &[]).expect(0);
    // It comes back during the hold time, and all is as before.
    show(&world, "gone");
    purge(&world, &["--now"]).expect(0);
    world.must_restore_all("back during the hold time");
    hide(&world, "gone");
    purge(&world, &["--now"]).expect(1);
    let run = purge(&world, &["--now", "--without", JOB]).expect(0);
    assert_eq!(world.chunks().len(), 3, "{run}");
    purge(&world, &["--now"]).expect(0);
}

#[test]
fn a_map_outlives_its_manifest_and_is_made_again_when_it_is_lost() {
    let (mut world, _) = two_jobs();
    let (manifest, map) = (revision_file(&world.job(), "rev"), revision_file(&world.job(), "map"));
    let text = fs::read(&manifest).unwrap();
    fs::remove_file(&manifest).unwrap();
    let image = Arc::clone(world.expected.values().next().unwrap());
    world.backup(&image, "daily");
    purge(&world, &["--now"]).expect(1).says("web01");
    assert!(map.with_file_name(manifest.with_extension("map").file_name().unwrap()).exists());
    fs::write(&manifest, text).unwrap();
    world.must_restore_all("the manifest is back");
    fs::remove_file(&map).unwrap();
    purge(&world, &["--now"]).expect(0).says("restored the chunk map");
    world.must_restore_all("the map was made again");
}

#[test]
fn purge_stops_at_any_error_but_not_found() {
    let (world, _) = two_jobs();
    let before = world.chunks();
    let map = revision_file(&world.job(), "map");
    let register = world.store().join("maps").join(JOB).join(map.file_name().unwrap());
    for errno in ["EIO", "EUCLEAN", "EBADMSG", "EACCES"] {
        let inject = format!("inject=openat,statx,newfstatat:error={errno}");
        let run = Run::of(
            Command::new("strace")
                .args(["-f", "-qq", "-o", "/dev/null", "-P"])
                .arg(&map)
                .arg("-P")
                .arg(&register)
                .args(["-e", "trace=openat,statx,newfstatat", "-e", &inject, BINARY, "-b"])
                .arg(world.store())
                .args(["purge", "--now"]),
        );
        assert_eq!(run.code(), 1, "{errno}: {run}");
        assert_eq!(world.chunks(), before, "{errno}");
    }
    world.must_restore_all("after the errors");
}

#[test]
fn a_job_can_be_moved_while_a_purge_stands_still_anywhere() {
    let (world, other) = two_jobs();
    Run::of(&mut world.command_for("db01", &["forget", "-r", &other])).expect(0);
    fs::create_dir(world.store().join("folder")).unwrap();
    every(|number| {
        let world = world.copy();
        let (top, folder) = (world.job(), world.store().join("folder/web01"));
        let (from, to) = if number % 2 == 0 { (&top, &folder) } else { (&folder, &top) };
        if number % 2 == 1 {
            fs::rename(&top, &folder).unwrap();
        }
        let mut command = world.bare(&["-b", "srv", "purge", "--now"]);
        let Ok(stopped) = Stopped::start(command.env("BACKY_FAULT", format!("stop:{number}"))) else {
            return false;
        };
        fs::rename(from, to).unwrap();
        let run = stopped.finish();
        assert!(run.code() <= 1, "moved at change {number}: {run}");
        if number % 2 == 0 {
            fs::rename(&folder, &top).unwrap();
        }
        world.must_restore_all(&format!("moved at change {number}"));
        assert_eq!(purge(&world, &["--now"]).code(), 0, "moved at change {number}");
        world.must_restore_all(&format!("purged after moving at change {number}"));
        true
    });
}

#[test]
fn what_is_missing_from_the_store_is_reported_and_distrusted() {
    let (mut world, _) = two_jobs();
    let chunk = world.chunks().swap_remove(0);
    fs::remove_file(&chunk).unwrap();
    let run = purge(&world, &["--now", "--dry-run"]).expect(1).says("missing from the store");
    assert!(!run.stderr.contains("distrusted"), "a dry run changes nothing: {run}");
    let run = purge(&world, &["--now"]).expect(1).says("distrusted now");
    purge(&world, &["--now"]).expect(1);
    assert!(!run.stderr.contains("--force"), "{run}");
    // Each image again, so that whoever had the chunk writes it.
    let images: Vec<Arc<Image>> = world.expected.values().map(Arc::clone).collect();
    for image in images {
        world.backup(&image, "daily");
    }
    Run::of(&mut world.command_for("db01", &["backup", "daily"])).expect(0);
    purge(&world, &["--now"]).expect(0);
    world.must_restore_all("written again");
}

#[test]
fn a_register_that_shrank_stops_the_purge_of_a_job_that_is_away() {
    let (world, other) = two_jobs();
    purge(&world, &["--now"]).expect(0);
    Run::of(&mut world.command_for("db01", &["forget", "-r", &other])).expect(0);
    let records = world.store().join("maps").join(JOB);
    fs::rename(&records, world.path("records")).unwrap();
    let copy = world.copy();
    purge(&copy, &["--now"]).expect(0);
    assert!(
        copy.store().join("maps").join(JOB).exists(),
        "the directory has the maps: they are entered again"
    );
    hide(&world, "gone");
    let before = world.chunks();
    for words in [&["--now"][..], &["--now", "--force"]] {
        let run = purge(&world, words).expect(1).says("2 records of job web01").says("--without web01");
        assert!(!run.stderr.contains("--force"), "{run}");
        assert_eq!(world.chunks(), before);
    }
    show(&world, "gone");
    purge(&world, &["--now"]).expect(0);
    world.must_restore_all("the register was made again");
}

#[test]
fn a_chunk_that_nothing_explains_waits() {
    let (world, _) = two_jobs();
    let foreign = world.store().join("chunks/ab").join(format!("ab{}", "0".repeat(62)));
    fs::write(&foreign, "somebody put it here").unwrap();
    for words in [&[][..], &["--now"], &["--now", "--force"], &["--now"]] {
        purge(&world, words).expect(0).says("not referenced");
        assert!(foreign.exists());
    }
    fs::create_dir_all(world.store().join((0..40).map(|_| "d").collect::<Vec<_>>().join("/"))).unwrap();
    purge(&world, &["--now"]).expect(1).says("too deep");
}

#[test]
fn what_is_forgotten_in_a_copy_of_a_job_takes_nothing_from_the_other() {
    let (world, _) = two_jobs();
    for is_purged_before in [false, true] {
        let world = world.copy();
        let copied =
            Command::new("cp").arg("-a").args([world.job(), world.store().join("copy")]).status().unwrap();
        assert!(copied.success());
        if is_purged_before {
            purge(&world, &["--now"]).expect(0);
        }
        Run::of(&mut world.command_for("copy", &["forget", "-r", "all"])).expect(0);
        hide(&world, "a dangling link");
        for _ in 0..2 {
            purge(&world, &["--now"]).expect(1).says("job web01: 2 revisions");
        }
        show(&world, "a dangling link");
        world.must_restore_all("what was forgotten in the copy");
        purge(&world, &["--now"]).expect(0);
        world.must_restore_all("purged again");
    }
}

#[test]
fn a_word_that_a_job_was_deleted_on_purpose_ends_when_the_job_is_back() {
    let (world, _) = two_jobs();
    for way in ["undelete --lost", "backup", "undelete"] {
        let mut world = world.copy();
        if way == "undelete" {
            // A purge that was cut off in the middle of removing a revision.
            world.ok(&["forget", "-r", "first"]);
            let run = world.run_with_fault(&["purge", "--now"], "kill:4");
            assert!(run.was_killed(), "{run}");
            if world.run(&["undelete", "-r", "last"]).code() != 0 {
                continue;
            }
        } else {
            hide(&world, "gone");
            purge(&world, &["--without", JOB]).expect(0);
        }
        match way {
            "undelete --lost" => {
                world.on_store(&["undelete", "--lost", JOB]).expect(0);
                fs::remove_dir_all(elsewhere(&world)).unwrap();
            }
            "backup" => {
                show(&world, "gone");
                let image = Arc::clone(world.expected.values().next().unwrap());
                world.backup(&image, "daily");
            }
            _ => {}
        }
        hide(&world, "gone");
        purge(&world, &["--now"]).expect(1).says("job web01");
        show(&world, "gone");
        world.must_restore_all(way);
    }
}

#[test]
fn whatever_sees_a_job_that_was_given_up_ends_that_word() {
    let (world, _) = two_jobs();
    let given_up = |world: &World| {
        let records = fs::read_dir(world.store().join("maps").join(JOB)).unwrap();
        records
            .filter(|one| one.as_ref().unwrap().file_name().to_string_lossy().contains(".dropped-"))
            .count()
    };
    hide(&world, "gone");
    purge(&world, &["--without", JOB]).expect(0);
    show(&world, "gone");
    assert_eq!(given_up(&world), 2);
    let readers: [&[&str]; 4] =
        [&["status"], &["verify"], &["restore", "-"], &["find", "--uuid", "-r", "last"]];
    for words in readers {
        let world = world.copy();
        world.ok(words);
        assert_eq!(given_up(&world), 0, "{words:?}");
        hide(&world, "gone");
        purge(&world, &["--now"]).expect(1).says("job web01");
        show(&world, "gone");
        world.must_restore_all("after the second time");
    }
    // A list of all jobs sees it, too.
    let listed = world.copy();
    listed.on_store(&["status"]).expect(0);
    assert_eq!(given_up(&listed), 0);
    // Who may not write, reads all the same.
    if let Some(run) = as_nobody_on(&world, &["status"]) {
        run.expect(0);
        assert_eq!(given_up(&world), 2);
    }
}

/// Runs the binary on the job as a user who may only read.
fn as_nobody_on(world: &World, words: &[&str]) -> Option<Run> {
    let all = Command::new("chmod").arg("-R").arg("a+rX").arg(world.path("")).status().ok()?;
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    let known = Command::new("setpriv").args(["--reuid=65534", "true"]).status();
    if !all.success() || !known.is_ok_and(|status| status.success()) {
        println!("skipped: setpriv cannot be used");
        return None;
    }
    command.arg(BINARY).args(["-b", "srv/web01"]).args(words).current_dir(world.path(""));
    Some(Run::of(&mut command))
}

#[test]
fn a_revision_whose_record_was_not_completed_is_missing_and_not_given_up() {
    let (world, _) = two_jobs();
    let image = Arc::new(Image::zeros(3 * CHUNK).words(1, 77).noise(2, 78));
    world.write_image(&image);
    // The rename that completes the record is the last one of a backup.
    let killed =
        (1..).map(|number| world.copy().run_with_fault(&["backup", "daily"], &format!("kill:{number}")));
    let last = killed.take_while(Run::was_killed).count();
    let mut kills = 0;
    for number in last.saturating_sub(4)..=last {
        let mut world = world.copy();
        world.run_with_fault(&["backup", "daily"], &format!("kill:{number}"));
        let ids = world.ids();
        let Some(id) = ids.iter().find(|id| !world.expected.contains_key(*id)) else { continue };
        kills += 1;
        world.expected.insert(id.clone(), Arc::clone(&image));
        hide(&world, "gone");
        purge(&world, &["--now"]).expect(1).says("job web01: 3 revisions");
        show(&world, "gone");
        world.must_restore_all(&format!("killed at {number}"));
        purge(&world, &["--now"]).expect(0);
    }
    assert!(kills > 0, "the backup was killed after its commit");
}

#[test]
fn before_there_is_a_register_nothing_is_explained() {
    let (world, other) = two_jobs();
    hide(&world, "a dangling link");
    fs::remove_dir_all(world.store().join("maps")).unwrap();
    Run::of(&mut world.command_for("db01", &["forget", "-r", &other])).expect(0);
    let before = world.chunks();
    for _ in 0..2 {
        purge(&world, &["--now"]).expect(1).says("web01 is a link to a directory that is not there");
        assert_eq!(world.chunks(), before);
    }
    show(&world, "a dangling link");
    purge(&world, &["--now"]).expect(0);
    world.must_restore_all("back");
}
