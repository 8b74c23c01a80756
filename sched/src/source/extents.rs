//! Where a file has data: asks for the next data and the next hole in turn. Pure but for the [`Seeker`], so
//! that tests can bring a file of any shape.
//!
//! Two looks: once over the whole file, which gives runs of chunks with any data (one question per hole or
//! chunk with data, whichever is less), and once inside each such chunk, which gives exact parts.

use std::fs::File;
use std::io;
use std::ops::Range;

use backy_store::CHUNK_SIZE;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// Something that knows its holes.
pub(super) trait Seeker {
    /// First byte of data at or after `offset`; `None` when only holes follow.
    fn data(&self, offset: u64) -> io::Result<Option<u64>>;
    /// First byte of a hole at or after `offset`; `None` when there is none.
    fn hole(&self, offset: u64) -> io::Result<Option<u64>>;
}

/// Asks the file system for data; all is data where it does not know holes.
pub(super) fn seek_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    match seek(file, offset, Whence::SeekData) {
        Err(Errno::ENXIO) => Ok(None),
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(Some(offset)),
        answer => Ok(Some(answer?)),
    }
}

/// Asks the file system for a hole; there is none where it does not know them.
pub(super) fn seek_hole(file: &File, offset: u64) -> io::Result<Option<u64>> {
    match seek(file, offset, Whence::SeekHole) {
        Err(Errno::ENXIO | Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(None),
        answer => Ok(Some(answer?)),
    }
}

/// The position of the descriptor moves, but nothing reads from it.
fn seek(file: &File, offset: u64, whence: Whence) -> nix::Result<u64> {
    let offset = i64::try_from(offset).map_err(|_| Errno::ENXIO)?;
    lseek(file, offset, whence).map(|answer| u64::try_from(answer).unwrap_or(0))
}

/// Returns the next part with data in `within`.
fn next_part(seeker: &impl Seeker, within: &Range<u64>) -> io::Result<Option<Range<u64>>> {
    if within.is_empty() {
        return Ok(None);
    }
    let Some(data) = seeker.data(within.start)? else {
        return Ok(None);
    };
    let start = data.max(within.start);
    if start >= within.end {
        return Ok(None);
    }
    let end = seeker.hole(start)?.unwrap_or(within.end).clamp(start + 1, within.end);
    Ok(Some(start..end))
}

/// Returns the parts of `within` that hold data, in order, never touching each other.
pub(super) fn data_inside(seeker: &impl Seeker, within: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut parts: Vec<Range<u64>> = Vec::new();
    let mut rest = within;
    while let Some(part) = next_part(seeker, &rest)? {
        rest.start = part.end;
        match parts.last_mut() {
            Some(before) if before.end == part.start => before.end = part.end,
            _ => parts.push(part),
        }
    }
    Ok(parts)
}

/// Returns the numbers of the chunks that hold any data, as runs in order, never touching each other.
pub(super) fn chunks_with_data(seeker: &impl Seeker, size_bytes: u64) -> io::Result<Vec<Range<u64>>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    let mut rest = 0..size_bytes;
    while let Some(part) = next_part(seeker, &rest)? {
        let run = part.start / CHUNK_SIZE..(part.end - 1) / CHUNK_SIZE + 1;
        rest.start = run.end.saturating_mul(CHUNK_SIZE);
        match runs.last_mut() {
            Some(before) if before.end == run.start => before.end = run.end,
            _ => runs.push(run),
        }
    }
    Ok(runs)
}

/// Whether a chunk is in one of the runs.
pub(super) fn contains(runs: &[Range<u64>], number: u64) -> bool {
    let after = runs.partition_point(|run| run.end <= number);
    runs.get(after).is_some_and(|run| run.contains(&number))
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of one range are what is meant")]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A file described by its parts with data; counts the questions.
    struct Shape(Vec<Range<u64>>, Cell<u64>);

    impl Seeker for Shape {
        fn data(&self, offset: u64) -> io::Result<Option<u64>> {
            self.1.set(self.1.get() + 1);
            Ok(self.0.iter().find(|part| part.end > offset).map(|part| part.start.max(offset)))
        }
        fn hole(&self, offset: u64) -> io::Result<Option<u64>> {
            self.1.set(self.1.get() + 1);
            Ok(Some(self.0.iter().find(|part| part.contains(&offset)).map_or(offset, |part| part.end)))
        }
    }

    fn shape(parts: &[Range<u64>]) -> Shape {
        Shape(parts.to_vec(), Cell::new(0))
    }

    const C: u64 = CHUNK_SIZE;

    #[test]
    fn runs_of_chunks_with_data() {
        for (parts, size, expected) in [
            (vec![], 10 * C, vec![]),
            (vec![], 0, vec![]),
            (vec![0..1], 1, vec![0..1]),
            (vec![0..10 * C], 10 * C, vec![0..10]),
            (vec![C - 1..C + 1], 3 * C, vec![0..2]),
            (vec![5..6, 9..10, C + 7..C + 8, 3 * C..3 * C + 1], 4 * C, vec![0..2, 3..4]),
            (vec![0..2 * C], C + 1, vec![0..2]),
        ] {
            let runs = chunks_with_data(&shape(&parts), size).unwrap();
            assert_eq!(runs, expected, "{parts:?}");
            for number in 0..12 {
                assert_eq!(
                    contains(&runs, number),
                    expected.iter().any(|run: &Range<u64>| run.contains(&number))
                );
            }
        }
    }

    #[test]
    fn a_scattered_chunk_costs_two_questions() {
        let parts: Vec<Range<u64>> = (0..1000).map(|n| n * 4096..n * 4096 + 512).collect();
        let scattered = shape(&parts);
        assert_eq!(chunks_with_data(&scattered, 100 * C).unwrap(), [0..1]);
        assert!(scattered.1.get() <= 3);
        assert_eq!(data_inside(&scattered, 0..C).unwrap(), parts);
    }

    #[test]
    fn parts_are_cut_at_the_chunk() {
        let whole = shape(&[C / 2..3 * C]);
        assert_eq!(data_inside(&whole, 0..C).unwrap(), [C / 2..C]);
        assert_eq!(data_inside(&whole, C..2 * C).unwrap(), [C..2 * C]);
        assert!(data_inside(&whole, 3 * C..4 * C).unwrap().is_empty());
    }

    #[test]
    fn answers_of_a_lying_file_system_end_the_walk_all_the_same() {
        struct Stuck;
        impl Seeker for Stuck {
            fn data(&self, _offset: u64) -> io::Result<Option<u64>> {
                Ok(Some(0))
            }
            fn hole(&self, _offset: u64) -> io::Result<Option<u64>> {
                Ok(Some(0))
            }
        }
        assert_eq!(chunks_with_data(&Stuck, 3 * C).unwrap(), [0..3]);
        assert_eq!(data_inside(&Stuck, 10..50).unwrap(), [10..50]);
    }
}
