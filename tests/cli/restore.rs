//! Restoring in an emergency: what a target may be, what is refused before anything is copied, what is left when it ends
//! early, what of an old file is kept. Devices are loop devices: those tests need root.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use backy_testkit::{CHUNK, Image, Run, Stopped, World};

use crate::{BINARY, world};

/// The first bytes of an image that the last revision of `world()` has.
fn expected(world: &World, id: &str) -> Image {
    Image(world.expected[id].0.clone())
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("list a directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn tool(program: &str, words: &[&str]) -> String {
    let run = Run::of(Command::new(program).args(words)).expect(0);
    run.text().trim().to_owned()
}

/// From now on every copy fails: what is refused for another reason is refused before it.
fn cannot_copy(world: &World) {
    world.chunks().iter().for_each(|chunk| fs::remove_file(chunk).expect("remove a chunk"));
}

#[test]
fn what_cannot_be_a_target_is_refused_before_anything_is_copied() {
    let (world, _) = world();
    cannot_copy(&world);
    fs::create_dir_all(world.path("dir/empty")).unwrap();
    let dir = world.path("dir");
    fs::write(dir.join("full"), b"precious").unwrap();
    symlink("full", dir.join("link")).unwrap();
    symlink("nothing", dir.join("dangling")).unwrap();
    let before = names(&dir);
    let long = format!("dir/{}", "x".repeat(256));
    let cases: [(&str, bool, &str, Option<&str>); 15] = [
        ("/dev/null", false, "neither a regular file nor a block device", None),
        ("/dev/null", true, "neither a regular file nor a block device", None),
        (
            "dir/that/is/not/y",
            true,
            "the directory dir/that/is/not does not exist",
            Some("`mkdir -p dir/that/is/not`"),
        ),
        ("dir/full/y", true, "dir/full is not a directory", None),
        ("newdir/", false, "it names a directory", Some("add the name of a file")),
        ("dir/full/", true, "it names a directory", None),
        ("dir", true, "it names a directory", Some("add the name")),
        ("/", true, "it names a directory", Some("add the name")),
        ("dir/full", false, "the file exists and is not empty", Some("`--force` overwrites it")),
        ("dir/link", true, "symbolic link to", Some("dir/full")),
        ("dir/dangling", true, "symbolic link to nothing, which does not exist", Some("remove the link")),
        (&long, true, "name", None),
        ("srv/restored.img", true, "it lies in the store at", Some("outside of the store")),
        ("srv/web01/config", true, "it lies in the store at", Some("outside of the store")),
        ("srv/writers/../backy.store", true, "it lies in the store at", Some("outside of the store")),
    ];
    for (target, force, problem, hint) in cases {
        let words: &[&str] = if force { &["restore", "--force", target] } else { &["restore", target] };
        let run = world.run(words).expect(1).says(problem);
        let cause = run.stderr.split("hint: ").next().unwrap();
        assert!(!cause.contains("--force"), "the cause is not the hint: {run}");
        match (hint, run.stderr.split_once("hint: ")) {
            (Some(hint), Some((_, said))) => assert!(said.contains(hint), "{run}"),
            (Some(_), None) => panic!("no hint: {run}"),
            (None, said) => assert!(said.is_none_or(|(_, said)| !said.contains("--force")), "{run}"),
        }
        assert_eq!(names(&dir), before, "{target}");
    }
    assert_eq!(fs::read(dir.join("full")).unwrap(), b"precious");
    let run = world.run(&["restore", "/dev/null"]).expect(1);
    assert!(!run.stderr.contains("hint: "), "{run}");
    // Among them the store seen through another path.
    symlink("srv/web01", world.path("alias")).unwrap();
    world.run(&["restore", "alias/x"]).expect(1).says("it lies in the store at");
    // A limit on the size of files, and too little room, are known as well.
    let limited = format!("ulimit -f 2000; exec {BINARY} -b srv/web01 restore dir/new");
    let run = Run::of(Command::new("sh").args(["-c", &limited]).current_dir(world.path("")));
    run.expect(1).says("larger than the file system or the limits of this process allow").says("ulimit -f");
    assert_eq!(names(&dir), before);
}

#[test]
fn whatever_uses_a_file_is_named_and_keeps_it() {
    let (world, [.., last]) = world();
    let path = world.path("used.img");
    fs::write(&path, b"old").unwrap();
    let file = File::open(&path).unwrap();
    let mut child = Command::new("sleep").arg("100").stdin(file).spawn().unwrap();
    let run = world.run(&["restore", "used.img"]);
    let forced = world.run(&["restore", "--force", "used.img"]);
    backy_testkit::end(&mut child);
    let user = format!("({})", child.id());
    run.expect(1).says("it is in use: sleep").says(&user).says("hint: end what uses it");
    forced.expect(0).says("warning: ").says(&user);
    assert!(fs::read(&path).unwrap() == expected(&world, &last).0);
}

#[test]
fn names_of_every_length_work() {
    let (world, [.., last]) = world();
    for length in [1, 222, 255] {
        let name = "n".repeat(length);
        for unnamed in ["yes", "no"] {
            for words in [&["restore", &name][..], &["restore", "--force", &name]] {
                Run::of(world.command(words).env("BACKY_UNNAMED", unnamed)).expect(0);
                assert!(fs::read(world.path(&name)).unwrap() == expected(&world, &last).0, "{length}");
            }
            fs::remove_file(world.path(&name)).unwrap();
        }
    }
    assert!(!names(&world.path("")).iter().any(|name| name.starts_with('.')));
}

/// A file system without files that have no name, without links and without renaming that replaces nothing, as exFAT is.
fn on_simple_file_system(world: &World, words: &[&str]) -> Run {
    let mut command = Command::new("strace");
    let faults = ["-e", "inject=linkat:error=EPERM", "-e", "inject=renameat2:error=EINVAL"];
    let target = world.path("out/new").to_string_lossy().into_owned();
    command
        .args(["-f", "-qq", "-o", "/dev/null", "-P", &target])
        .args(faults)
        .arg(BINARY)
        .args(["-b", "srv/web01"])
        .args(words);
    command.current_dir(world.path("")).env("TZ", "UTC").env("BACKY_UNNAMED", "no");
    Run::of(&mut command)
}

#[test]
fn simple_file_systems_are_targets() {
    let (world, [first, .., last]) = world();
    fs::create_dir(world.path("out")).unwrap();
    on_simple_file_system(&world, &["restore", "-r", &first, "out/new"]).expect(0);
    assert!(fs::read(world.path("out/new")).unwrap() == expected(&world, &first).0);
    on_simple_file_system(&world, &["restore", "--force", "out/new"]).expect(0);
    assert!(fs::read(world.path("out/new")).unwrap() == expected(&world, &last).0);
    assert_eq!(names(&world.path("out")), ["new"]);
    on_simple_file_system(&world, &["restore", "out/new"]).expect(1).says("exists and is not empty");
}

#[test]
fn nothing_is_left_wherever_a_restore_is_killed() {
    let (world, [.., last]) = world();
    fs::create_dir(world.path("out")).unwrap();
    let (mut killed, mut ended) = (0, false);
    while !ended {
        killed += 1;
        let run = world.run_with_fault(&["restore", "out/disk"], &format!("kill:{killed}"));
        ended = !run.was_killed();
        let left = names(&world.path("out"));
        assert!(left.is_empty() || left == ["disk"], "kill:{killed} left {left:?}");
        if left == ["disk"] {
            let whole = fs::read(world.path("out/disk")).unwrap() == expected(&world, &last).0;
            assert!(whole, "kill:{killed}");
            fs::remove_file(world.path("out/disk")).unwrap();
        }
    }
    assert!(killed > 5, "{killed}");
    // The old file is there until the new one is, and the next restore removes what only had a temporary name.
    for at in 1.. {
        fs::write(world.path("out/disk"), b"old").unwrap();
        let run = world.run_with_fault(&["restore", "--force", "out/disk"], &format!("kill:{at}"));
        let found = fs::read(world.path("out/disk")).unwrap();
        assert!(found == b"old" || found == expected(&world, &last).0, "kill:{at}");
        if !run.was_killed() {
            break;
        }
    }
    world.ok(&["restore", "--force", "out/disk"]);
    assert_eq!(names(&world.path("out")), ["disk"]);
}

/// Starts a restore with a temporary name and stops it when it has written some of it.
fn stopped_half_way(world: &World) -> Stopped {
    for at in 1.. {
        let mut command = world.command(&["restore", "--threads", "1", "out/disk"]);
        command.env("BACKY_UNNAMED", "no").env("BACKY_FAULT", format!("stop:{at}"));
        let stopped = Stopped::start(&mut command).unwrap_or_else(|run| panic!("it ended: {run}"));
        let size =
            |name: &String| fs::metadata(world.path("out").join(name)).is_ok_and(|facts| facts.blocks() > 0);
        if names(&world.path("out")).iter().any(size) {
            return stopped;
        }
        stopped.kill();
        names(&world.path("out"))
            .iter()
            .for_each(|name| fs::remove_file(world.path("out").join(name)).expect("remove a leftover"));
    }
    unreachable!()
}

#[test]
fn a_restore_that_is_asked_to_stop_or_was_killed_leaves_nothing_for_long() {
    let (world, [.., last]) = world();
    fs::create_dir(world.path("out")).unwrap();
    for signal in ["HUP", "TERM", "INT"] {
        let stopped = stopped_half_way(&world);
        assert_eq!(names(&world.path("out")).len(), 1, "it has a temporary name here");
        tool("kill", &["-s", signal, &stopped.pid().to_string()]);
        // It may have been done before it noticed.
        let run = stopped.finish();
        match run.code() {
            1 => assert!(
                names(&world.path("out")).is_empty() && run.stderr.contains("stopped on request"),
                "{run}"
            ),
            0 => assert_eq!(names(&world.path("out")), ["disk"], "{run}"),
            _ => panic!("{signal}: {run}"),
        }
        drop(fs::remove_file(world.path("out/disk")));
    }
    // One lives, one was killed: only what the dead one has left goes.
    let living = stopped_half_way(&world);
    let of_living = names(&world.path("out"));
    world.ok(&["restore", "out/other"]);
    assert!(names(&world.path("out")).contains(&of_living[0]));
    assert!(living.kill().was_killed());
    assert_eq!(names(&world.path("out")).len(), 2);
    world.ok(&["restore", "out/disk"]).says("removed ").says(&of_living[0]);
    assert_eq!(names(&world.path("out")), ["disk", "other"]);
    assert!(fs::read(world.path("out/disk")).unwrap() == expected(&world, &last).0);
}

#[test]
fn a_backup_survives_the_end_of_its_terminal_as_it_does_sigterm() {
    let (world, _) = world();
    let before = world.leftovers().len();
    let mut command = world.command(&["backup", "daily"]);
    let stopped = Stopped::start(command.env("BACKY_FAULT", "stop:4")).expect("it stops");
    tool("kill", &["-s", "HUP", &stopped.pid().to_string()]);
    let run = stopped.finish();
    assert!(matches!(run.code(), 0 | 1), "{run}");
    assert_eq!(world.leftovers().len(), before, "{run}");
}

#[test]
fn nohup_keeps_a_restore_running() {
    let (world, _) = world();
    let script = format!(
        "trap '' HUP; {BINARY} -b srv/web01 restore --threads 1 out & pid=$!; \
         while case $(ps -o state= -p $pid) in [TZ]*|'') false ;; esac; do sleep 0.01; done; \
         kill -HUP $pid; kill -CONT $pid; wait $pid"
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(world.path("")).env("BACKY_FAULT", "stop:6");
    Run::of(&mut command).expect(0).says("restored revision");
    assert!(world.path("out").exists());
}

#[test]
fn a_file_that_is_replaced_keeps_owner_mode_and_attributes() {
    let (world, [.., last]) = world();
    let path = world.path("disk.img");
    let name = path.to_string_lossy().into_owned();
    fs::write(&path, b"old").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let has_rights = is_root();
    let mut kept = Vec::new();
    if has_rights {
        std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
        // An access control list: owner rw, user 7 r, group r, mask r, others none.
        let list =
            "0x0200000001000600ffffffff020004000700000004000400ffffffff10000400ffffffff20000000ffffffff";
        for (attribute, value) in [
            ("trusted.backy", "0x3132"),
            ("security.selinux", "0x73797374656d5f753a6f626a6563745f7200"),
            ("system.posix_acl_access", list),
        ] {
            let set = Command::new("setfattr").args(["-n", attribute, "-v", value, &name]).output().unwrap();
            if set.status.success() {
                kept.push(attribute);
            }
        }
        assert!(kept.contains(&"trusted.backy"), "setfattr is missing, or all fails");
    }
    let attributes = |kept: &[&str]| -> Vec<String> {
        let get =
            |attribute: &&str| tool("getfattr", &["--absolute-names", "-e", "hex", "-n", attribute, &name]);
        kept.iter().map(get).collect()
    };
    let (facts, before) = (fs::metadata(&path).unwrap(), attributes(&kept));
    let run = world.ok(&["restore", "--force", "disk.img"]);
    assert!(!run.stderr.contains("warning"), "{run}");
    let now = fs::metadata(&path).unwrap();
    assert_eq!((now.uid(), now.gid(), now.mode()), (facts.uid(), facts.gid(), facts.mode()));
    assert_eq!(attributes(&kept), before);
    assert!(fs::read(&path).unwrap() == expected(&world, &last).0);
    // A new file is for its owner alone; what everybody can read already, is said.
    world.ok(&["restore", "new.img"]);
    assert_eq!(fs::metadata(world.path("new.img")).unwrap().mode() & 0o7777, 0o600);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::hard_link(&path, world.path("other.img")).unwrap();
    world.ok(&["restore", "--force", "disk.img"]).says("has mode 0644: every user").says("other names");
}

#[test]
fn a_file_that_cannot_be_replaced_is_found_before_the_copy() {
    if !is_root() {
        return;
    }
    let (world, _) = world();
    // As of a file system with such flags; in memory there are none.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk.img");
    fs::write(&file, b"old").unwrap();
    cannot_copy(&world);
    let target = file.to_string_lossy().into_owned();
    for (flag, what) in
        [("i", &file), ("a", &file), ("a", &dir.path().to_owned()), ("i", &dir.path().to_owned())]
    {
        let flagged = Command::new("chattr").arg(format!("+{flag}")).arg(what).output().unwrap();
        if !flagged.status.success() {
            continue;
        }
        let run = world.run(&["restore", "--force", &target]);
        tool("chattr", &[&format!("-{flag}"), &what.to_string_lossy()]);
        let run = run.expect(1).says("lsattr");
        assert!(!run.stderr.contains("chunk"), "{run}");
    }
    // Something is mounted on it.
    let (source, mountpoint) = (world.path("image.img"), Mount(file.clone()));
    tool("mount", &["--bind", &source.to_string_lossy(), &target]);
    let run = world.run(&["restore", "--force", &target]);
    drop(mountpoint);
    run.expect(1).says("it is a mount point").says("hint: unmount it");
    assert_eq!(names(dir.path()), ["disk.img"]);
    assert_eq!(fs::read(&file).unwrap(), b"old");
}

struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).output());
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|facts| facts.uid() == 0)
}

