//! The chunks that nothing refers to without a known reason, and since when: `.unexplained` in the store.
//!
//! Such a chunk is deleted only when purges that are at least the hold time apart have found it so. The list is written
//! whole at the end of each purge. One that is lost or damaged only makes the waiting begin again.
//!
//! Layout: `BACKYUNX`, then 40 bytes for each chunk (8 bytes of seconds since 1970, little-endian; 32 bytes of id), then
//! the BLAKE3 hash of all that.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::format::ChunkId;
use crate::fs::disk;
use crate::repository::Repository;
use crate::timestamp::Timestamp;

const MAGIC: &[u8; 8] = b"BACKYUNX";
const ENTRY_LEN: usize = 40;

/// The shortest time that an unexplained chunk waits, in seconds: 7 days, whatever hold time a purge is given.
pub(super) const WAIT_SECS_MIN: i64 = 7 * 86_400;

/// The list as the last purge left it, and as this one will.
#[derive(Debug)]
pub(super) struct Unexplained {
    path: PathBuf,
    before: HashMap<ChunkId, i64>,
    now: i64,
    wait_secs: i64,
    is_suspended: bool,
    /// Chunks that wait, and since when.
    waiting: HashMap<ChunkId, i64>,
}

impl Unexplained {
    /// Reads the list of the store.
    pub(super) fn load(repository: &Repository, hold_secs: i64, now: Timestamp) -> Self {
        let path = repository.root().join(".unexplained");
        let before = match std::fs::read(&path) {
            Ok(bytes) => parse(&bytes).unwrap_or_else(|| {
                tracing::warn!(path = %path.display(), "unexplained-list-damaged");
                HashMap::new()
            }),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), error = crate::error::in_full(&error), "unexplained-list-unreadable");
                }
                HashMap::new()
            }
        };
        let wait_secs = hold_secs.max(WAIT_SECS_MIN);
        Self { path, before, now: now.as_secs(), wait_secs, is_suspended: false, waiting: HashMap::new() }
    }

    /// Lets nothing become due in this purge: something is away, and it is not known what it needs.
    pub(super) fn suspend(&mut self) {
        self.is_suspended = true;
    }

    /// Notes that nothing refers to a chunk. Returns whether it has waited long enough.
    pub(super) fn is_due(&mut self, id: ChunkId) -> bool {
        // A time never moves back: one in the future, from a clock that was wrong then or is now, makes it wait longer.
        let since = self.before.get(&id).copied().unwrap_or(self.now);
        let is_due = !self.is_suspended && self.now.saturating_sub(since) >= self.wait_secs;
        if !is_due {
            self.waiting.insert(id, since);
        }
        is_due
    }

    /// Whether a chunk waits.
    pub(super) fn is_waiting(&self, id: &ChunkId) -> bool {
        self.waiting.contains_key(id)
    }

    /// Writes the list of those that wait now. A full disk is no reason to fail: they wait longer then.
    pub(super) fn save(&self, repository: &Repository) -> Result<()> {
        if self.waiting == self.before {
            return Ok(());
        }
        if self.waiting.is_empty() {
            return disk::remove(&self.path);
        }
        let mut bytes = MAGIC.to_vec();
        bytes.reserve(self.waiting.len() * ENTRY_LEN + 32);
        for (id, since) in &self.waiting {
            bytes.extend(since.to_le_bytes());
            bytes.extend(id.as_bytes());
        }
        let hash = blake3::hash(&bytes);
        bytes.extend(hash.as_bytes());
        match repository.with_reserve(|| disk::write_atomically(&self.path, &bytes)) {
            Err(error @ Error::Io { .. }) if error.io_kind() == Some(io::ErrorKind::StorageFull) => {
                tracing::warn!(error = crate::error::in_full(&error), "unexplained-list-not-written");
                Ok(())
            }
            other => other,
        }
    }
}

fn parse(bytes: &[u8]) -> Option<HashMap<ChunkId, i64>> {
    let (body, hash) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    let entries = body.strip_prefix(MAGIC)?;
    if blake3::hash(body).as_bytes() != hash || !entries.len().is_multiple_of(ENTRY_LEN) {
        return None;
    }
    let entry = |entry: &[u8]| {
        let (since, id) = entry.split_first_chunk::<8>()?;
        Some((ChunkId::from_bytes(id.try_into().ok()?), i64::from_le_bytes(*since)))
    };
    entries.chunks_exact(ENTRY_LEN).map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{new_job, now};

    #[test]
    fn an_unexplained_chunk_is_due_after_two_purges_at_least_the_wait_apart() {
        let (_dir, job) = new_job("web01");
        let (one, two) = (ChunkId::of(b"1"), ChunkId::of(b"2"));
        let at = |secs| Unexplained::load(job.repository(), 0, now().plus_secs(secs));
        let mut first = at(0);
        assert!(!first.is_due(one) && !first.is_due(two));
        first.save(job.repository()).unwrap();
        // A chunk that something refers to in between begins again.
        let mut second = at(WAIT_SECS_MIN - 1);
        assert!(!second.is_due(one));
        second.save(job.repository()).unwrap();
        let mut third = at(WAIT_SECS_MIN);
        assert!(third.is_due(one) && !third.is_due(two));
        third.save(job.repository()).unwrap();
        for damage in [&b""[..], b"BACKYUNX", &[0; 80]] {
            std::fs::write(job.repository().root().join(".unexplained"), damage).unwrap();
            assert!(!at(10 * WAIT_SECS_MIN).is_due(two), "a damaged list proves nothing");
        }
    }
}
