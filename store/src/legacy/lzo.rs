//! LZO1X, decoding only. Every length is checked against what is there and against the room, whatever the bytes say.
//!
//! A stream is a series of instructions: copy bytes of the stream, or copy again what was decoded before. Most copies are
//! shorter than 16 bytes, so wherever there is room 16 are copied at once, and what is too much is overwritten by the
//! next. That makes it three times as fast as copying byte by byte, and nothing is unsafe about it.

/// Bytes that are copied at once.
const STEP: usize = 16;

/// Matches that overlap themselves are copied byte by byte up to this length.
const SHORT: usize = 32;

type Result<T> = std::result::Result<T, &'static str>;

const CUT: &str = "it is cut off";
const TOO_LONG: &str = "it holds more than its header says";

struct Decoder<'d> {
    stream: &'d [u8],
    /// Next byte of the stream.
    at: usize,
    out: &'d mut [u8],
    /// Bytes that were decoded.
    done: usize,
}

/// Decodes a stream into `out`; returns the length of the data. The stream must end with its end marker.
pub(crate) fn decode(stream: &[u8], out: &mut [u8]) -> Result<usize> {
    Decoder { stream, at: 0, out, done: 0 }.run()
}

impl Decoder<'_> {
    fn run(mut self) -> Result<usize> {
        // How many bytes were copied from the stream just before: what a small instruction means depends on it.
        let mut copied = 0;
        if let Some(&first @ 18..) = self.stream.first() {
            self.at = 1;
            let length = usize::from(first) - 17;
            self.literals(length)?;
            copied = length.min(4);
        }
        loop {
            let code = usize::from(self.byte()?);
            let (distance, length, next) = match code {
                0..16 if copied == 0 => {
                    let length = if code == 0 { self.long(18)? } else { code + 3 };
                    self.literals(length)?;
                    copied = 4;
                    continue;
                }
                0..16 => {
                    let (nearest, length) = if copied == 4 { (2049, 3) } else { (1, 2) };
                    (nearest + (code >> 2) + (usize::from(self.byte()?) << 2), length, code & 3)
                }
                16..32 => {
                    let far = (code & 8) << 11;
                    let length = if code & 7 == 0 { self.long(9)? } else { (code & 7) + 2 };
                    let word = self.word()?;
                    if far == 0 && word >> 2 == 0 {
                        return self.end(length);
                    }
                    (0x4000 + far + (word >> 2), length, word & 3)
                }
                32..64 => {
                    let length = if code & 31 == 0 { self.long(33)? } else { (code & 31) + 2 };
                    let word = self.word()?;
                    (1 + (word >> 2), length, word & 3)
                }
                _ => {
                    let distance = 1 + (code >> 2 & 7) + (usize::from(self.byte()?) << 3);
                    (distance, (code >> 5) + 1, code & 3)
                }
            };
            self.repeat(distance, length)?;
            self.literals(next)?;
            copied = next;
        }
    }

    fn end(&self, length: usize) -> Result<usize> {
        if length != 3 {
            return Err("its end marker is wrong");
        }
        if self.at < self.stream.len() { Err("bytes follow its end") } else { Ok(self.done) }
    }

    #[inline]
    fn byte(&mut self) -> Result<u8> {
        let byte = *self.stream.get(self.at).ok_or(CUT)?;
        self.at += 1;
        Ok(byte)
    }

    #[inline]
    fn word(&mut self) -> Result<usize> {
        Ok(usize::from(self.byte()?) | usize::from(self.byte()?) << 8)
    }

    /// A length that did not fit into its instruction: each zero byte is 255 more.
    fn long(&mut self, least: usize) -> Result<usize> {
        let rest = self.stream.get(self.at..).unwrap_or_default();
        let zeros = rest.iter().position(|&byte| byte != 0).ok_or(CUT)?;
        self.at += zeros + 1;
        // No stream is so long that this could overflow.
        Ok(least + zeros * 255 + usize::from(rest[zeros]))
    }

    /// Copies bytes of the stream.
    #[inline]
    fn literals(&mut self, length: usize) -> Result<()> {
        let (from, to) = (self.at, self.done);
        if length <= STEP && from + STEP <= self.stream.len() && to + STEP <= self.out.len() {
            self.out[to..to + STEP].copy_from_slice(&self.stream[from..from + STEP]);
        } else {
            let bytes = self.stream.get(from..from + length).ok_or(CUT)?;
            self.out.get_mut(to..to + length).ok_or(TOO_LONG)?.copy_from_slice(bytes);
        }
        self.at += length;
        self.done += length;
        Ok(())
    }

    /// Copies what was decoded `distance` bytes before.
    #[inline]
    fn repeat(&mut self, distance: usize, length: usize) -> Result<()> {
        let to = self.done;
        let from = to.checked_sub(distance).ok_or("it refers to what is before its beginning")?;
        if length > self.out.len() - to {
            return Err(TOO_LONG);
        }
        if distance >= STEP && to + length + STEP <= self.out.len() {
            for offset in (0..length).step_by(STEP) {
                self.out.copy_within(from + offset..from + offset + STEP, to + offset);
            }
        } else {
            self.repeat_exactly(from, to, length);
        }
        self.done += length;
        Ok(())
    }

    /// The same where it overlaps itself or lies near the end. The distance is not zero.
    fn repeat_exactly(&mut self, from: usize, to: usize, length: usize) {
        if length < SHORT {
            for offset in 0..length {
                self.out[to + offset] = self.out[from + offset];
            }
            return;
        }
        // What is repeated is longer after every step.
        let mut done = 0;
        while done < length {
            let step = (to + done - from).min(length - done);
            self.out.copy_within(from..from + step, to + done);
            done += step;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What we and what the crate `lzo` make of a stream; `None` where it is refused.
    fn both(stream: &[u8], room: usize) -> [Option<Vec<u8>>; 2] {
        let (mut ours, mut theirs) = (vec![0xaa; room], vec![0xaa; room]);
        let cut = |length: Option<usize>, mut out: Vec<u8>| {
            length.map(|length| {
                out.truncate(length);
                out
            })
        };
        let lengths = (decode(stream, &mut ours).ok(), lzo::decompress_into(stream, &mut theirs).ok());
        [cut(lengths.0, ours), cut(lengths.1, theirs)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn any_stream_is_decoded_as_by_another_decoder(
            stream in prop::collection::vec(prop_oneof![0u8..40, any::<u8>()], 0..120),
            room in 0usize..3000,
            ends in any::<bool>(),
        ) {
            let mut stream = stream;
            if ends {
                stream.extend([0x11, 0, 0]);
            }
            let [ours, theirs] = both(&stream, room);
            prop_assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn no_distance_and_no_end_is_believed() {
        for (stream, part) in [
            (&b""[..], CUT),
            (b"\x11", CUT),
            (b"\x12a\x11\0", CUT),
            (b"\x12a\x11\0\0x", "follow"),
            (b"\x12a\x12\0\0", "marker"),
            (b"\x12a\x2c\x04\0\x11\0\0", "before"),
            (b"\0\0\0\0\xff", CUT),
            (b"\xffaaa", CUT),
        ] {
            let error = decode(stream, &mut [0; 100]).unwrap_err();
            assert!(error.contains(part), "{stream:?}: {error}");
        }
        assert_eq!(decode(b"\x16backy\x11\0\0", &mut [0; 4]), Err(TOO_LONG));
    }

    #[test]
    fn a_match_that_overlaps_itself_repeats() {
        // "abc", then 40 bytes from 3 before.
        let stream = b"\x14abc\x20\x07\x08\0\x11\0\0";
        for room in [43, 44, 58, 59, 60, 200] {
            let mut out = vec![0; room];
            assert_eq!(decode(stream, &mut out), Ok(43), "{room}");
            assert!(out[..43].iter().eq(b"abc".iter().cycle().take(43)), "{room}");
        }
    }
}
