//! Encodes chunks: full ones, and runs of what has changed since the chunk before.
//!
//! A run has the pages that changed, so a day costs what changed that day; what changed before is pointed at where it lies.
//! Every recipe has its own limit of runs, between 12 and 20, so that the chunks of an image do not reach it on the same
//! day. At the limit the new run takes over what the last few runs have: those for which the least is written for each run
//! that goes. So large old runs stay and small new ones are put together, and a page is written about three times in a year
//! of changes. When the runs together are about as large as their base, the chunk is written in full.

use super::chunks::ChunkWriter;
use crate::chunk::container::{HEADER_LEN_MAX, header_len, write_header};
use crate::chunk::frame::{Encoder, Kind, Patcher};
use crate::chunk::id::ChunkId;
use crate::chunk::layout::{frame_count, frame_len};
use crate::chunk::recipe::{Recipe, Run};
use crate::chunk::run::{self, PieceKind};
use crate::chunk::store::{FullChunk, OpenChunk};
use crate::chunk::{CHUNK_LEN, FRAME_LEN, FRAMES_MAX};
use crate::error::{Error, Result};

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
    /// The full chunk that the runs of `parent` are put on, or `parent` itself.
    pub(super) ground: &'c FullChunk,
}

/// The pages of each frame that are written.
pub(super) type Pages = [u16; FRAMES_MAX];

/// The frames of a full chunk's file that is being made.
struct Frames {
    kept: [(Kind, usize); FRAMES_MAX],
    end: usize,
}

impl Frames {
    fn begin(file: &mut Vec<u8>, header_len: usize) -> Self {
        // Made once: what an earlier chunk left in it is overwritten or lies behind the end.
        file.resize(HEADER_LEN_MAX + CHUNK_LEN, 0);
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
        Ok(frames.end)
    }

    /// Makes the run of a changed chunk in `self.run`; returns its recipe without that run. `None` where a full chunk is the
    /// better one.
    pub(super) fn encode_run(&mut self, change: &Change<'_>) -> Result<Option<Recipe>> {
        let lengths = [change.parent.plain_len(), change.ground.header().plain_len];
        if lengths != [change.data.len(); 2] || frame_count(change.data.len()) == 1 {
            return Ok(None);
        }
        let changed = self.changed_frames(change)?;
        if !self.is_worth_a_run(change, &changed)? {
            return Ok(None);
        }
        let Some(mut pages) = self.changed_pages(change, &changed)? else { return Ok(None) };
        self.encode_pages(change, &pages)?;
        let mut runs = match change.parent.made() {
            Some(made) => made.recipe().runs.clone(),
            None => Vec::new(),
        };
        self.drop_replaced(change.parent, &pages, &mut runs)?;
        let lengths: Vec<u32> = runs.iter().map(|run| run.len).collect();
        let limit = RUNS_FROM + spread(change.number, 1, RUNS_STEPS) as usize;
        let first = first_merged(&lengths, self.run.len(), limit);
        if first < runs.len() {
            self.add_pages_of(change.parent, &runs[first..], &mut pages)?;
            runs.truncate(first);
            self.encode_pages(change, &pages)?;
            self.drop_replaced(change.parent, &pages, &mut runs)?;
        }
        let ground_len = change.ground.header().file_len;
        let kept_len: u64 = runs.iter().map(|run| u64::from(run.len)).sum();
        let limit_len = ground_len * (12 + spread(change.number, 2, 8)) / 16;
        if self.run.len() as u64 > ground_len / 2 || kept_len + self.run.len() as u64 > limit_len {
            return Ok(None);
        }
        if self.is_base_of_no_use(change, &pages, &runs)? {
            return Ok(None);
        }
        let base = Some(*change.ground.id());
        Ok(Some(Recipe { plain_len: change.data.len(), values: self.digest.values.to_vec(), base, runs }))
    }

