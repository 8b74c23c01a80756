//! Random access to the image of one revision. While a reader lives, its revision's chunks are not deleted,
//! even when the revision is forgotten and a purge runs: the map is pinned in a session of its own.

use std::cell::RefCell;
use std::sync::Arc;

use super::map::{self, ChunkMap, Entry, PAGE_ENTRIES};
use super::{Revision, RevisionId};
use crate::backend::local::LocalBackend;
use crate::chunk::cache::{FrameCache, Key};
use crate::chunk::layout::{chunk_len, frame_len};
use crate::chunk::store::{self, FrameScratch};
use crate::chunk::{CHUNK_SIZE, ChunkId, FRAME_SIZE};
use crate::error::{Error, Result};
use crate::job::Job;
use crate::name::JobName;
use crate::session::Session;

thread_local! {
    static SCRATCH: RefCell<FrameScratch> = RefCell::new(FrameScratch::new());
}

/// Random access to the image of one revision. Many threads may read at once.
#[derive(Debug)]
pub struct RevisionReader {
    job: JobName,
    revision: RevisionId,
    map: ChunkMap,
    backend: LocalBackend,
    store: u64,
    cache: Arc<FrameCache>,
    /// `None` on a read-only file system.
    _session: Option<Session>,
}

impl RevisionReader {
    pub(crate) fn open(job: &Job, revision: &Revision, cache: Arc<FrameCache>) -> Result<Self> {
        let (session, map) = pin(job, revision)?;
        Ok(Self {
            job: job.name().clone(),
            revision: revision.id.clone(),
            map,
            backend: job.repository().backend()?,
            store: job.repository().key(),
            cache,
            _session: session,
        })
    }

    /// Size of the image.
    pub fn size_bytes(&self) -> u64 {
        self.map.size_bytes()
    }

    /// Reads into `buf` from `offset`; returns fewer bytes only at the end of the image. Every byte is verified.
    /// Damage is `ImageDamaged` with the offset of the first bad frame.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let wanted = self.size_bytes().saturating_sub(offset).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < wanted {
            let at = offset + done as u64;
            let (number, inside) = (at / CHUNK_SIZE, at % CHUNK_SIZE);
            let out = &mut buf[done..wanted];
            done += match self.entry(number)? {
                None => {
                    let length = out.len().min((CHUNK_SIZE - inside) as usize);
                    out[..length].fill(0);
                    length
                }
                Some(id) => {
                    let frame = self.frame(number, &id, inside / FRAME_SIZE)?;
                    let from = (inside % FRAME_SIZE) as usize;
                    let length = out.len().min(frame.len() - from);
                    out[..length].copy_from_slice(&frame[from..from + length]);
                    length
                }
            };
        }
        Ok(wanted)
    }

    fn entry(&self, number: u64) -> Result<Entry> {
        let page = number / PAGE_ENTRIES;
        let key = Key::MapPage(*self.map.seal(), page);
        let bytes = self
            .cache
            .get_or_load(&key, || self.map.read_page(page))
            .map_err(|cause| self.damaged(page * PAGE_ENTRIES * CHUNK_SIZE, cause))?;
        let at = (number % PAGE_ENTRIES) as usize * 32;
        Ok(map::entry(&bytes[at..at + 32]))
    }

    fn frame(&self, number: u64, id: &ChunkId, frame: u64) -> Result<Arc<Vec<u8>>> {
        let key = Key::Frame(self.store, *id, frame as u8);
        self.cache.get_or_load(&key, || self.load_frame(number, id, frame as usize)).map_err(|cause| {
            self.cache.forget_chunk(self.store, id);
            self.damaged(number * CHUNK_SIZE + frame * FRAME_SIZE, cause)
        })
    }

    fn load_frame(&self, number: u64, id: &ChunkId, frame: usize) -> Result<Vec<u8>> {
        let chunk = self.cache.chunk(self.store, id, || store::open(&self.backend, id).map(Arc::new))?;
        let expected = chunk_len(self.size_bytes(), number);
        if chunk.plain_len() != expected {
            let reason = format!("it holds {} bytes where the image has {expected}", chunk.plain_len());
            return Err(Error::ChunkCorrupt { id: *id, reason });
        }
        let mut data = vec![0; frame_len(expected, frame)];
        SCRATCH.with_borrow_mut(|scratch| chunk.read_frame(frame, scratch, &mut data))?;
        Ok(data)
    }

    fn damaged(&self, offset: u64, cause: Error) -> Error {
        let (job, revision) = (self.job.clone(), self.revision.clone());
        Error::ImageDamaged { job, revision, offset, cause: Box::new(cause) }
    }

    /// The chunk that holds `offset`; `None` in a hole and past the end.
    pub fn chunk_at(&self, offset: u64) -> Result<Option<ChunkId>> {
        if offset >= self.size_bytes() { Ok(None) } else { self.entry(offset / CHUNK_SIZE) }
    }

    /// First byte at or after `offset` that is not in a hole; `None` when only holes follow.
    pub fn next_data(&self, offset: u64) -> Result<Option<u64>> {
        self.next(offset, true)
    }

    /// First byte at or after `offset` that lies in a hole, or the image's size.
    pub fn next_hole(&self, offset: u64) -> Result<u64> {
        Ok(self.next(offset, false)?.unwrap_or_else(|| self.size_bytes()))
    }

    fn next(&self, offset: u64, data: bool) -> Result<Option<u64>> {
        for number in offset / CHUNK_SIZE..self.map.chunk_count() {
            if self.entry(number)?.is_some() == data {
                let found = (number * CHUNK_SIZE).max(offset);
                return Ok((found < self.size_bytes()).then_some(found));
            }
        }
        Ok(None)
    }

    /// Bytes of the image that lie in chunks, not in holes. Reads the whole map.
    pub fn data_bytes(&self) -> Result<u64> {
        let mut sum = 0;
        for number in 0..self.map.chunk_count() {
            if self.entry(number)?.is_some() {
                sum += chunk_len(self.size_bytes(), number) as u64;
            }
        }
        Ok(sum)
    }
}

