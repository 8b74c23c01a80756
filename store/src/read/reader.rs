//! Random access to the image of one revision. While a reader lives, its revision's chunks are not deleted,
//! even when the revision is forgotten and a purge runs: the map is pinned in a session of its own. Where nothing can be
//! written there is none; then a purge ends the reading with `RevisionPurged`.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::avoided::Avoided;
use super::image::{Framed, Image};
use crate::error::{Error, Result};
use crate::format::layout::{chunk_len, frame_len};
use crate::format::map::{self, ChunkMap, Entry, PAGE_ENTRIES};
use crate::format::name::Place;
use crate::format::{CHUNK_LEN, CHUNK_SIZE, ChunkId, FRAME_SIZE};
use crate::legacy::image::OldImage;
use crate::name::JobName;
use crate::read::block::Block;
use crate::read::cache::{FrameCache, Key};
use crate::read::chunk::{OpenChunk, Scratch, SharedChunk};
use crate::repository::job::Job;
use crate::repository::session::Session;
use crate::revision::{Revision, RevisionId};

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new());
}

/// What a hole is read from.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// What is loaded for a read of something that is not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Its frame of 64 KiB: for random reads.
    Frame,
    /// Its whole chunk: for a reader who goes on.
    Chunk,
}

/// Bytes of an image, verified, shared with the cache.
#[derive(Debug)]
pub struct Piece {
    /// `None` for zeros.
    block: Option<Arc<Block>>,
    from: usize,
    length: usize,
}

impl std::ops::Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.block {
            Some(block) => &block[self.from..self.from + self.length],
            None => &ZEROS[..self.length],
        }
    }
}

/// Random access to the image of one revision. Many threads may read at once.
#[derive(Debug)]
pub struct RevisionReader {
    job: JobName,
    revision: RevisionId,
    image: Image,
    store: u64,
    cache: Arc<FrameCache>,
    avoided: Avoided,
    places: PlacesCache,
}

/// Pages of entries with the places of recipes, decoded: the last few that were asked for.
#[derive(Debug, Default)]
struct PlacesCache(Mutex<VecDeque<(u64, Arc<Vec<Entry>>)>>);

/// So many are kept.
const PLACES_MAX: usize = 4;

impl PlacesCache {
    fn get_or_load(&self, page: u64, load: impl FnOnce() -> Result<Vec<Entry>>) -> Result<Arc<Vec<Entry>>> {
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, entries)) = pages.iter().find(|(number, _)| *number == page) {
            return Ok(Arc::clone(entries));
        }
        // Others who want the same page wait for it here.
        let entries = Arc::new(load()?);
        pages.truncate(PLACES_MAX - 1);
        pages.push_front((page, Arc::clone(&entries)));
        Ok(entries)
    }
}

impl RevisionReader {
    pub(crate) fn open(job: &Job, revision: &Revision, cache: Arc<FrameCache>) -> Result<Self> {
        let image = Image::open_shared(job, revision)?;
        let store = match &image {
            Image::Framed(_) => job.repository().key(),
            Image::Old(old) => old.key(),
        };
        let (job, revision, avoided) = (job.name().clone(), revision.id.clone(), Avoided::default());
        Ok(Self { job, revision, image, store, cache, avoided, places: PlacesCache::default() })
    }

    /// Size of the image.
    pub fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    /// Returns the damage that reads got around since it was asked last: `ImageDamaged` with the offset of the chunk, or of
    /// what a page of the map covers. What was read is right, but nothing keeps what it was read from, so it is to be
    /// recorded as damage that a read fails of.
    pub fn take_avoided(&self) -> Vec<Error> {
        self.avoided.take()
    }

