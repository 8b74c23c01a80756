//! Owners and modes of stores, jobs, configurations and token files, checked as ssh checks its keys. Used by this crate
//! and by `backy_sched`; the rules are in no other place.
//!
//! - The owner is root or the user that runs the program. A job's configuration names commands: the owner of the file,
//!   or of its directory, decides what the user that runs backy executes.
//! - Neither the group nor others may write. What holds tokens, others may not read either.
//! - Of the directories above a file the same is true, but that anybody may write to a sticky one such as `/tmp`: what
//!   lies in it can be replaced by its owner only.
//!
//! Symbolic links are followed: the file that is used counts. Only links inside a store, in the place of files and
//! directories that the program makes itself, are refused: see `refuse_link`.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Context as _, Error, Result};

const OTHERS_WRITE: u32 = 0o022;
const OTHERS_READ: u32 = 0o004;
const STICKY: u32 = 0o1000;
const ROOT: u32 = 0;

/// What others may do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrecy {
    /// Read it.
    Public,
    /// Nothing: it holds secrets. Members of its group may read it.
    Secret,
}

/// Why a file or directory is not to be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It belongs to another user.
    Owner {
        /// Its owner.
        owner: u32,
        /// Who runs the program.
        user: u32,
    },
    /// Others may write to it.
    Writable {
        /// Its mode.
        mode: u32,
    },
    /// Others may read the secrets in it.
    Readable {
        /// Its mode.
        mode: u32,
    },
}

impl Fault {
    /// Returns the command that puts it right, without the path.
    pub fn remedy(self) -> String {
        match self {
            Self::Owner { user, .. } => format!("chown {}", user_name(user)),
            Self::Writable { .. } => "chmod go-w".to_owned(),
            Self::Readable { .. } => "chmod o-rwx".to_owned(),
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Owner { owner, user: ROOT } => {
                write!(out, "belongs to the user {}, not to root", user_name(*owner))
            }
            Self::Owner { owner, user } => {
                write!(
                    out,
                    "belongs to the user {}, neither to root nor to {}",
                    user_name(*owner),
                    user_name(*user)
                )
            }
            Self::Writable { mode } => write!(out, "can be written by others (mode {mode:04o})"),
            Self::Readable { mode } => {
                write!(out, "holds secrets and can be read by others (mode {mode:04o})")
            }
        }
    }
}

/// The number of a user: who knows the name may not answer in an emergency.
fn user_name(uid: u32) -> String {
    if uid == ROOT { "root".to_owned() } else { uid.to_string() }
}

/// Checks a file or directory, not what is above it.
pub fn check(path: &Path, secrecy: Secrecy) -> Result<()> {
    let facts = std::fs::metadata(path).context("examine", path)?;
    refuse(path, judge(Owned::of(&facts), user(), secrecy))
}

/// Checks a file by its descriptor, so that it is the file that is read.
pub fn check_open(file: &std::fs::File, path: &Path, secrecy: Secrecy) -> Result<()> {
    let facts = file.metadata().context("examine", path)?;
    refuse(path, judge(Owned::of(&facts), user(), secrecy))
}

/// Checks the directories above a file up to the root, where the file really lies.
pub fn check_parents(path: &Path) -> Result<()> {
    let real = path.canonicalize().context("examine", path)?;
    for dir in real.ancestors().skip(1) {
        let facts = std::fs::metadata(dir).context("examine", dir)?;
        refuse(dir, judge_parent(Owned::of(&facts), user()))?;
    }
    Ok(())
}

/// Checks the root of a store for reading. The store of another user can be read, and restored from in an emergency:
/// nothing in it is a command. What changes a store or runs commands checks the owner, too.
pub(crate) fn check_readable(root: &Path) -> Result<()> {
    match check(root, Secrecy::Public) {
        Err(Error::Unsafe { fault: Fault::Owner { .. }, .. }) => Ok(()),
        other => other,
    }
}

/// Refuses a symbolic link where the program makes a file or directory of its own: it would write where the link
/// leads. It is no error if there is nothing.
pub(crate) fn refuse_link(path: &Path) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(facts) if facts.is_symlink() => Err(Error::LinkInStore { path: path.to_owned() }),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("examine", path, error)),
        _ => Ok(()),
    }
}

