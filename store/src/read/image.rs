//! The image of a revision as it is stored: ours, chunks of frames below a sealed map, or the original's. Whoever
//! reads revisions reads through this, so that all of it works on both.

use std::collections::HashSet;
use std::path::PathBuf;

use super::reader::pin;
use crate::error::{Error, Result};
use crate::format::layout::{chunk_count, chunk_len, frame_len};
use crate::format::map::{self, ChunkMap, Entry, PAGE_ENTRIES};
use crate::format::name::Place;
use crate::format::{CHUNK_SIZE, FRAME_LEN};
use crate::legacy::image::OldImage;
use crate::name::JobName;
use crate::read::chunk::{self, OpenChunk, PlainChunk, Scratch};
use crate::read::files::Files;
use crate::read::forms;
use crate::read::full::FrameScratch;
use crate::repository::Repository;
use crate::repository::job::Job;
use crate::repository::session::Session;
use crate::revision::{Revision, RevisionId};

/// So many files of a damaged chunk are open at once.
const FORMS_MAX: usize = 8;

/// An image that is open. As long as it is, its chunks stay.
#[derive(Debug)]
pub(crate) enum Image {
    /// Our own.
    Framed(Box<Framed>),
    /// The original's.
    Old(OldImage),
}

/// An image of our own format.
#[derive(Debug)]
pub(crate) struct Framed {
    pub(crate) map: ChunkMap,
    pub(crate) backend: Files,
    /// The store's root.
    root: PathBuf,
    job: JobName,
    revision: RevisionId,
    /// `None` where nothing can be written.
    session: Option<Session>,
}

/// What lies at the places of a page of the map.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) entries: Vec<Entry>,
    /// Its page of places is damaged: the entries have what was found among the files of the store.
    pub(crate) damage: Option<Error>,
}

impl Framed {
    /// Reads what lies at the places of a page whose ids are `ids`. Where the page of places is damaged, the error comes with
    /// places that were found among the files of the store and do as well: each chunk is verified against its id, whatever
    /// it is read from.
    pub(crate) fn entries(&self, page: u64, ids: &[u8]) -> Result<(Vec<Entry>, Option<Error>)> {
        let read = self.map.read_places(page);
        let damage = match read.and_then(|places| self.map.entries_of(page, ids, places.as_deref())) {
            Err(error) if error.is_damage() => error,
            // A medium that cannot be read is damage of this page, as it is of a chunk.
            Err(Error::Io { path, source, .. }) => {
                Error::MapCorrupt { path, reason: format!("page of places {page} cannot be read: {source}") }
            }
            other => return Ok((other?, None)),
        };
        let found = forms::find(&self.backend, &map::ids(ids).collect())?;
        let place = |id: &[u8]| {
            let id = map::id_of(id)?;
            Some(found.get(&id).and_then(|places| places.first()).cloned().unwrap_or(Place::full(id)))
        };
        Ok((ids.chunks_exact(32).map(place).collect(), Some(damage)))
    }

    /// Opens a chunk that the map names.
    pub(crate) fn open(&self, place: &Place) -> Result<OpenChunk> {
        chunk::open(&self.backend, place).map_err(|error| self.explained(error))
    }

    /// A chunk that is missing is damage, unless all of them are away, or the reader has no session and the map is gone as
    /// well: then a purge has removed both.
    pub(crate) fn explained(&self, error: Error) -> Error {
        let is_gone = || {
            let map = std::fs::symlink_metadata(self.map.path());
            map.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        };
        if matches!(error, Error::ChunkMissing { .. }) && self.session.is_none() && is_gone() {
            return Error::RevisionPurged { job: self.job.clone(), revision: self.revision.clone() };
        }
        match error {
            Error::ChunkMissing { .. } if self.backend.is_away().unwrap_or(false) => {
                Error::ChunksAway { path: self.root.clone() }
            }
            other => other,
        }
    }

    /// Passes on what was read of a chunk, unless a file that it lacks was purged with the revision.
    fn unless_purged<'s>(&self, plain: PlainChunk<'s>) -> Result<PlainChunk<'s>> {
        let mut missing = plain.bad.iter().filter_map(|(_, error)| match error {
            Error::ChunkMissing { id } => Some(self.explained(Error::ChunkMissing { id: *id })),
            Error::GroupDamaged { chunk, .. } => {
                // Of a group that is missing the error does not say so by its kind.
                Some(self.explained(Error::ChunkMissing { id: *chunk }))
            }
            _ => None,
        });
        let purged = missing.find(|error| !error.is_damage());
        purged.map_or(Ok(plain), Err)
    }

    /// Opens the file of a chunk that the map names, whose length is known.
    fn open_chunk(&self, place: &Place, length: usize) -> Result<OpenChunk> {
        let chunk = self.open(place)?;
        chunk.must_have_len(length)?;
        Ok(chunk)
    }

    /// Opens a chunk in every other way there is: by the place itself, where the full chunk came first, and whatever groups
    /// have of it. For what the first way cannot give. What cannot be opened is none.
    pub(crate) fn open_forms(&self, place: &Place, length: usize) -> Vec<OpenChunk> {
        let mut found = forms::find(&self.backend, &HashSet::from([place.id])).unwrap_or_default();
        let mut places = vec![place.clone()];
        places.extend(found.remove(&place.id).unwrap_or_default().into_iter().filter(|other| other != place));
        let opened = places.iter().filter_map(|place| chunk::open_as(&self.backend, place).ok());
        opened.filter(|chunk| chunk.plain_len() == length).take(FORMS_MAX).collect()
    }

    /// Takes the bad frames of a chunk from other files of it, and adds what was got around so.
    fn mend(&self, place: &Place, plain: &mut PlainChunk<'_>, avoided: &mut Vec<Error>) {
        if plain.bad.is_empty() {
            return;
        }
        let length = plain.data.len();
        let forms = self.open_forms(place, length);
        let mut scratch = FrameScratch::new();
        for (number, error) in std::mem::take(&mut plain.bad) {
            let start = number * FRAME_LEN;
            let out = &mut plain.data[start..start + frame_len(length, number)];
            if forms.iter().any(|form| form.read_frame(number, &mut scratch, out).is_ok()) {
                // A group and a base may both be damaged, and other chunks may need that base.
                if avoided.iter().all(|known| known.damaged_files() != error.damaged_files()) {
                    avoided.push(error);
                }
            } else {
                out.fill(0);
                plain.bad.push((number, error));
            }
        }
    }
}

