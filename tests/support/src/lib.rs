//! What the tests of the whole program share: seeded images, a store with a job in a temporary directory, and
//! the binary run in it. Everything here panics instead of returning errors: it is for tests.

#![expect(clippy::disallowed_methods, reason = "tests handle files as anybody would")]

mod image;
mod original;
mod peer;
mod random;
mod run;
mod tree;
mod trials;
mod world;

pub use image::{CHUNK, Image, is_all_of};
pub use original::{Expected, Original};
pub use peer::Peer;
pub use random::Random;
pub use run::{Run, Stopped, end, end_gently, ended, output_of};
pub use tree::{Tree, copy_tree};
pub use trials::{each, every};
pub use world::{JOB, World};
