//! `backy status`: the revisions of a job, or one line for each job of a store.
//!
//! What cannot be read is named on standard error and shows in the exit status; the rest is listed.

mod space;

use std::fmt::Write as _;

use backy_store::format::manifest;
use backy_store::revision::order;
use backy_store::select;
use backy_store::{
    Error as StoreError, Job, JobName, Repository, Revision, RevisionId, Timestamp, Trust, Unfinished, Zone,
};
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::{Context, join_tags, listing, undelete};
use crate::failure::{Outcome, Result};
use crate::output::json::{self, RevisionEntry};
use crate::output::size::{human_bytes, human_duration};
use crate::output::table::{Column, Table};
use crate::output::terminal;
use crate::output::text::count;

/// Lists the revisions of a job, or the jobs of a store.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The revisions [default: all]
    #[arg(short, long, value_name = "SPEC", allow_hyphen_values = true)]
    revision: Option<String>,
    /// Print the manifests as YAML, in the original's form
    #[arg(long, conflicts_with_all = ["json", "forgotten"])]
    yaml: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// List what `undelete` can bring back
    #[arg(long, conflicts_with = "revision")]
    forgotten: bool,
    /// Show what each revision or job takes alone, and what the store takes for all
    #[arg(long, conflicts_with_all = ["yaml", "forgotten"])]
    space: bool,
}

/// Lists.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    let location = context.location()?;
    if arguments.space {
        return space::run(context, location, arguments.revision.as_deref(), arguments.json);
    }
    let of_jobs = arguments.revision.is_none() && !arguments.yaml && !arguments.forgotten;
    if location.job.is_none() && of_jobs {
        return list_jobs(&location.repository, &context.zone, arguments.json);
    }
    let job = location.into_job()?;
    if arguments.forgotten {
        return undelete::list(&job, &context.zone, arguments.json);
    }
    let listing = listing(&job)?;
    warn_of_dates_and_sources(&listing.revisions, &context.zone);
    let spec = arguments.revision.as_deref().unwrap_or("all");
    let selected = select::select(spec, &listing.revisions, &context.zone)?;
    let unfinished = match arguments.revision {
        None => unfinished(&job)?,
        Some(_) => Vec::new(),
    };
    if arguments.yaml {
        terminal::print(format!("{}\n\n", manifest::to_yaml_list(&selected).trim_end()))?;
    } else if arguments.json {
        let entries: Vec<RevisionEntry<'_>> = selected.iter().map(RevisionEntry::from).collect();
        let damaged: Vec<String> = listing.damaged.iter().map(ToString::to_string).collect();
        json::print(&json!({
            "job": job.name(),
            "revisions": entries,
            "unfinished": unfinished,
            "damaged": damaged,
        }))?;
    } else {
        terminal::print(revision_table(&selected, &unfinished, &context.zone, terminal::stdout_width()))?;
    }
    Ok(Outcome::bad_if(!listing.damaged.is_empty()))
}

/// Says what a list of revisions does not show by itself: that dates are wrong, and what is suspicious about the newest
/// revision's source.
fn warn_of_dates_and_sources(revisions: &[Revision], zone: &Zone) {
    let now = Timestamp::now();
    let future: Vec<&Revision> =
        revisions.iter().filter(|revision| order::is_future(revision.timestamp, now)).collect();
    if let Some(one) = future.first() {
        let others = match future.len() {
            1 => String::new(),
            number => format!(", and {}", count(number - 1, "other", "others")),
        };
        terminal::warn(format_args!(
            "revision {} is dated in the future, {}{others}: it does not count as newer for that",
            one.id,
            one.timestamp.format(zone)
        ));
    }
    let newest = revisions.iter().rfind(|revision| revision.is_local() && revision.is_clean());
    for reason in newest.iter().flat_map(|revision| revision.suspicions()) {
        terminal::warn(format_args!("the source is not as it was: {reason}"));
    }
}

/// How far a revision is believed.
fn trust_cell(revision: &Revision) -> String {
    match revision.is_suspicious() {
        true => format!("{}, suspicious", revision.trust),
        false => revision.trust.to_string(),
    }
}

/// A backup that has begun and not ended.
#[derive(Debug, Serialize)]
struct UnfinishedEntry {
    /// The id that its revision is going to have.
    id: RevisionId,
    /// When it began.
    #[serde(serialize_with = "rfc3339")]
    started: Timestamp,
    /// Whether it still runs; if not, the next backup clears it away.
    running: bool,
}

