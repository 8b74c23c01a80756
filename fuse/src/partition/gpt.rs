//! The GUID partition table: a header and an array of entries, each with a CRC, at the disk's beginning and again
//! at its end. The format is in the UEFI specification, chapter 5.
//!
//! Like the kernel, a header must have its mark, its CRC, its own place in it and an array with the right CRC.
//! Unlike the kernel, entries may be larger than 128 bytes, and a header may speak of a larger disk: an image that
//! was cut short shows what is left.

use super::probe::{Probe, u32_at, u64_at};
use super::table::Partition;

/// Sizes of a sector that exist. The header says its place in sectors, so one is right and the other is not.
const SECTOR_BYTES: [u64; 2] = [512, 4096];

/// Most bytes of an array of entries: 64 times the usual.
const ENTRIES_MAX_BYTES: u64 = 1 << 20;

const ENTRY_BYTES: u64 = 128;
const ENTRY_MAX_BYTES: u64 = 4096;
const HEADER_BYTES: usize = 92;

/// A table that was found valid.
#[derive(Debug)]
pub(crate) struct Gpt {
    pub(crate) sector_bytes: u64,
    pub(crate) partitions: Vec<Partition>,
}

/// A header whose CRC is right.
struct Header {
    alternate_lba: u64,
    entries_lba: u64,
    entries: u32,
    entry_bytes: u32,
    entries_crc: u32,
}

/// Finds the table: the one at the beginning, else the one at the end. `last_lba` is the last sector of the disk by
/// what the protective MBR says; with it the second table is found on a disk that has grown.
pub(crate) fn read(probe: &Probe<'_>, last_lba: Option<u64>) -> Option<Gpt> {
    let mut backups = Vec::new();
    for sector_bytes in SECTOR_BYTES {
        let header = header_at(probe, 1, sector_bytes);
        if let Some(header) = &header {
            if let Some(gpt) = table(probe, header, sector_bytes) {
                return Some(gpt);
            }
            probe.note("the entries of the GPT at the beginning of the disk are damaged");
        }
        let at_end = (probe.size_bytes() / sector_bytes).checked_sub(1);
        let named = header.map(|header| header.alternate_lba);
        backups.extend([named, at_end, last_lba].into_iter().flatten().map(|lba| (lba, sector_bytes)));
    }
    for (lba, sector_bytes) in backups {
        // The one at the beginning was tried.
        if let Some(header) = header_at(probe, lba, sector_bytes).filter(|_| lba > 1)
            && let Some(gpt) = table(probe, &header, sector_bytes)
        {
            probe.note("the GPT at the beginning of the disk cannot be used; its backup is");
            return Some(gpt);
        }
    }
    None
}

fn header_at(probe: &Probe<'_>, lba: u64, sector_bytes: u64) -> Option<Header> {
    let sector = probe.read(lba.checked_mul(sector_bytes)?, sector_bytes)?;
    if !sector.starts_with(b"EFI PART") {
        return None;
    }
    let length = usize::try_from(u32_at(&sector, 12)?).ok()?;
    let mut header = sector.get(..length)?.to_vec();
    if header.len() < HEADER_BYTES {
        return None;
    }
    header[16..20].fill(0);
    if u32_at(&sector, 16)? != crc32fast::hash(&header) {
        probe.note(format!("the GPT header at sector {lba} is damaged"));
        return None;
    }
    // A copy of a header that lies elsewhere describes another place.
    (u64_at(&sector, 24)? == lba).then_some(Header {
        alternate_lba: u64_at(&sector, 32)?,
        entries_lba: u64_at(&sector, 72)?,
        entries: u32_at(&sector, 80)?,
        entry_bytes: u32_at(&sector, 84)?,
        entries_crc: u32_at(&sector, 88)?,
    })
}

fn table(probe: &Probe<'_>, header: &Header, sector_bytes: u64) -> Option<Gpt> {
    let entry_bytes = u64::from(header.entry_bytes);
    if !entry_bytes.is_power_of_two() || !(ENTRY_BYTES..=ENTRY_MAX_BYTES).contains(&entry_bytes) {
        return None;
    }
    let length = entry_bytes.checked_mul(u64::from(header.entries))?;
    if length > ENTRIES_MAX_BYTES {
        return None;
    }
    let entries = probe.read(header.entries_lba.checked_mul(sector_bytes)?, length)?;
    if crc32fast::hash(&entries) != header.entries_crc {
        return None;
    }
    let entries = entries.chunks_exact(usize::try_from(entry_bytes).ok()?);
    let partitions =
        (1..).zip(entries).filter_map(|(number, entry)| partition(probe, number, entry, sector_bytes));
    Some(Gpt { sector_bytes, partitions: partitions.collect() })
}

/// Reads an entry; `None` if it is unused or cannot be shown.
fn partition(probe: &Probe<'_>, number: u32, entry: &[u8], sector_bytes: u64) -> Option<Partition> {
    let kind = entry.first_chunk().filter(|kind| **kind != [0; 16])?;
    let (first, last) = (u64_at(entry, 32)?, u64_at(entry, 40)?);
    let what = format!("partition {number}");
    // Both ends belong to it; the sum cannot overflow in a difference of this order.
    let Some(count) = last.checked_sub(first).map(|more| more.saturating_add(1)) else {
        probe.note(format!("{what} ends before it begins; it is left out"));
        return None;
    };
    Some(Partition {
        number,
        place: probe.place(&what, first, count, sector_bytes)?,
        kind: guid(kind),
        label: label(entry.get(56..128)?),
        uuid: entry.get(16..)?.first_chunk().map(guid),
    })
}

/// Writes a GUID as people do: the first three groups are little-endian numbers.
fn guid(bytes: &[u8; 16]) -> String {
    const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let mut text = String::with_capacity(36);
    for (place, at) in ORDER.into_iter().enumerate() {
        if [4, 6, 8, 10].contains(&place) {
            text.push('-');
        }
        text.push_str(&format!("{:02x}", bytes[at]));
    }
    text
}

/// Reads a name in UTF-16, up to its end or a zero.
fn label(bytes: &[u8]) -> Option<String> {
    let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let text = char::decode_utf16(units.take_while(|&unit| unit != 0));
    let text: String = text.map(|found| found.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guids_and_labels_are_written_as_people_do() {
        let linux = b"\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4";
        assert_eq!(guid(linux), "0fc63daf-8483-4772-8e79-3d69d8477de4");
        assert_eq!(label(b"r\0o\0\xe4\0\0\0x\0").as_deref(), Some("roä"));
        assert_eq!(label(b"\0\xd8x\0").as_deref(), Some("\u{fffd}x"));
        assert_eq!(label(b"\0\0"), None);
    }
}
