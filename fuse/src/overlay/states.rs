//! Where each block of a disk is to be read from, two bits a block: plain data, no I/O.
//!
//! Kept in pages of 4 KiB, each made when its first block leaves [`State::Base`], so that memory follows what was
//! written and not the size of the disk. A block never becomes `Base` again.

use std::ops::Range;

/// Bytes of a disk that have one state; the disk's last block may be shorter.
pub(crate) const BLOCK_BYTES: u64 = 4096;

/// Bytes of a page of states, the unit in which they are kept and synced.
pub(crate) const PAGE_BYTES: usize = 4096;

/// Blocks in a page: 64 MiB of the disk.
const PAGE_BLOCKS: u64 = PAGE_BYTES as u64 * 4;

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

/// The states of all blocks of a disk.
#[derive(Debug)]
pub(crate) struct States {
    blocks: u64,
    /// A missing page is all `Base`.
    pages: Vec<Option<Box<Page>>>,
    data_blocks: u64,
}

impl States {
    /// Makes the states of a disk of `size_bytes` of which nothing was written.
    pub(crate) fn new(size_bytes: u64) -> Self {
        let blocks = size_bytes.div_ceil(BLOCK_BYTES);
        Self { blocks, pages: vec![None; page_count(size_bytes)], data_blocks: 0 }
    }

    /// Makes the states of a disk of `size_bytes` from their pages, which `read` fetches in ascending order. `None`
    /// if they make no sense: an unknown state, or a block behind the end of the disk.
    pub(crate) fn load<E>(
        size_bytes: u64,
        mut read: impl FnMut(&mut Page) -> Result<(), E>,
    ) -> Result<Option<Self>, E> {
        let mut states = Self::new(size_bytes);
        for number in 0..states.pages.len() {
            let mut page = Box::new([0; PAGE_BYTES]);
            read(&mut page)?;
            if page.iter().any(|byte| byte & byte >> 1 & LOW_BITS != 0) {
                return Ok(None);
            }
            if page.iter().any(|&byte| byte != 0) {
                states.put(number, page);
            }
        }
        let behind = states.pages.len() as u64 * PAGE_BLOCKS;
        if states.blocks < behind && states.run(states.blocks, behind) != (State::Base, behind) {
            return Ok(None);
        }
        Ok(Some(states))
    }

    /// Blocks that are kept as data.
    pub(crate) fn data_blocks(&self) -> u64 {
        self.data_blocks
    }

    /// Returns the state of a block and where, up to `limit`, blocks of another state begin. O(blocks in the run).
    pub(crate) fn run(&self, block: u64, limit: u64) -> (State, u64) {
        let state = self.get(block);
        let mut at = block + 1;
        while at < limit {
            let inside = at % PAGE_BLOCKS;
            match &self.pages[(at / PAGE_BLOCKS) as usize] {
                None if state == State::Base => at += PAGE_BLOCKS - inside,
                None => break,
                Some(page) if inside.is_multiple_of(4) && page[inside as usize / 4] == state.four() => {
                    at += 4
                }
                Some(_) if self.get(at) == state => at += 1,
                Some(_) => break,
            }
        }
        (state, at.min(limit))
    }

    /// Returns the state of a block.
    pub(crate) fn get(&self, block: u64) -> State {
        let inside = block % PAGE_BLOCKS;
        match &self.pages[(block / PAGE_BLOCKS) as usize] {
            Some(page) => State::of(page[inside as usize / 4] >> (2 * (inside % 4))),
            None => State::Base,
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
    pub(crate) fn changed(&self, blocks: &Range<u64>, state: State) -> (Box<Page>, Range<usize>) {
        let number = blocks.start / PAGE_BLOCKS;
        let mut page = match &self.pages[number as usize] {
            Some(page) => page.clone(),
            None => Box::new([0; PAGE_BYTES]),
        };
        let (first, end) = (blocks.start - number * PAGE_BLOCKS, blocks.end - number * PAGE_BLOCKS);
        let mut at = first;
        while at < end {
            let byte = &mut page[at as usize / 4];
            if at.is_multiple_of(4) && at + 4 <= end {
                *byte = state.four();
                at += 4;
            } else {
                let shift = 2 * (at % 4);
                *byte = *byte & !(0b11 << shift) | (state as u8) << shift;
                at += 1;
            }
        }
        (page, first as usize / 4..end.div_ceil(4) as usize)
    }

    /// Replaces a page.
    pub(crate) fn put(&mut self, number: usize, page: Box<Page>) {
        let data =
            |page: &Page| page.iter().map(|byte| u64::from((byte & LOW_BITS).count_ones())).sum::<u64>();
        let before = self.pages[number].as_deref().map_or(0, data);
        self.data_blocks = self.data_blocks - before + data(&page);
        self.pages[number] = Some(page);
    }

    /// Returns a page that is not all `Base`.
    pub(crate) fn page(&self, number: usize) -> Option<&Page> {
        self.pages.get(number)?.as_deref()
    }

    /// Returns the numbers and contents of the pages that are not all `Base`.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (usize, &Page)> {
        self.pages.iter().enumerate().filter_map(|(number, page)| Some((number, page.as_deref()?)))
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
        assert_eq!(states.pages().map(|(number, _)| number).collect::<Vec<_>>(), [0, 1, 2]);
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
            let read = |page: &mut Page| {
                page[at] = byte;
                Ok::<(), ()>(())
            };
            States::load(blocks * BLOCK_BYTES, read).unwrap()
        };
        assert_eq!(load(8, 1, 0b1001_0010).unwrap().data_blocks(), 1);
        assert!(load(8, 1, 0b0000_1100).is_none(), "a state that does not exist");
        assert!(load(8, 2, 0b0000_0001).is_none(), "a block behind the end");
        assert!(load(7, 1, 0b0100_0000).is_none(), "a block behind the end, in the last byte");
    }
}
