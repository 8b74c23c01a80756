//! The original's chunk map: one JSON object `{"mapping": {"<number>": "<hash>", ...}, "size": <bytes>}`, keys in any
//! order. It has no checksum; what it names is proven by the chunks themselves.
//!
//! It is read as a stream. Memory grows with the length of the file, which is bounded, and not with what it says.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::chunk::ZEROS;
use crate::error::{Error, Result};
use crate::format::layout::{IMAGE_SIZE_MAX, chunk_count};
use crate::format::{CHUNK_SIZE, ChunkId};
use crate::fs::disk;

/// A map is never larger: it would be of more than 40 TiB.
const LEN_MAX: u64 = 512 << 20;

/// Bytes at the end of the file in which the size is looked for.
const END_LEN: u64 = 64;

/// A map of the original.
#[derive(Debug)]
pub(crate) struct OldMap {
    size_bytes: u64,
    /// Numbers and names, sorted by number; some may lie past the end of the image.
    entries: Vec<(u64, [u8; 16])>,
}

fn corrupt(path: &Path, reason: impl fmt::Display) -> Error {
    Error::MapCorrupt { path: path.to_owned(), reason: reason.to_string() }
}

fn open(path: &Path) -> Result<(File, u64)> {
    let file = match disk::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(corrupt(path, "it is missing")),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(Error::io("open", path, error));
        }
        other => other.map_err(|error| corrupt(path, format_args!("it cannot be opened: {error}")))?,
    };
    let facts = file.metadata().map_err(|error| Error::io("examine", path, error))?;
    if !facts.is_file() {
        return Err(corrupt(path, "it is not a regular file"));
    }
    if facts.len() > LEN_MAX {
        return Err(corrupt(path, "it is larger than 512 MiB"));
    }
    Ok((file, facts.len()))
}

impl OldMap {
    /// Reads a map.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let (file, _) = open(path)?;
        Self::read(BufReader::with_capacity(64 << 10, file.take(LEN_MAX)))
            .map_err(|reason| corrupt(path, reason))
    }

    /// Reads a map from a stream; an error says what is wrong with it.
    pub(crate) fn read(from: impl Read) -> std::result::Result<Self, String> {
        let mut json = serde_json::Deserializer::from_reader(from);
        let (size, mut entries) = Whole
            .deserialize(&mut json)
            .and_then(|map| json.end().map(|()| map))
            .map_err(|error| format!("it is not a map: {error}"))?;
        if size > IMAGE_SIZE_MAX {
            return Err("it says an impossible size of the image".to_owned());
        }
        // Of a number that comes twice the last one counts, as in any JSON object. The sort keeps their order.
        entries.sort_by_key(|(number, _)| *number);
        entries.reverse();
        entries.dedup_by_key(|(number, _)| *number);
        entries.reverse();
        Ok(Self { size_bytes: size, entries })
    }

    /// Size of the image that a map says, mostly without reading all of it.
    pub(crate) fn read_size(path: &Path) -> Result<u64> {
        let (mut file, length) = open(path)?;
        let mut end = Vec::new();
        let read = file
            .seek(SeekFrom::Start(length.saturating_sub(END_LEN)))
            .and_then(|_| file.take(END_LEN).read_to_end(&mut end));
        read.map_err(|error| corrupt(path, format_args!("it cannot be read: {error}")))?;
        match size_at_end(&end) {
            Some(size) if size <= IMAGE_SIZE_MAX => Ok(size),
            _ => Self::open(path).map(|map| map.size_bytes),
        }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// What lies at place `number`: a chunk, or `None` for zeros.
    pub(crate) fn get(&self, number: u64) -> Option<ChunkId> {
        let at = self.entries.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        self.used(&self.entries[at])
    }

    /// The chunk of an entry, unless it is zeros or lies past the end of the image.
    fn used(&self, (number, name): &(u64, [u8; 16])) -> Option<ChunkId> {
        let is_inside = *number < chunk_count(self.size_bytes);
        (is_inside && *name != ZEROS).then(|| ChunkId::of_original(*name))
    }

    /// The first place from `number` to before `end` that is data (or, with `data` false, zeros).
    pub(crate) fn next(&self, number: u64, end: u64, data: bool) -> Option<u64> {
        let from = self.entries.partition_point(|(at, _)| *at < number);
        let mut chunks = self.entries[from..].iter().filter(|entry| self.used(entry).is_some());
        if data {
            return chunks.next().map(|(at, _)| *at).filter(|at| *at < end);
        }
        let mut zeros = number;
        for (at, _) in chunks {
            if *at != zeros {
                break;
            }
            zeros += 1;
        }
        (zeros < end).then_some(zeros)
    }

    /// The names of all chunks that it refers to, zeros and those past the end too: a purge keeps them.
    pub(crate) fn names(&self) -> impl Iterator<Item = ChunkId> + '_ {
        self.entries.iter().map(|(_, name)| ChunkId::of_original(*name))
    }

    /// The names of the chunks that the image is made of.
    pub(crate) fn used_names(&self) -> impl Iterator<Item = ChunkId> + '_ {
        self.entries.iter().filter_map(|entry| self.used(entry))
    }
}

/// Reads `"size": <digits>}` at the end of a text, behind which nothing stands but blanks.
fn size_at_end(end: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(end).ok()?.trim_end().strip_suffix('}')?;
    let (_, digits) = text.rsplit_once("\"size\":")?;
    digits.trim().parse().ok()
}

