//! `backy pull`: brings the notes of other servers' revisions up to date.

use backy_sched::service::peers::{self, PeerReport};

use super::Context;
use super::peers::{Arguments, notes, run as run_with};
use crate::failure::Result;
use crate::output::text::count;

/// Pulls from all peers.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    run_with(context, arguments, |job, peers| peers::pull(job, peers, Some(context.task_id())), line)
}

fn line(peer: &PeerReport) -> String {
    let mut line = format!(
        "{}, {} written, {} removed",
        count(peer.revisions, "revision", "revisions"),
        notes(peer.changed),
        peer.removed
    );
    if peer.clashes > 0 {
        line.push_str(&format!(", {} left out, whose ids are taken here", peer.clashes));
    }
    line
}