    /// Whether little of the base is needed any more: then it would be kept for nothing, and a full chunk is the better one.
    fn is_base_of_no_use(&self, change: &Change<'_>, pages: &Pages, runs: &[Run]) -> Result<bool> {
        let mut covered = *pages;
        if let Some(made) = change.parent.made() {
            for (at, own) in made.recipe().runs.iter().enumerate() {
                if runs.iter().any(|run| (run.group, run.offset) == (own.group, own.offset)) {
                    made.pieces(at)?
                        .iter()
                        .for_each(|piece| covered[usize::from(piece.frame)] |= piece.pages);
                }
            }
        }
        let frames = change.ground.header().frames.iter().enumerate();
        let needed = frames
            .filter(|(number, _)| covered[*number] != run::all_pages(frame_len(change.data.len(), *number)));
        let needed_len: u64 = needed.map(|(_, frame)| u64::from(frame.stored_len)).sum();
        Ok(needed_len < change.ground.header().file_len / 4)
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
        let ground = change.ground.header();
        let stored_len = |number: &usize| u64::from(ground.frames[*number].stored_len);
        let changed_len: u64 = changed.iter().map(stored_len).sum();
        // Where most of the chunk is as it was, a run is the better one whatever becomes of the rest.
        if changed.len() < TRIED_FROM || changed_len <= ground.file_len / 2 {
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
        let number = changed[changed.len() / 2];
        let frame = frame_of(change.data, number);
        let mut on = vec![0; frame.len()];
        change.ground.read_frame(number, self.scratch.frames(), &mut on)?;
        let mut room = [0; FRAME_LEN];
        let mut patcher = Patcher::new(self.writer.new.level).map_err(compressing(change.id))?;
        let patch = patcher.encode(frame, &on, &mut room).map_err(compressing(change.id))?;
        Ok(patch.is_some_and(|length| length as u64 <= stored_len(&number) / 2))
    }

    /// Returns the pages that are not as in the chunk before; `None` where a frame differs and no page does, which cannot be.
    fn changed_pages(&mut self, change: &Change<'_>, changed: &[usize]) -> Result<Option<Pages>> {
        let (mut pages, mut old) = ([0; FRAMES_MAX], [0; FRAME_LEN]);
        for &number in changed {
            let frame = frame_of(change.data, number);
            let old = &mut old[..frame.len()];
            change.parent.read_frame(number, self.scratch.frames(), old)?;
            pages[number] = run::differing(old, frame);
            if pages[number] == 0 {
                return Ok(None);
            }
        }
        Ok((!changed.is_empty()).then_some(pages))
    }

    /// Adds the pages that runs have and the recipe needs.
    pub(super) fn add_pages_of(&mut self, parent: &OpenChunk, runs: &[Run], pages: &mut Pages) -> Result<()> {
        let Some(made) = parent.made() else { return Ok(()) };
        for (at, own) in made.recipe().runs.iter().enumerate() {
            let Some(run) = runs.iter().find(|run| (run.group, run.offset) == (own.group, own.offset)) else {
                continue;
            };
            for piece in made.pieces(at)?.iter().filter(|piece| run.frames >> piece.frame & 1 != 0) {
                pages[usize::from(piece.frame)] |= piece.pages;
            }
        }
        Ok(())
    }

    /// Takes the frames out of `runs` of which a new run has every page that they have, and the runs that have nothing left.
    pub(super) fn drop_replaced(&self, parent: &OpenChunk, pages: &Pages, runs: &mut Vec<Run>) -> Result<()> {
        let Some(made) = parent.made() else { return Ok(()) };
        for (at, own) in made.recipe().runs.iter().enumerate() {
            let Some(run) = runs.iter_mut().find(|run| (run.group, run.offset) == (own.group, own.offset))
            else {
                continue;
            };
            let touched = |frame: u8| pages[usize::from(frame)] != 0 && run.frames >> frame & 1 != 0;
            if !(0..FRAMES_MAX as u8).any(touched) {
                continue;
            }
            for piece in made.pieces(at)? {
                if piece.pages & !pages[usize::from(piece.frame)] == 0 {
                    run.frames &= !(1 << piece.frame);
                }
            }
        }
        runs.retain(|run| run.frames != 0);
        Ok(())
    }

    /// Writes these pages of the chunk as a run into `self.run`.
    pub(super) fn encode_pages(&mut self, change: &Change<'_>, pages: &Pages) -> Result<()> {
        self.base.resize(CHUNK_LEN, 0);
        let numbers: Vec<usize> =
            (0..frame_count(change.data.len())).filter(|number| pages[*number] != 0).collect();
        for &number in &numbers {
            let length = frame_len(change.data.len(), number);
            let on = &mut self.base[number * FRAME_LEN..][..length];
            change.ground.read_frame(number, self.scratch.frames(), on)?;
        }
        let mut patcher = Patcher::new(self.writer.new.level).map_err(compressing(change.id))?;
        let (mut plain, mut room) = ([0; FRAME_LEN], [0; FRAME_LEN]);
        self.run.clear();
        for number in numbers {
            let frame = match change.absent >> number & 1 != 0 {
                true => {
                    let plain = &mut plain[..frame_len(change.data.len(), number)];
                    change.parent.read_frame(number, self.scratch.frames(), plain)?;
                    &*plain
                }
                false => frame_of(change.data, number),
            };
            run::gather(pages[number], frame, &mut self.packed);
            let on = &self.base[number * FRAME_LEN..][..frame.len()];
            let encoded = encode_piece(&mut patcher, &mut self.encoder, &self.packed, on, &mut room);
            let (kind, length) = encoded.map_err(compressing(change.id))?;
            self.run.add(number, kind, pages[number], &room[..length]);
        }
        Ok(())
    }
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
    on: &'b [u8],
    room: &mut [u8],
) -> std::io::Result<(PieceKind, usize)> {
    let mut alone = [0; FRAME_LEN];
    let (kind, alone_len) = encoder.encode(packed, &mut alone)?;
    if alone_len > packed.len() / 16 {
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
