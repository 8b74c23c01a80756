//! Stores in places that are not as they should be: without room, without inodes, without links, without rights, read-only,
//! copied without empty directories, spread over disks, in use by another machine. What only reads works everywhere, and
//! what writes works or says why not. Some of it needs root and loop devices; without them it says that it was skipped.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use backy_testkit::{Image, Run, World};

use crate::full_disk::{Disk, world_on};
use crate::scene::{BINARY, Scene, scene};

/// A small image: one chunk with a little data.
fn small(seed: u64) -> Arc<Image> {
    Arc::new(Image::zeros(70_000).noise(0, seed))
}

/// Takes all that a file system has: data blocks, then room for names, then inodes.
fn exhaust(dir: &Path) {
    let filler = fs::File::create(dir.join("filler")).unwrap();
    let mut length = 0;
    for step in [64 << 20, 4 << 20, 64 << 10, 4 << 10] {
        let flags = nix::fcntl::FallocateFlags::empty();
        while nix::fcntl::fallocate(&filler, flags, length, step).is_ok() {
            length += step;
        }
    }
    drop(filler.sync_all());
    let target = "x".repeat(3800);
    let mut names = (0..200_000).map(|name: u32| dir.join(name.to_string()));
    while names.next().is_some_and(|name| symlink(&target, name).is_ok()) {}
    while names.next().is_some_and(|name| fs::File::create(name).is_ok()) {}
}

/// All that reads works.
#[track_caller]
fn reads(world: &World, when: &str) {
    let run =
        |words: &[&str]| assert_eq!(world.run(words).code(), 0, "{when}: {words:?}: {}", world.run(words));
    run(&["status"]);
    run(&["find", "-r", "last", "--uuid"]);
    world.must_restore_all(when);
    let verified = world.run(&["verify", "-r", "all"]);
    assert_eq!(
        (verified.code(), verified.text().matches(" good").count()),
        (0, world.expected.len()),
        "{when}: {verified}"
    );
    let purged = world.on_store(&["purge", "--dry-run"]);
    assert_eq!(purged.code(), 0, "{when}: {purged}");
}

/// What `docs/operations.md` promises of a full disk, with the first purge of the store.
fn emergency(disk: &Disk, when: &str) {
    let mut world = world_on(disk);
    let first = world.backup(&small(1), "daily");
    world.backup(&small(2), "daily");
    exhaust(&disk.mountpoint);
    assert!(fs::File::create(disk.mountpoint.join("one-more")).is_err(), "{when}: it is full");
    reads(&world, when);
    world.ok(&["forget", "-r", &first]);
    world.expected.remove(&first);
    let purged = world.on_store(&["purge", "--now"]);
    assert_eq!(purged.code(), 0, "{when}: {purged}");
    assert!(purged.text().contains("deleted 1 chunk "), "{when}: {purged}");
    world.must_restore_all(when);
}

#[test]
fn a_disk_without_inodes_is_read_and_freed() {
    let Some(disk) = Disk::make(&["mkfs.ext4", "-q", "-F", "-m", "0", "-N", "1000"], 64) else { return };
    emergency(&disk, "ext4");
}

#[test]
fn a_full_xfs_is_read_and_freed() {
    let Some(disk) = Disk::make(&["mkfs.xfs", "-q", "-f"], 300) else { return };
    emergency(&disk, "xfs");
}

#[test]
fn a_full_btrfs_is_read_and_freed() {
    for kind in ["dup", "single"] {
        let Some(disk) = Disk::make(&["mkfs.btrfs", "-q", "-f", "-m", kind], 200) else { return };
        emergency(&disk, &format!("btrfs, metadata {kind}"));
    }
}

