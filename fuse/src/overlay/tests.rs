//! An overlaid disk against a plain copy in memory: random histories with restarts and power failures, the limit,
//! damaged files, several writers.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;

use super::disk::OverlayDisk;
use super::header::{Base, BootId};
use super::space::Space;
use super::states::{BLOCK_BYTES, State};
use super::*;

const BLOCK: usize = BLOCK_BYTES as usize;

fn boot(number: u64) -> BootId {
    format!("{number:036}").as_bytes().try_into().unwrap()
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Never zero, so that a zero is always somebody's zero.
        (state >> 32) as u8 | 1
    };
    (0..length).map(|_| next()).collect()
}

fn base_of(content: &[u8]) -> Base {
    Base {
        revision: RevisionId::parse("7Qk2").unwrap(),
        seal: ChunkId::of(content),
        size_bytes: content.len() as u64,
    }
}

/// A disk below `dir`, with its base in memory.
struct Scene {
    dir: PathBuf,
    content: Vec<u8>,
    /// Blocks of the base that cannot be read.
    damaged: Range<u64>,
    max_bytes: Option<u64>,
    boot: u64,
    disk: OverlayDisk,
    space: Arc<Space>,
}

impl Scene {
    fn new(dir: &Path, content: Vec<u8>, max_bytes: Option<u64>) -> Self {
        let dir = dir.join("job/7Qk2");
        std::fs::create_dir_all(dir.parent().unwrap()).unwrap();
        let (disk, space) = Self::open(&dir, &content, max_bytes, 1).unwrap();
        Self { dir, content, damaged: 0..0, max_bytes, boot: 1, disk, space }
    }

    fn open(
        dir: &Path,
        content: &[u8],
        max_bytes: Option<u64>,
        number: u64,
    ) -> Result<(OverlayDisk, Arc<Space>)> {
        let space = Arc::new(Space::new(max_bytes));
        let disk = OverlayDisk::open(dir.to_owned(), base_of(content), boot(number), Arc::clone(&space))?;
        space.count(disk.data_bytes());
        Ok((disk, space))
    }

    /// Opens it again as another mount would.
    fn reopen(&mut self) {
        (self.disk, self.space) = Self::open(&self.dir, &self.content, self.max_bytes, self.boot).unwrap();
    }

    fn restart(&mut self) {
        self.boot += 1;
        self.reopen();
    }

    fn read_base(&self, at: u64, out: &mut [u8]) -> backy_store::Result<()> {
        let end = at + out.len() as u64;
        if at < self.damaged.end * BLOCK_BYTES && end > self.damaged.start * BLOCK_BYTES {
            return Err(backy_store::Error::ChunkMissing { id: ChunkId::of(b"x") });
        }
        out.copy_from_slice(&self.content[at as usize..end as usize]);
        Ok(())
    }

    fn write(&self, at: usize, data: &[u8]) -> Result<()> {
        self.disk.write(at as u64, data, |at, out| self.read_base(at, out))
    }

    fn zero(&self, range: Range<usize>) -> Result<()> {
        self.disk.zero(range.start as u64..range.end as u64, |at, out| self.read_base(at, out))
    }

    fn read(&self, range: Range<usize>) -> backy_store::Result<Vec<u8>> {
        let mut out = vec![0xee; range.len()];
        self.disk.read(range.start as u64, &mut out, |at, out| self.read_base(at, out)).map(|()| out)
    }

    fn read_all(&self) -> Vec<u8> {
        self.read(0..self.content.len()).unwrap()
    }

    fn states(&self) -> Vec<State> {
        (0..self.content.len()).step_by(BLOCK).map(|at| self.disk.run(at as u64).0).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        at: usize,
        length: usize,
        seed: u64,
    },
    Zero {
        at: usize,
        length: usize,
    },
    Read {
        at: usize,
        length: usize,
    },
    Sync,
    /// The process is killed and another takes over.
    Reopen,
    /// What was not synced may or may not have reached the disk, block by block.
    PowerFailure {
        seed: u64,
    },
}

/// 37 blocks and a bit.
const SIZE: usize = 37 * BLOCK + 1234;

