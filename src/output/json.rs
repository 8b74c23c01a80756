//! The same data for programs. Fields may be added; none is renamed, removed or given another meaning.
//! `docs/cli.md` describes each. Times are RFC 3339 in UTC, sizes bytes, durations seconds; what is not
//! known is `null`.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::Context as _;
use backy_store::{BackendType, Revision, RevisionId, Tag, Trust};
use serde::Serialize;

use super::terminal;
use super::text::steers;

/// Prints `value` as indented JSON with a final line end.
pub(crate) fn print(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    terminal::print(format!("{}\n", harmless(&text)))
}

/// Writes characters that steer a terminal as escapes, which mean the same to a program. In JSON they are in texts only;
/// the line ends between values stay.
fn harmless(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character == '\n' || !steers(character) {
            escaped.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a string cannot fail.
            let _ = write!(escaped, "\\u{unit:04x}");
        }
    }
    escaped
}

/// One revision, wherever a listing shows one.
#[derive(Debug, Serialize)]
pub(crate) struct RevisionEntry<'r> {
    /// Its id.
    id: &'r RevisionId,
    /// Start of the backup.
    timestamp: String,
    /// Whether the backup came to its end.
    complete: bool,
    /// Size of the image.
    image_size: Option<u64>,
    /// Bytes of the image that are not in holes.
    data_bytes: Option<u64>,
    /// Bytes of the image that the backup read and handed to the store.
    bytes_written: u64,
    /// Bytes that the backup added to the store.
    stored_bytes: Option<u64>,
    /// Length of the backup.
    duration: Option<f64>,
    /// The tags, sorted.
    tags: &'r BTreeSet<Tag>,
    /// For revisions of other servers the tags that they are known to have there.
    orig_tags: &'r BTreeSet<Tag>,
    /// `trusted`, `verified` or `distrusted`.
    trust: Trust,
    /// Why it is suspicious, and not accepted; empty when it is not.
    suspicious: Vec<&'r str>,
    /// Empty for local revisions, else the peer's name.
    server: &'r str,
    /// `framed`, or `chunked` and `cowfile` in old stores.
    backend_type: &'r BackendType,
    /// The revision before, for information.
    parent: Option<&'r str>,
    /// `full`, `compared` or `incremental`.
    mode: Option<&'r str>,
}

impl<'r> From<&'r Revision> for RevisionEntry<'r> {
    fn from(revision: &'r Revision) -> Self {
        Self {
            id: &revision.id,
            timestamp: revision.timestamp.to_rfc3339(),
            complete: revision.is_clean(),
            image_size: revision.image_size,
            data_bytes: revision.data_bytes,
            bytes_written: revision.stats.bytes_written,
            stored_bytes: revision.stored_bytes,
            duration: revision.stats.duration_secs.filter(|secs| secs.is_finite()),
            tags: &revision.tags,
            orig_tags: &revision.orig_tags,
            trust: revision.trust,
            suspicious: revision.suspicions(),
            server: &revision.server,
            backend_type: &revision.backend_type,
            parent: revision.parent.as_deref().filter(|parent| !parent.is_empty()),
            mode: revision.source.get("mode").and_then(serde_json::Value::as_str),
        }
    }
}

#[cfg(test)]
mod tests {
    use backy_store::{Stats, Timestamp};

    use super::*;

    #[test]
    fn texts_that_steer_a_terminal_are_escaped_and_mean_the_same() {
        let value = serde_json::json!({ "tags": ["a\u{202e}b\u{9b}2J", "täglich"], "number": 1 });
        let text = harmless(&serde_json::to_string_pretty(&value).unwrap());
        assert!(
            text.contains("a\\u202eb\\u009b2J") && text.contains("täglich") && text.contains('\n'),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    #[test]
    fn a_revision_has_stable_fields() {
        let revision = Revision {
            id: RevisionId::from_bits(0),
            timestamp: Timestamp::from_secs(1_709_294_400).unwrap(),
            parent: Some(String::new()),
            sequence: None,
            stats: Stats { bytes_written: 7, duration_secs: Some(1.5), ..Stats::default() },
            tags: Tag::parse_list("b,a").unwrap(),
            backend_type: BackendType::Framed,
            trust: Trust::Trusted,
            orig_tags: BTreeSet::new(),
            server: String::new(),
            image_size: Some(8),
            map_seal: None,
            data_bytes: None,
            stored_bytes: None,
            source: Default::default(),
            extra: Default::default(),
        };
        let expected = "{\"id\":\"2222222222222222222222\",\"timestamp\":\"2024-03-01T12:00:00Z\",\
            \"complete\":true,\"image_size\":8,\"data_bytes\":null,\"bytes_written\":7,\"stored_bytes\":null,\"duration\":1.5,\
            \"tags\":[\"a\",\"b\"],\"orig_tags\":[],\"trust\":\"trusted\",\"suspicious\":[],\"server\":\"\",\"backend_type\":\"framed\",\"parent\":null,\"mode\":null}";
        assert_eq!(serde_json::to_string(&RevisionEntry::from(&revision)).unwrap(), expected);
    }
}
