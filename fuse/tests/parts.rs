//! The directory `parts` where the store is damaged or changes: what can be read is shown, the rest is an error, and
//! nothing else suffers.

#![allow(clippy::unwrap_used, missing_docs)]

mod place;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use backy_store::Trust;
use place::{Place, at, can_mount, names, noise, soon, spoil_frame};

const INPUT_OUTPUT_ERROR: Option<i32> = Some(nix::errno::Errno::EIO as i32);

/// A disk of noise with two partitions: from the 100th sector on, and from the 4000th on.
fn disk() -> Vec<u8> {
    let mut data = noise(11, 4 << 20);
    data[..512].fill(0);
    for (place, first, count) in [(0, 100u32, 300u32), (1, 4000, 90)] {
        let entry = 446 + 16 * place;
        data[entry + 4] = 0x83;
        data[entry + 8..entry + 12].copy_from_slice(&first.to_le_bytes());
        data[entry + 12..entry + 16].copy_from_slice(&count.to_le_bytes());
    }
    data[510..512].copy_from_slice(b"\x55\xaa");
    data
}

#[test]
fn partitions_are_files_whose_numbers_stay() {
    if !can_mount() {
        return;
    }
    let (place, data) = (Place::new(), disk());
    let revision = place.add(1, "daily", &data);
    let plain = place.add(2, "", b"no table");
    let mounted = place.mount();
    let dir = place.path(&format!("web01/{}", revision.id));
    assert_eq!(names(&dir), ["image", "info.json", "parts"].map(str::to_owned).into());
    assert_eq!(names(&dir.join("parts")), ["1.img", "2.img", "parts.json"].map(str::to_owned).into());
    assert!(fs::read(dir.join("parts/1.img")).unwrap() == data[51_200..51_200 + 300 * 512]);
    assert!(fs::read(place.path("web01/daily/parts/2.img")).unwrap() == data[4000 * 512..4090 * 512]);
    let facts = fs::metadata(dir.join("parts/2.img")).unwrap();
    assert_eq!((facts.len(), facts.blocks(), facts.mtime()), (90 * 512, 90, at(1).as_secs()));
    for entry in fs::read_dir(dir.join("parts")).unwrap().map(Result::unwrap) {
        assert!(entry.file_type().unwrap().is_file());
        assert_eq!(std::os::unix::fs::DirEntryExt::ino(&entry), entry.metadata().unwrap().ino());
    }
    let plain = place.path(&format!("web01/{}/parts", plain.id));
    assert_eq!(names(&plain), BTreeSet::from(["parts.json".to_owned()]));
    mounted.unmount().unwrap();
}

#[test]
fn a_table_that_cannot_be_read_costs_only_the_parts() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let revision = place.add(1, "", &disk());
    spoil_frame(&place.store(), 0);
    let mounted = place.mount();
    let dir = place.path(&format!("web01/{}", revision.id));
    assert_eq!(names(&dir).len(), 3);
    assert!(fs::metadata(dir.join("parts")).unwrap().is_dir());
    assert_eq!(place.job.revision(&revision.id).unwrap().trust, Trust::Trusted, "nothing was read yet");
    assert_eq!(fs::read_dir(dir.join("parts")).unwrap_err().raw_os_error(), INPUT_OUTPUT_ERROR);
    assert_eq!(fs::metadata(dir.join("parts/1.img")).unwrap_err().raw_os_error(), INPUT_OUTPUT_ERROR);
    let mut page = [0; 4096];
    File::open(dir.join("image")).unwrap().read_exact_at(&mut page, 1 << 20).unwrap();
    soon("the revision is distrusted", || {
        place.job.revision(&revision.id).unwrap().trust == Trust::Distrusted
    });
    mounted.unmount().unwrap();
}

#[test]
fn a_damaged_frame_in_a_partition_is_an_error_there_only() {
    if !can_mount() {
        return;
    }
    let (place, data) = (Place::new(), disk());
    let revision = place.add(1, "", &data);
    // The one where the second partition begins.
    spoil_frame(&place.store(), 4000 * 512 / (64 * 1024));
    let mounted = place.mount();
    let parts = place.path(&format!("web01/{}/parts", revision.id));
    assert_eq!(names(&parts).len(), 3, "the table is whole");
    assert!(fs::read(parts.join("1.img")).unwrap() == data[51_200..51_200 + 300 * 512]);
    assert_eq!(fs::read(parts.join("2.img")).unwrap_err().raw_os_error(), INPUT_OUTPUT_ERROR);
    assert!(fs::read_to_string(parts.join("parts.json")).unwrap().contains("cannot be read"));
    mounted.unmount().unwrap();
}

#[test]
fn an_open_partition_stays_when_its_revision_is_forgotten() {
    if !can_mount() {
        return;
    }
    let (place, data) = (Place::new(), disk());
    let revision = place.add(1, "", &data);
    let mounted = place.mount();
    let part = place.path(&format!("web01/{}/parts/1.img", revision.id));
    let file = File::open(&part).unwrap();
    place.forget(&revision);
    soon("the revision is gone", || File::open(&part).is_err());
    let mut found = vec![0; 300 * 512];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == data[51_200..51_200 + 300 * 512]);
    assert_eq!(file.metadata().unwrap().len(), 300 * 512);
    drop(file);
    mounted.unmount().unwrap();
}
