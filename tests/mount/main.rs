//! A real partitioned image through a real mount, read with the tools that people restore with.
//!
//! Needs root, `/dev/fuse` and loop devices, and the Debian packages that `scripts/test` installs. Where the kernel
//! has no FUSE the tests say so and pass; anything else that is missing makes them fail.

#![expect(clippy::print_stdout, reason = "tests tell what they did and what they skip")]

mod damage;
mod holes;
mod overlay;
mod partitions;
mod process;
mod torture;
mod volumes;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// First byte of the image's only partition.
const OFFSET: u64 = 1 << 20;
const IMAGE_SIZE: u64 = 64 << 20;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a tool that must succeed; returns its standard output.
fn tool(name: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(name).args(arguments).output().unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(
        output.status.success(),
        "{name} {arguments:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout).trim().to_owned()
}

/// Unmounts. A child of another test that has not executed its program yet holds whatever was open here for a moment.
fn unmount(point: &Path) {
    eventually("nothing uses the mount any more", || {
        Command::new("umount").arg(point).output().is_ok_and(|done| done.status.success())
    });
}

fn path(path: &Path) -> &str {
    path.to_str().expect("paths of the tests are text")
}

/// A store with one job, mounted; everything is taken down at the end, also of a test that failed.
struct Mounted {
    dir: tempfile::TempDir,
    loops: Vec<String>,
    mounts: Vec<PathBuf>,
}

impl Mounted {
    /// `None` where the kernel has no FUSE.
    fn new() -> Option<Self> {
        if !Path::new("/dev/fuse").exists() {
            println!("skipped: the kernel has no /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let this = Self { dir, loops: Vec::new(), mounts: Vec::new() };
        this.make_image();
        let filename = format!("filename={}", path(&this.at("disk.img")));
        this.ok("srv/web01", &["init", "file", &filename]);
        this.backup("daily");
        fs::create_dir(this.at("mnt")).expect("the mount point is made");
        this.mount();
        Some(this)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn image(&self, revision: &str) -> PathBuf {
        self.at("mnt/web01").join(revision).join("image")
    }

    /// GPT, and an ext4 partition with files of all sorts.
    fn make_image(&self) {
        let (files, part) = (self.at("files"), self.at("part.img"));
        fs::create_dir_all(files.join("etc")).expect("a directory is made");
        for number in 0..40usize {
            let content = format!("file {number}\n").repeat(number * number * 7);
            fs::write(files.join(format!("etc/{number}.conf")), content).expect("a file is written");
        }
        fs::copy(env!("CARGO_BIN_EXE_backy"), files.join("program")).map(drop).unwrap_or_default();
        let program = fs::read(files.join("program")).expect("it was copied");
        fs::write(files.join("program"), &program[..program.len().min(12 << 20)]).expect("a file is written");
        let length = IMAGE_SIZE - 2 * OFFSET;
        fs::File::create(&part).and_then(|file| file.set_len(length)).expect("the partition is made");
        tool("mkfs.ext4", &["-q", "-F", "-d", path(&files), path(&part)]);
        let image = self.at("disk.img");
        fs::File::create(&image).and_then(|file| file.set_len(IMAGE_SIZE)).expect("the image is made");
        tool("sgdisk", &["-n", "1:2048:+60M", "-t", "1:8300", path(&image)]);
        let (input, output) = (format!("if={}", path(&part)), format!("of={}", path(&image)));
        tool("dd", &[&input, &output, "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none"]);
    }

    fn backy(&self, dir: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_backy"));
        command
            .arg("-b")
            .arg(self.at(dir))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("the program starts")
    }

    fn ok(&self, dir: &str, arguments: &[&str]) -> String {
        let output = self.backy(dir, arguments);
        assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout).trim().to_owned()
    }

    fn backup(&self, tag: &str) -> String {
        self.ok("srv/web01", &["backup", "--force", tag])
    }

    fn mount(&self) {
        self.ok("srv", &["mount", "--background", path(&self.at("mnt"))]);
    }

    /// Whether no process serves the mount, or is still ending.
    fn has_no_process(&self) -> bool {
        let found = Command::new("pgrep").args(["-f", path(&self.at("mnt"))]).output();
        found.is_ok_and(|found| !found.status.success())
    }

    fn pid(&self) -> String {
        tool("pgrep", &["-f", &format!("mount --background {}", path(&self.at("mnt")))])
    }

    fn is_mounted(&self) -> bool {
        let table = fs::read_to_string("/proc/self/mounts").expect("the mount table is readable");
        table.contains(path(&self.at("mnt")))
    }

    fn attach(&mut self, image: &Path, more: &[&str]) -> String {
        let arguments = [&["--find", "--show", "--read-only"], more, &[path(image)]].concat();
        let device = tool("losetup", &arguments);
        self.loops.push(device.clone());
        device
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for mount in &self.mounts {
            drop(Command::new("umount").arg("-l").arg(mount).output());
        }
        for device in &self.loops {
            drop(Command::new("losetup").args(["-d", device]).output());
        }
        drop(Command::new("umount").args(["-l", path(&self.at("mnt"))]).stderr(Stdio::null()).output());
    }
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn every_tool_reads_the_image_as_it_was() {
    let Some(mut world) = Mounted::new() else { return };
    let (source, image) = (world.at("disk.img"), world.image("last"));
    tool("cmp", &[path(&source), path(&image)]);
    for (name, arguments) in [
        ("cp", vec!["--sparse=auto".to_owned(), path(&image).to_owned(), path(&world.at("cp")).to_owned()]),
        (
            "dd",
            vec![
                format!("if={}", path(&image)),
                format!("of={}", path(&world.at("dd"))),
                "bs=1M".to_owned(),
                "conv=sparse".to_owned(),
                "status=none".to_owned(),
            ],
        ),
        (
            "qemu-img",
            ["convert", "-f", "raw", "-O", "raw", path(&image), path(&world.at("qemu-img"))]
                .map(str::to_owned)
                .to_vec(),
        ),
    ] {
        tool(name, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        tool("cmp", &[path(&source), path(&world.at(name))]);
    }
    tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", path(&source), path(&image)]);

    let offset = OFFSET.to_string();
    let device = world.attach(&image, &["--offset", &offset]);
    tool("e2fsck", &["-fn", &device]);
    let inside = world.at("inside");
    fs::create_dir(&inside).expect("a mount point is made");
    world.mounts.push(inside.clone());
    tool("mount", &["-o", "ro,noload", &device, path(&inside)]);
    tool("diff", &["-r", "--exclude=lost+found", path(&world.at("files")), path(&inside)]);
    unmount(&inside);

    let whole = world.attach(&image, &["--partscan"]);
    let partition = format!("{whole}p1");
    if Path::new(&partition).exists() {
        tool("e2fsck", &["-fn", &partition]);
    } else {
        println!("skipped: losetup -P, for this kernel reads no partition tables");
    }
}

#[test]
fn new_revisions_appear_and_open_images_stay() {
    let Some(world) = Mounted::new() else { return };
    let old = fs::read(world.at("disk.img")).expect("the image is readable");
    let first = world.ok("srv/web01", &["find", "--uuid"]);
    let open = fs::File::open(world.image(&first)).expect("the image opens");
    let mut changed = old.clone();
    changed[(20 << 20)..(21 << 20)].fill(0x5a);
    fs::write(world.at("disk.img"), &changed).expect("the image changes");
    let second = world.backup("manual:second");
    eventually("the new revision is shown", || world.image(&second).exists());
    eventually("last moves", || {
        fs::read_link(world.at("mnt/web01/last")).is_ok_and(|to| to == Path::new(&second))
    });
    assert!(fs::read(world.image("manual:second")).expect("the new image is readable") == changed);

    world.ok("srv/web01", &["forget", "-r", &first]);
    world.ok("srv", &["purge", "--now"]);
    eventually("the forgotten revision is gone", || !world.image(&first).exists());
    let mut read = Vec::new();
    use std::io::Read;
    (&open).read_to_end(&mut read).expect("an open image stays readable");
    assert!(read == old, "an open image stays what it was");
    drop(open);
    let info = fs::read_to_string(world.at("mnt/web01/last/info.json")).expect("info.json is readable");
    let info: serde_json::Value = serde_json::from_str(&info).expect("info.json is JSON");
    assert_eq!(info["uuid"], second.as_str());
}

#[test]
fn damage_is_an_input_output_error_for_its_frames_only() {
    let Some(world) = Mounted::new() else { return };
    let good = fs::read(world.at("disk.img")).expect("the image is readable");
    let chunk = tool("find", &[path(&world.at("srv/chunks")), "-type", "f", "-size", "+1500k"]);
    let chunk = chunk.lines().next().expect("one chunk is large").to_owned();
    let mut bytes = fs::read(&chunk).expect("the chunk is readable");
    let end = bytes.len() - 100;
    bytes[end] ^= 0x10;
    fs::write(&chunk, bytes).expect("the chunk is damaged");
    use std::os::unix::fs::FileExt;
    let image = fs::File::open(world.image("last")).expect("the image opens");
    let mut bad = 0;
    for at in (0..IMAGE_SIZE).step_by(4096) {
        let mut page = [0; 4096];
        match image.read_exact_at(&mut page, at) {
            Ok(()) => assert!(page == good[at as usize..at as usize + 4096], "wrong bytes at {at}"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5), "EIO at {at}");
                bad += 1;
            }
        }
    }
    assert!(
        (1..=64).contains(&bad),
        "{bad} of the pages cannot be read; one frame has 16, read-ahead may join some"
    );
    eventually("the revision is distrusted", || {
        world.ok("srv/web01", &["status", "--json"]).contains("distrusted")
    });
}

#[test]
fn a_mount_in_the_background_keeps_nothing_open_that_its_caller_had() {
    let Some(world) = Mounted::new() else { return };
    unmount(&world.at("mnt"));
    eventually("the first mount ends", || world.has_no_process());
    let script = "exec 9>\"$1\"; \"$2\" -b \"$3\" mount --background \"$4\"";
    let lock = world.at("lock");
    let (store, point) = (world.at("srv"), world.at("mnt"));
    let words = [script, "sh", path(&lock), env!("CARGO_BIN_EXE_backy"), path(&store), path(&point)];
    tool("sh", &[&["-c"], &words[..]].concat());
    let open = fs::read_dir(format!("/proc/{}/fd", world.pid())).expect("descriptors can be listed");
    let open: Vec<_> = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).collect();
    assert!(!open.is_empty() && !open.contains(&lock), "{open:?}");
    tool("cmp", &[path(&world.at("disk.img")), path(&world.image("last"))]);
}

#[test]
fn signals_and_death_leave_a_mount_point_that_can_be_used_again() {
    let Some(world) = Mounted::new() else { return };
    let twice = world.backy("srv", &["mount", "--background", path(&world.at("mnt"))]);
    let said = text(&twice.stderr);
    assert_eq!((twice.status.code(), said.matches("error: ").count()), (Some(1), 1), "mounted twice: {said}");
    let wrong = world.backy("srv", &["mount", "--background", "-o", "foo", path(&world.at("mnt"))]);
    let said = text(&wrong.stderr);
    assert_eq!((wrong.status.code(), said.matches("error: ").count()), (Some(2), 1), "{said}");
    tool("kill", &["-TERM", &world.pid()]);
    eventually("SIGTERM unmounts", || !world.is_mounted() && world.has_no_process());
    world.mount();
    let reader = world.image("last");
    let reading = std::thread::spawn(move || drop(fs::read(reader)));
    tool("kill", &["-KILL", &world.pid()]);
    reading.join().expect("a reader of a dead mount gets an error and goes on");
    world.mount();
    tool("cmp", &[path(&world.at("disk.img")), path(&world.image("last"))]);
    unmount(&world.at("mnt"));
    eventually("the process ends with its mount", || world.has_no_process());
}

#[test]
fn what_cannot_be_mounted_says_why() {
    let Some(world) = Mounted::new() else { return };
    let full = world.at("files");
    for (dir, arguments, message) in [
        ("srv", vec!["mount", "/no/such/place"], "/no/such/place"),
        ("srv", vec!["mount", path(&full)], "empty"),
        ("srv/nosuch", vec!["mount", path(&full)], "nosuch"),
        (".", vec!["mount", path(&full)], "no backy store"),
        ("srv", vec!["mount", "-o", "cahce=1G", path(&full)], "cache"),
    ] {
        let output = world.backy(dir, &arguments);
        let said = text(&output.stderr);
        assert!(
            matches!(output.status.code(), Some(1 | 2)) && said.contains(message),
            "{arguments:?}: {said}"
        );
    }
}

#[test]
fn find_prints_where_a_mounted_image_is() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| dir.path().join(name);
    fs::write(at("disk.img"), vec![7; 300_000]).expect("an image is made");
    let backy = |base: &str, words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_backy"));
        command.arg("-b").arg(at(base)).args(words).stdin(Stdio::null()).output().expect("it starts")
    };
    let image = format!("filename={}", at("disk.img").display());
    assert!(backy("srv/web01", &["init", "file", &image]).status.success());
    assert!(backy("srv/web01", &["backup", "daily"]).status.success());
    let find = || backy("srv/web01", &["find", "-r", "daily"]);
    assert_eq!((find().status.code(), find().stdout.len()), (Some(1), 0));
    fs::create_dir(at("mnt")).expect("a mount point is made");
    let mut found = Vec::new();
    for overlay in [true, false] {
        let overlays = at("overlay").display().to_string();
        let more: &[&str] = if overlay { &["--overlay", &overlays] } else { &[] };
        let output = backy("srv", &[&["mount", "--background", path(&at("mnt"))], more].concat());
        found.push((output.status.success(), find()));
        let read = fs::read(text(&found[found.len() - 1].1.stdout).trim()).ok();
        drop(Command::new("umount").args(["-l", path(&at("mnt"))]).output());
        // What can be written may not be what was backed up any more.
        assert_eq!(read.is_some_and(|read| read == vec![7; 300_000]), !overlay, "{found:?}");
    }
    assert!(found.iter().all(|(mounted, _)| *mounted), "{found:?}");
    assert_eq!((found[0].1.status.code(), found[1].1.status.code()), (Some(1), Some(0)), "{found:?}");
}

