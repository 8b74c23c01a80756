//! What an overlay is for: repairing, mounting and changing the disk of a backup with the usual tools, over the death
//! of the process, while the store keeps every byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::{IMAGE_SIZE, Mounted, OFFSET, eventually, path, text, tool, unmount};

impl Mounted {
    /// Mounts with an overlay, and more arguments.
    fn mount_over(&self, more: &[&str]) -> Output {
        let (point, overlay) = (self.at("mnt"), self.at("over"));
        let arguments = ["mount", "--background", path(&point), "--overlay", path(&overlay)];
        self.backy("srv", &[&arguments, more].concat())
    }

    fn remount_over(&self, more: &[&str]) {
        self.unmount();
        let output = self.mount_over(more);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }

    fn unmount(&self) {
        unmount(&self.at("mnt"));
        self.has_ended();
    }

    fn has_ended(&self) {
        eventually("the process has ended", || self.has_no_process());
    }

    /// A loop device of the file system in a file, which can be written.
    fn attach_partition(&mut self, file: &Path) -> String {
        let (offset, length) = (OFFSET.to_string(), (IMAGE_SIZE - 2 * OFFSET).to_string());
        let arguments = ["--find", "--show", "--offset", &offset, "--sizelimit", &length, path(file)];
        let device = tool("losetup", &arguments);
        self.loops.push(device.clone());
        device
    }

    fn detach(&mut self, device: &str) {
        tool("losetup", &["-d", device]);
        self.loops.retain(|other| other != device);
    }

    /// Mounts a device, lets `change` work in it, and takes it away again.
    fn inside(&mut self, device: &str, options: &str, change: impl FnOnce(&Path)) {
        let inside = self.at("inside");
        fs::create_dir_all(&inside).expect("a mount point is made");
        self.mounts.push(inside.clone());
        tool("mount", &["-o", options, device, path(&inside)]);
        change(&inside);
        unmount(&inside);
        self.mounts.pop();
    }

    /// Backs up the disk as it is while its file system is mounted and written: the journal must be replayed.
    fn back_up_a_running_machine(&mut self) {
        let (disk, running) = (self.at("disk.img"), self.at("running.img"));
        let device = self.attach_partition(&disk);
        self.inside(&device, "rw", |inside| {
            fs::write(inside.join("late"), "written late\n").expect("a file is written");
            fs::File::open(inside.join("late")).and_then(|file| file.sync_all()).expect("it is synced");
            tool("cp", &[path(&disk), path(&running)]);
        });
        self.detach(&device);
        tool("mv", &[path(&running), path(&disk)]);
        self.backup("manual:running");
    }

    /// All that the store keeps, but for sessions and the index.
    fn stored(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut waiting = vec![self.at("srv")];
        while let Some(dir) = waiting.pop() {
            for entry in fs::read_dir(dir).expect("the store is readable") {
                let entry = entry.expect("the store is readable");
                let name = entry.file_name().to_string_lossy().into_owned();
                if entry.path().is_dir() && name != "writers" {
                    waiting.push(entry.path());
                } else if entry.path().is_file() && !name.starts_with("index") && !name.ends_with(".log") {
                    found.insert(entry.path(), fs::read(entry.path()).expect("the store is readable"));
                }
            }
        }
        found
    }
}

/// Runs `dd` with the output in place; returns whether it succeeded and what it said.
fn dd(output: &Path, more: &[&str]) -> (bool, String) {
    let output = format!("of={}", path(output));
    let arguments = [&["if=/dev/urandom", &output, "bs=64k"], more].concat();
    let done = Command::new("dd").args(&arguments).env("LC_ALL", "C").output().expect("dd starts");
    (done.status.success(), text(&done.stderr))
}