#[test]
fn hints_know_which_side_failed() {
    let (world, _) = world();
    for (fault, hint) in
        [("enospc", "the target is full, not the store"), ("eio", "the target reports errors")]
    {
        let mut seen = 0;
        for at in 1..40 {
            let run = world.run_with_fault(&["restore", "out"], &format!("{fault}-on:{at}"));
            let Some((_, path)) = run.fault() else { break };
            // Not every failure in the store stops a restore.
            if path.contains("/srv/") || path.starts_with("srv") {
                drop(fs::remove_file(world.path("out")));
                continue;
            }
            seen += 1;
            let run = run.expect(1).says(&format!("hint: {hint}"));
            assert!(!run.stderr.contains("forget") && !run.stderr.contains("purge"), "{run}");
            // Only the directory was not synced any more.
            let is_whole = run.fault().is_some_and(|(operation, _)| operation == "fsyncdir");
            assert_eq!(world.path("out").exists(), is_whole, "{run}");
            drop(fs::remove_file(world.path("out")));
        }
        assert!(seen > 2, "{seen} faults on the target");
    }
    let full = Command::new(BINARY)
        .args(["-b", "srv/web01", "restore", "-"])
        .current_dir(world.path(""))
        .stdout(File::options().write(true).open("/dev/full").unwrap())
        .output()
        .unwrap();
    assert_eq!(full.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&full.stderr).contains("the target is full, not the store"), "{full:?}");
}

