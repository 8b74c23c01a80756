//! Parts of chunks: what both ways of copying have in common. Pure.

use std::ops::Range;

use backy_store::CHUNK_SIZE;

/// Adds a range to a list of ranges that are in order and never touch each other.
pub(super) fn add(ranges: &mut Vec<Range<u64>>, new: Range<u64>) {
    if new.is_empty() {
        return;
    }
    let first = ranges.partition_point(|range| range.end < new.start);
    let after = ranges.partition_point(|range| range.start <= new.end);
    let mut joined = new;
    for range in &ranges[first..after] {
        joined = joined.start.min(range.start)..joined.end.max(range.end);
    }
    ranges.splice(first..after, [joined]);
}

/// Returns the parts of `ranges` (in order, not touching) that lie in `within`.
pub(super) fn cut<'r>(
    ranges: &'r [Range<u64>],
    within: &Range<u64>,
) -> impl Iterator<Item = Range<u64>> + use<'r> {
    let within = within.clone();
    let first = ranges.partition_point(|range| range.end <= within.start);
    ranges[first..]
        .iter()
        .map(move |range| range.start.max(within.start)..range.end.min(within.end))
        .take_while(|range| !range.is_empty())
}

/// Returns what of `within` the ranges (in order, not touching) leave out.
pub(super) fn gaps(ranges: &[Range<u64>], within: &Range<u64>) -> Vec<Range<u64>> {
    let mut gaps = Vec::new();
    let mut at = within.start;
    for range in cut(ranges, within) {
        if range.start > at {
            gaps.push(at..range.start);
        }
        at = range.end;
    }
    if at < within.end {
        gaps.push(at..within.end);
    }
    gaps
}

/// Returns the index of an image's byte in a buffer with the chunk in which it lies, or that it ends.
pub(super) fn index(offset: u64, chunk: &Range<u64>) -> usize {
    debug_assert!(chunk.start <= offset && offset - chunk.start <= CHUNK_SIZE);
    usize::try_from(offset - chunk.start).expect("a chunk fits into memory")
}

/// Returns where in a chunk's buffer the ranges lie.
pub(super) fn indices(ranges: &[Range<u64>], chunk: &Range<u64>) -> Vec<Range<usize>> {
    ranges.iter().map(|range| index(range.start, chunk)..index(range.end, chunk)).collect()
}

/// Returns the part of a chunk's buffer that holds `range`.
pub(super) fn part<'b>(buf: &'b mut [u8], range: &Range<u64>, chunk: &Range<u64>) -> &'b mut [u8] {
    &mut buf[index(range.start, chunk)..index(range.end, chunk)]
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of one range are what is meant")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn gaps_are_the_rest() {
        assert_eq!(gaps(&[], &(3..9)), [3..9]);
        assert_eq!(gaps(&[0..4, 6..7, 8..20], &(3..9)), [4..6, 7..8]);
        assert!(gaps(&[0..4], &(1..4)).is_empty());
    }

    proptest! {
        #[test]
        fn ranges_are_joined_as_a_set_of_numbers_is(new in prop::collection::vec((0_u64..60, 0_u64..20), 0..30)) {
            let mut ranges = Vec::new();
            let mut set = std::collections::BTreeSet::new();
            for (start, length) in new {
                add(&mut ranges, start..start + length);
                set.extend(start..start + length);
            }
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            let cut: Vec<u64> = cut(&ranges, &(10..50)).flatten().collect();
            let expected: Vec<u64> = set.iter().copied().filter(|number| (10..50).contains(number)).collect();
            prop_assert_eq!(cut, expected);
            let rest: Vec<u64> = gaps(&ranges, &(0..90)).into_iter().flatten().collect();
            prop_assert_eq!(rest, (0..90).filter(|number| !set.contains(number)).collect::<Vec<u64>>());
        }
    }
}