fn rfc3339<S: serde::Serializer>(time: &Timestamp, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.to_rfc3339())
}

fn unfinished(job: &Job) -> Result<Vec<UnfinishedEntry>> {
    let found = job.unfinished()?;
    // One backup runs at a time, and it is the one that began last.
    let running = if job.is_being_backed_up() { found.last().map(|last| last.id.clone()) } else { None };
    let entry = |one: Unfinished| UnfinishedEntry {
        running: running.as_ref() == Some(&one.id),
        id: one.id,
        started: one.started_at,
    };
    Ok(found.into_iter().map(entry).collect())
}

fn revision_table(
    revisions: &[Revision],
    unfinished: &[UnfinishedEntry],
    zone: &Zone,
    width: Option<usize>,
) -> String {
    let mut table = Table::new(vec![
        Column::left(format!("Date ({})", zone.name())),
        Column::left("ID"),
        Column::right("Size"),
        Column::right("Stored"),
        Column::right("Duration"),
        Column::wrapping("Tags"),
        Column::left("Trust"),
        Column::wrapping("Server"),
    ]);
    for revision in revisions {
        table.row([
            revision.timestamp.format(zone),
            revision.id.to_string(),
            human_bytes(revision.stats.bytes_written),
            revision.stored_bytes.map_or_else(|| "-".to_owned(), human_bytes),
            revision.stats.duration_secs.map_or_else(|| "-".to_owned(), human_duration),
            tags_cell(revision),
            trust_cell(revision),
            revision.server.clone(),
        ]);
    }
    for one in unfinished {
        let [size, stored, duration] = [(); 3].map(|()| "-".to_owned());
        let state = if one.running { "running" } else { "unfinished" };
        let (tags, server) = (String::new(), String::new());
        table.row([
            one.started.format(zone),
            one.id.to_string(),
            size,
            stored,
            duration,
            tags,
            state.to_owned(),
            server,
        ]);
    }
    let mut text = table.render(width);
    let total = revisions.iter().fold(0u64, |sum, revision| sum.saturating_add(revision.stats.bytes_written));
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{} containing {} data (estimated)",
        count(revisions.len(), "revision", "revisions"),
        human_bytes(total)
    );
    let pending = revisions.iter().filter(|revision| revision.is_pending()).count();
    if pending > 0 {
        let _ = writeln!(text, "{pending} pending change(s) (Push changes with `backy push`)");
    }
    text
}

/// The tags; those that the owner on another server has to be told of come first, with a sign.
fn tags_cell(revision: &Revision) -> String {
    if !revision.is_pending() {
        return join_tags(&revision.tags);
    }
    let added = revision.tags.difference(&revision.orig_tags).map(|tag| format!("+{tag}"));
    let removed = revision.orig_tags.difference(&revision.tags).map(|tag| format!("-{tag}"));
    let same = revision.tags.intersection(&revision.orig_tags).map(ToString::to_string);
    added.chain(removed).chain(same).collect::<Vec<_>>().join(",")
}

/// One job of a store.
#[derive(Debug, Serialize)]
struct JobEntry {
    /// Its name.
    job: String,
    /// Complete revisions.
    revisions: usize,
    /// Revisions whose backup did not end well.
    incomplete: usize,
    /// Distrusted revisions.
    distrusted: usize,
    /// Suspicious revisions.
    suspicious: usize,
    /// Revisions that cannot be listed; `null` when none of the job's can.
    damaged: Option<usize>,
    /// Start of the newest complete backup.
    newest: Option<String>,
    /// The newest one's tags.
    newest_tags: Vec<String>,
    /// Sum over the revisions of what the backups read.
    bytes_written: u64,
    /// Why none of its revisions can be listed.
    failure: Option<String>,
    /// For the table.
    #[serde(skip)]
    newest_revision: Option<Revision>,
}

fn list_jobs(repository: &Repository, zone: &Zone, as_json: bool) -> Result {
    let (jobs, failures) = repository.jobs_and_failures()?;
    let mut entries: Vec<JobEntry> = jobs.iter().map(job_entry).collect();
    let seen: Vec<_> = jobs.iter().map(Job::name).chain(failures.iter().map(|(job, _)| job)).collect();
    let away = repository.jobs_away(&seen).unwrap_or_else(|error| {
        terminal::warn(format_args!("{:#}", anyhow::Error::from(error)));
        Vec::new()
    });
    entries.extend(failures.into_iter().chain(away).map(unreadable_entry));
    entries.sort_by(|one, other| one.job.cmp(&other.job));
    if as_json {
        json::print(&json!({ "store": repository.root().to_string_lossy(), "jobs": entries }))?;
    } else {
        terminal::print(job_table(&entries, zone, terminal::stdout_width()))?;
    }
    Ok(Outcome::bad_if(entries.iter().any(|entry| entry.damaged != Some(0))))
}

