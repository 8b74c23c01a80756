//! Where each block of a disk is to be read from, two bits a block: plain data, no I/O.
//!
//! Kept in pages of 4 KiB. One whose blocks are all alike takes no memory of its own, so that a discard of the whole
//! disk does not either. A page that is shared with a copy is never changed, but replaced. A block never becomes
//! `Base` again.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a disk that have one state; the disk's last block may be shorter.
pub(crate) const BLOCK_BYTES: u64 = 4096;

/// Bytes of a page of states, the unit in which they are kept and synced.
pub(crate) const PAGE_BYTES: usize = 4096;

/// Blocks in a page: 64 MiB of the disk.
const PAGE_BLOCKS: u64 = PAGE_BYTES as u64 * 4;

/// Blocks that are changed at once: 4 GiB of the disk.
pub(crate) const BATCH_BLOCKS: u64 = 64 * PAGE_BLOCKS;

/// The low bit of each of the four states in a byte.
const LOW_BITS: u8 = 0b0101_0101;

/// The states of the blocks of one page.
pub(crate) type Page = [u8; PAGE_BYTES];

/// Where a block is to be read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// From the revision.
    Base = 0b00,
    /// From the overlay's data.
    Data = 0b01,
    /// From nowhere: it is zeros.
    Zero = 0b10,
}

impl State {
    fn of(bits: u8) -> Self {
        match bits & 0b11 {
            0b00 => Self::Base,
            0b01 => Self::Data,
            _ => Self::Zero,
        }
    }

    /// Four blocks of this state.
    fn four(self) -> u8 {
        self as u8 * LOW_BITS
    }
}

/// What a page holds. There is one way only to say it: alike blocks are always `All`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    All(State),
    Mixed(Arc<Page>),
}

/// A copy of one page, to be written to a file.
#[derive(Clone, Debug)]
pub(crate) struct Sheet {
    pub(crate) number: usize,
    content: Content,
    /// Blocks of the disk in this page: fewer in the last one.
    blocks: u64,
}

impl Sheet {
    /// Adds the bytes of the page to a buffer.
    pub(crate) fn append_to(&self, buffer: &mut Vec<u8>) {
        match &self.content {
            Content::All(state) => {
                let mut page = [0; PAGE_BYTES];
                fill(&mut page, 0..self.blocks, *state);
                buffer.extend_from_slice(&page);
            }
            Content::Mixed(page) => buffer.extend_from_slice(&page[..]),
        }
    }
}

/// The states of all blocks of a disk.
#[derive(Debug)]
pub(crate) struct States {
    blocks: u64,
    pages: Vec<Content>,
    data_blocks: u64,
}

impl States {
    /// Makes the states of a disk of `size_bytes` of which nothing was written.
    pub(crate) fn new(size_bytes: u64) -> Self {
        let blocks = size_bytes.div_ceil(BLOCK_BYTES);
        Self { blocks, pages: vec![Content::All(State::Base); page_count(size_bytes)], data_blocks: 0 }
    }

    /// Makes the states of a disk of `size_bytes` from those pages that may not be all `Base`. `None` if they make no
    /// sense: an unknown state, or a block behind the end of the disk.
    pub(crate) fn load<E>(
        size_bytes: u64,
        pages: impl Iterator<Item = Result<(usize, Page), E>>,
    ) -> Result<Option<Self>, E> {
        let mut states = Self::new(size_bytes);
        for page in pages {
            let (number, page) = page?;
            let unknown = page.iter().any(|byte| byte & byte >> 1 & LOW_BITS != 0);
            let (mut behind, end) = (page, states.blocks_in(number));
            fill(&mut behind, 0..end, State::Base);
            if unknown || behind.iter().any(|&byte| byte != 0) {
                return Ok(None);
            }
            states.put(number, page);
        }
        Ok(Some(states))
    }

    /// Blocks that are kept as data.
    pub(crate) fn data_blocks(&self) -> u64 {
        self.data_blocks
    }

