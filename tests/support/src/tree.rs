//! Directories: copied for a trial, and compared before and after a command that must change nothing.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Files that a command may make or change although it changes nothing: log, index, locks.
const VOLATILE: [&str; 5] = ["backy.log", ".backup", ".manifests", ".sweep", ".lock"];

/// Every file and directory below one with its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree(BTreeMap<PathBuf, Option<Vec<u8>>>);

impl Tree {
    /// Reads all of `root`, without logs, indexes and lock files. Nothing there is an empty tree.
    pub fn of(root: &Path) -> Self {
        let mut found = BTreeMap::new();
        read(root, &mut found);
        Self(found)
    }

    /// Fails the test unless `other` is the same, and says what differs.
    #[track_caller]
    pub fn must_equal(&self, other: &Self, what: &str) {
        let changed: Vec<&PathBuf> = self
            .0
            .keys()
            .chain(other.0.keys())
            .filter(|path| self.0.get(*path) != other.0.get(*path))
            .collect();
        assert!(changed.is_empty(), "{what}: changed {changed:?}");
    }
}

fn read(dir: &Path, found: &mut BTreeMap<PathBuf, Option<Vec<u8>>>) {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        entries => entries.expect("list a directory"),
    };
    for entry in entries {
        let entry = entry.expect("list a directory");
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if VOLATILE.contains(&&*name) || name.starts_with("index.sqlite") {
            continue;
        }
        let kind = entry.file_type().expect("examine a file");
        if kind.is_dir() {
            found.insert(entry.path(), None);
            read(&entry.path(), found);
        } else if kind.is_file() {
            found.insert(entry.path(), Some(fs::read(entry.path()).expect("read a file")));
        } else {
            found.insert(entry.path(), None);
        }
    }
}

/// Copies a directory, holes as holes and without the reserve of a store, which only costs room.
pub fn copy_tree(from: &Path, to: &Path) {
    copy_tree_with(from, to, &mut HashMap::new());
}

/// `links` has the copies of files with several names, by device and inode: they are one file in the copy as well.
fn copy_tree_with(from: &Path, to: &Path, links: &mut HashMap<(u64, u64), PathBuf>) {
    fs::create_dir(to).expect("make a directory");
    let mode = fs::metadata(from).expect("examine a directory").permissions();
    for entry in fs::read_dir(from).expect("list a directory") {
        let entry = entry.expect("list a directory");
        if entry.file_name().as_encoded_bytes().starts_with(b".reserve") {
            continue;
        }
        let target = to.join(entry.file_name());
        if entry.file_type().expect("examine a file").is_dir() {
            copy_tree_with(&entry.path(), &target, links);
            continue;
        }
        let metadata = entry.metadata().expect("examine a file");
        match links.entry((metadata.dev(), metadata.ino())) {
            Entry::Occupied(copy) => fs::hard_link(copy.get(), &target).expect("link a file"),
            Entry::Vacant(place) => {
                copy_file(&entry.path(), &target);
                if metadata.is_file() && metadata.nlink() > 1 {
                    place.insert(target);
                }
            }
        }
    }
    fs::set_permissions(to, mode).expect("set a mode");
}

/// Copies a file and its mode, holes as holes.
pub(crate) fn copy_file(from: &Path, to: &Path) {
    const BLOCK: usize = 64 << 10;
    static ZEROS: [u8; BLOCK] = [0; BLOCK];
    let source = fs::File::open(from).expect("open a file");
    let facts = source.metadata().expect("examine a file");
    let file = fs::File::create_new(to).expect("make a file");
    file.set_len(facts.len()).expect("set a length");
    // A block at a time: memory for a whole image would be new to the process each time, which is slow.
    let mut block = vec![0; BLOCK];
    for start in (0..facts.len()).step_by(BLOCK) {
        let length = BLOCK.min((facts.len() - start) as usize);
        source.read_exact_at(&mut block[..length], start).expect("read a file");
        if block[..length] != ZEROS[..length] {
            file.write_all_at(&block[..length], start).expect("write a file");
        }
    }
    file.set_permissions(facts.permissions()).expect("set a mode");
}
