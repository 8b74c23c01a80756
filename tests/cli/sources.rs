//! A source that is not the disk that it was, dates that are wrong, and an index that rotted: what the commands say, what
//! they choose, and what they keep.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use backy_sched::JobConfig;
use backy_sched::backup::{self, BackupRequest};
use backy_sched::source::rbd::Environment;
use backy_sched::source::{FileConfig, SourceConfig};
use backy_store::{JobName, Repository, Silent, Tag, Timestamp};
use backy_testkit::{CHUNK, Image, JOB, Run, World};

use crate::{BINARY, world};

std::thread_local! {
    static AHEAD_SECS: Cell<i64> = const { Cell::new(0) };
}

/// Backs up with a clock that is wrong by so many seconds.
fn backup_with_clock(world: &mut World, image: &Arc<Image>, ahead_secs: i64) -> String {
    AHEAD_SECS.set(ahead_secs);
    world.write_image(image);
    let job = Repository::open(&world.store()).unwrap().job(&JobName::parse(JOB).unwrap()).unwrap();
    let file = FileConfig { filename: world.path("image.img"), ..FileConfig::default() };
    let config =
        JobConfig { source: SourceConfig::File(file), ..JobConfig::load(&job.config_path()).unwrap() };
    let request = BackupRequest {
        tags: Tag::parse_list("daily").unwrap(),
        force_tags: false,
        accept_change: false,
        threads: 1,
        clock: || Timestamp::now().plus_secs(AHEAD_SECS.get()),
        environment: Environment::default(),
    };
    let id = backup::run(&job, &config, &request, &Silent).unwrap().revision.id.to_string();
    world.expected.insert(id.clone(), Arc::clone(image));
    id
}

fn image(seed: u64) -> Arc<Image> {
    Arc::new(Image::zeros(2 * CHUNK).words(0, seed).noise(1, seed))
}

/// An image with a GPT of this number.
fn with_table(number: u8) -> Arc<Image> {
    let mut bytes = image(1).0.clone();
    bytes[512..520].copy_from_slice(b"EFI PART");
    bytes[568..584].fill(number);
    Arc::new(Image(bytes))
}

fn trust(world: &World, id: &str) -> (String, usize) {
    let status = world.ok(&["status", "--json"]).json();
    let one = status["revisions"].as_array().unwrap().iter().find(|one| one["id"] == id).unwrap().clone();
    (one["trust"].as_str().unwrap().to_owned(), one["suspicious"].as_array().unwrap().len())
}

const DAY: i64 = 86_400;

/// As `says`, for a run that is looked at again.
trait Has {
    fn has(&self, part: &str) -> &Self;
}

impl Has for Run {
    #[track_caller]
    fn has(&self, part: &str) -> &Self {
        assert!(self.stderr.contains(part), "standard error lacks {part:?}\n{self}");
        self
    }
}

#[test]
fn a_revision_dated_in_the_future_is_not_the_newest_for_anybody() {
    let mut world = World::new(BINARY);
    let ahead = backup_with_clock(&mut world, &image(1), 30 * DAY);
    let only = world.ok(&["restore", "out"]);
    only.has("dated in the future");
    let right = world.backup(&image(2), "daily");
    for spec in ["last", "latest", "0", "daily", "last(tag:daily)", "tag:daily&last"] {
        assert_eq!(world.ok(&["find", "--uuid", "-r", spec]).line(), right, "{spec}");
    }
    assert_eq!(world.ids(), [ahead.clone(), right.clone()], "listed in the order in which they were made");
    for words in [&["restore", "--force", "out"][..], &["restore", "--force", "-r", "daily", "out"]] {
        let run = world.ok(words);
        assert!(fs::read(world.path("out")).unwrap() == image(2).0, "{run}");
        run.has(&format!("revision {ahead} is dated ")).has("it was passed over");
    }
    world.ok(&["status"]).has(&format!("revision {ahead} is dated in the future"));
    let list = world.on_store(&["status", "--json"]).json();
    let newest = list["jobs"][0]["newest"].as_str().unwrap();
    assert!(newest < Timestamp::now().plus_secs(60).to_rfc3339().as_str(), "{newest}");
    mounted(&world, |mnt| {
        for link in ["last", "daily"] {
            assert_eq!(fs::read_link(mnt.join(JOB).join(link)).unwrap(), Path::new(&right), "{link}");
        }
    });
    let log = fs::read_to_string(world.store().join("backy.log")).unwrap_or_default();
    assert!(log.is_empty() || log.contains("dated in the future"), "{log}");
    // A clock that is set back a little, or a lot, is the same.
    let later = backup_with_clock(&mut world, &image(3), -100);
    assert_eq!(world.ok(&["find", "--uuid"]).line(), later);
    let much_later = backup_with_clock(&mut world, &image(4), -9000 * DAY);
    assert_eq!(world.ok(&["find", "--uuid"]).line(), much_later);
    let last = world.backup(&image(5), "daily");
    assert_eq!(world.ok(&["find", "--uuid"]).line(), last);
    world.must_restore_all("with wrong dates");
}

