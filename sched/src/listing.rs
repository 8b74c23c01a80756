//! The revisions of a job as decisions about it see them.

use backy_store::revision::order;
use backy_store::{Job, Listing, Timestamp};

use crate::error::Result;

/// Lists the revisions of a job in their order at the time `now`. The manifests that cannot be read are logged.
pub(crate) fn in_order(job: &Job, now: Timestamp) -> Result<Listing> {
    let mut listing = job.revisions()?;
    for finding in &listing.damaged {
        tracing::warn!(job = %job.name(), reason = %finding, "manifest-unreadable");
    }
    order::sort(&mut listing.revisions, now);
    Ok(listing)
}
