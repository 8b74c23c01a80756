//! What can go wrong with a mount. Every variant names the thing; causes are linked, not repeated.

use std::io;
use std::path::{Path, PathBuf};

use crate::mount::users::User;

/// Result of an operation on a mount.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store has a complaint of its own.
    #[error(transparent)]
    Store(#[from] backy_store::Error),
    /// There is no such mount option.
    #[error("unknown mount option {option:?}{}", nearest.map_or_else(String::new, |known| format!(", did you mean {known}?")))]
    OptionUnknown {
        /// The option as it was given.
        option: String,
        /// The most similar one that exists, if one is similar enough.
        nearest: Option<&'static str>,
    },
    /// A mount option cannot be used as it was given.
    #[error("cannot use mount option {option:?}: {reason}")]
    OptionInvalid {
        /// The option as it was given.
        option: String,
        /// Why.
        reason: String,
    },
    /// The mount point cannot be used.
    #[error("cannot mount at {}: {reason}", path.display())]
    MountpointRefused {
        /// The mount point.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A backy mount is there already and works.
    #[error("{} is a mount of backy already", path.display())]
    AlreadyMounted {
        /// The mount point.
        path: PathBuf,
    },
    /// This system or this user cannot mount anything through FUSE.
    #[error("cannot use FUSE: {reason}")]
    FuseUnavailable {
        /// What is missing.
        reason: String,
    },
    /// The kernel refused the mount.
    #[error("cannot mount at {}", path.display())]
    MountFailed {
        /// The mount point.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The mount cannot be taken away.
    #[error("cannot unmount {}", path.display())]
    UnmountFailed {
        /// The mount point.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The mount ended by itself.
    #[error("the mount at {} broke off", path.display())]
    SessionFailed {
        /// The mount point.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no mount of ours.
    #[error("{} is not a mount of backy", path.display())]
    NotMounted {
        /// The place.
        path: PathBuf,
    },
    /// The mount is in use; nobody is named where nobody can be seen.
    #[error("{} is in use: {}", path.display(), list(users))]
    InUse {
        /// The mount point.
        path: PathBuf,
        /// By whom.
        users: Vec<User>,
    },
    /// The mount was told twice to end while files were open.
    #[error("files below {} were still open and were cut off", path.display())]
    CutOff {
        /// The mount point.
        path: PathBuf,
    },
    /// The process in the background ended before the mount was ready.
    #[error("the mount in the background was not made: its process ended with {status}")]
    BackgroundFailed {
        /// How it ended. One that ended by itself has said why.
        status: std::process::ExitStatus,
    },
    /// The directory for what is written cannot be used.
    #[error("cannot use the overlay {}: {reason}", path.display())]
    OverlayRefused {
        /// The directory.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// What was written to an image cannot be shown.
    #[error(
        "cannot use the overlay file {}: {reason}; to give up what was written remove its directory while nothing \
         is mounted, to see the image as it was mount without --overlay",
        path.display()
    )]
    OverlayDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing can be written without an overlay.
    #[error("the mounted tree is read-only")]
    ReadOnly,
    /// No more may be written.
    #[error("the overlay is full: it may hold {max_bytes} bytes")]
    OverlayFull {
        /// How much it may hold.
        max_bytes: u64,
    },
    /// A system call failed.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done: `read`, `start`.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Makes an `Io` error: `doing` what to `path`.
    pub(crate) fn io(doing: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Self::Io { doing, path: path.as_ref().to_owned(), source: source.into() }
    }

    /// Makes an `OverlayRefused` error.
    pub(crate) fn overlay_refused(path: &Path, reason: impl Into<String>) -> Self {
        Self::OverlayRefused { path: path.to_owned(), reason: reason.into() }
    }

    /// Makes an `OverlayDamaged` error.
    pub(crate) fn overlay_damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::OverlayDamaged { path: path.to_owned(), reason: reason.into() }
    }

    /// Makes a `MountpointRefused` error.
    pub(crate) fn refused(path: &Path, reason: impl Into<String>) -> Self {
        Self::MountpointRefused { path: path.to_owned(), reason: reason.into() }
    }
}

/// Names the first few.
fn list(users: &[User]) -> String {
    const SHOWN_MAX: usize = 5;
    if users.is_empty() {
        return "by nobody who can be seen: a process of another user, a mapped file, or a mount inside"
            .to_owned();
    }
    let mut texts: Vec<String> = users.iter().take(SHOWN_MAX).map(ToString::to_string).collect();
    if users.len() > SHOWN_MAX {
        texts.push(format!("and {} others", users.len() - SHOWN_MAX));
    }
    texts.join(", ")
}
