//! Which files a store has of chunks, as their names tell: for who cannot learn from a map which file is meant.
//!
//! What is found so is a chance and no promise: a purge keeps what maps name, and nothing for being found here.

use std::collections::{BTreeSet, HashSet};

use super::id::ChunkId;
use super::name::ChunkName;
use crate::backend::Backend;
use crate::error::Result;

/// Returns the names of all files of these chunks, of each chunk the full one first.
pub(crate) fn find(backend: &dyn Backend, ids: &HashSet<ChunkId>) -> Result<BTreeSet<ChunkName>> {
    let mut found = BTreeSet::new();
    let shards: BTreeSet<u8> = ids.iter().map(ChunkId::shard).collect();
    for shard in shards {
        backend.list(shard, &mut |name| {
            if ids.contains(&name.id) {
                found.insert(name);
            }
        })?;
    }
    Ok(found)
}
