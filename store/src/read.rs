//! Reads images: opens chunks in whatever form they are kept, verifies every byte, and caches what was decoded.

pub mod avoided;
pub(crate) mod block;
pub mod cache;
pub(crate) mod chunk;
pub(crate) mod copied;
pub(crate) mod files;
pub(crate) mod forms;
pub(crate) mod full;
pub(crate) mod image;
pub(crate) mod made;
pub mod reader;
