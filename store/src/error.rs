//! What can go wrong in a store. Every variant names the thing; causes are linked, not repeated.

use std::io;
use std::path::{Path, PathBuf};

use crate::format::ChunkId;
use crate::fs::ownership::Fault;
use crate::name::JobName;
use crate::restore::TargetProblem;
use crate::revision::RevisionId;

/// Result of an operation on a store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no store at the path nor above it.
    #[error("no backy store at {}", path.display())]
    StoreMissing {
        /// The path that was given.
        path: PathBuf,
    },
    /// The directory looks like a store whose mark is gone.
    #[error("{} looks like a backy store, but its file backy.store is missing", path.display())]
    StoreUnmarked {
        /// The directory.
        path: PathBuf,
    },
    /// The parts of a store lie where they cannot be used together.
    #[error("the store at {} cannot be written: {reason}", path.display())]
    StoreSplit {
        /// The store's root.
        path: PathBuf,
        /// What lies where.
        reason: String,
    },
    /// The chunk directory is empty although revisions have data.
    #[error("the chunks of the store at {} are away: its directory `chunks` is empty, but revisions have data", path.display())]
    ChunksAway {
        /// The store's root.
        path: PathBuf,
    },
    /// A directory of the store is a link into another store.
    #[error("{} leads into the store at {}", path.display(), other.display())]
    StoreEntangled {
        /// The link.
        path: PathBuf,
        /// The root of the other store.
        other: PathBuf,
    },
    /// Another store has claimed the chunks that this one uses.
    #[error("the chunks of the store at {} belong to another store, perhaps to the one that this is a copy of", path.display())]
    ChunksClaimed {
        /// The store's root.
        path: PathBuf,
    },
    /// The chunks lie outside of the store's directory, and no store has claimed them.
    #[error("the chunks of the store at {} lie elsewhere, and nothing shows that no other store uses them", path.display())]
    ChunksUnclaimed {
        /// The store's root.
        path: PathBuf,
    },
    /// File locks do not work where the store lies.
    #[error("file locks do not work at {}: {reason}", path.display())]
    LocksUnusable {
        /// The file that was locked.
        path: PathBuf,
        /// How that shows.
        reason: String,
    },
    /// A program on another machine may be using the store, and its locks are not seen here.
    #[error("the store at {} may be in use by process {process} on {host}, whose locks cannot be seen from here", path.display())]
    StoreShared {
        /// The store's root.
        path: PathBuf,
        /// The machine.
        host: String,
        /// The process there.
        process: u32,
    },
    /// The directory holds jobs of the original, and no store was made beside them.
    #[error("{} is a base directory of the original backy and no store yet", path.display())]
    StoreOriginal {
        /// The base directory.
        path: PathBuf,
    },
    /// A store cannot be made here.
    #[error("cannot create a store at {}: {reason}", path.display())]
    StoreNotCreatable {
        /// Where.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The directory cannot be given the mark of a store again.
    #[error("cannot repair the store at {}: {reason}", path.display())]
    StoreNotRepairable {
        /// The directory.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The store's own files are not what they should be.
    #[error("the store at {} is damaged: {reason}", path.display())]
    StoreDamaged {
        /// The store's root.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Another user could change it, or read its secrets.
    #[error("{} {fault}", path.display())]
    Unsafe {
        /// The file or directory.
        path: PathBuf,
        /// Why it is not to be trusted.
        fault: Fault,
    },
    /// A symbolic link stands where the store makes a file or directory of its own.
    #[error("{} is a symbolic link, which is not followed there", path.display())]
    LinkInStore {
        /// The link.
        path: PathBuf,
    },
    /// Something was written by a newer program.
    #[error("{what} has format version {found}, this program reads up to version {known}")]
    FormatNewer {
        /// The file.
        what: String,
        /// Its version.
        found: u64,
        /// The newest version known here.
        known: u64,
    },
    /// The directory is a store, but a job was needed.
    #[error("{} is a store, not a job", path.display())]
    NotAJob {
        /// The directory.
        path: PathBuf,
        /// The jobs that are there.
        jobs: Vec<JobName>,
    },
    /// There is no such job.
    #[error("there is no job {name} in the store at {}", store.display())]
    JobUnknown {
        /// The job's name.
        name: String,
        /// The store's root.
        store: PathBuf,
    },
    /// The job's directory is a link to one that is not there.
    #[error("the directory of job {name} is a link to {}, which is not there", target.display())]
    JobLinkBroken {
        /// The job's name.
        name: JobName,
        /// Where the link leads.
        target: PathBuf,
    },
    /// The job exists already.
    #[error("job {name} exists already at {}", path.display())]
    JobExists {
        /// The job's name.
        name: JobName,
        /// Its directory.
        path: PathBuf,
    },
    /// A name breaks the rules.
    #[error("invalid {kind} {name:?}: {reason}")]
    NameInvalid {
        /// What sort of name.
        kind: &'static str,
        /// The name.
        name: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// There is no such revision.
    #[error("job {job} has no revision {revision}")]
    RevisionUnknown {
        /// The job.
        job: JobName,
        /// The revision as it was asked for.
        revision: String,
    },
    /// The revision was removed while it was read by a program that could not register as its reader.
    #[error("revision {revision} of job {job} was forgotten and purged while it was being read")]
    RevisionPurged {
        /// The job.
        job: JobName,
        /// The revision.
        revision: RevisionId,
    },
    /// A revision specification cannot be understood or evaluated.
    #[error("cannot use revision specification {spec:?}: {reason}")]
    SpecInvalid {
        /// The specification.
        spec: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A manifest cannot be read.
    #[error("manifest {} is unusable: {reason}", path.display())]
    ManifestCorrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A chunk map cannot be read.
    #[error("chunk map {} is unusable: {reason}", path.display())]
    MapCorrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A chunk is not in the store.
    #[error("chunk {id} is missing from the store")]
    ChunkMissing {
        /// The chunk.
        id: ChunkId,
    },
    /// A chunk's file does not hold what its name says.
    #[error("chunk {id} is damaged: {reason}")]
    ChunkCorrupt {
        /// The chunk.
        id: ChunkId,
        /// What is wrong.
        reason: String,
    },
    /// A chunk cannot be made, because a group that its recipe refers to is missing or damaged.
    #[error("chunk {chunk} cannot be made: group {group} {reason}")]
    GroupDamaged {
        /// The chunk.
        chunk: ChunkId,
        /// The group.
        group: ChunkId,
        /// What is wrong with it.
        reason: String,
    },
    /// Damage met at a place of an image.
    #[error("revision {revision} of job {job} is damaged at byte {offset} of the image")]
    ImageDamaged {
        /// The job.
        job: JobName,
        /// The revision.
        revision: RevisionId,
        /// First byte of the damaged frame or chunk.
        offset: u64,
        /// What is wrong there.
        #[source]
        cause: Box<Error>,
    },
    /// The revision is of a kind that this operation cannot handle.
    #[error("revision {revision} of job {job} cannot be read: {reason}")]
    RevisionUnreadable {
        /// The job.
        job: JobName,
        /// The revision.
        revision: RevisionId,
        /// Why.
        reason: String,
    },
    /// Another run holds the lock.
    #[error("{what} is locked by another run")]
    Locked {
        /// What is locked, for people: `job web01 (backup)`.
        what: String,
    },
    /// The job has revisions, and none of them can be seen: its directory is missing, empty or another one.
    #[error(
        "job {job} has {revisions} revisions in the store's register, but none of them is in {}", dir.display()
    )]
    JobAway {
        /// The job.
        job: JobName,
        /// The directory where they should be.
        dir: PathBuf,
        /// How many there are.
        revisions: usize,
    },
    /// The sweep refuses to delete.
    #[error("refusing to delete chunks: {refusal}")]
    SweepRefused {
        /// Why.
        refusal: Refusal,
    },
    /// The revision cannot be changed this way.
    #[error("refusing to change revision {revision} of job {job}: {reason}")]
    ChangeRefused {
        /// The job.
        job: JobName,
        /// The revision.
        revision: RevisionId,
        /// Why.
        reason: String,
    },
    /// The restore target cannot be used.
    #[error("cannot restore to {}: {problem}", target.display())]
    TargetRefused {
        /// The target.
        target: PathBuf,
        /// Why.
        problem: TargetProblem,
    },
    /// A system call on the restore target failed. The store is not to blame.
    #[error("cannot {doing} {}", target.display())]
    Target {
        /// What was being done: `write`, `sync`.
        doing: &'static str,
        /// The target.
        target: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The operation was asked to stop.
    #[error("stopped on request")]
    Cancelled,
    /// A system call failed.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done: `read`, `write`, `rename`.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The revision index cannot be used.
    #[error("the revision index {} cannot be used", path.display())]
    Index {
        /// The database file.
        path: PathBuf,
        /// What SQLite says.
        #[source]
        source: rusqlite::Error,
    },
}

/// Why a sweep refuses to delete anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The store is on another file system than before: it may be a copy, half copied, or something else.
    #[error("the store at {} is on another file system than before", root.display())]
    Moved {
        /// The store's root.
        root: PathBuf,
    },
    /// A chunk map cannot be read, so the chunks that it names are not known.
    #[error("the chunks that revision {revision} in {} needs are not known: {reason}", dir.display())]
    NeedsUnknown {
        /// The revision.
        revision: RevisionId,
        /// The directory of its job.
        dir: PathBuf,
        /// What is wrong with its map or manifest.
        reason: String,
    },
    /// The register lost records since the last purge, so the chunks that they named are not known.
    #[error("{} of job {job} disappeared from the register in `maps`, and so did its revisions", records(*lost))]
    RegisterShrunk {
        /// The job.
        job: JobName,
        /// Number of records that the last purge left and that are gone.
        lost: usize,
    },
    /// Directories in the store are nested too deep to be looked at.
    #[error("{} is nested too deep in the store", path.display())]
    TooDeep {
        /// The directory.
        path: PathBuf,
    },
    /// An operator said that a job is gone on purpose, and it is there.
    #[error("nothing of job {job} is missing")]
    NotMissing {
        /// The job.
        job: JobName,
    },
    /// The chunks that the revisions of backy 2 in a job need are not known.
    #[error("{0}")]
    Legacy(String),
}

/// A number of records, for messages.
fn records(number: usize) -> String {
    format!("{number} record{}", if number == 1 { "" } else { "s" })
}

impl Error {
    /// Makes an `Io` error: `doing` what to `path`.
    pub fn io(doing: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io { doing, path: path.as_ref().to_owned(), source }
    }

    /// Makes what failed on a restore target distinct from what failed in the store.
    pub(crate) fn of_target(self) -> Self {
        match self {
            Self::Io { doing, path, source } => Self::Target { doing, target: path, source },
            other => other,
        }
    }

    /// Whether this is damage of stored data, as opposed to a failing system or wrong use.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::ManifestCorrupt { .. }
                | Self::MapCorrupt { .. }
                | Self::ChunkMissing { .. }
                | Self::ChunkCorrupt { .. }
                | Self::GroupDamaged { .. }
                | Self::ImageDamaged { .. }
        )
    }

    /// Returns the chunk that is missing or damaged, or cannot be made. Where its base is damaged, that is the base.
    pub fn damaged_chunk(&self) -> Option<ChunkId> {
        match self {
            Self::ChunkMissing { id } | Self::ChunkCorrupt { id, .. } => Some(*id),
            Self::GroupDamaged { chunk, .. } => Some(*chunk),
            Self::ImageDamaged { cause, .. } => cause.damaged_chunk(),
            _ => None,
        }
    }

    /// Returns the chunks and groups that are to be recorded as damaged: whatever uses one of them is affected, and a chunk
    /// is written in full when its content is met again.
    pub fn damaged_files(&self) -> Vec<ChunkId> {
        match self {
            Self::GroupDamaged { chunk, group, .. } => vec![*chunk, *group],
            Self::ImageDamaged { cause, .. } => cause.damaged_files(),
            other => other.damaged_chunk().into_iter().collect(),
        }
    }

    /// Whether nothing can be written, or not by this process: the file system is full or read-only, rights are missing, or
    /// a limit allows no longer files (`ulimit -f`). Whoever only reads goes on.
    pub fn is_unwritable(&self) -> bool {
        matches!(
            self.io_kind(),
            Some(
                io::ErrorKind::ReadOnlyFilesystem
                    | io::ErrorKind::PermissionDenied
                    | io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
                    | io::ErrorKind::FileTooLarge
            )
        )
    }

    /// Whether the file system cannot do it at all. EINVAL is what it answers to a flag that it does not know, EMLINK
    /// where a file may have one name only.
    pub(crate) fn is_unsupported(&self) -> bool {
        use nix::libc::{EINVAL, EMLINK, ENOSYS, EOPNOTSUPP};
        let Self::Io { source, .. } = self else { return false };
        source.raw_os_error().is_some_and(|errno| [EINVAL, EMLINK, ENOSYS, EOPNOTSUPP].contains(&errno))
    }

    /// Whether a hard link failed for a reason that a copy does not have: another file system, one without links, too many of
    /// them, or somebody else's file (`protected_hardlinks`).
    pub(crate) fn is_link_impossible(&self) -> bool {
        self.is_unsupported()
            || matches!(self.io_kind(), Some(io::ErrorKind::CrossesDevices | io::ErrorKind::PermissionDenied))
    }

    /// Returns the operating system's error where there is one.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { source, .. } | Self::Target { source, .. } => Some(source.kind()),
            Self::ImageDamaged { cause, .. } => cause.io_kind(),
            _ => None,
        }
    }
}

/// Adds what was being done to which file to an `io::Result`.
pub(crate) trait Context<T> {
    fn context(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::io(doing, path, source))
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn context(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|errno| Error::io(doing, path, errno.into()))
    }
}

/// Returns an error and its causes on one line, for logs and for answers to other programs.
pub fn in_full(error: &(dyn std::error::Error + '_)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}
