//! Sessions: what running programs use, so that a purge beside them deletes nothing of it.
//!
//! A session is a random name in `writers/` with up to five sorts of files:
//!
//! - `<name>.refs`: 32-byte chunk ids, appended before the chunk is looked for. The session lives while this
//!   file is locked. A finished writer leaves it behind: only a purge that saw it unlocked *before* reading the
//!   manifests may remove it, and then the revision it belonged to, if it was committed, is among them.
//! - `<name>.new`: the ids this session wrote. What is left of a dead session names chunks that a power loss may have
//!   spoiled: they are read completely before they are used again.
//! - `<name>.written`: the same when they are durable, until the commit. Of a dead session it tells a purge why nothing
//!   refers to those chunks.
//! - `<name>.failed`: the same after a failed sync: those chunks are written again.
//! - `<name>.<revision>.map`: a second name of a map that a reader has open, or a copy of it where there are no links.
//! - `<name>.owner`: the process, as other machines can recognise it (`owner.rs`). Gone when the session has ended as it
//!   should.
//!
//! A reader that cannot write here reads without a session: it is told of a purge by the chunks that are missing
//! together with their map.
//!
//! Why no live session can be taken for a dead one: it is created and locked under the shared lock of
//! `.lock`, and whoever tells live from dead holds that lock exclusively.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Context, Error, Result};
use crate::format::ChunkId;
use crate::fs::disk;
use crate::fs::lock;
use crate::revision::RevisionId;

mod owner;

use owner::Owner;

/// A running program's session. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Session {
    dir: PathBuf,
    name: String,
    refs: File,
    /// Present for writers.
    new: Option<File>,
    pins: Vec<PathBuf>,
}

impl Session {
    /// Begins the session of a writer in the store at `root`. Fails while a machine whose locks are not seen here may be
    /// deleting chunks: either that purge sees this session, or this sees the purge.
    pub(crate) fn begin_writer(root: &Path) -> Result<Self> {
        let mut session = Self::begin(root, false)?;
        session.new = Some(append_file(&session.path("new"))?);
        match purge_elsewhere(root)? {
            Some(owner) => Err(shared(root, &owner)),
            None => Ok(session),
        }
    }

    /// Begins the session of a sweep, for other machines to see. On a local file system it may do without.
    pub(crate) fn begin_sweep(root: &Path) -> Result<Option<Self>> {
        match Self::begin(root, true) {
            Err(error) if error.is_unwritable() && disk::file_system(root)?.is_local => Ok(None),
            other => other.map(Some),
        }
    }