fn place() -> impl Strategy<Value = (usize, usize)> {
    let anywhere = (0..SIZE, 1..5 * BLOCK);
    let aligned = (0..38usize, 1..6usize).prop_map(|(at, length)| (at * BLOCK, length * BLOCK));
    prop_oneof![anywhere, aligned].prop_map(|(at, length)| (at, length.min(SIZE - at)))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (place(), any::<u64>()).prop_map(|((at, length), seed)| Step::Write { at, length, seed }),
        3 => place().prop_map(|(at, length)| Step::Zero { at, length }),
        3 => place().prop_map(|(at, length)| Step::Read { at, length }),
        2 => Just(Step::Sync),
        1 => Just(Step::Reopen),
        1 => any::<u64>().prop_map(|seed| Step::PowerFailure { seed }),
    ]
}

/// A copy of the disk, and for each block what it may hold after a power failure.
struct Model {
    now: Vec<u8>,
    possible: Vec<Vec<Vec<u8>>>,
    states: Vec<State>,
    /// The data file at the last sync.
    durable: Vec<u8>,
}

impl Model {
    fn new(content: &[u8]) -> Self {
        let mut model = Self {
            now: content.to_vec(),
            possible: Vec::new(),
            states: vec![State::Base; content.len().div_ceil(BLOCK)],
            durable: vec![0; content.len()],
        };
        model.settle();
        model
    }

    /// From now on only what is there now is possible.
    fn settle(&mut self) {
        self.possible = self.now.chunks(BLOCK).map(|block| vec![block.to_vec()]).collect();
    }

    fn changed(&mut self) {
        for (possible, block) in self.possible.iter_mut().zip(self.now.chunks(BLOCK)) {
            possible.push(block.to_vec());
        }
    }

    fn data_blocks(&self) -> u64 {
        self.states.iter().filter(|state| **state == State::Data).count() as u64
    }
}

/// Leaves of each unsynced block of the data either the durable content or the new one.
fn lose_data(scene: &Scene, model: &Model, seed: u64) {
    if !scene.disk.is_kept() {
        return;
    }
    let file = File::options().write(true).open(scene.path("image.data")).unwrap();
    let keep = noise(seed, model.now.len().div_ceil(BLOCK));
    for (number, old) in model.durable.chunks(BLOCK).enumerate() {
        if keep[number] & 2 != 0 {
            file.write_all_at(old, (number * BLOCK) as u64).unwrap();
        }
    }
    // The states were never synced and may be anything, but for the header.
    let file = File::options().write(true).open(scene.path("image.written")).unwrap();
    file.write_all_at(&noise(seed, 10), header::HEADER_BYTES as u64).unwrap();
}

fn apply(scene: &mut Scene, model: &mut Model, step: &Step) {
    match *step {
        Step::Write { at, length, seed } => {
            let data = noise(seed, length);
            let blocks = at / BLOCK..(at + length).div_ceil(BLOCK);
            let new =
                model.states[blocks.clone()].iter().filter(|state| **state != State::Data).count() as u64;
            let fits = scene.max_bytes.is_none_or(|max| (model.data_blocks() + new) * BLOCK_BYTES <= max);
            match scene.write(at, &data) {
                Ok(()) => {
                    assert!(fits || new == 0, "the limit was passed");
                    model.now[at..at + length].copy_from_slice(&data);
                    model.states[blocks].fill(State::Data);
                    model.changed();
                }
                Err(Error::OverlayFull { .. }) => assert!(!fits && new > 0, "there was space"),
                Err(error) => panic!("{error}"),
            }
        }
        Step::Zero { at, length } => {
            match scene.zero(at..at + length) {
                Ok(()) => model.now[at..at + length].fill(0),
                Err(Error::OverlayFull { .. }) => {
                    let found = scene.read_all();
                    for (place, (&is, was)) in found.iter().zip(&mut model.now).enumerate() {
                        let inside = (at..at + length).contains(&place);
                        assert!(is == *was || inside && is == 0, "byte {place}");
                        *was = is;
                    }
                }
                Err(error) => panic!("{error}"),
            }
            model.states = scene.states();
            model.changed();
        }
        Step::Read { at, length } => {
            assert!(scene.read(at..at + length).unwrap() == model.now[at..at + length]);
        }
        Step::Sync => {
            scene.disk.sync().unwrap();
            model.settle();
            if scene.disk.is_kept() {
                model.durable = std::fs::read(scene.path("image.data")).unwrap();
            }
        }
        Step::Reopen => scene.reopen(),
        Step::PowerFailure { seed } => {
            lose_data(scene, model, seed);
            scene.restart();
            let found = scene.read_all();
            for (number, block) in found.chunks(BLOCK).enumerate() {
                assert!(model.possible[number].iter().any(|was| was == block), "block {number}");
            }
            model.now = found;
            model.states = scene.states();
            model.settle();
            if scene.disk.is_kept() {
                model.durable = std::fs::read(scene.path("image.data")).unwrap();
            }
        }
    }
}

