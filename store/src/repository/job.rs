//! One job: a directory of revisions. Lists them, changes tags and trust, forgets and brings back.
//!
//! A revision is three things that can be seen in the directory: `<id>.map`, and `<id>.rev` (it exists) or
//! `<id>.forgotten-<seconds>` (it can be undeleted). Forgetting and bringing back is one rename each: it needs
//! no space, and there is no state between. A map without either is kept: its manifest may be away or not be copied
//! yet. Only where the store's register shows that a commit or a purge died in between is it removed.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Context, Error, Result};
use crate::format::manifest;
use crate::format::map::ChunkMap;
use crate::fs::disk;
use crate::fs::lock::{self, BackupGuard, ManifestGuard};
use crate::fs::ownership::{self, Secrecy};
use crate::legacy::image::OldImage;
use crate::monitor::Finding;
use crate::name::{JobName, Tag};
use crate::read::cache::FrameCache;
use crate::read::reader::RevisionReader;
use crate::repository::Repository;
use crate::repository::index::{self, KnownRevisions};
use crate::repository::register::{Record, Register, State};
use crate::repository::session;
use crate::revision::{BackendType, Revision, RevisionId, Trust, order};
use crate::timestamp::Timestamp;
use crate::write::{NewRevision, RevisionWriter};

/// The end of the name of a map in the making.
const UNFINISHED_MAP_SUFFIX: &str = ".map";

/// The name of the link of the original to a job's newest revision.
const ORIGINALS_LAST: &str = "last";

/// One job. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Job {
    name: JobName,
    dir: PathBuf,
    repository: Repository,
}

/// A job's revisions, oldest first (see [`crate::revision::order`]), and the manifests that could not be read.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The revisions, oldest first.
    pub revisions: Vec<Revision>,
    /// One finding for each unusable manifest.
    pub damaged: Vec<Finding>,
}

/// A revision that was forgotten and can still be undeleted.
#[derive(Clone, Debug)]
pub struct Forgotten {
    /// The revision.
    pub revision: Revision,
    /// When it was forgotten.
    pub forgotten_at: Timestamp,
}

/// A backup that has not ended, or never will: its process may have died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// The id that its revision is going to have.
    pub id: RevisionId,
    /// When it began.
    pub started_at: Timestamp,
}

/// A mark that differs whenever the job's revisions, tags or trust states may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    pub(crate) inode: u64,
    pub(crate) mtime_nanos: i128,
}

impl Generation {
    /// Whether the directory has been quiet long enough that an equal generation later proves that nothing
    /// changed. While it is not, two changes could share one time stamp: list again.
    pub fn is_settled(&self, now: Timestamp) -> bool {
        i128::from(now.as_micros()) * 1000 - self.mtime_nanos > 2_000_000_000
    }
}

/// A file in a job's directory that belongs to a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum JobFile {
    Manifest(RevisionId),
    Forgotten(RevisionId, Timestamp),
    Map(RevisionId),
    Unfinished,
    /// Something with the name of a manifest that is no file, and what it is. It cannot be read, but what it stands
    /// for is not gone.
    NotAFile(RevisionId, &'static str),
}

impl JobFile {
    /// Whether it is a chunk map.
    pub(crate) fn is_map(&self) -> bool {
        matches!(self, Self::Map(_))
    }

    /// The revision whose manifest it is, forgotten or not.
    pub(crate) fn of_manifest(&self) -> Option<&RevisionId> {
        match self {
            Self::Manifest(id) | Self::Forgotten(id, _) | Self::NotAFile(id, _) => Some(id),
            Self::Map(_) | Self::Unfinished => None,
        }
    }

