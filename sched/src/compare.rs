//! The second reading: a fresh revision against its source, before it is committed.
//!
//! The source is read again and its bytes are compared with the recorded hashes; no stored chunk is decoded
//! for it. Places that the copy never read are part of it, too: what a source called unchanged and what it
//! called a hole, since lists of changes have been wrong before. Where a hole is recorded, the source may
//! say again that it is one, or it is read.
//!
//! Of a sample the numbers come from the revision's id, so the same run can be repeated.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use backy_store::{Monitor, RevisionId};

use crate::chunks;
use crate::error::{Error, Result};
use crate::source::{ImageSink, Snapshot};

/// Of so many chunks a sample takes one.
const SAMPLE_PART: u64 = 100;

/// Which chunks are compared.
pub(crate) enum Selection<'a> {
    /// Every one.
    All,
    /// These, in this order, until the time is over.
    Sample {
        /// Numbers of chunks.
        numbers: Vec<u64>,
        /// Whether the time is over.
        is_over: &'a (dyn Fn() -> bool + Sync),
    },
}

impl Selection<'_> {
    /// Returns how many bytes of an image of this size are in it.
    pub(crate) fn bytes(&self, size_bytes: u64) -> u64 {
        match self {
            Self::All => size_bytes,
            Self::Sample { numbers, .. } => numbers
                .iter()
                .map(|&number| chunks::range(number, size_bytes))
                .map(|range| range.end - range.start)
                .sum(),
        }
    }
}

/// A place where source and record differ.
pub(crate) struct Difference<'a> {
    /// First byte of the chunk.
    pub(crate) offset: u64,
    /// What the source has now.
    pub(crate) source: &'a [u8],
    /// Whether a hole is recorded there.
    pub(crate) is_hole: bool,
}

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CompareStats {
    /// Bytes of the image that agree.
    pub(crate) bytes: u64,
    /// Whether the time was over before the sample was through.
    pub(crate) is_cut_short: bool,
}