fn run(steps: &[Step], max_bytes: Option<u64>) {
    let dir = tempfile::tempdir().unwrap();
    let content = noise(7, SIZE);
    let mut scene = Scene::new(dir.path(), content.clone(), max_bytes);
    let mut model = Model::new(&content);
    for step in steps {
        apply(&mut scene, &mut model, step);
        assert_eq!(scene.states(), model.states, "after {step:?}");
        assert_eq!(scene.space.used_bytes(), model.data_blocks() * BLOCK_BYTES, "after {step:?}");
        assert_eq!(scene.disk.data_bytes(), scene.space.used_bytes());
    }
    assert!(scene.read_all() == model.now);
    scene.reopen();
    assert!(scene.read_all() == model.now);
    scene.disk.sync().unwrap();
    scene.restart();
    assert!(scene.read_all() == model.now, "what was synced is there after a restart");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_is_a_disk(steps in prop::collection::vec(step(), 1..40)) {
        run(&steps, None);
    }

    #[test]
    fn it_is_a_disk_with_a_limit(steps in prop::collection::vec(step(), 1..40), blocks in 1..20u64) {
        run(&steps, Some(blocks * BLOCK_BYTES));
    }
}

#[test]
fn nothing_is_made_before_the_first_write() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::new(dir.path(), noise(1, SIZE), None);
    assert!(scene.read_all() == scene.content);
    scene.disk.sync().unwrap();
    assert!(!scene.dir.exists());
    scene.write(5, b"x").unwrap();
    assert_eq!(scene.read(4..7).unwrap(), [scene.content[4], b'x', scene.content[6]]);
    let mode = |path: &Path| std::os::unix::fs::MetadataExt::mode(&path.metadata().unwrap()) & 0o777;
    assert_eq!((mode(&scene.dir), mode(&scene.path("image.data"))), (0o700, 0o600));
}

#[test]
fn a_damaged_block_is_healed_by_a_whole_write_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(dir.path(), noise(1, SIZE), None);
    scene.damaged = 3..5;
    assert!(scene.read(4 * BLOCK..4 * BLOCK + 1).is_err());
    let refused = scene.write(3 * BLOCK + 1, &[9; 2 * BLOCK]).unwrap_err();
    assert!(matches!(&refused, Error::Store(error) if error.is_damage()), "{refused}");
    assert_eq!(scene.disk.data_bytes(), 0);
    scene.write(3 * BLOCK, &[9; BLOCK]).unwrap();
    assert!(scene.read(2 * BLOCK..4 * BLOCK).unwrap().ends_with(&[9; BLOCK]));
    assert!(scene.read(3 * BLOCK..4 * BLOCK + 1).is_err());
    scene.zero(4 * BLOCK..5 * BLOCK).unwrap();
    scene.write(4 * BLOCK + 9, b"x").unwrap();
    assert_eq!(scene.read(4 * BLOCK + 8..4 * BLOCK + 11).unwrap(), [0, b'x', 0]);
}

