//! The register beside what is in the directories of the store: states that changed, revisions that are missing, maps
//! that one of the two lost.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::registered::Registered;
use super::scan::{self, Tree};
use super::{Gone, Sweep};
use crate::error::{Context, Error, Refusal, Result};
use crate::format::manifest;
use crate::fs::disk;
use crate::legacy::purge;
use crate::monitor::Finding;
use crate::name::JobName;
use crate::repository::job::job_files;
use crate::repository::register::{Record, Register, State};
use crate::repository::session;
use crate::revision::{BackendType, RevisionId};

impl Sweep<'_> {
    /// Brings the states of the records up to date with what is in the store: commits that died, revisions that were
    /// given up and are back, and those whose hold time is over. What a dry run would remove is added to `gone`.
    pub(super) fn settle(&mut self, gone: &mut Gone) -> Result<()> {
        let tree = scan::scan(self.repository.root())?;
        let records = self.register.list()?;
        let seen: Vec<bool> = records
            .iter()
            .map(|record| Ok(seen_in(&self.register, &tree, record)?.is_some()))
            .collect::<Result<_>>()?;
        for (record, is_seen) in records.iter().zip(&seen) {
            let is_there = *is_seen || self.has_manifest(record)?;
            let is_given_up = || self.options.without.contains(&record.job);
            let mut state = match &record.state {
                State::Pending(session) if session::is_running(self.repository.root(), session)? => continue,
                State::Pending(_) | State::Dropped(_) | State::Purged if is_there => State::Current,
                // Whether the manifest exists can only be told where the job can be seen.
                State::Pending(_) if self.can_see(&record.job, &records, &seen) || is_given_up() => {
                    State::Dropped(self.options.now)
                }
                State::Current if !is_there && is_given_up() => State::Dropped(self.options.now),
                kept => kept.clone(),
            };
            if !is_there {
                self.incomplete.insert(record.job.clone());
            }
            match state {
                State::Dropped(at) if !self.is_held(at) => state = State::Purged,
                State::Dropped(_) => self.report.dropped += 1,
                _ => {}
            }
            if state == record.state {
                continue;
            }
            if !self.options.dry_run {
                match self.repository.with_reserve(|| self.register.change(record, state.clone())) {
                    // The commit has ended since the records were listed, and its record is current.
                    Err(error)
                        if matches!(record.state, State::Pending(_))
                            && error.io_kind() == Some(std::io::ErrorKind::NotFound) => {}
                    other => drop(other?),
                }
            } else if state == State::Purged {
                gone.insert((record.job.clone(), record.id.clone()));
            }
        }
        Ok(())
    }

    /// Whether the directory of a job can be seen, so that what is not in it is not there: some revision of it is seen, or
    /// it never had any and its directory is there.
    fn can_see(&self, job: &JobName, records: &[Record], seen: &[bool]) -> bool {
        let is_current = |record: &Record| record.state == State::Current && record.job == *job;
        let mut current = records.iter().zip(seen).filter(|(record, _)| is_current(record)).peekable();
        match current.peek() {
            Some(_) => current.any(|(_, is_seen)| *is_seen),
            None => self.repository.job(job).is_ok(),
        }
    }

    /// Reports revisions, links and manifests that should be in the store and are not.
    pub(super) fn report_absence(&mut self, tree: &Tree, records: &[Record]) -> Result<()> {
        let known: HashSet<&RevisionId> = records.iter().map(|record| &record.id).collect();
        for record in records {
            let is_missing = match &record.state {
                State::Current => true,
                State::Pending(session) => !session::is_running(self.repository.root(), session)?,
                State::Dropped(_) | State::Purged => false,
            };
            let is_dropped = self.options.dry_run && self.options.without.contains(&record.job);
            if is_missing
                && !is_dropped
                && seen_in(&self.register, tree, record)?.is_none()
                && !self.has_manifest(record)?
            {
                self.report.missing.entry(record.job.clone()).or_default().push(record.id.clone());
            }
        }
        self.report.missing.values_mut().for_each(|ids| ids.sort());
        self.report.dangling.clone_from(&tree.dangling);
        let is_stray = |id: &RevisionId| !tree.manifests.contains_key(id) && !known.contains(id);
        self.report.stray_maps =
            tree.maps.iter().filter(|(id, _)| is_stray(id)).map(|(_, path)| path.clone()).collect();
        Ok(())
    }

    /// Replaces damaged maps by those of the register, and damaged ones of the register by those of the jobs.
    fn replace_damaged(&mut self, tree: &Tree, by_id: &HashMap<&RevisionId, &Record>) {
        for (id, damaged) in self.needs.recoverable() {
            let in_job = tree.maps.iter().find(|(map, _)| map == id).map(|(_, path)| path.clone());
            let kept = by_id.get(id).map(|record| self.register.path(record));
            let whole = if in_job.as_ref() == Some(damaged) { kept } else { in_job };
            let Some(whole) = whole else { continue };
            let replaced = std::fs::read(&whole)
                .context("read", &whole)
                .and_then(|bytes| disk::write_atomically(damaged, &bytes));
            match replaced {
                Ok(()) => self.report.maps_repaired.push(id.clone()),
                Err(error) => {
                    tracing::warn!(revision = %id, error = crate::error::in_full(&error), "map-not-repaired")
                }
            }
        }
    }

    /// Looks once more for the manifest of a record, with the manifests of the job locked: one that is renamed while a
    /// directory is listed, by `forget` or a change of tags, can be left out of the list.
    fn has_manifest(&self, record: &Record) -> Result<bool> {
        let job = match self.repository.job(&record.job) {
            Ok(job) => Some(job),
            // The store of one job is that job's directory.
            Err(Error::JobUnknown { .. } | Error::JobLinkBroken { .. }) => self.repository.own_job()?,
            Err(error) => return Err(error),
        };
        let Some(job) = job else { return Ok(false) };
        let _manifests = job.lock_manifests_to_look()?;
        Ok(job_files(job.dir())?.iter().any(|(file, _)| file.of_manifest() == Some(&record.id)))
    }

    /// Refuses where the register has lost records since the last purge and the directories do not have them either, and
    /// where a job was given up of which nothing is missing.
    pub(super) fn check_register(
        &self,
        registered: &Registered,
        tree: &Tree,
        records: &[Record],
        unregistered: &[(Record, &PathBuf)],
    ) -> Result<()> {
        let unknown = unregistered.iter().map(|(record, _)| record);
        let mut lost = registered.lost(records.iter().chain(unknown).cloned());
        for (job, ids) in &mut lost {
            // Those that this purge removed, and those whose manifests are there without a map, are told by others.
            let is_explained = |id: &RevisionId| {
                tree.mapless.iter().any(|(other, _)| other == id)
                    || self.report.revisions_deleted.iter().any(|(of, other)| of == job && other == id)
            };
            ids.retain(|id| !is_explained(id));
        }
        lost.retain(|_, ids| !ids.is_empty());
        for job in self.options.without.iter().filter(|job| !lost.contains_key(job)) {
            if !self.incomplete.contains(job) {
                return Err(Error::SweepRefused { refusal: Refusal::NotMissing { job: job.clone() } });
            }
        }
        for (job, lost) in lost {
            // Only an operator's word that it was on purpose helps: it is known that they are needed.
            if !self.options.without.contains(&job) {
                return Err(Error::SweepRefused {
                    refusal: Refusal::RegisterShrunk { job, lost: lost.len() },
                });
            }
        }
        Ok(())
    }

    /// Refuses where a revision needs chunks that are not known: its map is damaged, or lost.
    pub(super) fn check_needs_are_known(&self, tree: &Tree, records: &[Record]) -> Result<()> {
        for (id, path, reason) in self.needs.unknown() {
            let dir = path.parent().unwrap_or(path).to_owned();
            let job = dir.file_name().and_then(|name| JobName::parse(&name.to_string_lossy()).ok());
            if let Some(job) = job {
                self.monitor.finding(&Finding::of_revision(&job, id, reason));
            }
            self.refuse(Refusal::NeedsUnknown { revision: id.clone(), dir, reason: reason.clone() })?;
        }
        let known: HashSet<&RevisionId> = records.iter().map(|record| &record.id).collect();
        for (id, path) in tree.mapless.iter().filter(|(id, _)| !known.contains(id)) {
            let Some(reason) = mapless_problem(path, id)? else { continue };
            let dir = path.parent().unwrap_or(path).to_owned();
            self.refuse(Refusal::NeedsUnknown { revision: id.clone(), dir, reason })?;
        }
        Ok(())
    }

    /// Makes maps again that are missing beside their manifests, and enters maps that the register does not know.
    pub(super) fn repair(
        &mut self,
        tree: &Tree,
        records: &[Record],
        unregistered: &[(Record, &PathBuf)],
    ) -> Result<()> {
        let by_id: HashMap<&RevisionId, &Record> =
            records.iter().map(|record| (&record.id, record)).collect();
        for (id, manifest) in &tree.mapless {
            let Some(record) = by_id.get(id).filter(|record| record.state != State::Purged) else { continue };
            let map = manifest.with_file_name(format!("{id}.map"));
            if disk::exists(&map)? {
                // Committed since the directory was listed, or something that is not a file is in the way.
                continue;
            }
            match self.register.copy_out(record, &map) {
                Ok(()) => self.report.maps_repaired.push(id.clone()),
                Err(error) => {
                    tracing::warn!(revision = %id, error = crate::error::in_full(&error), "map-not-repaired")
                }
            }
        }
        self.replace_damaged(tree, &by_id);
        for (record, map) in unregistered {
            self.repository.with_reserve(|| self.register.add(record.clone(), map))?;
            let manifest = map.with_extension("rev");
            if disk::exists(&manifest)? {
                self.repository.with_reserve(|| self.register.keep_manifest(record, &manifest))?;
            }
        }
        Ok(())
    }

    /// Assigns records to the jobs in whose directories the manifests lie now, and removes those of purged revisions
    /// once nothing of them is left. How many stay is written down before.
    pub(super) fn close_register(&self, before: &Registered, tree: &Tree) -> Result<()> {
        let (mut purged, mut moved, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for record in self.register.list()? {
            let job = seen_in(&self.register, tree, &record)?.and_then(|dir| job_of(dir));
            match (job, &record.state) {
                (_, State::Purged) if !self.has_ghosts => purged.push(record),
                (Some(job), State::Current) if job != record.job => moved.push((record, job)),
                _ => kept.push(record),
            }
        }
        Registered::of(kept).save(self.repository, before)?;
        for (record, job) in &moved {
            self.repository.with_reserve(|| self.register.assign(record, job))?;
        }
        purged.iter().try_for_each(|record| self.register.remove(record))
    }
}

