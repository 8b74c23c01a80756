//! A real store through a real mount: what people read is what was stored, changes show without a remount,
//! damage is an error and nothing else, and the end leaves nothing behind.
//!
//! Where `/dev/fuse` does not exist the tests say that they were skipped; where it exists they must pass.

#![allow(clippy::unwrap_used, missing_docs)]

mod place;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use backy_fuse::{Error, Mounted, Options};
use backy_store::maintain::sweep::{SweepOptions, sweep};
use backy_store::{CHUNK_SIZE, ChunkId, FRAME_SIZE, JobName, RevisionId, Silent, Tag, Trust};
use place::{Place, at, can_mount, is_mounted, names, noise, soon, spoil_frame};

#[test]
fn what_was_stored_is_read() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut data = noise(1, 10 * 1024 * 1024 + 777);
    data[4 << 20..8 << 20].fill(0);
    let first = place.add(1, "daily,weekly", &data);
    let (second, empty) = (place.add(2, "daily", b"x"), place.add(3, "", b""));
    let mounted = place.mount();

    assert_eq!(names(&place.point()), BTreeSet::from(["web01".to_owned()]));
    let ids = [&first, &second, &empty].map(|revision| revision.id.to_string());
    let links = ["last", "daily", "weekly"].map(str::to_owned);
    assert_eq!(names(&place.path("web01")), ids.iter().chain(&links).cloned().collect());
    for (link, target) in [("last", &empty), ("daily", &second), ("weekly", &first)] {
        let found = std::fs::read_link(place.path(&format!("web01/{link}"))).unwrap();
        assert_eq!(found.to_str(), Some(target.id.as_str()), "{link}");
    }
    assert!(std::fs::read(place.image(&first)).unwrap() == data);
    assert!(std::fs::read(place.path("web01/weekly/image")).unwrap() == data);
    assert_eq!(std::fs::read(place.image(&second)).unwrap(), b"x");
    assert_eq!(std::fs::read(place.image(&empty)).unwrap(), b"");

    let file = File::open(place.image(&first)).unwrap();
    for (offset, length) in
        [(0, 1), (65_535, 2), (1, 200_000), (4_194_303, 3), (8_388_600, 100_001), (10_486_000, 9_999)]
    {
        let mut buffer = vec![0; length];
        let done = file.read_at(&mut buffer, offset).unwrap();
        let wanted = &data[offset as usize..data.len().min(offset as usize + length)];
        assert!(buffer[..done] == *wanted, "{offset} {length}");
    }
    drop(file);
    // The first question about a file that nobody has open, in a mount that has not seen it.
    mounted.unmount().unwrap();
    let mounted = place.mount();
    let facts = std::fs::metadata(place.image(&first)).unwrap();
    let file = File::open(place.image(&first)).unwrap();
    assert_eq!((facts.len(), facts.mtime()), (data.len() as u64, at(1).as_secs()));
    assert_eq!(facts.permissions().mode() & 0o7777, 0o400);
    assert_eq!(facts.blocks(), (data.len() as u64 - CHUNK_SIZE).div_ceil(512), "holes take no space");
    assert_eq!(std::fs::metadata(place.point()).unwrap().permissions().mode() & 0o7777, 0o500);

    let text = |name: &str| {
        let output = std::process::Command::new("getfattr")
            .args(["--only-values", "--absolute-names", "-n", name])
            .arg(place.image(&first))
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(text("user.backy.id"), first.id.as_str());
    assert_eq!(text("user.backy.tags"), "daily,weekly");
    assert_eq!(text("user.backy.trust"), "trusted");
    assert_eq!(text("user.backy.size"), data.len().to_string());
    assert_eq!(text("user.backy.timestamp"), first.timestamp.to_rfc3339());
    let all = std::process::Command::new("getfattr").arg("-d").arg(place.image(&first)).output().unwrap();
    assert_eq!(String::from_utf8(all.stdout).unwrap().matches("user.backy.").count(), 7);

    let seek = |offset, whence| nix::unistd::lseek(&file, offset, whence);
    use nix::unistd::Whence::{SeekData, SeekHole};
    assert_eq!(seek(0, SeekHole), Ok(4 << 20));
    assert_eq!(seek((4 << 20) + 5, SeekData), Ok(8 << 20));
    assert_eq!(seek(9 << 20, SeekHole), Ok(data.len() as i64));
    assert_eq!(seek(data.len() as i64, SeekData), Err(nix::errno::Errno::ENXIO));

    let info = std::fs::read(place.path("web01/daily/info.json")).unwrap();
    let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
    assert_eq!((&info["job"], &info["uuid"]), (&"web01".into(), &second.id.as_str().into()));
    assert_eq!(info["links"], serde_json::json!(["daily"]));

    assert!(std::fs::write(place.path("web01/new"), "").is_err());
    assert!(File::options().write(true).open(place.image(&first)).is_err());
    assert_eq!(std::fs::metadata(place.path("web01/none")).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(std::fs::metadata(place.path("none")).unwrap_err().kind(), ErrorKind::NotFound);
    drop(file);
    mounted.unmount().unwrap();
    assert!(!is_mounted(&place.point()));
    assert!(names(&place.point()).is_empty());
    let left = names(&place.store().join("writers"));
    assert!(left.iter().all(|name| name.starts_with('.') || name.ends_with(".refs")), "{left:?}");
}

#[test]
fn changes_show_without_a_remount() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let first = place.add(1, "daily", b"first");
    let mounted = place.mount();
    let last = || std::fs::read(place.path("web01/last/image")).unwrap_or_default();
    assert_eq!(last(), b"first");
    let inode = std::fs::metadata(place.image(&first)).unwrap().ino();

    let second = place.add(2, "daily", b"second");
    soon("last moves", || last() == b"second");
    soon("a new tag is a link", || {
        let guard = place.job.lock_manifests().unwrap();
        place.job.set_tags(&guard, &first.id, Tag::parse_list("old").unwrap()).unwrap();
        std::fs::read(place.path("web01/old/image")).is_ok_and(|data| data == b"first")
    });
    let guard = place.job.lock_manifests().unwrap();
    place.job.set_trust(&guard, &second.id, Trust::Distrusted).unwrap();
    drop(guard);
    soon("last avoids what is distrusted", || last() == b"first");
    assert_eq!(std::fs::read(place.image(&second)).unwrap(), b"second");
    soon("info.json follows", || {
        let text = std::fs::read(place.path(&format!("web01/{}/info.json", second.id))).unwrap();
        serde_json::from_slice::<serde_json::Value>(&text).unwrap()["trust"] == "distrusted"
    });

    place.forget(&second);
    soon("a forgotten revision is gone", || !place.image(&second).exists());
    soon("it is not listed either", || !names(&place.path("web01")).contains(second.id.as_str()));
    let guard = place.job.lock_manifests().unwrap();
    place.job.undelete(&guard, &second.id).unwrap();
    drop(guard);
    soon("it is back", || std::fs::read(place.image(&second)).is_ok_and(|data| data == b"second"));
    assert_eq!(std::fs::metadata(place.image(&first)).unwrap().ino(), inode);

    let repository = place.job.repository();
    repository.create_job(&JobName::parse("db01").unwrap(), false, "{}\n", at(0)).unwrap();
    soon("a new job appears", || place.path("db01").is_dir());
    std::fs::remove_dir_all(place.store().join("db01")).unwrap();
    soon("a deleted job disappears", || !place.path("db01").exists());
    mounted.unmount().unwrap();
}

