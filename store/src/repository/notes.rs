//! Notes of revisions that lie on other servers: manifests without a map, with the server's name and the tags that it
//! was last seen to have (`orig_tags`).
//!
//! A note is written whole or not at all and is durable when the call returns. It never takes the place of anything
//! that is here: an id with a local manifest, one that cannot be read, a forgotten revision or a map is refused, so
//! whatever another server says, no revision of this one can be lost, kept from being undeleted, or keep its chunks
//! from a purge.

use std::collections::BTreeSet;
use std::io;

use crate::error::{Error, Result};
use crate::format::manifest;
use crate::fs::disk;
use crate::fs::lock::ManifestGuard;
use crate::repository::job::{Job, JobFile, job_files};
use crate::revision::{BackendType, Revision, RevisionId};

/// The right to change the notes of a job while the manifest lock is held.
#[derive(Debug)]
pub struct Notes<'g> {
    job: &'g Job,
    _guard: &'g ManifestGuard,
    /// Ids with a map or a forgotten manifest.
    taken: BTreeSet<RevisionId>,
}

impl Job {
    /// Looks which ids are taken, for changing notes under the guard.
    pub fn notes<'g>(&'g self, guard: &'g ManifestGuard) -> Result<Notes<'g>> {
        let taken = job_files(self.dir())?
            .into_iter()
            .filter_map(|(file, _)| match file {
                JobFile::Map(id) | JobFile::Forgotten(id, _) => Some(id),
                JobFile::Manifest(_) | JobFile::NotAFile(..) | JobFile::Unfinished => None,
            })
            .collect();
        Ok(Notes { job: self, _guard: guard, taken })
    }
}

