//! A revision back to a file, a block device or a stream: every byte verified, the target synced at the end.
//!
//! A file gets its name when it is whole and durable, so nobody can take a half restored image for a good one. A block
//! device is written in place. Whatever can be known about the target is looked at before anything is copied, and what
//! fails on it is told apart from what fails in the store.

mod attributes;
mod device;
mod devices;
mod file;
mod problem;
pub(crate) mod restoring;
mod stream;
mod target;
mod temporary;
mod users;

pub use problem::TargetProblem;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::format::layout::{chunk_len, frame_len};
use crate::format::map::{Entry, PAGE_ENTRIES};
use crate::format::name::Place;
use crate::format::{CHUNK_SIZE, ChunkId, FRAME_SIZE};
use crate::maintain::damage;
use crate::monitor::{Finding, Monitor};
use crate::read::chunk::Scratch;
use crate::read::image::{Image, Page};
use crate::repository::job::Job;
use crate::revision::Revision;
use target::{TargetFile, Wanted};

/// Where to.
pub enum Target<'t> {
    /// A new or existing file, or a block device.
    Path(PathBuf),
    /// Standard output or another stream.
    Stream(Box<dyn Write + Send>),
    /// A place that somebody else knows how to write to. It must read as zeros everywhere.
    Image(Box<dyn ImageTarget + 't>),
}

