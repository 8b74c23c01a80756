//! What servers ask each other about the directories of jobs: which revisions are there, and that tags change.
//!
//! An answer of the server itself, such as "no such directory", is told apart from trouble on the way to it: notes of
//! its revisions are given up for the one and kept for the other. So a 403 or 404 counts only in the server's own
//! words; that of a proxy is trouble.
//!
//! What a server lists is taken apart here, entry by entry: only what may stand in a manifest comes out, and no more
//! than so much of it.

use std::collections::BTreeSet;
use std::fmt;

use backy_store::{JobName, RevisionId, Tag, Timestamp, Trust};
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::json;

use super::{Client, encode};
use crate::error::Result;

/// The longest list of revisions that is read.
const LIST_BYTES_MAX: u64 = 16 << 20;
/// The most revisions that a list may have.
const REVISIONS_MAX: usize = 10_000;
/// The most tags that a revision may have.
const TAGS_MAX: usize = 64;
/// The longest duration that a revision may have: thirty years.
const DURATION_SECS_MAX: f64 = 1e9;

/// What a server answers for one of its directories.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply<T> {
    /// Done, or here it is.
    Done(T),
    /// It has no such directory, or no such revision in it.
    Missing,
    /// The job is configured there: others may not change its directory.
    Active,
    /// The tags there are not the expected ones.
    Differs,
    /// It keeps the last trusted revision of a directory: nothing was changed.
    Keeps,
    /// Another run there has it locked just now.
    Busy,
}

/// The revisions of a directory on another server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RemoteList {
    /// Those that can be used, each id once.
    pub revisions: Vec<RemoteRevision>,
    /// How many entries could not.
    pub unusable: usize,
}

/// A revision as another server tells of it, as far as it means anything here.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct RemoteRevision {
    /// Its id.
    #[serde(rename = "uuid")]
    pub id: RevisionId,
    /// Start of the backup.
    pub timestamp: Timestamp,
    /// The revision before.
    #[serde(default)]
    pub parent: Option<String>,
    /// What the run measured.
    #[serde(default)]
    pub stats: RemoteStats,
    /// The tags there.
    #[serde(default)]
    pub tags: BTreeSet<Tag>,
    /// How far it is believed there.
    #[serde(default)]
    pub trust: Trust,
    /// Size of the image.
    #[serde(default)]
    pub image_size: Option<u64>,
}

/// The measures of a run on another server.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct RemoteStats {
    /// Bytes read from the source.
    #[serde(default)]
    pub bytes_written: u64,
    /// Length of the run; present when it came to its end.
    #[serde(default, rename = "duration")]
    pub duration_secs: Option<f64>,
}

impl RemoteRevision {
    /// Whether it may be written down. A number is no id that another server could be asked for: there it counts.
    fn is_usable(&self) -> bool {
        let parent = self.parent.as_deref().unwrap_or_default();
        let duration = self.stats.duration_secs.unwrap_or(0.0);
        self.tags.len() <= TAGS_MAX
            && (0.0..=DURATION_SECS_MAX).contains(&duration)
            && (parent.is_empty() || RevisionId::parse(parent).is_ok())
            && !self.id.as_str().bytes().all(|byte| byte.is_ascii_digit())
    }
}

impl<'de> Deserialize<'de> for RemoteList {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        from.deserialize_seq(ListVisitor)
    }
}

struct ListVisitor;

#[derive(Deserialize)]
#[serde(untagged)]
enum Item {
    Revision(Box<RemoteRevision>),
    Other(IgnoredAny),
}

impl<'de> Visitor<'de> for ListVisitor {
    type Value = RemoteList;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a list of revisions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<RemoteList, A::Error> {
        let (mut list, mut seen) = (RemoteList::default(), BTreeSet::new());
        while let Some(item) = items.next_element::<Item>()? {
            if list.revisions.len() + list.unusable >= REVISIONS_MAX {
                return Err(serde::de::Error::custom(format!(
                    "it lists more than {REVISIONS_MAX} revisions"
                )));
            }
            match item {
                Item::Revision(one) if one.is_usable() && seen.insert(one.id.clone()) => {
                    list.revisions.push(*one)
                }
                Item::Revision(_) | Item::Other(_) => list.unusable += 1,
            }
        }
        Ok(list)
    }
}

impl Client {
    /// Returns the names of the server's dead directories.
    pub fn backups(&self) -> Result<Vec<String>> {
        self.get("/v1/backups")
    }

    /// Tells the server that a directory is still wanted.
    pub fn touch(&self, job: &JobName) -> Result<Reply<()>> {
        let (status, text) = self.post(&format!("{}/touch", path(job)))?;
        self.reply(status, &text)
    }

    /// Lets the server's next purge come soon.
    pub fn purge(&self, job: &JobName) -> Result<Reply<()>> {
        let (status, text) = self.post(&format!("{}/purge", path(job)))?;
        self.reply(status, &text)
    }

