//! Puts the chunks of one thread: hashed, looked for, and written where the store has them not.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use super::encode::Before;
use super::siblings::is_near;
use super::{BARRIER_EVERY_BYTES, Put, Reuse, RevisionWriter};
use crate::backend::Backend;
use crate::chunk::frame::Encoder;
use crate::chunk::id::{ChunkId, Digest};
use crate::chunk::layout::{chunk_len, frame_len};
use crate::chunk::name::ChunkName;
use crate::chunk::store::{self, OpenChunk, Scratch};
use crate::error::{Error, Result};

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
}

/// What is to be done with a chunk that the store may have.
enum Existing {
    /// It is there, in this file.
    Usable(ChunkName),
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
        if there.is_some_and(|name| name.id == id) {
            if self.keep(number)? {
                return Ok(Put::Unchanged);
            }
            // Whole again in the form that serves every map that names it.
            return self.store_full(number, &id, data, before.as_ref(), true);
        }
        // What cannot be opened is met again where it matters.
        let opened = match (&before, &there) {
            (None, Some(there)) => store::open(&writer.backend, there).ok(),
            _ => None,
        };
        let old = before.as_ref().map(|before| &before.chunk).or(opened.as_ref());
        count(&writer.counters.changed, self.changed_bytes(old, data.len()));
        self.refer(&id)?;
        let near = writer.siblings.as_ref().and_then(|siblings| siblings.compare(number, &id));
        let on = there.or(near);
        let base = on.map(|name| name.base.unwrap_or(name.id)).filter(|base| *base != id);
        match self.existing(&ChunkName { id, base }, data.len())? {
            Existing::Usable(found) => {
                writer.backend.use_existing(&found);
                count(&writer.counters.known, data.len() as u64);
                writer.map.set(number, Some(found))?;
                Ok(Put::Known)
            }
            Existing::Missing => {
                if let Some(on) = on
                    && self.may_lean(&id, &on)
                    && let Some(put) = self.store_delta(number, &id, data, (&on, old), before.as_ref())?
                {
                    return Ok(put);
                }
                self.store_full(number, &id, data, before.as_ref(), false)
            }
            Existing::Unusable => self.store_full(number, &id, data, before.as_ref(), true),
        }
    }

    /// Counts the bytes of the frames that are not as in the chunk that was there; all where that cannot be told.
    fn changed_bytes(&self, old: Option<&OpenChunk>, length: usize) -> u64 {
        let Some(old) = old.filter(|old| old.plain_len() == length) else { return length as u64 };
        let frames = self.digest.values.iter().zip(&old.header().frames).enumerate();
        let changed = frames.filter(|(_, (value, frame))| **value != frame.value);
        changed.map(|(number, _)| frame_len(length, number) as u64).sum()
    }

    /// Records that this run uses a chunk, before it is looked for.
    fn refer(&self, id: &ChunkId) -> Result<()> {
        let _shard = self.writer.backend.lock_shard(id.shard(), false)?;
        self.writer.session.refer(id.as_bytes())
    }

    /// Puts a chunk; returns its id, `None` for a hole.
    pub(crate) fn put_id(&mut self, number: u64, data: &[u8]) -> Result<Option<ChunkId>> {
        self.put(number, data)?;
        Ok(self.writer.map.get(number)?.map(|name| name.id))
    }

    /// Puts a chunk at place `number` that was put elsewhere before, with the same length. Returns `false` when it cannot
    /// be used again: then its bytes must be put.
    pub(crate) fn place(&mut self, number: u64, id: &ChunkId) -> Result<bool> {
        let writer = self.writer;
        let length = chunk_len(writer.size_bytes(), number);
        self.refer(id)?;
        let Existing::Usable(found) = self.existing(&ChunkName::full(*id), length)? else { return Ok(false) };
        writer.backend.use_existing(&found);
        count(&writer.counters.known, length as u64);
        writer.map.set(number, Some(found))?;
        Ok(true)
    }

    /// Notes that the chunk at place `number` is lost: reading fails there, and names the chunk of the original.
    pub(crate) fn lose(&mut self, number: u64, old: &ChunkId) -> Result<()> {
        self.writer.map.set(number, Some(ChunkName::full(*old)))
    }

    /// Keeps the base's chunk at place `number`, whose bytes were compared with a [`super::ChunkCheck`] and agree.
    /// Returns `false` when that chunk cannot be used again: then it must be put.
    pub fn keep(&mut self, number: u64) -> Result<bool> {
        let writer = self.writer;
        let Some(name) = writer.map.get(number)? else { return Ok(false) };
        let length = chunk_len(writer.size_bytes(), number);
        let Existing::Usable(found) = self.existing(&name, length)? else { return Ok(false) };
        if found != name {
            // A delta that was written anew as a full chunk leans on nothing any more. The base's map names the chunk, but
            // not this file, which a run may have written that died before it was durable.
            writer.found_new.store(true, Ordering::Relaxed);
            writer.backend.use_existing(&found);
            writer.map.set(number, Some(found))?;
        }
        count(&writer.counters.unchanged, length as u64);
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

    /// Looks for a chunk in the form of `name`, or in full.
    fn existing(&mut self, name: &ChunkName, plain_len: usize) -> Result<Existing> {
        let writer = self.writer;
        let chunk = match store::open(&writer.backend, name) {
            Ok(chunk) => chunk,
            Err(Error::ChunkMissing { .. }) => return Ok(Existing::Missing),
            Err(error) if error.is_damage() => return Ok(Existing::Unusable),
            Err(error) => return Err(error),
        };
        let found = *chunk.name();
        let is_whole = chunk.delta().is_none() || chunk.base().is_ok();
        if !is_whole || chunk.plain_len() != plain_len || found.ids().any(|id| self.is_marked(&id)) {
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

    /// Whether the new chunk `id` may lean on another, or on its base. Nothing may that is to be healed, and nothing may
    /// lean on what is not beyond doubt.
    fn may_lean(&self, id: &ChunkId, on: &ChunkName) -> bool {
        let writer = self.writer;
        writer.new.reuse == Reuse::Header
            && !writer.met_damage.load(Ordering::Relaxed)
            && !self.is_marked(id)
            && !on.ids().any(|id| self.is_marked(&id) || writer.suspects.unproven.contains(&id))
    }

    /// Writes a chunk as a delta on another, which is at its place here or on another disk, or on that one's base; `None`
    /// where a full one is better or the base turns out to be damaged.
    fn store_delta(
        &mut self,
        number: u64,
        id: &ChunkId,
        data: &[u8],
        (on, open): (&ChunkName, Option<&OpenChunk>),
        before: Option<&Before>,
    ) -> Result<Option<Put>> {
        let mut opened = None;
        let parent = match open {
            Some(open) => Ok(open),
            None => store::open(&self.writer.backend, on).map(|chunk| &*opened.insert(chunk)),
        };
        if self.writer.siblings.is_some()
            && parent.as_ref().is_ok_and(|parent| !is_near(&self.digest, parent))
        {
            return Ok(None);
        }
        let leaning = parent.and_then(|parent| Ok((parent, Self::base_of(parent)?)));
        let absent = before.map_or(0, |before| before.absent);
        let encoded = leaning.and_then(|(parent, base)| self.encode_delta(id, data, absent, (parent, base)));
        match encoded {
            Ok(Some((name, length))) => self.write(number, &name, length, data.len(), false).map(Some),
            Ok(None) => Ok(None),
            // Of a source that knows its changes the caller tells, and takes the whole chunk, and all others, from it.
            Err(error) if error.is_damage() && before.is_none() => {
                self.writer.note_damage(&error)?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the full chunk that a delta in the place of `parent` leans on.
    fn base_of(parent: &OpenChunk) -> Result<&OpenChunk> {
        if parent.delta().is_some() { parent.base() } else { Ok(parent) }
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
        self.write(number, &ChunkName::full(*id), length, data.len(), replace)
    }

    /// Writes the first `length` bytes of `self.file` as a chunk's file, and records it at its place.
    fn write(
        &mut self,
        number: u64,
        name: &ChunkName,
        length: usize,
        plain_len: usize,
        replace: bool,
    ) -> Result<Put> {
        let writer = self.writer;
        writer.session.record_new(&name.id)?;
        let turn = writer.counters.temporaries.fetch_add(1, Ordering::Relaxed);
        let temporary = format!("{}.{turn}", writer.session.name());
        writer.backend.put(name, &self.file[..length], &temporary, replace)?;
        // A chunk that was missing can be marked as well.
        let is_full = name.base.is_none();
        if is_full && (replace || writer.job.repository().damage_mark(&name.id).exists()) {
            tracing::info!(chunk = %name.id, "a damaged chunk was written anew");
            writer.healed.lock().unwrap_or_else(PoisonError::into_inner).push(name.id);
        }
        writer.map.set(number, Some(*name))?;
        let bytes = length as u64;
        count(&writer.counters.new, plain_len as u64);
        let before = writer.counters.stored.fetch_add(bytes, Ordering::Relaxed);
        if before / BARRIER_EVERY_BYTES != (before + bytes) / BARRIER_EVERY_BYTES {
            writer.barrier()?;
        }
        Ok(Put::Stored { bytes })
    }
}
