//! What recipes must stand: bases and groups that are damaged, lost, forgotten or swept, and many days on one base.

mod copies;
mod wear;

use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::format::name::{FileName, Place};
use crate::maintain::sweep::{SweepOptions, sweep};
use crate::maintain::verify::verify;
use crate::restore::{RestoreOptions, Target, restore};
use crate::testing::{image, new_job, new_revision, noise, now, write_revision};
use crate::{CHUNK_SIZE, FRAME_SIZE, FrameCache, Trust};

const CHUNK: usize = CHUNK_SIZE as usize;
const FRAME: usize = FRAME_SIZE as usize;

fn files(job: &Job) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for shard in 0..=255u8 {
        let dir = job.repository().root().join(format!("chunks/{shard:02x}"));
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            found.push((entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len()));
        }
    }
    found.sort();
    found
}

fn groups(job: &Job) -> Vec<(String, u64)> {
    files(job).into_iter().filter(|(name, _)| name.ends_with(".group")).collect()
}

/// Flips a bit of the first page in a group.
fn flip_run(job: &Job, name: &str) {
    let mut bytes = std::fs::read(path(job, name)).unwrap();
    bytes[64 + 12 + 100] ^= 0x10;
    std::fs::write(path(job, name), bytes).unwrap();
}

/// Writes a revision without a look at other jobs.
fn write_alone(job: &Job, data: &[u8]) -> Revision {
    let guard = job.lock_for_backup().unwrap();
    let new = NewRevision { with_others: false, ..new_revision(data, None) };
    let writer = job.new_revision(&guard, new).unwrap();
    let mut chunks = writer.chunk_writer().unwrap();
    for (number, chunk) in data.chunks(CHUNK).enumerate() {
        chunks.put(number as u64, chunk).unwrap();
    }
    drop(chunks);
    writer.finish(&guard, Stats::default(), BTreeMap::new()).unwrap()
}

fn path(job: &Job, name: &str) -> PathBuf {
    job.repository().root().join(format!("chunks/{}/{name}", &name[..2]))
}

/// Flips a bit of the file of a chunk, counted from the end of its frames.
fn flip(job: &Job, name: &str, from_end: usize) {
    let mut bytes = std::fs::read(path(job, name)).unwrap();
    let at = bytes.len() - 32 - from_end;
    bytes[at] ^= 0x10;
    std::fs::write(path(job, name), bytes).unwrap();
}

fn read(job: &Job, revision: &Revision) -> Result<Vec<u8>> {
    let reader = job.open_revision(revision, &Arc::new(FrameCache::new(1 << 22)))?;
    let mut data = vec![9; reader.size_bytes() as usize];
    reader.read_at(0, &mut data).map(|_| data)
}

/// The image, and what of it is lost.
type Restored = (Vec<u8>, Vec<(u64, u64)>);

fn restored(job: &Job, revision: &Revision, salvage: bool) -> Result<Restored> {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("image");
    let options = RestoreOptions { force: false, salvage, threads: 2 };
    let report = restore(job, revision, Target::Path(target.clone()), &options, &crate::Silent)?;
    Ok((std::fs::read(target).unwrap(), report.lost))
}

fn purge(job: &Job) -> crate::maintain::sweep::SweepReport {
    let options = SweepOptions::new(0, now());
    sweep(job.repository(), &options, &crate::Silent).unwrap()
}

fn forget(job: &Job, revision: &Revision) {
    job.forget(&job.lock_manifests().unwrap(), &revision.id, now()).unwrap();
}

fn verified(job: &Job, revision: &Revision) -> bool {
    let report = verify(job, std::slice::from_ref(revision), 2, now(), &crate::Silent).unwrap();
    report.bad.is_empty()
}

/// A job with a revision of noise and one with a changed page in the second chunk; their images and the names of the
/// base and the group.
struct Pair {
    _dir: tempfile::TempDir,
    job: Job,
    images: [Vec<u8>; 2],
    revisions: [Revision; 2],
    base: String,
    group: String,
}

fn pair() -> Pair {
    let (dir, job) = new_job("web01");
    let before = noise(1, 2 * CHUNK);
    let mut after = before.clone();
    after[CHUNK + 5 * FRAME..][..4096].copy_from_slice(&noise(2, 4096));
    let first = write_revision(&job, &before, None);
    let second = write_revision(&job, &after, Some(first.clone()));
    let base = ChunkId::of(&before[CHUNK..]).to_string();
    let [(group, length)] = &groups(&job)[..] else { panic!("{:?}", files(&job)) };
    assert!(*length < 6700, "{length}");
    let group = group.clone();
    Pair { _dir: dir, job, images: [before, after], revisions: [first, second], base, group }
}