#[test]
fn an_open_image_stays_readable_when_it_is_purged() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let data = noise(5, 9 << 20);
    let (gone, _kept) = (place.add(1, "daily", &data), place.add(2, "daily", &noise(6, 1 << 20)));
    let mounted = place.mount();
    let file = File::open(place.image(&gone)).unwrap();
    place.forget(&gone);
    let options = SweepOptions::new(0, at(1_000_000_000));
    let report = sweep(place.job.repository(), &options, &Silent).unwrap();
    assert_eq!((report.revisions_deleted.len(), report.chunks_deleted), (1, 0));
    soon("the revision is gone", || !place.image(&gone).exists());
    let mut buffer = vec![0; data.len()];
    file.read_exact_at(&mut buffer, 0).unwrap();
    assert!(buffer == data);
    assert_eq!(file.metadata().unwrap().len(), data.len() as u64);
    drop(file);
    // The record of the removed revision has stayed, and explains why its chunks can go.
    soon("nothing protects its chunks any more", || {
        sweep(place.job.repository(), &options, &Silent).unwrap().chunks_deleted == 3
    });
    mounted.unmount().unwrap();
}

#[test]
fn a_damaged_frame_is_an_error_and_the_others_read() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let good = place.add(1, "daily", b"good");
    let data = noise(7, 4 << 20);
    let bad = place.add(2, "daily", &data);
    spoil_frame(&place.store(), 10);
    let mounted = place.mount();
    assert_eq!(std::fs::read_link(place.path("web01/last")).unwrap().to_str(), Some(bad.id.as_str()));

    let file = File::open(place.image(&bad)).unwrap();
    let mut page = vec![0; 4096];
    for frame in (0..64).rev().chain(0..64) {
        for offset in [frame * FRAME_SIZE, (frame + 1) * FRAME_SIZE - 4096] {
            let read = file.read_exact_at(&mut page, offset);
            if frame == 10 {
                assert_eq!(read.unwrap_err().raw_os_error(), Some(nix::errno::Errno::EIO as i32));
            } else {
                read.unwrap_or_else(|error| panic!("frame {frame}, offset {offset}: {error}"));
                assert!(page == data[offset as usize..offset as usize + 4096], "frame {frame}");
            }
        }
    }
    assert!(std::fs::read(place.image(&bad)).is_err());
    soon("the revision is distrusted", || place.job.revision(&bad.id).unwrap().trust == Trust::Distrusted);
    assert_eq!(place.job.revision(&good.id).unwrap().trust, Trust::Trusted);
    soon("last leads to a good one", || {
        std::fs::read(place.path("web01/last/image")).is_ok_and(|data| data == b"good")
    });
    drop(file);
    mounted.unmount().unwrap();
}

