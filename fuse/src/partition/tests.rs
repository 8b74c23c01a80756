//! Whole disks through the readers: what is right is found, what is hostile harms nothing.

use proptest::prelude::*;

use super::fuzzing::{check, layout_of};
use super::lvm::checksum;
use super::{Layout, Probe, fuzzing, read};

const LINUX: &[u8; 16] = b"\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4";

/// A disk that is made by hand.
struct Image(Vec<u8>);

impl Image {
    fn new(size_bytes: usize) -> Self {
        Self(vec![0; size_bytes])
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Writes a table of `(place, type, first sector, sectors)` into a sector.
    fn mbr(&mut self, at: usize, entries: &[(usize, u8, u32, u32)]) -> &mut Self {
        self.put(at + 510, b"\x55\xaa");
        for &(place, kind, first, count) in entries {
            let entry = at + 446 + 16 * place;
            self.put(entry + 4, &[kind])
                .put(entry + 8, &first.to_le_bytes())
                .put(entry + 12, &count.to_le_bytes());
        }
        self
    }

    /// Writes a header and its array of `(place, first sector, last sector)`.
    fn gpt(
        &mut self,
        sector: usize,
        lba: usize,
        entries_lba: usize,
        entries: &[(usize, u64, u64)],
    ) -> &mut Self {
        let array = entries_lba * sector;
        for &(place, first, last) in entries {
            let entry = array + 128 * place;
            self.put(entry, LINUX).put(entry + 16, &[(place % 255) as u8 + 1; 16]).put(entry + 56, b"r\0o\0");
            self.put(entry + 32, &first.to_le_bytes()).put(entry + 40, &last.to_le_bytes());
        }
        let last_lba = self.0.len() / sector - 1;
        let other = if lba == 1 { last_lba } else { 1 };
        let mut header = b"EFI PART\0\0\x01\0\x5c\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        header.extend([lba, other, 34, last_lba - 33].iter().flat_map(|lba| (*lba as u64).to_le_bytes()));
        header.extend([7; 16]);
        header.extend((entries_lba as u64).to_le_bytes());
        let number = entries.iter().map(|entry| entry.0 + 1).max().unwrap_or(0).max(128);
        header.extend([number as u32, 128].iter().flat_map(|number| number.to_le_bytes()));
        header.extend(crc32fast::hash(&self.0[array..array + 128 * number]).to_le_bytes());
        let crc = crc32fast::hash(&header);
        self.put(lba * sector, &header).put(lba * sector + 16, &crc.to_le_bytes())
    }

    /// Writes both tables and the protective MBR.
    fn full_gpt(&mut self, sector: usize, entries: &[(usize, u64, u64)]) -> &mut Self {
        let last = self.0.len() / sector - 1;
        self.mbr(0, &[(0, 0xee, 1, last as u32)]).gpt(sector, 1, 2, entries);
        self.gpt(sector, last, last - 128 * 128 / sector, entries)
    }

    /// Writes a physical volume whose ring has the text at its very end, so that the text turns round.
    fn physical_volume(&mut self, at: usize, id: &[u8; 32], text: &str) -> &mut Self {
        const RING: usize = 4096;
        let (length, start) = (8192, 8192 - 100);
        let (before, behind) = text.as_bytes().split_at(100.min(text.len()));
        self.put(at + RING + start, before).put(at + RING + 512, behind);
        let mut header = b" LVM2 x[5A%r0N*>\x01\0\0\0".to_vec();
        header.extend(
            [RING, length, start, text.len()].iter().flat_map(|number| (*number as u64).to_le_bytes()),
        );
        header.extend(checksum(text.as_bytes()).to_le_bytes());
        header.resize(508, 0);
        self.put(at + RING, &checksum(&header).to_le_bytes()).put(at + RING + 4, &header);
        let mut label = 32u32.to_le_bytes().to_vec();
        label.extend(b"LVM2 001");
        label.extend(id);
        let numbers = [1 << 20, 16384, 0, 0, 0, RING as u64, length as u64, 0, 0];
        label.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        label.resize(492, 0);
        self.put(at + 512, b"LABELONE\x01")
            .put(at + 528, &checksum(&label).to_le_bytes())
            .put(at + 532, &label)
    }

    fn layout(&self) -> Layout {
        check(&self.0, self.0.len() as u64);
        layout_of(&self.0, self.0.len() as u64)
    }
}

/// Returns name, first byte and size of each part.
fn parts(layout: &Layout) -> Vec<(&str, u64, u64)> {
    let place =
        |part: &super::layout::Part| part.window.pieces(0, 1).next().map_or(0, |piece| piece.disk_offset);
    layout.parts.iter().map(|part| (&*part.file_name, place(part), part.window.size_bytes())).collect()
}

#[track_caller]
fn has_finding(layout: &Layout, text: &str) {
    assert!(layout.findings.iter().any(|finding| finding.contains(text)), "{text}: {:?}", layout.findings);
}

const MIB: usize = 1 << 20;

#[test]
fn a_gpt_is_read_with_both_sizes_of_sectors() {
    for (sector, bytes) in [(512, 512), (4096, 4096)] {
        let mut image = Image::new(MIB);
        let layout = image.full_gpt(sector, &[(0, 64, 71), (2, 100, 100)]).layout();
        assert_eq!(parts(&layout), [("1.img", 64 * bytes, 8 * bytes), ("3.img", 100 * bytes, bytes)]);
        assert_eq!((layout.table, layout.findings.len()), (Some(("gpt", bytes)), 0));
        let part = &layout.parts[0];
        assert_eq!(part.kind.as_deref(), Some("0fc63daf-8483-4772-8e79-3d69d8477de4"));
        assert_eq!((part.label.as_deref(), part.uuid.as_ref().map(String::len)), (Some("ro"), Some(36)));
    }
}

#[test]
fn the_backup_is_used_where_the_first_is_damaged() {
    for sector in [512, 4096] {
        for (at, length) in [(sector, 1), (sector + 40, 1), (2 * sector, 16), (sector, 8 * 1024)] {
            let mut image = Image::new(MIB);
            image.full_gpt(sector, &[(0, 64, 71)]).0[at..at + length].fill(0x5a);
            let layout = image.layout();
            assert_eq!(parts(&layout), [("1.img", 64 * sector as u64, 8 * sector as u64)], "{at}");
            has_finding(&layout, "its backup is");
        }
    }
}

#[test]
fn a_disk_that_grew_still_has_its_backup() {
    let mut image = Image::new(MIB);
    image.full_gpt(512, &[(0, 64, 71)]).0[512..1024].fill(0);
    image.0.resize(2 * MIB, 0);
    assert_eq!(parts(&image.layout()), [("1.img", 64 * 512, 8 * 512)], "the protective MBR says where it is");
    let mut image = Image::new(MIB);
    image.full_gpt(512, &[(0, 64, 71)]).0[1024] ^= 1;
    image.0.resize(2 * MIB, 0);
    image.0[450..466].fill(0xff);
    image.0[450] = 0xee;
    assert_eq!(parts(&image.layout()), [("1.img", 64 * 512, 8 * 512)], "the first header says where it is");
}

#[test]
fn a_gpt_is_found_without_its_mbr_unless_something_else_is_there() {
    let mut image = Image::new(MIB);
    image.full_gpt(512, &[(0, 64, 71)]).0[..512].fill(0);
    has_finding(&image.layout(), "nevertheless");
    image.0[..40_000].fill(0);
    assert_eq!(parts(&image.layout()).len(), 1, "only the end of the disk is left");
    image.put(1080, b"\x53\xef");
    assert_eq!(image.layout(), Layout::default(), "a file system on the whole disk");
    image.0[1080] = 0;
    let layout = image.mbr(0, &[(0, 0x83, 100, 9)]).layout();
    assert_eq!((layout.table, parts(&layout)), (Some(("mbr", 512)), vec![("1.img", 51_200, 9 * 512)]));
}

#[test]
fn hostile_entries_of_a_gpt_are_cut_or_left_out() {
    let mut image = Image::new(MIB);
    let far = 1 << 60;
    image.full_gpt(
        512,
        &[
            (0, 64, 3000),
            (1, 2048, 2050),
            (2, far, far),
            (3, 9, 8),
            (4, 0, u64::MAX),
            (5, u64::MAX, u64::MAX),
        ],
    );
    let layout = image.layout();
    assert_eq!(parts(&layout), [("1.img", 32_768, MIB as u64 - 32_768), ("5.img", 0, MIB as u64)]);
    has_finding(&layout, "partition 1 ends beyond");
    has_finding(&layout, "partition 2 begins beyond");
    has_finding(&layout, "partition 3 begins beyond");
    has_finding(&layout, "partition 4 ends before");
    has_finding(&layout, "partition 6 begins beyond");
}

#[test]
fn hostile_headers_of_a_gpt_are_refused() {
    // Number and size of the entries, and the place of the array.
    let cases: [(u32, u32, u64); 7] = [
        (u32::MAX, u32::MAX, 2),
        (u32::MAX, 128, 2),
        (128, 0, 2),
        (128, 127, 2),
        (1, 1 << 31, 2),
        (128, 128, u64::MAX),
        (128, 128, 1 << 55),
    ];
    for (number, size, place) in cases {
        let mut image = Image::new(MIB);
        image.mbr(0, &[(0, 0xee, 1, 2047)]).gpt(512, 1, 2, &[(0, 64, 71)]);
        image.put(512 + 80, &number.to_le_bytes()).put(512 + 84, &size.to_le_bytes());
        image.put(512 + 72, &place.to_le_bytes()).put(512 + 16, &[0; 4]);
        let crc = crc32fast::hash(&image.0[512..512 + 92]);
        let layout = image.put(512 + 16, &crc.to_le_bytes()).layout();
        assert!(layout.parts.is_empty(), "{number} {size} {place}");
        has_finding(&layout, "neither it nor its backup");
    }
}

#[test]
fn an_array_of_entries_has_a_bound() {
    let mut image = Image::new(4 * MIB);
    // Twice as many as are read, with the right checksum.
    image.mbr(0, &[(0, 0xee, 1, 8191)]).gpt(512, 1, 2, &[(0, 64, 71), (16_383, 64, 71)]);
    assert!(image.layout().parts.is_empty());
}

#[test]
fn a_header_counts_only_at_its_own_place() {
    let mut image = Image::new(MIB);
    image.full_gpt(512, &[(0, 64, 71)]);
    // Another disk was copied over this one without its last sector.
    let moved = image.0[MIB - 512..].to_vec();
    image.put(MIB - 512, &[0; 512]).put(512, &moved);
    assert!(image.layout().parts.is_empty());
}

#[test]
fn the_gpt_rules_in_a_hybrid_table() {
    let mut image = Image::new(MIB);
    image.full_gpt(512, &[(0, 64, 71), (4, 100, 109)]);
    image.mbr(0, &[(0, 0x83, 64, 8), (1, 0xee, 1, 40), (2, 0x07, 500, 9)]);
    let layout = image.layout();
    assert_eq!(parts(&layout), [("1.img", 64 * 512, 8 * 512), ("5.img", 51_200, 5120)]);
    assert_eq!(layout.findings.len(), 1);
    has_finding(&layout, "sector 500");
    image.0[512..1024].fill(0);
    image.0[MIB - 512..].fill(0);
    let layout = image.layout();
    assert_eq!(parts(&layout), [("1.img", 64 * 512, 8 * 512), ("3.img", 256_000, 9 * 512)]);
    has_finding(&layout, "neither it nor its backup");
}

#[test]
fn logical_partitions_are_numbered_as_the_kernel_does() {
    let mut image = Image::new(MIB);
    image.mbr(0, &[(0, 0x83, 10, 10), (1, 0x05, 100, 1000), (3, 0x82, 30, 5)]);
    // The second link has no partition of its own, the third one has rubbish in its third entry.
    image.mbr(100 * 512, &[(0, 0x83, 2, 20), (1, 0x05, 200, 100)]);
    image.mbr(300 * 512, &[(1, 0x05, 400, 100)]);
    image.mbr(500 * 512, &[(0, 0x8e, 2, 30), (2, 0x07, 5000, 9)]);
    let layout = image.layout();
    let sectors: Vec<_> =
        parts(&layout).into_iter().map(|(name, at, size)| (name, at / 512, size / 512)).collect();
    assert_eq!(sectors, [("1.img", 10, 10), ("4.img", 30, 5), ("5.img", 102, 20), ("6.img", 502, 30)]);
    assert!(layout.findings.is_empty(), "{:?}", layout.findings);
    assert_eq!(layout.parts[3].kind.as_deref(), Some("0x8e"));
}

#[test]
fn hostile_chains_end() {
    let mut image = Image::new(MIB);
    image.mbr(0, &[(0, 0x0f, 100, 1000)]).mbr(100 * 512, &[(0, 0x83, 2, 20), (1, 0x05, 0, 100)]);
    let layout = image.layout();
    assert_eq!(parts(&layout).len(), 1);
    has_finding(&layout, "leads back to itself");

    let mut image = Image::new(MIB);
    image.mbr(0, &[(0, 0x85, 1, 2000)]);
    for link in 1..2000u32 {
        image.mbr(link as usize * 512, &[(0, 0x83, 0, 1), (1, 0x05, link, 1)]);
    }
    let layout = image.layout();
    assert_eq!(parts(&layout).len(), 256);
    has_finding(&layout, "longer than 256");

    let mut image = Image::new(MIB);
    image.mbr(0, &[(0, 0x05, u32::MAX, u32::MAX), (1, 0x83, u32::MAX, u32::MAX), (2, 0x83, 1, u32::MAX)]);
    let layout = image.layout();
    assert_eq!(parts(&layout), [("3.img", 512, MIB as u64 - 512)]);
    has_finding(&layout, "breaks off");
    has_finding(&layout, "partition 2 begins beyond");
    has_finding(&layout, "partition 3 ends beyond");
}

#[test]
fn overlapping_partitions_are_both_shown() {
    let mut image = Image::new(MIB);
    let layout = image.mbr(0, &[(0, 0x83, 10, 100), (1, 0x83, 10, 100), (2, 0x83, 50, 100)]).layout();
    assert_eq!(parts(&layout).len(), 3);
}

#[test]
fn a_file_system_without_a_table_has_no_parts() {
    let mut fat = Image::new(MIB);
    fat.mbr(0, &[]).put(0, b"\xeb\x3c\x90mkfs.fat").put(54, b"FAT16   ");
    assert_eq!(fat.layout(), Layout::default());
    let mut code = Image::new(MIB);
    code.mbr(0, &[]).put(3, b"NTFS    ").put(440, &[b'x'; 70]);
    assert_eq!(code.layout(), Layout::default());
    // Its code happens to look like a table, but not like one of this disk.
    fat.mbr(0, &[(0, 0x20, 0, 77), (1, 0x6e, 1 << 30, 77)]);
    assert_eq!(fat.layout(), Layout::default());
    for size in [0, 1, 511, 512, 513, 4096, 5000] {
        assert_eq!(Image::new(size).layout(), Layout::default(), "{size}");
    }
}

#[test]
fn an_mbr_of_a_disk_with_large_sectors_is_told_by_what_begins_there() {
    let mut image = Image::new(MIB);
    image.mbr(0, &[(0, 0x83, 10, 20), (1, 0x05, 40, 100)]).mbr(40 * 4096, &[(0, 0x83, 2, 20)]);
    assert_eq!(image.layout().table, Some(("mbr", 512)));
    image.put(42 * 4096, b"XFSB");
    let layout = image.layout();
    assert_eq!(parts(&layout), [("1.img", 40_960, 81_920), ("5.img", 42 * 4096, 81_920)]);
    assert_eq!((layout.table, layout.findings.len()), (Some(("mbr", 4096)), 0));
    image.put(10 * 512, b"XFSB");
    assert_eq!(image.layout().table, Some(("mbr", 512)));
}

const ID: &[u8; 32] = b"abcdefabcdefabcdefabcdefabcdefab";

fn group(volumes: &str) -> String {
    format!(
        "vg {{ id = \"V\" seqno = 1 extent_size = 8
        physical_volumes {{ pv0 {{ id = \"abcdef-abcd-efab-cdef-abcd-efab-cdefab\" pe_start = 32 }} }}
        logical_volumes {{ {volumes} }} }}\0"
    )
}

const ROOT: &str = "root { id = \"L\" status = [\"VISIBLE\"] segment_count = 1
    segment1 { start_extent = 0 extent_count = 3 type = \"striped\" stripe_count = 1 stripes = [ \"pv0\", 2 ] } }";

#[test]
fn volumes_are_found_in_partitions_and_on_a_whole_disk() {
    let mut image = Image::new(MIB);
    let layout = image.physical_volume(0, ID, &group(ROOT)).layout();
    assert_eq!((parts(&layout), layout.table), (vec![("vg-root.img", 16_384 + 8192, 12_288)], None));

    let mut image = Image::new(MIB);
    image.mbr(0, &[(0, 0x8e, 8, 300)]).physical_volume(4096, ID, &group(ROOT));
    let layout = image.layout();
    let size = 300 * 512;
    assert_eq!(parts(&layout), [("1.img", 4096, size), ("vg-root.img", 4096 + 16_384 + 8192, 12_288)]);
    assert!(layout.findings.is_empty(), "{:?}", layout.findings);
    assert_eq!((layout.parts[0].content, layout.parts[1].uuid.as_deref()), (Some("LVM2"), Some("L")));

    // The volume is longer than its partition.
    image.mbr(0, &[(0, 0x8e, 8, 70)]);
    let layout = image.layout();
    assert_eq!(parts(&layout).len(), 1);
    has_finding(&layout, "beyond the end of its physical volume");
}

#[test]
fn damaged_or_hostile_labels_and_rings_cost_only_their_volumes() {
    let at_ring = |at: usize, number: u64, finding: &str| {
        let mut image = Image::new(MIB);
        image.physical_volume(0, ID, &group(ROOT)).put(4096 + at, &number.to_le_bytes());
        let crc = checksum(&image.0[4100..4608]);
        let layout = image.put(4096, &crc.to_le_bytes()).layout();
        assert!(layout.parts.is_empty(), "{at} {number}");
        has_finding(&layout, finding);
    };
    for number in [1, 511, 8192, u64::MAX] {
        at_ring(40, number, "is damaged");
    }
    for number in [0, 1, 8000, 1 << 30, u64::MAX] {
        at_ring(48, number, "is damaged");
    }
    at_ring(24, 512, "is damaged");
    at_ring(32, 0, "is damaged");
    // A ring that LVM was told not to use.
    let mut image = Image::new(MIB);
    image.physical_volume(0, ID, &group(ROOT)).put(4096 + 60, &[1]);
    let crc = checksum(&image.0[4100..4608]);
    assert_eq!(image.put(4096, &crc.to_le_bytes()).layout(), Layout::default());
    let mut image = Image::new(MIB);
    image.physical_volume(0, ID, &group(ROOT)).0[600] ^= 1;
    has_finding(&image.layout(), "the label of the physical volume at 0 is damaged");
    let mut image = Image::new(MIB);
    image.physical_volume(0, ID, "vg { id = ");
    has_finding(&image.layout(), "cannot be read");
}

#[test]
fn two_volumes_of_one_name_and_one_volume_twice() {
    let mut image = Image::new(MIB);
    image.physical_volume(0, ID, &group(&format!("{ROOT} {ROOT}")));
    let layout = image.layout();
    assert_eq!(parts(&layout).len(), 1);
    has_finding(&layout, "two of the name \"vg-root.img\"");
    let mut image = Image::new(MIB);
    image.mbr(0, &[(0, 0x8e, 8, 300), (1, 0x8e, 8, 200)]).physical_volume(4096, ID, &group(ROOT));
    let layout = image.layout();
    assert_eq!(parts(&layout).len(), 3);
    has_finding(&layout, "is there twice");
}

#[test]
fn what_can_be_read_of_a_damaged_disk_is_shown() {
    let mut image = Image::new(MIB);
    image.full_gpt(512, &[(0, 64, 71)]);
    let read_but = |broken: std::ops::Range<u64>| {
        let fill = |offset: u64, out: &mut [u8]| {
            out.copy_from_slice(&image.0[offset as usize..offset as usize + out.len()]);
            offset + out.len() as u64 <= broken.start || offset >= broken.end
        };
        read(Probe::new(MIB as u64, &fill))
    };
    let layout = read_but(0..20_000);
    assert_eq!((parts(&layout).len(), layout.is_unreadable), (1, true));
    has_finding(&layout, "cannot be read");
    let layout = read_but(0..MIB as u64);
    assert_eq!((parts(&layout).len(), layout.is_unreadable), (0, true));
    assert!(!read_but(0..0).is_unreadable);
}

#[test]
fn the_description_is_json_with_units() {
    let mut image = Image::new(MIB);
    let text =
        image.mbr(0, &[(0, 0x83, 10, 10)]).put(440, &[1, 2, 3, 4]).put(10 * 512, b"XFSB").layout().to_json();
    let found: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let part = serde_json::json!({
        "file": "1.img", "start_bytes": 5120, "size_bytes": 5120, "type": "0x83", "label": null,
        "uuid": "04030201-01", "content": "xfs",
    });
    let wanted = serde_json::json!({
        "table": "mbr", "sector_size_bytes": 512, "parts": [part], "findings": [],
    });
    assert_eq!(found, wanted);
}

#[test]
fn no_more_than_a_thousand_partitions_are_shown() {
    let mut image = Image::new(4 * MIB);
    let entries: Vec<_> = (0..2000).map(|place| (place, 2000 + place as u64, 2000 + place as u64)).collect();
    let layout = image.mbr(0, &[(0, 0xee, 1, 8191)]).gpt(512, 1, 2, &entries).layout();
    assert_eq!((layout.parts.len(), layout.weight()), (1024, 1 + 5 * 1024));
    assert!(layout.part("1024.img").is_some() && layout.part("1025.img").is_none());
    has_finding(&layout, "only the first 1024");
}

/// A disk that has something everywhere, to be spoiled.
fn rich() -> Vec<u8> {
    let mut image = Image::new(64 * 1024);
    image.full_gpt(512, &[(0, 40, 80), (1, 60, 70)]).mbr(0, &[(1, 0x05, 34, 50), (2, 0x8e, 40, 41)]);
    image.mbr(34 * 512, &[(0, 0x83, 1, 2), (1, 0x05, 3, 4)]);
    image.physical_volume(40 * 512, ID, &group(ROOT));
    image.0
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_harm(data in proptest::collection::vec(any::<u8>(), 0..3000)) {
        fuzzing::partitions(&data);
    }

    #[test]
    fn no_change_of_a_good_disk_harms(
        changes in proptest::collection::vec((0usize..64 * 1024, any::<[u8; 4]>()), 0..8),
        headers in proptest::collection::vec((0usize..1600, any::<u8>()), 0..8),
        label in proptest::collection::vec((20_992usize..25_180, any::<u8>()), 0..4),
    ) {
        let mut data = rich();
        for (at, bytes) in changes {
            let end = (at + 4).min(data.len());
            data[at..end].copy_from_slice(&bytes[..end - at]);
        }
        for (at, byte) in headers.into_iter().chain(label) {
            data[at] = byte;
        }
        fuzzing::partitions(&data);
    }
}
