//! What lies in the directories of a store, by name alone: manifests and chunk maps, in whatever folder a job was moved
//! to. Nothing is opened but directories.
//!
//! Only "not found" means that something is not there. Every other error ends the scan, and so does a directory that
//! is nested too deep: what is in it is unknown, not absent.

use std::collections::HashMap;
use std::fs::DirEntry;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Refusal, Result};
use crate::fs::disk;
use crate::name::RESERVED;
use crate::repository::job::{JobFile, job_files};
use crate::revision::RevisionId;

/// The most directories below each other that are looked into.
const DEPTH_MAX: usize = 32;

/// The files of revisions in a store.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    /// The directories that have a manifest of the revision, forgotten ones included: more than one of a copied job.
    pub(crate) manifests: HashMap<RevisionId, Vec<PathBuf>>,
    /// All chunk maps.
    pub(crate) maps: Vec<(RevisionId, PathBuf)>,
    /// Manifests without a map beside them.
    pub(crate) mapless: Vec<(RevisionId, PathBuf)>,
    /// Links at the top of the store that lead nowhere: jobs whose disk is away, most likely.
    pub(crate) dangling: Vec<PathBuf>,
}

/// Looks through all directories of the store at `root`, but for stores of their own in it.
pub(crate) fn scan(root: &Path) -> Result<Tree> {
    let mut tree = Tree::default();
    tree.add(root, 0)?;
    Ok(tree)
}

impl Tree {
    fn add(&mut self, dir: &Path, depth: usize) -> Result<()> {
        let Some(files) = unless_gone(job_files(dir))? else { return Ok(()) };
        self.add_files(dir, files);
        let Some(entries) = unless_gone(std::fs::read_dir(dir).context("list", dir))? else { return Ok(()) };
        for entry in entries {
            let entry = entry.context("list", dir)?;
            if let Some(path) = self.directory(&entry, depth)? {
                if depth == DEPTH_MAX {
                    return Err(Error::SweepRefused { refusal: Refusal::TooDeep { path } });
                }
                self.add(&path, depth + 1)?;
            }
        }
        Ok(())
    }

    fn add_files(&mut self, dir: &Path, files: Vec<(JobFile, PathBuf)>) {
        let maps: Vec<(RevisionId, PathBuf)> = files
            .iter()
            .filter_map(|(file, path)| match file {
                JobFile::Map(id) => Some((id.clone(), path.clone())),
                _ => None,
            })
            .collect();
        for (file, path) in files {
            let Some(id) = file.of_manifest() else { continue };
            if !maps.iter().any(|(map, _)| map == id) {
                self.mapless.push((id.clone(), path));
            }
            self.manifests.entry(id.clone()).or_default().push(dir.to_owned());
        }
        self.maps.extend(maps);
    }

    /// Returns the path of an entry that is to be looked into.
    fn directory(&mut self, entry: &DirEntry, depth: usize) -> Result<Option<PathBuf>> {
        let path = entry.path();
        let Some(kind) = unless_gone(entry.file_type().context("examine", &path))? else { return Ok(None) };
        // Links are followed at the top only: there they are jobs that lie on another disk.
        if depth == 0 && kind.is_symlink() {
            match std::fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => {}
                Ok(_) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.dangling.push(path);
                    return Ok(None);
                }
                Err(error) => return Err(Error::io("examine", path, error)),
            }
        } else if !kind.is_dir() {
            return Ok(None);
        }
        let name = entry.file_name();
        let is_own = depth == 0 && RESERVED.iter().any(|&own| name == own);
        if is_own {
            // Nobody makes a job here, but a directory can be moved anywhere.
            let files = unless_gone(job_files(&path))?.unwrap_or_default();
            self.add_files(&path, files);
            return Ok(None);
        }
        // The chunks of backy 2 in a job's directory: very many files, and no manifest among them.
        let is_legacy = name == "chunks" && disk::exists(&path.join("store"))?;
        // A store of its own, also one that has lost its mark: what lies in it is not this store's.
        let is_store = disk::exists(&path.join("backy.store"))?
            || disk::exists(&path.join("writers"))? && disk::exists(&path.join("chunks"))?;
        Ok((!is_legacy && !is_store).then_some(path))
    }
}

/// Turns "not found" into `None`: moved or removed since it was listed.
fn unless_gone<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => Ok(None),
        other => other.map(Some),
    }
}