#[test]
fn a_small_change_stores_little_and_reads_back_everywhere() {
    let pair = pair();
    for (revision, image) in pair.revisions.iter().zip(&pair.images) {
        assert!(read(&pair.job, revision).unwrap() == *image);
        assert!(restored(&pair.job, revision, false).unwrap().0 == *image);
        assert!(verified(&pair.job, revision));
    }
    // A whole chunk at once, as sequential readers get it.
    let reader = pair.job.open_revision(&pair.revisions[1], &Arc::new(FrameCache::new(1 << 23))).unwrap();
    let piece = reader.piece(CHUNK_SIZE, CHUNK, crate::Extent::Chunk).unwrap();
    assert!(*piece == pair.images[1][CHUNK..]);
}

#[test]
fn the_old_state_again_is_known_and_needs_no_group() {
    let Pair { job, images, revisions, .. } = &pair();
    let before = files(job);
    let third = write_revision(job, &images[0], Some(revisions[1].clone()));
    assert_eq!(files(job), before);
    let fourth = write_revision(job, &images[1], Some(third.clone()));
    for revision in [&third, &fourth] {
        assert!(verified(job, revision));
    }
    // The map of the third names no group, so the base alone is enough for it.
    for revision in [&revisions[0], &revisions[1], &fourth] {
        forget(job, revision);
    }
    purge(job);
    assert_eq!((files(job).len(), groups(job).len()), (2, 0));
    assert!(read(job, &third).unwrap() == images[0]);
}

#[test]
fn a_base_stays_as_long_as_a_recipe_refers_to_it() {
    let Pair { job, images, revisions, .. } = &pair();
    forget(job, &revisions[0]);
    let report = purge(job);
    assert_eq!((report.chunks_deleted, report.chunks_kept), (0, 3));
    assert!(read(job, &revisions[1]).unwrap() == images[1]);
    forget(job, &revisions[1]);
    assert_eq!(purge(job).chunks_deleted, 3);
}

#[test]
fn a_base_that_is_purged_while_a_run_is_written_stays() {
    let Pair { job, images, revisions, .. } = &pair();
    let guard = job.lock_for_backup().unwrap();
    let mut data = images[1].clone();
    data[CHUNK + 9 * FRAME] ^= 1;
    let writer = job.new_revision(&guard, new_revision(&data, Some(revisions[1].clone()))).unwrap();
    revisions.iter().for_each(|revision| forget(job, revision));
    purge(job);
    let mut chunks = writer.chunk_writer().unwrap();
    chunks.put(1, &data[CHUNK..]).unwrap();
    purge(job);
    drop(chunks);
    let third = writer.finish(&guard, Stats::default(), BTreeMap::new()).unwrap();
    purge(job);
    assert_eq!(groups(job).len(), 2, "the new recipe needs the old run as well");
    assert!(read(job, &third).unwrap() == data);
}

#[test]
fn damage_of_a_base_is_damage_of_all_that_lean_on_it_where_they_do() {
    let Pair { job, images, revisions, base, .. } = &pair();
    // The last frame of the base, which both revisions use, and none of their own.
    flip(job, base, 10);
    let last = 2 * CHUNK_SIZE - FRAME_SIZE;
    for (revision, image) in revisions.iter().zip(images) {
        let error = restored(job, revision, false).unwrap_err();
        assert_eq!(error.damaged_chunk().unwrap().to_string(), *base);
        let (found, lost) = restored(job, revision, true).unwrap();
        assert_eq!(lost, [(last, FRAME_SIZE)]);
        assert!(found[..last as usize] == image[..last as usize]);
    }
    for revision in revisions {
        assert_eq!(job.revision(&revision.id).unwrap().trust, Trust::Distrusted);
        assert!(!verified(job, revision));
    }
}

#[test]
fn what_does_not_lean_on_a_lost_base_is_read() {
    let Pair { job, images, revisions, base, .. } = &pair();
    let mut data = images[1].clone();
    data[CHUNK + 7 * FRAME..][..FRAME].fill(0);
    let third = write_revision(job, &data, Some(revisions[1].clone()));
    disk::remove(&path(job, base)).unwrap();
    let (found, lost) = restored(job, &third, true).unwrap();
    // Frame 5 is a patch and so lost as well; frame 7 is zeros.
    assert_eq!(lost, [(CHUNK_SIZE, 7 * FRAME_SIZE), (CHUNK_SIZE + 8 * FRAME_SIZE, 56 * FRAME_SIZE)]);
    assert!(found[..CHUNK] == data[..CHUNK]);
}

#[test]
fn the_next_backup_heals_what_leans_on_a_damaged_base() {
    for is_missing in [false, true] {
        let Pair { job, images, revisions, base, .. } = &pair();
        if is_missing {
            disk::remove(&path(job, base)).unwrap()
        } else {
            flip(job, base, 10)
        }
        assert!(!verified(job, &revisions[1]));
        // The second state again, from the source: in full, since its base is not to be relied on.
        let third = write_revision(job, &images[1], Some(revisions[1].clone()));
        assert!(read(job, &third).unwrap() == images[1], "missing: {is_missing}");
        assert!(verified(job, &revisions[1]), "the older revision is healed as well");
        assert!(!verified(job, &revisions[0]));
        let fourth = write_revision(job, &images[0], Some(third.clone()));
        assert!(read(job, &fourth).unwrap() == images[0]);
        assert!(verified(job, &revisions[0]));
        // The group stays as long as a map names it, though the full chunk is read instead.
        purge(job);
        assert_eq!(groups(job).len(), 1);
        forget(job, &revisions[1]);
        purge(job);
        assert!(groups(job).is_empty() && read(job, &third).unwrap() == images[1]);
        assert!(read(job, &fourth).unwrap() == images[0]);
        assert_eq!(std::fs::read_dir(job.repository().root().join("damaged")).unwrap().count(), 0);
    }
}

