//! What a disk says of itself in its first bytes: its partition table, or the file system or container that fills it,
//! and the id that was given to it. Pure; bytes of any kind are only ever "nothing known".

use std::fmt;

/// A partition table, file system or container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// `gpt`, `mbr`, `ext`, ...; `none` when nothing known is there.
    pub kind: String,
    /// Its id, where it has one.
    pub id: Option<String>,
}

/// So many bytes from the beginning of a disk are looked at.
const HEAD_BYTES: usize = 128 << 10;
/// What a disk without anything known has.
const NOTHING: &str = "none";

impl Content {
    /// Reads the first bytes of a disk; fewer than there are do no harm.
    pub fn probe(head: &[u8]) -> Self {
        let head = Head(&head[..head.len().min(HEAD_BYTES)]);
        let (kind, id) = head.probe().unwrap_or((NOTHING, None));
        Self { kind: kind.to_owned(), id }
    }

    /// Whether nothing known is there.
    pub fn is_nothing(&self) -> bool {
        self.kind == NOTHING
    }
}

impl fmt::Display for Content {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind.as_str() {
            "gpt" | "mbr" => write!(out, "partition table ({})", self.kind)?,
            "lvm" => out.write_str("LVM physical volume")?,
            "luks" => out.write_str("LUKS container")?,
            NOTHING => out.write_str("content")?,
            kind => write!(out, "file system ({kind})")?,
        }
        match &self.id {
            Some(id) => write!(out, " {id}"),
            None => Ok(()),
        }
    }
}

type Found = (&'static str, Option<String>);

struct Head<'a>(&'a [u8]);

impl Head<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    fn has(&self, at: usize, magic: &[u8]) -> bool {
        self.0.get(at..).is_some_and(|rest| rest.starts_with(magic))
    }

    /// A UUID in the order of its bytes.
    fn uuid(&self, at: usize) -> Option<String> {
        self.bytes::<16>(at).and_then(|bytes| id_of(&bytes))
    }

    /// A table comes first: what is left of a file system below it means nothing.
    fn probe(&self) -> Option<Found> {
        self.gpt().or_else(|| self.mbr()).or_else(|| self.container()).or_else(|| self.file_system())
    }

    fn gpt(&self) -> Option<Found> {
        let at = [512, 4096].into_iter().find(|&at| self.has(at, b"EFI PART"))?;
        // The first three groups are little-endian.
        let id = self.bytes::<16>(at + 56).and_then(|mut bytes| {
            bytes[..4].reverse();
            bytes[4..6].reverse();
            bytes[6..8].reverse();
            id_of(&bytes)
        });
        Some(("gpt", id))
    }

    /// A boot sector with a plausible partition. Boot sectors of DOS file systems end in the same two bytes.
    fn mbr(&self) -> Option<Found> {
        let is_dos = self.has(3, b"NTFS    ")
            || self.has(3, b"EXFAT   ")
            || self.has(54, b"FAT")
            || self.has(82, b"FAT");
        if is_dos || !self.has(510, &[0x55, 0xaa]) {
            return None;
        }
        let entries: [u8; 64] = self.bytes(446)?;
        let is_plausible = entries.chunks_exact(16).all(|entry| matches!(entry[0], 0 | 0x80));
        let is_used = |entry: &[u8]| entry[4] != 0 && entry[12..16] != [0; 4];
        if !is_plausible || !entries.chunks_exact(16).any(is_used) {
            return None;
        }
        let signature = u32::from_le_bytes(self.bytes(440)?);
        Some(("mbr", (signature != 0).then(|| format!("{signature:08x}"))))
    }

    fn container(&self) -> Option<Found> {
        if self.has(0, b"LUKS\xba\xbe") {
            return Some(("luks", self.text(168, 40)));
        }
        let label = (0..4)
            .map(|sector| sector * 512)
            .find(|&at| self.has(at, b"LABELONE") && self.has(at + 24, b"LVM2 001"))?;
        // The id is text; where the header lies stands in the label.
        let header = label.checked_add(u32::from_le_bytes(self.bytes(label + 20)?) as usize)?;
        Some(("lvm", self.text(header, 32)))
    }

    fn file_system(&self) -> Option<Found> {
        if self.has(0, b"XFSB") {
            return Some(("xfs", self.uuid(32)));
        }
        if self.has(0x1_0040, b"_BHRfS_M") {
            return Some(("btrfs", self.uuid(0x1_0020)));
        }
        if self.has(1024 + 56, &[0x53, 0xef]) {
            return Some(("ext", self.uuid(1024 + 104)));
        }
        if self.has(4086, b"SWAPSPACE2") {
            return Some(("swap", self.uuid(1024 + 12)));
        }
        let serial = |at| self.bytes(at).map(u64::from_le_bytes).map(|serial| format!("{serial:016x}"));
        let short = |at| self.bytes(at).map(u32::from_le_bytes).map(|serial| format!("{serial:08x}"));
        match () {
            () if self.has(3, b"NTFS    ") => Some(("ntfs", serial(72))),
            () if self.has(3, b"EXFAT   ") => Some(("exfat", short(100))),
            () if self.has(82, b"FAT32   ") => Some(("fat", short(67))),
            () if self.has(54, b"FAT1") => Some(("fat", short(39))),
            () => None,
        }
    }

    /// A printable text, up to its first zero byte.
    fn text(&self, at: usize, length: usize) -> Option<String> {
        let bytes = self.0.get(at..at.checked_add(length)?)?;
        let text = bytes.split(|&byte| byte == 0).next()?;
        let is_printable = !text.is_empty() && text.iter().all(u8::is_ascii_graphic);
        is_printable.then(|| String::from_utf8_lossy(text).into_owned())
    }
}

