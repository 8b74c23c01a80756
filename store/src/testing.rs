//! What the tests of this crate share: a job in a temporary store, images, revisions.

use std::collections::{BTreeMap, BTreeSet};

pub(crate) use crate::backend::memory::MemoryFile as Memory;

use crate::backend::BackendKind;
use crate::{Job, JobName, NewRevision, Repository, Reuse, Revision, RevisionId, Stats, Tag, Timestamp};

pub(crate) fn now() -> Timestamp {
    Timestamp::from_secs(1_700_000_000).unwrap()
}

pub(crate) fn new_job(name: &str) -> (tempfile::TempDir, Job) {
    new_job_with(name, BackendKind::Local)
}

/// As [`new_job`], in a store that has this backend.
pub(crate) fn new_job_with(name: &str, backend: BackendKind) -> (tempfile::TempDir, Job) {
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::create(&dir.path().join("srv"), now()).unwrap().with_backend(backend);
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
