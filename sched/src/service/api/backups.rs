//! The routes below `/v1/backups/NAME`: what other servers ask of a job's directory. They change only directories
//! that no configured job owns, so that a service never meddles with the jobs of another; and whatever is asked, a
//! directory keeps a trusted revision. A purge that is asked for is an ordinary one: it holds what was forgotten, and is
//! never forced.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use backy_store::select;
use backy_store::{BackendType, Error as StoreError, Job, JobName, Revision, Tag, Timestamp, Zone};
use hyper::StatusCode;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
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
#[derive(Debug)]
struct TagOrder {
    old_tags: BTreeSet<Tag>,
    new_tags: BTreeSet<Tag>,
}

impl TagOrder {
    /// Reads the body; the error names the field. New tags are those that `backy tags` takes: one that could not be
    /// selected afterwards is refused, unless the revision has it already.
    fn parse(body: &[u8]) -> std::result::Result<Self, String> {
        let fields: Fields = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let (mut old_tags, mut new_tags) = (None, None);
        for (name, value) in fields.0 {
            let place = match name.as_str() {
                "old_tags" => &mut old_tags,
                "new_tags" => &mut new_tags,
                _ => return Err(format!("unknown field {name:.64?}; there are old_tags and new_tags")),
            };
            let tags = serde_json::from_value(value).map_err(|error| format!("{name}: {error}"))?;
            if place.replace(tags).is_some() {
                return Err(format!("{name} is there twice"));
            }
        }
        let order = Self {
            old_tags: old_tags.ok_or("old_tags is missing")?,
            new_tags: new_tags.ok_or("new_tags is missing")?,
        };
        select::check_new_tags(order.new_tags.difference(&order.old_tags))
            .map_err(|error| format!("new_tags: {error}"))?;
        Ok(order)
    }
}

/// The fields of a JSON object, as they came: none is lost, nor taken from an array by its place.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Fields;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object with old_tags and new_tags")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Visit)
    }
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
    let order = match TagOrder::parse(body) {
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

fn lock(job: &Job) -> Result<backy_store::fs::lock::ManifestGuard> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_of_another_shape_is_refused_with_the_name_of_the_field() {
        for (body, why) in [
            (r#"[["a"], ["b"]]"#, "an object with old_tags and new_tags"),
            (r#""x""#, "an object with old_tags and new_tags"),
            (r#"{"old_tags": []}"#, "new_tags is missing"),
            (r#"{"new_tags": []}"#, "old_tags is missing"),
            (r#"{"old_tags": [], "new_tags": [], "force": true}"#, "unknown field \"force\""),
            (r#"{"old_tags": [], "new_tags": [], "new_tags": []}"#, "new_tags is there twice"),
            (r#"{"old_tags": "a", "new_tags": []}"#, "old_tags: invalid type: string \"a\""),
            (r#"{"old_tags": [], "new_tags": {"a": 1}}"#, "new_tags: invalid type: map"),
            (r#"{"old_tags": [], "new_tags": null}"#, "new_tags: invalid type: null"),
            (r#"{"old_tags": [], "new_tags": [1]}"#, "new_tags: invalid type: integer `1`"),
            (r#"{"old_tags": [], "new_tags": ["a/b"]}"#, "new_tags: "),
            (r#"{"old_tags": [], "new_tags": ["last"]}"#, "new_tags: "),
            (r#"{"old_tags": [], "new_tags": ["2024-01-01"]}"#, "new_tags: "),
            (r#"{"old_tags": [], "new_tags": ["a&b"]}"#, "new_tags: "),
            ("{\"old_tags\": [], \"new_tags\": [\"x\u{2028}\"]}", "begins or ends with a blank"),
            ("{\"old_tags\": [], \"new_tags\": [\"\u{a0}x\"]}", "begins or ends with a blank"),
        ] {
            let error = TagOrder::parse(body.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{body}: {error}");
        }
        let kept = r#"{"old_tags": ["a&b"], "new_tags": ["a&b", "manual:x"]}"#;
        assert_eq!(TagOrder::parse(kept.as_bytes()).unwrap().new_tags.len(), 2, "an old tag may stay");
    }
}
