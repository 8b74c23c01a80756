//! Encodes chunks: full ones, and runs of what has changed since the chunk before.
//!
//! A run has the pages that changed, so a day costs what changed that day; what changed before is pointed at where it lies.
//! Every recipe has its own limit of runs, between 12 and 20, so that the chunks of an image do not reach it on the same
//! day. At the limit the new run takes over what the last few runs have: those for which the least is written for each run
//! that goes. So large old runs stay and small new ones are put together, and a page is written about three times in a year
//! of changes. When the runs together are about as large as their base, the chunk is written in full.

use std::collections::HashSet;

use super::chunks::ChunkWriter;
use super::copies::Plan;
use crate::error::{Error, Result};
use crate::format::container::{HASH_LEN, HEADER_LEN_MAX, header_len, write_header};
use crate::format::frame::{Encoder, Kind, Patcher};
use crate::format::id::{ChunkId, seal};
use crate::format::layout::{frame_count, frame_len};
use crate::format::name::FILES_MAX;
use crate::format::recipe::{DONORS_MAX, Recipe, Run, donors_of};
use crate::format::run::{self, PageCopy, PieceKind};
use crate::format::{CHUNK_LEN, FRAME_LEN, FRAMES_MAX};
use crate::read::chunk::OpenChunk;
use crate::read::full::FullChunk;
use crate::read::made::MadeChunk;

/// From so many changed frames on it is tried whether a run would be short.
const TRIED_FROM: usize = 16;

/// So many of them.
const TRIES: usize = 4;

/// The limits of runs of one chunk: from the first, by so many steps.
const RUNS_FROM: usize = 12;
const RUNS_STEPS: u64 = 9;

/// What lay at the place of a chunk of which only the changes are known.
pub(super) struct Before {
    pub(super) chunk: OpenChunk,
    /// Bit n: frame n did not change, and its bytes are not among the new chunk's.
    pub(super) absent: u64,
}

/// The new chunk at a place, and what was there.
pub(super) struct Change<'c> {
    pub(super) id: &'c ChunkId,
    pub(super) number: u64,
    pub(super) data: &'c [u8],
    /// As in [`Before`].
    pub(super) absent: u64,
    /// What was there, or on another disk; the new chunk has its length.
    pub(super) parent: &'c OpenChunk,
    /// The full chunk that the runs of `parent` are put on, or `parent` itself; `None`: zeros.
    pub(super) ground: Option<&'c FullChunk>,
}

impl Change<'_> {
    /// What a full chunk in the place of this one may be long.
    fn ground_len(&self) -> u64 {
        match self.ground {
            Some(ground) => ground.header().file_len,
            // Half of the bytes, as data of many kinds is when it is compressed.
            None => self.data.len() as u64 / 2,
        }
    }

    /// Bytes that frame `number` takes in the full chunk.
    fn ground_frame_len(&self, number: usize) -> u64 {
        match self.ground {
            Some(ground) => u64::from(ground.header().frames[number].stored_len),
            None => frame_len(self.data.len(), number) as u64 / 2,
        }
    }
}

/// What became of an attempt to store the changes only.
pub(super) enum Attempt {
    /// The recipe, without the run that was made.
    Made(Recipe),
    /// The chunk has little in common with the one before.
    Unlike,
    /// A full chunk is due.
    Due,
}

/// The frames of a full chunk's file that is being made.
struct Frames {
    kept: [(Kind, usize); FRAMES_MAX],
    end: usize,
}

impl Frames {
    fn begin(file: &mut Vec<u8>, header_len: usize) -> Self {
        // Made once: what an earlier chunk left in it is overwritten or lies behind the end.
        file.resize(HEADER_LEN_MAX + CHUNK_LEN + HASH_LEN, 0);
        Self { kept: [(Kind::Zero, 0); FRAMES_MAX], end: header_len }
    }

    fn add(&mut self, number: usize, kind: Kind, length: usize) {
        self.kept[number] = (kind, length);
        self.end += length;
    }

    fn copy(&mut self, number: usize, kind: Kind, stored: &[u8], file: &mut [u8]) {
        file[self.end..self.end + stored.len()].copy_from_slice(stored);
        self.add(number, kind, stored.len());
    }
}

