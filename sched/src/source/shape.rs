//! What a source looks like, and whether it still looks like the disk that was backed up before.
//!
//! A backup of an empty, cut off, wiped or swapped disk is as exact as any other, so nothing else would notice: with
//! time the good revisions expire, and only copies of nothing are left. So every revision records the shape of its source:
//! its size, how much of it is data, what identifies the device ([`Identity`]), and what the disk says of itself (its
//! partition table or file system, [`Content`]). [`assess`] compares two shapes. Pure.
//!
//! What identifies a device is up to the source: [`super::Snapshot::identity`]. The content is read from the first chunk
//! as it was recorded, so it is the same for every kind of source.

use std::collections::BTreeMap;
use std::fmt;

use backy_store::Revision;
use serde_json::{Value, json};

use super::content::Content;

/// Below this part of its former size a source that is no disk has been cut off: three quarters, in percent.
const SHRUNK_PERCENT: u64 = 75;
/// Below this part of its former data a source has lost them, in percent.
const VANISHED_PERCENT: u64 = 10;
/// The mark of a device that also a new copy of the same disk would have: it counts only where the content does not show
/// that it is the same disk.
const BACKING_FILE: &str = "backing-file";

/// What identifies a device, as far as the system tells. Marks that are missing say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `file`, `block-device`, `rbd`.
    pub kind: String,
    /// Name -> value, for instance `serial`.
    pub marks: BTreeMap<String, String>,
}

/// What a source looks like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Size of the image.
    pub size_bytes: u64,
    /// Bytes of it that are not in holes; `None` when that is not known.
    pub data_bytes: Option<u64>,
    /// What identifies the device; `None` in revisions that do not say.
    pub identity: Option<Identity>,
    /// What the disk says of itself; `None` when that is not known.
    pub content: Option<Content>,
}

impl Shape {
    /// The shape that a revision records; `None` when it does not even know its size.
    pub fn of(revision: &Revision) -> Option<Self> {
        let recorded = revision.source.get("identity").and_then(Value::as_object);
        let text = |key: &str| recorded?.get(key)?.as_str().map(str::to_owned);
        let marks = recorded.and_then(|recorded| recorded.get("device")?.as_object());
        let marks = marks.into_iter().flatten();
        let marks = marks.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
        Some(Self {
            size_bytes: revision.image_size?,
            data_bytes: revision.data_bytes,
            identity: text("kind").map(|kind| Identity { kind, marks: marks.collect() }),
            content: text("content").map(|kind| Content { kind, id: text("content_id") }),
        })
    }

    /// What of it is recorded in the manifest beside size and data: the value of `identity`.
    pub fn to_value(&self) -> Value {
        let mut value = json!({});
        if let Some(Identity { kind, marks }) = &self.identity {
            value["kind"] = json!(kind);
            if !marks.is_empty() {
                value["device"] = json!(marks);
            }
        }
        if let Some(content) = &self.content {
            value["content"] = json!(content.kind);
            if let Some(id) = &content.id {
                value["content_id"] = json!(id);
            }
        }
        value
    }
}

/// How a source differs from before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// It has no bytes any more.
    Emptied {
        /// What it had.
        from_bytes: u64,
    },
    /// It is smaller.
    Shrank {
        /// What it had.
        from_bytes: u64,
        /// What it has.
        to_bytes: u64,
        /// Whether it was a disk: one with a partition table or file system.
        is_disk: bool,
    },
    /// No revision is left from before it changed, and those that are left were not accepted.
    Unconfirmed,
    /// The manifests of earlier revisions cannot be read, and no other says what it was.
    Unknown,
    /// Its partition table or file system is gone.
    ContentLost {
        /// What it was.
        was: Content,
    },
    /// It has another partition table or file system.
    ContentReplaced {
        /// What it was.
        was: Content,
        /// What it is.
        is: Content,
    },
    /// It is another device.
    DeviceReplaced {
        /// Which mark differs.
        mark: String,
        /// What it was.
        was: String,
        /// What it is.
        is: String,
    },
    /// Almost all of its data are gone.
    DataVanished {
        /// How much there was.
        from_bytes: u64,
        /// How much there is.
        to_bytes: u64,
    },
}

