//! What the kernel is told when something fails: errors of the store as numbers, in one `match`.
//! Owner of the crate `libc`.

use std::io::ErrorKind;

use backy_store::Error;

use crate::error::Error as MountError;

/// A number that the kernel understands as an error. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code(i32);

impl Code {
    /// There is no such file.
    pub(crate) const MISSING: Self = Self(libc::ENOENT);
    /// The file is no directory.
    pub(crate) const NOT_A_DIRECTORY: Self = Self(libc::ENOTDIR);
    /// The file is a directory.
    pub(crate) const A_DIRECTORY: Self = Self(libc::EISDIR);
    /// The handle or the argument makes no sense for this file.
    pub(crate) const INVALID: Self = Self(libc::EINVAL);
    /// Nothing here can be written.
    pub(crate) const READ_ONLY: Self = Self(libc::EROFS);
    /// The file has the size of its disk and no other.
    pub(crate) const TOO_LARGE: Self = Self(libc::EFBIG);
    /// Nobody may do this here, not even root.
    pub(crate) const FORBIDDEN: Self = Self(libc::EPERM);
    /// This is not something that such a file can do.
    pub(crate) const UNSUPPORTED: Self = Self(libc::EOPNOTSUPP);
    /// There is no space left.
    pub(crate) const FULL: Self = Self(libc::ENOSPC);
    /// There is no data at or after the offset.
    pub(crate) const NO_DATA: Self = Self(libc::ENXIO);
    /// There is no such attribute.
    pub(crate) const NO_ATTRIBUTE: Self = Self(libc::ENODATA);
    /// The answer does not fit.
    pub(crate) const TOO_LONG: Self = Self(libc::ERANGE);

    /// Returns the number.
    pub(crate) fn number(self) -> i32 {
        self.0
    }
}

impl From<&Error> for Code {
    fn from(error: &Error) -> Self {
        Self(match error {
            Error::RevisionUnknown { .. } | Error::JobUnknown { .. } | Error::StoreMissing { .. } => {
                libc::ENOENT
            }
            Error::RevisionUnreadable { .. } | Error::FormatNewer { .. } => libc::EOPNOTSUPP,
            Error::RevisionPurged { .. } => libc::ESTALE,
            Error::Locked { .. } => libc::EBUSY,
            Error::Unsafe { .. } => libc::EACCES,
            // What the system lacks at the moment is told as it is, so that people need not suspect the data.
            Error::Io { source, .. } => io_number(source),
            // Damage of every kind, and all that cannot happen while reading.
            _ => libc::EIO,
        })
    }
}

impl From<Error> for Code {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl From<&MountError> for Code {
    fn from(error: &MountError) -> Self {
        match error {
            MountError::Store(error) => Self::from(error),
            MountError::ReadOnly => Self::READ_ONLY,
            MountError::OverlayFull { .. } => Self::FULL,
            MountError::Io { source, .. } => Self(io_number(source)),
            _ => Self(libc::EIO),
        }
    }
}

/// What the system lacks is passed on as it is, all else is `EIO`.
fn io_number(error: &std::io::Error) -> i32 {
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::PermissionDenied | ErrorKind::OutOfMemory, Some(number)) => number,
        (_, Some(number @ (libc::EMFILE | libc::ENFILE | libc::ENOSPC | libc::EDQUOT | libc::EFBIG))) => {
            number
        }
        _ => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use backy_store::{ChunkId, JobName, RevisionId};

    use super::*;

    #[test]
    fn damage_is_eio_and_absence_is_not() {
        let chunk = Error::ChunkMissing { id: ChunkId::of(b"x") };
        assert_eq!(Code::from(&chunk).number(), libc::EIO);
        let (job, revision) = (JobName::parse("web01").unwrap(), RevisionId::parse("r").unwrap());
        let image = Error::ImageDamaged { job: job.clone(), revision, offset: 0, cause: Box::new(chunk) };
        assert_eq!(Code::from(&image).number(), libc::EIO);
        let unknown = Error::RevisionUnknown { job, revision: "r".to_owned() };
        assert_eq!(Code::from(unknown), Code::MISSING);
        let io = |number| Error::io("open", "/x", std::io::Error::from_raw_os_error(number));
        assert_eq!(Code::from(io(libc::EMFILE)).number(), libc::EMFILE);
        assert_eq!(Code::from(io(libc::ENOENT)).number(), libc::EIO);
    }
}
