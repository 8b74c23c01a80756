//! Finds pages of a new chunk that the store has somewhere else, at whatever offset.
//!
//! The page index tells where a page may be. What it tells of is used as any chunk that is found in the store: its id is
//! logged first, then the file is looked for, and it must be beyond doubt. Then pages are compared byte by byte, in both
//! directions, as far as they are the same.

use std::collections::HashMap;

use super::Put;
use super::chunks::ChunkWriter;
use crate::error::Result;
use crate::format::id::ChunkId;
use crate::format::name::{FILES_MAX, FileKind, FileName};
use crate::format::recipe::Recipe;
use crate::format::run::{CHUNK_PAGES, Donor, PAGE_LEN, PAGES, PageCopy};
use crate::format::{CHUNK_LEN, FRAME_LEN, FRAMES_MAX, is_zero};
use crate::read::copied;
use crate::read::files::Files;
use crate::read::full::FrameScratch;
use crate::write::pages::{self, PageIndex};

/// From fewer pages nothing is copied: a file would be kept and opened for little.
const COPIED_MIN: usize = 8;

/// The most files that a new run has copies from.
const FILES_OF_RUN_MAX: usize = 10;

/// A new chunk is made of copies if they are at least this part of it. The first one at its place is more likely to stay as it
/// is, and what it copies from to be needed by others as well.
const PART: usize = 2;
const FIRST_PART: usize = 8;

/// Runs with fewer pages are not put into the index.
const INDEXED_MIN: u32 = 32;

/// Files whose use was decided are remembered up to this number.
const DECIDED_MAX: usize = 4096;

/// What a new run is going to have.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Of each frame the pages whose bytes it stores.
    pub(super) literal: [u16; FRAMES_MAX],
    /// Of each frame the pages that it copies, in ascending order.
    pub(super) copies: Vec<Vec<PageCopy>>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { literal: [0; FRAMES_MAX], copies: vec![Vec::new(); FRAMES_MAX] }
    }
}

impl Plan {
    /// All pages of each frame.
    pub(super) fn all_pages(&self) -> [u16; FRAMES_MAX] {
        let mut all = self.literal;
        for (all, copies) in all.iter_mut().zip(&self.copies) {
            *all |= copies.iter().fold(0, |pages, copy| pages | copy.pages());
        }
        all
    }

    /// Adds those pages of a copy in a frame that are in `wanted`.
    pub(super) fn add_copy(&mut self, frame: usize, copy: &PageCopy, wanted: u16) {
        let mut step = 0;
        while step < copy.count {
            let is_wanted = |step: u8| wanted >> (copy.to + step) & 1 != 0;
            let count = (step..copy.count).take_while(|step| is_wanted(*step)).count() as u8;
            if count > 0 {
                let (from, to) = (copy.from + u16::from(step), copy.to + step);
                self.copies[frame].push(PageCopy { donor: copy.donor, from, to, count });
            }
            step += count.max(1);
        }
        self.copies[frame].sort_unstable_by_key(|copy| copy.to);
    }

    /// Whether it has no page.
    pub(super) fn is_empty(&self) -> bool {
        self.all_pages().iter().all(|pages| *pages == 0)
    }

    fn is_literal(&self, page: usize) -> bool {
        self.literal[page / PAGES] >> (page % PAGES) & 1 != 0
    }

    /// Copies pages that were going to be stored.
    fn copy(&mut self, found: &Match) {
        let mut at = 0;
        while at < found.count {
            let (page, from) = (found.to + at, found.from + at);
            let (frame, to) = (page / PAGES, page % PAGES);
            let count = (PAGES - to).min(found.count - at);
            let copy = PageCopy { donor: found.donor, from: from as u16, to: to as u8, count: count as u8 };
            self.literal[frame] &= !copy.pages();
            self.add_copy(frame, &copy, u16::MAX);
            at += count;
        }
    }

    fn literal_count(&self) -> usize {
        self.literal.iter().map(|pages| pages.count_ones() as usize).sum()
    }
}

/// Pages of the new chunk that are somewhere else, as many one behind the other as are the same.
#[derive(Clone, Copy, Debug)]
struct Match {
    donor: Donor,
    from: usize,
    to: usize,
    count: usize,
}

/// What a thread knows of donors that the index has told of: whether they may be used.
pub(super) type Decided = HashMap<Donor, bool>;

