//! Brings the notes of other servers' revisions up to date.
//!
//! A peer that answers is believed: what it does not list any more is dropped, and a directory that it does not have
//! is an empty list. A peer that cannot be reached, or whose answer makes no sense, changes nothing. Every note is
//! looked at again under the lock before it is changed, so nothing is lost that somebody did in between; a run that
//! dies is finished by the next one.

use std::collections::{BTreeMap, BTreeSet};

use backy_store::{BackendType, Job, Notes, Revision, RevisionId, Stats};

use super::{NOTES_AT_A_TIME, PeerReport, PeersReport, each, is_refusal, notes_of};
use crate::error::{Error, Result};
use crate::service::client::{Client, RemoteList, RemoteRevision, Reply};
use crate::service::config::PeerConfig;

/// Asks all peers for their revisions of the job and writes them down. An error is one of this server; those of peers
/// are in the report.
pub fn pull(job: &Job, peers: &BTreeMap<String, PeerConfig>, task_id: Option<&str>) -> Result<PeersReport> {
    let answers = each(peers, |peer| fetch(job, &Client::new(peer.clone(), task_id)));
    let mut report = PeersReport { dropped: drop_unknown(job, peers)?, peers: Vec::new() };
    for (name, answer) in answers {
        let mut peer = PeerReport::new(&name);
        match answer {
            Ok(list) => take(job, list, &mut peer)?,
            Err(reason) => peer.fail(job, reason),
        }
        report.peers.push(peer);
    }
    Ok(report)
}

/// Tells a peer that the directory is still wanted and returns what is in it.
fn fetch(job: &Job, client: &Client) -> Result<RemoteList> {
    match client.touch(job.name()) {
        Ok(Reply::Missing) => return Ok(RemoteList::default()),
        // A token that may only read is enough to know what is there.
        Ok(_) | Err(Error::RightMissing { .. }) => {}
        Err(error) => return Err(error),
    }
    match client.revisions(job.name())? {
        Reply::Done(list) => Ok(list),
        Reply::Missing | Reply::Active => Ok(RemoteList::default()),
        Reply::Differs | Reply::Keeps | Reply::Busy => {
            let message = "that it is busy".to_owned();
            Err(Error::ServiceRefused { url: client.url().to_owned(), status: 503, message })
        }
    }
}

/// Drops the notes of servers that are no peers any more.
fn drop_unknown(job: &Job, peers: &BTreeMap<String, PeerConfig>) -> Result<usize> {
    let mut notes = notes_of(job, None)?;
    notes.retain(|note| !peers.contains_key(&note.server));
    let mut dropped = 0;
    for several in notes.chunks(NOTES_AT_A_TIME) {
        let guard = job.lock_manifests()?;
        let open = job.notes(&guard)?;
        for note in several {
            dropped += usize::from(remove(&open, job, &note.id, &note.server)?);
        }
    }
    Ok(dropped)
}

/// Removes a note; one that cannot be removed is told and left.
fn remove(notes: &Notes<'_>, job: &Job, id: &RevisionId, server: &str) -> Result<bool> {
    match notes.remove(id, server).map_err(Error::from) {
        Ok(()) => {
            tracing::info!(job = %job.name(), revision = %id, server, "dropped a note");
            Ok(true)
        }
        Err(error) if is_refusal(&error) => {
            tracing::warn!(error = crate::error::in_full(&error), "keeping a note");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Makes the notes of one peer what it lists.
fn take(job: &Job, list: RemoteList, report: &mut PeerReport) -> Result<()> {
    let peer = report.peer.clone();
    report.revisions = list.revisions.len();
    let known: BTreeMap<RevisionId, Revision> =
        notes_of(job, Some(&peer))?.into_iter().map(|note| (note.id.clone(), note)).collect();
    let is_news = |theirs: &&RemoteRevision| {
        let note = known.get(&theirs.id);
        note != Some(&merge(note, theirs, &peer))
    };
    let news: Vec<&RemoteRevision> = list.revisions.iter().filter(is_news).collect();
    for several in news.chunks(NOTES_AT_A_TIME) {
        let guard = job.lock_manifests()?;
        let notes = job.notes(&guard)?;
        for theirs in several {
            write(&notes, job, theirs, report)?;
        }
    }
    if report.clashes > 0 {
        let revisions = report.clashes;
        tracing::warn!(job = %job.name(), peer, revisions, "left out revisions whose ids are taken here");
    }
    if list.unusable > 0 {
        // It may be the id of one of our notes that could not be read: nothing is known to be gone.
        report.fail(job, format!("{} of its revisions cannot be used", list.unusable));
        return Ok(());
    }
    let listed: BTreeSet<&RevisionId> = list.revisions.iter().map(|theirs| &theirs.id).collect();
    let gone: Vec<&RevisionId> = known.keys().filter(|id| !listed.contains(id)).collect();
    for several in gone.chunks(NOTES_AT_A_TIME) {
        let guard = job.lock_manifests()?;
        let notes = job.notes(&guard)?;
        for id in several {
            report.removed += usize::from(remove(&notes, job, id, &peer)?);
        }
    }
    Ok(())
}

/// Writes one note, as it has to be after what is there now.
fn write(notes: &Notes<'_>, job: &Job, theirs: &RemoteRevision, report: &mut PeerReport) -> Result<()> {
    let written = notes.read(&theirs.id, &report.peer).and_then(|note| {
        let merged = merge(note.as_ref(), theirs, &report.peer);
        if let Some(note) = note.filter(|note| note.is_pending() && note.tags != merged.tags) {
            tracing::info!(job = %job.name(), revision = %note.id, "tags were changed on both servers, the owner's count");
        }
        notes.write(&merged)
    });
    match written.map_err(Error::from) {
        Ok(changed) => report.changed += usize::from(changed),
        Err(error) if is_refusal(&error) => {
            tracing::debug!(error = crate::error::in_full(&error), "leaving out a revision of a peer");
            report.clashes += 1;
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Returns the note of a revision. Tags that were changed here wait for a push as long as the owner has those that
/// they were changed from; when it has others, its own count.
fn merge(note: Option<&Revision>, theirs: &RemoteRevision, peer: &str) -> Revision {
    let waiting = note.filter(|note| note.orig_tags == theirs.tags);
    Revision {
        id: theirs.id.clone(),
        timestamp: theirs.timestamp,
        parent: theirs.parent.clone(),
        sequence: None,
        stats: Stats {
            bytes_written: theirs.stats.bytes_written,
            duration_secs: theirs.stats.duration_secs,
            extra: BTreeMap::new(),
        },
        tags: waiting.map_or_else(|| theirs.tags.clone(), |note| note.tags.clone()),
        backend_type: BackendType::Other(String::new()),
        trust: theirs.trust,
        orig_tags: theirs.tags.clone(),
        server: peer.to_owned(),
        image_size: theirs.image_size,
        map_seal: None,
        data_bytes: None,
        stored_bytes: None,
        source: BTreeMap::new(),
        extra: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests;
