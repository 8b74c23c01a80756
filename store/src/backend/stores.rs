//! Whole stores on each backend: backups, reads, purges, damage and repair, written against the trait.

use std::sync::Arc;

use super::BackendKind;
use super::memory::MemoryStore;
use crate::format::name::{FileKind, FileName};
use crate::format::{CHUNK_LEN as CHUNK, FRAME_LEN};
use crate::maintain::sweep::{SweepOptions, SweepReport, sweep};
use crate::maintain::verify::verify;
use crate::testing::{image, new_job_with, noise, now, write_revision};
use crate::{FrameCache, Job, Result, Revision, Silent, Trust};

fn names(job: &Job, kind: FileKind) -> Vec<FileName> {
    let backend = job.repository().backend().unwrap();
    let mut names = Vec::new();
    for shard in 0..=255 {
        backend.list(shard, &mut |name| names.push(name)).unwrap();
    }
    names.retain(|name| name.kind == kind);
    names
}

fn read(job: &Job, revision: &Revision) -> Result<Vec<u8>> {
    let reader = job.open_revision(revision, &Arc::new(FrameCache::new(1 << 22)))?;
    let mut data = vec![9; reader.size_bytes() as usize];
    reader.read_at(0, &mut data).map(|_| data)
}

fn forget(job: &Job, revision: &Revision) {
    job.forget(&job.lock_manifests().unwrap(), &revision.id, now()).unwrap();
}

fn purge(job: &Job) -> SweepReport {
    sweep(job.repository(), &SweepOptions::new(0, now()), &Silent).unwrap()
}

fn is_good(job: &Job, revision: &Revision) -> bool {
    verify(job, std::slice::from_ref(revision), 2, now(), &Silent).unwrap().bad.is_empty()
}

/// An image of two chunks, and the same with another page in the second one.
fn images() -> [Vec<u8>; 2] {
    let before = image(1, 2 * CHUNK);
    let mut after = before.clone();
    after[CHUNK + 5 * FRAME_LEN..][..4096].copy_from_slice(&noise(2, 4096));
    [before, after]
}

/// Writes both images, one revision on the other.
fn write_both(job: &Job, images: &[Vec<u8>; 2]) -> [Revision; 2] {
    let first = write_revision(job, &images[0], None);
    let second = write_revision(job, &images[1], Some(first.clone()));
    [first, second]
}

fn backups_are_read_forgotten_and_purged(backend: BackendKind) {
    let (_dir, job) = new_job_with("web01", backend);
    let images = images();
    let revisions = write_both(&job, &images);
    assert_eq!((names(&job, FileKind::Chunk).len(), names(&job, FileKind::Group).len()), (2, 1));
    for (revision, image) in revisions.iter().zip(&images) {
        assert!(read(&job, revision).unwrap() == *image);
        assert!(is_good(&job, revision));
    }
    let other = write_revision(&job, &image(3, CHUNK), Some(revisions[1].clone()));
    forget(&job, &other);
    assert_eq!(purge(&job).chunks_deleted, 1);
    // The second revision needs both chunks of the first one, and the group.
    forget(&job, &revisions[0]);
    let report = purge(&job);
    assert_eq!((report.chunks_deleted, report.chunks_missing, report.revisions_deleted.len()), (0, 0, 1));
    assert!(read(&job, &revisions[1]).unwrap() == images[1]);
    assert!(is_good(&job, &revisions[1]));
    forget(&job, &revisions[1]);
    assert_eq!(purge(&job).chunks_deleted, 3);
    assert!(names(&job, FileKind::Chunk).is_empty() && names(&job, FileKind::Group).is_empty());
}