#[test]
fn a_store_without_hard_links_does_all() {
    let mut world = World::new(BINARY);
    fs::remove_dir_all(world.store()).unwrap();
    world.set("BACKY_FAULT", "no-links:1");
    let faulty = |world: &World, words: &[&str]| {
        let mut command = world.command(words);
        Run::of(command.env("BACKY_FAULT", "no-links:1")).expect(0)
    };
    faulty(&world, &["init", "file", "filename=image.img"]);
    for seed in [1, 2] {
        world.write_image(&small(seed));
        let id = faulty(&world, &["backup", "manual:x"]).line();
        world.expected.insert(id, small(seed));
    }
    let ids: Vec<String> = world.expected.keys().cloned().collect();
    for id in &ids {
        let target = world.path(id);
        faulty(&world, &["restore", "-r", id, &target.to_string_lossy()]);
        assert!(fs::read(&target).unwrap() == world.expected[id].0);
    }
    faulty(&world, &["verify", "-r", "all"]);
    faulty(&world, &["forget", "-r", &ids[0]]);
    faulty(&world, &["undelete", "-r", &ids[0]]);
    faulty(&world, &["forget", "-r", &ids[0]]);
    faulty(&world, &["purge", "--now"]);
    world.expected.remove(&ids[0]);
    world.must_restore_all("without links");
    assert_eq!(fs::read_dir(world.store().join("writers")).unwrap().count(), 1, "only the lock file is left");
}

/// The binary for the job as `nobody`.
fn as_nobody(world: &World, dir: &str, words: &[&str]) -> Option<Run> {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    let known = Command::new("setpriv").args(["--reuid=65534", "true"]).status();
    if !known.is_ok_and(|status| status.success()) {
        println!("skipped: setpriv cannot be used");
        return None;
    }
    // The binary may lie where only root may look.
    let binary = world.path("backy");
    if !binary.exists() {
        fs::copy(BINARY, &binary).unwrap();
    }
    command.arg(&binary).args(["-b", dir]).args(words).current_dir(world.path(""));
    Some(Run::of(&mut command))
}

#[test]
fn a_reader_without_rights_reads_and_says_what_that_means() {
    let Scene { world, first, .. } = scene();
    let open = Command::new("chmod").args(["-R", "a+rX"]).arg(world.path("")).status();
    assert!(open.unwrap().success());
    for words in [&["status"][..], &["find", "-r", "last", "--uuid"], &["purge", "--dry-run"]] {
        let Some(run) = as_nobody(&world, "srv/web01", words) else { return };
        assert_eq!(run.code(), 0, "{run}");
    }
    let Some(run) = as_nobody(&world, "srv/web01", &["restore", "-r", &first, "-"]) else { return };
    assert!(run.code() == 0 && run.stdout == world.expected[&first].0, "restored other bytes");
    assert_eq!(run.stderr.matches("cannot-register-as-a-reader").count(), 1, "{}", run.stderr);
    let Some(run) = as_nobody(&world, "srv/web01", &["verify", "-r", "all"]) else { return };
    assert!(run.code() == 0 && run.text().matches(" good").count() == 2, "{run}");
    assert!(run.stderr.contains("trust is not changed"), "{run}");
}

/// A read-only view of a directory; gone when it is dropped.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn of(from: &Path, at: PathBuf) -> Option<Self> {
        fs::create_dir(&at).unwrap();
        let mount = |options: &[&str]| {
            let done = Command::new("mount").args(options).arg(from).arg(&at).output();
            done.is_ok_and(|output| output.status.success())
        };
        if !mount(&["--bind"]) {
            println!("skipped: mounting needs root");
            return None;
        }
        let view = Self(at.clone());
        assert!(mount(&["-o", "remount,bind,ro"]));
        Some(view)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[test]
fn a_read_only_store_is_read_and_verify_says_what_it_cannot_record() {
    let Scene { world, first, .. } = scene();
    // Lock files that are missing cannot be made.
    for name in ["srv/.sweep", "srv/web01/.manifests", "srv/writers/.lock"] {
        fs::remove_file(world.path(name)).unwrap();
    }
    let Some(_view) = ReadOnly::of(&world.store(), world.path("view")) else { return };
    let view = |words: &[&str]| {
        let mut command = world.bare(&["-b", "view/web01"]);
        Run::of(command.args(words))
    };
    for words in [&["status"][..], &["find", "-r", "last", "--uuid"], &["purge", "--dry-run"]] {
        view(words).expect(0);
    }
    assert!(view(&["restore", "-r", &first, "-"]).expect(0).stdout == world.expected[&first].0);
    let run = view(&["verify", "-r", "all"]).expect(0);
    assert!(run.text().matches(" good").count() == 2 && run.stderr.contains("trust is not changed"), "{run}");
    fs::write(world.chunks().first().unwrap(), b"").unwrap();
    let run = view(&["verify", "-r", "all"]).expect(1);
    assert!(run.text().contains(" bad") && run.stderr.contains("damaged chunks are not marked"), "{run}");
}

