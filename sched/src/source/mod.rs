//! Where images come from. A source takes a snapshot, says what differs from an older one, and reads; it
//! knows nothing of hashes, maps or what the store keeps.
//!
//! Its bytes go into an [`ImageSink`], which is the store's `RevisionWriter`; every source goes through it,
//! so there is one path from bytes to chunks. The unit on that path is the whole chunk of 4 MiB (the last
//! one shorter), for that is what can be hashed: a source that knows finer changes reads the rest of the
//! chunk, too.
//!
//! A new kind of source is one file here, a variant of [`SourceConfig`], an arm in [`open`] and its keys in
//! `config`.

mod consul;
pub mod content;
mod device;
mod extents;
pub mod file;
pub mod rbd;
pub mod shape;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use backy_store::{ChunkCheck, ChunkWriter, Monitor, Put, Revision, RevisionId, RevisionWriter};

use self::shape::Identity;
use crate::error::Result;

/// What a job's configuration says about its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceConfig {
    /// An image file or a block device.
    File(FileConfig),
    /// An RBD image, with or without a snapshot asked for through Consul.
    Rbd(Box<RbdConfig>),
}

/// Settings of the type `file`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileConfig {
    /// The image file or block device.
    pub filename: PathBuf,
    /// A setting of the original, kept and without effect.
    pub cow: Option<bool>,
    /// A setting of the original, kept and without effect.
    pub backend: Option<String>,
}

/// Settings of the types `ceph`, `ceph-rbd`, `rbd` and `flyingcircus`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RbdConfig {
    /// The type as it is written in the configuration.
    pub source_type: String,
    /// The pool, with its namespace after a slash if it has one.
    pub pool: String,
    /// The image in it.
    pub image: String,
    /// Whether every backup reads the whole image.
    pub full_always: bool,
    /// The virtual machine that Consul knows.
    pub vm: Option<String>,
    /// The key to Consul.
    pub consul_acl_token: Option<Secret>,
    /// Where Consul is.
    pub consul: Option<String>,
    /// The user at the cluster, without `client.`.
    pub user: Option<String>,
    /// The cluster's configuration file.
    pub conf: Option<PathBuf>,
    /// How data are read.
    pub read_with: ReadWith,
    /// How long Ceph may not answer.
    pub timeout_secs: u64,
    /// A shell command before the snapshot.
    pub pre_snapshot: Option<String>,
    /// A shell command after it, run in any case.
    pub post_snapshot: Option<String>,
    /// How long each of both may take.
    pub hook_timeout_secs: u64,
    /// A setting of the original, kept and without effect.
    pub backend: Option<String>,
}

impl Default for RbdConfig {
    fn default() -> Self {
        Self {
            source_type: "rbd".to_owned(),
            pool: String::new(),
            image: String::new(),
            full_always: false,
            vm: None,
            consul_acl_token: None,
            consul: None,
            user: None,
            conf: None,
            read_with: ReadWith::Auto,
            timeout_secs: Self::TIMEOUT_SECS,
            pre_snapshot: None,
            post_snapshot: None,
            hook_timeout_secs: Self::HOOK_TIMEOUT_SECS,
            backend: None,
        }
    }
}

impl RbdConfig {
    /// Where nothing else is said.
    pub const TIMEOUT_SECS: u64 = 300;
    /// Where nothing else is said: a frozen file system is felt at once.
    pub const HOOK_TIMEOUT_SECS: u64 = 30;

    /// Whether snapshots are asked for through Consul.
    pub fn asks_consul(&self) -> bool {
        self.vm.is_some() && (self.source_type == "flyingcircus" || self.consul_acl_token.is_some())
    }
}

/// How the data of an RBD image are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadWith {
    /// With librbd where it can be loaded, otherwise with the `rbd` program.
    #[default]
    Auto,
    /// With librbd or not at all.
    Librbd,
    /// With the `rbd` program.
    Rbd,
}

impl ReadWith {
    pub(crate) const ALL: [Self; 3] = [Self::Auto, Self::Librbd, Self::Rbd];

    /// Returns the word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Librbd => "librbd",
            Self::Rbd => "rbd",
        }
    }
}

/// A text that must not show up in logs and messages.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the text.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// Returns the text, for whoever must show it to a server.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Secret(..)")
    }
}

impl SourceConfig {
    /// Returns the type as it is written in the configuration.
    pub fn source_type(&self) -> &str {
        match self {
            Self::File(_) => "file",
            Self::Rbd(rbd) => &rbd.source_type,
        }
    }
}

/// A disk that can be backed up again and again.
pub trait Source: Send {
    /// Returns the source's name for people: its path, or pool and image.
    fn describe(&self) -> String;

    /// Whether it makes snapshots, which have to be noted before and released after.
    fn makes_snapshots(&self) -> bool {
        false
    }

    /// Fails when the source is away, before anything is done to it.
    fn check_ready(&self, _monitor: &dyn Monitor) -> Result<()> {
        Ok(())
    }

    /// Fixes the source's state under the id of the revision that is to be made of it.
    fn snapshot(&mut self, id: &RevisionId, monitor: &dyn Monitor) -> Result<Box<dyn Snapshot>>;

    /// Drops the snapshots of the revisions `own` but that of `keep`.
    fn release(&mut self, _own: &BTreeSet<RevisionId>, _keep: Option<&RevisionId>) -> Result<Snapshots> {
        Ok(Snapshots::default())
    }
}

