//! What a source that knows only parts of a chunk needs: the rest of it, as it was recorded before.
//!
//! Every byte that is given out was verified. A chunk that is damaged is marked, and the revisions that use it
//! are distrusted, before the error is returned: whoever then puts the whole chunk from the source writes it anew.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::{ChunkWriter, Put, RevisionWriter};
use crate::CHUNK_SIZE;
use crate::chunk::container::Header;
use crate::chunk::frame::Kind;
use crate::chunk::layout::chunk_len;
use crate::chunk::layout::frame_len;
use crate::chunk::store::{self, FrameScratch};
use crate::chunk::{CHUNK_LEN, ChunkId, FRAME_LEN};
use crate::damage;
use crate::error::{Error, Result};
use crate::monitor::Silent;

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
        let page = base.read_page(number / crate::revision::map::PAGE_ENTRIES)?;
        let at = (number % crate::revision::map::PAGE_ENTRIES) as usize * 32;
        let Some(id) = crate::revision::map::entry(&page[at..at + 32]) else { return Ok(()) };
        let mut data = vec![0; chunk_len(base.size_bytes(), number)];
        self.read_chunk(&id, &mut data, &mut Kept::default())?;
        // What lies behind the end of the smaller image is not part of it.
        data.truncate((end % CHUNK_SIZE) as usize);
        data.resize(chunk_len(self.size_bytes(), number), 0);
        self.chunk_writer()?.put(number, &data).map(drop)
    }

    /// Fills `buf` with a chunk of this length, verified.
    fn read_chunk(&self, id: &ChunkId, buf: &mut [u8], kept: &mut Kept) -> Result<()> {
        debug_assert!(buf.len() <= CHUNK_LEN);
        let read = store::open(&self.backend, id).and_then(|chunk| {
            if chunk.plain_len() != buf.len() {
                let reason =
                    format!("it holds {} bytes where the image has {}", chunk.plain_len(), buf.len());
                return Err(Error::ChunkCorrupt { id: *id, reason });
            }
            let scratch = kept.scratch.get_or_insert_with(FrameScratch::new);
            chunk.read_keeping(scratch, buf, &mut kept.stored)?;
            kept.header = Some(chunk.header().clone());
            Ok(())
        });
        if let Err(error) = &read
            && error.is_damage()
        {
            self.met_damage.store(true, Ordering::Relaxed);
            damage::record_chunks(self.job.repository(), &[*id], &Silent)?;
        }
        read
    }
}

/// A chunk as it is recorded: what of it does not change is not compressed and hashed again, but taken over, after it
/// was read and verified.
#[derive(Default)]
pub(super) struct Kept {
    scratch: Option<FrameScratch>,
    /// The bytes of its file.
    stored: Vec<u8>,
    /// What its file says of its frames.
    header: Option<Header>,
    /// Its place.
    number: u64,
    /// Bit n: frame n of the chunk that is being put is frame n of this one.
    pub(super) unchanged: u64,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Kept")
    }
}

impl Kept {
    /// Returns a frame as it is stored, if the chunk that is being put has the same one.
    pub(super) fn frame(&self, number: usize) -> Option<(Kind, &[u8])> {
        let frame = self.header.as_ref()?.frames.get(number).filter(|_| self.unchanged >> number & 1 != 0)?;
        let start = frame.offset as usize;
        Some((frame.kind, &self.stored[start..start + frame.stored_len as usize]))
    }
}

