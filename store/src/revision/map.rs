//! The chunk map: which chunk lies where in an image. The byte layout is `docs/format.md`, section "Chunk map".
//!
//! A map is read page by page (2,048 entries, 8 GiB of image), and each page is checked against the page
//! table, whose seal the manifest holds: opening a map costs 32 bytes per 8 GiB, and no entry is believed
//! that the manifest does not vouch for. It is written page by page as well, in a file, so that neither
//! reading nor writing needs memory that grows with the image beyond the page table.
//!
//! Where a chunk is kept as a delta, the map names its base too, in a page of bases beside the page of entries: so maps
//! alone say what is in use. A map without deltas is of version 1 and has no such pages.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::chunk::id::{self, ChunkId};
use crate::chunk::layout::{IMAGE_SIZE_MAX, chunk_count, chunk_len};
use crate::chunk::name::ChunkName;
use crate::disk;
use crate::error::{Context, Error, Result};

const MAGIC: &[u8; 8] = b"BACKYMAP";
/// The version of a map without deltas.
const VERSION_PLAIN: u16 = 1;
/// The version of a map with deltas: the newest.
const VERSION: u16 = 2;
const CHUNK_LOG: u8 = 22;
const HEADER_LEN: u64 = 64;
const ENTRY_LEN: u64 = 32;

/// Entries of one page.
pub(crate) const PAGE_ENTRIES: u64 = 2048;
const PAGE_LEN: u64 = PAGE_ENTRIES * ENTRY_LEN;

/// A map's seal: what the manifest holds to vouch for it.
pub(crate) type Seal = [u8; 32];

/// What lies at one place of an image: a chunk's file, or `None` for a hole.
pub(crate) type Entry = Option<ChunkName>;

/// What tells pages apart, with their bases: equal keys mean equal entries.
pub(crate) type PageKey = ([u8; 32], Option<[u8; 32]>);

fn page_count(entries: u64) -> u64 {
    entries.div_ceil(PAGE_ENTRIES)
}

fn entries_offset(entries: u64) -> u64 {
    HEADER_LEN + page_count(entries) * 32
}

/// Length of a map without deltas; where the table of the pages of bases begins in one with them.
fn plain_len(entries: u64) -> u64 {
    entries_offset(entries) + entries * ENTRY_LEN
}

/// Where the pages of bases begin.
fn bases_offset(entries: u64) -> u64 {
    plain_len(entries) + page_count(entries) * 32
}

fn page_len(entries: u64, page: u64) -> usize {
    ((entries - page * PAGE_ENTRIES) * ENTRY_LEN).min(PAGE_LEN) as usize
}

/// Turns 32 bytes of a page into an id; `None` for zeros.
pub(crate) fn id_of(bytes: &[u8]) -> Option<ChunkId> {
    let mut id = [0; 32];
    id.copy_from_slice(bytes);
    (id != [0; 32]).then(|| ChunkId::from_bytes(id))
}

/// Returns all ids in the bytes of pages, of entries or of bases.
pub(crate) fn ids(page: &[u8]) -> impl Iterator<Item = ChunkId> {
    page.chunks_exact(ENTRY_LEN as usize).filter_map(id_of)
}

/// Returns the id at place `at` of a page.
pub(crate) fn id_at(page: &[u8], at: u64) -> Option<ChunkId> {
    let at = (at * ENTRY_LEN) as usize;
    id_of(&page[at..at + ENTRY_LEN as usize])
}

fn write_header(version: u16, size_bytes: u64) -> [u8; HEADER_LEN as usize] {
    let mut header = [0; HEADER_LEN as usize];
    header[0..8].copy_from_slice(MAGIC);
    header[8..10].copy_from_slice(&version.to_le_bytes());
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
    /// For each page its page of bases; none at all where no chunk is a delta.
    bases: Vec<Option<BasePage>>,
}

