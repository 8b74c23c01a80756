//! The name of a chunk's file: the chunk's id, and the base that a delta leans on.
//!
//! Which file a place of an image needs is written in its map, base included, so that a sweep learns from maps and logs
//! alone what is in use. A file never changes its form: a delta on another base has another name.

use std::fmt;

use super::id::ChunkId;

/// Names the file of a chunk: `<id>` for a full one, `<id>.<base>` for a delta. It lies in the directory of its id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ChunkName {
    /// The chunk.
    pub(crate) id: ChunkId,
    /// The full chunk that a delta leans on.
    pub(crate) base: Option<ChunkId>,
}

impl ChunkName {
    /// Names the file that holds all of a chunk.
    pub(crate) fn full(id: ChunkId) -> Self {
        Self { id, base: None }
    }

    /// Names the file that holds what a chunk does not share with `base`.
    pub(crate) fn delta(id: ChunkId, base: ChunkId) -> Self {
        Self { id, base: Some(base) }
    }

    /// Parses the name of a file, and nothing else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.split_once('.') {
            None => ChunkId::parse(text).map(Self::full),
            Some((id, base)) => Some(Self::delta(ChunkId::parse(id)?, ChunkId::parse(base)?)),
        }
    }

    /// Returns the chunks that must stay as long as this file is needed: its own, and its base.
    pub(crate) fn ids(&self) -> impl Iterator<Item = ChunkId> + use<> {
        std::iter::once(self.id).chain(self.base)
    }
}

impl fmt::Display for ChunkName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.base {
            None => write!(out, "{}", self.id),
            Some(base) => write!(out, "{}.{base}", self.id),
        }
    }
}

impl fmt::Debug for ChunkName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "ChunkName({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let (id, base) = (ChunkId::of(b"1"), ChunkId::of(b"2"));
        for name in [ChunkName::full(id), ChunkName::delta(id, base)] {
            assert_eq!(ChunkName::parse(&name.to_string()), Some(name));
        }
        for text in [format!("{id}."), format!(".{id}"), format!("{id}.{base}.{id}"), format!("{id}.tmp")] {
            assert_eq!(ChunkName::parse(&text), None, "{text}");
        }
    }
}
