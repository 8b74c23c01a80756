//! The original's raw images: one file per revision, byte for byte, with holes where the file system has them. There
//! are no hashes: what the file says is what the image is.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::error::{Context, Error, Result};
use crate::format::layout::{IMAGE_SIZE_MAX, chunk_len};
use crate::format::{CHUNK_SIZE, ChunkId};
use crate::fs::disk;

/// A raw image that is open.
#[derive(Debug)]
pub(crate) struct RawImage {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    /// Tells its places in a cache from those of other files.
    key: u64,
}

/// The file that holds a raw image: `<id>`, or `<id>.old` where a conversion by the original was cut off, in which
/// `<id>` is unfinished.
pub(crate) fn path(image: &Path) -> PathBuf {
    let old = image.with_extension("old");
    if old.is_file() { old } else { image.to_owned() }
}

impl RawImage {
    pub(crate) fn open(image: &Path) -> Result<Self> {
        let path = path(image);
        let corrupt = |reason: String| Error::MapCorrupt { path: path.clone(), reason };
        let file = match disk::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(corrupt("it is missing".to_owned()));
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(Error::io("open", &path, error));
            }
            other => other.map_err(|error| corrupt(format!("it cannot be opened: {error}")))?,
        };
        let facts = file.metadata().context("examine", &path)?;
        if !facts.is_file() || facts.len() > IMAGE_SIZE_MAX {
            return Err(corrupt("it is not the image of a disk".to_owned()));
        }
        let mut identity = blake3_of(&path);
        identity ^= facts.ino() ^ (facts.mtime_nsec() as u64) << 32 ^ facts.mtime() as u64;
        Ok(Self { path, file, size_bytes: facts.len(), key: identity })
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// A number that tells it from other images in a cache.
    pub(crate) fn key(&self) -> u64 {
        self.key
    }

    /// Bytes that the file takes on the disk.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.file.metadata().map_or(self.size_bytes, |facts| (facts.blocks() * 512).min(self.size_bytes))
    }

    /// A stand-in for the id of the piece at place `number`, unless it is a hole.
    pub(crate) fn get(&self, number: u64) -> Option<ChunkId> {
        let start = number.checked_mul(CHUNK_SIZE)?;
        let end = start + chunk_len(self.size_bytes, number) as u64;
        let data = self.seek(start, end, true)?;
        (data < end).then(|| {
            let mut name = [0; 16];
            name[..8].copy_from_slice(&self.key.to_le_bytes());
            name[8..].copy_from_slice(&number.to_le_bytes());
            ChunkId::of_original(name)
        })
    }

    /// The first byte from `start` to before `end` that is data (or, with `data` false, in a hole).
    fn seek(&self, start: u64, end: u64, data: bool) -> Option<u64> {
        if start >= end {
            return None;
        }
        let whence = if data { Whence::SeekData } else { Whence::SeekHole };
        // The position of the file is nobody's: reading says where.
        let found = match lseek(&self.file, i64::try_from(start).ok()?, whence) {
            Ok(found) => found as u64,
            Err(Errno::ENXIO) => return None,
            // A file system that cannot tell has only data.
            Err(_) if data => start,
            Err(_) => return None,
        };
        (found < end).then_some(found)
    }

    /// Reads at `offset` of the image into `out`, which lies inside it.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(out, offset).map_err(|error| Error::MapCorrupt {
            path: self.path.clone(),
            reason: format!("it cannot be read at {offset}: {error}"),
        })
    }
}

fn blake3_of(path: &Path) -> u64 {
    let seal = crate::format::id::seal(&[path.as_os_str().as_encoded_bytes()]);
    seal[..8].iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_found_and_an_unfinished_conversion_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id");
        let file = File::create(&path).unwrap();
        file.set_len((3 << 22) + 77).unwrap();
        file.write_all_at(b"data", (1 << 22) + 5000).unwrap();
        let image = RawImage::open(&path).unwrap();
        assert_eq!(image.size_bytes(), (3 << 22) + 77);
        let data: Vec<bool> = (0..5).map(|number| image.get(number).is_some()).collect();
        assert_eq!(data, [false, true, false, false, false]);
        let mut bytes = [9; 6];
        image.read((1 << 22) + 4999, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0data\0");
        assert!(image.read(3 << 22, &mut [0; 78]).unwrap_err().is_damage());
        disk::rename(&path, &dir.path().join("id.old")).unwrap();
        std::fs::write(&path, b"{\"mapp").unwrap();
        assert_eq!(RawImage::open(&path).unwrap().size_bytes(), (3 << 22) + 77);
        assert!(RawImage::open(&dir.path().join("other")).unwrap_err().is_damage());
    }
}
