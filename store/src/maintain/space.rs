//! What revisions cost: the bytes that would be free if they were forgotten and purged, each by itself and all together,
//! and what the whole store takes.
//!
//! A file belongs to a group of revisions alone when no map outside of the group names it, for a chunk or for what a
//! recipe refers to. Maps are compared page by page, and a page that many revisions share is read twice at most. Forgotten
//! revisions do not count: a purge removes them anyway.

use std::collections::hash_map::Entry as Place;
use std::collections::{HashMap, HashSet};

use crate::error::{Error, Result};
use crate::format::map::{ChunkMap, PageKey};
use crate::format::name::{FileKind, FileName};
use crate::monitor::{Finding, Monitor};
use crate::repository::Repository;
use crate::repository::job::Job;
use crate::revision::Revision;

/// What a store takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreSpace {
    /// Files of chunks and groups.
    pub chunks: u64,
    /// Bytes in them.
    pub chunk_bytes: u64,
    /// Of the files, groups.
    pub groups: u64,
    /// Bytes in those.
    pub group_bytes: u64,
    /// Bytes of images that all revisions hold, without holes.
    pub image_bytes: u64,
}

/// What groups of revisions cost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupSpace {
    /// For each group what forgetting it alone would free.
    pub exclusive_bytes: Vec<u64>,
    /// What forgetting all of them would free: also what only they share with each other.
    pub together_bytes: u64,
}

/// To whom a file belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Group(usize),
    /// More than one group, and nobody else.
    Groups,
    Others,
}

/// Returns what the store takes.
pub fn store_space(repository: &Repository, monitor: &dyn Monitor) -> Result<StoreSpace> {
    repository.check_ours()?;
    let backend = repository.backend()?;
    let mut space = StoreSpace::default();
    monitor.begin("measuring chunks", Some(256));
    for shard in 0..=255 {
        check_stop(monitor)?;
        let mut names = Vec::new();
        backend.list(shard, &mut |name| names.push(name))?;
        for name in names {
            // Gone since it was listed, it takes nothing.
            let Some(bytes) = backend.len(&name)? else { continue };
            space.chunks += 1;
            space.chunk_bytes += bytes;
            if name.kind == FileKind::Group {
                space.groups += 1;
                space.group_bytes += bytes;
            }
        }
        monitor.advance(1);
    }
    monitor.end();
    for job in repository.sharing_jobs()? {
        let revisions = job.revisions()?.revisions;
        let ours = revisions.iter().filter(|revision| revision.has_chunks());
        space.image_bytes = ours.map(image_bytes).fold(space.image_bytes, u64::saturating_add);
    }
    Ok(space)
}

/// Returns what groups of the store's revisions cost. Revisions that have no chunks in this store cost nothing here; of
/// one whose map is damaged, the damage is told, and what can be read counts.
pub fn group_space(
    repository: &Repository,
    groups: &[Vec<(Job, Revision)>],
    monitor: &dyn Monitor,
) -> Result<GroupSpace> {
    repository.check_ours()?;
    let mut owners = Owners::default();
    let mut own = vec![0; groups.len()];
    let mut seen = HashSet::new();
    for (number, group) in groups.iter().enumerate() {
        for (job, revision) in group.iter().filter(|(_, revision)| revision.has_chunks()) {
            check_stop(monitor)?;
            seen.insert((job.name().clone(), revision.id.clone()));
            owners.add(job, revision, Owner::Group(number), monitor)?;
            own[number] += facts_bytes(job, revision);
        }
    }
    for job in repository.sharing_jobs()? {
        for revision in job.revisions()?.revisions.iter().filter(|revision| revision.has_chunks()) {
            check_stop(monitor)?;
            if !seen.contains(&(job.name().clone(), revision.id.clone())) {
                owners.add(&job, revision, Owner::Others, monitor)?;
            }
        }
    }
    let backend = repository.backend()?;
    let mut space = GroupSpace { together_bytes: own.iter().sum(), exclusive_bytes: own };
    for (name, owner) in owners.files.iter().filter(|(_, owner)| **owner != Owner::Others) {
        let bytes = backend.len(name)?.unwrap_or(0);
        space.together_bytes += bytes;
        if let Owner::Group(number) = owner {
            space.exclusive_bytes[*number] += bytes;
        }
    }
    Ok(space)
}