#[test]
fn what_a_damaged_group_has_is_written_anew_in_full() {
    let Pair { job, images, revisions, group, .. } = &pair();
    flip_run(job, group);
    assert!(!verified(job, &revisions[1]));
    assert_eq!(job.revision(&revisions[0].id).unwrap().trust, Trust::Trusted, "it does not use the group");
    purge(job);
    let mark = job.repository().damage_mark(&ChunkId::of(&images[1][CHUNK..]));
    assert!(mark.exists(), "the mark of a chunk that is made by a recipe is not stale");
    let third = write_revision(job, &images[1], Some(revisions[1].clone()));
    assert!(!mark.exists());
    assert!(verified(job, &revisions[1]) && verified(job, &third));
}

#[test]
fn nothing_leans_on_what_is_in_doubt() {
    let Pair { job, images, revisions, base, .. } = &pair();
    let change = |byte: usize| {
        let mut data = images[1].clone();
        data[CHUNK + byte] ^= 1;
        data
    };
    std::fs::write(job.repository().damage_mark(&ChunkId::parse(base).unwrap()), b"").unwrap();
    write_revision(job, &change(1), Some(revisions[1].clone()));
    assert_eq!(groups(job).len(), 1);
    disk::remove(&job.repository().damage_mark(&ChunkId::parse(base).unwrap())).unwrap();
    let guard = job.lock_for_backup().unwrap();
    let data = change(2);
    let new = NewRevision { reuse: Reuse::Full, ..new_revision(&data, Some(revisions[1].clone())) };
    let writer = job.new_revision(&guard, new).unwrap();
    writer.chunk_writer().unwrap().put(1, &data[CHUNK..]).unwrap();
    assert_eq!(groups(job).len(), 1);
    // A base whose frame turns out to be bad while a patch is made on it: in full, and told.
    drop((writer, guard));
    flip(job, base, 10);
    let data = change(CHUNK - 3);
    let last = write_revision(job, &data, Some(revisions[1].clone()));
    assert_eq!(groups(job).len(), 1);
    assert_eq!(job.revision(&revisions[0].id).unwrap().trust, Trust::Distrusted);
    assert!(read(job, &last).unwrap()[CHUNK..] == data[CHUNK..]);
}

#[test]
fn runs_end_when_together_they_are_as_large_as_their_base() {
    let (_dir, job) = new_job("web01");
    let mut data = noise(1, CHUNK);
    let mut revisions = vec![write_revision(&job, &data, None)];
    let mut images = vec![data.clone()];
    for day in 0..24u64 {
        // Four fresh frames a day: 262 KB.
        let at = (day as usize * 4 % 64) * FRAME;
        data[at..at + 4 * FRAME].copy_from_slice(&noise(100 + day, 4 * FRAME));
        revisions.push(write_revision(&job, &data, revisions.last().cloned()));
        images.push(data.clone());
    }
    for (revision, image) in revisions.iter().zip(&images) {
        assert!(read(&job, revision).unwrap() == *image);
    }
    assert!(files(&job).len() > groups(&job).len() + 1, "a full chunk was due");
    let stored: u64 = files(&job).iter().map(|(_, length)| length).sum();
    assert!(stored < 25 * CHUNK_SIZE * 4 / 10, "{stored}");
}

#[test]
fn a_full_chunk_that_the_base_did_not_have_is_made_durable() {
    let Pair { job, images, revisions, .. } = &pair();
    // Another run has written the chunk in full, and died.
    let other = new_job_beside(job, "web02");
    let guard = other.lock_for_backup().unwrap();
    let mut dead = other.new_revision(&guard, new_revision(&images[1], None)).unwrap();
    dead.siblings = None;
    dead.pages = None;
    dead.chunk_writer().unwrap().put(1, &images[1][CHUNK..]).unwrap();
    drop(dead);
    let guard = job.lock_for_backup().unwrap();
    let new = new_revision(&images[1], Some(revisions[1].clone()));
    let writer = job.new_revision(&guard, new).unwrap();
    assert!(writer.chunk_writer().unwrap().keep(0).unwrap());
    assert!(!writer.found_new.load(Ordering::Relaxed), "the base had it");
    assert!(writer.chunk_writer().unwrap().keep(1).unwrap());
    let found = writer.map.get(1).unwrap().unwrap();
    assert_eq!(found, Place::full(found.id));
    assert!(writer.found_new.load(Ordering::Relaxed), "and a barrier is due");
    let third = writer.finish(&guard, Stats::default(), BTreeMap::new()).unwrap();
    assert!(read(job, &third).unwrap() == images[1]);
}

