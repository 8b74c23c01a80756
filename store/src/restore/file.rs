//! A file that a restore makes or replaces.
//!
//! Whatever can be known about it is known before anything is copied: that the directory is there and lets files be made,
//! that the old file may be replaced, that the name and the size are allowed, and that there is room. After the copy only a
//! full disk or a broken one is left to fail.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::statfs::{self, FsType};
use nix::sys::statvfs::statvfs;

use super::attributes;
use super::devices::Node;
use super::problem::TargetProblem;
use super::target::{Wanted, refuse};
use super::temporary::{self, Temporary};
use super::users;
use crate::error::{Context, Error, Result};
use crate::fs::disk;

pub(super) struct NewFile {
    /// As it was given, for messages.
    path: PathBuf,
    /// With its directory resolved once.
    target: PathBuf,
    temporary: Temporary,
    replaces: bool,
}

impl NewFile {
    /// Makes the file; `old` is what is there.
    pub(super) fn open(path: &Path, old: Option<&Metadata>, wanted: &Wanted<'_>) -> Result<Self> {
        let (dir, target) = place(path)?;
        wanted.check_outside(path, &dir)?;
        check_name(path, &dir)?;
        if let Some(old) = old {
            wanted.check_not_underlying(path, &Node::file(old))?;
        }
        if old.is_some_and(|old| old.len() > 0) && !wanted.force {
            wanted.check_unused(&target)?;
            return refuse(path, TargetProblem::FileHoldsData);
        }
        let old = old.map(|_| open_old(path, &target, wanted)).transpose()?;
        for removed in temporary::remove_dead(&dir) {
            let removed = removed.display();
            wanted.monitor.warn(&format!("removed {removed}, which a restore that was killed had left"));
        }
        check_room(path, &dir, wanted)?;
        let temporary = Temporary::create(&dir, old.is_none().then_some(&*target))?;
        match &old {
            Some(old) => attributes::keep(old, &temporary.file, path, wanted.monitor),
            None => attributes::warn_if_exposed(&temporary.file, path, wanted.monitor),
        }
        match disk::set_len(&temporary.file, wanted.size, path) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::FileTooLarge => {
                return refuse(path, TargetProblem::TooLarge { size: wanted.size });
            }
            other => other?,
        }
        Ok(Self { path: path.to_owned(), target, temporary, replaces: old.is_some() })
    }

    /// Writes bytes that are not zeros.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        disk::write_at(&self.temporary.file, data, offset, &self.path)
    }

    /// Makes everything durable and gives the file its name.
    pub(super) fn finish(self) -> Result<()> {
        disk::sync_file(&self.temporary.file, &self.path)?;
        if !self.temporary.publish(&self.target, self.replaces)? {
            return refuse(&self.path, TargetProblem::Appeared);
        }
        match disk::sync_dir(self.target.parent().unwrap_or(Path::new("."))) {
            // Not every file system can sync a directory; then its names are as durable as they get.
            Err(Error::Io { source, .. })
                if matches!(source.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) =>
            {
                Ok(())
            }
            other => other,
        }
    }
}

/// Returns the directory of a new file, without links, and the file there.
fn place(path: &Path) -> Result<(PathBuf, PathBuf)> {
    let Some(name) = path.file_name() else { return refuse(path, TargetProblem::NoName) };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let real = match dir.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return refuse(path, TargetProblem::DirectoryMissing { dir: dir.to_owned() });
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return refuse(path, TargetProblem::NotADirectory { dir: dir.to_owned() });
        }
        other => other.context("find", dir)?,
    };
    if !real.is_dir() {
        return refuse(path, TargetProblem::NotADirectory { dir: dir.to_owned() });
    }
    let target = real.join(name);
    Ok((real, target))
}

/// The kernel says so itself for most file systems, but not for all before the name is made.
fn check_name(path: &Path, dir: &Path) -> Result<()> {
    let length = path.file_name().map_or(0, |name| name.as_bytes().len()) as u64;
    let length_max = statvfs(dir).map_or(0, |facts| facts.name_max());
    if length_max > 0 && length > length_max {
        return refuse(path, TargetProblem::NameTooLong { length, length_max });
    }
    Ok(())
}

/// Opens the file that is going to be replaced, and makes sure that it can be.
fn open_old(path: &Path, target: &Path, wanted: &Wanted<'_>) -> Result<File> {
    if users::is_mount_point(target) {
        return refuse(path, TargetProblem::MountPoint);
    }
    wanted.check_unused(target)?;
    // Fails for a file that may not be changed, or only appended to, and on a read-only file system.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let old = OpenOptions::new().read(true).write(true).custom_flags(flags).open(target);
    let old = old.context("open", path)?;
    disk::check_removable(target, path)?;
    Ok(old)
}

/// Whether the data find room. With `force` it is tried: where the file system compresses, or where data are scattered, an
/// image takes less than it can take.
fn check_room(path: &Path, dir: &Path, wanted: &Wanted<'_>) -> Result<()> {
    // Some file systems over a network do not know their size.
    let Some(facts) = statvfs(dir).ok().filter(|facts| facts.blocks() > 0) else { return Ok(()) };
    let free = facts.blocks_available().saturating_mul(facts.fragment_size());
    let needed = if has_holes(dir) { wanted.data_bytes } else { wanted.size };
    if needed <= free {
        return Ok(());
    }
    let problem = TargetProblem::NoRoom { needed, free };
    if wanted.force {
        wanted.monitor.warn(&format!("{}: {problem}", path.display()));
        return Ok(());
    }
    refuse(path, problem)
}

/// Whether files of this file system can have holes, as far as that is known.
fn has_holes(dir: &Path) -> bool {
    const FAT: i64 = 0x4d44;
    const EXFAT: i64 = 0x2011_bab0;
    let kind = statfs::statfs(dir).map(|facts| facts.filesystem_type());
    !kind.is_ok_and(|kind| [FsType(FAT as _), FsType(EXFAT as _)].contains(&kind))
}