/// A page of bases.
#[derive(Clone, Copy, Debug)]
struct BasePage {
    hash: [u8; 32],
    offset: u64,
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
            // The mark of the store says which versions its files can have: a newer one is a flipped bit.
            return Err(corrupt(&format!(
                "its header says format version {version}, and the store's files have versions up to {VERSION}"
            )));
        }
        let word =
            |at: usize| header[at..at + 8].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        let (size_bytes, entries) = (word(16), word(24));
        if version < VERSION_PLAIN
            || size_bytes > IMAGE_SIZE_MAX
            || header[..32] != write_header(version, size_bytes)[..32]
        {
            return Err(corrupt("its header has impossible values"));
        }
        let has_bases = version != VERSION_PLAIN;
        let least = if has_bases { bases_offset(entries) } else { plain_len(entries) };
        if length < least || !has_bases && length != least {
            return Err(corrupt("it does not have the length that its header says"));
        }
        // None is larger than a 2,048th of a file that exists.
        let table_len = page_count(entries) as usize * 32;
        let (mut table, mut base_table) =
            (vec![0; table_len], vec![0; if has_bases { table_len } else { 0 }]);
        file.read_exact_at(&mut table, HEADER_LEN).context("read", path)?;
        file.read_exact_at(&mut base_table, plain_len(entries)).context("read", path)?;
        let seal = id::seal(&[&header[..32], &table, &base_table]);
        if seal != header[32..] {
            return Err(corrupt("its header or page table does not have the seal it carries"));
        }
        let pages = hashes(&table).collect();
        let (bases, end) = base_pages(&base_table, entries);
        if has_bases && end != length {
            return Err(corrupt("its pages do not fill the file"));
        }
        Ok(Self { path: path.to_owned(), file, size_bytes, entries, seal, pages, bases })
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

    /// The file it was opened from.
    pub(crate) fn path(&self) -> &Path {
        &self.path
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

    /// The hash of a page of bases; `None` where the page of entries names no delta.
    pub(crate) fn bases_hash(&self, page: u64) -> Option<&[u8; 32]> {
        self.bases.get(page as usize)?.as_ref().map(|bases| &bases.hash)
    }

    /// What two maps must share to have the same page: its hash, and that of its page of bases.
    pub(crate) fn page_key(&self, page: u64) -> PageKey {
        (*self.page_hash(page), self.bases_hash(page).copied())
    }

    /// Reads one page: 32 bytes for each of its entries, proven.
    pub(crate) fn read_page(&self, page: u64) -> Result<Vec<u8>> {
        self.read(page, "page", entries_offset(self.entries) + page * PAGE_LEN, &self.pages[page as usize])
    }

    /// Reads the page of bases beside a page, as long as that, proven; `None` where there are no deltas.
    pub(crate) fn read_bases(&self, page: u64) -> Result<Option<Vec<u8>>> {
        let Some(Some(bases)) = self.bases.get(page as usize) else { return Ok(None) };
        self.read(page, "page of bases", bases.offset, &bases.hash).map(Some)
    }

    /// Reads what lies at the places of a page.
    pub(crate) fn read_entries(&self, page: u64) -> Result<Vec<Entry>> {
        let (ids, bases) = (self.read_page(page)?, self.read_bases(page)?);
        Ok(entries_of(&ids, bases.as_deref()).collect())
    }

    fn read(&self, page: u64, what: &str, offset: u64, hash: &[u8; 32]) -> Result<Vec<u8>> {
        let mut bytes = vec![0; page_len(self.entries, page)];
        self.file.read_exact_at(&mut bytes, offset).context("read", &self.path)?;
        if id::seal(&[&bytes]) != *hash {
            let reason = format!("{what} {page} does not have the hash it should");
            return Err(Error::MapCorrupt { path: self.path.clone(), reason });
        }
        Ok(bytes)
    }
}

