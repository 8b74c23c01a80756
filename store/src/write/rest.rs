//! What a source that knows only what changed needs: the rest of a chunk, as it was recorded before.
//!
//! Frames that did not change are not read where the new chunk can lean on the old one, and of those that changed in
//! part the old bytes are verified. Where a chunk turns out to be damaged, it is marked, and the revisions that use it
//! are distrusted, before the error is returned: whoever then puts the whole chunk from the source writes it anew.

use std::ops::Range;

use super::chunks::ChunkWriter;
use super::encode::Before;
use super::{Put, RevisionWriter};
use crate::CHUNK_SIZE;
use crate::error::Result;
use crate::format::id::zero_frame_matches;
use crate::format::layout::{chunk_len, frame_count, frame_len};
use crate::format::map::PAGE_ENTRIES;
use crate::format::name::Place;
use crate::format::{CHUNK_LEN, FRAME_LEN};
use crate::read::chunk::{self, OpenChunk, Scratch};

impl RevisionWriter {
    /// Carries over the chunk in which the smaller one of base and new image ends, cut or filled up with zeros. With
    /// images of different sizes it is the one chunk that the new map does not have from the base.
    pub fn carry_end(&self) -> Result<()> {
        let Some((_, base)) = &self.base else { return Ok(()) };
        let end = base.size_bytes().min(self.size_bytes());
        let number = end / CHUNK_SIZE;
        if base.size_bytes() == self.size_bytes() || end.is_multiple_of(CHUNK_SIZE) {
            return Ok(());
        }
        let entries = base.read_entries(number / PAGE_ENTRIES)?;
        let Some(place) = &entries[(number % PAGE_ENTRIES) as usize] else { return Ok(()) };
        let mut scratch = Scratch::new();
        let chunk = self.open_recorded(place, chunk_len(base.size_bytes(), number))?;
        let mut data = self.or_note(scratch.read(&chunk))?.to_vec();
        // What lies behind the end of the smaller image is not part of it.
        data.truncate((end % CHUNK_SIZE) as usize);
        data.resize(chunk_len(self.size_bytes(), number), 0);
        self.chunk_writer()?.put(number, &data).map(drop)
    }

    /// Opens a chunk that is recorded with this length.
    fn open_recorded(&self, place: &Place, length: usize) -> Result<OpenChunk> {
        let opened = chunk::open(&self.backend, place);
        self.or_note(opened.and_then(|chunk| chunk.must_have_len(length).map(|()| chunk)))
    }

    /// Records the damage that a result is about.
    fn or_note<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && error.is_damage()
        {
            self.note_damage(error)?;
        }
        result
    }
}

impl ChunkWriter<'_> {
    /// Puts a chunk that differs from what is recorded at place `number` (the base's, as long as nothing was put there)
    /// only in the given parts of it, whose bytes are in `data`. The other bytes of `data` need not be those of the
    /// image, and some are overwritten.
    pub fn put_changed(&mut self, number: u64, data: &mut [u8], changed: &[Range<usize>]) -> Result<Put> {
        assert_eq!(
            data.len(),
            chunk_len(self.writer.size_bytes(), number),
            "chunk {number} has another length"
        );
        let mut changed = changed.to_vec();
        changed.sort_unstable_by_key(|part| part.start);
        let Some(name) = self.writer.map.get(number)? else {
            gaps(&changed, 0..data.len()).for_each(|gap| data[gap].fill(0));
            return self.put(number, data);
        };
        let chunk = self.writer.open_recorded(&name, data.len())?;
        let absent = self.writer.or_note(complete(&chunk, data, &changed, &mut self.scratch))?;
        let known = |frame: usize| {
            let value = chunk.value(frame);
            let (frames, length) = (chunk.frame_count(), frame_len(data.len(), frame));
            let is_zero = zero_frame_matches(value, frame, frames, length);
            (absent >> frame & 1 != 0).then_some((*value, is_zero))
        };
        match self.digest.update_but(data, known) {
            Some(id) => {
                let put = self.put_hashed(number, id, data, Some(Before { chunk, absent }));
                self.writer.or_note(put)
            }
            None => self.hole(number),
        }
    }
}

