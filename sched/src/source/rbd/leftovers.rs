//! What restores that were killed have left in Ceph: images `IMAGE.unfinished-<id>`.
//!
//! Removed is only what this store has a note of, and whose note can be locked: the restore that made it and every
//! program that it started are gone then (`store/src/restore/restoring.rs`), so nothing can fill, finish or rename the image any
//! more. No watcher and no lock of Ceph can tell that: between its creation and its opening, and between its end and its
//! new name, nobody has the image open. An image without a note is of a restore from another store, perhaps on another
//! host, and stays; what is open in spite of all that is kept by `rbd rm` itself.
//!
//! It is done at the end of a restore, which is more urgent, and nothing that goes wrong here makes that one fail. After one
//! that has failed, or lost something, nothing is removed: a restore that replaces an image can be killed when the old one
//! is gone and the new one, whole, has not its name yet. What it has left is the only copy in Ceph then.

use std::time::{Duration, Instant};

use backy_store::{FoundRestore, Monitor, Repository, RestoreNote, RevisionId};

use super::Environment;
use super::error::RbdError;
use super::patience::pause;
use super::target::RbdTarget;
use super::tool::RbdTool;
use crate::error::{Error, Result};

/// What stands between the name of the image and the id.
const INFIX: &str = ".unfinished-";
/// How long Ceph may take to notice that a client is gone, 30 seconds by default, and some more.
const LET_GO: Duration = Duration::from_secs(40);
/// Time between two attempts meanwhile.
const BETWEEN: Duration = Duration::from_secs(2);

/// An image that is not finished, and what became of it.
#[derive(Debug)]
pub struct Leftover {
    /// Pool and image.
    pub image: String,
    /// What became of it.
    pub fate: Fate,
    /// The words of the command that removes it.
    pub command: Vec<String>,
}

/// What became of an unfinished image.
#[derive(Debug)]
pub enum Fate {
    /// Its restore is dead, and it was removed.
    Removed,
    /// Its restore lives.
    IsFilled,
    /// This store has not heard of its restore.
    Unknown,
    /// Its restore is dead, and it was left alone.
    Spared,
    /// Its restore is dead, but it could not be removed.
    Stays(Error),
}

/// Returns the name of an image that is going to be `image`.
pub(super) fn unfinished_name(image: &str, id: &RevisionId) -> String {
    format!("{image}{INFIX}{id}")
}

/// Whether `name` is one that [`unfinished_name`] makes for `image`.
fn is_unfinished(name: &str, image: &str) -> bool {
    let id = name.strip_prefix(image).and_then(|rest| rest.strip_prefix(INFIX));
    id.is_some_and(|id| RevisionId::parse(id).is_ok_and(|id| id.is_random()))
}

/// Looks for what dead restores to this image have left, and removes it unless the restore `was_in_vain`.
pub fn tidy(
    target: &RbdTarget,
    environment: &Environment,
    store: &Repository,
    was_in_vain: bool,
    monitor: &dyn Monitor,
) -> Result<Vec<Leftover>> {
    let tool = target.tool(environment);
    // The notes first: what is dead now makes no image after the listing. Those of other images are let go at once: to
    // another restore they would seem to be of the living.
    let mut notes = store.noted_restores()?;
    notes.retain(|note| is_to_be(&note.place, &tool));
    let mut names = tool.images(monitor)?;
    names.retain(|name| is_unfinished(name, &tool.image));
    // And again: a restore that has begun since is in the listing, and its note is older than its image.
    let later = if names.is_empty() { Vec::new() } else { store.noted_restores()? };
    let later: Vec<String> = later.into_iter().map(|note| note.place).collect();
    let begun = Instant::now();
    let mut found = Vec::new();
    for name in names {
        let unfinished = tool.of_image(name);
        let image = unfinished.spec(None);
        let noted = notes.iter().position(|note| note.place == image).map(|at| notes.swap_remove(at));
        let fate = match noted {
            Some(FoundRestore { dead: Some(_), .. }) if was_in_vain => Fate::Spared,
            Some(FoundRestore { dead: Some(note), .. }) => remove(&unfinished, note, begun, monitor),
            Some(FoundRestore { dead: None, .. }) => Fate::IsFilled,
            None if later.contains(&image) => Fate::IsFilled,
            // It has begun after the first look at the notes and come to its end before the second.
            None if is_gone(&unfinished, monitor) => continue,
            None => Fate::Unknown,
        };
        let command = unfinished.command(&["rm", &image]);
        found.push(Leftover { image, fate, command });
    }
    // Dead restores that have left nothing. Should one have been on another cluster, its image is named there as one
    // without a note.
    notes.into_iter().for_each(|note| remove_note(note.dead));
    Ok(found)
}

/// Whether `place` is going to be the image of `tool`.
fn is_to_be(place: &str, tool: &RbdTool) -> bool {
    let name = place.strip_prefix(&tool.pool).and_then(|rest| rest.strip_prefix('/'));
    name.is_some_and(|name| is_unfinished(name, &tool.image))
}

fn is_gone(unfinished: &RbdTool, monitor: &dyn Monitor) -> bool {
    matches!(unfinished.info(None, monitor), Err(Error::Rbd(RbdError::Missing { .. })))
}

/// Removes the image of a dead restore. Its clients may seem to be there for a while.
fn remove(unfinished: &RbdTool, note: RestoreNote, begun: Instant, monitor: &dyn Monitor) -> Fate {
    let image = unfinished.spec(None);
    monitor.begin("removing what a killed restore has left", None);
    let removed = loop {
        match unfinished.remove_image(monitor) {
            Err(Error::Rbd(RbdError::Busy { .. })) if begun.elapsed() < LET_GO => {}
            Err(Error::Rbd(RbdError::Missing { .. })) => break Ok(()),
            other => break other,
        }
        if let Err(cancelled) = pause(BETWEEN, monitor) {
            break Err(cancelled);
        }
    };
    monitor.end();
    match removed {
        Ok(()) => {
            tracing::info!(%image, "unfinished-image-removed");
            remove_note(Some(note));
            Fate::Removed
        }
        Err(error) => Fate::Stays(error),
    }
}

/// Removes the note of an image that is not there, or has its name. One that stays names nothing, and the next restore
/// removes it.
pub(super) fn remove_note(note: Option<RestoreNote>) {
    if let Some(Err(error)) = note.map(RestoreNote::remove) {
        tracing::warn!(error = crate::error::in_full(&error), "restore-note-not-removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_a_restore_to_this_image_makes_are_ours() {
        let id = RevisionId::random().unwrap();
        let own = unfinished_name("web01.root", &id);
        assert!(is_unfinished(&own, "web01.root"));
        assert!(is_unfinished(&unfinished_name(&own, &id), &own), "of an image with such a name");
        for name in [
            "web01.root".to_owned(),
            "web01.root.unfinished-".to_owned(),
            "web01.root.unfinished-mine".to_owned(),
            format!("{own}x"),
            format!("{own}-old"),
            format!("old-{own}"),
            unfinished_name("web01.root2", &id),
            unfinished_name("web01", &id),
            unfinished_name(&own, &id),
            own.replace(".unfinished-", ".unfinished_"),
            format!("{}0", &own[..own.len() - 1]),
        ] {
            assert!(!is_unfinished(&name, "web01.root"), "{name}");
        }
    }
}
