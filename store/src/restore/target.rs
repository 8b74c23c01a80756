//! The file or block device that a restore writes.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::chunk::{FRAME_LEN, is_zero};
use crate::disk;
use crate::error::{Context, Error, Result};

/// Bytes at the beginning and end of a block device that are looked at to tell whether it holds data.
const LOOKED_AT: u64 = 1 << 20;

pub(super) struct TargetFile {
    path: PathBuf,
    file: File,
    kind: Kind,
    done: bool,
}

enum Kind {
    /// A new sparse file under a temporary name; it reads as zeros where nothing was written.
    File {
        temporary: PathBuf,
        replace: bool,
    },
    Device,
}

fn refuse<T>(path: &Path, reason: impl Into<String>) -> Result<T> {
    Err(Error::TargetRefused { target: path.to_owned(), reason: reason.into() })
}

impl TargetFile {
    /// Opens the target for an image of `size` bytes.
    pub(super) fn open(path: &Path, size: u64, force: bool) -> Result<Self> {
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::new_file(path, size, None),
            Err(error) => Err(Error::io("examine", path, error)),
            Ok(facts) if facts.file_type().is_block_device() => Self::device(path, size, force),
            Ok(facts) if facts.file_type().is_symlink() => {
                refuse(path, "it is a symbolic link; name what it points to, or remove it")
            }
            Ok(facts) if !facts.is_file() => refuse(path, "it is neither a regular file nor a block device"),
            Ok(facts) if facts.len() > 0 && !force => {
                refuse(path, "the file exists and is not empty; use --force to replace it")
            }
            Ok(facts) => Self::new_file(path, size, Some(&facts)),
        }
    }

    fn new_file(path: &Path, size: u64, old: Option<&std::fs::Metadata>) -> Result<Self> {
        let Some(name) = path.file_name() else { return refuse(path, "it has no file name") };
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let temporary = dir.join(format!(".{}.{}", name.to_string_lossy(), disk::random_name()?));
        let file = disk::create_new(&temporary)?;
        let target = Self {
            path: path.to_owned(),
            file,
            kind: Kind::File { temporary: temporary.clone(), replace: old.is_some() },
            done: false,
        };
        if let Some(old) = old {
            // Whoever could use the file before can use it after.
            let kept = std::os::unix::fs::fchown(&target.file, Some(old.uid()), Some(old.gid()))
                .and_then(|()| target.file.set_permissions(PermissionsExt::from_mode(old.mode() & 0o777)));
            if let Err(error) = kept {
                tracing::warn!(path = %path.display(), %error, "cannot keep owner and mode");
            }
        }
        disk::set_len(&target.file, size, &temporary)?;
        Ok(target)
    }

    fn device(path: &Path, size: u64, force: bool) -> Result<Self> {
        // O_EXCL on a block device fails while it is mounted or otherwise claimed.
        let flags = nix::libc::O_EXCL | nix::libc::O_NOFOLLOW;
        let mut file = match OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
                return refuse(path, "the device is in use, for instance mounted");
            }
            other => other.context("open", path)?,
        };
        let room = file.seek(SeekFrom::End(0)).context("find the size of", path)?;
        if room < size {
            return refuse(path, format!("the device has {room} bytes, the image {size}"));
        }
        if !force && holds_data(&file, room).context("read", path)? {
            return refuse(path, "the device holds data; use --force to overwrite it");
        }
        Ok(Self { path: path.to_owned(), file, kind: Kind::Device, done: false })
    }

    /// Writes the bytes at `offset`, zeros as holes; returns how many were written.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> Result<u64> {
        let mut written = 0;
        for (run, is_zero) in runs(data) {
            let at = offset + run.start as u64;
            if is_zero {
                self.zero(at, run.len() as u64)?;
            } else {
                disk::write_at(&self.file, &data[run.clone()], at, &self.path)?;
                written += run.len() as u64;
            }
        }
        Ok(written)
    }

    /// Makes a range read as zeros.
    pub(super) fn zero(&self, offset: u64, length: u64) -> Result<()> {
        match self.kind {
            Kind::File { .. } => Ok(()),
            Kind::Device => self.zero_device(offset, length),
        }
    }

    fn zero_device(&self, offset: u64, length: u64) -> Result<()> {
        let mut buffer = vec![0; FRAME_LEN];
        let end = offset + length;
        let mut at = offset;
        let mut first_data = None;
        while at < end {
            let part = &mut buffer[..((end - at) as usize).min(FRAME_LEN)];
            self.file.read_exact_at(part, at).context("read", &self.path)?;
            if !is_zero(part) {
                first_data = Some(at);
                break;
            }
            at += part.len() as u64;
        }
        let Some(start) = first_data else { return Ok(()) };
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        // Discarding is only an attempt: what it leaves is overwritten.
        let punched =
            start % 4096 == 0 && fallocate(&self.file, flags, start as i64, (end - start) as i64).is_ok();
        let mut at = start;
        while at < end {
            let length = ((end - at) as usize).min(FRAME_LEN);
            let part = &mut buffer[..length];
            if punched {
                self.file.read_exact_at(part, at).context("read", &self.path)?;
            }
            if !punched || !is_zero(part) {
                part.fill(0);
                disk::write_at(&self.file, part, at, &self.path)?;
            }
            at += length as u64;
        }
        Ok(())
    }

    /// Makes everything durable and gives a file its name.
    pub(super) fn finish(mut self) -> Result<()> {
        disk::sync_file(&self.file, &self.path)?;
        if let Kind::File { temporary, replace } = &self.kind {
            if *replace {
                disk::rename(temporary, &self.path)?;
            } else if !disk::rename_new(temporary, &self.path)? {
                return refuse(&self.path, "a file of this name appeared while it was restored");
            }
            disk::sync_dir(temporary.parent().unwrap_or(Path::new(".")))?;
        }
        self.done = true;
        Ok(())
    }
}

impl Drop for TargetFile {
    fn drop(&mut self) {
        if let Kind::File { temporary, .. } = &self.kind
            && !self.done
            && let Err(error) = disk::remove(temporary)
        {
            tracing::warn!(%error, "cannot remove an unfinished file");
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

/// Looks at both ends of a device and at places in between.
fn holds_data(file: &File, room: u64) -> io::Result<bool> {
    let mut buffer = vec![0; FRAME_LEN];
    let ends = (0..LOOKED_AT / FRAME_LEN as u64).flat_map(|at| {
        let at = at * FRAME_LEN as u64;
        [at, room.saturating_sub(at + FRAME_LEN as u64)]
    });
    let between = (1..256).map(|part| room / 256 * part);
    for at in ends.chain(between) {
        let length = (room.saturating_sub(at)).min(FRAME_LEN as u64) as usize;
        let part = &mut buffer[..length];
        file.read_exact_at(part, at)?;
        if !is_zero(part) {
            return Ok(true);
        }
    }
    Ok(false)
}
