//! Every difference that is told, and those that are not.

use super::*;
use crate::policy::testing;

const M: u64 = 1 << 20;

fn content(kind: &str, id: &str) -> Content {
    Content { kind: kind.to_owned(), id: (!id.is_empty()).then(|| id.to_owned()) }
}

/// A disk of 100 MiB with 50 MiB of data.
fn disk(kind: &str, marks: &[(&str, &str)], content: Content) -> Shape {
    let marks = marks.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Shape {
        size_bytes: 100 * M,
        data_bytes: Some(50 * M),
        identity: Some(Identity { kind: kind.to_owned(), marks }),
        content: Some(content),
    }
}

fn codes(before: &Shape, now: &Shape) -> Vec<String> {
    let code = |found: &Suspicion| {
        let word = match found {
            Suspicion::Emptied { .. } => "emptied",
            Suspicion::Shrank { .. } => "shrank",
            Suspicion::ContentLost { .. } => "lost",
            Suspicion::ContentReplaced { .. } => "replaced",
            Suspicion::DeviceReplaced { mark, .. } => mark.as_str(),
            Suspicion::DataVanished { .. } => "vanished",
            Suspicion::Unconfirmed => "unconfirmed",
            Suspicion::Unknown => "unknown",
        };
        if found.is_grave() { word.to_owned() } else { format!("({word})") }
    };
    assess(before, now).iter().map(code).collect()
}

#[test]
fn sizes_and_data() {
    let raw = || disk("file", &[], content("none", ""));
    for (what, size, data, expected) in [
        ("the same", 100 * M, 50 * M, &[][..]),
        ("grown", 900 * M, 500 * M, &[]),
        ("a little smaller", 99 * M, 50 * M, &["(shrank)"]),
        ("three quarters", 75 * M, 50 * M, &["(shrank)"]),
        ("less than three quarters", 75 * M - 1, 50 * M, &["shrank"]),
        ("a fraction", M, M / 2, &["shrank", "vanished"]),
        ("one byte", 1, 1, &["shrank", "vanished"]),
        ("nothing", 0, 0, &["emptied"]),
        ("a tenth of the data", 100 * M, 5 * M, &[]),
        ("less than a tenth", 100 * M, 5 * M - 1, &["vanished"]),
        ("all holes", 100 * M, 0, &["vanished"]),
    ] {
        let now = Shape { size_bytes: size, data_bytes: Some(data), ..raw() };
        assert_eq!(codes(&raw(), &now), expected, "{what}");
    }
    let partitioned = || disk("file", &[], content("gpt", "1"));
    let cut_off = Shape { size_bytes: 100 * M - 512, ..partitioned() };
    assert_eq!(codes(&partitioned(), &cut_off), ["shrank"], "a disk does not shrink by itself");
    let empty = Shape { size_bytes: 0, data_bytes: Some(0), ..raw() };
    assert!(codes(&empty, &empty).is_empty() && codes(&empty, &raw()).is_empty(), "it was empty before");
    let unknown = Shape { data_bytes: None, identity: None, content: None, ..raw() };
    assert!(codes(&unknown, &raw()).is_empty() && codes(&raw(), &unknown).is_empty());
    let largest = Shape { size_bytes: u64::MAX, data_bytes: Some(u64::MAX), ..raw() };
    assert_eq!(codes(&largest, &raw()), ["shrank", "vanished"]);
}

#[test]
fn tables_and_file_systems() {
    let with = |kind: &str, id: &str| disk("file", &[], content(kind, id));
    for (before, now, expected) in [
        (with("gpt", "A"), with("gpt", "A"), &[][..]),
        (with("gpt", "A"), with("gpt", "B"), &["replaced"]),
        (with("gpt", "A"), with("none", ""), &["lost"]),
        (with("gpt", "A"), with("mbr", "A"), &["replaced"]),
        (with("ext", "A"), with("ext", "B"), &["replaced"]),
        (with("ext", "A"), with("gpt", "B"), &["replaced"]),
        (with("mbr", ""), with("mbr", "B"), &[]),
        (with("mbr", ""), with("none", ""), &["lost"]),
        (with("none", ""), with("gpt", "B"), &[]),
    ] {
        assert_eq!(codes(&before, &now), expected, "{before:?}, {now:?}");
    }
}

#[test]
fn devices() {
    let device = |marks: &[(&str, &str)], id: &str| disk("block-device", marks, content("gpt", id));
    for (before, now, expected) in [
        (device(&[("serial", "1")], "A"), device(&[("serial", "1")], "A"), &[][..]),
        (device(&[("serial", "1")], "A"), device(&[("serial", "2")], "A"), &["serial"]),
        (device(&[("serial", "1")], "A"), device(&[("wwid", "2")], "A"), &[]),
        (device(&[("backing-file", "/a")], "A"), device(&[("backing-file", "/b")], "A"), &[]),
        (
            device(&[("backing-file", "/a")], "A"),
            device(&[("backing-file", "/b")], "B"),
            &["replaced", "backing-file"],
        ),
        (device(&[("backing-file", "/a")], ""), device(&[("backing-file", "/b")], ""), &["backing-file"]),
        (disk("file", &[], content("gpt", "A")), device(&[("serial", "1")], "A"), &[]),
        (disk("file", &[], content("gpt", "")), device(&[("serial", "1")], ""), &["kind"]),
        (
            disk("rbd", &[("image-id", "1a")], content("gpt", "A")),
            disk("rbd", &[("image-id", "2b")], content("gpt", "A")),
            &["image-id"],
        ),
    ] {
        assert_eq!(codes(&before, &now), expected, "{before:?}, {now:?}");
    }
}

#[test]
fn a_manifest_keeps_the_whole_shape() {
    for shape in [
        disk("block-device", &[("serial", "S1"), ("wwid", "naa.5")], content("ext", "A")),
        disk("file", &[], content("none", "")),
        Shape { size_bytes: 5, ..Shape::default() },
    ] {
        let mut revision = testing::revision(1, 0, "daily");
        (revision.image_size, revision.data_bytes) = (Some(shape.size_bytes), shape.data_bytes);
        revision.source.insert("identity".to_owned(), shape.to_value());
        assert_eq!(Shape::of(&revision), Some(shape));
    }
    let mut old = testing::revision(1, 0, "daily");
    old.image_size = None;
    assert_eq!(Shape::of(&old), None);
}

#[test]
fn words_name_what_was_and_what_is() {
    let before = disk("block-device", &[("serial", "S1")], content("gpt", "A"));
    let now = Shape {
        size_bytes: M,
        data_bytes: Some(0),
        ..disk("block-device", &[("serial", "S2")], content("none", ""))
    };
    let said: Vec<String> = assess(&before, &now).iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "it shrank from 104857600 to 1048576 bytes",
            "it has lost its partition table (gpt) A",
            "it is another device: its serial is S2 and was S1",
            "its data fell from 52428800 to 0 bytes",
        ]
    );
    let other = disk("block-device", &[("serial", "S1")], content("ext", "B"));
    assert_eq!(
        assess(&before, &other)[0].to_string(),
        "it has another file system (ext) B instead of its partition table (gpt) A"
    );
}