#[test]
fn nobody_gets_an_image_through_a_closed_standard_output() {
    let (world, [.., last]) = world();
    let shell = |words: &str| {
        let script = format!("{BINARY} -b srv/web01 {words}");
        Run::of(Command::new("sh").args(["-c", &script]).current_dir(world.path("")))
    };
    shell("restore - >&-").expect(2).says("standard output is closed");
    shell("restore - </dev/null >&0").expect(1).says("cannot write to standard output");
    shell("restore - >/dev/null").expect(0);
    shell("restore - >out").expect(0);
    assert!(fs::read(world.path("out")).unwrap() == expected(&world, &last).0);
}

#[test]
fn a_stream_is_reported_as_a_file_is() {
    let mut world = World::new(BINARY);
    world.backup(&Arc::new(Image::zeros(4 * CHUNK).noise(1, 1)), "daily");
    let (file, stream) = (world.ok(&["restore", "out"]), world.ok(&["restore", "-"]));
    assert!(file.stderr.contains("16.0 MiB, of which 192.0 KiB are data"), "{file}");
    assert_eq!(stream.stderr, file.stderr);
    assert_eq!(stream.stdout.len(), 4 * CHUNK);
}

#[test]
fn a_name_of_an_rbd_image_is_no_file() {
    let (world, _) = world();
    let before = names(&world.path(""));
    for name in ["rbd:pool/x", "rbd:x"] {
        let run = world.run(&["restore", name]).expect(2).says("names an RBD image");
        let image = name.strip_prefix("rbd:").unwrap();
        run.says(&format!("`backy restore --to {name}`")).says(&format!("| rbd import - {image}`"));
        assert_eq!(names(&world.path("")), before);
    }
    world.ok(&["restore", "./rbd:x"]);
}

