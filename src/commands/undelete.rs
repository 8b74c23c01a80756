//! `backy undelete [-r ID]`: brings a forgotten revision back, or lists what can be brought back.

use anyhow::Context as _;
use backy_store::{Error as StoreError, Forgotten, Job, JobName, Repository, RevisionId, Zone};
use clap::Args;
use serde::Serialize;

use super::{Context, join_tags};
use crate::failure::{Outcome, Result, refused};
use crate::output::json::{self, RevisionEntry};
use crate::output::size::human_bytes;
use crate::output::table::{Column, Table};
use crate::output::terminal;
use crate::output::text::count;

/// The word for the most recently forgotten revision.
const LAST: &str = "last";

/// Brings a forgotten revision back; without -r lists what can be brought back.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The revision's id, or `last` for the most recently forgotten one
    #[arg(short, long, value_name = "ID")]
    revision: Option<String>,
    /// List as JSON
    #[arg(long, conflicts_with = "revision")]
    json: bool,
    /// Restore the lost revisions of JOB: its directory was deleted, or manifests in it are missing or damaged
    #[arg(long, value_name = "JOB", conflicts_with_all = ["revision", "json"], value_parser = JobName::parse)]
    lost: Option<JobName>,
}

/// One forgotten revision for programs.
#[derive(Serialize)]
struct ForgottenEntry<'f> {
    #[serde(flatten)]
    revision: RevisionEntry<'f>,
    forgotten_at: String,
}

/// Undeletes or lists.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    if let Some(lost) = &arguments.lost {
        return recover(&context.location()?.repository, lost);
    }
    let job = context.job()?;
    let Some(word) = &arguments.revision else {
        return list(&job, &context.zone, arguments.json);
    };
    let guard = job.lock_manifests()?;
    let id = if word == LAST {
        let newest = job.forgotten()?.into_iter().max_by_key(|forgotten| forgotten.forgotten_at);
        newest
            .ok_or_else(|| refused(format!("job {} has no forgotten revision", job.name()), ""))?
            .revision
            .id
    } else {
        RevisionId::parse(word)?
    };
    job.undelete(&guard, &id).map_err(|error| explain(error, &job, &id))?;
    tracing::info!(target: crate::logging::QUIET, revision = %id, "undeleted");
    terminal::print_line(format_args!("brought back {id}"))?;
    Ok(Outcome::Done)
}

/// A revision that was not forgotten cannot be found where all others are listed.
fn explain(error: StoreError, job: &Job, id: &RevisionId) -> anyhow::Error {
    match error {
        StoreError::RevisionUnknown { .. } => refused(
            format!("job {} has no forgotten revision {id}", job.name()),
            "`backy undelete` lists what can be brought back",
        ),
        other => anyhow::Error::from(other).context(format!("cannot bring back revision {id}")),
    }
}

/// Makes the lost revisions of a job again.
fn recover(repository: &Repository, job: &JobName) -> Result {
    let recovered = repository.recover_job(job).with_context(|| format!("cannot recover job {job}"))?;
    let is_nothing = recovered.revisions.is_empty() && recovered.repaired.is_empty();
    if is_nothing && recovered.without_manifest.is_empty() {
        return Err(refused(
            format!("nothing of job {job} is lost"),
            "`backy status` lists the jobs and revisions",
        ));
    }
    for id in &recovered.revisions {
        terminal::print_line(format_args!("brought back {id}"))?;
    }
    for id in &recovered.repaired {
        terminal::print_line(format_args!("replaced the damaged manifest of {id}"))?;
    }
    if recovered.has_config {
        terminal::print_line(format_args!("brought back the configuration of job {job}"))?;
    }
    for id in &recovered.without_manifest {
        terminal::warn(format_args!("revision {id} cannot be brought back: its manifest was not kept"));
    }
    Ok(Outcome::bad_if(!recovered.without_manifest.is_empty()))
}

/// Lists what can be brought back; also `status --forgotten`.
pub(crate) fn list(job: &Job, zone: &Zone, as_json: bool) -> Result {
    let forgotten = job.forgotten()?;
    if as_json {
        let entries: Vec<ForgottenEntry<'_>> = forgotten.iter().map(entry).collect();
        json::print(&serde_json::json!({ "job": job.name(), "forgotten": entries }))?;
        return Ok(Outcome::Done);
    }
    let mut table = Table::new(vec![
        Column::left(format!("Date ({})", zone.name())),
        Column::left("ID"),
        Column::right("Size"),
        Column::wrapping("Tags"),
        Column::left(format!("Forgotten ({})", zone.name())),
    ]);
    for Forgotten { revision, forgotten_at } in &forgotten {
        table.row([
            revision.timestamp.format(zone),
            revision.id.to_string(),
            human_bytes(revision.stats.bytes_written),
            join_tags(&revision.tags),
            forgotten_at.format(zone),
        ]);
    }
    let total = count(forgotten.len(), "forgotten revision", "forgotten revisions");
    terminal::print(format!("{}{total}\n", table.render(terminal::stdout_width())))?;
    Ok(Outcome::Done)
}

fn entry(forgotten: &Forgotten) -> ForgottenEntry<'_> {
    ForgottenEntry {
        revision: RevisionEntry::from(&forgotten.revision),
        forgotten_at: forgotten.forgotten_at.to_rfc3339(),
    }
}
