//! Chunk files in a local directory: `chunks/ab/<id>` and `chunks/ab/<id>.group`, 256 directories made with the store.
//! One that is missing is empty, as in a copy made by a program that skips empty directories; who writes makes it.
//!
//! `chunks` and `tmp` may be links to another disk, both to the same: what is synced is the file system of `chunks`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{Backend, NewFile, ShardLock, StoredChunk};
use crate::error::{Context, Error, Result};
use crate::format::name::FileName;
use crate::fs::disk;
use crate::fs::lock;

/// The chunk directory of a local store.
pub(super) struct LocalBackend {
    root: PathBuf,
    chunks: PathBuf,
    temporaries: PathBuf,
    /// Where the chunks lie, opened before the first write, so that `syncfs` on it reports every write-back error since.
    /// `None` in a store without a directory of chunks, which has none.
    dir: Option<File>,
    reliable_syncfs: bool,
    /// Shards with new or newly used names; only consulted where `syncfs` is not relied on.
    touched: Arc<Vec<AtomicBool>>,
}

impl std::fmt::Debug for LocalBackend {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "LocalBackend({})", self.chunks.display())
    }
}

/// Makes the directories of a new store below `root` and makes them durable.
pub(crate) fn create(root: &Path) -> Result<()> {
    disk::create_dir(&root.join("chunks"))?;
    disk::create_dir(&root.join("tmp"))?;
    for shard in 0..=255u8 {
        disk::create_dir(&root.join("chunks").join(format!("{shard:02x}")))?;
    }
    disk::sync_dir(&root.join("chunks"))
}

/// Makes the directories that are missing, and checks that a chunk can be renamed from `tmp` to where it belongs.
pub(crate) fn prepare(root: &Path) -> Result<()> {
    let (chunks, temporaries) = (root.join("chunks"), root.join("tmp"));
    disk::ensure_dir_for_writing(&chunks)?;
    disk::ensure_dir_for_writing(&temporaries)?;
    let mut is_changed = false;
    for shard in 0..=255u8 {
        let dir = chunks.join(format!("{shard:02x}"));
        if disk::is_missing(&dir) {
            is_changed |= disk::ensure_dir(&dir)?;
        }
    }
    if is_changed {
        disk::sync_dir(&chunks)?;
    }
    check(root)
}

