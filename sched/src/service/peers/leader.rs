//! Whether another server does a backup that is due here. The decision is pure: the states that the peers tell and a
//! time in, an answer out.
//!
//! The peer with the most complete revisions of its own leads, if it has more than we have and makes backups of the
//! job itself. We follow it as long as its backup may still come: done when it has one of our time, ours to do when it
//! will not have one soon or does not answer.
//!
//! # Nobody waits for ever
//!
//! Who has as many or fewer revisions does not lead, so two servers that see the same numbers never follow each other.
//! Numbers change in between; therefore a server that itself follows another one is not followed, a time of the far
//! future is no backup, and whoever has waited [`WAIT_SECS_MAX`] does the backup himself. At worst two servers back a
//! job up at the same time.

use std::collections::BTreeMap;

use backy_store::{JobName, Timestamp, Zone};

use super::each;
use crate::policy::next_run::NextRun;
use crate::service::client::Client;
use crate::service::config::PeerConfig;
use crate::service::control::StatusEntry;
use crate::service::scheduler::Neighbours;

/// How long to wait before the leader is asked again.
const POLL_SECS: i64 = 300;
/// How far a leader's backup may lie before our time, or its next run after it.
const SLACK_SECS: i64 = 300;
/// How long a leader is waited for at most.
const WAIT_SECS_MAX: i64 = 6 * 3600;

/// Asks the peers whether one of them does the run of `job` that was due at `next.at`. `local` is the number of complete
/// revisions that are here; `following` names the peer that was followed so far, and then only that one is asked.
/// Blocks for ten seconds or so when a peer is dead.
pub fn ask(
    peers: &BTreeMap<String, PeerConfig>,
    job: &JobName,
    local: usize,
    next: &NextRun,
    following: Option<&str>,
    task_id: Option<&str>,
) -> Neighbours {
    let followed = following.and_then(|name| peers.get_key_value(name));
    let wanted = match followed {
        Some((name, peer)) => &BTreeMap::from([(name.clone(), peer.clone())]),
        None => peers,
    };
    let filter = format!("^{}$", regex::escape(job.as_str()));
    let answers = each(wanted, |peer| {
        let entries = Client::in_a_hurry(peer.clone(), task_id).status(&filter)?;
        Ok(entries.into_iter().find(|entry| entry.job == job.as_str()))
    });
    let mut states = BTreeMap::new();
    for (name, answer) in answers {
        match answer {
            Ok(Some(state)) => drop(states.insert(name, state)),
            Ok(None) => {}
            Err(reason) => tracing::warn!(%job, peer = %name, reason, "trouble with a peer"),
        }
    }
    let answer = match followed {
        Some((name, _)) => {
            states.get(name).map_or(Neighbours::OursToDo, |state| judge(name, state, next, Timestamp::now()))
        }
        None => decide(&states, local, next, Timestamp::now()),
    };
    tracing::info!(%job, %answer, "asked the neighbours");
    answer
}

/// Chooses the leader and judges it.
fn decide(
    states: &BTreeMap<String, StatusEntry>,
    local: usize,
    next: &NextRun,
    now: Timestamp,
) -> Neighbours {
    let leads = |state: &StatusEntry| state.local_revs > local && Doing::of(state) != Doing::Nothing;
    // The first by name of those that have equally many, so that it is the same one every time.
    let leader =
        states.iter().rev().filter(|(_, state)| leads(state)).max_by_key(|(_, state)| state.local_revs);
    leader.map_or(Neighbours::OursToDo, |(name, state)| judge(name, state, next, now))
}

/// Says what the state of the leader means for a run that was due at `next.at`.
fn judge(peer: &str, state: &StatusEntry, next: &NextRun, now: Timestamp) -> Neighbours {
    let time = |text: &Option<String>| Timestamp::parse(text.as_deref()?, &Zone::utc());
    let has_been =
        |last: Timestamp| last >= next.at.plus_secs(-SLACK_SECS) && last <= now.plus_secs(SLACK_SECS);
    if time(&state.last_time).is_some_and(has_been) {
        return Neighbours::Done;
    }
    let will_be = match Doing::of(state) {
        Doing::Nothing => false,
        Doing::Backup => true,
        Doing::Waiting => time(&state.next_time).is_some_and(|at| at <= next.at.plus_secs(SLACK_SECS)),
    };
    match will_be && now <= next.at.plus_secs(WAIT_SECS_MAX) {
        true => Neighbours::Wait { peer: peer.to_owned(), secs: POLL_SECS },
        false => Neighbours::OursToDo,
    }
}

/// What a peer does with the job, by the words for its states, of the original too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// No backups of its own: the job is stopped or dead there, or it follows another server.
    Nothing,
    /// One is being made, or waits for a worker only.
    Backup,
    /// Its next time says when.
    Waiting,
}

impl Doing {
    fn of(state: &StatusEntry) -> Self {
        match state.status.as_str() {
            "" | "Dead" => Self::Nothing,
            text if text.starts_with("monitoring") => Self::Nothing,
            text if text.starts_with("running") || text.starts_with("waiting for worker") => Self::Backup,
            _ => Self::Waiting,
        }
    }
}

#[cfg(test)]
mod tests;
