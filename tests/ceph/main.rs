//! The program on a real Ceph cluster. `scripts/test ceph` starts one on loopback and names its configuration in
//! `BACKY_TEST_CEPH`; without that variable every test here ends at once and says so.
//!
//! What is right is never computed here: after each backup the snapshot is read with `rbd export`, and every revision
//! must restore to these bytes.

#![allow(clippy::unwrap_used, reason = "a test may fail")]
#![expect(clippy::print_stdout, reason = "tests tell what they skip")]
#![expect(clippy::disallowed_methods, reason = "tests handle files as anybody would")]

mod around;
mod bad;
mod changes;
mod cluster;
mod crash;
mod killed;
mod restore;
mod scene;
mod service;
mod snapshots;

use cluster::Cluster;

/// Returns the cluster, or ends the test.
#[macro_export]
macro_rules! cluster {
    () => {
        match $crate::find_cluster() {
            Some(cluster) => cluster,
            None => return,
        }
    };
}

fn find_cluster() -> Option<Cluster> {
    let conf = std::env::var_os("BACKY_TEST_CEPH");
    if conf.is_none() {
        println!("skipped: BACKY_TEST_CEPH names no cluster; run scripts/test ceph");
    }
    conf.map(|conf| Cluster { conf: conf.into() })
}
