//! Extended attributes: what is known about a revision, for tools that have a file of it and nothing else. Pure.

use backy_store::{JobName, Revision};

/// What all names begin with.
const PREFIX: &str = "user.backy.";

/// Returns the attributes of everything that belongs to a revision: names without [`PREFIX`], and values.
fn all(job: &JobName, revision: &Revision) -> Vec<(&'static str, String)> {
    let tags: Vec<&str> = revision.tags.iter().map(backy_store::Tag::as_str).collect();
    let mut attributes = vec![
        ("id", revision.id.to_string()),
        ("job", job.to_string()),
        ("source", serde_json::to_string(&revision.source).unwrap_or_default()),
        ("tags", tags.join(",")),
        ("timestamp", revision.timestamp.to_rfc3339()),
        ("trust", revision.trust.as_str().to_owned()),
    ];
    attributes.extend(revision.image_size.map(|size| ("size", size.to_string())));
    attributes
}

/// Returns the names as the kernel wants them: each closed by a zero byte.
pub(crate) fn names(job: &JobName, revision: &Revision) -> Vec<u8> {
    all(job, revision).iter().flat_map(|(name, _)| format!("{PREFIX}{name}\0").into_bytes()).collect()
}

/// Returns the value of an attribute.
pub(crate) fn value(job: &JobName, revision: &Revision, name: &str) -> Option<String> {
    let name = name.strip_prefix(PREFIX)?;
    all(job, revision).into_iter().find_map(|(known, value)| (known == name).then_some(value))
}
