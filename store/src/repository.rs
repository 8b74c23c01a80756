//! A store and its jobs: create, open, find. `backy.store` marks the root; where it is missing there is no
//! store, so nothing is ever made below a mount point that is not mounted.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::backend::{Backend, BackendKind, local};
use crate::bounds;
use crate::error::{Context, Error, Result};
use crate::fs::disk;
use crate::fs::lock;
use crate::fs::ownership::{self, Secrecy};
use crate::legacy::job::is_original_job;
use crate::maintain::sweep::scan;
use crate::name::{JobName, RESERVED};
use crate::read::files::{Files, OpenGroups};
use crate::repository::job::Job;
use crate::repository::register::{Record, Register, State};
use crate::timestamp::Timestamp;

pub(crate) mod claim;
pub mod index;
pub mod job;
pub mod notes;
pub(crate) mod register;
pub(crate) mod session;
mod site;
pub(crate) mod snapshots;

const MARKER: &str = "backy.store";
const FORMAT: u64 = 1;
/// The marker is never larger.
const MARKER_BYTES_MAX: usize = 4096;

/// Space that a full file system gives back, so that tags can still be changed and revisions forgotten on it.
const RESERVE_LEN: u64 = 8 << 20;

/// The content of `backy.store`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Marker {
    format: u64,
    id: String,
    created: Timestamp,
    file_system: String,
    /// When the lock file of purges was made, as the file system says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    birth: Option<String>,
}

/// One store: a base directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Repository {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    marker: Marker,
    is_original: bool,
    backend: BackendKind,
    groups: OpenGroups,
}

/// What a directory is: a store and, if it is a job's directory, that job.
#[derive(Clone, Debug)]
pub struct Location {
    /// The store that keeps the chunks.
    pub repository: Repository,
    /// The job; `None` when the directory is a store of several jobs.
    pub job: Option<Job>,
}

impl Location {
    /// Returns the job, or `NotAJob` with the jobs that are there.
    pub fn into_job(self) -> Result<Job> {
        let Self { repository, job } = self;
        match job {
            Some(job) => Ok(job),
            None => Err(Error::NotAJob {
                path: repository.root().to_owned(),
                jobs: repository.jobs()?.iter().map(|job| job.name().clone()).collect(),
            }),
        }
    }
}

/// Jobs that cannot be opened, and why not.
pub type JobFailures = Vec<(JobName, Error)>;

impl Repository {
    /// Makes a store at `root`, which must be missing or empty and not inside a store. An interrupted creation can be
    /// repeated.
    pub fn create(root: &Path, now: Timestamp) -> Result<Self> {
        if let Some(outer) = site::outer_store(root) {
            return Err(not_creatable(root, format!("it lies inside the store at {}", outer.display())));
        }
        Self::create_anywhere(root, now)
    }