/// Checks that what there is of `tmp` and `chunks` lies on one file system.
fn check(root: &Path) -> Result<()> {
    let temporaries = root.join("tmp");
    if disk::is_missing(&temporaries) {
        return Ok(());
    }
    let expected = disk::device(&temporaries)?;
    for shard in 0..=255u8 {
        let dir = root.join("chunks").join(format!("{shard:02x}"));
        match disk::device(&dir) {
            Ok(device) if device != expected => return Err(split(root, &dir)),
            Err(error) if error.io_kind() != Some(io::ErrorKind::NotFound) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether there is not even an empty directory for chunks, as below the mount point of a disk that is away.
pub(crate) fn is_bare(root: &Path) -> Result<bool> {
    let is_shard = |entry: &std::fs::DirEntry| {
        entry.file_name().to_str().is_some_and(|name| name.len() == 2 && u8::from_str_radix(name, 16).is_ok())
    };
    Ok(!disk::list(&root.join("chunks"))?.iter().any(is_shard))
}

impl LocalBackend {
    /// Opens the chunk directory of the store at `root`.
    pub(super) fn open(root: &Path) -> Result<Self> {
        let chunks = root.join("chunks");
        let dir = match File::open(&chunks) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => match disk::is_missing(&chunks) {
                true => None,
                false => return Err(Error::ChunksAway { path: root.to_owned() }),
            },
            other => Some(other.context("open", &chunks)?),
        };
        Ok(Self {
            root: root.to_owned(),
            temporaries: root.join("tmp"),
            reliable_syncfs: dir.as_ref().is_some_and(disk::has_reliable_syncfs),
            chunks,
            dir,
            touched: Arc::new((0..256).map(|_| AtomicBool::new(false)).collect()),
        })
    }

    fn shard_dir(&self, shard: u8) -> PathBuf {
        self.chunks.join(format!("{shard:02x}"))
    }

    fn path(&self, name: &FileName) -> PathBuf {
        self.shard_dir(name.id.shard()).join(name.to_string())
    }
}

fn split(root: &Path, shard: &Path) -> Error {
    let shard = shard.strip_prefix(root).unwrap_or(shard).display();
    let reason = format!("tmp and {shard} lie on different file systems");
    Error::StoreSplit { path: root.to_owned(), reason }
}

#[derive(Debug)]
struct LocalChunk {
    file: File,
    len: u64,
}

impl StoredChunk for LocalChunk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(length) => done += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn will_need(&self, offset: u64, len: u64) {
        let (offset, len) = (offset.cast_signed(), len.cast_signed());
        // Advice that is not taken costs nothing but time.
        let _ = posix_fadvise(&self.file, offset, len, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
    }
}

/// A file in `tmp`.
#[derive(Debug)]
struct LocalNewFile {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    shard: u8,
    is_synced: bool,
    is_placed: bool,
    touched: Arc<Vec<AtomicBool>>,
}

impl NewFile for LocalNewFile {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        disk::append(&self.file, bytes, &self.temporary)
    }

    fn reader(&self) -> Result<Box<dyn StoredChunk>> {
        let file = disk::open(&self.temporary).context("open", &self.temporary)?;
        Ok(Box::new(LocalChunk { file, len: u64::MAX }))
    }

    fn place(&mut self) -> Result<()> {
        if self.is_synced {
            disk::sync_file(&self.file, &self.temporary)?;
        }
        self.touched[usize::from(self.shard)].store(true, Ordering::Relaxed);
        disk::rename(&self.temporary, &self.target)?;
        self.is_placed = true;
        Ok(())
    }
}

impl Drop for LocalNewFile {
    fn drop(&mut self) {
        if !self.is_placed {
            // What is left over is removed by the next scan of sessions.
            drop(disk::remove(&self.temporary));
        }
    }
}

impl Backend for LocalBackend {
    fn open(&self, name: &FileName) -> Result<Option<Box<dyn StoredChunk>>> {
        let path = self.path(name);
        match disk::open(&path).and_then(|file| file.metadata().map(|facts| (file, facts))) {
            Ok((_, facts)) if !facts.is_file() => {
                Err(Error::ChunkCorrupt { id: name.id, reason: "it is not a regular file".to_owned() })
            }
            Ok((file, facts)) => Ok(Some(Box::new(LocalChunk { file, len: facts.len() }))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("open", path, error)),
        }
    }

    fn len(&self, name: &FileName) -> Result<Option<u64>> {
        let path = self.path(name);
        match std::fs::symlink_metadata(&path) {
            Ok(facts) => Ok(Some(facts.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("examine", path, error)),
        }
    }

    fn put(&self, name: &FileName, bytes: &[u8], temporary: &str, replace: bool) -> Result<()> {
        let temporary = self.temporaries.join(temporary);
        let target = self.path(name);
        let file = disk::create_new(&temporary)?;
        // What takes the place of a damaged file is durable before it does: that one may have good frames still.
        let is_synced = !self.reliable_syncfs || replace;
        let written = disk::append(&file, bytes, &temporary)
            .and_then(|()| if is_synced { disk::sync_file(&file, &temporary) } else { Ok(()) });
        drop(file);
        let placed = written.and_then(|()| match replace {
            true => disk::rename(&temporary, &target).map(|()| true),
            false => disk::rename_new(&temporary, &target),
        });
        self.use_existing(name);
        match placed {
            Ok(true) => Ok(()),
            // Another writer was first with the same chunk; its file is as good as ours.
            Ok(false) => disk::remove(&temporary),
            Err(error) => {
                drop(disk::remove(&temporary));
                match error.io_kind() {
                    // Another mount of the same file system is no better.
                    Some(io::ErrorKind::CrossesDevices) => {
                        Err(split(&self.root, &self.shard_dir(name.id.shard())))
                    }
                    _ => Err(error),
                }
            }
        }
    }

    fn begin(&self, name: &FileName, temporary: &str) -> Result<Box<dyn NewFile>> {
        let temporary = self.temporaries.join(temporary);
        let file = disk::create_new(&temporary)?;
        Ok(Box::new(LocalNewFile {
            file,
            temporary,
            target: self.path(name),
            shard: name.id.shard(),
            is_synced: !self.reliable_syncfs,
            is_placed: false,
            touched: Arc::clone(&self.touched),
        }))
    }

    fn use_existing(&self, name: &FileName) {
        self.touched[usize::from(name.id.shard())].store(true, Ordering::Relaxed);
    }

    fn barrier(&self) -> Result<()> {
        if self.reliable_syncfs {
            return match &self.dir {
                Some(dir) => disk::sync_file_system(dir, &self.chunks),
                None => Ok(()),
            };
        }
        for shard in 0..=255u8 {
            if self.touched[usize::from(shard)].swap(false, Ordering::Relaxed) {
                disk::sync_dir(&self.shard_dir(shard))?;
            }
        }
        Ok(())
    }

    fn delete(&self, name: &FileName) -> Result<()> {
        disk::remove(&self.path(name))
    }

    fn list(&self, shard: u8, visit: &mut dyn FnMut(FileName)) -> Result<()> {
        let dir = self.shard_dir(shard);
        if disk::is_missing(&self.chunks) {
            return Ok(());
        }
        for entry in disk::list(&dir)? {
            let Some(name) = entry.file_name().to_str().and_then(FileName::parse) else { continue };
            if name.id.shard() == shard {
                visit(name);
            }
        }
        Ok(())
    }

    fn lock_shard(&self, shard: u8, exclusive: bool) -> Result<ShardLock> {
        let path = self.shard_dir(shard);
        let dir = File::open(&path).context("open", &path)?;
        if exclusive { dir.lock() } else { dir.lock_shared() }
            .map_err(|error| lock::lock_error(&path, error))?;
        Ok(ShardLock::new(dir))
    }

    fn is_away(&self) -> Result<bool> {
        is_bare(&self.root)
    }

    fn check(&self) -> Result<()> {
        check(&self.root)
    }

    fn prepare(&self) -> Result<()> {
        prepare(&self.root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ChunkId;

    #[test]
    fn names_that_are_no_chunk_files_of_the_shard_are_not_listed() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path()).unwrap();
        let backend = LocalBackend::open(dir.path()).unwrap();
        let name = FileName::chunk(ChunkId::of(b"x"));
        backend.put(&name, b"abc", "t", false).unwrap();
        let shard = dir.path().join(format!("chunks/{:02x}", name.id.shard()));
        let foreign = (0..).map(|seed: u32| FileName::chunk(ChunkId::of(&seed.to_le_bytes())));
        let foreign = foreign.into_iter().find(|other| other.id.shard() != name.id.shard()).unwrap();
        for other in ["notes.txt".to_owned(), format!("{name}.tmp"), foreign.to_string()] {
            std::fs::write(shard.join(other), b"").unwrap();
        }
        let mut seen = Vec::new();
        for shard in 0..=255 {
            backend.list(shard, &mut |name| seen.push(name)).unwrap();
        }
        assert_eq!(seen, [name]);
    }

    #[test]
    fn a_disk_that_is_not_mounted_is_away_and_an_empty_store_is_not() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path()).unwrap();
        let backend = LocalBackend::open(dir.path()).unwrap();
        assert!(!backend.is_away().unwrap());
        disk::rename(&dir.path().join("chunks"), &dir.path().join("away")).unwrap();
        std::fs::create_dir(dir.path().join("chunks")).unwrap();
        assert!(backend.is_away().unwrap());
        backend.prepare().unwrap();
        assert!(!backend.is_away().unwrap());
    }
}
