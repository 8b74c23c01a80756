//! `backy find [-r SPEC]`: prints the path of each revision's image, one absolute path on each line.
//!
//! What is printed is fed to `dd`, `rbd import` and the like, so it is the path of a file with exactly the bytes of the
//! image, or nothing. Our own revisions are such a file only below a mount.

use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use backy_store::select;
use backy_store::{BackendType, Job, Revision};
use clap::Args;
use serde_json::json;

use super::{Context, id_list, revisions};
use crate::failure::{Outcome, Result, refused};
use crate::output::{json, terminal};

/// Prints the path of each revision's image, where it is a file: in a mount, or as a raw image of the original; or its id.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The revisions
    #[arg(short, long, value_name = "SPEC", default_value = "latest", allow_hyphen_values = true)]
    revision: String,
    /// Print ids instead of paths
    #[arg(long)]
    uuid: bool,
    /// Print ids and paths as JSON
    #[arg(long, conflicts_with = "uuid")]
    json: bool,
}

/// Prints a line for each selected revision.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    let job = context.job()?;
    let selected = select::select(&arguments.revision, &revisions(&job)?, &context.zone)?;
    if arguments.json {
        return print_json(&job, &selected);
    }
    let mut text = Vec::new();
    let mut without = Vec::new();
    for revision in &selected {
        if arguments.uuid {
            text.extend_from_slice(revision.id.as_str().as_bytes());
        } else if let Some(path) = image_path(&job, revision) {
            text.extend_from_slice(path.as_os_str().as_bytes());
        } else if revision.is_local() {
            without.push(revision.clone());
            continue;
        } else {
            terminal::warn(format_args!("revision {} lies on server {}", revision.id, revision.server));
            continue;
        }
        text.push(b'\n');
    }
    terminal::print(text)?;
    if without.is_empty() {
        return Ok(Outcome::Done);
    }
    Err(refused(
        format!("the image of {} of job {} is not a file", id_list(&without), job.name()),
        "`backy mount` shows it as one, and `find` then prints its path; `backy restore` copies it, \
         `backy restore --to rbd:POOL/IMAGE` into Ceph",
    ))
}

fn print_json(job: &Job, selected: &[Revision]) -> Result {
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let entries: Vec<_> = selected
        .iter()
        .map(|revision| {
            let (image, map) = (image_path(job, revision).map(text), map_path(job, revision).map(text));
            json!({ "id": revision.id, "path": image, "map": map })
        })
        .collect();
    json::print(&json!({ "job": job.name(), "revisions": entries }))?;
    Ok(Outcome::Done)
}

/// Returns where the image is a file: the original's raw image, or in a mount of the store that nobody can write to.
fn image_path(job: &Job, revision: &Revision) -> Option<PathBuf> {
    if !revision.is_local() {
        return None;
    }
    if revision.backend_type == BackendType::Cowfile {
        return Some(real_dir(job).join(revision.id.as_str()));
    }
    let store = job.repository().root();
    let mounts = [store, job.dir()].into_iter().flat_map(backy_fuse::shown_at);
    let images = mounts.map(|mount| mount.join(job.name().as_str()).join(revision.id.as_str()).join("image"));
    let is_whole = |path: &PathBuf| {
        path.symlink_metadata().is_ok_and(|facts| facts.is_file() && Some(facts.len()) == revision.image_size)
    };
    images.into_iter().find(is_whole)
}

/// Returns where the chunk map is, ours or the original's; `None` when it is on another server, or there is none.
fn map_path(job: &Job, revision: &Revision) -> Option<PathBuf> {
    let name = match revision.backend_type {
        BackendType::Framed => format!("{}.map", revision.id),
        BackendType::Chunked => revision.id.to_string(),
        BackendType::Cowfile | BackendType::Other(_) => return None,
    };
    revision.is_local().then(|| real_dir(job).join(name))
}

fn real_dir(job: &Job) -> PathBuf {
    job.dir().canonicalize().unwrap_or_else(|_| job.dir().to_owned())
}