    /// Reads into `buf` from `offset`; returns fewer bytes only at the end of the image. Every byte is verified.
    /// Damage is `ImageDamaged` with the offset of the first bad frame, or of the chunk where none of it can be read.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let out = &mut buf[done..];
            let piece = self.piece(offset + done as u64, out.len(), Extent::Frame)?;
            if piece.is_empty() {
                break;
            }
            out[..piece.len()].copy_from_slice(&piece);
            done += piece.len();
        }
        Ok(done)
    }

    /// Returns up to `length` bytes of the image from `offset`, as many as lie in memory in one piece: those of a
    /// frame, of a chunk or of a hole; none past the end. Every byte is verified. What is not in memory is loaded:
    /// the frame or the chunk, as `extent` says.
    pub fn piece(&self, offset: u64, length: usize, extent: Extent) -> Result<Piece> {
        let length = self.size_bytes().saturating_sub(offset).min(length as u64) as usize;
        if length == 0 {
            return Ok(Piece { block: None, from: 0, length });
        }
        let (number, inside) = (offset / CHUNK_SIZE, (offset % CHUNK_SIZE) as usize);
        let Some(id) = self.entry(number)? else {
            let length = length.min(CHUNK_SIZE as usize - inside).min(ZEROS.len());
            return Ok(Piece { block: None, from: 0, length });
        };
        if let Image::Old(old) = &self.image {
            return self.old_piece(old, offset, length, &id, extent);
        }
        let frame = inside / FRAME_SIZE as usize;
        let (block, from, expected) = match self.block(number, &id, frame, extent)? {
            (block, true) => (block, inside, self.chunk_len(number)),
            (block, false) => (block, inside % FRAME_SIZE as usize, frame_len(self.chunk_len(number), frame)),
        };
        // It may have come into the cache for another image, where its chunk has its place.
        if block.len() != expected {
            let reason = format!("it holds {} bytes where the image has {expected}", block.len());
            return Err(self.damaged(number * CHUNK_SIZE, Error::ChunkCorrupt { id, reason }));
        }
        let length = length.min(block.len() - from);
        Ok(Piece { block: Some(block), from, length })
    }

    /// As [`Self::piece`], of an image of the original: its chunks are decoded whole, since only so they can be proven.
    fn old_piece(
        &self,
        old: &OldImage,
        offset: u64,
        length: usize,
        id: &ChunkId,
        extent: Extent,
    ) -> Result<Piece> {
        let (number, inside) = (offset / CHUNK_SIZE, (offset % CHUNK_SIZE) as usize);
        let needed = length.min(self.chunk_len(number) - inside);
        let (key, start) = self.old_key(old, id, inside, extent);
        let loaded = self.cache.get_or_load(&key, || self.load_old(old, number, id, start));
        let block = loaded.map_err(|cause| self.damaged(number * CHUNK_SIZE, cause))?;
        let from = inside - start;
        if from < block.len() {
            let length = needed.min(block.len() - from);
            return Ok(Piece { block: Some(block), from, length });
        }
        old.check_len(number, id, block.len()).map_err(|cause| self.damaged(offset, cause))?;
        Ok(Piece { block: None, from: 0, length: needed.min(ZEROS.len()) })
    }

    /// Returns under which key a part of an image of the original is kept, and where in its chunk it begins.
    fn old_key(&self, old: &OldImage, id: &ChunkId, inside: usize, extent: Extent) -> (Key, usize) {
        if old.is_chunked() || extent == Extent::Chunk {
            return (Key::Chunk(self.store, *id), 0);
        }
        let frame = inside / FRAME_SIZE as usize;
        (Key::Frame(self.store, *id, frame as u8), frame * FRAME_SIZE as usize)
    }

    fn load_old(&self, old: &OldImage, number: u64, id: &ChunkId, start: usize) -> Result<Block> {
        let expected = self.chunk_len(number);
        if old.is_chunked() {
            // Another image may need more of it.
            let mut data = self.cache.buffer(CHUNK_LEN);
            let read = SCRATCH
                .with_borrow_mut(|scratch| old.read_stored(number, id, scratch.buffers().0, data.as_mut()));
            data.truncate(read?);
            return Ok(data);
        }
        let whole = start == 0 && expected > FRAME_SIZE as usize;
        let length = if whole { expected } else { (expected - start).min(FRAME_SIZE as usize) };
        let mut data = self.cache.buffer(length);
        old.read_raw(number * CHUNK_SIZE + start as u64, data.as_mut())?;
        Ok(data)
    }

    /// Loads the frame or the chunk that holds `offset` if it is not in memory. What fails here fails again for its
    /// reader, or is got around by it, who is told.
    pub fn load_ahead(&self, offset: u64, extent: Extent) -> Result<()> {
        if offset >= self.size_bytes() {
            return Ok(());
        }
        let number = offset / CHUNK_SIZE;
        let Some(id) = self.entry(number)? else { return Ok(()) };
        if let Image::Old(old) = &self.image {
            let (key, start) = self.old_key(old, &id, (offset % CHUNK_SIZE) as usize, extent);
            return self.cache.load_ahead(&key, || self.load_old(old, number, &id, start));
        }
        let chunk = Key::Chunk(self.store, id);
        if extent == Extent::Chunk {
            return self.cache.load_ahead(&chunk, || self.load_chunk(number, &id));
        }
        if self.cache.find([&chunk]).is_some() {
            return Ok(());
        }
        let frame = (offset % CHUNK_SIZE / FRAME_SIZE) as usize;
        self.cache.load_ahead(&Key::Frame(self.store, id, frame as u8), || {
            self.load_named_frame(number, &id, frame)
        })
    }

    /// Begins to fetch the chunk that holds `offset` from the disk, unless it is in memory decoded. What fails here fails
    /// again for its reader.
    pub fn will_need(&self, offset: u64) {
        let number = offset / CHUNK_SIZE;
        if offset >= self.size_bytes() {
            return;
        }
        if let Ok(Some(id)) = self.entry(number)
            && self.cache.find([&Key::Chunk(self.store, id)]).is_none()
        {
            match &self.image {
                Image::Old(old) => old.will_need(&id),
                Image::Framed(_) => {
                    if let Ok(chunk) = self.open_chunk(number, &id) {
                        chunk.will_need();
                    }
                }
            }
        }
    }

    /// Returns the frame, or the chunk (and `true`) where that is in memory or is wanted and can be read.
    fn block(&self, number: u64, id: &ChunkId, frame: usize, extent: Extent) -> Result<(Arc<Block>, bool)> {
        let (chunk, key) = (Key::Chunk(self.store, *id), Key::Frame(self.store, *id, frame as u8));
        if let Some((found, block)) = self.cache.find([&chunk, &key]) {
            return Ok((block, found == 0));
        }
        if extent == Extent::Chunk && !self.cache.has_failed(&chunk) {
            // Of a damaged chunk the good frames are read one by one.
            match self.cache.get_or_load(&chunk, || self.load_chunk(number, id)) {
                Ok(block) => return Ok((block, true)),
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        let loaded = self.cache.get_or_load(&key, || self.load_frame(number, id, frame));
        loaded.map(|block| (block, false)).map_err(|cause| {
            if matches!(cause, Error::RevisionPurged { .. } | Error::ChunksAway { .. }) {
                return cause;
            }
            // Where not even the chunk opens, all of it is one piece of damage.
            let inside = if self.open_chunk(number, id).is_ok() { frame as u64 * FRAME_SIZE } else { 0 };
            self.cache.forget_chunk(self.store, id);
            self.damaged(number * CHUNK_SIZE + inside, cause)
        })
    }

    /// The chunk at a place; `None` in a hole.
    fn entry(&self, number: u64) -> Result<Option<ChunkId>> {
        let Framed { map, .. } = &**match &self.image {
            Image::Framed(framed) => framed,
            Image::Old(old) => return Ok(old.get(number)),
        };
        let page = number / PAGE_ENTRIES;
        let ids = self.ids(map, page);
        let ids = ids.map_err(|cause| self.damaged(page * PAGE_ENTRIES * CHUNK_SIZE, cause))?;
        Ok(map::id_at(&ids, number % PAGE_ENTRIES))
    }

    /// The ids in a page of the map.
    fn ids(&self, map: &ChunkMap, page: u64) -> Result<Arc<Block>> {
        self.cache.get_or_load(&Key::MapPage(*map.seal(), page), || map.read_page(page).map(Block::from))
    }

    /// Returns where the chunk `id`, which lies at a place of the image, is kept.
    fn place(&self, framed: &Framed, number: u64, id: &ChunkId) -> Result<Place> {
        let page = number / PAGE_ENTRIES;
        if framed.map.places_hash(page).is_none() {
            return Ok(Place::full(*id));
        }
        let load = || {
            let ids = self.ids(&framed.map, page)?;
            let (entries, damage) = framed.entries(page, &ids)?;
            if let Some(error) = damage {
                self.avoided.note(self.damaged(page * PAGE_ENTRIES * CHUNK_SIZE, error));
            }
            Ok(entries)
        };
        let entries = self.places.get_or_load(page, load)?;
        let place = entries.get((number % PAGE_ENTRIES) as usize).cloned().flatten();
        Ok(place.unwrap_or(Place::full(*id)))
    }

    fn chunk_len(&self, number: u64) -> usize {
        chunk_len(self.size_bytes(), number)
    }

    fn open_chunk(&self, number: u64, id: &ChunkId) -> Result<SharedChunk> {
        let Image::Framed(framed) = &self.image else { return Err(Error::ChunkMissing { id: *id }) };
        let open = || {
            let place = self.place(framed, number, id)?;
            framed.open(&place).map(Arc::new)
        };
        let chunk = self.cache.chunk(self.store, id, open)?;
        chunk.must_have_len(self.chunk_len(number))?;
        Ok(chunk)
    }

    /// Loads a frame from the file that the map names.
    fn load_named_frame(&self, number: u64, id: &ChunkId, frame: usize) -> Result<Block> {
        let read = self.open_chunk(number, id).and_then(|chunk| self.read_frame(&chunk, frame));
        match &self.image {
            Image::Framed(framed) => read.map_err(|error| framed.explained(error)),
            Image::Old(_) => read,
        }
    }

    /// Loads a frame from the file that the map names or, where that cannot give it, from any of its chunk.
    fn load_frame(&self, number: u64, id: &ChunkId, frame: usize) -> Result<Block> {
        let error = match self.load_named_frame(number, id, frame) {
            Err(error) if error.is_damage() => error,
            other => return other,
        };
        // What is repaired meanwhile is to be seen.
        self.cache.forget_chunk(self.store, id);
        let Image::Framed(framed) = &self.image else { return Err(error) };
        let place = self.place(framed, number, id).unwrap_or(Place::full(*id));
        let forms = framed.open_forms(&place, self.chunk_len(number));
        let read = forms.iter().find_map(|form| self.read_frame(form, frame).ok());
        let Some(data) = read else { return Err(error) };
        self.avoided.note(self.damaged(number * CHUNK_SIZE, error));
        Ok(data)
    }

    fn read_frame(&self, chunk: &OpenChunk, frame: usize) -> Result<Block> {
        let mut data = self.cache.buffer(frame_len(chunk.plain_len(), frame));
        SCRATCH.with_borrow_mut(|scratch| scratch.read_frame(chunk, frame, data.as_mut()))?;
        Ok(data)
    }

    fn load_chunk(&self, number: u64, id: &ChunkId) -> Result<Block> {
        let chunk = self.open_chunk(number, id)?;
        let mut data = self.cache.buffer(chunk.plain_len());
        let bad = SCRATCH.with_borrow_mut(|scratch| scratch.read_into(&chunk, data.as_mut()));
        match bad.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(data),
        }
    }

    fn damaged(&self, offset: u64, cause: Error) -> Error {
        let (job, revision) = (self.job.clone(), self.revision.clone());
        Error::ImageDamaged { job, revision, offset, cause: Box::new(cause) }
    }

    /// The chunk that holds `offset`; `None` in a hole and past the end.
    pub fn chunk_at(&self, offset: u64) -> Result<Option<ChunkId>> {
        let is_raw = matches!(&self.image, Image::Old(old) if !old.is_chunked());
        if is_raw || offset >= self.size_bytes() { Ok(None) } else { self.entry(offset / CHUNK_SIZE) }
    }

    /// First byte in a range that is not in a hole; `None` when there is none. Looks at nothing beyond the range.
    pub fn next_data(&self, range: Range<u64>) -> Result<Option<u64>> {
        self.next(range, true)
    }

    /// First byte in a range that lies in a hole; `None` when there is none.
    pub fn next_hole(&self, range: Range<u64>) -> Result<Option<u64>> {
        self.next(range, false)
    }

    fn next(&self, range: Range<u64>, data: bool) -> Result<Option<u64>> {
        let end = range.end.min(self.size_bytes());
        if let Image::Old(old) = &self.image {
            let found = old.next(range.start / CHUNK_SIZE, end.div_ceil(CHUNK_SIZE), data);
            let at = found.map(|number| (number * CHUNK_SIZE).max(range.start));
            return Ok(at.filter(|at| *at < end));
        }
        for number in range.start / CHUNK_SIZE..end.div_ceil(CHUNK_SIZE) {
            if self.entry(number)?.is_some() == data {
                let found = (number * CHUNK_SIZE).max(range.start);
                return Ok((found < end).then_some(found));
            }
        }
        Ok(None)
    }
}

