//! The pulse of the main loop, as others see it: `/healthz`, which asks from another thread, and `backy check`, which
//! asks from another process. That a service holds its lock only says that its process exists.
//!
//! The loop calls [`Heartbeat::beat`] whenever it comes round, which takes no lock and does no input or output. A thread
//! writes the time of the last beat into the file whose lock the service holds, every few seconds, so that a loop that
//! stands, a thread that hangs in the disk, and a process that was stopped all look the same: the record grows old.
//!
//! Times are of the steady clock of this boot: setting the clock changes nothing, and the time for which a machine was
//! suspended does not count. A record of another boot, or of another machine that uses the same store, cannot be
//! compared; there the file's modification time has to do.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::lock::{ServiceGuard, lock_path};
use crate::error::{Error, Result};

/// How old the record may be until the service counts as hung.
pub const SILENCE_MAX: Duration = Duration::from_secs(120);
/// The record is written this many times before it would be too old.
const BEATS: u32 = 8;
/// Bytes of a record: always the same, so that one write replaces all of it and needs no room on the disk.
const RECORD_BYTES: usize = 128;
const MARK: &str = "backy-heartbeat";

/// The pulse of a running service.
#[derive(Debug)]
pub(super) struct Heartbeat {
    silence_max: Duration,
    /// When the loop last came round.
    beat_at_millis: AtomicU64,
    /// When the thread was last told.
    told_at_millis: AtomicU64,
    writer: SyncSender<u64>,
}

impl Heartbeat {
    /// Begins. The guard has made a first record.
    pub(super) fn start(guard: &ServiceGuard, silence_max: Duration) -> Result<Self> {
        let failed = |source| Error::ServiceNotStarted { source };
        let (file, boot, now) = (guard.file().map_err(failed)?, boot_id(), now_millis());
        let (writer, beats) = sync_channel(1);
        let record = move || {
            while let Ok(beat) = beats.recv() {
                write(&file, &boot, beat);
            }
        };
        std::thread::Builder::new().name("heartbeat".to_owned()).spawn(record).map_err(failed)?;
        let (beat_at_millis, told_at_millis) = (AtomicU64::new(now), AtomicU64::new(now));
        Ok(Self { silence_max, beat_at_millis, told_at_millis, writer })
    }

    /// How often the loop has to come round.
    pub(super) fn every(&self) -> Duration {
        self.silence_max / BEATS
    }

    /// The loop came round.
    pub(super) fn beat(&self) {
        let now = now_millis();
        self.beat_at_millis.store(now, Ordering::Relaxed);
        let since = Duration::from_millis(now.saturating_sub(self.told_at_millis.load(Ordering::Relaxed)));
        // A thread that hangs in the disk is not waited for.
        if since >= self.every() / 2 && self.writer.try_send(now).is_ok() {
            self.told_at_millis.store(now, Ordering::Relaxed);
        }
    }

    /// How long ago the loop came round.
    pub(super) fn silence(&self) -> Duration {
        Duration::from_millis(now_millis().saturating_sub(self.beat_at_millis.load(Ordering::Relaxed)))
    }

    /// From when on it counts as hung.
    pub(super) fn silence_max(&self) -> Duration {
        self.silence_max
    }
}

/// Returns how long ago the loop of the service of a base directory came round, as far as its record says; `None`
/// without one that can be understood.
pub(super) fn recorded_silence(base_dir: &Path) -> Option<Duration> {
    let file = File::open(lock_path(base_dir)).ok()?;
    let mut record = [0; RECORD_BYTES];
    file.read_exact_at(&mut record, 0).ok()?;
    let (boot, beat) = parse(&record)?;
    if boot == boot_id() {
        return Some(Duration::from_millis(now_millis().saturating_sub(beat)));
    }
    let modified = file.metadata().and_then(|facts| facts.modified()).ok()?;
    Some(modified.elapsed().unwrap_or_default())
}

fn parse(record: &[u8]) -> Option<(String, u64)> {
    let text = std::str::from_utf8(record).ok()?;
    let mut words = text.split_ascii_whitespace();
    (words.next()? == MARK).then_some(())?;
    Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
}

/// Records that the service is alive now.
pub(super) fn record(file: &File) {
    write(file, &boot_id(), now_millis());
}

/// What cannot be written grows old, which is what others are to see.
fn write(file: &File, boot: &str, beat: u64) {
    let text = format!("{MARK} {boot} {beat} {}", std::process::id());
    let mut record = [b' '; RECORD_BYTES];
    let length = text.len().min(RECORD_BYTES - 1);
    record[..length].copy_from_slice(&text.as_bytes()[..length]);
    record[RECORD_BYTES - 1] = b'\n';
    let _ = file.write_all_at(&record, 0);
}

fn boot_id() -> String {
    let id: io::Result<String> = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.ok()
        .and_then(|id| id.split_ascii_whitespace().next().map(str::to_owned))
        .unwrap_or_else(|| "-".to_owned())
}

/// The steady clock, which all processes of this boot share.
fn now_millis() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_is_seen_by_others_and_grows_old() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(recorded_silence(dir.path()), None);
        let guard = ServiceGuard::take(dir.path()).unwrap();
        assert!(recorded_silence(dir.path()).is_some());
        let heart = Heartbeat::start(&guard, Duration::from_millis(160)).unwrap();
        assert!(recorded_silence(dir.path()).unwrap() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(60));
        assert!(heart.silence() >= Duration::from_millis(50));
        assert!(recorded_silence(dir.path()).unwrap() >= Duration::from_millis(50));
        heart.beat();
        let begun = std::time::Instant::now();
        while recorded_silence(dir.path()).unwrap() >= begun.elapsed() + Duration::from_millis(50) {
            assert!(begun.elapsed() < Duration::from_secs(60), "the beat is not recorded");
        }
        assert!(heart.silence() <= begun.elapsed() + Duration::from_millis(1));
    }

    #[test]
    fn a_record_of_another_boot_is_as_old_as_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = lock_path(dir.path());
        let record = |boot: &str| format!("{:<127}\n", format!("{MARK} {boot} 18446744073709551615 1"));
        std::fs::write(&path, record("another")).unwrap();
        assert!(recorded_silence(dir.path()).unwrap() < Duration::from_secs(60));
        let old = std::time::UNIX_EPOCH + Duration::from_secs(1);
        File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        assert!(recorded_silence(dir.path()).unwrap() > SILENCE_MAX);
        for garbage in [String::new(), "x".repeat(128), record("a b"), format!("{:<128}", MARK)] {
            std::fs::write(&path, garbage).unwrap();
            assert_eq!(recorded_silence(dir.path()), None);
        }
    }
}
