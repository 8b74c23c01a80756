//! A disk without room, and limits that the shell sets. The disk is a real ext4 in a file, so this needs root and a
//! loop device; without them it says that it was skipped.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use backy_testkit::{CHUNK, Image, Random, Run, World};

use crate::scene::{BINARY, recovers, scene};

/// A small mounted file system; unmounted when it is dropped.
pub(crate) struct Disk {
    pub(crate) mountpoint: PathBuf,
    _dir: tempfile::TempDir,
}

impl Disk {
    /// `None` where mounting is impossible.
    fn mount(mib: u64) -> Option<Self> {
        Self::make(&["mkfs.ext4", "-q", "-F", "-m", "0", "-N", "2000"], mib)
    }

    /// The same with a file system that this command makes.
    pub(crate) fn make(mkfs: &[&str], mib: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (image, mountpoint) = (dir.path().join("disk"), dir.path().join("mnt"));
        fs::create_dir(&mountpoint).unwrap();
        fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let done = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let path = "/usr/sbin:/sbin:/usr/bin:/bin";
        let mounted = done(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image).env("PATH", path))
            && done(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mountpoint));
        if !mounted {
            println!("skipped: mounting a file system needs root, {} and a loop device", mkfs[0]);
            return None;
        }
        Some(Self { mountpoint, _dir: dir })
    }

    /// Fills what is left with a file.
    fn fill(&self, name: &str) {
        let path = self.mountpoint.join(name);
        let mut block = vec![0; 64 << 10];
        Random::new(1).fill(&mut block);
        let mut file = fs::File::create(path).unwrap();
        for length in [block.len(), 1024, 1] {
            while std::io::Write::write_all(&mut file, &block[..length]).is_ok() {}
        }
        drop(file.sync_all());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.mountpoint).status());
    }
}

fn dense(chunks: usize, seed: u64) -> Arc<Image> {
    let mut image = Image::zeros(chunks * CHUNK + 5000);
    Random::new(seed).fill(&mut image.0);
    Arc::new(image)
}

/// A world whose store lies on the disk and whose image does not: a backup would find room in it.
pub(crate) fn world_on(disk: &Disk) -> World {
    let world = World::new(BINARY);
    fs::remove_dir_all(world.store()).unwrap();
    std::os::unix::fs::symlink(disk.mountpoint.join("srv"), world.store()).unwrap();
    let store = disk.mountpoint.join("srv");
    let words = ["-b", &format!("{}/web01", store.display()), "init", "file", "filename=image.img"];
    Run::of(&mut world.bare(&words)).expect(0);
    world.configure(
        "web01",
        "source: {type: file, filename: image.img}\nschedule: {daily: {interval: 1d, keep: 3}}\n",
    );
    world
}

#[test]
fn a_full_disk_fails_the_backup_and_nothing_else() {
    let Some(disk) = Disk::mount(48) else { return };
    let mut world = world_on(&disk);
    let (one, two) = (dense(2, 1), dense(1, 2));
    let first = world.backup(&one, "daily");
    let second = world.backup(&two, "daily");
    // More than is left.
    world.write_image(&dense(12, 3));
    let run = world.run(&["backup", "daily"]).expect(1);
    assert!(run.stderr.to_lowercase().contains("no space left"), "{run}");
    assert!(run.stderr.contains("hint:"), "{run}");
    world.must_restore_all("after a full disk");
    assert_eq!(world.ids(), [first.clone(), second.clone()]);
    // Not a byte is left, and still it can be helped.
    disk.fill("filler");
    world.must_restore_all("on a full disk");
    world.ok(&["tags", "add", "-f", &second, "weekly"]);
    world.ok(&["forget", "-r", &first]);
    world.expected.remove(&first);
    disk.fill("filler-2");
    world.ok(&["purge", "--now"]);
    world.must_restore_all("after the purge");
    let small = dense(1, 4);
    world.backup(&small, "daily");
    world.must_restore_all("after the purge and a backup");
    world.ok(&["verify", "-r", "all"]);
}

#[test]
fn verify_status_and_distrust_work_at_zero_bytes() {
    let Some(disk) = Disk::mount(40) else { return };
    let mut world = world_on(&disk);
    let first = world.backup(&dense(2, 1), "daily");
    disk.fill("filler");
    world.ok(&["status"]);
    world.ok(&["distrust", "-r", &first]);
    disk.fill("filler-2");
    let verified = world.run(&["verify", "-r", "all"]);
    assert!(verified.code() <= 1 && !verified.stderr.contains("panicked"), "{verified}");
    world.must_restore_all("at zero bytes");
    world.ok(&["forget", "-r", &first]);
    world.ok(&["undelete", "-r", "last"]);
    world.must_restore_all("at zero bytes, undeleted");
}

/// Runs the binary in a shell that sets a limit first.
fn limited(world: &World, limit: &str, words: &str) -> Run {
    let script = format!("ulimit {limit}; exec {BINARY} -b srv/web01 {words}");
    let place: &Path = &world.path("");
    Run::of(Command::new("sh").args(["-c", &script]).current_dir(place))
}

#[test]
fn limits_of_the_shell_end_a_run_cleanly() {
    let scene = scene();
    for (limit, words, fails) in [
        ("-f 16", "backup daily", true),
        ("-f 0", "backup daily", true),
        ("-f 16", "restore -r last out", true),
        ("-n 20", "backup daily", false),
        ("-n 10", "backup daily", false),
        ("-n 6", "purge --now", false),
    ] {
        let mut world = scene.world.copy();
        let run = limited(&world, limit, words);
        let what = format!("ulimit {limit}: {run}");
        assert_eq!(run.status.signal(), None, "{what}");
        assert!(!run.stderr.contains("panicked"), "{what}");
        assert!(run.code() == 1 || run.code() == 0 && !fails, "{what}");
        assert!(!world.path("out").exists(), "{what}");
        recovers(&mut world, &scene.next, &what);
    }
}