    /// As [`Repository::create`], also inside a store: for a job with chunks of its own.
    fn create_anywhere(root: &Path, now: Timestamp) -> Result<Self> {
        match std::fs::read_dir(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => disk::create_dir(root)?,
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(not_creatable(root, "it is not a directory".to_owned()));
            }
            Err(error) => return Err(Error::io("list", root, error)),
            Ok(entries) => {
                ownership::check(root, Secrecy::Public)?;
                match Self::open(root) {
                    Ok(_) => return Err(not_creatable(root, "there is a store already".to_owned())),
                    Err(Error::StoreMissing { .. }) => {}
                    Err(error) => return Err(error),
                }
                if site::was_used(root)? {
                    return Err(Error::StoreUnmarked { path: root.to_owned() });
                }
                let (mut strange, mut is_original) = (None, false);
                for entry in entries {
                    let name = entry.context("list", root)?.file_name();
                    let ours = RESERVED.iter().any(|&own| name == own)
                        || [".unfinished-", ".sweep", ".reserve"]
                            .iter()
                            .any(|start| name.as_encoded_bytes().starts_with(start.as_bytes()));
                    // The base directory of an older backy becomes a store beside its jobs.
                    let job = || is_job_dir(&root.join(&name)).unwrap_or(false);
                    // So does what its service left there.
                    let old = [".lock", "status"].iter().any(|&old| name == old);
                    is_original |= is_original_job(&root.join(&name));
                    if !ours && !old && name != "config" && !is_furniture(&name) && !job() {
                        strange.get_or_insert(name);
                    }
                }
                // Beside the original's jobs lies whatever its users put there; the original never minded.
                if let Some(name) = strange.filter(|_| !is_original) {
                    let reason = format!("the directory is not empty: {} is not a job", name.display());
                    return Err(not_creatable(root, reason));
                }
                if let Some(map) = site::find_map(root) {
                    let reason = format!("{} is a revision of another store", map.display());
                    return Err(not_creatable(root, reason));
                }
            }
        }
        for dir in ["chunks", "tmp"] {
            // A creation that was cut off left empty directories; anything in them makes this fail, as it should.
            remove_empty_tree(&root.join(dir))?;
        }
        local::create(root)?;
        site::prove(root)?;
        Self::mark(root, now)
    }

    /// Gives a store that lost its mark a new one, with a new id. Refuses what does not look like a store.
    pub fn repair(root: &Path, now: Timestamp) -> Result<Self> {
        let refuse = |reason: String| Err(Error::StoreNotRepairable { path: root.to_owned(), reason });
        match Self::open(root) {
            Ok(_) => return refuse(format!("nothing is wrong with its {MARKER}")),
            Err(Error::StoreMissing { .. } | Error::StoreDamaged { .. }) => {}
            Err(error) => return Err(error),
        }
        if !root.is_dir() || !(site::is_like_store(root) || site::was_used(root)?) {
            return refuse("it does not look like a store: it has neither chunks nor chunk maps".to_owned());
        }
        if let Some(outer) = site::outer_store(root).filter(|_| !root.join("chunks").is_dir()) {
            return refuse(format!("its chunks lie in the store at {}", outer.display()));
        }
        ownership::check(root, Secrecy::Public)?;
        local::prepare(root)?;
        Self::mark(root, now)
    }

    /// The last steps of making a store.
    fn mark(root: &Path, now: Timestamp) -> Result<Self> {
        for dir in ["writers", "damaged"] {
            disk::ensure_dir(&root.join(dir))?;
        }
        lock::prepare_store(root);
        let marker = Marker {
            format: FORMAT,
            id: disk::random_name()?,
            created: now,
            file_system: disk::file_system(root)?.id,
            birth: disk::birth(&root.join(lock::SWEEP)),
        };
        claim::begin(root)?;
        write_marker(root, &marker)?;
        if let Some(parent) = root.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            disk::sync_dir(parent)?;
        }
        let repository = Self::open(root)?;
        repository.refill_reserve();
        Ok(repository)
    }

    /// Opens the store whose root is `root`.
    pub fn open(root: &Path) -> Result<Self> {
        let path = root.join(MARKER);
        let damaged = |reason: String| Error::StoreDamaged { path: root.to_owned(), reason };
        let text = match read_marker(&path) {
            Ok(text) if text.len() > MARKER_BYTES_MAX => {
                return Err(damaged(format!("{MARKER} is larger than {MARKER_BYTES_MAX} bytes")));
            }
            Ok(text) => text,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(Error::StoreMissing { path: root.to_owned() });
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(damaged(format!("{MARKER} is not text")));
            }
            Err(error) => return Err(Error::io("read", path, error)),
        };
        #[derive(Deserialize)]
        struct Versioned {
            format: u64,
        }
        bounds::check(&text).map_err(|why| damaged(format!("{MARKER} cannot be understood: {why}")))?;
        let unreadable =
            |error: serde_yaml::Error| damaged(format!("{MARKER} cannot be understood: {error}"));
        let format = serde_yaml::from_str::<Versioned>(&text).map_err(unreadable)?.format;
        if format > FORMAT {
            let what = format!("the store at {}", root.display());
            return Err(Error::FormatNewer { what, found: format, known: FORMAT });
        }
        let marker: Marker = serde_yaml::from_str(&text).map_err(unreadable)?;
        ownership::check_readable(root)?;
        Ok(Self {
            inner: Arc::new(Inner {
                root: root.to_owned(),
                marker,
                is_original: false,
                backend: BackendKind::default(),
                groups: OpenGroups::default(),
            }),
        })
    }

    /// Opens a base directory of the original as it is. It is no store: revisions can be read, and manifests changed.
    pub fn open_original(root: &Path) -> Result<Self> {
        let created = Timestamp::from_secs(0).ok_or_else(|| Error::StoreMissing { path: root.to_owned() })?;
        let marker =
            Marker { format: 0, id: String::new(), created, file_system: String::new(), birth: None };
        Ok(Self {
            inner: Arc::new(Inner {
                root: root.to_owned(),
                marker,
                is_original: true,
                backend: BackendKind::default(),
                groups: OpenGroups::default(),
            }),
        })
    }

    /// Opens the store whose root is `root`, or the jobs of the original that lie there where there is none.
    pub fn open_any(root: &Path) -> Result<Self> {
        match Self::open(root) {
            Err(missing @ Error::StoreMissing { .. }) if root.is_dir() => {
                match Self::discover_original(root, None)? {
                    Some(Location { repository, job: None }) => Ok(repository),
                    _ if site::is_like_store(root) => Err(Error::StoreUnmarked { path: root.to_owned() }),
                    _ => Err(missing),
                }
            }
            other => other,
        }
    }

    /// Whether it is a base directory of the original that no store was made in.
    pub fn is_original(&self) -> bool {
        self.inner.is_original
    }

    /// Fails with `StoreOriginal` unless it is a store of ours.
    pub fn check_ours(&self) -> Result<()> {
        if self.is_original() { Err(Error::StoreOriginal { path: self.root().to_owned() }) } else { Ok(()) }
    }

    /// Looks whether a directory is a job of the original, or holds some.
    fn discover_original(dir: &Path, below: Option<&str>) -> Result<Option<Location>> {
        if below.is_none() && is_original_job(dir) {
            let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let repository = Self::open_original(dir.parent().unwrap_or(dir))?;
            let job = Job::new(JobName::parse(&name)?, dir.to_owned(), repository.clone());
            return Ok(Some(Location { repository, job: Some(job) }));
        }
        // A store of ours that lost its mark is no base directory of the original.
        if site::is_like_store(dir) {
            return Ok(None);
        }
        let entries = std::fs::read_dir(dir).context("list", dir)?;
        if !entries.flatten().any(|entry| is_original_job(&entry.path())) {
            return Ok(None);
        }
        let repository = Self::open_original(dir)?;
        let job = below.map(|name| repository.job_named(name)).transpose()?;
        Ok(Some(Location { repository, job }))
    }

    /// Finds the nearest store at or above `path`, which is a base directory or a job's directory; where there is none,
    /// the jobs of the original that lie there.
    pub fn discover(path: &Path) -> Result<Location> {
        let missing = || Error::StoreMissing { path: path.to_owned() };
        if let Some(found) = Self::discover_linked(path)? {
            return Ok(found);
        }
        let (dir, below) = match path.canonicalize() {
            Ok(dir) => (dir, None),
            // A job that does not exist, of a store that does, deserves a better answer than "no store".
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = path
                    .parent()
                    .map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
                let parent = parent.and_then(|parent| parent.canonicalize().ok()).ok_or_else(missing)?;
                (parent, path.file_name().map(|name| name.to_string_lossy().into_owned()))
            }
            Err(error) => return Err(Error::io("open", path, error)),
        };
        for root in dir.ancestors() {
            let repository = match Self::open(root) {
                Err(Error::StoreMissing { .. }) => continue,
                other => other?,
            };
            let mut inside: Vec<String> = dir
                .strip_prefix(root)
                .unwrap_or(Path::new(""))
                .components()
                .map(|part| part.as_os_str().to_string_lossy().into_owned())
                .collect();
            inside.extend(below.clone());
            let job = match inside.as_slice() {
                [] => repository.own_job()?,
                [name] => Some(repository.job_named(name)?),
                _ => return Err(Error::JobUnknown { name: inside.join("/"), store: root.to_owned() }),
            };
            return Ok(Location { repository, job });
        }
        if let Some(found) = Self::discover_original(&dir, below.as_deref())? {
            return Ok(found);
        }
        match dir.ancestors().find(|dir| site::is_like_store(dir)) {
            Some(store) => Err(Error::StoreUnmarked { path: store.to_owned() }),
            None => Err(missing()),
        }
    }

    /// Finds the job behind a symbolic link in a store: it has the link's name, wherever its directory lies.
    fn discover_linked(path: &Path) -> Result<Option<Location>> {
        // Without the slash at the end that shells complete, which would follow the link.
        let path: PathBuf = path.components().collect();
        let is_link = std::fs::symlink_metadata(&path).is_ok_and(|facts| facts.is_symlink());
        let (Some(parent), Some(name), true) = (path.parent(), path.file_name(), is_link) else {
            return Ok(None);
        };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let root = parent.canonicalize().context("open", parent)?;
        let (Ok(base), Some(name)) = (Self::open_any(&root), name.to_str()) else { return Ok(None) };
        let job = base.job_named(name)?;
        Ok(Some(Location { repository: job.repository().clone(), job: Some(job) }))
    }

    /// The base directory.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// The store's id.
    pub fn id(&self) -> &str {
        &self.inner.marker.id
    }

    /// A number that tells this store's chunks from others' in a cache.
    pub(crate) fn key(&self) -> u64 {
        u64::from_str_radix(self.id().get(..16).unwrap_or_default(), 16).unwrap_or(0)
    }

    /// Opens the store's backend.
    fn open_backend(&self) -> Result<Box<dyn Backend>> {
        self.inner.backend.open(self.root())
    }

    /// Opens the chunk files.
    pub(crate) fn backend(&self) -> Result<Files> {
        Ok(Files::new(self.open_backend()?, &OpenGroups::default()))
    }

    /// As [`Repository::backend`], sharing the groups that are open with all other readers: a mount has many images open.
    pub(crate) fn shared_backend(&self) -> Result<Files> {
        Ok(Files::new(self.open_backend()?, &self.inner.groups))
    }

    /// Returns the same store with its chunk files in another backend. Maps, manifests and sessions stay in its directory.
    #[cfg(test)]
    pub(crate) fn with_backend(&self, backend: BackendKind) -> Self {
        let inner = Inner {
            root: self.inner.root.clone(),
            marker: self.inner.marker.clone(),
            is_original: self.inner.is_original,
            backend,
            groups: OpenGroups::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The path under which a chunk is marked as damaged.
    pub(crate) fn damage_mark(&self, id: &crate::ChunkId) -> PathBuf {
        self.root().join("damaged").join(id.to_string())
    }

    /// The names in the base directory that a job may have, sorted; not all of them need be jobs. One listing.
    pub fn job_names(&self) -> Result<Vec<JobName>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.root()).context("list", self.root())? {
            let name = entry.context("list", self.root())?.file_name();
            names.extend(name.to_str().and_then(|name| JobName::parse(name).ok()));
        }
        names.sort();
        Ok(names)
    }

    /// All jobs of the base directory, those with a store of their own too, sorted by name. O(jobs). One that cannot be
    /// opened is logged and does not hide the others.
    pub fn jobs(&self) -> Result<Vec<Job>> {
        let (jobs, unreadable) = self.jobs_and_failures()?;
        for (job, error) in unreadable {
            tracing::warn!(%job, error = crate::error::in_full(&error), "job left out");
        }
        Ok(jobs)
    }

    /// The same, with those that cannot be opened, and why not.
    pub fn jobs_and_failures(&self) -> Result<(Vec<Job>, JobFailures)> {
        let mut jobs: Vec<Job> = self.own_job()?.into_iter().collect();
        let mut failures = Vec::new();
        for name in self.job_names()? {
            match self.job(&name) {
                Ok(job) => jobs.push(job),
                // Another file or directory.
                Err(Error::JobUnknown { .. }) => {}
                Err(error) => failures.push((name, error)),
            }
        }
        jobs.sort_by(|one, other| one.name().cmp(other.name()));
        Ok((jobs, failures))
    }

    /// The jobs that the store's register knows and that are not among `seen`, whose revisions are nowhere in the store: their
    /// directories are on a disk that is away, most likely. The error says how many revisions they have.
    pub fn jobs_away(&self, seen: &[&JobName]) -> Result<JobFailures> {
        let mut away = Vec::new();
        for name in Register::of(self).jobs()?.into_iter().filter(|name| !seen.contains(&name)) {
            match self.check_not_away(&name, &self.root().join(name.as_str())) {
                Ok(()) => {}
                Err(error) => away.push((name, error)),
            }
        }
        Ok(away)
    }

    /// The jobs whose chunks lie in this store: all but those with a store of their own.
    pub fn sharing_jobs(&self) -> Result<Vec<Job>> {
        let mut jobs = self.jobs()?;
        jobs.retain(|job| job.repository().id() == self.id());
        Ok(jobs)
    }

    /// One job.
    pub fn job(&self, name: &JobName) -> Result<Job> {
        let dir = self.root().join(name.as_str());
        if let Ok(target) = std::fs::read_link(&dir)
            && !dir.exists()
        {
            return Err(Error::JobLinkBroken { name: name.clone(), target });
        }
        let unknown = || Error::JobUnknown { name: name.to_string(), store: self.root().to_owned() };
        self.job_at(name, &dir)?.ok_or_else(unknown)
    }

    fn job_named(&self, name: &str) -> Result<Job> {
        self.job(&JobName::parse(name)?)
    }

    /// The job whose directory is this store's root, if it is one.
    pub(crate) fn own_job(&self) -> Result<Option<Job>> {
        if self.is_original() || !is_job_dir(self.root())? {
            return Ok(None);
        }
        let name = self.root().canonicalize().context("open", self.root())?;
        let name = name.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Some(Job::new(JobName::parse(&name)?, self.root().to_owned(), self.clone())))
    }

    fn job_at(&self, name: &JobName, dir: &Path) -> Result<Option<Job>> {
        let is_dir = match std::fs::metadata(dir) {
            Ok(found) => found.is_dir(),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                false
            }
            Err(error) => return Err(Error::io("open", dir, error)),
        };
        if !is_dir || !is_job_dir(dir)? || self.is_original() && !is_original_job(dir) {
            return Ok(None);
        }
        let repository = match Self::open(dir) {
            // A store of its own that lost its mark must not go on in this one.
            Err(Error::StoreMissing { .. })
                if !(dir.join("writers").is_dir() && dir.join("chunks").is_dir()) =>
            {
                self.clone()
            }
            other => other?,
        };
        Ok(Some(Job::new(name.clone(), dir.to_owned(), repository)))
    }

    /// Makes a job's directory with `config` as its configuration file; `own_store` gives it chunks of its own.
    pub fn create_job(&self, name: &JobName, own_store: bool, config: &str, now: Timestamp) -> Result<Job> {
        self.check_ours()?;
        let dir = self.root().join(name.as_str());
        if dir.is_dir() && is_job_dir(&dir)? {
            return Err(Error::JobExists { name: name.clone(), path: dir });
        }
        self.check_not_away(name, &dir)?;
        if !dir.is_dir() {
            disk::create_dir(&dir)?;
        } else if !own_store && dir.join(MARKER).exists() {
            return Err(Error::StoreNotCreatable {
                path: dir,
                reason: "there is a store already".to_owned(),
            });
        }
        if own_store {
            match Self::open(&dir) {
                Err(Error::StoreMissing { .. }) => drop(Self::create_anywhere(&dir, now)?),
                other => drop(other?),
            }
        }
        // The configuration is what makes the directory a job, so it comes last.
        disk::write_atomically(&dir.join("config"), config.as_bytes())?;
        disk::sync_dir(self.root())?;
        lock::prepare_job(&dir);
        self.job(name)
    }

    /// Makes the job `dir` with a store of its own and no other around it. `dir` must be missing or empty, and the
    /// directory above it is left alone.
    pub fn create_lone_job(dir: &Path, config: &str, now: Timestamp) -> Result<Job> {
        match Self::open(dir) {
            Err(Error::StoreMissing { .. }) => drop(Self::create(dir, now)?),
            other => drop(other?),
        }
        let repository = Self::open(&dir.canonicalize().context("open", dir)?)?;
        if let Some(job) = repository.own_job()? {
            return Err(Error::JobExists { name: job.name().clone(), path: dir.to_owned() });
        }
        disk::write_atomically(&repository.root().join("config"), config.as_bytes())?;
        disk::sync_dir(repository.root())?;
        repository.own_job()?.ok_or_else(|| Error::StoreMissing { path: dir.to_owned() })
    }

    /// Refuses to begin a job while the register has revisions of it and none of their manifests is in the store.
    pub(crate) fn check_not_away(&self, job: &JobName, dir: &Path) -> Result<()> {
        match self.revisions_away(job)? {
            0 => Ok(()),
            revisions => Err(Error::JobAway { job: job.clone(), dir: dir.to_owned(), revisions }),
        }
    }

    /// Number of revisions that were committed under this job's name and not removed since, as the register has them. One
    /// listing, which looks into no job's directory: a disk that hangs is no reason to wait.
    pub fn registered_revisions(&self, job: &JobName) -> Result<usize> {
        Ok(self.current_records(job)?.len())
    }

    fn current_records(&self, job: &JobName) -> Result<Vec<Record>> {
        let mut records = Register::of(self).of_job(job)?;
        records.retain(|record| record.state == State::Current);
        Ok(records)
    }

    /// Number of those whose manifests are nowhere in the store now. A renamed or moved job's are found where they are.
    pub(crate) fn revisions_away(&self, job: &JobName) -> Result<usize> {
        let (register, records) = (Register::of(self), self.current_records(job)?);
        if records.is_empty() {
            return Ok(0);
        }
        let tree = scan::scan(self.root())?;
        let mut away = 0;
        for record in &records {
            away += usize::from(crate::maintain::sweep::seen_in(&register, &tree, record)?.is_none());
        }
        Ok(away)
    }

    /// Whether the store lies on the file system on which it was made: that has the same id, or the store's files are the
    /// same ones and no copies. Some file systems have no id, and those of others change with the name of the device.
    pub(crate) fn is_on_its_file_system(&self) -> Result<bool> {
        let (here, marker) = (disk::file_system(self.root())?, &self.inner.marker);
        let has_birth = marker.birth.is_some();
        let is_same_birth = has_birth && disk::birth(&self.root().join(lock::SWEEP)) == marker.birth;
        Ok(is_same_birth || here.id == marker.file_system && (here.has_id || !has_birth))
    }

    /// Records that the store lies on its present file system from now on.
    pub(crate) fn adopt_file_system(&self) -> Result<()> {
        let marker = Marker {
            file_system: disk::file_system(self.root())?.id,
            birth: disk::birth(&self.root().join(lock::SWEEP)),
            ..self.inner.marker.clone()
        };
        self.with_reserve(|| write_marker(self.root(), &marker))
    }

    /// Fails when the chunks are away: their directory has nothing in it, not even directories, but revisions have data.
    pub(crate) fn check_chunks(&self) -> Result<()> {
        self.open_checked_backend().map(drop)
    }

    /// Opens the store's backend, and fails as [`Repository::check_chunks`] does.
    fn open_checked_backend(&self) -> Result<Box<dyn Backend>> {
        // A link that leads nowhere is met here.
        let backend = self.open_backend()?;
        if backend.is_away()? && self.has_data()? {
            return Err(Error::ChunksAway { path: self.root().to_owned() });
        }
        Ok(backend)
    }

    fn has_data(&self) -> Result<bool> {
        for job in self.sharing_jobs()? {
            let revisions = job.revisions()?.revisions;
            if revisions.iter().any(|revision| revision.has_chunks() && revision.data_bytes != Some(0)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Checks that the store's parts lie where they belong. Changes nothing.
    pub fn check_site(&self) -> Result<()> {
        if self.is_original() {
            return Ok(());
        }
        let backend = self.open_checked_backend()?;
        claim::check(self.root())?;
        backend.check()
    }

    /// Checks that the store can be written where it lies, and makes directories that are missing.
    pub fn check_layout(&self) -> Result<()> {
        self.check_ours()?;
        let backend = self.open_checked_backend()?;
        claim::check(self.root())?;
        backend.prepare()
    }

    /// Runs a small write; if the file system is full, gives the reserve back and runs it once more.
    pub(crate) fn with_reserve<T>(&self, write: impl Fn() -> Result<T>) -> Result<T> {
        match write() {
            Err(error)
                if matches!(
                    error.io_kind(),
                    Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
                ) && !self.is_original() =>
            {
                disk::remove(&self.reserve_path())?;
                disk::remove_names(&self.names_path())?;
                tracing::warn!(store = %self.root().display(), "the file system is full, using the reserve");
                // What was removed is free when that is durable. If it cannot be made so, the write says what is wrong.
                let root = File::open(self.root()).context("open", self.root());
                drop(root.and_then(|root| disk::sync_file_system(&root, self.root())));
                write()
            }
            other => other,
        }
    }

    fn reserve_path(&self) -> PathBuf {
        self.root().join(".reserve")
    }

    fn names_path(&self) -> PathBuf {
        self.root().join(".reserve.d")
    }

    /// Makes the reserve if it is missing and there is room. That there is none is no error.
    pub(crate) fn refill_reserve(&self) {
        let (path, names) = (self.reserve_path(), self.names_path());
        if !names.exists() && disk::create_names(&names).is_err() {
            drop(disk::remove_names(&names));
        }
        if !path.exists() {
            let made = disk::create_new(&path).and_then(|file| disk::allocate(&file, RESERVE_LEN, &path));
            if made.is_err() {
                drop(disk::remove(&path));
            }
        }
    }
}

fn not_creatable(root: &Path, reason: String) -> Error {
    Error::StoreNotCreatable { path: root.to_owned(), reason }
}

/// Whether a file system, or the machine that shares it, puts an entry of this name into an empty directory.
pub fn is_furniture(name: &std::ffi::OsStr) -> bool {
    const NAMES: [&str; 7] =
        ["lost+found", ".snapshot", ".snapshots", ".zfs", "@eaDir", "#recycle", "System Volume Information"];
    NAMES.iter().any(|&known| name == known) || name.as_encoded_bytes().starts_with(b".Trash-")
}

/// Reads the marker, and one byte more than it may have.
fn read_marker(path: &Path) -> io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MARKER_BYTES_MAX as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

fn write_marker(root: &Path, marker: &Marker) -> Result<()> {
    let text = crate::yaml::to_string(marker).unwrap_or_default();
    disk::write_atomically(&root.join(MARKER), text.as_bytes())
}

/// Whether a directory is a job's: it has a configuration or manifests, forgotten ones too.
fn is_job_dir(dir: &Path) -> Result<bool> {
    if dir.join("config").is_file() {
        return Ok(true);
    }
    for entry in std::fs::read_dir(dir).context("list", dir)? {
        let name = entry.context("list", dir)?.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.ends_with(".rev") || name.contains(".forgotten-") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes a directory of empty directories; it is no error when it is missing.
fn remove_empty_tree(dir: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.context("list", dir)?,
    };
    for entry in entries {
        let entry = entry.context("list", dir)?;
        let path = entry.path();
        if site::is_trial(&entry.file_name()) {
            disk::remove(&path)?;
        } else {
            remove_empty_tree(&path)?;
        }
    }
    std::fs::remove_dir(dir).context("remove directory", dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_secs(1_700_000_000).unwrap()
    }

    #[test]
    fn nothing_is_made_where_there_is_no_store() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Repository::discover(dir.path()), Err(Error::StoreMissing { .. })));
        assert!(matches!(Repository::discover(&dir.path().join("no/such")), Err(Error::StoreMissing { .. })));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_store_is_made_once_and_only_in_an_empty_directory() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("srv");
        Repository::create(&root, now()).unwrap();
        assert!(matches!(Repository::create(&root, now()), Err(Error::StoreNotCreatable { .. })));
        std::fs::create_dir(dir.path().join("full")).unwrap();
        std::fs::write(dir.path().join("full/file"), b"").unwrap();
        assert!(matches!(
            Repository::create(&dir.path().join("full"), now()),
            Err(Error::StoreNotCreatable { .. })
        ));
        disk::remove(&root.join(MARKER)).unwrap();
        let like_a_store = |error| matches!(error, Error::StoreUnmarked { path } if path == root);
        assert!(like_a_store(Repository::discover(&root.join("web01")).unwrap_err()));
        Repository::create(&root, now()).expect("a creation cut off before its last step is repeated");
    }

    #[test]
    fn no_store_is_made_above_or_below_the_revisions_of_another() {
        let (dir, job) = crate::testing::new_job("web01");
        crate::testing::commit_empty_revision(&job, 1);
        let refused = |path: &Path| {
            matches!(Repository::create(path, now()), Err(Error::StoreNotCreatable { reason, .. })
                if reason.contains("store"))
        };
        let store = job.repository().root();
        assert!(refused(&store.join("folder")) && refused(&store.join("folder/below")));
        assert!(refused(job.dir()));
        // A job's directory that lies elsewhere, as behind a link.
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        disk::rename(job.dir(), &outside.join("web01")).unwrap();
        assert!(refused(&outside));
        disk::rename(&outside.join("web01"), job.dir()).unwrap();
        job.repository().create_job(&JobName::parse("own").unwrap(), true, "{}\n", now()).unwrap();
    }

    #[test]
    fn a_store_that_lost_its_mark_gets_a_new_one_and_nothing_else_does() {
        let (dir, job) = crate::testing::new_job("web01");
        let data = crate::testing::image(1, 1 << 22);
        let revision = crate::testing::write_revision(&job, &data, None);
        let root = job.repository().root();
        let not_repaired =
            |path: &Path| matches!(Repository::repair(path, now()), Err(Error::StoreNotRepairable { .. }));
        assert!(not_repaired(root) && not_repaired(job.dir()) && not_repaired(&dir.path().join("none")));
        std::fs::write(root.join(MARKER), "").unwrap();
        assert!(matches!(Repository::create(root, now()), Err(Error::StoreDamaged { .. })));
        let repaired = Repository::repair(root, now()).unwrap();
        assert_ne!(repaired.id(), job.repository().id());
        disk::remove(&root.join(MARKER)).unwrap();
        assert!(matches!(Repository::create(root, now()), Err(Error::StoreUnmarked { .. })));
        assert!(
            matches!(Repository::discover(job.dir()), Err(Error::StoreUnmarked { path }) if path == root)
        );
        // As a program leaves it that copies no empty directories.
        for name in ["writers", "tmp", "damaged"] {
            drop(std::fs::remove_dir_all(root.join(name)));
        }
        Repository::repair(root, now()).unwrap();
        let job = Repository::discover(job.dir()).unwrap().into_job().unwrap();
        let cache = Arc::new(crate::FrameCache::new(1 << 20));
        let mut read = vec![0; data.len()];
        job.open_revision(&revision, &cache).unwrap().read_at(0, &mut read).unwrap();
        assert!(read == data);
        let empty = dir.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        assert!(not_repaired(&empty));
    }

    #[test]
    fn a_copy_is_noticed_and_a_remount_is_not() {
        let (_dir, job) = crate::testing::new_job("web01");
        let root = job.repository().root().to_owned();
        let with = |change: &dyn Fn(&mut Marker)| {
            let mut marker = job.repository().inner.marker.clone();
            change(&mut marker);
            write_marker(&root, &marker).unwrap();
            Repository::open(&root).unwrap().is_on_its_file_system().unwrap()
        };
        assert!(with(&|_| ()));
        assert!(with(&|marker| marker.file_system = "58465342-7".into()), "another name of the device");
        assert!(with(&|marker| marker.birth = Some("b1".into())), "a copy on the same file system");
        assert!(!with(&|marker| {
            marker.birth = Some("b1".into());
            marker.file_system = "58465342-7".into();
        }));
    }

    #[test]
    fn chunks_that_are_away_are_no_damage_and_nothing_is_written_in_their_place() {
        let (dir, job) = crate::testing::new_job("web01");
        let data = crate::testing::image(1, 1 << 22);
        let revision = crate::testing::write_revision(&job, &data, None);
        let (chunks, away) = (job.repository().root().join("chunks"), dir.path().join("away"));
        disk::rename(&chunks, &away).unwrap();
        let is_away = |error: Error| matches!(error, Error::ChunksAway { .. });
        let fails = || {
            let cache = Arc::new(crate::FrameCache::new(1 << 20));
            let read = job.open_revision(&revision, &cache).and_then(|open| open.read_at(0, &mut [0; 9]));
            is_away(read.unwrap_err()) && is_away(job.repository().check_layout().unwrap_err())
        };
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &chunks).unwrap();
        assert!(fails(), "a link that leads nowhere");
        disk::remove(&chunks).unwrap();
        std::fs::create_dir(&chunks).unwrap();
        assert!(fails(), "the mount point of a disk that is away");
        std::fs::remove_dir(&chunks).unwrap();
        std::os::unix::fs::symlink(&away, &chunks).unwrap();
        crate::testing::write_revision(&job, &data, Some(revision));
    }

    #[test]
    fn jobs_are_found_with_the_nearest_store() {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::create(&dir.path().join("srv"), now()).unwrap();
        let shared =
            repository.create_job(&JobName::parse("web01").unwrap(), false, "source: {}\n", now()).unwrap();
        let own =
            repository.create_job(&JobName::parse("db01").unwrap(), true, "source: {}\n", now()).unwrap();
        assert_eq!(shared.repository().id(), repository.id());
        assert_ne!(own.repository().id(), repository.id());
        let names: Vec<_> = repository.jobs().unwrap().iter().map(|job| job.name().to_string()).collect();
        assert_eq!(names, ["db01", "web01"]);
        for (path, expected) in [(shared.dir(), "web01"), (own.dir(), "db01")] {
            assert_eq!(Repository::discover(path).unwrap().into_job().unwrap().name().as_str(), expected);
        }
        assert!(
            matches!(Repository::discover(repository.root()).unwrap().into_job(), Err(Error::NotAJob { jobs, .. }) if jobs.len() == 2)
        );
        assert!(matches!(
            Repository::discover(&repository.root().join("nosuch")),
            Err(Error::JobUnknown { .. })
        ));
        assert!(matches!(
            repository.create_job(shared.name(), false, "", now()),
            Err(Error::JobExists { .. })
        ));
    }

    #[test]
    fn a_newer_or_broken_store_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("srv");
        Repository::create(&root, now()).unwrap();
        for (text, newer) in
            [("format: 2\nshape: new\n", true), ("", false), ("{", false), ("format: 1\n", false)]
        {
            std::fs::write(root.join(MARKER), text).unwrap();
            match Repository::open(&root) {
                Err(Error::FormatNewer { found: 2, .. }) => assert!(newer),
                Err(Error::StoreDamaged { .. }) => assert!(!newer, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