    /// Begins the session of a reader and pins `map`. `None` where nothing can be written: the caller reads without one.
    pub(crate) fn begin_reader(root: &Path, map: &Path, revision: &RevisionId) -> Result<Option<Self>> {
        match Self::begin_pinned(root, map, revision) {
            Err(error) if can_go_without(&error, root) => {
                warn_once(&error);
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    /// Begins the session of a reader, which must be one: a writer relies on what it pins.
    pub(crate) fn begin_pinned(root: &Path, map: &Path, revision: &RevisionId) -> Result<Self> {
        let mut session = Self::begin(root, false)?;
        let pin = session.path(&format!("{revision}.map"));
        session.pins.push(pin.clone());
        match disk::link(map, &pin) {
            Err(error) if error.is_link_impossible() => session.pin_copy(map, &pin)?,
            other => other?,
        }
        Ok(session)
    }

    fn begin(root: &Path, is_purge: bool) -> Result<Self> {
        let dir = root.join("writers");
        disk::ensure_dir_for_writing(&dir)?;
        let gate_path = dir.join(".lock");
        let gate = disk::open_lock_file(&gate_path)?;
        gate.lock_shared().map_err(|error| lock::lock_error(&gate_path, error))?;
        let name = disk::random_name()?;
        let path = dir.join(format!("{name}.refs"));
        let owner_path = dir.join(format!("{name}.owner"));
        // The owner comes first: a session that is seen says whose it is.
        let begun = || {
            let owner = Owner::here(&dir, is_purge)?;
            disk::append(&disk::create_new(&owner_path)?, owner.to_text().as_bytes(), &owner_path)?;
            let refs = append_file(&path)?;
            if !lock::try_lock(&refs, &path)? {
                return Err(Error::Locked { what: path.display().to_string() });
            }
            lock::prove(&path)?;
            Ok(refs)
        };
        let refs = begun().inspect_err(|_| {
            for path in [&path, &owner_path] {
                drop(disk::remove(path));
            }
        })?;
        Ok(Self { dir, name, refs, new: None, pins: Vec::new() })
    }

    /// Where the job lies on another file system than the store, or where there are no links, the map is copied. That the original is still
    /// there afterwards shows that no purge can have begun to look at the pins after it was removed.
    fn pin_copy(&self, map: &Path, pin: &Path) -> Result<()> {
        let temporary = self.path("copying");
        let bytes = std::fs::read(map).context("read", map)?;
        let copied = disk::create_new(&temporary)
            .and_then(|file| disk::append(&file, &bytes, &temporary))
            .and_then(|()| disk::rename(&temporary, pin));
        if let Err(error) = copied {
            drop(disk::remove(&temporary));
            return Err(error);
        }
        std::fs::metadata(map).map(drop).context("examine", map)
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.dir.join(format!("{}.{suffix}", self.name))
    }

    /// The session's name: prefix of its temporary files.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Records that this session uses a chunk. Call it with the shard locked, before looking for the chunk.
    pub(crate) fn refer(&self, ids: &[u8]) -> Result<()> {
        debug_assert!(ids.len().is_multiple_of(32));
        disk::append(&self.refs, ids, &self.path("refs"))
    }

    /// Records that this session is about to write a chunk.
    pub(crate) fn record_new(&self, id: &ChunkId) -> Result<()> {
        match &self.new {
            Some(file) => disk::append(file, id.as_bytes(), &self.path("new")),
            None => Ok(()),
        }
    }

    /// What this session wrote is durable.
    pub(crate) fn new_is_durable(&self) -> Result<()> {
        disk::rename(&self.path("new"), &self.path("written"))
    }

    /// What this session wrote belongs to a revision now.
    pub(crate) fn is_committed(&self) -> Result<()> {
        disk::remove(&self.path("written"))
    }

    /// What this session wrote must be written again.
    pub(crate) fn new_has_failed(&self) {
        if let Err(error) = disk::rename(&self.path("new"), &self.path("failed")) {
            tracing::error!(error = crate::error::in_full(&error), "cannot mark the chunks of a failed sync");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The lock is still held, so nobody takes it for a session of a machine that is away.
        let mut ended = vec![self.path("owner")];
        if self.new.is_none() {
            // A reader has no revision of its own to protect after its end: it cleans up behind itself.
            ended.extend(self.pins.iter().cloned());
            ended.push(self.path("refs"));
        }
        for path in &ended {
            if let Err(error) = disk::remove(path) {
                tracing::debug!(
                    error = crate::error::in_full(&error),
                    "cannot remove a file of an ended session"
                );
            }
        }
    }
}

/// Whether a reader that cannot begin a session may go on without: nothing can be written in `writers`, or locks do not
/// work. That the map is gone is another matter.
fn can_go_without(error: &Error, root: &Path) -> bool {
    error.is_unwritable()
        || matches!(error, Error::LocksUnusable { .. })
        || error.is_unsupported()
        || error.io_kind() == Some(io::ErrorKind::NotFound) && !root.join("writers").is_dir()
}

/// Says once that a purge is not kept from what is read. On a read-only file system it hardly can be run.
fn warn_once(error: &Error) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    let is_read_only = error.io_kind() == Some(io::ErrorKind::ReadOnlyFilesystem);
    if is_read_only || WARNED.swap(true, Ordering::Relaxed) {
        tracing::debug!(error = crate::error::in_full(&error), "reading without a session");
    } else {
        tracing::warn!(
            error = crate::error::in_full(error),
            consequence = "a purge may remove a forgotten revision while it is being read",
            "cannot register as a reader"
        );
    }
}

/// Finds a purge whose lock is not seen here. One whose lock is seen is never tried, which could be in its way.
fn purge_elsewhere(root: &Path) -> Result<Option<Owner>> {
    let dir = root.join("writers");
    let mut here = None;
    for (name, _) in entries(&dir)?.into_iter().filter(|(_, suffix)| suffix == "owner") {
        let Some(owner) = Owner::read(&dir.join(format!("{name}.owner")))?.filter(|owner| owner.is_purge)
        else {
            continue;
        };
        let here = match &mut here {
            Some(here) => here,
            none => none.insert(Owner::here(&dir, false)?),
        };
        if owner.may_live(here, is_process) && !is_live(&dir.join(format!("{name}.refs")))? {
            return Ok(Some(owner));
        }
    }
    Ok(None)
}

fn is_process(process: u32, started: u64) -> bool {
    owner::started(process) == Some(started)
}

fn shared(root: &Path, owner: &Owner) -> Error {
    Error::StoreShared { path: root.to_owned(), host: owner.host.clone(), process: owner.process }
}

fn append_file(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    drop(disk::create_new(path)?);
    let mut options = std::fs::OpenOptions::new();
    options.append(true).custom_flags(nix::libc::O_NOFOLLOW).open(path).context("open", path)
}

/// Chunks that must not be used again as they are.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    /// Written by dead sessions: read them completely first.
    pub(crate) unproven: HashSet<ChunkId>,
    /// Written before a failed sync: write them again.
    pub(crate) failed: HashSet<ChunkId>,
}

/// The sessions of a store as a purge or a new writer sees them.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    /// Names of the sessions that were dead at the time of the scan.
    pub(crate) dead: HashSet<String>,
    /// Sessions that nobody here has locked, but whose owners may live where their locks are not seen.
    away: Vec<(String, Owner)>,
}

impl Sessions {
    /// Tells live sessions from dead ones and removes the temporary files of the dead. Returns how many those were.
    pub(crate) fn scan(root: &Path) -> Result<(Self, u64)> {
        Self::examine(root, true)
    }