impl Suspicion {
    /// Whether the revision is suspicious for it. A disk never shrinks by itself. Of another file that is only a little
    /// smaller a warning is enough.
    pub fn is_grave(&self) -> bool {
        match self {
            Self::Shrank { from_bytes, to_bytes, is_disk } => {
                *is_disk || is_below(*to_bytes, SHRUNK_PERCENT, *from_bytes)
            }
            _ => true,
        }
    }
}

impl fmt::Display for Suspicion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Emptied { from_bytes } => write!(out, "it is empty and had {from_bytes} bytes"),
            Self::Unconfirmed => out
                .write_str("earlier revisions of it are suspicious, and none is left from before it changed"),
            Self::Unknown => out.write_str(
                "it cannot be compared: the manifests of earlier revisions are damaged, and no other is left",
            ),
            Self::Shrank { from_bytes, to_bytes, .. } => {
                write!(out, "it shrank from {from_bytes} to {to_bytes} bytes")
            }
            Self::ContentLost { was } => write!(out, "it has lost its {was}"),
            Self::ContentReplaced { was, is } => write!(out, "it has another {is} instead of its {was}"),
            Self::DeviceReplaced { mark, was, is } => {
                write!(out, "it is another device: its {mark} is {is} and was {was}")
            }
            Self::DataVanished { from_bytes, to_bytes } => {
                write!(out, "its data fell from {from_bytes} to {to_bytes} bytes")
            }
        }
    }
}

/// Whether `part` is less than so many percent of `whole`.
fn is_below(part: u64, percent: u64, whole: u64) -> bool {
    u128::from(part) * 100 < u128::from(whole) * u128::from(percent)
}

/// Returns in what a source differs from the disk that it was, `before`. Growth, more data, a new partition table on a
/// disk that had none, and whatever changes inside of file systems are normal.
pub fn assess(before: &Shape, now: &Shape) -> Vec<Suspicion> {
    let (from_bytes, to_bytes) = (before.size_bytes, now.size_bytes);
    if to_bytes == 0 {
        return if from_bytes > 0 { vec![Suspicion::Emptied { from_bytes }] } else { Vec::new() };
    }
    let mut found = Vec::new();
    if to_bytes < from_bytes {
        let is_disk = before.content.as_ref().is_some_and(|content| !content.is_nothing());
        found.push(Suspicion::Shrank { from_bytes, to_bytes, is_disk });
    }
    found.extend(assess_content(before.content.as_ref(), now.content.as_ref()));
    found.extend(assess_device(before, now));
    if let (Some(from_bytes), Some(to_bytes)) = (before.data_bytes, now.data_bytes)
        && is_below(to_bytes, VANISHED_PERCENT, from_bytes)
    {
        found.push(Suspicion::DataVanished { from_bytes, to_bytes });
    }
    found
}

fn assess_content(before: Option<&Content>, now: Option<&Content>) -> Option<Suspicion> {
    let (was, is) = (before?, now?);
    let is_same_id = was.id.is_none() || is.id.is_none() || was.id == is.id;
    match () {
        () if was.is_nothing() || (was.kind == is.kind && is_same_id) => None,
        () if is.is_nothing() => Some(Suspicion::ContentLost { was: was.clone() }),
        () => Some(Suspicion::ContentReplaced { was: was.clone(), is: is.clone() }),
    }
}

fn assess_device(before: &Shape, now: &Shape) -> Vec<Suspicion> {
    let (Some(was), Some(is)) = (&before.identity, &now.identity) else { return Vec::new() };
    let is_same_disk =
        before.content.as_ref().is_some_and(|content| content.id.is_some()) && before.content == now.content;
    let mut found = Vec::new();
    let mut differs = |mark: &str, was: &str, is: &str| {
        found.push(Suspicion::DeviceReplaced {
            mark: mark.to_owned(),
            was: was.to_owned(),
            is: is.to_owned(),
        });
    };
    if was.kind != is.kind {
        if !is_same_disk {
            differs("kind", &was.kind, &is.kind);
        }
        return found;
    }
    for (mark, was) in &was.marks {
        match is.marks.get(mark) {
            Some(is) if is != was && !(mark == BACKING_FILE && is_same_disk) => differs(mark, was, is),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests;