#[test]
fn a_reader_that_may_write_no_file_reads() {
    let (world, [.., last]) = world();
    let shell = |words: &str| {
        let script = format!("ulimit -f 0; {BINARY} -b srv/web01 {words} | cat; exit ${{PIPESTATUS[0]}}");
        Run::of(Command::new("bash").args(["-c", &script]).current_dir(world.path("")))
    };
    // As a first command would meet it.
    for file in ["srv/index.sqlite", "srv/writers/.lock", "srv/web01/.manifests", "srv/.sweep"] {
        drop(fs::remove_file(world.path(file)));
    }
    assert!(shell("restore -").expect(0).stdout == expected(&world, &last).0);
    for words in ["status", "verify -r all", "find --uuid -r last", "purge --dry-run"] {
        shell(words).expect(0);
    }
}

#[test]
fn one_flipped_byte_is_one_line_for_each_revision() {
    let (world, _) = world();
    // In the head of a chunk, so that nothing of it can be read.
    for chunk in world.chunks() {
        let mut bytes = fs::read(&chunk).unwrap();
        bytes[100] ^= 1;
        fs::write(chunk, bytes).unwrap();
    }
    let run = world.run(&["verify", "-r", "all"]).expect(1);
    let lines: Vec<&str> = run.stderr.lines().filter(|line| line.starts_with("damaged: ")).collect();
    assert!(lines.len() >= 3 && lines.len() <= 3 * 3, "{run}");
    let run = world.run(&["restore", "--salvage", "out"]).expect(1);
    let lines = run.stderr.lines().filter(|line| line.starts_with("damaged: ")).count();
    assert!((1..=3).contains(&lines), "{run}");
}

