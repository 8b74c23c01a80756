//! A disk as a power loss leaves it, after strict POSIX: the content of a file is certain after `fsync` of the
//! file, a name (or its removal) after `fsync` of its directory, everything after `syncfs`. All else may or may
//! not be there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use std::os::unix::fs::PermissionsExt;

/// One recorded change; paths are relative to the store.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Nothing,
    Create(PathBuf),
    MakeDir(PathBuf),
    Write(PathBuf, Option<u64>, Vec<u8>),
    SetLen(PathBuf, u64),
    Rename(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Unlink(PathBuf),
    SyncFile(PathBuf),
    SyncDir(PathBuf),
    SyncFileSystem,
}

/// What is lost of what was not synced.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Loss {
    /// All of it: content and names.
    Unsynced,
    /// The content, but names stay: files are empty, as after delayed allocation.
    ContentOnly,
    /// None of it: everything reached the disk in time.
    Nothing,
    /// Each name and each content by lot; contents also in part, or as zeros.
    Random(u64),
}

/// Reads a record; changes outside of the store are left out.
pub(crate) fn read_record(path: &Path, store: &Path) -> Vec<Change> {
    let text = fs::read_to_string(path).expect("the record is there");
    text.lines()
        .filter_map(|line| change(&serde_json::from_str(line).expect("a JSON object"), store))
        .collect()
}