/// Pins a revision's map and opens it. From then on a purge keeps its chunks.
pub(crate) fn pin(job: &Job, revision: &Revision) -> Result<(Option<Session>, ChunkMap)> {
    // Kinds that have no map are refused before anything is pinned.
    let map = job.open_map(revision)?;
    let path = job.map_path(&revision.id);
    match Session::begin_reader(job.repository().root(), &path, &revision.id) {
        Ok(session) => Ok((session, map)),
        Err(error) if error.io_kind() == Some(std::io::ErrorKind::NotFound) => {
            Err(Error::RevisionUnknown { job: job.name().clone(), revision: revision.id.to_string() })
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{image, new_job, write_revision};

    #[test]
    fn a_small_read_decodes_one_frame_and_not_the_chunk() {
        let (_dir, job) = new_job("web01");
        let mut data = image(1, 2 << 22);
        data[(5 << 20) + 4096..][..4096].fill(7);
        let revision = write_revision(&job, &data, None);
        let cache = Arc::new(FrameCache::new(1 << 24));
        let reader = job.open_revision(&revision, &cache).unwrap();
        let mut page = [0; 4096];
        reader.read_at((5 << 20) + 4096, &mut page).unwrap();
        assert_eq!(page, [7; 4096]);
        // One frame and the only page of the map: two entries of 32 bytes.
        assert_eq!(cache.bytes(), 65536 + 64);
    }

    #[test]
    fn holes_and_ends_are_found() {
        let (_dir, job) = new_job("web01");
        let mut data = image(1, (3 << 22) + 100);
        data[1 << 22..3 << 22].fill(0);
        data[3 << 22..].fill(1);
        let revision = write_revision(&job, &data, None);
        let reader = job.open_revision(&revision, &Arc::new(FrameCache::new(1 << 20))).unwrap();
        assert_eq!((reader.next_data(5).unwrap(), reader.next_hole(5).unwrap()), (Some(5), 1 << 22));
        assert_eq!(
            (reader.next_data(5 << 20).unwrap(), reader.next_hole(5 << 20).unwrap()),
            (Some(3 << 22), 5 << 20)
        );
        let end = (3 << 22) + 100;
        assert_eq!((reader.next_data(end).unwrap(), reader.next_hole(end - 1).unwrap()), (None, end));
        assert_eq!(reader.data_bytes().unwrap(), (1 << 22) + 100);
        assert_eq!(reader.chunk_at(end).unwrap(), None);
        assert_eq!(reader.read_at(end - 10, &mut [0; 100]).unwrap(), 10);
        assert_eq!(reader.read_at(u64::MAX, &mut [0; 100]).unwrap(), 0);
    }
}
