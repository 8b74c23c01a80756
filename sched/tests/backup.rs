//! Whole backups and expiry runs on a real store: what is committed, and what every failure leaves behind.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use backy_sched::backup::{self, BackupReport, BackupRequest};
use backy_sched::source::rbd::Environment;
use backy_sched::{Error, JobConfig, Result, VerifyMode, expire};
use backy_store::{
    CHUNK_SIZE, Finding, FrameCache, Job, JobName, Monitor, Repository, Revision, Silent, Tag, Timestamp,
    Trust,
};
use tempfile::TempDir;

const C: u64 = CHUNK_SIZE;

fn noon() -> Timestamp {
    Timestamp::from_secs(1_700_000_000).unwrap()
}

fn next_day() -> Timestamp {
    noon().plus_secs(86_400)
}

struct Case {
    dir: TempDir,
    job: Job,
    config: JobConfig,
}

impl Case {
    /// Data in chunks 0 and 2 of four, the last one short.
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let disk = dir.path().join("disk.img");
        let file = File::create(&disk).unwrap();
        file.set_len(3 * C + 1000).unwrap();
        let setting = ("filename".to_owned(), disk.display().to_string());
        let config = JobConfig::for_source("file", &[setting]).unwrap();
        let repository = Repository::create(&dir.path().join("store"), noon()).unwrap();
        let name = JobName::parse("web01").unwrap();
        let job = repository.create_job(&name, false, &config.to_yaml(), noon()).unwrap();
        let case = Self { dir, job, config };
        case.write(10, b"first");
        case.write(2 * C + 500_000, b"third");
        case
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    fn write(&self, offset: u64, data: &[u8]) {
        File::options().write(true).open(self.disk()).unwrap().write_all_at(data, offset).unwrap();
    }

    fn backup_with(
        &self,
        tags: &str,
        clock: fn() -> Timestamp,
        monitor: &dyn Monitor,
    ) -> Result<BackupReport> {
        let tags = Tag::parse_list(tags).unwrap();
        let request = BackupRequest {
            tags,
            force_tags: false,
            accept_change: false,
            threads: 2,
            clock,
            environment: Environment::default(),
        };
        backup::run(&self.job, &self.config, &request, monitor)
    }

    fn backup(&self, clock: fn() -> Timestamp) -> BackupReport {
        self.backup_with("daily", clock, &Silent).unwrap()
    }

    fn revisions(&self) -> Vec<Revision> {
        self.job.revisions().unwrap().revisions
    }

    fn image(&self, revision: &Revision) -> Vec<u8> {
        let reader = self.job.open_revision(revision, &Arc::new(FrameCache::new(1 << 20))).unwrap();
        let mut image = vec![0; usize::try_from(reader.size_bytes()).unwrap()];
        assert_eq!(reader.read_at(0, &mut image).unwrap(), image.len());
        image
    }

    fn distrust(&self, revision: &Revision) {
        let guard = self.job.lock_manifests().unwrap();
        self.job.set_trust(&guard, &revision.id, Trust::Distrusted).unwrap();
    }

    fn quarantined(&self) -> usize {
        backy_store::maintain::damage::quarantine_reports(&self.job).unwrap()
    }
}

/// Does something when a stage begins, or stops the run there.
struct AtStage<'a> {
    stage: &'static str,
    act: &'a (dyn Fn() -> bool + Sync),
    stop: std::sync::atomic::AtomicBool,
}

impl<'a> AtStage<'a> {
    fn new(stage: &'static str, act: &'a (dyn Fn() -> bool + Sync)) -> Self {
        Self { stage, act, stop: false.into() }
    }
}

impl Monitor for AtStage<'_> {
    fn begin(&self, label: &str, _total_bytes: Option<u64>) {
        if label == self.stage {
            self.stop.store((self.act)(), std::sync::atomic::Ordering::Relaxed);
        }
    }
    fn advance(&self, _bytes: u64) {}
    fn end(&self) {}
    fn finding(&self, _finding: &Finding) {}
    fn cancelled(&self) -> bool {
        self.stop.load(std::sync::atomic::Ordering::Relaxed)
    }
}

