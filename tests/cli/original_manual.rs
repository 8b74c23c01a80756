//! What the manual of the original promises, typed as it stands there, and what switchers bring along.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use backy_testkit::{CHUNK, Image, Run, Tree, World};

use crate::{BINARY, world};

/// Writes a main configuration for the world's store with these jobs, all of `image.img`.
fn configure(world: &World, jobs: &[&str]) {
    let mut text = format!(
        "global: {{base-dir: {}}}\nschedules: {{default: {{daily: {{interval: 1d, keep: 7}}}}}}\njobs:\n",
        world.store().display()
    );
    for job in jobs {
        let image = world.path("image.img");
        let source = format!("{{type: file, filename: {}}}", image.display());
        text.push_str(&format!("  {job}: {{schedule: default, source: {source}}}\n"));
    }
    fs::write(world.path("backy.conf"), text).unwrap();
}

#[track_caller]
fn bare(world: &World, words: &[&str], code: i32) -> Run {
    Run::of(&mut world.bare(words)).expect(code)
}

#[test]
fn global_options_stand_before_the_command_and_without_meaning_have_no_effect() {
    let (world, _) = world();
    configure(&world, &["web01"]);
    for words in [
        &["-c", "backy.conf", "-l", "log", "check", "--without-service"][..],
        &["-c", "backy.conf", "config", "check"],
        &["-c", "backy.conf", "-b", "srv/web01", "pull"],
        &["-c", "backy.conf", "-b", "no/such/directory", "check", "--without-service"],
        &["-c", "backy.conf", "-b", "srv/web01", "status"],
        &["-t", "ABCD", "-v", "-l", "log", "-b", "srv/web01", "find", "--uuid"],
    ] {
        bare(&world, words, 0);
    }
    // The service does not even look at -b; here it fails because the configuration is missing.
    let run =
        bare(&world, &["-c", "no.conf", "-l", "log", "-b", "srv/web01", "scheduler"], 1).says("no.conf");
    assert!(!run.stderr.contains("-b"), "{run}");
    // Whatever the command, the log that was named has a line of it.
    for words in [&["status"][..], &["find", "--uuid"], &["-c", "backy.conf", "check", "--without-service"]] {
        fs::write(world.path("log"), "").unwrap();
        let all = [&["-t", "ABCD", "-l", "log", "-b", "srv/web01"], words].concat();
        bare(&world, &all, 0);
        let log = fs::read_to_string(world.path("log")).unwrap();
        assert!(log.contains(" ABCD I ") && log.contains("command="), "{words:?}: {log}");
    }
}

#[test]
fn a_configured_job_can_be_backed_up_by_hand_before_its_first_round() {
    let world = World::new(BINARY);
    world.write_image(&Image::zeros(CHUNK).words(0, 1));
    configure(&world, &["vm1"]);
    bare(&world, &["-b", "srv/vm1", "backup", "daily"], 1).says("there is no job vm1");
    bare(&world, &["-c", "backy.conf", "-b", "srv/vm2", "backup", "daily"], 1).says("there is no job vm2");
    bare(&world, &["-c", "no.conf", "-b", "srv/vm1", "backup", "daily"], 1).says("no.conf");
    let id = bare(&world, &["-c", "backy.conf", "-b", "srv/vm1", "backup", "daily"], 0).line();
    let (run, image) = world.restore_of("vm1", &id);
    assert_eq!((run.code(), image), (0, Some(Image::zeros(CHUNK).words(0, 1))), "{run}");
    // Its configuration follows the main one where that is named, and is left alone elsewhere.
    let config = world.store().join("vm1/config");
    let written = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{written}compression-level: 3\n")).unwrap();
    bare(&world, &["-b", "srv/vm1", "backup", "daily"], 0);
    assert_ne!(fs::read_to_string(&config).unwrap(), written);
    bare(&world, &["-c", "backy.conf", "-b", "srv/vm1", "backup", "daily"], 0);
    assert_eq!(fs::read_to_string(&config).unwrap(), written);
}

#[test]
fn a_job_behind_a_link_works_as_any_other() {
    let (mut world, [first, ..]) = world();
    fs::rename(world.job(), world.path("elsewhere")).unwrap();
    symlink(world.path("elsewhere"), world.job()).unwrap();
    assert!(world.ids().contains(&first));
    let id = world.backup(&Arc::new(Image::zeros(CHUNK).words(0, 9)), "daily");
    world.must_restore_all("behind a link");
    for words in
        [&["status"][..], &["tags", "add", &id, "manual:x"], &["verify", "-r", &id], &["expire"], &["purge"]]
    {
        world.ok(words);
    }
    // From inside, as a shell that followed the link says where it is, and past `..`.
    let mut inside = world.bare(&["status"]);
    inside.current_dir(world.job()).env("PWD", world.job());
    assert!(Run::of(&mut inside).expect(0).text().contains(&id));
    let mut beside = world.bare(&["-b", "../srv/web01", "status"]);
    fs::create_dir(world.path("work")).unwrap();
    assert!(Run::of(beside.current_dir(world.path("work"))).expect(0).text().contains(&id));
    assert!(bare(&world, &["-b", "srv/web01/", "status"], 0).text().contains(&id));
    assert!(world.on_store(&["status"]).expect(0).text().contains("web01"));
    // The disk that it leads to goes away: nothing is made in its place.
    fs::rename(world.path("elsewhere"), world.path("away")).unwrap();
    configure(&world, &["web01"]);
    for words in [&["status"][..], &["backup", "daily"], &["restore", "out"]] {
        let all = [&["-c", "backy.conf", "-b", "srv/web01"], words].concat();
        bare(&world, &all, 1).says("which is not there").says("hint: mount the disk");
    }
    let verdict = bare(&world, &["-c", "backy.conf", "check", "--without-service"], 2);
    assert!(verdict.text().contains("CRITICAL web01: cannot be looked at: "), "{verdict}");
    assert!(!world.path("elsewhere").exists());
    fs::rename(world.path("away"), world.path("elsewhere")).unwrap();
    world.must_restore_all("after the disk is back");
}