    /// Returns the state of a block and where, up to `limit`, blocks of another state begin. Pages whose blocks are
    /// alike are one step.
    pub(crate) fn run(&self, block: u64, limit: u64) -> (State, u64) {
        let state = self.get(block);
        let mut at = block + 1;
        while at < limit {
            let inside = at % PAGE_BLOCKS;
            match &self.pages[(at / PAGE_BLOCKS) as usize] {
                Content::All(all) if *all == state => at += PAGE_BLOCKS - inside,
                Content::All(_) => break,
                Content::Mixed(page) => {
                    let bytes = &page[inside as usize / 4..];
                    if inside.is_multiple_of(4) && bytes.starts_with(&[state.four(); 16]) {
                        at += 64;
                    } else if self.get(at) == state {
                        at += 1;
                    } else {
                        break;
                    }
                }
            }
        }
        (state, at.min(limit))
    }

    /// Returns the state of a block.
    pub(crate) fn get(&self, block: u64) -> State {
        let inside = block % PAGE_BLOCKS;
        match &self.pages[(block / PAGE_BLOCKS) as usize] {
            Content::All(state) => *state,
            Content::Mixed(page) => State::of(page[inside as usize / 4] >> (2 * (inside % 4))),
        }
    }

    /// Returns how many of the blocks are not of this state.
    pub(crate) fn others(&self, blocks: Range<u64>, state: State) -> u64 {
        let (mut at, mut sum) = (blocks.start, 0);
        while at < blocks.end {
            let (found, end) = self.run(at, blocks.end);
            sum += if found == state { 0 } else { end - at };
            at = end;
        }
        sum
    }

    /// Returns a page as it would be with the given blocks of it, numbered within the disk, in another state, and
    /// which of its bytes hold them.
    pub(crate) fn changed(&self, blocks: &Range<u64>, state: State) -> (Page, Range<usize>) {
        let number = blocks.start / PAGE_BLOCKS;
        let mut page = self.page(number as usize);
        let (first, end) = (blocks.start - number * PAGE_BLOCKS, blocks.end - number * PAGE_BLOCKS);
        fill(&mut page, first..end, state);
        (page, first as usize / 4..end.div_ceil(4) as usize)
    }

    /// Whether the blocks are all blocks of a page.
    pub(crate) fn is_whole(&self, number: usize, blocks: &Range<u64>) -> bool {
        blocks.end - blocks.start == self.blocks_in(number)
    }

    /// Whether nothing was written in a page.
    pub(crate) fn is_untouched(&self, number: usize) -> bool {
        self.pages[number] == Content::All(State::Base)
    }

    /// Replaces a page.
    pub(crate) fn put(&mut self, number: usize, page: Page) {
        let first = State::of(page[0]);
        let mut alike = [0; PAGE_BYTES];
        fill(&mut alike, 0..self.blocks_in(number), first);
        let content = if page == alike { Content::All(first) } else { Content::Mixed(Arc::new(page)) };
        self.replace(number, content);
    }

    /// Makes all blocks of a page alike.
    pub(crate) fn put_all(&mut self, number: usize, state: State) {
        self.replace(number, Content::All(state));
    }

    fn replace(&mut self, number: usize, content: Content) {
        let data = |content: &Content| match content {
            Content::All(State::Data) => self.blocks_in(number),
            Content::All(_) => 0,
            Content::Mixed(page) => page.iter().map(|byte| u64::from((byte & LOW_BITS).count_ones())).sum(),
        };
        self.data_blocks = self.data_blocks - data(&self.pages[number]) + data(&content);
        self.pages[number] = content;
    }

    /// Returns a copy of a page; it takes no memory.
    pub(crate) fn sheet(&self, number: usize) -> Sheet {
        Sheet { number, content: self.pages[number].clone(), blocks: self.blocks_in(number) }
    }

    /// Returns a page as it is when all its blocks are alike.
    pub(crate) fn uniform(&self, number: usize, state: State) -> Sheet {
        Sheet { number, content: Content::All(state), blocks: self.blocks_in(number) }
    }

