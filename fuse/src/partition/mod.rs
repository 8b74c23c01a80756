//! What a disk is divided into: partitions of a GPT or an MBR, and the linear volumes of LVM. Pure: bytes come
//! through a [`Probe`], the result is plain data.
//!
//! What is always true: no bytes, however hostile, make a reader panic, loop, read or allocate without a bound
//! (the bounds are in `probe.rs` and `layout.rs`); every window lies inside the disk; whatever is left out or
//! shown in part has a finding that says so.
//!
//! Where tables are ambiguous, the readers do what the Linux kernel does, so that a file shows what the device
//! of that number would show; the exceptions are in `docs/decisions/0010-partitions-as-files.md`.
//!
//! Where to start reading: `layout.rs`, which puts together what `table.rs` (from `gpt.rs` or `mbr.rs`) and
//! `lvm/` find.

mod content;
mod gpt;
mod layout;
mod lvm;
mod mbr;
mod probe;
mod table;
#[cfg(test)]
mod tests;

#[cfg(any(test, feature = "testing"))]
pub mod fuzzing;

pub(crate) use layout::{Layout, read};
pub(crate) use probe::Probe;
