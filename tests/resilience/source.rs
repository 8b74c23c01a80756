//! The image changes, shrinks, grows or goes away while it is read: the revision is of one state, or there is none.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use backy_testkit::{CHUNK, Image, JOB, Run, Stopped, Tree, World, every};

use crate::scene::{committed, recovers, scene};

/// Does `meddle` to the image while a backup stands still at every change it makes, once for each. What the
/// backup says afterwards must be one of `causes`.
fn meddle_everywhere(meddle: impl Fn(&Path) + Sync, causes: &[&str]) {
    let scene = scene();
    let seen: Vec<std::sync::atomic::AtomicBool> = causes.iter().map(|_| false.into()).collect();
    every(|number| {
        let mut world = scene.world.copy();
        let mut command = world.command(&["backup", "daily", "--threads", "1"]);
        let Ok(stopped) = Stopped::start(command.env("BACKY_FAULT", format!("stop:{number}"))) else {
            return false;
        };
        meddle(&world.path("image.img"));
        let run = stopped.finish();
        let when = format!("meddled with at change {number}: {run}");
        if run.code() == 0 {
            // Before the source was opened, or after it was looked at for the last time.
            let after = fs::read(world.path("image.img")).ok().map(Image);
            let (_, restored) = world.restore(&run.line());
            let restored = restored.unwrap_or_else(|| panic!("{when}"));
            assert!(restored == *scene.next || Some(&restored) == after.as_ref(), "a mixture: {when}");
            world.expected.insert(run.line(), Arc::new(restored));
        } else {
            assert_eq!(run.code(), 1, "{when}");
            let cause = causes.iter().position(|cause| run.stderr.contains(cause));
            seen[cause.unwrap_or_else(|| panic!("none of {causes:?}: {when}"))]
                .store(true, std::sync::atomic::Ordering::SeqCst);
            assert!(run.stderr.contains("image.img"), "the source is not named: {when}");
            assert_eq!(world.ids().len(), 2, "{when}");
        }
        committed(&mut world, &scene.next, &when);
        // The recovery is the same everywhere; a few are enough.
        if number % 8 == 0 {
            recovers(&mut world, &scene.next, &when);
        }
        true
    });
    assert!(seen.iter().any(|seen| seen.load(std::sync::atomic::Ordering::SeqCst)), "it was never noticed");
}

fn open(path: &Path) -> fs::File {
    OpenOptions::new().write(true).open(path).unwrap()
}

#[test]
fn a_source_that_shrinks_makes_no_revision() {
    let shrink = |path: &Path| open(path).set_len(CHUNK as u64 + 5).unwrap();
    meddle_everywhere(shrink, &["ended at byte", "grew or shrank", "does not agree"]);
}

#[test]
fn a_source_that_grows_makes_no_revision() {
    meddle_everywhere(|path| open(path).set_len(9 * CHUNK as u64).unwrap(), &["grew or shrank"]);
}

#[test]
fn a_source_that_is_written_to_makes_no_revision() {
    let write = |path: &Path| {
        let file = open(path);
        file.write_all_at(&[1; 5000], 100).unwrap();
        file.write_all_at(&[2; 5000], 5 * CHUNK as u64 + 100).unwrap();
    };
    meddle_everywhere(write, &["modified while", "does not agree"]);
}

#[test]
fn a_source_that_vanishes_or_is_replaced_makes_no_revision() {
    meddle_everywhere(|path| fs::remove_file(path).unwrap(), &["does not exist"]);
    let replace = |path: &Path| {
        let other = path.with_extension("new");
        Image::zeros(2 * CHUNK).words(1, 9).write(&other);
        fs::rename(&other, path).unwrap();
    };
    meddle_everywhere(replace, &["replaced"]);
}

#[test]
fn what_is_no_image_is_refused_by_its_kind_and_leaves_no_trace() {
    let scene = scene();
    let world = scene.world.copy();
    let image = world.path("image.img");
    let before = Tree::of(&world.store());
    for kind in ["directory", "pipe", "socket", "does not exist"] {
        drop(fs::remove_file(&image).or_else(|_| fs::remove_dir(&image)));
        match kind {
            "directory" => fs::create_dir(&image).unwrap(),
            "pipe" => nix::unistd::mkfifo(&image, nix::sys::stat::Mode::S_IRWXU).unwrap(),
            "socket" => drop(std::os::unix::net::UnixListener::bind(&image).unwrap()),
            _ => {}
        }
        world.run(&["backup", "daily"]).expect(1).says(kind).says("image.img");
        before.must_equal(&Tree::of(&world.store()), kind);
    }
    world.configure(
        JOB,
        "source: {type: file, filename: /dev/null}\nschedule: {daily: {interval: 1d, keep: 1}}\n",
    );
    world.run(&["backup", "daily"]).expect(1).says("character device").says("/dev/null");
}

#[test]
fn every_size_of_an_image_comes_back_as_it_was() {
    let mut world = World::new(crate::scene::BINARY);
    for length in
        [0, 1, 511, 512, 65_535, 65_536, 65_537, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 4097]
    {
        let image = Image::zeros(length);
        world.backup(&Arc::new(image.clone()), "daily");
        if length > 0 {
            world.backup(&Arc::new(image.noise((length - 1) / CHUNK, length as u64)), "daily");
        }
    }
    world.must_restore_all("sizes");
    assert!(world.expected.len() > 20);
    for (id, image) in &world.expected {
        let run: Run = world.ok(&["restore", "-r", id, "-"]);
        assert!(run.stdout == image.0, "to standard output: {id}");
        run.says("restored");
    }
}