/// The usual text of a UUID; nothing for one that is all zeros, which was never set.
fn id_of(bytes: &[u8; 16]) -> Option<String> {
    if *bytes == [0; 16] {
        return None;
    }
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Some([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes at an offset.
    fn at(offset: usize, bytes: &[u8]) -> (usize, Vec<u8>) {
        (offset, bytes.to_vec())
    }

    fn probed(parts: &[(usize, Vec<u8>)]) -> (String, Option<String>) {
        let mut disk = vec![0; HEAD_BYTES + 4096];
        for (offset, bytes) in parts {
            disk[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        let Content { kind, id } = Content::probe(&disk);
        (kind, id)
    }

    #[test]
    fn tables_and_file_systems_are_known_with_their_ids() {
        let id: [u8; 16] = std::array::from_fn(|n| n as u8 + 1);
        let partition = [0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0];
        let plain = "01020304-0506-0708-090a-0b0c0d0e0f10";
        let lvm = b"Abcdefghijklmnopqrstuvwxyz012345";
        let boot = || at(510, &[0x55, 0xaa]);
        for (parts, kind, expected) in [
            (vec![], "none", None),
            (vec![boot()], "none", None),
            (vec![at(512, b"EFI PART"), at(568, &id)], "gpt", Some("04030201-0605-0807-090a-0b0c0d0e0f10")),
            (vec![at(4096, b"EFI PART")], "gpt", None),
            (vec![at(446, &partition), boot(), at(440, &[1, 2, 3, 4])], "mbr", Some("04030201")),
            (vec![at(0, b"XFSB"), at(32, &id)], "xfs", Some(plain)),
            (vec![at(0x1_0040, b"_BHRfS_M"), at(0x1_0020, &id)], "btrfs", Some(plain)),
            (vec![at(1080, &[0x53, 0xef]), at(1128, &id)], "ext", Some(plain)),
            (vec![at(4086, b"SWAPSPACE2"), at(1036, &id)], "swap", Some(plain)),
            (vec![at(0, b"LUKS\xba\xbe"), at(168, b"f1e2-d3")], "luks", Some("f1e2-d3")),
            (vec![at(3, b"NTFS    "), boot(), at(72, &[1])], "ntfs", Some("0000000000000001")),
            (vec![at(82, b"FAT32   "), boot(), at(67, &[2])], "fat", Some("00000002")),
            (
                vec![at(512, b"LABELONE"), at(532, &[32]), at(536, b"LVM2 001"), at(544, lvm)],
                "lvm",
                Some("Abcdefghijklmnopqrstuvwxyz012345"),
            ),
        ] {
            assert_eq!(probed(&parts), (kind.to_owned(), expected.map(str::to_owned)));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            mut head in prop::collection::vec(any::<u8>(), 0..70_000), at in 0usize..5000,
            magic in prop::sample::select(vec![&b"EFI PART"[..], b"LABELONE\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xffLVM2 001", b"LUKS\xba\xbe", b"XFSB"]),
        ) {
            if let Some(place) = head.get_mut(at..at + magic.len()) {
                place.copy_from_slice(magic);
            }
            Content::probe(&head).to_string();
        }
    }
}
