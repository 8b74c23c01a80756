//! Power loss at every point of a run, by playing its record back to what a disk could hold then.
//!
//! The program writes down every change of the file system that it makes (`BACKY_RECORD`). `disk.rs` plays the
//! first n of them over the state before the run and then loses what was not synced, in several ways. On each
//! outcome the real program must find: the old revisions exact, the new one exact if the run had ended (its
//! success had been reported) and exact or absent otherwise, the next backup succeeding without manual steps, a
//! purge without force, and a clean verify. What an upgrade must leave is in `upgrade.rs`.

#![expect(clippy::print_stdout, reason = "tests tell what they did and what they skip")]
#![expect(clippy::disallowed_methods, reason = "tests change files beside the program")]

mod disk;
mod upgrade;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use backy_testkit::is_all_of;
use disk::{Change, Disk, Loss};

const LOSSES: [Loss; 5] =
    [Loss::Unsynced, Loss::ContentOnly, Loss::Nothing, Loss::Random(1), Loss::Random(2)];

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        fs::write(world.image(), image(1, 0)).expect("the image is written");
        let filename = format!("filename={}", world.image().display());
        ok(&world.backy(&world.store(), &["init", "file", &filename]));
        world
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("srv")
    }

    fn backy(&self, store: &Path, arguments: &[&str]) -> Output {
        command(store, arguments).output().expect("the program starts")
    }

    /// Runs a command and returns the changes that it made.
    fn recorded(&self, arguments: &[&str]) -> Vec<Change> {
        let record = self.dir.path().join("record");
        drop(fs::remove_file(&record));
        let output =
            command(&self.store(), arguments).env("BACKY_RECORD", &record).output().expect("it starts");
        ok(&output);
        disk::read_record(&record, &self.store())
    }
}

fn command(store: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backy"));
    command.arg("-b").arg(store.join("job")).args(arguments);
    command
}

fn ok(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}: {}{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Three chunks and a tail: words, a hole, and a chunk that differs with `edit`.
fn image(seed: u8, edit: u8) -> Vec<u8> {
    // Long enough to be no period of a frame, and copied as a whole: a loop over all bytes is slow in a test build.
    const PATTERN: usize = 9973;
    let pattern: Vec<u8> =
        (0..PATTERN as u64).map(|at| seed ^ (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61) as u8).collect();
    let mut data = pattern.repeat((3 << 22) / PATTERN + 2);
    data.truncate((3 << 22) + 999);
    data[1 << 22..2 << 22].fill(0);
    data[5] ^= edit;
    data[(3 << 22) + 7] ^= edit;
    data
}

/// Whether a revision restores to exactly `content`.
fn restores_to(store: &Path, id: &str, content: &[u8]) -> bool {
    let mut restore = command(store, &["restore", "-r", id, "-"]);
    let mut restore = restore.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    let is_right = is_all_of(&mut restore.stdout.take().expect("it is piped"), content);
    backy_testkit::ended(&mut restore).success() && is_right
}

fn listed(store: &Path) -> Vec<String> {
    let output = command(store, &["find", "--uuid", "-r", "all"]).output().expect("it starts");
    ok(&output).lines().map(str::to_owned).collect()
}

/// What must hold on a disk after a power loss.
struct Expected<'e> {
    /// Revisions that were there before and their content.
    kept: &'e [(String, Vec<u8>)],
    /// Content of any other revision that is listed.
    made: &'e [u8],
    /// Whether the run's success had been reported.
    acknowledged: bool,
    /// Whether the run could take the kept ones away.
    forgets: bool,
}

fn check(store: &Path, expected: &Expected<'_>, case: &str) {
    let present = listed(store);
    for (id, content) in expected.kept {
        if !expected.forgets {
            assert!(present.contains(id), "{case}: revision {id} is gone");
        }
        if present.contains(id) {
            assert!(restores_to(store, id, content), "{case}: revision {id} does not restore");
        }
    }
    let made: Vec<&String> =
        present.iter().filter(|id| !expected.kept.iter().any(|(kept, _)| kept == *id)).collect();
    assert!(
        !expected.acknowledged || expected.forgets || made.len() == 1,
        "{case}: what was reported is not there"
    );
    for id in made {
        assert!(restores_to(store, id, expected.made), "{case}: revision {id} is listed but wrong");
    }
    let next = command(store, &["backup", "manual:next"]).output().expect("it starts");
    let id = ok(&next).trim().to_owned();
    assert!(restores_to(store, &id, expected.made), "{case}: the next backup is wrong");
    ok(&command(store, &["verify", "-r", "all"]).output().expect("it starts"));
    ok(&command(store, &["purge", "--now"]).output().expect("it starts"));
    assert!(restores_to(store, &id, expected.made), "{case}: the purge took too much");
    let left = fs::read_dir(store.join("tmp")).expect("tmp is there").count();
    assert_eq!(left, 0, "{case}: temporary files are left");
}