type Parsed = (u64, Vec<(u64, [u8; 16])>);

/// Reads the whole object.
struct Whole;

impl<'de> DeserializeSeed<'de> for Whole {
    type Value = Parsed;
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> std::result::Result<Parsed, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Whole {
    type Value = Parsed;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object with `mapping` and `size`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Parsed, A::Error> {
        let (mut size, mut mapping) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "size" => size = Some(map.next_value()?),
                "mapping" => mapping = Some(map.next_value_seed(Mapping)?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let missing = |key| de::Error::missing_field(key);
        Ok((size.ok_or_else(|| missing("size"))?, mapping.ok_or_else(|| missing("mapping"))?))
    }
}

/// Reads the object in it.
struct Mapping;

impl<'de> DeserializeSeed<'de> for Mapping {
    type Value = Vec<(u64, [u8; 16])>;
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> std::result::Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Mapping {
    type Value = Vec<(u64, [u8; 16])>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object of numbers and hashes")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((Number(number), Name(name))) = map.next_entry()? {
            entries.push((number, name));
        }
        Ok(entries)
    }
}

/// Makes a type that is read from a short text without a copy of it.
macro_rules! from_text {
    ($type:ident, $expected:literal, $parse:expr) => {
        impl<'de> de::Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                        out.write_str($expected)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<$type, E> {
                        $parse(text).map($type).ok_or_else(|| E::custom(concat!("expected ", $expected)))
                    }
                }
                from.deserialize_str(Text)
            }
        }
    };
}

struct Number(u64);
struct Name([u8; 16]);

fn parse_number(text: &str) -> Option<u64> {
    // No image has places that do not fit: their offset would be more than 2^60.
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| is_number && *number <= IMAGE_SIZE_MAX / CHUNK_SIZE)
}

fn parse_name(text: &str) -> Option<[u8; 16]> {
    ChunkId::parse_original(text)?.original()
}

from_text!(Number, "the number of a chunk", parse_number);
from_text!(Name, "the 32 hex digits of a chunk", parse_name);

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "079036ed9fb282a34b939164dfd0ac28";
    const Z: &str = "c72b4ba82d1f51b71c8a18195ad33fc8";

    fn read(text: &str) -> std::result::Result<OldMap, String> {
        OldMap::read(text.as_bytes())
    }

    #[test]
    fn keys_come_in_any_order_and_may_be_missing_or_too_many() {
        let text = format!(
            r#"{{"mapping": {{"4": "{A}", "3": "{Z}", "2": "{A}", "0": "{Z}", "0": "{A}", "99": "{A}"}}, "size": 18000000, "x": [1]}}"#
        );
        let map = read(&text).unwrap();
        assert_eq!(map.size_bytes(), 18_000_000);
        let data: Vec<bool> = (0..6).map(|number| map.get(number).is_some()).collect();
        assert_eq!(data, [true, false, true, false, true, false]);
        assert_eq!(map.get(99), None);
        assert_eq!(map.names().count(), 5);
        assert_eq!(map.used_names().count(), 3);
        assert_eq!(
            (map.next(0, 5, true), map.next(1, 5, true), map.next(1, 2, true)),
            (Some(0), Some(2), None)
        );
        assert_eq!(
            (map.next(0, 5, false), map.next(2, 5, false), map.next(4, 5, false)),
            (Some(1), Some(3), None)
        );
        assert_eq!(map.next(5, 9, true), None);
    }

    #[test]
    fn the_size_is_found_without_reading_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map");
        for text in [
            format!(r#"{{"mapping": {{"0": "{A}"}}, "size": 4096}}"#),
            format!("{{\"size\": 4096, \"mapping\": {{\"0\": \"{A}\"}}}}\n"),
            r#"{"mapping": {}, "size":4096}"#.to_owned(),
        ] {
            std::fs::write(&path, &text).unwrap();
            assert_eq!(OldMap::read_size(&path).unwrap(), 4096, "{text}");
        }
        std::fs::write(&path, b"").unwrap();
        assert!(matches!(OldMap::read_size(&path), Err(Error::MapCorrupt { .. })));
        assert!(matches!(OldMap::read_size(&dir.path().join("no")), Err(Error::MapCorrupt { .. })));
    }

    #[test]
    fn what_is_no_map_is_an_error() {
        for text in [
            "",
            "{",
            "[]",
            r#"{"size": 5}"#,
            r#"{"mapping": {}, "size": -1}"#,
            r#"{"mapping": {}, "size": 2305843009213693952}"#,
            r#"{"mapping": {"x": "079036ed9fb282a34b939164dfd0ac28"}, "size": 5}"#,
            r#"{"mapping": {"-1": "079036ed9fb282a34b939164dfd0ac28"}, "size": 5}"#,
            r#"{"mapping": {"0": "079036ed9fb282a34b939164dfd0ac2"}, "size": 5}"#,
            r#"{"mapping": {"0": "../../../../../../../../etc/pass"}, "size": 5}"#,
            r#"{"mapping": {"0": 5}, "size": 5}"#,
            r#"{"mapping": {}, "size": 5} x"#,
            &"[".repeat(100_000),
        ] {
            assert!(read(text).is_err(), "{text:.60}");
        }
    }
}
