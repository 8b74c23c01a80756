//! Reads pieces of a disk that may hold anything, within bounds, and collects what was found to be odd.

use std::cell::{Cell, RefCell};

use crate::window::Segment;

/// Most reads of one disk: two for each partition that is shown, and the tables.
const READS_MAX: u32 = 8192;

/// Most bytes read of one disk.
const BYTES_MAX: u64 = 64 << 20;

/// Most bytes of one read: the longest text of LVM.
pub(crate) const READ_MAX_BYTES: u64 = 4 << 20;

/// Most characters of a finding: names come from the disk.
const FINDING_MAX_CHARS: usize = 400;

/// Most findings that are kept.
const FINDINGS_MAX: usize = 64;

/// Fills a buffer from an offset of the disk; false if that is not possible.
pub(crate) type Read<'a> = dyn Fn(u64, &mut [u8]) -> bool + 'a;

/// A disk that is looked at.
pub(crate) struct Probe<'a> {
    size_bytes: u64,
    read: &'a Read<'a>,
    reads_left: Cell<u32>,
    bytes_left: Cell<u64>,
    exhausted: Cell<bool>,
    unreadable: Cell<bool>,
    findings: RefCell<Vec<String>>,
}

impl<'a> Probe<'a> {
    /// Begins to look at a disk. `read` is only asked for bytes inside the disk.
    pub(crate) fn new(size_bytes: u64, read: &'a Read<'a>) -> Self {
        Self {
            size_bytes,
            read,
            reads_left: Cell::new(READS_MAX),
            bytes_left: Cell::new(BYTES_MAX),
            exhausted: Cell::new(false),
            unreadable: Cell::new(false),
            findings: RefCell::default(),
        }
    }

    /// Size of the disk.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Reads exactly `length` bytes from `offset`. `None` where the disk has no such bytes, where they cannot be
    /// read, and behind the bounds; the last two are findings.
    pub(crate) fn read(&self, offset: u64, length: u64) -> Option<Vec<u8>> {
        let end = offset.checked_add(length)?;
        if end > self.size_bytes || length > READ_MAX_BYTES {
            return None;
        }
        let (reads, bytes) = (self.reads_left.get(), self.bytes_left.get());
        let (Some(reads), Some(bytes)) = (reads.checked_sub(1), bytes.checked_sub(length)) else {
            self.exhausted.set(true);
            return None;
        };
        self.reads_left.set(reads);
        self.bytes_left.set(bytes);
        let mut out = vec![0; usize::try_from(length).ok()?];
        if (self.read)(offset, &mut out) {
            return Some(out);
        }
        self.unreadable.set(true);
        self.note(format!("{length} bytes at {offset} cannot be read"));
        None
    }

    /// Reads `length` bytes from `offset` in a piece of the disk; `None` also where the piece is shorter.
    pub(crate) fn read_in(&self, piece: Segment, offset: u64, length: u64) -> Option<Vec<u8>> {
        let inside = offset.checked_add(length)? <= piece.length;
        inside.then(|| self.read(piece.disk_offset.checked_add(offset)?, length))?
    }

    /// Whether some bytes could not be read.
    pub(crate) fn is_unreadable(&self) -> bool {
        self.unreadable.get()
    }