/// Pins the map of a revision of our own format and opens it. From then on a purge keeps its chunks. Where nothing can
/// be written there is no session, and a purge is noticed by what is missing.
pub(crate) fn pin(job: &Job, revision: &Revision) -> Result<(Option<Session>, ChunkMap)> {
    pin_by(job, revision, Session::begin_reader)
}

/// As [`pin`], for a writer, which relies on the chunks that it pins.
pub(crate) fn pin_for_writing(job: &Job, revision: &Revision) -> Result<(Session, ChunkMap)> {
    pin_by(job, revision, Session::begin_pinned)
}

fn pin_by<S>(
    job: &Job,
    revision: &Revision,
    begin: impl FnOnce(&Path, &Path, &RevisionId) -> Result<S>,
) -> Result<(S, ChunkMap)> {
    // Kinds that have no map are refused before anything is pinned.
    let map = job.open_map(revision)?;
    let path = job.map_path(&revision.id);
    match begin(job.repository().root(), &path, &revision.id) {
        Ok(session) => Ok((session, map)),
        Err(error) if error.io_kind() == Some(std::io::ErrorKind::NotFound) && !path.exists() => {
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
    fn a_reader_without_a_session_is_told_of_a_purge_and_marks_no_damage() {
        let (dir, job) = new_job("web01");
        let data = image(1, 2 << 22);
        let revision = write_revision(&job, &data, None);
        let (root, away) = (job.repository().root(), dir.path().join("away"));
        let writers = root.join("writers");
        crate::fs::disk::rename(&writers, &away).unwrap();
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &writers).unwrap();
        let cache = Arc::new(FrameCache::new(1 << 24));
        let reader = job.open_revision(&revision, &cache).unwrap();
        reader.read_at(0, &mut [0; 10]).unwrap();
        assert!(
            job.new_revision(
                &job.lock_for_backup().unwrap(),
                crate::testing::new_revision(&data, Some(revision.clone()))
            )
            .is_err()
        );
        crate::fs::disk::remove(&writers).unwrap();
        crate::fs::disk::rename(&away, &writers).unwrap();
        job.forget(&job.lock_manifests().unwrap(), &revision.id, crate::testing::now()).unwrap();
        let options = crate::maintain::sweep::SweepOptions::new(0, crate::testing::now());
        crate::maintain::sweep::sweep(job.repository(), &options, &crate::Silent).unwrap();
        let error = reader.read_at(5 << 20, &mut [0; 10]).unwrap_err();
        assert!(matches!(error, Error::RevisionPurged { .. }) && !error.is_damage(), "{error}");
    }

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
    fn a_chunk_is_loaded_whole_for_who_goes_on_and_is_one_piece() {
        let (_dir, job) = new_job("web01");
        let mut data = image(1, (3 << 22) + 5000);
        data[1 << 22..2 << 22].fill(0);
        let revision = write_revision(&job, &data, None);
        let cache = Arc::new(FrameCache::new(1 << 25));
        let reader = job.open_revision(&revision, &cache).unwrap();
        reader.load_ahead(2 << 22, Extent::Chunk).unwrap();
        reader.load_ahead((2 << 22) + 5, Extent::Frame).unwrap();
        reader.load_ahead(u64::MAX, Extent::Chunk).unwrap();
        assert_eq!(cache.bytes(), (1 << 22) + 128, "one chunk and the only page of the map");
        for (offset, length, found, extent) in [
            (2 << 22, 1 << 22, 1 << 22, Extent::Frame),
            ((3 << 22) - 10, 100, 10, Extent::Frame),
            (70_000, 1 << 22, (2 << 16) - 70_000, Extent::Frame),
            (5, 1 << 22, (1 << 22) - 5, Extent::Chunk),
            ((1 << 22) + 1, 100_000, 100_000, Extent::Chunk),
            ((2 << 22) - 1, 100, 1, Extent::Chunk),
            (3 << 22, 1 << 20, 5000, Extent::Chunk),
            ((3 << 22) + 5000, 1, 0, Extent::Chunk),
        ] {
            let piece = reader.piece(offset, length, extent).unwrap();
            assert!(*piece == data[offset as usize..][..found], "{offset} {length}");
        }
    }

    #[test]
    fn of_a_damaged_chunk_the_good_frames_are_read_even_when_all_of_it_is_wanted() {
        let (_dir, job) = new_job("web01");
        let data = image(1, 1 << 22);
        let revision = write_revision(&job, &data, None);
        let id = ChunkId::of(&data);
        let path = job.repository().root().join(format!("chunks/{:02x}/{id}", id.shard()));
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 32 - 10;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let reader = job.open_revision(&revision, &Arc::new(FrameCache::new(1 << 25))).unwrap();
        assert!(reader.load_ahead(0, Extent::Chunk).is_err());
        assert!(reader.load_ahead(0, Extent::Frame).is_ok());
        let mut bad = Vec::new();
        for offset in (0..data.len()).step_by(1 << 16) {
            match reader.piece(offset as u64, 1 << 16, Extent::Chunk) {
                Ok(piece) => assert!(*piece == data[offset..][..1 << 16]),
                Err(Error::ImageDamaged { offset: found, .. }) => bad.push((offset, found)),
                Err(error) => panic!("{error}"),
            }
        }
        assert!(matches!(bad[..], [(offset, found)] if offset as u64 == found), "{bad:?}");
    }

    #[test]
    fn a_chunk_of_another_length_is_damage_also_when_it_is_in_memory() {
        let (_dir, job) = new_job("web01");
        let short = image(1, 100_000);
        let other = write_revision(&job, &short, None);
        // A map that names a short chunk where a full one belongs: no program of ours writes it, but it has a seal.
        let map = crate::format::map::MapWriter::create(&job.dir().join("m"), 5 << 20).unwrap();
        map.set(0, Some(Place::full(ChunkId::of(&short)))).unwrap();
        let (seal, _) = map.seal().unwrap();
        let cache = Arc::new(FrameCache::new(1 << 25));
        let whole = job.open_revision(&other, &cache).unwrap();
        whole.load_ahead(0, Extent::Chunk).unwrap();
        let mut reader = job.open_revision(&other, &cache).unwrap();
        let Image::Framed(framed) = &mut reader.image else { panic!("it is ours") };
        framed.map = ChunkMap::open_sealed(&job.dir().join("m"), 5 << 20, &seal).unwrap();
        for extent in [Extent::Frame, Extent::Chunk] {
            for offset in [0, 99_999, 100_000, 200_000] {
                let read = reader.piece(offset, 10, extent);
                assert!(matches!(read, Err(Error::ImageDamaged { .. })), "{offset}: {read:?}");
            }
        }
        assert_eq!(*whole.piece(0, 10, Extent::Frame).unwrap(), short[..10]);
    }

    #[test]
    fn holes_and_ends_are_found() {
        let (_dir, job) = new_job("web01");
        let mut data = image(1, (3 << 22) + 100);
        data[1 << 22..3 << 22].fill(0);
        data[3 << 22..].fill(1);
        let revision = write_revision(&job, &data, None);
        let reader = job.open_revision(&revision, &Arc::new(FrameCache::new(1 << 20))).unwrap();
        let end = (3 << 22) + 100;
        let next =
            |range: Range<u64>| (reader.next_data(range.clone()).unwrap(), reader.next_hole(range).unwrap());
        assert_eq!(next(5..u64::MAX), (Some(5), Some(1 << 22)));
        assert_eq!(next(5..1 << 22), (Some(5), None));
        assert_eq!(next(5 << 20..end), (Some(3 << 22), Some(5 << 20)));
        assert_eq!(next(5 << 20..3 << 22), (None, Some(5 << 20)));
        assert_eq!(next(end - 1..u64::MAX), (Some(end - 1), None));
        assert_eq!((next(end..u64::MAX), next(7..7)), ((None, None), (None, None)));
        assert_eq!(reader.chunk_at(end).unwrap(), None);
        assert_eq!(reader.read_at(end - 10, &mut [0; 100]).unwrap(), 10);
        assert_eq!(reader.read_at(u64::MAX, &mut [0; 100]).unwrap(), 0);
    }
}