fn check_stop(monitor: &dyn Monitor) -> Result<()> {
    if monitor.cancelled() { Err(Error::Cancelled) } else { Ok(()) }
}

fn image_bytes(revision: &Revision) -> u64 {
    revision.data_bytes.or(revision.image_size).unwrap_or(0)
}

/// Bytes of a revision's own files: map and manifest.
fn facts_bytes(job: &Job, revision: &Revision) -> u64 {
    let paths = [job.map_path(&revision.id), job.manifest_path(&revision.id)];
    paths.iter().filter_map(|path| std::fs::metadata(path).ok()).map(|facts| facts.len()).sum()
}

/// The files that groups use, and to whom they belong.
#[derive(Default)]
struct Owners {
    files: HashMap<FileName, Owner>,
    pages: HashMap<PageKey, Owner>,
}

impl Owners {
    fn add(&mut self, job: &Job, revision: &Revision, owner: Owner, monitor: &dyn Monitor) -> Result<()> {
        let read = job.open_map(revision).and_then(|map| self.add_map(&map, owner));
        match read {
            // Forgotten and purged since it was listed.
            Err(Error::RevisionUnknown { .. }) => Ok(()),
            Err(error) if error.is_damage() => {
                monitor.finding(&Finding::of_revision(job.name(), &revision.id, error));
                Ok(())
            }
            other => other,
        }
    }

    fn add_map(&mut self, map: &ChunkMap, owner: Owner) -> Result<()> {
        let mut damage = None;
        for page in 0..map.page_count() {
            let key = map.page_key(page);
            let known = self.pages.get(&key).copied();
            let owner = known.map_or(owner, |known| merged(known, owner));
            // Its files are known to belong to these.
            if known == Some(owner) {
                continue;
            }
            let entries = match map.read_entries(page) {
                // The other pages count all the same.
                Err(error) if error.is_damage() => {
                    damage.get_or_insert(error);
                    continue;
                }
                other => other?,
            };
            for place in entries.into_iter().flatten() {
                // A chunk that is there in full, too, is needed by whoever names it by a recipe.
                self.add_file(FileName::chunk(place.id), owner);
                place.files().for_each(|file| self.add_file(file, owner));
            }
            self.pages.insert(key, owner);
        }
        damage.map_or(Ok(()), Err)
    }

    fn add_file(&mut self, file: FileName, owner: Owner) {
        match self.files.entry(file) {
            Place::Occupied(mut place) => {
                let merged = merged(*place.get(), owner);
                place.insert(merged);
            }
            // What only others use is nobody's concern here.
            Place::Vacant(_) if owner == Owner::Others => {}
            Place::Vacant(place) => {
                place.insert(owner);
            }
        }
    }
}

