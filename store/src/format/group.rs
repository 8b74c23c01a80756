//! A group: the file in which one backup keeps recipes and runs, up to 64 MiB of them. `docs/format.md` has the bytes,
//! section "Group".
//!
//! A group is written from beginning to end and never changed. Its end has the list of the files that its recipes refer to,
//! the list of its recipes, and a hash over all bytes before, so that anybody can check the file as it lies. A reader needs
//! two reads to open one, and one for each recipe or run.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::id::{ChunkId, Sealer, seal};
use super::name::{FileKind, FileName};
use super::recipe::{RECIPE_LEN_MAX, Recipe, Run, donors_of};
use super::run::RunBuilder;
use crate::backend::{NewFile, StoredChunk};
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"BACKYGRP";
const END_MAGIC: &[u8; 8] = b"BACKYEND";
const VERSION: u16 = 1;
const HEADER_LEN: usize = 64;
/// Bytes of the name of a file in a list.
pub(crate) const FILE_LEN: usize = 33;
const LISTED_LEN: usize = 40;
const TRAILER_LEN: usize = 128;

/// A group that has grown to this length takes no more.
const FULL_LEN: u64 = 64 << 20;

/// No group is longer: 64 MiB, the last recipe and run, and lists.
const LEN_MAX: u64 = 256 << 20;

/// A group that can be read.
#[derive(Debug)]
pub(crate) struct OpenGroup {
    id: ChunkId,
    file: Box<dyn StoredChunk>,
    /// The files that its recipes refer to. A group that is being written gets more.
    files: RwLock<Vec<FileName>>,
}

impl OpenGroup {
    /// Opens a group and proves its lists.
    pub(crate) fn open(id: ChunkId, file: Box<dyn StoredChunk>) -> Result<Self> {
        let (files, _) = read_lists(&id, &*file)?;
        Ok(Self { id, file, files: RwLock::new(files) })
    }

    /// The files that its recipes refer to, by now.
    pub(crate) fn file_count(&self) -> usize {
        self.files.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// A group with this number of names.
    #[cfg(test)]
    pub(crate) fn of_names(id: ChunkId, file: Box<dyn StoredChunk>, names: usize) -> Self {
        Self { id, file, files: RwLock::new(vec![FileName::group(id); names]) }
    }

    /// Reads the recipe of chunk `chunk`, proven.
    pub(crate) fn recipe(&self, chunk: &ChunkId, offset: u32, len: u32) -> Result<Recipe> {
        if len as usize > RECIPE_LEN_MAX {
            return Err(corrupt(&self.id, format!("the recipe of chunk {chunk} has an impossible length")));
        }
        let mut bytes = vec![0; len as usize];
        self.read(offset, &mut bytes)?;
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        Recipe::parse(&bytes, chunk, &self.id, &files).map_err(|reason| corrupt(&self.id, reason))
    }

    /// Returns the file with this number in its list.
    pub(crate) fn file(&self, number: u32) -> Option<FileName> {
        self.files.read().unwrap_or_else(PoisonError::into_inner).get(number as usize).copied()
    }

    /// Reads all of `out` from `offset`.
    pub(crate) fn read(&self, offset: u32, out: &mut [u8]) -> Result<()> {
        read_all(&self.id, &*self.file, u64::from(offset), out)
    }

    /// Begins to fetch a part of it, without waiting.
    pub(crate) fn will_need(&self, offset: u32, len: u32) {
        self.file.will_need(u64::from(offset), u64::from(len));
    }
}

/// The beginning of a group.
fn header(id: &ChunkId) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(MAGIC);
    header[8..10].copy_from_slice(&VERSION.to_le_bytes());
    header[16..48].copy_from_slice(id.as_bytes());
    header
}

fn corrupt(id: &ChunkId, reason: impl Into<String>) -> Error {
    Error::ChunkCorrupt { id: *id, reason: reason.into() }
}

