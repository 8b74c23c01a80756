//! A revision: the content of one disk at one time. Its content never changes; only tags and trust may.
//! It exists once its manifest does.

pub mod order;
pub mod suspicion;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::name::Tag;
use crate::timestamp::Timestamp;

/// The alphabet of new revision ids: base 57, without characters that look alike.
const ALPHABET: &[u8; 57] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// The id of a revision. New ones are 128 random bits in base 57, 22 characters; old stores have UUIDs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RevisionId(String);

impl RevisionId {
    /// Checks an id read from outside: 1 to 64 of `A-Z a-z 0-9 _ -`, beginning with a letter or digit.
    pub fn parse(id: &str) -> Result<Self> {
        let bad = |reason| Err(Error::NameInvalid { kind: "revision id", name: id.to_owned(), reason });
        if id.is_empty() || id.len() > 64 {
            return bad("it must have 1 to 64 characters");
        }
        if !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)) {
            return bad("only letters, digits, '_' and '-' are allowed");
        }
        if !id.as_bytes()[0].is_ascii_alphanumeric() {
            return bad("it must begin with a letter or a digit");
        }
        Ok(Self(id.to_owned()))
    }

    /// Makes the id of 128 bits, most significant digit first, padded to 22 characters.
    pub fn from_bits(mut bits: u128) -> Self {
        let mut text = [ALPHABET[0]; 22];
        for place in text.iter_mut().rev() {
            *place = ALPHABET[(bits % 57) as usize];
            bits /= 57;
        }
        Self(text.iter().map(|&byte| char::from(byte)).collect())
    }

    /// Makes a new random id.
    pub fn random() -> Result<Self> {
        Ok(Self::from_bits(u128::from_le_bytes(crate::fs::disk::random_bytes()?)))
    }

    /// Whether it has the form of those that [`RevisionId::random`] makes.
    pub fn is_random(&self) -> bool {
        self.0.len() == 22 && self.0.bytes().all(|byte| ALPHABET.contains(&byte))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RevisionId {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl From<RevisionId> for String {
    fn from(id: RevisionId) -> String {
        id.0
    }
}

impl fmt::Display for RevisionId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&self.0)
    }
}

/// How far a revision's integrity is believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    /// New, no reason for doubt.
    #[default]
    Trusted,
    /// Read back completely and found good at some time.
    Verified,
    /// Possibly damaged: no base for a differential backup, does not count as kept.
    Distrusted,
}

impl Trust {
    /// Returns the word that manifests and tables use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trusted => "trusted",
            Self::Verified => "verified",
            Self::Distrusted => "distrusted",
        }
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.as_str())
    }
}

/// How a revision's image is kept: the manifest's `backend_type`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum BackendType {
    /// Our own: a sealed map of chunks of frames.
    Framed,
    /// The original's chunk store.
    Chunked,
    /// The original's raw image file; also what a missing key means.
    Cowfile,
    /// Something else, for instance the empty text of a revision that lies on another server.
    Other(String),
}

impl From<String> for BackendType {
    fn from(text: String) -> Self {
        match text.as_str() {
            "framed" => Self::Framed,
            "chunked" => Self::Chunked,
            "cowfile" => Self::Cowfile,
            _ => Self::Other(text),
        }
    }
}

impl From<BackendType> for String {
    fn from(kind: BackendType) -> String {
        match kind {
            BackendType::Framed => "framed".to_owned(),
            BackendType::Chunked => "chunked".to_owned(),
            BackendType::Cowfile => "cowfile".to_owned(),
            BackendType::Other(text) => text,
        }
    }
}

/// What a backup run measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Bytes of the image that the run read from the source and handed to the store.
    #[serde(default)]
    pub bytes_written: u64,
    /// Length of the run in seconds. Its presence is what marks a revision complete.
    #[serde(default, rename = "duration", skip_serializing_if = "Option::is_none")]
    pub duration_secs: Option<f64>,
    /// Keys of other programs and versions, kept as they are.
    #[serde(flatten)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// One revision: all that its manifest says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Revision {
    /// The revision's id.
    #[serde(rename = "uuid")]
    pub id: RevisionId,
    /// Start of the backup.
    pub timestamp: Timestamp,
    /// The revision before, for information.
    #[serde(default)]
    pub parent: Option<String>,
    /// Its place among the revisions that the job has made (see [`order`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<order::Sequence>,
    /// What the run measured.
    #[serde(default)]
    pub stats: Stats,
    /// The tags, sorted.
    #[serde(default)]
    pub tags: BTreeSet<Tag>,
    /// How the image is kept.
    #[serde(default = "cowfile")]
    pub backend_type: BackendType,
    /// How far it is believed.
    #[serde(default)]
    pub trust: Trust,
    /// The tags last seen on the server that owns the revision; empty for local ones.
    #[serde(default)]
    pub orig_tags: BTreeSet<Tag>,
    /// Empty for local revisions, else the peer's name.
    #[serde(default)]
    pub server: String,
    /// Size of the image in bytes; `None` in old manifests, which do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_size: Option<u64>,
    /// Seal of the chunk map, 64 hex digits; only for `framed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map_seal: Option<String>,
    /// Bytes of the image that are in chunks, not in holes; `None` where the manifest does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_bytes: Option<u64>,
    /// Bytes that this revision added to the store, compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<u64>,
    /// Facts about the source: type, name, size, times, mode of the run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub source: BTreeMap<String, serde_json::Value>,
    /// Keys of other programs and versions, kept as they are.
    #[serde(flatten)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

fn cowfile() -> BackendType {
    BackendType::Cowfile
}

impl Revision {
    /// Whether the run that made it came to its end.
    pub fn is_clean(&self) -> bool {
        self.stats.duration_secs.is_some()
    }

    /// Whether its image lies on this server.
    pub fn is_local(&self) -> bool {
        self.server.is_empty()
    }

    /// Whether its chunks lie in this server's store, in our own format.
    pub fn has_chunks(&self) -> bool {
        self.backend_type == BackendType::Framed && self.is_local()
    }

    /// Whether a new revision can be made from it: complete, with chunks, and not doubtful.
    pub fn is_fit_as_base(&self) -> bool {
        self.has_chunks() && self.is_clean() && self.trust != Trust::Distrusted
    }

    /// Whether it lies on another server, which does not know yet that its tags were changed here.
    pub fn is_pending(&self) -> bool {
        !self.is_local() && self.tags != self.orig_tags
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_twenty_two_digits_of_base_57() {
        assert_eq!(RevisionId::from_bits(0).as_str(), "2222222222222222222222");
        assert_eq!(RevisionId::from_bits(57).as_str(), "2222222222222222222232");
        assert_eq!(RevisionId::from_bits(u128::MAX).as_str().len(), 22);
        assert_ne!(RevisionId::random().unwrap(), RevisionId::random().unwrap());
        for id in ["", "-a", "a/b", "a.b", "..", &"a".repeat(65)] {
            assert!(RevisionId::parse(id).is_err(), "{id:?}");
        }
        assert!(RevisionId::parse("0f14ae4f-25b4-4b6c-a1b1-123456789abc").is_ok());
    }
}