    /// Keeps a finding: a sentence for people.
    pub(crate) fn note(&self, finding: impl Into<String>) {
        let mut findings = self.findings.borrow_mut();
        if findings.len() == FINDINGS_MAX {
            findings.push("there are more findings; they were not kept".to_owned());
        }
        if findings.len() < FINDINGS_MAX {
            let finding: String = finding.into().chars().take(FINDING_MAX_CHARS).collect();
            // Two ways to the same bytes need not complain twice.
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
    }

    /// Does something whose findings are of no interest.
    pub(crate) fn quietly<T>(&self, tried: impl FnOnce() -> T) -> T {
        let kept = self.findings.take();
        let result = tried();
        self.findings.replace(kept);
        result
    }

    /// Ends; returns the findings.
    pub(crate) fn into_findings(self) -> Vec<String> {
        if self.exhausted.get() {
            self.note("the tables are larger than any that make sense; the rest of them was not read");
        }
        self.findings.into_inner()
    }

    /// Returns where a partition of `count` sectors from `first` lies, cut at the disk's end. `None`, and a
    /// finding, if nothing of it is on the disk.
    pub(crate) fn place(&self, what: &str, first: u64, count: u64, sector_bytes: u64) -> Option<Segment> {
        let in_bytes = |sectors: u64| u128::from(sectors) * u128::from(sector_bytes);
        let (start, length) = (in_bytes(first), in_bytes(count));
        let size = u128::from(self.size_bytes);
        if start >= size {
            self.note(format!("{what} begins beyond the end of the disk; it is left out"));
            return None;
        }
        if start + length > size {
            self.note(format!("{what} ends beyond the end of the disk; it is shown up to there"));
        }
        let length = length.min(size - start);
        Some(Segment { disk_offset: u64::try_from(start).ok()?, length: u64::try_from(length).ok()? })
    }
}

/// Returns the little-endian number at a place.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

/// Returns the little-endian number at a place.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_have_a_bound_and_stay_inside() {
        let probe = Probe::new(1 << 40, &|_, _| true);
        assert_eq!(probe.read(0, READ_MAX_BYTES + 1), None);
        assert_eq!(probe.read(1 << 40, 1), None);
        assert_eq!(probe.read(u64::MAX, 2), None);
        assert_eq!(probe.quietly(|| probe.note("odd")), ());
        let read = (0..20).filter(|_| probe.read(5, READ_MAX_BYTES).is_some()).count();
        assert_eq!(read as u64, BYTES_MAX / READ_MAX_BYTES);
        assert!(!probe.is_unreadable());
        assert_eq!(probe.into_findings().len(), 1);

        let probe = Probe::new(10, &|_, _| true);
        assert_eq!((0..READS_MAX + 9).filter(|_| probe.read(9, 1).is_some()).count(), READS_MAX as usize);
    }

    #[test]
    fn a_failed_read_is_a_finding() {
        let probe = Probe::new(10, &|offset, _| offset != 4);
        assert_eq!(probe.read(3, 1), Some(vec![0]));
        assert_eq!((probe.read(4, 1), probe.is_unreadable()), (None, true));
        assert_eq!(probe.read_in(Segment { disk_offset: 2, length: 3 }, 1, 2), Some(vec![0, 0]));
        assert_eq!(probe.read_in(Segment { disk_offset: 2, length: 3 }, 1, 3), None);
        assert_eq!(probe.into_findings(), ["1 bytes at 4 cannot be read"]);
    }

    #[test]
    fn findings_have_a_bound() {
        let probe = Probe::new(0, &|_, _| true);
        (0..1000).for_each(|number| probe.note(number.to_string()));
        assert_eq!(probe.into_findings().len(), FINDINGS_MAX + 1);
        let probe = Probe::new(0, &|_, _| true);
        probe.note("\u{e4}".repeat(1 << 20));
        assert_eq!(probe.into_findings()[0].chars().count(), FINDING_MAX_CHARS);
    }

    #[test]
    fn partitions_are_cut_at_the_end() {
        let probe = Probe::new(10_000, &|_, _| true);
        assert_eq!(probe.place("p", 1, 2, 512), Some(Segment { disk_offset: 512, length: 1024 }));
        assert_eq!(probe.place("p", 19, 9, 512), Some(Segment { disk_offset: 9728, length: 272 }));
        assert_eq!(probe.place("p", u64::MAX, u64::MAX, 4096), None);
        assert_eq!(probe.place("p", 1, u64::MAX, 512).unwrap().length, 9488);
    }
}
