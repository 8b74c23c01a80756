//! The groups of one backup: recipes and runs of all threads go into one file after the other.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::RevisionWriter;
use crate::error::{Error, Result};
use crate::format::group::GroupWriter;
use crate::format::id::ChunkId;
use crate::format::name::{FileName, Place};
use crate::format::recipe::Recipe;
use crate::format::run::RunBuilder;
use crate::fs::disk;

/// The groups of a backup.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// The one that is being written, if any.
    open: Mutex<Option<(ChunkId, GroupWriter)>>,
    /// All of them.
    made: Mutex<HashSet<ChunkId>>,
    /// One could not be written. The map may name recipes in it, so this backup cannot be committed.
    failed: AtomicBool,
}

impl Groups {
    /// Adds a run and the recipe that needs it. Returns the place of the chunk, and how many bytes were written.
    pub(super) fn add(
        &self,
        writer: &RevisionWriter,
        id: &ChunkId,
        mut recipe: Recipe,
        run: &RunBuilder,
    ) -> Result<(Place, u64)> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.as_ref().is_some_and(|(_, group)| group.is_full()) {
            self.finish_open(writer, &mut open)?;
        }
        let (group, file) = match &mut *open {
            Some((group, file)) => (*group, file),
            none => {
                let (group, file) = none.insert(begin(writer)?);
                self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(*group);
                (*group, file)
            }
        };
        let (offset, len) = match file.add(id, &mut recipe, run) {
            Ok(place) => place,
            Err(error) => {
                // What was written of it is not known: nothing is put behind.
                *open = None;
                self.fail();
                return Err(error);
            }
        };
        let bytes = run.len() as u64 + u64::from(len);
        Ok((Place { id: *id, recipe: Some(recipe.place(group, offset)) }, bytes))
    }

    /// Whether this backup has made the group.
    pub(super) fn has_made(&self, group: &ChunkId) -> bool {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).contains(group)
    }

    /// Notes that a part of a group is lost.
    pub(super) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Finishes the group that is open: its recipes can be read by all from now on.
    pub(super) fn finish(&self, writer: &RevisionWriter) -> Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if self.failed.load(Ordering::Relaxed) {
            let why = std::io::Error::other("a part of it could not be written");
            return Err(Error::io("finish", "the group of this backup", why));
        }
        self.finish_open(writer, &mut open)
    }

    fn finish_open(&self, writer: &RevisionWriter, open: &mut Option<(ChunkId, GroupWriter)>) -> Result<()> {
        let Some((id, file)) = open.take() else { return Ok(()) };
        writer.backend.finish_group(&id, file).inspect_err(|_| self.fail())?;
        writer.backend.use_existing(&FileName::group(id));
        Ok(())
    }
}

fn begin(writer: &RevisionWriter) -> Result<(ChunkId, GroupWriter)> {
    let id = ChunkId::from_bytes(disk::random_bytes()?);
    // As for a chunk: whoever sweeps learns of it before it is there.
    {
        let _shard = writer.backend.lock_shard(id.shard(), false)?;
        writer.session.refer(id.as_bytes())?;
    }
    writer.session.record_new(&id)?;
    let file = writer.backend.begin_group(id, &writer.temporary())?;
    Ok((id, file))
}
