//! From the description of a group to the places of its volumes. Pure.

use std::collections::{BTreeMap, HashSet};

use super::super::layout::SEGMENTS_MAX;
use super::super::probe::Probe;
use super::label::Text;
use super::text::{Section, Value, parse};
use super::{Physical, SECTOR_BYTES};
use crate::window::Segment;

/// A volume all of whose pieces are on the disk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    /// `GROUP-VOLUME`.
    pub(crate) name: String,
    /// In the order of the volume.
    pub(crate) segments: Vec<Segment>,
    pub(crate) uuid: Option<String>,
}

/// Longest name of a volume's file without its end.
const NAME_MAX_BYTES: usize = 250;

/// Why a volume is left out.
type Reason = &'static str;

/// Finds the volumes that the newest text of each group describes.
pub(in super::super) fn of_texts(probe: &Probe<'_>, texts: &[Text], physical: &Physical) -> Vec<Volume> {
    // A text takes much more memory when it is read, so only one is at a time.
    let mut groups: BTreeMap<(&str, &str), (u64, &Text)> = BTreeMap::new();
    for text in texts {
        let Some(root) = parse(&text.text) else {
            probe.note("the description of a volume group cannot be read");
            continue;
        };
        let Some((name, group)) = root.sections().next() else { continue };
        let (id, seqno) = (group.text("id").unwrap_or(""), group.number("seqno").unwrap_or(0));
        let newest = groups.entry((name, id)).or_insert((seqno, text));
        if newest.0 < seqno {
            *newest = (seqno, text);
        }
    }
    let of_text = |(_, text): &(u64, &Text)| {
        let root = parse(&text.text).unwrap_or_default();
        root.sections().next().map(|(name, group)| of_group(probe, name, group, physical)).unwrap_or_default()
    };
    groups.values().flat_map(of_text).collect()
}

fn of_group(probe: &Probe<'_>, group_name: &str, group: &Section<'_>, physical: &Physical) -> Vec<Volume> {
    let Some(volumes) = group.section("logical_volumes") else { return Vec::new() };
    let stores: HashSet<&str> = volumes
        .sections()
        .flat_map(|(_, volume)| volume.sections())
        .filter_map(|(_, segment)| segment.text("cow_store"))
        .collect();
    let extents = Extents::new(group, physical);
    let mut found = Vec::new();
    for (volume_name, volume) in volumes.sections() {
        if !volume.list("status").contains(&Value::Text("VISIBLE")) {
            continue;
        }
        let name = format!("{group_name}-{volume_name}");
        let place = match &extents {
            _ if [group_name, volume_name].iter().any(|part| !is_plain(part))
                || name.len() > NAME_MAX_BYTES =>
            {
                Err("its name cannot be that of a file")
            }
            // It has the blocks that differ from its origin, and nothing else.
            _ if stores.contains(volume_name) => Err("it is a snapshot"),
            Some(extents) => extents.of_volume(probe, volume),
            None => Err("its group has no size of extents"),
        };
        match place {
            Ok(segments) => {
                found.push(Volume { name, segments, uuid: volume.text("id").map(str::to_owned) });
            }
            Err(reason) => probe.note(format!("logical volume {name:?} is left out: {reason}")),
        }
    }
    found
}

/// Whether the name of a group or a volume is one that LVM allows.
fn is_plain(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+_.-".contains(&byte);
    name.bytes().all(is_allowed) && name.bytes().any(|byte| byte != b'.')
}

/// Where the extents of a group's physical volumes lie.
struct Extents<'a> {
    extent_bytes: u64,
    /// By its name in the text: the physical volume and the first byte of its extents in it; `None` if it is not here.
    physical: BTreeMap<&'a str, Option<(Segment, u64)>>,
}

impl<'a> Extents<'a> {
    fn new(group: &Section<'a>, known: &Physical) -> Option<Self> {
        let extent_bytes =
            group.number("extent_size")?.checked_mul(SECTOR_BYTES).filter(|&bytes| bytes > 0)?;
        let mut physical = BTreeMap::new();
        for (name, volume) in group.section("physical_volumes")?.sections() {
            let id = volume.text("id").unwrap_or("").replace('-', "");
            let begin = volume.number("pe_start").and_then(|sectors| sectors.checked_mul(SECTOR_BYTES));
            physical.entry(name).or_insert(known.get(&id).copied().zip(begin));
        }
        Some(Self { extent_bytes, physical })
    }

    /// Returns the places of a volume's segments, in the order of the volume.
    fn of_volume(&self, probe: &Probe<'_>, volume: &Section<'_>) -> Result<Vec<Segment>, Reason> {
        let mut segments: Vec<&Section<'_>> = volume.sections().map(|(_, segment)| segment).collect();
        segments.sort_by_key(|segment| segment.number("start_extent"));
        if segments.is_empty() || segments.len() > SEGMENTS_MAX {
            return Err("it has no segments, or too many");
        }
        let mut end = 0u64;
        let mut places = Vec::with_capacity(segments.len());
        for segment in segments {
            if segment.number("start_extent") != Some(end) {
                return Err("its segments do not follow each other");
            }
            let count = segment.number("extent_count").filter(|&count| count > 0);
            let count = count.ok_or("it has an empty segment")?;
            places.push(self.of_segment(segment, count)?);
            end = end.checked_add(count).ok_or("it is too large")?;
            // No two extents of a group are in the same place, so a volume is never larger than its disk. This
            // bounds the work of those who look for its holes.
            if end.checked_mul(self.extent_bytes).is_none_or(|size| size > probe.size_bytes()) {
                return Err("it is larger than the disk");
            }
        }
        Ok(places)
    }

