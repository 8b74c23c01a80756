//! Everything at once: backups, forgets, purges, tags, trust and whole jobs come and go beside readers of the mount,
//! and every byte that is read is the right one. `BACKY_TORTURE_SECS` says for how long.
//!
//! What is changed must show in the mount within a second of the command's end. A crowded machine may miss that
//! now and then, so of each kind of change the quickest counts; the slowest is printed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use backy_testkit::{CHUNK, Random, Run, World};
use nix::errno::Errno;
use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use nix::unistd::Whence::{SeekData, SeekHole};

use crate::process::Mount;
use crate::{eventually, path, text, tool};

const JOBS: [&str; 3] = ["web01", "web02", "web03"];
const READERS: u64 = 4;

/// Chunks of an image, and the bytes behind the last of them.
const PLACES: usize = 5;
const TAIL: usize = 70_001;
const SIZE: u64 = (PLACES * CHUNK + TAIL) as u64;

/// Different chunks there are; the first is a hole.
const VARIANTS: u64 = 9;

/// Where the only partition lies.
const PART: std::ops::Range<u64> = (1 << 20)..(18 << 20);

/// Revisions of a job, files that one reader keeps open.
const REVISIONS_MAX: usize = 7;
const KEPT_MAX: usize = 4;

/// The promise, and how long is waited before the test fails at once.
const PROMPT: Duration = Duration::from_secs(1);

/// So many times the best of which must be prompt.
const SAMPLES_MIN: usize = 5;
const PATIENCE: Duration = Duration::from_secs(30);

