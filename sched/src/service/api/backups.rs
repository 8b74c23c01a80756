//! The routes below `/v1/backups/NAME`: what other servers ask of a job's directory. They change only directories
//! that no configured job owns, so that a service never meddles with the jobs of another; and whatever is asked, a
//! directory keeps a trusted revision. A purge that is asked for is an ordinary one: it holds what was forgotten, and is
//! never forced.

use std::collections::BTreeSet;
use std::time::Duration;

use backy_store::revision::select;
use backy_store::{BackendType, Error as StoreError, Job, JobName, Revision, Tag, Timestamp, Zone};
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use super::answer::Answer;
use super::handler::hide_secrets;
use crate::error::{Error, Result};
use crate::policy::retention;
use crate::service::control::Control;
use crate::tags;

/// How often to ask for a lock that is held for moments, and how long to wait in between.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Why revisions are not forgotten. Nobody can ask for the last trusted one over the network, whatever the token: who is
/// sure does it on the server itself.
const KEEPS_LAST: &str =
    "that would forget the last trusted revision of the job, which stays; nothing was changed";

/// What is to become of tags.
#[derive(Debug, Deserialize)]
struct TagOrder {
    old_tags: BTreeSet<Tag>,
    new_tags: BTreeSet<Tag>,
}

/// Lets the next purge come soon.
pub(super) fn purge(control: &dyn Control, name: &JobName) -> Answer {
    if control.is_active(name) {
        return Answer::status(StatusCode::FORBIDDEN);
    }
    match job(control, name) {
        Ok(_) => {
            control.request_purge();
            Answer::status(StatusCode::ACCEPTED)
        }
        Err(error) => Answer::failed(&error),
    }
}

/// Marks a directory as still wanted.
pub(super) fn touch(control: &dyn Control, name: &JobName, now: Timestamp) -> Answer {
    match job(control, name).and_then(|job| Ok(job.touch(now)?)) {
        Ok(()) => Answer::done(),
        Err(error) => Answer::failed(&error),
    }
}

/// Lists the revisions that are here, with the keys of their manifests.
pub(super) fn revisions(control: &dyn Control, name: &JobName, only_clean: bool) -> Answer {
    let listed = job(control, name).and_then(|job| Ok(job.revisions()?));
    match listed {
        Ok(listing) => {
            for finding in &listing.damaged {
                tracing::warn!(job = %name, %finding, "leaving out a revision");
            }
            let wanted = |one: &&Revision| one.server.is_empty() && (one.is_clean() || !only_clean);
            let entries: Vec<Value> = listing.revisions.iter().filter(wanted).map(manifest).collect();
            Answer::json(StatusCode::OK, &entries)
        }
        Err(error) => Answer::failed(&error),
    }
}

/// A manifest as it travels: times are ISO 8601, as the original has them there.
fn manifest(revision: &Revision) -> Value {
    let mut value = serde_json::to_value(revision).unwrap_or_default();
    value["timestamp"] = Value::from(revision.timestamp.to_string().replacen(' ', "T", 1));
    hide_secrets(&mut value);
    value
}

/// Replaces the tags of the selected revisions if they are those that the asker knows.
pub(super) fn set_tags(
    control: &dyn Control,
    name: &JobName,
    spec: &str,
    autoremove: bool,
    body: &[u8],
) -> Answer {
    if control.is_active(name) {
        return Answer::status(StatusCode::FORBIDDEN);
    }
    let order: TagOrder = match serde_json::from_slice(body) {
        Ok(order) => order,
        Err(error) => return Answer::told(StatusCode::BAD_REQUEST, &format!("the body: {error}")),
    };
    match job(control, name).and_then(|job| change(&job, spec, &order, autoremove)) {
        Ok(answer) => answer,
        Err(error) => Answer::failed(&error),
    }
}

/// Listing, comparing and changing happen under one guard.
fn change(job: &Job, spec: &str, order: &TagOrder, autoremove: bool) -> Result<Answer> {
    let guard = lock(job)?;
    let all = job.revisions()?.revisions;
    let selected = select::select(spec, &all, &Zone::utc())?;
    if selected.is_empty() {
        return Ok(Answer::told(StatusCode::NOT_FOUND, "no revision matches"));
    }
    if !tags::differing(&selected, &order.old_tags).is_empty() {
        return Ok(Answer::status(StatusCode::PRECONDITION_FAILED));
    }
    if autoremove && order.new_tags.is_empty() {
        let stays = |one: &&Revision| !selected.iter().any(|selected| selected.id == one.id);
        if !all.iter().filter(stays).any(|one| is_proof(job, one)) {
            return Ok(Answer::told(StatusCode::CONFLICT, KEEPS_LAST));
        }
    }
    for revision in &selected {
        tags::replace(job, &guard, revision, order.new_tags.clone(), autoremove, Timestamp::now())?;
    }
    Ok(Answer::done())
}

/// Whether the job could be restored from a revision, as its manifest has it, not the index.
fn is_proof(job: &Job, listed: &Revision) -> bool {
    let has_map = || listed.backend_type != BackendType::Framed || job.map_path(&listed.id).is_file();
    retention::is_trusted_here(listed)
        && job
            .revision(&listed.id)
            .is_ok_and(|read| retention::is_trusted_here(&read) && !read.is_suspicious())
        && has_map()
}

fn lock(job: &Job) -> Result<backy_store::lock::ManifestGuard> {
    for _ in 1..LOCK_TRIES {
        match job.try_lock_manifests() {
            Err(StoreError::Locked { .. }) => std::thread::sleep(LOCK_PAUSE),
            other => return Ok(other?),
        }
    }
    Ok(job.try_lock_manifests()?)
}

fn job(control: &dyn Control, name: &JobName) -> Result<Job> {
    control.repository()?.job(name).map_err(Error::from)
}
