//! The page index: where pages of 4 KiB with a certain hash are stored, so that the same content is found at another offset,
//! in another job or machine. One page in 24 is in it, chosen by its content, so that equal pages are chosen everywhere;
//! what lies around a page that is found is compared byte by byte.
//!
//! The index is a cache. It is never believed: what it points at is opened, read and compared, and a wrong entry costs a
//! read. It may be deleted at any time; a verification puts in again what it reads. It takes 8 bytes for each page and 44
//! for each chunk or run, about 140 MB for a TiB of chunks, and is read and written in place: memory does not grow with it.
//! `docs/format.md` has the bytes, section "The page index".
//!
//! It is a hash table of buckets with 512 entries. When it is nearly full it is written anew with a quarter more of them, in
//! one pass, since the buckets are in the order of the hashes. Writers take a lock, for which they wait a moment only;
//! readers take none, since half of a change is one of the wrong entries.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use twox_hash::XxHash3_64;

use crate::format::ChunkId;
use crate::format::name::{FileKind, FileName};
use crate::format::run::{Donor, PAGE_LEN};
use crate::fs::disk;

/// One page of so many is in the index.
const ONE_IN: u64 = 24;

/// The directory of the index in a store.
pub(crate) const DIR: &str = ".pages";

const TABLE_MAGIC: &[u8; 8] = b"BACKYPGT";
const DONORS_MAGIC: &[u8; 8] = b"BACKYPGS";
const HEADER_LEN: usize = 44;

/// Bytes of a bucket, and where the first one begins.
const BUCKET_LEN: usize = 4096;
const BUCKET_ENTRIES: u64 = (BUCKET_LEN / 8) as u64;

/// With more entries for each bucket the table grows: few buckets are full then.
const LOAD_MAX: u64 = 440;

/// The buckets of a new table. With as many, the bucket tells the highest 6 of 32 bits of a hash, and the entry the others.
const BUCKETS_MIN: u64 = 1 << 6;

/// An entry, from the highest bit: the lower 26 of 32 bits of the hash, the donor, the page.
const DONOR_BITS: u32 = 28;
const PAGE_BITS: u32 = 10;

/// A table has no more: then the buckets tell 31 of 32 bits of a hash.
const BUCKETS_MAX: u64 = 1 << 31;

/// Bytes of a donor.
const DONOR_LEN: u64 = 44;

/// How long a writer waits for another one.
const WAIT_MAX: Duration = Duration::from_millis(50);

/// Where a page may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    /// The file.
    pub(crate) donor: Donor,
    /// The page there, counted through the whole chunk.
    pub(crate) page: u16,
    entry: u64,
}

/// The index of a store, opened.
#[derive(Debug)]
pub(crate) struct PageIndex {
    dir: PathBuf,
    files: RwLock<Arc<Files>>,
    /// Held by the thread that changes the files: their lock knows processes only.
    changing: Mutex<()>,
    buckets: AtomicU64,
    /// Something went wrong with it: it is not used any more.
    failed: AtomicBool,
}

/// The files of an index, which belong together.
#[derive(Debug)]
struct Files {
    table: File,
    donors: File,
    generation: [u8; 16],
}

/// Returns the hash of a whole page if it is one of those that the index has.
pub(crate) fn sampled(page: &[u8]) -> Option<u64> {
    debug_assert_eq!(page.len(), PAGE_LEN);
    let hash = XxHash3_64::oneshot(page);
    ((hash >> 32) * ONE_IN < 1 << 32).then_some(hash)
}

/// The part of a hash that the table knows.
fn short(hash: u64) -> u64 {
    hash & 0xffff_ffff
}

/// The part of it that an entry has.
fn print_of(hash: u64) -> u64 {
    hash & ((1 << 26) - 1)
}

fn entry_of(hash: u64, donor: u64, page: u16) -> u64 {
    print_of(hash) << (DONOR_BITS + PAGE_BITS) | donor << PAGE_BITS | u64::from(page)
}

/// The bucket of a hash among so many.
fn bucket_of(hash: u64, buckets: u64) -> u64 {
    (short(hash) * buckets) >> 32
}