    /// Returns copies of the pages that are not all `Base`.
    pub(crate) fn sheets(&self) -> impl Iterator<Item = Sheet> {
        (0..self.pages.len()).filter(|&number| !self.is_untouched(number)).map(|number| self.sheet(number))
    }

    /// Returns the pages in which other states of the same disk differ.
    pub(crate) fn differing(&self, other: &Self) -> BTreeSet<usize> {
        (0..self.pages.len()).filter(|&number| self.pages[number] != other.pages[number]).collect()
    }

    /// Whether these can be later states of the same disk: no block became `Base`.
    pub(crate) fn can_follow(&self, earlier: &Self) -> bool {
        let written = |byte: u8| (byte | byte >> 1) & LOW_BITS;
        self.differing(earlier).into_iter().all(|number| {
            let (now, before) = (self.page(number), earlier.page(number));
            now.iter().zip(&before).all(|(&now, &before)| written(before) & !written(now) == 0)
        })
    }

    /// The bytes of a page.
    fn page(&self, number: usize) -> Page {
        match &self.pages[number] {
            Content::All(state) => {
                let mut page = [0; PAGE_BYTES];
                fill(&mut page, 0..self.blocks_in(number), *state);
                page
            }
            Content::Mixed(page) => **page,
        }
    }

    /// How many blocks of the disk are in a page.
    fn blocks_in(&self, number: usize) -> u64 {
        (self.blocks - number as u64 * PAGE_BLOCKS).min(PAGE_BLOCKS)
    }
}

/// Sets the states of some blocks of a page, numbered within it.
fn fill(page: &mut Page, blocks: Range<u64>, state: State) {
    let mut at = blocks.start;
    while at < blocks.end {
        let inside = at as usize / 4;
        if at.is_multiple_of(4) && at + 4 <= blocks.end {
            let end = blocks.end as usize / 4;
            page[inside..end].fill(state.four());
            at = end as u64 * 4;
        } else {
            let shift = 2 * (at % 4);
            page[inside] = page[inside] & !(0b11 << shift) | (state as u8) << shift;
            at += 1;
        }
    }
}

/// Returns how many pages hold the states of a disk.
pub(crate) fn page_count(size_bytes: u64) -> usize {
    size_bytes.div_ceil(BLOCK_BYTES).div_ceil(PAGE_BLOCKS) as usize
}

