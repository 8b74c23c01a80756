//! What lies around the place of a store: stores above it, revisions below it, what shows that it was one, and whether
//! its file system can do what a store needs.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use super::MARKER;
use crate::backend::local;
use crate::error::{Error, Result};
use crate::fs::disk;
use crate::fs::lock;
use crate::repository::job::JobFile;

/// How deep revisions of another store are looked for, and in how many directories.
const DEPTH_MAX: usize = 8;
const DIRECTORIES_MAX: usize = 10_000;

/// Finds the nearest store above `path`, which need not exist.
pub(super) fn outer_store(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    // Links are followed as far as the path exists.
    let real = path.ancestors().find_map(|dir| Some((dir, dir.canonicalize().ok()?)));
    let (existing, real) = real?;
    let above: Box<dyn Iterator<Item = &Path>> = match existing == path {
        true => Box::new(real.ancestors().skip(1)),
        false => Box::new(real.ancestors()),
    };
    let mut above = above;
    above.find(|dir| dir.join(MARKER).is_file()).map(Path::to_owned)
}

/// Whether a directory looks like a store: it has the directories that nothing else has.
pub(super) fn is_like_store(dir: &Path) -> bool {
    let has_shards = || !local::is_bare(dir).unwrap_or(true);
    dir.join("writers").is_dir()
        || dir.join("chunks").is_dir() && !dir.join("chunks/store").exists() && has_shards()
}

/// Whether revisions were made in a directory without a mark: there are chunks, logs of writers, or maps of its jobs
/// beside a directory of chunks.
pub(super) fn was_used(root: &Path) -> Result<bool> {
    let holds = |dir: &Path, ours: &dyn Fn(&str) -> bool| -> Result<bool> {
        Ok(disk::list(dir)?.iter().any(|entry| entry.file_name().to_str().is_some_and(ours)))
    };
    if root.join("writers").is_dir() && holds(&root.join("writers"), &|name| name.ends_with(".refs"))? {
        return Ok(true);
    }
    let chunks = root.join("chunks");
    if !chunks.is_dir() {
        return Ok(false);
    }
    for shard in disk::list(&chunks)? {
        let is_shard = shard.file_name().len() == 2 && shard.path().is_dir();
        if is_shard && holds(&shard.path(), &|name| crate::format::name::FileName::parse(name).is_some())? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Finds a chunk map below a directory, outside of stores. What cannot be listed is passed over: it only makes a refusal
/// less likely.
pub(super) fn find_map(root: &Path) -> Option<PathBuf> {
    let mut waiting = VecDeque::from([(root.to_owned(), 0)]);
    let mut listed = 0;
    while let Some((dir, depth)) = waiting.pop_front() {
        listed += 1;
        if listed > DIRECTORIES_MAX {
            return None;
        }
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let (name, path) = (entry.file_name(), entry.path());
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_file() && name.to_str().and_then(JobFile::parse).is_some_and(|file| file.is_map()) {
                return Some(path);
            }
            let is_ours = kind.is_dir() && name != "chunks" && !path.join(MARKER).exists();
            if is_ours && depth < DEPTH_MAX {
                waiting.push_back((path, depth + 1));
            }
        }
    }
    None
}

/// The beginning of the names of the files that [`prove`] makes.
const TRIAL: &str = "trial-";

/// Whether a file is one that a creation which was cut off has left.
pub(super) fn is_trial(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(TRIAL.as_bytes())
}

/// Does in `tmp` and `chunks` of a new store what backups and purges will do there, so that a file system that cannot is
/// refused at once.
pub(super) fn prove(root: &Path) -> Result<()> {
    let name = format!("{TRIAL}{}", disk::random_name()?);
    let (from, to) = (root.join("tmp").join(&name), root.join("chunks/00").join(&name));
    let proven = (|| {
        let file = disk::create_new(&from)?;
        if !lock::try_lock(&file, &from)? {
            let reason = "a new file is locked already".to_owned();
            return Err(Error::LocksUnusable { path: from.clone(), reason });
        }
        lock::prove(&from)?;
        disk::sync_file(&file, &from)?;
        disk::rename_new(&from, &to)?;
        disk::sync_dir(&root.join("chunks/00"))
    })();
    for path in [&from, &to] {
        disk::remove(path)?;
    }
    proven
}
