//! Logical volumes of LVM2 that are plain pieces of physical volumes on this disk. Everything else that LVM can do
//! (stripes, mirrors, snapshots, thin pools, caches, volumes on other disks) is left out and named.
//!
//! A physical volume has a label in one of its first four sectors (`label.rs`), which leads to rings of text; the
//! text (`text.rs`) describes all volumes of the group, whose newest copy counts (`volumes.rs`).

mod label;
pub(super) mod text;
pub(super) mod volumes;

use std::collections::HashMap;

use super::probe::Probe;
use crate::window::Segment;

#[cfg(any(test, feature = "testing"))]
pub(super) use label::Text;
pub(super) use volumes::Volume;

/// LVM counts in sectors of this size, whatever the disk has.
const SECTOR_BYTES: u64 = 512;

/// Physical volumes on the disk: where each lies, by its id.
pub(super) type Physical = HashMap<String, Segment>;

/// Returns the checksum that LVM uses: CRC-32 without its last step, from a beginning of LVM's own.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    const BEGIN: u32 = 0xf597_a6cf;
    let mut hasher = crc32fast::Hasher::new_with_initial(!BEGIN);
    hasher.update(bytes);
    !hasher.finalize()
}

/// Finds the volumes of the groups whose physical volumes are among these pieces of the disk.
pub(super) fn read(probe: &Probe<'_>, pieces: &[Segment]) -> Vec<Volume> {
    let mut physical = Physical::new();
    let mut texts: Vec<label::Text> = Vec::new();
    for &piece in pieces {
        let Some(label) = label::read(probe, piece) else { continue };
        if physical.contains_key(&label.id) {
            probe.note(format!("the physical volume {} is there twice; the first is used", label.id));
            continue;
        }
        physical.insert(label.id, piece);
        for place in label.rings {
            // The members of a group have the same text.
            if let Some(text) = label::read_ring(probe, piece, place, &texts) {
                texts.push(text);
            }
        }
    }
    volumes::of_texts(probe, &texts, &physical)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_lvms() {
        // The header of a ring as LVM 2.03.16 wrote it.
        let mut header = b" LVM2 x[5A%r0N*>\x01\0\0\0".to_vec();
        header.extend([0x1000u64, 0xff000, 0x1800, 0x805].iter().flat_map(|number| number.to_le_bytes()));
        header.extend(0x2f54_9e13u32.to_le_bytes());
        header.resize(508, 0);
        assert_eq!(checksum(&header), 0x0942_ab78);
    }
}
