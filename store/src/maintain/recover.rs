//! Makes a job's directory again, or the revisions that it lost, from the register: for a directory that was deleted by
//! mistake and of which there is no other copy, and for manifests that are damaged.

use std::io;

use crate::error::{Context, Error, Result};
use crate::format::manifest;
use crate::fs::disk;
use crate::maintain::sweep::{scan, seen_in};
use crate::name::JobName;
use crate::repository::Repository;
use crate::repository::job::{Job, JobFile, job_files};
use crate::repository::register::{Record, Register, State};
use crate::revision::RevisionId;

/// What was made again.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Revisions that are there again, with the tags and the trust that they had when they were made.
    pub revisions: Vec<RevisionId>,
    /// Revisions whose damaged manifests were replaced; the damaged ones lie beside them as `<id>.rev.damaged`.
    pub repaired: Vec<RevisionId>,
    /// Revisions whose manifests the register does not have, or not whole; their chunks stay.
    pub without_manifest: Vec<RevisionId>,
    /// Whether the configuration was made again, too.
    pub has_config: bool,
}

impl Repository {
    /// Makes the revisions of a job again that are in the register and whose manifests are nowhere in the store, also of
    /// one that was given up less than the hold time ago, and replaces the job's manifests that cannot be read.
    /// Nothing else that is there is changed.
    pub fn recover_job(&self, name: &JobName) -> Result<Recovered> {
        self.check_ours()?;
        let register = Register::of(self);
        let tree = scan::scan(self.root())?;
        let mut lost = Vec::new();
        for record in register.of_job(name)? {
            if record.state != State::Purged && seen_in(&register, &tree, &record)?.is_none() {
                lost.push(record);
            }
        }
        let mut recovered = Recovered::default();
        let dir = self.root().join(name.as_str());
        if !disk::exists(&dir)? {
            if lost.is_empty() {
                return Ok(recovered);
            }
            disk::create_dir(&dir)?;
            disk::sync_dir(self.root())?;
        }
        let job = Job::new(name.clone(), dir, self.clone());
        let _manifests = job.lock_manifests()?;
        repair_manifests(&job, &register, &mut recovered)?;
        for record in lost {
            let Some(text) = kept_manifest(&register, &record)? else {
                recovered.without_manifest.push(record.id);
                continue;
            };
            register.copy_out(&record, &job.map_path(&record.id))?;
            disk::write_atomically(&job.manifest_path(&record.id), &text)?;
            if let State::Dropped(_) = record.state {
                register.change(&record, State::Current)?;
            }
            recovered.revisions.push(record.id);
        }
        recovered.revisions.sort();
        recovered.has_config = !recovered.revisions.is_empty() && recover_config(&job, &register)?;
        Ok(recovered)
    }
}

/// Returns the manifest of a record as it was committed. It carries its own seal: one that is not whole is as good as
/// none.
fn kept_manifest(register: &Register, record: &Record) -> Result<Option<Vec<u8>>> {
    let path = register.manifest_path(record);
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.context("read", &path)?,
    };
    Ok(manifest::parse(&text).is_ok_and(|revision| revision.id == record.id).then_some(text))
}

/// Replaces the manifests in the job's directory that cannot be read.
fn repair_manifests(job: &Job, register: &Register, recovered: &mut Recovered) -> Result<()> {
    let records = register.of_job(job.name())?;
    for (file, path) in job_files(job.dir())? {
        let is_damaged = match &file {
            JobFile::Manifest(id) => {
                matches!(manifest::read(&path, id), Err(Error::ManifestCorrupt { .. }))
            }
            JobFile::NotAFile(..) => true,
            _ => false,
        };
        let Some(id) = file.of_manifest().filter(|_| is_damaged) else { continue };
        let kept = match records.iter().find(|record| record.id == *id) {
            Some(record) => kept_manifest(register, record)?,
            None => None,
        };
        let Some(text) = kept else {
            recovered.without_manifest.push(id.clone());
            continue;
        };
        disk::rename(&path, &path.with_extension("rev.damaged"))?;
        disk::write_atomically(&path, &text)?;
        recovered.repaired.push(id.clone());
    }
    Ok(())
}

/// Makes the configuration again unless there is one. Returns whether it did.
fn recover_config(job: &Job, register: &Register) -> Result<bool> {
    let kept = register.config_path(job.name());
    if disk::exists(&job.config_path())? || !disk::exists(&kept)? {
        return Ok(false);
    }
    let text = std::fs::read(&kept).context("read", &kept)?;
    disk::write_atomically(&job.config_path(), &text)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::FrameCache;
    use crate::testing::{commit_empty_revision, image, new_job, write_revision};

    #[test]
    fn a_manifest_that_cannot_be_read_is_replaced_by_the_one_that_was_kept() {
        let (dir, job) = new_job("web01");
        let made: Vec<_> = (0..3).map(|number| commit_empty_revision(&job, number)).collect();
        let kept = std::fs::read(job.manifest_path(&made[1].id)).unwrap();
        // The register's file can be the same one: a damaged file system damages both.
        for (number, revision) in made.iter().enumerate() {
            let path = job.manifest_path(&revision.id);
            crate::fs::disk::remove(&path).unwrap();
            match number {
                0 => std::fs::write(&path, "garbage").unwrap(),
                1 => std::os::unix::fs::symlink(dir.path().join("nothing"), &path).unwrap(),
                _ => std::fs::create_dir(&path).unwrap(),
            }
        }
        let listing = job.revisions().unwrap();
        assert_eq!((listing.revisions.len(), listing.damaged.len()), (0, 3));
        let recovered = job.repository().recover_job(job.name()).unwrap();
        assert_eq!((recovered.repaired.len(), recovered.revisions.len()), (3, 0));
        assert_eq!(job.revisions().unwrap().revisions, made);
        assert!(job.dir().join(format!("{}.rev.damaged", made[2].id)).is_dir());
        assert_eq!(std::fs::read(job.manifest_path(&made[1].id)).unwrap(), kept);
        // What was not kept is reported.
        let register = job.repository().root().join("maps/web01").join(format!("{}.rev", made[0].id));
        crate::fs::disk::remove(&register).unwrap();
        std::fs::write(job.manifest_path(&made[0].id), "garbage").unwrap();
        let recovered = job.repository().recover_job(job.name()).unwrap();
        assert!(recovered.repaired.is_empty() && recovered.without_manifest == [made[0].id.clone()]);
    }

    #[test]
    fn a_deleted_job_directory_is_made_again() {
        let (_dir, job) = new_job("web01");
        let data = image(1, 2 << 22);
        let made = write_revision(&job, &data, None);
        assert!(job.repository().recover_job(job.name()).unwrap().revisions.is_empty(), "nothing is lost");
        std::fs::remove_dir_all(job.dir()).unwrap();
        let recovered = job.repository().recover_job(job.name()).unwrap();
        assert!(recovered.revisions.iter().eq([&made.id]));
        assert!(recovered.has_config && recovered.without_manifest.is_empty());
        let job = job.repository().job(job.name()).unwrap();
        assert!(job.revisions().unwrap().revisions.iter().eq([&made]));
        let reader = job.open_revision(&made, &Arc::new(FrameCache::new(1 << 20))).unwrap();
        let mut read = vec![1; data.len()];
        reader.read_at(0, &mut read).unwrap();
        assert!(read == data);
    }
}
