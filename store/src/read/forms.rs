//! Where a store has chunks, as its files tell: for a map that cannot tell it any more.
//!
//! What is found so is a chance and no promise: a purge keeps what maps name, and nothing for being found here.

use std::collections::{BTreeMap, HashSet};

use super::files::Files;
use crate::error::{Error, Result};
use crate::format::group::read_lists;
use crate::format::id::ChunkId;
use crate::format::name::{FileKind, FileName, Place};

/// Finds all places of these chunks. Looks into every group of the store, so it is for emergencies; groups that are
/// damaged are passed over.
pub(crate) fn find(files: &Files, ids: &HashSet<ChunkId>) -> Result<BTreeMap<ChunkId, Vec<Place>>> {
    let mut found: BTreeMap<ChunkId, Vec<Place>> = BTreeMap::new();
    let mut groups = Vec::new();
    for shard in 0..=255 {
        files.list(shard, &mut |name| match name.kind {
            FileKind::Chunk if ids.contains(&name.id) => {
                found.entry(name.id).or_default().push(Place::full(name.id));
            }
            FileKind::Chunk => {}
            FileKind::Group => groups.push(name.id),
        })?;
    }
    for group in groups {
        let listed = match lists_of(files, &group) {
            Err(error) if error.is_damage() => continue,
            other => other?,
        };
        for (id, offset, len) in listed.into_iter().filter(|(id, ..)| ids.contains(id)) {
            match place_of(files, &group, &id, (offset, len)) {
                Err(error) if error.is_damage() => {}
                place => found.entry(id).or_default().push(place?),
            }
        }
    }
    Ok(found)
}

fn lists_of(files: &Files, group: &ChunkId) -> Result<Vec<crate::format::group::Listed>> {
    match files.open(&FileName::group(*group))? {
        Some(file) => read_lists(group, &*file).map(|(_, listed)| listed),
        None => Err(Error::ChunkMissing { id: *group }),
    }
}

/// Returns the place of a recipe that a group lists.
pub(crate) fn place_of(
    files: &Files,
    group: &ChunkId,
    id: &ChunkId,
    (offset, len): (u32, u32),
) -> Result<Place> {
    let recipe = files.group(group)?.recipe(id, offset, len)?;
    Ok(Place { id: *id, recipe: Some(recipe.place(*group, offset)) })
}
