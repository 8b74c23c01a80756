//! The chunk map: where the chunks of an image are kept. The byte layout is `docs/format.md`, section "Chunk map".
//!
//! A map is read page by page (2,048 entries, 8 GiB of image), and each page is checked against the page
//! table, whose seal the manifest holds: opening a map costs 72 bytes per 8 GiB, and no entry is believed
//! that the manifest does not vouch for. It is written page by page as well, in a file, so that neither
//! reading nor writing needs memory that grows with the image beyond the page table.
//!
//! A page of entries has the ids of the chunks. Where chunks are kept by recipes, a page of places beside it says in which
//! group each recipe is and which files it refers to: so maps alone say what is in use.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Context, Error, Result};
use crate::format::group::{FILE_LEN, parse_file, write_file};
use crate::format::id::{self, ChunkId};
use crate::format::layout::{IMAGE_SIZE_MAX, chunk_count, chunk_len};
use crate::format::name::{FILES_MAX, FileName, Needed, Place, RecipePlace};
use crate::fs::disk;

const MAGIC: &[u8; 8] = b"BACKYMAP";
const VERSION: u16 = 1;
const CHUNK_LOG: u8 = 22;
const HEADER_LEN: u64 = 64;
const ENTRY_LEN: u64 = 32;

/// In the header of a map with pages of places.
const FLAG_PLACES: u8 = 1;

/// In the table of the pages of places: hash and length of each.
const PLACES_ENTRY_LEN: usize = 40;

/// Entries of one page.
pub(crate) const PAGE_ENTRIES: u64 = 2048;
const PAGE_LEN: u64 = PAGE_ENTRIES * ENTRY_LEN;

/// Room for the place of one recipe in an unfinished map: a mark, a length, and the place with the names of its files.
const SLOT_LEN: usize = 1536;

/// No page of places is longer.
const PLACES_LEN_MAX: u64 = PAGE_ENTRIES * SLOT_LEN as u64;

const _: () =
    assert!(47 + FILES_MAX * (4 + FILE_LEN) <= SLOT_LEN && 13 + (1 + FILES_MAX) * (8 + FILE_LEN) <= SLOT_LEN);

/// A map's seal: what the manifest holds to vouch for it.
pub(crate) type Seal = [u8; 32];

/// What lies at one place of an image: a chunk, or `None` for a hole.
pub(crate) type Entry = Option<Place>;

/// What tells pages apart, with their places: equal keys mean equal entries.
pub(crate) type PageKey = ([u8; 32], Option<[u8; 32]>);

fn page_count(entries: u64) -> u64 {
    entries.div_ceil(PAGE_ENTRIES)
}

fn entries_offset(entries: u64) -> u64 {
    HEADER_LEN + page_count(entries) * 32
}

/// Length of a map without places; where the table of the pages of places begins in one with them.
fn plain_len(entries: u64) -> u64 {
    entries_offset(entries) + entries * ENTRY_LEN
}