#[test]
fn a_revision_dated_in_the_future_with_none_made_since_is_passed_over() {
    let mut world = World::new(BINARY);
    let good = world.backup(&image(1), "daily");
    let ahead = backup_with_clock(&mut world, &image(2), 30 * DAY);
    let run = world.ok(&["restore", "out"]);
    run.has(&format!("`-r {ahead}` restores it"));
    assert!(fs::read(world.path("out")).unwrap() == image(1).0);
    assert_eq!(world.ok(&["find", "--uuid"]).line(), good);
    assert_eq!(world.ok(&["find", "--uuid", "-r", "first"]).line(), good, "nor is it the oldest");
    world.must_restore_all("with a date in the future");
}

/// Shows the store as files, where there is FUSE.
fn mounted(world: &World, look: impl FnOnce(&Path)) {
    struct Guard<'w>(&'w World);
    impl Drop for Guard<'_> {
        fn drop(&mut self) {
            drop(Run::of(&mut self.0.bare(&["unmount", "--lazy", "mnt"])));
        }
    }
    if !Path::new("/dev/fuse").exists() {
        return println!("skipped: there is no /dev/fuse");
    }
    let mnt = world.path("mnt");
    fs::create_dir(&mnt).unwrap();
    let _guard = Guard(world);
    world.on_store(&["mount", "--background", "mnt"]).expect(0);
    look(&mnt);
}

#[test]
fn a_source_that_changed_is_told_until_it_is_accepted_or_back() {
    let mut world = World::new(BINARY);
    world.backup(&with_table(1), "daily");
    for (what, other, said) in [
        ("empty", Arc::new(Image(Vec::new())), "it is empty and had 8388608 bytes"),
        (
            "cut off",
            Arc::new(Image(with_table(1).0[..CHUNK].to_vec())),
            "it shrank from 8388608 to 4194304 bytes",
        ),
        ("wiped", image(1), "it has lost its partition table (gpt) 01010101-0101-0101-0101-010101010101"),
        ("all holes", Arc::new(Image::zeros(2 * CHUNK)), "its data fell from "),
        ("another disk", with_table(2), "it has another partition table (gpt) 02020202-"),
    ] {
        world.write_image(&other);
        let run = world.ok(&["backup", "daily"]);
        run.has(&format!("warning: the source is not as it was: {said}")).has("`backy accept`");
        world.expected.insert(run.line(), other);
        assert_eq!(trust(&world, &run.line()).0, "trusted", "{what}: the revision is exact");
        assert!(trust(&world, &run.line()).1 > 0, "{what}");
        world.ok(&["status"]).has(&format!("the source is not as it was: {said}"));
        assert!(world.ok(&["status"]).text().contains("trusted, suspicious"), "{what}");
        world.ok(&["restore", "--force", "out"]).has("is suspicious").has("the last one before that is ");
        let good = world.backup(&with_table(1), "daily");
        assert_eq!(trust(&world, &good), ("trusted".to_owned(), 0), "after {what}");
        assert!(!world.ok(&["status"]).stderr.contains("the source is not"), "after {what}");
    }
    let list = world.on_store(&["status", "--json"]).json();
    assert_eq!(list["jobs"][0]["suspicious"], 5);
    let said = world.ok(&["accept"]);
    assert_eq!(said.text(), "");
    said.has("the newest revision is not suspicious; `-r` accepts older ones");
    // Another disk, twice, then accepted.
    let first = world.backup(&with_table(3), "daily");
    let second = world.backup(&with_table(3), "daily");
    let accepted = world.ok(&["accept"]);
    assert_eq!(accepted.text().lines().collect::<Vec<_>>(), [&*first, &*second]);
    let third = world.backup(&with_table(3), "daily");
    assert_eq!((trust(&world, &second).1, trust(&world, &third).1), (0, 0));
    world.ok(&["accept"]).has("`-r` accepts older ones");
    world.write_image(&with_table(4));
    let run = world.ok(&["backup", "--accept-change", "daily"]);
    run.has("the source is not as it was");
    assert_eq!(trust(&world, &run.line()).1, 0);
    assert_eq!(world.ok(&["accept", "-r", "all"]).text().lines().count(), 5);
    world.ok(&["accept"]).has("no revision is suspicious");
    world.must_restore_all("with disks that changed");
}