/// A loop device, detached at the end.
struct LoopDevice(String);

impl LoopDevice {
    fn of(file: &Path) -> Self {
        Self(tool("losetup", &["--find", "--show", &file.to_string_lossy()]))
    }

    fn of_range(file: &Path, offset: u64, length: u64) -> Self {
        let (offset, length) = (offset.to_string(), length.to_string());
        let words =
            ["--find", "--show", "--offset", &offset, "--sizelimit", &length, &file.to_string_lossy()];
        Self(tool("losetup", &words))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        drop(Command::new("losetup").args(["-d", &self.0]).output());
    }
}

fn noise(path: &Path, length: u64) {
    let mut source = std::io::Read::take(File::open("/dev/urandom").expect("noise"), length);
    std::io::copy(&mut source, &mut File::create(path).expect("make a file")).expect("write noise");
}

#[test]
fn a_device_is_written_through_a_link_and_not_read() {
    if !is_root() {
        return;
    }
    let mut world = World::new(BINARY);
    // A large hole, a small one among data, an end that fills no block.
    let image = Arc::new(Image::zeros(16 * CHUNK - 512).noise(0, 1).words(9, 2));
    let id = world.backup(&image, "daily");
    let backing = world.path("backing");
    noise(&backing, 16 * CHUNK as u64 + 4096);
    let device = LoopDevice::of(&backing);
    let link = world.path("vg0-web01");
    symlink(&device.0, &link).unwrap();
    let target = link.to_string_lossy().into_owned();
    world
        .run(&["restore", &target])
        .expect(1)
        .says("the device holds data")
        .says("hint: `--force` overwrites it");
    let log = world.path("strace");
    let trace = |words: &[&str]| {
        let calls = "trace=read,pread64,readv,preadv,preadv2,fallocate";
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-e", calls, "-P", &device.0, "-o"]).arg(&log);
        command.arg(BINARY).args(["-b", "srv/web01"]).args(words).current_dir(world.path(""));
        Run::of(&mut command).expect(0);
        let text = fs::read_to_string(&log).unwrap();
        (text.matches("read").count(), text.matches("fallocate(").count())
    };
    let (reads, zeroed) = trace(&["restore", "--force", "-r", &id, &target]);
    assert_eq!(reads, 0, "what is overwritten is not read");
    assert!((1..20).contains(&zeroed), "{zeroed} requests");
    assert!(symlink_is(&link, &device.0), "the link stays");
    let same = || {
        let written = fs::read(&device.0).unwrap();
        assert!(written[..image.0.len()] == image.0[..], "the device has other bytes");
    };
    same();
    // A device that cannot zero by itself.
    noise(&world.path("random"), 16 * CHUNK as u64);
    tool(
        "dd",
        &[
            &format!("if={}", world.path("random").display()),
            &format!("of={}", device.0),
            "bs=1M",
            "status=none",
        ],
    );
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=fallocate:error=EOPNOTSUPP", BINARY]);
    command.args(["-b", "srv/web01", "restore", "--force", &target]).current_dir(world.path(""));
    Run::of(&mut command).expect(0);
    same();
    // Somebody has it open: a virtual machine, for instance.
    let open = File::open(&device.0).unwrap();
    let mut child = Command::new("sleep").arg("100").stdin(open).spawn().unwrap();
    let (run, forced) = (world.run(&["restore", &target]), world.run(&["restore", "--force", &target]));
    backy_testkit::end(&mut child);
    run.expect(1).says("it is in use: sleep");
    forced.expect(0).says("warning: ").says("it is in use: sleep");
    // And the file below it is in use by the loop device.
    world.run(&["restore", "backing"]).expect(1).says(&format!("it is in use: {}", device.0));
}