/// Where the pages of places begin; in an unfinished map, the slots.
fn places_offset(entries: u64) -> u64 {
    plain_len(entries) + page_count(entries) * PLACES_ENTRY_LEN as u64
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

/// Returns all ids in the bytes of a page of entries.
pub(crate) fn ids(page: &[u8]) -> impl Iterator<Item = ChunkId> {
    page.chunks_exact(ENTRY_LEN as usize).filter_map(id_of)
}

/// Returns the id at place `at` of a page.
pub(crate) fn id_at(page: &[u8], at: u64) -> Option<ChunkId> {
    let at = (at * ENTRY_LEN) as usize;
    id_of(&page[at..at + ENTRY_LEN as usize])
}

fn write_header(size_bytes: u64, has_places: bool) -> [u8; HEADER_LEN as usize] {
    let mut header = [0; HEADER_LEN as usize];
    header[0..8].copy_from_slice(MAGIC);
    header[8..10].copy_from_slice(&VERSION.to_le_bytes());
    header[10] = CHUNK_LOG;
    header[11] = if has_places { FLAG_PLACES } else { 0 };
    header[12..16].copy_from_slice(&(PAGE_ENTRIES as u32).to_le_bytes());
    header[16..24].copy_from_slice(&size_bytes.to_le_bytes());
    header[24..32].copy_from_slice(&chunk_count(size_bytes).to_le_bytes());
    header
}

/// Writes the page of places of a page of entries; `None` where no chunk is kept by a recipe.
fn encode_places(entries: &[Entry]) -> Option<Vec<u8>> {
    let recipes = || entries.iter().flatten().filter_map(|place| place.recipe.as_ref());
    let named = |recipe: &RecipePlace| {
        let group = Needed { file: FileName::group(recipe.group), bytes: recipe.own_bytes };
        std::iter::once(group).chain(recipe.files.iter().copied()).collect::<Vec<_>>()
    };
    let files: BTreeSet<FileName> = recipes().flat_map(named).map(|needed| needed.file).collect();
    if files.is_empty() {
        return None;
    }
    let files: Vec<FileName> = files.into_iter().collect();
    let mut out = (files.len() as u32).to_le_bytes().to_vec();
    files.iter().for_each(|file| write_file(file, &mut out));
    for entry in entries {
        let Some(recipe) = entry.as_ref().and_then(|place| place.recipe.as_ref()) else {
            out.push(0);
            continue;
        };
        let named = named(recipe);
        out.push(named.len() as u8);
        out.extend_from_slice(&recipe.offset.to_le_bytes());
        out.extend_from_slice(&recipe.len.to_le_bytes());
        for Needed { file, bytes } in named {
            let number = files.binary_search(&file).unwrap_or_default() as u32;
            out.extend_from_slice(&number.to_le_bytes());
            out.extend_from_slice(&bytes.to_le_bytes());
        }
    }
    Some(out)
}

/// Takes numbers and names from the front of bytes.
struct Cursor<'b>(&'b [u8]);

