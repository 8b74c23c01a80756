//! The file or block device that a restore writes: what the path names is decided here, once.

use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::device::Device;
use super::devices::{Node, Picture};
use super::file::NewFile;
use super::problem::TargetProblem;
use super::users;
use crate::error::{Context, Error, Result};
use crate::format::{FRAME_LEN, is_zero};
use crate::monitor::Monitor;

/// What is going to be written, and what may be done for it.
pub(super) struct Wanted<'w> {
    /// Size of the image.
    pub(super) size: u64,
    /// Bytes of the image that may be data.
    pub(super) data_bytes: u64,
    /// Whether data may be overwritten.
    pub(super) force: bool,
    /// The directories of the store, where nothing is restored to.
    pub(super) store_dirs: Vec<PathBuf>,
    pub(super) monitor: &'w dyn Monitor,
}

impl Wanted<'_> {
    /// Fails if the target is in use; with `force` it is only said. `path` must be canonical.
    pub(super) fn check_unused(&self, path: &Path) -> Result<()> {
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let by = users::of_path(&real);
        if by.is_empty() {
            return Ok(());
        }
        let problem = TargetProblem::InUse { by };
        if self.force {
            self.monitor.warn(&format!("{}: {problem}", path.display()));
            return Ok(());
        }
        refuse(path, problem)
    }

    /// Fails if a mounted file system or a swap area has its bytes in the target, through whatever devices. That would be
    /// destroyed, so nothing helps but to take it out of use.
    pub(super) fn check_not_underlying(&self, path: &Path, target: &Node) -> Result<()> {
        let by = users::shortened(Picture::take().uses_of(target));
        if by.is_empty() { Ok(()) } else { refuse(path, TargetProblem::Underlies { by }) }
    }

    /// Fails if the directory, which is canonical, lies in the store: under its path or, seen through other mounts, by its
    /// number.
    pub(super) fn check_outside(&self, path: &Path, dir: &Path) -> Result<()> {
        let identity = |path: &Path| path.metadata().ok().map(|facts| (facts.dev(), facts.ino()));
        for store in &self.store_dirs {
            let Some(of_store) = identity(store) else { continue };
            if dir.ancestors().any(|above| identity(above) == Some(of_store)) {
                return refuse(path, TargetProblem::InStore { store: store.clone() });
            }
        }
        Ok(())
    }
}

pub(super) fn refuse<T>(path: &Path, problem: TargetProblem) -> Result<T> {
    Err(Error::TargetRefused { target: path.to_owned(), problem })
}

/// An open target. Many threads may write at once, each to a place of its own.
pub(super) enum TargetFile {
    /// It reads as zeros where nothing was written.
    File(NewFile),
    Device(Device),
}

impl TargetFile {
    /// Opens the target. Nothing that is there has changed when this fails.
    pub(super) fn open(path: &Path, wanted: &Wanted<'_>) -> Result<Self> {
        Self::open_kind(path, wanted).map_err(Error::of_target)
    }

    fn open_kind(path: &Path, wanted: &Wanted<'_>) -> Result<Self> {
        // Nothing that is said of such a path later would name what was meant.
        let names_directory =
            [&b"/"[..], b"/.", b"/.."].iter().any(|end| path.as_os_str().as_bytes().ends_with(end));
        let facts = match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => None,
            other => Some(other.context("examine", path)?),
        };
        match facts {
            None if names_directory => refuse(path, TargetProblem::Directory),
            None => NewFile::open(path, None, wanted).map(Self::File),
            Some(facts) if facts.file_type().is_symlink() => Self::open_link(path, wanted),
            Some(facts) if facts.file_type().is_block_device() => {
                Device::open(path, wanted).map(Self::Device)
            }
            Some(facts) if facts.is_dir() => refuse(path, TargetProblem::Directory),
            Some(facts) if !facts.is_file() => refuse(path, TargetProblem::Special),
            Some(facts) => NewFile::open(path, Some(&facts), wanted).map(Self::File),
        }
    }

    /// A link to a block device is as good as the device: all logical volumes have such names. A link to a file is not
    /// followed: whoever may change the link, not whoever restores, would choose the file that is replaced.
    fn open_link(path: &Path, wanted: &Wanted<'_>) -> Result<Self> {
        match path.metadata() {
            Ok(facts) if facts.file_type().is_block_device() => Device::open(path, wanted).map(Self::Device),
            Ok(_) => refuse(path, TargetProblem::Link { to: path.canonicalize().context("find", path)? }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let to = std::fs::read_link(path).context("read the link", path)?;
                refuse(path, TargetProblem::LinkDangling { to })
            }
            Err(error) => Err(Error::io("examine", path, error)),
        }
    }

    /// Writes the bytes at `offset`; returns how many of them are not in runs of zeros.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> Result<u64> {
        let mut written = 0;
        for (run, is_zero) in runs(data) {
            let at = offset + run.start as u64;
            match self {
                Self::File(_) if is_zero => {}
                Self::Device(device) if is_zero => device.zero_among_data(at, run.len() as u64)?,
                Self::File(file) => file.write(at, &data[run.clone()])?,
                Self::Device(device) => device.write(at, &data[run.clone()])?,
            }
            written += if is_zero { 0 } else { run.len() as u64 };
        }
        Ok(written)
    }

    /// Makes a range read as zeros.
    pub(super) fn zero(&self, offset: u64, length: u64) -> Result<()> {
        match self {
            Self::File(_) => Ok(()),
            Self::Device(device) => device.zero(offset, length),
        }
    }

    /// Makes everything durable and gives a file its name.
    pub(super) fn finish(self) -> Result<()> {
        match self {
            Self::File(file) => file.finish(),
            Self::Device(device) => device.finish(),
        }
    }
}

/// Returns runs of frames that are all zero or all not, in order.
pub(super) fn runs(data: &[u8]) -> impl Iterator<Item = (Range<usize>, bool)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        if start >= data.len() {
            return None;
        }
        let zero = is_zero(frame_at(data, start));
        let mut end = start;
        while end < data.len() && is_zero(frame_at(data, end)) == zero {
            end += frame_at(data, end).len();
        }
        let run = start..end;
        start = end;
        Some((run, zero))
    })
}

fn frame_at(data: &[u8], start: usize) -> &[u8] {
    &data[start..data.len().min(start + FRAME_LEN)]
}
