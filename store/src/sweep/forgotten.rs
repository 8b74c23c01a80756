//! The first step of a sweep that deletes: forgotten revisions past the hold time, and what dead runs left in the jobs.

use std::collections::{HashMap, HashSet};

use super::{Sweep, scan};
use crate::disk;
use crate::error::Result;
use crate::job::{Job, JobFile, job_files};
use crate::legacy::purge;
use crate::lock::SweepGuard;
use crate::register::{Record, State};
use crate::revision::RevisionId;

impl Sweep<'_> {
    /// Removes the manifests and maps past the hold time and what dead runs left in the jobs. Returns the revisions
    /// that a dry run has to take as removed.
    pub(super) fn remove_forgotten(&mut self, _guard: &SweepGuard) -> Result<HashSet<RevisionId>> {
        let mut records: HashMap<RevisionId, Record> = HashMap::new();
        for record in self.register.list()? {
            records.insert(record.id.clone(), record);
        }
        let mut gone = HashSet::new();
        for job in self.repository.sharing_jobs()? {
            let manifests = job.lock_manifests()?;
            if !self.options.dry_run {
                self.report.old.add(purge::remove_leftovers(&job)?);
                self.report.temporary_deleted += job.remove_orphan_maps(&manifests)?;
            }
            let files = job_files(job.dir())?;
            for (file, path) in &files {
                let JobFile::Forgotten(id, at) = file else { continue };
                if self.is_held(*at) {
                    self.report.revisions_held += 1;
                    continue;
                }
                self.report.revisions_deleted.push((job.name().clone(), id.clone()));
                let lives =
                    files.iter().any(|(other, _)| matches!(other, JobFile::Manifest(other) if other == id));
                if !lives && purge::has_image(&job, id) && !scan::exists(&job.map_path(id))? {
                    if !self.options.dry_run {
                        self.report.old.add(purge::remove_revision(&job, id, path)?);
                    }
                    continue;
                }
                if !lives {
                    gone.insert(id.clone());
                }
                if self.options.dry_run {
                    continue;
                }
                if !lives {
                    self.mark_purged(&job, id, records.get(id))?;
                }
                // The manifest first, durably; only then the map.
                disk::remove(path)?;
                disk::sync_dir(job.dir())?;
                if !lives {
                    disk::remove(&job.map_path(id))?;
                }
            }
        }
        Ok(gone)
    }

    /// Records, durably and before the manifest goes, that a purge removes this revision.
    fn mark_purged(&self, job: &Job, id: &RevisionId, record: Option<&Record>) -> Result<()> {
        let map = job.map_path(id);
        match record {
            Some(record) if record.state == State::Purged => Ok(()),
            Some(record) => self.register.change(record, State::Purged).map(drop),
            None if scan::exists(&map)? => {
                let record = Record { job: job.name().clone(), id: id.clone(), state: State::Purged };
                self.repository.with_reserve(|| self.register.add(record.clone(), &map)).map(drop)
            }
            None => Ok(()),
        }
    }
}