/// Sums up one job. A job that cannot be listed must not hide the others.
fn job_entry(job: &Job) -> JobEntry {
    match listing(job) {
        Ok(listing) => {
            let mut entry = summary(job.name().to_string(), &listing.revisions, Some(listing.damaged.len()));
            entry.incomplete +=
                unfinished(job).map_or(0, |all| all.iter().filter(|one| !one.running).count());
            entry
        }
        Err(error) => unlisted(job.name().to_string(), &error),
    }
}

/// A job that cannot be opened.
fn unreadable_entry((job, error): (JobName, StoreError)) -> JobEntry {
    let error = anyhow::Error::from(error).context(format!("cannot read job {job}"));
    unlisted(job.to_string(), &error)
}

fn unlisted(job: String, error: &anyhow::Error) -> JobEntry {
    let failure = format!("{error:#}");
    terminal::warn(&failure);
    JobEntry { failure: Some(failure), ..summary(job, &[], None) }
}

fn summary(job: String, revisions: &[Revision], damaged: Option<usize>) -> JobEntry {
    let clean: Vec<&Revision> = revisions.iter().filter(|revision| revision.is_clean()).collect();
    let newest = clean.last().copied();
    JobEntry {
        job,
        revisions: clean.len(),
        incomplete: revisions.len() - clean.len(),
        distrusted: revisions.iter().filter(|revision| revision.trust == Trust::Distrusted).count(),
        suspicious: revisions.iter().filter(|revision| revision.is_suspicious()).count(),
        damaged,
        newest: newest.map(|revision| revision.timestamp.to_rfc3339()),
        newest_tags: newest.iter().flat_map(|revision| &revision.tags).map(ToString::to_string).collect(),
        bytes_written: revisions
            .iter()
            .fold(0, |sum: u64, revision| sum.saturating_add(revision.stats.bytes_written)),
        newest_revision: newest.cloned(),
        failure: None,
    }
}

fn job_table(entries: &[JobEntry], zone: &Zone, width: Option<usize>) -> String {
    let mut table = Table::new(vec![
        Column::left("Job"),
        Column::right("Revisions"),
        Column::left(format!("Newest ({})", zone.name())),
        Column::wrapping("Tags"),
        Column::wrapping("Trust"),
    ]);
    for entry in entries {
        let newest = entry.newest_revision.as_ref();
        table.row([
            entry.job.clone(),
            entry.revisions.to_string(),
            newest.map_or_else(|| "-".to_owned(), |revision| revision.timestamp.format(zone)),
            entry.newest_tags.join(","),
            problems(entry),
        ]);
    }
    let total = count(entries.len(), "job", "jobs");
    format!("{}{total} shown\n", table.render(width))
}

/// Returns what is wrong with a job, in a few words.
fn problems(entry: &JobEntry) -> String {
    let Some(damaged) = entry.damaged else {
        return "cannot be listed".to_owned();
    };
    let counted = [
        (entry.distrusted, "distrusted"),
        (entry.suspicious, "suspicious"),
        (entry.incomplete, "incomplete"),
        (damaged, "unreadable"),
    ];
    let present: Vec<String> = counted
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, word)| format!("{number} {word}"))
        .collect();
    if present.is_empty() { "ok".to_owned() } else { present.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_without_revisions_has_no_newest() {
        let entry = summary("web01".to_owned(), &[], Some(0));
        assert_eq!((entry.revisions, entry.newest.as_deref(), problems(&entry).as_str()), (0, None, "ok"));
        let text = job_table(&[entry], &Zone::utc(), None);
        assert!(text.ends_with("\n1 job shown\n"), "{text}");
        assert_eq!(problems(&summary("web01".to_owned(), &[], None)), "cannot be listed");
    }

    #[test]
    fn an_empty_list_still_has_its_last_line() {
        let text = revision_table(&[], &[], &Zone::utc(), None);
        assert!(text.ends_with("0 revisions containing 0 Bytes data (estimated)\n"), "{text}");
    }
}
