//! A block device that is overwritten in place.
//!
//! It is opened so that the kernel refuses if it is mounted or part of another device, and nothing of it is read to
//! find out what must be overwritten: holes are zeroed by the device itself where it can, in large ranges, and else by
//! writing zeros.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;

use super::devices::Node;
use super::problem::TargetProblem;
use super::target::{Wanted, refuse};
use super::users;
use crate::error::{Context, Result};
use crate::format::{FRAME_LEN, is_zero};
use crate::fs::disk;

/// Bytes at the beginning and end of a device that are looked at to tell whether it holds data.
const LOOKED_AT: u64 = 1 << 20;
/// Ranges of zeros in data from which on the device is asked to zero them: each request costs about as much as writing some.
const ASKED_FROM: u64 = 1 << 20;

/// The ways to zero a range, best first. Both leave it reading as zeros, whatever the device can do (`man 2 fallocate`);
/// the first one frees the space, too, and fails where the device cannot.
const WAYS: [FallocateFlags; 2] = [
    FallocateFlags::FALLOC_FL_PUNCH_HOLE.union(FallocateFlags::FALLOC_FL_KEEP_SIZE),
    FallocateFlags::FALLOC_FL_ZERO_RANGE.union(FallocateFlags::FALLOC_FL_KEEP_SIZE),
];

pub(super) struct Device {
    path: PathBuf,
    file: File,
    /// Which of `WAYS` is tried next.
    way: AtomicU8,
}

impl Device {
    /// Opens the device that `path` or a link there names. What is opened is what was looked at: all checks are made on
    /// the descriptor.
    pub(super) fn open(path: &Path, wanted: &Wanted<'_>) -> Result<Self> {
        let number = path.metadata().context("examine", path)?.rdev();
        let mut file = match OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(path) {
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
                let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
                return refuse(path, TargetProblem::Claimed { by: users::of_device(&real, number) });
            }
            // Opening such a device can succeed, and each write fails.
            _ if users::is_read_only(number) => return refuse(path, TargetProblem::DeviceReadOnly),
            other => other.context("open", path)?,
        };
        let opened = file.metadata().context("examine", path)?;
        if !opened.file_type().is_block_device() {
            return refuse(path, TargetProblem::Special);
        }
        wanted.check_not_underlying(path, &Node::device(opened.rdev()))?;
        let room = file.seek(SeekFrom::End(0)).context("find the size of", path)?;
        if room < wanted.size {
            return refuse(path, TargetProblem::TooSmall { room, size: wanted.size });
        }
        wanted.check_unused(path)?;
        if !wanted.force && holds_data(&file, room).context("read", path)? {
            return refuse(path, TargetProblem::DeviceHoldsData);
        }
        Ok(Self { path: path.to_owned(), file, way: AtomicU8::new(0) })
    }

    /// Writes bytes that are not zeros.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        disk::write_at(&self.file, data, offset, &self.path)
    }

    /// Writes zeros that stand among data.
    pub(super) fn zero_among_data(&self, offset: u64, length: u64) -> Result<()> {
        if length >= ASKED_FROM {
            self.zero(offset, length)
        } else {
            self.write_zeros(offset, offset + length)
        }
    }

    /// Makes a range read as zeros.
    pub(super) fn zero(&self, offset: u64, length: u64) -> Result<()> {
        let (start, end) = (offset.next_multiple_of(FRAME_LEN as u64), offset + length);
        // Requests must fit the device's blocks; no device has larger ones.
        let whole_end = end - end % FRAME_LEN as u64;
        if start >= whole_end || !self.ask(start, whole_end - start) {
            return self.write_zeros(offset, end);
        }
        self.write_zeros(offset, start)?;
        self.write_zeros(whole_end, end)
    }

    /// Asks the device to zero a range; returns whether it did.
    fn ask(&self, start: u64, length: u64) -> bool {
        loop {
            let way = self.way.load(Ordering::Relaxed);
            let Some(flags) = WAYS.get(usize::from(way)) else { return false };
            match fallocate(&self.file, *flags, start as i64, length as i64) {
                Ok(()) => return true,
                Err(Errno::EINTR) => {}
                // If the device fails altogether, writing will say so.
                Err(_) => {
                    let _ = self.way.compare_exchange(way, way + 1, Ordering::Relaxed, Ordering::Relaxed);
                }
            }
        }
    }

    fn write_zeros(&self, start: u64, end: u64) -> Result<()> {
        let zeros = [0; FRAME_LEN];
        let mut at = start;
        while at < end {
            let part = &zeros[..((end - at) as usize).min(FRAME_LEN)];
            disk::write_at(&self.file, part, at, &self.path)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Makes everything durable.
    pub(super) fn finish(self) -> Result<()> {
        disk::sync_file(&self.file, &self.path)
    }
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