#[test]
fn a_first_and_a_second_backup() {
    let case = Case::new();
    let before = std::fs::read(case.disk()).unwrap();
    let first = case.backup(noon).revision;
    assert!(case.image(&first) == before);
    assert_eq!(first.source["mode"], "full");
    assert_eq!(first.source["hole_bytes"], C + 1000);
    assert_eq!(first.source["verified_bytes"], 3 * C + 1000);
    assert!(first.stats.bytes_written < 100_000, "holes are not read: {}", first.stats.bytes_written);

    case.write(C, b"new");
    let second = case.backup(next_day);
    assert!(case.image(&second.revision) == std::fs::read(case.disk()).unwrap());
    assert!(case.image(&first) == before);
    assert_eq!(second.revision.source["mode"], "compared");
    assert_eq!(second.revision.parent.as_deref(), Some(first.id.as_str()));
    assert_eq!((second.stats.unchanged_bytes, second.stats.new_bytes), (2 * C, C));
    assert_eq!(case.revisions().len(), 2);
}

#[test]
fn images_that_grow_and_shrink_between_backups() {
    let case = Case::new();
    for size in [5 * C + 1, C / 2, 0, 1, 2 * C] {
        File::options().write(true).open(case.disk()).unwrap().set_len(size).unwrap();
        let made = case.backup(noon).revision;
        assert!(case.image(&made) == std::fs::read(case.disk()).unwrap(), "{size} bytes");
    }
}

#[test]
fn tags_are_checked_before_anything_happens() {
    let case = Case::new();
    let error = case.backup_with("daily,hourly", noon, &Silent).unwrap_err();
    assert!(matches!(error, Error::TagsUnknown { tags, .. } if tags == ["hourly"]));
    let tags: BTreeSet<Tag> = Tag::parse_list("hourly").unwrap();
    let request = BackupRequest {
        tags,
        force_tags: true,
        accept_change: false,
        threads: 1,
        clock: noon,
        environment: Environment::default(),
    };
    backup::run(&case.job, &case.config, &request, &Silent).unwrap();
}

#[test]
fn a_missing_source_leaves_nothing() {
    let case = Case::new();
    nix::unistd::unlink(&case.disk()).unwrap();
    assert!(matches!(case.backup_with("daily", noon, &Silent).unwrap_err(), Error::SourceMissing { .. }));
    assert!(case.revisions().is_empty());
}

#[test]
fn a_second_run_at_the_same_time_is_refused() {
    let case = Case::new();
    let _guard = case.job.lock_for_backup().unwrap();
    let error = case.backup_with("daily", noon, &Silent).unwrap_err();
    assert!(matches!(error, Error::Store(backy_store::Error::Locked { .. })), "{error}");
}

#[test]
fn a_change_between_the_readings_commits_nothing_and_is_quarantined() {
    for offset in [20, C + 7] {
        let case = Case::new();
        let act = || {
            case.write(offset, b"changed");
            false
        };
        let error =
            case.backup_with("daily", noon, &AtStage::new("comparing with the source", &act)).unwrap_err();
        assert!(matches!(error, Error::SourceChanged { offset: at, .. } if at == offset / C * C), "{error}");
        assert!(case.revisions().is_empty());
        assert!(case.quarantined() > 0);
        case.backup(noon);
    }
}

#[test]
fn a_change_behind_the_second_reading_is_seen_by_its_time() {
    let mut case = Case::new();
    case.config.verify = VerifyMode::Off;
    File::options().write(true).open(case.disk()).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let act = || {
        case.write(20, b"changed");
        false
    };
    let error = case.backup_with("daily", noon, &AtStage::new("backing up", &act)).unwrap_err();
    assert!(matches!(error, Error::SourceModified { .. }), "{error}");
    assert!(case.revisions().is_empty() && case.quarantined() == 0);
}

#[test]
fn a_request_to_stop_commits_nothing() {
    for stage in ["backing up", "comparing with the source"] {
        let case = Case::new();
        let error = case.backup_with("daily", noon, &AtStage::new(stage, &|| true)).unwrap_err();
        assert!(error.is_cancelled(), "{error}");
        assert!(case.revisions().is_empty());
        assert_eq!(case.backup(noon).unfinished_removed, 0);
    }
}

#[test]
fn a_sample_and_no_comparison_are_told_in_the_manifest() {
    let mut case = Case::new();
    case.config.verify = VerifyMode::Sample;
    let sampled = case.backup(noon).revision;
    assert_eq!(sampled.source["verify"], "sample");
    assert!(
        [C, 1000].map(serde_json::Value::from).contains(&sampled.source["verified_bytes"]),
        "{sampled:?}"
    );
    case.config.verify = VerifyMode::Off;
    assert_eq!(case.backup(next_day).revision.source["verified_bytes"], 0);
}

