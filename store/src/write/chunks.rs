//! Puts the chunks of one thread: hashed, looked for, and written where the store has them not.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use super::copies::Decided;
use super::encode::{Attempt, Before, Change};
use super::siblings::is_near;
use super::{BARRIER_EVERY_BYTES, Put, Reuse, RevisionWriter};
use crate::error::{Error, Result};
use crate::format::frame::Encoder;
use crate::format::id::{ChunkId, Digest};
use crate::format::layout::{chunk_len, frame_len};
use crate::format::name::{FileName, Place};
use crate::format::recipe::Recipe;
use crate::format::run::{Donor, RunBuilder};
use crate::read::chunk::{self, OpenChunk, Scratch};

impl RevisionWriter {
    /// A putter for the calling thread; make one per thread.
    pub fn chunk_writer(&self) -> Result<ChunkWriter<'_>> {
        let encoder =
            Encoder::new(self.new.level).map_err(|error| Error::io("set up", "the zstd encoder", error))?;
        Ok(ChunkWriter {
            writer: self,
            encoder,
            digest: Digest::default(),
            file: Vec::new(),
            scratch: Scratch::new(),
            base: Vec::new(),
            packed: Vec::new(),
            run: RunBuilder::default(),
            decided: Decided::default(),
        })
    }
}

/// Puts chunks from one thread; has its own buffers and compressor.
#[derive(Debug)]
pub struct ChunkWriter<'w> {
    pub(super) writer: &'w RevisionWriter,
    pub(super) encoder: Encoder,
    pub(super) digest: Digest,
    /// The chunk file that is being made.
    pub(super) file: Vec<u8>,
    pub(super) scratch: Scratch,
    /// Frames of the base that patches are made on; empty until one is.
    pub(super) base: Vec<u8>,
    /// The pages of a piece that is being made.
    pub(super) packed: Vec<u8>,
    /// The run that is being made.
    pub(super) run: RunBuilder,
    /// Which donors of copies may be used.
    pub(super) decided: Decided,
}

/// What became of a chunk that could be stored as changes.
enum Changes {
    Stored(Put),
    /// It has little in common with the other chunk.
    Unlike,
    /// It is to be stored in full.
    Due,
}

/// What is to be done with a chunk that the store may have.
enum Existing {
    /// It is there, at this place.
    Usable(Place),
    Missing,
    Unusable,
}

fn count(counter: &AtomicU64, bytes: u64) {
    counter.fetch_add(bytes, Ordering::Relaxed);
}