    fn of_segment(&self, segment: &Section<'_>, count: u64) -> Result<Segment, Reason> {
        let is_linear = matches!(segment.text("type"), Some("striped" | "linear"))
            && segment.number("stripe_count").is_none_or(|stripes| stripes == 1);
        let [Value::Text(name), Value::Number(first)] = segment.list("stripes") else {
            return Err("it is not linear");
        };
        if !is_linear {
            return Err("it is not linear");
        }
        let physical = self.physical.get(name).ok_or("it is not linear")?;
        let (place, begin) = physical.ok_or("a part of it is on another disk")?;
        let in_bytes = |extents: u64| extents.checked_mul(self.extent_bytes);
        let range = || {
            let offset = begin.checked_add(in_bytes(*first)?)?;
            let length = in_bytes(count)?;
            let is_inside = offset.checked_add(length)? <= place.length;
            is_inside.then_some(Segment { disk_offset: place.disk_offset.checked_add(offset)?, length })
        };
        range().ok_or("a part of it is beyond the end of its physical volume")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group of extents of 4 KiB on two physical volumes, of which only the first is on the disk.
    fn group(seqno: u32, volumes: &str) -> Text {
        let text = format!(
            "vg {{ id = \"V\" seqno = {seqno} extent_size = 8
            physical_volumes {{ pv0 {{ id = \"A-B\" pe_start = 16 }} pv1 {{ id = \"C\" pe_start = 16 }} }}
            logical_volumes {{ {volumes} }} }}"
        );
        Text::new(&text)
    }

    fn volume(name: &str, segments: &str) -> String {
        format!("{name} {{ status = [\"READ\", \"VISIBLE\"] {segments} }}\n")
    }

    fn segment(start: u64, count: u64, kind: &str, stripes: &str) -> String {
        format!(
            "s{start} {{ start_extent = {start} extent_count = {count} type = \"{kind}\" stripes = [{stripes}] }}"
        )
    }

    /// Names of volumes, each with its pieces.
    type Found = Vec<(String, Vec<(u64, u64)>)>;

    /// Returns the volumes and the findings.
    fn found(texts: &[Text]) -> (Found, Vec<String>) {
        let probe = Probe::new(1 << 20, &|_, _| true);
        let physical = Physical::from([("AB".to_owned(), Segment { disk_offset: 1000, length: 100_000 })]);
        let volumes = of_texts(&probe, texts, &physical);
        let pieces = |volume: Volume| {
            let pieces = volume.segments.iter().map(|piece| (piece.disk_offset, piece.length)).collect();
            (volume.name, pieces)
        };
        (volumes.into_iter().map(pieces).collect(), probe.into_findings())
    }

    #[test]
    fn segments_lie_where_the_extents_do() {
        let two = segment(3, 2, "striped", "\"pv0\", 0") + &segment(0, 3, "striped", "\"pv0\", 5");
        let (volumes, findings) =
            found(&[group(1, &(volume("root", &two) + "hidden { status = [\"READ\"] }"))]);
        let extents = 1000 + 16 * 512;
        let pieces = vec![(extents + 5 * 4096, 3 * 4096), (extents, 2 * 4096)];
        assert_eq!(volumes, [("vg-root".to_owned(), pieces)]);
        assert!(findings.is_empty(), "{findings:?}");
    }

    #[test]
    fn the_newest_text_counts() {
        let text = |seqno, name| group(seqno, &volume(name, &segment(0, 1, "striped", "\"pv0\", 0")));
        let (volumes, _) = found(&[text(2, "b"), text(3, "c"), text(1, "a")]);
        assert_eq!(volumes.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["vg-c"]);
    }

    #[test]
    fn what_is_not_plain_is_left_out_and_named() {
        let of = |kind: &str, stripes: &str| segment(0, 1, kind, stripes);
        let cases = [
            (of("raid1", "\"pv0\", 0"), "not linear"),
            (of("thin-pool", ""), "not linear"),
            (of("striped", "\"pv0\", 0, \"pv0\", 9"), "not linear"),
            (of("striped", "\"pvmove0\", 0"), "not linear"),
            (of("striped", "\"pv1\", 0"), "on another disk"),
            (of("striped", "\"pv0\", 22"), "beyond the end"),
            (of("striped", "\"pv0\", 18446744073709551615"), "beyond the end"),
            (segment(0, u64::MAX, "striped", "\"pv0\", 0"), "beyond the end"),
            (segment(1, 1, "striped", "\"pv0\", 0"), "do not follow"),
            (segment(0, 0, "striped", "\"pv0\", 0"), "empty"),
            (String::new(), "no segments"),
            ((0..30).map(|n| segment(n * 20, 20, "striped", "\"pv0\", 0")).collect(), "larger than the disk"),
        ];
        for (segments, reason) in cases {
            let (volumes, findings) = found(&[group(1, &volume("x", &segments))]);
            assert!(volumes.is_empty(), "{segments}");
            assert!(findings.len() == 1 && findings[0].contains(reason), "{segments} {findings:?}");
        }
        let plain = segment(0, 1, "striped", "\"pv0\", 0");
        for name in ["a/b", "..", "..\u{1}", "\u{e4}", &"x".repeat(300)] {
            let (volumes, findings) = found(&[group(1, &volume(name, &plain))]);
            assert!(volumes.is_empty() && findings[0].contains("cannot be that of a file"), "{name}");
        }
        let store = "snapshot0 { s { type = \"snapshot\" origin = \"root\" cow_store = \"snap\" } }";
        let (volumes, findings) =
            found(&[group(1, &(volume("snap", &plain) + &volume("root", &plain) + store))]);
        assert_eq!((volumes.len(), volumes[0].0.as_str(), findings.len()), (1, "vg-root", 1));
        let broken = Text::new("vg {");
        assert_eq!(found(&[broken]).1, ["the description of a volume group cannot be read"]);
    }
}
