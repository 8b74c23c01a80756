//! What `pull` and `push` share: which peers there are, and what is printed of them.

use std::path::{Path, PathBuf};

use backy_sched::ServiceConfig;
use backy_sched::service::config::PATH_DEFAULT;
use backy_sched::service::peers::{PeerReport, PeersReport};
use backy_store::Job;
use clap::Args;

use super::{Context, absolute};
use crate::failure::{Outcome, Result};
use crate::output::terminal;

/// The options of both.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The main configuration, which names the peers
    #[arg(short, long, value_name = "FILE", default_value = PATH_DEFAULT)]
    config: PathBuf,
}

/// Finds the job and the peers, does the work and prints a line for each peer. What went wrong is on standard error.
pub(super) fn run(
    context: &Context,
    arguments: &Arguments,
    work: impl FnOnce(&Job, &ServiceConfig) -> backy_sched::Result<PeersReport>,
    line: impl Fn(&PeerReport) -> String,
) -> Result {
    // Before the job's directory becomes anything: a relative path counts from here.
    let path: &Path = &absolute(&arguments.config)?;
    let config = ServiceConfig::load(path)?;
    let job = context.job()?;
    let report = work(&job, &config)?;
    for peer in &report.peers {
        terminal::print_line(format_args!("{}: {}", peer.peer, line(peer)))?;
        for failure in &peer.failures {
            terminal::warn(format_args!("peer {}: {failure}", peer.peer));
        }
    }
    if report.dropped > 0 {
        terminal::print_line(format_args!("dropped {} of servers that are no peers", notes(report.dropped)))?;
    }
    if config.peers.is_empty() {
        terminal::note("the configuration has no peers");
    }
    Ok(Outcome::bad_if(report.has_failed()))
}

/// Returns `1 note`, `2 notes`.
pub(super) fn notes(number: usize) -> String {
    crate::output::text::count(number, "note", "notes")
}