fn read_all(id: &ChunkId, file: &dyn StoredChunk, offset: u64, out: &mut [u8]) -> Result<()> {
    match file.read_at(out, offset) {
        Ok(length) if length == out.len() => Ok(()),
        Ok(_) => Err(corrupt(id, "its file is cut off")),
        Err(error) => Err(corrupt(id, format!("its file cannot be read: {error}"))),
    }
}

/// Where a chunk's recipe is in a group: offset and length.
pub(crate) type Listed = (ChunkId, u32, u32);

/// Reads the lists at the end of a group, proven: the files that it refers to, and its recipes.
pub(crate) fn read_lists(id: &ChunkId, file: &dyn StoredChunk) -> Result<(Vec<FileName>, Vec<Listed>)> {
    let length = file.len();
    if length < (HEADER_LEN + TRAILER_LEN) as u64 || length > LEN_MAX {
        return Err(corrupt(id, "its file has an impossible length"));
    }
    let mut head = [0; HEADER_LEN];
    read_all(id, file, 0, &mut head)?;
    if head != header(id) {
        return Err(corrupt(id, "its file does not begin as a group of this name and of version 1 does"));
    }
    let mut trailer = [0; TRAILER_LEN];
    read_all(id, file, length - TRAILER_LEN as u64, &mut trailer)?;
    let word =
        |at: usize| u32::from_le_bytes([trailer[at], trailer[at + 1], trailer[at + 2], trailer[at + 3]]);
    if &trailer[..8] != END_MAGIC {
        return Err(corrupt(id, "its file does not end with the mark of a group"));
    }
    let version = u16::from_le_bytes([trailer[24], trailer[25]]);
    if version != VERSION {
        let reason =
            format!("its end says format version {version}, and the store's files have version {VERSION}");
        return Err(corrupt(id, reason));
    }
    if trailer[26..32] != [0; 6] {
        return Err(corrupt(id, "its end has flags that this version does not know"));
    }
    if seal(&[&trailer[..64], id.as_bytes()]) != trailer[64..96] {
        return Err(corrupt(id, "its end does not have the hash it should, or is another group's"));
    }
    let (lists_at, files, recipes) = (u64::from(word(8)) | u64::from(word(12)) << 32, word(16), word(20));
    let expected = u64::from(files) * FILE_LEN as u64 + u64::from(recipes) * LISTED_LEN as u64;
    if lists_at < HEADER_LEN as u64 || lists_at.checked_add(expected) != Some(length - TRAILER_LEN as u64) {
        return Err(corrupt(id, "its lists have impossible lengths"));
    }
    // As long as a part of a file that exists.
    let mut lists = vec![0; expected as usize];
    read_all(id, file, lists_at, &mut lists)?;
    if seal(&[&lists]) != trailer[32..64] {
        return Err(corrupt(id, "its lists do not have the hash they should"));
    }
    let (named, listed) = lists.split_at(files as usize * FILE_LEN);
    let parsed: Option<Vec<FileName>> = named.chunks_exact(FILE_LEN).map(parse_file).collect();
    let Some(named) = parsed else { return Err(corrupt(id, "it refers to a file of an unknown kind")) };
    let listed = listed.chunks_exact(LISTED_LEN).map(|entry| {
        let word = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        (ChunkId::from_bytes(std::array::from_fn(|at| entry[at])), word(32), word(36))
    });
    Ok((named, listed.collect()))
}

/// Reads all of a group and proves every byte against the hash at its end.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn check(id: &ChunkId, file: &dyn StoredChunk) -> Result<()> {
    read_lists(id, file)?;
    let mut hasher = Sealer::default();
    let (mut at, end) = (0, file.len() - 32);
    let mut bytes = vec![0; 1 << 20];
    while at < end {
        let part = &mut bytes[..(end - at).min(1 << 20) as usize];
        read_all(id, file, at, part)?;
        hasher.update(part);
        at += part.len() as u64;
    }
    let mut stored = [0; 32];
    read_all(id, file, end, &mut stored)?;
    match hasher.seal() == stored {
        true => Ok(()),
        false => Err(corrupt(id, "its bytes do not have the hash they should")),
    }
}

