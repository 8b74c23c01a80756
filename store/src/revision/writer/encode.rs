//! Makes chunk files: full ones, and deltas on what is at the place.
//!
//! A delta holds nothing for the frames that its base has as well, which their values in the frame tables tell without
//! reading anything; a changed frame is a patch on the base's frame. All deltas of a place lean on the same full chunk,
//! until together they are as large as it is: then the next one is full, and the base of those that follow. With
//! changes of about the same size from day to day that is the cheapest moment.

use super::chunks::ChunkWriter;
use crate::chunk::container::{Delta, HEADER_LEN_MAX, delta_header_len, header_len, write_header};
use crate::chunk::frame::{Encoder, Kind, Patcher};
use crate::chunk::id::ChunkId;
use crate::chunk::layout::{frame_count, frame_len};
use crate::chunk::name::ChunkName;
use crate::chunk::store::OpenChunk;
use crate::chunk::{CHUNK_LEN, FRAME_LEN, FRAMES_MAX};
use crate::error::{Error, Result};

/// From so many patches on it is tried whether they are short.
const PATCHES_TRIED_FROM: usize = 16;

/// So many of them.
const TRIES: usize = 4;

/// What lay at the place of a chunk of which only the changes are known.
pub(super) struct Before {
    pub(super) chunk: OpenChunk,
    /// Bit n: frame n did not change, and its bytes are not among the new chunk's.
    pub(super) absent: u64,
}

/// How a frame of a delta is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// Nothing is kept.
    Nothing(Kind),
    /// Nothing is kept, and the base's frame is read to see that it is good: nothing has leaned on it lately.
    Again,
    /// As the chunk before has it.
    Take,
    /// Compressed by itself.
    Plain,
    /// What it takes to make it of the base's frame; how long that is in the base's file.
    Patch(usize),
}

