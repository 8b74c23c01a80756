//! The source `ceph-rbd`: an RBD image, by snapshots of its own.
//!
//! Each backup makes one snapshot, `backy-<revision>`. It stays as long as its revision is the newest that can be
//! relied on, because the next backup asks Ceph for what changed since then. Whoever runs a backup notes a
//! snapshot's name before it is made (`store/src/repository/snapshots.rs`), so that only names of this job are ever removed,
//! and all of them are, however a run ended.
//!
//! Snapshots are handled with the `rbd` program (`tool`). Data come through librbd where it can be loaded
//! (`library`): it lists changes and reads from many threads, and reads single places for verification. Where it
//! cannot, the stream of `rbd export-diff` is taken (`stream`), and there is no second reading.

mod command;
mod copying;
pub mod diff;
mod error;
mod examine;
mod hooks;
pub mod leftovers;
mod library;
mod patience;
mod snapshot;
mod stream;
mod target;
mod tool;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::time::Duration;

use backy_librbd::{Access, Cluster};
use backy_store::{Monitor, RevisionId, Silent};

pub use self::error::RbdError;
pub use self::examine::{examine, user_of};
use self::hooks::Hooks;
pub use self::patience::Patience;
use self::snapshot::RbdSnapshot;
pub use self::target::{RbdTarget, open_target};
use self::tool::{RbdTool, SnapshotInfo};
use super::consul::Consul;
use super::{RbdConfig, ReadWith, Snapshot, Snapshots, Source};
use crate::error::{Error, Result};

/// What the names of our snapshots begin with; a revision's id follows.
pub(crate) const SNAPSHOT_PREFIX: &str = "backy-";
/// How long Ceph may do nothing when snapshots are removed, at most.
const RELEASE_LIMIT_MAX: Duration = Duration::from_secs(60);
/// Consul where nothing says otherwise.
const CONSUL_ADDRESS: &str = "127.0.0.1:8500";

/// What the environment says about Ceph and Consul. The library reads no environment: the command line does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// The `rbd` program (`BACKY_RBD`); nothing means `rbd` in the usual places.
    pub rbd: Option<OsString>,
    /// `CEPH_ARGS`. Programs and libraries read it as well; what they do not is taken from here.
    pub ceph_args: Option<String>,
    /// The name of the cluster (`CEPH_CLUSTER`).
    pub cluster: Option<String>,
    /// Where Consul is (`CONSUL_HTTP_ADDR`).
    pub consul: Option<String>,
    /// How long to wait for what was asked for there. No variable says so: only tests wait less.
    pub patience: Patience,
}

impl Environment {
    fn rbd(&self) -> OsString {
        self.rbd.clone().unwrap_or_else(|| "rbd".into())
    }

    /// How to reach the cluster: first what the job says, then the environment.
    fn access(&self, config: &RbdConfig) -> Access {
        Access { conf: config.conf.clone(), user: config.user.clone(), cluster: self.cluster.clone() }
    }
}

/// Returns the name of a revision's snapshot.
pub fn snapshot_name(id: &RevisionId) -> String {
    format!("{SNAPSHOT_PREFIX}{id}")
}

/// An RBD image that may or may not be there.
pub(super) struct RbdSource {
    config: RbdConfig,
    access: Access,
    tool: RbdTool,
    consul: Option<Consul>,
    patience: Patience,
}

impl RbdSource {
    pub(super) fn new(config: &RbdConfig, environment: &Environment) -> Self {
        let given = environment.access(config);
        let limit = Duration::from_secs(config.timeout_secs);
        let tool = RbdTool::new(environment.rbd(), &given, limit, &config.pool, &config.image);
        // The programs read these for themselves, but the libraries do not.
        let access = given.or_arguments(environment.ceph_args.as_deref().unwrap_or_default());
        let consul = config.vm.as_ref().filter(|_| config.asks_consul()).map(|_| {
            let address = config.consul.as_deref().or(environment.consul.as_deref());
            Consul::new(address.unwrap_or(CONSUL_ADDRESS), config.consul_acl_token.clone())
        });
        Self { config: config.clone(), access, tool, consul, patience: environment.patience }
    }

    fn hooks(&self) -> Hooks {
        Hooks {
            pre: self.config.pre_snapshot.clone(),
            post: self.config.post_snapshot.clone(),
            limit: Duration::from_secs(self.config.hook_timeout_secs),
        }
    }

    /// Makes the snapshot, through Consul if the job says so and it answers.
    fn make_snapshot(&self, name: &str, monitor: &dyn Monitor) -> Result<()> {
        let (Some(consul), Some(vm)) = (&self.consul, &self.config.vm) else {
            return self.tool.create_snapshot(name, monitor);
        };
        let asked = consul.request(vm, name);
        let came = match &asked {
            Ok(()) => self.wait_for(name, monitor),
            Err(error) => {
                let error = super::causes(error);
                tracing::warn!(image = %self.describe(), %error, "consul-unusable");
                Ok(false)
            }
        };
        // Whatever came of it, the request must not bring a snapshot that nobody waits for.
        if let Err(error) = consul.withdraw(vm) {
            let error = super::causes(&error);
            tracing::warn!(image = %self.describe(), %error, "consul-request-not-removed");
        }
        if came? {
            return Ok(());
        }
        tracing::warn!(image = %self.describe(), snapshot = name, "consul-snapshot-by-ourselves");
        self.tool.create_snapshot(name, monitor)
    }