/// A loop device that is detached at the end, whatever happens.
struct Loop(String);

impl Loop {
    /// `None` where there are none to be had.
    fn of(file: &Path) -> Option<Self> {
        let done = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        done.status.success().then(|| Self(String::from_utf8_lossy(&done.stdout).trim().to_owned()))
    }

    fn detach(&self) {
        drop(Command::new("losetup").args(["-d", &self.0]).output());
    }

    fn backing_file(&self) -> String {
        let name = self.0.trim_start_matches("/dev/");
        fs::read_to_string(format!("/sys/block/{name}/loop/backing_file"))
            .unwrap_or_default()
            .trim()
            .to_owned()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.detach();
    }
}

#[test]
fn a_device_without_medium_is_an_error_and_another_disk_on_it_is_told() {
    let world = World::new(BINARY);
    // Disks that say nothing of themselves: only the device tells them apart.
    for (name, seed) in [("one.img", 1), ("two.img", 2)] {
        Image::zeros(2 * CHUNK).noise(1, seed).write(&world.path(name));
    }
    let Some(device) = Loop::of(&world.path("one.img")) else {
        return println!("skipped: no loop device can be made");
    };
    let config = format!(
        "source: {{type: file, filename: {}}}\nschedule: {{daily: {{interval: 1d, keep: 3}}}}\n",
        device.0
    );
    world.configure(JOB, &config);
    let good = world.ok(&["backup", "daily"]).line();
    device.detach();
    let run = world.run(&["backup", "daily"]);
    // Somebody else's test may have taken the device in between.
    if device.backing_file().is_empty() && run.code() != 0 {
        assert_eq!(run.code(), 1, "{run}");
        run.has(&format!("the block device {} has no medium", device.0)).has("hint: attach its disk");
        assert_eq!(world.ids(), [&*good]);
    }
    let attached = Command::new("losetup").arg(&device.0).arg(world.path("two.img")).status().unwrap();
    if attached.success() {
        let run = world.ok(&["backup", "daily"]);
        run.has("it is another device: its backing-file is ");
        assert!(trust(&world, &run.line()).1 > 0);
    }
}

#[test]
fn rot_in_the_index_changes_no_answer() {
    let (world, [first, ..]) = world();
    let listed = || world.ok(&["status", "--json"]).json();
    let before = listed();
    let index = world.store().join("index.sqlite");
    let size = format!("\"image_size\":{}", 2 * CHUNK + 100);
    for (from, to) in [
        ("\"daily\"", "\"eaily\"".to_owned()),
        ("\"trusted\"", "\"trusteb\"".to_owned()),
        ("\"duration\"", "\"duratiom\"".to_owned()),
        (&*size, format!("\"image_size\":{}", 2 * CHUNK + 109)),
        (&*first, first.replace(&first[5..6], "_")),
    ] {
        let bytes = fs::read(&index).unwrap();
        let at: Vec<usize> =
            (0..bytes.len()).filter(|&at| bytes[at..].starts_with(from.as_bytes())).collect();
        assert!(!at.is_empty(), "{from} is not in the index");
        let file = fs::OpenOptions::new().write(true).open(&index).unwrap();
        for at in at {
            file.write_all_at(&to.as_bytes()[..from.len()], at as u64).unwrap();
        }
        drop(file);
        let plan = world.ok(&["expire", "--dry-run", "--force", "--json"]).json();
        assert!(
            plan["decisions"].as_array().unwrap().iter().all(|one| one["removed"] == false),
            "{from}: {plan}"
        );
        assert_eq!(listed(), before, "{from}");
        world.must_restore_all(from);
    }
}