    /// Reads a file name; `None` for all others.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        if name.starts_with(disk::TEMPORARY_PREFIX) {
            return Some(Self::Unfinished);
        }
        let (id, suffix) = name.split_once('.')?;
        let id = RevisionId::parse(id).ok()?;
        match suffix {
            "rev" => Some(Self::Manifest(id)),
            "map" => Some(Self::Map(id)),
            _ => {
                let secs = suffix.strip_prefix("forgotten-")?.parse().ok()?;
                Some(Self::Forgotten(id, Timestamp::from_secs(secs)?))
            }
        }
    }
}

/// Lists the revision files of a directory with their paths. The links `last` and `last.rev` of the original are no
/// revisions.
pub(crate) fn job_files(dir: &Path) -> Result<Vec<(JobFile, PathBuf)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).context("list", dir)? {
        let entry = entry.context("list", dir)?;
        let Some(file) = entry.file_name().to_str().and_then(JobFile::parse) else { continue };
        match entry.file_type() {
            Ok(kind) if kind.is_file() => files.push((file, entry.path())),
            Ok(kind) => {
                if let JobFile::Manifest(id) = file
                    && id.as_str() != ORIGINALS_LAST
                {
                    files.push((JobFile::NotAFile(id, kind_of(kind)), entry.path()));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("examine", entry.path(), error)),
        }
    }
    Ok(files)
}

/// What a thing in a directory is that is no file.
fn kind_of(kind: std::fs::FileType) -> &'static str {
    if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_dir() {
        "a directory"
    } else {
        "a device, pipe or socket"
    }
}

impl Job {
    pub(crate) fn new(name: JobName, dir: PathBuf, repository: Repository) -> Self {
        Self { name, dir, repository }
    }

    /// Its name.
    pub fn name(&self) -> &JobName {
        &self.name
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The store that keeps its chunks.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("config")
    }

    /// Replaces the configuration file. Durable when it returns.
    pub fn write_config(&self, text: &str) -> Result<()> {
        self.check_owner()?;
        self.repository.with_reserve(|| disk::write_atomically(&self.config_path(), text.as_bytes()))
    }

    pub(crate) fn manifest_path(&self, id: &RevisionId) -> PathBuf {
        self.dir.join(format!("{id}.rev"))
    }

    /// The file that holds a revision's chunk map.
    pub fn map_path(&self, id: &RevisionId) -> PathBuf {
        self.dir.join(format!("{id}.map"))
    }

    /// All revisions, through the index: a `stat` each, no chunk and no map is touched.
    pub fn revisions(&self) -> Result<Listing> {
        let (revisions, damaged) = self.revisions_again(&mut KnownRevisions::default())?;
        Ok(Listing { revisions: revisions.into_iter().map(Arc::unwrap_or_clone).collect(), damaged })
    }

    /// As [`Job::revisions`], for who lists often: only manifests that have changed since `known` are read, the others
    /// are the same `Arc`s as before.
    pub fn revisions_again(&self, known: &mut KnownRevisions) -> Result<(Vec<Arc<Revision>>, Vec<Finding>)> {
        let (mut revisions, damaged) = index::list(self, known)?;
        self.end_giving_up();
        // The one order that depends on the clock: nobody who lists can forget to ask for it.
        order::sort(&mut revisions, Timestamp::now());
        Ok((revisions, damaged))
    }

    /// Returns the place of the next revision among those that the job has made.
    pub(crate) fn next_sequence(&self) -> Result<order::Sequence> {
        let (revisions, _) = index::list(self, &mut KnownRevisions::default())?;
        let local = revisions.iter().filter(|revision| revision.is_local());
        let last = local.filter_map(|revision| Some(revision.sequence.as_ref()?.number)).max();
        let store = self.repository.id().to_owned();
        Ok(order::Sequence { store, number: last.unwrap_or(0).saturating_add(1) })
    }

    /// One revision, `RevisionUnknown` if it is not there. Reads the manifest itself.
    pub fn revision(&self, id: &RevisionId) -> Result<Revision> {
        let path = self.manifest_path(id);
        match manifest::read(&path, id) {
            Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => Err(self.unknown(id)),
            other => other.map(|revision| self.complete(revision)),
        }
    }