/// A new image that reads as zeros where nothing was written. Dropping it before `finish` gives it up.
pub trait ImageTarget: Sync {
    /// Writes bytes; many threads may do so at once, each to a place of its own.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes everything durable and the image visible.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// How to restore.
#[derive(Clone, Copy, Debug)]
pub struct RestoreOptions {
    /// Overwrite a target that holds data.
    pub force: bool,
    /// Go on past damage, leaving zeros there.
    pub salvage: bool,
    /// Decoding threads.
    pub threads: usize,
}

/// What was restored.
#[derive(Clone, Debug, Default)]
pub struct RestoreReport {
    /// Size of the image.
    pub bytes: u64,
    /// Bytes of the image that are not in runs of zeros. A stream gets the zeros, too.
    pub bytes_written: u64,
    /// Offset and length of what could not be read and is zeros now; only with `salvage`. In order, merged.
    pub lost: Vec<(u64, u64)>,
}

/// Restores a revision. Without `salvage` it stops at the first damage, and nothing is left of a file.
pub fn restore(
    job: &Job,
    revision: &Revision,
    target: Target<'_>,
    options: &RestoreOptions,
    monitor: &dyn Monitor,
) -> Result<RestoreReport> {
    let image = Image::open(job, revision)?;
    let run = Run {
        job,
        revision,
        image: &image,
        options,
        monitor,
        stop: AtomicBool::new(false),
        written: AtomicU64::new(0),
        lost: Mutex::new(Vec::new()),
        bad_chunks: Mutex::new(Vec::new()),
        is_map_damaged: AtomicBool::new(false),
    };
    monitor.begin("restoring", Some(image.size_bytes()));
    let result = match target {
        Target::Path(path) => run.copy_to_path(&path),
        Target::Stream(out) => stream::copy(&run, out),
        Target::Image(target) => run.copy_to_image(target),
    };
    monitor.end();
    // Damage is recorded whatever became of the restore.
    let recorded = run.record();
    let report = run.report();
    match (result, recorded) {
        (Ok(()), Err(error)) => {
            // The image is there; that the store cannot be changed (read-only, for instance) must not hide it.
            tracing::warn!(error = crate::error::in_full(&error), "damage could not be recorded");
            Ok(report)
        }
        (result, _) => result.map(|()| report),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One restore that is under way; shared by its threads.
struct Run<'r> {
    job: &'r Job,
    revision: &'r Revision,
    image: &'r Image,
    options: &'r RestoreOptions,
    monitor: &'r dyn Monitor,
    stop: AtomicBool,
    written: AtomicU64,
    lost: Mutex<Vec<(u64, u64)>>,
    bad_chunks: Mutex<Vec<ChunkId>>,
    is_map_damaged: AtomicBool,
}

/// Holes are zeroed in steps of this size, so that a request to stop is heard.
const HOLE_STEP: u64 = 1 << 30;

/// A piece of the image, ready to be written.
enum Piece<'s> {
    /// Zeros.
    Hole,
    /// Bytes of one chunk.
    Data(&'s [u8]),
}

impl Run<'_> {
    /// Records the damage that was met.
    fn record(&self) -> Result<()> {
        let distrusted = if self.is_map_damaged.load(Ordering::Relaxed) {
            self.job.distrust(&BTreeSet::from([self.revision.id.clone()])).map(drop)
        } else {
            Ok(())
        };
        // The chunks may be of other jobs as well, whatever is wrong with this one.
        let recorded = damage::record(self.job, &lock(&self.bad_chunks), self.monitor).map(drop);
        distrusted.and(recorded)
    }

    fn report(&self) -> RestoreReport {
        let mut lost = lock(&self.lost).clone();
        lost.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (offset, length) in lost {
            match merged.last_mut() {
                Some(last) if last.0 + last.1 == offset => last.1 += length,
                _ => merged.push((offset, length)),
            }
        }
        RestoreReport {
            bytes: self.image.size_bytes(),
            bytes_written: self.written.load(Ordering::Relaxed),
            lost: merged,
        }
    }

    /// Writes what is not zero.
    fn copy_to_image(&self, target: Box<dyn ImageTarget + '_>) -> Result<()> {
        let failed = |error| Error::io("write to", "the new image", error).of_target();
        let write = |offset: u64, data: &[u8]| {
            let mut written = 0;
            for (run, _) in target::runs(data).filter(|(_, is_zero)| !is_zero) {
                target.write(offset + run.start as u64, &data[run.clone()]).map_err(failed)?;
                written += run.len() as u64;
            }
            Ok(written)
        };
        self.copy_with(&|_, _| Ok(()), &write)?;
        target.finish().map_err(failed)
    }

    fn copy_to_path(&self, path: &Path) -> Result<()> {
        let store = self.job.repository().root();
        let dirs = [store, &store.join("chunks"), self.job.dir()];
        let wanted = Wanted {
            size: self.image.size_bytes(),
            data_bytes: self.data_bytes()?,
            force: self.options.force,
            store_dirs: dirs.iter().filter_map(|dir| dir.canonicalize().ok()).collect(),
            monitor: self.monitor,
        };
        let target = TargetFile::open(path, &wanted)?;
        let zero = |offset, length| target.zero(offset, length).map_err(Error::of_target);
        let write = |offset, data: &[u8]| target.write(offset, data).map_err(Error::of_target);
        self.copy_with(&zero, &write)?;
        target.finish().map_err(Error::of_target)
    }

    /// Returns how many bytes of the image may be data. Manifests of the original do not say it.
    fn data_bytes(&self) -> Result<u64> {
        if let Some(known) = self.revision.data_bytes {
            return Ok(known);
        }
        let mut sum = 0;
        for page in 0..self.image.page_count() {
            match self.image.page(page) {
                Ok(Page { entries, .. }) => sum += entries.iter().flatten().count() as u64 * CHUNK_SIZE,
                // The copy meets it again.
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sum.min(self.image.size_bytes()))
    }

    /// Takes the map page by page: first the holes, in ranges as large as they are, then the chunks, over all threads.
    /// `write` returns how many bytes were not zero.
    fn copy_with(
        &self,
        zero: &(dyn Fn(u64, u64) -> Result<()> + Sync),
        write: &(dyn Fn(u64, &[u8]) -> Result<u64> + Sync),
    ) -> Result<()> {
        for page in 0..self.image.page_count() {
            let entries = self.page(page)?;
            self.copy_holes(page, &entries, zero)?;
            let next = AtomicU64::new(0);
            crate::threads::run(self.options.threads.max(1), || {
                let mut scratch = Scratch::new();
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(entry) = entries.get(at as usize) else { return Ok(()) };
                    if entry.is_none() {
                        continue;
                    }
                    let number = page * PAGE_ENTRIES + at;
                    let length = chunk_len(self.image.size_bytes(), number) as u64;
                    let mut step = || -> Result<()> {
                        self.check_stop()?;
                        match self.piece(number, entry.as_ref(), &mut scratch)? {
                            Piece::Hole => zero(number * CHUNK_SIZE, length),
                            Piece::Data(data) => {
                                let written = write(number * CHUNK_SIZE, data)?;
                                self.written.fetch_add(written, Ordering::Relaxed);
                                Ok(())
                            }
                        }
                    };
                    step().inspect_err(|_| self.stop.store(true, Ordering::Relaxed))?;
                    self.monitor.advance(length);
                }
            })?;
        }
        Ok(())
    }

    fn copy_holes(&self, page: u64, entries: &[Entry], zero: &dyn Fn(u64, u64) -> Result<()>) -> Result<()> {
        let mut number = page * PAGE_ENTRIES;
        for run in entries.chunk_by(|one, next| one.is_none() == next.is_none()) {
            let start = number * CHUNK_SIZE;
            number += run.len() as u64;
            let end = self.image.size_bytes().min(number * CHUNK_SIZE);
            if run[0].is_some() {
                continue;
            }
            for at in (start..end).step_by(HOLE_STEP as usize) {
                self.check_stop()?;
                let length = HOLE_STEP.min(end - at);
                zero(at, length)?;
                self.monitor.advance(length);
            }
        }
        Ok(())
    }

    fn check_stop(&self) -> Result<()> {
        if self.monitor.cancelled() || self.stop.load(Ordering::Relaxed) {
            Err(Error::Cancelled)
        } else {
            Ok(())
        }
    }

    /// The entries of one page of the map; with `salvage` a damaged page is all lost. Of a damaged page of places nothing
    /// need be lost, and it is reported.
    fn page(&self, page: u64) -> Result<Vec<Entry>> {
        match self.image.page(page) {
            Ok(Page { entries, damage }) => {
                if let Some(error) = damage {
                    self.monitor.finding(&Finding::of_revision(self.job.name(), &self.revision.id, error));
                    self.is_map_damaged.store(true, Ordering::Relaxed);
                }
                Ok(entries)
            }
            Err(error) if error.is_damage() => {
                self.is_map_damaged.store(true, Ordering::Relaxed);
                let (start, length) = self.image.page_range(page);
                self.lose(start, length, None, error)?;
                Ok(vec![None; length.div_ceil(CHUNK_SIZE) as usize])
            }
            Err(error) => Err(error),
        }
    }

    /// Reads one chunk of the image.
    fn piece<'s>(&self, number: u64, entry: Option<&Place>, scratch: &'s mut Scratch) -> Result<Piece<'s>> {
        let Some(place) = entry else { return Ok(Piece::Hole) };
        let length = chunk_len(self.image.size_bytes(), number);
        let start = number * CHUNK_SIZE;
        let plain = match self.image.read_any(number, place, scratch) {
            Ok((plain, avoided)) => {
                avoided.iter().for_each(|error| self.avoid(&place.id, error));
                plain
            }
            Err(error) if error.is_damage() => {
                self.lose(start, length as u64, Some(place.id), error)?;
                return Ok(Piece::Hole);
            }
            Err(error) => return Err(error),
        };
        let bad = plain.bad.into_iter().map(|(frame, error)| {
            let (at, length) = (frame as u64 * FRAME_SIZE, frame_len(length, frame) as u64);
            (at, length, error)
        });
        for (at, length, error) in damage::merged(bad) {
            self.lose(start + at, length, Some(place.id), error)?;
        }
        Ok(Piece::Data(plain.data))
    }

    /// Notes damage that loses nothing, since the chunk has another file.
    fn avoid(&self, chunk: &ChunkId, error: &Error) {
        let files = error.damaged_files();
        lock(&self.bad_chunks).extend(if files.is_empty() { vec![*chunk] } else { files });
        let problem = format!("{error}; what it lacks was taken from another file of the chunk");
        self.monitor.finding(&Finding {
            chunk: Some(*chunk),
            ..Finding::of_revision(self.job.name(), &self.revision.id, problem)
        });
    }

    /// Notes a lost range, or fails when nothing may be lost.
    fn lose(&self, offset: u64, length: u64, chunk: Option<ChunkId>, cause: Error) -> Result<()> {
        // What is damaged may be the base of the chunk, or a group.
        lock(&self.bad_chunks).extend(cause.damaged_files());
        let chunk = cause.damaged_chunk().or(chunk);
        lock(&self.bad_chunks).extend(chunk);
        let (job, revision) = (self.job.name().clone(), self.revision.id.clone());
        if !self.options.salvage {
            return Err(Error::ImageDamaged { job, revision, offset, cause: Box::new(cause) });
        }
        let problem = cause.to_string();
        self.monitor.finding(&Finding {
            job,
            revision: Some(revision),
            range: Some((offset, length)),
            chunk,
            problem,
        });
        lock(&self.lost).push((offset, length));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::{image, new_job, write_revision};
    use crate::{Silent, Trust};

    const OPTIONS: RestoreOptions = RestoreOptions { force: false, salvage: false, threads: 3 };

    /// A stream whose bytes can be looked at afterwards.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn files_and_streams_get_exactly_the_image() {
        let (dir, job) = new_job("web01");
        for (seed, size) in [0, 1, 65537, 3 * (1 << 22) + 513, 9 << 22].into_iter().enumerate() {
            let mut data = image(seed as u64, size);
            if size > 4 << 22 {
                data[1 << 22..3 << 22].fill(0);
            }
            let revision = write_revision(&job, &data, None);
            let path = dir.path().join(format!("out{seed}"));
            let report = restore(&job, &revision, Target::Path(path.clone()), &OPTIONS, &Silent).unwrap();
            assert!(std::fs::read(&path).unwrap() == data, "size {size}");
            assert_eq!(report.bytes, size as u64);
            let out = Shared::default();
            let streamed =
                restore(&job, &revision, Target::Stream(Box::new(out.clone())), &OPTIONS, &Silent).unwrap();
            assert!(*out.0.lock().unwrap() == data, "size {size} as a stream");
            assert_eq!((streamed.bytes, streamed.bytes_written), (report.bytes, report.bytes_written));
        }
    }

    #[test]
    fn existing_data_is_only_replaced_by_force_and_only_when_the_new_is_whole() {
        let (dir, job) = new_job("web01");
        let data = image(1, 1 << 22);
        let revision = write_revision(&job, &data, None);
        let path = dir.path().join("out");
        std::fs::write(&path, b"precious").unwrap();
        let go = |options| restore(&job, &revision, Target::Path(path.clone()), &options, &Silent);
        assert!(matches!(go(OPTIONS), Err(Error::TargetRefused { .. })));
        let id = ChunkId::of(&data);
        let chunk = job.repository().root().join(format!("chunks/{:02x}/{id}", id.shard()));
        let good = std::fs::read(&chunk).unwrap();
        std::fs::write(&chunk, b"").unwrap();
        let force = RestoreOptions { force: true, ..OPTIONS };
        assert!(matches!(go(force), Err(Error::ImageDamaged { offset: 0, .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file is left");
        assert_eq!(job.revision(&revision.id).unwrap().trust, Trust::Distrusted);
        std::fs::write(&chunk, good).unwrap();
        go(force).unwrap();
        assert!(std::fs::read(&path).unwrap() == data);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(
            restore(&job, &revision, Target::Path(link), &force, &Silent),
            Err(Error::TargetRefused { .. })
        ));
    }

    #[test]
    fn salvage_loses_only_the_bad_frame() {
        let (dir, job) = new_job("web01");
        let data = image(1, (1 << 22) + 100_000);
        let revision = write_revision(&job, &data, None);
        let id = ChunkId::of(&data[..1 << 22]);
        let chunk = job.repository().root().join(format!("chunks/{:02x}/{id}", id.shard()));
        let mut bytes = std::fs::read(&chunk).unwrap();
        let last = bytes.len() - 32 - 10;
        bytes[last] ^= 0x40;
        std::fs::write(&chunk, bytes).unwrap();
        let path = dir.path().join("out");
        let options = RestoreOptions { salvage: true, ..OPTIONS };
        let report = restore(&job, &revision, Target::Path(path.clone()), &options, &Silent).unwrap();
        let [(offset, length)] = report.lost[..] else { panic!("{:?}", report.lost) };
        assert_eq!(length, FRAME_SIZE);
        let read = std::fs::read(&path).unwrap();
        let (start, end) = (offset as usize, (offset + length) as usize);
        assert!(
            read[..start] == data[..start]
                && read[end..] == data[end..]
                && crate::format::is_zero(&read[start..end])
        );
    }
}
