//! Makes one revision: extents in, one finished revision out. Nobody can see it until [`RevisionWriter::finish`]
//! returns; dropping the writer leaves only unreferenced chunks.
//!
//! Order of writes: reference log, chunk, barrier, map, manifest. A crash anywhere leaves only files that
//! nothing refers to. Chunks of the base need no entry in the log: the base's map is pinned while the writer
//! lives, and after the commit the new map refers to them.
//!
//! A chunk in the store is used again only if its header is sane for this place, it is not marked as damaged,
//! and no run died or failed before it was durable; while the job has distrusted revisions, it is read
//! completely first ([`Reuse::Full`]).

mod chunks;
pub(crate) mod copies;
mod encode;
mod groups;
mod moving;
pub(crate) mod pages;
mod rest;
mod siblings;
#[cfg(test)]
mod tests_of_runs;

pub use chunks::ChunkWriter;
use groups::Groups;
use siblings::Siblings;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::{Error, Result};
use crate::format::id::{self, ChunkCheck, ChunkId};
use crate::format::map::{ChunkMap, MapWriter};
use crate::fs::disk;
use crate::fs::lock::BackupGuard;
use crate::legacy::job::Known;
use crate::maintain::damage;
use crate::monitor::Silent;
use crate::name::Tag;
use crate::read::chunk::{self, Scratch};
use crate::read::files::Files;
use crate::repository::claim;
use crate::repository::job::Job;
use crate::repository::session::{Session, Sessions, Suspects};
use crate::revision::{BackendType, Revision, RevisionId, Stats, Trust};
use crate::timestamp::Timestamp;
use crate::write::pages::PageIndex;

/// After so many stored bytes a long run makes what it has durable: this bounds dirty memory and what a crash costs.
const BARRIER_EVERY_BYTES: u64 = 4 << 30;

/// How much an existing chunk is checked before it is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// Header, frame table and length.
    Header,
    /// Every byte is decoded and hashed: while distrusted revisions exist.
    Full,
}

/// What is known when a backup begins.
#[derive(Clone, Debug)]
pub struct NewRevision {
    /// Its id.
    pub id: RevisionId,
    /// Start of the backup.
    pub timestamp: Timestamp,
    /// Its tags.
    pub tags: BTreeSet<Tag>,
    /// Size of the image.
    pub image_size_bytes: u64,
    /// The revision whose map the new one starts from, cut or grown with holes to the new size; `None`: all holes.
    pub base: Option<Revision>,
    /// The revision before, for information.
    pub parent: Option<RevisionId>,
    /// How far to check what is there.
    pub reuse: Reuse,
    /// zstd level, 1 to 19.
    pub level: i32,
    /// Whether content of other disks may be used: without a base, runs may be put on their chunks, and pages may be copied.
    pub with_others: bool,
}

/// What became of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// All zeros: nothing is stored.
    Hole,
    /// The base has the same chunk at this place.
    Unchanged,
    /// The store has it already.
    Known,
    /// Written.
    Stored {
        /// Length of its file.
        bytes: u64,
    },
}

/// Sums over the chunks put so far, in bytes of the image but for `stored_bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteStats {
    /// All that was put.
    pub put_bytes: u64,
    /// Of it, zeros.
    pub hole_bytes: u64,
    /// Of it, the same as the base at this place.
    pub unchanged_bytes: u64,
    /// Of it, in the store already.
    pub known_bytes: u64,
    /// Of it, new.
    pub new_bytes: u64,
    /// Length of the chunk files written.
    pub stored_bytes: u64,
    /// Of what was put, what was not at its place before: in frames where that is known, in chunks elsewhere.
    pub changed_bytes: u64,
    /// Of all but zeros, what the revision of the original that is continued had at this place.
    pub recognised_bytes: u64,
}

#[derive(Debug, Default)]
struct Counters {
    hole: AtomicU64,
    unchanged: AtomicU64,
    known: AtomicU64,
    new: AtomicU64,
    stored: AtomicU64,
    changed: AtomicU64,
    recognised: AtomicU64,
    temporaries: AtomicU64,
}

