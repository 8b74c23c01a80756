//! One frame: compress, decode. Owner of the crate `zstd`.
//!
//! Decoding writes into a buffer of the length that the header promises and never allocates, so a frame made
//! to expand beyond it costs nothing. Whether the bytes are the right ones is for the caller, who has the hash.

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{self, CCtx, CParameter, DCtx, ResetDirective};

use super::FRAME_LEN;

/// The level that `docs/performance.md` shows to cost the least for what it saves.
pub const DEFAULT_LEVEL: i32 = 1;

/// How a frame is kept in its chunk's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// All zeros, nothing kept.
    Zero,
    /// As it is.
    Raw,
    /// One zstd frame.
    Zstd,
}

/// Compresses frames; has its own context, reused.
pub(crate) struct Encoder {
    compressor: Compressor<'static>,
    decoder: Decoder,
    check: Box<[u8; FRAME_LEN]>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Encoder")
    }
}

impl Encoder {
    /// Makes an encoder of zstd level `level`.
    pub(crate) fn new(level: i32) -> std::io::Result<Self> {
        let mut compressor = Compressor::new(level)?;
        // The hash of the frame is in the table already.
        compressor.set_parameter(CParameter::ChecksumFlag(false))?;
        compressor.set_parameter(CParameter::DictIdFlag(false))?;
        Ok(Self { compressor, decoder: Decoder::new()?, check: Box::new([0; FRAME_LEN]) })
    }

    /// Writes the smaller of compressed and raw to the beginning of `out`, which has room for the raw frame; returns
    /// its length. What was compressed has been decoded again and compared: a codec or memory that fails while
    /// writing must not become damage that a restore finds.
    pub(crate) fn encode(&mut self, frame: &[u8], out: &mut [u8]) -> std::io::Result<(Kind, usize)> {
        // The room is one byte short of raw, so that what does not shrink fails at once.
        let room = &mut out[..frame.len().saturating_sub(1)];
        if let Ok(length) = self.compressor.compress_to_buffer(frame, room) {
            let check = &mut self.check[..frame.len()];
            self.decoder.decode(Kind::Zstd, &room[..length], check).map_err(std::io::Error::other)?;
            if check != frame {
                return Err(std::io::Error::other("compressed data does not decode to what was compressed"));
            }
            return Ok((Kind::Zstd, length));
        }
        out[..frame.len()].copy_from_slice(frame);
        Ok((Kind::Raw, frame.len()))
    }
}

/// Compresses frames as patches on frames of a base. Made for one chunk: the bytes of the base live as long as it.
pub(crate) struct Patcher<'b> {
    compressor: CCtx<'b>,
    decompressor: DCtx<'b>,
    check: Box<[u8; FRAME_LEN]>,
}

impl<'b> Patcher<'b> {
    /// Makes a patcher of zstd level `level`.
    pub(crate) fn new(level: i32) -> std::io::Result<Self> {
        let out_of_memory = || std::io::Error::from(std::io::ErrorKind::OutOfMemory);
        let mut compressor = CCtx::try_create().ok_or_else(out_of_memory)?;
        for parameter in [
            CParameter::CompressionLevel(level),
            CParameter::ChecksumFlag(false),
            CParameter::DictIdFlag(false),
        ] {
            compressor.set_parameter(parameter).map_err(zstd_error)?;
        }
        let decompressor = DCtx::try_create().ok_or_else(out_of_memory)?;
        Ok(Self { compressor, decompressor, check: Box::new([0; FRAME_LEN]) })
    }

    /// Writes what turns `base` into `frame` to the beginning of `out`, which has room for the raw frame; returns its
    /// length, or `None` where that would be no shorter than the frame. What was written has been decoded and compared.
    pub(crate) fn encode(
        &mut self,
        frame: &[u8],
        base: &'b [u8],
        out: &mut [u8],
    ) -> std::io::Result<Option<usize>> {
        let room = &mut out[..frame.len().saturating_sub(1)];
        self.compressor.ref_prefix(base).map_err(zstd_error)?;
        let Ok(length) = self.compressor.compress2(room, frame) else {
            // What was begun is given up, or no other prefix would be taken.
            self.compressor.reset(ResetDirective::SessionOnly).map_err(zstd_error)?;
            return Ok(None);
        };
        let check = &mut self.check[..frame.len()];
        self.decompressor.ref_prefix(base).map_err(zstd_error)?;
        let decoded = self.decompressor.decompress(check, &room[..length]).map_err(zstd_error)?;
        if decoded != frame.len() || check != frame {
            return Err(std::io::Error::other("a patch does not decode to what was compressed"));
        }
        Ok(Some(length))
    }
}

fn zstd_error(code: usize) -> std::io::Error {
    std::io::Error::other(zstd_safe::get_error_name(code))
}

/// Refuses what is not one zstd frame and nothing behind it: the library decodes several as one.
fn one_frame(stored: &[u8]) -> Result<&[u8], String> {
    match zstd_safe::find_frame_compressed_size(stored) {
        Ok(length) if length == stored.len() => Ok(stored),
        Ok(_) => Err("there are bytes behind a zstd frame".to_owned()),
        Err(code) => Err(format!("a frame cannot be decoded: {}", zstd_safe::get_error_name(code))),
    }
}

