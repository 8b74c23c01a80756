//! `backy find [-r SPEC]`: prints where revisions are kept, one absolute path on each line.

use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use backy_store::revision::select;
use backy_store::{BackendType, Job, Revision};
use clap::Args;
use serde_json::json;

use super::{Context, revisions};
use crate::failure::{Outcome, Result};
use crate::output::{json, terminal};

/// Prints the path of each revision's chunk map, or its id.
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
        let entries: Vec<_> = selected
            .iter()
            .map(|revision| {
                let path = map_path(&job, revision).map(|path| path.to_string_lossy().into_owned());
                json!({ "id": revision.id, "path": path })
            })
            .collect();
        json::print(&json!({ "job": job.name(), "revisions": entries }))?;
        return Ok(Outcome::Done);
    }
    let mut text = Vec::new();
    for revision in &selected {
        if arguments.uuid {
            text.extend_from_slice(revision.id.as_str().as_bytes());
        } else if let Some(path) = map_path(&job, revision) {
            text.extend_from_slice(path.as_os_str().as_bytes());
        } else {
            terminal::warn(format_args!("revision {} lies on server {}", revision.id, revision.server));
            continue;
        }
        text.push(b'\n');
    }
    terminal::print(text)?;
    Ok(Outcome::Done)
}

/// Returns where the map, or an old store's raw image, is; `None` when it is on another server.
fn map_path(job: &Job, revision: &Revision) -> Option<PathBuf> {
    let name = match revision.backend_type {
        BackendType::Framed => format!("{}.map", revision.id),
        BackendType::Chunked | BackendType::Cowfile | BackendType::Other(_) => revision.id.to_string(),
    };
    let dir = job.dir().canonicalize().unwrap_or_else(|_| job.dir().to_owned());
    revision.is_local().then(|| dir.join(name))
}
