//! One backup, readable from top to bottom in [`run`].
//!
//! The order is the safety: the source is opened before any revision exists, so that a source that is away
//! leaves nothing; the image is compared with its source a second time and the source is asked whether it
//! changed, both before [`RevisionWriter::finish`], which is the commit. Every failure before it drops the
//! writer: nobody ever sees that revision, and what it stored is removed by the next sweep. What comes
//! after the commit (releasing older snapshots, verifying a distrusted revision) cannot undo it and is only
//! reported.
//!
//! Before the commit the source's shape is compared with that of the last revision whose source was right
//! (`source/shape.rs`). A source that is empty, cut off, wiped or another disk is backed up all the same, for that may be
//! what somebody wants; the revision is marked as suspicious until somebody accepts it.
//!
//! The backup guard is held from the first look at the job to the end, so no other run makes a revision in
//! between. Tags and trust of older revisions may change meanwhile: a base that is distrusted during the
//! run was read as a map only, and the map's seal was checked; the chunks it names are what verification
//! will look at.

use std::collections::{BTreeMap, BTreeSet};

use backy_store::fs::lock::BackupGuard;
use backy_store::maintain::{damage, verify};
use backy_store::revision::{order, suspicion};
use backy_store::{
    CHUNK_SIZE, Finding, Job, Listing, Monitor, NewRevision, Reuse, Revision, RevisionId, RevisionWriter,
    Stats, Tag, Timestamp, Trust, WriteStats,
};

use crate::accept;
use crate::compare::{self, CompareStats, Difference, Selection};
use crate::config::{JobConfig, VerifyMode};
use crate::error::Error;
use crate::error::Result;
use crate::listing;
use crate::release;
use crate::source::content::Content;
use crate::source::shape::{self, Shape, Suspicion};
use crate::source::{self, CopyMode, CopyStats, Snapshot, Source, rbd::Environment};