impl Notes<'_> {
    /// The note of this server with this id as it is now, `None` when there is nothing with the id. What is not a note
    /// of this server is refused.
    pub fn read(&self, id: &RevisionId, server: &str) -> Result<Option<Revision>> {
        if self.taken.contains(id) {
            return Err(self.refused(id, "a revision with this id is or was here".to_owned()));
        }
        match manifest::read(&self.job.manifest_path(id), id) {
            Ok(revision) if !server.is_empty() && revision.server == server => Ok(Some(revision)),
            Ok(revision) if revision.is_local() => {
                Err(self.refused(id, "a revision with this id is here".to_owned()))
            }
            Ok(revision) => Err(self.refused(id, format!("it is known as one of {}", revision.server))),
            Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => Ok(None),
            Err(error) if error.is_damage() => {
                Err(self.refused(id, "a manifest with this id is here that cannot be read".to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    /// Writes a note, new or changed. Returns whether it differs from what was there.
    pub fn write(&self, note: &Revision) -> Result<bool> {
        let is_note = !note.is_local()
            && note.backend_type == BackendType::Other(String::new())
            && note.map_seal.is_none();
        if !is_note {
            return Err(self.refused(&note.id, "it is no note of another server's revision".to_owned()));
        }
        if self.read(&note.id, &note.server)?.as_ref() == Some(note) {
            return Ok(false);
        }
        disk::write_atomically(&self.job.manifest_path(&note.id), manifest::to_text(note).as_bytes())?;
        Ok(true)
    }

    /// Removes a note for good; there is nothing to bring back. No error when there is none.
    pub fn remove(&self, id: &RevisionId, server: &str) -> Result<()> {
        if self.read(id, server)?.is_none() {
            return Ok(());
        }
        disk::remove(&self.job.manifest_path(id))?;
        disk::sync_dir(self.job.dir())
    }

    fn refused(&self, id: &RevisionId, reason: String) -> Error {
        Error::ChangeRefused { job: self.job.name().clone(), revision: id.clone(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maintain::sweep::{self, SweepOptions};
    use crate::testing::{image, new_job, now, write_revision};
    use crate::{FrameCache, Silent, Stats, Tag};

    fn note(id: &str) -> Revision {
        Revision {
            id: RevisionId::parse(id).unwrap(),
            timestamp: now(),
            parent: None,
            sequence: None,
            stats: Stats { bytes_written: 5, duration_secs: Some(1.0), ..Stats::default() },
            tags: Tag::parse_list("daily").unwrap(),
            backend_type: BackendType::Other(String::new()),
            trust: crate::Trust::Trusted,
            orig_tags: Tag::parse_list("daily").unwrap(),
            server: "backup2".to_owned(),
            image_size: Some(5),
            map_seal: None,
            data_bytes: None,
            stored_bytes: None,
            source: Default::default(),
            extra: Default::default(),
        }
    }

    #[test]
    fn notes_are_written_changed_and_removed() {
        let (_dir, job) = new_job("web01");
        let guard = job.lock_manifests().unwrap();
        let notes = job.notes(&guard).unwrap();
        let mut note = note("abc");
        assert!(notes.write(&note).unwrap() && !notes.write(&note).unwrap());
        note.tags.clear();
        assert!(notes.write(&note).unwrap());
        assert_eq!(job.revisions().unwrap().revisions, [note.clone()]);
        assert_eq!(notes.read(&note.id, "backup2").unwrap(), Some(note.clone()));
        assert!(!job.map_path(&note.id).exists());
        let other = Revision { server: "backup3".to_owned(), ..note.clone() };
        assert!(matches!(notes.write(&other), Err(Error::ChangeRefused { .. })));
        assert!(matches!(notes.remove(&note.id, "backup3"), Err(Error::ChangeRefused { .. })));
        assert!(matches!(notes.remove(&note.id, ""), Err(Error::ChangeRefused { .. })));
        notes.remove(&note.id, "backup2").unwrap();
        notes.remove(&note.id, "backup2").unwrap();
        assert!(job.revisions().unwrap().revisions.is_empty());
    }

    #[test]
    fn what_is_here_is_never_touched() {
        let (_dir, job) = new_job("web01");
        let local = write_revision(&job, &image(1, 5000), None);
        let refused = |id: &RevisionId| {
            let guard = job.lock_manifests().unwrap();
            let notes = job.notes(&guard).unwrap();
            let write = notes.write(&note(id.as_str()));
            let remove = notes.remove(id, "backup2");
            let is_refused = |error: &Error| matches!(error, Error::ChangeRefused { .. });
            is_refused(&write.unwrap_err()) && is_refused(&remove.unwrap_err())
        };
        assert!(refused(&local.id));
        let guard = job.lock_manifests().unwrap();
        job.forget(&guard, &local.id, now()).unwrap();
        drop(guard);
        assert!(refused(&local.id), "it can be undeleted");
        let damaged = RevisionId::parse("damaged").unwrap();
        std::fs::write(job.manifest_path(&damaged), "x").unwrap();
        assert!(refused(&damaged));
        let guard = job.lock_manifests().unwrap();
        job.undelete(&guard, &local.id).unwrap();
        let notes = job.notes(&guard).unwrap();
        for bad in [
            Revision { server: String::new(), ..note("n") },
            Revision { backend_type: BackendType::Framed, ..note("n") },
            Revision { map_seal: Some("ab".repeat(32)), ..note("n") },
        ] {
            assert!(matches!(notes.write(&bad), Err(Error::ChangeRefused { .. })));
        }
        assert_eq!(job.revision(&local.id).unwrap(), local);
    }

    #[test]
    fn a_note_has_no_image_and_is_in_nobodys_way() {
        let (_dir, job) = new_job("web01");
        let data = image(1, 5000);
        let local = write_revision(&job, &data, None);
        let cache = std::sync::Arc::new(FrameCache::new(1 << 20));
        let note = note("abc");
        let guard = job.lock_manifests().unwrap();
        job.notes(&guard).unwrap().write(&note).unwrap();
        drop(guard);
        let error = job.open_revision(&note, &cache).unwrap_err();
        assert!(error.to_string().ends_with("its image lies on the server backup2") && !error.is_damage());
        let options = SweepOptions::new(0, now());
        let report = sweep::sweep(job.repository(), &options, &Silent).unwrap();
        assert_eq!(report.revisions_deleted, []);
        let guard = job.lock_for_backup().unwrap();
        assert_eq!(job.remove_unfinished(&guard).unwrap(), 0);
        assert_eq!(job.revisions().unwrap().revisions.len(), 2);
        job.open_revision(&local, &cache).unwrap();
    }
}