/// Removes every empty directory, as programs do that copy files only.
fn drop_empty_directories(dir: &Path) {
    let done =
        Command::new("find").arg(dir).args(["-mindepth", "1", "-type", "d", "-empty", "-delete"]).status();
    assert!(done.unwrap().success());
}

#[test]
fn a_copy_without_its_empty_directories_is_complete() {
    let Scene { world, first, next, .. } = scene();
    fs::remove_file(world.store().join("writers/.lock")).unwrap();
    for entry in fs::read_dir(world.store().join("writers")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    drop_empty_directories(&world.store());
    assert!(!world.store().join("writers").exists() && !world.store().join("tmp").exists());
    let mut copy = world.copy();
    reads(&copy, "without empty directories");
    copy.backup(&next, "daily");
    copy.ok(&["forget", "-r", &first]);
    copy.expected.remove(&first);
    drop_empty_directories(&copy.store());
    assert_eq!(copy.on_store(&["purge", "--now"]).code(), 0);
    copy.must_restore_all("after a backup and a purge");
    // Damage is recorded in a directory that is made for it.
    let chunk = world.chunks().into_iter().next().unwrap();
    fs::write(&chunk, b"").unwrap();
    let run = world.run(&["verify", "-r", "all"]).expect(1);
    let distrusted = world.ok(&["status", "--json"]).json();
    let is_distrusted = |revision: &serde_json::Value| revision["trust"] == "distrusted";
    assert!(distrusted["revisions"].as_array().unwrap().iter().any(is_distrusted), "{run}\n{distrusted}");
    assert_eq!(fs::read_dir(world.store().join("damaged")).unwrap().count(), 1);
}

#[test]
fn the_hint_for_a_lost_mark_brings_the_store_back() {
    let Scene { world, .. } = scene();
    for harm in ["lost", "empty"] {
        let marker = world.store().join("backy.store");
        fs::remove_file(&marker).unwrap();
        if harm == "empty" {
            fs::write(&marker, "").unwrap();
        }
        for words in [&["-b", "srv/web01", "status"][..], &["-b", "srv", "purge"], &["init", "srv"]] {
            let run = Run::of(&mut world.bare(words)).expect(1);
            assert!(run.stderr.contains("backy init --repair "), "{harm}: {run}");
        }
        let run = world.run(&["restore", "-r", "last", "x"]).expect(1);
        let hint = run.stderr.split_once("`backy init --repair ").unwrap().1.split_once('`').unwrap().0;
        Run::of(&mut world.bare(&["init", "--repair", hint])).expect(0);
        reads(&world, harm);
        assert_eq!(world.on_store(&["purge"]).code(), 0);
    }
    Run::of(&mut world.bare(&["init", "--repair", "srv"])).expect(1);
    Run::of(&mut world.bare(&["init", "--repair", "srv/web01"])).expect(1);
}

#[test]
fn chunks_on_another_disk_are_synced_there_and_half_of_them_is_refused() {
    let Some(disk) = Disk::make(&["mkfs.ext4", "-q", "-F"], 64) else { return };
    let Scene { mut world, next, .. } = scene();
    let move_to_disk = |name: &str| {
        let (from, to) = (world.store().join(name), disk.mountpoint.join(name));
        assert!(Command::new("cp").arg("-a").args([&from, &to]).status().unwrap().success());
        fs::remove_dir_all(&from).unwrap();
        symlink(&to, &from).unwrap();
    };
    move_to_disk("chunks");
    let run = world.run(&["backup", "daily"]).expect(1);
    assert!(run.stderr.contains("different file systems") && run.stderr.contains("hint:"), "{run}");
    world.must_restore_all("chunks elsewhere");
    move_to_disk("tmp");
    world.write_image(&next);
    let trace = world.path("trace");
    let traced = Command::new("strace")
        .args(["-f", "-y", "-e", "trace=syncfs", "-o"])
        .arg(&trace)
        .arg(BINARY)
        .args(["-b", "srv/web01", "backup", "daily"])
        .current_dir(world.path(""))
        .output();
    match traced {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let text = fs::read_to_string(&trace).unwrap();
            let synced = format!("<{}/chunks>", disk.mountpoint.display());
            assert!(text.contains("syncfs(") && text.contains(&synced), "{text}");
        }
        Err(_) => println!("skipped: strace is missing"),
    }
    world.must_restore_all("both elsewhere");
    world.backup(&next, "daily");
    // The disk is away.
    fs::rename(disk.mountpoint.join("chunks"), disk.mountpoint.join("away")).unwrap();
    for words in [&["verify", "-r", "all"][..], &["backup", "daily"], &["restore", "-r", "last", "x"]] {
        let run = world.run(words).expect(1);
        assert!(run.stderr.contains("are away"), "{run}");
    }
    assert_eq!(world.on_store(&["purge", "--now"]).code(), 1);
    fs::rename(disk.mountpoint.join("away"), disk.mountpoint.join("chunks")).unwrap();
    world.must_restore_all("back again");
    assert!(!world.ok(&["status"]).text().contains("distrusted"));
}

