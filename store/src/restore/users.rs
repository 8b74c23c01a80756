//! Finds what uses a file or a block device: programs, loop devices, mounts, other devices. This is advice for people:
//! what cannot be looked at (other users' programs, other namespaces) is not found. No file that is found is opened or
//! examined, so that a dead network file system cannot stop a restore.

use std::fs::{read_dir, read_link, read_to_string};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

/// Most users that a message names.
const NAMED_MAX: usize = 5;

/// Returns the programs that have `path` open, and the loop devices made of it. The path must be canonical.
pub(super) fn of_path(path: &Path) -> Vec<String> {
    let mut users = loop_devices(path);
    users.extend(programs(path));
    shortened(users)
}

/// Returns the mounts, swap areas and other devices that a block device, or one of its partitions, is used for.
pub(super) fn of_device(path: &Path, device: u64) -> Vec<String> {
    let sys = format!("/sys/dev/block/{}", number(device));
    let mut numbers = vec![number(device)];
    let mut users = holders(&sys);
    for part in children(&sys) {
        if let Ok(number) = read_to_string(part.join("dev")) {
            numbers.push(number.trim().to_owned());
            users.extend(holders(&part.to_string_lossy()));
        }
    }
    let table = read_to_string("/proc/self/mountinfo").unwrap_or_default();
    users.extend(mounts_of(&table, &numbers).map(|point| format!("mounted at {point}")));
    let swaps = read_to_string("/proc/swaps").unwrap_or_default();
    let own = path.to_string_lossy();
    users.extend(
        swaps.lines().filter(|line| line.split(' ').next() == Some(&*own)).map(|_| "swap".to_owned()),
    );
    shortened(users)
}

/// Whether a block device is set to read-only.
pub(super) fn is_read_only(device: u64) -> bool {
    let sys = format!("/sys/dev/block/{}/ro", number(device));
    read_to_string(sys).is_ok_and(|text| text.trim() == "1")
}

/// Whether something is mounted on this very path, which must be canonical.
pub(super) fn is_mount_point(path: &Path) -> bool {
    let table = read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let escaped = escape(&path.to_string_lossy());
    table.lines().any(|line| line.split(' ').nth(4) == Some(escaped.as_str()))
}

/// Writes the number of a device as `/sys` and `/proc` do.
pub(super) fn number(device: u64) -> String {
    format!("{}:{}", major(device), minor(device))
}

/// Returns no more users than a message names.
pub(super) fn shortened(mut users: Vec<String>) -> Vec<String> {
    users.dedup();
    if users.len() > NAMED_MAX {
        let rest = users.len() - NAMED_MAX;
        users.truncate(NAMED_MAX);
        users.push(format!("and {rest} more"));
    }
    users
}

/// Returns what lies in a directory; nothing where it cannot be listed.
pub(super) fn children(dir: impl AsRef<Path>) -> Vec<PathBuf> {
    read_dir(dir).map(|list| list.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Returns the devices made of a device, logical volumes by their names.
fn holders(sys: &str) -> Vec<String> {
    let of = |path: &PathBuf| {
        let device = name(path);
        let volume = read_to_string(format!("/sys/block/{device}/dm/name")).unwrap_or_default();
        if volume.is_empty() { device } else { format!("{device} ({})", volume.trim()) }
    };
    children(format!("{sys}/holders")).iter().map(of).collect()
}

/// Returns the mount points of the devices in a table of mounts.
fn mounts_of<'t>(table: &'t str, devices: &'t [String]) -> impl Iterator<Item = &'t str> {
    table.lines().filter_map(move |line| {
        let mut fields = line.split(' ').skip(2);
        let device = fields.next()?;
        fields.nth(1).filter(|_| devices.iter().any(|wanted| wanted == device))
    })
}

fn loop_devices(path: &Path) -> Vec<String> {
    let made_of = |device: &PathBuf| {
        let backing = read_to_string(device.join("loop/backing_file")).unwrap_or_default();
        let is_it = path.to_str().is_some_and(|path| backing.strip_suffix('\n') == Some(path));
        is_it.then(|| format!("/dev/{}", name(device)))
    };
    children("/sys/block").iter().filter_map(made_of).collect()
}

fn programs(path: &Path) -> Vec<String> {
    let own = std::process::id().to_string();
    let has_open = |process: &PathBuf| {
        children(process.join("fd")).iter().any(|fd| read_link(fd).is_ok_and(|open| open == path))
    };
    let of = |process: &PathBuf| {
        let program = read_to_string(process.join("comm")).unwrap_or_default();
        format!("{} ({})", program.trim(), name(process))
    };
    let is_other = |pid: &str| pid != own && pid.bytes().all(|byte| byte.is_ascii_digit());
    let processes = children("/proc").into_iter().filter(|process| is_other(&name(process)));
    processes.filter(has_open).map(|process| of(&process)).collect()
}

/// Writes a path as the table of mounts does.
fn escape(path: &str) -> String {
    path.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011").replace('\n', "\\012")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_the_numbers_of_devices() {
        let table =
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 1 8:17 / /srv/a\\040b rw - ext4 /dev/sdb1 rw\n\n24\n";
        let of = |devices: &[&str]| {
            let devices: Vec<String> = devices.iter().map(|&device| device.to_owned()).collect();
            mounts_of(table, &devices).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(of(&["8:16", "8:17"]), ["/srv/a\\040b"]);
        assert_eq!(of(&["8:1", "8:17"]), ["/", "/srv/a\\040b"]);
        assert!(of(&["8:2"]).is_empty());
        assert_eq!(escape("/a b\\c"), "/a\\040b\\134c");
    }

    #[test]
    fn a_program_that_has_a_file_open_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("x");
        let file = std::fs::File::create(&path).unwrap();
        assert!(of_path(&path).is_empty(), "not by ourselves");
        let mut child = std::process::Command::new("sleep").arg("100").stdin(file).spawn().unwrap();
        let users = of_path(&path);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(users.len(), 1, "{users:?}");
        assert!(users[0].ends_with(&format!("({})", child.id())), "{users:?}");
        assert_eq!(shortened((0..9).map(|n| n.to_string()).collect())[4..], ["4", "and 4 more"]);
    }
}
