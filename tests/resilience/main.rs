//! Crashes, failing disks, damage and races: what `docs/architecture.md` promises, tried on the built binary.

#![expect(clippy::print_stdout, reason = "a test says how much it tried, and what it skipped")]
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![expect(clippy::disallowed_methods, reason = "tests handle files as anybody would")]

mod absence;
mod crash;
mod damage;
mod errors;
mod full_disk;
mod groups;
mod harm;
mod locks;
mod peers;
mod places;
mod races;
mod scene;
mod source;