#[test]
fn zeroed_blocks_take_no_space() {
    let dir = tempfile::tempdir().unwrap();
    let size = 200 << 20;
    let scene = Scene::new(dir.path(), vec![0xaa; size], Some(8 << 20));
    scene.write(100 << 20, &vec![1; 8 << 20]).unwrap();
    scene.disk.sync().unwrap();
    let blocks =
        || std::os::unix::fs::MetadataExt::blocks(&scene.path("image.data").metadata().unwrap()) * 512;
    assert!(blocks() >= 8 << 20);
    assert!(matches!(scene.write(10, b"x"), Err(Error::OverlayFull { .. })));
    scene.zero(0..size).unwrap();
    assert_eq!((scene.disk.data_bytes(), scene.space.used_bytes()), (0, 0));
    assert!(blocks() < 1 << 20, "{}", blocks());
    assert_eq!(scene.disk.run(0), (State::Zero, size as u64));
    scene.write(size - 1, b"x").unwrap();
    let end = scene.read(size - BLOCK..size).unwrap();
    assert!(end[..BLOCK - 1].iter().all(|&byte| byte == 0) && end[BLOCK - 1] == b'x');
}

#[test]
fn unsynced_data_takes_no_space_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(dir.path(), noise(1, 8 << 20), None);
    scene.write(0, &noise(2, BLOCK)).unwrap();
    scene.disk.sync().unwrap();
    scene.write(BLOCK, &noise(3, 4 << 20)).unwrap();
    scene.restart();
    assert_eq!(scene.space.used_bytes(), BLOCK_BYTES);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&scene.path("image.data").metadata().unwrap());
    assert!(blocks * 512 < 1 << 20, "{blocks}");
    assert!(
        scene.read(0..3 * BLOCK).unwrap()[..]
            == [&noise(2, BLOCK), &scene.content[BLOCK..3 * BLOCK]].concat()
    );
}

#[test]
fn a_zeroed_block_is_zeros_where_space_cannot_be_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::new(dir.path(), noise(1, SIZE), None);
    scene.write(0, &noise(2, 3 * BLOCK)).unwrap();
    scene.zero(0..3 * BLOCK).unwrap();
    // As on a file system that has no holes.
    let data = File::options().write(true).open(scene.path("image.data")).unwrap();
    data.write_all_at(&noise(2, 3 * BLOCK), 0).unwrap();
    scene.write(BLOCK + 1, b"x").unwrap();
    let mut wanted = vec![0; 3 * BLOCK];
    wanted[BLOCK + 1] = b'x';
    assert!(scene.read(0..3 * BLOCK).unwrap() == wanted);
}

#[test]
fn files_that_do_not_fit_are_refused_and_kept() {
    let flip = |scene: &Scene, name: &str, at: u64| {
        let file = File::options().read(true).write(true).open(scene.path(name)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0xff], at).unwrap();
    };
    let cut = |scene: &Scene, name: &str, length: u64| {
        File::options().write(true).open(scene.path(name)).unwrap().set_len(length).unwrap();
    };
    type Spoil = Box<dyn Fn(&Scene)>;
    let cases: Vec<(&str, &str, Spoil)> = vec![
        ("image.written", "no file of an overlay", Box::new(move |scene| flip(scene, "image.written", 0))),
        ("image.written", "newer", Box::new(move |scene| flip(scene, "image.written", 8))),
        ("image.written", "damaged", Box::new(move |scene| flip(scene, "image.written", 20))),
        ("image.written", "make no sense", Box::new(move |scene| flip(scene, "image.written", 4096))),
        ("image.written", "too short", Box::new(move |scene| cut(scene, "image.written", 100))),
        ("image.written", "bytes instead of", Box::new(move |scene| cut(scene, "image.written", 4096))),
        ("image.written", "bytes instead of", Box::new(move |scene| cut(scene, "image.written", 12288))),
        ("image.synced", "damaged", Box::new(move |scene| flip(scene, "image.synced", 2000))),
        ("image.synced", "too short", Box::new(move |scene| cut(scene, "image.synced", 0))),
        ("image.data", "bytes instead of", Box::new(move |scene| cut(scene, "image.data", 4096))),
        (
            "image.synced",
            "another file",
            Box::new(|scene| {
                std::fs::copy(scene.path("image.written"), scene.path("image.synced")).unwrap();
            }),
        ),
        (
            "image.data",
            "missing",
            Box::new(|scene| {
                #[expect(clippy::disallowed_methods, reason = "no file of a store")]
                std::fs::remove_file(scene.path("image.data")).unwrap();
            }),
        ),
    ];
    for (file, reason, spoil) in cases {
        let dir = tempfile::tempdir().unwrap();
        let scene = Scene::new(dir.path(), noise(1, SIZE), None);
        scene.write(BLOCK, &[5; BLOCK]).unwrap();
        scene.disk.sync().unwrap();
        spoil(&scene);
        let message = match OverlayDisk::open(
            scene.dir.clone(),
            base_of(&scene.content),
            boot(1),
            Arc::clone(&scene.space),
        ) {
            Err(Error::OverlayDamaged { path, reason }) => {
                assert_eq!(path, scene.path(file));
                reason
            }
            other => panic!("{file}, {reason}: {other:?}"),
        };
        assert!(message.contains(reason), "{file}: {message}");
        assert!(scene.dir.join("image.synced").exists());
    }
}