/// What became of a job's snapshots, by their revisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshots {
    /// Those that were removed.
    pub removed: BTreeSet<RevisionId>,
    /// Those that are there: kept, or not to be removed.
    pub left: BTreeSet<RevisionId>,
    /// Whether the source itself is not there any more, so that none can be.
    pub is_source_gone: bool,
}

/// One state of a disk. Reads the same bytes however often it is read, or notices in `check_unchanged`.
pub trait Snapshot: Sync {
    /// Size of the image.
    fn size_bytes(&self) -> u64;

    /// Records in `to` every chunk that is not as in the revision `base`, whose map `to` starts from; all
    /// of them when the source cannot tell, or there is no base. Reads with up to `threads` threads and
    /// advances `monitor` by every byte of the image, read or not.
    fn copy_changes(
        &self,
        base: Option<&Revision>,
        to: &dyn ImageSink,
        threads: usize,
        monitor: &dyn Monitor,
    ) -> Result<CopyStats>;

    /// Whether [`Snapshot::read_at`] can be used.
    fn can_read_at(&self) -> bool {
        true
    }

    /// Fills `buf` from `offset`; all of it lies inside the image. Many threads may read at once.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Whether the source knows, without reading, that all these bytes are zero. `false` is always right.
    fn is_hole(&self, offset: u64, length: u64) -> Result<bool>;

    /// Returns facts for the manifest: `type`, name, size and times.
    fn facts(&self) -> BTreeMap<String, serde_json::Value>;

    /// Returns what tells this device from another one, as far as that is known without reading data.
    fn identity(&self) -> Identity;

    /// Fails when the source shows that it was changed since the snapshot was taken.
    fn check_unchanged(&self) -> Result<()>;
}

/// What copying took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyStats {
    /// Bytes read from the source, without those it knew to be holes.
    pub bytes_read: u64,
    /// How it was done.
    pub mode: CopyMode,
}

/// What a revision was made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyMode {
    /// All of the source, with nothing to start from.
    #[default]
    Full,
    /// All of the source; what agrees with the base was not stored again.
    Compared,
    /// What the source said has changed since the base.
    Incremental,
}

impl CopyMode {
    /// Returns the word in manifests and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Compared => "compared",
            Self::Incremental => "incremental",
        }
    }
}

/// Where chunks are recorded, and what was recorded can be compared. The store's `RevisionWriter`, or a
/// test's.
pub trait ImageSink: Sync {
    /// Size of the image.
    fn size_bytes(&self) -> u64;

    /// Returns a putter for the calling thread.
    fn chunk_putter(&self) -> Result<Box<dyn ChunkPutter + '_>>;

    /// A comparison with what is recorded at place `number`.
    fn check(&self, number: u64) -> Result<ChunkCheck>;

    /// Records the chunk in which the smaller of base and new image ends, if they differ: call it before the first
    /// [`ChunkPutter::put_changed`].
    fn carry_end(&self) -> Result<()>;
}

/// Records chunks from one thread.
pub trait ChunkPutter {
    /// Records the whole chunk at place `number` (counted from 0).
    fn put(&mut self, number: u64, data: &[u8]) -> Result<Put>;

    /// Records that the whole chunk at place `number` is zero.
    fn hole(&mut self, number: u64) -> Result<Put>;

    /// Records a chunk that differs from what is recorded at place `number` (the base's, where nothing was put yet) only in
    /// these parts, whose bytes are in `data`. What else is in `data` does not count, and some of it is overwritten.
    fn put_changed(&mut self, number: u64, data: &mut [u8], changed: &[Range<usize>]) -> Result<Put>;

    /// Keeps what the base has at place `number`, which was compared and agrees; `false` when it must be put after all.
    fn keep(&mut self, number: u64) -> Result<bool>;
}

impl ImageSink for RevisionWriter {
    fn size_bytes(&self) -> u64 {
        self.size_bytes()
    }

    fn chunk_putter(&self) -> Result<Box<dyn ChunkPutter + '_>> {
        Ok(Box::new(self.chunk_writer()?))
    }

    fn check(&self, number: u64) -> Result<ChunkCheck> {
        Ok(self.check(number)?)
    }

    fn carry_end(&self) -> Result<()> {
        Ok(self.carry_end()?)
    }
}

impl ChunkPutter for ChunkWriter<'_> {
    fn put(&mut self, number: u64, data: &[u8]) -> Result<Put> {
        Ok(self.put(number, data)?)
    }

    fn hole(&mut self, number: u64) -> Result<Put> {
        Ok(self.hole(number)?)
    }

    fn put_changed(&mut self, number: u64, data: &mut [u8], changed: &[Range<usize>]) -> Result<Put> {
        Ok(self.put_changed(number, data, changed)?)
    }

    fn keep(&mut self, number: u64) -> Result<bool> {
        Ok(self.keep(number)?)
    }
}

/// Makes a source of its configuration. Nothing is opened before its first snapshot.
pub fn open(config: &SourceConfig, environment: &rbd::Environment) -> Box<dyn Source> {
    match config {
        SourceConfig::File(file) => Box::new(file::FileSource::new(file.filename.clone())),
        SourceConfig::Rbd(rbd) => Box::new(rbd::RbdSource::new(rbd, environment)),
    }
}

/// Returns an error and its causes on one line, for the log.
fn causes(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_show() {
        let token = Some(Secret::new("5b1c2d3e".to_owned()));
        let rbd = RbdConfig { consul_acl_token: token, ..RbdConfig::default() };
        assert!(!format!("{:?}", SourceConfig::Rbd(Box::new(rbd))).contains("5b1c"));
    }
}