/// Compares until the first difference, which is handed to `differs` and becomes `SourceChanged`.
pub(crate) fn compare(
    snapshot: &dyn Snapshot,
    name: &str,
    recorded: &dyn ImageSink,
    selection: &Selection<'_>,
    threads: usize,
    differs: &(dyn Fn(&Difference<'_>) + Sync),
    monitor: &dyn Monitor,
) -> Result<CompareStats> {
    let size_bytes = snapshot.size_bytes();
    let count = match selection {
        Selection::All => chunks::count(size_bytes),
        Selection::Sample { numbers, .. } => numbers.len() as u64,
    };
    let bytes = AtomicU64::new(0);
    let is_cut_short = AtomicBool::new(false);
    let start = || Ok(vec![0; chunks::length(&chunks::range(0, size_bytes))]);
    let step = |buf: &mut Vec<u8>, turn: u64| {
        let number = match selection {
            Selection::All => turn,
            Selection::Sample { is_over, .. } if is_over() => {
                is_cut_short.store(true, Ordering::Relaxed);
                return Ok(());
            }
            Selection::Sample { numbers, .. } => numbers[usize::try_from(turn).expect("it counts a vector")],
        };
        let range = chunks::range(number, size_bytes);
        let mut check = recorded.check(number)?;
        let is_hole = check.expects_hole();
        if !(is_hole && snapshot.is_hole(range.start, range.end - range.start)?) {
            for piece in chunks::pieces(&range) {
                let buf = &mut buf[..chunks::length(&piece)];
                snapshot.read_at(piece.start, buf)?;
                check.update(buf);
            }
            if !check.agrees() {
                let buf = &mut buf[..chunks::length(&range)];
                // Once more for the report. If the source changed again, the report shows what it is now.
                snapshot.read_at(range.start, buf)?;
                differs(&Difference { offset: range.start, source: buf, is_hole });
                return Err(Error::SourceChanged { name: name.to_owned(), offset: range.start });
            }
        }
        bytes.fetch_add(range.end - range.start, Ordering::Relaxed);
        monitor.advance(range.end - range.start);
        Ok(())
    };
    chunks::for_each(count, threads, monitor, start, step)?;
    Ok(CompareStats { bytes: bytes.into_inner(), is_cut_short: is_cut_short.into_inner() })
}

/// Returns one percent of the numbers 0 to `count`, rounded up, each at most once, in random order.
pub(crate) fn sample(count: u64, id: &RevisionId) -> Vec<u64> {
    let mut random = Random::of(id);
    let wanted = count.div_ceil(SAMPLE_PART);
    let mut seen = BTreeSet::new();
    let mut numbers = Vec::new();
    while (numbers.len() as u64) < wanted {
        let number = random.next() % count;
        if seen.insert(number) {
            numbers.push(number);
        }
    }
    numbers
}

/// A sequence of numbers that is the same for the same id; well spread, and no secret.
struct Random(u64);

impl Random {
    fn of(id: &RevisionId) -> Self {
        Self(
            id.as_str()
                .bytes()
                .fold(0, |seed: u64, byte| seed.wrapping_mul(257).wrapping_add(u64::from(byte))),
        )
    }

    /// A Weyl sequence, scrambled by two multiplications.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        mixed ^ (mixed >> 32)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Mutex;

    use backy_store::{CHUNK_SIZE, Silent};

    use super::*;
    use crate::source::testing::MemorySink;
    use crate::source::{CopyStats, Source, file::FileSource};

    const C: u64 = CHUNK_SIZE;

    struct Case {
        dir: tempfile::TempDir,
        snapshot: Box<dyn Snapshot>,
        sink: MemorySink,
    }

    /// Ten chunks, of which 2 and the short 9 have data, copied.
    fn case() -> Case {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("disk");
        let file = File::create(&path).unwrap();
        file.set_len(9 * C + 100).unwrap();
        file.write_all_at(b"two", 2 * C + 5).unwrap();
        file.write_all_at(b"nine", 9 * C).unwrap();
        let snapshot = FileSource::new(path).snapshot(&RevisionId::from_bits(1), &Silent).unwrap();
        let sink = MemorySink::new(snapshot.size_bytes());
        let stats = snapshot.copy_changes(None, &sink, 2, &Silent).unwrap();
        assert!(matches!(stats, CopyStats { bytes_read: 1.., .. }));
        Case { dir, snapshot, sink }
    }

    impl Case {
        fn write(&self, offset: u64) {
            let file = File::options().write(true).open(self.dir.path().join("disk")).unwrap();
            file.write_all_at(b"!", offset).unwrap();
        }

        fn compare(&self, selection: &Selection<'_>) -> (Result<CompareStats>, Vec<(u64, bool)>) {
            let differences = Mutex::new(Vec::new());
            let differs = |difference: &Difference<'_>| {
                assert!(difference.source.contains(&b'!'));
                differences.lock().unwrap().push((difference.offset, difference.is_hole));
            };
            let result = compare(&*self.snapshot, "disk", &self.sink, selection, 2, &differs, &Silent);
            (result, differences.into_inner().unwrap())
        }
    }

    #[test]
    fn an_unchanged_source_agrees() {
        let (result, differences) = case().compare(&Selection::All);
        assert_eq!(result.unwrap(), CompareStats { bytes: 9 * C + 100, is_cut_short: false });
        assert!(differences.is_empty());
    }

    #[test]
    fn a_change_is_found_in_data_and_in_holes() {
        for (offset, chunk, is_hole) in [(2 * C + 4000, 2, false), (9 * C + 99, 9, false), (5 * C, 5, true)] {
            let case = case();
            case.write(offset);
            let (result, differences) = case.compare(&Selection::All);
            match result.unwrap_err() {
                Error::SourceChanged { offset, name } => {
                    assert_eq!((offset, name.as_str()), (chunk * C, "disk"))
                }
                other => panic!("{other}"),
            }
            assert_eq!(differences, [(chunk * C, is_hole)]);
        }
    }

    #[test]
    fn zeros_written_over_a_hole_are_no_change() {
        let case = case();
        let file = File::options().write(true).open(case.dir.path().join("disk")).unwrap();
        file.write_all_at(&[0; 8192], 4 * C).unwrap();
        assert!(case.compare(&Selection::All).0.is_ok());
    }

    #[test]
    fn a_sample_looks_only_where_it_should_and_ends_in_time() {
        let case = case();
        case.write(5 * C);
        let sample = |numbers: &[u64], over: bool| {
            let is_over = move || over;
            case.compare(&Selection::Sample { numbers: numbers.to_vec(), is_over: &is_over }).0
        };
        assert_eq!(sample(&[2, 9], false).unwrap().bytes, C + 100);
        assert!(sample(&[2, 5], false).is_err());
        assert_eq!(sample(&[5], true).unwrap(), CompareStats { bytes: 0, is_cut_short: true });
    }

    #[test]
    fn samples_are_one_percent_without_repetition() {
        let id = RevisionId::from_bits(77);
        for (count, expected) in [(0, 0), (1, 1), (2, 1), (100, 1), (101, 2), (100_000, 1000)] {
            let numbers = sample(count, &id);
            assert_eq!(numbers.len(), expected);
            assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), expected);
            assert!(numbers.iter().all(|&number| number < count));
        }
        assert_eq!(sample(100_000, &id), sample(100_000, &id));
        assert_ne!(sample(100_000, &id), sample(100_000, &RevisionId::from_bits(78)));
        let upper = sample(100_000, &id).iter().filter(|&&number| number >= 50_000).count();
        assert!((400..600).contains(&upper), "{upper} of 1000 in the upper half");
    }
}