#[test]
fn a_machine_is_repaired_and_changed_on_its_backup_over_a_kill() {
    let Some(mut world) = Mounted::new() else { return };
    world.back_up_a_running_machine();
    let before = world.stored();
    let image = world.image("manual:running");
    world.remount_over(&[]);

    let device = world.attach_partition(&image);
    assert!(tool("dumpe2fs", &["-h", &device]).contains("needs_recovery"), "the journal has work to do");
    let checked = Command::new("e2fsck").args(["-fy", &device]).output().expect("e2fsck starts");
    assert!(matches!(checked.status.code(), Some(0 | 1)), "{}", text(&checked.stdout));
    assert!(!tool("dumpe2fs", &["-h", &device]).contains("needs_recovery"));
    world.inside(&device, "rw", |inside| {
        let late = fs::read_to_string(inside.join("late")).expect("the journal was replayed");
        assert_eq!(late, "written late\n");
        fs::write(inside.join("new"), vec![0x5a; 3_000_000]).expect("a file is written");
        tool("rm", &[path(&inside.join("program"))]);
        tool("fstrim", &[path(inside)]);
    });
    world.detach(&device);

    tool("kill", &["-KILL", &world.pid()]);
    world.has_ended();
    assert!(world.mount_over(&[]).status.success(), "it is mounted again");
    let device = world.attach_partition(&image);
    tool("e2fsck", &["-fn", &device]);
    world.inside(&device, "ro", |inside| {
        let new = fs::read(inside.join("new")).expect("what was written is there");
        assert!(new == vec![0x5a; 3_000_000]);
        assert!(!inside.join("program").exists());
    });
    world.detach(&device);

    world.unmount();
    world.mount();
    tool("cmp", &[path(&world.at("disk.img")), path(&image)]);
    let refused = fs::File::options().write(true).open(&image).expect_err("it is read-only");
    assert_eq!(refused.raw_os_error(), Some(30), "EROFS");
    assert!(world.stored() == before, "the store has changed");
}

#[test]
fn tools_write_and_hear_of_limits() {
    let Some(world) = Mounted::new() else { return };
    let image = world.image("last");
    world.remount_over(&["--overlay-max", "1M"]);

    let (done, said) = dd(&image, &["count=32", "conv=notrunc"]);
    assert!(!done && said.contains("No space left on device"), "{said}");
    assert!(said.contains("16+0 records out"), "{said}");
    let (done, said) = dd(&image, &["count=16", "conv=notrunc,fsync"]);
    assert!(done, "what was written can be overwritten: {said}");
    let (done, said) = dd(&image, &["count=1"]);
    assert!(!done && said.contains("Operation not permitted"), "{said}");
    let second = world.at("second");
    fs::create_dir(&second).expect("a mount point is made");
    let refused = world.backy("srv", &["mount", path(&second), "--overlay", path(&world.at("over"))]);
    let said = text(&refused.stderr);
    assert!(refused.status.code() == Some(1) && said.contains("another mount uses it"), "{said}");

    let options = format!("rw,overlay={},overlay-max=64M", path(&world.at("over")));
    world.unmount();
    world.ok("srv", &["mount", "--background", path(&world.at("mnt")), "-o", &options]);
    for command in ["write -P 0xab 1M 64k", "write -z -u 2M 1M", "discard 4M 1M", "flush"] {
        tool("qemu-io", &["-f", "raw", "-d", "unmap", "-c", command, path(&image)]);
    }
    for command in ["read -P 0xab 1M 64k", "read -P 0 2M 1M", "read -P 0 4M 1M"] {
        let said = tool("qemu-io", &["-r", "-f", "raw", "-c", command, path(&image)]);
        assert!(!said.contains("failed"), "{command}: {said}");
    }
    tool("qemu-img", &["convert", "-n", "-O", "raw", "-f", "raw", path(&world.at("part.img")), path(&image)]);
    tool("cmp", &["-n", &(IMAGE_SIZE - 2 * OFFSET).to_string(), path(&world.at("part.img")), path(&image)]);
}

