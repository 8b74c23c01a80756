//! A recipe: how a chunk is made of a full chunk and of runs, as one record in a group. `docs/format.md` has the bytes,
//! section "Recipe".
//!
//! The frame values in a recipe combine to the chunk's id, as those of a full chunk do, so every frame that is made is
//! proven whatever it was made of. What a recipe says of runs is not sealed: a wrong reference leads to wrong bytes, which
//! are found.

use super::id::{ChunkId, FrameValue, combine};
use super::layout::frame_count;
use super::name::{FILES_MAX, FileKind, FileName, Needed, RecipePlace};
use super::run::{Donor, PageCopy};
use super::{CHUNK_LEN, FRAMES_MAX};

/// The most runs of one recipe.
pub(crate) const RUNS_MAX: usize = FILES_MAX - 1;

/// The most donors of one recipe.
pub(crate) const DONORS_MAX: usize = 256;

/// No run is longer: all of a chunk, and its list of pieces.
pub(crate) const RUN_LEN_MAX: usize = super::run::HEADER_LEN_MAX + CHUNK_LEN;

const HEAD_LEN: usize = 16;
const RUN_LEN: usize = 20;
const DONOR_LEN: usize = 12;

/// The longest recipe.
pub(crate) const RECIPE_LEN_MAX: usize =
    HEAD_LEN + RUNS_MAX * RUN_LEN + DONORS_MAX * DONOR_LEN + FRAMES_MAX * 32;

/// In the place of a number in the group's list of files: the group itself, or no base.
const NONE: u32 = u32::MAX;

const FLAGS: u16 = 0;

/// A run as a recipe refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The group in which it is.
    pub(crate) group: ChunkId,
    /// Its offset in the group's file.
    pub(crate) offset: u32,
    /// Its length.
    pub(crate) len: u32,
    /// The frames of which pieces are needed, as bits; the run may have others, which later runs replaced.
    pub(crate) frames: u64,
}

/// A file from which a run has copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DonorFile {
    /// The number of the run in the recipe.
    pub(crate) run: usize,
    /// The file.
    pub(crate) file: FileName,
    /// Of a group, the lengths of the runs from which there are copies, added up; 0 of a chunk.
    pub(crate) bytes: u32,
}

/// Returns the files from which run `run` has these copies.
pub(crate) fn donors_of<'c>(run: usize, copies: impl Iterator<Item = &'c PageCopy>) -> Vec<DonorFile> {
    let mut donors: Vec<Donor> = copies.map(|copy| copy.donor).collect();
    donors.sort_unstable();
    donors.dedup();
    let mut files: Vec<DonorFile> = Vec::new();
    for donor in donors {
        match files.last_mut() {
            Some(last) if last.file == donor.file => last.bytes = last.bytes.saturating_add(donor.len),
            _ => files.push(DonorFile { run, file: donor.file, bytes: donor.len }),
        }
    }
    files
}

/// How a chunk is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recipe {
    /// Bytes of the image in this chunk.
    pub(crate) plain_len: usize,
    /// The value of each frame.
    pub(crate) values: Vec<FrameValue>,
    /// The full chunk of the same length on which the runs are put; `None`: zeros.
    pub(crate) base: Option<ChunkId>,
    /// The runs, the oldest first: what a later one has replaces what an earlier one has.
    pub(crate) runs: Vec<Run>,
    /// The files from which the runs have copies, in ascending order of runs.
    pub(crate) donors: Vec<DonorFile>,
}

impl Recipe {
    /// Returns the files that it refers to, in order; `own` is the group in which it is.
    pub(crate) fn files(&self, own: &ChunkId) -> Vec<Needed> {
        let mut files: Vec<Needed> = Vec::new();
        let runs = self.runs.iter().map(|run| (FileName::group(run.group), run.len));
        let donors = self.donors.iter().map(|donor| (donor.file, donor.bytes));
        let base = self.base.map(|base| (FileName::chunk(base), 0));
        for (file, bytes) in runs.chain(donors).chain(base).filter(|(file, _)| *file != FileName::group(*own))
        {
            match files.iter_mut().find(|needed| needed.file == file) {
                Some(needed) => needed.bytes = needed.bytes.saturating_add(bytes),
                None => files.push(Needed { file, bytes }),
            }
        }
        files.sort_unstable();
        files
    }

    /// How many files it refers to, in whatever group it is going to be.
    pub(crate) fn file_count(&self) -> usize {
        self.files(&ChunkId::from_bytes([0; 32])).len()
    }

    /// Returns its place in the group `own`, at this offset.
    pub(crate) fn place(&self, own: ChunkId, offset: u32) -> RecipePlace {
        let in_own = self.runs.iter().filter(|run| run.group == own);
        let copied = self.donors.iter().filter(|donor| donor.file == FileName::group(own));
        let lengths = in_own.map(|run| run.len).chain(copied.map(|donor| donor.bytes));
        let own_bytes = lengths.fold(0u32, u32::saturating_add);
        RecipePlace { group: own, offset, len: self.len() as u32, own_bytes, files: self.files(&own) }
    }

