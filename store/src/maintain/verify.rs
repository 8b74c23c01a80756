//! Reads back what revisions refer to and says which of them are whole. Sets their trust; deletes nothing.
//!
//! Each distinct chunk is read once, however many of the revisions use it, and every place where a bad one is
//! used is told. A revision with damage is distrusted, and so is every other revision of the store that
//! shares the bad chunk.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::error::{Error, Result};
use crate::format::layout::{chunk_len, frame_count, frame_len};
use crate::format::map::{Entry, PAGE_ENTRIES};
use crate::format::name::{FileName, Place};
use crate::format::{CHUNK_SIZE, ChunkId, FRAME_SIZE};
use crate::legacy::chunk::OldChunks;
use crate::maintain::damage::{self, Difference};
use crate::monitor::{Finding, Monitor};
use crate::name::JobName;
use crate::read::chunk::Scratch;
use crate::read::image::{Image, Page};
use crate::repository::job::Job;
use crate::revision::{Revision, RevisionId, Trust};
use crate::timestamp::Timestamp;
use crate::write::copies::add_missing;
use crate::write::pages::PageIndex;

/// What a verification found.
#[derive(Debug, Default)]
pub struct VerifyReport {
    /// Read completely and good: now `verified`.
    pub good: Vec<RevisionId>,
    /// Damaged: now `distrusted`.
    pub bad: Vec<RevisionId>,
    /// Forgotten and purged since they were listed.
    pub gone: Vec<RevisionId>,
    /// Why what was found could not be recorded, or not all of it: nothing can be written in the store.
    pub not_recorded: Option<Error>,
    /// All revisions, of other jobs as well, that were distrusted because they use a damaged chunk.
    pub distrusted: Vec<(JobName, RevisionId)>,
    /// Distinct chunks read.
    pub chunks: u64,
    /// Bytes of images in them.
    pub bytes: u64,
}

/// What is wrong with one chunk.
#[derive(Clone, Default)]
struct Badness {
    /// The bad frames and their problems; all frames where none can be read.
    frames: BTreeMap<usize, String>,
    /// What is damaged: the chunk, its base, or a group.
    damaged: BTreeSet<ChunkId>,
}

/// The place of a chunk, and the length that the chunk is expected to have.
type Expected = (Place, u32);

/// What tells places apart: the chunk, its length, and where its recipe is.
type Key = (ChunkId, u32, Option<(ChunkId, u32)>);

fn key((place, length): &Expected) -> Key {
    (place.id, *length, place.recipe.as_ref().map(|recipe| (recipe.group, recipe.offset)))
}

struct Verifier<'v> {
    job: &'v Job,
    /// Chunks read so far, with the length they were expected to have.
    seen: HashSet<Key>,
    bad: HashMap<Expected, Badness>,
    threads: usize,
    monitor: &'v dyn Monitor,
    /// Gets the pages of what is read, if it has lost them.
    pages: Option<PageIndex>,
    chunks: u64,
    bytes: AtomicU64,
    now: Timestamp,
}

/// Reads every chunk of the revisions and sets their trust. Damage goes to the monitor and into the quarantine.
pub fn verify(
    job: &Job,
    revisions: &[Revision],
    threads: usize,
    now: Timestamp,
    monitor: &dyn Monitor,
) -> Result<VerifyReport> {
    let mut verifier = Verifier {
        job,
        seen: HashSet::new(),
        bad: HashMap::new(),
        threads: threads.max(1),
        monitor,
        pages: if job.repository().is_original() { None } else { PageIndex::open(job.repository().root()) },
        chunks: 0,
        bytes: AtomicU64::new(0),
        now,
    };
    let sizes = revisions.iter().filter_map(|revision| revision.image_size);
    let total = sizes.fold(0, u64::saturating_add);
    monitor.begin("verifying", Some(total));
    let mut report = VerifyReport::default();
    let mut stopped = Ok(());
    for revision in revisions {
        match verifier.revision(revision) {
            Ok(true) => report.good.push(revision.id.clone()),
            Ok(false) => report.bad.push(revision.id.clone()),
            Err(Error::RevisionUnknown { .. } | Error::RevisionPurged { .. }) => {
                report.gone.push(revision.id.clone());
            }
            Err(error) => {
                stopped = Err(error);
                break;
            }
        }
    }
    monitor.end();
    (report.chunks, report.bytes) = (verifier.chunks, verifier.bytes.load(Ordering::Relaxed));
    // What was found is recorded even when the run was stopped. That it cannot be hides nothing of what was found.
    match verifier.record(&mut report) {
        Err(error) if error.is_unwritable() => report.not_recorded = Some(error),
        other => other?,
    }
    stopped.map(|()| report)
}