impl<'b> Cursor<'b> {
    fn take(&mut self, length: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn word(&mut self) -> Option<u32> {
        let bytes = self.take(4)?;
        Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn files(&mut self) -> Option<Vec<FileName>> {
        let count = self.word()? as usize;
        let names = self.take(count.checked_mul(FILE_LEN)?)?;
        names.chunks_exact(FILE_LEN).map(parse_file).collect()
    }
}

/// Returns the files that a page of places names; `None` if it is none.
pub(crate) fn files_of(places: &[u8]) -> Option<Vec<FileName>> {
    Cursor(places).files()
}

/// Returns the entries of a page of ids and of the page of places beside it; `None` if that is none.
fn decode_places(ids: &[u8], places: &[u8]) -> Option<Vec<Entry>> {
    let mut cursor = Cursor(places);
    let files = cursor.files()?;
    let mut entries = Vec::with_capacity(ids.len() / ENTRY_LEN as usize);
    for id in ids.chunks_exact(ENTRY_LEN as usize) {
        let count = usize::from(cursor.take(1)?[0]);
        if count == 0 {
            entries.push(id_of(id).map(Place::full));
            continue;
        }
        let (offset, len) = (cursor.word()?, cursor.word()?);
        let mut named = Vec::with_capacity(count);
        for _ in 0..count {
            let file = *files.get(cursor.word()? as usize)?;
            named.push(Needed { file, bytes: cursor.word()? });
        }
        let Needed { file: group, bytes: own_bytes } = named.remove(0);
        if group != FileName::group(group.id) || named.len() > FILES_MAX {
            return None;
        }
        let recipe = Some(RecipePlace { group: group.id, offset, len, own_bytes, files: named });
        entries.push(Some(Place { id: id_of(id)?, recipe }));
    }
    cursor.0.is_empty().then_some(entries)
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
    /// For each page its page of places; none at all where no chunk is kept by a recipe.
    places: Vec<Option<PlacesPage>>,
}

/// Where a page of places lies.
#[derive(Clone, Copy, Debug)]
struct PlacesPage {
    hash: [u8; 32],
    offset: u64,
    len: u64,
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
        if version != VERSION {
            // The mark of the store says which versions its files can have: another one is a flipped bit.
            return Err(corrupt(&format!(
                "its header says format version {version}, and the store's files have version {VERSION}"
            )));
        }
        let word =
            |at: usize| header[at..at + 8].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        let (size_bytes, entries, has_places) = (word(16), word(24), header[11] == FLAG_PLACES);
        if size_bytes > IMAGE_SIZE_MAX || header[..32] != write_header(size_bytes, has_places)[..32] {
            return Err(corrupt("its header has impossible values"));
        }
        let least = if has_places { places_offset(entries) } else { plain_len(entries) };
        if length < least || !has_places && length != least {
            return Err(corrupt("it does not have the length that its header says"));
        }
        // None is larger than a small part of a file that exists.
        let pages = page_count(entries) as usize;
        let (mut table, mut places_table) =
            (vec![0; pages * 32], vec![0; if has_places { pages * PLACES_ENTRY_LEN } else { 0 }]);
        file.read_exact_at(&mut table, HEADER_LEN).context("read", path)?;
        file.read_exact_at(&mut places_table, plain_len(entries)).context("read", path)?;
        let seal = id::seal(&[&header[..32], &table, &places_table]);
        if seal != header[32..] {
            return Err(corrupt("its header or page table does not have the seal it carries"));
        }
        let pages = table.chunks_exact(32).map(|hash| std::array::from_fn(|at| hash[at])).collect();
        let Some((places, end)) = places_pages(&places_table, entries) else {
            return Err(corrupt("its pages of places have impossible lengths"));
        };
        if has_places && end != length {
            return Err(corrupt("its pages do not fill the file"));
        }
        Ok(Self { path: path.to_owned(), file, size_bytes, entries, seal, pages, places })
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

    /// The hash of a page: equal hashes mean equal ids.
    pub(crate) fn page_hash(&self, page: u64) -> &[u8; 32] {
        &self.pages[page as usize]
    }

    /// The hash of a page of places; `None` where the page of entries names no recipe.
    pub(crate) fn places_hash(&self, page: u64) -> Option<&[u8; 32]> {
        self.places.get(page as usize)?.as_ref().map(|places| &places.hash)
    }

    /// What two maps must share to have the same page: its hash, and that of its page of places.
    pub(crate) fn page_key(&self, page: u64) -> PageKey {
        (*self.page_hash(page), self.places_hash(page).copied())
    }

    /// Reads one page: 32 bytes for each of its entries, proven.
    pub(crate) fn read_page(&self, page: u64) -> Result<Vec<u8>> {
        let (offset, len) = (entries_offset(self.entries) + page * PAGE_LEN, page_len(self.entries, page));
        self.read(&format!("page {page}"), offset, len, &self.pages[page as usize])
    }

    /// Reads the page of places beside a page, proven; `None` where there are no recipes.
    pub(crate) fn read_places(&self, page: u64) -> Result<Option<Vec<u8>>> {
        let Some(Some(places)) = self.places.get(page as usize) else { return Ok(None) };
        let what = format!("page of places {page}");
        self.read(&what, places.offset, places.len as usize, &places.hash).map(Some)
    }

    /// Reads what lies at the places of a page.
    pub(crate) fn read_entries(&self, page: u64) -> Result<Vec<Entry>> {
        let ids = self.read_page(page)?;
        let places = self.read_places(page)?;
        self.entries_of(page, &ids, places.as_deref())
    }

    /// Returns the entries of a page of ids, with what the page of places beside it says.
    pub(crate) fn entries_of(&self, page: u64, ids: &[u8], places: Option<&[u8]>) -> Result<Vec<Entry>> {
        let Some(places) = places else {
            return Ok(ids.chunks_exact(ENTRY_LEN as usize).map(|id| id_of(id).map(Place::full)).collect());
        };
        decode_places(ids, places).ok_or_else(|| {
            let reason = format!("page of places {page} is none");
            Error::MapCorrupt { path: self.path.clone(), reason }
        })
    }

    fn read(&self, what: &str, offset: u64, len: usize, hash: &[u8; 32]) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset).context("read", &self.path)?;
        if id::seal(&[&bytes]) != *hash {
            let reason = format!("{what} does not have the hash it should");
            return Err(Error::MapCorrupt { path: self.path.clone(), reason });
        }
        Ok(bytes)
    }
}

