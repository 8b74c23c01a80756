//! The original's chunk files: five bytes of header and one LZO1X stream, `chunks/ab/<hash>.chunk.lzo`, or one
//! directory deeper in stores from before 2.5.
//!
//! A length is believed only up to 4 MiB, and no byte leaves this file that does not have the hash by which it is
//! named.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{lzo, murmur};
use crate::error::{Context, Error, Result};
use crate::format::{CHUNK_LEN, ChunkId};
use crate::fs::disk;

/// Length of the header: a mark and the length of the data, big-endian.
const HEADER_LEN: usize = 5;

/// The longest file: what LZO makes of 4 MiB that cannot be packed.
pub(crate) const FILE_LEN_MAX: usize = HEADER_LEN + CHUNK_LEN + CHUNK_LEN / 16 + 64 + 3;

/// The end of the names of chunk files.
pub(crate) const SUFFIX: &str = ".chunk.lzo";

/// The name of the chunk of 4 MiB of zeros, which is taken for a hole without reading it.
pub(crate) const ZEROS: [u8; 16] =
    [0xc7, 0x2b, 0x4b, 0xa8, 0x2d, 0x1f, 0x51, 0xb7, 0x1c, 0x8a, 0x18, 0x19, 0x5a, 0xd3, 0x3f, 0xc8];

/// The chunk directory of one job of the original.
#[derive(Clone, Debug)]
pub(crate) struct OldChunks {
    dir: PathBuf,
    /// Whether it has the marker of the layout with one level of directories.
    is_flat: bool,
}

impl OldChunks {
    /// Opens the chunk directory of a job. Nothing is migrated, whatever its layout.
    pub(crate) fn open(job_dir: &Path) -> Result<Self> {
        let dir = job_dir.join("chunks");
        let marker = dir.join("store");
        let is_flat = match disk::open(&marker).map(|file| read_marker(file.take(64))) {
            Ok(Ok(true)) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(Error::io("read", marker, error)),
            Ok(_) => {
                let reason = "its chunks/store names a layout that is not known".to_owned();
                return Err(Error::StoreDamaged { path: job_dir.to_owned(), reason });
            }
        };
        Ok(Self { dir, is_flat })
    }

    /// The two places where a chunk can lie, the likelier first: a migration of the original's may have been cut off.
    fn paths(&self, id: &ChunkId) -> [PathBuf; 2] {
        let name = id.to_string();
        let (one, two) = (name.get(..2).unwrap_or_default(), name.get(2..4).unwrap_or_default());
        let file = format!("{name}{SUFFIX}");
        let flat = self.dir.join(one).join(&file);
        let deep = self.dir.join(one).join(two).join(&file);
        if self.is_flat { [flat, deep] } else { [deep, flat] }
    }

    /// Reads the file of a chunk into `file`, as it is; returns its length.
    pub(crate) fn read_file(&self, id: &ChunkId, file: &mut Vec<u8>) -> Result<usize> {
        let corrupt = |reason: String| Error::ChunkCorrupt { id: *id, reason };
        for path in self.paths(id) {
            let opened = match disk::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return Err(Error::io("open", path, error));
                }
                other => other.map_err(|error| corrupt(format!("its file cannot be opened: {error}")))?,
            };
            let facts = opened.metadata().context("examine", &path)?;
            if !facts.is_file() {
                return Err(corrupt("it is not a regular file".to_owned()));
            }
            if facts.len() > FILE_LEN_MAX as u64 {
                return Err(corrupt(format!(
                    "its file has {} bytes, more than a chunk can have",
                    facts.len()
                )));
            }
            file.clear();
            file.reserve(FILE_LEN_MAX + 1);
            let read = opened.take(FILE_LEN_MAX as u64 + 1).read_to_end(file);
            return read.map_err(|error| corrupt(format!("its file cannot be read: {error}")));
        }
        Err(Error::ChunkMissing { id: *id })
    }

    /// Reads a chunk into `out`, which has room for 4 MiB; returns its length. `file` is room for its file.
    pub(crate) fn read(&self, id: &ChunkId, file: &mut Vec<u8>, out: &mut [u8]) -> Result<usize> {
        self.read_file(id, file)?;
        decode(file, out)
            .and_then(|length| match Some(murmur::hash(&out[..length])) == id.original() {
                true => Ok(length),
                false => Err("its bytes do not have the hash they should".to_owned()),
            })
            .map_err(|reason| Error::ChunkCorrupt { id: *id, reason })
    }

    /// Begins to fetch a chunk's file without waiting for it.
    pub(crate) fn will_need(&self, id: &ChunkId) {
        use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
        if let Some(file) = self.paths(id).iter().find_map(|path| disk::open(path).ok()) {
            // Advice that is not taken costs nothing but time.
            let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
        }
    }

    /// Removes a chunk's file; returns its length. The guard of the original's purge shows that nobody reads it.
    pub(crate) fn remove(&self, _guard: &super::lock::OldPurgeGuard, id: &ChunkId) -> Result<u64> {
        let mut length = 0;
        for path in self.paths(id) {
            if let Ok(facts) = std::fs::symlink_metadata(&path) {
                length += facts.len();
                disk::remove(&path)?;
            }
        }
        Ok(length)
    }

    /// Length of a chunk's file, 0 when it is missing.
    pub(crate) fn file_len(&self, id: &ChunkId) -> u64 {
        self.paths(id)
            .iter()
            .find_map(|path| std::fs::symlink_metadata(path).ok())
            .map_or(0, |facts| facts.len())
    }

    /// Lists all chunks, in both layouts.
    pub(crate) fn list(&self, found: &mut dyn FnMut(ChunkId)) -> Result<()> {
        list_below(&self.dir, 0, found)
    }

    /// Makes the removal of chunks durable, each directory by itself.
    pub(crate) fn sync_dirs(&self) -> Result<()> {
        sync_below(&self.dir, 0)
    }
}

