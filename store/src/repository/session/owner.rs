//! Who began a session: a file `<name>.owner` beside its log, removed when the session ends as it should.
//!
//! A lock on a file is seen by every program of one kernel that has the same mount of the file system, or another mount
//! of the same local one. It need not be seen by other machines, nor through a second FUSE or network mount. So a session
//! that nobody has locked is dead only if its owner's lock would be seen here, or if the owner cannot be alive any more.
//! What is neither may be alive, and nothing that it could use is deleted.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};
use crate::fs::disk;

/// Longest owner file that is read.
const BYTES_MAX: u64 = 4096;

/// A process as another one can recognise it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Owner {
    /// Name of the machine, for people.
    pub(crate) host: String,
    /// `/etc/machine-id`; empty where there is none.
    machine: String,
    /// The kernel's boot id.
    boot: String,
    /// The namespace in which `process` counts.
    namespace: String,
    /// The process id.
    pub(crate) process: u32,
    /// When the process began, in the kernel's ticks since it was booted.
    started: u64,
    /// Whether it saw the store on a file system that one kernel alone can use.
    is_local: bool,
    /// The device number under which it saw the store.
    device: u64,
    /// Whether it deletes chunks.
    pub(crate) is_purge: bool,
}

impl Owner {
    /// This process, as far as it uses the directory `dir`.
    pub(crate) fn here(dir: &Path, is_purge: bool) -> Result<Self> {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let process = std::process::id();
        let here = Self {
            host: text("/proc/sys/kernel/hostname"),
            machine: text("/etc/machine-id"),
            boot: text("/proc/sys/kernel/random/boot_id"),
            namespace: namespace.to_string_lossy().into_owned(),
            process,
            started: started(process).unwrap_or(0),
            is_local: disk::file_system(dir)?.is_local,
            device: disk::device(dir)?,
            is_purge,
        };
        Ok(match disk::pretended_host() {
            Some(host) => Self { machine: host.clone(), boot: host.clone(), host, is_local: false, ..here },
            None => here,
        })
    }

    /// Reads an owner's file; `None` if it is gone or cut off, as after a loss of power.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>> {
        match disk::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            other => {
                let text = disk::read_text(&other.context("open", path)?, path, BYTES_MAX)?;
                Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
            }
        }
    }

    /// The content of its file.
    pub(crate) fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    /// Whether the owner of an unlocked session may be alive all the same, seen from the process `here`. Pure but for
    /// `is_running`, which says whether a process of this namespace that began at this tick is there.
    pub(crate) fn may_live(&self, here: &Self, is_running: impl Fn(u32, u64) -> bool) -> bool {
        if self.boot == here.boot {
            if self.device == here.device || self.is_local && here.is_local {
                // Its lock would be seen.
                return false;
            }
            // The same kernel, but another mount.
            return self.namespace != here.namespace || self.is_seen_running(here, is_running);
        }
        // This machine was booted since; or the file system was taken over from a kernel that cannot have it any more.
        let is_same_machine = self.host == here.host && self.machine == here.machine;
        !(is_same_machine || self.is_local && here.is_local)
    }

    /// Whether the owner is a process that can be seen from `here`, and runs.
    pub(crate) fn is_seen_running(&self, here: &Self, is_running: impl Fn(u32, u64) -> bool) -> bool {
        self.boot == here.boot && self.namespace == here.namespace && is_running(self.process, self.started)
    }
}

/// When a process began; `None` if there is none.
pub(crate) fn started(process: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name of the program, in parentheses, may hold anything.
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_dead_only_if_its_lock_would_be_seen_or_it_cannot_live() {
        let here = Owner {
            host: "a".into(),
            machine: "1".into(),
            boot: "b1".into(),
            namespace: "n".into(),
            process: 7,
            started: 9,
            is_local: false,
            device: 5,
            is_purge: false,
        };
        let with = |change: fn(&mut Owner)| {
            let mut owner = here.clone();
            change(&mut owner);
            owner
        };
        let (runs, ended) = (|_, _| true, |_, _| false);
        assert!(!here.may_live(&here, runs), "the same mount: the lock says it");
        let other_mount = with(|owner| owner.device = 6);
        assert!(other_mount.may_live(&here, runs) && !other_mount.may_live(&here, ended));
        let container = with(|owner| (owner.device, owner.namespace) = (6, "m".into()));
        assert!(container.may_live(&here, ended), "its process cannot be seen");
        let before_the_boot = with(|owner| (owner.device, owner.boot) = (6, "b0".into()));
        assert!(!before_the_boot.may_live(&here, runs));
        let other =
            with(|owner| (owner.host, owner.machine, owner.boot) = ("b".into(), "2".into(), "b2".into()));
        assert!(other.may_live(&here, ended));
        let local = |owner: &Owner| Owner { is_local: true, ..owner.clone() };
        assert!(!local(&other).may_live(&local(&here), ended), "a disk that was moved");
        assert!(local(&other).may_live(&here, ended), "it exports the disk, and this is a client");
        assert!(other.may_live(&local(&here), ended));
    }

    #[test]
    fn an_owner_can_be_read_again_and_knows_itself() {
        let dir = tempfile::tempdir().unwrap();
        let here = Owner::here(dir.path(), true).unwrap();
        let path = dir.path().join("owner");
        assert_eq!(Owner::read(&path).unwrap(), None);
        std::fs::write(&path, here.to_text()).unwrap();
        assert_eq!(Owner::read(&path).unwrap().as_ref(), Some(&here));
        std::fs::write(&path, "{\"host\":").unwrap();
        assert_eq!(Owner::read(&path).unwrap(), None);
        assert!(started(std::process::id()).is_some_and(|at| at == here.started));
    }
}