#[test]
fn a_cold_run_keeps_no_group_of_hot_ones() {
    let (_dir, job) = new_job("web01");
    let mut data = noise(1, 5 * CHUNK);
    let mut revisions = vec![write_revision(&job, &data, None)];
    for day in 0..16u64 {
        // The same forty pages every day, and one of a chunk that does not change again for days.
        for page in 0..40 {
            data[page * 16 * 4096..][..4096].copy_from_slice(&noise(day * 100 + page as u64, 4096));
        }
        let cold = (1 + day as usize % 4) * CHUNK + day as usize * 3 * 4096;
        data[cold..cold + 4096].copy_from_slice(&noise(7777 + day, 4096));
        revisions.push(write_revision(&job, &data, revisions.last().cloned()));
        assert!(read(&job, revisions.last().unwrap()).unwrap() == data, "day {day}");
    }
    let last = revisions.pop().unwrap();
    revisions.iter().for_each(|revision| forget(&job, revision));
    purge(&job);
    assert!(verified(&job, &last) && read(&job, &last).unwrap() == data);
    // One day of hot pages is 164 KB, all cold ones are 66 KB; without moving, it would be 16 days.
    let left: u64 = groups(&job).iter().map(|(_, length)| length).sum();
    assert!(left < 700_000, "{left}: {:?}", groups(&job));
}

#[test]
fn a_change_of_most_of_a_chunk_is_stored_in_full() {
    let Pair { job, images, revisions, .. } = &pair();
    let mut data = images[1].clone();
    data[CHUNK..CHUNK + 40 * FRAME].copy_from_slice(&noise(7, 40 * FRAME));
    let third = write_revision(job, &data, Some(revisions[1].clone()));
    assert_eq!(groups(job).len(), 1);
    assert!(read(job, &third).unwrap() == data);
}

#[test]
fn a_group_is_swept_although_its_chunks_are_in_use() {
    let Pair { job, images, revisions, .. } = &pair();
    // Both chunks are in use, each in full; no map needs the group any more.
    let other = new_job_beside(job, "web02");
    let whole = write_alone(&other, &images[1]);
    let third = write_revision(job, &images[1], Some(revisions[0].clone()));
    forget(job, &revisions[1]);
    assert!(read(&other, &whole).unwrap() == images[1]);
    purge(job);
    assert!(groups(job).is_empty(), "no map names it");
    assert!(read(job, &third).unwrap() == images[1] && read(job, &revisions[0]).unwrap() == images[0]);
}

#[test]
fn a_forced_purge_keeps_what_a_whole_map_names_although_a_damaged_one_has_the_same_page() {
    let Pair { job, images, revisions, .. } = &pair();
    let third = write_revision(job, &images[1], Some(revisions[1].clone()));
    let (maps, tables) = ([&revisions[1], &third].map(|revision| job.map_path(&revision.id)), 96);
    let [one, two] = maps.clone().map(|path| std::fs::read(path).unwrap());
    assert!(one == two, "both have the same pages");
    for at in [tables + 5, one.len() - 5] {
        for (damaged, whole, image) in [(&maps[0], &third, &images[1]), (&maps[1], &revisions[1], &images[1])]
        {
            let mut bytes = one.clone();
            bytes[at] ^= 1;
            std::fs::write(damaged, bytes).unwrap();
            let options = SweepOptions::new(0, now());
            // In one of both orders the damaged map is met first.
            sweep(job.repository(), &SweepOptions { force: true, ..options }, &crate::Silent).unwrap();
            assert!(read(job, whole).unwrap() == *image, "byte {at} of {}", damaged.display());
            std::fs::write(damaged, &one).unwrap();
        }
    }
}

#[test]
fn a_chunk_that_is_missed_stays_marked_and_is_written_in_full() {
    let Pair { job, images, revisions, base, .. } = &pair();
    disk::remove(&path(job, base)).unwrap();
    assert!(!verified(job, &revisions[0]));
    purge(job);
    let mark = job.repository().damage_mark(&ChunkId::parse(base).unwrap());
    assert!(mark.exists());
    // Another machine gets the content, in the place of something that it could lean on.
    let other = new_job_beside(job, "web02");
    let mut data = images[0].clone();
    data[CHUNK + 9] ^= 1;
    let before = write_revision(&other, &data, None);
    let after = write_revision(&other, &images[0], Some(before.clone()));
    assert!(!mark.exists() && read(job, &revisions[0]).unwrap() == images[0]);
    [&before, &after].into_iter().for_each(|revision| forget(&other, revision));
    purge(job);
    assert!(verified(job, &revisions[0]) && verified(job, &revisions[1]));
}