/// The hash of an entry in a bucket, as far as the table knows it: the first one from where the bucket begins.
fn hash_of(entry: u64, bucket: u64, buckets: u64) -> u64 {
    let begin = (bucket << 32).div_ceil(buckets);
    begin + (print_of(entry >> (DONOR_BITS + PAGE_BITS)).wrapping_sub(begin) & ((1 << 26) - 1))
}

fn bucket_at(bucket: u64) -> u64 {
    (1 + bucket) * BUCKET_LEN as u64
}

type Bucket = [u8; BUCKET_LEN];

fn entries(bucket: &Bucket) -> impl Iterator<Item = u64> {
    bucket.as_chunks::<8>().0.iter().map(|entry| u64::from_le_bytes(*entry))
}

struct Header {
    generation: [u8; 16],
    buckets: u64,
    entries: u64,
}

impl Header {
    fn write(&self, magic: &[u8; 8]) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(magic);
        bytes[8..10].copy_from_slice(&1u16.to_le_bytes());
        bytes[12..28].copy_from_slice(&self.generation);
        bytes[28..36].copy_from_slice(&self.buckets.to_le_bytes());
        bytes[36..44].copy_from_slice(&self.entries.to_le_bytes());
        bytes
    }

    /// Reads a header; `None` where there is none, or one that cannot be.
    fn read(file: &File, magic: &[u8; 8]) -> std::io::Result<Option<Self>> {
        let mut bytes = [0; HEADER_LEN];
        match file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        let generation = std::array::from_fn(|at| bytes[12 + at]);
        let header = Self { generation, buckets: word(28), entries: word(36) };
        let is_ours = &bytes[..8] == magic && bytes[8..12] == [1, 0, 0, 0];
        let length = file.metadata()?.len();
        let is_possible = match magic == DONORS_MAGIC {
            true => length < DONOR_LEN << DONOR_BITS,
            false => {
                (BUCKETS_MIN..=BUCKETS_MAX).contains(&header.buckets)
                    && bucket_at(header.buckets) <= length
                    && header.entries <= header.buckets * BUCKET_ENTRIES
            }
        };
        Ok((is_ours && is_possible).then_some(header))
    }
}

/// Opens a file of an index, and makes an empty one where there is none. A link is refused.
fn open_file(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(nix::libc::O_NOFOLLOW).open(path)
}

/// Reads the headers of an index; `None` where both files do not belong together.
fn headers(table: &File, donors: &File) -> std::io::Result<Option<Header>> {
    let found = (Header::read(table, TABLE_MAGIC)?, Header::read(donors, DONORS_MAGIC)?);
    Ok(match found {
        (Some(header), Some(other)) if header.generation == other.generation => Some(header),
        _ => None,
    })
}

fn is_replaced(file: &File) -> std::io::Result<bool> {
    Ok(file.metadata()?.nlink() == 0)
}

/// Opens both files, and makes them empty where they are not what they should be. `None` where somebody else is at it.
fn open_files(dir: &Path) -> std::io::Result<Option<(Files, Header)>> {
    let (table, donors) = (open_file(&dir.join("table"))?, open_file(&dir.join("donors"))?);
    let header = match headers(&table, &donors)? {
        Some(header) => header,
        None => {
            if !lock(&table)? {
                return Ok(None);
            }
            // Others may have made it meanwhile, or put another one in its place.
            let made = match (is_replaced(&table)? || is_replaced(&donors)?, headers(&table, &donors)?) {
                (true, _) => Ok(None),
                (false, Some(header)) => Ok(Some(header)),
                (false, None) => make(&table, &donors).map(Some),
            };
            table.unlock()?;
            let Some(header) = made? else { return Ok(None) };
            header
        }
    };
    Ok(Some((Files { table, donors, generation: header.generation }, header)))
}