#[test]
fn another_content_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::new(dir.path(), noise(1, SIZE), None);
    scene.write(0, b"x").unwrap();
    let other = noise(2, SIZE);
    let open = |content: &[u8]| {
        OverlayDisk::open(scene.dir.clone(), base_of(content), boot(1), Arc::clone(&scene.space))
    };
    for content in [&other[..], &scene.content[..SIZE - 1]] {
        let refused = open(content).unwrap_err().to_string();
        assert!(refused.contains("another content of revision 7Qk2"), "{refused}");
        assert!(refused.contains("image.written") && refused.contains("remove its directory"), "{refused}");
    }
    assert!(open(&scene.content).is_ok());
}

#[test]
fn a_failed_sync_is_final_until_the_system_is_started_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(dir.path(), noise(1, SIZE), None);
    scene.write(0, b"x").unwrap();
    scene.disk.sync().unwrap();
    std::fs::write(scene.path("image.failed"), "").unwrap();
    scene.reopen();
    scene.write(1, b"y").unwrap();
    for _ in 0..2 {
        assert!(scene.disk.sync().unwrap_err().to_string().contains("a sync failed"));
    }
    assert_eq!(scene.read(0..2).unwrap(), b"xy");
    assert!(scene.disk.finish().is_err());
    scene.restart();
    scene.disk.sync().unwrap();
    scene.write(1, b"z").unwrap();
    scene.disk.sync().unwrap();
    assert!(!scene.path("image.failed").exists());
}

#[test]
fn parts_of_one_block_written_at_once_are_all_there() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::new(dir.path(), noise(1, 64 * BLOCK), None);
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let scene = &scene;
            scope.spawn(move || {
                for block in 0..64 {
                    let at = block * BLOCK + thread * 1024;
                    scene.write(at, &[thread as u8 + 1; 1000]).unwrap();
                    assert_eq!(scene.read(at..at + 1000).unwrap(), [thread as u8 + 1; 1000]);
                }
            });
        }
    });
    let mut wanted = scene.content.clone();
    for (place, byte) in wanted.iter_mut().enumerate() {
        if place % 1024 < 1000 {
            *byte = (place / 1024 % 4) as u8 + 1;
        }
    }
    assert!(scene.read_all() == wanted);
}

#[test]
fn directories_that_would_hurt_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().canonicalize().unwrap().join(name);
    std::fs::create_dir_all(at("srv/web01")).unwrap();
    std::fs::write(at("srv/backy.store"), "").unwrap();
    std::fs::create_dir_all(at("mnt/point")).unwrap();
    std::fs::create_dir(at("home")).unwrap();
    std::fs::write(at("home/letter"), "").unwrap();
    let open = |name: &str| Overlay::open_in(&at(name), None, &at("mnt/point"), boot(1), Duration::ZERO);
    for (name, reason) in [
        ("srv", "inside the store"),
        ("srv/web01", "inside the store"),
        ("srv/new", "inside the store"),
        ("mnt", "inside each other"),
        ("mnt/point", "inside each other"),
        ("mnt/point/new", "inside each other"),
        ("home", "not empty"),
        ("home/letter", "not a directory"),
        ("none/none", "make it first"),
    ] {
        let refused = open(name).unwrap_err().to_string();
        assert!(refused.contains(reason), "{name}: {refused}");
    }
    let first = open("over").unwrap();
    let second = open("over").unwrap_err().to_string();
    assert!(second.contains("another mount uses it"), "{second}");
    drop(first);
    std::fs::create_dir_all(at("over/web01/.unfinished-x")).unwrap();
    std::fs::create_dir_all(at("over/web01/broken")).unwrap();
    assert_eq!(open("over").unwrap().0.space.used_bytes(), 0);
}

