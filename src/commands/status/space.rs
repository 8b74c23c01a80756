//! `backy status --space`: what revisions and jobs cost, and what the store takes for all of them.

use std::fmt::Write as _;

use backy_store::maintain::space::{GroupSpace, StoreSpace, group_space, store_space};
use backy_store::select;
use backy_store::{Job, Location, Repository, Revision, Zone};
use serde_json::{Value, json};

use super::super::{Context, join_tags, listing};
use crate::failure::{Outcome, Result};
use crate::output::progress::Progress;
use crate::output::size::human_bytes;
use crate::output::table::{Column, Table};
use crate::output::text::count;
use crate::output::{json, terminal};

/// Shows a job's revisions, or those asked for; of a store its jobs.
pub(super) fn run(context: &Context, location: Location, revision: Option<&str>, as_json: bool) -> Result {
    let progress = Progress::start();
    let (repository, zone) = (location.repository.clone(), &context.zone);
    let Some(job) = (match revision {
        Some(_) => Some(location.into_job()?),
        None => location.job,
    }) else {
        return show_jobs(&repository, &progress, as_json);
    };
    let listing = listing(&job)?;
    let selected = select::select(revision.unwrap_or("all"), &listing.revisions, zone)?;
    let groups: Vec<_> = selected.iter().map(|revision| vec![(job.clone(), revision.clone())]).collect();
    let (space, total) = measure(&repository, &groups, &progress)?;
    if as_json {
        let entry = |(revision, exclusive): (&Revision, &u64)| {
            json!({
                "id": revision.id,
                "changed_bytes": changed_bytes(revision),
                "stored_bytes": revision.stored_bytes,
                "exclusive_bytes": exclusive,
            })
        };
        let entries: Vec<Value> = selected.iter().zip(&space.exclusive_bytes).map(entry).collect();
        json::print(&json!({
            "job": job.name(),
            "revisions": entries,
            "together_bytes": space.together_bytes,
            "store": store_json(&repository, &total),
        }))?;
    } else {
        terminal::print(revision_table(&selected, &space, zone) + &store_line(&repository, &total))?;
    }
    Ok(Outcome::bad_if(!listing.damaged.is_empty() || progress.findings() > 0))
}

fn measure(
    repository: &Repository,
    groups: &[Vec<(Job, Revision)>],
    progress: &Progress,
) -> anyhow::Result<(GroupSpace, StoreSpace)> {
    Ok((group_space(repository, groups, progress)?, store_space(repository, progress)?))
}

/// Bytes of the image that were not as before.
fn changed_bytes(revision: &Revision) -> Option<u64> {
    revision.source.get("changed_bytes")?.as_u64()
}

fn revision_table(revisions: &[Revision], space: &GroupSpace, zone: &Zone) -> String {
    let mut table = Table::new(vec![
        Column::left(format!("Date ({})", zone.name())),
        Column::left("ID"),
        Column::right("Changed"),
        Column::right("Stored"),
        Column::right("Exclusive"),
        Column::wrapping("Tags"),
    ]);
    let shown = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), human_bytes);
    for (revision, exclusive) in revisions.iter().zip(&space.exclusive_bytes) {
        table.row([
            revision.timestamp.format(zone),
            revision.id.to_string(),
            shown(changed_bytes(revision)),
            shown(revision.stored_bytes),
            human_bytes(*exclusive),
            join_tags(&revision.tags),
        ]);
    }
    let mut text = table.render(terminal::stdout_width());
    let number = count(revisions.len(), "revision", "revisions");
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{number}: forgotten together and purged, they free {}",
        human_bytes(space.together_bytes)
    );
    text
}

fn show_jobs(repository: &Repository, progress: &Progress, as_json: bool) -> Result {
    let jobs = repository.sharing_jobs()?;
    let mut groups = Vec::new();
    // They were named when the jobs were listed.
    let mut damaged = repository.jobs_and_failures()?.1.len();
    for job in &jobs {
        let listing = listing(job)?;
        damaged += listing.damaged.len();
        groups
            .push(listing.revisions.into_iter().map(|revision| (job.clone(), revision)).collect::<Vec<_>>());
    }
    let (space, total) = measure(repository, &groups, progress)?;
    let rows = jobs.iter().zip(&groups).zip(&space.exclusive_bytes);
    if as_json {
        let entry = |((job, group), exclusive): ((&Job, &Vec<_>), &u64)| json!({ "job": job.name(), "revisions": group.len(), "exclusive_bytes": exclusive });
        let entries: Vec<Value> = rows.map(entry).collect();
        json::print(&json!({ "jobs": entries, "store": store_json(repository, &total) }))?;
    } else {
        let mut table =
            Table::new(vec![Column::left("Job"), Column::right("Revisions"), Column::right("Exclusive")]);
        for ((job, group), exclusive) in rows {
            table.row([job.name().to_string(), group.len().to_string(), human_bytes(*exclusive)]);
        }
        terminal::print(table.render(terminal::stdout_width()) + &store_line(repository, &total))?;
    }
    Ok(Outcome::bad_if(damaged > 0 || progress.findings() > 0))
}

fn store_json(repository: &Repository, total: &StoreSpace) -> Value {
    json!({
        "path": repository.root().to_string_lossy(),
        "chunks": total.chunks,
        "chunk_bytes": total.chunk_bytes,
        "groups": total.groups,
        "group_bytes": total.group_bytes,
        "image_bytes": total.image_bytes,
    })
}

fn store_line(repository: &Repository, total: &StoreSpace) -> String {
    let ratio = match total.chunk_bytes {
        0 => String::new(),
        bytes => format!(", {:.1} times as much", total.image_bytes as f64 / bytes as f64),
    };
    format!(
        "{}: {} in {}, of them {} in {}, hold {} of images{ratio}\n",
        repository.root().display(),
        count(total.chunks, "chunk", "chunks"),
        human_bytes(total.chunk_bytes),
        count(total.groups, "group", "groups"),
        human_bytes(total.group_bytes),
        human_bytes(total.image_bytes)
    )
}
