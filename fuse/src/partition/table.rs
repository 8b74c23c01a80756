//! Which table a disk has. The first sector decides, as it does for the kernel: an entry for a GPT means GPT, other
//! entries mean MBR. Only where it says nothing at all is a GPT looked for nevertheless, for a damaged first sector
//! must not cost all partitions.

use super::content;
use super::gpt;
use super::mbr::{self, Mbr};
use super::probe::Probe;
use crate::window::Segment;

/// A partition that is, at least in part, on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) number: u32,
    pub(crate) place: Segment,
    /// Its type: a GUID or a byte, as text.
    pub(crate) kind: String,
    pub(crate) label: Option<String>,
    pub(crate) uuid: Option<String>,
}

/// A table of partitions.
#[derive(Debug)]
pub(crate) struct Table {
    /// `gpt` or `mbr`.
    pub(crate) format: &'static str,
    /// Bytes of a sector.
    pub(crate) sector_bytes: u64,
    pub(crate) partitions: Vec<Partition>,
}

/// Finds the table; `None` if the disk has none.
pub(crate) fn read(probe: &Probe<'_>) -> Option<Table> {
    let sector = probe.read(0, 512);
    let mbr = sector.as_deref().and_then(mbr::parse).filter(Mbr::is_used);
    let whole = Segment { disk_offset: 0, length: probe.size_bytes() };
    match &mbr {
        Some(mbr) if mbr.protective().is_some() => gpt_or_hybrid(probe, mbr),
        Some(mbr) if content::of(probe, whole).is_some() && !is_plausible(probe, mbr) => None,
        Some(mbr) => Some(of_mbr(probe, mbr)),
        // A file system on the whole disk has often left the end of an older table where it was.
        None if content::of(probe, whole).is_some() => None,
        None => {
            let table = gpt::read(probe, None).map(of_gpt)?;
            probe.note("the first sector does not say that there is a GPT; it is used nevertheless");
            Some(table)
        }
    }
}

/// Whether the entries can be a table where the sector is also the beginning of a file system.
fn is_plausible(probe: &Probe<'_>, mbr: &Mbr) -> bool {
    let begins_inside =
        |entry: &mbr::Entry| entry.first > 0 && u64::from(entry.first) < probe.size_bytes() / 512;
    mbr.entries.iter().filter(|entry| entry.count > 0).all(begins_inside)
}

fn of_gpt(gpt: gpt::Gpt) -> Table {
    Table { format: "gpt", sector_bytes: gpt.sector_bytes, partitions: gpt.partitions }
}

fn gpt_or_hybrid(probe: &Probe<'_>, mbr: &Mbr) -> Option<Table> {
    let last_lba = mbr.protective().map(|entry| {
        let end = u64::from(entry.first) + u64::from(entry.count);
        end.saturating_sub(1)
    });
    let Some(gpt) = gpt::read(probe, last_lba) else {
        probe.note("the first sector says that there is a GPT, but neither it nor its backup can be used");
        let table = of_mbr(probe, mbr);
        return (!table.partitions.is_empty()).then_some(table);
    };
    let others = mbr.entries.iter().filter(|entry| entry.kind != mbr::PROTECTIVE && entry.count > 0);
    for entry in others {
        let start = u64::from(entry.first) * gpt.sector_bytes;
        if !gpt.partitions.iter().any(|partition| partition.place.disk_offset == start) {
            probe.note(format!(
                "the MBR beside the GPT has a partition at sector {} that the GPT does not have; it is left out",
                entry.first
            ));
        }
    }
    Some(of_gpt(gpt))
}

/// An MBR does not say how large its sectors are. They are 512 bytes, unless nothing that is known begins where
/// partitions would begin then, and something does with 4096.
fn of_mbr(probe: &Probe<'_>, mbr: &Mbr) -> Table {
    // What is odd with the wrong size is no finding: each size is first tried on its own.
    let is_known = |sector_bytes| {
        probe.quietly(|| {
            let partitions = mbr.partitions(probe, sector_bytes);
            partitions.iter().any(|partition| content::of(probe, partition.place).is_some())
        })
    };
    let sector_bytes = if !is_known(512) && is_known(4096) { 4096 } else { 512 };
    Table { format: "mbr", sector_bytes, partitions: mbr.partitions(probe, sector_bytes) }
}
