//! Why a target cannot be used. One variant for each remedy; the command line knows the remedies.

use std::path::PathBuf;

/// Why an image cannot be restored to a path. All but `Appeared` are found before anything is copied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetProblem {
    /// The path has no last component, for example `/`.
    #[error("the path names no file")]
    NoName,
    /// A symbolic link to anything but a block device.
    #[error("it is a symbolic link to {}, which is no block device", to.display())]
    Link {
        /// The real path.
        to: PathBuf,
    },
    /// A symbolic link that leads nowhere.
    #[error("it is a symbolic link to {}, which does not exist", to.display())]
    LinkDangling {
        /// The text of the link.
        to: PathBuf,
    },
    /// A directory, or a path with a slash at its end.
    #[error("it names a directory")]
    Directory,
    /// The directory of a new file does not exist.
    #[error("the directory {} does not exist", dir.display())]
    DirectoryMissing {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory of a new file is something else.
    #[error("{} is not a directory", dir.display())]
    NotADirectory {
        /// The path.
        dir: PathBuf,
    },
    /// A character device, a pipe or a socket.
    #[error("it is neither a regular file nor a block device")]
    Special,
    /// The file is not empty.
    #[error("the file exists and is not empty")]
    FileHoldsData,
    /// The device is not empty.
    #[error("the device holds data")]
    DeviceHoldsData,
    /// The device is smaller than the image.
    #[error("the device has {room} bytes, the image {size}")]
    TooSmall {
        /// Size of the device.
        room: u64,
        /// Size of the image.
        size: u64,
    },
    /// The target belongs to the store, or would lie among its files.
    #[error("it lies in the store at {}", store.display())]
    InStore {
        /// The store's root, or the job's directory.
        store: PathBuf,
    },
    /// A file on which another one is mounted: it cannot be replaced.
    #[error("it is a mount point, so it cannot be replaced")]
    MountPoint,
    /// The kernel lets nobody else write to the device.
    #[error("the device is in use{}", and_by(by))]
    Claimed {
        /// Mount points and holders, as far as they are known.
        by: Vec<String>,
    },
    /// What it holds is mounted or swapped to through other devices: overwriting it would destroy that.
    #[error("what it holds is in use{}", and_by(by))]
    Underlies {
        /// Mounts and swap areas, with their devices.
        by: Vec<String>,
    },
    /// The device is set to read-only.
    #[error("the device is read-only")]
    DeviceReadOnly,
    /// Programs have the target open, or a loop device is made of it.
    #[error("it is in use{}", and_by(by))]
    InUse {
        /// Programs and loop devices.
        by: Vec<String>,
    },
    /// Somebody else made a file of this name meanwhile.
    #[error("a file of this name appeared during the restore")]
    Appeared,
    /// There is probably not enough room.
    #[error("the image has up to {needed} bytes of data, and {free} bytes are free there")]
    NoRoom {
        /// What the image can need.
        needed: u64,
        /// What the file system has for this user.
        free: u64,
    },
    /// The file system, or a limit of the process, allows no file of this size.
    #[error("a file of {size} bytes is larger than the file system or the limits of this process allow")]
    TooLarge {
        /// Size of the image.
        size: u64,
    },
    /// The file system does not know names of this length.
    #[error("the name has {length} bytes, its file system allows {length_max}")]
    NameTooLong {
        /// Length of the name.
        length: u64,
        /// The longest one.
        length_max: u64,
    },
}

fn and_by(users: &[String]) -> String {
    if users.is_empty() { String::new() } else { format!(": {}", users.join(", ")) }
}