#[test]
fn a_full_file_system_below_an_overlay_is_told_and_harms_nothing() {
    let Some(mut world) = Mounted::new() else { return };
    let (image, small) = (world.image("last"), world.at("over"));
    fs::create_dir(&small).expect("a directory is made");
    tool("mount", &["-t", "tmpfs", "-o", "size=1M,mode=700", "tmpfs", path(&small)]);
    world.mounts.push(small.clone());
    world.remount_over(&["--overlay-max", "2M"]);

    let (done, said) = dd(&image, &["seek=64", "count=64", "conv=notrunc"]);
    assert!(!done && said.contains("No space left on device"), "{said}");
    let written = said.lines().find_map(|line| line.strip_suffix("+0 records out")?.parse::<u64>().ok());
    let written = written.expect("dd says how much it wrote") * 65536;
    assert!(written > 0 && written < 1 << 20, "{written}");
    let half = fs::read(&image).expect("the image is readable");
    let old = fs::read(world.at("disk.img")).expect("the disk is readable");
    let (from, behind) = (64 * 65536, 64 * 65536 + written as usize);
    assert!(half[..from] == old[..from] && half[behind..] == old[behind..], "more than that has changed");
    let (done, said) = dd(&image, &["seek=64", "count=1", "conv=notrunc,fsync"]);
    assert!(done, "what was written can be overwritten: {said}");
    // What failed does not count: there is space again when there is space below.
    for _ in 0..32 {
        let (done, said) = dd(&image, &["seek=200", "count=1", "conv=notrunc"]);
        assert!(!done && said.contains("No space left on device"), "{said}");
    }
    tool("mount", &["-o", "remount,size=4M", path(&small)]);
    let (done, said) = dd(&image, &["seek=64", "count=16", "conv=notrunc,fsync"]);
    assert!(done, "{said}");
    let half = fs::read(&image).expect("the image is readable");
    world.remount_over(&[]);
    let again = fs::read(&image).expect("the image is readable");
    assert!(again[from + 65536..] == half[from + 65536..] && again[..from] == old[..from]);
    world.unmount();
}

/// What the process did, one line for each call: its name and the last part of the file's name.
fn calls(trace: &Path) -> Vec<String> {
    let trace = fs::read_to_string(trace).expect("the trace is readable");
    let call = |line: &str| {
        let (name, rest) = line.split_once(' ')?.1.trim_start().split_once('(')?;
        let file = rest.split_once("/image.")?.1.split_once('>')?.0;
        Some(format!("{name} {file}"))
    };
    trace.lines().filter_map(call).collect()
}

#[test]
fn data_is_durable_before_anything_says_so() {
    let Some(world) = Mounted::new() else { return };
    world.unmount();
    let (point, image, trace) = (world.at("mnt"), world.image("last"), world.at("trace"));
    let mut traced = Command::new("strace")
        .args(["-f", "-y", "-e", "trace=pwrite64,fdatasync", "-o", path(&trace)])
        .args([env!("CARGO_BIN_EXE_backy"), "-b", path(&world.at("srv")), "mount", path(&point)])
        .args(["--overlay", path(&world.at("over"))])
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("strace starts");
    eventually("it is mounted", || image.exists());
    let (made, _) = dd(&image, &["count=1", "conv=notrunc"]);
    let (written, _) = dd(&image, &["count=1", "seek=9", "conv=notrunc,fsync"]);
    unmount(&point);
    let ended = backy_testkit::ended(&mut traced);
    assert!(made && written && ended.success());
    // The first write made the files; at the end nothing was left to sync but what only this start needs.
    let last = [
        "pwrite64 data",
        "pwrite64 written",
        "fdatasync data",
        "pwrite64 synced",
        "fdatasync synced",
        "fdatasync written",
    ];
    let calls = calls(&trace);
    assert!(calls.ends_with(&last.map(str::to_owned)), "{calls:?}");
}

#[test]
fn who_is_told_to_end_syncs_before_he_waits_for_readers() {
    let Some(mut world) = Mounted::new() else { return };
    world.remount_over(&[]);
    let image = fs::File::open(world.image("last")).expect("the image is readable");
    let (written, said) = dd(&world.image("last"), &["count=1", "conv=notrunc"]);
    assert!(written, "{said}");
    let kept =
        fs::read_dir(world.at("over/web01")).expect("it is there").next().expect("a disk").expect("it");
    let synced = || fs::read(kept.path().join("image.synced")).expect("it is readable");
    let before = synced();
    tool("kill", &["-TERM", &world.pid()]);
    eventually("what was written is synced", || synced() != before);
    // Until then the next mount is refused and does not wait.
    eventually("it is taken out of the tree", || !world.is_mounted());

    // The next mount waits for the end of this one.
    let second = world.at("second");
    fs::create_dir(&second).expect("a mount point is made");
    world.mounts.push(second.clone());
    let (store, over) = (world.at("srv"), world.at("over"));
    let mut next = Command::new(env!("CARGO_BIN_EXE_backy"))
        .args(["-b", path(&store), "mount", "--background", path(&second), "--overlay", path(&over)])
        .spawn()
        .expect("the program starts");
    drop(image);
    assert!(backy_testkit::ended(&mut next).success());
    world.has_ended();
}