#[test]
fn what_others_can_change_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::new(dir.path(), noise(1, SIZE), None);
    scene.write(0, b"x").unwrap();
    let root = dir.path().canonicalize().unwrap();
    File::create(root.join(".lock")).unwrap();
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    let open = || Overlay::open_in(&root, None, Path::new("/nowhere"), boot(1), Duration::ZERO);
    let open_disk = || {
        let space = Arc::clone(&scene.space);
        OverlayDisk::open(scene.dir.clone(), base_of(&scene.content), boot(1), space)
    };
    let refused = |reason: &str| {
        let said = open_disk().unwrap_err().to_string();
        assert!(said.contains(reason), "{said}");
        // It is no reason not to serve the other images.
        drop(open().unwrap());
    };
    drop(open().unwrap());
    open_disk().unwrap();

    mode(&root, 0o777);
    let said = open().unwrap_err().to_string();
    assert!(said.contains("other users may write to it (mode 777); name a directory of your own"), "{said}");
    mode(&root, 0o700);
    let link = root.with_file_name(format!("{}-link", root.file_name().unwrap().display()));
    std::os::unix::fs::symlink(&root, &link).unwrap();
    for name in [link.clone(), link.join("")] {
        let said = Overlay::open_in(&name, None, Path::new("/nowhere"), boot(1), Duration::ZERO);
        assert!(said.unwrap_err().to_string().contains("symbolic link"));
    }
    #[expect(clippy::disallowed_methods, reason = "no file of a store")]
    std::fs::remove_file(&link).unwrap();

    for path in [scene.dir.clone(), root.join("job"), scene.path("image.data")] {
        mode(&path, 0o722);
        refused("other users may write to it");
        mode(&path, 0o700);
        if nix::unistd::geteuid().is_root() {
            nix::unistd::chown(&path, Some(12345.into()), None).unwrap();
            refused("it belongs to the user 12345 and not to 0");
            nix::unistd::chown(&path, Some(0.into()), None).unwrap();
        }
    }
    open_disk().unwrap();
    #[expect(clippy::disallowed_methods, reason = "no file of a store")]
    let rename = |from: &Path, to: &Path| std::fs::rename(from, to).unwrap();
    let (written, aside) = (scene.path("image.written"), scene.path("aside"));
    rename(&written, &aside);
    std::os::unix::fs::symlink(&aside, &written).unwrap();
    refused("no regular file");
    rename(&written, &scene.path("link"));
    nix::unistd::mkfifo(&written, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused("no regular file");
    rename(&aside, &written);
    open_disk().unwrap();
    rename(&root.join("job"), &root.join("real"));
    std::os::unix::fs::symlink(root.join("real"), root.join("job")).unwrap();
    refused("not a directory");
}

#[test]
fn a_mount_that_still_ends_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let open = |wait| Overlay::open_in(&dir.path().join("over"), None, Path::new("/nowhere"), boot(1), wait);
    let first = open(Duration::ZERO).unwrap();
    assert!(open(Duration::ZERO).unwrap_err().to_string().contains("another mount uses it"));
    std::thread::scope(|scope| {
        let second = scope.spawn(|| open(Duration::from_secs(600)).map(drop));
        std::thread::sleep(Duration::from_millis(50));
        drop(first);
        second.join().unwrap().unwrap();
    });
}

#[test]
fn what_a_killed_process_left_is_synced_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(dir.path(), noise(1, SIZE), Some(3 * BLOCK_BYTES));
    scene.write(5, b"new").unwrap();
    File::create(dir.path().join(".lock")).unwrap();
    let overlay = Overlay::open_in(dir.path(), None, Path::new("/nowhere"), boot(1), Duration::ZERO);
    assert_eq!(overlay.unwrap().0.space.used_bytes(), BLOCK_BYTES);
    scene.restart();
    assert_eq!(scene.read(4..9).unwrap(), [&[scene.content[4]], &b"new"[..], &[scene.content[8]]].concat());
}