/// A revision being made. Many threads may put chunks at once, each through its own [`ChunkWriter`].
#[derive(Debug)]
pub struct RevisionWriter {
    job: Job,
    new: NewRevision,
    map: MapWriter,
    backend: Files,
    session: Session,
    suspects: Suspects,
    counters: Counters,
    /// A file was used that the base did not have: it may not be durable yet.
    found_new: AtomicBool,
    /// Damage was met during the run: from then on every chunk is read completely before it is used again.
    met_damage: AtomicBool,
    healed: Mutex<Vec<ChunkId>>,
    /// The revision of the original that this one continues.
    known: Option<Known>,
    /// The base's map, and what keeps its chunks alive.
    base: Option<(Session, Arc<ChunkMap>)>,
    /// Without a base: other disks whose chunks runs may be put on.
    siblings: Option<Siblings>,
    /// Where content is found that lies elsewhere.
    pages: Option<PageIndex>,
    groups: Groups,
    /// What is moved out of groups of which little is needed.
    moved: Groups,
    finished: bool,
}

impl RevisionWriter {
    pub(crate) fn begin(job: Job, new: NewRevision) -> Result<Self> {
        job.repository().check_layout()?;
        let root = job.repository().root().to_owned();
        let (sessions, _) = Sessions::scan(&root)?;
        let suspects = sessions.suspects(&root)?;
        let session = Session::begin_writer(&root)?;
        claim::for_writing(&root)?;
        let backend = job.repository().backend()?;
        let base =
            new.base.as_ref().map(|base| crate::read::reader::pin_for_writing(&job, base)).transpose()?;
        let base = base.map(|(session, map)| (session, Arc::new(map)));
        let siblings = match new.with_others && base.is_none() && new.reuse == Reuse::Header {
            true => Some(Siblings::find(&job, new.image_size_bytes)?),
            false => None,
        };
        let map = MapWriter::create(&job.unfinished_map_path(&new.id), new.image_size_bytes)?;
        let pages = PageIndex::open(&root);
        let counters = Counters::default();
        let healed = Mutex::new(Vec::new());
        let met_damage = AtomicBool::new(false);
        let mut writer = Self {
            job,
            new,
            map,
            backend,
            session,
            suspects,
            counters,
            found_new: AtomicBool::new(false),
            met_damage,
            healed,
            known: None,
            base,
            siblings,
            pages,
            groups: Groups::default(),
            moved: Groups::default(),
            finished: false,
        };
        if let Some((_, base)) = &writer.base {
            // Files of the base count as found here: the barrier must cover their names as well.
            writer.map.copy_from(base, &mut |name| writer.backend.use_existing(name))?;
        }
        Ok(writer)
    }

    /// Continues a revision of the original: what is put is compared with it, for the statistics.
    pub fn recognise(&mut self, old: &Revision) -> Result<()> {
        self.known = Some(Known::open(&self.job, old)?);
        Ok(())
    }

    /// The revision's id.
    pub fn id(&self) -> &RevisionId {
        &self.new.id
    }

    /// Size of the image.
    pub fn size_bytes(&self) -> u64 {
        self.map.size_bytes()
    }

    /// Number of chunks: size / 4 MiB, rounded up.
    pub fn chunk_count(&self) -> u64 {
        self.map.chunk_count()
    }

    /// Sums so far.
    pub fn stats(&self) -> WriteStats {
        let sum = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (hole_bytes, unchanged_bytes) = (sum(&self.counters.hole), sum(&self.counters.unchanged));
        let (known_bytes, new_bytes) = (sum(&self.counters.known), sum(&self.counters.new));
        WriteStats {
            put_bytes: hole_bytes + unchanged_bytes + known_bytes + new_bytes,
            hole_bytes,
            unchanged_bytes,
            known_bytes,
            new_bytes,
            stored_bytes: sum(&self.counters.stored),
            changed_bytes: sum(&self.counters.changed),
            recognised_bytes: sum(&self.counters.recognised),
        }
    }

    /// Bytes of the image that are not in holes, as far as it is recorded by now: the base's, where nothing was put.
    pub fn data_bytes(&self) -> Result<u64> {
        self.map.data_bytes()
    }

    /// A comparison with what is recorded at place `number`.
    pub fn check(&self, number: u64) -> Result<ChunkCheck> {
        Ok(ChunkCheck::expecting(self.map.get(number)?.map(|place| place.id)))
    }

    /// Reads the chunk recorded at place `number` back from the store, verified; `None` for a hole. For reports.
    pub fn read_back(&self, number: u64) -> Result<Option<Vec<u8>>> {
        let Some(place) = self.map.get(number)? else { return Ok(None) };
        let chunk = chunk::open(&self.backend, &place)?;
        Scratch::new().read(&chunk).map(|data| Some(data.to_vec()))
    }

