//! What a source that knows only parts of a chunk needs: the rest of it, as it was recorded before.
//!
//! Every byte that is given out was verified. A chunk that is damaged is marked, and the revisions that use it
//! are distrusted, before the error is returned: whoever then puts the whole chunk from the source writes it anew.

use std::sync::atomic::Ordering;

use super::{ChunkWriter, RevisionWriter};
use crate::CHUNK_SIZE;
use crate::chunk::layout::chunk_len;
use crate::chunk::store::{self, Scratch};
use crate::chunk::{CHUNK_LEN, ChunkId};
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
        self.read_chunk(&id, &mut data, &mut Scratch::new())?;
        // What lies behind the end of the smaller image is not part of it.
        data.truncate((end % CHUNK_SIZE) as usize);
        data.resize(chunk_len(self.size_bytes(), number), 0);
        self.chunk_writer()?.put(number, &data).map(drop)
    }

    /// Fills `buf` with a chunk of this length, verified.
    fn read_chunk(&self, id: &ChunkId, buf: &mut [u8], scratch: &mut Scratch) -> Result<()> {
        debug_assert!(buf.len() <= CHUNK_LEN);
        let read = store::open(&self.backend, id).and_then(|chunk| {
            if chunk.plain_len() != buf.len() {
                let reason =
                    format!("it holds {} bytes where the image has {}", chunk.plain_len(), buf.len());
                return Err(Error::ChunkCorrupt { id: *id, reason });
            }
            match scratch.read_into(&chunk, buf).into_iter().next() {
                Some((_, error)) => Err(error),
                None => Ok(()),
            }
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

impl ChunkWriter<'_> {
    /// Fills `buf` with what is recorded at place `number`: the base's bytes as long as nothing was put there.
    pub fn recorded(&mut self, number: u64, buf: &mut [u8]) -> Result<()> {
        let writer = self.writer;
        assert_eq!(buf.len(), chunk_len(writer.size_bytes(), number), "chunk {number} has another length");
        match writer.map.get(number)? {
            Some(id) => writer.read_chunk(&id, buf, &mut self.scratch),
            None => {
                buf.fill(0);
                Ok(())
            }
        }
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
    fn damage_of_the_base_is_recorded_and_healed_by_putting() {
        let (_dir, job) = new_job("web01");
        let data = image(5, 1 << 22);
        let base = write_revision(&job, &data, None);
        let id = ChunkId::of(&data);
        let path = job.repository().root().join(format!("chunks/{}/{id}", &id.to_string()[..2]));
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() - 5;
        bytes[at] ^= 1;
        std::fs::remove_file(&path).unwrap();
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
