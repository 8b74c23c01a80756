//! Content at another offset: found, read, kept by purges, damaged, changed again.

use super::*;
use crate::write::pages;

/// Bytes of the files of chunks and groups.
fn stored(job: &Job) -> u64 {
    files(job).iter().map(|(_, length)| length).sum()
}

/// A machine with content, and another one that has the same 12 KiB further on, with a few other pages.
struct Shifted {
    _dir: tempfile::TempDir,
    first: (Job, Revision, Vec<u8>),
    second: (Job, Revision, Vec<u8>),
}

fn shifted_image(image: &[u8]) -> Vec<u8> {
    let mut shifted = noise(77, 3 * 4096);
    shifted.extend_from_slice(&image[..image.len() - 3 * 4096]);
    shifted[900 * 4096..][..4096].copy_from_slice(&noise(78, 4096));
    shifted
}

fn shifted() -> Shifted {
    let (dir, job) = new_job("web01");
    let image = noise(1, 3 * CHUNK);
    let first = write_revision(&job, &image, None);
    let before = stored(&job);
    let other = new_job_beside(&job, "web02");
    let shifted = shifted_image(&image);
    let second = write_revision(&other, &shifted, None);
    let new = stored(&job) - before;
    assert!(new < 80_000, "{new}: {:?}", files(&job));
    Shifted { _dir: dir, first: (job, first, image), second: (other, second, shifted) }
}

fn donors(job: &Job, revision: &Revision) -> Vec<FileName> {
    let map = job.open_map(revision).unwrap();
    let places = map.read_entries(0).unwrap().into_iter().flatten();
    places.flat_map(|place| place.files().collect::<Vec<_>>()).collect()
}

#[test]
fn content_at_another_offset_costs_little_and_reads_back_everywhere() {
    let Shifted { first, second, .. } = &shifted();
    for (job, revision, image) in [first, second] {
        assert!(read(job, revision).unwrap() == *image);
        assert!(restored(job, revision, false).unwrap().0 == *image);
        assert!(verified(job, revision));
    }
    // Single pages, as a mount reads them.
    let (job, revision, image) = second;
    let reader = job.open_revision(revision, &Arc::new(FrameCache::new(1 << 20))).unwrap();
    for page in (0..image.len() / 4096).step_by(37) {
        let mut data = vec![9; 4096];
        reader.read_at(page as u64 * 4096, &mut data).unwrap();
        assert!(data == image[page * 4096..][..4096], "page {page}");
    }
}

#[test]
fn what_is_copied_stays_when_its_revision_goes() {
    let Shifted { first, second, .. } = &shifted();
    forget(&first.0, &first.1);
    let before = stored(&first.0);
    purge(&first.0);
    assert_eq!(stored(&first.0), before, "all of it is copied");
    assert!(verified(&second.0, &second.1) && read(&second.0, &second.1).unwrap() == second.2);
    forget(&second.0, &second.1);
    purge(&second.0);
    assert_eq!(stored(&first.0), 0, "{:?}", files(&first.0));
}

#[test]
fn a_donor_that_is_purged_while_copies_are_written_stays() {
    let Shifted { first, second, .. } = &shifted();
    forget(&second.0, &second.1);
    purge(&second.0);
    let third = new_job_beside(&first.0, "web03");
    let guard = third.lock_for_backup().unwrap();
    let writer = third.new_revision(&guard, new_revision(&second.2, None)).unwrap();
    let mut chunks = writer.chunk_writer().unwrap();
    chunks.put(0, &second.2[..CHUNK]).unwrap();
    forget(&first.0, &first.1);
    purge(&first.0);
    for number in 1..3 {
        chunks.put(number as u64, &second.2[number * CHUNK..][..CHUNK]).unwrap();
    }
    drop(chunks);
    let revision = writer.finish(&guard, Stats::default(), BTreeMap::new()).unwrap();
    assert!(verified(&third, &revision) && read(&third, &revision).unwrap() == second.2);
    purge(&third);
    assert!(read(&third, &revision).unwrap() == second.2);
}

