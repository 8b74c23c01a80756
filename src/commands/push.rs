//! `backy push`: tells other servers which tags of their revisions were changed here.

use backy_sched::service::peers::{self, PeerReport};

use super::Context;
use super::peers::{Arguments, run as run_with};
use crate::failure::Result;
use crate::output::terminal;
use crate::output::text::count;

/// Pushes to all peers.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    let work = |job: &_, peers: &_| {
        let report = peers::push(job, peers, Some(context.task_id()))?;
        if report.peers.is_empty() {
            terminal::note("no tags were changed that a peer does not know of");
        }
        Ok(report)
    };
    run_with(context, arguments, work, line)
}

fn line(peer: &PeerReport) -> String {
    let pending = count(peer.revisions, "pending change", "pending changes");
    format!("{pending}, {} pushed, {} of them removed", peer.changed, peer.removed)
}
