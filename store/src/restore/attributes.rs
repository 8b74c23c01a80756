//! What a file that replaces another one keeps of it: owner, mode, access control lists, security labels, other extended
//! attributes, and the flags that say how a file system stores it. What cannot be kept is said, and fails nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{IFlags, XattrFlags};

use crate::monitor::Monitor;

/// Attributes that speak of the old content.
const OF_CONTENT: [&str; 3] = ["security.ima", "security.evm", "security.capability"];
/// Longest list of attributes, and longest attribute, that the kernel allows.
const BYTES_MAX: usize = 64 << 10;

/// Gives `new`, an empty file, what `old` has. `path` is the name of both, for messages.
pub(super) fn keep(old: &File, new: &File, path: &Path, monitor: &dyn Monitor) {
    let mut lost = Vec::new();
    let facts = match old.metadata() {
        Ok(facts) => facts,
        Err(error) => {
            return monitor.warn(&format!("cannot keep owner and mode of {}: {error}", path.display()));
        }
    };
    if let Err(error) = std::os::unix::fs::fchown(new, Some(facts.uid()), Some(facts.gid())) {
        lost.push(format!("owner ({error})"));
    }
    if let Err(error) = keep_extended(old, new, &mut lost) {
        lost.push(format!("extended attributes ({error})"));
    }
    // After the lists: setting those changes the mode.
    if let Err(error) = new.set_permissions(PermissionsExt::from_mode(facts.mode() & 0o777)) {
        lost.push(format!("mode ({error})"));
    }
    keep_flags(old, new);
    if !lost.is_empty() {
        monitor.warn(&format!("not kept of the old file {}: {}", path.display(), lost.join(", ")));
    }
    warn_if_exposed(new, path, monitor);
    if facts.nlink() > 1 {
        monitor.warn(&format!("other names of the old file {} keep its content", path.display()));
    }
}

/// Warns of an image that others can read: because of the old file's mode, or on a file system that has no modes.
pub(super) fn warn_if_exposed(file: &File, path: &Path, monitor: &dyn Monitor) {
    let mode = file.metadata().map_or(0, |facts| facts.mode() & 0o777);
    if mode & 0o004 != 0 {
        let path = path.display();
        monitor.warn(&format!("{path} has mode {mode:04o}: every user of this machine can read the image"));
    }
}

fn keep_extended(old: &File, new: &File, lost: &mut Vec<String>) -> io::Result<()> {
    let mut names = vec![0; BYTES_MAX];
    let length = match rustix::fs::flistxattr(old, &mut names[..]) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => return Ok(()),
        other => other?,
    };
    let names = names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let mut value = vec![0; BYTES_MAX];
    for name in names {
        let text = String::from_utf8_lossy(name);
        if OF_CONTENT.contains(&&*text) {
            continue;
        }
        let copied = rustix::fs::fgetxattr(old, name, &mut value[..])
            .and_then(|length| rustix::fs::fsetxattr(new, name, &value[..length], XattrFlags::empty()));
        match copied {
            // Removed since it was listed, or read by other programs only.
            Err(rustix::io::Errno::NODATA) | Ok(()) => {}
            Err(error) => lost.push(format!("{text} ({error})")),
        }
    }
    Ok(())
}

/// Flags that must be set while a file is empty: not to copy its blocks when they are written, to compress them. Only how
/// it is stored depends on them.
fn keep_flags(old: &File, new: &File) {
    let kept = IFlags::NOCOW | IFlags::COMPRESSED | IFlags::NODUMP | IFlags::NOATIME;
    let Ok(before) = rustix::fs::ioctl_getflags(old) else { return };
    let Ok(now) = rustix::fs::ioctl_getflags(new) else { return };
    let wanted = (now - kept) | (before & kept);
    if wanted != now
        && let Err(error) = rustix::fs::ioctl_setflags(new, wanted)
    {
        tracing::debug!(error = crate::error::in_full(&error), "flags-of-the-file-not-kept");
    }
}