#[test]
fn a_damaged_donor_is_blamed_and_the_next_backup_heals_what_copies_from_it() {
    for is_missing in [false, true] {
        let Shifted { first, second, .. } = &shifted();
        let donor = ChunkId::of(&first.2[..CHUNK]).to_string();
        match is_missing {
            true => disk::remove(&path(&first.0, &donor)).unwrap(),
            false => flip(&first.0, &donor, 1_000_000),
        }
        let error = read(&second.0, &second.1).unwrap_err();
        assert_eq!(error.damaged_files(), [ChunkId::parse(&donor).unwrap()], "{error}");
        let (data, lost) = restored(&second.0, &second.1, true).unwrap();
        let bytes: u64 = lost.iter().map(|(_, length)| length).sum();
        assert!(!lost.is_empty() && (is_missing || bytes <= 2 * FRAME_SIZE), "{lost:?}");
        assert!(data[2 * CHUNK..] == second.2[2 * CHUNK..]);
        assert!(!verified(&second.0, &second.1));
        let healed = write_revision(&second.0, &second.2, Some(second.1.clone()));
        assert!(verified(&second.0, &healed) && read(&second.0, &healed).unwrap() == second.2);
        assert!(read(&second.0, &second.1).unwrap() == second.2, "what had it before as well");
    }
}

#[test]
fn the_same_update_on_another_machine_is_copied_from_a_run() {
    let Shifted { first, second, .. } = &shifted();
    let update = noise(500, 200 * 4096);
    let (mut one, mut two) = (first.2.clone(), second.2.clone());
    one[300 * 4096..][..update.len()].copy_from_slice(&update);
    two[1500 * 4096..][..update.len()].copy_from_slice(&update);
    let before = stored(&first.0);
    let third = write_revision(&first.0, &one, Some(first.1.clone()));
    let between = stored(&first.0);
    assert!(between - before > update.len() as u64);
    let fourth = write_revision(&second.0, &two, Some(second.1.clone()));
    let new = stored(&first.0) - between;
    assert!(new < 30_000, "{new}");
    for (job, revision, image) in [(&first.0, &third, &one), (&second.0, &fourth, &two)] {
        assert!(verified(job, revision) && read(job, revision).unwrap() == *image);
    }
    // The group of the first machine is kept by the second one, and damage of it is damage of both.
    forget(&first.0, &third);
    purge(&first.0);
    assert!(verified(&second.0, &fourth));
    let group = donors(&first.0, &first.1);
    assert!(group.iter().all(|file| file.kind == crate::format::name::FileKind::Chunk));
    let (name, length) = groups(&first.0).into_iter().max_by_key(|(_, length)| *length).unwrap();
    flip(&first.0, &name, length as usize / 2);
    let error = read(&second.0, &fourth).unwrap_err();
    let blamed = ChunkId::parse(name.strip_suffix(".group").unwrap()).unwrap();
    assert!(error.damaged_files().contains(&blamed), "{error}");
    assert!(!verified(&second.0, &fourth));
    let healed = write_revision(&second.0, &two, Some(fourth));
    assert!(verified(&second.0, &healed) && read(&second.0, &healed).unwrap() == two);
}

#[test]
fn nothing_is_copied_from_what_is_in_doubt() {
    type Harm = fn(&Job, &str);
    let cases: [(&str, Harm); 3] = [
        ("marked", |job, donor| {
            std::fs::write(job.repository().damage_mark(&ChunkId::parse(donor).unwrap()), b"").unwrap();
        }),
        ("unproven", |job, donor| {
            let session = crate::repository::session::Session::begin_writer(job.repository().root()).unwrap();
            session.record_new(&ChunkId::parse(donor).unwrap()).unwrap();
        }),
        ("gone", |job, donor| disk::remove(&path(job, donor)).unwrap()),
    ];
    for (what, harm) in cases {
        let (_dir, job) = new_job("web01");
        let image = noise(1, CHUNK);
        write_revision(&job, &image, None);
        std::fs::create_dir_all(job.repository().root().join("damaged")).unwrap();
        harm(&job, &ChunkId::of(&image).to_string());
        let other = new_job_beside(&job, "web02");
        let shifted = shifted_image(&image);
        let second = write_revision(&other, &shifted, None);
        assert_eq!(donors(&other, &second), [FileName::chunk(ChunkId::of(&shifted))], "{what}");
    }
}