impl ChunkWriter<'_> {
    /// Puts the whole chunk at place `number`, counting from 0: 4 MiB, or the rest of the image for the last one.
    pub fn put(&mut self, number: u64, data: &[u8]) -> Result<Put> {
        assert_eq!(
            data.len(),
            chunk_len(self.writer.size_bytes(), number),
            "chunk {number} has the wrong length"
        );
        match self.digest.update(data) {
            Some(id) => self.put_hashed(number, id, data, None),
            None => self.hole(number),
        }
    }

    /// Puts a chunk whose digest was just taken. `before` is what lay at its place, where it is open already.
    pub(super) fn put_hashed(
        &mut self,
        number: u64,
        id: ChunkId,
        data: &[u8],
        before: Option<Before>,
    ) -> Result<Put> {
        let writer = self.writer;
        if let Some(known) = &writer.known
            && known.has(number, data, self.scratch.buffers().1)
        {
            count(&writer.counters.recognised, data.len() as u64);
        }
        let there = writer.map.get(number)?;
        if there.as_ref().is_some_and(|place| place.id == id) {
            if self.keep(number)? {
                return Ok(Put::Unchanged);
            }
            // Whole again in the form that serves every map that names it.
            return self.store_full(number, &id, data, before.as_ref(), true);
        }
        // What cannot be opened is met again where it matters.
        let opened = match (&before, &there) {
            (None, Some(there)) => chunk::open(&writer.backend, there).ok(),
            _ => None,
        };
        let old = before.as_ref().map(|before| &before.chunk).or(opened.as_ref());
        count(&writer.counters.changed, self.changed_bytes(old, data.len()));
        self.refer(&id)?;
        let near = writer.siblings.as_ref().and_then(|siblings| siblings.compare(number, &id));
        let known = near.as_ref().filter(|place| place.id == id).cloned();
        let is_first = there.is_none();
        let on = there.or(near);
        match self.existing(&known.unwrap_or(Place::full(id)), data.len())? {
            Existing::Usable(found) => {
                self.use_existing(&found);
                count(&writer.counters.known, data.len() as u64);
                writer.map.set(number, Some(found))?;
                Ok(Put::Known)
            }
            Existing::Missing => {
                let changes = match on.filter(|on| self.may_build_on(&id, on)) {
                    Some(on) => self.store_run(number, &id, data, (&on, old), before.as_ref())?,
                    None => Changes::Unlike,
                };
                match changes {
                    Changes::Stored(put) => return Ok(put),
                    Changes::Unlike if before.is_none() => {
                        if let Some(put) = self.store_copied(number, &id, data, is_first)? {
                            return Ok(put);
                        }
                    }
                    Changes::Unlike | Changes::Due => {}
                }
                self.store_full(number, &id, data, before.as_ref(), false)
            }
            Existing::Unusable => self.store_full(number, &id, data, before.as_ref(), true),
        }
    }

    /// Counts the bytes of the frames that are not as in the chunk that was there; all where that cannot be told.
    fn changed_bytes(&self, old: Option<&OpenChunk>, length: usize) -> u64 {
        let Some(old) = old.filter(|old| old.plain_len() == length) else { return length as u64 };
        let frames = self.digest.values.iter().enumerate();
        let changed = frames.filter(|(number, value)| old.value(*number) != *value);
        changed.map(|(number, _)| frame_len(length, number) as u64).sum()
    }

    /// Records that this run uses a chunk or group, before it is looked for.
    pub(super) fn refer(&self, id: &ChunkId) -> Result<()> {
        let _shard = self.writer.backend.lock_shard(id.shard(), false)?;
        self.writer.session.refer(id.as_bytes())
    }

    /// Sees to it that the barrier covers what a place needs.
    pub(super) fn use_existing(&self, place: &Place) {
        place.files().for_each(|file| self.writer.backend.use_existing(&file));
    }

    /// Puts a chunk; returns its id, `None` for a hole.
    pub(crate) fn put_id(&mut self, number: u64, data: &[u8]) -> Result<Option<ChunkId>> {
        self.put(number, data)?;
        Ok(self.writer.map.get(number)?.map(|place| place.id))
    }

    /// Puts a chunk at place `number` that was put elsewhere before, with the same length. Returns `false` when it cannot
    /// be used again: then its bytes must be put.
    pub(crate) fn place(&mut self, number: u64, id: &ChunkId) -> Result<bool> {
        let writer = self.writer;
        let length = chunk_len(writer.size_bytes(), number);
        self.refer(id)?;
        let Existing::Usable(found) = self.existing(&Place::full(*id), length)? else { return Ok(false) };
        self.use_existing(&found);
        count(&writer.counters.known, length as u64);
        writer.map.set(number, Some(found))?;
        Ok(true)
    }

    /// Notes that the chunk at place `number` is lost: reading fails there, and names the chunk of the original.
    pub(crate) fn lose(&mut self, number: u64, old: &ChunkId) -> Result<()> {
        self.writer.map.set(number, Some(Place::full(*old)))
    }

    /// Keeps the base's chunk at place `number`, whose bytes were compared with a [`super::ChunkCheck`] and agree.
    /// Returns `false` when that chunk cannot be used again: then it must be put.
    pub fn keep(&mut self, number: u64) -> Result<bool> {
        let writer = self.writer;
        let Some(place) = writer.map.get(number)? else { return Ok(false) };
        let is_usable = self.use_again(number, &place)?;
        if is_usable {
            count(&writer.counters.unchanged, chunk_len(writer.size_bytes(), number) as u64);
        }
        Ok(is_usable)
    }

    /// Uses the chunk that lies at place `number` again, in the best file that there is. Returns `false` when it cannot be
    /// used.
    pub(super) fn use_again(&mut self, number: u64, place: &Place) -> Result<bool> {
        let writer = self.writer;
        let length = chunk_len(writer.size_bytes(), number);
        let Existing::Usable(found) = self.existing(place, length)? else { return Ok(false) };
        if found != *place {
            // What was written again in full needs no recipe any more. The base's map names the chunk, but not this file,
            // which a run may have written that died before it was durable.
            writer.found_new.store(true, Ordering::Relaxed);
            self.use_existing(&found);
            writer.map.set(number, Some(found))?;
        }
        Ok(true)
    }

    /// Records a hole at place `number` without looking at data.
    pub fn hole(&mut self, number: u64) -> Result<Put> {
        let writer = self.writer;
        let length = chunk_len(writer.size_bytes(), number) as u64;
        if writer.map.get(number)?.is_some() {
            writer.map.set(number, None)?;
            count(&writer.counters.changed, length);
        }
        count(&writer.counters.hole, length);
        Ok(Put::Hole)
    }

    /// Whether a chunk must not be used as it is.
    fn is_marked(&self, id: &ChunkId) -> bool {
        let writer = self.writer;
        writer.suspects.failed.contains(id) || writer.job.repository().damage_mark(id).exists()
    }

    /// Looks for a chunk at a place, or in full.
    fn existing(&mut self, place: &Place, plain_len: usize) -> Result<Existing> {
        let writer = self.writer;
        let chunk = match chunk::open(&writer.backend, place) {
            Ok(chunk) => chunk,
            Err(Error::ChunkMissing { .. }) => return Ok(Existing::Missing),
            Err(error) if error.is_damage() => return Ok(Existing::Unusable),
            Err(error) => return Err(error),
        };
        let found = chunk.place();
        if !chunk.is_whole()? || chunk.plain_len() != plain_len || found.ids().any(|id| self.is_marked(&id)) {
            return Ok(Existing::Unusable);
        }
        let is_doubtful = writer.new.reuse == Reuse::Full
            || writer.met_damage.load(Ordering::Relaxed)
            || found.ids().any(|id| writer.suspects.unproven.contains(&id));
        match is_doubtful.then(|| self.scratch.read(&chunk).map(drop)) {
            None | Some(Ok(())) => Ok(Existing::Usable(found)),
            Some(Err(error)) if error.is_damage() => Ok(Existing::Unusable),
            Some(Err(error)) => Err(error),
        }
    }

    /// Whether the new chunk `id` may be built on another. Nothing may that is to be healed, and nothing may be built on what
    /// is not beyond doubt.
    fn may_build_on(&self, id: &ChunkId, on: &Place) -> bool {
        self.may_be_made(id) && !on.ids().any(|id| self.is_in_doubt(&id))
    }

    /// Whether the new chunk `id` may be made of what the store has.
    pub(super) fn may_be_made(&self, id: &ChunkId) -> bool {
        let writer = self.writer;
        writer.new.reuse == Reuse::Header && !writer.met_damage.load(Ordering::Relaxed) && !self.is_marked(id)
    }

    /// Whether a chunk or group is not beyond doubt.
    pub(super) fn is_in_doubt(&self, id: &ChunkId) -> bool {
        self.is_marked(id) || self.writer.suspects.unproven.contains(id)
    }

    /// Writes what a chunk does not share with another, which is at its place here or on another disk. Where that one turns
    /// out to be damaged, a full chunk is due.
    fn store_run(
        &mut self,
        number: u64,
        id: &ChunkId,
        data: &[u8],
        (on, open): (&Place, Option<&OpenChunk>),
        before: Option<&Before>,
    ) -> Result<Changes> {
        let mut opened = None;
        let parent = match open {
            Some(open) => Ok(open),
            None => chunk::open(&self.writer.backend, on).map(|chunk| &*opened.insert(chunk)),
        };
        if self.writer.siblings.is_some()
            && parent.as_ref().is_ok_and(|parent| !is_near(&self.digest, parent))
        {
            return Ok(Changes::Unlike);
        }
        let absent = before.map_or(0, |before| before.absent);
        let encoded = parent.and_then(|parent| {
            let ground = parent.ground()?;
            // A recipe takes over what it does not read, so all of that must be there.
            if ground.is_some_and(|ground| ground.id() == id) || !parent.is_whole()? {
                return Ok(Attempt::Due);
            }
            self.encode_run(&Change { id, number, data, absent, parent, ground })
        });
        match encoded {
            Ok(Attempt::Made(recipe)) => {
                self.add_run(number, id, recipe, (data, absent)).map(Changes::Stored)
            }
            Ok(Attempt::Unlike) => Ok(Changes::Unlike),
            Ok(Attempt::Due) => Ok(Changes::Due),
            // Of a source that knows its changes the caller tells, and takes the whole chunk, and all others, from it.
            Err(error) if error.is_damage() && before.is_none() => {
                self.writer.note_damage(&error)?;
                Ok(Changes::Due)
            }
            Err(error) => Err(error),
        }
    }

    /// Adds the run that was made, and the recipe that needs it, to the group of this backup. The bytes of the chunk are in
    /// `data`, but for the frames in `absent`.
    pub(super) fn add_run(
        &mut self,
        number: u64,
        id: &ChunkId,
        recipe: Recipe,
        (data, absent): (&[u8], u64),
    ) -> Result<Put> {
        let writer = self.writer;
        let plain_len = recipe.plain_len;
        let (place, bytes) = writer.groups.add(writer, id, recipe, &self.run)?;
        self.use_existing(&place);
        if let Some(recipe) = &place.recipe {
            let (file, len) = (FileName::group(recipe.group), self.run.len() as u32);
            self.index_run(&Donor { file, offset: recipe.offset - len, len }, data, absent);
        }
        self.stored(number, place, bytes, plain_len)
    }

    fn store_full(
        &mut self,
        number: u64,
        id: &ChunkId,
        data: &[u8],
        before: Option<&Before>,
        replace: bool,
    ) -> Result<Put> {
        let length = self.encode_full(id, data, before)?;
        let writer = self.writer;
        writer.session.record_new(id)?;
        let temporary = writer.temporary();
        writer.backend.put(&FileName::chunk(*id), &self.file[..length], &temporary, replace)?;
        // A chunk that was missing can be marked as well.
        if replace || writer.job.repository().damage_mark(id).exists() {
            tracing::info!(chunk = %id, "a damaged chunk was written anew");
            writer.healed.lock().unwrap_or_else(PoisonError::into_inner).push(*id);
        }
        self.index_chunk(id, data, before.map_or(0, |before| before.absent));
        self.stored(number, Place::full(*id), length as u64, data.len())
    }

    /// Records the same chunk at another place in the store.
    pub(super) fn count_moved(&self, number: u64, place: Place, bytes: u64) -> Result<()> {
        count(&self.writer.counters.stored, bytes);
        self.writer.map.set(number, Some(place))
    }

    /// Records what was stored at its place.
    fn stored(&self, number: u64, place: Place, bytes: u64, plain_len: usize) -> Result<Put> {
        let writer = self.writer;
        writer.map.set(number, Some(place))?;
        count(&writer.counters.new, plain_len as u64);
        let before = writer.counters.stored.fetch_add(bytes, Ordering::Relaxed);
        if before / BARRIER_EVERY_BYTES != (before + bytes) / BARRIER_EVERY_BYTES {
            writer.barrier()?;
        }
        Ok(Put::Stored { bytes })
    }
}
