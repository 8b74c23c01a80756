//! `backy expire`: drops what the schedule no longer keeps. A dry run prints the very plan that the real
//! run applies.

use std::fmt::Write as _;

use anyhow::Context as _;
use backy_sched::expire::{Decision, Plan};
use backy_store::{Job, Timestamp, Zone};
use clap::Args;
use serde_json::json;

use super::{Context, join_tags, load_config};
use crate::failure::{Outcome, Result};
use crate::output::table::{Column, Table};
use crate::output::text::{count, escape};
use crate::output::{json, terminal};

/// Drops the tags that the schedule no longer keeps, and forgets the revisions left without tags.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
    /// Show the reasons for every revision
    #[arg(long)]
    explain: bool,
    /// Expire also what is held back for safety
    #[arg(long)]
    force: bool,
    /// Print the plan as JSON
    #[arg(long, conflicts_with = "explain")]
    json: bool,
}

/// Expires and prints the plan.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    let job = context.job()?;
    let config = load_config(&job)?;
    let now = Timestamp::now();
    let plan = backy_sched::expire::expire(&job, &config.schedule, now, arguments.force, arguments.dry_run)
        .with_context(|| format!("cannot expire revisions of job {}", job.name()))?;
    if arguments.json {
        json::print(&as_json(&job, &plan, arguments.dry_run))?;
    } else {
        terminal::print(as_text(&plan, &context.zone, arguments))?;
    }
    for reason in &plan.held_back {
        terminal::warn(format_args!("held back: {reason}"));
    }
    if !arguments.dry_run && plan.decisions.iter().any(|decision| decision.removed) {
        terminal::note("`backy undelete` brings forgotten revisions back until they are purged");
    }
    Ok(Outcome::Done)
}

fn as_json(job: &Job, plan: &Plan, dry_run: bool) -> serde_json::Value {
    let decisions: Vec<_> = plan
        .decisions
        .iter()
        .map(|decision| {
            json!({
                "id": decision.revision.id,
                "timestamp": decision.revision.timestamp.to_rfc3339(),
                "tags": decision.revision.tags,
                "lost_tags": decision.lost_tags,
                "removed": decision.removed,
                "reasons": decision.reasons,
            })
        })
        .collect();
    json!({ "job": job.name(), "dry_run": dry_run, "decisions": decisions, "held_back": plan.held_back })
}

fn as_text(plan: &Plan, zone: &Zone, arguments: &Arguments) -> String {
    let changes = |decision: &&Decision| decision.removed || !decision.lost_tags.is_empty();
    let changed: Vec<&Decision> = plan.decisions.iter().filter(changes).collect();
    let mut text = String::new();
    if arguments.explain {
        for decision in &plan.decisions {
            explain(&mut text, decision, zone);
        }
    } else if !changed.is_empty() {
        text = table(&changed, zone).render(terminal::stdout_width());
    }
    let removed = changed.iter().filter(|decision| decision.removed).count();
    let (verb, kept) = if arguments.dry_run { ("would be ", "would lose") } else { ("", "lost") };
    let fallen: usize = changed.iter().map(|decision| decision.lost_tags.len()).sum();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{} {verb}forgotten, {} {kept} {}",
        count(removed, "revision", "revisions"),
        count(changed.len(), "revision", "revisions"),
        count(fallen, "tag", "tags"),
    );
    text
}

fn explain(text: &mut String, decision: &Decision, zone: &Zone) {
    let revision = &decision.revision;
    let date = revision.timestamp.format(zone);
    // Writing to a string cannot fail.
    let _ =
        writeln!(text, "{date}  {}  {}  {}", revision.id, escape(&join_tags(&revision.tags)), fate(decision));
    for reason in &decision.reasons {
        let _ = writeln!(text, "    {}", escape(reason));
    }
}

fn table(changed: &[&Decision], zone: &Zone) -> Table {
    let mut table = Table::new(vec![
        Column::left(format!("Date ({})", zone.name())),
        Column::left("ID"),
        Column::wrapping("Tags"),
        Column::wrapping("Loses"),
        Column::left("Then"),
    ]);
    for decision in changed {
        table.row([
            decision.revision.timestamp.format(zone),
            decision.revision.id.to_string(),
            join_tags(&decision.revision.tags),
            join_tags(&decision.lost_tags),
            fate(decision).to_owned(),
        ]);
    }
    table
}

fn fate(decision: &Decision) -> &'static str {
    if decision.removed { "forgotten" } else { "kept" }
}
