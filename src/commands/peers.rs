//! What `pull` and `push` share: which peers there are, and what is printed of them.

use std::collections::BTreeMap;
use std::io::Read as _;

use anyhow::Context as _;
use backy_sched::ServiceConfig;
use backy_sched::service::config::PeerConfig;
use backy_sched::service::peers;
use backy_sched::service::peers::{PeerReport, PeersReport};
use backy_store::Job;
use clap::Args;

use super::Context;
use crate::failure::{Outcome, Result, usage};
use crate::output::terminal;

/// Most that is read from standard input.
const PEERS_BYTES_MAX: u64 = 1 << 20;

/// The options of both.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Take the peers from standard input: the service hands on those of the configuration in force
    #[arg(long, hide = true)]
    peers_from_stdin: bool,
}

/// Finds the job and the peers, does the work and prints a line for each peer. What went wrong is on standard error.
pub(super) fn run(
    context: &Context,
    arguments: &Arguments,
    work: impl FnOnce(&Job, &BTreeMap<String, PeerConfig>) -> backy_sched::Result<PeersReport>,
    line: impl Fn(&PeerReport) -> String,
) -> Result {
    // Before the job's directory becomes anything: a relative path counts from here.
    let peers = match arguments.peers_from_stdin {
        true => handed_over()?,
        false => ServiceConfig::load(&context.config_path()?)?.peers,
    };
    let job = context.job()?;
    let report = work(&job, &peers)?;
    for peer in &report.peers {
        terminal::print_line(format_args!("{}: {}", peer.peer, line(peer)))?;
        for failure in &peer.failures {
            terminal::warn(format_args!("peer {}: {failure}", peer.peer));
        }
    }
    if report.dropped > 0 {
        terminal::print_line(format_args!("dropped {} of servers that are no peers", notes(report.dropped)))?;
    }
    if peers.is_empty() {
        terminal::note("the configuration has no peers");
    }
    Ok(Outcome::bad_if(report.has_failed()))
}

fn handed_over() -> anyhow::Result<BTreeMap<String, PeerConfig>> {
    let mut text = String::new();
    std::io::stdin().take(PEERS_BYTES_MAX).read_to_string(&mut text).context("cannot read standard input")?;
    peers::from_json(&text).ok_or_else(|| usage("standard input holds no peers", ""))
}

/// Returns `1 note`, `2 notes`.
pub(super) fn notes(number: usize) -> String {
    crate::output::text::count(number, "note", "notes")
}