#[test]
fn a_lost_or_wrong_index_loses_nothing_and_a_verification_fills_it_again() {
    let (_dir, job) = new_job("web01");
    let image = noise(1, CHUNK);
    let first = write_revision(&job, &image, None);
    let index = job.repository().root().join(pages::DIR);
    std::fs::remove_dir_all(&index).unwrap();
    let shifted = shifted_image(&image);
    let other = new_job_beside(&job, "web02");
    let second = write_revision(&other, &shifted, None);
    assert_eq!(donors(&other, &second), [FileName::chunk(ChunkId::of(&shifted))]);
    forget(&other, &second);
    purge(&other);
    std::fs::remove_dir_all(&index).unwrap();
    assert!(verified(&job, &first));
    let size = std::fs::metadata(index.join("donors")).unwrap().len();
    assert!(verified(&job, &first));
    assert_eq!(std::fs::metadata(index.join("donors")).unwrap().len(), size, "once");
    let third = write_revision(&other, &shifted, None);
    assert!(donors(&other, &third).contains(&FileName::chunk(ChunkId::of(&image))));
    // Other pages than it says, of other files.
    let mut table = std::fs::read(index.join("table")).unwrap();
    for entry in table[4096..].chunks_exact_mut(8).filter(|entry| **entry != [0; 8]) {
        entry[0] ^= 0x15;
    }
    std::fs::write(index.join("table"), table).unwrap();
    let fourth = new_job_beside(&job, "web04");
    let data = shifted_image(&shifted);
    let revision = write_revision(&fourth, &data, None);
    assert!(verified(&fourth, &revision) && read(&fourth, &revision).unwrap() == data);
}

#[test]
fn changes_of_a_chunk_of_copies_are_runs_and_come_back_exactly() {
    let Shifted { first, second: (job, revision, image), .. } = &shifted();
    let (mut image, mut last) = (image.clone(), revision.clone());
    let mut days = Vec::new();
    for day in 0..40u64 {
        for page in 0..8 {
            let at = (day * 131 + page * 97) as usize % (image.len() / 4096) * 4096;
            image[at..at + 4096].copy_from_slice(&noise(1000 + day * 10 + page, 4096));
        }
        if day % 7 == 3 {
            // Something that is elsewhere in the image already, and something of the other machine.
            let from = (day as usize * 53) % 700 * 4096;
            let moved = image[from..from + 60 * 4096].to_vec();
            image[2 * CHUNK + 50 * 4096..][..moved.len()].copy_from_slice(&moved);
            let other = first.2[CHUNK + from..][..40 * 4096].to_vec();
            image[200 * 4096..][..other.len()].copy_from_slice(&other);
        }
        last = write_revision(job, &image, Some(last));
        assert!(read(job, &last).unwrap() == image, "day {day}");
        days.push((last.clone(), image.clone()));
        if day % 5 == 4 {
            let (old, _) = days.remove(day as usize % 3);
            forget(job, &old);
            purge(job);
            for (revision, image) in &days {
                assert!(read(job, revision).unwrap() == *image, "{} on day {day}", revision.id);
            }
        }
    }
    assert!(days.iter().all(|(revision, _)| verified(job, revision)));
}

#[test]
fn nothing_is_built_on_a_chunk_that_lacks_a_donor() {
    let Shifted { first, second: (job, revision, image), .. } = &shifted();
    // Of the second chunk only the first pages come from another donor than this one.
    disk::remove(&path(job, &ChunkId::of(&first.2[CHUNK..2 * CHUNK]).to_string())).unwrap();
    let mut data = image.clone();
    data[CHUNK..CHUNK + 4096].copy_from_slice(&noise(9, 4096));
    let third = write_revision(job, &data, Some(revision.clone()));
    let found = read(job, &third);
    assert!(found.unwrap() == data);
}