    /// Returns the complete revisions whose images are on the server.
    pub fn revisions(&self, job: &JobName) -> Result<Reply<RemoteList>> {
        let request = self.agent.get(format!("{}{}/revs?only_clean=1", self.peer.url, path(job)));
        let answer = self.with_headers(request).call();
        let (status, text) = self.read_within(answer, self.answer_bytes.min(LIST_BYTES_MAX))?;
        match self.reply(status, &text)? {
            Reply::Done(()) => Ok(Reply::Done(self.parse(&text)?)),
            Reply::Missing => Ok(Reply::Missing),
            Reply::Active => Ok(Reply::Active),
            Reply::Differs => Ok(Reply::Differs),
            Reply::Keeps => Ok(Reply::Keeps),
            Reply::Busy => Ok(Reply::Busy),
        }
    }

    /// Replaces the tags of a revision if they are `old`; with `autoremove` the server forgets it when there are no new ones.
    pub fn set_tags(
        &self,
        job: &JobName,
        id: &RevisionId,
        old: &BTreeSet<Tag>,
        new: &BTreeSet<Tag>,
        autoremove: bool,
    ) -> Result<Reply<()>> {
        let body = json!({ "old_tags": old, "new_tags": new }).to_string();
        let (autoremove, id) = (u8::from(autoremove), encode(id.as_str()));
        let url = format!("{}{}/revs/{id}/tags?autoremove={autoremove}", self.peer.url, path(job));
        let request = self.with_headers(self.agent.put(url)).content_type("application/json");
        let (status, text) = self.read(request.send(body.as_bytes()))?;
        self.reply(status, &text)
    }

    fn reply(&self, status: u16, text: &[u8]) -> Result<Reply<()>> {
        let own_words = text.starts_with(format!("{status}: ").as_bytes());
        match status {
            200..300 => Ok(Reply::Done(())),
            404 if own_words => Ok(Reply::Missing),
            403 if own_words => Ok(Reply::Active),
            409 if own_words => Ok(Reply::Keeps),
            412 if own_words => Ok(Reply::Differs),
            503 if own_words => Ok(Reply::Busy),
            _ => Err(self.refused(status, text)),
        }
    }
}

fn path(job: &JobName) -> String {
    format!("/v1/backups/{}", encode(job.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, rest: &str) -> String {
        format!("{{\"uuid\": \"{id}\", \"timestamp\": \"2024-03-01T02:00:00+00:00\"{rest}}}")
    }

    fn list(entries: &[String]) -> serde_json::Result<RemoteList> {
        serde_json::from_str(&format!("[{}]", entries.join(",")))
    }

    #[test]
    fn only_what_may_stand_in_a_manifest_comes_out() {
        let good = entry("a", ", \"stats\": {\"duration\": 1.5}, \"tags\": [\"b\", \"a\"], \"extra\": [[1]]");
        let many_tags: Vec<String> = (0..=TAGS_MAX).map(|number| format!("\"t{number}\"")).collect();
        let bad = [
            entry("../x", ""),
            entry("", ""),
            entry("12", ""),
            entry("b", ", \"tags\": [\"a/b\"]"),
            entry("b", ", \"tags\": [\"a\\nb\"]"),
            entry("b", &format!(", \"tags\": [{}]", many_tags.join(","))),
            entry("b", ", \"stats\": {\"duration\": -1}"),
            entry("b", ", \"stats\": {\"duration\": 1e300}"),
            entry("b", ", \"stats\": {\"bytes_written\": -1}"),
            entry("b", ", \"parent\": \"a\\u001bb\""),
            entry("b", ", \"trust\": \"blind\""),
            entry("a", ", \"tags\": []"),
            "{\"uuid\": \"c\", \"timestamp\": 1e300}".to_owned(),
            "7".to_owned(),
            "null".to_owned(),
            "[]".to_owned(),
        ];
        let all = [std::slice::from_ref(&good), &bad].concat();
        let found = list(&all).unwrap();
        assert_eq!((found.revisions.len(), found.unusable), (1, bad.len()), "{found:?}");
        assert_eq!((found.revisions[0].id.as_str(), found.revisions[0].tags.len()), ("a", 2));
        assert!(serde_json::from_str::<RemoteList>("{}").is_err());
    }

    #[test]
    fn a_list_has_an_end() {
        let entries: Vec<String> =
            (0..REVISIONS_MAX).map(|number| entry(&format!("r{number}"), "")).collect();
        assert_eq!(list(&entries).unwrap().revisions.len(), REVISIONS_MAX);
        let error = list(&[entries, vec!["0".to_owned()]].concat()).unwrap_err();
        assert!(error.to_string().contains("more than 10000 revisions"), "{error}");
    }
}