/// A file behind a loop device, detached at the end.
struct LoopDevice(String);

impl LoopDevice {
    fn of(file: &Path) -> Self {
        Self(tool("losetup", &["--find", "--show", path(file)]))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        drop(Command::new("losetup").args(["-d", &self.0]).output());
    }
}

#[test]
fn block_devices_are_sources_and_targets_and_what_they_hold_is_respected() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let make = |name: &str, length: u64| {
        let file = dir.path().join(name);
        fs::File::create(&file).and_then(|file| file.set_len(length)).expect("a file is made");
        file
    };
    let length = 24 << 20;
    let (source_file, target_file) = (make("source", length), make("target", length + 4096));
    tool(
        "mkfs.ext4",
        &[
            "-q",
            "-F",
            "-d",
            path(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").as_path()),
            path(&source_file),
        ],
    );
    let (source, target) = (LoopDevice::of(&source_file), LoopDevice::of(&target_file));
    let small = LoopDevice::of(&make("small", 1 << 20));
    let job = dir.path().join("srv/device");
    let backy = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_backy"))
            .arg("-b")
            .arg(&job)
            .args(arguments)
            .output()
            .expect("it starts")
    };
    let ok = |arguments: &[&str]| {
        let output = backy(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    };
    let refused = |arguments: &[&str], reason: &str| {
        let output = backy(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(text(&output.stderr).contains(reason), "{arguments:?}: {}", text(&output.stderr));
    };
    ok(&["init", "file", &format!("filename={}", source.0)]);
    ok(&["backup", "daily"]);
    let length = length.to_string();
    let same = || tool("cmp", &["-n", &length, path(&source_file), path(&target_file)]);
    refused(&["restore", &small.0], "1048576 bytes");
    ok(&["restore", &target.0]);
    same();
    refused(&["restore", &target.0], "holds data");
    // What a hole of the image covers was something else before.
    let noise = format!("of={}", target.0);
    tool("dd", &["if=/dev/urandom", &noise, "bs=1M", "count=24", "conv=fsync", "status=none"]);
    ok(&["restore", "--force", &target.0]);
    same();
    let mountpoint = dir.path().join("mnt");
    fs::create_dir(&mountpoint).expect("a mount point is made");
    tool("mount", &[&target.0, path(&mountpoint)]);
    refused(&["restore", "--force", &target.0], "in use");
    unmount(&mountpoint);
}

#[test]
fn a_directory_that_is_rewound_shows_what_is_there_now() {
    let Some(world) = Mounted::new() else { return };
    // Listing an open directory once more rewinds it, as rewinddir(3) does.
    let script = "import os, sys\n\
        directory = os.open(sys.argv[1], os.O_RDONLY)\n\
        print(len(os.listdir(directory)), flush=True)\n\
        for _ in sys.stdin: print(len(os.listdir(directory)), flush=True)\n";
    let mut python = Command::new("python3")
        .args(["-c", script, path(&world.at("mnt/web01"))])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 starts");
    let mut input = python.stdin.take().expect("it is piped");
    let mut answers = std::io::BufReader::new(python.stdout.take().expect("it is piped"));
    let mut answer = || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut answers, &mut line).expect("python answers");
        line.trim().to_owned()
    };
    assert_eq!(answer(), "3", "a revision, its tag and last");
    world.backup("weekly");
    eventually("the new revision and its tag are seen", || {
        std::io::Write::write_all(&mut input, b"\n").expect("python listens");
        answer() == "5"
    });
    drop(input);
    assert!(backy_testkit::ended(&mut python).success());
}