/// Returns where the pages of places lie that a table names, one behind the other, and where the last one ends.
fn places_pages(table: &[u8], entries: u64) -> Option<(Vec<Option<PlacesPage>>, u64)> {
    let mut offset = places_offset(entries);
    let mut pages = Vec::with_capacity(table.len() / PLACES_ENTRY_LEN);
    for entry in table.chunks_exact(PLACES_ENTRY_LEN) {
        let hash: [u8; 32] = std::array::from_fn(|at| entry[at]);
        let len = entry[32..].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        if hash == [0; 32] && len == 0 {
            pages.push(None);
            continue;
        }
        if len == 0 || len > PLACES_LEN_MAX {
            return None;
        }
        pages.push(Some(PlacesPage { hash, offset, len }));
        offset = offset.checked_add(len)?;
    }
    Some((pages, offset))
}

/// What an unfinished map says of the place of one entry.
enum Slot {
    /// Nothing: it is the base's.
    Inherited,
    /// In a file of its own, or a hole.
    Full,
    Recipe(RecipePlace),
}

/// A map being made, in an unfinished file. All entries are holes at first, or the base's. The places of recipes have
/// slots behind the entries until the map is sealed.
#[derive(Debug)]
pub(crate) struct MapWriter {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    entries: u64,
    has_slots: AtomicBool,
    /// What the map was begun with, and how many of its entries.
    base: Option<(Arc<ChunkMap>, u64)>,
    /// The page of the base that was looked at last.
    page: Mutex<(u64, Arc<Vec<Entry>>)>,
}

