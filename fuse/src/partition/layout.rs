//! The files that stand for the parts of one disk: its partitions, then its logical volumes.

use std::sync::Arc;

use serde_json::{Value, json};

use super::probe::Probe;
use super::table::Partition;
use super::{content, lvm, table};
use crate::window::{Segment, Window};

/// Most parts of a disk that are shown.
const PARTS_MAX: usize = 1024;

/// Most pieces of a logical volume, and of all that are shown together.
pub(crate) const SEGMENTS_MAX: usize = 65_536;

/// A partition or a logical volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Name of its file: `1.img`, `vg-root.img`.
    pub(crate) file_name: Arc<str>,
    pub(crate) window: Window,
    /// What the table says about it.
    pub(crate) kind: Option<String>,
    pub(crate) label: Option<String>,
    pub(crate) uuid: Option<String>,
    /// What begins in it, where its mark is known.
    pub(crate) content: Option<&'static str>,
    /// Bytes that are not in holes of the disk; `None` where nobody has counted them.
    pub(crate) data_bytes: Option<u64>,
}

/// What a disk is divided into. At most some 3 MB; normally about 2 KB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Format of the table and bytes of its sectors.
    pub(crate) table: Option<(&'static str, u64)>,
    pub(crate) parts: Vec<Part>,
    /// What is odd, for people.
    pub(crate) findings: Vec<String>,
    /// Whether bytes could not be read that might have led to more.
    pub(crate) is_unreadable: bool,
}

/// Finds out what a disk is divided into.
pub(crate) fn read(probe: Probe<'_>) -> Layout {
    let table = table::read(&probe);
    let mut parts = Vec::new();
    let mut pieces = Vec::new();
    match &table {
        // Without a table the whole disk may be a physical volume.
        None => pieces.push(Segment { disk_offset: 0, length: probe.size_bytes() }),
        Some(table) => {
            for partition in &table.partitions {
                if add(&probe, &mut parts, || part_of_partition(&probe, partition)) {
                    pieces.push(partition.place);
                }
            }
        }
    }
    let mut segments = 0;
    for volume in lvm::read(&probe, &pieces) {
        segments += volume.segments.len();
        if segments > SEGMENTS_MAX {
            probe.note("the logical volumes have too many pieces; the rest of them is left out");
            break;
        }
        add(&probe, &mut parts, || part_of_volume(&probe, volume));
    }
    let table = table.map(|table| (table.format, table.sector_bytes));
    let is_unreadable = probe.is_unreadable();
    Layout { table, parts, findings: probe.into_findings(), is_unreadable }
}

fn part_of_partition(probe: &Probe<'_>, partition: &Partition) -> Option<Part> {
    let part = part(probe, &partition.number.to_string(), [partition.place])?;
    let (kind, label, uuid) = (partition.kind.clone(), partition.label.clone(), partition.uuid.clone());
    Some(Part { kind: Some(kind), label, uuid, ..part })
}

fn part_of_volume(probe: &Probe<'_>, volume: lvm::Volume) -> Option<Part> {
    let part = part(probe, &volume.name, volume.segments)?;
    Some(Part { uuid: volume.uuid, ..part })
}

fn part(probe: &Probe<'_>, name: &str, pieces: impl IntoIterator<Item = Segment>) -> Option<Part> {
    let window = Window::new(pieces)?;
    let first = window.pieces(0, u64::MAX).next()?;
    Some(Part {
        file_name: format!("{name}.img").into(),
        content: content::of(probe, first),
        window,
        kind: None,
        label: None,
        uuid: None,
        data_bytes: None,
    })
}

/// Adds a part, unless there is something against it; returns whether it was added.
fn add(probe: &Probe<'_>, parts: &mut Vec<Part>, part: impl FnOnce() -> Option<Part>) -> bool {
    // Before it is looked at, which costs reads.
    if parts.len() >= PARTS_MAX {
        probe.note(format!("only the first {PARTS_MAX} partitions and volumes are shown"));
        return false;
    }
    let Some(part) = part() else { return false };
    if parts.iter().any(|other| other.file_name == part.file_name) {
        probe.note(format!("there are two of the name {:?}; the first is shown", part.file_name));
        return false;
    }
    parts.push(part);
    true
}

impl Layout {
    /// Returns the part whose file has this name.
    pub(crate) fn part(&self, file_name: &str) -> Option<&Part> {
        self.parts.iter().find(|part| &*part.file_name == file_name)
    }

    /// Returns a measure of the memory that it takes.
    pub(crate) fn weight(&self) -> usize {
        1 + self.parts.iter().map(|part| 4 + part.window.pieces(0, u64::MAX).count()).sum::<usize>()
    }

    /// Returns what people may want to know, as JSON.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let part = |part: &Part| {
            let mut pieces = part.window.pieces(0, u64::MAX);
            // A volume in several pieces has no place of its own on the disk.
            let start = pieces.next().filter(|_| pieces.next().is_none()).map(|piece| piece.disk_offset);
            json!({
                "file": &*part.file_name,
                "start_bytes": start,
                "size_bytes": part.window.size_bytes(),
                "type": part.kind,
                "label": part.label,
                "uuid": part.uuid,
                "content": part.content,
            })
        };
        let facts = json!({
            "table": self.table.map(|(format, _)| format),
            "sector_size_bytes": self.table.map(|(_, bytes)| bytes),
            "parts": self.parts.iter().map(part).collect::<Vec<Value>>(),
            "findings": self.findings,
        });
        // A `Value` of texts, numbers and maps with text keys can always be written.
        let mut text = serde_json::to_vec_pretty(&facts).unwrap_or_default();
        text.push(b'\n');
        text
    }
}
