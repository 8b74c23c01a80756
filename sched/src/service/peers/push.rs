//! Tells the owners of revisions which tags were changed here.
//!
//! The owner changes first, then the note. Whoever dies in between finds at the next push that the owner has the new
//! tags already, or not the revision any more, and takes that for done: a push can be repeated at any time. The owner
//! compares the old tags itself, so a change that it made meanwhile is never overwritten.

use std::collections::{BTreeMap, BTreeSet};

use backy_store::{Job, Revision, Tag};

use super::{PeerReport, PeersReport, is_refusal, notes_of};
use crate::error::{Error, Result, in_full};
use crate::service::client::{Client, RemoteList, Reply};
use crate::service::config::PeerConfig;

/// Pushes the changed tags of all notes of the job. An error is one of this server; those of peers are in the report.
pub fn push(job: &Job, peers: &BTreeMap<String, PeerConfig>, task_id: Option<&str>) -> Result<PeersReport> {
    let mut pending: BTreeMap<String, Vec<Revision>> = BTreeMap::new();
    for note in notes_of(job, None)?.into_iter().filter(|note| note.is_clean() && note.is_pending()) {
        pending.entry(note.server.clone()).or_default().push(note);
    }
    let mut report = PeersReport::default();
    for (name, notes) in pending {
        let mut peer = PeerReport { revisions: notes.len(), ..PeerReport::new(&name) };
        match peers.get(&name) {
            Some(config) => {
                let client = Client::new(config.clone(), task_id);
                Pusher { job, client, list: None, report: &mut peer }.push(&notes)?;
            }
            None => peer.fail(job, "it is not among the peers of the configuration".to_owned()),
        }
        report.peers.push(peer);
    }
    Ok(report)
}

/// What is pushed to one peer.
struct Pusher<'p> {
    job: &'p Job,
    client: Client,
    /// What the peer has, once that was asked for.
    list: Option<RemoteList>,
    report: &'p mut PeerReport,
}

/// What came of one revision.
enum Pushed {
    /// The peer has the tags, or the revision no more.
    Done,
    /// The peer has the tags, and keeps the revision although it has none.
    Kept,
    /// Not this one.
    Failed(String),
    /// Not this one, and the others would fare no better.
    Over(String),
}

impl Pusher<'_> {
    fn push(&mut self, notes: &[Revision]) -> Result<()> {
        let mut emptied = false;
        for note in notes {
            match self.push_one(note).unwrap_or_else(|error| Pushed::Over(in_full(&error))) {
                Pushed::Done => {
                    emptied |= note.tags.is_empty();
                    self.settle(note, note.tags.is_empty())?;
                }
                Pushed::Kept => self.settle(note, false)?,
                Pushed::Failed(reason) => self.report.fail(self.job, reason),
                Pushed::Over(reason) => {
                    self.report.fail(self.job, reason);
                    break;
                }
            }
        }
        if emptied {
            match self.client.purge(self.job.name()) {
                // What is held for `undelete`, or in use, goes with a later purge of the peer's own.
                Ok(_) => {}
                Err(error) => self.report.fail(self.job, in_full(&error)),
            }
        }
        Ok(())
    }

    /// An error is one of the way to the peer.
    fn push_one(&mut self, note: &Revision) -> Result<Pushed> {
        let mut old = &note.orig_tags;
        let mut reply = self.set_tags(note, old)?;
        if reply == Reply::Differs && self.has_tags_already(note)? {
            // Once more, for what follows from them: without tags the revision is forgotten.
            old = &note.tags;
            reply = self.set_tags(note, old)?;
        }
        if reply == Reply::Keeps {
            // The last trusted revision stays there, without tags.
            tracing::info!(job = %self.job.name(), revision = %note.id, peer = %self.report.peer, "the peer keeps its last trusted revision");
            reply = self.client.set_tags(self.job.name(), &note.id, old, &note.tags, false)?;
            if reply == Reply::Done(()) {
                return Ok(Pushed::Kept);
            }
        }
        Ok(match reply {
            Reply::Keeps => Pushed::Failed(format!("it keeps revision {}, its last trusted one", note.id)),
            Reply::Done(()) => Pushed::Done,
            Reply::Missing if note.tags.is_empty() => Pushed::Done,
            Reply::Missing => Pushed::Failed(format!("it does not have revision {} any more", note.id)),
            Reply::Differs => Pushed::Failed(format!(
                "the tags of revision {} were changed there, the next pull takes them",
                note.id
            )),
            Reply::Active => {
                Pushed::Over("the job is configured there, so it takes no changes of tags".to_owned())
            }
            Reply::Busy => Pushed::Over("another run has the job locked there".to_owned()),
        })
    }

    fn set_tags(&self, note: &Revision, old: &BTreeSet<Tag>) -> Result<Reply<()>> {
        self.client.set_tags(self.job.name(), &note.id, old, &note.tags, true)
    }

    fn has_tags_already(&mut self, note: &Revision) -> Result<bool> {
        if self.list.is_none()
            && let Reply::Done(list) = self.client.revisions(self.job.name())?
        {
            self.list = Some(list);
        }
        let listed = self.list.iter().flat_map(|list| &list.revisions);
        Ok(listed.filter(|theirs| theirs.id == note.id).any(|theirs| theirs.tags == note.tags))
    }

    /// Writes down that the peer has the tags that `pushed` had, or not the revision any more. They may have been changed once more meanwhile.
    fn settle(&mut self, pushed: &Revision, is_gone: bool) -> Result<()> {
        let guard = self.job.lock_manifests()?;
        let notes = self.job.notes(&guard)?;
        let settled = notes.read(&pushed.id, &pushed.server).and_then(|now| match now {
            None => Ok(()),
            Some(_) if is_gone => {
                self.report.removed += 1;
                notes.remove(&pushed.id, &pushed.server)
            }
            Some(now) => notes.write(&Revision { orig_tags: pushed.tags.clone(), ..now }).map(drop),
        });
        match settled.map_err(Error::from) {
            Ok(()) => self.report.changed += 1,
            Err(error) if is_refusal(&error) => self.report.fail(self.job, in_full(&error)),
            Err(error) => return Err(error),
        }
        tracing::info!(job = %self.job.name(), revision = %pushed.id, peer = %self.report.peer, "pushed tags");
        Ok(())
    }
}

#[cfg(test)]
mod tests;
