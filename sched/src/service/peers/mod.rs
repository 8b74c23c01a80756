//! Other servers that have the same jobs. Each keeps notes of the others' revisions: [`pull`] brings them up to date,
//! [`push`] tells the owners which tags were changed here, and [`ask`] says whether another one does a backup that is
//! due here.
//!
//! Nothing a peer does or says may harm what is here: its answers are bounded in size and time, its entries are
//! checked one by one, and notes are all that is ever written. No lock is held while a peer is waited for.

mod handover;
mod leader;
mod pull;
mod push;
#[cfg(test)]
pub(super) mod testing;

use std::collections::BTreeMap;

use backy_store::{Job, Revision};

use super::config::PeerConfig;
use crate::error::{Error, Result, in_full};

pub use handover::{from_json, to_json};
pub use leader::ask;
pub use pull::pull;
pub use push::push;

/// Peers that are asked at the same time.
const PEERS_AT_A_TIME: usize = 16;
/// Notes that are changed before the lock of the manifests is given free for a moment.
const NOTES_AT_A_TIME: usize = 64;

/// What came of one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerReport {
    /// Its name.
    pub peer: String,
    /// Pulling: the revisions it has. Pushing: those with tags that were changed here.
    pub revisions: usize,
    /// Pulling: notes that are new or differ. Pushing: revisions that have the tags there now, or are gone.
    pub changed: usize,
    /// Notes that were removed.
    pub removed: usize,
    /// Pulling: revisions that were left out because something here has their id.
    pub clashes: usize,
    /// What went wrong, for people.
    pub failures: Vec<String>,
}

/// What came of all peers of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeersReport {
    /// Notes that were dropped because their server is not configured as a peer.
    pub dropped: usize,
    /// One for each peer, by name.
    pub peers: Vec<PeerReport>,
}

impl PeersReport {
    /// Whether any peer erred.
    pub fn has_failed(&self) -> bool {
        self.peers.iter().any(|peer| !peer.failures.is_empty())
    }
}

impl PeerReport {
    fn new(peer: &str) -> Self {
        Self { peer: peer.to_owned(), ..Self::default() }
    }

    /// Takes a failure down, here and in the log. It is not one of this server: the work goes on.
    fn fail(&mut self, job: &Job, reason: String) {
        tracing::warn!(job = %job.name(), peer = %self.peer, reason, "trouble with a peer");
        self.failures.push(reason);
    }
}

/// The notes of a job, of one server or of all.
fn notes_of(job: &Job, server: Option<&str>) -> Result<Vec<Revision>> {
    let mut notes = job.revisions()?.revisions;
    notes.retain(|note| !note.is_local() && server.is_none_or(|server| note.server == server));
    Ok(notes)
}

/// Whether an error of the store concerns one note and no other.
fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::Store(backy_store::Error::ChangeRefused { .. }))
}

/// Asks all peers, several at a time: one that does not answer costs its own time-out and not also those of others.
fn each<T: Send>(
    peers: &BTreeMap<String, PeerConfig>,
    ask: impl Fn(&PeerConfig) -> Result<T> + Sync,
) -> BTreeMap<String, Result<T, String>> {
    let ask = |peer: &PeerConfig| ask(peer).map_err(|error| in_full(&error));
    let names: Vec<(&String, &PeerConfig)> = peers.iter().collect();
    let mut answers = BTreeMap::new();
    for several in names.chunks(PEERS_AT_A_TIME) {
        std::thread::scope(|scope| {
            let asked: Vec<_> = several
                .iter()
                .map(|(name, peer)| {
                    (name, std::thread::Builder::new().spawn_scoped(scope, || ask(peer)), peer)
                })
                .collect();
            for (name, thread, peer) in asked {
                let answer = match thread {
                    Ok(thread) => {
                        thread.join().unwrap_or_else(|_| Err("the question was broken off".to_owned()))
                    }
                    // No more threads: it takes longer.
                    Err(_) => ask(peer),
                };
                answers.insert((*name).clone(), answer);
            }
        });
    }
    answers
}