/// Returns a page of bases for a page whose own cannot be read, of the files that there are: a chunk that is there in full
/// needs no base, and of several deltas of one chunk each has the same bytes to give.
pub(crate) fn bases_of(ids: &[u8], files: &BTreeSet<ChunkName>) -> Vec<u8> {
    // The full file of a chunk comes first in order, and so last here.
    let bases: HashMap<_, _> = files.iter().rev().map(|name| (name.id, name.base)).collect();
    let base = |id: &[u8]| id_of(id).and_then(|id| *bases.get(&id)?);
    let bytes = |id| base(id).map_or([0; ENTRY_LEN as usize], |base| *base.as_bytes());
    ids.chunks_exact(ENTRY_LEN as usize).flat_map(bytes).collect()
}

/// Returns the entries of a page and of its page of bases.
pub(crate) fn entries_of(ids: &[u8], bases: Option<&[u8]>) -> impl Iterator<Item = Entry> {
    let base = move |at| bases.and_then(|bases| id_at(bases, at));
    let places = 0..ids.len() as u64 / ENTRY_LEN;
    places.map(move |at| Some(ChunkName { id: id_at(ids, at)?, base: base(at) }))
}

/// Cuts a table into hashes.
fn hashes(table: &[u8]) -> impl Iterator<Item = [u8; 32]> {
    table.chunks_exact(32).map(|hash| std::array::from_fn(|at| hash[at]))
}

/// Returns where the pages of bases lie that a table names, one behind the other, and where the last one ends.
fn base_pages(table: &[u8], entries: u64) -> (Vec<Option<BasePage>>, u64) {
    let mut offset = bases_offset(entries);
    let places = (0..).zip(hashes(table)).map(|(page, hash)| {
        (hash != [0; 32]).then(|| {
            let place = BasePage { hash, offset };
            offset += page_len(entries, page) as u64;
            place
        })
    });
    (places.collect(), offset)
}

/// A map being made, in an unfinished file. All entries are holes at first. Each page of bases has its place
/// until the map is sealed; then those that name none are left out.
#[derive(Debug)]
pub(crate) struct MapWriter {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    entries: u64,
    has_bases: AtomicBool,
}