impl ChunkWriter<'_> {
    /// Copies pages of `plan` that are elsewhere, from at most `files` files.
    pub(super) fn find_copies(
        &mut self,
        id: &ChunkId,
        data: &[u8],
        plan: &mut Plan,
        files: usize,
    ) -> Result<()> {
        let writer = self.writer;
        let Some(index) = writer.pages.as_ref().filter(|_| data.len() == CHUNK_LEN) else { return Ok(()) };
        let files = if writer.new.with_others { files } else { 0 };
        if files == 0 || plan.literal_count() < COPIED_MIN {
            return Ok(());
        }
        index.refresh();
        let mut found: Vec<Match> = Vec::new();
        // What is found is taken out, so that nothing is looked for twice.
        let mut open = plan.clone();
        for page in 0..CHUNK_PAGES {
            if !open.is_literal(page) {
                continue;
            }
            let Some(hash) = pages::sampled(&data[page * PAGE_LEN..][..PAGE_LEN]) else { continue };
            // Another thread or machine may have stored the same chunk meanwhile.
            let candidates = index.find(hash).into_iter();
            for candidate in candidates.filter(|found| found.donor.file != FileName::chunk(*id)) {
                if !self.may_copy(&candidate.donor)? {
                    // A group may be one that is being written.
                    let is_chunk = candidate.donor.file.kind == FileKind::Chunk;
                    if is_chunk && matches!(self.writer.backend.len(&candidate.donor.file), Ok(None)) {
                        index.forget(hash, &candidate);
                    }
                    continue;
                }
                let same = extend(
                    &self.writer.backend,
                    self.scratch.frames(),
                    (&candidate.donor, usize::from(candidate.page)),
                    (data, page),
                    &open,
                );
                if let Some(same) = same {
                    open.copy(&same);
                    found.push(same);
                    break;
                }
            }
        }
        for file in worth_it(&found, files.min(FILES_OF_RUN_MAX)) {
            found.iter().filter(|found| found.donor.file == file).for_each(|found| plan.copy(found));
        }
        Ok(())
    }

    /// Whether pages may be copied from a donor: it is beyond doubt, and from now on no purge deletes it.
    fn may_copy(&mut self, donor: &Donor) -> Result<bool> {
        if let Some(decided) = self.decided.get(donor) {
            return Ok(*decided);
        }
        let id = &donor.file.id;
        // Known to every purge before it is looked for. An open file is no proof that it is still there.
        self.refer(id)?;
        // Whatever is wrong with it, it is not needed.
        let is_there = matches!(self.writer.backend.len(&donor.file), Ok(Some(_)));
        let mut may = is_there && !self.is_in_doubt(id);
        if may && donor.file.kind == FileKind::Group {
            // Its frames have no values that could prove them one by one.
            may = copied::is_intact(&self.writer.backend, donor).is_ok();
        }
        if self.decided.len() >= DECIDED_MAX {
            self.decided.clear();
        }
        self.decided.insert(*donor, may);
        Ok(may)
    }

    /// Stores a chunk that has little in common with what was at its place as copies of what is elsewhere, and the rest as
    /// bytes. `None` where little of it is elsewhere.
    pub(super) fn store_copied(
        &mut self,
        number: u64,
        id: &ChunkId,
        data: &[u8],
        is_first: bool,
    ) -> Result<Option<Put>> {
        if data.len() != CHUNK_LEN || !self.may_be_made(id) {
            return Ok(None);
        }
        let mut plan = Plan::default();
        for (literal, frame) in plan.literal.iter_mut().zip(data.chunks(FRAME_LEN)) {
            let pages = frame.chunks(PAGE_LEN).enumerate();
            let with_data = pages.filter(|(_, page)| !is_zero(page));
            *literal = with_data.fold(0, |bits, (page, _)| bits | 1 << page);
        }
        let all = plan.literal_count();
        self.find_copies(id, data, &mut plan, FILES_MAX - 1)?;
        let part = if is_first { FIRST_PART } else { PART };
        if (all - plan.literal_count()) * part < all {
            return Ok(None);
        }
        let recipe = self.encode_copied(id, data, &plan)?;
        self.add_run(number, id, recipe, (data, 0)).map(Some)
    }

    fn encode_copied(&mut self, id: &ChunkId, data: &[u8], plan: &Plan) -> Result<Recipe> {
        self.encode_pages(id, data, None, None, plan)?;
        let values = self.digest.values.to_vec();
        Ok(Recipe { plain_len: data.len(), values, base: None, runs: Vec::new(), donors: Vec::new() })
    }

    /// Puts what was stored of a chunk in full into the index.
    pub(super) fn index_chunk(&self, id: &ChunkId, data: &[u8], absent: u64) {
        let Some(index) = self.writer.pages.as_ref().filter(|_| data.len() == CHUNK_LEN) else { return };
        let pages = (0..CHUNK_PAGES).filter(|page| absent >> (page / PAGES) & 1 == 0);
        index.add(&Donor::chunk(FileName::chunk(*id)), &hashes(data, pages));
    }

    /// Puts what was stored in a run into the index.
    pub(super) fn index_run(&self, donor: &Donor, data: &[u8], absent: u64) {
        let Some(index) = self.writer.pages.as_ref().filter(|_| data.len() == CHUNK_LEN) else { return };
        let literal = || self.run.literal_pages().filter(|(frame, _)| absent >> frame & 1 == 0);
        if literal().map(|(_, pages)| pages.count_ones()).sum::<u32>() < INDEXED_MIN {
            return;
        }
        let pages = literal().flat_map(|(frame, pages)| {
            (0..PAGES).filter(move |page| pages >> page & 1 != 0).map(move |page| frame * PAGES + page)
        });
        index.add(donor, &hashes(data, pages));
    }
}

