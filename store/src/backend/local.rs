//! Chunk files in a local directory: `chunks/ab/<id>` and `chunks/ab/<id>.<base>`, 256 directories made with the store.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{Backend, ShardLock, StoredChunk};
use crate::chunk::name::ChunkName;
use crate::disk;
use crate::error::{Context, Error, Result};

/// The chunk directory of a local store.
pub(crate) struct LocalBackend {
    chunks: PathBuf,
    temporaries: PathBuf,
    /// Opened before the first write, so that `syncfs` on it reports every write-back error since.
    root: File,
    reliable_syncfs: bool,
    /// Shards with new or newly used names; only consulted where `syncfs` is not relied on.
    touched: Vec<AtomicBool>,
}

impl std::fmt::Debug for LocalBackend {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "LocalBackend({})", self.chunks.display())
    }
}

impl LocalBackend {
    /// Opens the chunk directory of the store at `root`.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let dir = File::open(root).context("open", root)?;
        Ok(Self {
            chunks: root.join("chunks"),
            temporaries: root.join("tmp"),
            reliable_syncfs: disk::has_reliable_syncfs(&dir),
            root: dir,
            touched: (0..256).map(|_| AtomicBool::new(false)).collect(),
        })
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

    fn shard_dir(&self, shard: u8) -> PathBuf {
        self.chunks.join(format!("{shard:02x}"))
    }

    fn path(&self, name: &ChunkName) -> PathBuf {
        self.shard_dir(name.id.shard()).join(name.to_string())
    }
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

    fn will_need(&self) {
        // A length of zero means up to the end. Advice that is not taken costs nothing but time.
        let _ = posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
    }
}

impl Backend for LocalBackend {
    fn open(&self, name: &ChunkName) -> Result<Option<Box<dyn StoredChunk>>> {
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

    fn len(&self, name: &ChunkName) -> Result<Option<u64>> {
        let path = self.path(name);
        match std::fs::symlink_metadata(&path) {
            Ok(facts) => Ok(Some(facts.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("examine", path, error)),
        }
    }

    fn put(&self, name: &ChunkName, bytes: &[u8], temporary: &str, replace: bool) -> Result<()> {
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
                Err(error)
            }
        }
    }

    fn use_existing(&self, name: &ChunkName) {
        for id in name.ids() {
            self.touched[usize::from(id.shard())].store(true, Ordering::Relaxed);
        }
    }

    fn barrier(&self) -> Result<()> {
        if self.reliable_syncfs {
            return disk::sync_file_system(&self.root, &self.chunks);
        }
        for shard in 0..=255u8 {
            if self.touched[usize::from(shard)].swap(false, Ordering::Relaxed) {
                disk::sync_dir(&self.shard_dir(shard))?;
            }
        }
        Ok(())
    }

    fn delete(&self, name: &ChunkName) -> Result<()> {
        disk::remove(&self.path(name))
    }

    fn list(&self, shard: u8, visit: &mut dyn FnMut(ChunkName)) -> Result<()> {
        let dir = self.shard_dir(shard);
        for entry in std::fs::read_dir(&dir).context("list", &dir)? {
            let entry = entry.context("list", &dir)?;
            let Some(name) = entry.file_name().to_str().and_then(ChunkName::parse) else { continue };
            if name.id.shard() == shard {
                visit(name);
            }
        }
        Ok(())
    }

    fn lock_shard(&self, shard: u8, exclusive: bool) -> Result<ShardLock> {
        let path = self.shard_dir(shard);
        let dir = File::open(&path).context("open", &path)?;
        if exclusive { dir.lock() } else { dir.lock_shared() }.context("lock", &path)?;
        Ok(ShardLock { _dir: dir })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::ChunkId;

    fn store() -> (tempfile::TempDir, LocalBackend) {
        let dir = tempfile::tempdir().unwrap();
        LocalBackend::create(dir.path()).unwrap();
        let backend = LocalBackend::open(dir.path()).unwrap();
        (dir, backend)
    }

    fn read(backend: &LocalBackend, name: &ChunkName) -> Vec<u8> {
        let chunk = backend.open(name).unwrap().unwrap();
        let mut bytes = vec![0; chunk.len() as usize];
        assert_eq!(chunk.read_at(&mut bytes, 0).unwrap(), bytes.len());
        bytes
    }

    #[test]
    fn what_is_there_stays_unless_it_is_replaced() {
        let (dir, backend) = store();
        let name = ChunkName::full(ChunkId::of(b"x"));
        assert!(backend.open(&name).unwrap().is_none());
        backend.put(&name, b"first", "t.1", false).unwrap();
        backend.put(&name, b"second", "t.1", false).unwrap();
        assert_eq!(read(&backend, &name), b"first");
        backend.put(&name, b"third", "t.1", true).unwrap();
        assert_eq!(read(&backend, &name), b"third");
        backend.barrier().unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn listing_skips_what_is_no_chunk_and_deleting_twice_is_fine() {
        let (dir, backend) = store();
        let name = ChunkName::full(ChunkId::of(b"x"));
        backend.put(&name, b"abc", "t", false).unwrap();
        std::fs::write(dir.path().join(format!("chunks/{:02x}/notes.txt", name.id.shard())), b"").unwrap();
        let mut seen = Vec::new();
        for shard in 0..=255 {
            backend.list(shard, &mut |name| seen.push(name)).unwrap();
        }
        assert_eq!(seen, [name]);
        backend.delete(&name).unwrap();
        backend.delete(&name).unwrap();
        assert!(backend.open(&name).unwrap().is_none());
    }
}
