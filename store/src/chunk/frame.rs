//! One frame: compress, decode. Owner of the crate `zstd`.
//!
//! Decoding writes into a buffer of the length that the header promises and never allocates, so a frame made
//! to expand beyond it costs nothing. Whether the bytes are the right ones is for the caller, who has the hash.

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe;

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
        compressor.set_parameter(zstd_safe::CParameter::ChecksumFlag(false))?;
        compressor.set_parameter(zstd_safe::CParameter::DictIdFlag(false))?;
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

/// Decodes frames; has its own context, reused.
pub(crate) struct Decoder(Decompressor<'static>);

impl std::fmt::Debug for Decoder {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Decoder")
    }
}

impl Decoder {
    pub(crate) fn new() -> std::io::Result<Self> {
        Decompressor::new().map(Self)
    }

    /// Decodes `stored` into the whole of `out`; an error says what is wrong with it.
    pub(crate) fn decode(&mut self, kind: Kind, stored: &[u8], out: &mut [u8]) -> Result<(), String> {
        match kind {
            Kind::Zero => out.fill(0),
            Kind::Raw if stored.len() == out.len() => out.copy_from_slice(stored),
            Kind::Raw => {
                return Err(format!("a raw frame has {} bytes instead of {}", stored.len(), out.len()));
            }
            Kind::Zstd => match self.0.decompress_to_buffer(stored, out) {
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
    fn a_bomb_is_refused_without_memory() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        let mut out = [0; FRAME_LEN];
        assert!(Decoder::new().unwrap().decode(Kind::Zstd, &bomb, &mut out).is_err());
    }
}