/// Puts a chunk that was read into the index, if it is not there: where an index was lost it fills again.
pub(crate) fn add_missing(index: &PageIndex, id: &ChunkId, data: &[u8]) {
    if data.len() != CHUNK_LEN {
        return;
    }
    let (donor, pages) = (Donor::chunk(FileName::chunk(*id)), hashes(data, 0..CHUNK_PAGES));
    // Some may be found in other files that have the same pages.
    let is_found = |(hash, _): &(u64, u16)| index.find(*hash).iter().any(|found| found.donor == donor);
    let is_known = |(hash, _): &(u64, u16)| !index.find(*hash).is_empty();
    if !pages.iter().any(is_found) && !pages.iter().all(is_known) {
        index.add(&donor, &pages);
    }
}

fn hashes(data: &[u8], pages: impl Iterator<Item = usize>) -> Vec<(u64, u16)> {
    let hash = |page: usize| {
        let bytes = &data[page * PAGE_LEN..][..PAGE_LEN];
        // Zeros are holes, and stored nowhere.
        pages::sampled(bytes).filter(|_| !is_zero(bytes)).map(|hash| (hash, page as u16))
    };
    pages.filter_map(hash).collect()
}

/// Compares pages in both directions from one that may be the same; `None` where that is not the same either.
fn extend(
    files: &Files,
    scratch: &mut FrameScratch,
    (donor, from): (&Donor, usize),
    (data, to): (&[u8], usize),
    open: &Plan,
) -> Option<Match> {
    let mut is_same = |from: usize, to: usize| {
        // What cannot be read is not the same.
        open.is_literal(to)
            && matches!(copied::page(files, donor, from, scratch), Ok(Some(page)) if *page == data[to * PAGE_LEN..][..PAGE_LEN])
    };
    if !is_same(from, to) {
        return None;
    }
    let (mut before, mut after) = (0, 1);
    while before < from.min(to) && is_same(from - before - 1, to - before - 1) {
        before += 1;
    }
    while from.max(to) + after < CHUNK_PAGES && is_same(from + after, to + after) {
        after += 1;
    }
    Some(Match { donor: *donor, from: from - before, to: to - before, count: before + after })
}

/// Returns the files that give the most, `files` at most, without those that give little.
fn worth_it(found: &[Match], files: usize) -> Vec<FileName> {
    let mut pages: HashMap<FileName, usize> = HashMap::new();
    for found in found {
        *pages.entry(found.donor.file).or_default() += found.count;
    }
    let mut pages: Vec<_> = pages.into_iter().filter(|(_, pages)| *pages >= COPIED_MIN).collect();
    pages.sort_unstable_by_key(|(file, pages)| (std::cmp::Reverse(*pages), *file));
    pages.into_iter().take(files).map(|(file, _)| file).collect()
}