#[test]
fn states_that_are_older_than_the_last_sync_are_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(dir.path(), noise(1, SIZE), None);
    scene.write(0, b"x").unwrap();
    std::fs::copy(scene.path("image.written"), scene.path("old")).unwrap();
    scene.write(3 * BLOCK, b"y").unwrap();
    scene.zero(5 * BLOCK..6 * BLOCK).unwrap();
    scene.disk.sync().unwrap();
    let wanted = scene.read_all();
    scene.write(9 * BLOCK, b"z").unwrap();
    // The device was pulled out and came back, and the last writes are lost.
    std::fs::copy(scene.path("old"), scene.path("image.written")).unwrap();
    scene.reopen();
    assert!(scene.read_all() == wanted);
    scene.write(9 * BLOCK, b"w").unwrap();
    let wanted = scene.read_all();
    scene.reopen();
    assert!(scene.read_all() == wanted && wanted[9 * BLOCK] == b'w');
}

#[test]
fn only_a_write_makes_anything_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(dir.path(), noise(1, SIZE), None);
    scene.write(0, b"x").unwrap();
    scene.disk.sync().unwrap();
    let wanted = scene.read_all();
    let before = std::fs::read(scene.path("image.written")).unwrap();
    // In the way of the new file, as a file system without space would be.
    std::fs::create_dir(scene.path("image.written.new")).unwrap();
    scene.restart();
    assert!(scene.read_all() == wanted);
    scene.disk.finish().unwrap();
    scene.write(1, b"y").unwrap_err();
    assert!(scene.read_all() == wanted);
    assert!(std::fs::read(scene.path("image.written")).unwrap() == before);
    std::fs::remove_dir(scene.path("image.written.new")).unwrap();
    scene.write(1, b"y").unwrap();
    assert_eq!(scene.read(0..2).unwrap(), b"xy");
    scene.reopen();
    assert_eq!(scene.read(0..2).unwrap(), b"xy");
}

#[test]
fn a_large_disk_is_discarded() {
    let dir = tempfile::tempdir().unwrap();
    let size = (300u64 << 30) + 777;
    let base = Base { size_bytes: size, ..base_of(b"large") };
    std::fs::create_dir(dir.path().join("job")).unwrap();
    let open = |number| {
        let space = Arc::new(Space::new(None));
        OverlayDisk::open(dir.path().join("job/7Qk2"), base.clone(), boot(number), space).unwrap()
    };
    let disk = open(1);
    let zeros = |_, out: &mut [u8]| {
        out.fill(7);
        Ok(())
    };
    disk.write(200 << 30, b"data", zeros).unwrap();
    disk.zero(1..size, zeros).unwrap();
    assert_eq!((disk.run(0), disk.run(4096)), ((State::Data, 4096), (State::Zero, size)));
    assert_eq!(disk.data_bytes(), BLOCK_BYTES);
    disk.sync().unwrap();
    for disk in [open(1), open(2)] {
        assert_eq!((disk.run(0), disk.run(4096)), ((State::Data, 4096), (State::Zero, size)));
    }
}

#[test]
fn the_same_complaint_is_not_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::new(dir.path(), noise(1, SIZE), None);
    assert!(scene.disk.is_new_complaint(5) && scene.disk.is_new_complaint(28));
    assert!(!scene.disk.is_new_complaint(5) && !scene.disk.is_new_complaint(28));
}

#[test]
fn a_disk_that_is_slow_to_open_is_waited_for_by_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let overlay =
        Overlay::open_in(&dir.path().join("over"), None, Path::new("/nowhere"), boot(1), Duration::ZERO);
    let overlay = overlay.unwrap();
    let key = |name| (JobName::parse(name).unwrap(), RevisionId::parse("7Qk2").unwrap());
    let slow = overlay.place(key("slow"));
    let opening = mutex::lock(&slow);
    let other = overlay.place(key("other"));
    assert!(other.try_lock().is_ok());
    drop((opening, other));
    assert!(Arc::ptr_eq(&slow, &overlay.place(key("slow"))));
    drop(slow);
    overlay.place(key("other"));
    assert_eq!(mutex::lock(&overlay.0.disks).len(), 1, "what was not opened is forgotten");
}
