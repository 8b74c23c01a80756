//! Every sort of damage to every sort of file: no wrong byte with status 0, the damage is found and named, the
//! other revisions are as before, and the next backup is exact.

use std::fs;
use std::path::{Path, PathBuf};

use backy_testkit::{CHUNK, World, each};

use crate::harm::{HARMS, Harm, harm, restores_or_fails};
use crate::scene::{Scene, scene};

/// The chunk file that only the older revision has.
fn own_chunk(scene: &Scene) -> PathBuf {
    let world = scene.world.copy();
    world.ok(&["forget", "-r", "first"]);
    world.ok(&["purge", "--now"]);
    let kept = world.chunks();
    let is_kept = |path: &Path| kept.iter().any(|other| other.file_name() == path.file_name());
    let own = scene.world.chunks().into_iter().find(|path| !is_kept(path)).expect("a chunk of its own");
    own.strip_prefix(scene.world.store()).unwrap().to_owned()
}

/// Restores with `--salvage`: what is not listed as lost is right, what is lost is zeros.
fn salvages(world: &World, id: &str, what: &str) {
    let target = world.path("salvaged");
    let run = world.run(&["restore", "-r", id, "--salvage", &target.to_string_lossy()]);
    let run = run.expect(1);
    let found = fs::read(&target).unwrap_or_else(|error| panic!("{what}: {error}\n{run}"));
    let mut wanted = world.expected[id].0.clone();
    let mut lost = 0;
    for line in run.stderr.lines().filter_map(|line| line.strip_prefix("lost: bytes ")) {
        let (first, rest) = line.split_once(" to ").unwrap();
        let end = rest.split(' ').next().unwrap();
        let range = first.parse::<usize>().unwrap()..end.parse::<usize>().unwrap();
        lost += range.len();
        wanted[range].fill(0);
    }
    assert!((1..=2 * CHUNK).contains(&lost), "{what}: {lost} bytes lost\n{run}");
    assert!(found == wanted, "{what}: salvaged other bytes");
    fs::remove_file(target).unwrap();
}

#[test]
fn a_damaged_chunk_is_found_named_and_healed_by_the_next_backup() {
    let scene = scene();
    let (own, oldest) = (own_chunk(&scene), scene.oldest_image());
    each(&HARMS, |&sort| {
        let what = format!("{sort:?} of a chunk");
        let mut world = scene.world.copy();
        let path = world.store().join(&own);
        let other = world.chunks().into_iter().find(|other| *other != path).unwrap();
        harm(&path, &other, sort);
        world.ok(&["status"]);
        assert!(!restores_or_fails(&world, &scene.first, &what), "{what}: what was damaged?");
        salvages(&world, &scene.first, &what);
        if sort != Harm::Swap {
            assert!(restores_or_fails(&world, &scene.second, &what), "{what}: another revision is affected");
        }
        // A backup that does not need it.
        let next = world.backup(&scene.next, "daily");
        restores_or_fails(&world, &next, &what);
        let verified = world.run(&["verify", "-r", "all"]).expect(1).says(&scene.first);
        assert!(verified.text().contains(&format!("{} bad", scene.first)), "{what}: {verified}");
        world.ok(&["status"]);
        // One that has it again.
        if sort == Harm::Directory {
            fs::remove_dir(&path).unwrap();
        }
        let healing = world.backup(&oldest, "daily");
        world.must_restore(&healing, &oldest, &what);
        world.must_restore(&scene.first, &oldest, &what);
        if sort != Harm::Swap {
            world.must_restore_all(&what);
            world.ok(&["verify", "-r", "all"]);
            world.ok(&["purge", "--now"]);
            world.must_restore_all(&what);
        }
    });
}

#[test]
fn an_empty_chunk_is_written_again_without_a_verify() {
    let scene = scene();
    let mut world = scene.world.copy();
    fs::write(world.store().join(own_chunk(&scene)), "").unwrap();
    world.backup(&scene.oldest_image(), "daily");
    world.must_restore_all("after an empty chunk");
}

/// Whether nothing of a map differs but its page of bases, which is the last thing in it.
fn spoils_only_places(before: &[u8], path: &Path) -> bool {
    let has_places = before[11] == 1;
    let entries = u64::from_le_bytes(before[24..32].try_into().unwrap()) as usize;
    let begin = 64 + 32 * entries + (32 + 40) * entries.div_ceil(2048);
    has_places && fs::read(path).is_ok_and(|now| now.len() == before.len() && now[..begin] == before[..begin])
}

