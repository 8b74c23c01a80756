//! One snapshot of an RBD image: how it is copied, read again and described.
//!
//! What is changed is known only against the snapshot of the base, and only if that is the very one the base was
//! made of: the same image (a new one of the same name has another id), the same snapshot (one made again by hand has
//! another number). Otherwise all that holds data is read once and compared with the base's map chunk by chunk.

use std::collections::BTreeMap;

use backy_store::{Monitor, Revision, Silent};

use super::error::RbdError;
use super::snapshot_name;
use super::tool::{ImageInfo, RbdTool, SnapshotInfo};
use crate::error::{Error, Result};
use crate::source::shape::Identity;
use crate::source::{CopyMode, CopyStats, ImageSink, Snapshot};

/// Above this size listing the changes of every object takes longer than reading some objects whole. Only for the
/// program: librbd lists objects first and then looks into the changed ones.
const WHOLE_OBJECTS_FROM_BYTES: u64 = 256 << 30;

/// A snapshot that exists until it is released.
pub(super) struct RbdSnapshot {
    pub(super) source_type: String,
    pub(super) full_always: bool,
    pub(super) tool: RbdTool,
    pub(super) name: String,
    pub(super) id: u64,
    pub(super) info: ImageInfo,
    /// All snapshots of the image when this one was made.
    pub(super) snapshots: Vec<SnapshotInfo>,
    pub(super) library: Option<backy_librbd::Image>,
}

/// How to copy, and why so.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    mode: CopyMode,
    /// The snapshot to start from; only for `Incremental`.
    from: Option<String>,
    reason: &'static str,
}

impl RbdSnapshot {
    pub(super) fn spec(&self) -> String {
        self.tool.spec(Some(&self.name))
    }

    fn plan(&self, base: Option<&Revision>) -> Plan {
        let plan = |mode, reason| Plan { mode, from: None, reason };
        let Some(base) = base else { return plan(CopyMode::Full, "there is no revision to start from") };
        if self.full_always {
            return plan(CopyMode::Full, "the job says full-always");
        }
        let name = snapshot_name(&base.id);
        let Some(from) = self.snapshots.iter().find(|snapshot| snapshot.name == name) else {
            return plan(CopyMode::Compared, "the snapshot of the revision before is gone");
        };
        // Revisions of the original have neither fact.
        let differs = |key: &str, now: Option<serde_json::Value>| matches!((base.source.get(key), now), (Some(then), Some(now)) if *then != now);
        if differs("image_id", self.info.id.clone().map(Into::into)) {
            return plan(CopyMode::Compared, "the image was made anew");
        }
        if differs("snapshot_id", Some(from.id.into())) {
            return plan(CopyMode::Compared, "the snapshot of the revision before was made anew");
        }
        Plan { mode: CopyMode::Incremental, from: Some(name), reason: "what changed is known" }
    }

    fn copy(
        &self,
        plan: &Plan,
        to: &dyn ImageSink,
        threads: usize,
        monitor: &dyn Monitor,
    ) -> Result<CopyStats> {
        tracing::info!(
            snapshot = %self.spec(), mode = plan.mode.as_str(), reason = plan.reason, way = self.way(), "diff"
        );
        if plan.mode == CopyMode::Incremental {
            to.carry_end()?;
        }
        let from = plan.from.as_deref();
        let bytes_read = match &self.library {
            Some(image) => super::library::copy(self, image, from, to, threads, monitor)?,
            None => {
                let is_large = self.info.size_bytes >= WHOLE_OBJECTS_FROM_BYTES;
                let whole = is_large && self.info.has_fast_diff && self.tool.knows_whole_objects(monitor);
                super::stream::copy(self, from, whole, to, threads, monitor)?
            }
        };
        Ok(CopyStats { bytes_read, mode: plan.mode })
    }

    fn way(&self) -> &'static str {
        if self.library.is_some() { "librbd" } else { "rbd" }
    }
}

impl Snapshot for RbdSnapshot {
    fn size_bytes(&self) -> u64 {
        self.info.size_bytes
    }