fn compressing(id: &ChunkId) -> impl Fn(std::io::Error) -> Error {
    let what = format!("chunk {id}");
    move |error| Error::io("compress", &what, error)
}

/// A number between 0 and `steps - 1` that differs from place to place and stays the same there.
fn spread(number: u64, salt: u64, steps: u64) -> u64 {
    let mixed = (number ^ salt << 32).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) % steps
}

/// Returns the first of the runs of these lengths that a new run takes over; their number where none is.
fn first_merged(lengths: &[u32], new_len: usize, limit: usize) -> usize {
    if lengths.len() < limit {
        return lengths.len();
    }
    let mut best = (f64::INFINITY, lengths.len());
    let mut written = new_len as f64;
    for (at, length) in lengths.iter().enumerate().rev() {
        written += f64::from(*length);
        let gone = (lengths.len() - at) as f64;
        let score = written / gone.powf(1.5);
        if score < best.0 {
            best = (score, at);
        }
    }
    best.1
}

impl ChunkWriter<'_> {
    /// Writes the file of a full chunk, whose digest was just taken, to the beginning of `self.file`; returns its length.
    /// Frames whose bytes are not in `data` come from the chunk before, verified.
    pub(super) fn encode_full(
        &mut self,
        id: &ChunkId,
        data: &[u8],
        before: Option<&Before>,
    ) -> Result<usize> {
        let header = header_len(data.len());
        let mut frames = Frames::begin(&mut self.file, header);
        let mut plain = [0; FRAME_LEN];
        for (number, frame) in data.chunks(FRAME_LEN).enumerate() {
            if self.digest.zero_frames >> number & 1 != 0 {
                continue;
            }
            let mut frame = frame;
            if let Some(before) = before.filter(|before| before.absent >> number & 1 != 0) {
                let plain = &mut plain[..frame.len()];
                before.chunk.read_frame(number, self.scratch.frames(), plain)?;
                if let Some((_, whole)) = before.chunk.whole(number) {
                    frames.copy(number, whole.kind, self.scratch.frames().stored(whole), &mut self.file);
                    continue;
                }
                frame = plain;
            }
            let encoded = self.encoder.encode(frame, &mut self.file[frames.end..]);
            let (kind, length) = encoded.map_err(compressing(id))?;
            frames.add(number, kind, length);
        }
        let kept = &frames.kept[..self.digest.values.len()];
        write_header(&mut self.file[..header], data.len(), kept, &self.digest.values);
        let (stored, room) = self.file.split_at_mut(frames.end);
        room[..HASH_LEN].copy_from_slice(&seal(&[stored]));
        Ok(frames.end + HASH_LEN)
    }

    /// Makes the run of a changed chunk in `self.run`.
    pub(super) fn encode_run(&mut self, change: &Change<'_>) -> Result<Attempt> {
        let ground_len = change.ground.map_or(change.data.len(), |ground| ground.header().plain_len);
        let lengths = [change.parent.plain_len(), ground_len];
        if lengths != [change.data.len(); 2] || frame_count(change.data.len()) == 1 {
            return Ok(Attempt::Unlike);
        }
        let changed = self.changed_frames(change)?;
        if !self.is_worth_a_run(change, &changed)? {
            return Ok(Attempt::Unlike);
        }
        let Some(mut plan) = self.changed_pages(change, &changed)? else { return Ok(Attempt::Due) };
        let files = change.parent.made().map_or(1, |made| made.recipe().file_count());
        self.find_copies(change.id, change.data, &mut plan, FILES_MAX.saturating_sub(files + 2))?;
        self.encode_plan(change, &plan)?;
        let all: Vec<usize> = (0..change.parent.made().map_or(0, |made| made.recipe().runs.len())).collect();
        let mut runs = self.left_of(change.parent, &plan, &all)?;
        let limit = RUNS_FROM + spread(change.number, 1, RUNS_STEPS) as usize;
        let first = first_merged(&lengths_of(&runs), self.run.len(), limit);
        if first < runs.len() {
            let merged: Vec<usize> = runs[first..].iter().map(|(at, _)| *at).collect();
            self.take_over(change.parent, &merged, &mut plan, &HashSet::new())?;
            self.encode_plan(change, &plan)?;
            let kept: Vec<usize> = runs[..first].iter().map(|(at, _)| *at).collect();
            runs = self.left_of(change.parent, &plan, &kept)?;
        }
        let ground_len = change.ground_len();
        let kept_len: u64 = lengths_of(&runs).iter().map(|len| u64::from(*len)).sum();
        let limit_len = ground_len * (12 + spread(change.number, 2, 8)) / 16;
        if self.run.len() as u64 > ground_len / 2 || kept_len + self.run.len() as u64 > limit_len {
            return Ok(Attempt::Due);
        }
        if self.is_base_of_no_use(change, &plan, &runs)? {
            return Ok(Attempt::Due);
        }
        let recipe = self.recipe_of(change, runs)?;
        // A new run can bring files with it; they must have room in the map.
        let new = donors_of(0, self.run.copies().iter()).len() + 1;
        if recipe.file_count() + new > FILES_MAX || recipe.donors.len() + new > DONORS_MAX {
            return Ok(Attempt::Due);
        }
        Ok(Attempt::Made(recipe))
    }

    /// Returns the recipe of runs that are left of the chunk before.
    pub(super) fn recipe_of(&self, change: &Change<'_>, runs: Vec<(usize, Run)>) -> Result<Recipe> {
        let mut donors = Vec::new();
        if let Some(made) = change.parent.made() {
            for (new, (at, run)) in runs.iter().enumerate() {
                if made.recipe().donors.iter().any(|donor| donor.run == *at) {
                    let copies = copies_of(made, *at, run.frames)?;
                    donors.extend(donors_of(new, copies.iter().map(|(_, copy)| copy)));
                }
            }
        }
        let base = change.ground.map(|ground| *ground.id());
        let runs = runs.into_iter().map(|(_, run)| run).collect();
        let values = self.digest.values.to_vec();
        Ok(Recipe { plain_len: change.data.len(), values, base, runs, donors })
    }

    /// Whether little of the base is needed any more: then it would be kept for nothing, and a full chunk is the better one.
    fn is_base_of_no_use(&self, change: &Change<'_>, plan: &Plan, runs: &[(usize, Run)]) -> Result<bool> {
        let Some(ground) = change.ground else { return Ok(false) };
        let mut covered = plan.all_pages();
        if let Some(made) = change.parent.made() {
            for (at, _) in runs {
                made.pieces(*at)?.iter().for_each(|piece| covered[usize::from(piece.frame)] |= piece.pages);
            }
        }
        let frames = ground.header().frames.iter().enumerate();
        let needed = frames
            .filter(|(number, _)| covered[*number] != run::all_pages(frame_len(change.data.len(), *number)));
        let needed_len: u64 = needed.map(|(_, frame)| u64::from(frame.stored_len)).sum();
        Ok(needed_len < ground.header().file_len / 4)
    }

    /// Returns the frames that are not as in the chunk before.
    fn changed_frames(&self, change: &Change<'_>) -> Result<Vec<usize>> {
        let mut changed = Vec::new();
        for (number, value) in self.digest.values.iter().enumerate() {
            if change.parent.value(number) == value {
                continue;
            }
            // What did not change is as the chunk before has it, or that one is not what it should be.
            if change.absent >> number & 1 != 0 {
                return Err(change.parent.corrupt(number, "its values contradict each other"));
            }
            changed.push(number);
        }
        Ok(changed)
    }

    /// Whether a run will be short. Where many frames have changed, some of them are tried: a chunk that was written anew has
    /// nothing in common with the one before, and nearly all of it would be compressed twice to find that out.
    fn is_worth_a_run(&mut self, change: &Change<'_>, changed: &[usize]) -> Result<bool> {
        let changed_len: u64 = changed.iter().map(|number| change.ground_frame_len(*number)).sum();
        // Where most of the chunk is as it was, a run is the better one whatever becomes of the rest.
        if changed.len() < TRIED_FROM || changed_len <= change.ground_len() / 2 {
            return Ok(true);
        }
        let mut old = [0; FRAME_LEN];
        let (mut tried_pages, mut tried) = (0, 0);
        for number in changed.iter().step_by(changed.len() / TRIES) {
            let frame = frame_of(change.data, *number);
            let old = &mut old[..frame.len()];
            change.parent.read_frame(*number, self.scratch.frames(), old)?;
            tried_pages += run::differing(old, frame).count_ones() as usize;
            tried += run::PAGES;
        }
        if tried_pages <= tried / 2 {
            return Ok(true);
        }
        // Pages that differ may be almost the same.
        let Some(ground) = change.ground else { return Ok(false) };
        let number = changed[changed.len() / 2];
        let frame = frame_of(change.data, number);
        let mut on = vec![0; frame.len()];
        ground.read_frame(number, self.scratch.frames(), &mut on)?;
        let mut room = [0; FRAME_LEN];
        let mut patcher = Patcher::new(self.writer.new.level).map_err(compressing(change.id))?;
        let patch = patcher.encode(frame, &on, &mut room).map_err(compressing(change.id))?;
        Ok(patch.is_some_and(|length| length as u64 <= change.ground_frame_len(number) / 2))
    }

    /// Returns the pages that are not as in the chunk before; `None` where a frame differs and no page does, which cannot be.
    fn changed_pages(&mut self, change: &Change<'_>, changed: &[usize]) -> Result<Option<Plan>> {
        let (mut plan, mut old) = (Plan::default(), [0; FRAME_LEN]);
        for &number in changed {
            let frame = frame_of(change.data, number);
            let old = &mut old[..frame.len()];
            change.parent.read_frame(number, self.scratch.frames(), old)?;
            plan.literal[number] = run::differing(old, frame);
            if plan.literal[number] == 0 {
                return Ok(None);
            }
        }
        Ok((!changed.is_empty()).then_some(plan))
    }

    /// Adds the pages of runs that a new run takes over, but for those that a later one has. Copies stay copies, unless they
    /// are from one of the groups in `left`.
    pub(super) fn take_over(
        &self,
        parent: &OpenChunk,
        taken: &[usize],
        plan: &mut Plan,
        left: &HashSet<ChunkId>,
    ) -> Result<()> {
        let Some(made) = parent.made() else { return Ok(()) };
        let mut covered = plan.all_pages();
        for (at, run) in made.recipe().runs.iter().enumerate().rev() {
            for piece in made.pieces(at)?.iter().filter(|piece| run.frames >> piece.frame & 1 != 0) {
                let frame = usize::from(piece.frame);
                let fresh = piece.pages & !covered[frame];
                covered[frame] |= piece.pages;
                if !taken.contains(&at) || fresh == 0 {
                    continue;
                }
                if piece.kind != PieceKind::Copy {
                    plan.literal[frame] |= fresh;
                    continue;
                }
                for copy in made.copies(at, piece)? {
                    if left.contains(&copy.donor.file.id) {
                        plan.literal[frame] |= copy.pages() & fresh;
                    } else {
                        plan.add_copy(frame, &copy, fresh);
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns what is left of some runs of the chunk before when a new run has the pages of `plan`: without the frames of
    /// which the new one has every page that they have, and without those that have no frame any more.
    pub(super) fn left_of(
        &self,
        parent: &OpenChunk,
        plan: &Plan,
        kept: &[usize],
    ) -> Result<Vec<(usize, Run)>> {
        let Some(made) = parent.made() else { return Ok(Vec::new()) };
        let pages = plan.all_pages();
        let mut left = Vec::with_capacity(kept.len());
        for &at in kept {
            let mut run = made.recipe().runs[at];
            for (frame, pages) in pages.iter().enumerate() {
                if *pages == 0 || run.frames >> frame & 1 == 0 {
                    continue;
                }
                let has =
                    run::of_frame(made.pieces(at)?, frame).iter().fold(0, |has, piece| has | piece.pages);
                if has & !pages == 0 {
                    run.frames &= !(1 << frame);
                }
            }
            if run.frames != 0 {
                left.push((at, run));
            }
        }
        Ok(left)
    }

    /// Writes what is planned of the chunk as a run into `self.run`.
    pub(super) fn encode_plan(&mut self, change: &Change<'_>, plan: &Plan) -> Result<()> {
        self.encode_pages(change.id, change.data, change.ground, Some((change.absent, change.parent)), plan)
    }

    /// As [`ChunkWriter::encode_plan`]. The bytes of frames that are `absent` come from the chunk before.
    pub(super) fn encode_pages(
        &mut self,
        id: &ChunkId,
        data: &[u8],
        ground: Option<&FullChunk>,
        absent: Option<(u64, &OpenChunk)>,
        plan: &Plan,
    ) -> Result<()> {
        self.base.resize(CHUNK_LEN, 0);
        let all = plan.all_pages();
        let numbers = (0..frame_count(data.len())).filter(|number| all[*number] != 0);
        let literal = numbers.clone().filter(|number| plan.literal[*number] != 0);
        if let Some(ground) = ground {
            for number in literal {
                let length = frame_len(data.len(), number);
                let on = &mut self.base[number * FRAME_LEN..][..length];
                ground.read_frame(number, self.scratch.frames(), on)?;
            }
        }
        let mut patcher = Patcher::new(self.writer.new.level).map_err(compressing(id))?;
        let (mut plain, mut room) = ([0; FRAME_LEN], [0; FRAME_LEN]);
        self.run.clear();
        for number in numbers {
            if plan.literal[number] != 0 {
                let frame = match absent.filter(|(absent, _)| absent >> number & 1 != 0) {
                    Some((_, parent)) => {
                        let plain = &mut plain[..frame_len(data.len(), number)];
                        parent.read_frame(number, self.scratch.frames(), plain)?;
                        &*plain
                    }
                    None => frame_of(data, number),
                };
                run::gather(plan.literal[number], frame, &mut self.packed);
                let on = ground.map(|_| &self.base[number * FRAME_LEN..][..frame.len()]);
                let encoded = encode_piece(&mut patcher, &mut self.encoder, &self.packed, on, &mut room);
                let (kind, length) = encoded.map_err(compressing(id))?;
                self.run.add(number, kind, plan.literal[number], &room[..length]);
            }
            if !plan.copies[number].is_empty() {
                self.run.add_copies(number, &plan.copies[number]);
            }
        }
        Ok(())
    }
}

fn lengths_of(runs: &[(usize, Run)]) -> Vec<u32> {
    runs.iter().map(|(_, run)| run.len).collect()
}

/// Returns the copies that a run has in these frames, with their frames.
fn copies_of(made: &MadeChunk, at: usize, frames: u64) -> Result<Vec<(usize, PageCopy)>> {
    let mut copies = Vec::new();
    let pieces = made.pieces(at)?.iter();
    for piece in pieces.filter(|piece| piece.kind == PieceKind::Copy && frames >> piece.frame & 1 != 0) {
        copies.extend(made.copies(at, piece)?.into_iter().map(|copy| (usize::from(piece.frame), copy)));
    }
    Ok(copies)
}

fn frame_of(data: &[u8], number: usize) -> &[u8] {
    &data[number * FRAME_LEN..][..frame_len(data.len(), number)]
}

/// Writes pages by themselves, or as a patch on the base's frame where that is clearly shorter: what needs no base is read
/// faster, and from one file less.
fn encode_piece<'b>(
    patcher: &mut Patcher<'b>,
    encoder: &mut Encoder,
    packed: &[u8],
    on: Option<&'b [u8]>,
    room: &mut [u8],
) -> std::io::Result<(PieceKind, usize)> {
    let mut alone = [0; FRAME_LEN];
    let (kind, alone_len) = encoder.encode(packed, &mut alone)?;
    if let Some(on) = on.filter(|_| alone_len > packed.len() / 16) {
        let patch = patcher.encode(packed, on, room)?;
        if let Some(length) = patch.filter(|length| *length < alone_len - alone_len / 8) {
            return Ok((PieceKind::Patch, length));
        }
    }
    room[..alone_len].copy_from_slice(&alone[..alone_len]);
    Ok((if kind == Kind::Raw { PieceKind::Raw } else { PieceKind::Zstd }, alone_len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_get_different_limits() {
        for steps in [8, 9] {
            let mut seen: Vec<u64> = (0..200).map(|number| spread(number, 1, steps)).collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen, (0..steps).collect::<Vec<_>>());
        }
    }

    #[test]
    fn small_new_runs_are_put_together_and_large_old_ones_stay() {
        assert_eq!(first_merged(&[10; 5], 10, 6), 5, "below the limit nothing is merged");
        assert_eq!(first_merged(&[100_000, 5000, 10, 10, 10], 10, 5), 2);
        assert_eq!(first_merged(&[10; 5], 10, 5), 0);
    }
}