#[test]
fn nothing_leans_on_what_a_dead_run_wrote() {
    let Pair { job, images, revisions, base, .. } = &pair();
    let session = crate::repository::session::Session::begin_writer(job.repository().root()).unwrap();
    session.record_new(&ChunkId::parse(base).unwrap()).unwrap();
    drop(session);
    let mut data = images[1].clone();
    data[CHUNK + 1] ^= 1;
    write_revision(job, &data, Some(revisions[1].clone()));
    assert_eq!(groups(job).len(), 1);
}

#[test]
fn a_chunk_with_nothing_in_common_is_not_tried_for_long() {
    let Pair { job, images, revisions, .. } = &pair();
    let mut data = images[1].clone();
    data[..CHUNK].copy_from_slice(&noise(9, CHUNK));
    let third = write_revision(job, &data, Some(revisions[1].clone()));
    assert_eq!(groups(job).len(), 1);
    // A third of the frames written anew: a run all the same, since the rest is as it was.
    let mut part = data.clone();
    part[..20 * FRAME].copy_from_slice(&noise(10, 20 * FRAME));
    let other = write_revision(job, &part, Some(third.clone()));
    assert_eq!(groups(job).len(), 2);
    assert!(read(job, &other).unwrap() == part);
    // Every frame changed in a page: each patch is short.
    (0..64).for_each(|frame| data[frame * FRAME..][..512].copy_from_slice(&noise(frame as u64, 512)));
    let fourth = write_revision(job, &data, Some(third));
    assert_eq!(groups(job).len(), 3);
    assert!(read(job, &fourth).unwrap() == data);
}

fn new_job_beside(job: &Job, name: &str) -> Job {
    let name = crate::JobName::parse(name).unwrap();
    job.repository().create_job(&name, false, "{}\n", now()).unwrap()
}

/// Three jobs of one store: `web01` without a revision, one of a disk that has nothing in common with what comes, and
/// one of the image that is returned.
fn neighbours() -> (tempfile::TempDir, Job, (Job, Revision), Vec<u8>) {
    let (dir, job) = new_job("web01");
    write_revision(&new_job_beside(&job, "web00"), &noise(2, 6 * CHUNK), None);
    let (other, image) = (new_job_beside(&job, "web02"), noise(1, 6 * CHUNK));
    let revision = write_revision(&other, &image, None);
    (dir, job, (other, revision), image)
}

#[test]
fn a_machine_made_from_the_same_image_leans_on_the_other_one() {
    let (_dir, job, (other, original), mut data) = neighbours();
    data[5 * CHUNK + 3 * FRAME..][..4096].copy_from_slice(&noise(3, 4096));
    let second = write_revision(&job, &data, None);
    assert_eq!((groups(&job).len(), files(&job).len()), (1, 13));
    assert!(second.stored_bytes.unwrap() < 7000);
    // The other machine goes, and what is leaned on stays.
    forget(&other, &original);
    purge(&job);
    assert!(read(&job, &second).unwrap() == data && verified(&job, &second));
    // Nothing in common: nothing is tried.
    let third = write_revision(&new_job_beside(&job, "db01"), &noise(4, 6 * CHUNK), None);
    assert_eq!(third.stored_bytes, Some(6 * (CHUNK_SIZE + 2336 + 32)));
}

#[test]
fn another_machine_may_be_forgotten_and_purged_while_a_run_leans_on_it() {
    let (_dir, job, (other, original), mut data) = neighbours();
    data[5 * CHUNK + 3 * FRAME] ^= 1;
    let guard = job.lock_for_backup().unwrap();
    let writer = job.new_revision(&guard, new_revision(&data, None)).unwrap();
    forget(&other, &original);
    purge(&job);
    let mut chunks = writer.chunk_writer().unwrap();
    for (number, chunk) in data.chunks(CHUNK).enumerate() {
        chunks.put(number as u64, chunk).unwrap();
    }
    drop(chunks);
    purge(&job);
    let revision = writer.finish(&guard, Stats::default(), BTreeMap::new()).unwrap();
    purge(&job);
    assert!(revision.stored_bytes.unwrap() < 7000 && read(&job, &revision).unwrap() == data);
    assert!(verified(&job, &revision));
}

/// Forgets the first revision, so that only recipes need the base, and spoils a frame of it that none of them needs.
fn rot_in_waiting() -> (Pair, usize) {
    let mut pair = pair();
    let frame = 10;
    pair.images[1][CHUNK + frame * FRAME..][..FRAME].copy_from_slice(&noise(11, FRAME));
    let second = write_revision(&pair.job, &pair.images[1], Some(pair.revisions[1].clone()));
    pair.revisions.iter().for_each(|revision| forget(&pair.job, revision));
    pair.revisions[1] = second;
    purge(&pair.job);
    // All frames of the base are kept as they are.
    flip(&pair.job, &pair.base, CHUNK - frame * FRAME);
    assert!(verified(&pair.job, &pair.revisions[1]), "nobody misses it");
    (pair, frame)
}