fn change(line: &serde_json::Value, store: &Path) -> Option<Change> {
    let inside = |key: &str| {
        let path = Path::new(line[key].as_str().unwrap_or_default());
        path.strip_prefix(store).ok().map(Path::to_owned)
    };
    let path = inside("path")?;
    Some(match line["op"].as_str()? {
        "create" => Change::Create(path),
        "mkdir" => Change::MakeDir(path),
        "write" => Change::Write(path, line["offset"].as_u64(), unhex(line["data"].as_str()?)),
        "truncate" => Change::SetLen(path, line["length"].as_u64()?),
        "rename" => Change::Rename(inside("from")?, path),
        "link" => Change::Link(inside("from")?, path),
        "unlink" => Change::Unlink(path),
        "fsync" => Change::SyncFile(path),
        "fsyncdir" => Change::SyncDir(path),
        "syncfs" => Change::SyncFileSystem,
        other => panic!("unknown operation {other}"),
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).expect("a hex digit") as u8;
    text.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// A file: what a reader sees now and what is certain to be on the disk.
#[derive(Clone, Debug, Default)]
struct File {
    now: Vec<u8>,
    durable: Vec<u8>,
}

/// The store's files, now and as far as they are certain. Names lead to files as inodes do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    files: Vec<File>,
    dirs: BTreeSet<PathBuf>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
}

impl Disk {
    /// Takes a directory as completely durable. The index is left out: it is not part of the record; so are symbolic
    /// links, which only the original makes.
    pub(crate) fn of(root: &Path) -> Self {
        let mut disk = Self::default();
        disk.take(root, Path::new(""));
        disk.durable_names = disk.names.clone();
        disk
    }

    fn take(&mut self, root: &Path, inside: &Path) {
        self.dirs.insert(inside.to_owned());
        for entry in fs::read_dir(root.join(inside)).expect("a directory") {
            let entry = entry.expect("an entry");
            let path = inside.join(entry.file_name());
            let kind = entry.file_type().expect("a type");
            if kind.is_dir() && !path.ends_with(".reserve.d") {
                self.take(root, &path);
            } else if kind.is_file()
                && !entry.file_name().to_string_lossy().starts_with("index.sqlite")
                && !path.ends_with(".reserve")
            {
                let content = fs::read(entry.path()).expect("a file");
                self.names.insert(path, self.files.len());
                self.files.push(File { now: content.clone(), durable: content });
            }
        }
    }

    fn file(&mut self, path: &Path) -> Option<&mut File> {
        let number = *self.names.get(path)?;
        self.files.get_mut(number)
    }

    /// Makes one change.
    pub(crate) fn apply(&mut self, change: &Change) {
        match change {
            Change::Nothing => {}
            Change::Create(path) => {
                self.names.insert(path.clone(), self.files.len());
                self.files.push(File::default());
            }
            Change::MakeDir(path) => drop(self.dirs.insert(path.clone())),
            Change::Write(path, offset, data) => {
                if let Some(file) = self.file(path) {
                    let start = offset.map_or(file.now.len(), |offset| offset as usize);
                    file.now.resize(file.now.len().max(start + data.len()), 0);
                    file.now[start..start + data.len()].copy_from_slice(data);
                }
            }
            Change::SetLen(path, length) => {
                if let Some(file) = self.file(path) {
                    file.now.resize(*length as usize, 0);
                }
            }
            Change::Rename(from, to) => {
                if let Some(number) = self.names.remove(from) {
                    self.names.insert(to.clone(), number);
                }
            }
            Change::Link(from, to) => {
                if let Some(&number) = self.names.get(from) {
                    self.names.insert(to.clone(), number);
                }
            }
            Change::Unlink(path) => drop(self.names.remove(path)),
            Change::SyncFile(path) => {
                if let Some(file) = self.file(path) {
                    file.durable = file.now.clone();
                }
            }
            Change::SyncDir(dir) => {
                self.durable_names.retain(|path, _| path.parent() != Some(dir));
                let here = self.names.iter().filter(|(path, _)| path.parent() == Some(dir));
                self.durable_names.extend(here.map(|(path, number)| (path.clone(), *number)));
            }
            Change::SyncFileSystem => {
                self.files.iter_mut().for_each(|file| file.durable = file.now.clone());
                self.durable_names = self.names.clone();
            }
        }
    }

    /// What the disk holds when the power comes back; a file with two names keeps one content.
    pub(crate) fn after_power_loss(&self, loss: Loss, point: u64) -> Outcome {
        let mut lot = Lot(match loss {
            Loss::Random(seed) => seed.wrapping_mul(0x9e37_79b9) ^ point.wrapping_mul(0x85eb_ca6b_27d4_eb2f),
            _ => 0,
        });
        let contents: Vec<Vec<u8>> = self.files.iter().map(|file| content(file, loss, &mut lot)).collect();
        let all: BTreeSet<&PathBuf> = self.names.keys().chain(self.durable_names.keys()).collect();
        let survivors = all.into_iter().filter_map(|path| {
            let (now, durable) = (self.names.get(path), self.durable_names.get(path));
            let number = match loss {
                Loss::Unsynced => durable,
                Loss::ContentOnly | Loss::Nothing => now,
                Loss::Random(_) => {
                    if lot.draw(2) == 0 {
                        now
                    } else {
                        durable
                    }
                }
            };
            number.map(|&number| (path.clone(), number))
        });
        let mut names: BTreeMap<PathBuf, usize> = survivors.collect();
        self.keep_renamed(&mut names);
        let content = |(path, number): (PathBuf, usize)| (path, contents[number].clone());
        Outcome { dirs: self.dirs.clone(), files: names.into_iter().map(content).collect() }
    }

    /// A rename within a directory is made whole or not at all by every file system that a store may lie on: a file that
    /// was not removed keeps one of both names.
    fn keep_renamed(&self, names: &mut BTreeMap<PathBuf, usize>) {
        let has = |names: &BTreeMap<PathBuf, usize>, dir: Option<&Path>, number: usize| {
            names.iter().any(|(path, &other)| other == number && path.parent() == dir)
        };
        for (path, &number) in &self.durable_names {
            let is_renamed = !self.names.contains_key(path) && has(&self.names, path.parent(), number);
            if is_renamed && !has(names, path.parent(), number) {
                names.insert(path.clone(), number);
            }
        }
    }
}

fn content(file: &File, loss: Loss, lot: &mut Lot) -> Vec<u8> {
    match loss {
        Loss::Nothing => file.now.clone(),
        Loss::Unsynced | Loss::ContentOnly => file.durable.clone(),
        Loss::Random(_) if file.now == file.durable => file.now.clone(),
        Loss::Random(_) => match lot.draw(4) {
            0 => file.now.clone(),
            1 => file.durable.clone(),
            // A length that arrived before its content.
            2 => {
                let mut content = file.durable.clone();
                content.resize(file.now.len(), 0);
                content
            }
            _ => {
                let mut content = file.now.clone();
                content.truncate(lot.draw(file.now.len() as u64 + 1) as usize);
                content
            }
        },
    }
}

/// A small generator: the same losses for the same seed.
struct Lot(u64);

impl Lot {
    fn draw(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// Files that can be laid down.
pub(crate) struct Outcome {
    dirs: BTreeSet<PathBuf>,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Outcome {
    /// Makes `root` exactly this.
    pub(crate) fn write_to(&self, root: &Path) {
        drop(fs::remove_dir_all(root));
        for dir in &self.dirs {
            fs::create_dir_all(root.join(dir)).expect("a directory is made");
        }
        fs::set_permissions(root, fs::Permissions::from_mode(0o700)).expect("the mode is set");
        for (path, content) in &self.files {
            fs::write(root.join(path), content).expect("a file is written");
        }
    }
}
