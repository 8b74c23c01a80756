//! Makes a job's directory again, or the revisions that it lost, from the register: for a directory that was deleted by
//! mistake and of which there is no other copy.

use std::io;

use crate::disk;
use crate::error::{Context, Result};
use crate::job::Job;
use crate::name::JobName;
use crate::register::{Register, State};
use crate::repository::Repository;
use crate::revision::{RevisionId, manifest};
use crate::sweep::{scan, seen_in};

/// What was made again.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Revisions that are there again, with the tags and the trust that they had when they were made.
    pub revisions: Vec<RevisionId>,
    /// Revisions whose manifests the register does not have, or not whole; their chunks stay.
    pub without_manifest: Vec<RevisionId>,
    /// Whether the configuration was made again, too.
    pub has_config: bool,
}

impl Repository {
    /// Makes the revisions of a job again that are in the register and whose manifests are nowhere in the store, also of
    /// one that was given up less than the hold time ago. Nothing that is there is replaced.
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
        if lost.is_empty() {
            return Ok(recovered);
        }
        let dir = self.root().join(name.as_str());
        if !disk::exists(&dir)? {
            disk::create_dir(&dir)?;
            disk::sync_dir(self.root())?;
        }
        let job = Job::new(name.clone(), dir, self.clone());
        let _manifests = job.lock_manifests()?;
        for record in lost {
            let text = match std::fs::read(register.manifest_path(&record)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                other => other.context("read", register.manifest_path(&record))?,
            };
            // A manifest carries its own seal: one that is not whole is as good as none.
            if text.is_empty() || manifest::read(&register.manifest_path(&record), &record.id).is_err() {
                recovered.without_manifest.push(record.id);
                continue;
            }
            register.copy_out(&record, &job.map_path(&record.id))?;
            disk::write_atomically(&job.manifest_path(&record.id), &text)?;
            if let State::Dropped(_) = record.state {
                register.change(&record, State::Current)?;
            }
            recovered.revisions.push(record.id);
        }
        recovered.revisions.sort();
        recovered.has_config = recover_config(&job, &register)?;
        Ok(recovered)
    }
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
    use crate::testing::{image, new_job, write_revision};

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