    fn unknown(&self, id: &RevisionId) -> Error {
        Error::RevisionUnknown { job: self.name.clone(), revision: id.to_string() }
    }

    /// The forgotten revisions whose manifests can be read, the first forgotten first.
    pub fn forgotten(&self) -> Result<Vec<Forgotten>> {
        let mut found = Vec::new();
        for (file, path) in job_files(&self.dir)? {
            if let JobFile::Forgotten(id, forgotten_at) = file {
                match manifest::read(&path, &id) {
                    Ok(revision) => {
                        found.push(Forgotten { revision: self.complete(revision), forgotten_at });
                    }
                    Err(error) => {
                        tracing::warn!(error = crate::error::in_full(&error), "skipping a forgotten revision")
                    }
                }
            }
        }
        found.sort_by(|one, other| {
            (one.forgotten_at, one.revision.timestamp, &one.revision.id).cmp(&(
                other.forgotten_at,
                other.revision.timestamp,
                &other.revision.id,
            ))
        });
        Ok(found)
    }

    /// Returns a mark for noticing changes: one `stat`.
    pub fn generation(&self) -> Result<Generation> {
        let facts = std::fs::metadata(&self.dir).context("examine", &self.dir)?;
        let mtime_nanos = i128::from(facts.mtime()) * 1_000_000_000 + i128::from(facts.mtime_nsec());
        Ok(Generation { inode: facts.ino(), mtime_nanos })
    }

    /// The path of the map of a revision in the making.
    pub(crate) fn unfinished_map_path(&self, id: &RevisionId) -> PathBuf {
        self.dir.join(format!("{}{id}{UNFINISHED_MAP_SUFFIX}", disk::TEMPORARY_PREFIX))
    }

