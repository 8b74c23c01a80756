//! Which store a directory of chunks belongs to. Two stores that share one would delete each other's chunks: neither
//! sees the maps, the sessions and the locks of the other. That is what a copy of a store is whose `chunks` is a link.
//!
//! Two things prevent it, and both are checked by whatever writes chunks and by purges, never by what only reads:
//!
//! - No directory of a store may be a link into another store.
//! - A store claims its chunks with an empty directory in `chunks`, `.store-<chunks>-<store>`: hexadecimal nanoseconds
//!   since 1970 of the moments at which the directory `chunks` and the store's own directory were made. File systems
//!   keep these through renames and remounts, and give other ones to copies. So a claim with another first number was
//!   copied with the chunks, and is void; one with another second number is another store's.
//!
//! Where there is no valid claim, a store takes chunks that lie in its own directory, and chunks elsewhere only if a void
//! claim shows that they are a copy of its own. What nobody ever claimed elsewhere, a writer may claim, since it deletes
//! nothing, but no purge. An operator's word (`purge --moved`) makes any claim. Where a file system does not record when
//! files were made, only links are checked.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use super::MARKER;
use crate::error::{Context, Error, Result};
use crate::fs::disk;
use crate::fs::lock;
use crate::name::RESERVED;

const PREFIX: &str = ".store-";

/// A claim, or what would be a valid one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    chunks: u128,
    store: u128,
}

impl Claim {
    /// The claim that the store at `root` would make.
    fn of(root: &Path) -> Option<Self> {
        // The root of a file system may have no date.
        let store = birth(root).or_else(|| birth(&root.join(lock::SWEEP)))?;
        Some(Self { chunks: birth(&root.join("chunks"))?, store })
    }

    fn name(self) -> String {
        format!("{PREFIX}{:x}-{:x}", self.chunks, self.store)
    }

    fn parse(name: &str) -> Option<Self> {
        let (chunks, store) = name.strip_prefix(PREFIX)?.split_once('-')?;
        let number = |text| u128::from_str_radix(text, 16).ok();
        Some(Self { chunks: number(chunks)?, store: number(store)? })
    }
}

/// What the claims in a directory of chunks mean for a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Ours,
    /// The store can claim it.
    Free,
    /// Nobody ever claimed it, and it lies outside of the store's directory.
    Unknown,
    Others,
}

fn judge(found: &[Claim], own: Claim, is_elsewhere: bool) -> Standing {
    let (valid, void): (Vec<&Claim>, Vec<&Claim>) =
        found.iter().partition(|claim| claim.chunks == own.chunks);
    if valid.iter().any(|claim| claim.store != own.store) {
        Standing::Others
    } else if !valid.is_empty() {
        Standing::Ours
    } else if !is_elsewhere || void.iter().any(|claim| claim.store == own.store) {
        Standing::Free
    } else if void.is_empty() {
        Standing::Unknown
    } else {
        Standing::Others
    }
}

/// Fails if directories of the store lead into another one, or if its chunks are claimed by another one. Changes nothing.
pub(crate) fn check(root: &Path) -> Result<()> {
    check_links(root)?;
    match standing(root)? {
        Some((_, Standing::Others)) => Err(Error::ChunksClaimed { path: root.to_owned() }),
        _ => Ok(()),
    }
}

/// Claims the chunks for a new store, or one that was repaired, if nothing is against it.
pub(super) fn begin(root: &Path) -> Result<()> {
    match standing(root)? {
        Some((own, Standing::Free)) => make(root, own),
        _ => Ok(()),
    }
}

/// Makes sure that the chunks are this store's before any is written.
pub(crate) fn for_writing(root: &Path) -> Result<()> {
    check_links(root)?;
    match standing(root)? {
        Some((own, Standing::Free | Standing::Unknown)) => make(root, own),
        Some((_, Standing::Others)) => Err(Error::ChunksClaimed { path: root.to_owned() }),
        Some((_, Standing::Ours)) | None => Ok(()),
    }
}

/// Makes sure that the chunks are this store's before any is deleted. With `moved` they are whatever the claims say.
pub(crate) fn for_purging(root: &Path, moved: bool) -> Result<()> {
    check_links(root)?;
    match standing(root)? {
        Some((own, Standing::Free)) => make(root, own),
        Some((own, Standing::Unknown | Standing::Others)) if moved => make(root, own),
        Some((_, Standing::Unknown)) => Err(Error::ChunksUnclaimed { path: root.to_owned() }),
        Some((_, Standing::Others)) => Err(Error::ChunksClaimed { path: root.to_owned() }),
        Some((_, Standing::Ours)) | None => Ok(()),
    }
}

/// `None` where dates are not known.
fn standing(root: &Path) -> Result<Option<(Claim, Standing)>> {
    let Some(own) = Claim::of(root) else { return Ok(None) };
    Ok(Some((own, judge(&claims(root)?, own, is_elsewhere(root)?))))
}

fn claims(root: &Path) -> Result<Vec<Claim>> {
    let entries = disk::list(&root.join("chunks"))?;
    Ok(entries.iter().filter_map(|entry| Claim::parse(entry.file_name().to_str()?)).collect())
}

