//! The names of the files below `chunks/`, and of the place where a chunk is kept.
//!
//! A chunk is kept in full in a file of its own, or by a recipe in a group: the full chunk that was at its place before,
//! and what has changed since. Which files a place of an image needs is written in its map, all of them, so that a sweep
//! learns from maps and logs alone what is in use. A file never changes.

use std::fmt;

use super::id::ChunkId;

/// What a file holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum FileKind {
    /// All of one chunk.
    Chunk,
    /// Recipes and runs of one backup.
    Group,
}

/// Names a file: `<id>` for a chunk, `<id>.group` for a group, whose id is random. It lies in the directory of its id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FileName {
    /// The id of the chunk or group.
    pub(crate) id: ChunkId,
    /// Which of the two.
    pub(crate) kind: FileKind,
}

/// The end of the name of a group.
const GROUP_SUFFIX: &str = ".group";

impl FileName {
    /// Names the file that holds all of a chunk.
    pub(crate) fn chunk(id: ChunkId) -> Self {
        Self { id, kind: FileKind::Chunk }
    }

    /// Names a group.
    pub(crate) fn group(id: ChunkId) -> Self {
        Self { id, kind: FileKind::Group }
    }

    /// Parses the name of a file, and nothing else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.strip_suffix(GROUP_SUFFIX) {
            None => ChunkId::parse(text).map(Self::chunk),
            Some(id) => ChunkId::parse(id).map(Self::group),
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = if self.kind == FileKind::Group { GROUP_SUFFIX } else { "" };
        write!(out, "{}{suffix}", self.id)
    }
}

impl fmt::Debug for FileName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "FileName({self})")
    }
}

/// Where a chunk is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// The chunk.
    pub(crate) id: ChunkId,
    /// `None` for a chunk in a file of its own.
    pub(crate) recipe: Option<RecipePlace>,
}

/// Where a recipe is, and all that is needed to read its chunk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RecipePlace {
    /// The group in which it is.
    pub(crate) group: ChunkId,
    /// Offset of the recipe in the group's file.
    pub(crate) offset: u32,
    /// Its length.
    pub(crate) len: u32,
    /// Bytes of the runs that it needs in that group.
    pub(crate) own_bytes: u32,
    /// The files that it refers to, its own group not among them: at most [`FILES_MAX`], in order.
    pub(crate) files: Vec<Needed>,
}

/// A file that a recipe refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Needed {
    /// The file.
    pub(crate) file: FileName,
    /// Of a group, the bytes of the runs that are needed; 0 of a base. This tells how much of a group is needed at all.
    pub(crate) bytes: u32,
}

/// The most files that a recipe refers to beside its own group.
pub(crate) const FILES_MAX: usize = 32;

impl Place {
    /// The place of a chunk in a file of its own.
    pub(crate) fn full(id: ChunkId) -> Self {
        Self { id, recipe: None }
    }

    /// Returns the files that must stay for this place.
    pub(crate) fn files(&self) -> impl Iterator<Item = FileName> {
        let full = self.recipe.is_none().then(|| FileName::chunk(self.id));
        let group = self.recipe.iter().map(|recipe| FileName::group(recipe.group));
        full.into_iter()
            .chain(group)
            .chain(self.recipe.iter().flat_map(|recipe| recipe.files.iter().map(|needed| needed.file)))
    }

    /// Returns the groups of which this place needs runs, and how many bytes of each.
    pub(crate) fn group_bytes(&self) -> impl Iterator<Item = (ChunkId, u32)> {
        self.recipe.iter().flat_map(|recipe| {
            let others = recipe.files.iter().filter(|needed| needed.file.kind == FileKind::Group);
            std::iter::once((recipe.group, recipe.own_bytes))
                .chain(others.map(|needed| (needed.file.id, needed.bytes)))
        })
    }

    /// Returns the ids of the chunk and of the files that must stay for this place.
    pub(crate) fn ids(&self) -> impl Iterator<Item = ChunkId> {
        std::iter::once(self.id).chain(self.files().map(|file| file.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let id = ChunkId::of(b"1");
        for name in [FileName::chunk(id), FileName::group(id)] {
            assert_eq!(FileName::parse(&name.to_string()), Some(name));
        }
        for text in [format!("{id}."), ".group".to_owned(), format!("{id}.{id}"), format!("{id}.tmp")] {
            assert_eq!(FileName::parse(&text), None, "{text}");
        }
    }
}