#[test]
fn the_base_directory_of_the_original_may_hold_what_people_put_there() {
    let world = World::new(BINARY);
    let base = world.path("old");
    fs::create_dir_all(base.join("vm1")).unwrap();
    fs::write(base.join("vm1/config"), "type: file\nfilename: ../image.img\n").unwrap();
    fs::write(base.join("vm1/.purge"), "").unwrap();
    for dir in ["lost+found", ".Trash-0", ".snapshot", ".zfs", "@eaDir", "notes of last year"] {
        fs::create_dir(base.join(dir)).unwrap();
    }
    fs::write(base.join("README"), "by hand\n").unwrap();
    bare(&world, &["init", "old"], 0);
    assert_eq!(fs::read_to_string(base.join("README")).unwrap(), "by hand\n");
    // The configuration is of the first versions, with the source at the top.
    world.write_image(&Image::zeros(CHUNK).words(0, 1));
    fs::write(
        base.join("vm1/config"),
        format!("type: file\nfilename: {}\n", world.path("image.img").display()),
    )
    .unwrap();
    bare(&world, &["-b", "old/vm1", "backup", "--force", "daily"], 0);
    let jobs = bare(&world, &["-b", "old", "status", "--json"], 0).json();
    assert_eq!(jobs["jobs"].as_array().unwrap().len(), 1, "{jobs}");
    bare(&world, &["-b", "old", "purge"], 0);
    // Without a job of the original the same entries are somebody's files; those of file systems are nobody's.
    fs::create_dir_all(world.path("files/.zfs")).unwrap();
    bare(&world, &["init", "files"], 0);
    fs::create_dir(world.path("others")).unwrap();
    fs::write(world.path("others/README"), "").unwrap();
    bare(&world, &["init", "others"], 1).says("README is not a job");
}

#[test]
fn a_job_with_its_own_store_needs_nothing_around_it() {
    let world = World::new(BINARY);
    world.write_image(&Image::zeros(CHUNK).words(0, 1));
    fs::create_dir(world.path("disk")).unwrap();
    fs::write(world.path("disk/README"), "").unwrap();
    let made = bare(&world, &["-b", "disk/vm1", "init", "--own-store", "file", "filename=image.img"], 0);
    assert!(made.text().starts_with("created job vm1 at ") && made.text().lines().count() == 1, "{made}");
    let names: Vec<_> =
        fs::read_dir(world.path("disk")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "the directory around it got nothing: {names:?}");
    let id = bare(&world, &["-b", "disk/vm1", "backup", "daily"], 0).line();
    bare(&world, &["-b", "disk/vm1", "restore", "-r", &id, "out"], 0);
    assert_eq!(fs::read(world.path("out")).unwrap(), fs::read(world.path("image.img")).unwrap());
    bare(&world, &["-b", "disk/vm1", "init", "--own-store", "file", "filename=image.img"], 1)
        .says("exists already");
    let before = Tree::of(&world.path("disk"));
    bare(&world, &["-b", "disk/vm2", "init", "file", "filename=image.img"], 1).says("holds other files");
    before.must_equal(&Tree::of(&world.path("disk")), "a refused job");
}

#[test]
fn a_backup_that_has_not_ended_shows_in_status() {
    let (mut world, _) = world();
    world.write_image(&Image::zeros(3 * CHUNK).words(0, 7));
    let is_unfinished = |path: &Path| path.to_string_lossy().ends_with(".map");
    let died = (4..40).any(|change| {
        assert!(world.run_with_fault(&["backup", "daily"], &format!("kill:{change}")).was_killed());
        world.leftovers().iter().any(|path| is_unfinished(path))
    });
    assert!(died, "no run died with a map in the making");
    let listed = world.ok(&["status"]);
    let rows: Vec<&str> = listed.text().lines().filter(|line| line.contains(" unfinished")).collect();
    assert_eq!(rows.len(), 1, "{listed}");
    let entry = world.ok(&["status", "--json"]).json()["unfinished"][0].clone();
    assert!(rows[0].contains(entry["id"].as_str().unwrap()) && entry["running"] == false, "{entry}");
    assert!(entry["started"].as_str().unwrap().ends_with('Z'), "{entry}");
    assert_eq!(world.on_store(&["status", "--json"]).json()["jobs"][0]["incomplete"], 1);
    let lock = fs::File::open(world.job().join(".backup")).unwrap();
    lock.lock().unwrap();
    assert!(world.ok(&["status"]).text().contains(" running"));
    lock.unlock().unwrap();
    // The next backup clears it away.
    world.backup(&Arc::new(Image::zeros(CHUNK)), "daily");
    assert_eq!(world.ok(&["status", "--json"]).json()["unfinished"], serde_json::json!([]));
}
