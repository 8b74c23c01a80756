//! What the fuzz target calls: any bytes as a disk. Checksums stop nearly all wrong bytes; to try what lies behind
//! them, they are also made right. Only with the feature `testing`.

use std::collections::HashMap;

use super::lvm::{self, text, volumes};
use super::probe::{Probe, u32_at, u64_at};
use super::{Layout, read};
use crate::window::Segment;

/// Size of the disk on which the bytes lie, at the beginning and again at the end.
const DISK_BYTES: u64 = 1 << 40;

/// Reads the tables of a disk that begins with `data`, as they are and with checksums made right, and `data` as the
/// text of a volume group.
pub fn partitions(data: &[u8]) {
    check(data, data.len() as u64);
    let mut disk = data.to_vec();
    for sector_bytes in [512, 4096] {
        let _ = mend_gpt(&mut disk, sector_bytes);
    }
    for sector in 0..4 {
        let _ = mend_label(&mut disk, sector);
    }
    check(&disk, disk.len() as u64);
    check(&disk, DISK_BYTES);
    if let Ok(text) = std::str::from_utf8(data) {
        description(text);
    }
}

/// Reads a disk of `size_bytes` with `data` at both ends and zeros between them.
pub(super) fn layout_of(data: &[u8], size_bytes: u64) -> Layout {
    let copy = size_bytes - data.len() as u64;
    let fill = |offset: u64, out: &mut [u8]| {
        assert!(offset + out.len() as u64 <= size_bytes, "a read beyond the end of the disk");
        for begin in [0, copy] {
            let (from, to) = (offset.max(begin), (offset + out.len() as u64).min(begin + data.len() as u64));
            if from < to {
                let source = &data[(from - begin) as usize..(to - begin) as usize];
                out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
            }
        }
        true
    };
    read(Probe::new(size_bytes, &fill))
}

/// Checks what is always true of the parts of a disk.
pub(super) fn check(data: &[u8], size_bytes: u64) {
    let layout = layout_of(data, size_bytes);
    for part in &layout.parts {
        let pieces: Vec<Segment> = part.window.pieces(0, u64::MAX).collect();
        let is_inside = |piece: &Segment| {
            let end = piece.disk_offset.checked_add(piece.length);
            piece.length > 0 && end.is_some_and(|end| end <= size_bytes)
        };
        assert!(pieces.iter().all(is_inside), "{part:?}");
        assert!((1..=size_bytes).contains(&part.window.size_bytes()), "{part:?}");
        let name = &*part.file_name;
        assert!(name.len() <= 255 && !name.contains(['/', '\0']), "{name:?}");
        assert_eq!(layout.part(name), Some(part), "two parts of one name");
    }
    assert!(serde_json::from_slice::<serde_json::Value>(&layout.to_json()).is_ok());
}

fn description(text: &str) {
    let Some(root) = text::parse(text) else { return };
    let ids = root.sections().filter_map(|(_, group)| group.section("physical_volumes"));
    let ids = ids.flat_map(text::Section::sections).filter_map(|(_, volume)| volume.text("id"));
    let place = Segment { disk_offset: 1 << 20, length: 1 << 30 };
    let physical: HashMap<String, Segment> = ids.map(|id| (id.replace('-', ""), place)).collect();
    let probe = Probe::new(DISK_BYTES, &|_, _| true);
    for volume in volumes::of_texts(&probe, &[lvm::Text::new(text)], &physical) {
        for piece in volume.segments {
            let end = piece.disk_offset.checked_add(piece.length);
            assert!(piece.disk_offset >= 1 << 20 && end.is_some_and(|end| end <= (1 << 20) + (1 << 30)));
        }
    }
}

/// Makes the two checksums of a GPT header right, where the array of entries lies in `disk`.
fn mend_gpt(disk: &mut [u8], sector_bytes: usize) -> Option<()> {
    let header = disk.get(sector_bytes..)?;
    let entries_at = usize::try_from(u64_at(header, 72)?).ok()?.checked_mul(sector_bytes)?;
    let length = u32_at(header, 80)?.checked_mul(u32_at(header, 84)?)?;
    let entries = disk.get(entries_at..entries_at.checked_add(usize::try_from(length).ok()?)?)?;
    let crc = crc32fast::hash(entries).to_le_bytes();
    disk.get_mut(sector_bytes + 88..sector_bytes + 92)?.copy_from_slice(&crc);
    let length = usize::try_from(u32_at(disk.get(sector_bytes..)?, 12)?).ok()?;
    disk.get_mut(sector_bytes + 16..sector_bytes + 20)?.fill(0);
    let crc = crc32fast::hash(disk.get(sector_bytes..)?.get(..length)?).to_le_bytes();
    disk.get_mut(sector_bytes + 16..sector_bytes + 20)?.copy_from_slice(&crc);
    Some(())
}

/// Makes the checksums of a label in this sector right, of the rings that it leads to, and of their text.
fn mend_label(disk: &mut [u8], sector: usize) -> Option<()> {
    let at = sector * 512;
    if !disk.get(at..)?.starts_with(b"LABELONE") {
        return None;
    }
    // The first ring that lies in the data is enough.
    let places: Vec<usize> = (at + 72..at + 504).step_by(16).collect();
    for place in places {
        let ring = usize::try_from(u64_at(disk, place)?).ok()?;
        if ring > 0 && disk.len() >= 512 && ring <= disk.len() - 512 {
            let _ = mend_ring(disk, ring);
        }
    }
    let crc = lvm::checksum(disk.get(at + 20..at + 512)?).to_le_bytes();
    disk.get_mut(at + 16..at + 20)?.copy_from_slice(&crc);
    Some(())
}

fn mend_ring(disk: &mut [u8], ring: usize) -> Option<()> {
    let header = disk.get(ring..)?;
    let (start, length) = (u64_at(header, 40)?, u64_at(header, 48)?);
    let start = ring.checked_add(usize::try_from(start).ok()?)?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    if let Some(text) = disk.get(start..end) {
        let crc = lvm::checksum(text).to_le_bytes();
        disk.get_mut(ring + 56..ring + 60)?.copy_from_slice(&crc);
    }
    let crc = lvm::checksum(disk.get(ring + 4..ring + 512)?).to_le_bytes();
    disk.get_mut(ring..ring + 4)?.copy_from_slice(&crc);
    Some(())
}
