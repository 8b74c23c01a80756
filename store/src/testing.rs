//! What the tests of this crate share: a job in a temporary store, images, revisions.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Job, JobName, NewRevision, Repository, Reuse, Revision, RevisionId, Stats, Tag, Timestamp};

pub(crate) fn now() -> Timestamp {
    Timestamp::from_secs(1_700_000_000).unwrap()
}

pub(crate) fn new_job(name: &str) -> (tempfile::TempDir, Job) {
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::create(&dir.path().join("srv"), now()).unwrap();
    let job = repository.create_job(&JobName::parse(name).unwrap(), false, "{}\n", now()).unwrap();
    (dir, job)
}

/// Bytes that look like a disk: words, noise and zeros, different for every seed.
pub(crate) fn image(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut data = Vec::with_capacity(length + 4096);
    while data.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let word = state.to_le_bytes();
        match state >> 62 {
            0 => data.resize(data.len() + 4096, 0),
            1 => data.extend(word.iter().cycle().take(4096)),
            _ => data.extend(
                (0..512u64).flat_map(|at| (state ^ at).wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()),
            ),
        }
    }
    data.truncate(length);
    data
}

/// Bytes that cannot be compressed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

pub(crate) fn new_revision(data: &[u8], base: Option<Revision>) -> NewRevision {
    NewRevision {
        id: RevisionId::random().unwrap(),
        timestamp: now(),
        tags: BTreeSet::from([Tag::parse("daily").unwrap()]),
        image_size_bytes: data.len() as u64,
        parent: base.as_ref().map(|base| base.id.clone()),
        base,
        reuse: Reuse::Header,
        level: 1,
        with_others: true,
    }
}

pub(crate) fn write_revision(job: &Job, data: &[u8], base: Option<Revision>) -> Revision {
    let guard = job.lock_for_backup().unwrap();
    let writer = job.new_revision(&guard, new_revision(data, base)).unwrap();
    let mut chunks = writer.chunk_writer().unwrap();
    for (number, chunk) in data.chunks(1 << 22).enumerate() {
        chunks.put(number as u64, chunk).unwrap();
    }
    drop(chunks);
    let stats = Stats { bytes_written: data.len() as u64, duration_secs: Some(0.5), extra: BTreeMap::new() };
    writer.finish(&guard, stats, BTreeMap::new()).unwrap()
}

pub(crate) fn commit_empty_revision(job: &Job, number: i64) -> Revision {
    let guard = job.lock_for_backup().unwrap();
    let new = NewRevision { timestamp: now().plus_secs(number), ..new_revision(b"", None) };
    job.new_revision(&guard, new).unwrap().finish(&guard, Stats::default(), BTreeMap::new()).unwrap()
}

/// A file in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl Memory {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(std::sync::Arc::new(std::sync::Mutex::new(bytes.to_vec())))
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn file(&self) -> Box<dyn crate::backend::StoredChunk> {
        Box::new(self.clone())
    }

    pub(crate) fn new_file(&self) -> Box<dyn crate::backend::NewFile> {
        Box::new(self.clone())
    }
}

impl crate::backend::StoredChunk for Memory {
    fn len(&self) -> u64 {
        self.0.lock().unwrap().len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let bytes = self.0.lock().unwrap();
        let from = bytes.get((offset as usize).min(bytes.len())..).unwrap_or_default();
        let length = from.len().min(buf.len());
        buf[..length].copy_from_slice(&from[..length]);
        Ok(length)
    }

    fn will_need(&self, _offset: u64, _len: u64) {}
}

impl crate::backend::NewFile for Memory {
    fn append(&mut self, bytes: &[u8]) -> crate::Result<()> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(())
    }

    fn reader(&self) -> crate::Result<Box<dyn crate::backend::StoredChunk>> {
        Ok(self.file())
    }

    fn place(&mut self) -> crate::Result<()> {
        Ok(())
    }
}