fn symlink_is(link: &Path, to: &str) -> bool {
    fs::read_link(link).is_ok_and(|found| found == Path::new(to))
}

#[test]
fn a_mounted_device_is_refused_whatever_is_asked_for() {
    if !is_root() {
        return;
    }
    let (world, _) = world();
    let backing = world.path("backing");
    File::create(&backing).unwrap().set_len(32 << 20).unwrap();
    tool("mkfs.ext4", &["-q", "-F", &backing.to_string_lossy()]);
    let device = LoopDevice::of(&backing);
    tool("blockdev", &["--setro", &device.0]);
    world.run(&["restore", "--force", &device.0]).expect(1).says("the device is read-only").says("--setrw");
    tool("blockdev", &["--setrw", &device.0]);
    let point = world.path("mnt");
    fs::create_dir(&point).unwrap();
    let mounted = Mount(point.clone());
    tool("mount", &[&device.0, &point.to_string_lossy()]);
    let run = world.run(&["restore", "--force", &device.0]);
    // A full target, on a real file system.
    fs::write(point.join("old"), b"old").unwrap();
    noise(&point.join("filler"), 20 << 20);
    let full = world.run(&["restore", &point.join("new").to_string_lossy()]);
    let left = names(&point);
    drop(mounted);
    run.expect(1).says("the device is in use: mounted at ").says("mnt").says("hint: unmount it");
    full.expect(1).says("bytes of data, and").says("hint: make room there");
    assert_eq!(left, ["filler", "lost+found", "old"]);
}