/// Cuts a range of blocks where pages begin; returns each page's number and its part of the range.
pub(crate) fn by_page(blocks: Range<u64>) -> impl Iterator<Item = (usize, Range<u64>)> {
    let pages = blocks.start / PAGE_BLOCKS..blocks.end.div_ceil(PAGE_BLOCKS);
    pages.map(move |page| {
        let start = (page * PAGE_BLOCKS).max(blocks.start);
        (page as usize, start..((page + 1) * PAGE_BLOCKS).min(blocks.end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(states: &mut States, blocks: Range<u64>, state: State) {
        for (number, part) in by_page(blocks) {
            let (page, _) = states.changed(&part, state);
            states.put(number, page);
        }
    }

    #[test]
    fn runs_cross_pages_and_bytes() {
        let size = 5 * PAGE_BLOCKS * BLOCK_BYTES - 100;
        let mut states = States::new(size);
        let end = size.div_ceil(BLOCK_BYTES);
        assert_eq!(states.run(0, end), (State::Base, end));
        set(&mut states, PAGE_BLOCKS - 3..2 * PAGE_BLOCKS + 5, State::Data);
        set(&mut states, PAGE_BLOCKS + 9..PAGE_BLOCKS + 10, State::Zero);
        assert_eq!(states.run(0, end), (State::Base, PAGE_BLOCKS - 3));
        assert_eq!(states.run(PAGE_BLOCKS - 3, end), (State::Data, PAGE_BLOCKS + 9));
        assert_eq!(states.run(PAGE_BLOCKS + 9, end), (State::Zero, PAGE_BLOCKS + 10));
        assert_eq!(states.run(PAGE_BLOCKS + 10, end), (State::Data, 2 * PAGE_BLOCKS + 5));
        assert_eq!(states.run(PAGE_BLOCKS + 10, PAGE_BLOCKS + 12), (State::Data, PAGE_BLOCKS + 12));
        assert_eq!(states.run(2 * PAGE_BLOCKS + 5, end), (State::Base, end));
        assert_eq!(states.data_blocks(), PAGE_BLOCKS + 7);
        assert_eq!(states.others(0..end, State::Base), PAGE_BLOCKS + 8);
        assert_eq!(states.sheets().map(|sheet| sheet.number).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn a_change_touches_only_its_bytes() {
        let mut states = States::new(100 * BLOCK_BYTES);
        set(&mut states, 0..100, State::Zero);
        let (page, bytes) = states.changed(&(5..11), State::Data);
        assert_eq!(bytes, 1..3);
        assert_eq!(page[..4], [0b1010_1010, 0b0101_0110, 0b1001_0101, 0b1010_1010]);
        states.put(0, page);
        assert_eq!((states.data_blocks(), states.get(4), states.get(5)), (6, State::Zero, State::Data));
    }

    #[test]
    fn what_makes_no_sense_is_not_loaded() {
        let load = |blocks: u64, at: usize, byte: u8| {
            let mut page = [0; PAGE_BYTES];
            page[at] = byte;
            States::load(blocks * BLOCK_BYTES, std::iter::once(Ok::<_, ()>((0, page)))).unwrap()
        };
        assert_eq!(load(8, 1, 0b1001_0010).unwrap().data_blocks(), 1);
        assert!(load(8, 1, 0b0000_1100).is_none(), "a state that does not exist");
        assert!(load(8, 2, 0b0000_0001).is_none(), "a block behind the end");
        assert!(load(7, 1, 0b0100_0000).is_none(), "a block behind the end, in the last byte");
    }

    #[test]
    fn a_disk_that_was_discarded_takes_no_memory_for_it() {
        let size = 5 * PAGE_BLOCKS * BLOCK_BYTES - 9 * BLOCK_BYTES;
        let mut states = States::new(size);
        let end = size.div_ceil(BLOCK_BYTES);
        set(&mut states, 3..end - 1, State::Zero);
        set(&mut states, 0..3, State::Zero);
        assert_eq!(states.pages[..4], vec![Content::All(State::Zero); 4]);
        assert!(matches!(states.pages[4], Content::Mixed(_)));
        set(&mut states, end - 1..end, State::Zero);
        assert_eq!(states.pages[4], Content::All(State::Zero));
        assert_eq!(states.run(0, end), (State::Zero, end));
        set(&mut states, 2 * PAGE_BLOCKS..end, State::Data);
        assert_eq!(states.data_blocks(), end - 2 * PAGE_BLOCKS);
        states.put_all(4, State::Zero);
        assert_eq!(states.data_blocks(), 2 * PAGE_BLOCKS);
        let mut bytes = Vec::new();
        states.sheets().for_each(|sheet| sheet.append_to(&mut bytes));
        let pages = bytes.chunks(PAGE_BYTES).map(|page| <Page>::try_from(page).unwrap()).enumerate();
        let again = States::load(size, pages.map(Ok::<_, ()>)).unwrap().unwrap();
        assert!(again.differing(&states).is_empty() && again.data_blocks() == states.data_blocks());
    }

    #[test]
    fn no_block_becomes_the_revisions_again() {
        let (mut earlier, mut later) = (States::new(9 * BLOCK_BYTES), States::new(9 * BLOCK_BYTES));
        assert!(later.can_follow(&earlier));
        set(&mut earlier, 2..4, State::Zero);
        assert!(!later.can_follow(&earlier) && earlier.can_follow(&later));
        set(&mut later, 2..3, State::Data);
        assert!(!later.can_follow(&earlier));
        set(&mut later, 3..9, State::Data);
        assert!(later.can_follow(&earlier));
    }
}
