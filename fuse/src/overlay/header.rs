//! The first 4 KiB of the two files of states: which revision they belong to. Pure. The bytes are described in
//! `docs/format.md`, section 10.

use backy_store::{ChunkId, RevisionId};

/// Length of the header; the states begin behind it.
pub(crate) const HEADER_BYTES: usize = 4096;

const MAGIC: &[u8; 8] = b"BACKYOVL";
const VERSION: u16 = 1;
const BLOCK_LOG: u8 = 12;
/// First byte of the seal.
const SEAL: usize = HEADER_BYTES - 32;

/// A start of the system, as `/proc/sys/kernel/random/boot_id` names it.
pub(crate) type BootId = [u8; 36];

/// Which of the two files this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The states at this moment, as long as the system runs.
    Written = 1,
    /// The states at the last sync.
    Synced = 2,
}

/// What an overlay lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) revision: RevisionId,
    /// The seal of the revision's map, which vouches for every byte of the image.
    pub(crate) seal: ChunkId,
    pub(crate) size_bytes: u64,
}

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) base: Base,
    /// The start of the system during which the file was made.
    pub(crate) boot: BootId,
}

impl Header {
    /// Returns the header's bytes.
    pub(crate) fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10] = BLOCK_LOG;
        bytes[11] = self.kind as u8;
        let id = self.base.revision.as_str().as_bytes();
        // An id has 1 to 64 bytes.
        bytes[12] = id.len() as u8;
        bytes[16..24].copy_from_slice(&self.base.size_bytes.to_le_bytes());
        bytes[24..56].copy_from_slice(self.base.seal.as_bytes());
        bytes[56..92].copy_from_slice(&self.boot);
        bytes[96..96 + id.len()].copy_from_slice(id);
        let seal = ChunkId::of(&bytes[..SEAL]);
        bytes[SEAL..].copy_from_slice(seal.as_bytes());
        bytes
    }

    /// Reads a header of this kind; the error says for people what is wrong.
    pub(crate) fn parse(bytes: &[u8; HEADER_BYTES], kind: Kind) -> Result<Self, &'static str> {
        if bytes[..8] != *MAGIC {
            return Err("it is no file of an overlay");
        }
        if u16::from_le_bytes([bytes[8], bytes[9]]) != VERSION {
            return Err("a newer backy wrote it");
        }
        if bytes[SEAL..] != *ChunkId::of(&bytes[..SEAL]).as_bytes() {
            return Err("its header is damaged");
        }
        if bytes[10] != BLOCK_LOG || bytes[11] != kind as u8 {
            return Err("it is another file of an overlay");
        }
        let number = |at: usize| bytes[at..].first_chunk().copied().map(u64::from_le_bytes);
        let parts = || {
            let id = std::str::from_utf8(bytes.get(96..96 + usize::from(bytes[12]))?).ok()?;
            let revision = RevisionId::parse(id).ok()?;
            let seal = ChunkId::from_bytes(*bytes[24..].first_chunk()?);
            let size_bytes = number(16).filter(|&size| size <= i64::MAX as u64)?;
            let boot = *bytes[56..].first_chunk()?;
            Some(Self { kind, base: Base { revision, seal, size_bytes }, boot })
        };
        parts().ok_or("its header makes no sense")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let base = Base {
            revision: RevisionId::parse("7Qk2mB9xTfLw4RzHc8NvYe").unwrap(),
            seal: ChunkId::of(b"map"),
            size_bytes: 0x0102_0304_0506,
        };
        Header { kind: Kind::Written, base, boot: *b"0f0e0d0c-0b0a-0908-0706-050403020100" }
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = header().to_bytes();
        assert_eq!(Header::parse(&bytes, Kind::Written), Ok(header()));
        assert_eq!(bytes[..16], *b"BACKYOVL\x01\x00\x0c\x01\x16\x00\x00\x00");
        assert_eq!(bytes[16..24], [6, 5, 4, 3, 2, 1, 0, 0]);
        assert!(Header::parse(&bytes, Kind::Synced).unwrap_err().contains("another file"));
    }

    #[test]
    fn no_changed_byte_goes_unnoticed() {
        for at in 0..HEADER_BYTES {
            let mut bytes = header().to_bytes();
            bytes[at] ^= 0x40;
            assert!(Header::parse(&bytes, Kind::Written).is_err(), "byte {at}");
        }
    }
}