fn torture_time() -> Duration {
    let secs = std::env::var("BACKY_TORTURE_SECS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(secs.unwrap_or(15))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an image is made of: the number of the chunk at each place.
type Picture = [u8; PLACES];

/// The chunks that all images are made of. Each begins with a partition table, which counts at the first place only.
struct Paints(Vec<Vec<u8>>);

impl Paints {
    fn new() -> Self {
        let mut random = Random::new(7);
        let mut chunks = vec![vec![0; CHUNK]];
        for _ in 1..VARIANTS {
            let mut chunk = vec![0; CHUNK];
            for frame in chunk.chunks_mut(64 << 10) {
                match random.below(4) {
                    0 => random.fill(frame),
                    1 => frame.fill(random.bits() as u8),
                    2 => random.fill(&mut frame[5000..9000]),
                    _ => {}
                }
            }
            chunk[440..512].fill(0);
            let (start, length) = ((PART.start / 512) as u32, ((PART.end - PART.start) / 512) as u32);
            chunk[450] = 0x83;
            chunk[454..458].copy_from_slice(&start.to_le_bytes());
            chunk[458..462].copy_from_slice(&length.to_le_bytes());
            chunk[510..512].copy_from_slice(&[0x55, 0xaa]);
            chunks.push(chunk);
        }
        Self(chunks)
    }

    /// A picture that has a table.
    fn picture(random: &mut Random) -> Picture {
        let mut picture = [0; PLACES].map(|_: u8| random.below(VARIANTS) as u8);
        picture[0] = picture[0].max(1);
        picture
    }

    fn chunk(&self, picture: &Picture, place: usize) -> &[u8] {
        // The tail is the beginning of the first chunk again.
        &self.0[usize::from(picture[place % PLACES])]
    }

    fn write(&self, picture: &Picture, target: &Path) {
        let file = File::create(target).expect("an image opens");
        for place in 0..=PLACES {
            let length = if place == PLACES { TAIL } else { CHUNK };
            let data = &self.chunk(picture, place)[..length];
            file.write_all_at(data, (place * CHUNK) as u64).expect("an image is written");
        }
    }

    /// First byte at or after `offset` that is wrong.
    fn wrong(&self, picture: &Picture, mut offset: u64, mut data: &[u8]) -> Option<u64> {
        while !data.is_empty() {
            let (place, within) = (offset as usize / CHUNK, offset as usize % CHUNK);
            let length = data.len().min(CHUNK - within);
            let expected = &self.chunk(picture, place)[within..within + length];
            if data[..length] != *expected {
                let at = data.iter().zip(expected).position(|(one, other)| one != other);
                return at.map(|at| offset + at as u64);
            }
            data = &data[length..];
            offset += length as u64;
        }
        None
    }
}

/// All that the threads share.
struct Scene {
    world: World,
    mnt: PathBuf,
    paints: Paints,
    /// What every revision there ever was must read as, by job and id.
    pictures: Mutex<BTreeMap<(String, String), Picture>>,
    /// How long changes took to show, by kind.
    times: Mutex<BTreeMap<&'static str, Vec<Duration>>>,
    until: Instant,
    over: AtomicBool,
    read_bytes: AtomicU64,
    opened: AtomicU64,
    vanished: AtomicU64,
}

impl Scene {
    fn goes_on(&self) -> bool {
        Instant::now() < self.until && !self.over.load(Ordering::Relaxed)
    }

    fn run(&self, job: &str, words: &[&str]) -> Run {
        let run = Run::of(&mut self.world.command_for(job, words));
        assert!(!run.stderr.contains("panicked"), "{run}");
        run
    }

    /// What a revision reads as. It shows before the command that makes it has ended.
    fn picture(&self, job: &str, id: &str) -> Picture {
        let key = (job.to_owned(), id.to_owned());
        let start = Instant::now();
        loop {
            if let Some(picture) = lock(&self.pictures).get(&key) {
                return *picture;
            }
            assert!(start.elapsed() < PATIENCE && !self.over.load(Ordering::Relaxed), "{job}: what is {id}?");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until a change that was just made shows.
    fn shows(&self, kind: &'static str, is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < PATIENCE, "does not show: {kind}");
            thread::sleep(Duration::from_millis(10));
        }
        lock(&self.times).entry(kind).or_default().push(start.elapsed());
    }

    fn lists(&self, job: &str, name: &str) -> bool {
        let entries = fs::read_dir(self.mnt.join(job)).expect("a job is listed");
        entries.map(|entry| entry.expect("a job is listed").file_name()).any(|found| found == name)
    }
}

/// Ends the test early when one of its threads has failed.
struct Alarm<'s>(&'s AtomicBool);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// The life of one job.
struct Keeper<'s> {
    scene: &'s Scene,
    job: &'static str,
    random: Random,
    revisions: BTreeSet<String>,
    forgotten: Vec<String>,
    steps: u64,
}

impl Keeper<'_> {
    fn live(mut self) -> u64 {
        while self.scene.goes_on() {
            match self.random.below(10) {
                0..=3 => self.back_up(),
                4..=5 => self.forget(),
                6 => self.undelete(),
                7..=8 => self.tag(),
                _ => self.verify(),
            }
            self.steps += 1;
        }
        self.steps
    }

    fn dir(&self) -> PathBuf {
        self.scene.mnt.join(self.job)
    }

    fn any(&mut self) -> String {
        let ids: Vec<&String> = self.revisions.iter().collect();
        (*self.random.pick(&ids)).clone()
    }

    fn back_up(&mut self) {
        let picture = Paints::picture(&mut self.random);
        self.scene.paints.write(&picture, &self.scene.world.path(&format!("{}.img", self.job)));
        let run = self.scene.run(self.job, &["backup", "daily"]);
        if run.code() == 3 {
            // A purge looks into the job for a moment.
            return;
        }
        let id = run.expect(0).line();
        lock(&self.scene.pictures).insert((self.job.to_owned(), id.clone()), picture);
        let last = self.dir().join("last");
        self.scene.shows("new revision", || self.dir().join(&id).join("image").exists());
        self.scene.shows("last", || fs::read_link(&last).is_ok_and(|to| to == Path::new(&id)));
        self.revisions.insert(id);
        while self.revisions.len() > REVISIONS_MAX {
            self.forget();
        }
    }

    fn forget(&mut self) {
        if self.revisions.len() < 2 {
            return;
        }
        let id = self.any();
        self.scene.run(self.job, &["forget", "-r", &id]).expect(0);
        self.revisions.remove(&id);
        match self.random.below(2) {
            0 => self.scene.shows("forgotten, looked up", || !self.dir().join(&id).exists()),
            _ => self.scene.shows("forgotten, listed", || !self.scene.lists(self.job, &id)),
        }
        self.forgotten.push(id);
    }

    fn undelete(&mut self) {
        let Some(id) = self.forgotten.pop() else { return };
        // A purge may have been quicker.
        if self.scene.run(self.job, &["undelete", "-r", &id]).code() == 0 {
            self.scene.shows("undeleted", || self.dir().join(&id).join("image").exists());
            self.revisions.insert(id);
        }
    }

    fn tag(&mut self) {
        if self.revisions.is_empty() {
            return;
        }
        let (id, tag) = (self.any(), format!("manual:{}", self.random.below(1000)));
        self.scene.run(self.job, &["tags", "add", &id, &tag]).expect(0);
        let link = self.dir().join(&tag);
        self.scene.shows("tag", || fs::read_link(&link).is_ok_and(|to| to == Path::new(&id)));
        let other = self.any();
        self.scene.run(self.job, &["tags", "remove", &id, &tag]).expect(0);
        self.scene.run(self.job, &["tags", "add", &other, &tag]).expect(0);
        self.scene.shows("moved tag", || fs::read_link(&link).is_ok_and(|to| to == Path::new(&other)));
        self.scene.run(self.job, &["tags", "remove", &other, &tag]).expect(0);
        self.scene.shows("tag taken away", || fs::symlink_metadata(&link).is_err());
    }

    fn verify(&mut self) {
        if self.revisions.is_empty() {
            return;
        }
        let id = self.any();
        self.scene.run(self.job, &["distrust", "-r", &id]).expect(0);
        let trust = || fs::read_to_string(self.dir().join(&id).join("info.json")).unwrap_or_default();
        self.scene.shows("trust", || trust().contains("distrusted"));
        self.scene.run(self.job, &["verify", "-r", &id]).expect(0);
    }
}