    /// The backups that have begun and not ended, the oldest first. The next backup clears away those that died.
    pub fn unfinished(&self) -> Result<Vec<Unfinished>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir).context("list", &self.dir)? {
            let entry = entry.context("list", &self.dir)?;
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| {
                name.strip_prefix(disk::TEMPORARY_PREFIX)?.strip_suffix(UNFINISHED_MAP_SUFFIX)
            });
            let Some(Ok(id)) = id.map(RevisionId::parse) else { continue };
            // One that has just ended is not unfinished any more.
            let Ok(facts) = entry.metadata() else { continue };
            let born = facts.created().or_else(|_| facts.modified()).ok();
            let since = born.and_then(|born| born.duration_since(std::time::UNIX_EPOCH).ok());
            let secs = since.and_then(|since| i64::try_from(since.as_secs()).ok());
            if let Some(started_at) = secs.and_then(Timestamp::from_secs) {
                found.push(Unfinished { id, started_at });
            }
        }
        found.sort_by(|one, other| (one.started_at, &one.id).cmp(&(other.started_at, &other.id)));
        Ok(found)
    }

    /// Whether a backup of the job runs at this moment.
    pub fn is_being_backed_up(&self) -> bool {
        lock::is_held_for_backup(&self.dir)
    }

    /// Nothing is changed in a store or job that belongs to another user, or that others may write to.
    fn check_owner(&self) -> Result<()> {
        ownership::check(self.repository.root(), Secrecy::Public)?;
        ownership::check(&self.dir, Secrecy::Public)
    }

    /// Takes the right to make a revision, or fails at once with `Locked`.
    pub fn lock_for_backup(&self) -> Result<BackupGuard> {
        self.check_owner()?;
        lock::for_backup(&self.dir, self.name.as_str())
    }

    /// Takes the right to change manifests; waits for the moments that another holds it.
    pub fn lock_manifests(&self) -> Result<ManifestGuard> {
        self.check_owner()?;
        self.repository.with_reserve(|| lock::for_manifests(&self.dir))
    }

    /// As [`Job::lock_manifests`], for who changes nothing and may be unable to.
    pub(crate) fn lock_manifests_to_look(&self) -> Result<ManifestGuard> {
        lock::for_looking_at_manifests(&self.dir)
    }

    /// As [`Job::lock_manifests`], but fails at once with `Locked` when another holds it.
    pub fn try_lock_manifests(&self) -> Result<ManifestGuard> {
        self.check_owner()?;
        lock::try_for_manifests(&self.dir, self.name.as_str())
    }

    /// Sets the modification time of the directory, which says that somebody still wants it.
    pub fn touch(&self, now: Timestamp) -> Result<()> {
        disk::set_modified(&self.dir, now)
    }

    /// Replaces the tags of a revision. Durable when it returns.
    pub fn set_tags(&self, _guard: &ManifestGuard, id: &RevisionId, tags: BTreeSet<Tag>) -> Result<()> {
        self.rewrite(id, |revision| revision.tags = tags.clone())
    }

    /// Says that a revision was read back and is good, where there is room to say so: the reserve is for what is needed.
    pub(crate) fn set_verified(&self, _guard: &ManifestGuard, id: &RevisionId) -> Result<()> {
        let text = manifest::to_text(&Revision { trust: Trust::Verified, ..self.revision(id)? });
        disk::write_atomically(&self.manifest_path(id), text.as_bytes())
    }

    /// Sets the trust state of a revision. Durable when it returns.
    pub fn set_trust(&self, _guard: &ManifestGuard, id: &RevisionId, trust: Trust) -> Result<()> {
        self.rewrite(id, |revision| revision.trust = trust)
    }

    /// Rewrites a manifest under the manifest lock, which the caller holds.
    pub(crate) fn rewrite(&self, id: &RevisionId, change: impl Fn(&mut Revision)) -> Result<()> {
        let before = self.revision(id)?;
        let mut after = before.clone();
        change(&mut after);
        if after == before {
            return Ok(());
        }
        let text = manifest::to_text(&after);
        self.repository.with_reserve(|| disk::write_atomically(&self.manifest_path(id), text.as_bytes()))
    }

    /// Forgets a revision; [`Job::undelete`] brings it back until a purge past the hold time. One rename, durable when
    /// it returns. The manifest need not be readable.
    pub fn forget(&self, _guard: &ManifestGuard, id: &RevisionId, now: Timestamp) -> Result<()> {
        let forgotten = self.dir.join(format!("{id}.forgotten-{}", now.as_secs()));
        // btrfs wants space for it when it is full.
        match self.repository.with_reserve(|| disk::rename(&self.manifest_path(id), &forgotten)) {
            Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => Err(self.unknown(id)),
            other => other.and_then(|()| disk::sync_dir(&self.dir)),
        }
    }

    /// Brings a forgotten revision back, with the tags and trust it had.
    pub fn undelete(&self, _guard: &ManifestGuard, id: &RevisionId) -> Result<()> {
        let files = job_files(&self.dir)?;
        let newest = files
            .into_iter()
            .filter_map(|(file, path)| match file {
                JobFile::Forgotten(found, at) if found == *id => Some((at, path)),
                _ => None,
            })
            .max();
        let (_, path) = newest.ok_or_else(|| self.unknown(id))?;
        let revision = manifest::read(&path, id)?;
        if revision.is_old() {
            OldImage::open(self, &revision)?;
        } else {
            self.open_any_map(&revision)?;
        }
        if !self.repository.with_reserve(|| disk::rename_new(&path, &self.manifest_path(id)))? {
            let reason = "it exists already".to_owned();
            return Err(Error::ChangeRefused { job: self.name.clone(), revision: id.clone(), reason });
        }
        disk::sync_dir(&self.dir)?;
        if self.repository.is_original() { Ok(()) } else { self.reclaim() }
    }

    /// Removes what dead runs left in the job's directory. Returns how many unfinished revisions there were.
    pub fn remove_unfinished(&self, _guard: &BackupGuard) -> Result<u64> {
        let manifests = self.lock_manifests()?;
        self.reclaim()?;
        let mut removed = self.remove_orphan_maps(&manifests)?;
        for (file, path) in job_files(&self.dir)? {
            if file == JobFile::Unfinished {
                disk::remove(&path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Removes maps without a manifest as far as the register proves that nobody misses the manifest: a commit that died
    /// before it, a purge that died after it, or an operator who gave the revision up. All others stay, since a manifest
    /// can be away, or not be copied yet.
    pub(crate) fn remove_orphan_maps(&self, _guard: &ManifestGuard) -> Result<u64> {
        let files = job_files(&self.dir)?;
        let known: BTreeSet<&RevisionId> = files.iter().filter_map(|(file, _)| file.of_manifest()).collect();
        let orphans: Vec<(&RevisionId, &PathBuf)> = files
            .iter()
            .filter_map(|(file, path)| match file {
                JobFile::Map(id) if !known.contains(id) => Some((id, path)),
                _ => None,
            })
            .collect();
        if orphans.is_empty() {
            return Ok(0);
        }
        let given_up = self.given_up()?;
        let mut removed = 0;
        for (id, path) in orphans {
            if given_up.contains(id) {
                disk::remove(path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Makes records current again whose revisions are here: of a commit that died after the manifest, of a job that was
    /// given up and is back, of a purge that was cut off. Durable when it returns.
    fn reclaim(&self) -> Result<()> {
        let register = Register::of(&self.repository);
        let is_wanted = |state: &State| match state {
            State::Current => Ok(false),
            State::Pending(session) => Ok(!session::is_running(self.repository.root(), session)?),
            State::Dropped(_) | State::Purged => Ok(true),
        };
        for record in self.records_here(&register, is_wanted)? {
            match self.repository.with_reserve(|| register.change(&record, State::Current)) {
                // A purge was quicker.
                Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Ends an operator's word that the job was deleted, now that it is seen: who deletes it again must say so again.
    /// Where nothing can be written, the next one who lists does it. What a purge is removing is left to it.
    fn end_giving_up(&self) {
        if self.repository.is_original() {
            return;
        }
        let register = Register::of(&self.repository);
        let is_wanted = |state: &State| Ok(matches!(state, State::Dropped(_)));
        for record in self.records_here(&register, is_wanted).unwrap_or_default() {
            if let Err(error) = register.change(&record, State::Current) {
                let error = crate::error::in_full(&error);
                tracing::debug!(job = %self.name, revision = %record.id, error, "still given up");
            }
        }
    }

    /// Returns the job's records in the wanted states whose revisions are here.
    fn records_here(
        &self,
        register: &Register,
        is_wanted: impl Fn(&State) -> Result<bool>,
    ) -> Result<Vec<Record>> {
        let mut wanted = Vec::new();
        for record in register.of_job(&self.name)? {
            if is_wanted(&record.state)? {
                wanted.push(record);
            }
        }
        if !wanted.is_empty() {
            let files = job_files(&self.dir)?;
            wanted.retain(|record| files.iter().any(|(file, _)| file.of_manifest() == Some(&record.id)));
        }
        Ok(wanted)
    }

    /// The revisions of the store whose commit died, or that were given up, as the register says.
    fn given_up(&self) -> Result<BTreeSet<RevisionId>> {
        let (mut given_up, mut kept) = (BTreeSet::new(), BTreeSet::new());
        for record in Register::of(&self.repository).list()? {
            let is_given_up = match &record.state {
                State::Current => false,
                State::Pending(session) => !session::is_running(self.repository.root(), session)?,
                State::Dropped(_) | State::Purged => true,
            };
            if is_given_up {
                given_up.insert(record.id)
            } else {
                kept.insert(record.id)
            };
        }
        Ok(&given_up - &kept)
    }

    /// Refuses to begin a job again while revisions of it are away: its directory is on a disk that is not there,
    /// perhaps, and a backup would go below the mount point.
    pub(crate) fn check_not_away(&self) -> Result<()> {
        let is_revision = |file: &JobFile| *file != JobFile::Unfinished;
        if job_files(&self.dir)?.iter().any(|(file, _)| is_revision(file)) {
            return Ok(());
        }
        self.repository.check_not_away(&self.name, &self.dir)
    }

    /// Opens the map of a revision of our own format, as its manifest vouches for it. `RevisionUnknown` when the
    /// revision was forgotten and purged since it was listed, which is no damage.
    pub(crate) fn open_map(&self, revision: &Revision) -> Result<ChunkMap> {
        match self.open_any_map(revision) {
            Err(error) if error.is_damage() && !self.manifest_path(&revision.id).exists() => {
                Err(self.unknown(&revision.id))
            }
            other => other,
        }
    }

    /// As [`Job::open_map`], for a revision that may be forgotten.
    fn open_any_map(&self, revision: &Revision) -> Result<ChunkMap> {
        let path = &self.map_path(&revision.id);
        let seal = revision.map_seal.as_deref().and_then(crate::format::id::parse_hex);
        match (&revision.backend_type, seal, revision.image_size) {
            (BackendType::Framed, Some(seal), Some(size)) => ChunkMap::open_sealed(path, size, &seal),
            (kind, ..) => Err(Error::RevisionUnreadable {
                job: self.name.clone(),
                revision: revision.id.clone(),
                reason: match (kind, revision.server.as_str()) {
                    (BackendType::Chunked | BackendType::Cowfile, "") => {
                        "it was written by the original backy".to_owned()
                    }
                    (_, "") => "its backend type is not known".to_owned(),
                    (_, server) => format!("its image lies on the server {server}"),
                },
            }),
        }
    }

    /// Opens a revision's image for reading at random. It stays readable when the revision is forgotten and a purge runs.
    pub fn open_revision(&self, revision: &Revision, cache: &Arc<FrameCache>) -> Result<RevisionReader> {
        RevisionReader::open(self, revision, Arc::clone(cache))
    }

    /// Begins a new revision.
    pub fn new_revision(&self, _guard: &BackupGuard, new: NewRevision) -> Result<RevisionWriter> {
        self.repository.check_ours()?;
        self.check_not_away()?;
        RevisionWriter::begin(self.clone(), new)
    }

    /// Makes the manifest of a finished revision, the last step of a backup. `session` is the writer's.
    pub(crate) fn commit(&self, revision: &Revision, unfinished_map: &Path, session: &str) -> Result<()> {
        let _manifests = self.lock_manifests()?;
        let (register, pending) = self.register(&revision.id, unfinished_map, session)?;
        let map = self.map_path(&revision.id);
        if !disk::rename_new(unfinished_map, &map)? {
            register.remove(&pending)?;
            let reason = "a revision with this id exists".to_owned();
            return Err(Error::ChangeRefused {
                job: self.name.clone(),
                revision: revision.id.clone(),
                reason,
            });
        }
        let manifest = self.manifest_path(&revision.id);
        let written = disk::sync_dir(&self.dir)
            .and_then(|()| disk::write_atomically(&manifest, manifest::to_text(revision).as_bytes()));
        if let Err(error) = written {
            self.take_back(&manifest, &map, &register, &pending);
            return Err(error);
        }
        confirm(&register, &pending, &manifest);
        Ok(())
    }

    /// Enters the map of a revision that is about to be committed in the store's register.
    fn register(&self, id: &RevisionId, map: &Path, session: &str) -> Result<(Register, Record)> {
        let register = Register::of(&self.repository);
        let state = State::Pending(session.to_owned());
        let record = Record { job: self.name.clone(), id: id.clone(), state };
        let pending = register.add(record, map)?;
        Ok((register, pending))
    }

    /// Removes what a commit has made whose manifest could not be written. What cannot be removed, a purge settles.
    fn take_back(&self, manifest: &Path, map: &Path, register: &Register, pending: &Record) {
        // The rename may have been done, and only its sync have failed: then the revision exists.
        if disk::is_missing(manifest)
            && let Err(error) = disk::remove(map).and_then(|()| register.remove(pending))
        {
            tracing::debug!(
                error = crate::error::in_full(&error),
                "cannot remove the map of a failed commit"
            );
        }
    }

    /// Puts a finished revision in the place of the original's with the same id, keeping what its manifest says now. The
    /// rename of the manifest is the commit; a map without it belongs to a run that died before.
    pub(crate) fn commit_over(
        &self,
        mut new: Revision,
        is_damaged: bool,
        unfinished_map: &Path,
        session: &str,
    ) -> Result<Revision> {
        let _manifests = self.lock_manifests()?;
        let old = self.revision(&new.id)?;
        if !old.is_old() {
            let reason = "it is not the original's any more".to_owned();
            return Err(Error::ChangeRefused { job: self.name.clone(), revision: old.id, reason });
        }
        (new.stats, new.tags, new.orig_tags) = (old.stats, old.tags, old.orig_tags);
        (new.parent, new.extra) = (old.parent, old.extra);
        new.trust = if is_damaged { Trust::Distrusted } else { old.trust };
        let (register, pending) = self.register(&new.id, unfinished_map, session)?;
        let map = self.map_path(&new.id);
        disk::rename(unfinished_map, &map)?;
        disk::sync_dir(&self.dir)?;
        let text = manifest::to_text(&new);
        self.repository
            .with_reserve(|| disk::write_atomically(&self.manifest_path(&new.id), text.as_bytes()))?;
        confirm(&register, &pending, &self.manifest_path(&new.id));
        Ok(new)
    }

    /// Distrusts the revisions of this job that are in `ids` and not distrusted yet; returns them.
    pub(crate) fn distrust(&self, ids: &BTreeSet<RevisionId>) -> Result<Vec<RevisionId>> {
        let guard = self.lock_manifests()?;
        let mut changed = Vec::new();
        for id in ids {
            match self.revision(id) {
                Ok(revision) if revision.trust != Trust::Distrusted => {
                    self.set_trust(&guard, id, Trust::Distrusted)?;
                    changed.push(id.clone());
                }
                // Forgotten meanwhile, or unreadable, which is worse than distrusted and reported elsewhere.
                Ok(_) | Err(_) => {}
            }
        }
        Ok(changed)
    }
}

/// Completes the record of a revision that exists now. A purge does what remains if this fails.
fn confirm(register: &Register, pending: &Record, manifest: &Path) {
    let kept = register.keep_manifest(pending, manifest);
    if let Err(error) = kept.and(register.confirm(pending)) {
        tracing::warn!(error = crate::error::in_full(&error), revision = %pending.id, "register-not-updated");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_revision_files_are_read() {
        let id = RevisionId::parse("abc").unwrap();
        assert_eq!(JobFile::parse("abc.rev"), Some(JobFile::Manifest(id.clone())));
        assert_eq!(JobFile::parse("abc.map"), Some(JobFile::Map(id.clone())));
        let at = Timestamp::from_secs(12).unwrap();
        assert_eq!(JobFile::parse("abc.forgotten-12"), Some(JobFile::Forgotten(id, at)));
        assert_eq!(JobFile::parse(".unfinished-0"), Some(JobFile::Unfinished));
        for name in [
            "abc",
            "config",
            "backy.log",
            "abc.rev.old",
            ".rev",
            "abc.forgotten-x",
            "last.rev.rev",
            "index.sqlite",
        ] {
            assert_eq!(JobFile::parse(name), None, "{name}");
        }
    }
}