/// The job whose directory this is.
pub(super) fn job_of(dir: &Path) -> Option<JobName> {
    let name = |dir: &Path| JobName::parse(dir.file_name()?.to_str()?).ok();
    // The root can be a job itself, and be given as `.`.
    name(dir).or_else(|| name(&dir.canonicalize().ok()?))
}

/// The maps with manifests that the register does not know, with the records that they should have. A copy of a job's
/// directory is a job of its own, and has records of its own.
pub(super) fn unregistered<'t>(
    register: &Register,
    tree: &'t Tree,
    records: &[Record],
) -> Result<Vec<(Record, &'t PathBuf)>> {
    let mut known: HashMap<&RevisionId, Vec<&Record>> = HashMap::new();
    for record in records {
        known.entry(&record.id).or_default().push(record);
    }
    let mut found = Vec::new();
    for (id, map) in &tree.maps {
        let Some(dir) = map.parent().filter(|dir| has_manifest_in(tree, id, dir)) else { continue };
        let Some(job) = job_of(dir) else { continue };
        let mut is_known = false;
        for record in known.get(id).into_iter().flatten() {
            is_known |= record.job == job || is_same_file(&register.path(record), map)?;
        }
        if !is_known {
            found.push((Record { job, id: id.clone(), state: State::Current }, map));
        }
    }
    Ok(found)
}