/// Jobs that come and go.
fn come_and_go(scene: &Scene) -> u64 {
    let (mut random, mut number) = (Random::new(5), 0);
    while scene.goes_on() {
        number += 1;
        let job = format!("guest{number}");
        let picture = Paints::picture(&mut random);
        scene.paints.write(&picture, &scene.world.path("guest.img"));
        scene.world.add_job(&job, "guest.img");
        scene.shows("new job", || scene.mnt.join(&job).exists());
        let run = scene.run(&job, &["backup", "daily"]);
        let open = (run.code() == 0).then(|| {
            let id = run.line();
            lock(&scene.pictures).insert((job.clone(), id.clone()), picture);
            scene.shows("new revision", || scene.mnt.join(&job).join(&id).exists());
            let image = scene.mnt.join(&job).join(&id).join("image");
            OpenImage { file: File::open(image).expect("it opens"), picture, window: 0..SIZE, name: id }
        });
        // A directory cannot be deleted at once with all that is in it: it goes away first.
        let gone = scene.world.path("gone");
        tool("mv", &[path(&scene.world.store().join(&job)), path(&gone)]);
        scene.shows("deleted job", || !scene.mnt.join(&job).exists());
        fs::remove_dir_all(&gone).expect("a job is deleted");
        if let Some(open) = open {
            open.piece(scene, random.below(SIZE), 100_000);
        }
        thread::sleep(Duration::from_millis(300));
    }
    number
}

fn purge(scene: &Scene) -> u64 {
    let mut count = 0;
    while scene.goes_on() {
        let run = scene.world.on_store(&["purge", "--now"]);
        // Guests whose directories were deleted are missing until somebody says that it was on purpose.
        let is_about_guests = |line: &str| !line.starts_with("warning") || line.contains("job guest");
        assert!(run.code() == 0 || run.code() == 1 && run.stderr.lines().all(is_about_guests), "{run}");
        count += 1;
        thread::sleep(Duration::from_millis(100));
    }
    count
}

/// A file of the mount and what it must read as.
struct OpenImage {
    file: File,
    picture: Picture,
    /// The bytes of the image that the file shows.
    window: std::ops::Range<u64>,
    name: String,
}

impl OpenImage {
    fn size(&self) -> u64 {
        self.window.end - self.window.start
    }

    /// Reads and compares up to `length` bytes; returns how many there were.
    fn piece(&self, scene: &Scene, offset: u64, length: usize) -> u64 {
        let mut data = vec![0xaa; length];
        let read = self
            .file
            .read_at(&mut data, offset)
            .unwrap_or_else(|error| panic!("{}: {length} bytes at {offset}: {error}", self.name));
        let expected = (self.size() - offset).min(length as u64);
        assert_eq!(read as u64, expected, "{}: short at {offset}", self.name);
        let wrong = scene.paints.wrong(&self.picture, self.window.start + offset, &data[..read]);
        assert_eq!(wrong, None, "{}: wrong bytes in {length} at {offset}", self.name);
        scene.read_bytes.fetch_add(expected, Ordering::Relaxed);
        expected
    }

    fn all(&self, scene: &Scene, length: usize) {
        let mut at = 0;
        while at < self.size() {
            at += self.piece(scene, at, length);
        }
    }