/// Copies a store with all that is in it, as `cp -a` does.
fn copy_store(world: &World, from: &str, to: &str) {
    let done = Command::new("cp").arg("-a").args([world.path(from), world.path(to)]).status();
    assert!(done.unwrap().success());
}

/// The binary on another store of the world.
fn on(world: &World, store: &str, words: &[&str]) -> Run {
    Run::of(world.bare(&["-b", store]).args(words))
}

#[test]
fn a_copy_whose_chunks_are_links_deletes_nothing_of_the_other_store() {
    let Scene { world, next, .. } = scene();
    copy_store(&world, "srv", "copy");
    world.write_image(&next);
    for name in ["chunks", "tmp"] {
        fs::remove_dir_all(world.path("copy").join(name)).unwrap();
        symlink(world.store().join(name), world.path("copy").join(name)).unwrap();
    }
    on(&world, "copy/web01", &["forget", "-r", "all"]).expect(0);
    for words in [&["purge", "--now"][..], &["purge", "--force", "--moved"], &["purge", "--dry-run"]] {
        let run = on(&world, "copy", words).expect(1);
        assert!(
            run.stderr.contains("leads into the store at") && run.stderr.contains("hint: each store"),
            "{run}"
        );
    }
    let run = on(&world, "copy/web01", &["backup", "daily"]).expect(1);
    assert!(run.stderr.contains("leads into the store at"), "{run}");
    assert!(on(&world, "copy", &["doctor"]).text().contains("leads into the store at"));
    world.must_restore_all("beside a copy with links");
    // Who only reads may do so.
    on(&world, "copy/web01", &["undelete", "-r", "all"]);
    on(&world, "copy/web01", &["verify", "-r", "all"]).expect(0);
    world.ok(&["backup", "daily"]);
    assert_eq!(world.on_store(&["purge", "--now"]).code(), 0);
}

