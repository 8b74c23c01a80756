//! The rooms of this crate may use each other only as this table says. A new way between two of them is a decision: it
//! belongs into the table, and the front page of the crate has to stay true.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A room, and the rooms that it may use.
const ALLOWED: [(&str, &[&str]); 11] = [
    ("fs", &[]),
    ("backend", &["fs", "format"]),
    // A group is written to a file of the backend; a manifest is a revision.
    ("format", &["fs", "backend", "revision"]),
    ("revision", &["fs", "repository"]),
    ("select", &["revision"]),
    // A job opens readers and writers, and its directory may be the original's.
    ("repository", &["fs", "backend", "format", "revision", "read", "write", "maintain", "legacy"]),
    ("read", &["backend", "format", "revision", "repository", "legacy"]),
    // Damage that a backup meets is recorded; what it continues may be the original's.
    ("write", &["fs", "format", "revision", "repository", "read", "maintain", "legacy"]),
    ("restore", &["fs", "format", "revision", "repository", "read", "maintain"]),
    ("maintain", &["fs", "backend", "format", "revision", "repository", "read", "write", "legacy"]),
    ("legacy", &["fs", "format", "revision", "repository", "read", "write", "maintain"]),
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, found),
            false if path.extension().is_some_and(|end| end == "rs") => found.push(path),
            false => {}
        }
    }
}

/// Whether a file has tests only.
fn is_test(inside: &Path) -> bool {
    let name = inside.to_string_lossy();
    ["tests", "testing.rs", "fuzzing.rs", "contract.rs", "stores.rs", "memory.rs"]
        .iter()
        .any(|part| name.contains(part))
}

/// The room that the text behind `crate::` names.
fn room(text: &str) -> Option<&'static str> {
    let name = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').next()?;
    ALLOWED.iter().map(|(room, _)| *room).find(|room| *room == name)
}

#[test]
fn rooms_use_each_other_as_the_table_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let (mut used, mut wrong) = (BTreeSet::new(), Vec::new());
    for file in files {
        let inside = file.strip_prefix(&root).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
        let Some(own) = room(first.trim_end_matches(".rs")).filter(|_| !is_test(inside)) else { continue };
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for other in code.split("crate::").skip(1).filter_map(room).filter(|other| *other != own) {
            used.insert((own, other));
            let allowed = ALLOWED.iter().find(|(room, _)| *room == own).unwrap().1;
            if !allowed.contains(&other) {
                wrong.push(format!("{} uses {other}", inside.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let unused: Vec<_> = ALLOWED
        .iter()
        .flat_map(|(room, others)| others.iter().map(move |other| (*room, *other)))
        .filter(|edge| !used.contains(edge))
        .collect();
    assert!(unused.is_empty(), "the table allows what nobody does: {unused:?}");
}
