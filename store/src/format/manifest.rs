//! The manifest file: YAML with the keys of the original and a few of our own, closed by a seal.
//!
//! A manifest we write ends in a line `seal: <64 hex digits>`, the BLAKE3 of all bytes before that line. One
//! that lost its seal or does not match it is not believed. Manifests of the original have no seal and say
//! so by their `backend_type`. Owner of the crate `serde_yaml` in the store.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use crate::bounds;
use crate::error::{Error, Result};
use crate::format::id;
use crate::format::layout::IMAGE_SIZE_MAX;
use crate::revision::{BackendType, Revision, RevisionId};

/// A manifest is never larger: more is damage.
const LEN_MAX: u64 = 1 << 20;

const COMMENT: &str = "# Please use the `tags` command to change tags: a changed file is not believed.\n";
const SEAL_KEY: &str = "seal: ";

/// The comment of the original's manifests.
const OLD_COMMENT: &str = "# Please use the `backy tags` subcommand to edit tags\n";

/// Returns the text of a manifest. That of a revision of the original is such as the original would write it.
pub(crate) fn to_text(revision: &Revision) -> String {
    if revision.is_old() {
        return format!("{OLD_COMMENT}{}", body(revision));
    }
    let mut text = String::from(COMMENT);
    text.push_str(&body(revision));
    let seal = id::hex(&id::seal(&[text.as_bytes()]));
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{SEAL_KEY}{seal}");
    text
}

/// One revision as YAML: keys sorted, the timestamp plain as the original has it.
fn body(revision: &Revision) -> String {
    let mut value = serde_json::to_value(revision).unwrap_or(Value::Null);
    if let (true, Value::Object(map)) = (revision.is_old(), &mut value) {
        // It was found out and is not written there.
        map.remove("image_size");
    }
    let sorted: BTreeMap<String, Value> = match value {
        Value::Object(map) => map.into_iter().collect(),
        _ => BTreeMap::new(),
    };
    let text = crate::yaml::to_string(&sorted).unwrap_or_default();
    // A text that looks like a timestamp is quoted by the emitter, but in the original's files it is one.
    let quoted = format!("timestamp: '{}'\n", revision.timestamp);
    text.replacen(&quoted, &format!("timestamp: {}\n", revision.timestamp), 1)
}

/// Returns revisions as the original's `status --yaml` prints them: a list of mappings and an empty line.
pub fn to_yaml_list(revisions: &[Revision]) -> String {
    if revisions.is_empty() {
        return "[]\n\n".to_owned();
    }
    let mut out = String::new();
    for revision in revisions {
        for (number, line) in body(revision).lines().enumerate() {
            let _ = writeln!(out, "{}{line}", if number == 0 { "- " } else { "  " });
        }
    }
    out.push('\n');
    out
}

/// Reads a manifest file; its name must carry its id.
pub(crate) fn read(path: &Path, id: &RevisionId) -> Result<Revision> {
    use std::io::Read;
    let corrupt = |reason: String| Error::ManifestCorrupt { path: path.to_owned(), reason };
    let file = crate::fs::disk::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::io("open", path, error),
        _ => corrupt(format!("it cannot be opened: {error}")),
    })?;
    let mut bytes = Vec::new();
    file.take(LEN_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| corrupt(format!("it cannot be read: {error}")))?;
    let revision = parse(&bytes).map_err(corrupt)?;
    if revision.id != *id {
        return Err(corrupt(format!("it is the manifest of revision {}", revision.id)));
    }
    Ok(revision)
}