/// Fills in what the frames that `changed` touches keep of `chunk`; returns which frames it does not touch.
fn complete(
    chunk: &OpenChunk,
    data: &mut [u8],
    changed: &[Range<usize>],
    scratch: &mut Scratch,
) -> Result<u64> {
    debug_assert!(data.len() <= CHUNK_LEN);
    let mut absent = 0;
    let mut plain = [0; FRAME_LEN];
    let is_alone = frame_count(data.len()) == 1;
    for frame in 0..frame_count(data.len()) {
        let start = frame * FRAME_LEN;
        let bytes = start..start + frame_len(data.len(), frame);
        let is_touched = changed.iter().any(|part| part.start < bytes.end && bytes.start < part.end);
        // The value of a lone frame is the id of its chunk, and is taken of the whole.
        if !is_touched && !is_alone {
            absent |= 1 << frame;
            continue;
        }
        let mut gaps = gaps(changed, bytes.clone()).peekable();
        if gaps.peek().is_some() {
            let plain = &mut plain[..bytes.len()];
            scratch.read_frame(chunk, frame, plain)?;
            gaps.for_each(|gap| {
                data[gap.clone()].copy_from_slice(&plain[gap.start - start..gap.end - start]);
            });
        }
    }
    Ok(absent)
}

/// Returns the parts of `range` that lie in none of `parts`, which are in order.
fn gaps(parts: &[Range<usize>], range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let ends = std::iter::once(range.end..range.end);
    let mut at = range.start;
    parts.iter().cloned().chain(ends).filter_map(move |part| {
        let gap = at..part.start.clamp(at, range.end);
        at = at.max(part.end.min(range.end));
        (!gap.is_empty()).then_some(gap)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{image, new_job, new_revision, noise, write_revision};
    use crate::{ChunkId, Stats};

    #[test]
    fn the_end_of_the_smaller_image_is_carried_over() {
        let c = CHUNK_SIZE as usize;
        for (before, after) in
            [(c + 1000, 3 * c), (3 * c, c + 1000), (c + 1000, c + 70_000), (c + 70_000, c + 1000)]
        {
            let (_dir, job) = new_job("web01");
            let data = image(3, before);
            let base = write_revision(&job, &data, None);
            let guard = job.lock_for_backup().unwrap();
            let new = new_revision(&vec![0; after], Some(base));
            let writer = job.new_revision(&guard, new).unwrap();
            writer.carry_end().unwrap();
            let mut expected = data[..before.min(after)].to_vec();
            expected.resize(after, 0);
            for (number, expected) in expected.chunks(c).enumerate() {
                let found = writer.read_back(number as u64).unwrap();
                let found = found.unwrap_or_else(|| vec![0; expected.len()]);
                assert!(found == expected, "{before} to {after}, chunk {number}");
            }
        }
    }

    #[test]
    fn gaps_are_what_the_parts_leave() {
        let left = |parts: &[(usize, usize)]| {
            let parts: Vec<_> = parts.iter().map(|&(start, end)| start..end).collect();
            gaps(&parts, 10..20).map(|gap| (gap.start, gap.end)).collect::<Vec<_>>()
        };
        assert_eq!(left(&[]), [(10, 20)]);
        assert_eq!(left(&[(0, 5), (12, 14), (13, 15), (18, 40)]), [(10, 12), (15, 18)]);
        assert_eq!(left(&[(0, 30)]), []);
        assert_eq!(left(&[(25, 30)]), [(10, 20)]);
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "lists of one range are what is meant")]
    fn a_chunk_put_by_its_changes_is_the_same_as_one_put_whole() {
        let (_dir, job) = new_job("web01");
        for (seed, length) in [(1, 4 << 20), (2, (4 << 20) - 3), (3, 70_000), (4, 65_536), (5, 200_000)] {
            let mut data = image(seed, length);
            data[length / 2..length / 2 + 20_000].fill(0);
            data[length / 2 - 5] = 9;
            let base = write_revision(&job, &data, None);
            let half = length / 2;
            for changed in [
                vec![0..1],
                vec![length - 1..length],
                vec![65_535..65_537, length / 3..length / 3 + 9],
                // Nearly everything: a full chunk, the rest of which is taken over.
                vec![0..half - 10, half..length],
            ] {
                let changed: Vec<_> =
                    changed.into_iter().filter(|part: &Range<usize>| part.end <= length).collect();
                let guard = job.lock_for_backup().unwrap();
                let writer = job.new_revision(&guard, new_revision(&data, Some(base.clone()))).unwrap();
                let mut putter = writer.chunk_writer().unwrap();
                let mut expected = data.clone();
                for round in 0..4 {
                    let fresh = noise(seed + round, length);
                    // What lies outside of the changes is not to be looked at.
                    let mut buf = vec![0xee; length];
                    for part in &changed {
                        let new = if round == 2 { &vec![0; part.len()] } else { &fresh[part.clone()] };
                        buf[part.clone()].copy_from_slice(new);
                        expected[part.clone()].copy_from_slice(new);
                    }
                    putter.put_changed(0, &mut buf, &changed).unwrap();
                    let name = writer.map.get(0).unwrap().unwrap();
                    assert_eq!(name.id, ChunkId::of(&expected), "{length} {changed:?}");
                    assert!(
                        writer.read_back(0).unwrap().unwrap() == expected,
                        "{length} {changed:?} {name:?}"
                    );
                }
                let mut zeros = vec![0; length];
                assert_eq!(putter.put_changed(0, &mut zeros, &[0..length]).unwrap(), Put::Hole);
                let mut buf = vec![0xee; length];
                buf[5] = 1;
                putter.put_changed(0, &mut buf, &[5..6]).unwrap();
                zeros[5] = 1;
                assert!(writer.read_back(0).unwrap().unwrap() == zeros, "on a hole");
            }
        }
    }

    #[test]
    fn a_small_change_makes_a_run_that_reads_nothing_but_the_touched_frame() {
        let (_dir, job) = new_job("web01");
        let mut data = noise(5, 1 << 22);
        let base = write_revision(&job, &data, None);
        let chunk = crate::format::name::FileName::chunk(ChunkId::of(&data));
        // All other frames are broken, and nobody looks at them.
        let path = job.repository().root().join(format!("chunks/{:02x}/{chunk}", chunk.id.shard()));
        let mut file = std::fs::read(&path).unwrap();
        let header = crate::format::container::header_len(data.len());
        let frame = header + 7 * FRAME_LEN..header + 8 * FRAME_LEN;
        (header..file.len()).filter(|at| !frame.contains(at)).for_each(|at| file[at] ^= 0x55);
        std::fs::write(&path, file).unwrap();
        let guard = job.lock_for_backup().unwrap();
        let writer = job.new_revision(&guard, new_revision(&data, Some(base))).unwrap();
        let mut putter = writer.chunk_writer().unwrap();
        let part = 7 * FRAME_LEN + 100..7 * FRAME_LEN + 4196;
        let mut buf = vec![0; data.len()];
        buf[part.clone()].copy_from_slice(&noise(6, 4096));
        data[part.clone()].copy_from_slice(&noise(6, 4096));
        let put = putter.put_changed(0, &mut buf, &[part]).unwrap();
        let Put::Stored { bytes } = put else { panic!("{put:?}") };
        assert!((4096..6700).contains(&bytes), "{bytes}");
        let name = writer.map.get(0).unwrap().unwrap();
        assert_eq!(name.id, ChunkId::of(&data));
        let files = name.recipe.unwrap().files;
        assert!(files.iter().map(|needed| needed.file).eq([chunk]));
        drop(putter);
        writer.finish(&guard, Stats::default(), Default::default()).unwrap();
    }

    #[test]
    fn damage_of_the_base_is_recorded_and_healed_by_putting() {
        let (_dir, job) = new_job("web01");
        let data = image(5, 1 << 22);
        let base = write_revision(&job, &data, None);
        let id = ChunkId::of(&data);
        let path = job.repository().root().join(format!("chunks/{}/{id}", &id.to_string()[..2]));
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() - 32 - 5;
        bytes[at] ^= 1;
        crate::fs::disk::remove(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let guard = job.lock_for_backup().unwrap();
        let new = new_revision(&data, Some(base.clone()));
        let writer = job.new_revision(&guard, new).unwrap();
        let mut putter = writer.chunk_writer().unwrap();
        let last = data.len() - 1;
        let mut buf = data.clone();
        let changed = last..last + 1;
        assert!(putter.put_changed(0, &mut buf, &[changed]).unwrap_err().is_damage());
        assert_eq!(job.revision(&base.id).unwrap().trust, crate::Trust::Distrusted);
        assert!(matches!(putter.put(0, &data).unwrap(), crate::Put::Stored { .. }));
        assert!(writer.read_back(0).unwrap().unwrap() == data);
    }
}
