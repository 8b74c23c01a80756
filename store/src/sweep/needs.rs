//! Which chunks are needed: what logs, pins and chunk maps name.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::backend::Backend;
use crate::chunk::ChunkId;
use crate::chunk::forms;
use crate::chunk::name::ChunkName;
use crate::disk;
use crate::error::{Context, Error, Result};
use crate::monitor::Monitor;
use crate::revision::RevisionId;
use crate::revision::map::{ChunkMap, Entry, PageKey, ids};

/// The chunks of one store that are needed, and why.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// What maps and logs name, by shard.
    live: Vec<HashSet<ChunkId>>,
    /// The deltas that maps name.
    deltas: HashSet<ChunkName>,
    /// What the logs of running sessions name.
    logged: HashSet<ChunkId>,
    /// Pages that were read already: revisions share most of them.
    seen_pages: HashSet<PageKey>,
    /// Maps that were read, by device and inode: a hard link is the same map.
    seen_files: HashSet<(u64, u64)>,
    /// Revisions of which a map was read completely.
    whole: HashSet<RevisionId>,
    /// Revisions of which a map is damaged: the file, and what is wrong.
    damaged: HashMap<RevisionId, (PathBuf, String)>,
}

impl Needs {
    pub(super) fn new() -> Self {
        Self { live: vec![HashSet::new(); 256], ..Self::default() }
    }

    fn insert(&mut self, id: ChunkId) -> bool {
        self.live[usize::from(id.shard())].insert(id)
    }

    /// Whether anything names the chunk, in whatever form.
    pub(super) fn has(&self, id: &ChunkId) -> bool {
        self.live[usize::from(id.shard())].contains(id)
    }

    /// The needed chunks of a shard.
    pub(super) fn of_shard(&self, shard: u8) -> &HashSet<ChunkId> {
        &self.live[usize::from(shard)]
    }

    /// Whether a running session's log names the chunk; it may not be written yet.
    pub(super) fn is_logged(&self, id: &ChunkId) -> bool {
        self.logged.contains(id)
    }

    /// Whether a file is needed. A full chunk serves whoever names the chunk in any form; a delta those who name just it,
    /// and a writer who has found it.
    pub(super) fn needs(&self, name: &ChunkName) -> bool {
        match name.base {
            None => self.has(&name.id),
            Some(_) => self.deltas.contains(name) || self.logged.contains(&name.id),
        }
    }

    /// Adds a chunk that a log names. Returns whether no map names it.
    pub(super) fn add_logged(&mut self, id: ChunkId) -> bool {
        self.logged.insert(id);
        self.insert(id)
    }

    /// Adds a map of a revision, by path. One that is gone has no needs: whoever removed or moved it is covered by a log,
    /// a pin or the register. Any other error than damage ends the purge.
    pub(super) fn add_map(
        &mut self,
        id: &RevisionId,
        path: &Path,
        backend: &dyn Backend,
        monitor: &dyn Monitor,
    ) -> Result<()> {
        if monitor.cancelled() {
            return Err(Error::Cancelled);
        }
        let metadata = match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.context("examine", path)?,
        };
        if !self.seen_files.insert((metadata.dev(), metadata.ino())) {
            return Ok(());
        }
        match ChunkMap::open(path) {
            Ok(map) => self.add(id, path, &map, backend),
            Err(error) if error.is_damage() => {
                if disk::exists(path)? {
                    self.note_damage(id, path, &error);
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Adds a map that is open.
    pub(super) fn add(
        &mut self,
        id: &RevisionId,
        path: &Path,
        map: &ChunkMap,
        backend: &dyn Backend,
    ) -> Result<()> {
        let mut is_whole = true;
        for page in 0..map.page_count() {
            let key = map.page_key(page);
            if self.seen_pages.contains(&key) {
                continue;
            }
            match map.read_entries(page) {
                Ok(entries) => {
                    self.add_entries(&entries);
                    // Only what was read: the same page of another map may be whole.
                    self.seen_pages.insert(key);
                }
                Err(error) if error.is_damage() => {
                    is_whole = false;
                    self.note_damage(id, path, &error);
                    self.add_half(map, page, backend)?;
                }
                Err(error) => return Err(error),
            }
        }
        if is_whole {
            self.whole.insert(id.clone());
        }
        Ok(())
    }

    fn note_damage(&mut self, id: &RevisionId, path: &Path, error: &Error) {
        self.damaged.entry(id.clone()).or_insert_with(|| (path.to_owned(), error.to_string()));
    }

    /// The revisions whose needs are not known: a map is damaged, and there is no other that is whole.
    pub(super) fn unknown(&self) -> impl Iterator<Item = (&RevisionId, &PathBuf, &String)> {
        self.damaged
            .iter()
            .filter(|(id, _)| !self.whole.contains(*id))
            .map(|(id, (path, reason))| (id, path, reason))
    }

    /// The damaged maps of which there is another that is whole.
    pub(super) fn recoverable(&self) -> impl Iterator<Item = (&RevisionId, &PathBuf)> {
        self.damaged.iter().filter(|(id, _)| self.whole.contains(*id)).map(|(id, (path, _))| (id, path))
    }

    /// Where the user goes on in spite of a damaged page, half of it is better than nothing. Which deltas of its chunks
    /// are meant cannot be known, so all that there are stay, with their bases.
    fn add_half(&mut self, map: &ChunkMap, page: u64, backend: &dyn Backend) -> Result<()> {
        if let Ok(Some(bases)) = map.read_bases(page) {
            ids(&bases).for_each(|id| {
                self.insert(id);
            });
        }
        if let Ok(page) = map.read_page(page) {
            ids(&page).for_each(|id| {
                self.insert(id);
            });
            for name in forms::find(backend, &ids(&page).collect())? {
                self.add_entries(&[Some(name)]);
            }
        }
        Ok(())
    }

    /// Adds what a page names. Returns whether any of it was not needed before.
    fn add_entries(&mut self, entries: &[Entry]) -> bool {
        let mut is_new = false;
        for name in entries.iter().flatten() {
            // The base of a delta is needed as long as the delta is.
            name.ids().for_each(|id| is_new |= self.insert(id));
            if name.base.is_some() {
                is_new |= self.deltas.insert(*name);
            }
        }
        is_new
    }

    /// Adds the map that a reader or writer had pinned. Returns whether it names a chunk that nothing else names.
    pub(super) fn add_pinned(&mut self, map: &ChunkMap) -> Result<bool> {
        let mut is_alone = false;
        for page in 0..map.page_count() {
            let key = map.page_key(page);
            if self.seen_pages.contains(&key) {
                continue;
            }
            is_alone |= self.add_entries(&map.read_entries(page)?);
            self.seen_pages.insert(key);
        }
        Ok(is_alone)
    }

    /// Calls `visit` with what a map names in pages that no needed map has; a damaged one names nothing.
    pub(super) fn visit_unneeded(&self, map: &ChunkMap, visit: &mut dyn FnMut(ChunkId)) -> Result<()> {
        for page in 0..map.page_count() {
            let key = map.page_key(page);
            if self.seen_pages.contains(&key) {
                continue;
            }
            match map.read_entries(page) {
                Ok(entries) => {
                    // A delta that is not needed has a chunk that may be needed in another form.
                    entries.iter().flatten().flat_map(ChunkName::ids).for_each(&mut *visit);
                }
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
