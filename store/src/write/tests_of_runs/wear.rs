//! What many days do to groups: runs that are moved, bases that nothing needs any more, full chunks beside recipes.

use super::*;

/// Flips a bit in the list of pieces of the first run of a group.
fn flip_list(job: &Job, name: &str) {
    let mut bytes = std::fs::read(path(job, name)).unwrap();
    // The kind of the first piece.
    bytes[64 + 36 + 1] ^= 0x40;
    std::fs::write(path(job, name), bytes).unwrap();
}

/// A job with a group of which a quarter is not needed any more: many hot pages and a cold one.
fn worn() -> (tempfile::TempDir, Job, Vec<u8>, Vec<Revision>) {
    let (dir, job) = new_job("web01");
    let mut data = noise(1, 4 * CHUNK);
    let mut revisions = vec![write_revision(&job, &data, None)];
    data[3 * CHUNK..][..4096].copy_from_slice(&noise(50, 4096));
    for day in 0..2u64 {
        for page in 0..60 {
            data[page * FRAME..][..4096].copy_from_slice(&noise(100 * (day + 1) + page as u64, 4096));
        }
        revisions.push(write_revision(&job, &data, revisions.last().cloned()));
    }
    (dir, job, data, revisions)
}

#[test]
fn a_run_that_was_moved_is_not_moved_again() {
    let (_dir, job, mut data, mut revisions) = worn();
    // One group of each day, and one for the cold run of the first.
    assert_eq!(groups(&job).len(), 3);
    for day in 0..6u64 {
        data[CHUNK + day as usize * FRAME..][..4096].copy_from_slice(&noise(900 + day, 4096));
        let before = groups(&job).len();
        revisions.push(write_revision(&job, &data, revisions.last().cloned()));
        assert_eq!(groups(&job).len(), before + 1, "day {day}: what changed, and nothing else");
        assert!(read(&job, revisions.last().unwrap()).unwrap() == data);
    }
}

#[test]
fn a_chunk_that_is_there_in_full_leaves_a_worn_group() {
    let (_dir, job) = new_job("web01");
    let mut data = noise(1, 4 * CHUNK);
    let first = write_revision(&job, &data, None);
    data[3 * CHUNK..][..4096].copy_from_slice(&noise(50, 4096));
    for page in 0..60 {
        data[page * FRAME..][..4096].copy_from_slice(&noise(100 + page as u64, 4096));
    }
    let second = write_revision(&job, &data, Some(first));
    // Another machine has the cold chunk in full.
    let other = new_job_beside(&job, "web02");
    write_alone(&other, &data[3 * CHUNK..]);
    for page in 0..60 {
        data[page * FRAME..][..4096].copy_from_slice(&noise(200 + page as u64, 4096));
    }
    // A source that knows its changes never looks at the cold chunk.
    let guard = job.lock_for_backup().unwrap();
    let writer = job.new_revision(&guard, new_revision(&data, Some(second.clone()))).unwrap();
    writer.chunk_writer().unwrap().put(0, &data[..CHUNK]).unwrap();
    let third = writer.finish(&guard, Stats::default(), BTreeMap::new()).unwrap();
    drop(guard);
    assert_eq!(groups(&job).len(), 2, "nothing was moved");
    forget(&job, &second);
    purge(&job);
    assert_eq!(groups(&job).len(), 1, "and the first group is not needed");
    assert!(verified(&job, &third) && read(&job, &third).unwrap() == data);
}

#[test]
fn a_base_of_which_little_is_needed_is_given_up() {
    let (_dir, job) = new_job("web01");
    // Nearly all that the base stores is in its first frames.
    let mut data = vec![7; 2 * CHUNK];
    data[CHUNK..][..8 * FRAME].copy_from_slice(&noise(1, 8 * FRAME));
    let first = write_revision(&job, &data, None);
    let base = ChunkId::of(&data[CHUNK..]).to_string();
    // They become as good as empty: the run is short, and the base would be kept for nothing.
    data[CHUNK..][..8 * FRAME].fill(9);
    let second = write_revision(&job, &data, Some(first.clone()));
    assert!(groups(&job).is_empty(), "{:?}", files(&job));
    forget(&job, &first);
    purge(&job);
    assert!(!path(&job, &base).exists());
    assert!(verified(&job, &second) && read(&job, &second).unwrap() == data);
}