impl Verifier<'_> {
    /// Whether a revision is whole.
    fn revision(&mut self, revision: &Revision) -> Result<bool> {
        let image = match Image::open(self.job, revision) {
            Ok(image) => image,
            Err(error) if error.is_damage() => {
                self.finding(revision, None, None, error.to_string());
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let mut whole = true;
        for page in 0..image.page_count() {
            match image.page(page) {
                Ok(Page { entries, damage }) => {
                    // No place of the image is lost by it, but no purge knows any more what it named.
                    if let Some(error) = damage {
                        self.finding(revision, None, None, error.to_string());
                        whole = false;
                    }
                    whole &= self.page(revision, &image, page, &entries)?;
                }
                Err(error) if error.is_damage() => {
                    self.finding(revision, Some(image.page_range(page)), None, error.to_string());
                    whole = false;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(whole)
    }

    fn page(&mut self, revision: &Revision, image: &Image, page: u64, entries: &[Entry]) -> Result<bool> {
        let places: Vec<(u64, Expected)> = (page * PAGE_ENTRIES..)
            .zip(entries)
            .filter_map(|(number, place)| {
                Some((number, (place.clone()?, chunk_len(image.size_bytes(), number) as u32)))
            })
            .collect();
        let mut unread = Vec::new();
        for (number, chunk) in &places {
            if self.seen.insert(key(chunk)) {
                unread.push((*number, chunk.clone()));
            }
        }
        self.read(image, &unread)?;
        let counted: u64 = unread.iter().map(|(_, (_, length))| u64::from(*length)).sum();
        self.monitor.advance(image.page_range(page).1.saturating_sub(counted));
        let mut whole = true;
        for (number, chunk) in places {
            let Some(badness) = self.bad.get(&chunk).cloned() else { continue };
            whole = false;
            let frames = badness.frames.into_iter().map(|(frame, problem)| {
                let length = frame_len(chunk.1 as usize, frame) as u64;
                (number * CHUNK_SIZE + frame as u64 * FRAME_SIZE, length, problem)
            });
            for (offset, length, problem) in damage::merged(frames) {
                self.finding(revision, Some((offset, length)), Some(chunk.0.id), problem);
            }
        }
        Ok(whole)
    }

    /// Reads chunks on all threads and notes the bad ones.
    fn read(&mut self, image: &Image, chunks: &[(u64, Expected)]) -> Result<()> {
        let next = AtomicUsize::new(0);
        let bad = Mutex::new(Vec::new());
        let (monitor, bytes, pages) = (self.monitor, &self.bytes, self.pages.as_ref());
        if let Some(pages) = pages {
            pages.refresh();
        }
        let work = || -> Result<()> {
            let mut scratch = Scratch::new();
            while let Some((number, chunk)) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
                if monitor.cancelled() {
                    return Err(Error::Cancelled);
                }
                if let Some(badness) = check(image, *number, chunk, pages, &mut scratch)? {
                    bad.lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .push((chunk.clone(), badness));
                }
                bytes.fetch_add(u64::from(chunk.1), Ordering::Relaxed);
                monitor.advance(u64::from(chunk.1));
            }
            Ok(())
        };
        let result = crate::threads::run(self.threads.min(chunks.len()), work);
        self.chunks += chunks.len() as u64;
        self.bad.extend(bad.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner));
        result
    }

    fn finding(
        &self,
        revision: &Revision,
        range: Option<(u64, u64)>,
        chunk: Option<ChunkId>,
        problem: String,
    ) {
        let (job, revision) = (self.job.name().clone(), Some(revision.id.clone()));
        self.monitor.finding(&Finding { job, revision, range, chunk, problem });
    }

    fn record(&self, report: &mut VerifyReport) -> Result<()> {
        // A directory of the original that is not a store of ours is only looked at.
        if self.job.repository().is_original() {
            return Ok(());
        }
        let chunks: BTreeSet<ChunkId> =
            self.bad.values().flat_map(|badness| badness.damaged.iter().copied()).collect();
        let chunks: Vec<ChunkId> = chunks.into_iter().collect();
        // What keeps people from using damaged data comes first, what only explains it last.
        let marked = damage::record(self.job, &chunks, self.monitor);
        let marked = marked.map(|distrusted| report.distrusted = distrusted);
        let trusted = self.set_trust(report);
        marked.and(trusted).and_then(|()| self.quarantine(report))
    }

    fn quarantine(&self, report: &VerifyReport) -> Result<()> {
        for ((place, _), badness) in &self.bad {
            // A run that was stopped knows the chunk, but no revision as a whole.
            let Some(first) = report.bad.first() else { break };
            let bytes = read_file(self.job, place, &badness.damaged);
            let difference = Difference {
                revision: first,
                offset: 0,
                source: None,
                stored: bytes.as_deref(),
                problem: &format!(
                    "chunk {}: {}",
                    place.id,
                    badness.frames.values().next().map_or("", String::as_str)
                ),
            };
            damage::quarantine(self.job, &difference, self.now)?;
        }
        Ok(())
    }

    fn set_trust(&self, report: &mut VerifyReport) -> Result<()> {
        let guard = self.job.lock_manifests()?;
        for (ids, trust) in [(&report.bad, Trust::Distrusted), (&report.good, Trust::Verified)] {
            for id in ids {
                let before = match self.job.revision(id) {
                    // Forgotten while it was read: nothing to set.
                    Err(Error::RevisionUnknown { .. }) => continue,
                    other => other?.trust,
                };
                match trust {
                    Trust::Verified if before != trust => self.job.set_verified(&guard, id)?,
                    Trust::Verified => {}
                    _ => self.job.set_trust(&guard, id, trust)?,
                }
                if trust == Trust::Distrusted && before != trust {
                    report.distrusted.push((self.job.name().clone(), id.clone()));
                }
            }
        }
        Ok(())
    }
}

/// Returns the file of a damaged chunk as it is, for the quarantine: the base or group where that is what is damaged.
fn read_file(job: &Job, place: &Place, damaged: &BTreeSet<ChunkId>) -> Option<Vec<u8>> {
    if place.id.original().is_some() {
        let mut bytes = Vec::new();
        return OldChunks::open(job.dir()).ok()?.read_file(&place.id, &mut bytes).ok().map(|_| bytes);
    }
    let backend = job.repository().backend().ok()?;
    // The file that is damaged; as it is read, the full chunk comes first.
    let full = FileName::chunk(place.id);
    let names = std::iter::once(full).chain(place.files());
    let file =
        names.filter(|name| damaged.contains(&name.id)).find_map(|name| backend.open(&name).ok()?)?;
    let mut bytes = vec![0; file.len().min(CHUNK_SIZE + 4096) as usize];
    let length = file.read_at(&mut bytes, 0).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

/// Reads the chunk at one place; `None` when it is good.
fn check(
    image: &Image,
    number: u64,
    (place, length): &Expected,
    pages: Option<&PageIndex>,
    scratch: &mut Scratch,
) -> Result<Option<Badness>> {
    let mut badness = Badness::default();
    let mut add = |frame: usize, error: &Error| {
        badness.frames.insert(frame, error.to_string());
        let files = error.damaged_files();
        badness.damaged.extend(if files.is_empty() { vec![place.id] } else { files });
    };
    match image.read(number, place, scratch) {
        Err(error) if error.is_damage() => {
            (0..frame_count(*length as usize)).for_each(|frame| add(frame, &error));
        }
        other => {
            let plain = other?;
            plain.bad.iter().for_each(|(frame, error)| add(*frame, error));
            if let Some(pages) = pages
                .filter(|_| plain.bad.is_empty() && place.recipe.is_none() && place.id.original().is_none())
            {
                add_missing(pages, &place.id, plain.data);
            }
        }
    }
    Ok((!badness.frames.is_empty()).then_some(badness))
}