/// What to back up.
#[derive(Clone, Debug)]
pub struct BackupRequest {
    /// The tags of the new revision.
    pub tags: BTreeSet<Tag>,
    /// Whether tags that the schedule does not know are taken, too.
    pub force_tags: bool,
    /// Whether the source is right as it is, however it differs from before.
    pub accept_change: bool,
    /// Worker threads.
    pub threads: usize,
    /// The clock.
    pub clock: fn() -> Timestamp,
    /// What the environment says about Ceph.
    pub environment: Environment,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct BackupReport {
    /// The new revision.
    pub revision: Revision,
    /// Sums over its chunks.
    pub stats: WriteStats,
    /// Unfinished revisions of earlier runs that were removed first.
    pub unfinished_removed: u64,
    /// The newest distrusted revision after it was verified again, and whether it is good; `None` when
    /// there was none or it could not be verified.
    pub reverified: Option<(RevisionId, bool)>,
    /// How the source differs from the last one that was right, the slight differences too.
    pub suspicions: Vec<Suspicion>,
}

/// One backup from lock to commit.
pub fn run(
    job: &Job,
    config: &JobConfig,
    request: &BackupRequest,
    monitor: &dyn Monitor,
) -> Result<BackupReport> {
    job.repository().check_ours()?;
    if !request.force_tags {
        config.schedule.check_tags(&request.tags)?;
    }
    let guard = job.lock_for_backup()?;
    let unfinished_removed = job.remove_unfinished(&guard)?;
    if unfinished_removed > 0 {
        tracing::warn!(job = %job.name(), count = unfinished_removed, "clean-incomplete");
    }
    let Listing { revisions: history, damaged: unreadable } = listing::in_order(job, (request.clock)())?;
    let mut source = source::open(&config.source, &request.environment);
    source.check_ready(monitor)?;
    let is_history_whole = unreadable.is_empty();
    let backup = Backup { job, config, request, monitor, guard: &guard, history: &history, is_history_whole };

    let id = RevisionId::random()?;
    let noted = backup.note_snapshot(&*source, &id)?;
    let made = backup.make(&mut *source, id);
    if source.makes_snapshots()
        && let Err(error) = backup.release(&mut *source, noted, made.is_ok())
    {
        tracing::warn!(job = %job.name(), error = crate::error::in_full(&error), "snapshot-not-released");
    }
    let (revision, stats, suspicions) = made?;
    if request.accept_change {
        // Whoever accepts this disk accepts what was made of it before.
        let earlier = accept::agreeing(&history, &revision);
        let earlier: Vec<&RevisionId> = earlier.into_iter().map(|one| &one.id).collect();
        accept::accept(job, &earlier, (request.clock)())?;
    }
    let reverified = backup.reverify();
    Ok(BackupReport { revision, stats, unfinished_removed, reverified, suspicions })
}

/// Returns the newest revision whose source was right, or was accepted: what a source is compared with. That it is
/// distrusted says nothing against its source.
fn choose_reference(history: &[Revision]) -> Option<&Revision> {
    let is_right = |one: &&Revision| one.is_local() && one.is_clean() && !one.is_suspicious();
    history.iter().rfind(is_right)
}

/// Returns the revision whose map a new one can start from: the newest one in our own format, here,
/// complete and not distrusted.
fn choose_base(history: &[Revision]) -> Option<&Revision> {
    history.iter().rfind(|revision| revision.is_fit_as_base())
}

/// Returns the revision of the original that a job without such a base continues.
fn choose_continued(history: &[Revision]) -> Option<&Revision> {
    history
        .iter()
        .rfind(|revision| revision.is_old() && revision.is_clean() && revision.trust != Trust::Distrusted)
}

fn is_distrusted(revision: &&Revision) -> bool {
    revision.is_local() && revision.is_clean() && revision.trust == Trust::Distrusted
}

/// What stays the same through one run.
struct Backup<'a> {
    job: &'a Job,
    config: &'a JobConfig,
    request: &'a BackupRequest,
    monitor: &'a dyn Monitor,
    guard: &'a BackupGuard,
    history: &'a [Revision],
    /// Whether every manifest could be read.
    is_history_whole: bool,
}

