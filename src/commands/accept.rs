//! `backy accept`: says that a source is right although it is not as it was. What it prints are the revisions that
//! count from now on.

use anyhow::Context as _;
use backy_sched::accept;
use backy_store::select;
use backy_store::{Revision, RevisionId, Timestamp};
use clap::Args;

use super::{Context, id_list, revisions};
use crate::failure::{Outcome, Result, refused};
use crate::output::terminal;

/// Accepts suspicious revisions: their source is right although it shrank, lost data or is another disk.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The revisions [default: the newest, and those that agree with it]
    #[arg(short, long, value_name = "SPEC", allow_hyphen_values = true)]
    revision: Option<String>,
}

/// Accepts the revisions and prints their ids.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    let job = context.job()?;
    let all = revisions(&job)?;
    let chosen: Vec<Revision> = match &arguments.revision {
        Some(spec) => select::select(spec, &all, &context.zone)?,
        None => accept::of_newest(&all).into_iter().cloned().collect(),
    };
    if let Some(remote) = chosen.iter().find(|revision| !revision.is_local() && revision.is_suspicious()) {
        let message = format!("revision {} lies on the server {}", remote.id, remote.server);
        return Err(refused(message, "accept it there"));
    }
    let suspicious: Vec<&RevisionId> =
        chosen.iter().filter(|revision| revision.is_suspicious()).map(|revision| &revision.id).collect();
    accept::accept(&job, &suspicious, Timestamp::now())
        .with_context(|| format!("cannot accept revisions of job {}", job.name()))?;
    for id in &suspicious {
        terminal::print_line(id)?;
    }
    if suspicious.is_empty() {
        note_nothing(&all, arguments.revision.is_some());
    }
    Ok(Outcome::Done)
}

/// Says why nothing was accepted; that is no failure.
fn note_nothing(all: &[Revision], has_spec: bool) {
    let is_open = |revision: &&Revision| revision.is_local() && revision.is_suspicious();
    let open: Vec<Revision> = all.iter().filter(is_open).cloned().collect();
    match (has_spec, open.is_empty()) {
        (true, _) => terminal::note("none of these revisions is suspicious"),
        (false, true) => terminal::note("no revision is suspicious"),
        (false, false) => terminal::note(format_args!(
            "the newest revision is not suspicious; `-r` accepts older ones: {}",
            id_list(&open)
        )),
    }
}
