//! Who uses a mount: found in `/proc` and `/sys` without touching the mount itself, so that a mount that does not
//! answer can be looked at too.
//!
//! An ordinary user sees only what belongs to him; root sees all. A process that has only mapped a file and closed it
//! is not found.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::table::Mount;

/// Someone who keeps a mount busy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// `cat (123)`, or a loop device.
    pub who: String,
    /// The file or directory.
    pub path: PathBuf,
}

impl fmt::Display for User {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} uses {}", self.who, self.path.display())
    }
}

/// Returns who uses a file system that is mounted in these places, once for each file.
pub(crate) fn users(mounts: &[Mount]) -> Vec<User> {
    let mut users: Vec<User> = Vec::new();
    let own = std::process::id().to_string();
    for process in entries(Path::new("/proc")) {
        let is_process = process.file_name().is_some_and(|name| is_number(name) && name != OsStr::new(&own));
        if is_process {
            let paths = paths_of(&process, mounts);
            if !paths.is_empty() {
                let who = name_of(&process);
                users.extend(paths.into_iter().map(|path| User { who: who.clone(), path }));
            }
        }
    }
    for device in entries(Path::new("/sys/block")) {
        let Ok(file) = fs::read_to_string(device.join("loop/backing_file")) else { continue };
        let path = PathBuf::from(file.trim_end());
        if let (true, Some(name)) = (is_below(&path, mounts), device.file_name()) {
            users.push(User { who: format!("/dev/{}", name.to_string_lossy()), path });
        }
    }
    let mut seen = std::collections::HashSet::new();
    users.retain(|user| seen.insert((user.who.clone(), user.path.clone())));
    users
}

/// What a process has open, and where it is.
fn paths_of(process: &Path, mounts: &[Mount]) -> Vec<PathBuf> {
    let open = entries(&process.join("fdinfo")).into_iter().filter_map(|info| {
        let text = fs::read_to_string(&info).ok()?;
        let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
        mounts.iter().find(|mount| mount.id == id)?;
        fs::read_link(process.join("fd").join(info.file_name()?)).ok()
    });
    let at = ["cwd", "root"].into_iter().filter_map(|name| fs::read_link(process.join(name)).ok());
    open.chain(at.filter(|path| is_below(path, mounts))).collect()
}

fn name_of(process: &Path) -> String {
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    let pid = process.file_name().unwrap_or_default().to_string_lossy();
    format!("{} ({pid})", name.trim_end())
}

fn is_below(path: &Path, mounts: &[Mount]) -> bool {
    mounts.iter().any(|mount| path.starts_with(&mount.point))
}

fn is_number(name: &OsStr) -> bool {
    name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
}

/// Processes come and go: what cannot be listed has no entries.
fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).map_or(Vec::new(), |entries| entries.flatten().map(|entry| entry.path()).collect())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::mount::table;

    #[test]
    fn a_process_is_found_by_its_open_file_and_by_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let mut child = Command::new("sleep")
            .arg("60")
            .stdin(fs::File::open(&file).unwrap())
            .stdout(Stdio::null())
            .current_dir(dir.path())
            .spawn()
            .unwrap();
        let who = format!("sleep ({})", child.id());
        // The directory as if it were a mount: by the number of the file system, and by the path.
        let real = table::mounts().unwrap().into_iter().filter(|mount| dir.path().starts_with(&mount.point));
        let real = real.max_by_key(|mount| mount.point.as_os_str().len()).unwrap();
        let as_mount = Mount { point: dir.path().to_owned(), ..real.clone() };
        let mut found = users(&[as_mount]);
        child.kill().unwrap();
        child.wait().unwrap();
        found.retain(|user| user.who == who);
        let paths: Vec<&Path> = found.iter().map(|user| &*user.path).collect();
        assert!(paths.contains(&&*file) && paths.contains(&dir.path()), "{found:?}");
        let none = Mount { id: "0".to_owned(), point: "/no/such/place".into(), ..real };
        assert_eq!(users(&[none]), []);
    }
}