    /// As [`Sessions::scan`], for who deletes nothing: the temporary files are only counted, and nothing need be writable.
    pub(crate) fn count(root: &Path) -> Result<(Self, u64)> {
        Self::examine(root, false)
    }

    fn examine(root: &Path, removes: bool) -> Result<(Self, u64)> {
        let dir = root.join("writers");
        let gate_path = dir.join(".lock");
        let gate = match disk::ensure_dir_for_writing(&dir).and_then(|()| disk::open_lock_file(&gate_path)) {
            Err(error) if !removes && error.is_unwritable() => None,
            other => Some(other?),
        };
        if let Some(gate) = &gate {
            gate.lock().map_err(|error| lock::lock_error(&gate_path, error))?;
        }
        let sessions = Self::look(root)?;
        let mut removed = 0;
        let temporaries = root.join("tmp");
        let unlocked =
            |name: &String| sessions.dead.contains(name) || !dir.join(format!("{name}.refs")).exists();
        for (name, suffix) in entries(&temporaries)?.iter().filter(|(name, _)| unlocked(name)) {
            if sessions.away.iter().all(|(away, _)| away != name) {
                if removes {
                    disk::remove(&temporaries.join(format!("{name}.{suffix}")))?;
                }
                removed += 1;
            }
        }
        drop(gate);
        Ok((sessions, removed))
    }

    /// Tells the sessions apart. With the gate closed: nobody may be between making a log and locking it.
    fn look(root: &Path) -> Result<Self> {
        let dir = root.join("writers");
        let (mut live, mut names, mut owned) = (HashSet::new(), HashSet::new(), Vec::new());
        for (name, suffix) in entries(&dir)? {
            if suffix == "refs" && is_live(&dir.join(format!("{name}.refs")))? {
                live.insert(name.clone());
            }
            if suffix == "owner" {
                owned.push(name.clone());
            }
            names.insert(name);
        }
        owned.retain(|name| !live.contains(name));
        let mut away = Vec::new();
        if !owned.is_empty() {
            let here = Owner::here(&dir, false)?;
            for name in owned {
                let owner = Owner::read(&dir.join(format!("{name}.owner")))?;
                away.extend(
                    owner.filter(|owner| owner.may_live(&here, is_process)).map(|owner| (name, owner)),
                );
            }
        }
        let mut dead: HashSet<String> = names.difference(&live).cloned().collect();
        for (name, _) in &away {
            dead.remove(name);
        }
        Ok(Self { dead, away })
    }

    /// Fails while a program may be using the store whose locks are not seen here.
    pub(crate) fn must_be_seen(&self, root: &Path) -> Result<()> {
        self.away.first().map_or(Ok(()), |(_, owner)| Err(shared(root, owner)))
    }

    /// Reads the chunks that dead sessions may have left behind.
    pub(crate) fn suspects(&self, root: &Path) -> Result<Suspects> {
        let dir = root.join("writers");
        let mut suspects = Suspects::default();
        for (name, suffix) in entries(&dir)? {
            let into = match suffix.as_str() {
                "new" if self.is_unlocked(&name) => &mut suspects.unproven,
                "failed" => &mut suspects.failed,
                _ => continue,
            };
            read_ids(&dir.join(format!("{name}.{suffix}")), 0, &mut |id| {
                into.insert(id);
            })?;
        }
        Ok(suspects)
    }