    /// Whether no run has anything of a frame.
    pub(crate) fn is_untouched(&self, frame: usize) -> bool {
        self.runs.iter().all(|run| run.frames >> frame & 1 == 0)
    }

    /// Bytes of the record.
    pub(crate) fn len(&self) -> usize {
        HEAD_LEN + self.runs.len() * RUN_LEN + self.donors.len() * DONOR_LEN + self.values.len() * 32
    }

    /// Appends the record to `out`. `own` is the group in which it is going to be, `number` finds a file in its list.
    pub(crate) fn write(&self, own: &ChunkId, number: &mut dyn FnMut(FileName) -> u32, out: &mut Vec<u8>) {
        debug_assert!(self.runs.len() <= RUNS_MAX && self.values.len() == frame_count(self.plain_len));
        out.extend_from_slice(&FLAGS.to_le_bytes());
        out.extend_from_slice(&(self.runs.len() as u16).to_le_bytes());
        out.extend_from_slice(&(self.plain_len as u32).to_le_bytes());
        let base = self.base.map_or(NONE, |base| number(FileName::chunk(base)));
        out.extend_from_slice(&base.to_le_bytes());
        out.extend_from_slice(&(self.donors.len() as u32).to_le_bytes());
        for run in &self.runs {
            let file = if run.group == *own { NONE } else { number(FileName::group(run.group)) };
            out.extend_from_slice(&file.to_le_bytes());
            out.extend_from_slice(&run.offset.to_le_bytes());
            out.extend_from_slice(&run.len.to_le_bytes());
            out.extend_from_slice(&run.frames.to_le_bytes());
        }
        for donor in &self.donors {
            let file = if donor.file == FileName::group(*own) { NONE } else { number(donor.file) };
            out.extend_from_slice(&file.to_le_bytes());
            out.extend_from_slice(&(donor.run as u32).to_le_bytes());
            out.extend_from_slice(&donor.bytes.to_le_bytes());
        }
        self.values.iter().for_each(|value| out.extend_from_slice(value));
    }

