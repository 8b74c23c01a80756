//! Blocks that a write covers in part only: a block is written as a whole when it is written for the first time. Pure.

use super::states::{BLOCK_BYTES, State};

/// A block of which a write covers a part only.
#[derive(Debug)]
pub(crate) struct Edge {
    pub(crate) block: u64,
    /// What the revision has there; zeros if the block was written when it was looked at.
    pub(crate) content: Vec<u8>,
}

impl Edge {
    /// Whether the rest of the block must be written too, and with what, in the state it has now.
    pub(crate) fn is_needed(&mut self, state: State) -> bool {
        match state {
            // A block never becomes `Base` again, so the content was read from the revision.
            State::Base => true,
            State::Zero => {
                self.content.fill(0);
                true
            }
            State::Data => false,
        }
    }
}

/// Puts the rest of the blocks at the edges around the data that is written at `offset`; returns where the whole
/// begins. `None` if there is nothing to put around.
pub(crate) fn join(offset: u64, data: &[u8], edges: &[Edge]) -> Option<(u64, Vec<u8>)> {
    let (first, last) = (edges.first()?, edges.last()?);
    let end = offset + data.len() as u64;
    let start = offset.min(first.block * BLOCK_BYTES);
    let (first_start, last_start) = (first.block * BLOCK_BYTES, last.block * BLOCK_BYTES);
    let mut whole = Vec::with_capacity(data.len() + 2 * BLOCK_BYTES as usize);
    if first_start < offset {
        whole.extend_from_slice(&first.content[..(offset - first_start) as usize]);
    }
    whole.extend_from_slice(data);
    if let Some(behind) = end.checked_sub(last_start).and_then(|at| last.content.get(at as usize..)) {
        whole.extend_from_slice(behind);
    }
    Some((start, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(block: u64, byte: u8, length: usize) -> Edge {
        Edge { block, content: vec![byte; length] }
    }

    #[test]
    fn the_rest_is_put_around_the_data() {
        assert_eq!(join(5000, b"xy", &[]), None);
        let (at, whole) = join(4097, b"xy", &[edge(1, 7, 4096)]).unwrap();
        assert_eq!((at, whole.len(), &whole[..4]), (4096, 4096, &[7, b'x', b'y', 7][..]));
        let (at, whole) = join(4095, &[9; 4098], &[edge(0, 7, 4096), edge(2, 8, 100)]).unwrap();
        assert_eq!(
            (at, whole.len(), whole[4094], whole[4095], whole[8192], whole[8193]),
            (0, 8292, 7, 9, 9, 8)
        );
        let (at, whole) = join(4095, &[9; 4098], &[edge(2, 8, 4096)]).unwrap();
        assert_eq!((at, whole.len(), whole[0], whole[4098]), (4095, 8193, 9, 8));
        let (at, whole) = join(4095, &[9; 4098], &[edge(0, 7, 4096)]).unwrap();
        assert_eq!((at, whole.len()), (0, 8193));
    }

    #[test]
    fn a_block_that_was_zeroed_meanwhile_is_zeros() {
        let mut edge = edge(0, 7, 10);
        assert!(!edge.is_needed(State::Data));
        assert!(edge.is_needed(State::Base) && edge.content == [7; 10]);
        assert!(edge.is_needed(State::Zero) && edge.content == [0; 10]);
    }
}
