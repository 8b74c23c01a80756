//! What the tests of the mount share: a store with a job, revisions with known bytes, patience.

#![allow(clippy::print_stderr, dead_code, unreachable_pub, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backy_fuse::{Mounted, Options};
use backy_store::{
    CHUNK_SIZE, FRAME_SIZE, Job, JobName, NewRevision, Repository, Reuse, Revision, RevisionId, Stats, Tag,
    Timestamp,
};

/// The promise is one second; a crowded test machine gets more.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn at(secs: i64) -> Timestamp {
    Timestamp::from_secs(1_700_000_000 + secs).unwrap()
}

pub struct Place {
    pub dir: tempfile::TempDir,
    pub job: Job,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::create(&dir.path().join("srv"), at(0)).unwrap();
        let job = repository.create_job(&JobName::parse("web01").unwrap(), false, "{}\n", at(0)).unwrap();
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        Self { dir, job }
    }

    pub fn store(&self) -> PathBuf {
        self.dir.path().join("srv")
    }

    pub fn point(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.point().join(below)
    }

    pub fn image(&self, revision: &Revision) -> PathBuf {
        self.path(&format!("web01/{}/image", revision.id))
    }

    pub fn mount(&self) -> Mounted {
        Mounted::new(&self.store(), &self.point(), &Options::default()).unwrap()
    }

    pub fn add(&self, secs: i64, tags: &str, data: &[u8]) -> Revision {
        let new = NewRevision {
            id: RevisionId::random().unwrap(),
            timestamp: at(secs),
            tags: Tag::parse_list(tags).unwrap(),
            image_size_bytes: data.len() as u64,
            base: None,
            parent: None,
            reuse: Reuse::Header,
            level: 1,
            with_others: false,
        };
        let guard = self.job.lock_for_backup().unwrap();
        let writer = self.job.new_revision(&guard, new).unwrap();
        let mut chunks = writer.chunk_writer().unwrap();
        for (number, chunk) in data.chunks(CHUNK_SIZE as usize).enumerate() {
            chunks.put(number as u64, chunk).unwrap();
        }
        drop(chunks);
        let stats = Stats { duration_secs: Some(1.0), ..Stats::default() };
        writer.finish(&guard, stats, BTreeMap::new()).unwrap()
    }

    pub fn forget(&self, revision: &Revision) {
        let guard = self.job.lock_manifests().unwrap();
        self.job.forget(&guard, &revision.id, at(0)).unwrap();
    }
}

/// Bytes that cannot be compressed, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut data = Vec::with_capacity(length + 8);
    while data.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    data.truncate(length);
    data
}

/// Changes one byte of one frame of the only large chunk.
pub fn spoil_frame(store: &Path, frame: u64) {
    use std::os::unix::fs::FileExt;
    let dirs = std::fs::read_dir(store.join("chunks")).unwrap();
    let chunks = dirs.flat_map(|dir| std::fs::read_dir(dir.unwrap().path()).unwrap());
    let path =
        chunks.map(|chunk| chunk.unwrap().path()).find(|path| path.metadata().unwrap().len() > 3 << 20);
    let file = std::fs::File::options().read(true).write(true).open(path.unwrap()).unwrap();
    // Noise is kept raw: the frames lie one after another behind the header.
    let header = file.metadata().unwrap().len() - CHUNK_SIZE;
    let offset = header + frame * FRAME_SIZE + 100;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

/// Returns whether the tests can run at all; says so where they cannot.
pub fn can_mount() -> bool {
    let can = Path::new("/dev/fuse").exists();
    if !can {
        eprintln!("SKIPPED: /dev/fuse does not exist here");
    }
    can
}

pub fn soon(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn names(dir: &Path) -> BTreeSet<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    std::fs::read_dir(dir).unwrap().map(name).collect()
}

pub fn is_mounted(point: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == point.to_str())
}
