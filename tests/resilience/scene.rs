//! The store that the trials begin with, and what must hold after each of them.

use std::path::PathBuf;
use std::sync::Arc;

use backy_testkit::{CHUNK, Image, Tree, World};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_backy");

/// A world with two revisions and the image that the third will be made of.
pub(crate) struct Scene {
    pub(crate) world: World,
    /// The older revision, whose chunk 1 no other has.
    pub(crate) first: String,
    /// The newer one.
    pub(crate) second: String,
    /// The image on disk: changed, new, duplicate, zeroed and unchanged chunks, one changed a little that was changed a little before,
    /// and a longer end.
    pub(crate) next: Arc<Image>,
}

/// Makes it.
pub(crate) fn scene() -> Scene {
    let mut world = World::new(BINARY);
    let one = Image::zeros(5 * CHUNK + 777).words(0, 1).noise(1, 2).words(3, 3).copy(0, 4).words(5, 4);
    let two = one.clone().noise(1, 5).edit(3, 6);
    let next = two
        .clone()
        .words(0, 6)
        .zero(1)
        .words(2, 7)
        .copy(2, 4)
        .edit(3, 9)
        .resize(5 * CHUNK + 90_000)
        .noise(5, 8);
    let (first, second) = (world.backup(&Arc::new(one), "daily"), world.backup(&Arc::new(two), "weekly"));
    world.write_image(&next);
    Scene { world, first, second, next: Arc::new(next) }
}

impl Scene {
    /// The image of the older revision.
    pub(crate) fn oldest_image(&self) -> Arc<Image> {
        Arc::clone(&self.world.expected[&self.first])
    }
}

/// Every expected revision restores, any other that is listed is of the image on disk and complete, the next
/// backup needs no manual steps, and a purge tidies up and harms nothing.
pub(crate) fn recovers(world: &mut World, next: &Arc<Image>, when: &str) {
    committed(world, next, when);
    heals(world, next, when);
    purges_and_verifies(world, when);
}

/// The next backup works, is exact, and leaves nothing of the dead runs.
pub(crate) fn heals(world: &mut World, next: &Arc<Image>, when: &str) {
    let id = world.backup(next, "daily");
    world.must_restore(&id, next, when);
    assert_eq!(world.leftovers(), Vec::<PathBuf>::new(), "{when}: left over after the next backup");
}

/// Every expected revision is there and restores; any other that is listed is complete and of `next`.
pub(crate) fn committed(world: &mut World, next: &Arc<Image>, when: &str) {
    let status = world.ok(&["status", "--json"]).json();
    assert_eq!(status["damaged"].as_array().map(Vec::len), Some(0), "{when}: {status}");
    for revision in status["revisions"].as_array().expect("a list of revisions") {
        assert_eq!(revision["complete"], true, "{when}: an unfinished revision is listed");
        let id = revision["id"].as_str().expect("an id").to_owned();
        world.expected.entry(id).or_insert_with(|| Arc::clone(next));
    }
    world.must_restore_all(when);
}

fn purges_and_verifies(world: &World, when: &str) {
    let purged = world.on_store(&["purge", "--now"]);
    assert_eq!(purged.code(), 0, "{when}: {purged}");
    let sessions = Tree::of(&world.store().join("writers"));
    sessions.must_equal(&Tree::of(&world.path("nowhere")), "sessions after a purge");
    world.must_restore_all(when);
    let verified = world.run(&["verify", "-r", "all"]);
    assert_eq!(verified.code(), 0, "{when}: {verified}");
    assert_eq!(verified.text().lines().count(), world.expected.len(), "{when}: {verified}");
}