#[test]
fn what_comes_back_leans_on_no_frame_of_the_base_that_rotted_meanwhile() {
    for by_changes in [false, true] {
        let (Pair { job, images, revisions, base, .. }, frame) = &rot_in_waiting();
        let mut data = images[1].clone();
        let part = frame * FRAME..(frame + 1) * FRAME;
        data[CHUNK..][part.clone()].copy_from_slice(&images[0][CHUNK..][part.clone()]);
        let guard = job.lock_for_backup().unwrap();
        let new = new_revision(&data, Some(revisions[1].clone()));
        let writer = job.new_revision(&guard, new).unwrap();
        let mut chunks = writer.chunk_writer().unwrap();
        if by_changes {
            // The caller takes the whole chunk after that.
            let put = chunks.put_changed(1, &mut data[CHUNK..].to_vec(), &[part]);
            assert_eq!(put.unwrap_err().damaged_chunk().unwrap().to_string(), *base);
        }
        chunks.put(1, &data[CHUNK..]).unwrap();
        drop(chunks);
        let third = writer.finish(&guard, Stats::default(), BTreeMap::new()).unwrap();
        assert!(job.repository().damage_mark(&ChunkId::parse(base).unwrap()).exists());
        assert!(read(job, &third).unwrap() == data && verified(job, &third), "{by_changes}");
    }
}

#[test]
fn a_base_that_is_used_again_as_a_whole_is_read_by_the_next_verify() {
    let (Pair { job, images, revisions, base, .. }, _) = &rot_in_waiting();
    // As any chunk that the store has, it is taken for what its header proves.
    let third = write_revision(job, &images[0], Some(revisions[1].clone()));
    assert_eq!((third.trust, third.stored_bytes), (Trust::Trusted, Some(0)));
    assert!(!verified(job, &third));
    let error = restored(job, &third, false).unwrap_err();
    assert_eq!(error.damaged_chunk().unwrap().to_string(), *base);
    let fourth = write_revision(job, &images[0], Some(third.clone()));
    assert!(verified(job, &third) && verified(job, &fourth) && verified(job, &revisions[1]));
}

#[test]
fn a_frame_that_stays_the_same_is_read_by_the_verify_of_each_that_leans_on_it() {
    let Pair { job, images, revisions, base, .. } = &pair();
    forget(job, &revisions[0]);
    flip(job, base, 10);
    let mut data = images[1].clone();
    data[CHUNK + 7 * FRAME] ^= 1;
    let third = write_revision(job, &data, Some(revisions[1].clone()));
    assert_eq!((third.trust, groups(job).len()), (Trust::Trusted, 2), "it was not read");
    assert!(!verified(job, &third));
    assert_eq!(job.revision(&revisions[1].id).unwrap().trust, Trust::Distrusted);
    let fourth = write_revision(job, &data, Some(third.clone()));
    assert!(verified(job, &third) && verified(job, &fourth));
}

#[derive(Default)]
struct Findings(Mutex<Vec<crate::Finding>>);