/// Makes a claim in place of all others.
fn make(root: &Path, own: Claim) -> Result<()> {
    let chunks = root.join("chunks");
    for other in claims(root)?.into_iter().filter(|claim| *claim != own) {
        disk::remove_empty_dir(&chunks.join(other.name()))?;
    }
    disk::ensure_dir(&chunks.join(own.name()))?;
    disk::sync_dir(&chunks)?;
    // Another store may have done the same meanwhile: then both see it here.
    match judge(&claims(root)?, own, true) {
        Standing::Ours => Ok(()),
        _ => Err(Error::ChunksClaimed { path: root.to_owned() }),
    }
}

fn is_elsewhere(root: &Path) -> Result<bool> {
    let chunks = root.join("chunks");
    let facts = std::fs::symlink_metadata(&chunks).context("examine", &chunks)?;
    Ok(facts.is_symlink() || facts.dev() != disk::device(root)?)
}

fn birth(path: &Path) -> Option<u128> {
    let made = std::fs::metadata(path).ok()?.created().ok()?;
    made.duration_since(UNIX_EPOCH).ok().map(|since| since.as_nanos()).filter(|&nanos| nanos > 0)
}

fn check_links(root: &Path) -> Result<()> {
    let identity = |path: &Path| path.metadata().ok().map(|facts| (facts.dev(), facts.ino()));
    let own = identity(root);
    for name in RESERVED {
        let path = root.join(name);
        if !std::fs::symlink_metadata(&path).is_ok_and(|facts| facts.is_symlink()) {
            continue;
        }
        // One that leads nowhere is met where it matters.
        let Ok(real) = path.canonicalize() else { continue };
        for store in real.ancestors().filter(|dir| dir.join(MARKER).is_file() && identity(dir) != own) {
            let inside = real.strip_prefix(store).ok().and_then(|inside| inside.components().next());
            // In other directories of a store nothing is the store's.
            if inside.is_none_or(|first| RESERVED.iter().any(|&own| first.as_os_str() == own)) {
                return Err(Error::StoreEntangled { path, other: store.to_owned() });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::testing::{image, new_job, write_revision};

    #[test]
    fn claims_are_judged_by_what_was_copied() {
        let claim = |chunks, store| Claim { chunks, store };
        let own = claim(1, 2);
        use Standing::{Free, Others, Ours, Unknown};
        for (found, inside, elsewhere) in [
            (&[][..], Free, Unknown),
            (&[own], Ours, Ours),
            (&[claim(1, 3)], Others, Others),
            (&[own, claim(1, 3)], Others, Others),
            // The chunks were copied: this store's, or those of another one.
            (&[claim(9, 2)], Free, Free),
            (&[claim(9, 3)], Free, Others),
            (&[claim(9, 3), own], Ours, Ours),
        ] {
            assert_eq!((judge(found, own, false), judge(found, own, true)), (inside, elsewhere), "{found:?}");
        }
        assert_eq!(Claim::parse(&own.name()), Some(own));
        for strange in ["00", ".store-", ".store-1", ".store-x-y", "store-1-2"] {
            assert_eq!(Claim::parse(strange), None, "{strange}");
        }
    }

    #[test]
    fn a_new_store_has_a_claim_and_a_lost_one_is_made_again() {
        let (_dir, job) = new_job("web01");
        let root = job.repository().root();
        if birth(root).is_none() {
            return;
        }
        let has_one = || claims(root).unwrap().len() == 1;
        assert!(has_one());
        let name = Claim::of(root).unwrap().name();
        disk::remove_empty_dir(&root.join("chunks").join(&name)).unwrap();
        write_revision(&job, &image(1, 1 << 22), None);
        assert!(has_one());
        // As a copy has it.
        disk::remove_empty_dir(&root.join("chunks").join(name)).unwrap();
        std::fs::create_dir(root.join("chunks/.store-1-2")).unwrap();
        for_purging(root, false).unwrap();
        assert!(has_one() && standing(root).unwrap().unwrap().1 == Standing::Ours);
    }

    #[test]
    fn links_into_another_store_are_refused_for_every_directory() {
        let ((_one, job), (_two, other)) = (new_job("web01"), new_job("web01"));
        let (root, other) = (job.repository().root(), other.repository().root());
        for name in RESERVED {
            let path = root.join(name);
            let kept = root.join(format!("kept-{name}"));
            if path.exists() {
                disk::rename(&path, &kept).unwrap();
            }
            for target in ["chunks", "tmp", "maps", "writers/deeper", ""] {
                std::fs::create_dir_all(other.join(target)).unwrap();
                symlink(other.join(target), &path).unwrap();
                let is_refused = |result: Result<()>| matches!(result, Err(Error::StoreEntangled { .. }));
                assert!(is_refused(check(root)) && is_refused(for_purging(root, true)), "{name} to {target}");
                disk::remove(&path).unwrap();
            }
            if kept.exists() {
                disk::rename(&kept, &path).unwrap();
            }
        }
        check(root).unwrap();
    }
}