#[test]
fn a_broken_manifest_or_map_hides_nothing_else() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let (good, bad, odd) = (place.add(1, "", b"good"), place.add(2, "", b"bad"), place.add(3, "", b"odd"));
    std::fs::write(place.job.dir().join(format!("{}.rev", bad.id)), "{{{").unwrap();
    std::fs::write(place.job.map_path(&odd.id), "nonsense").unwrap();
    let mounted = place.mount();
    assert!(!place.image(&bad).exists());
    assert_eq!(std::fs::read(place.image(&good)).unwrap(), b"good");
    let refused = std::fs::read(place.image(&odd)).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(nix::errno::Errno::EIO as i32));
    soon("the revision without a map is distrusted", || {
        place.job.revision(&odd.id).unwrap().trust == Trust::Distrusted
    });
    mounted.unmount().unwrap();
}

#[test]
fn a_job_can_be_mounted_alone() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    place.add(1, "", b"one");
    place.job.repository().create_job(&JobName::parse("db01").unwrap(), false, "{}\n", at(0)).unwrap();
    let mounted = Mounted::new(place.job.dir(), &place.point(), &Options::default()).unwrap();
    assert_eq!(names(&place.point()), BTreeSet::from(["web01".to_owned()]));
    assert_eq!(std::fs::read(place.path("web01/last/image")).unwrap(), b"one");
    let second = Mounted::new(&place.store(), &place.point(), &Options::default());
    assert!(matches!(second, Err(Error::AlreadyMounted { .. })), "{second:?}");
    drop(mounted);
    soon("dropping unmounts", || !is_mounted(&place.point()));
    let none = Mounted::new(&place.point(), &place.point(), &Options::default());
    assert!(matches!(none, Err(Error::Store(backy_store::Error::StoreMissing { .. }))), "{none:?}");
}

#[test]
fn ten_thousand_revisions_are_listed_whole_and_found() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let first = place.add(1, "daily", b"one");
    let text = std::fs::read_to_string(place.job.dir().join(format!("{}.rev", first.id))).unwrap();
    let (body, seal) = text.split_at(text.find("\nseal: ").unwrap() + 1);
    assert_eq!(
        seal,
        format!("seal: {}\n", ChunkId::of(body.as_bytes())),
        "the seal is the BLAKE3 of the rest"
    );
    let ids: Vec<String> = (0..10_000).map(|number| format!("r{number}")).collect();
    for id in &ids {
        let body = body.replace(first.id.as_str(), id);
        let text = format!("{body}seal: {}\n", ChunkId::of(body.as_bytes()));
        std::fs::write(place.job.dir().join(format!("{id}.rev")), text).unwrap();
        std::fs::hard_link(
            place.job.map_path(&first.id),
            place.job.map_path(&RevisionId::parse(id).unwrap()),
        )
        .unwrap();
    }
    let mounted = place.mount();
    assert_eq!(names(&place.path("web01")).len(), ids.len() + 3);
    let inodes: BTreeSet<u64> =
        ids.iter().map(|id| std::fs::metadata(place.path(&format!("web01/{id}"))).unwrap().ino()).collect();
    assert_eq!(inodes.len(), ids.len());
    assert_eq!(std::fs::read(place.path("web01/r9999/image")).unwrap(), b"one");
    mounted.unmount().unwrap();
}