impl crate::Monitor for Findings {
    fn begin(&self, _label: &str, _total_bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn end(&self) {}
    fn finding(&self, finding: &crate::Finding) {
        self.0.lock().unwrap().push(finding.clone());
    }
}

/// Spoils the only page of places of a revision's map.
fn spoil_places(job: &Job, revision: &Revision) {
    let path = job.map_path(&revision.id);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_page_of_places_is_told_and_loses_nothing() {
    let Pair { job, images, revisions, group, .. } = &pair();
    spoil_places(job, &revisions[1]);
    assert!(read(job, &revisions[1]).unwrap() == images[1], "as a mount reads");
    assert_eq!(restored(job, &revisions[1], false).unwrap(), (images[1].clone(), vec![]));
    assert_eq!(job.revision(&revisions[1].id).unwrap().trust, Trust::Distrusted);
    let findings = Findings::default();
    let report = verify(job, &revisions[..], 2, now(), &findings).unwrap();
    assert_eq!((report.good, report.bad), (vec![revisions[0].id.clone()], vec![revisions[1].id.clone()]));
    let findings = findings.0.into_inner().unwrap();
    let [crate::Finding { range: None, chunk: None, problem, .. }] = &findings[..] else {
        panic!("{findings:?}")
    };
    assert!(problem.contains("page of places 0"), "{problem}");
    assert_eq!(std::fs::read_dir(job.repository().root().join("damaged")).unwrap().count(), 0);
    // Where the group is lost as well, that chunk is, and no other.
    disk::remove(&path(job, group)).unwrap();
    let (found, lost) = restored(job, &revisions[1], true).unwrap();
    assert_eq!(lost, [(CHUNK_SIZE, CHUNK_SIZE)]);
    assert!(found[..CHUNK] == images[1][..CHUNK]);
}

#[test]
fn a_page_of_places_that_the_disk_cannot_read_is_a_damaged_one() {
    let Pair { job, images, revisions, .. } = &pair();
    let open = crate::read::image::Image::open(job, &revisions[1]).unwrap();
    let reader = job.open_revision(&revisions[1], &Arc::new(FrameCache::new(1 << 22))).unwrap();
    // The open map loses its end, so that reading fails and nothing is there to be refused.
    let map = std::fs::OpenOptions::new().write(true).open(job.map_path(&revisions[1].id)).unwrap();
    map.set_len(map.metadata().unwrap().len() - 1).unwrap();
    let crate::read::image::Image::Framed(framed) = &open else { panic!("it is ours") };
    assert!(matches!(framed.map.read_places(0), Err(Error::Io { .. })), "a purge does not go on past it");
    let page = open.page(0).unwrap();
    let damage = page.damage.unwrap();
    assert!(damage.is_damage() && damage.to_string().contains("page of places 0"), "{damage}");
    assert_eq!(page.entries.iter().flatten().filter(|place| place.recipe.is_some()).count(), 1);
    let mut data = vec![9; images[1].len()];
    reader.read_at(0, &mut data).unwrap();
    assert!(data == images[1], "as a mount reads");
}

#[test]
fn a_purge_keeps_all_that_a_damaged_page_of_places_may_have_named() {
    let Pair { job, images, revisions, .. } = &pair();
    spoil_places(job, &revisions[1]);
    forget(job, &revisions[0]);
    let options = SweepOptions::new(0, now());
    let refused = sweep(job.repository(), &options, &crate::Silent);
    assert!(matches!(refused, Err(Error::SweepRefused { .. })), "{refused:?}");
    assert_eq!(files(job).len(), 3);
    // Also when the user goes on.
    sweep(job.repository(), &SweepOptions { force: true, ..options }, &crate::Silent).unwrap();
    assert_eq!(files(job).len(), 3);
    assert!(restored(job, &revisions[1], false).unwrap().0 == images[1]);
}

#[test]
fn what_one_file_of_a_chunk_cannot_give_is_read_from_another_and_told() {
    let harms: [fn(&Job, &str); 3] = [
        |job, full| flip(job, full, 10),
        |job, full| std::fs::write(path(job, full), b"").unwrap(),
        |job, full| disk::remove(&path(job, full)).unwrap(),
    ];
    for (number, harm) in harms.into_iter().enumerate() {
        let Pair { job, images, revisions, .. } = &pair();
        // The same chunk in full, for another job.
        let other = new_job_beside(job, "web02");
        let whole = write_alone(&other, &images[1]);
        let full = &ChunkId::of(&images[1][CHUNK..]).to_string();
        harm(job, full);
        assert!(read(&other, &whole).unwrap() == images[1], "{number}: as a mount reads");
        assert_eq!(restored(&other, &whole, false).unwrap(), (images[1].clone(), vec![]), "{number}");
        assert_eq!(other.revision(&whole.id).unwrap().trust, Trust::Distrusted, "{number}: it is told");
        assert!(job.repository().damage_mark(&ChunkId::parse(full).unwrap()).exists());
        // Nothing keeps the group for it.
        assert!(!verified(&other, &whole), "{number}");
        assert_eq!(restored(job, &revisions[1], false).unwrap().0, images[1], "{number}");
        let again = write_revision(&other, &images[1], Some(whole.clone()));
        for (job, revision) in [(&other, &whole), (&other, &again), (job, &revisions[1])] {
            assert!(verified(job, revision), "{number}");
        }
    }
}

/// Reads all of a revision twice, the second time not from memory; returns what is to be recorded.
fn avoided(job: &Job, revision: &Revision, image: &[u8]) -> Vec<(u64, Option<ChunkId>)> {
    let reader = job.open_revision(revision, &Arc::new(FrameCache::new(1 << 20))).unwrap();
    let mut data = vec![9; image.len()];
    let mut found = Vec::new();
    for _ in 0..2 {
        reader.read_at(0, &mut data).unwrap();
        assert!(data == image);
        for error in reader.take_avoided() {
            let Error::ImageDamaged { offset, ref cause, .. } = error else { panic!("{error}") };
            assert!(cause.is_damage());
            found.push((offset, cause.damaged_chunk()));
        }
    }
    found.dedup();
    found
}

#[test]
fn what_a_reader_gets_around_is_kept_for_who_records_it() {
    let pair = pair();
    let (other, leaning) = with_another_group(&pair);
    let Pair { job, images, revisions, base, group, .. } = &pair;
    assert!(avoided(job, &revisions[1], &images[1]).is_empty());
    flip_run(job, group);
    let own = (CHUNK_SIZE, Some(ChunkId::of(&images[1][CHUNK..])));
    assert_eq!(avoided(job, &revisions[1], &images[1]), [own]);
    flip(job, base, 10);
    let both = [own, (CHUNK_SIZE, Some(ChunkId::parse(base).unwrap()))];
    assert_eq!(avoided(job, &revisions[1], &images[1])[..2], both);
    assert!(avoided(&other, &leaning, &images[1]).is_empty());
    spoil_places(&other, &leaning);
    assert_eq!(avoided(&other, &leaning, &images[1])[0], (0, None));
    // Who reads ahead gets around nothing, so that the reader is told.
    let reader = job.open_revision(&revisions[1], &Arc::new(FrameCache::new(1 << 24))).unwrap();
    let at = CHUNK_SIZE + 5 * FRAME_SIZE;
    assert!(reader.load_ahead(at, crate::Extent::Frame).unwrap_err().is_damage());
    assert!(reader.take_avoided().is_empty());
    reader.read_at(at, &mut [0; 9]).unwrap();
    assert_eq!(reader.take_avoided().len(), 1);
}

#[test]
fn two_damaged_files_of_a_chunk_lose_only_the_frames_that_are_bad_in_both() {
    let Pair { job, images, base, .. } = &pair();
    let other = new_job_beside(job, "web02");
    let whole = write_alone(&other, &images[1]);
    let full = &ChunkId::of(&images[1][CHUNK..]).to_string();
    // The last frame of both, and one of each. Frame 5 is the one that the run has.
    [10, CHUNK - 5 * FRAME - 9].into_iter().for_each(|from_end| flip(job, full, from_end));
    [10, CHUNK - 20 * FRAME].into_iter().for_each(|from_end| flip(job, base, from_end));
    let (found, lost) = restored(&other, &whole, true).unwrap();
    let last = 2 * CHUNK_SIZE - FRAME_SIZE;
    assert_eq!(lost, [(last, FRAME_SIZE)]);
    assert!(found[..last as usize] == images[1][..last as usize]);
    assert!(crate::format::is_zero(&found[last as usize..]));
}

/// The second chunk of the second image once more, on another base, for another job. Returns its revision.
fn with_another_group(Pair { job, images, .. }: &Pair) -> (Job, Revision) {
    let other = new_job_beside(job, "web02");
    let mut data = images[1].clone();
    data[CHUNK + 9 * FRAME] ^= 1;
    let before = write_alone(&other, &data);
    let after = write_revision(&other, &images[1], Some(before));
    assert_eq!(groups(job).len(), 2);
    (other, after)
}

#[test]
fn all_damaged_files_that_a_restore_gets_around_are_marked() {
    let pair = pair();
    let (other, leaning) = with_another_group(&pair);
    let Pair { job, images, revisions, base, group, .. } = &pair;
    // The page that the run has, and a frame of the base.
    flip_run(job, group);
    flip(job, base, 10);
    let findings = Findings::default();
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("image");
    let options = RestoreOptions { force: false, salvage: false, threads: 2 };
    restore(job, &revisions[1], Target::Path(target.clone()), &options, &findings).unwrap();
    assert!(std::fs::read(target).unwrap() == images[1]);
    assert_eq!(findings.0.into_inner().unwrap().len(), 2, "one for each file");
    for id in [ChunkId::of(&images[1][CHUNK..]), ChunkId::parse(base).unwrap()] {
        assert!(job.repository().damage_mark(&id).exists(), "{id}");
    }
    assert_eq!(job.revision(&revisions[0].id).unwrap().trust, Trust::Distrusted, "it uses the base");
    assert!(read(&other, &leaning).unwrap() == images[1]);
}

#[test]
fn damaged_chunks_are_marked_although_the_revision_cannot_be_distrusted() {
    let Pair { job, images, revisions, base, .. } = &pair();
    spoil_places(job, &revisions[1]);
    flip(job, base, 10);
    let lock = job.dir().join(".manifests");
    disk::remove(&lock).unwrap();
    std::os::unix::fs::symlink(&lock, &lock).unwrap();
    let (found, lost) = restored(job, &revisions[1], true).unwrap();
    assert_eq!(lost.len(), 1);
    assert!(found[..CHUNK] == images[1][..CHUNK]);
    assert!(job.repository().damage_mark(&ChunkId::parse(base).unwrap()).exists());
    disk::remove(&lock).unwrap();
    assert_eq!(job.revision(&revisions[1].id).unwrap().trust, Trust::Trusted);
}

#[test]
fn random_days_come_back_exactly() {
    let (_dir, job) = new_job("web01");
    let length = 2 * CHUNK + 3 * FRAME + 777;
    let mut data = image(1, length);
    let mut history = vec![(write_revision(&job, &data, None), data.clone())];
    let mut state = 12_345u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for day in 0..25 {
        for _ in 0..random(12) {
            let at = random(length);
            let size = [1, 512, 4096, 70_000][random(4)].min(length - at);
            match random(4) {
                0 => data[at..at + size].fill(0),
                1 => data.copy_within(0..size, at),
                _ => data[at..at + size].copy_from_slice(&noise(random(1 << 20) as u64, size)),
            }
        }
        // Sometimes the base is an older revision, as after the newest was distrusted.
        let base = history[history.len() - 1 - random(history.len().min(3))].0.clone();
        history.push((write_revision(&job, &data, Some(base)), data.clone()));
        if day % 4 == 3 {
            let (gone, _) = history.remove(random(history.len()));
            forget(&job, &gone);
            purge(&job);
        }
    }
    for (revision, image) in &history {
        assert!(read(&job, revision).unwrap() == *image);
        assert!(restored(&job, revision, false).unwrap().0 == *image);
    }
    assert!(groups(&job).len() > 10);
}
