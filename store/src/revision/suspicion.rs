//! Suspicious revisions: their source was not as before when they were made (empty, cut off, wiped, another disk), and
//! nobody has said yet that it is right. They are exact and can be read like all others, but retention does not take
//! them for the successors of good ones.
//!
//! What makes a source suspicious is decided by whoever reads it. The reasons lie in the manifest's `source`, as
//! `suspicious`, and move to `accepted` when somebody accepts them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Revision, RevisionId};
use crate::error::Result;
use crate::fs::lock::ManifestGuard;
use crate::repository::job::Job;
use crate::timestamp::Timestamp;

/// The key of reasons that nobody has accepted.
const SUSPICIOUS: &str = "suspicious";
/// The key of reasons that somebody has accepted.
const ACCEPTED: &str = "accepted";

/// Adds the reasons for which a source is suspicious to the facts for a manifest; as accepted ones if `accepted_at` says
/// when. No reasons add nothing.
pub fn record(source: &mut BTreeMap<String, Value>, reasons: &[String], accepted_at: Option<Timestamp>) {
    if reasons.is_empty() {
        return;
    }
    match accepted_at {
        None => source.insert(SUSPICIOUS.to_owned(), json!(reasons)),
        Some(at) => source.insert(ACCEPTED.to_owned(), accepted(&json!(reasons), at)),
    };
}

fn accepted(reasons: &Value, at: Timestamp) -> Value {
    json!({ "at": at, "reasons": reasons })
}

impl Revision {
    /// Whether its source was not as before, and nobody has accepted that.
    pub fn is_suspicious(&self) -> bool {
        self.source.get(SUSPICIOUS).is_some_and(|reasons| *reasons != json!([]))
    }

    /// Returns why it is suspicious.
    pub fn suspicions(&self) -> Vec<&str> {
        let reasons = self.source.get(SUSPICIOUS).and_then(Value::as_array);
        reasons.into_iter().flatten().filter_map(Value::as_str).collect()
    }
}

impl Job {
    /// Accepts a suspicious revision: from now on it is as good as any other. Durable when it returns.
    pub fn accept(&self, _guard: &ManifestGuard, id: &RevisionId, now: Timestamp) -> Result<()> {
        self.rewrite(id, |revision| {
            if let Some(reasons) = revision.source.remove(SUSPICIOUS) {
                revision.source.insert(ACCEPTED.to_owned(), accepted(&reasons, now));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{commit_empty_revision, new_job, now};

    #[test]
    fn a_suspicion_lasts_until_it_is_accepted() {
        let (_dir, job) = new_job("web01");
        let id = commit_empty_revision(&job, 1).id;
        let guard = job.lock_manifests().unwrap();
        let reasons = ["it is empty".to_owned()];
        job.rewrite(&id, |revision| record(&mut revision.source, &reasons, None)).unwrap();
        let made = job.revision(&id).unwrap();
        assert_eq!((made.is_suspicious(), made.suspicions()), (true, vec!["it is empty"]));
        job.accept(&guard, &id, now()).unwrap();
        job.accept(&guard, &id, now()).unwrap();
        let accepted = job.revision(&id).unwrap();
        assert!(!accepted.is_suspicious() && accepted.suspicions().is_empty());
        assert_eq!(accepted.source["accepted"]["reasons"], json!(["it is empty"]));
        let mut source = BTreeMap::new();
        record(&mut source, &[], None);
        record(&mut source, &[], Some(now()));
        assert!(source.is_empty());
        record(&mut source, &reasons, Some(now()));
        assert_eq!(source, accepted.source);
    }

    #[test]
    fn what_cannot_be_understood_is_suspicious() {
        let (_dir, job) = new_job("web01");
        let mut revision = commit_empty_revision(&job, 1);
        for (value, expected) in [(json!([]), false), (json!("x"), true), (json!([1]), true)] {
            revision.source.insert(SUSPICIOUS.to_owned(), value.clone());
            assert_eq!(revision.is_suspicious(), expected, "{value}");
            assert!(revision.suspicions().is_empty());
        }
    }
}
