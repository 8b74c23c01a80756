//! What the directory of a job holds, computed from the list of its revisions: plain data, no I/O.
//!
//! A revision is shown when its image can be read here: complete and local, of our own format or of
//! the original's. Its id is its
//! name. A link never hides a revision: a tag that is also a revision's id, or that is `last`, has no link.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use backy_store::{BackendType, JobName, Revision, RevisionId, Trust};
use serde_json::Value;

use crate::handles::DirectoryEntry;

/// The link to the newest revision.
const LAST: &str = "last";

/// A file in a revision's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RevisionFile {
    /// The disk.
    Image,
    /// What is known about the revision.
    Info,
}

impl RevisionFile {
    /// All files, in the order of a listing.
    pub(crate) const ALL: [Self; 2] = [Self::Image, Self::Info];

    /// Returns the file's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Info => "info.json",
        }
    }

    /// Returns the file with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|file| file.name() == name)
    }
}

/// One entry of a job's directory.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Entry {
    /// A directory.
    Revision(Arc<Revision>),
    /// A link to a revision's directory.
    Link(RevisionId),
}

/// The directory of one job: found in O(1) by name, listed in order.
#[derive(Debug, Default)]
pub(crate) struct JobTree {
    entries: HashMap<Arc<str>, Entry>,
    /// Revisions, oldest first, then links.
    names: Vec<Arc<str>>,
    first_link: usize,
    left_out: Vec<(RevisionId, String)>,
    /// What all who have it open read; made when the first opens it.
    listing: OnceLock<Arc<Vec<DirectoryEntry>>>,
}

impl JobTree {
    /// Computes the directory of a job from its revisions, oldest first.
    pub(crate) fn new(revisions: Vec<Arc<Revision>>) -> Self {
        let mut tree = Self::default();
        let mut links: BTreeMap<String, (bool, RevisionId)> = BTreeMap::new();
        for revision in revisions {
            if let Some(reason) = reason_to_leave_out(&revision) {
                tree.left_out.push((revision.id.clone(), reason));
                continue;
            }
            let good = revision.trust != Trust::Distrusted;
            let tags = revision.tags.iter().map(backy_store::Tag::as_str).filter(|&tag| tag != LAST);
            for name in tags.chain([LAST]) {
                match links.get_mut(name) {
                    Some((was_good, _)) if *was_good && !good => {}
                    Some(link) => *link = (good, revision.id.clone()),
                    None => drop(links.insert(name.to_owned(), (good, revision.id.clone()))),
                }
            }
            let name = Arc::from(revision.id.as_str());
            tree.add(name, Entry::Revision(revision));
        }
        tree.first_link = tree.names.len();
        for (name, (_, id)) in links {
            if !tree.entries.contains_key(name.as_str()) {
                tree.add(Arc::from(name), Entry::Link(id));
            }
        }
        tree
    }

    fn add(&mut self, name: Arc<str>, entry: Entry) {
        if self.entries.insert(Arc::clone(&name), entry).is_none() {
            self.names.push(name);
        }
    }

    /// Returns the entry of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// Returns a revision that is shown.
    pub(crate) fn revision(&self, id: &RevisionId) -> Option<&Arc<Revision>> {
        match self.get(id.as_str()) {
            Some(Entry::Revision(revision)) => Some(revision),
            _ => None,
        }
    }

    /// Returns the entries: revisions, oldest first, then links by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.names.iter().filter_map(|name| Some((&**name, self.entries.get(name)?)))
    }

    /// Returns the listing, made by `make` when nobody has asked before.
    pub(crate) fn listing(&self, make: impl FnOnce() -> Vec<DirectoryEntry>) -> Arc<Vec<DirectoryEntry>> {
        Arc::clone(self.listing.get_or_init(|| Arc::new(make())))
    }

    /// Returns the revisions that are not shown, with the reason.
    pub(crate) fn left_out(&self) -> &[(RevisionId, String)] {
        &self.left_out
    }

    /// Returns the names of the links that lead to a revision. O(links).
    pub(crate) fn links_to(&self, id: &RevisionId) -> Vec<&str> {
        let links = self.names.iter().skip(self.first_link).map(|name| &**name);
        links.filter(|name| matches!(self.get(name), Some(Entry::Link(target)) if target == id)).collect()
    }

    /// Returns the content of a revision's `info.json`: its manifest, its job, its store and its links.
    pub(crate) fn info_json(&self, job: &JobName, store: &str, revision: &Revision) -> Vec<u8> {
        let mut info = serde_json::to_value(revision).unwrap_or_default();
        if let Value::Object(keys) = &mut info {
            keys.insert("job".to_owned(), Value::from(job.as_str()));
            keys.insert("store".to_owned(), Value::from(store));
            keys.insert("links".to_owned(), Value::from(self.links_to(&revision.id)));
        }
        // A `Value` of strings, numbers and maps with text keys can always be written.
        let mut text = serde_json::to_vec_pretty(&info).unwrap_or_default();
        text.push(b'\n');
        text
    }
}

