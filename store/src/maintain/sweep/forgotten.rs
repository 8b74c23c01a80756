//! The first step of a sweep that deletes: forgotten revisions past the hold time, and what dead runs left in the jobs.

use std::collections::HashMap;

use super::records::is_same_file;
use super::{Gone, Sweep};
use crate::error::Result;
use crate::fs::disk;
use crate::fs::lock::SweepGuard;
use crate::legacy::purge;
use crate::repository::job::{Job, JobFile, job_files};
use crate::repository::register::{Record, State};
use crate::revision::RevisionId;

impl Sweep<'_> {
    /// Removes the manifests and maps past the hold time and what dead runs left in the jobs. Returns the revisions
    /// that a dry run has to take as removed.
    pub(super) fn remove_forgotten(&mut self, _guard: &SweepGuard) -> Result<Gone> {
        let mut records: HashMap<RevisionId, Vec<Record>> = HashMap::new();
        for record in self.register.list()? {
            records.entry(record.id.clone()).or_default().push(record);
        }
        let mut gone = Gone::new();
        for job in self.repository.sharing_jobs()? {
            let manifests = match self.options.dry_run {
                true => job.lock_manifests_to_look()?,
                false => job.lock_manifests()?,
            };
            if !self.options.dry_run {
                self.report.old.add(purge::remove_leftovers(&job)?);
                let orphans = job.remove_orphan_maps(&manifests)?;
                self.report.temporary_deleted += orphans;
                if orphans > 0 {
                    disk::sync_dir(job.dir())?;
                }
            }
            let removed = self.remove_forgotten_of(&job, &records)?;
            if !self.options.dry_run && !removed.is_empty() {
                // The manifests first, durably; only then the maps. Those are gone for good before their records are:
                // a map that came back after a power loss would name chunks that are not there any more.
                disk::sync_dir(job.dir())?;
                removed.iter().try_for_each(|id| disk::remove(&job.map_path(id)))?;
                disk::sync_dir(job.dir())?;
            }
            if self.options.dry_run {
                gone.extend(removed.into_iter().map(|id| (job.name().clone(), id)));
            }
        }
        Ok(gone)
    }

    /// Removes the manifests of one job that are past the hold time. Returns the revisions whose maps go as well.
    fn remove_forgotten_of(
        &mut self,
        job: &Job,
        records: &HashMap<RevisionId, Vec<Record>>,
    ) -> Result<Vec<RevisionId>> {
        let files = job_files(job.dir())?;
        let mut removed = Vec::new();
        for (file, path) in &files {
            let JobFile::Forgotten(id, at) = file else { continue };
            if self.is_held(*at) {
                self.report.revisions_held += 1;
                continue;
            }
            self.report.revisions_deleted.push((job.name().clone(), id.clone()));
            let lives =
                files.iter().any(|(other, _)| matches!(other, JobFile::Manifest(other) if other == id));
            if !lives && purge::has_image(job, id) && !disk::exists(&job.map_path(id))? {
                if !self.options.dry_run {
                    self.report.old.add(purge::remove_revision(job, id, path)?);
                }
                continue;
            }
            if !lives {
                removed.push(id.clone());
            }
            if self.options.dry_run {
                continue;
            }
            if !lives {
                self.mark_purged(job, id, records.get(id).map_or(&[], Vec::as_slice))?;
            }
            disk::remove(path)?;
        }
        Ok(removed)
    }

    /// Records, durably and before the manifest goes, that a purge removes this revision.
    fn mark_purged(&self, job: &Job, id: &RevisionId, records: &[Record]) -> Result<()> {
        let map = job.map_path(id);
        let mut is_marked = false;
        for record in records {
            // A record of another name is of this directory if it is a name of the same file: of a job that was renamed.
            // That of a job of which this one is a copy stays.
            if record.job != *job.name() && !is_same_file(&self.register.path(record), &map)? {
                continue;
            }
            is_marked = true;
            if record.state != State::Purged {
                self.repository.with_reserve(|| self.register.change(record, State::Purged))?;
            }
        }
        if !is_marked && disk::exists(&map)? {
            let record = Record { job: job.name().clone(), id: id.clone(), state: State::Purged };
            self.repository.with_reserve(|| self.register.add(record.clone(), &map))?;
        }
        Ok(())
    }
}
