//! The chunk map: which chunk lies where in an image. The byte layout is `docs/format.md`, section "Chunk map".
//!
//! A map is read page by page (2,048 entries, 8 GiB of image), and each page is checked against the page
//! table, whose seal the manifest holds: opening a map costs 32 bytes per 8 GiB, and no entry is believed
//! that the manifest does not vouch for. It is written page by page as well, in a file, so that neither
//! reading nor writing needs memory that grows with the image beyond the page table.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::chunk::id::{self, ChunkId};
use crate::chunk::layout::{IMAGE_SIZE_MAX, chunk_count, chunk_len};
use crate::disk;
use crate::error::{Context, Error, Result};

const MAGIC: &[u8; 8] = b"BACKYMAP";
const VERSION: u16 = 1;
const CHUNK_LOG: u8 = 22;
const HEADER_LEN: u64 = 64;
const ENTRY_LEN: u64 = 32;

/// Entries of one page.
pub(crate) const PAGE_ENTRIES: u64 = 2048;
const PAGE_LEN: u64 = PAGE_ENTRIES * ENTRY_LEN;

/// A map's seal: what the manifest holds to vouch for it.
pub(crate) type Seal = [u8; 32];

/// What lies at one place of an image: a chunk, or `None` for a hole.
pub(crate) type Entry = Option<ChunkId>;

fn page_count(entries: u64) -> u64 {
    entries.div_ceil(PAGE_ENTRIES)
}

fn entries_offset(entries: u64) -> u64 {
    HEADER_LEN + page_count(entries) * 32
}

fn file_len(entries: u64) -> u64 {
    entries_offset(entries) + entries * ENTRY_LEN
}

fn page_len(entries: u64, page: u64) -> usize {
    ((entries - page * PAGE_ENTRIES) * ENTRY_LEN).min(PAGE_LEN) as usize
}

/// Turns 32 bytes into an entry.
pub(crate) fn entry(bytes: &[u8]) -> Entry {
    let mut id = [0; 32];
    id.copy_from_slice(bytes);
    (id != [0; 32]).then(|| ChunkId::from_bytes(id))
}

fn write_header(size_bytes: u64) -> [u8; HEADER_LEN as usize] {
    let mut header = [0; HEADER_LEN as usize];
    header[0..8].copy_from_slice(MAGIC);
    header[8..10].copy_from_slice(&VERSION.to_le_bytes());
    header[10] = CHUNK_LOG;
    header[12..16].copy_from_slice(&(PAGE_ENTRIES as u32).to_le_bytes());
    header[16..24].copy_from_slice(&size_bytes.to_le_bytes());
    header[24..32].copy_from_slice(&chunk_count(size_bytes).to_le_bytes());
    header
}

/// A finished map, opened for reading.
#[derive(Debug)]
pub(crate) struct ChunkMap {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    entries: u64,
    seal: Seal,
    pages: Vec<[u8; 32]>,
}

impl ChunkMap {
    /// Opens a map and proves its header and page table against the seal that it carries itself.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let corrupt = |reason: &str| Error::MapCorrupt { path: path.to_owned(), reason: reason.to_owned() };
        let file = match disk::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(corrupt("it is missing"));
            }
            other => other.context("open", path)?,
        };
        let facts = file.metadata().context("examine", path)?;
        if !facts.is_file() {
            return Err(corrupt("it is not a regular file"));
        }
        let length = facts.len();
        let mut header = [0; HEADER_LEN as usize];
        if length < HEADER_LEN {
            return Err(corrupt("it is cut off in the header"));
        }
        file.read_exact_at(&mut header, 0).context("read", path)?;
        let version = u16::from_le_bytes([header[8], header[9]]);
        if &header[..8] != MAGIC {
            return Err(corrupt("it does not begin with the mark of a chunk map"));
        }
        if version > VERSION {
            let what = format!("chunk map {}", path.display());
            return Err(Error::FormatNewer { what, found: version.into(), known: VERSION.into() });
        }
        let word =
            |at: usize| header[at..at + 8].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        let (size_bytes, entries) = (word(16), word(24));
        if size_bytes > IMAGE_SIZE_MAX || header[..32] != write_header(size_bytes)[..32] {
            return Err(corrupt("its header has impossible values"));
        }
        if length != file_len(entries) {
            return Err(corrupt("it does not have the length that its header says"));
        }
        // Not larger than a 2,048th of a file that exists.
        let mut table = vec![0; page_count(entries) as usize * 32];
        file.read_exact_at(&mut table, HEADER_LEN).context("read", path)?;
        let seal = id::seal(&[&header[..32], &table]);
        if seal != header[32..] {
            return Err(corrupt("its header or page table does not have the seal it carries"));
        }
        let pages = table.chunks_exact(32).map(|page| std::array::from_fn(|at| page[at])).collect();
        Ok(Self { path: path.to_owned(), file, size_bytes, entries, seal, pages })
    }

    /// Opens the map that a manifest vouches for.
    pub(crate) fn open_sealed(path: &Path, size_bytes: u64, seal: &Seal) -> Result<Self> {
        let map = Self::open(path)?;
        if map.seal != *seal || map.size_bytes != size_bytes {
            let reason = "it is not the map that its manifest names".to_owned();
            return Err(Error::MapCorrupt { path: path.to_owned(), reason });
        }
        Ok(map)
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(crate) fn seal(&self) -> &Seal {
        &self.seal
    }

    pub(crate) fn page_count(&self) -> u64 {
        self.pages.len() as u64
    }

    /// The hash of a page: equal hashes mean equal entries.
    pub(crate) fn page_hash(&self, page: u64) -> &[u8; 32] {
        &self.pages[page as usize]
    }

    /// Reads one page: 32 bytes for each of its entries, proven.
    pub(crate) fn read_page(&self, page: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; page_len(self.entries, page)];
        self.file
            .read_exact_at(&mut bytes, entries_offset(self.entries) + page * PAGE_LEN)
            .context("read", &self.path)?;
        if id::seal(&[&bytes]) != self.pages[page as usize] {
            let reason = format!("page {page} does not have the hash it should");
            return Err(Error::MapCorrupt { path: self.path.clone(), reason });
        }
        Ok(bytes)
    }
}

