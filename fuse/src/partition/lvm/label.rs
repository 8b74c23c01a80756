//! The label of a physical volume and the rings of text that it leads to, as they lie on the disk.

use super::super::probe::{Probe, READ_MAX_BYTES, u32_at, u64_at};
use super::{SECTOR_BYTES, checksum};
use crate::window::Segment;

/// Sectors in which the label may be.
const LABEL_SECTORS: u64 = 4;

const MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";

/// A copy that is not to be used.
const IGNORED: u32 = 1;

/// Bytes of the header of a ring, behind which the text turns round.
const RING_HEADER_BYTES: u64 = 512;

/// Most rings of a physical volume; LVM makes two.
const RINGS_MAX: usize = 8;

/// What the label says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Label {
    /// 32 letters and digits.
    pub(super) id: String,
    /// Where the rings lie in the physical volume.
    pub(super) rings: Vec<Segment>,
}

/// The description of a group, with the checksum that it was found to have.
#[derive(Debug)]
pub(in super::super) struct Text {
    pub(super) checksum: u32,
    pub(super) text: String,
}

#[cfg(any(test, feature = "testing"))]
impl Text {
    /// Makes a text for tests, which do not ask for its checksum.
    pub(in super::super) fn new(text: &str) -> Self {
        Self { checksum: 0, text: text.to_owned() }
    }
}

/// Reads the label at the beginning of a piece of the disk; `None` if that is no physical volume.
pub(super) fn read(probe: &Probe<'_>, piece: Segment) -> Option<Label> {
    let length = (LABEL_SECTORS * SECTOR_BYTES).min(piece.length);
    let sectors = probe.read_in(piece, 0, length)?;
    for (number, sector) in (0u64..).zip(sectors.chunks_exact(512)) {
        if !sector.starts_with(b"LABELONE") || sector.get(24..32)? != b"LVM2 001" {
            continue;
        }
        if u64_at(sector, 8)? == number && u32_at(sector, 16)? == checksum(sector.get(20..)?) {
            let contents = usize::try_from(u32_at(sector, 20)?).ok()?;
            return contents_of(sector.get(contents..)?);
        }
        probe.note(format!("the label of the physical volume at {} is damaged", piece.disk_offset));
    }
    None
}

/// Reads what is behind the label's header: the id, the size, the places of data, those of rings. A place of zero ends
/// either list.
fn contents_of(bytes: &[u8]) -> Option<Label> {
    let id = String::from_utf8(bytes.get(..32)?.to_vec()).ok()?;
    if !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let mut places = bytes.get(40..)?.chunks_exact(16).map_while(|place| {
        let place = Segment { disk_offset: u64_at(place, 0)?, length: u64_at(place, 8)? };
        Some(place)
    });
    let is_place = |place: &Segment| place.disk_offset > 0;
    places.by_ref().take_while(is_place).for_each(drop);
    Some(Label { id, rings: places.take_while(is_place).take(RINGS_MAX).collect() })
}

/// Reads the text that is valid in a ring of the physical volume in `piece`; `None` if there is none, or if it is
/// among `known`.
pub(super) fn read_ring(probe: &Probe<'_>, piece: Segment, ring: Segment, known: &[Text]) -> Option<Text> {
    let damaged = || {
        probe.note(format!("metadata of the physical volume at {} is damaged", piece.disk_offset));
        None
    };
    let header = probe.read_in(piece, ring.disk_offset, RING_HEADER_BYTES)?;
    let is_header = header.get(4..20)? == MAGIC && u32_at(&header, 0)? == checksum(header.get(4..)?);
    if !is_header || u32_at(&header, 20)? != 1 || u64_at(&header, 24)? != ring.disk_offset {
        return damaged();
    }
    let ring_length = u64_at(&header, 32)?;
    let (start, length) = (u64_at(&header, 40)?, u64_at(&header, 48)?);
    let (wanted, flags) = (u32_at(&header, 56)?, u32_at(&header, 60)?);
    if start == 0 || flags & IGNORED != 0 || known.iter().any(|text| text.checksum == wanted) {
        return None;
    }
    let room = ring_length.saturating_sub(RING_HEADER_BYTES);
    if start < RING_HEADER_BYTES || start >= ring_length || length > room || length > READ_MAX_BYTES {
        return damaged();
    }
    // What does not fit goes on behind the ring's header.
    let before_turn = length.min(ring_length - start);
    let mut text = probe.read_in(piece, ring.disk_offset.checked_add(start)?, before_turn)?;
    if before_turn < length {
        let place = ring.disk_offset.checked_add(RING_HEADER_BYTES)?;
        text.extend(probe.read_in(piece, place, length - before_turn)?);
    }
    if checksum(&text) != wanted {
        return damaged();
    }
    match String::from_utf8(text) {
        Ok(text) => Some(Text { checksum: wanted, text }),
        Err(_) => damaged(),
    }
}
