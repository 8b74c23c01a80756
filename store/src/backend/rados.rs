//! Objects in a RADOS pool, later an implementation of [`super::Backend`]; today the connection and what a cluster says
//! of itself. Only with the cargo feature `rados`, which links librados. Owner of the crate `ceph`.
//!
//! A backend here must pass the tests of `contract.rs`. What that takes: `put` that never shows half an object (one full
//! write is atomic), a barrier that waits for all completions, and `open` that survives a deletion. A chunk has 4 MiB at
//! most and can be read when it is opened, but a group may have more than 64 MiB. The shard locks stay local files, as the
//! sessions are.

use std::path::Path;

use ceph::ceph::connect_to_ceph;

use crate::error::{Error, Result};

/// What a cluster says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterFacts {
    /// Its id.
    pub fsid: String,
    /// Bytes that it can hold.
    pub size_bytes: u64,
    /// Of them, in use.
    pub used_bytes: u64,
}

/// Connects as `client.<user>` with the cluster's configuration file and asks. The calls have no time limit of their own:
/// ask only a cluster that is known to answer.
pub fn cluster_facts(user: &str, conf: &Path) -> Result<ClusterFacts> {
    let failed = |doing: &'static str, error: ceph::error::RadosError| {
        Error::io(doing, conf.display().to_string(), std::io::Error::other(error.to_string()))
    };
    let path = conf.to_string_lossy();
    let cluster = connect_to_ceph(user, &path).map_err(|error| failed("connect to the cluster of", error))?;
    let fsid = cluster.rados_fsid().map_err(|error| failed("ask for the id of the cluster of", error))?;
    let space =
        cluster.rados_stat_cluster().map_err(|error| failed("ask for the size of the cluster of", error))?;
    Ok(ClusterFacts {
        fsid: fsid.to_string(),
        size_bytes: space.kb.saturating_mul(1024),
        used_bytes: space.kb_used.saturating_mul(1024),
    })
}
