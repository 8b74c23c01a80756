//! Writing to images of a real mount: what was written is read, also by the next mount; the store stays as it is.
//!
//! Where `/dev/fuse` does not exist the tests say that they were skipped; where it exists they must pass.

#![allow(clippy::unwrap_used, missing_docs)]

mod place;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use backy_fuse::{Error, Mounted, Options, OverlayOptions};
use backy_store::Revision;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::Whence::{SeekData, SeekHole};
use nix::unistd::lseek;
use place::{Place, can_mount, names, noise};

const MIB: usize = 1 << 20;

fn overlay(place: &Place) -> PathBuf {
    place.dir.path().join("overlay")
}

fn try_mount(place: &Place, dir: &Path, max_bytes: Option<u64>) -> backy_fuse::Result<Mounted> {
    let overlay = Some(OverlayOptions { dir: dir.to_owned(), max_bytes });
    Mounted::new(&place.store(), &place.point(), &Options { overlay, ..Options::default() })
}

fn mount(place: &Place, max_bytes: Option<u64>) -> Mounted {
    try_mount(place, &overlay(place), max_bytes).unwrap()
}

fn open(place: &Place, revision: &Revision) -> File {
    OpenOptions::new().read(true).write(true).open(place.image(revision)).unwrap()
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Errno {
    Errno::from_raw(result.unwrap_err().raw_os_error().unwrap())
}

/// All files of the store that hold data.
fn stored(place: &Place) -> Vec<(PathBuf, Vec<u8>)> {
    fn collect(dir: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true if entry.file_name() == "writers" => {}
                true => collect(&entry.path(), found),
                false if entry.file_name().to_string_lossy().starts_with("index") => {}
                false => found.push((entry.path(), std::fs::read(entry.path()).unwrap())),
            }
        }
    }
    let mut found = Vec::new();
    collect(&place.store(), &mut found);
    found.sort();
    found
}

#[test]
fn what_is_written_is_read_also_after_a_remount() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut data = noise(1, 9 * MIB + 777);
    data[4 * MIB..8 * MIB].fill(0);
    let (first, second) = (place.add(1, "daily", &data), place.add(2, "daily", &data));
    let before = stored(&place);
    let mounted = mount(&place, None);
    assert_eq!(std::fs::metadata(place.image(&first)).unwrap().permissions().mode() & 0o777, 0o600);

    let file = open(&place, &first);
    let mut wanted = data.clone();
    for (number, (offset, length)) in
        [(0, 1), (4095, 2), (100_000, 300_000), (5 * MIB + 5, 2 * MIB), (9 * MIB + 776, 1)]
            .into_iter()
            .enumerate()
    {
        let piece = noise(number as u64 + 9, length);
        file.write_all_at(&piece, offset as u64).unwrap();
        wanted[offset..offset + length].copy_from_slice(&piece);
    }
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, hole, MIB as i64 + 1, 2 * MIB as i64).unwrap();
    wanted[MIB + 1..3 * MIB + 1].fill(0);
    file.sync_all().unwrap();
    assert!(std::fs::read(place.image(&first)).unwrap() == wanted);
    assert!(std::fs::read(place.image(&second)).unwrap() == data, "another revision");
    // A partly written block at each end.
    assert_eq!(lseek(&file, MIB as i64 + 4096, SeekData), Ok(3 * MIB as i64));
    assert_eq!(lseek(&file, 0, SeekHole), Ok(MIB as i64 + 4096));
    assert_eq!(lseek(&file, 4 * MIB as i64, SeekData), Ok(5 * MIB as i64));
    assert_eq!(lseek(&file, 5 * MIB as i64, SeekHole), Ok(7 * MIB as i64 + 4096));
    let blocks = file.metadata().unwrap().blocks() * 512;
    assert!(blocks >= 7 * MIB as u64 && blocks <= 10 * MIB as u64, "{blocks}");
    drop(file);
    mounted.unmount().unwrap();

    let mounted = mount(&place, None);
    // The first question, before it is opened: there are tools that do not read a file without blocks.
    let blocks = std::fs::metadata(place.image(&first)).unwrap().blocks() * 512;
    assert!(blocks >= 7 * MIB as u64 && blocks <= 10 * MIB as u64, "{blocks}");
    assert!(std::fs::read(place.image(&first)).unwrap() == wanted);
    mounted.unmount().unwrap();
    assert!(stored(&place) == before, "the store has changed");
    let mounted = place.mount();
    assert!(std::fs::read(place.image(&first)).unwrap() == data);
    assert_eq!(errno(OpenOptions::new().write(true).open(place.image(&first))), Errno::EROFS);
    mounted.unmount().unwrap();

    std::fs::remove_dir_all(overlay(&place)).unwrap();
    let mounted = mount(&place, None);
    assert!(std::fs::read(place.image(&first)).unwrap() == data, "discarded with the directory");
    mounted.unmount().unwrap();
}