/// Takes the lock of a table; `None` when it is not free for a while. It ends when the file is unlocked.
fn lock(table: &File) -> std::io::Result<bool> {
    let begun = Instant::now();
    loop {
        match table.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if begun.elapsed() > WAIT_MAX => return Ok(false),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

impl PageIndex {
    /// Opens the index of a store, and makes an empty one where there is none or where it is not what it should be. `None`
    /// where that is not possible: then nothing is found.
    pub(crate) fn open(root: &Path) -> Option<Self> {
        let opened = Self::open_in(&root.join(DIR));
        opened.unwrap_or_else(|error| {
            tracing::debug!(%error, "page-index-unusable");
            None
        })
    }

    fn open_in(dir: &Path) -> std::io::Result<Option<Self>> {
        match std::fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if !std::fs::symlink_metadata(dir)?.is_dir() {
            return Err(std::io::Error::other("it is no directory"));
        }
        let Some((files, header)) = open_files(dir)? else { return Ok(None) };
        Ok(Some(Self {
            dir: dir.to_owned(),
            files: RwLock::new(Arc::new(files)),
            changing: Mutex::new(()),
            buckets: AtomicU64::new(header.buckets),
            failed: AtomicBool::new(false),
        }))
    }

    fn files(&self) -> Arc<Files> {
        Arc::clone(&self.files.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn replace(&self, files: Files) -> Arc<Files> {
        let files = Arc::new(files);
        *self.files.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&files);
        files
    }

    /// Opens the files again if others have taken their place, and returns the header of the table.
    fn header(&self) -> std::io::Result<(Arc<Files>, Header)> {
        let files = self.files();
        let header = Header::read(&files.table, TABLE_MAGIC)?;
        let (files, header) = match header.filter(|header| header.generation == files.generation) {
            Some(header) if !is_replaced(&files.table)? => (files, header),
            _ => match open_files(&self.dir)? {
                Some((new, header)) => (self.replace(new), header),
                // Another one is taking its place: later it can be opened.
                None => return Err(std::io::ErrorKind::WouldBlock.into()),
            },
        };
        self.buckets.store(header.buckets, Ordering::Relaxed);
        Ok((files, header))
    }

    /// Takes notice of what others have added.
    pub(crate) fn refresh(&self) {
        self.tried(|| self.header().map(drop));
    }

    /// Does something with the files. After an error the index is as good as empty.
    fn tried<T: Default>(&self, act: impl FnOnce() -> std::io::Result<T>) -> T {
        if self.failed.load(Ordering::Relaxed) {
            return T::default();
        }
        act().unwrap_or_else(|error| {
            if error.kind() != std::io::ErrorKind::WouldBlock {
                tracing::debug!(%error, "page-index-unusable");
                self.failed.store(true, Ordering::Relaxed);
            }
            T::default()
        })
    }

    /// Returns where a page of this hash may be.
    pub(crate) fn find(&self, hash: u64) -> Vec<Found> {
        self.tried(|| {
            let (files, buckets) = (self.files(), self.buckets.load(Ordering::Relaxed));
            let bucket = read_bucket(&files.table, bucket_of(hash, buckets))?;
            let matching = entries(&bucket)
                .filter(|entry| *entry != 0 && entry >> (DONOR_BITS + PAGE_BITS) == print_of(hash));
            let mut found = Vec::new();
            for entry in matching {
                let number = entry >> PAGE_BITS & ((1 << DONOR_BITS) - 1);
                if let Some(donor) = read_donor(&files.donors, number)? {
                    found.push(Found { donor, page: (entry & ((1 << PAGE_BITS) - 1)) as u16, entry });
                }
            }
            Ok(found)
        })
    }

    /// Removes an entry that leads to nothing any more.
    pub(crate) fn forget(&self, hash: u64, found: &Found) {
        self.tried(|| {
            let bucket = bucket_of(hash, self.buckets.load(Ordering::Relaxed));
            let table = &self.files().table;
            let bytes = read_bucket(table, bucket)?;
            match entries(&bytes).position(|entry| entry == found.entry) {
                Some(slot) => table.write_all_at(&[0; 8], bucket_at(bucket) + slot as u64 * 8),
                None => Ok(()),
            }
        });
    }

    /// Adds pages of a file: their hashes, and their numbers counted through the whole chunk. They take the place of what has
    /// the same hash, since what is newer is there for longer.
    pub(crate) fn add(&self, donor: &Donor, pages: &[(u64, u16)]) {
        if pages.is_empty() {
            return;
        }
        self.tried(|| self.locked(|files, header| self.add_locked(files, header, donor, pages)));
    }

    /// Does something while nobody else writes. Where others do, for long, it is left.
    fn locked(&self, act: impl FnOnce(&Files, Header) -> std::io::Result<()>) -> std::io::Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (files, _) = self.header()?;
        if !lock(&files.table)? {
            return Ok(());
        }
        // What was read before the lock may be old, and the table may have been replaced.
        let done = match (is_replaced(&files.table), Header::read(&files.table, TABLE_MAGIC)) {
            (Ok(false), Ok(Some(header))) if header.generation == files.generation => act(&files, header),
            (Ok(_), Ok(_)) => Ok(()),
            (Err(error), _) | (_, Err(error)) => Err(error),
        };
        files.table.unlock()?;
        done
    }

    fn add_locked(
        &self,
        files: &Files,
        mut header: Header,
        donor: &Donor,
        pages: &[(u64, u16)],
    ) -> std::io::Result<()> {
        let number = files.donors.metadata()?.len().div_ceil(DONOR_LEN);
        if number + 1 >= 1 << DONOR_BITS {
            return Ok(());
        }
        write_donor(&files.donors, number, donor)?;
        for (hash, page) in pages {
            let entry = entry_of(*hash, number, *page);
            header.entries += u64::from(put(&files.table, *hash, entry, header.buckets)?);
        }
        files.table.write_all_at(&header.write(TABLE_MAGIC), 0)?;
        if header.entries > header.buckets * LOAD_MAX && header.buckets < BUCKETS_MAX {
            self.grow(files, &header).inspect_err(|_| disk::remove_cached(&self.dir.join("table.new")))?;
        }
        Ok(())
    }

    /// Writes the table anew with a quarter more buckets.
    fn grow(&self, files: &Files, header: &Header) -> std::io::Result<()> {
        let table = open_file(&self.dir.join("table.new"))?;
        let buckets = (header.buckets * 5 / 4).min(BUCKETS_MAX);
        let entries = rewrite(&files.table, header.buckets, &table, buckets, &Some)?;
        table.write_all_at(&Header { buckets, entries, ..*header }.write(TABLE_MAGIC), 0)?;
        disk::rename_cached(&self.dir.join("table.new"), &self.dir.join("table"))?;
        self.replace(Files { table, donors: files.donors.try_clone()?, generation: files.generation });
        self.buckets.store(buckets, Ordering::Relaxed);
        Ok(())
    }

    /// Writes the index anew without files that are gone, if it has many of them.
    pub(crate) fn compact(&self, is_there: &dyn Fn(&FileName) -> bool) {
        self.tried(|| {
            self.locked(|files, header| {
                let done = self.compact_locked(files, &header, is_there);
                done.inspect_err(|_| {
                    disk::remove_cached(&self.dir.join("table.new"));
                    disk::remove_cached(&self.dir.join("donors.new"));
                })
            })
        });
    }

    fn compact_locked(
        &self,
        files: &Files,
        old: &Header,
        is_there: &dyn Fn(&FileName) -> bool,
    ) -> std::io::Result<()> {
        // Its number was looked at with the header.
        let count = files.donors.metadata()?.len().div_ceil(DONOR_LEN).min(1 << DONOR_BITS);
        let mut numbers = vec![0u32; count as usize];
        let mut kept = 0;
        for number in 1..count {
            if read_donor(&files.donors, number)?.is_some_and(|donor| is_there(&donor.file)) {
                kept += 1;
                numbers[number as usize] = kept;
            }
        }
        // A third may lead nowhere.
        if u64::from(kept) * 3 >= count.saturating_sub(1) * 2 {
            return Ok(());
        }
        let names = ["table.new", "donors.new"].map(|name| self.dir.join(name));
        let [table, donors] = [open_file(&names[0])?, open_file(&names[1])?];
        let made = make(&table, &donors)?;
        for (number, new) in (0..).zip(&numbers).filter(|(_, new)| **new != 0) {
            if let Some(donor) = read_donor(&files.donors, number)? {
                write_donor(&donors, u64::from(*new), &donor)?;
            }
        }
        let left = u128::from(old.entries) * u128::from(kept) / u128::from(count.max(1));
        let buckets = (left as u64 / (LOAD_MAX * 4 / 5)).clamp(BUCKETS_MIN, old.buckets);
        let renumber = |number: u64| {
            let new = numbers.get(number as usize).copied().unwrap_or(0);
            (new != 0).then_some(u64::from(new))
        };
        let entries = rewrite(&files.table, old.buckets, &table, buckets, &renumber)?;
        table.write_all_at(&Header { buckets, entries, ..made }.write(TABLE_MAGIC), 0)?;
        // Whoever opens one old and one new file waits for the lock, and looks again.
        disk::rename_cached(&names[1], &self.dir.join("donors"))?;
        disk::rename_cached(&names[0], &self.dir.join("table"))
    }
}

/// Writes all entries of a table into another one, with new numbers of their donors. Returns how many there are.
fn rewrite(
    from: &File,
    old: u64,
    to: &File,
    new: u64,
    renumber: &dyn Fn(u64) -> Option<u64>,
) -> std::io::Result<u64> {
    to.set_len(0)?;
    to.set_len(bucket_at(new))?;
    let mut open: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut count = 0;
    let mut flush = |bucket: u64, mut entries: Vec<u64>| {
        entries.truncate(BUCKET_ENTRIES as usize);
        count += entries.len() as u64;
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        to.write_all_at(&bytes, bucket_at(bucket))
    };
    for bucket in 0..old {
        let first = bucket_of((bucket << 32).div_ceil(old), new);
        while let Some(done) = open.first_entry().filter(|done| *done.key() < first) {
            let (bucket, entries) = done.remove_entry();
            flush(bucket, entries)?;
        }
        for entry in entries(&read_bucket(from, bucket)?).filter(|entry| *entry != 0) {
            let number = entry >> PAGE_BITS & ((1 << DONOR_BITS) - 1);
            let Some(number) = renumber(number) else { continue };
            let hash = hash_of(entry, bucket, old);
            let page = (entry & ((1 << PAGE_BITS) - 1)) as u16;
            open.entry(bucket_of(hash, new)).or_default().push(entry_of(hash, number, page));
        }
    }
    for (bucket, entries) in open {
        flush(bucket, entries)?;
    }
    Ok(count)
}

/// Makes both files empty.
fn make(table: &File, donors: &File) -> std::io::Result<Header> {
    let generation = disk::random_bytes().map_err(std::io::Error::other)?;
    let header = Header { generation, buckets: BUCKETS_MIN, entries: 0 };
    for (file, magic) in [(table, TABLE_MAGIC), (donors, DONORS_MAGIC)] {
        file.set_len(0)?;
        file.write_all_at(&header.write(magic), 0)?;
        if magic == TABLE_MAGIC {
            file.set_len(bucket_at(BUCKETS_MIN))?;
        }
    }
    Ok(header)
}

/// Reads a bucket; what lies behind the end of the file is empty.
fn read_bucket(table: &File, bucket: u64) -> std::io::Result<Bucket> {
    let mut bytes = [0; BUCKET_LEN];
    let mut length = 0;
    while length < BUCKET_LEN {
        match table.read_at(&mut bytes[length..], bucket_at(bucket) + length as u64)? {
            0 => break,
            read => length += read,
        }
    }
    Ok(bytes)
}

/// Puts an entry into its bucket: over one with the same hash, or over another one where it is full. Returns whether there is
/// one more.
fn put(table: &File, hash: u64, entry: u64, buckets: u64) -> std::io::Result<bool> {
    let bucket = bucket_of(hash, buckets);
    let bytes = read_bucket(table, bucket)?;
    let slot_of = |is_it: &dyn Fn(u64) -> bool| entries(&bytes).position(is_it).map(|slot| slot as u64);
    let same = slot_of(&|there| there != 0 && there >> (DONOR_BITS + PAGE_BITS) == print_of(hash));
    let free = if same.is_some() { None } else { slot_of(&|there| there == 0) };
    let slot = same.or(free).unwrap_or((hash >> 40) & (BUCKET_ENTRIES - 1));
    table.write_all_at(&entry.to_le_bytes(), bucket_at(bucket) + slot * 8)?;
    Ok(free.is_some())
}

fn read_donor(donors: &File, number: u64) -> std::io::Result<Option<Donor>> {
    let mut bytes = [0; DONOR_LEN as usize];
    if number == 0 || donors.read_exact_at(&mut bytes, number * DONOR_LEN).is_err() {
        return Ok(None);
    }
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
    let id = ChunkId::from_bytes(std::array::from_fn(|at| bytes[4 + at]));
    let (offset, len) = (word(36), word(40));
    Ok(match word(0) {
        1 if (offset, len) == (0, 0) => Some(Donor::chunk(FileName::chunk(id))),
        2 if len > 0 => Some(Donor { file: FileName::group(id), offset, len }),
        _ => None,
    })
}

fn write_donor(donors: &File, number: u64, donor: &Donor) -> std::io::Result<()> {
    let mut bytes = [0; DONOR_LEN as usize];
    bytes[0] = if donor.file.kind == FileKind::Chunk { 1 } else { 2 };
    bytes[4..36].copy_from_slice(donor.file.id.as_bytes());
    bytes[36..40].copy_from_slice(&donor.offset.to_le_bytes());
    bytes[40..].copy_from_slice(&donor.len.to_le_bytes());
    donors.write_all_at(&bytes, number * DONOR_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn donor(seed: u64) -> Donor {
        Donor::chunk(FileName::chunk(ChunkId::of(&seed.to_le_bytes())))
    }

    /// A hash of a page that is in the index.
    fn hash(seed: u64) -> u64 {
        XxHash3_64::oneshot(&seed.to_le_bytes()) >> 5
    }

    fn found(index: &PageIndex, hash: u64) -> Vec<(Donor, u16)> {
        index.find(hash).iter().map(|found| (found.donor, found.page)).collect()
    }

    #[test]
    fn what_was_added_is_found_by_all_while_the_table_grows() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = [PageIndex::open(dir.path()).unwrap(), PageIndex::open(dir.path()).unwrap()];
        for seed in 0..4000u64 {
            let pages: Vec<_> = (0..30).map(|page| (hash(seed * 30 + page), page as u16)).collect();
            [&one, &other][seed as usize % 2].add(&donor(seed), &pages);
        }
        assert!(one.buckets.load(Ordering::Relaxed) > 3 * BUCKETS_MIN);
        other.refresh();
        let again = PageIndex::open(dir.path()).unwrap();
        let mut lost = 0;
        for number in 0..120_000u64 {
            let expected = (donor(number / 30), (number % 30) as u16);
            for index in [&other, &again] {
                lost += u32::from(!found(index, hash(number)).contains(&expected));
            }
        }
        // Of two with the same bits the first one stays, and a bucket may be full.
        assert!(lost < 400, "{lost}");
        let size: u64 = disk::list(&dir.path().join(DIR))
            .unwrap()
            .iter()
            .map(|file| file.metadata().unwrap().len())
            .sum();
        assert!(size < 120_000 * 8 * 3 / 2 + 4000 * DONOR_LEN + (64 << 12), "{size}");
    }

    #[test]
    fn many_threads_add_while_the_table_grows() {
        let dir = tempfile::tempdir().unwrap();
        let index = PageIndex::open(dir.path()).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let index = &index;
                scope.spawn(move || {
                    for seed in (thread..2400).step_by(4) {
                        let pages: Vec<_> =
                            (0..30).map(|page| (hash(seed * 30 + page), page as u16)).collect();
                        index.add(&donor(seed), &pages);
                    }
                });
            }
        });
        assert!(!index.failed.load(Ordering::Relaxed));
        assert!(index.buckets.load(Ordering::Relaxed) > 2 * BUCKETS_MIN);
        let is_there =
            |number: &u64| found(&index, hash(*number)).contains(&(donor(number / 30), (number % 30) as u16));
        let there = (0..72_000).filter(is_there).count();
        assert!(there > 71_700, "{there}");
    }

    #[test]
    fn a_page_is_there_once_and_can_be_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let index = PageIndex::open(dir.path()).unwrap();
        index.add(&donor(1), &[(hash(1), 7)]);
        index.add(&donor(2), &[(hash(1), 9), (hash(2), 1023)]);
        assert_eq!(found(&index, hash(1)), [(donor(2), 9)], "the newer one");
        assert_eq!(found(&index, hash(2)), [(donor(2), 1023)]);
        index.forget(hash(1), &index.find(hash(1))[0]);
        assert!(index.find(hash(1)).is_empty());
        assert_eq!(found(&index, hash(2)).len(), 1);
    }

    #[test]
    fn files_that_are_gone_leave_a_smaller_index() {
        let dir = tempfile::tempdir().unwrap();
        let index = PageIndex::open(dir.path()).unwrap();
        for seed in 0..2000u64 {
            let pages: Vec<_> = (0..30).map(|page| (hash(seed * 30 + page), page as u16)).collect();
            index.add(&donor(seed), &pages);
        }
        let kept: Vec<FileName> = (0..2000).step_by(4).map(|seed| donor(seed).file).collect();
        index.compact(&|_| true);
        assert_eq!(found(&index, hash(31)).len(), 1, "nothing is gone");
        index.compact(&|file| kept.contains(file));
        assert!(index.find(hash(0)).len() <= 1, "who has it open finds what it was");
        index.refresh();
        assert_eq!(found(&index, hash(4 * 30 + 3)), [(donor(4), 3)], "or what it is");
        let new = PageIndex::open(dir.path()).unwrap();
        assert_eq!(found(&new, hash(4 * 30 + 3)), [(donor(4), 3)]);
        assert!(new.find(hash(31)).is_empty());
        assert!(new.files().donors.metadata().unwrap().len() < 600 * DONOR_LEN);
    }

    #[test]
    fn whatever_the_files_are_the_index_begins_anew_or_finds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let index = PageIndex::open(dir.path()).unwrap();
        index.add(&donor(1), &[(hash(1), 7)]);
        let good = std::fs::read(dir.path().join(DIR).join("table")).unwrap();
        for name in ["table", "donors"] {
            let path = dir.path().join(DIR).join(name);
            for bytes in [vec![], vec![0; 30], vec![0xff; 9000], good.clone(), good[..100].to_vec()] {
                let before = std::fs::read(&path).unwrap();
                std::fs::write(&path, bytes).unwrap();
                let index = PageIndex::open(dir.path()).unwrap();
                assert!(index.find(hash(1)).len() <= 1);
                index.add(&donor(2), &[(hash(5), 1)]);
                assert!(index.find(hash(5)).len() <= 1);
                index.compact(&|_| false);
                std::fs::write(&path, before).unwrap();
            }
        }
        // Numbers that cannot be: of buckets, of entries.
        let path = dir.path().join(DIR).join("table");
        for (at, value) in [(28, u64::MAX), (28, 1 << 30), (36, u64::MAX), (36, 1 << 40)] {
            std::fs::write(&path, &good).unwrap();
            let mut bytes = good.clone();
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            std::fs::write(&path, bytes).unwrap();
            let index = PageIndex::open(dir.path()).unwrap();
            index.add(&donor(3), &[(hash(9), 1)]);
            assert_eq!(found(&index, hash(9)), [(donor(3), 1)], "it begins anew");
            index.compact(&|_| false);
        }
        // A link is not followed.
        let other = dir.path().join("other");
        std::fs::write(&other, b"somebody's").unwrap();
        disk::remove(&path).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert!(PageIndex::open(dir.path()).is_none());
        assert_eq!(std::fs::read(&other).unwrap(), b"somebody's");
        std::fs::remove_dir_all(dir.path().join(DIR)).unwrap();
        std::fs::write(dir.path().join(DIR), b"a file").unwrap();
        assert!(PageIndex::open(dir.path()).is_none());
    }
}