/// Plays `changes` back to every point and loses power there in every way.
fn lose_power_everywhere(
    world: &World,
    before: &Disk,
    changes: &[Change],
    expected: &Expected<'_>,
    what: &str,
) {
    let cases: Vec<(usize, Loss)> =
        (0..=changes.len()).flat_map(|count| LOSSES.into_iter().map(move |loss| (count, loss))).collect();
    play(world.dir.path(), before, changes, &cases, what, &|store, acknowledged, case| {
        check(store, &Expected { acknowledged, ..*expected }, case);
    });
}

/// Plays the first changes back, as many as each case says, and loses power then in its way, on two threads. `check` gets
/// the store as it is then, and whether the run had ended.
fn play(
    dir: &Path,
    before: &Disk,
    changes: &[Change],
    cases: &[(usize, Loss)],
    what: &str,
    check: &(dyn Fn(&Path, bool, &str) + Sync),
) {
    assert!(changes.len() > 3, "{what} recorded only {} changes", changes.len());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let next = &next;
            scope.spawn(move || {
                let store = dir.join(format!("trial{thread}"));
                while let Some(&(count, loss)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let case =
                        format!("{what}, power lost after {count} of {} changes, {loss:?}", changes.len());
                    let mut disk = before.clone();
                    changes[..count].iter().for_each(|change| disk.apply(change));
                    disk.after_power_loss(loss, count as u64).write_to(&store);
                    check(&store, count == changes.len(), &case);
                }
            });
        }
    });
    println!("{what}: {} power losses survived", cases.len());
}

/// A store with one revision of the first image, and its id.
fn with_one_revision() -> (World, String) {
    let world = World::new();
    let first = ok(&world.backy(&world.store(), &["backup", "manual:first"])).trim().to_owned();
    (world, first)
}

fn backup_survives(syncfs: &str) {
    let (world, first) = with_one_revision();
    let before = Disk::of(&world.store());
    fs::write(world.image(), image(1, 0x40)).expect("the image changes");
    let record = world.dir.path().join("record");
    let mut run = command(&world.store(), &["backup", "manual:second"]);
    ok(&run.env("BACKY_RECORD", &record).env("BACKY_SYNCFS", syncfs).output().expect("it starts"));
    let changes = disk::read_record(&record, &world.store());
    let kept = [(first, image(1, 0))];
    let made = image(1, 0x40);
    let expected = Expected { kept: &kept, made: &made, acknowledged: false, forgets: false };
    lose_power_everywhere(&world, &before, &changes, &expected, "backup");
}

#[test]
fn a_backup_survives_power_loss_at_every_point() {
    backup_survives("yes");
}

#[test]
fn a_backup_survives_power_loss_where_every_file_is_synced_by_itself() {
    backup_survives("no");
}

#[test]
fn a_purge_survives_power_loss_at_every_point() {
    let (world, first) = with_one_revision();
    fs::write(world.image(), image(1, 0x40)).expect("the image changes");
    let second = ok(&world.backy(&world.store(), &["backup", "manual:second"])).trim().to_owned();
    ok(&world.backy(&world.store(), &["forget", "-r", &first]));
    let before = Disk::of(&world.store());
    let changes = world.recorded(&["purge", "--now"]);
    let (kept, made) = ([(second, image(1, 0x40))], image(1, 0x40));
    let expected = Expected { kept: &kept, made: &made, acknowledged: false, forgets: false };
    // What a purge reports is that something is gone; nothing new has to be there.
    let cases: Vec<_> = changes;
    lose_power_everywhere(&world, &before, &cases, &Expected { forgets: true, ..expected }, "purge");
}

#[test]
fn changes_of_manifests_survive_power_loss_at_every_point() {
    for (what, arguments) in [
        ("tags", &["tags", "set", "last", "manual:other"][..]),
        ("forget", &["forget", "-r", "last"]),
        ("verify", &["verify", "-r", "all"]),
    ] {
        let (world, first) = with_one_revision();
        let before = Disk::of(&world.store());
        let changes = world.recorded(arguments);
        let (kept, made) = ([(first, image(1, 0))], image(1, 0));
        let expected = Expected { kept: &kept, made: &made, acknowledged: false, forgets: what == "forget" };
        if what == "forget" {
            lose_power_everywhere(&world, &before, &pad(changes), &expected, what);
        } else {
            lose_power_everywhere(&world, &before, &changes, &Expected { forgets: true, ..expected }, what);
        }
    }
}

/// A forget is so few changes that the check for an empty record needs help.
fn pad(changes: Vec<Change>) -> Vec<Change> {
    let nothing = std::iter::repeat_with(|| Change::Nothing).take(4);
    changes.into_iter().chain(nothing).collect()
}
