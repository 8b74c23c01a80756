//! Changing tags, for the command and for the API: what is compared, and what becomes of one revision.

use std::collections::BTreeSet;

use backy_store::fs::lock::ManifestGuard;
use backy_store::{Job, Revision, Tag, Timestamp};

use crate::error::Result;

/// Returns the revisions that have other tags than `expected`.
pub fn differing(revisions: &[Revision], expected: &BTreeSet<Tag>) -> Vec<Revision> {
    revisions.iter().filter(|revision| revision.tags != *expected).cloned().collect()
}

/// Gives a revision, as it was listed under the same guard, the tags `after`. With `autoremove` it is forgotten when
/// that leaves it without any; returns whether it was. The note of another server's revision stays until that server has
/// been told. Durable when it returns.
pub fn replace(
    job: &Job,
    guard: &ManifestGuard,
    revision: &Revision,
    after: BTreeSet<Tag>,
    autoremove: bool,
    now: Timestamp,
) -> Result<bool> {
    let forget = autoremove && after.is_empty() && revision.is_local();
    let text = |tags: &BTreeSet<Tag>| tags.iter().map(Tag::as_str).collect::<Vec<_>>().join(",");
    let (name, id, before, now_has) = (job.name(), &revision.id, text(&revision.tags), text(&after));
    job.set_tags(guard, id, after)?;
    tracing::info!(job = %name, revision = %id, before, after = now_has, "tags changed");
    if forget {
        job.forget(guard, id, now)?;
        tracing::info!(job = %name, revision = %id, "forgotten");
    }
    Ok(forget)
}