#[test]
fn a_damaged_map_is_found_and_named_and_the_next_backup_does_without() {
    let scene = scene();
    for (damaged, whole) in [(&scene.first, &scene.second), (&scene.second, &scene.first)] {
        each(&HARMS, |&sort| {
            let what = format!("{sort:?} of a map");
            let mut world = scene.world.copy();
            let job = world.job();
            let path = |id: &str| job.join(format!("{id}.map"));
            let before = fs::read(path(damaged)).unwrap();
            // A file of its own, as where no hard link can be made.
            let record =
                world.store().join("maps").join(job.file_name().unwrap()).join(format!("{damaged}.map"));
            fs::remove_file(&record).unwrap();
            fs::write(&record, &before).unwrap();
            harm(&path(damaged), &path(whole), sort);
            // What a page of places says can be found in the groups.
            let is_of_places = spoils_only_places(&before, &path(damaged));
            assert_eq!(restores_or_fails(&world, damaged, &what), is_of_places, "{what}: what was damaged?");
            assert_eq!(restores_or_fails(&world, whole, &what), sort != Harm::Swap, "{what}");
            let verified = world.run(&["verify", "-r", "all"]).expect(1);
            assert!(verified.text().contains(&format!("{damaged} bad")), "{what}: {verified}");
            let id = world.backup(&scene.next, "daily");
            world.must_restore(&id, &scene.next, &what);
            let status = world.ok(&["status", "--json", "-r", damaged]).json();
            assert_eq!(status["revisions"][0]["trust"], "distrusted", "{what}");
            if sort == Harm::Swap {
                return;
            }
            // The register has another copy of the map: a purge keeps what it names, and repairs the damaged one.
            let purged = world.run(&["purge", "--now"]);
            assert_eq!(purged.code(), 0, "{what}: {purged}");
            world.must_restore(whole, &world.expected[whole], &what);
            if sort == Harm::Directory {
                fs::remove_dir(path(damaged)).unwrap();
                world.run(&["purge", "--now"]).expect(0);
            }
            world.must_restore(damaged, &world.expected[damaged], &what);
            // Where the register does not have it either, nothing may go before somebody decides.
            let record =
                world.store().join("maps").join(job.file_name().unwrap()).join(format!("{damaged}.map"));
            harm(&path(damaged), &path(whole), sort);
            harm(&record, &path(whole), sort);
            let refused = world.run(&["purge", "--now"]);
            assert_eq!(refused.code(), 1, "{what}: {refused}");
            assert!(refused.stderr.contains(damaged.as_str()), "{what}: {refused}");
            world.must_restore(whole, &world.expected[whole], &what);
            world.ok(&["forget", "-r", damaged]);
            for path in [path(damaged), record] {
                if sort == Harm::Directory {
                    fs::remove_dir(path).unwrap();
                }
            }
            let purged = world.run(&["purge", "--now"]);
            assert_eq!(purged.code(), 0, "{what}: forgotten and still in the way: {purged}");
            world.expected.remove(damaged);
            world.must_restore_all(&what);
        });
    }
}

#[test]
fn a_map_that_is_damaged_before_a_backup_is_no_base() {
    let scene = scene();
    each(&HARMS, |&sort| {
        let what = format!("{sort:?} of the base's map");
        let mut world = scene.world.copy();
        let job = world.job();
        let path = |id: &str| job.join(format!("{id}.map"));
        harm(&path(&scene.second), &path(&scene.first), sort);
        let id = world.backup(&scene.next, "daily");
        world.must_restore(&id, &scene.next, &what);
    });
}