fn damage_is_found_and_repaired_by_the_next_backup(backend: BackendKind) {
    let (_dir, job) = new_job_with("web01", backend);
    let images = images();
    let revisions = write_both(&job, &images);
    for kind in [FileKind::Chunk, FileKind::Group] {
        let files = job.repository().backend().unwrap();
        for name in names(&job, kind) {
            let file = files.open(&name).unwrap().unwrap();
            let mut bytes = vec![0; file.len() as usize];
            file.read_at(&mut bytes, 0).unwrap();
            // The header of a chunk, or the first run of a group.
            bytes[100] ^= 0x10;
            files.put(&name, &bytes, "temporary", true).unwrap();
        }
        assert!(read(&job, &revisions[1]).unwrap_err().is_damage());
        assert!(!is_good(&job, &revisions[1]));
        assert_eq!(job.revision(&revisions[1].id).unwrap().trust, Trust::Distrusted);
        for (revision, image) in revisions.iter().zip(&images) {
            write_revision(&job, image, Some(revision.clone()));
        }
        for (revision, image) in revisions.iter().zip(&images) {
            assert!(read(&job, revision).unwrap() == *image);
            assert!(is_good(&job, revision));
        }
    }
}

fn a_missing_chunk_is_found_and_repaired_by_the_next_backup(backend: BackendKind) {
    let (_dir, job) = new_job_with("web01", backend);
    let data = image(1, 2 * CHUNK);
    let revision = write_revision(&job, &data, None);
    let name = names(&job, FileKind::Chunk)[0];
    job.repository().backend().unwrap().delete(&name).unwrap();
    assert_eq!(read(&job, &revision).unwrap_err().damaged_files(), [name.id]);
    assert_eq!(purge(&job).chunks_missing, 1);
    write_revision(&job, &data, Some(revision.clone()));
    assert!(read(&job, &revision).unwrap() == data && is_good(&job, &revision));
}

macro_rules! store_tests {
    ($($case:ident,)*) => {
        mod local_files {
            $(#[test] fn $case() { super::$case(super::BackendKind::Local); })*
        }
        mod memory {
            $(#[test] fn $case() { super::$case(super::BackendKind::Memory(Default::default())); })*
        }
    };
}

store_tests! {
    backups_are_read_forgotten_and_purged,
    damage_is_found_and_repaired_by_the_next_backup,
    a_missing_chunk_is_found_and_repaired_by_the_next_backup,
}

#[test]
fn a_committed_revision_survives_a_power_loss() {
    let store = MemoryStore::default();
    let (_dir, job) = new_job_with("web01", BackendKind::Memory(store.clone()));
    let images = images();
    let revisions = write_both(&job, &images);
    store.lose_power();
    for (revision, image) in revisions.iter().zip(&images) {
        assert!(read(&job, revision).unwrap() == *image);
    }
    // All chunk files are in memory.
    for shard in 0..=255u8 {
        let dir = job.repository().root().join(format!("chunks/{shard:02x}"));
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
    }
}

#[test]
fn a_chunk_whose_file_cannot_be_read_is_damaged() {
    let store = MemoryStore::default();
    let (_dir, job) = new_job_with("web01", BackendKind::Memory(store.clone()));
    let revision = write_revision(&job, &image(1, 2 * CHUNK), None);
    let name = names(&job, FileKind::Chunk)[0];
    store.make_unreadable(&name);
    assert_eq!(read(&job, &revision).unwrap_err().damaged_files(), [name.id]);
    assert!(!is_good(&job, &revision));
}

#[test]
fn a_backup_without_room_fails_and_harms_no_other() {
    let store = MemoryStore::default();
    let (_dir, job) = new_job_with("web01", BackendKind::Memory(store.clone()));
    let data = image(1, CHUNK);
    let revision = write_revision(&job, &data, None);
    store.set_room(Some(10_000));
    let guard = job.lock_for_backup().unwrap();
    let other = image(2, CHUNK);
    let writer = job.new_revision(&guard, crate::testing::new_revision(&other, None)).unwrap();
    let error = writer.chunk_writer().unwrap().put(0, &other).unwrap_err();
    assert_eq!(error.io_kind(), Some(std::io::ErrorKind::StorageFull));
    drop((writer, guard));
    store.set_room(None);
    assert_eq!(names(&job, FileKind::Chunk).len(), 1);
    assert!(read(&job, &revision).unwrap() == data);
    let second = write_revision(&job, &other, Some(revision));
    assert!(read(&job, &second).unwrap() == other);
}