    /// Reads only what is not a hole, and checks that the holes are zeros.
    fn data(&self, scene: &Scene) {
        let mut at = 0i64;
        loop {
            let data = match nix::unistd::lseek(&self.file, at, SeekData) {
                Ok(found) => found,
                Err(Errno::ENXIO) => self.size() as i64,
                Err(error) => panic!("{}: SEEK_DATA: {error}", self.name),
            };
            let hole = vec![0; (data - at) as usize];
            assert_eq!(
                scene.paints.wrong(&self.picture, self.window.start + at as u64, &hole),
                None,
                "{}: a hole",
                self.name
            );
            if data as u64 == self.size() {
                return;
            }
            let end = nix::unistd::lseek(&self.file, data, SeekHole).expect("data has an end");
            for at in (data as u64..end as u64).step_by(1 << 20) {
                self.piece(scene, at, 4096);
            }
            at = end;
        }
    }

    fn drop_pages(&self) {
        posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .expect("pages can be dropped");
    }
}

/// Opens something of a job: by `last` or by its name, all of it or its partition, through the page cache or not.
/// `None` when it is gone.
fn open(scene: &Scene, random: &mut Random) -> Option<OpenImage> {
    let job = *random.pick(&JOBS);
    let dir = scene.mnt.join(job);
    let gone = |error: io::Error| {
        let number = error.raw_os_error().map(Errno::from_raw);
        assert!(matches!(number, Some(Errno::ENOENT | Errno::ESTALE)), "{job}: {error}");
        scene.vanished.fetch_add(1, Ordering::Relaxed);
    };
    let id = if random.below(3) == 0 {
        // There is none before the first backup.
        fs::read_link(dir.join("last")).ok()?.display().to_string()
    } else {
        let entries = fs::read_dir(&dir).expect("a job is listed").map(|entry| entry.expect("an entry"));
        // Links have names of tags, or `last`.
        let ids = entries.filter(|entry| entry.file_type().expect("it has a type").is_dir());
        let ids: Vec<String> = ids.map(|entry| entry.file_name().into_string().expect("text")).collect();
        (!ids.is_empty()).then(|| random.pick(&ids).clone())?
    };
    let (name, window) = match random.below(3) {
        0 => ("parts/1.img", PART),
        _ => ("image", 0..SIZE),
    };
    let flags = if random.below(3) == 0 { OFlag::O_DIRECT.bits() } else { 0 };
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(dir.join(&id).join(name));
    let file = opened.map_err(gone).ok()?;
    scene.opened.fetch_add(1, Ordering::Relaxed);
    let picture = scene.picture(job, &id);
    Some(OpenImage { file, picture, window, name: format!("{job}/{id}/{name}") })
}

