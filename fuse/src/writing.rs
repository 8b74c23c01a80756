//! What is done when somebody writes to an open image, makes zeros of a part of it, syncs it or changes what
//! describes it: through the overlay, or not at all. Every failure is logged here and becomes a number.

use std::sync::Arc;

use nix::fcntl::FallocateFlags;

use crate::disk::DiskFile;
use crate::errno::Code;
use crate::error::Error as MountError;
use crate::handles::Open;
use crate::overlay::failure;
use crate::view::{Facts, Result, View};

/// Makes durable what was written. What syncs reads nothing of the store and can meet no damage there.
pub(crate) fn sync(open: Option<&Open>) -> Result<()> {
    match open {
        Some(Open::Disk(file)) => file.disk.sync().map_err(|error| {
            complain(file, 0, &error);
            Code::from(&error)
        }),
        Some(_) => Ok(()),
        None => Err(Code::INVALID),
    }
}

/// Logs what a write or a sync met. A full overlay or a broken disk below it fails at every write.
fn complain(file: &DiskFile, offset: u64, error: &MountError) {
    if file.disk.is_new_complaint(Code::from(error).number()) {
        let (job, revision, cause) = (file.disk.job.name(), &file.disk.revision.id, failure(error));
        tracing::error!(%job, %revision, offset, %cause, "cannot write to an image");
    }
}

/// What somebody wants to change about a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttrChange {
    pub(crate) size_bytes: Option<u64>,
    pub(crate) owner_or_mode: bool,
}

impl View {
    /// Finds the file that is open for writing under a handle.
    fn disk_file(&self, handle: u64) -> Result<Arc<DiskFile>> {
        match self.handles.get(handle) {
            Some(Open::Disk(file)) => Ok(file),
            _ => Err(Code::INVALID),
        }
    }

    /// Turns what a write or a sync met into a number, after it was logged.
    fn not_written(&self, file: &DiskFile, offset: u64, error: &MountError) -> Code {
        match error {
            MountError::Store(damage) if damage.is_damage() => {
                self.damage.met(&file.disk, file.disk_offset(offset), damage);
            }
            _ => complain(file, offset, error),
        }
        Code::from(error)
    }

    /// Writes; returns how many bytes were written, which are fewer only at the end of the file.
    pub(crate) fn write_file(&self, handle: u64, offset: u64, data: &[u8]) -> Result<u32> {
        let file = self.disk_file(handle)?;
        if offset >= file.window.size_bytes() && !data.is_empty() {
            return Err(Code::TOO_LARGE);
        }
        let written = file.disk.write(&file.window, offset, data);
        self.damage.avoided(&file.disk);
        let written = written.map_err(|error| self.not_written(&file, offset, &error))?;
        // The kernel sends 1 MiB at most.
        u32::try_from(written).map_err(|_| Code::INVALID)
    }

    /// Makes zeros of a range; nothing else that `fallocate` can do makes sense for a disk.
    pub(crate) fn zero_file(&self, handle: u64, offset: u64, length: u64, mode: i32) -> Result<()> {
        let (keep, punch, zero) = (
            FallocateFlags::FALLOC_FL_KEEP_SIZE,
            FallocateFlags::FALLOC_FL_PUNCH_HOLE,
            FallocateFlags::FALLOC_FL_ZERO_RANGE,
        );
        let file = self.disk_file(handle)?;
        match FallocateFlags::from_bits(mode) {
            Some(mode) if mode == punch | keep || mode == zero | keep => {}
            Some(mode) if mode == zero => {
                if offset.checked_add(length).is_none_or(|end| end > file.window.size_bytes()) {
                    return Err(Code::TOO_LARGE);
                }
            }
            _ => return Err(Code::UNSUPPORTED),
        }
        let zeroed = file.disk.zero(&file.window, offset, length);
        self.damage.avoided(&file.disk);
        zeroed.map_err(|error| self.not_written(&file, offset, &error))
    }

    /// Checks whether a change of attributes can be taken as done: times are not kept, the size stays.
    pub(crate) fn check_change(&self, inode: u64, change: &AttrChange) -> Result<Facts> {
        if self.overlay.is_none() {
            return Err(Code::READ_ONLY);
        }
        let facts = self.node(inode).and_then(|node| self.facts(inode, &node))?;
        let is_same_size = change.size_bytes.is_none_or(|size| size == facts.size_bytes);
        if facts.writable && is_same_size && !change.owner_or_mode { Ok(facts) } else { Err(Code::FORBIDDEN) }
    }
}
