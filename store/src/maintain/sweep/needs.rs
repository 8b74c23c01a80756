//! Which chunks are needed: what logs, pins and chunk maps name.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};
use crate::format::ChunkId;
use crate::format::map::{ChunkMap, Entry, PageKey, files_of, ids};
use crate::format::name::{FileKind, FileName, Place};
use crate::fs::disk;
use crate::monitor::Monitor;
use crate::read::files::Files;
use crate::read::forms;
use crate::revision::RevisionId;

/// The chunks of one store that are needed, and why.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// The full chunks that maps name, and what logs name, by shard.
    live: Vec<HashSet<ChunkId>>,
    /// The groups that maps name.
    groups: HashSet<ChunkId>,
    /// The chunks that maps name by recipes: a full one that is there serves them, too.
    made: HashSet<ChunkId>,
    /// Written by runs that died or failed before they were durable. Where maps have a recipe, the full chunk is not kept:
    /// nothing but the session's list says that it must be read first, and that list goes with this purge.
    doubtful: HashSet<ChunkId>,
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

    /// Notes chunks that were written by runs that died or failed before they were durable.
    pub(super) fn doubt(&mut self, ids: impl Iterator<Item = ChunkId>) {
        self.doubtful.extend(ids);
    }

    fn insert(&mut self, id: ChunkId) -> bool {
        self.live[usize::from(id.shard())].insert(id)
    }

    /// Whether anything names the chunk or group.
    pub(super) fn has(&self, id: &ChunkId) -> bool {
        self.live[usize::from(id.shard())].contains(id) || self.made.contains(id) || self.groups.contains(id)
    }

    /// The files of a shard that must be there.
    pub(super) fn of_shard(&self, shard: u8) -> impl Iterator<Item = FileName> {
        let groups = self.groups.iter().filter(move |id| id.shard() == shard).copied().map(FileName::group);
        self.live[usize::from(shard)].iter().copied().map(FileName::chunk).chain(groups)
    }

    /// Whether a running session's log names the chunk; it may not be written yet.
    pub(super) fn is_logged(&self, id: &ChunkId) -> bool {
        self.logged.contains(id)
    }

    /// Whether a file is needed.
    pub(super) fn needs(&self, name: &FileName) -> bool {
        match name.kind {
            FileKind::Chunk => {
                self.live[usize::from(name.id.shard())].contains(&name.id)
                    || self.made.contains(&name.id) && !self.doubtful.contains(&name.id)
            }
            FileKind::Group => self.groups.contains(&name.id) || self.logged.contains(&name.id),
        }
    }

    /// Adds a chunk or group that a log names. Returns whether no map names it.
    pub(super) fn add_logged(&mut self, id: ChunkId) -> bool {
        self.logged.insert(id);
        let is_named = self.made.contains(&id) || self.groups.contains(&id);
        self.insert(id) && !is_named
    }

    /// Adds a map of a revision, by path. One that is gone has no needs: whoever removed or moved it is covered by a log,
    /// a pin or the register. Any other error than damage ends the purge.
    pub(super) fn add_map(
        &mut self,
        id: &RevisionId,
        path: &Path,
        files: &Files,
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
            Ok(map) => self.add(id, path, &map, files),
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
    pub(super) fn add(&mut self, id: &RevisionId, path: &Path, map: &ChunkMap, files: &Files) -> Result<()> {
        let (_, damage) = self.add_pages(map, files)?;
        match damage {
            Some(error) => self.note_damage(id, path, &error),
            None => {
                self.whole.insert(id.clone());
            }
        }
        Ok(())
    }

    /// Adds what a map names, but for the pages that were read already. Of a damaged page all that may be meant is added.
    /// Returns whether any file was not needed before, and the first damage.
    fn add_pages(&mut self, map: &ChunkMap, files: &Files) -> Result<(bool, Option<Error>)> {
        let (mut is_new, mut damage) = (false, None);
        for page in 0..map.page_count() {
            let key = map.page_key(page);
            if self.seen_pages.contains(&key) {
                continue;
            }
            match map.read_entries(page) {
                Ok(entries) => {
                    is_new |= self.add_entries(&entries);
                    // Only what was read: the same page of another map may be whole.
                    self.seen_pages.insert(key);
                }
                Err(error) if error.is_damage() => {
                    damage.get_or_insert(error);
                    self.add_half(map, page, files)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok((is_new, damage))
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

    /// Where the user goes on in spite of a damaged page, half of it is better than nothing. Which recipes of its chunks
    /// are meant cannot be known, so all that there are stay, with what they refer to.
    fn add_half(&mut self, map: &ChunkMap, page: u64, files: &Files) -> Result<()> {
        if let Ok(Some(places)) = map.read_places(page) {
            files_of(&places).unwrap_or_default().iter().for_each(|file| {
                self.add_file(file);
            });
        }
        if let Ok(page) = map.read_page(page) {
            let found = forms::find(files, &ids(&page).collect())?;
            let places: Vec<Entry> = found.into_values().flatten().map(Some).collect();
            self.add_entries(&places);
            // One that is nowhere is missing.
            ids(&page).filter(|id| !self.made.contains(id)).collect::<Vec<_>>().into_iter().for_each(|id| {
                self.insert(id);
            });
        }
        Ok(())
    }

    /// Adds what a page names. Returns whether any of it was not needed before.
    fn add_entries(&mut self, entries: &[Entry]) -> bool {
        let mut is_new = false;
        for place in entries.iter().flatten() {
            if place.recipe.is_some() {
                is_new |= self.made.insert(place.id);
            }
            for file in place.files() {
                is_new |= self.add_file(&file);
            }
        }
        is_new
    }

    fn add_file(&mut self, file: &FileName) -> bool {
        match file.kind {
            FileKind::Chunk => self.insert(file.id),
            FileKind::Group => self.groups.insert(file.id),
        }
    }

    /// Adds the map that a reader or writer had pinned. Returns whether it names a file that nothing else names. Of a damaged
    /// page all that may be meant stays: whoever reads it goes on.
    pub(super) fn add_pinned(&mut self, map: &ChunkMap, files: &Files) -> Result<bool> {
        let (is_new, damage) = self.add_pages(map, files)?;
        Ok(is_new || damage.is_some())
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
                    entries.iter().flatten().flat_map(Place::ids).for_each(&mut *visit);
                }
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
