//! Expiry of one job: decide with [`plan`], then do exactly that under the manifest lock.
//!
//! The revisions are listed again under the lock, so no tag that another command just set is judged by an old list; what
//! is listed is what the sealed manifests say, for a row of the index that does not prove itself is not used.
//! A removed revision is forgotten with the tags it had: `undelete` brings it back as it was until a purge
//! past the hold time. Between two revisions nothing is half done; a run that dies is finished by the next
//! one.

use backy_store::{Job, Timestamp};

use crate::error::Result;
use crate::listing;
use crate::policy::Schedule;
pub use crate::policy::retention::{Decision, Plan, plan};

/// Applies the plan under the manifest lock and returns it. With `dry_run` it only returns the plan.
pub fn expire(job: &Job, schedule: &Schedule, now: Timestamp, force: bool, dry_run: bool) -> Result<Plan> {
    if dry_run {
        return Ok(plan(&listing::in_order(job, now)?.revisions, schedule, now, force));
    }
    let guard = job.lock_manifests()?;
    let plan = plan(&listing::in_order(job, now)?.revisions, schedule, now, force);
    for decision in &plan.decisions {
        let id = &decision.revision.id;
        if decision.removed {
            job.forget(&guard, id, now)?;
            tracing::info!(job = %job.name(), revision = %id, "expired-revision");
        } else if !decision.lost_tags.is_empty() {
            let left = decision.revision.tags.difference(&decision.lost_tags).cloned().collect();
            job.set_tags(&guard, id, left)?;
            tracing::info!(job = %job.name(), revision = %id, "expired-tags");
        }
    }
    for held in &plan.held_back {
        tracing::warn!(job = %job.name(), reason = %held, "expire-held-back");
    }
    Ok(plan)
}