#[test]
fn a_purge_keeps_no_unproven_full_chunk_beside_a_recipe() {
    let Pair { job, images, revisions, .. } = &pair();
    let other = new_job_beside(job, "web02");
    let guard = other.lock_for_backup().unwrap();
    let mut dead = other.new_revision(&guard, new_revision(&images[1], None)).unwrap();
    dead.siblings = None;
    dead.pages = None;
    dead.chunk_writer().unwrap().put(1, &images[1][CHUNK..]).unwrap();
    let full = path(job, &ChunkId::of(&images[1][CHUNK..]).to_string());
    // What was not written when the power failed.
    drop(dead);
    let length = std::fs::metadata(&full).unwrap().len();
    std::fs::write(&full, vec![0; length as usize]).unwrap();
    purge(job);
    assert!(!full.exists(), "the list that called it unproven is gone");
    assert!(verified(job, &revisions[1]) && read(job, &revisions[1]).unwrap() == images[1]);
}

#[test]
fn a_damaged_list_of_pieces_is_damage_of_its_group() {
    let Pair { job, revisions, base, group, .. } = &pair();
    flip_list(job, group);
    let error = read(job, &revisions[1]).unwrap_err();
    assert!(error.is_damage(), "{error}");
    let [group, base] = [group.strip_suffix(".group").unwrap(), base].map(|id| ChunkId::parse(id).unwrap());
    let blamed = error.damaged_files();
    assert!(blamed.contains(&group) && !blamed.contains(&base), "{blamed:?}");
    let good = job.repository().damage_mark(&base);
    assert!(!verified(job, &revisions[1]) && !good.exists(), "its base is as it was");
}

#[test]
fn what_becomes_all_zeros_by_changes_is_a_hole() {
    let (_dir, job) = new_job("web01");
    let mut data = vec![0; 2 * CHUNK];
    data[3 * FRAME..][..4096].copy_from_slice(&noise(1, 4096));
    data[CHUNK..].copy_from_slice(&noise(2, CHUNK));
    let first = write_revision(&job, &data, None);
    data[5 * FRAME..][..4096].copy_from_slice(&noise(3, 4096));
    let second = write_revision(&job, &data, Some(first));
    data[..CHUNK].fill(0);
    let guard = job.lock_for_backup().unwrap();
    let writer = job.new_revision(&guard, new_revision(&data, Some(second))).unwrap();
    let mut putter = writer.chunk_writer().unwrap();
    let changed = [3 * FRAME..3 * FRAME + 4096, 5 * FRAME..5 * FRAME + 4096];
    assert_eq!(putter.put_changed(0, &mut data[..CHUNK].to_vec(), &changed).unwrap(), Put::Hole);
    drop(putter);
    let third = writer.finish(&guard, Stats::default(), BTreeMap::new()).unwrap();
    assert!(read(&job, &third).unwrap() == data);
}

#[test]
fn a_pinned_map_with_a_damaged_page_keeps_what_it_may_have_named() {
    let Pair { job, images, revisions, .. } = &pair();
    let reader = job.open_revision(&revisions[1], &Arc::new(FrameCache::new(1 << 22))).unwrap();
    let all = files(job);
    spoil_places(job, &revisions[1]);
    for revision in revisions {
        forget(job, revision);
    }
    let options = SweepOptions { force: true, ..SweepOptions::new(0, now()) };
    sweep(job.repository(), &options, &crate::Silent).unwrap();
    assert_eq!(files(job), all, "the reader goes on");
    let mut data = vec![9; images[1].len()];
    reader.read_at(0, &mut data).unwrap();
    assert!(data == images[1]);
}

#[test]
fn a_backup_whose_group_failed_cannot_be_committed() {
    let Pair { job, images, revisions, .. } = &pair();
    let mut data = images[1].clone();
    data[CHUNK + 9 * FRAME] ^= 1;
    let guard = job.lock_for_backup().unwrap();
    let writer = job.new_revision(&guard, new_revision(&data, Some(revisions[1].clone()))).unwrap();
    writer.chunk_writer().unwrap().put(1, &data[CHUNK..]).unwrap();
    writer.groups.fail();
    let error = writer.finish(&guard, Stats::default(), BTreeMap::new()).unwrap_err();
    assert!(error.to_string().contains("group"), "{error}");
    assert_eq!(job.revisions().unwrap().revisions.len(), 2);
}