/// The frames of a file that is being made.
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
                let kept = before.chunk.kept(number)?;
                if kept.kind != Kind::Patch {
                    frames.copy(number, kept.kind, self.scratch.frames().stored(kept), &mut self.file);
                    continue;
                }
                frame = plain;
            }
            let encoded = self.encoder.encode(frame, &mut self.file[frames.end..]);
            let (kind, length) = encoded.map_err(compressing(id))?;
            frames.add(number, kind, length);
        }
        let kept = &frames.kept[..self.digest.values.len()];
        write_header(&mut self.file[..header], data.len(), kept, &self.digest.values, None);
        Ok(frames.end)
    }

    /// Writes a delta that leans on `base`, as `parent` before it may do, to the beginning of `self.file`; returns its
    /// name and length. `None` where a full chunk is the better one.
    pub(super) fn encode_delta(
        &mut self,
        id: &ChunkId,
        data: &[u8],
        absent: u64,
        (parent, base): (&OpenChunk, &OpenChunk),
    ) -> Result<Option<(ChunkName, usize)>> {
        let lengths = [parent.plain_len(), base.plain_len()];
        if lengths != [data.len(); 2] || frame_count(data.len()) == 1 || base.name().id == *id {
            return Ok(None);
        }
        let mut plans = [Plan::Plain; FRAMES_MAX];
        for (number, plan) in plans.iter_mut().enumerate().take(self.digest.values.len()) {
            *plan = self.plan(number, parent, base);
            // What did not change is as the chunk before has it, or that one is not what it should be.
            if absent >> number & 1 != 0 && matches!(plan, Plan::Plain | Plan::Patch(_)) {
                return Err(parent.corrupt(number, "its frame table contradicts its base's"));
            }
        }
        if !self.is_worth_patching(id, data, &plans, base)? {
            return Ok(None);
        }
        self.read_base(data.len(), &plans, base)?;
        let spent_before = parent.delta().map_or(0, |delta| delta.spent_bytes);
        let whole_len = base.header().file_len;
        let length_max = (whole_len / 2).min(whole_len.saturating_sub(spent_before)) as usize;
        let Some(frames) = self.encode_frames(id, data, parent, &plans, length_max)? else { return Ok(None) };
        let name = ChunkName::delta(*id, base.name().id);
        let spent_bytes = spent_before + frames.end as u64;
        let delta = Delta { base: base.name().id, spent_bytes };
        let kept = &frames.kept[..self.digest.values.len()];
        let header = &mut self.file[..delta_header_len(data.len())];
        write_header(header, data.len(), kept, &self.digest.values, Some(&delta));
        Ok(Some((name, frames.end)))
    }

    /// Decides how a frame is made.
    fn plan(&self, number: usize, parent: &OpenChunk, base: &OpenChunk) -> Plan {
        let value = &self.digest.values[number];
        let (before, on) = (&parent.header().frames[number], &base.header().frames[number]);
        if self.digest.zero_frames >> number & 1 != 0 {
            return Plan::Nothing(Kind::Zero);
        }
        if on.value == *value {
            // What the chunk before has is proven whenever its revision is verified; the rest of its base never is.
            return if before.value == *value { Plan::Nothing(Kind::Same) } else { Plan::Again };
        }
        match before.kind {
            Kind::Raw | Kind::Zstd | Kind::Patch if before.value == *value => Plan::Take,
            _ if on.kind == Kind::Zero => Plan::Plain,
            _ => Plan::Patch(on.stored_len as usize),
        }
    }

    /// Whether patches will be short. Where many frames are to be patched, some of them are tried: a chunk that was written
    /// anew has nothing in common with the one before, and nearly all of it would be compressed twice to find that out.
    fn is_worth_patching(
        &mut self,
        id: &ChunkId,
        data: &[u8],
        plans: &[Plan],
        base: &OpenChunk,
    ) -> Result<bool> {
        let patches = plans.iter().enumerate().filter_map(|(number, plan)| match plan {
            Plan::Patch(kept_len) => Some((number, *kept_len)),
            _ => None,
        });
        let patches: Vec<(usize, usize)> = patches.collect();
        let patched_len: usize = patches.iter().map(|(_, kept_len)| kept_len).sum();
        // Where most of the chunk is as it was, a delta is the better one whatever becomes of the rest.
        if patches.len() < PATCHES_TRIED_FROM || patched_len as u64 <= base.header().file_len / 2 {
            return Ok(true);
        }
        let mut room = [0; FRAME_LEN];
        for (number, kept_len) in patches.iter().step_by(patches.len() / TRIES) {
            let frame = &data[number * FRAME_LEN..];
            let frame = &frame[..frame.len().min(FRAME_LEN)];
            let mut on = vec![0; frame.len()];
            base.read_frame(*number, self.scratch.frames(), &mut on)?;
            let mut patcher = Patcher::new(self.writer.new.level).map_err(compressing(id))?;
            let patch = patcher.encode(frame, &on, &mut room).map_err(compressing(id))?;
            if patch.is_some_and(|length| length <= kept_len / 2) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads the frames of the base that patches are made on, each to its place, and those that must be proven.
    fn read_base(&mut self, length: usize, plans: &[Plan], base: &OpenChunk) -> Result<()> {
        let is_read = |plan: &Plan| matches!(plan, Plan::Patch(_) | Plan::Again);
        if plans.iter().any(is_read) {
            self.base.resize(CHUNK_LEN, 0);
        }
        for (number, frame) in self.base[..].chunks_mut(FRAME_LEN).enumerate().take(frame_count(length)) {
            if is_read(&plans[number]) {
                let frame = &mut frame[..frame_len(length, number)];
                base.read_frame(number, self.scratch.frames(), frame)?;
            }
        }
        Ok(())
    }

    /// Makes the frames as planned; `None` as soon as the file would be longer than `length_max`.
    fn encode_frames(
        &mut self,
        id: &ChunkId,
        data: &[u8],
        parent: &OpenChunk,
        plans: &[Plan],
        length_max: usize,
    ) -> Result<Option<Frames>> {
        let mut frames = Frames::begin(&mut self.file, delta_header_len(data.len()));
        let mut patcher = Patcher::new(self.writer.new.level).map_err(compressing(id))?;
        let mut plain = [0; FRAME_LEN];
        for (number, frame) in data.chunks(FRAME_LEN).enumerate() {
            if frames.end > length_max {
                return Ok(None);
            }
            match plans[number] {
                Plan::Nothing(kind) => frames.add(number, kind, 0),
                Plan::Again => frames.add(number, Kind::Same, 0),
                Plan::Take => {
                    parent.read_frame(number, self.scratch.frames(), &mut plain[..frame.len()])?;
                    let kept = parent.kept(number)?;
                    frames.copy(number, kept.kind, self.scratch.frames().stored(kept), &mut self.file);
                }
                Plan::Plain => {
                    let encoded = self.encoder.encode(frame, &mut self.file[frames.end..]);
                    let (kind, length) = encoded.map_err(compressing(id))?;
                    frames.add(number, kind, length);
                }
                Plan::Patch(kept_len) => {
                    let on = &self.base[number * FRAME_LEN..][..frame.len()];
                    let room = &mut self.file[frames.end..];
                    let encoded = encode_patch(&mut patcher, &mut self.encoder, frame, (on, kept_len), room);
                    let (kind, length) = encoded.map_err(compressing(id))?;
                    frames.add(number, kind, length);
                }
            }
        }
        Ok((frames.end <= length_max).then_some(frames))
    }
}

/// Writes a frame as a patch on the base's, which takes `kept_len` bytes there, or by itself where that is shorter.
fn encode_patch<'b>(
    patcher: &mut Patcher<'b>,
    encoder: &mut Encoder,
    frame: &[u8],
    (on, kept_len): (&'b [u8], usize),
    room: &mut [u8],
) -> std::io::Result<(Kind, usize)> {
    let patch = patcher.encode(frame, on, room)?;
    if let Some(length) = patch
        && length <= kept_len / 2
    {
        return Ok((Kind::Patch, length));
    }
    // Little is left of the base's frame.
    let mut alone = [0; FRAME_LEN];
    let (kind, alone_len) = encoder.encode(frame, &mut alone)?;
    match patch {
        Some(length) if length <= alone_len => Ok((Kind::Patch, length)),
        _ => {
            room[..alone_len].copy_from_slice(&alone[..alone_len]);
            Ok((kind, alone_len))
        }
    }
}
