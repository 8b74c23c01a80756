//! Disk images of a few chunks, each of which holds a little data and many zeros, so that hundreds of trials are quick.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::random::Random;

/// Size of a chunk.
pub const CHUNK: usize = 4 << 20;

/// Data in a chunk: two frames and a bit.
const DATA: usize = (128 << 10) + 1000;

const WORDS: [&str; 8] =
    ["inode ", "journal ", "superblock ", "\0\0\0\0", "bitmap ", "extent ", "mount ", "lost+found "];

/// The bytes of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image(pub Vec<u8>);

impl Image {
    /// An image of zeros.
    pub fn zeros(length: usize) -> Self {
        Self(vec![0; length])
    }

    /// The part of chunk `number` that holds data.
    fn data(&mut self, number: usize) -> &mut [u8] {
        let start = number * CHUNK;
        let end = (start + DATA).min(self.0.len());
        &mut self.0[start..end]
    }

    /// Chunk `number` becomes words, which compress.
    pub fn words(mut self, number: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut text = Vec::with_capacity(DATA + 64);
        while text.len() < DATA {
            text.extend_from_slice(random.pick(&WORDS).as_bytes());
            text.extend_from_slice(random.below(1000).to_string().as_bytes());
        }
        let data = self.data(number);
        data.copy_from_slice(&text[..data.len()]);
        self
    }

    /// Chunk `number` becomes noise, which does not compress, with a frame of zeros in it.
    pub fn noise(mut self, number: usize, seed: u64) -> Self {
        let data = self.data(number);
        Random::new(seed).fill(data);
        let length = data.len();
        data[length / 4..length / 2].fill(0);
        self
    }

    /// A few hundred bytes of chunk `number` become others: what makes a run.
    pub fn edit(mut self, number: usize, seed: u64) -> Self {
        let data = self.data(number);
        let mut random = Random::new(seed);
        for _ in 0..2 {
            let at = random.below(data.len().max(1) as u64) as usize;
            let end = (at + 1 + random.below(300) as usize).min(data.len());
            random.fill(&mut data[at..end]);
        }
        self
    }

    /// Chunk `number` becomes zeros.
    pub fn zero(mut self, number: usize) -> Self {
        let end = ((number + 1) * CHUNK).min(self.0.len());
        self.0[number * CHUNK..end].fill(0);
        self
    }

    /// Chunk `to` becomes the same as chunk `from`; both are whole.
    pub fn copy(mut self, from: usize, to: usize) -> Self {
        self.0.copy_within(from * CHUNK..(from + 1) * CHUNK, to * CHUNK);
        self
    }

    /// The image grows with zeros, or is cut off.
    pub fn resize(mut self, length: usize) -> Self {
        self.0.resize(length, 0);
        self
    }

    /// Makes the file at `path` hold the image, with holes where there are zeros only.
    pub fn write(&self, path: &Path) {
        const BLOCK: usize = 64 << 10;
        static ZEROS: [u8; BLOCK] = [0; BLOCK];
        let file =
            OpenOptions::new().write(true).create(true).truncate(true).open(path).expect("open an image");
        file.set_len(self.0.len() as u64).expect("set the length of an image");
        for (number, block) in self.0.chunks(BLOCK).enumerate() {
            if block != &ZEROS[..block.len()] {
                file.write_all_at(block, (number * BLOCK) as u64).expect("write an image");
            }
        }
    }
}

/// Whether exactly `expected` comes. Reads to the end in any case, through a small buffer: memory for a whole image would
/// be new to the process each time, which is slow.
pub fn is_all_of(from: &mut dyn Read, mut expected: &[u8]) -> bool {
    let mut buffer = vec![0; 256 << 10];
    let mut is_same = true;
    loop {
        match from.read(&mut buffer).expect("read an image") {
            0 => return is_same && expected.is_empty(),
            length => match expected.split_at_checked(length) {
                Some((part, rest)) => {
                    is_same &= *part == buffer[..length];
                    expected = rest;
                }
                None => is_same = false,
            },
        }
    }
}