    /// Returns a name for a temporary file that nothing else uses.
    fn temporary(&self) -> String {
        let turn = self.counters.temporaries.fetch_add(1, Ordering::Relaxed);
        format!("{}.{turn}", self.session.name())
    }

    /// Records damage that was met in a stored chunk; from then on nothing is used again that was not read completely.
    fn note_damage(&self, error: &Error) -> Result<()> {
        self.met_damage.store(true, Ordering::Relaxed);
        damage::record_chunks(self.job.repository(), &error.damaged_files(), &Silent).map(drop)
    }

    /// Makes everything durable that was put until now.
    pub(crate) fn barrier(&self) -> Result<()> {
        self.backend.barrier().inspect_err(|_| self.session.new_has_failed())
    }

    /// Makes everything durable, then the manifest: when this returns, the revision exists. `source` are facts for
    /// the manifest. The guard shows that the right to make a revision is still held.
    pub fn finish(
        self,
        guard: &BackupGuard,
        stats: Stats,
        source: BTreeMap<String, serde_json::Value>,
    ) -> Result<Revision> {
        let sequence = self.job.next_sequence()?;
        self.finish_with(guard, stats, source, Some(sequence), |job, revision, map, session| {
            job.commit(&revision, map, session).map(|()| revision)
        })
    }

    /// As [`RevisionWriter::finish`], in the place of a revision of the original with the same id, of which all is kept
    /// that its manifest says. It is distrusted if it is damaged.
    pub(crate) fn finish_over(
        self,
        guard: &BackupGuard,
        old: &Revision,
        is_damaged: bool,
        source: BTreeMap<String, serde_json::Value>,
    ) -> Result<Revision> {
        self.finish_with(guard, old.stats.clone(), source, None, |job, revision, map, session| {
            job.commit_over(revision, is_damaged, map, session)
        })
    }

    fn finish_with(
        mut self,
        _guard: &BackupGuard,
        stats: Stats,
        source: BTreeMap<String, serde_json::Value>,
        sequence: Option<crate::revision::order::Sequence>,
        commit: impl FnOnce(&Job, Revision, &Path, &str) -> Result<Revision>,
    ) -> Result<Revision> {
        if self.stats().new_bytes > 0 {
            self.move_runs()?;
        }
        self.groups.finish(&self)?;
        self.moved.finish(&self)?;
        // Where nothing was written and nothing found that the base did not have, all is durable since the base was.
        let sums = self.stats();
        if sums.new_bytes + sums.known_bytes > 0 || self.found_new.load(Ordering::Relaxed) {
            self.barrier()?;
        }
        let (seal, data_bytes) = self.map.seal()?;
        self.session.new_is_durable()?;
        let revision = Revision {
            id: self.new.id.clone(),
            timestamp: self.new.timestamp,
            parent: self.new.parent.as_ref().map(|id| id.to_string()),
            sequence,
            stats,
            tags: self.new.tags.clone(),
            backend_type: BackendType::Framed,
            trust: Trust::Trusted,
            orig_tags: BTreeSet::new(),
            server: String::new(),
            image_size: Some(self.size_bytes()),
            map_seal: Some(id::hex(&seal)),
            data_bytes: Some(data_bytes),
            stored_bytes: Some(self.stats().stored_bytes),
            source,
            extra: BTreeMap::new(),
        };
        let revision = commit(&self.job, revision, self.map.path(), self.session.name())?;
        self.finished = true;
        if let Err(error) = self.session.is_committed() {
            tracing::debug!(
                error = crate::error::in_full(&error),
                "cannot remove the list of written chunks"
            );
        }
        let healed = self.healed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for id in healed.iter() {
            // The revision is committed: a mark that stays only costs writing the chunk once more.
            if let Err(error) = disk::remove(&self.job.repository().damage_mark(id)) {
                tracing::warn!(
                    error = crate::error::in_full(&error),
                    "cannot remove the mark of a repaired chunk"
                );
            }
        }
        drop(healed);
        Ok(revision)
    }
}

impl Drop for RevisionWriter {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = disk::remove(self.map.path())
        {
            tracing::debug!(error = crate::error::in_full(&error), "cannot remove an unfinished map");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{image, new_job, new_revision, write_revision};
    use crate::{CHUNK_SIZE, FrameCache};