fn has_manifest_in(tree: &Tree, id: &RevisionId, dir: &Path) -> bool {
    tree.manifests.get(id).is_some_and(|dirs| dirs.iter().any(|other| other == dir))
}

/// The directory in which the manifest of a record is: that of its job, wherever it was moved, or one of another name with
/// the very file that the record is a name of, which is a job that was renamed. A copy under another name is another job.
pub(crate) fn seen_in<'t>(
    register: &Register,
    tree: &'t Tree,
    record: &Record,
) -> Result<Option<&'t PathBuf>> {
    let dirs = tree.manifests.get(&record.id).map_or(&[][..], Vec::as_slice);
    if let Some(dir) = dirs.iter().find(|dir| job_of(dir).as_ref() == Some(&record.job)) {
        return Ok(Some(dir));
    }
    let path = register.path(record);
    for dir in dirs {
        if is_same_file(&path, &dir.join(format!("{}.map", record.id)))? {
            return Ok(Some(dir));
        }
    }
    Ok(None)
}

/// Whether both names lead to one file.
pub(super) fn is_same_file(one: &Path, other: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let file = |path: &Path| match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some((metadata.dev(), metadata.ino()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("examine", path, error)),
    };
    let one = file(one)?;
    Ok(one.is_some() && one == file(other)?)
}

/// What is wrong with a manifest without a map; `None` where it needs none: of backy 2, whose chunks are not ours, or
/// gone, or committed since the directory was listed.
fn mapless_problem(path: &Path, id: &RevisionId) -> Result<Option<String>> {
    Ok(match manifest::read(path, id) {
        Ok(revision) if revision.backend_type != BackendType::Framed => None,
        // Committed after the list was read; its chunks are in its log.
        Ok(_) if disk::exists(&path.with_file_name(format!("{id}.map")))? => None,
        Err(error) if error.io_kind() == Some(std::io::ErrorKind::NotFound) => None,
        // Beside an image of backy 2, it is one of its manifests: the chunks that it needs are not ours.
        Err(_) if purge::is_image(&path.with_file_name(id.as_str()), id) => None,
        Ok(_) => Some("its chunk map is missing".to_owned()),
        Err(error) => Some(error.to_string()),
    })
}