/// A map being made, in an unfinished file. All entries are holes at first.
#[derive(Debug)]
pub(crate) struct MapWriter {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    entries: u64,
}

impl MapWriter {
    /// Begins the map of an image of `size_bytes` in the new file `path`.
    pub(crate) fn create(path: &Path, size_bytes: u64) -> Result<Self> {
        let entries = chunk_count(size_bytes);
        let file = disk::create_new(path)?;
        let writer = Self { path: path.to_owned(), file, size_bytes, entries };
        disk::set_len(&writer.file, file_len(entries), path)?;
        Ok(writer)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(crate) fn chunk_count(&self) -> u64 {
        self.entries
    }

    /// Takes over the entries of `base` as far as both images have whole chunks in common, page by page; calls
    /// `each` with the raw entries taken over. The base's last chunk is left out when the sizes differ and it is a short one.
    pub(crate) fn copy_from(&self, base: &ChunkMap, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let whole = if base.size_bytes == self.size_bytes {
            self.entries
        } else {
            base.size_bytes.min(self.size_bytes) / crate::CHUNK_SIZE
        };
        for page in 0..page_count(whole) {
            let mut bytes = base.read_page(page)?;
            bytes.truncate(page_len(whole, page));
            each(&bytes)?;
            disk::write_at(&self.file, &bytes, entries_offset(self.entries) + page * PAGE_LEN, &self.path)?;
        }
        Ok(())
    }

    /// Sets the entry at `number`.
    pub(crate) fn set(&self, number: u64, entry: Entry) -> Result<()> {
        let bytes = entry.map_or([0; 32], |id| *id.as_bytes());
        disk::write_at(&self.file, &bytes, self.entry_offset(number), &self.path)
    }

    /// Returns the entry at `number`.
    pub(crate) fn get(&self, number: u64) -> Result<Entry> {
        let mut bytes = [0; ENTRY_LEN as usize];
        self.file.read_exact_at(&mut bytes, self.entry_offset(number)).context("read", &self.path)?;
        Ok(entry(&bytes))
    }

    fn entry_offset(&self, number: u64) -> u64 {
        assert!(number < self.entries, "chunk {number} lies past the end of the image");
        entries_offset(self.entries) + number * ENTRY_LEN
    }

    /// Writes header and page table, makes the file durable and returns its seal and the bytes of the image that
    /// are not in holes. The file keeps its unfinished name.
    pub(crate) fn seal(&self) -> Result<(Seal, u64)> {
        let mut data_bytes = 0;
        let mut table = Vec::with_capacity(page_count(self.entries) as usize * 32);
        let mut bytes = vec![0; PAGE_LEN as usize];
        for page in 0..page_count(self.entries) {
            let bytes = &mut bytes[..page_len(self.entries, page)];
            self.file
                .read_exact_at(bytes, entries_offset(self.entries) + page * PAGE_LEN)
                .context("read", &self.path)?;
            table.extend_from_slice(&id::seal(&[bytes]));
            for (number, bytes) in (page * PAGE_ENTRIES..).zip(bytes.chunks_exact(ENTRY_LEN as usize)) {
                if entry(bytes).is_some() {
                    data_bytes += chunk_len(self.size_bytes, number) as u64;
                }
            }
        }
        let mut header = write_header(self.size_bytes);
        let seal = id::seal(&[&header[..32], &table]);
        header[32..].copy_from_slice(&seal);
        disk::write_at(&self.file, &[&header[..], &table].concat(), 0, &self.path)?;
        disk::sync_file(&self.file, &self.path)?;
        Ok((seal, data_bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::CHUNK_SIZE;

    fn id(number: u64) -> Entry {
        Some(ChunkId::of(&number.to_le_bytes()))
    }

    fn written(dir: &Path, name: &str, size_bytes: u64, entries: &[u64]) -> (PathBuf, Seal) {
        let path = dir.join(name);
        let writer = MapWriter::create(&path, size_bytes).unwrap();
        for &number in entries {
            writer.set(number, id(number)).unwrap();
        }
        let (seal, data_bytes) = writer.seal().unwrap();
        let numbers: std::collections::BTreeSet<u64> = entries.iter().copied().collect();
        assert_eq!(
            data_bytes,
            numbers.iter().map(|&number| chunk_len(size_bytes, number) as u64).sum::<u64>()
        );
        (path, seal)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_map_is_read_as_it_was_written(chunks in 0u64..5000, tail in 0u64..CHUNK_SIZE, picks in proptest::collection::btree_set(0u64..5000, 0..40)) {
            let dir = tempfile::tempdir().unwrap();
            let size = chunks * CHUNK_SIZE + tail;
            let picks: Vec<u64> = picks.into_iter().filter(|&number| number < chunk_count(size)).collect();
            let (path, seal) = written(dir.path(), "m", size, &picks);
            let map = ChunkMap::open_sealed(&path, size, &seal).unwrap();
            let entries: Vec<Entry> = (0..map.page_count())
                .flat_map(|page| map.read_page(page).unwrap().chunks_exact(32).map(entry).collect::<Vec<_>>())
                .collect();
            prop_assert_eq!(entries.len() as u64, chunk_count(map.size_bytes()));
            for (number, found) in entries.into_iter().enumerate() {
                let expected = picks.contains(&(number as u64)).then(|| id(number as u64)).flatten();
                prop_assert_eq!(found, expected);
            }
        }

        #[test]
        fn no_flipped_bit_and_no_cut_is_believed(bit in 0usize..(64 + 64 + 2050 * 32) * 8, cut in 0u64..(64 + 64 + 2050 * 32)) {
            let dir = tempfile::tempdir().unwrap();
            let (path, seal) = written(dir.path(), "m", 2050 * CHUNK_SIZE, &[0, 7, 2049]);
            let good = std::fs::read(&path).unwrap();
            let read_all = || ChunkMap::open_sealed(&path, 2050 * CHUNK_SIZE, &seal).and_then(|map| {
                (0..map.page_count()).try_for_each(|page| map.read_page(page).map(drop))
            });
            prop_assert!(read_all().is_ok());
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bad).unwrap();
            prop_assert!(read_all().is_err());
            std::fs::write(&path, &good[..cut as usize]).unwrap();
            prop_assert!(read_all().is_err());
        }
    }

    #[test]
    fn a_grown_or_shrunk_image_takes_over_whole_chunks_only() {
        let dir = tempfile::tempdir().unwrap();
        let (base, _) = written(dir.path(), "base", 3 * CHUNK_SIZE + 5, &[0, 1, 2, 3]);
        let base = ChunkMap::open(&base).unwrap();
        for (size, kept) in [(3 * CHUNK_SIZE + 5, 4), (9 * CHUNK_SIZE, 3), (2 * CHUNK_SIZE + 1, 2), (0, 0)] {
            let next = MapWriter::create(&dir.path().join(format!("next{size}")), size).unwrap();
            next.copy_from(&base, &mut |_| Ok(())).unwrap();
            for number in 0..next.chunk_count() {
                assert_eq!(
                    next.get(number).unwrap(),
                    if number < kept { id(number) } else { None },
                    "{size} {number}"
                );
            }
        }
    }

    #[test]
    fn impossible_headers_are_refused_without_allocating() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = written(dir.path(), "m", CHUNK_SIZE, &[0]);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        bytes[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(ChunkMap::open(&path), Err(Error::MapCorrupt { .. })));
        bytes[8] = 2;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(ChunkMap::open(&path), Err(Error::FormatNewer { found: 2, .. })));
    }
}