/// Parses a manifest; an error says what is wrong with it.
pub fn parse(bytes: &[u8]) -> std::result::Result<Revision, String> {
    if bytes.len() as u64 > LEN_MAX {
        return Err("it is larger than 1 MiB".to_owned());
    }
    if bytes.is_empty() {
        return Err("it is empty".to_owned());
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let sealed = check_seal(text)?;
    bounds::check(text)?;
    let mut revision: Revision =
        serde_yaml::from_str(text).map_err(|error| format!("it is not a manifest: {error}"))?;
    revision.extra.remove("seal");
    if revision.is_old() {
        // The original does not write it: it is found out.
        revision.image_size = None;
    }
    if let Some(Value::String(tag)) = revision.extra.get("tag")
        && revision.tags.is_empty()
    {
        // The first versions of the original knew one tag.
        revision.tags = crate::Tag::parse_list(tag).map_err(|error| error.to_string())?;
        revision.extra.remove("tag");
    }
    if revision.backend_type == BackendType::Framed {
        if !sealed {
            return Err("its seal is missing".to_owned());
        }
        let size = revision.image_size.ok_or("it does not say the size of the image")?;
        if size > IMAGE_SIZE_MAX {
            return Err("it says an impossible size of the image".to_owned());
        }
        revision.map_seal.as_deref().and_then(id::parse_hex).ok_or("it does not hold the seal of its map")?;
    }
    Ok(revision)
}

/// Whether the text is sealed; an error when the seal is not its own.
fn check_seal(text: &str) -> std::result::Result<bool, String> {
    let body_end = text.trim_end_matches('\n').rfind('\n').map_or(0, |at| at + 1);
    let (body, last) = text.split_at(body_end);
    let Some(seal) = last.strip_prefix(SEAL_KEY) else { return Ok(false) };
    if id::parse_hex(seal.trim_end_matches('\n')) == Some(id::seal(&[body.as_bytes()])) {
        Ok(true)
    } else {
        Err("it does not have the seal it carries: it was changed or damaged".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{Stats, Tag, Timestamp, Trust};

    fn sample() -> Revision {
        Revision {
            id: RevisionId::parse("46mWHmKy2XP3TQwrjbnd9F").unwrap(),
            timestamp: Timestamp::from_micros(1_709_294_400_500_000).unwrap(),
            parent: None,
            sequence: None,
            stats: Stats { bytes_written: 5, duration_secs: Some(1.5), extra: BTreeMap::new() },
            tags: BTreeSet::from([Tag::parse("daily").unwrap(), Tag::parse("manual:a: b # c").unwrap()]),
            backend_type: BackendType::Framed,
            trust: Trust::Trusted,
            orig_tags: BTreeSet::new(),
            server: String::new(),
            image_size: Some(5),
            map_seal: Some("ab".repeat(32)),
            data_bytes: None,
            stored_bytes: Some(3),
            source: BTreeMap::from([("type".to_owned(), Value::from("file"))]),
            extra: BTreeMap::from([("note".to_owned(), Value::from("kept"))]),
        }
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written_unknown_keys_too() {
        let text = to_text(&sample());
        assert!(text.contains("\ntimestamp: 2024-03-01 12:00:00.500000+00:00\n"), "{text}");
        assert_eq!(parse(text.as_bytes()).unwrap(), sample());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let text = to_text(&sample()).into_bytes();
        for bit in 0..text.len() * 8 {
            let mut bad = text.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            if let Ok(revision) = parse(&bad) {
                assert_eq!(revision, sample(), "bit {bit}");
            }
        }
        for length in 0..text.len() - 1 {
            assert!(parse(&text[..length]).is_err(), "cut to {length}");
        }
    }

    #[test]
    fn manifests_of_the_original_are_read_without_a_seal() {
        let text = b"backend_type: chunked\norig_tags: []\nparent: ''\nserver: ''\nstats:\n  bytes_written: 30448128\n  duration: 0.25\ntags:\n- daily\ntimestamp: 2024-03-01 02:00:00+00:00\ntrust: verified\nuuid: 46mWHmKy2XP3TQwrjbnd9F\n";
        let revision = parse(text).unwrap();
        assert_eq!(
            (revision.backend_type, revision.trust, revision.stats.bytes_written),
            (BackendType::Chunked, Trust::Verified, 30_448_128)
        );
        let single = parse(b"{uuid: a, timestamp: '2015-02-27 01:20:00', tag: daily, parent: ''}").unwrap();
        assert_eq!(single.tags, crate::Tag::parse_list("daily").unwrap());
        let oldest = parse(b"{uuid: a, timestamp: 1425000000.5, stats: {}, parent: null}").unwrap();
        assert_eq!((oldest.backend_type.clone(), oldest.is_clean()), (BackendType::Cowfile, false));
    }

    #[test]
    fn hostile_yaml_is_an_error() {
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e]\n";
        for text in [
            "",
            "[]",
            "x",
            "uuid: ../../x\ntimestamp: 0\n",
            &"[".repeat(10_000),
            // The scanner would take minutes.
            &"[".repeat(1_000_000),
            &"- [\n".repeat(200_000),
            &"{a: ".repeat(200_000),
            &"- ".repeat(400_000),
            &"? ".repeat(400_000),
            bomb,
            "uuid: a\ntimestamp: .nan\n",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text:.40}");
        }
    }
}
