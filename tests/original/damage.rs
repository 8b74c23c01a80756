//! Damage of the original's files: only the thing itself is affected, it is named, and the rest is read.

use std::fs;
use std::path::PathBuf;

use backy_testkit::Original;

use crate::mounted::Mount;
use crate::unpack;

/// The chunk at place 0 of the third revision of vm-alpha is not in the others.
fn own_chunk(original: &Original) -> (PathBuf, Vec<usize>) {
    let maps: Vec<serde_json::Value> = original
        .revisions
        .iter()
        .map(|revision| fs::read(original.dir().join(&revision.id)).expect("a map"))
        .map(|map| serde_json::from_slice(&map).expect("a map is JSON"))
        .collect();
    let users = |name: &str| -> Vec<usize> {
        let has = |map: &serde_json::Value| {
            map["mapping"].as_object().expect("an object").values().any(|it| it == name)
        };
        (0..maps.len()).filter(|&number| has(&maps[number])).collect()
    };
    let chunks = original.chunks().into_iter().map(|path| {
        let name = path.file_name().expect("a name").to_string_lossy().replace(".chunk.lzo", "");
        (users(&name), path)
    });
    let (users, path) = chunks.filter(|(users, _)| users.len() == 2).min().expect("a chunk of two revisions");
    (path, users)
}

fn replace(path: &PathBuf, bytes: &[u8]) {
    fs::remove_file(path).expect("remove a file");
    fs::write(path, bytes).expect("write a file");
}

#[test]
fn a_bad_chunk_affects_the_revisions_that_use_it_and_no_other() {
    let clean = unpack("vm-alpha");
    let (path, users) = own_chunk(&clean);
    let relative = path.strip_prefix(clean.base()).expect("it lies there").to_owned();
    let good = fs::read(&path).expect("a chunk");
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 4;
    let huge = [&[0xf0, 0x7f, 0xff, 0xff, 0xff], &good[5..]].concat();
    for (what, bytes) in
        [("empty", vec![]), ("flipped", flipped), ("2 GiB", huge), ("cut", good[..good.len() / 3].to_vec())]
    {
        let original = clean.copy();
        replace(&original.base().join(&relative), &bytes);
        let name = relative.file_name().expect("a name").to_string_lossy().replace(".chunk.lzo", "");
        for (number, revision) in original.revisions.iter().enumerate() {
            match original.sha256(&revision.id) {
                Ok(found) => assert!(!users.contains(&number) && found == revision.sha256, "{what} {number}"),
                Err(run) => {
                    assert!(users.contains(&number) && run.stderr.contains(&name), "{what} {number}: {run}")
                }
            }
        }
        let run = original.run(&["verify", "-r", "all"]).expect(1);
        assert_eq!(run.text().matches(" bad").count(), users.len(), "{what}: {run}");
        if let Some(mount) = Mount::new(&original) {
            assert!(original.revisions.iter().all(|revision| mount.shows(&revision.id)));
        }
        upgraded_with_damage(&original, &users, what);
    }
}

/// Upgrades a job with one bad chunk: what can be read stays, what cannot be read fails to read, and says so.
fn upgraded_with_damage(original: &Original, users: &[usize], what: &str) {
    let out = original.path("before");
    let salvage = |id: &str| {
        drop(fs::remove_file(&out));
        let run = original.run(&["restore", "--salvage", "-r", id, out.to_str().expect("a path")]).expect(1);
        let lost: Vec<String> =
            run.stderr.lines().filter(|line| line.starts_with("lost:")).map(str::to_owned).collect();
        (fs::read(&out).expect("it was written"), lost)
    };
    let ids: Vec<&str> = users.iter().map(|&number| original.revisions[number].id.as_str()).collect();
    let before: Vec<_> = ids.iter().map(|id| salvage(id)).collect();
    original.init();
    let run = original.run(&["upgrade"]).expect(1);
    for (id, before) in ids.iter().zip(before) {
        assert!(run.stderr.contains(&format!("revision {id} is distrusted")), "{what}: {run}");
        let after = salvage(id);
        assert!(after.0 == before.0, "{what}: other bytes");
        assert_eq!(after.1, before.1, "{what}");
        let status = original.run(&["status", "-r", id, "--json"]).expect(0).json();
        assert_eq!(status["revisions"][0]["trust"], "distrusted");
    }
    assert!(original.dir().join("quarantine/chunks").is_dir());
    assert!(original.chunks().is_empty(), "{what}: nothing needs the old chunks");
    for (number, revision) in
        original.revisions.iter().enumerate().filter(|(number, _)| !users.contains(number))
    {
        assert_eq!(original.sha256(&revision.id).expect("it restores"), revision.sha256, "{what} {number}");
    }
    original.run(&["verify", "-r", ids[0]]).expect(1);
    original.run(&["purge", "--now"]).expect(0);
}

#[test]
fn a_missing_map_a_broken_manifest_and_a_peers_revision_hide_nothing_else() {
    let mut original = unpack("vm-alpha");
    let (mapless, broken) = (original.revisions.remove(0), original.revisions.remove(0));
    fs::remove_file(original.dir().join(&mapless.id)).expect("remove a map");
    replace(&original.dir().join(format!("{}.rev", broken.id)), b"\xff{ no manifest");
    let note = "backend_type: ''\norig_tags: [daily]\nparent: ''\nserver: peer1\nstats: {duration: 1.5}\n\
        tags: [daily]\ntimestamp: 2024-03-01 00:00:00+00:00\ntrust: trusted\nuuid: 3333333333333333333333\n";
    fs::write(original.dir().join("3333333333333333333333.rev"), note).expect("write a manifest");
    let before = original.fingerprint();
    let run = original.run(&["status"]).expect(1);
    assert!(run.stderr.contains(&broken.id) && run.text().contains("peer1"), "{run}");
    original.must_restore_all("beside damage");
    original.run(&["restore", "-r", &mapless.id, "-"]).expect(1).says("missing");
    let run = original.run(&["verify", "-r", "local"]).expect(1);
    assert!(run.text().contains(&format!("{} bad", mapless.id)), "{run}");
    if let Some(mount) = Mount::new(&original) {
        assert!(!mount.shows(&mapless.id) && !mount.shows(&broken.id));
        assert!(original.revisions.iter().all(|revision| mount.shows(&revision.id)));
    }
    assert!(original.fingerprint() == before, "the directory changed");
    // What cannot be upgraded stays, is named, and keeps the old chunks.
    original.init();
    let chunks = original.chunks();
    let run = original.run(&["upgrade"]).expect(1);
    assert!(run.stderr.contains(&mapless.id), "{run}");
    assert_eq!(original.chunks(), chunks, "what a revision that cannot be read needs is not known");
    original.must_restore_all("after the upgrade");
    original.run(&["forget", "-r", &mapless.id]).expect(0);
    original.run(&["purge", "--now"]).expect(0);
    original.must_restore_all("after a purge");
}