fn sync_below(dir: &Path, depth: usize) -> Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.context("list", dir)?,
    };
    for entry in entries {
        let entry = entry.context("list", dir)?;
        if depth < 2 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            sync_below(&entry.path(), depth + 1)?;
        }
    }
    disk::sync_dir(dir)
}

/// Chunk files lie below one or two directories.
fn list_below(dir: &Path, depth: usize, found: &mut dyn FnMut(ChunkId)) -> Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.context("list", dir)?,
    };
    for entry in entries {
        let entry = entry.context("list", dir)?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(id) = name.strip_suffix(SUFFIX).and_then(ChunkId::parse_original) {
            found(id);
        } else if depth < 2 && name.len() == 2 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list_below(&entry.path(), depth + 1, found)?;
        }
    }
    Ok(())
}

fn read_marker(mut file: impl Read) -> io::Result<bool> {
    let mut text = String::new();
    file.by_ref().take(16).read_to_string(&mut text)?;
    Ok(text.trim() == "v2")
}

/// Decodes a chunk file into `out`; returns the length of the data.
pub(crate) fn decode(file: &[u8], out: &mut [u8]) -> std::result::Result<usize, String> {
    let Some((header, stream)) = file.split_first_chunk::<HEADER_LEN>() else {
        return Err(match file.len() {
            0 => "its file is empty".to_owned(),
            length => format!("its file is cut off after {length} bytes"),
        });
    };
    let [mark, length @ ..] = *header;
    // 0xf1 is written by the slower packer; what unpacks it is the same.
    if ![0xf0, 0xf1].contains(&mark) {
        return Err("it does not begin with the mark of a chunk".to_owned());
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > CHUNK_LEN {
        return Err(format!("its header says {length} bytes, more than a chunk can have"));
    }
    let Some(out) = out.get_mut(..length) else { return Err("there is no room for it".to_owned()) };
    match lzo::decode(stream, out) {
        Ok(found) if found == length => Ok(length),
        Ok(found) => Err(format!("it holds {found} bytes where its header says {length}")),
        Err(error) => Err(format!("it cannot be unpacked: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_are_decoded() {
        let mut out = vec![0; CHUNK_LEN];
        assert_eq!(decode(&[0xf0, 0, 0, 0, 0, 0x11, 0, 0], &mut out), Ok(0));
        let backy = b"\xf0\0\0\0\x05\x16backy\x11\0\0";
        assert_eq!(decode(backy, &mut out), Ok(5));
        assert_eq!(&out[..5], b"backy");
        let mut other = *backy;
        other[0] = 0xf1;
        assert_eq!(decode(&other, &mut out), Ok(5));
    }

    #[test]
    fn no_length_is_believed_and_no_damage_is_let_through() {
        let mut out = vec![0; CHUNK_LEN];
        let good = b"\xf0\0\0\0\x05\x16backy\x11\0\0";
        for length in 0..good.len() {
            assert!(decode(&good[..length], &mut out).is_err(), "{length}");
        }
        assert!(
            decode(b"\xf0\x7f\xff\xff\xff\x16backy\x11\0\0", &mut out).unwrap_err().contains("more than")
        );
        assert!(decode(b"\xf0\0\0\0\x06\x16backy\x11\0\0", &mut out).is_err());
        assert!(decode(b"\xf0\0\0\0\x04\x16backy\x11\0\0", &mut out).is_err());
        assert!(decode(b"\x00\0\0\0\x05\x16backy\x11\0\0", &mut out).is_err());
        let name = |data: &[u8]| ChunkId::of_original(murmur::hash(data));
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("chunks/e8/c7")).unwrap();
        let chunks = OldChunks::open(dir.path()).unwrap();
        let id = name(b"backy");
        let path = dir.path().join(format!("chunks/e8/c7/{id}{SUFFIX}"));
        let mut read = || chunks.read(&id, &mut Vec::new(), &mut out);
        assert!(matches!(read(), Err(Error::ChunkMissing { .. })));
        std::fs::write(&path, good).unwrap();
        assert_eq!(read().unwrap(), 5);
        for bit in 8..good.len() * 8 {
            let mut bad = *good;
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, bad).unwrap();
            match read() {
                Err(Error::ChunkCorrupt { .. }) => {}
                // Two bits of the end marker mean nothing.
                Ok(length) => assert_eq!((length, bit / 8), (5, 12)),
                Err(error) => panic!("bit {bit}: {error}"),
            }
        }
    }
}
