//! What the fuzz targets call: parsers of stored bytes that are not public otherwise. Hashes and seals stop
//! nearly all wrong bytes; to try what lies behind them, each is also called with hashes made right. Only with
//! the feature `testing`.

use std::path::PathBuf;
use std::sync::OnceLock;

use crate::backend::StoredChunk;
use crate::format::container::{HASH_LEN, HEADER_LEN_MAX, header_len, parse_header};
use crate::format::frame::{Decoder, Kind};
use crate::format::group::{check, read_lists};
use crate::format::id::{self, ChunkId, combine};
use crate::format::manifest;
use crate::format::map::ChunkMap;
use crate::format::name::FileName;
use crate::format::recipe::Recipe;
use crate::format::run;
use crate::format::{CHUNK_LEN, FRAME_LEN};
use crate::legacy;
use crate::revision::{Revision, RevisionId};
use crate::timestamp::Timestamp;

/// Parses a chunk file: `data` with the id that its own frame table gives, and without its first 32 bytes,
/// which are the id.
pub fn chunk(data: &[u8]) {
    if let Some((id, file)) = data.split_first_chunk() {
        chunk_of(file, &ChunkId::from_bytes(*id));
    }
    let Some(table) = data.get(32..) else { return };
    let plain_len = u32::from_le_bytes([data[12], data[13], data[14], data[15]]) as usize;
    if !(1..=CHUNK_LEN).contains(&plain_len) {
        return;
    }
    let entries = table.chunks_exact(36).take(plain_len.div_ceil(FRAME_LEN));
    let values: Vec<[u8; 32]> = entries.map(|entry| std::array::from_fn(|at| entry[4 + at])).collect();
    if values.len() == plain_len.div_ceil(FRAME_LEN) {
        chunk_of(data, &combine(&values));
    }
}

fn chunk_of(file: &[u8], id: &ChunkId) {
    let Ok(header) = parse_header(&file[..file.len().min(HEADER_LEN_MAX)], file.len() as u64, id) else {
        return;
    };
    assert!(header.plain_len <= CHUNK_LEN && header.frames.len() == header.plain_len.div_ceil(FRAME_LEN));
    let mut at = header_len(header.plain_len);
    let mut out = vec![0; FRAME_LEN];
    // The process is short of memory for a decoder only when something else has gone wrong.
    let Ok(mut decoder) = Decoder::new() else { return };
    for (number, frame) in header.frames.iter().enumerate() {
        assert_eq!(frame.offset as usize, at, "a frame is not where the one before ends");
        at += frame.stored_len as usize;
        let length = FRAME_LEN.min(header.plain_len - number * FRAME_LEN);
        let stored = &file[frame.offset as usize..at];
        let _ = decoder.decode(frame.kind, stored, &mut out[..length]);
    }
    assert_eq!(at + HASH_LEN, file.len(), "bytes behind the last frame");
}

/// A file in memory.
#[derive(Debug)]
struct Bytes(Vec<u8>);

impl StoredChunk for Bytes {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let from = self.0.get(offset.min(self.len()) as usize..).unwrap_or_default();
        let length = from.len().min(buf.len());
        buf[..length].copy_from_slice(&from[..length]);
        Ok(length)
    }

    fn will_need(&self, _offset: u64, _len: u64) {}
}

/// Parses a group, as it is and with hashes made right, and any bytes as a run and as a recipe.
pub fn group(data: &[u8]) {
    const TRAILER: usize = 128;
    let id = ChunkId::of(b"a group");
    for length in [1, FRAME_LEN, CHUNK_LEN] {
        if let Ok(pieces) = run::parse(data, data.len() as u32, length) {
            let end = pieces.last().map_or(0, |piece| (piece.offset + piece.stored_len) as usize);
            assert_eq!(end, data.len());
        }
    }
    let files: Vec<FileName> = (0..64u8)
        .map(|number| ChunkId::of(&[number]))
        .map(|id| if id.shard() < 128 { FileName::chunk(id) } else { FileName::group(id) })
        .collect();
    for frames in 2..=64 {
        let Some(values) = data.len().checked_sub(frames * 32).and_then(|at| data.get(at..)) else { break };
        let values: Vec<[u8; 32]> =
            values.chunks_exact(32).map(|value| std::array::from_fn(|at| value[at])).collect();
        if let Ok(recipe) = Recipe::parse(data, &combine(&values), &id, &files) {
            assert!(recipe.values.len() == frames && !recipe.runs.is_empty());
        }
    }
    let mut file = Bytes(data.to_vec());
    let _ = check(&id, &file);
    let Some(at) = data.len().checked_sub(TRAILER) else { return };
    let lists_at = data[at + 8..at + 16].iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
    let lists = data.get(lists_at.min(at as u64) as usize..at).unwrap_or_default();
    file.0[at + 32..at + 64].copy_from_slice(&id::seal(&[lists]));
    let hash = id::seal(&[&file.0[at..at + 64], id.as_bytes()]);
    file.0[at + 64..at + 96].copy_from_slice(&hash);
    let _ = read_lists(&id, &file);
}

/// Decodes a frame: two bytes of length, then what is stored; and the same as a patch on a part of itself.
pub fn frame(data: &[u8]) {
    let Some((length, stored)) = data.split_first_chunk() else { return };
    let mut out = vec![0; usize::from(u16::from_le_bytes(*length)) + 1];
    let Ok(mut decoder) = Decoder::new() else { return };
    let kind = if out.len().is_multiple_of(5) { Kind::Raw } else { Kind::Zstd };
    let _ = decoder.decode(kind, stored, &mut out);
    let (base, patch) = stored.split_at(stored.len() / 2);
    let _ = Decoder::new().expect("memory").decode_patch(patch, base, &mut out);
}

