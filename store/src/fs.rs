//! The file system below the store: every change goes through one place, locks, and who may own what.

pub(crate) mod disk;
pub mod lock;
pub mod ownership;