/// Decodes frames and patches; has its own contexts, reused.
pub(crate) struct Decoder {
    frames: Decompressor<'static>,
    /// Made when the first patch comes.
    patches: Option<DCtx<'static>>,
}

/// With these bytes a dictionary of zstd's own format begins; all others are taken as they are.
const DICTIONARY_MAGIC: [u8; 4] = 0xec30_a437u32.to_le_bytes();

impl std::fmt::Debug for Decoder {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Decoder")
    }
}

impl Decoder {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self { frames: Decompressor::new()?, patches: None })
    }

    /// Decodes a patch on the bytes of the base's frame into the whole of `out`; an error says what is wrong with it.
    pub(crate) fn decode_patch(&mut self, stored: &[u8], base: &[u8], out: &mut [u8]) -> Result<(), String> {
        let no_memory = || "there is no memory to decode a patch".to_owned();
        let stored = one_frame(stored)?;
        let decoded = if base.starts_with(&DICTIONARY_MAGIC) {
            // A context refers to its prefix as long as it lives, so this one lives as long as the call.
            let mut context = DCtx::try_create().ok_or_else(no_memory)?;
            context.ref_prefix(base).and_then(|_| context.decompress(out, stored))
        } else {
            let context = match &mut self.patches {
                Some(context) => context,
                none => none.insert(DCtx::try_create().ok_or_else(no_memory)?),
            };
            context.decompress_using_dict(out, stored, base)
        };
        match decoded {
            Ok(length) if length == out.len() => Ok(()),
            Ok(length) => Err(format!("a patch decodes to {length} bytes instead of {}", out.len())),
            Err(code) => Err(format!("a patch cannot be decoded: {}", zstd_safe::get_error_name(code))),
        }
    }

    /// Decodes `stored` into the whole of `out`; an error says what is wrong with it.
    pub(crate) fn decode(&mut self, kind: Kind, stored: &[u8], out: &mut [u8]) -> Result<(), String> {
        match kind {
            Kind::Zero => out.fill(0),
            Kind::Raw if stored.len() == out.len() => out.copy_from_slice(stored),
            Kind::Raw => {
                return Err(format!("a raw frame has {} bytes instead of {}", stored.len(), out.len()));
            }
            Kind::Zstd => match self.frames.decompress_to_buffer(one_frame(stored)?, out) {
                Ok(length) if length == out.len() => {}
                Ok(length) => {
                    return Err(format!("a frame decodes to {length} bytes instead of {}", out.len()));
                }
                Err(error) => return Err(format!("a frame cannot be decoded: {error}")),
            },
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_kept_raw_and_text_is_compressed() {
        let mut encoder = Encoder::new(DEFAULT_LEVEL).unwrap();
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .take(FRAME_LEN)
        .collect();
        let text = b"all work and no play ".repeat(4000);
        for (frame, expected) in
            [(&noise[..], Kind::Raw), (&text[..FRAME_LEN - 3], Kind::Zstd), (&b"x"[..], Kind::Raw)]
        {
            let mut stored = vec![9; frame.len()];
            let (kind, length) = encoder.encode(frame, &mut stored).unwrap();
            assert_eq!(kind, expected);
            let mut back = vec![1; frame.len()];
            Decoder::new().unwrap().decode(kind, &stored[..length], &mut back).unwrap();
            assert_eq!(back, frame);
        }
    }

    #[test]
    fn a_small_change_of_noise_makes_a_small_patch() {
        let base = crate::testing::noise(1, FRAME_LEN);
        let mut frame = base.clone();
        frame[20_000..24_096].copy_from_slice(&crate::testing::noise(2, 4096));
        let mut patcher = Patcher::new(DEFAULT_LEVEL).unwrap();
        let mut stored = vec![0; FRAME_LEN];
        for frame in [&frame[..], &base.clone(), &frame[..30_000]] {
            let length = patcher.encode(frame, &base, &mut stored).unwrap();
            let length = length.unwrap();
            assert!(length < 4200, "{length}");
            let mut back = vec![1; frame.len()];
            Decoder::new().unwrap().decode_patch(&stored[..length], &base, &mut back).unwrap();
            assert_eq!(back, frame);
            assert!(
                Decoder::new().unwrap().decode_patch(&stored[..length], &base[..60_000], &mut back).is_err()
                    || back != frame
            );
            assert!(Decoder::new().unwrap().decode_patch(&stored[..length - 1], &base, &mut back).is_err());
        }
        let other = crate::testing::noise(3, FRAME_LEN);
        assert_eq!(patcher.encode(&other, &base, &mut stored).unwrap(), None);
    }

    #[test]
    fn only_one_frame_is_decoded() {
        let one = zstd::bulk::compress(&[7; 1000], 1).unwrap();
        let mut out = [0; 2000];
        assert!(Decoder::new().unwrap().decode(Kind::Zstd, &[&one[..], &one].concat(), &mut out).is_err());
        assert!(
            Decoder::new().unwrap().decode_patch(&[&one[..], &one].concat(), &[1; 10], &mut out).is_err()
        );
        let skippable = [&one[..], &[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]].concat();
        assert!(Decoder::new().unwrap().decode(Kind::Zstd, &skippable, &mut out[..1000]).is_err());
    }

    #[test]
    fn a_bomb_is_refused_without_memory() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        let mut out = [0; FRAME_LEN];
        assert!(Decoder::new().unwrap().decode(Kind::Zstd, &bomb, &mut out).is_err());
    }
}