/// Two owners of one thing.
fn merged(one: Owner, other: Owner) -> Owner {
    match (one, other) {
        (Owner::Others, _) | (_, Owner::Others) => Owner::Others,
        (one, other) if one == other => one,
        _ => Owner::Groups,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maintain::sweep::{SweepOptions, sweep};
    use crate::testing::{new_job, noise, now, write_revision};
    use crate::{CHUNK_SIZE, JobName, Silent};

    const CHUNK: usize = CHUNK_SIZE as usize;

    fn purge(job: &Job, revision: &Revision) -> u64 {
        job.forget(&job.lock_manifests().unwrap(), &revision.id, now()).unwrap();
        let options = SweepOptions::new(0, now());
        sweep(job.repository(), &options, &Silent).unwrap().bytes_deleted
    }

    #[test]
    fn what_is_exclusive_is_what_forgetting_frees() {
        let (_dir, job) = new_job("web01");
        let mut data = noise(1, 4 * CHUNK);
        let first = write_revision(&job, &data, None);
        data[CHUNK..2 * CHUNK].copy_from_slice(&noise(2, CHUNK));
        data[3 * CHUNK + 5] ^= 1;
        let second = write_revision(&job, &data, Some(first.clone()));
        data[2 * CHUNK..3 * CHUNK].copy_from_slice(&noise(3, CHUNK));
        let third = write_revision(&job, &data, Some(second.clone()));
        let other =
            job.repository().create_job(&JobName::parse("web02").unwrap(), false, "{}\n", now()).unwrap();
        let fourth = write_revision(&other, &data[..CHUNK], None);
        let of = |revisions: &[&Revision]| {
            let groups: Vec<_> =
                revisions.iter().map(|revision| vec![(job.clone(), (*revision).clone())]).collect();
            group_space(job.repository(), &groups, &Silent).unwrap()
        };
        let facts = |revision| facts_bytes(&job, revision);
        let total = store_space(job.repository(), &Silent).unwrap();
        // First: four chunks; second: one and a group; third: one.
        assert_eq!((total.chunks, total.groups), (7, 1));
        assert_eq!(total.image_bytes, 13 * CHUNK_SIZE);
        let whole = CHUNK_SIZE + 2336 + 32;
        assert_eq!(total.chunk_bytes, 6 * whole + total.group_bytes);
        let space = of(&[&first, &second, &third]);
        // The first's chunk 3 is the base of a recipe that the others use.
        assert_eq!(space.exclusive_bytes[0], whole + facts(&first));
        assert_eq!(space.exclusive_bytes[1], facts(&second));
        assert_eq!(space.exclusive_bytes[2], whole + facts(&third));
        let all = facts(&first) + facts(&second) + facts(&third);
        assert_eq!(space.together_bytes, 5 * whole + total.group_bytes + all, "the other job has one chunk");
        // Two that share what no third one has.
        let both = of(&[&second, &third]);
        assert_eq!(both.together_bytes, 2 * whole + total.group_bytes + facts(&second) + facts(&third));
        // It is what a purge frees, one after the other.
        assert_eq!(purge(&job, &first), whole);
        assert_eq!(
            of(&[&second, &third]).together_bytes - facts(&second) - facts(&third),
            4 * whole + total.group_bytes
        );
        assert_eq!(purge(&job, &third), whole);
        assert_eq!(purge(&job, &second), 3 * whole + total.group_bytes);
        assert_eq!(purge(&other, &fourth), whole);
    }

    #[test]
    fn a_damaged_page_is_told_and_the_pages_behind_it_count() {
        let (_dir, job) = new_job("web01");
        let mut data = vec![0; 2049 * CHUNK];
        data[..10].fill(1);
        data[2048 * CHUNK..].copy_from_slice(&noise(1, CHUNK));
        let first = write_revision(&job, &data, None);
        let path = job.map_path(&first.id);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[64 + 2 * 32] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let space = group_space(job.repository(), &[vec![(job.clone(), first)]], &Silent).unwrap();
        assert!(space.exclusive_bytes[0] > CHUNK_SIZE, "{space:?}");
    }

    #[test]
    fn a_damaged_map_is_told_and_the_rest_counts() {
        let (_dir, job) = new_job("web01");
        let first = write_revision(&job, &noise(1, CHUNK), None);
        let second = write_revision(&job, &noise(2, CHUNK), None);
        std::fs::write(job.map_path(&first.id), b"").unwrap();
        let groups = [vec![(job.clone(), first)], vec![(job.clone(), second)]];
        let space = group_space(job.repository(), &groups, &Silent).unwrap();
        assert!(space.exclusive_bytes[0] < 1000 && space.exclusive_bytes[1] > CHUNK_SIZE);
    }
}
