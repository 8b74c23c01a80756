//! What can go wrong on the write side. Every variant names the thing: the file, the source, the tag.
//! A failure of the store passes through unchanged, `Cancelled` too.

use std::io;
use std::path::PathBuf;

use crate::config::Problem;
use crate::service::rights::Right;

/// Result of an operation on the write side.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong on the write side.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store failed, or the run was asked to stop.
    #[error(transparent)]
    Store(#[from] backy_store::Error),
    /// A configuration file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    ConfigUnreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A configuration file has problems; all of them.
    #[error("{} cannot be used", path.display())]
    ConfigInvalid {
        /// The file.
        path: PathBuf,
        /// Each with its line and column where they are known.
        problems: Vec<Problem>,
    },
    /// The file that tells whether the service runs cannot be opened or locked.
    #[error("cannot {doing} {}", path.display())]
    LockUnusable {
        /// What was being done: `open`, `lock`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The API cannot listen where it should.
    #[error("the API cannot listen on {addr}")]
    ApiAddressUnusable {
        /// The address and port.
        addr: std::net::SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The API's thread or runtime cannot be started.
    #[error("cannot start the API")]
    ApiNotStarted {
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another service, or this machine's, does not answer.
    #[error("cannot reach the service at {url}: {reason}")]
    ServiceUnreachable {
        /// Its address.
        url: String,
        /// Why not.
        reason: String,
    },
    /// A service does not know the token.
    #[error("the service at {url} does not know the token")]
    TokenRefused {
        /// Its address.
        url: String,
    },
    /// A service knows the token, which does not allow what was asked.
    #[error("the token does not have the right {right} at that service")]
    RightMissing {
        /// The right.
        right: Right,
        /// What the service says.
        #[source]
        source: Box<Error>,
    },
    /// A service answered that it will not or cannot.
    #[error("the service at {url} answers {message}")]
    ServiceRefused {
        /// Its address.
        url: String,
        /// The status of HTTP.
        status: u16,
        /// Its words: the status and what may follow.
        message: String,
    },
    /// What answers is no service of ours, or of another time.
    #[error("what answers at {url} is not understood: {reason}")]
    AnswerInvalid {
        /// The address.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The settings given for a new job have problems; all of them.
    #[error("the settings for a source of type {source_type} cannot be used: {}", problems.join("; "))]
    SettingsInvalid {
        /// The type as it was given.
        source_type: String,
        /// What is wrong.
        problems: Vec<String>,
    },
    /// A text is not an interval.
    #[error("invalid interval {text:?}: {reason}")]
    IntervalInvalid {
        /// The text.
        text: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// Tags that the schedule does not know.
    #[error("unknown tags {}", tags.join(", "))]
    TagsUnknown {
        /// The unknown ones.
        tags: Vec<String>,
        /// Those that the schedule has.
        known: Vec<String>,
    },
    /// Ceph, or a program that speaks to it, failed.
    #[error(transparent)]
    Rbd(#[from] crate::source::rbd::RbdError),
    /// Single places of the source cannot be read.
    #[error("single places of {name} cannot be read without librbd")]
    SourceUnreadable {
        /// The source.
        name: String,
    },
    /// A list of changes left something out.
    #[error(
        "the list of changes of {name} is not to be trusted: byte {offset} is not as in the revision {base}, from \
         which it was said to be unchanged"
    )]
    ChangesUntrue {
        /// The source.
        name: String,
        /// First byte of the chunk that differs.
        offset: u64,
        /// The revision before.
        base: String,
    },
    /// There is nothing at the source's path, or not any more.
    #[error("the source {name} does not exist")]
    SourceMissing {
        /// The source.
        name: String,
    },
    /// The source is a block device of 0 bytes.
    #[error("the block device {name} has no medium: its size is 0 bytes")]
    SourceWithoutMedium {
        /// The source.
        name: String,
    },
    /// The source is neither a regular file nor a block device.
    #[error("the source {name} is a {kind}, but a regular file or a block device is needed")]
    SourceKind {
        /// The source.
        name: String,
        /// What it is.
        kind: &'static str,
    },
    /// The source cannot be opened or looked at.
    #[error("cannot {doing} the source {name}")]
    SourceUnusable {
        /// The source.
        name: String,
        /// What was being done: `open`, `measure`.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Reading failed.
    #[error("cannot read the source {name} at byte {offset}")]
    SourceRead {
        /// The source.
        name: String,
        /// Where.
        offset: u64,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The source ended early: somebody cut it while it was read.
    #[error("the source {name} ended at byte {offset}, but had {size_bytes} bytes when the backup began")]
    SourceShort {
        /// The source.
        name: String,
        /// Where nothing more came.
        offset: u64,
        /// Its size at the beginning.
        size_bytes: u64,
    },
    /// The configuration that is to be read again names another base directory.
    #[error("base-dir was changed from {} to {}, which a running service cannot follow", .running.display(), .wanted.display())]
    BaseDirChanged {
        /// Where it works.
        running: PathBuf,
        /// Where it should.
        wanted: PathBuf,
    },
    /// The system gives no thread.
    #[error("cannot start a thread")]
    ThreadMissing {
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The service lacks what every process has.
    #[error("the service cannot be started")]
    ServiceNotStarted {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The disk of a job does not answer.
    #[error("the disk has not answered for {secs} s")]
    StoreSilent {
        /// For how long it was waited.
        secs: u64,
    },
    /// The service is about to end.
    #[error("the service is ending")]
    ServiceEnding,
    /// The source has another size than at the beginning.
    #[error("the source {name} grew or shrank from {before_bytes} to {after_bytes} bytes while it was read")]
    SourceResized {
        /// The source.
        name: String,
        /// Size at the beginning.
        before_bytes: u64,
        /// Size at the end.
        after_bytes: u64,
    },
    /// The source was written to while it was read: its modification time moved.
    #[error("the source {name} was modified while it was read")]
    SourceModified {
        /// The source.
        name: String,
    },
    /// Another file or device has taken the source's name.
    #[error("the source {name} was replaced by another file while it was read")]
    SourceReplaced {
        /// The source.
        name: String,
    },
    /// The second reading of the source does not agree with what was recorded.
    #[error(
        "the source {name} does not agree with the new revision at byte {offset}: it changed while it was read"
    )]
    SourceChanged {
        /// The source.
        name: String,
        /// First byte of the chunk that differs.
        offset: u64,
    },
}

impl Error {
    /// Whether the run ended because it was asked to.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Store(backy_store::Error::Cancelled))
    }
}

pub(crate) use backy_store::error::in_full;