/// Parses the name of a file as lists have it.
pub(crate) fn parse_file(entry: &[u8]) -> Option<FileName> {
    let kind = match entry[0] {
        1 => FileKind::Chunk,
        2 => FileKind::Group,
        _ => return None,
    };
    Some(FileName { kind, id: ChunkId::from_bytes(std::array::from_fn(|at| entry[at + 1])) })
}

/// Appends the name of a file as lists have it.
pub(crate) fn write_file(file: &FileName, out: &mut Vec<u8>) {
    out.push(if file.kind == FileKind::Chunk { 1 } else { 2 });
    out.extend_from_slice(file.id.as_bytes());
}

/// A group that is being written.
#[derive(Debug)]
pub(crate) struct GroupWriter {
    id: ChunkId,
    file: Box<dyn NewFile>,
    len: u64,
    hasher: Sealer,
    numbers: HashMap<FileName, u32>,
    /// What is read before it is complete; its list grows with the file.
    open: Arc<OpenGroup>,
    listed: Vec<Listed>,
    record: Vec<u8>,
}

impl GroupWriter {
    /// Begins a group in a new file.
    pub(crate) fn begin(id: ChunkId, file: Box<dyn NewFile>) -> Result<Self> {
        let open = OpenGroup { id, file: file.reader()?, files: RwLock::default() };
        let mut writer = Self {
            id,
            file,
            len: 0,
            hasher: Sealer::default(),
            numbers: HashMap::new(),
            open: Arc::new(open),
            listed: Vec::new(),
            record: Vec::new(),
        };
        writer.record.extend_from_slice(&header(&id));
        writer.flush()?;
        Ok(writer)
    }

    /// The group as far as it is written, for reading.
    pub(crate) fn reader(&self) -> Arc<OpenGroup> {
        Arc::clone(&self.open)
    }

    /// Whether the next chunk belongs into another group.
    pub(crate) fn is_full(&self) -> bool {
        self.len >= FULL_LEN
    }

    /// Adds a new run and the recipe of chunk `chunk`, of which it is the last run. Returns offset and length of the recipe.
    pub(crate) fn add(
        &mut self,
        chunk: &ChunkId,
        recipe: &mut Recipe,
        run: &RunBuilder,
    ) -> Result<(u32, u32)> {
        let (offset, len) = (self.len as u32, run.len() as u32);
        recipe.runs.push(Run { group: self.id, offset, len, frames: run.frames() });
        recipe.donors.extend(donors_of(recipe.runs.len() - 1, run.copies().iter()));
        let at = offset + len;
        let numbers = &mut self.numbers;
        let open = &self.open;
        let mut number = |file: FileName| {
            *numbers.entry(file).or_insert_with(|| {
                let mut files = open.files.write().unwrap_or_else(PoisonError::into_inner);
                files.push(file);
                files.len() as u32 - 1
            })
        };
        run.write(&FileName::group(self.id), &mut number, &mut self.record);
        recipe.write(&self.id, &mut number, &mut self.record);
        self.listed.push((*chunk, at, recipe.len() as u32));
        self.flush()?;
        Ok((at, recipe.len() as u32))
    }

    fn flush(&mut self) -> Result<()> {
        self.file.append(&self.record)?;
        self.hasher.update(&self.record);
        self.len += self.record.len() as u64;
        self.record.clear();
        Ok(())
    }