    /// Waits until the snapshot is there; `false` when it did not come in time.
    fn wait_for(&self, name: &str, monitor: &dyn Monitor) -> Result<bool> {
        let is_own = |snapshot: &SnapshotInfo| snapshot.name == name;
        self.patience.wait(monitor, || Ok(self.tool.snapshots(monitor)?.iter().any(is_own)))
    }

    /// Opens the snapshot with librbd where that is wanted and possible.
    fn open_with_library(&self, name: &str) -> Result<Option<backy_librbd::Image>> {
        if self.config.read_with == ReadWith::Rbd {
            return Ok(None);
        }
        let must = self.config.read_with == ReadWith::Librbd;
        if let Err(error) = backy_librbd::available()
            && !must
        {
            tracing::info!(image = %self.describe(), error = %super::causes(&error), "librbd-unavailable");
            return Ok(None);
        }
        let limit = Duration::from_secs(self.config.timeout_secs);
        let opened = Cluster::connect(&self.access, limit)
            .and_then(|cluster| cluster.open(&self.config.pool, &self.config.image, Some(name)));
        match opened {
            Ok(image) => Ok(Some(image)),
            Err(source) if must => {
                Err(RbdError::Library { doing: "open", image: self.tool.spec(Some(name)), source }.into())
            }
            // The program has just read from this cluster: the way round the library is open.
            Err(error) => {
                tracing::warn!(image = %self.describe(), error = %super::causes(&error), "librbd-unusable");
                Ok(None)
            }
        }
    }
}

impl Source for RbdSource {
    fn describe(&self) -> String {
        self.tool.spec(None)
    }

    fn makes_snapshots(&self) -> bool {
        true
    }

    fn check_ready(&self, monitor: &dyn Monitor) -> Result<()> {
        self.tool.info(None, monitor).map(drop)
    }

    fn snapshot(&mut self, id: &RevisionId, monitor: &dyn Monitor) -> Result<Box<dyn Snapshot>> {
        let name = snapshot_name(id);
        let spec = self.describe();
        self.hooks().around(&spec, monitor, || self.make_snapshot(&name, monitor))?;
        let info = self.tool.info(Some(&name), monitor)?;
        let snapshots = self.tool.snapshots(monitor)?;
        let Some(own) = snapshots.iter().find(|snapshot| snapshot.name == name) else {
            return Err(RbdError::SnapshotGone { snapshot: self.tool.spec(Some(&name)) }.into());
        };
        let own_id = own.id;
        let library = self.open_with_library(&name)?;
        Ok(Box::new(RbdSnapshot {
            source_type: self.config.source_type.clone(),
            full_always: self.config.full_always,
            tool: self.tool.clone(),
            name,
            id: own_id,
            info,
            snapshots,
            library,
        }))
    }

    /// Removes the snapshots of `own` but that of `keep`. One that cannot be removed does not keep the others.
    fn release(&mut self, own: &BTreeSet<RevisionId>, keep: Option<&RevisionId>) -> Result<Snapshots> {
        let keep = keep.filter(|_| !self.config.full_always);
        let mut found = Snapshots::default();
        // Nobody can stop this part: it must not take long if the cluster hangs.
        let tool = self.tool.with_limit(RELEASE_LIMIT_MAX);
        let snapshots = match tool.snapshots(&Silent) {
            Err(Error::Rbd(RbdError::Missing { .. })) if is_gone(&tool)? => {
                tracing::warn!(image = %self.describe(), "image-gone");
                return Ok(Snapshots { is_source_gone: true, ..found });
            }
            other => other?,
        };
        for id in own {
            let name = snapshot_name(id);
            let Some(snapshot) = snapshots.iter().find(|snapshot| snapshot.name == name) else { continue };
            if keep == Some(id) {
                found.left.insert(id.clone());
                continue;
            }
            match tool.remove_snapshot(snapshot, &Silent) {
                Ok(()) => {
                    tracing::info!(image = %self.describe(), snapshot = %name, "snapshot-removed");
                    found.removed.insert(id.clone());
                }
                Err(error) => {
                    tracing::warn!(image = %self.describe(), snapshot = %name, error = crate::error::in_full(&error), "snapshot-not-removed");
                    found.left.insert(id.clone());
                    // A cluster that does not answer will not answer for the next one.
                    if matches!(error, Error::Rbd(RbdError::TimeOut { .. })) {
                        return Err(error);
                    }
                }
            }
        }
        Ok(found)
    }
}

/// Whether the image is not in its pool. A pool that is missing itself is an error: it may be the wrong cluster.
fn is_gone(tool: &RbdTool) -> Result<bool> {
    Ok(!tool.images(&Silent)?.contains(&tool.image))
}
