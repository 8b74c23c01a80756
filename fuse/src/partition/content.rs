//! What begins at a place of a disk, told by the marks of file systems and volumes. Used where a table alone is
//! ambiguous, and shown to people; nothing is hidden for want of a mark.

use super::probe::Probe;
use crate::window::Segment;

/// A mark: where it lies, what it is, what it means.
type Mark = (usize, &'static [u8], &'static str);

/// Marks in the first 4 KiB.
const NEAR: [Mark; 14] = [
    (0, b"XFSB", "xfs"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0, b"hsqs", "squashfs"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"EXFAT   ", "exFAT"),
    (54, b"FAT12   ", "FAT"),
    (54, b"FAT16   ", "FAT"),
    (82, b"FAT32   ", "FAT"),
    (512, b"LABELONE", "LVM2"),
    (0, b"LABELONE", "LVM2"),
    (1024, b"LABELONE", "LVM2"),
    (1536, b"LABELONE", "LVM2"),
    (1080, b"\x53\xef", "ext"),
    (4086, b"SWAPSPACE2", "swap"),
];

/// Bytes of a piece in which the near marks lie.
const NEAR_BYTES: u64 = 4096;

/// Where btrfs has its first superblock's mark.
const BTRFS_AT: u64 = 65_600;
const BTRFS: &[u8] = b"_BHRfS_M";

/// Returns what begins at the beginning of a piece of the disk, where its mark is known: `ext`, `xfs`, `LVM2`.
pub(crate) fn of(probe: &Probe<'_>, piece: Segment) -> Option<&'static str> {
    let near = probe.read_in(piece, 0, NEAR_BYTES.min(piece.length)).unwrap_or_default();
    let is_there = |at: usize, mark: &[u8]| near.get(at..).is_some_and(|found| found.starts_with(mark));
    if let Some(&(_, _, name)) = NEAR.iter().find(|(at, mark, _)| is_there(*at, mark)) {
        return Some(name);
    }
    let far = probe.read_in(piece, BTRFS_AT, BTRFS.len() as u64)?;
    (far == BTRFS).then_some("btrfs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_in_their_piece_only() {
        let mut disk = vec![0; 200_000];
        disk[1000 + 1080..1000 + 1082].copy_from_slice(b"\x53\xef");
        disk[100_000 + 65_600..][..8].copy_from_slice(BTRFS);
        let read = |offset: u64, out: &mut [u8]| {
            out.copy_from_slice(&disk[offset as usize..offset as usize + out.len()]);
            true
        };
        let probe = Probe::new(disk.len() as u64, &read);
        let found = |disk_offset, length| of(&probe, Segment { disk_offset, length });
        assert_eq!(found(1000, 5000), Some("ext"));
        assert_eq!(found(1000, 1082), Some("ext"));
        assert_eq!(found(1000, 1081), None);
        assert_eq!(found(100_000, 100_000), Some("btrfs"));
        assert_eq!(found(100_000, 65_607), None);
        assert_eq!(found(0, 0), None);
        // Swap has its mark at the end of its first page.
        disk[150_000 - 10..150_000].copy_from_slice(b"SWAPSPACE2");
        let read = |offset: u64, out: &mut [u8]| {
            out.copy_from_slice(&disk[offset as usize..offset as usize + out.len()]);
            true
        };
        let probe = Probe::new(disk.len() as u64, &read);
        assert_eq!(of(&probe, Segment { disk_offset: 150_000 - 4096, length: 9000 }), Some("swap"));
    }
}