fn refuse(path: &Path, fault: Option<Fault>) -> Result<()> {
    fault.map_or(Ok(()), |fault| Err(Error::Unsafe { path: PathBuf::from(path), fault }))
}

fn user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

#[derive(Clone, Copy, Debug)]
struct Owned {
    uid: u32,
    mode: u32,
}

impl Owned {
    fn of(facts: &Metadata) -> Self {
        Self { uid: facts.uid(), mode: facts.mode() & 0o7777 }
    }
}

fn judge(owned: Owned, user: u32, secrecy: Secrecy) -> Option<Fault> {
    let Owned { uid: owner, mode } = owned;
    if owner != ROOT && owner != user {
        Some(Fault::Owner { owner, user })
    } else if mode & OTHERS_WRITE != 0 {
        Some(Fault::Writable { mode })
    } else if secrecy == Secrecy::Secret && mode & OTHERS_READ != 0 {
        Some(Fault::Readable { mode })
    } else {
        None
    }
}

fn judge_parent(owned: Owned, user: u32) -> Option<Fault> {
    match judge(owned, user, Secrecy::Public) {
        Some(Fault::Writable { mode }) if mode & STICKY != 0 => None,
        fault => fault,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn owners_and_modes_are_judged_as_ssh_does() {
        let fault = |uid, mode, user, secrecy| judge(Owned { uid, mode }, user, secrecy);
        let owner = |owner, user| Some(Fault::Owner { owner, user });
        use Secrecy::{Public, Secret};
        for (uid, mode, user, secrecy, expected) in [
            (0, 0o644, 0, Public, None),
            (0, 0o644, 1000, Public, None),
            (1000, 0o644, 1000, Public, None),
            (1000, 0o600, 0, Public, owner(1000, 0)),
            (1000, 0o600, 1001, Public, owner(1000, 1001)),
            (0, 0o664, 0, Public, Some(Fault::Writable { mode: 0o664 })),
            (0, 0o646, 0, Public, Some(Fault::Writable { mode: 0o646 })),
            (0, 0o1777, 0, Public, Some(Fault::Writable { mode: 0o1777 })),
            (0, 0o644, 0, Secret, Some(Fault::Readable { mode: 0o644 })),
            (0, 0o640, 0, Secret, None),
        ] {
            assert_eq!(fault(uid, mode, user, secrecy), expected, "{uid} {mode:o} {user}");
        }
        assert_eq!(judge_parent(Owned { uid: 0, mode: 0o1777 }, 1000), None);
        assert_eq!(judge_parent(Owned { uid: 1001, mode: 0o1777 }, 1000), owner(1001, 1000));
        assert!(judge_parent(Owned { uid: 0, mode: 0o777 }, 0).is_some());
    }

    #[test]
    fn every_fault_comes_with_its_remedy() {
        let fault = Fault::Owner { owner: 4_000_000_000, user: 0 };
        assert_eq!(fault.to_string(), "belongs to the user 4000000000, not to root");
        assert_eq!(fault.remedy(), "chown root");
        assert_eq!(Fault::Writable { mode: 0o666 }.to_string(), "can be written by others (mode 0666)");
    }

    #[test]
    fn what_is_above_a_file_counts_where_it_really_lies() {
        let dir = tempfile::tempdir().unwrap();
        let (open, shut) = (dir.path().join("open"), dir.path().join("shut"));
        std::fs::create_dir(&open).unwrap();
        std::fs::create_dir(&shut).unwrap();
        std::fs::write(open.join("file"), "").unwrap();
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
        symlink(open.join("file"), shut.join("link")).unwrap();
        let error = check_parents(&shut.join("link")).unwrap_err().to_string();
        assert!(error.ends_with("/open can be written by others (mode 0777)"), "{error}");
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o1777)).unwrap();
        check_parents(&shut.join("link")).unwrap();
        refuse_link(&shut.join("nothing")).unwrap();
        refuse_link(&open.join("file")).unwrap();
        assert!(matches!(refuse_link(&shut.join("link")), Err(Error::LinkInStore { .. })));
    }
}