    /// Calls `visit` with every chunk that a dead session wrote for a revision that was never committed.
    pub(crate) fn written_in_vain(&self, root: &Path, visit: &mut dyn FnMut(ChunkId)) -> Result<()> {
        let dir = root.join("writers");
        for (name, suffix) in entries(&dir)? {
            if ["new", "written", "failed"].contains(&suffix.as_str()) && self.dead.contains(&name) {
                read_ids(&dir.join(format!("{name}.{suffix}")), 0, visit)?;
            }
        }
        Ok(())
    }

    fn is_unlocked(&self, name: &String) -> bool {
        self.dead.contains(name) || self.away.iter().any(|(away, _)| away == name)
    }

    /// Removes the files of the dead sessions. Only for the end of a purge.
    pub(crate) fn remove_dead(&self, root: &Path) -> Result<()> {
        let dir = root.join("writers");
        for (name, suffix) in entries(&dir)? {
            if self.dead.contains(&name) {
                disk::remove(&dir.join(format!("{name}.{suffix}")))?;
            }
        }
        Ok(())
    }
}

/// Whether the session of this name is running, or may be on a machine whose locks are not seen here.
pub(crate) fn is_running(root: &Path, name: &str) -> Result<bool> {
    let dir = root.join("writers");
    if is_live(&dir.join(format!("{name}.refs")))? {
        return Ok(true);
    }
    Ok(match Owner::read(&dir.join(format!("{name}.owner")))? {
        Some(owner) => owner.may_live(&Owner::here(&dir, false)?, is_process),
        None => false,
    })
}

fn is_live(path: &Path) -> Result<bool> {
    match disk::open(path) {
        Ok(file) => Ok(!lock::try_lock(&file, path)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("open", path, error)),
    }
}

/// Lists `<name>.<suffix>` files of a directory.
fn entries(dir: &Path) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in disk::list(dir)? {
        let name = entry.file_name();
        if let Some((name, suffix)) = name.to_str().and_then(|name| name.split_once('.'))
            && name.len() == 32
        {
            found.push((name.to_owned(), suffix.to_owned()));
        }
    }
    Ok(found)
}

/// Forgets the sessions of a machine that is gone for good; returns how many there were. What is locked stays, and what
/// can be seen to run is refused.
pub fn remove_sessions_of_host(repository: &crate::Repository, host: &str) -> Result<usize> {
    let dir = repository.root().join("writers");
    if !dir.is_dir() {
        return Ok(0);
    }
    let mut away = Sessions::count(repository.root())?.0.away;
    away.retain(|(_, owner)| owner.host == host);
    let here = Owner::here(&dir, false)?;
    if let Some((_, owner)) = away.iter().find(|(_, owner)| owner.is_seen_running(&here, is_process)) {
        return Err(shared(repository.root(), owner));
    }
    for (name, _) in &away {
        disk::remove(&dir.join(format!("{name}.owner")))?;
    }
    Ok(away.len())
}

/// Reads the reference logs of sessions and remembers how far, so that only what was appended since is read again.
///
/// Sessions that were dead at a scan are left out: what they committed is in maps, which are read after the scan.
#[derive(Debug, Default)]
pub(crate) struct LogTails {
    dead: HashSet<String>,
    read_bytes: std::collections::HashMap<String, u64>,
}

impl LogTails {
    /// For all sessions but those dead at `scan`.
    pub(crate) fn new(scan: &Sessions) -> Self {
        Self { dead: scan.dead.clone(), read_bytes: std::collections::HashMap::new() }
    }

    /// Calls `visit` with every id appended since the last call.
    pub(crate) fn read(&mut self, root: &Path, visit: &mut dyn FnMut(ChunkId)) -> Result<()> {
        let dir = root.join("writers");
        for (name, suffix) in entries(&dir)? {
            if suffix == "refs" && !self.dead.contains(&name) {
                let from = self.read_bytes.get(&name).copied().unwrap_or(0);
                let to = read_ids(&dir.join(format!("{name}.refs")), from, visit)?;
                self.read_bytes.insert(name, to);
            }
        }
        Ok(())
    }
}

