//! What must be true before a mount is made: of the system, of the user and of the mount point. Every refusal
//! says what to do about it.

use std::fs::Metadata;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::options::{Access, Options};
use super::table::{self, HELPER};
use crate::error::{Error, Result};

const DEVICE: &str = "/dev/fuse";
const CONFIG: &str = "/etc/fuse.conf";

/// Dead mounts that are cleared from one mount point; more on top of each other are no accident.
const DEAD_MAX: usize = 8;

/// Checks what the system and the user need to mount anything.
pub(crate) fn check_system(options: &Options) -> Result<()> {
    let unavailable = |reason: String| Err(Error::FuseUnavailable { reason });
    if !Path::new(DEVICE).exists() {
        return unavailable(format!("{DEVICE} is missing; load it with `modprobe fuse`"));
    }
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    if !has_helper() {
        return unavailable(format!(
            "{HELPER} is missing, which ordinary users need; install the package fuse3 or mount as root"
        ));
    }
    let config = std::fs::read_to_string(CONFIG).unwrap_or_default();
    if options.access != Access::Owner && !config.lines().any(|line| line.trim() == "user_allow_other") {
        return unavailable(format!(
            "allow_other and allow_root need a line `user_allow_other` in {CONFIG} for ordinary users"
        ));
    }
    Ok(())
}

fn has_helper() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let standard = ["/bin", "/usr/bin", "/sbin", "/usr/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(standard).any(|dir| dir.join(HELPER).is_file())
}

/// Checks a mount point, clears what a killed mount left there, and returns it as an absolute path.
pub(crate) fn prepare(path: &Path, store: &Path, options: &Options) -> Result<PathBuf> {
    let point = resolve(path)?;
    let facts = clear_dead_mounts(&point)?;
    if facts.is_symlink() {
        return Err(Error::refused(path, "it is a symbolic link; name the directory it leads to"));
    }
    if !facts.is_dir() {
        return Err(Error::refused(path, "it is not a directory"));
    }
    let store = store.canonicalize().map_err(|source| Error::io("open", store, source))?;
    if point.starts_with(&store) {
        return Err(Error::refused(path, format!("it lies inside the store {}", store.display())));
    }
    if store.starts_with(&point) {
        return Err(Error::refused(path, format!("the mount would hide the store {}", store.display())));
    }
    let mut entries = std::fs::read_dir(&point).map_err(|source| Error::io("list", &point, source))?;
    if !options.nonempty && entries.next().is_some() {
        return Err(Error::refused(path, "it is not empty; `-o nonempty` mounts over what is there"));
    }
    Ok(point)
}

/// Makes a path absolute without looking at the mount point itself, which may be dead.
fn resolve(path: &Path) -> Result<PathBuf> {
    let failed = |source: io::Error| match source.kind() {
        ErrorKind::NotFound => Error::refused(path, "there is no such directory; make it first"),
        ErrorKind::NotADirectory => Error::refused(path, "it is not a directory"),
        _ => Error::io("open", path, source),
    };
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(parent.canonicalize().map_err(failed)?.join(name))
        }
        _ => path.canonicalize().map_err(failed),
    }
}

/// Looks at a mount point; a mount there whose process is dead is taken away first.
fn clear_dead_mounts(point: &Path) -> Result<Metadata> {
    for _ in 0..DEAD_MAX {
        let mount = table::at(point).map_err(|source| Error::io("read", "/proc/self/mountinfo", source))?;
        let is_ours = mount.as_ref().is_some_and(|mount| mount.kind == "fuse.backy");
        let looked = std::fs::symlink_metadata(point);
        let is_dead = |error: &io::Error| mount.is_some() && error.kind() == ErrorKind::NotConnected;
        match looked {
            // The kernel answers for a dead mount for as long as it remembers; only opening it tells the truth.
            Ok(_) if is_ours && std::fs::read_dir(point).is_err_and(|error| is_dead(&error)) => {}
            Err(error) if is_dead(&error) => {}
            _ if is_ours => return Err(Error::AlreadyMounted { path: point.to_owned() }),
            Ok(facts) => return Ok(facts),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Error::refused(point, "there is no such directory; make it first"));
            }
            Err(error) => return Err(Error::io("examine", point, error)),
        }
        tracing::warn!(mountpoint = %point.display(), "taking away a mount whose process has died");
        table::detach(point).map_err(|source| Error::UnmountFailed { path: point.to_owned(), source })?;
    }
    Err(Error::refused(point, "it has many dead mounts on top of each other; unmount them"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &Path, store: &Path, options: &Options) -> String {
        prepare(path, store, options).unwrap_err().to_string()
    }

    #[test]
    fn mount_points_that_would_hurt_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (store, point) = (dir.path().join("srv/store"), dir.path().join("mnt"));
        std::fs::create_dir_all(store.join("inside")).unwrap();
        std::fs::create_dir(&point).unwrap();
        let options = Options::default();
        let nonempty = Options { nonempty: true, ..options.clone() };
        assert_eq!(prepare(&point, &store, &options).unwrap(), point.canonicalize().unwrap());

        assert!(refusal(&dir.path().join("none"), &store, &options).contains("no such directory"));
        assert!(refusal(&dir.path().join("none/none"), &store, &options).contains("no such directory"));
        assert!(refusal(&store.join("inside"), &store, &options).contains("inside the store"));
        assert!(refusal(&store, &store, &nonempty).contains("inside the store"));
        assert!(refusal(&dir.path().join("srv"), &store, &nonempty).contains("would hide the store"));
        std::os::unix::fs::symlink(&point, dir.path().join("link")).unwrap();
        assert!(refusal(&dir.path().join("link"), &store, &options).contains("symbolic link"));
        std::fs::write(point.join("file"), "").unwrap();
        assert!(refusal(&point, &store, &options).contains("not empty"));
        assert!(refusal(&point.join("file"), &store, &options).contains("not a directory"));
        assert!(prepare(&point, &store, &nonempty).is_ok());
    }
}