    /// Writes the end and gives the file its name. Returns its length. A barrier makes it durable.
    pub(crate) fn finish(mut self) -> Result<u64> {
        let mut lists = Vec::new();
        let files = self.open.files.read().unwrap_or_else(PoisonError::into_inner).clone();
        files.iter().for_each(|file| write_file(file, &mut lists));
        for (id, offset, len) in &self.listed {
            lists.extend_from_slice(id.as_bytes());
            lists.extend_from_slice(&offset.to_le_bytes());
            lists.extend_from_slice(&len.to_le_bytes());
        }
        let mut trailer = [0; TRAILER_LEN];
        trailer[..8].copy_from_slice(END_MAGIC);
        trailer[8..16].copy_from_slice(&self.len.to_le_bytes());
        trailer[16..20].copy_from_slice(&(files.len() as u32).to_le_bytes());
        trailer[20..24].copy_from_slice(&(self.listed.len() as u32).to_le_bytes());
        trailer[24..26].copy_from_slice(&VERSION.to_le_bytes());
        trailer[32..64].copy_from_slice(&seal(&[&lists]));
        let hash = seal(&[&trailer[..64], self.id.as_bytes()]);
        trailer[64..96].copy_from_slice(&hash);
        self.record.extend_from_slice(&lists);
        self.record.extend_from_slice(&trailer[..96]);
        self.flush()?;
        let seal = self.hasher.seal();
        self.record.extend_from_slice(&seal);
        self.flush()?;
        self.file.place()?;
        Ok(self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::super::run::PieceKind;
    use super::*;
    use crate::format::FRAME_LEN;
    use crate::format::id::Digest;
    use crate::testing::Memory;

    fn sample() -> (ChunkId, ChunkId, Recipe, (u32, u32), Vec<u8>) {
        let data = [vec![7; FRAME_LEN], vec![1, 2, 3]].concat();
        let mut digest = Digest::default();
        let id = digest.update(&data).unwrap();
        let own = ChunkId::of(b"own");
        let base = Some(ChunkId::of(b"base"));
        let values = digest.values.to_vec();
        let mut recipe = Recipe { plain_len: data.len(), values, base, runs: vec![], donors: vec![] };
        let mut run = RunBuilder::default();
        run.add(1, PieceKind::Raw, 1, &[1, 2, 3]);
        let memory = Memory::default();
        let mut writer = GroupWriter::begin(own, memory.new_file()).unwrap();
        let place = writer.add(&id, &mut recipe, &run).unwrap();
        assert_eq!(writer.reader().recipe(&id, place.0, place.1).unwrap(), recipe, "before its end");
        writer.finish().unwrap();
        (own, id, recipe, place, memory.bytes())
    }

    fn open(own: &ChunkId, bytes: &[u8]) -> Result<OpenGroup> {
        OpenGroup::open(*own, Memory::of(bytes).file())
    }

    #[test]
    fn a_group_is_read_as_it_was_written() {
        let (own, id, recipe, (offset, len), bytes) = sample();
        let group = open(&own, &bytes).unwrap();
        assert_eq!(group.recipe(&id, offset, len).unwrap(), recipe);
        let run = recipe.runs[0];
        let mut record = vec![0; run.len as usize];
        group.read(run.offset, &mut record).unwrap();
        assert_eq!(record[record.len() - 3..], [1, 2, 3]);
        let lists = read_lists(&own, &*Memory::of(&bytes).file()).unwrap();
        assert_eq!(lists, (vec![FileName::chunk(recipe.base.unwrap())], vec![(id, offset, len)]));
        check(&own, &*Memory::of(&bytes).file()).unwrap();
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_found() {
        let (own, _, _, _, bytes) = sample();
        for length in 0..bytes.len() {
            assert!(open(&own, &bytes[..length]).is_err(), "cut to {length}");
        }
        assert!(open(&ChunkId::of(b"x"), &bytes).is_err(), "another group's file");
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&own, &*Memory::of(&flipped).file()).is_err(), "bit {bit}");
            let is_in_end = bit / 8 >= bytes.len() - TRAILER_LEN && bit / 8 < bytes.len() - 32;
            assert!(!is_in_end || open(&own, &flipped).is_err(), "bit {bit}");
        }
    }
}
