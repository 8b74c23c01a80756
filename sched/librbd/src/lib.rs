//! Ceph's own libraries, librados and librbd, found and loaded at run time: a program that uses this crate starts
//! and works where they are not installed, and [`available`] says why they cannot be used there.
//!
//! All `unsafe` code of this crate is in `calls`. What is here is safe: a cluster outlives its images,
//! buffers have their lengths, callbacks do not unwind into C. Every request ends within the time limit given to
//! [`Cluster::connect`], so that a cluster that hangs is an error and not a program that hangs. Only what backy
//! needs is here: list changes, read, write.

mod calls;
mod environment;

pub use calls::{Cluster, Image, available};
pub use environment::Access;

use std::io;

/// A call of Ceph's libraries that failed.
#[derive(Debug)]
pub struct CephError {
    /// The function.
    pub call: &'static str,
    /// Why.
    pub source: io::Error,
}

impl std::fmt::Display for CephError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} failed", self.call)
    }
}

impl std::error::Error for CephError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl CephError {
    /// Whether the pool, image or snapshot is not there.
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// Whether a callback asked to stop.
    pub fn is_stopped(&self) -> bool {
        self.source.kind() == io::ErrorKind::Interrupted
    }
}