impl MapWriter {
    /// Begins the map of an image of `size_bytes` in the new file `path`.
    pub(crate) fn create(path: &Path, size_bytes: u64) -> Result<Self> {
        let entries = chunk_count(size_bytes);
        let file = disk::create_new(path)?;
        let has_bases = AtomicBool::new(false);
        let writer = Self { path: path.to_owned(), file, size_bytes, entries, has_bases };
        disk::set_len(&writer.file, bases_offset(entries) + entries * ENTRY_LEN, path)?;
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
    /// `each` with what is taken over. The base's last chunk is left out when the sizes differ and it is a short one.
    pub(crate) fn copy_from(&self, base: &ChunkMap, each: &mut dyn FnMut(&ChunkName)) -> Result<()> {
        let whole = if base.size_bytes == self.size_bytes {
            self.entries
        } else {
            base.size_bytes.min(self.size_bytes) / crate::CHUNK_SIZE
        };
        for page in 0..page_count(whole) {
            let length = page_len(whole, page);
            let (ids, bases) = (base.read_page(page)?, base.read_bases(page)?);
            let (ids, bases) = (&ids[..length], bases.as_deref().map(|bases| &bases[..length]));
            entries_of(ids, bases).flatten().for_each(|name| each(&name));
            // The file has holes where nothing was written, and those read as holes of the image.
            if !crate::chunk::is_zero(ids) {
                disk::write_at(&self.file, ids, entries_offset(self.entries) + page * PAGE_LEN, &self.path)?;
            }
            if let Some(bases) = bases {
                self.has_bases.store(true, Ordering::Relaxed);
                disk::write_at(&self.file, bases, self.base_offset(page * PAGE_ENTRIES), &self.path)?;
            }
        }
        Ok(())
    }

    /// Sets the entry at `number`.
    pub(crate) fn set(&self, number: u64, entry: Entry) -> Result<()> {
        let bytes = |id: Option<ChunkId>| id.map_or([0; 32], |id| *id.as_bytes());
        let base = entry.and_then(|name| name.base);
        if base.is_some() {
            self.has_bases.store(true, Ordering::Relaxed);
        }
        if self.has_bases.load(Ordering::Relaxed) {
            disk::write_at(&self.file, &bytes(base), self.base_offset(number), &self.path)?;
        }
        let id = bytes(entry.map(|name| name.id));
        disk::write_at(&self.file, &id, self.entry_offset(number), &self.path)
    }

    /// Returns the entry at `number`.
    pub(crate) fn get(&self, number: u64) -> Result<Entry> {
        let read = |offset| -> Result<Option<ChunkId>> {
            let mut bytes = [0; ENTRY_LEN as usize];
            self.file.read_exact_at(&mut bytes, offset).context("read", &self.path)?;
            Ok(id_of(&bytes))
        };
        let Some(id) = read(self.entry_offset(number))? else { return Ok(None) };
        let base = match self.has_bases.load(Ordering::Relaxed) {
            true => read(self.base_offset(number))?,
            false => None,
        };
        Ok(Some(ChunkName { id, base }))
    }

    fn entry_offset(&self, number: u64) -> u64 {
        assert!(number < self.entries, "chunk {number} lies past the end of the image");
        entries_offset(self.entries) + number * ENTRY_LEN
    }

    fn base_offset(&self, number: u64) -> u64 {
        bases_offset(self.entries) + number * ENTRY_LEN
    }

    /// Returns the bytes of the image that are not in holes, as far as it is recorded by now.
    pub(crate) fn data_bytes(&self) -> Result<u64> {
        let mut data_bytes = 0;
        self.each_page(entries_offset(self.entries), &mut |page, bytes| {
            let entries = (page * PAGE_ENTRIES..).zip(bytes.chunks_exact(ENTRY_LEN as usize));
            let data = entries.filter(|(_, bytes)| id_of(bytes).is_some());
            data_bytes += data.map(|(number, _)| chunk_len(self.size_bytes, number) as u64).sum::<u64>();
            Ok(())
        })?;
        Ok(data_bytes)
    }

    /// Writes header and tables, makes the file durable and returns its seal and the bytes of the image that
    /// are not in holes. The file keeps its unfinished name.
    pub(crate) fn seal(&self) -> Result<(Seal, u64)> {
        let mut data_bytes = 0;
        let mut table = Vec::with_capacity(page_count(self.entries) as usize * 32);
        self.each_page(entries_offset(self.entries), &mut |page, bytes| {
            table.extend_from_slice(&id::seal(&[bytes]));
            for (number, bytes) in (page * PAGE_ENTRIES..).zip(bytes.chunks_exact(ENTRY_LEN as usize)) {
                if id_of(bytes).is_some() {
                    data_bytes += chunk_len(self.size_bytes, number) as u64;
                }
            }
            Ok(())
        })?;
        let base_table = self.compact_bases()?;
        let version = if base_table.is_empty() { VERSION_PLAIN } else { VERSION };
        let mut header = write_header(version, self.size_bytes);
        let seal = id::seal(&[&header[..32], &table, &base_table]);
        header[32..].copy_from_slice(&seal);
        disk::write_at(&self.file, &[&header[..], &table].concat(), 0, &self.path)?;
        if !base_table.is_empty() {
            disk::write_at(&self.file, &base_table, plain_len(self.entries), &self.path)?;
        }
        disk::sync_file(&self.file, &self.path)?;
        Ok((seal, data_bytes))
    }

    /// Moves the pages of bases that name any together, cuts the file behind them, and returns their table: empty if
    /// there are none.
    fn compact_bases(&self) -> Result<Vec<u8>> {
        let begin = bases_offset(self.entries);
        let (mut table, mut end) = (Vec::new(), begin);
        if self.has_bases.load(Ordering::Relaxed) {
            self.each_page(begin, &mut |_, bytes| {
                let is_used = !crate::chunk::is_zero(bytes);
                table.extend_from_slice(&if is_used { id::seal(&[bytes]) } else { [0; 32] });
                if is_used {
                    // Never behind the place that it was read from.
                    disk::write_at(&self.file, bytes, end, &self.path)?;
                    end += bytes.len() as u64;
                }
                Ok(())
            })?;
        }
        if end == begin {
            table.clear();
            end = plain_len(self.entries);
        }
        disk::set_len(&self.file, end, &self.path)?;
        Ok(table)
    }

    fn each_page(&self, begin: u64, visit: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let mut bytes = vec![0; PAGE_LEN as usize];
        for page in 0..page_count(self.entries) {
            let bytes = &mut bytes[..page_len(self.entries, page)];
            self.file.read_exact_at(bytes, begin + page * PAGE_LEN).context("read", &self.path)?;
            visit(page, bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn pages_of_holes_take_no_space_whatever_the_base() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let size_bytes = 1 << 40;
        let mut base = None;
        for name in ["first", "second", "third"] {
            let path = dir.path().join(name);
            let writer = MapWriter::create(&path, size_bytes).unwrap();
            if let Some(base) = &base {
                writer.copy_from(base, &mut |_| ()).unwrap();
            }
            assert_eq!(writer.seal().unwrap().1, 0);
            let used = path.metadata().unwrap().blocks() * 512;
            assert!(used < 100 << 10, "{name}: {used}");
            base = Some(ChunkMap::open(&path).unwrap());
        }
    }

    use proptest::prelude::*;

    use super::*;
    use crate::CHUNK_SIZE;

    /// What lies at a place: every third one is a delta, and none between 2,048 and 4,095.
    fn id(number: u64) -> Entry {
        let id = ChunkId::of(&number.to_le_bytes());
        let is_delta = number.is_multiple_of(3) && !(2048..4096).contains(&number);
        Some(ChunkName { id, base: is_delta.then(|| ChunkId::of(b"base")) })
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
                .flat_map(|page| map.read_entries(page).unwrap())
                .collect();
            prop_assert_eq!(entries.len() as u64, chunk_count(map.size_bytes()));
            for (number, found) in entries.into_iter().enumerate() {
                let expected = picks.contains(&(number as u64)).then(|| id(number as u64)).flatten();
                prop_assert_eq!(found, expected);
            }
        }

        #[test]
        fn no_flipped_bit_and_no_cut_is_believed(bit in 0usize..(64 + 64 + 2050 * 32 + 64 + 2048 * 32) * 8, cut in 0u64..(64 + 64 + 2050 * 32 + 64 + 2048 * 32)) {
            let dir = tempfile::tempdir().unwrap();
            let (path, seal) = written(dir.path(), "m", 2050 * CHUNK_SIZE, &[0, 7, 2049]);
            let good = std::fs::read(&path).unwrap();
            prop_assert_eq!(good.len(), 64 + 64 + 2050 * 32 + 64 + 2048 * 32);
            let read_all = || ChunkMap::open_sealed(&path, 2050 * CHUNK_SIZE, &seal).and_then(|map| {
                (0..map.page_count()).try_for_each(|page| map.read_entries(page).map(drop))
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
            next.copy_from(&base, &mut |_| ()).unwrap();
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
    fn a_map_that_lost_its_deltas_is_of_the_first_version_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let writer = MapWriter::create(&path, 3 * CHUNK_SIZE).unwrap();
        writer.set(1, id(0)).unwrap();
        assert_eq!(writer.get(1).unwrap(), id(0));
        writer.set(1, id(1)).unwrap();
        assert_eq!((writer.get(1).unwrap(), writer.get(0).unwrap()), (id(1), None));
        let (seal, _) = writer.seal().unwrap();
        let (other, expected) = written(dir.path(), "other", 3 * CHUNK_SIZE, &[1]);
        assert_eq!((seal, std::fs::read(&path).unwrap()), (expected, std::fs::read(other).unwrap()));
        assert_eq!(std::fs::read(&path).unwrap()[8], 1);
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
        bytes[8] = 3;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(ChunkMap::open(&path), Err(Error::MapCorrupt { .. })));
    }
}