    /// Parses and proves the recipe of chunk `id`. `own` is the group in which it is, `files` the group's list. An error says
    /// what is wrong.
    pub(crate) fn parse(
        bytes: &[u8],
        id: &ChunkId,
        own: &ChunkId,
        files: &[FileName],
    ) -> Result<Self, String> {
        let Some((head, rest)) = bytes.split_first_chunk::<HEAD_LEN>() else {
            return Err("its recipe is cut off".to_owned());
        };
        let word = |bytes: &[u8], at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let flags = u16::from_le_bytes([head[0], head[1]]);
        if flags != FLAGS {
            return Err(format!("its recipe has the flags {flags:#x}, which this version does not know"));
        }
        let runs = usize::from(u16::from_le_bytes([head[2], head[3]]));
        let (plain_len, donors) = (word(head, 4) as usize, word(head, 12) as usize);
        if plain_len == 0 || plain_len > CHUNK_LEN || runs == 0 || runs > RUNS_MAX || donors > DONORS_MAX {
            return Err("its recipe has impossible lengths".to_owned());
        }
        let frames = frame_count(plain_len);
        if rest.len() != runs * RUN_LEN + donors * DONOR_LEN + frames * 32 {
            return Err("its recipe does not have the length that it says".to_owned());
        }
        let (runs, rest) = rest.split_at(runs * RUN_LEN);
        let (donors, values) = rest.split_at(donors * DONOR_LEN);
        let values: Vec<FrameValue> =
            values.chunks_exact(32).map(|value| std::array::from_fn(|at| value[at])).collect();
        // The value of a lone frame is the id itself: nothing of it could be shared with another chunk.
        if frames == 1 || combine(&values) != *id {
            return Err("its recipe does not belong to this id".to_owned());
        }
        let named = |number: u32| {
            let unnamed = || "its recipe refers to a file that its group does not name".to_owned();
            files.get(number as usize).copied().ok_or_else(unnamed)
        };
        let file = |number: u32, kind: FileKind| match named(number)? {
            file if file.kind == kind => Ok(file.id),
            _ => Err("its recipe refers to a file of the wrong kind".to_owned()),
        };
        let base = match word(head, 8) {
            NONE => None,
            number => Some(file(number, FileKind::Chunk)?),
        };
        if base == Some(*id) {
            return Err("its recipe refers to itself".to_owned());
        }
        let beyond = if frames == FRAMES_MAX { 0 } else { u64::MAX << frames };
        let mut parsed = Vec::new();
        for run in runs.chunks_exact(RUN_LEN) {
            let group = match word(run, 0) {
                NONE => *own,
                number => file(number, FileKind::Group)?,
            };
            let frames = u64::from(word(run, 12)) | u64::from(word(run, 16)) << 32;
            let len = word(run, 8);
            if frames == 0 || frames & beyond != 0 || len as usize > RUN_LEN_MAX {
                return Err("its recipe has a run of impossible frames or length".to_owned());
            }
            parsed.push(Run { group, offset: word(run, 4), len: word(run, 8), frames });
        }
        let mut from: Vec<DonorFile> = Vec::with_capacity(donors.len() / DONOR_LEN);
        for donor in donors.chunks_exact(DONOR_LEN) {
            let file = match word(donor, 0) {
                NONE => FileName::group(*own),
                number => named(number)?,
            };
            let (run, bytes) = (word(donor, 4) as usize, word(donor, 8));
            let is_ascending = from.last().is_none_or(|last| last.run <= run);
            if run >= parsed.len() || !is_ascending || (file.kind == FileKind::Group) != (bytes > 0) {
                return Err("its recipe has an impossible donor".to_owned());
            }
            if file == FileName::chunk(*id) {
                return Err("its recipe refers to itself".to_owned());
            }
            from.push(DonorFile { run, file, bytes });
        }
        Ok(Self { plain_len, values, base, runs: parsed, donors: from })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::FRAME_LEN;
    use super::super::id::Digest;
    use super::*;

    fn sample() -> (ChunkId, ChunkId, Vec<FileName>, Recipe, Vec<u8>) {
        let data = [vec![7; FRAME_LEN], vec![0; FRAME_LEN], vec![1, 2, 3]].concat();
        let mut digest = Digest::default();
        let id = digest.update(&data).unwrap();
        let [base, own, other] = [ChunkId::of(b"base"), ChunkId::of(b"own"), ChunkId::of(b"other")];
        let runs = vec![
            Run { group: other, offset: 64, len: 100, frames: 0b101 },
            Run { group: own, offset: 640, len: 90, frames: 0b010 },
        ];
        let donors = vec![
            DonorFile { run: 0, file: FileName::chunk(ChunkId::of(b"far")), bytes: 0 },
            DonorFile { run: 1, file: FileName::group(own), bytes: 70 },
        ];
        let values = digest.values.to_vec();
        let recipe = Recipe { plain_len: data.len(), values, base: Some(base), runs, donors };
        let (mut files, mut bytes) = (Vec::new(), Vec::new());
        let mut number = |file| {
            files.push(file);
            files.len() as u32 - 1
        };
        recipe.write(&own, &mut number, &mut bytes);
        assert_eq!(bytes.len(), recipe.len());
        (id, own, files, recipe, bytes)
    }

    #[test]
    fn a_recipe_is_read_as_it_was_written() {
        let (id, own, files, recipe, bytes) = sample();
        assert_eq!(Recipe::parse(&bytes, &id, &own, &files), Ok(recipe.clone()));
        let mut named: Vec<FileName> = recipe.files(&own).iter().map(|needed| needed.file).collect();
        let mut listed = files.clone();
        named.sort();
        listed.sort();
        assert_eq!(named, listed);
        assert!(Recipe::parse(&bytes, &ChunkId::of(b"x"), &own, &files).is_err());
        assert!(Recipe::parse(&bytes, &id, &own, &files[..1]).is_err());
        for length in 0..bytes.len() {
            assert!(Recipe::parse(&bytes[..length], &id, &own, &files).is_err(), "cut to {length}");
        }
        // What refers to files is proven by the bytes that are found there, and the length by the place in the image.
        let proven_elsewhere = |at: usize| {
            (4..12).contains(&at) || (HEAD_LEN..HEAD_LEN + 2 * (RUN_LEN + DONOR_LEN)).contains(&at)
        };
        for bit in (0..bytes.len() * 8).filter(|bit| !proven_elsewhere(bit / 8)) {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let parsed = Recipe::parse(&flipped, &id, &own, &files);
            assert!(parsed.is_err(), "bit {bit}: {parsed:?}");
        }
    }

    #[test]
    fn a_recipe_without_a_base_is_put_on_zeros() {
        let (id, own, _, recipe, _) = sample();
        let recipe = Recipe { base: None, runs: recipe.runs[1..].to_vec(), donors: Vec::new(), ..recipe };
        let mut bytes = Vec::new();
        recipe.write(&own, &mut |file| panic!("{file} is not needed"), &mut bytes);
        assert_eq!(Recipe::parse(&bytes, &id, &own, &[]), Ok(recipe));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let (id, own, files, ..) = sample();
            let _ = Recipe::parse(&bytes, &id, &own, &files);
            let _ = Recipe::parse(&bytes, &id, &own, &[]);
        }
    }
}
