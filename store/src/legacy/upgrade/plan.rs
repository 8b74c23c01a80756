//! What an upgrade would do, and the space that it needs. Changes nothing.

use std::collections::HashSet;

use crate::error::{Context, Result};
use crate::format::CHUNK_SIZE;
use crate::format::layout::chunk_count;
use crate::legacy::chunk::OldChunks;
use crate::legacy::image::OldImage;
use crate::repository::job::Job;
use crate::revision::{Revision, RevisionId};

/// What our files can take more than the data in them, for each chunk: the header, and a page of the file system.
const CHUNK_OVERHEAD: u64 = 8 << 10;

/// What an upgrade would do.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The revisions that would become ours, in this order.
    pub revisions: Vec<Revision>,
    /// Revisions of the original that stay as they are, and why.
    pub left: Vec<(RevisionId, String)>,
    /// Bytes of all images together.
    pub image_bytes: u64,
    /// The most space that is needed beside what is there.
    pub needed_bytes_max: u64,
    /// What the data takes now, which is more than it will mostly need.
    pub needed_bytes: u64,
    /// Space that is free in the store.
    pub free_bytes: u64,
}

/// Looks what there is to upgrade in a job. Changes nothing.
pub fn plan(job: &Job) -> Result<Plan> {
    let mut plan = Plan::default();
    let mut chunks = HashSet::new();
    let mut old: Vec<Revision> = job.revisions()?.revisions;
    old.retain(Revision::is_old);
    old.reverse();
    for revision in old {
        if !revision.is_clean() {
            let reason = "its backup did not finish: forget it if it is not running".to_owned();
            plan.left.push((revision.id, reason));
            continue;
        }
        let image = match OldImage::open(job, &revision) {
            Err(error) if error.is_damage() => {
                plan.left.push((revision.id, error.to_string()));
                continue;
            }
            other => other?,
        };
        plan.image_bytes += image.size_bytes();
        match image.map() {
            Some(map) => chunks.extend(map.used_names()),
            None => {
                plan.needed_bytes += image.disk_bytes();
                plan.needed_bytes_max +=
                    image.disk_bytes() + chunk_count(image.size_bytes()) * CHUNK_OVERHEAD;
            }
        }
        plan.revisions.push(revision);
    }
    let files = OldChunks::open(job.dir())?;
    plan.needed_bytes += chunks.iter().map(|id| files.file_len(id)).sum::<u64>();
    plan.needed_bytes_max += chunks.len() as u64 * (CHUNK_SIZE + CHUNK_OVERHEAD);
    let space = nix::sys::statvfs::statvfs(job.repository().root())
        .context("examine the file system of", job.repository().root())?;
    plan.free_bytes = space.blocks_available() as u64 * space.fragment_size() as u64;
    Ok(plan)
}