#[test]
fn a_damaged_manifest_is_named_and_hides_no_other() {
    let scene = scene();
    // Its last byte is a line end, which nobody needs.
    let harms: Vec<Harm> = HARMS.into_iter().filter(|&sort| sort != Harm::Shorten).collect();
    each(&harms, |&sort| {
        let what = format!("{sort:?} of a manifest");
        let mut world = scene.world.copy();
        let job = world.job();
        let path = |id: &str| job.join(format!("{id}.rev"));
        let whole = fs::read(path(&scene.first)).unwrap();
        harm(&path(&scene.first), &path(&scene.second), sort);
        // A revision is its manifest: without, there is none.
        let is_gone = sort == Harm::Delete;
        let status = world.run(&["status", "--json"]).expect(if is_gone { 0 } else { 1 });
        let damaged = status.json()["damaged"].to_string();
        assert!(is_gone || damaged.contains(&scene.first), "{what}: {status}");
        assert!(!restores_or_fails(&world, &scene.first, &what), "{what}: what was damaged?");
        if sort == Harm::Swap {
            return;
        }
        assert!(restores_or_fails(&world, &scene.second, &what), "{what}");
        let verified = world.run(&["verify", "-r", "all"]).expect(if is_gone { 0 } else { 1 });
        assert!(is_gone || verified.stderr.contains(&scene.first), "{what}: {verified}");
        if !is_gone {
            let id = world.backup(&scene.next, "daily");
            world.must_restore(&id, &scene.next, &what);
            assert!(restores_or_fails(&world, &scene.second, &what), "{what}");
            // Put back from elsewhere, it is as good as before: nothing of it was thrown away.
            world.run(&["purge", "--now"]);
            if sort == Harm::Directory {
                fs::remove_dir(path(&scene.first)).unwrap();
            }
            fs::write(path(&scene.first), &whole).unwrap();
            world.must_restore_all(&what);
        }
    });
}

#[test]
fn the_index_is_only_a_view() {
    let scene = scene();
    let old = fs::read(scene.world.store().join("index.sqlite")).unwrap();
    let sorts: Vec<Harm> = HARMS
        .into_iter()
        .filter(|&sort| sort != Harm::Swap)
        .chain((0..40).map(|n| Harm::Flip(n * 25)))
        .collect();
    each(&sorts, |&sort| {
        let what = format!("{sort:?} of the index");
        let mut world = scene.world.copy();
        let path = world.store().join("index.sqlite");
        harm(&path, &path, sort);
        for id in [&scene.first, &scene.second] {
            restores_or_fails(&world, id, &what);
        }
        if sort == Harm::Directory {
            fs::remove_dir(&path).unwrap();
        }
        world.ok(&["index", "rebuild"]);
        assert_eq!(world.ids(), [scene.first.clone(), scene.second.clone()], "{what}");
        let id = world.backup(&scene.next, "daily");
        assert_eq!(world.ids(), [scene.first.clone(), scene.second.clone(), id], "{what}");
        // An older copy is put back.
        fs::write(&path, &old).unwrap();
        assert_eq!(world.ids().len(), 3, "{what}");
        world.must_restore_all(&what);
    });
}

#[test]
fn a_store_without_its_mark_is_none_and_no_new_one_is_made() {
    let scene = scene();
    each(&HARMS, |&sort| {
        let what = format!("{sort:?} of backy.store");
        let world = scene.world.copy();
        let path = world.store().join("backy.store");
        let before = fs::read(&path).unwrap();
        if sort != Harm::Swap {
            harm(&path, &path, sort);
        }
        let harmed = fs::read(&path).ok();
        // A flip may hit what nobody needs (a digit of the date), but a mark that is gone or cut says so.
        let must_fail =
            [Harm::Delete, Harm::Empty, Harm::Halve, Harm::ZeroPage, Harm::Directory].contains(&sort);
        for words in [&["backup", "daily"][..], &["purge", "--now"], &["status"], &["verify", "-r", "all"]] {
            let run = world.run(words);
            assert!(run.code() == 0 && !must_fail || run.code() == 1, "{what}: {run}");
            assert!(!run.stderr.contains("panicked"), "{what}: {run}");
        }
        if must_fail {
            assert_eq!(fs::read(&path).ok(), harmed, "{what}: it was written anew");
        }
        if sort == Harm::Directory {
            fs::remove_dir(&path).unwrap();
        }
        fs::write(&path, before).unwrap();
        world.must_restore_all(&what);
    });
}

#[test]
fn a_newer_format_is_refused_by_its_version() {
    let scene = scene();
    let bump = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        bytes[8] = 77;
        fs::write(path, bytes).unwrap();
    };
    let world = scene.world.copy();
    bump(&world.job().join(format!("{}.map", scene.first)));
    let (run, _) = world.restore(&scene.first);
    run.expect(1).says("77");
    let world = scene.world.copy();
    bump(&world.store().join(own_chunk(&scene)));
    let (run, _) = world.restore(&scene.first);
    run.expect(1).says("77");
    let world = scene.world.copy();
    let path = world.store().join("backy.store");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("format: 1", "format: 77")).unwrap();
    for words in [&["backup", "daily"][..], &["status"], &["purge", "--now"], &["restore", "x"]] {
        world.run(words).expect(1).says("77");
    }
    assert!(fs::read_to_string(path).unwrap().contains("format: 77"));
}