#[test]
fn a_base_with_a_damaged_map_is_distrusted_and_done_without() {
    let case = Case::new();
    let first = case.backup(noon).revision;
    let map = case.job.map_path(&first.id);
    let good = std::fs::read(&map).unwrap();
    let middle = good.len() / 2;
    let mut flipped = good.clone();
    flipped[middle] ^= 1;
    let damages = [
        ("missing", None),
        ("empty", Some(vec![])),
        ("cut", Some(good[..middle].to_vec())),
        ("flipped", Some(flipped)),
    ];
    for (name, bytes) in damages {
        let guard = case.job.lock_manifests().unwrap();
        case.job.set_trust(&guard, &first.id, Trust::Trusted).unwrap();
        drop(guard);
        // As it was, so that the next damage meets it as a base.
        for later in case.revisions().iter().filter(|revision| revision.id != first.id) {
            case.distrust(later);
        }
        let _ = nix::unistd::unlink(&map);
        if let Some(bytes) = bytes {
            std::fs::write(&map, bytes).unwrap();
        }
        let made = case.backup(next_day).revision;
        assert_eq!(made.source["mode"], "full", "{name}");
        assert!(case.image(&made) == std::fs::read(case.disk()).unwrap(), "{name}");
        let first = case.job.revision(&first.id).unwrap();
        assert_eq!(first.trust, Trust::Distrusted, "{name}");
    }
}

#[test]
fn a_backup_heals_a_distrusted_revision_and_says_so() {
    let case = Case::new();
    let first = case.backup(noon).revision;
    case.distrust(&first);
    let report = case.backup(next_day);
    assert_eq!(report.revision.source["mode"], "full", "a distrusted revision is no base");
    assert_eq!(report.reverified, Some((first.id.clone(), true)));
    assert_eq!(case.job.revision(&first.id).unwrap().trust, Trust::Verified);
}

#[test]
fn expiry_does_what_its_plan_says() {
    let case = Case::new();
    let first = case.backup_with("daily,manual:keep", noon, &Silent).unwrap().revision;
    for _ in 0..9 {
        case.backup(next_day);
    }
    let later = noon().plus_secs(100 * 86_400);
    let plan = expire::expire(&case.job, &case.config.schedule, later, false, true).unwrap();
    assert_eq!(plan.decisions.iter().filter(|decision| decision.removed).count(), 2);
    assert_eq!(case.revisions().len(), 10, "a dry run does nothing");
    expire::expire(&case.job, &case.config.schedule, later, false, false).unwrap();
    let left = case.revisions();
    assert_eq!(left.len(), 8);
    assert_eq!(left[0].id, first.id);
    assert_eq!(left[0].tags, Tag::parse_list("manual:keep").unwrap());
    let forgotten = case.job.forgotten().unwrap();
    assert_eq!(forgotten.len(), 2);
    assert!(forgotten.iter().all(|gone| !gone.revision.tags.is_empty()), "they come back with their tags");
    let again = expire::expire(&case.job, &case.config.schedule, later, false, false).unwrap();
    assert!(again.held_back.is_empty() && again.decisions.iter().all(|decision| !decision.removed));
}

std::thread_local! {
    /// The day on which the wall clock of a test stands.
    static DAY: std::cell::Cell<i64> = const { std::cell::Cell::new(0) };
}

fn on_this_day() -> Timestamp {
    noon().plus_secs(DAY.get() * 86_400)
}

/// Backs up and expires on each of these days, three daily revisions being kept.
fn go_on(case: &Case, days: std::ops::Range<i64>) -> Vec<BackupReport> {
    let schedule =
        JobConfig::parse("source: {type: file, filename: /x}\nschedule: {daily: {interval: 1d, keep: 3}}\n");
    let schedule = schedule.unwrap().schedule;
    let mut reports = Vec::new();
    for day in days {
        DAY.set(day);
        reports.push(case.backup(on_this_day));
        expire::expire(&case.job, &schedule, on_this_day().plus_secs(60), false, false).unwrap();
    }
    reports
}