/// Reads in every manner, keeps some files open for long, and reads all of those at the end.
fn read(scene: &Scene, seed: u64) -> Vec<OpenImage> {
    let mut random = Random::new(seed);
    let mut kept: Vec<OpenImage> = Vec::new();
    while scene.goes_on() {
        let Some(image) = open(scene, &mut random) else {
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        match random.below(4) {
            0 => image.all(scene, 1 << (12 + random.below(9))),
            1 => image.all(scene, 100_000),
            2 => image.data(scene),
            _ => {
                for _ in 0..200 {
                    image.piece(scene, random.below(image.size()) / 4096 * 4096, 4096);
                }
            }
        }
        if !kept.is_empty() {
            let old = random.pick(&kept);
            if random.below(3) == 0 {
                old.drop_pages();
            }
            for _ in 0..20 {
                old.piece(scene, random.below(old.size()), 50_000);
            }
        }
        match random.below(3) {
            0 if kept.len() < KEPT_MAX => kept.push(image),
            0 => kept[random.below(KEPT_MAX as u64) as usize] = image,
            1 => image.drop_pages(),
            _ => {}
        }
    }
    kept
}

#[test]
fn all_that_is_read_beside_backups_forgets_and_purges_is_right() {
    if !Path::new("/dev/fuse").exists() {
        println!("skipped: the kernel has no /dev/fuse");
        return;
    }
    let world = World::new(env!("CARGO_BIN_EXE_backy"));
    for job in &JOBS {
        if *job != backy_testkit::JOB {
            world.add_job(job, &format!("{job}.img"));
        }
        world.configure(
            job,
            &format!(
                "source: {{type: file, filename: {job}.img}}\nschedule: {{daily: {{interval: 1d, keep: 3}}}}\n"
            ),
        );
    }
    let mount = Mount::new(&world, &["-o", "cache=16M"]);
    let mut seed = Random::from_env("BACKY_TEST_SEED", 23);
    let scene = Scene {
        mnt: mount.point.clone(),
        world,
        paints: Paints::new(),
        pictures: Mutex::default(),
        times: Mutex::default(),
        until: Instant::now() + torture_time(),
        over: AtomicBool::new(false),
        read_bytes: AtomicU64::new(0),
        opened: AtomicU64::new(0),
        vanished: AtomicU64::new(0),
    };
    let (kept, steps, purges, guests) = thread::scope(|scope| {
        let scene = &scene;
        let keepers: Vec<_> = JOBS
            .iter()
            .map(|job| {
                let random = Random::new(seed.bits());
                let (revisions, forgotten) = (BTreeSet::new(), Vec::new());
                let keeper = Keeper { scene, job, random, revisions, forgotten, steps: 0 };
                scope.spawn(move || {
                    let _alarm = Alarm(&scene.over);
                    keeper.live()
                })
            })
            .collect();
        let seeds: Vec<u64> = (0..READERS).map(|_| seed.bits()).collect();
        let readers = seeds.into_iter().map(|seed| {
            scope.spawn(move || {
                let _alarm = Alarm(&scene.over);
                read(scene, seed)
            })
        });
        let readers: Vec<_> = readers.collect();
        let with_alarm = |work: fn(&Scene) -> u64| {
            scope.spawn(move || {
                let _alarm = Alarm(&scene.over);
                work(scene)
            })
        };
        let (purging, guests) = (with_alarm(purge), with_alarm(come_and_go));
        let kept: Vec<_> = readers.into_iter().flat_map(|reader| reader.join().expect("a reader")).collect();
        let steps: u64 = keepers.into_iter().map(|keeper| keeper.join().expect("a job")).sum();
        (kept, steps, purging.join().expect("the purges"), guests.join().expect("the guests"))
    });

    // All are forgotten and purged under those who have them open still.
    let left: Vec<(&str, Vec<String>)> = JOBS
        .iter()
        .map(|job| {
            let ids = scene.run(job, &["find", "-r", "all", "--uuid"]).expect(0);
            (*job, ids.text().lines().map(str::to_owned).collect())
        })
        .collect();
    for (job, ids) in &left {
        for id in &ids[..ids.len().saturating_sub(2)] {
            scene.run(job, &["forget", "-r", id]).expect(0);
        }
    }
    let guests_gone: BTreeSet<String> = lock(&scene.pictures)
        .keys()
        .map(|(job, _)| job.clone())
        .filter(|job| job.starts_with("guest"))
        .collect();
    let mut words = vec!["purge", "--now"];
    words.extend(guests_gone.iter().flat_map(|job| ["--without", job]));
    scene.world.on_store(&words).expect(0);
    for image in &kept {
        image.drop_pages();
        image.all(&scene, 1 << 20);
    }
    println!(
        "{} steps, {purges} purges, {guests} jobs that came and went; {} files opened, {} had gone, {} MiB read, {} open to the end",
        steps,
        scene.opened.load(Ordering::Relaxed),
        scene.vanished.load(Ordering::Relaxed),
        scene.read_bytes.load(Ordering::Relaxed) >> 20,
        kept.len()
    );
    drop(kept);
    let times = std::mem::take(&mut *lock(&scene.times));
    for (kind, times) in &times {
        let (Some(best), Some(worst)) = (times.iter().min(), times.iter().max()) else { continue };
        println!("{kind}: {} times, best {best:?}, worst {worst:?}", times.len());
        // One or two on a machine that does other things say nothing.
        assert!(*best < PROMPT || times.len() < SAMPLES_MIN, "{kind}: {times:?}");
    }
    whole_at_the_end(&scene.world);
    // It has met nothing worth a line.
    let log = mount.finish();
    assert!(!log.contains("ERROR") && !log.contains(" E "), "{log}");
}

/// What is left verifies, and a purge tidies up what those have left who are gone.
fn whole_at_the_end(world: &World) {
    for job in &JOBS {
        let run = Run::of(&mut world.command_for(job, &["verify", "-r", "all"])).expect(0);
        assert!(!run.text().contains("bad"), "{run}");
    }
    // The kernel tells the mount a little later that a file was closed.
    let sessions = || {
        world.on_store(&["purge", "--now"]).expect(0);
        let entries = fs::read_dir(world.store().join("writers")).expect("it is listed");
        let names = entries.map(|entry| text(entry.expect("an entry").file_name().as_encoded_bytes()));
        names.filter(|name| name != ".lock").collect::<Vec<_>>()
    };
    eventually("a purge leaves no session", || sessions().is_empty());
    assert_eq!(fs::read_dir(world.store().join("tmp")).expect("it is listed").count(), 0);
}