fn reason_to_leave_out(revision: &Revision) -> Option<String> {
    if !revision.is_local() {
        return Some(format!("its image lies on the server {}", revision.server));
    }
    if !revision.is_clean() {
        return Some("its backup did not finish".to_owned());
    }
    match &revision.backend_type {
        BackendType::Framed if revision.image_size.is_none() || revision.map_seal.is_none() => {
            Some("its manifest does not say how its image is kept".to_owned())
        }
        BackendType::Chunked | BackendType::Cowfile if revision.image_size.is_none() => {
            Some("its chunk map or its image is missing or damaged".to_owned())
        }
        BackendType::Framed | BackendType::Chunked | BackendType::Cowfile => None,
        BackendType::Other(kind) => Some(format!("its backend type {kind:?} is not known")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(id: &str, tags: &[&str], trust: Trust) -> Arc<Revision> {
        let json = serde_json::json!({
            "uuid": id,
            "timestamp": "2024-03-01 12:00:00+00:00",
            "stats": { "duration": 1.0 },
            "tags": tags,
            "backend_type": "framed",
            "trust": trust,
            "image_size": 5,
            "map_seal": "00",
        });
        Arc::new(serde_json::from_value(json).unwrap())
    }

    fn listing(tree: &JobTree) -> Vec<String> {
        let line = |(name, entry): (&str, &Entry)| match entry {
            Entry::Revision(_) => format!("{name}/"),
            Entry::Link(target) => format!("{name} -> {target}"),
        };
        tree.iter().map(line).collect()
    }

    #[test]
    fn links_lead_to_the_newest() {
        let tree = JobTree::new(vec![
            revision("a", &["weekly", "daily"], Trust::Trusted),
            revision("b", &["daily"], Trust::Verified),
        ]);
        assert_eq!(listing(&tree), ["a/", "b/", "daily -> b", "last -> b", "weekly -> a"]);
        assert_eq!(tree.links_to(&RevisionId::parse("b").unwrap()), ["daily", "last"]);
        assert!(listing(&JobTree::new(vec![])).is_empty());
    }

    #[test]
    fn links_avoid_distrusted_revisions_while_they_can() {
        let tree = JobTree::new(vec![
            revision("a", &["daily"], Trust::Trusted),
            revision("b", &["daily", "odd"], Trust::Distrusted),
            revision("c", &["odd"], Trust::Distrusted),
        ]);
        assert_eq!(listing(&tree), ["a/", "b/", "c/", "daily -> a", "last -> a", "odd -> c"]);
    }

    #[test]
    fn a_tag_never_takes_the_name_of_something_else() {
        let tree = JobTree::new(vec![
            revision("a", &["b", "last", "x y"], Trust::Trusted),
            revision("b", &[], Trust::Trusted),
        ]);
        assert_eq!(listing(&tree), ["a/", "b/", "last -> b", "x y -> a"]);
        let tree =
            JobTree::new(vec![revision("last", &[], Trust::Trusted), revision("z", &[], Trust::Trusted)]);
        assert_eq!(listing(&tree), ["last/", "z/"]);
    }

    #[test]
    fn what_cannot_be_read_here_is_left_out_and_named() {
        let mut unfinished = revision("a", &["daily"], Trust::Trusted);
        Arc::make_mut(&mut unfinished).stats.duration_secs = None;
        let mut remote = revision("b", &[], Trust::Trusted);
        Arc::make_mut(&mut remote).server = "other".to_owned();
        let mut old = revision("c", &[], Trust::Trusted);
        let old_revision = Arc::make_mut(&mut old);
        (old_revision.backend_type, old_revision.image_size) = (BackendType::Chunked, None);
        let mut sizeless = revision("d", &[], Trust::Trusted);
        Arc::make_mut(&mut sizeless).image_size = None;
        let tree = JobTree::new(vec![unfinished, remote, old, sizeless]);
        assert!(listing(&tree).is_empty());
        let ids: Vec<&str> = tree.left_out().iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(ids, ["a", "b", "c", "d"]);
        let mut readable = revision("e", &[], Trust::Trusted);
        Arc::make_mut(&mut readable).backend_type = BackendType::Cowfile;
        assert_eq!(listing(&JobTree::new(vec![readable])), ["e/", "last -> e"]);
    }

    #[test]
    fn ten_thousand_revisions_are_found_by_name() {
        let tree = JobTree::new(
            (0..10_000).map(|n| revision(&format!("r{n}"), &["daily"], Trust::Trusted)).collect(),
        );
        assert_eq!(tree.iter().count(), 10_002);
        assert!(tree.revision(&RevisionId::parse("r9999").unwrap()).is_some());
        assert_eq!(tree.get("last"), Some(&Entry::Link(RevisionId::parse("r9999").unwrap())));
        assert_eq!(tree.get("r10000"), None);
    }

    #[test]
    fn info_names_job_and_links_over_foreign_keys() {
        let mut odd = revision("a", &["daily"], Trust::Trusted);
        Arc::make_mut(&mut odd).extra.insert("job".to_owned(), Value::from("forged"));
        let tree = JobTree::new(vec![odd.clone()]);
        let text = tree.info_json(&JobName::parse("web01").unwrap(), "s1", &odd);
        let info: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(info["job"], "web01");
        assert_eq!(info["uuid"], "a");
        assert_eq!(info["links"], serde_json::json!(["daily", "last"]));
        assert_eq!(text.last(), Some(&b'\n'));
    }
}