#[test]
fn a_source_that_is_cut_off_expires_no_good_revision_and_is_good_again_by_itself() {
    let case = Case::new();
    let resize = |bytes| File::options().write(true).open(case.disk()).unwrap().set_len(bytes).unwrap();
    let good = go_on(&case, 0..1).pop().unwrap();
    assert!(good.suspicions.is_empty() && !good.revision.is_suspicious());
    resize(0);
    let bad = go_on(&case, 1..10);
    assert!(bad.iter().all(|report| report.revision.is_suspicious()), "{bad:?}");
    assert_eq!(bad[8].revision.suspicions(), [format!("it is empty and had {} bytes", 3 * C + 1000)]);
    let left = case.revisions();
    assert_eq!(left[0].id, good.revision.id, "the good one is there");
    assert_eq!(left.len(), 4, "and as many suspicious ones as are kept");
    // The disk is attached again.
    resize(3 * C + 1000);
    case.write(10, b"first");
    case.write(2 * C + 500_000, b"third");
    let again = go_on(&case, 10..12);
    assert!(again.iter().all(|report| report.suspicions.is_empty()), "{again:?}");
    assert_eq!(case.revisions()[0].id, good.revision.id, "two good ones are not enough to expire it");
    go_on(&case, 12..15);
    assert!(case.revisions().iter().all(|revision| revision.id != good.revision.id), "three are");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the register's file must not be damaged with it")]
fn a_damaged_manifest_of_the_only_good_revision_switches_no_check_off() {
    let case = Case::new();
    let good = go_on(&case, 0..1).pop().unwrap().revision;
    let manifest = case.job.dir().join(format!("{}.rev", good.id));
    let text = std::fs::read(&manifest).unwrap();
    std::fs::remove_file(&manifest).unwrap();
    std::fs::write(&manifest, &text[..text.len() / 2]).unwrap();
    File::options().write(true).open(case.disk()).unwrap().set_len(0).unwrap();
    let bad = go_on(&case, 1..6);
    assert!(bad.iter().all(|report| report.revision.is_suspicious()), "{bad:?}");
    let recovered = case.job.repository().recover_job(case.job.name()).unwrap();
    assert_eq!(recovered.repaired, std::slice::from_ref(&good.id));
    go_on(&case, 6..10);
    assert_eq!(case.revisions()[0].id, good.id, "it is the last good one");
}

#[test]
fn a_source_that_is_accepted_is_what_the_next_ones_are_compared_with() {
    let case = Case::new();
    let resize = |bytes| File::options().write(true).open(case.disk()).unwrap().set_len(bytes).unwrap();
    let good = go_on(&case, 0..1).pop().unwrap().revision;
    resize(C);
    let bad = go_on(&case, 1..3);
    DAY.set(3);
    let request = BackupRequest {
        tags: Tag::parse_list("daily").unwrap(),
        force_tags: false,
        accept_change: true,
        threads: 1,
        clock: on_this_day,
        environment: Environment::default(),
    };
    let accepted = backup::run(&case.job, &case.config, &request, &Silent).unwrap();
    assert_eq!(accepted.suspicions.len(), 1, "it is told all the same");
    assert!(
        case.revisions().iter().all(|revision| !revision.is_suspicious()),
        "those before are accepted, too"
    );
    assert_eq!(bad.len(), 2);
    let next = go_on(&case, 4..5).pop().unwrap();
    assert!(next.suspicions.is_empty());
    assert!(case.revisions().iter().all(|revision| revision.id != good.id), "four others are newer");
    // A little less is only worth a word.
    resize(C - 4096);
    let smaller = go_on(&case, 5..6).pop().unwrap();
    assert_eq!((smaller.suspicions.len(), smaller.revision.is_suspicious()), (1, false));
}

#[test]
fn a_clock_that_was_ahead_decides_nothing() {
    let case = Case::new();
    go_on(&case, 0..1);
    case.write(20, b"ahead");
    let ahead = go_on(&case, 30..31).pop().unwrap().revision;
    case.write(20, b"right");
    let right = go_on(&case, 1..2).pop().unwrap().revision;
    assert_eq!(right.parent.as_deref(), Some(case.revisions()[0].id.as_str()), "as seen on that day");
    for day in [1, 29, 30, 31, 60] {
        let mut all = case.revisions();
        backy_store::revision::order::sort(&mut all, noon().plus_secs(day * 86_400));
        assert_eq!(all.last().map(|last| &last.id), Some(&right.id), "on day {day}");
    }
    let next = go_on(&case, 2..3).pop().unwrap().revision;
    assert_eq!(next.parent.as_deref(), Some(right.id.as_str()));
    assert!(case.revisions().iter().any(|revision| revision.id == ahead.id));
}
