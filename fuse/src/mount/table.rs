//! The kernel's table of mounts: what is mounted where, and taking one away without waiting for its users.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{major, minor};

/// The program that mounts and unmounts for ordinary users.
pub(crate) const HELPER: &str = "fusermount3";

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Its number, which `/proc/PID/fdinfo` has too.
    pub(crate) id: String,
    /// `major:minor`.
    pub(crate) device: String,
    /// Where.
    pub(crate) point: PathBuf,
    /// What: `ext4`, `fuse.backy`.
    pub(crate) kind: String,
    /// The device or, of ours, the store.
    pub(crate) source: PathBuf,
    /// Whether nobody can write to it.
    pub(crate) is_read_only: bool,
}

/// Reads the table, oldest mount first.
pub(crate) fn mounts() -> io::Result<Vec<Mount>> {
    Ok(std::fs::read("/proc/self/mountinfo")?.split(|&byte| byte == b'\n').filter_map(parse).collect())
}

/// Returns the mount that is on top at `point`.
pub(crate) fn at(point: &Path) -> io::Result<Option<Mount>> {
    Ok(mounts()?.into_iter().rfind(|mount| mount.point == point))
}

/// Returns `major:minor` of the file system at `path`.
pub(crate) fn device_of(path: &Path) -> io::Result<String> {
    let device = std::fs::metadata(path)?.dev();
    Ok(format!("{}:{}", major(device), minor(device)))
}

/// Takes the topmost mount at `point` away; `ResourceBusy` if it is in use.
pub(crate) fn remove(point: &Path) -> io::Result<()> {
    match umount2(point, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        // Somebody else was faster, unless it is a mount that this namespace may not touch.
        Err(Errno::EINVAL) if at(point)?.is_none() => Ok(()),
        Err(Errno::EPERM) => unmount_by_helper(point, &["-u"]),
        Err(errno) => Err(errno.into()),
    }
}

/// Takes the topmost mount at `point` away; who uses it can go on. It is no error if none is there.
pub(crate) fn detach(point: &Path) -> io::Result<()> {
    match umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(Errno::EPERM) => unmount_by_helper(point, &["-u", "-z"]),
        Err(errno) => Err(errno.into()),
    }
}

fn unmount_by_helper(point: &Path, how: &[&str]) -> io::Result<()> {
    let output = Command::new(HELPER)
        .args(how)
        .arg("--")
        .arg(point)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot start {HELPER}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if said.ends_with("busy") {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, said));
    }
    Err(io::Error::other(if said.is_empty() { format!("{HELPER}: {}", output.status) } else { said }))
}

/// Parses one line: `id parent device root point options [optional ...] - kind source options`.
fn parse(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let text = |at: usize| fields.get(at).map(|field| String::from_utf8_lossy(field).into_owned());
    let point = PathBuf::from(OsString::from_vec(unescape(fields.get(4)?)));
    let source = PathBuf::from(OsString::from_vec(unescape(fields.get(dash + 2)?)));
    // Options of the mount and of the file system.
    let is_ro = |at: usize| text(at).is_some_and(|options| options.split(',').any(|option| option == "ro"));
    let is_read_only = is_ro(5) || is_ro(dash + 3);
    Some(Mount { id: text(0)?, device: text(2)?, point, kind: text(dash + 1)?, source, is_read_only })
}

/// Blanks, tabs, newlines and backslashes are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| first == b'\\');
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        plain.push(code.unwrap_or(first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_table_are_read() {
        let mount = |id: &str, device: &str, point: &str, kind: &str, source: &str, is_read_only| {
            Some(Mount {
                id: id.to_owned(),
                device: device.to_owned(),
                point: point.into(),
                kind: kind.to_owned(),
                source: source.into(),
                is_read_only,
            })
        };
        assert_eq!(
            parse(b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw"),
            mount("36", "98:0", "/mnt2", "ext3", "/dev/root", false)
        );
        assert_eq!(
            parse(br"40 35 0:57 / /mnt/a\040b\134c rw - fuse.backy /srv/a\040b ro,user_id=0"),
            mount("40", "0:57", r"/mnt/a b\c", "fuse.backy", "/srv/a b", true)
        );
        for line in [&b""[..], b"1 2 3", b"1 2 3:4 / /x rw", b"1 2 3:4 / /x rw -", b"-"] {
            assert_eq!(parse(line), None);
        }
        assert_eq!(unescape(br"\04"), br"\04");
        assert_eq!(unescape(br"\999"), br"\999");
    }

    #[test]
    fn this_system_has_a_root() {
        assert!(at(Path::new("/")).unwrap().is_some());
        assert_eq!(at(Path::new("/no/such/place")).unwrap(), None);
    }
}
