//! The table of four entries in the first sector (MBR), and the chain of such sectors in an extended partition.
//! Numbers and rules are those of the Linux kernel: primary partitions are 1 to 4 by their place, logical ones count
//! from 5 in the order of the chain. The extended partition itself holds nothing and is not shown.

use std::collections::HashSet;

use super::probe::{Probe, u32_at};
use super::table::Partition;

/// The type that stands for "this disk has a GPT".
pub(crate) const PROTECTIVE: u8 = 0xee;

/// Types of an extended partition: of DOS, of Windows, of Linux.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// Longest chain that is followed. The kernel shows 256 partitions at most.
const CHAIN_MAX: usize = 256;

/// An entry of a table, as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: u8,
    /// First sector, from a place that depends on the entry.
    pub(crate) first: u32,
    /// Sectors.
    pub(crate) count: u32,
}

impl Entry {
    fn is_extended(&self) -> bool {
        self.count > 0 && EXTENDED.contains(&self.kind)
    }

    fn is_data(&self) -> bool {
        self.count > 0 && !EXTENDED.contains(&self.kind)
    }
}

/// The table in the first sector of a disk.
#[derive(Debug)]
pub(crate) struct Mbr {
    pub(crate) entries: [Entry; 4],
    /// The disk's number; with a partition's number it names the partition.
    disk_id: u32,
}

/// Reads the table in a disk's first sector. `None` if there is none: the boot sector of a file system ends with the
/// same mark, but where a table has "active" or "not active" it has something else.
pub(crate) fn parse(sector: &[u8]) -> Option<Mbr> {
    let is_flag = |number: usize| matches!(sector.get(446 + 16 * number), Some(0 | 0x80));
    let entries = entries(sector)?;
    (0..4).all(is_flag).then_some(Mbr { entries, disk_id: u32_at(sector, 440)? })
}

fn entries(sector: &[u8]) -> Option<[Entry; 4]> {
    if sector.get(510..512)? != b"\x55\xaa" {
        return None;
    }
    let entry = |number: usize| {
        let at = 446 + 16 * number;
        Some(Entry {
            kind: *sector.get(at + 4)?,
            first: u32_at(sector, at + 8)?,
            count: u32_at(sector, at + 12)?,
        })
    };
    Some([entry(0)?, entry(1)?, entry(2)?, entry(3)?])
}

impl Mbr {
    /// Whether any entry is used.
    pub(crate) fn is_used(&self) -> bool {
        self.entries.iter().any(|entry| entry.count > 0)
    }

    /// Returns the entry that stands for a GPT.
    pub(crate) fn protective(&self) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.kind == PROTECTIVE)
    }

    /// Returns the partitions, with sectors of this size.
    pub(crate) fn partitions(&self, probe: &Probe<'_>, sector_bytes: u64) -> Vec<Partition> {
        let mut partitions = Vec::new();
        for (number, entry) in (1..).zip(&self.entries) {
            if entry.is_data() && entry.kind != PROTECTIVE {
                partitions.extend(self.partition(probe, number, entry, entry.first.into(), sector_bytes));
            }
        }
        let mut next = 5;
        for extended in self.entries.iter().filter(|entry| entry.is_extended()) {
            self.follow(probe, extended, sector_bytes, &mut next, &mut partitions);
        }
        partitions
    }

    /// Follows the chain of an extended partition. Each link has a partition, placed from the link on, and the next
    /// link, placed from the extended partition's beginning on.
    fn follow(
        &self,
        probe: &Probe<'_>,
        extended: &Entry,
        sector_bytes: u64,
        next: &mut u32,
        partitions: &mut Vec<Partition>,
    ) {
        let begin = u64::from(extended.first);
        let end = begin + u64::from(extended.count);
        let (mut link, mut link_count) = (begin, u64::from(extended.count));
        let mut seen = HashSet::new();
        loop {
            if !seen.insert(link) {
                return probe.note("the chain of logical partitions leads back to itself; it ends there");
            }
            if seen.len() > CHAIN_MAX {
                return probe
                    .note("the chain of logical partitions is longer than 256; the rest is left out");
            }
            let sector = link.checked_mul(sector_bytes).and_then(|offset| probe.read(offset, 512));
            let Some(entries) = sector.as_deref().and_then(entries) else {
                return probe.note(format!("the chain of logical partitions breaks off at sector {link}"));
            };
            for (place, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.is_data()) {
                let (first, count) = (u64::from(entry.first), u64::from(entry.count));
                let start = link + first;
                // The third and fourth entry have no meaning; some programs leave something there.
                if place >= 2 && (first + count > link_count || start < begin || start + count > end) {
                    continue;
                }
                partitions.extend(self.partition(probe, *next, entry, start, sector_bytes));
                *next += 1;
            }
            let Some(further) = entries.iter().find(|entry| entry.is_extended()) else { return };
            (link, link_count) = (begin + u64::from(further.first), further.count.into());
        }
    }

    fn partition(
        &self,
        probe: &Probe<'_>,
        number: u32,
        entry: &Entry,
        first: u64,
        sector_bytes: u64,
    ) -> Option<Partition> {
        let what = format!("partition {number}");
        Some(Partition {
            number,
            place: probe.place(&what, first, entry.count.into(), sector_bytes)?,
            kind: format!("0x{:02x}", entry.kind),
            label: None,
            uuid: (self.disk_id != 0).then(|| format!("{:08x}-{number:02x}", self.disk_id)),
        })
    }
}