    fn copy_changes(
        &self,
        base: Option<&Revision>,
        to: &dyn ImageSink,
        threads: usize,
        monitor: &dyn Monitor,
    ) -> Result<CopyStats> {
        let plan = self.plan(base);
        match self.copy(&plan, to, threads, monitor) {
            // The base lacks what was to complete a chunk. It is distrusted now; the source has all of it.
            Err(Error::Store(error)) if plan.mode == CopyMode::Incremental && error.is_damage() => {
                tracing::warn!(snapshot = %self.spec(), error = crate::error::in_full(&error), "base-chunk-damaged");
                let reason = "a chunk of the revision before is damaged";
                self.copy(&Plan { mode: CopyMode::Compared, from: None, reason }, to, threads, monitor)
            }
            other => other,
        }
    }

    fn can_read_at(&self) -> bool {
        self.library.is_some()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let Some(image) = &self.library else {
            return Err(Error::SourceUnreadable { name: self.spec() });
        };
        image
            .read_at(offset, buf)
            .map_err(|source| RbdError::Library { doing: "read", image: self.spec(), source }.into())
    }

    /// Never known without asking: reading zeros that are not there costs one answer.
    fn is_hole(&self, _offset: u64, _length: u64) -> Result<bool> {
        Ok(false)
    }

    fn facts(&self) -> BTreeMap<String, serde_json::Value> {
        let mut facts = BTreeMap::from([
            ("type".to_owned(), self.source_type.clone().into()),
            ("pool".to_owned(), self.tool.pool.clone().into()),
            ("image".to_owned(), self.tool.image.clone().into()),
            ("snapshot".to_owned(), self.name.clone().into()),
            ("snapshot_id".to_owned(), self.id.into()),
            ("size".to_owned(), self.info.size_bytes.into()),
            ("read_with".to_owned(), self.way().into()),
        ]);
        facts.extend(self.info.id.clone().map(|id| ("image_id".to_owned(), id.into())));
        facts
    }

    fn identity(&self) -> Identity {
        let id = self.info.id.clone().map(|id| ("image-id".to_owned(), id));
        Identity { kind: "rbd".to_owned(), marks: id.into_iter().collect() }
    }

    /// A snapshot does not change; that it is still the same one shows that all was read from it.
    fn check_unchanged(&self) -> Result<()> {
        let gone = || Error::from(RbdError::SnapshotGone { snapshot: self.spec() });
        let snapshots = match self.tool.snapshots(&Silent) {
            Err(Error::Rbd(RbdError::Missing { .. })) => return Err(gone()),
            other => other?,
        };
        let is_own = |snapshot: &SnapshotInfo| snapshot.name == self.name && snapshot.id == self.id;
        if snapshots.iter().any(is_own) { Ok(()) } else { Err(gone()) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::policy::testing;

    fn snapshot(names: &[(&str, u64)]) -> RbdSnapshot {
        let one = |&(name, id): &(&str, u64)| SnapshotInfo { id, name: name.to_owned(), is_protected: false };
        let access = backy_librbd::Access::default();
        RbdSnapshot {
            source_type: "rbd".to_owned(),
            full_always: false,
            tool: RbdTool::new("rbd".into(), &access, Duration::from_secs(1), "p", "i"),
            name: "backy-new".to_owned(),
            id: 9,
            info: ImageInfo { size_bytes: 1, id: Some("abc".to_owned()), has_fast_diff: true },
            snapshots: names.iter().map(one).collect(),
            library: None,
        }
    }

    #[test]
    fn changes_are_asked_for_only_where_they_mean_something() {
        let mut base = testing::revision(1, 1, "");
        let own = format!("backy-{}", base.id);
        let there = snapshot(&[(&own, 5)]);
        assert_eq!(there.plan(Some(&base)).from.as_deref(), Some(own.as_str()));
        base.source.insert("image_id".to_owned(), "abc".into());
        base.source.insert("snapshot_id".to_owned(), 5.into());
        assert_eq!(there.plan(Some(&base)).mode, CopyMode::Incremental);
        assert_eq!(there.plan(None).mode, CopyMode::Full);
        assert_eq!(snapshot(&[("backy-other", 5)]).plan(Some(&base)).mode, CopyMode::Compared);
        assert_eq!(snapshot(&[(&own, 6)]).plan(Some(&base)).mode, CopyMode::Compared);
        let always = RbdSnapshot { full_always: true, ..snapshot(&[(&own, 5)]) };
        assert_eq!(always.plan(Some(&base)).mode, CopyMode::Full);
        base.source.insert("image_id".to_owned(), "older".into());
        assert_eq!(there.plan(Some(&base)).mode, CopyMode::Compared);
    }
}