/// Opens a map, as it is and with hashes made right, and reads all pages.
pub fn map(data: &[u8]) {
    const HEADER: usize = 64;
    open_map(data);
    let mut sealed = data.to_vec();
    let Some(entries) = sealed.get(24..32) else { return };
    let entries = entries.iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
    let pages = entries.div_ceil(crate::format::map::PAGE_ENTRIES) as usize;
    let Some(table_end) = pages.checked_mul(32).map(|length| HEADER.saturating_add(length)) else { return };
    if table_end > sealed.len() {
        return;
    }
    let hashes: Vec<[u8; 32]> = sealed[table_end..].chunks(2048 * 32).map(|page| id::seal(&[page])).collect();
    for (place, hash) in sealed[HEADER..table_end].chunks_exact_mut(32).zip(&hashes) {
        place.copy_from_slice(hash);
    }
    let places =
        places_table(&mut sealed, (entries as usize).saturating_mul(32).saturating_add(table_end), pages);
    let seal = id::seal(&[&sealed[..32], &sealed[HEADER..table_end], &places]);
    sealed[32..HEADER].copy_from_slice(&seal);
    open_map(&sealed);
}

/// Makes the hashes right in the table of the pages of places that begins at `at`, and returns it; empty for a map that has
/// none.
fn places_table(map: &mut [u8], at: usize, pages: usize) -> Vec<u8> {
    if map.get(11) != Some(&1) || at.saturating_add(pages * 40) > map.len() {
        return Vec::new();
    }
    let (table, mut rest) = map[at..].split_at_mut(pages * 40);
    for entry in table.chunks_exact_mut(40) {
        let len = entry[32..].iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
        if len == 0 || len > rest.len() as u64 {
            continue;
        }
        let (page, behind) = std::mem::take(&mut rest).split_at_mut(len as usize);
        entry[..32].copy_from_slice(&id::seal(&[page]));
        rest = behind;
    }
    table.to_vec()
}

fn open_map(data: &[u8]) {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let name = format!("backy-fuzz-{}.map", std::process::id());
        let memory = PathBuf::from("/dev/shm");
        if memory.is_dir() { memory } else { std::env::temp_dir() }.join(name)
    });
    if std::fs::write(path, data).is_err() {
        return;
    }
    if let Ok(map) = ChunkMap::open(path) {
        for page in 0..map.page_count() {
            let _ = map.read_entries(page);
        }
    }
}

/// Reads any bytes as the original's files: a chunk as it is and with a header that is right, and a map.
pub fn original(data: &[u8]) {
    let mut out = vec![0; CHUNK_LEN];
    let _ = legacy::chunk::decode(data, &mut out);
    for length in [0u32, 5, 4096, 70_000] {
        let file = [&[0xf0], &length.to_be_bytes()[..], data].concat();
        if let Ok(found) = legacy::chunk::decode(&file, &mut out) {
            assert_eq!(found, length as usize);
        }
    }
    let Ok(map) = legacy::map::OldMap::read(data) else { return };
    let count = crate::format::layout::chunk_count(map.size_bytes());
    let used = map.used_names().count();
    let (mut at, mut found) = (0, 0);
    while let Some(number) = map.next(at, count, true) {
        assert!(map.get(number).is_some() && number >= at && number < count);
        (at, found) = (number + 1, found + 1);
    }
    assert_eq!(found, used);
    if let Some(hole) = map.next(0, count, false) {
        assert!(map.get(hole).is_none());
    }
}

/// Parses `body` closed by the seal that is right for it.
pub fn sealed_manifest(body: &[u8]) -> Result<Revision, String> {
    let mut text = body.to_vec();
    if !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    let seal = id::hex(&id::seal(&[&text]));
    text.extend_from_slice(format!("seal: {seal}\n").as_bytes());
    manifest::parse(&text)
}

/// Writes a manifest and reads it: the revision must be the same.
pub fn write_and_read(revision: &Revision) {
    let text = manifest::to_text(revision);
    assert_eq!(manifest::parse(text.as_bytes()).as_ref(), Ok(revision), "{text}");
}

/// Some revisions to select from.
pub fn revisions() -> Vec<Revision> {
    let body = |number: i64, rest: &str| {
        let at = Timestamp::from_secs(1_709_294_400 + number * 86_400);
        format!(
            "uuid: {}\ntimestamp: {}\nparent: null\nstats: {{bytes_written: 0}}\nbackend_type: chunked\n{rest}\n",
            RevisionId::from_bits(number as u128),
            at.map(|at| at.to_string()).unwrap_or_default(),
        )
    };
    let manifests = [
        body(1, "tags: [daily]\ntrust: trusted\norig_tags: []\nserver: ''"),
        body(2, "tags: [weekly, 'manual:x']\ntrust: verified\norig_tags: []\nserver: ''"),
        body(3, "tags: []\ntrust: distrusted\norig_tags: [daily]\nserver: backup2"),
    ];
    manifests.iter().filter_map(|text| manifest::parse(text.as_bytes()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_targets_get_past_the_hashes() {
        assert_eq!(revisions().len(), 3);
        revisions().iter().for_each(write_and_read);
        for data in [&[][..], &[0; 40], &[255; 3000], b"BACKYMAP", b"BACKYCHK"] {
            chunk(data);
            map(data);
            frame(data);
            group(data);
            original(data);
            let _ = sealed_manifest(data);
        }
    }
}