#[test]
fn only_the_bytes_of_images_can_change() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let data = noise(1, MIB);
    let revision = place.add(1, "daily", &data);
    let mounted = mount(&place, None);
    let image = place.image(&revision);
    let file = open(&place, &revision);

    assert_eq!(errno(OpenOptions::new().write(true).truncate(true).open(&image)), Errno::EPERM);
    assert_eq!(errno(file.set_len(5)), Errno::EPERM);
    assert_eq!(errno(file.set_len(2 * MIB as u64)), Errno::EPERM);
    file.set_len(MIB as u64).unwrap();
    assert_eq!(errno(file.write_at(b"x", MIB as u64)), Errno::EFBIG);
    assert_eq!(file.write_at(&[7; 100], MIB as u64 - 60).unwrap(), 60);
    assert_eq!(file.metadata().unwrap().len(), MIB as u64);
    assert_eq!(fallocate(&file, FallocateFlags::empty(), 0, 10), Err(Errno::EOPNOTSUPP));
    assert_eq!(fallocate(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE, 0, 2 * MIB as i64), Err(Errno::EFBIG));
    fallocate(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE, 10, 20).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(errno(std::fs::set_permissions(&image, PermissionsExt::from_mode(0o777))), Errno::EPERM);

    let dir = image.parent().unwrap();
    assert_eq!(errno(OpenOptions::new().write(true).open(dir.join("info.json"))), Errno::EPERM);
    assert_eq!(errno(File::create(dir.join("new"))), Errno::EROFS);
    assert_eq!(errno(std::fs::create_dir(dir.join("new"))), Errno::EROFS);
    assert_eq!(errno(std::fs::remove_dir_all(dir)), Errno::EROFS);
    #[expect(clippy::disallowed_methods, reason = "no file of a store")]
    let renamed = std::fs::rename(&image, dir.join("new"));
    assert_eq!(errno(renamed), Errno::EROFS);

    let mut wanted = data;
    wanted[MIB - 60..].fill(7);
    wanted[10..30].fill(0);
    assert!(std::fs::read(&image).unwrap() == wanted);
    drop(file);
    mounted.unmount().unwrap();
}

#[test]
fn the_limit_holds_over_all_images_and_over_mounts() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let revisions = [place.add(1, "", &noise(1, 4 * MIB)), place.add(2, "", &noise(2, 4 * MIB))];
    let mounted = mount(&place, Some(2 * MIB as u64));
    let first = open(&place, &revisions[0]);
    first.write_all_at(&noise(3, MIB), 0).unwrap();
    drop(first);
    mounted.unmount().unwrap();

    let mounted = mount(&place, Some(2 * MIB as u64));
    let [first, second] = revisions.each_ref().map(|revision| open(&place, revision));
    second.write_all_at(&noise(4, MIB), 0).unwrap();
    for file in [&first, &second] {
        assert_eq!(errno(file.write_at(&[9; 4096], 2 * MIB as u64)), Errno::ENOSPC);
        file.write_all_at(&[8; 4096], 0).unwrap();
    }
    fallocate(&second, FallocateFlags::FALLOC_FL_ZERO_RANGE, 0, 8192).unwrap();
    first.write_all_at(&[9; 4096], 2 * MIB as u64).unwrap();
    let mut page = [0; 4096];
    second.read_exact_at(&mut page, 2 * MIB as u64).unwrap();
    assert!(page[..] == noise(2, 4 * MIB)[2 * MIB..][..4096], "a write that failed has changed something");
    drop((first, second));
    mounted.unmount().unwrap();
}

#[test]
fn an_overlay_has_one_mount_and_its_place() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    place.add(1, "daily", b"one");
    let mounted = mount(&place, None);
    let second = place.dir.path().join("second");
    std::fs::create_dir(&second).unwrap();
    let options = |dir: PathBuf| {
        let overlay = Some(OverlayOptions { dir, max_bytes: None });
        Options { overlay, ..Options::default() }
    };
    for (dir, reason) in [
        (overlay(&place), "another mount uses it"),
        (place.store().join("web01/overlay"), "inside the store"),
        (second.join("overlay"), "inside each other"),
        (place.dir.path().join("none/none"), "make it first"),
    ] {
        let refused = Mounted::new(&place.store(), &second, &options(dir));
        assert!(
            matches!(&refused, Err(Error::OverlayRefused { reason: said, .. }) if said.contains(reason)),
            "{refused:?}"
        );
    }
    mounted.unmount().unwrap();
    assert_eq!(names(&overlay(&place)), [".lock".to_owned()].into(), "nothing was written");
}

#[test]
fn an_overlay_that_does_not_fit_hides_nothing_and_shows_nothing() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let (broken, good) = (place.add(1, "", &noise(1, MIB)), place.add(2, "", &noise(2, MIB)));
    let mounted = mount(&place, None);
    open(&place, &broken).write_all_at(b"x", 0).unwrap();
    mounted.unmount().unwrap();
    let file = overlay(&place).join("web01").join(broken.id.as_str()).join("image.written");
    File::options().write(true).open(&file).unwrap().write_all_at(&[0xff; 9], 50).unwrap();

    let mounted = mount(&place, None);
    assert_eq!(errno(std::fs::read(place.image(&broken))), Errno::EIO);
    assert!(std::fs::read(place.image(&good)).unwrap() == noise(2, MIB));
    mounted.unmount().unwrap();
}

#[test]
fn a_last_sync_that_fails_is_told() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let revision = place.add(1, "", &noise(1, MIB));
    let mounted = mount(&place, None);
    open(&place, &revision).write_all_at(b"x", 0).unwrap();
    mounted.unmount().unwrap();
    // As if the sync of another mount had failed since the system was started.
    let kept = overlay(&place).join("web01").join(revision.id.as_str());
    std::fs::write(kept.join("image.failed"), "").unwrap();
    let mounted = mount(&place, None);
    open(&place, &revision).write_all_at(b"y", 0).unwrap();
    let ended = mounted.unmount();
    assert!(
        matches!(&ended, Err(Error::OverlayDamaged { reason, .. }) if reason.contains("a sync failed")),
        "{ended:?}"
    );
}
