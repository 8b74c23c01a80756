//! A configured job's directory: made when the job is new to the store, its `config` kept as the main configuration
//! says. The service does so when it reads its configuration and before each round, `backup` by hand likewise.
//!
//! A job of which the store has revisions that cannot be seen is never made again. Its directory may be the mount point
//! of a disk that is away, and what was written below it would hide the revisions, and be hidden by them later.

use backy_store::{Error as StoreError, JobName, Repository, Timestamp};

use crate::config::JobConfig;
use crate::error::Result;

/// Makes a job's directory, or brings its configuration up to date. Never touches a store that is not there.
pub fn prepare(repository: &Repository, job: &JobName, config: &JobConfig, now: Timestamp) -> Result<()> {
    let text = config.to_yaml();
    match repository.job(job) {
        Ok(job) => {
            if std::fs::read_to_string(job.config_path()).ok().as_deref() != Some(&*text) {
                job.write_config(&text)?;
                tracing::info!(job = %job.name(), "configuration written");
            }
        }
        Err(StoreError::JobUnknown { .. }) => {
            // Refused for a job whose revisions are away.
            repository.create_job(job, false, &text, now)?;
            tracing::info!(%job, "directory made");
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