impl Image {
    /// Opens an image to read all of it.
    pub(crate) fn open(job: &Job, revision: &Revision) -> Result<Self> {
        Self::open_by(job, revision, Repository::backend)
    }

    /// Opens an image that may stay open for long, one of many.
    pub(crate) fn open_shared(job: &Job, revision: &Revision) -> Result<Self> {
        Self::open_by(job, revision, Repository::shared_backend)
    }

    fn open_by(job: &Job, revision: &Revision, files: fn(&Repository) -> Result<Files>) -> Result<Self> {
        if revision.is_old() {
            return match OldImage::open(job, revision) {
                // It may have been upgraded, or forgotten and purged, since it was listed.
                Err(error) if error.is_damage() => match job.revision(&revision.id)? {
                    now if now.is_old() => Err(error),
                    now => Self::open_framed(job, &now, files),
                },
                other => other.map(Self::Old),
            };
        }
        Self::open_framed(job, revision, files)
    }

    fn open_framed(job: &Job, revision: &Revision, files: fn(&Repository) -> Result<Files>) -> Result<Self> {
        let (session, map) = pin(job, revision)?;
        let backend = files(job.repository())?;
        let root = job.repository().root().to_owned();
        let (job, revision) = (job.name().clone(), revision.id.clone());
        Ok(Self::Framed(Box::new(Framed { map, backend, root, job, revision, session })))
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        match self {
            Self::Framed(framed) => framed.map.size_bytes(),
            Self::Old(old) => old.size_bytes(),
        }
    }

    pub(crate) fn chunk_count(&self) -> u64 {
        chunk_count(self.size_bytes())
    }

    /// Pages of 2,048 chunks, in which whole images are read.
    pub(crate) fn page_count(&self) -> u64 {
        self.chunk_count().div_ceil(PAGE_ENTRIES)
    }

    /// Returns where a page begins in the image, and how many bytes it covers.
    pub(crate) fn page_range(&self, page: u64) -> (u64, u64) {
        let start = page * PAGE_ENTRIES * CHUNK_SIZE;
        (start, (PAGE_ENTRIES * CHUNK_SIZE).min(self.size_bytes().saturating_sub(start)))
    }

    /// Returns what lies at the places of a page.
    pub(crate) fn page(&self, page: u64) -> Result<Page> {
        match self {
            Self::Framed(framed) => {
                let ids = framed.map.read_page(page)?;
                let (entries, damage) = framed.entries(page, &ids)?;
                Ok(Page { entries, damage })
            }
            Self::Old(old) => {
                let first = page * PAGE_ENTRIES;
                let end = (first + PAGE_ENTRIES).min(self.chunk_count());
                let entries = (first..end).map(|number| old.get(number).map(Place::full));
                Ok(Page { entries: entries.collect(), damage: None })
            }
        }
    }

    /// Reads what can be read of the chunk at place `number`; an error where none of it can.
    pub(crate) fn read<'s>(
        &self,
        number: u64,
        place: &Place,
        scratch: &'s mut Scratch,
    ) -> Result<PlainChunk<'s>> {
        let framed = match self {
            Self::Framed(framed) => framed,
            Self::Old(old) => return old.read(number, &place.id, scratch),
        };
        let chunk = framed.open_chunk(place, chunk_len(self.size_bytes(), number))?;
        framed.unless_purged(scratch.salvage(&chunk))
    }

    /// As [`Image::read`], and what cannot be read so is taken from any file of the chunk that there is. Returns also what
    /// was got around, one error for each damaged chunk: that file is damaged, and a purge may take the other one.
    pub(crate) fn read_any<'s>(
        &self,
        number: u64,
        place: &Place,
        scratch: &'s mut Scratch,
    ) -> Result<(PlainChunk<'s>, Vec<Error>)> {
        let mut avoided = Vec::new();
        let Self::Framed(framed) = self else {
            return self.read(number, place, scratch).map(|plain| (plain, avoided));
        };
        let length = chunk_len(self.size_bytes(), number);
        let chunk = match framed.open_chunk(place, length) {
            Err(error) if error.is_damage() => {
                let Some(other) = framed.open_forms(place, length).pop() else { return Err(error) };
                avoided.push(error);
                other
            }
            other => other?,
        };
        let mut plain = scratch.salvage(&chunk);
        framed.mend(place, &mut plain, &mut avoided);
        Ok((framed.unless_purged(plain)?, avoided))
    }
}
