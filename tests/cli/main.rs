//! The built binary as a user meets it: bad input, every command's effect, JSON as documented, exit statuses.

#![expect(clippy::print_stdout, reason = "tests say what they skip")]
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![expect(clippy::disallowed_methods, reason = "tests handle files as anybody would")]

mod bad_input;
mod documented;
mod foreign;
mod logs;
mod original_manual;
mod peers;
mod restore;
mod revisions;
mod sources;
mod streams;
mod trust;

use std::sync::Arc;

use backy_testkit::{CHUNK, Image, World};

const BINARY: &str = env!("CARGO_BIN_EXE_backy");

/// A job with three revisions: `daily`, `weekly` and `daily,manual:keep`. Returns their ids, oldest first.
fn world() -> (World, [String; 3]) {
    let mut world = World::new(BINARY);
    let image = Image::zeros(2 * CHUNK + 100).words(0, 1).noise(1, 2);
    let first = world.backup(&Arc::new(image.clone()), "daily");
    let second = world.backup(&Arc::new(image.clone().words(1, 3)), "weekly");
    let third = world.backup(&Arc::new(image.words(1, 4).words(2, 5)), "daily,manual:keep");
    (world, [first, second, third])
}