impl Backup<'_> {
    /// Notes the snapshot that is going to be made, so that it is known whatever happens. Returns all that are noted.
    fn note_snapshot(&self, source: &dyn Source, id: &RevisionId) -> Result<BTreeSet<RevisionId>> {
        if !source.makes_snapshots() {
            return Ok(BTreeSet::new());
        }
        let mut noted = self.job.noted_snapshots()?;
        noted.insert(id.clone());
        self.job.note_snapshots(self.guard, &noted)?;
        Ok(noted)
    }

    /// Releases every snapshot of this job but that of the newest revision that can be relied on. After a failure what is
    /// not seen stays noted: a program that was killed may still come to make it.
    fn release(&self, source: &mut dyn Source, noted: BTreeSet<RevisionId>, is_made: bool) -> Result<()> {
        // Listed again: the run may have added a revision or distrusted some.
        let mut history = self.job.revisions()?.revisions;
        order::sort(&mut history, (self.request.clock)());
        let keep = choose_base(&history).map(|base| &base.id);
        let own = release::own(self.job, &noted, &history)?;
        let there = source.release(&own, keep)?.left;
        let still = if is_made { there } else { noted.union(&there).cloned().collect() };
        if still != noted {
            self.job.note_snapshots(self.guard, &still)?;
        }
        Ok(())
    }

    /// From snapshot to commit.
    fn make(
        &self,
        source: &mut dyn Source,
        id: RevisionId,
    ) -> Result<(Revision, WriteStats, Vec<Suspicion>)> {
        let name = source.describe();
        let started = (self.request.clock)();
        let snapshot = source.snapshot(&id, self.monitor)?;
        let (mut writer, base) = self.begin(id, started, snapshot.size_bytes())?;
        let continued = if base.is_none() { self.continue_original(&mut writer) } else { None };
        let tags = self.request.tags.iter().map(Tag::as_str).collect::<Vec<_>>().join(",");
        tracing::info!(job = %self.job.name(), revision = %writer.id(), tags, "created-revision");

        let copied = self.copy(&*snapshot, base.as_ref(), &writer)?;
        let compared = self
            .compare(&*snapshot, &name, &writer)
            .map_err(|error| self.blame(error, base.as_ref(), copied.mode))?;
        snapshot.check_unchanged()?;
        if self.monitor.cancelled() {
            return Err(backy_store::Error::Cancelled.into());
        }
        let mut facts = snapshot.facts();
        facts.insert("mode".to_owned(), copied.mode.as_str().into());
        let verify = if snapshot.can_read_at() { self.config.verify } else { VerifyMode::Off };
        facts.insert("verify".to_owned(), verify.as_str().into());
        if let Some(old) = continued {
            facts.insert("continues".to_owned(), old.as_str().into());
            facts.insert("recognised_bytes".to_owned(), writer.stats().recognised_bytes.into());
        }
        facts.insert("verified_bytes".to_owned(), compared.bytes.into());
        let suspicions = self.assess(&*snapshot, &writer, &mut facts)?;
        let (revision, stats) = self.commit(writer, started, copied, facts)?;
        Ok((revision, stats, suspicions))
    }

    /// Compares the source with what it was when it was last right, and adds what it looks like to the facts.
    fn assess(
        &self,
        snapshot: &dyn Snapshot,
        recorded: &RevisionWriter,
        facts: &mut BTreeMap<String, serde_json::Value>,
    ) -> Result<Vec<Suspicion>> {
        let job = self.job.name();
        let shape = Shape {
            size_bytes: snapshot.size_bytes(),
            data_bytes: Some(recorded.data_bytes()?),
            identity: Some(snapshot.identity()),
            content: self.content(recorded),
        };
        facts.insert("identity".to_owned(), shape.to_value());
        let reference = choose_reference(self.history);
        let (name, suspicions) = match reference.and_then(|one| Some((one, Shape::of(one)?))) {
            Some((reference, before)) => (reference.id.to_string(), shape::assess(&before, &shape)),
            // The good revisions are forgotten: that makes the others no better.
            None if self.history.iter().any(Revision::is_suspicious) => {
                ("none".to_owned(), vec![Suspicion::Unconfirmed])
            }
            // What cannot be read may be the only one that says what the source was.
            None if reference.is_none() && !self.is_history_whole => {
                ("none".to_owned(), vec![Suspicion::Unknown])
            }
            None => return Ok(Vec::new()),
        };
        let grave: Vec<String> =
            suspicions.iter().filter(|one| one.is_grave()).map(Suspicion::to_string).collect();
        for found in &suspicions {
            let (revision, accepted) = (recorded.id(), self.request.accept_change);
            tracing::warn!(%job, %revision, reason = %found, reference = %name, accepted, "source-changed");
        }
        let accepted_at = self.request.accept_change.then(|| (self.request.clock)());
        suspicion::record(facts, &grave, accepted_at);
        Ok(suspicions)
    }

    /// What the disk says of itself, read from the first chunk as it was recorded. That it cannot be read is no failure of
    /// this backup: it is a chunk of the base that is damaged, and then nothing is known.
    fn content(&self, recorded: &RevisionWriter) -> Option<Content> {
        if recorded.chunk_count() == 0 {
            return Some(Content::probe(&[]));
        }
        match recorded.read_back(0) {
            Ok(data) => Some(Content::probe(&data.unwrap_or_default())),
            Err(error) => {
                tracing::warn!(job = %self.job.name(), error = crate::error::in_full(&error), "content-unknown");
                None
            }
        }
    }

    /// Begins the revision on the best base. A base whose map is damaged is distrusted, and the run goes on
    /// without one.
    fn begin(
        &self,
        id: RevisionId,
        started: Timestamp,
        size: u64,
    ) -> Result<(RevisionWriter, Option<Revision>)> {
        let base = choose_base(self.history);
        let has_distrusted = self.history.iter().any(|revision| is_distrusted(&revision));
        let mut new = NewRevision {
            id,
            timestamp: started,
            tags: self.request.tags.clone(),
            image_size_bytes: size,
            base: base.cloned(),
            parent: base.or_else(|| choose_continued(self.history)).map(|base| base.id.clone()),
            reuse: if has_distrusted { Reuse::Full } else { Reuse::Header },
            level: self.config.compression_level,
            with_others: true,
        };
        match (self.job.new_revision(self.guard, new.clone()), base) {
            (Err(error), Some(base)) if error.is_damage() => {
                self.distrust_base(base, &error)?;
                new.reuse = Reuse::Full;
            }
            // Forgotten and purged since it was listed.
            (Err(backy_store::Error::RevisionUnknown { .. }), Some(_)) => {}
            (begun, base) => return Ok((begun?, base.cloned())),
        }
        new.base = None;
        Ok((self.job.new_revision(self.guard, new)?, None))
    }

    /// Lets a run without a base compare what it reads with the newest revision of the original. What hinders that
    /// costs only the figures.
    fn continue_original(&self, writer: &mut RevisionWriter) -> Option<RevisionId> {
        let old = choose_continued(self.history)?;
        match writer.recognise(old) {
            Ok(()) => Some(old.id.clone()),
            Err(error) => {
                tracing::warn!(job = %self.job.name(), revision = %old.id, error = crate::error::in_full(&error), "original-not-recognised");
                None
            }
        }
    }

    fn distrust_base(&self, base: &Revision, damage: &backy_store::Error) -> Result<()> {
        tracing::warn!(job = %self.job.name(), revision = %base.id, error = crate::error::in_full(&damage), "base-damaged");
        let problem = format!("{damage}; it is distrusted now and this backup does without it");
        self.monitor.finding(&Finding::of_revision(self.job.name(), &base.id, problem));
        let guard = self.job.lock_manifests()?;
        Ok(self.job.set_trust(&guard, &base.id, Trust::Distrusted)?)
    }

    fn copy(
        &self,
        snapshot: &dyn Snapshot,
        base: Option<&Revision>,
        to: &RevisionWriter,
    ) -> Result<CopyStats> {
        self.monitor.begin("backing up", Some(snapshot.size_bytes()));
        let copied = snapshot.copy_changes(base, to, self.request.threads, self.monitor);
        self.monitor.end();
        let copied = copied?;
        let (event, mode) = match copied.mode {
            CopyMode::Full => ("backup-full", copied.mode.as_str()),
            CopyMode::Compared | CopyMode::Incremental => ("backup-sparse", copied.mode.as_str()),
        };
        let bytes_read = copied.bytes_read;
        tracing::info!(job = %self.job.name(), revision = %to.id(), mode, bytes_read, "{event}");
        Ok(copied)
    }

    /// Reads the source a second time, as far as the configuration wants it.
    fn compare(
        &self,
        snapshot: &dyn Snapshot,
        name: &str,
        recorded: &RevisionWriter,
    ) -> Result<CompareStats> {
        if self.config.verify != VerifyMode::Off && !snapshot.can_read_at() {
            tracing::warn!(job = %self.job.name(), reason = "without librbd single places cannot be read", "verification-impossible");
            return Ok(CompareStats::default());
        }
        let clock = self.request.clock;
        let begun = clock();
        let limit_secs = self.config.verify_limit_secs as f64;
        let is_over = move || clock().secs_since(begun) > limit_secs;
        let selection = match self.config.verify {
            VerifyMode::Off => return Ok(CompareStats::default()),
            VerifyMode::Full => Selection::All,
            VerifyMode::Sample => {
                let numbers = compare::sample(recorded.chunk_count(), recorded.id());
                Selection::Sample { numbers, is_over: &is_over }
            }
        };
        let differs = |difference: &Difference<'_>| self.quarantine(recorded, difference);
        self.monitor.begin("comparing with the source", Some(selection.bytes(snapshot.size_bytes())));
        let threads = self.request.threads;
        let compared =
            compare::compare(snapshot, name, recorded, &selection, threads, &differs, self.monitor);
        self.monitor.end();
        let job = self.job.name();
        match &compared {
            Ok(done) if done.is_cut_short => tracing::warn!(%job, bytes = done.bytes, "verification-stopped"),
            Ok(done) => tracing::info!(%job, bytes = done.bytes, "verification-ok"),
            Err(error) => tracing::error!(%job, error = crate::error::in_full(&error), "verification-failed"),
        }
        compared
    }

    /// A difference after an incremental run says that a list of changes left something out, now or in an earlier run:
    /// every revision that rests on such lists is distrusted, so the next backup reads everything.
    fn blame(&self, error: Error, base: Option<&Revision>, mode: CopyMode) -> Error {
        let (Error::SourceChanged { name, offset }, Some(base), CopyMode::Incremental) = (&error, base, mode)
        else {
            return error;
        };
        let distrusted = self.distrust_chain(base);
        match distrusted {
            Ok(count) => tracing::error!(job = %self.job.name(), count, "chain-distrusted"),
            Err(error) => {
                tracing::error!(job = %self.job.name(), error = crate::error::in_full(&error), "chain-not-distrusted")
            }
        }
        Error::ChangesUntrue { name: name.clone(), offset: *offset, base: base.id.to_string() }
    }

    /// Distrusts `last` and what it was made from, back to the revision for which all was read.
    fn distrust_chain(&self, last: &Revision) -> Result<usize> {
        let guard = self.job.lock_manifests()?;
        let mut next = Some(last);
        let mut count = 0;
        while let Some(revision) = next {
            if revision.trust != Trust::Distrusted {
                self.job.set_trust(&guard, &revision.id, Trust::Distrusted)?;
                count += 1;
            }
            let rests_on = (revision.source.get("mode") == Some(&CopyMode::Incremental.as_str().into()))
                .then_some(revision.parent.as_deref())
                .flatten();
            // Only ever to older ones, so that this ends whatever manifests say.
            next = rests_on.and_then(|parent| {
                let at = self.history.iter().position(|other| other.id == revision.id)?;
                self.history[..at].iter().rfind(|older| older.id.as_str() == parent)
            });
        }
        Ok(count)
    }

    /// Keeps both sides of a difference. That this fails must not hide the difference itself.
    fn quarantine(&self, recorded: &RevisionWriter, found: &Difference<'_>) {
        let job = self.job.name();
        let offset = found.offset;
        let stored = recorded.read_back(offset / CHUNK_SIZE).unwrap_or_else(|error| {
            tracing::warn!(%job, offset, error = crate::error::in_full(&error), "chunk-unreadable");
            None
        });
        let problem = match found.is_hole {
            true => "the new revision has a hole where the source has data",
            false => "the source has other bytes than when it was first read",
        };
        let (revision, source) = (recorded.id(), Some(found.source));
        let difference = damage::Difference { revision, offset, source, stored: stored.as_deref(), problem };
        match damage::quarantine(self.job, &difference, (self.request.clock)()) {
            Ok(report) => tracing::error!(%job, offset, report = %report.display(), "files-not-equal"),
            Err(error) => {
                tracing::error!(%job, offset, error = crate::error::in_full(&error), "quarantine-failed")
            }
        }
    }

    /// Makes the revision exist. `bytes_written` of its stats are the bytes that were read from the source as
    /// data: holes, and what an RBD diff leaves out, do not count; the second reading does not either.
    fn commit(
        &self,
        writer: RevisionWriter,
        started: Timestamp,
        copied: CopyStats,
        mut facts: BTreeMap<String, serde_json::Value>,
    ) -> Result<(Revision, WriteStats)> {
        let sums = writer.stats();
        facts.extend([
            ("hole_bytes".to_owned(), sums.hole_bytes.into()),
            ("unchanged_bytes".to_owned(), sums.unchanged_bytes.into()),
            ("known_bytes".to_owned(), sums.known_bytes.into()),
            ("new_bytes".to_owned(), sums.new_bytes.into()),
            ("changed_bytes".to_owned(), sums.changed_bytes.into()),
        ]);
        let duration_secs = (self.request.clock)().secs_since(started).max(0.0);
        let stats = Stats {
            bytes_written: copied.bytes_read,
            duration_secs: Some(duration_secs),
            ..Stats::default()
        };
        let revision = writer.finish(self.guard, stats, facts)?;
        tracing::info!(job = %self.job.name(), revision = %revision.id, duration_secs, "backup-committed");
        // The end of a run writes as well: lists, and runs that are moved.
        let stored_bytes = revision.stored_bytes.unwrap_or(sums.stored_bytes);
        Ok((revision, WriteStats { stored_bytes, ..sums }))
    }

    /// Verifies the newest distrusted revision: this backup may have written anew what it lacked. The new
    /// revision is committed already, so nothing that happens here makes the run fail.
    fn reverify(&self) -> Option<(RevisionId, bool)> {
        let job = self.job.name();
        let verified = self.job.revisions().and_then(|listing| {
            let Some(doubtful) = listing.revisions.iter().rfind(is_distrusted) else {
                return Ok(None);
            };
            tracing::warn!(%job, revision = %doubtful.id, "inconsistent");
            let doubtful = std::slice::from_ref(doubtful);
            let now = (self.request.clock)();
            let report = verify::verify(self.job, doubtful, self.request.threads, now, self.monitor)?;
            Ok(Some((doubtful[0].id.clone(), report.bad.is_empty() && report.good.contains(&doubtful[0].id))))
        });
        verified.unwrap_or_else(|error| {
            tracing::warn!(%job, error = crate::error::in_full(&error), "verify-failed");
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use backy_store::BackendType;

    use super::*;
    use crate::policy::testing;

    fn revision(number: u128, change: impl FnOnce(&mut Revision)) -> Revision {
        let mut revision = testing::revision(number, number as i64, "");
        change(&mut revision);
        revision
    }

    #[test]
    fn a_source_is_compared_with_the_last_one_that_was_right() {
        let suspect = |revision: &mut Revision| {
            suspicion::record(&mut revision.source, &["it is empty".to_owned()], None);
        };
        let history = [
            revision(1, |_| ()),
            revision(2, |revision| revision.trust = Trust::Distrusted),
            revision(3, suspect),
            revision(4, |revision| revision.server = "backup2".to_owned()),
            revision(5, |revision| revision.stats.duration_secs = None),
        ];
        assert_eq!(choose_reference(&history), Some(&history[1]));
        assert_eq!(choose_reference(&history[2..]), None);
        assert_eq!(choose_base(&history), Some(&history[2]), "as a base it is as good as any");
    }

    #[test]
    fn the_base_is_the_newest_that_can_be_relied_on() {
        let good = revision(1, |_| ());
        let better = revision(2, |revision| revision.trust = Trust::Verified);
        let unfit: [fn(&mut Revision); 4] = [
            |revision| revision.trust = Trust::Distrusted,
            |revision| revision.stats.duration_secs = None,
            |revision| revision.server = "backup2".to_owned(),
            |revision| revision.backend_type = BackendType::Chunked,
        ];
        let mut history = vec![good, better.clone()];
        history.extend(unfit.into_iter().enumerate().map(|(n, change)| revision(10 + n as u128, change)));
        assert_eq!(choose_base(&history), Some(&better));
        assert_eq!(choose_base(&history[2..]), None);
        assert_eq!(choose_base(&[]), None);
        let distrusted: Vec<&Revision> = history.iter().filter(is_distrusted).collect();
        assert_eq!(distrusted, [&history[2]]);
    }
}
