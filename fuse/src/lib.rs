//! All revisions of a store as a file system: look into any of them at once, without restoring. It is read-only, or
//! with an overlay the images can be written and the revisions stay as they are.
//!
//! ```text
//! /mnt/backy/
//!   web01/                              one directory per job
//!     7Qk2mB9xTfLw4RzHc8NvYe/           one directory per complete revision
//!       image                           the disk: exact size, time of the backup
//!       info.json                       what the manifest says, and the links that lead here
//!       parts/                          what the disk is divided into
//!         1.img                         a partition, by its number
//!         vg-root.img                   a linear logical volume
//!         parts.json                    what they are, and what is odd about the tables
//!     last -> 7Qk2mB9xTfLw4RzHc8NvYe    the newest revision
//!     daily -> 7Qk2mB9xTfLw4RzHc8NvYe   one link per tag: the newest revision that has it
//! ```
//!
//! `last` and the tags lead to the newest revision that is not distrusted, or to the newest at all where every
//! candidate is distrusted. Distrusted revisions have their directory like all others.
//!
//! What is always true: nothing in the store is written but trust states, when damage is met; a byte that cannot be proven is
//! `EIO`, never zero; a new revision, a moved tag and a forgotten revision show within a second; a file that is
//! open stays what it was and stays readable; an inode number never changes its meaning.
//!
//! Where to start reading: [`run`] in `mount.rs`, the answers to the kernel in `filesystem.rs`, what a directory
//! holds in `tree.rs` and `parts.rs`, how changes are noticed in `jobs.rs`, what happens to writes in `overlay.rs`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod ahead;
mod attributes;
mod damage;
mod disk;
mod errno;
pub mod error;
mod filesystem;
mod handles;
mod inode;
mod jobs;
pub mod mount;
mod mutex;
mod overlay;
mod partition;
mod parts;
mod tree;
mod view;
mod window;
mod writing;

pub use error::{Error, Result};
pub use mount::options::{Access, Manner, Options, OverlayOptions};
pub use mount::signals::ignores_hangup;
pub use mount::{Mounted, detach, run, shown_at, unmount};
#[cfg(any(test, feature = "testing"))]
pub use partition::fuzzing;