impl ChunkWriter<'_> {
    /// Fills `buf` with what is recorded at place `number`: the base's bytes as long as nothing was put there.
    pub fn recorded(&mut self, number: u64, buf: &mut [u8]) -> Result<()> {
        let writer = self.writer;
        assert_eq!(buf.len(), chunk_len(writer.size_bytes(), number), "chunk {number} has another length");
        self.kept.header = None;
        self.kept.number = number;
        match writer.map.get(number)? {
            Some(id) => writer.read_chunk(&id, buf, &mut self.kept),
            None => {
                buf.fill(0);
                Ok(())
            }
        }
    }

    /// Puts a chunk that differs from what [`ChunkWriter::recorded`] gave for this place only in the given parts of it.
    pub fn put_changed(&mut self, number: u64, data: &[u8], changed: &[Range<usize>]) -> Result<Put> {
        let is_same = |header: &&Header| header.plain_len == data.len() && header.frames.len() > 1;
        let Some(header) =
            self.kept.header.take().filter(|header| self.kept.number == number && is_same(&header))
        else {
            return self.put(number, data);
        };
        let mut unchanged = 0;
        for frame in 0..header.frames.len() {
            let start = frame * FRAME_LEN;
            let bytes = start..start + frame_len(data.len(), frame);
            let is_touched = changed.iter().any(|part| part.start < bytes.end && bytes.start < part.end);
            unchanged |= u64::from(!is_touched) << frame;
        }
        let known = |frame: usize| {
            let found = &header.frames[frame];
            (unchanged >> frame & 1 != 0).then_some((found.value, found.kind == Kind::Zero))
        };
        let id = self.digest.update_but(data, known);
        self.kept.unchanged = unchanged;
        self.kept.header = Some(header);
        let put = match id {
            Some(id) => self.put_hashed(number, id, data),
            None => self.hole(number),
        };
        self.kept.header = None;
        put
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{image, new_job, new_revision, write_revision};

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
            let mut putter = writer.chunk_writer().unwrap();
            for (number, expected) in expected.chunks(c).enumerate() {
                let mut found = vec![9; expected.len()];
                putter.recorded(number as u64, &mut found).unwrap();
                assert!(found == expected, "{before} to {after}, chunk {number}");
            }
        }
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "lists of one range are what is meant")]
    fn a_chunk_put_by_its_changes_is_the_same_as_one_put_whole() {
        let (_dir, job) = new_job("web01");
        for (seed, length) in [(1, 4 << 20), (2, (4 << 20) - 3), (3, 70_000), (4, 65_536), (5, 200_000)] {
            let mut data = image(seed, length);
            data[length / 2..length / 2 + 20_000].fill(0);
            let base = write_revision(&job, &data, None);
            for changed in
                [vec![0..1], vec![length - 1..length], vec![65_535..65_537, length / 3..length / 3 + 9]]
            {
                let changed: Vec<_> =
                    changed.into_iter().filter(|part: &Range<usize>| part.end <= length).collect();
                for byte in [0, 7] {
                    let guard = job.lock_for_backup().unwrap();
                    let writer = job.new_revision(&guard, new_revision(&data, Some(base.clone()))).unwrap();
                    let mut putter = writer.chunk_writer().unwrap();
                    let mut buf = vec![0; length];
                    putter.recorded(0, &mut buf).unwrap();
                    assert!(buf == data);
                    changed.iter().for_each(|part| buf[part.clone()].fill(byte));
                    putter.put_changed(0, &buf, &changed).unwrap();
                    assert_eq!(writer.map.get(0).unwrap(), Some(ChunkId::of(&buf)), "{length} {changed:?}");
                    let mut back = vec![1; length];
                    putter.recorded(0, &mut back).unwrap();
                    assert!(back == buf, "{length} {changed:?}");
                    // Twice in a row, from what was put; then all zeros.
                    putter.put_changed(0, &data, &changed).unwrap();
                    assert_eq!(writer.map.get(0).unwrap(), Some(ChunkId::of(&data)));
                    putter.recorded(0, &mut back).unwrap();
                    back.fill(0);
                    assert_eq!(putter.put_changed(0, &back, &[0..length]).unwrap(), Put::Hole);
                }
            }
        }
    }

    #[test]
    fn damage_of_the_base_is_recorded_and_healed_by_putting() {
        let (_dir, job) = new_job("web01");
        let data = image(5, 1 << 22);
        let base = write_revision(&job, &data, None);
        let id = ChunkId::of(&data);
        let path = job.repository().root().join(format!("chunks/{}/{id}", &id.to_string()[..2]));
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() - 5;
        bytes[at] ^= 1;
        crate::disk::remove(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let guard = job.lock_for_backup().unwrap();
        let new = new_revision(&data, Some(base.clone()));
        let writer = job.new_revision(&guard, new).unwrap();
        let mut putter = writer.chunk_writer().unwrap();
        let mut buf = vec![0; data.len()];
        assert!(putter.recorded(0, &mut buf).unwrap_err().is_damage());
        assert_eq!(job.revision(&base.id).unwrap().trust, crate::Trust::Distrusted);
        assert!(matches!(putter.put(0, &data).unwrap(), crate::Put::Stored { .. }));
        putter.recorded(0, &mut buf).unwrap();
        assert!(buf == data);
    }
}