/// Returns the pinned maps of all sessions but those dead at `scan`.
pub(crate) fn pinned_maps(root: &Path, scan: &Sessions) -> Result<Vec<PathBuf>> {
    let dir = root.join("writers");
    let pins = entries(&dir)?
        .into_iter()
        .filter(|(name, suffix)| suffix.ends_with(".map") && !scan.dead.contains(name));
    Ok(pins.map(|(name, suffix)| dir.join(format!("{name}.{suffix}"))).collect())
}

/// Calls `visit` with every whole id from `offset` on; returns the offset behind the last one. A missing file has none.
fn read_ids(path: &Path, offset: u64, visit: &mut dyn FnMut(ChunkId)) -> Result<u64> {
    use std::io::{Seek, SeekFrom};
    let mut file = match disk::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(offset),
        other => other.context("open", path)?,
    };
    file.seek(SeekFrom::Start(offset)).context("seek in", path)?;
    let mut reader = io::BufReader::with_capacity(1 << 16, file);
    let mut at = offset;
    let mut id = [0; 32];
    loop {
        match reader.read_exact(&mut id) {
            Ok(()) => visit(ChunkId::from_bytes(id)),
            // A torn end belongs to a writer that died while appending, before it looked for the chunk.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(at),
            Err(error) => return Err(Error::io("read", path, error)),
        }
        at += 32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for dir in ["writers", "tmp"] {
            std::fs::create_dir(root.path().join(dir)).unwrap();
        }
        root
    }

    #[test]
    fn a_live_writer_keeps_its_temporary_files_and_a_dead_one_loses_them() {
        let root = root();
        let writer = Session::begin_writer(root.path()).unwrap();
        let live = root.path().join(format!("tmp/{}.1", writer.name()));
        let dead = root.path().join(format!("tmp/{}.1", "0".repeat(32)));
        for path in [&live, &dead] {
            std::fs::write(path, b"x").unwrap();
        }
        let (sessions, removed) = Sessions::scan(root.path()).unwrap();
        assert_eq!((removed, sessions.dead.len(), live.exists(), dead.exists()), (1, 0, true, false));
        drop(writer);
        assert_eq!(Sessions::scan(root.path()).unwrap().1, 1);
        assert!(!live.exists());
    }

    #[test]
    fn logs_of_finished_writers_stay_until_a_purge_removes_them() {
        let root = root();
        let id = ChunkId::of(b"x");
        let writer = Session::begin_writer(root.path()).unwrap();
        writer.refer(id.as_bytes()).unwrap();
        drop(writer);
        let mut tails = LogTails::default();
        let mut seen = Vec::new();
        tails.read(root.path(), &mut |id| seen.push(id)).unwrap();
        tails.read(root.path(), &mut |id| seen.push(id)).unwrap();
        assert_eq!(seen, [id]);
        Sessions::scan(root.path()).unwrap().0.remove_dead(root.path()).unwrap();
        assert!(entries(&root.path().join("writers")).unwrap().is_empty());
    }

    #[test]
    fn chunks_of_a_writer_that_died_before_its_barrier_are_suspect() {
        let root = root();
        let (first, second) = (ChunkId::of(b"1"), ChunkId::of(b"2"));
        let writer = Session::begin_writer(root.path()).unwrap();
        writer.record_new(&first).unwrap();
        let suspects = || Sessions::scan(root.path()).unwrap().0.suspects(root.path()).unwrap();
        assert!(suspects().unproven.is_empty(), "it is alive");
        drop(writer);
        assert!(suspects().unproven.contains(&first));
        let writer = Session::begin_writer(root.path()).unwrap();
        writer.record_new(&second).unwrap();
        writer.new_has_failed();
        assert!(suspects().failed.contains(&second));
        let writer = Session::begin_writer(root.path()).unwrap();
        writer.record_new(&ChunkId::of(b"3")).unwrap();
        writer.new_is_durable().unwrap();
        drop(writer);
        assert_eq!(suspects().unproven.len(), 1);
    }

    #[test]
    fn a_readers_pin_is_seen_while_it_reads_and_gone_after() {
        let root = root();
        let map = root.path().join("r.map");
        std::fs::write(&map, b"map").unwrap();
        let id = RevisionId::parse("r").unwrap();
        let reader = Session::begin_pinned(root.path(), &map, &id).unwrap();
        disk::remove(&map).unwrap();
        assert_eq!(pinned_maps(root.path(), &Sessions::default()).unwrap().len(), 1);
        drop(reader);
        assert!(pinned_maps(root.path(), &Sessions::default()).unwrap().is_empty());
        assert!(Session::begin_reader(root.path(), &map, &id).is_err());
    }
}
