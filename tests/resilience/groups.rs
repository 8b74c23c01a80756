//! Damage of groups and of the base of recipes: found, named, limited to those concerned, and healed by a backup that has
//! the content again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backy_testkit::{CHUNK, Image, World, each};

use crate::harm::{Harm, harm, restores_or_fails};
use crate::scene::BINARY;

/// A store with a full chunk, two revisions that change a little of it, and another chunk that all three have.
struct Made {
    world: World,
    ids: [String; 3],
    images: [Arc<Image>; 3],
    base: PathBuf,
    groups: [PathBuf; 2],
}

const FRAME: usize = 64 << 10;

/// A frame of the first chunk of the second image that is new as a whole.
const FRESH: usize = 50;

fn is_group(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "group")
}

fn made() -> Made {
    let mut world = World::new(BINARY);
    let one = Image::zeros(2 * CHUNK).noise(0, 1).words(1, 2);
    let mut images = [one.clone(), one.clone().edit(0, 3), one.edit(0, 4)];
    images[1].0[FRESH * FRAME..][..FRAME].fill(7);
    let images = images.map(Arc::new);
    let mut seen: Vec<PathBuf> = Vec::new();
    let [(first, full), (second, group), (third, other)] = [0, 1, 2].map(|number: usize| {
        let id = world.backup(&images[number], "daily");
        let new = world.chunks().into_iter().filter(|path| !seen.contains(path)).collect::<Vec<_>>();
        seen.extend(new.clone());
        (id, new)
    });
    let ([group], [other]) = (&group[..], &other[..]) else { panic!("{group:?} {other:?}") };
    assert!(is_group(group) && is_group(other) && !full.iter().any(|path| is_group(path)), "{full:?}");
    let inside = |path: &Path| path.strip_prefix(world.store()).expect("it is in the store").to_owned();
    // The chunk that changes is the one of noise, which cannot be compressed.
    let length = |path: &PathBuf| fs::metadata(path).expect("it is there").len();
    let base = full.iter().max_by_key(|path| length(path)).expect("there are two");
    let (base, groups) = (inside(base), [inside(group), inside(other)]);
    Made { world, ids: [first, second, third], images, base, groups }
}

const HARMS: [Harm; 9] = [
    Harm::Delete,
    Harm::Empty,
    Harm::Halve,
    Harm::Flip(0),
    Harm::Flip(5),
    Harm::Flip(17),
    Harm::Flip(300),
    Harm::Flip(900),
    Harm::Flip(999),
];

fn trust(world: &World, id: &str) -> String {
    let status = world.ok(&["status", "--json", "-r", id]).json();
    status["revisions"][0]["trust"].as_str().expect("a text").to_owned()
}

#[test]
fn a_damaged_group_concerns_its_own_revision_only_and_is_healed() {
    let scene = made();
    // The last bytes are the hash of the whole file, at which no reader of single records looks.
    let harms: Vec<Harm> = HARMS.into_iter().filter(|&sort| sort != Harm::Flip(999)).collect();
    each(&harms, |&sort| {
        let what = format!("{sort:?} of a group");
        let mut world = scene.world.copy();
        let [first, second, third] = &scene.ids;
        let [path, other] = scene.groups.clone().map(|group| world.store().join(group));
        harm(&path, &other, sort);
        assert!(!restores_or_fails(&world, second, &what), "{what}: what was damaged?");
        assert!(restores_or_fails(&world, first, &what) && restores_or_fails(&world, third, &what), "{what}");
        assert_eq!(
            (trust(&world, second), trust(&world, third)),
            ("distrusted".into(), "trusted".into()),
            "{what}"
        );
        let verified = world.run(&["verify", "-r", "all"]).expect(1);
        assert!(verified.text().contains(&format!("{second} bad")), "{what}: {verified}");
        purges_or_misses(&world, sort);
        // From the source again: in full, which serves the old revision as well.
        let again = world.backup(&scene.images[1], "daily");
        world.must_restore(&again, &scene.images[1], &what);
        world.ok(&["verify", "-r", "all"]);
        world.ok(&["purge", "--now"]);
        world.must_restore_all(&what);
    });
}

/// A purge reports a chunk that is not there; one that is damaged it does not read.
fn purges_or_misses(world: &World, sort: Harm) {
    let run = world.run(&["purge", "--now"]);
    assert_eq!(run.code(), i32::from(sort == Harm::Delete), "{run}");
}

#[test]
fn a_damaged_base_concerns_all_that_refer_to_it_and_is_healed() {
    let scene = made();
    each(&HARMS, |&sort| {
        let what = format!("{sort:?} of a base");
        let mut world = scene.world.copy();
        let [base, other] = [&scene.base, &scene.groups[0]].map(|file| world.store().join(file));
        harm(&base, &other, sort);
        assert!(!restores_or_fails(&world, &scene.ids[0], &what), "{what}: what was damaged?");
        world.run(&["verify", "-r", "all"]).expect(1);
        for id in &scene.ids {
            assert_eq!(trust(&world, id), "distrusted", "{what}");
        }
        purges_or_misses(&world, sort);
        // Each content comes again from the source, and with it the revision that has it.
        for (number, image) in scene.images.iter().enumerate().rev() {
            let again = world.backup(image, "daily");
            world.must_restore(&again, image, &what);
            world.must_restore(&scene.ids[number], image, &what);
        }
        world.ok(&["verify", "-r", "all"]);
        world.ok(&["purge", "--now"]);
        world.must_restore_all(&what);
    });
}

#[test]
fn what_a_damaged_base_leaves_of_a_chunk_is_salvaged() {
    let scene = made();
    let world = scene.world.copy();
    fs::remove_file(world.store().join(&scene.base)).unwrap();
    let target = world.path("salvaged");
    world.run(&["restore", "-r", &scene.ids[1], "--salvage", &target.to_string_lossy()]).expect(1);
    let found = fs::read(&target).unwrap();
    let wanted = &scene.images[1].0;
    assert!(found[CHUNK..] == wanted[CHUNK..], "the other chunk is whole");
    // Of the frames with data one needs no base, and the others are lost.
    let frame = |image: &[u8], number: usize| image[number * FRAME..(number + 1) * FRAME].to_vec();
    let is_right = |number: &usize| frame(&found, *number) == frame(wanted, *number);
    assert_eq!((0..CHUNK / FRAME).filter(|number| !is_right(number)).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(frame(wanted, FRESH) != [0; FRAME], "and it is not only zeros");
}

#[test]
fn a_base_outlives_its_revision_for_the_recipes() {
    let scene = made();
    let mut world = scene.world.copy();
    world.ok(&["forget", "-r", &scene.ids[0]]);
    world.ok(&["purge", "--now"]);
    world.expected.remove(&scene.ids[0]);
    assert!(world.store().join(&scene.base).exists());
    world.must_restore_all("after the base's revision was purged");
    for id in &scene.ids[1..] {
        world.ok(&["forget", "-r", id]);
        world.expected.remove(id);
    }
    let last = world.backup(&Arc::new(Image::zeros(CHUNK).words(0, 9)), "daily");
    world.ok(&["purge", "--now"]);
    assert!(!world.store().join(&scene.base).exists() && !world.chunks().iter().any(|path| is_group(path)));
    world.must_restore(&last, &world.expected[&last].clone(), "at the end");
}