#[test]
fn two_stores_whose_chunks_are_links_to_one_directory_do_not_share_it() {
    let Scene { mut world, next, first, .. } = scene();
    // Moved to another disk by hand: the claim was copied, and is this store's.
    for name in ["chunks", "tmp"] {
        let done = Command::new("cp").arg("-a").arg(world.store().join(name)).arg(world.path("")).status();
        assert!(done.unwrap().success());
        fs::remove_dir_all(world.store().join(name)).unwrap();
        symlink(world.path(name), world.store().join(name)).unwrap();
    }
    copy_store(&world, "srv", "copy");
    // Also before anybody has claimed the directory again.
    for _ in 0..2 {
        on(&world, "copy/web01", &["forget", "-r", "all"]);
        for words in [&["purge", "--now"][..], &["purge", "--now", "--force"]] {
            let run = on(&world, "copy", words).expect(1);
            assert!(run.stderr.contains("belong to another store"), "{run}");
            assert!(run.stderr.contains("copy purge --moved` makes them this one's"), "{run}");
        }
        world.write_image(&next);
        on(&world, "copy/web01", &["backup", "daily"]).expect(1).says("belong to another store");
        world.must_restore_all("beside a copy");
        assert_eq!(world.on_store(&["purge", "--now"]).code(), 0);
    }
    world.backup(&next, "daily");
    // The copy takes the place of the other one, which then may not write any more.
    on(&world, "copy/web01", &["undelete", "-r", "all"]);
    on(&world, "copy", &["purge", "--moved"]).expect(0);
    on(&world, "copy/web01", &["verify", "-r", "all"]).expect(0);
    world.run(&["backup", "daily"]).expect(1).says("belong to another store");
    assert_eq!(world.on_store(&["purge", "--now"]).code(), 1);
    // And back. What was never claimed, or whose claim is gone, is not purged behind a link.
    assert_eq!(world.on_store(&["purge", "--moved"]).code(), 0);
    world.ok(&["forget", "-r", &first]);
    world.expected.remove(&first);
    for entry in fs::read_dir(world.path("chunks")).unwrap().map(|entry| entry.unwrap()) {
        if entry.file_name().to_string_lossy().starts_with(".store-") {
            fs::remove_dir(entry.path()).unwrap();
        }
    }
    let run = world.on_store(&["purge", "--now"]);
    assert!(run.code() == 1 && run.stderr.contains("nothing shows that no other store"), "{run}");
    world.backup(&next, "daily");
    assert_eq!(world.on_store(&["purge", "--now"]).code(), 0);
    world.must_restore_all("in the end");
}

#[test]
fn a_whole_copy_is_a_store_of_its_own() {
    let Scene { world, next, first, .. } = scene();
    copy_store(&world, "srv", "copy");
    world.write_image(&next);
    on(&world, "copy/web01", &["forget", "-r", "all"]).expect(0);
    on(&world, "copy", &["purge", "--now"]).expect(0);
    on(&world, "copy/web01", &["backup", "daily"]).expect(0);
    world.ok(&["backup", "daily"]);
    world.ok(&["forget", "-r", &first]);
    assert_eq!(world.on_store(&["purge", "--now"]).code(), 0);
    on(&world, "copy/web01", &["verify", "-r", "all"]).expect(0);
}

#[test]
fn a_purge_waits_for_another_machine_and_a_backup_for_its_purge() {
    let Scene { world, next, .. } = scene();
    world.write_image(&next);
    let elsewhere = |words: &[&str], fault: &str| {
        let mut command = world.bare(&["-b", if words[0] == "backup" { "srv/web01" } else { "srv" }]);
        Run::of(command.args(words).env("BACKY_HOST", "backup2").env("BACKY_FAULT", fault))
    };
    let refused = |run: Run| {
        let run = run.expect(1);
        assert!(run.stderr.contains("on backup2") && run.stderr.contains("--host-gone backup2"), "{run}");
    };
    // Killed, it looks like a machine that goes on where its locks are not seen.
    assert!(elsewhere(&["backup", "daily"], "kill:8").was_killed());
    refused(world.on_store(&["purge"]));
    refused(world.on_store(&["purge", "--force"]));
    world.ok(&["backup", "daily"]);
    world.must_restore_all("beside the other machine");
    assert_eq!(world.on_store(&["purge", "--host-gone", "backup3"]).code(), 1);
    assert_eq!(world.on_store(&["purge", "--host-gone", "backup2"]).code(), 0);
    assert!(elsewhere(&["purge"], "kill:4").was_killed(), "it had begun");
    refused(world.run(&["backup", "daily"]));
    world.must_restore_all("beside a purge elsewhere");
    assert_eq!(world.on_store(&["purge", "--host-gone", "backup2"]).code(), 0);
    world.ok(&["backup", "daily"]);
}