    fn read_all(job: &Job, revision: &Revision) -> Vec<u8> {
        let reader = job.open_revision(revision, &Arc::new(FrameCache::new(1 << 20))).unwrap();
        let mut data = vec![9; reader.size_bytes() as usize + 10];
        let length = reader.read_at(0, &mut data).unwrap();
        data.truncate(length);
        data
    }

    #[test]
    fn images_of_every_size_come_back_exactly() {
        let (_dir, job) = new_job("web01");
        for (seed, size) in
            [0, 1, 511, 65536, 65537, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 3 * CHUNK_SIZE + 777]
                .into_iter()
                .enumerate()
        {
            let data = image(seed as u64, size as usize);
            let revision = write_revision(&job, &data, None);
            assert_eq!(revision.image_size, Some(size));
            assert!(read_all(&job, &revision) == data, "size {size}");
        }
    }

    #[test]
    fn unchanged_and_known_chunks_are_not_stored_again() {
        let (_dir, job) = new_job("web01");
        let mut data = image(1, 5 << 22);
        let first = write_revision(&job, &data, None);
        let guard = job.lock_for_backup().unwrap();
        data[3 << 22] ^= 1;
        data.copy_within(0..1 << 22, 1 << 22);
        data[4 << 22..].fill(0);
        let writer = job.new_revision(&guard, new_revision(&data, Some(first))).unwrap();
        let mut chunks = writer.chunk_writer().unwrap();
        let puts: Vec<Put> = data
            .chunks(1 << 22)
            .enumerate()
            .map(|(at, chunk)| chunks.put(at as u64, chunk).unwrap())
            .collect();
        assert!(
            matches!(puts[..], [Put::Unchanged, Put::Known, Put::Unchanged, Put::Stored { .. }, Put::Hole]),
            "{puts:?}"
        );
        let stats = writer.stats();
        assert_eq!((stats.put_bytes, stats.new_bytes), (5 << 22, 1 << 22));
        drop(chunks);
        let revision = writer.finish(&guard, Stats::default(), BTreeMap::new()).unwrap();
        assert!(read_all(&job, &revision) == data);
    }

    #[test]
    fn an_empty_chunk_file_is_written_again_without_verify() {
        // A power loss can leave a name without content; the file's existence must prove nothing.
        let (_dir, job) = new_job("web01");
        let data = image(1, 1 << 22);
        let first = write_revision(&job, &data, None);
        let id = ChunkId::of(&data);
        let path = job.repository().root().join(format!("chunks/{:02x}/{id}", id.shard()));
        for damage in [&b""[..], b"BACKYCHK", &[0; 5000]] {
            std::fs::write(&path, damage).unwrap();
            let revision = write_revision(&job, &data, Some(first.clone()));
            assert!(read_all(&job, &revision) == data);
            assert!(read_all(&job, &first) == data, "the old revision is healed as well");
        }
    }

    #[test]
    fn a_dropped_writer_leaves_nothing_to_see() {
        let (_dir, job) = new_job("web01");
        let guard = job.lock_for_backup().unwrap();
        let data = image(1, 1 << 22);
        let writer = job.new_revision(&guard, new_revision(&data, None)).unwrap();
        writer.chunk_writer().unwrap().put(0, &data).unwrap();
        drop(writer);
        assert!(job.revisions().unwrap().revisions.is_empty());
        assert!(crate::repository::job::job_files(job.dir()).unwrap().is_empty());
    }

    #[test]
    fn verification_against_the_source_sees_every_difference() {
        let (_dir, job) = new_job("web01");
        let guard = job.lock_for_backup().unwrap();
        let mut data = image(1, (1 << 22) + 3);
        let writer = job.new_revision(&guard, new_revision(&data, None)).unwrap();
        writer.chunk_writer().unwrap().put(0, &data[..1 << 22]).unwrap();
        let agrees = |number, data: &[u8]| {
            let mut check = writer.check(number).unwrap();
            data.chunks(1 << 18).for_each(|piece| check.update(piece));
            check.agrees()
        };
        assert!(agrees(0, &data[..1 << 22]) && !agrees(0, &data[..(1 << 22) - 1]));
        assert!(writer.check(1).unwrap().expects_hole() && !agrees(1, &[0, 0, 1]) && agrees(1, &[0; 3]));
        data[77] ^= 1;
        assert!(!agrees(0, &data[..1 << 22]));
    }
}