#[test]
fn what_lies_below_a_mount_is_refused_whatever_it_is_called() {
    if !is_root() {
        return;
    }
    let (world, _) = world();
    let backing = world.path("backing");
    File::create(&backing).unwrap().set_len(64 << 20).unwrap();
    let name = backing.to_string_lossy().into_owned();
    tool("mkfs.ext4", &["-q", "-F", &name, "16M"]);
    let mounted = LoopDevice::of_range(&backing, 0, 16 << 20);
    let point = world.path("mnt");
    fs::create_dir(&point).unwrap();
    let mount = Mount(point.clone());
    tool("mount", &[&mounted.0, &point.to_string_lossy()]);
    fs::write(point.join("precious"), b"data").unwrap();
    cannot_copy(&world);
    // The same bytes, by another name of the file; others of the same file; a loop device of a loop device.
    fs::hard_link(&backing, world.path("alias")).unwrap();
    let beside = LoopDevice::of(&world.path("alias"));
    let behind = LoopDevice::of_range(&backing, 32 << 20, 32 << 20);
    let above = LoopDevice::of(Path::new(&beside.0));
    for target in [&name, &world.path("alias").to_string_lossy().into_owned(), &beside.0, &above.0] {
        for words in [&["restore", target][..], &["restore", "--force", target]] {
            let run = world.run(words).expect(1).says("what it holds is in use: mounted at ");
            run.says(&mounted.0).says("hint: unmount it");
        }
    }
    let run = world.run(&["restore", "--force", &behind.0]).expect(1);
    assert!(!run.stderr.contains("in use"), "another part of the file can be written: {run}");
    assert_eq!(fs::read(point.join("precious")).unwrap(), b"data");
    drop(mount);
    let run = world.run(&["restore", "--force", &beside.0]).expect(1);
    assert!(!run.stderr.contains("what it holds"), "nothing is mounted any more: {run}");
}
