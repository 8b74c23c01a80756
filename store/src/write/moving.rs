//! Moves runs out of groups of which little is needed.
//!
//! A group stays as a whole as long as one of its runs is needed. Where hot pages change every day and cold ones do not, a
//! cold run would keep a group full of hot runs that nobody needs any more. So a backup takes over the runs that it needs
//! of a group when they are less than a quarter of it: into a group of their own, where old runs lie beside old runs. Older
//! revisions go on to need the old group until they are forgotten. What is written for that, recipes included, is less than
//! a third of what becomes free.

use std::collections::{HashMap, HashSet};

use super::RevisionWriter;
use super::chunks::ChunkWriter;
use super::copies::Plan;
use super::encode::Change;
use crate::error::Result;
use crate::format::CHUNK_LEN;
use crate::format::id::ChunkId;
use crate::format::name::{FileName, Place};
use crate::format::recipe::Recipe;
use crate::read::chunk;

/// Runs are taken over when the bytes that are needed of a group are less than this part of it.
const PART: u64 = 4;

/// Of a group that has no runs of this disk, and from which pages are copied, it is this part: others need it as well, as a
/// rule, and what is copied would be stored again.
const DONOR_PART: u64 = 64;

/// No group is left for less waste than this.
const WASTE_MIN: u64 = 64 << 10;

/// One backup writes no more than this for it, and a quarter of what else it has stored; the next ones go on. So groups that
/// become sparse together cost no dear day.
const MOVED_MAX: u64 = 1 << 20;

/// Groups of which a revision needs little.
#[derive(Default)]
struct Sparse {
    /// Too little for a group that has runs of this disk.
    runs: HashSet<ChunkId>,
    /// Of these, too little for a group from which pages are copied only.
    donors: HashSet<ChunkId>,
}

impl RevisionWriter {
    /// Moves the runs that this revision needs out of groups of which it needs little. What is damaged stays as it is.
    pub(super) fn move_runs(&self) -> Result<()> {
        if !self.map.has_recipes() {
            return Ok(());
        }
        let sparse = self.sparse_groups()?;
        if sparse.runs.is_empty() {
            return Ok(());
        }
        let mut putter = self.chunk_writer()?;
        let (zeros, mut moved) = (vec![0; CHUNK_LEN], 0);
        let moved_max = MOVED_MAX + self.stats().stored_bytes / 4;
        for number in 0..self.chunk_count() {
            let Some(place) = self.map.get(number)? else { continue };
            if !place.group_bytes().any(|(group, _)| sparse.runs.contains(&group)) {
                continue;
            }
            match putter.move_place(number, &place, &sparse, &zeros) {
                Ok(bytes) => moved += bytes,
                Err(error) if error.is_damage() => {
                    tracing::debug!(error = crate::error::in_full(&error), "runs-not-moved");
                }
                Err(error) => return Err(error),
            }
            if moved >= moved_max {
                break;
            }
        }
        Ok(())
    }

    /// Returns the groups of which this revision needs little.
    fn sparse_groups(&self) -> Result<Sparse> {
        // What moving would write: the runs, and a recipe for each of their chunks.
        let mut needed: HashMap<ChunkId, u64> = HashMap::new();
        for number in 0..self.chunk_count() {
            let Some(place) = self.map.get(number)? else { continue };
            let recipe_len = place.recipe.as_ref().map_or(0, |recipe| recipe.len);
            for (group, bytes) in place.group_bytes() {
                *needed.entry(group).or_default() += u64::from(bytes) + u64::from(recipe_len);
            }
        }
        let mut sparse = Sparse::default();
        for (group, bytes) in needed.into_iter().filter(|(group, _)| !self.groups.has_made(group)) {
            let length = self.backend.len(&FileName::group(group))?.unwrap_or(0);
            if bytes * PART < length && length - bytes >= WASTE_MIN {
                sparse.runs.insert(group);
                if bytes * DONOR_PART < length {
                    sparse.donors.insert(group);
                }
            }
        }
        Ok(sparse)
    }
}

impl ChunkWriter<'_> {
    /// Makes the recipe at a place do without these groups. Returns how many bytes were written.
    fn move_place(&mut self, number: u64, place: &Place, sparse: &Sparse, zeros: &[u8]) -> Result<u64> {
        let writer = self.writer;
        let chunk = chunk::open(&writer.backend, place)?;
        let Some(made) = chunk.made() else {
            // It was written again in full meanwhile, and needs no recipe.
            self.use_again(number, place)?;
            return Ok(0);
        };
        let ground = chunk.ground()?;
        let recipe = made.recipe();
        let is_left = |at: usize| {
            let mut donors = recipe.donors.iter().filter(|donor| donor.run == at);
            let has_run = sparse.runs.contains(&recipe.runs[at].group);
            has_run || donors.any(|donor| sparse.donors.contains(&donor.file.id))
        };
        let (left, kept): (Vec<_>, Vec<_>) = (0..recipe.runs.len()).partition(|at| is_left(*at));
        if left.is_empty() {
            return Ok(0);
        }
        let mut plan = Plan::default();
        self.take_over(&chunk, &left, &mut plan, &sparse.donors)?;
        if plan.is_empty() {
            // Later runs have all that these have. A run has something: a page that is stored twice.
            let piece = made.pieces(left[0])?[0];
            plan.literal[usize::from(piece.frame)] = piece.pages & piece.pages.wrapping_neg();
        }
        let data = &zeros[..chunk.plain_len()];
        // No byte comes from `data`: all frames are as they were.
        let change = Change { id: &place.id, number, data, absent: u64::MAX, parent: &chunk, ground };
        self.encode_plan(&change, &plan)?;
        let runs = self.left_of(&chunk, &plan, &kept)?;
        let recipe = Recipe { values: recipe.values.clone(), ..self.recipe_of(&change, runs)? };
        let (place, bytes) = writer.moved.add(writer, &place.id, recipe, &self.run)?;
        self.use_existing(&place);
        self.count_moved(number, place, bytes)?;
        Ok(bytes)
    }
}
