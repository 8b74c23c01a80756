//! Maps and manifests of every age and shape, made by hand.

use std::fs;
use std::path::Path;

use backy_testkit::Original;

use crate::unpack;

/// The 5 bytes `backy` as a chunk of the original, and its name.
const BACKY: (&str, &[u8]) = ("e8c78f19de0cd22a8697ca23ce389a5b", b"\xf0\0\0\0\x05\x16backy\x11\0\0");

fn add(original: &Original, id: &str, manifest: &str, map: &str) {
    let dir = original.dir();
    fs::write(dir.join(format!("{id}.rev")), manifest).expect("write a manifest");
    fs::write(dir.join(id), map).expect("write a map");
    let shard = dir.join("chunks").join(&BACKY.0[..2]);
    fs::create_dir_all(&shard).expect("make a directory");
    fs::write(shard.join(format!("{}.chunk.lzo", BACKY.0)), BACKY.1).expect("write a chunk");
}

fn restored(original: &Original, id: &str) -> Vec<u8> {
    original.run(&["restore", "-r", id, "-"]).expect(0).stdout
}

#[test]
fn manifests_of_every_age_are_read() {
    let original = unpack("vm-alpha");
    let map = format!(r#"{{"mapping": {{"0": "{}"}}, "size": 5}}"#, BACKY.0);
    let manifests = [
        // 2.0b1: JSON, one tag, seconds, an ordinary UUID; missing keys.
        (
            "0f14ae4f-25b4-4b6c-a1b1-123456789abc",
            r#"{"uuid": "0f14ae4f-25b4-4b6c-a1b1-123456789abc", "timestamp": 1425000000.5, "parent": null, "stats": {"bytes_written": 5, "duration": 1.0}, "tag": "daily", "backend_type": "chunked"}"#,
        ),
        (
            "d444444444444444444444",
            "uuid: d444444444444444444444\ntimestamp: 2016-01-01 00:00:00\nparent: ''\nstats: {duration: 2, ceph-verification: partial}\ntags: [daily, test]\nbackend_type: chunked\n",
        ),
        (
            "d555555555555555555555",
            "uuid: d555555555555555555555\ntimestamp: '2017-01-01T00:00:00+00:00'\nstats: {duration: 2}\ntags: []\nbackend_type: chunked\ntrust: verified\nlocation: ''\n",
        ),
    ];
    for (id, manifest) in manifests {
        add(&original, id, manifest, &map);
    }
    let listed = original.run(&["find", "-r", "all", "--uuid"]).expect(0);
    let ids: Vec<&str> = listed.text().lines().collect();
    assert_eq!(&ids[..3], &manifests.map(|(id, _)| id), "{listed}");
    let daily = original.run(&["find", "-r", "tag:daily", "--uuid"]).expect(0);
    assert_eq!(daily.text().lines().count(), 5, "{daily}");
    for (id, _) in manifests {
        assert_eq!(restored(&original, id), b"backy");
    }
    original.init();
    original.run(&["upgrade"]).expect(0);
    for (id, _) in manifests {
        assert_eq!(restored(&original, id), b"backy");
    }
    let status = original.run(&["status", "--yaml", "-r", manifests[1].0]).expect(0);
    for kept in ["ceph-verification: partial", "- test", "timestamp: 2016-01-01 00:00:00+00:00"] {
        assert!(status.text().contains(kept), "{status}");
    }
    original.must_restore_all("after the upgrade");
}

#[test]
fn missing_keys_are_zeros_stray_ones_nothing_and_short_ends_are_filled() {
    let name = BACKY.0;
    let original = unpack("vm-alpha");
    let manifest = |id: &str| {
        format!("uuid: {id}\ntimestamp: 2016-01-01 00:00:00\nstats: {{duration: 2}}\nbackend_type: chunked\n")
    };
    let cases = [
        // Nothing but zeros; a chunk far behind the end.
        (
            "d666666666666666666666",
            format!(r#"{{"mapping": {{"9": "{name}"}}, "size": 5000000}}"#),
            vec![0; 5_000_000],
        ),
        // The last chunk holds less than the image needs.
        ("d777777777777777777777", format!(r#"{{"mapping": {{"1": "{name}"}}, "size": 4194400}}"#), {
            let mut image = vec![0; 4_194_400];
            image[4_194_304..][..5].copy_from_slice(b"backy");
            image
        }),
        // It holds more.
        (
            "d888888888888888888888",
            format!(r#"{{"size": 3, "mapping": {{"0": "{name}"}}}}"#),
            b"bac".to_vec(),
        ),
        ("d999999999999999999999", r#"{"mapping": {}, "size": 0}"#.to_owned(), vec![]),
    ];
    let check = |when: &str| {
        for (id, _, image) in &cases {
            assert!(restored(&original, id) == *image, "{when}: {id}");
        }
    };
    for (id, map, _) in &cases {
        add(&original, id, &manifest(id), map);
    }
    check("before");
    original.run(&["verify", "-r", "all"]).expect(0);
    original.init();
    original.run(&["upgrade"]).expect(0);
    check("after");
    assert!(!Path::new(&original.dir()).join(cases[0].0).exists());
    // A short chunk inside of an image is damage from its end on.
    add(
        &original,
        "aaaaaaaaaaaaaaaaaaaaaa",
        &manifest("aaaaaaaaaaaaaaaaaaaaaa"),
        &format!(r#"{{"mapping": {{"0": "{name}"}}, "size": 5000000}}"#),
    );
    original.run(&["restore", "-r", "aaaaaaaaaaaaaaaaaaaaaa", "-"]).expect(1).says("holds only 5 bytes");
}

#[test]
fn a_job_of_both_kinds_is_one_job() {
    let original = unpack("vm-cow");
    let id = "bbbbbbbbbbbbbbbbbbbbbb";
    let manifest = format!(
        "uuid: {id}\ntimestamp: 2025-01-01 00:00:00\nstats: {{duration: 2}}\nbackend_type: chunked\n"
    );
    add(&original, id, &manifest, &format!(r#"{{"mapping": {{"0": "{}"}}, "size": 5}}"#, BACKY.0));
    fs::write(original.dir().join("chunks/store"), "v2").expect("write the marker");
    assert_eq!(restored(&original, id), b"backy");
    original.must_restore_all("in a mixed job");
    original.init();
    original.run(&["upgrade"]).expect(0);
    assert_eq!(restored(&original, id), b"backy");
    original.must_restore_all("after the upgrade");
}

#[test]
fn a_conversion_of_the_original_that_was_cut_off_is_read_from_what_it_kept() {
    let original = unpack("vm-cow");
    let id = &original.revisions[1].id;
    fs::rename(original.dir().join(id), original.dir().join(format!("{id}.old"))).expect("rename");
    fs::write(original.dir().join(id), "{\"mapping\": {\"0\": \"e8").expect("write a torn map");
    original.must_restore_all("in the middle of a conversion");
    original.init();
    original.run(&["upgrade"]).expect(0);
    original.must_restore_all("after the upgrade");
    assert!(!original.dir().join(id).exists() && !original.dir().join(format!("{id}.old")).exists());
}