impl MapWriter {
    /// Begins the map of an image of `size_bytes` in the new file `path`.
    pub(crate) fn create(path: &Path, size_bytes: u64) -> Result<Self> {
        let entries = chunk_count(size_bytes);
        let file = disk::create_new(path)?;
        let writer = Self {
            path: path.to_owned(),
            file,
            size_bytes,
            entries,
            has_slots: AtomicBool::new(false),
            base: None,
            page: Mutex::new((u64::MAX, Arc::default())),
        };
        disk::set_len(&writer.file, places_offset(entries), path)?;
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
    /// `each` with the files of what is taken over. The base's last chunk is left out when the sizes differ and it is a
    /// short one. Only for a map in which nothing was set.
    pub(crate) fn copy_from(&mut self, base: &Arc<ChunkMap>, each: &mut dyn FnMut(&FileName)) -> Result<()> {
        let whole = if base.size_bytes == self.size_bytes {
            self.entries
        } else {
            base.size_bytes.min(self.size_bytes) / crate::CHUNK_SIZE
        };
        for page in 0..page_count(whole) {
            let length = page_len(whole, page);
            let (ids, places) = (base.read_page(page)?, base.read_places(page)?);
            // The file has holes where nothing was written, and those read as holes of the image.
            if !crate::format::is_zero(&ids[..length]) {
                let offset = entries_offset(self.entries) + page * PAGE_LEN;
                disk::write_at(&self.file, &ids[..length], offset, &self.path)?;
            }
            let entries = base.entries_of(page, &ids, places.as_deref())?;
            let taken = entries.iter().take(length / ENTRY_LEN as usize).flatten();
            taken.flat_map(Place::files).for_each(|file| each(&file));
        }
        self.base = Some((Arc::clone(base), whole));
        Ok(())
    }

    /// Sets the entry at `number`.
    pub(crate) fn set(&self, number: u64, entry: Entry) -> Result<()> {
        let recipe = entry.as_ref().and_then(|place| place.recipe.as_ref());
        if recipe.is_some() || self.base_has_places(number) || self.has_slots.load(Ordering::Relaxed) {
            self.has_slots.store(true, Ordering::Relaxed);
            disk::write_at(&self.file, &slot_bytes(recipe), self.slot_offset(number), &self.path)?;
        }
        let id = entry.map_or([0; 32], |place| *place.id.as_bytes());
        disk::write_at(&self.file, &id, self.entry_offset(number), &self.path)
    }

    /// Returns the entry at `number`.
    pub(crate) fn get(&self, number: u64) -> Result<Entry> {
        let mut bytes = [0; ENTRY_LEN as usize];
        self.file.read_exact_at(&mut bytes, self.entry_offset(number)).context("read", &self.path)?;
        let Some(id) = id_of(&bytes) else { return Ok(None) };
        let recipe = match self.slot(number)? {
            Slot::Full => None,
            Slot::Recipe(recipe) => Some(recipe),
            Slot::Inherited => self.inherited(number)?.and_then(|place| place.recipe),
        };
        Ok(Some(Place { id, recipe }))
    }

    fn slot(&self, number: u64) -> Result<Slot> {
        if !self.has_slots.load(Ordering::Relaxed) {
            return Ok(Slot::Inherited);
        }
        // The file ends behind the last slot that was written.
        let (mut bytes, offset) = ([0; SLOT_LEN], self.slot_offset(number));
        let mut done = 0;
        while done < SLOT_LEN {
            match self.file.read_at(&mut bytes[done..], offset + done as u64).context("read", &self.path)? {
                0 => break,
                length => done += length,
            }
        }
        parse_slot(&bytes).ok_or_else(|| {
            let reason = "what was written into it has changed".to_owned();
            Error::MapCorrupt { path: self.path.clone(), reason }
        })
    }

    fn base_has_places(&self, number: u64) -> bool {
        let base = self.base.as_ref().filter(|(_, whole)| number < *whole);
        base.is_some_and(|(base, _)| base.places_hash(number / PAGE_ENTRIES).is_some())
    }

    /// Returns the base's entry at a place in which nothing was set.
    fn inherited(&self, number: u64) -> Result<Entry> {
        if !self.base_has_places(number) {
            return Ok(None);
        }
        let entries = self.base_page(number / PAGE_ENTRIES)?;
        Ok(entries.get((number % PAGE_ENTRIES) as usize).cloned().flatten())
    }

    fn base_page(&self, page: u64) -> Result<Arc<Vec<Entry>>> {
        let Some((base, _)) = &self.base else { return Ok(Arc::default()) };
        let mut known = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0 != page {
            *known = (page, Arc::new(base.read_entries(page)?));
        }
        Ok(Arc::clone(&known.1))
    }

    fn entry_offset(&self, number: u64) -> u64 {
        assert!(number < self.entries, "chunk {number} lies past the end of the image");
        entries_offset(self.entries) + number * ENTRY_LEN
    }

    fn slot_offset(&self, number: u64) -> u64 {
        places_offset(self.entries) + number * SLOT_LEN as u64
    }

    /// Returns the bytes of the image that are not in holes, as far as it is recorded by now.
    pub(crate) fn data_bytes(&self) -> Result<u64> {
        let mut data_bytes = 0;
        self.each_page(&mut |page, bytes| {
            data_bytes += self.data_in(page, bytes);
            Ok(())
        })?;
        Ok(data_bytes)
    }

    fn data_in(&self, page: u64, bytes: &[u8]) -> u64 {
        let entries = (page * PAGE_ENTRIES..).zip(bytes.chunks_exact(ENTRY_LEN as usize));
        let data = entries.filter(|(_, bytes)| id_of(bytes).is_some());
        data.map(|(number, _)| chunk_len(self.size_bytes, number) as u64).sum()
    }

    /// Writes header, tables and pages of places, makes the file durable and returns its seal and the bytes of the image
    /// that are not in holes. The file keeps its unfinished name.
    pub(crate) fn seal(&self) -> Result<(Seal, u64)> {
        let begin = places_offset(self.entries);
        let (mut data_bytes, mut end) = (0, begin);
        let (mut table, mut places_table) = (Vec::new(), Vec::new());
        self.each_page(&mut |page, bytes| {
            table.extend_from_slice(&id::seal(&[bytes]));
            data_bytes += self.data_in(page, bytes);
            let Some(places) = self.places(page, bytes)? else {
                places_table.extend_from_slice(&[0; PLACES_ENTRY_LEN]);
                return Ok(());
            };
            places_table.extend_from_slice(&id::seal(&[&places]));
            places_table.extend_from_slice(&(places.len() as u64).to_le_bytes());
            // Never behind the slots that it was made of.
            disk::write_at(&self.file, &places, end, &self.path)?;
            end += places.len() as u64;
            Ok(())
        })?;
        let has_places = end > begin;
        if !has_places {
            places_table.clear();
            end = plain_len(self.entries);
        }
        disk::set_len(&self.file, end, &self.path)?;
        let mut header = write_header(self.size_bytes, has_places);
        let seal = id::seal(&[&header[..32], &table, &places_table]);
        header[32..].copy_from_slice(&seal);
        disk::write_at(&self.file, &[&header[..], &table].concat(), 0, &self.path)?;
        if has_places {
            disk::write_at(&self.file, &places_table, plain_len(self.entries), &self.path)?;
        }
        disk::sync_file(&self.file, &self.path)?;
        Ok((seal, data_bytes))
    }

    /// Returns the page of places beside a page of ids; `None` where no chunk is kept by a recipe.
    fn places(&self, page: u64, ids: &[u8]) -> Result<Option<Vec<u8>>> {
        let first = page * PAGE_ENTRIES;
        if !self.base_has_places(first) && !self.has_slots.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut entries = Vec::with_capacity(PAGE_ENTRIES as usize);
        for (number, id) in (first..).zip(ids.chunks_exact(ENTRY_LEN as usize)) {
            let entry = if id_of(id).is_some() { self.get(number)? } else { None };
            entries.push(entry);
        }
        Ok(encode_places(&entries))
    }

    /// Whether chunks may be kept by recipes.
    pub(crate) fn has_recipes(&self) -> bool {
        let is_in_base = |(base, _): &(Arc<ChunkMap>, u64)| base.places.iter().any(Option::is_some);
        self.has_slots.load(Ordering::Relaxed) || self.base.as_ref().is_some_and(is_in_base)
    }

    fn each_page(&self, visit: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let (mut bytes, begin) = (vec![0; PAGE_LEN as usize], entries_offset(self.entries));
        for page in 0..page_count(self.entries) {
            let bytes = &mut bytes[..page_len(self.entries, page)];
            self.file.read_exact_at(bytes, begin + page * PAGE_LEN).context("read", &self.path)?;
            visit(page, bytes)?;
        }
        Ok(())
    }
}

/// A slot: a byte 1 for a full chunk or hole and 2 for a recipe, then offset, length, number and names of files.
fn slot_bytes(recipe: Option<&RecipePlace>) -> Vec<u8> {
    let Some(recipe) = recipe else { return vec![1] };
    let mut out = vec![2];
    out.extend_from_slice(&recipe.offset.to_le_bytes());
    out.extend_from_slice(&recipe.len.to_le_bytes());
    out.extend_from_slice(&(recipe.files.len() as u16).to_le_bytes());
    out.extend_from_slice(recipe.group.as_bytes());
    out.extend_from_slice(&recipe.own_bytes.to_le_bytes());
    for needed in &recipe.files {
        out.extend_from_slice(&needed.bytes.to_le_bytes());
        write_file(&needed.file, &mut out);
    }
    out
}

fn parse_slot(bytes: &[u8]) -> Option<Slot> {
    let mut cursor = Cursor(bytes);
    match cursor.take(1)?[0] {
        0 => return Some(Slot::Inherited),
        1 => return Some(Slot::Full),
        2 => {}
        _ => return None,
    }
    let (offset, len, count) = (cursor.word()?, cursor.word()?, cursor.take(2)?);
    let count = usize::from(u16::from_le_bytes([count[0], count[1]]));
    let (group, own_bytes) = (id_of(cursor.take(32)?)?, cursor.word()?);
    let mut files = Vec::with_capacity(count);
    for _ in 0..count {
        files.push(Needed { bytes: cursor.word()?, file: parse_file(cursor.take(FILE_LEN)?)? });
    }
    Some(Slot::Recipe(RecipePlace { group, offset, len, own_bytes, files }))
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
            let mut writer = MapWriter::create(&path, size_bytes).unwrap();
            if let Some(base) = &base {
                writer.copy_from(base, &mut |_| ()).unwrap();
            }
            assert_eq!(writer.seal().unwrap().1, 0);
            let used = path.metadata().unwrap().blocks() * 512;
            assert!(used < 100 << 10, "{name}: {used}");
            base = Some(Arc::new(ChunkMap::open(&path).unwrap()));
        }
    }

    use proptest::prelude::*;

    use super::*;
    use crate::CHUNK_SIZE;

    /// What lies at a place: every third chunk is kept by a recipe, and none between 2,048 and 4,095.
    fn id(number: u64) -> Entry {
        let id = ChunkId::of(&number.to_le_bytes());
        let is_made = number.is_multiple_of(3) && !(2048..4096).contains(&number);
        let files = [FileName::chunk(ChunkId::of(b"base")), FileName::group(id)];
        let recipe = |files: &[FileName]| RecipePlace {
            group: ChunkId::of(b"group"),
            offset: number as u32 * 7,
            len: 99,
            own_bytes: number as u32,
            files: files.iter().map(|file| Needed { file: *file, bytes: 5 }).collect(),
        };
        Some(Place { id, recipe: is_made.then(|| recipe(&files[..1 + number as usize % 2])) })
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
        fn no_flipped_bit_and_no_cut_is_believed(at in 0.0f64..1.0, bit in 0usize..8, is_in_tables in any::<bool>()) {
            let dir = tempfile::tempdir().unwrap();
            let (path, seal) = written(dir.path(), "m", 2050 * CHUNK_SIZE, &[0, 7, 2049]);
            let good = std::fs::read(&path).unwrap();
            // Half of the cases hit the places.
            let from = if is_in_tables { 64 + 64 + 2050 * 32 } else { 0 };
            let at = from + (at * (good.len() - from) as f64) as usize;
            let read_all = || ChunkMap::open_sealed(&path, 2050 * CHUNK_SIZE, &seal).and_then(|map| {
                (0..map.page_count()).try_for_each(|page| map.read_entries(page).map(drop))
            });
            prop_assert!(read_all().is_ok());
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            std::fs::write(&path, &bad).unwrap();
            prop_assert!(read_all().is_err());
            std::fs::write(&path, &good[..at]).unwrap();
            prop_assert!(read_all().is_err());
        }
    }

    #[test]
    fn a_grown_or_shrunk_image_takes_over_whole_chunks_only() {
        let dir = tempfile::tempdir().unwrap();
        let (base, _) = written(dir.path(), "base", 3 * CHUNK_SIZE + 5, &[0, 1, 2, 3]);
        let base = Arc::new(ChunkMap::open(&base).unwrap());
        for (size, kept) in [(3 * CHUNK_SIZE + 5, 4), (9 * CHUNK_SIZE, 3), (2 * CHUNK_SIZE + 1, 2), (0, 0)] {
            let mut next = MapWriter::create(&dir.path().join(format!("next{size}")), size).unwrap();
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
    fn a_map_that_lost_its_recipes_is_as_if_it_had_had_none() {
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
        assert_eq!(std::fs::read(&path).unwrap()[11], 0);
    }

    #[test]
    fn places_are_inherited_until_they_are_set() {
        let dir = tempfile::tempdir().unwrap();
        let (base, _) = written(dir.path(), "base", 10 * CHUNK_SIZE, &[0, 1, 2, 3]);
        let base = Arc::new(ChunkMap::open(&base).unwrap());
        let mut next = MapWriter::create(&dir.path().join("next"), 10 * CHUNK_SIZE).unwrap();
        let mut files = Vec::new();
        next.copy_from(&base, &mut |file| files.push(*file)).unwrap();
        let expected: Vec<FileName> =
            (0..4).flat_map(|number| id(number).unwrap().files().collect::<Vec<_>>()).collect();
        assert_eq!(files, expected);
        next.set(0, Some(Place::full(ChunkId::of(b"x")))).unwrap();
        next.set(1, id(9)).unwrap();
        next.set(2, None).unwrap();
        let expected = [Some(Place::full(ChunkId::of(b"x"))), id(9), None, id(3), None];
        let got = || -> Vec<Entry> { (0..5).map(|number| next.get(number).unwrap()).collect() };
        assert_eq!(got(), expected);
        next.seal().unwrap();
        let map = ChunkMap::open(next.path()).unwrap();
        assert_eq!(map.read_entries(0).unwrap()[..5], expected);
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
