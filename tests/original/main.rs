//! Stores that the original wrote, through the whole program: read, mounted, continued, upgraded.

#![expect(clippy::print_stdout, reason = "tests tell what they did and what they skip")]
#![expect(clippy::disallowed_methods, reason = "tests handle files as anybody would")]

mod continued;
mod damage;
mod forms;
mod mounted;
mod read;
mod upgrade;

use std::path::Path;

use backy_testkit::Original;

const BINARY: &str = env!("CARGO_BIN_EXE_backy");

/// Chunks in the layout of today and of before, and raw images.
const ALL: [&str; 3] = ["vm-alpha", "vm-alpha-v1", "vm-cow"];

fn unpack(name: &str) -> Original {
    Original::unpack(BINARY, &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/original"), name)
}
