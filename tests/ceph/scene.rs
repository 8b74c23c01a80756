//! A store with a job of an RBD image, and what its revisions must restore to.

use std::collections::BTreeMap;
use std::fs;

use backy_sched::JobConfig;
use backy_sched::backup::{self, BackupReport, BackupRequest};
use backy_sched::source::rbd::Environment;
use backy_store::{Repository, Silent, Tag, Timestamp};
use backy_testkit::{Image, Run, World};
use serde_json::Value;

use crate::cluster::{Cluster, Disk, POOL};

/// Both ways of reading; every test of contents runs with each.
pub(crate) const WAYS: [&str; 2] = ["librbd", "rbd"];

pub(crate) struct Scene {
    pub(crate) world: World,
    pub(crate) expected: BTreeMap<String, Vec<u8>>,
}

impl Scene {
    /// A job of the image with more lines for its source.
    pub(crate) fn new(disk: &Disk, source: &str) -> Self {
        let mut world = World::new(env!("CARGO_BIN_EXE_backy"));
        world.set("CEPH_CONF", &disk.cluster.conf.to_string_lossy());
        let scene = Self { world, expected: BTreeMap::new() };
        scene.configure(&disk.name, source);
        scene
    }

    pub(crate) fn of(cluster: &Cluster, size: u64, way: &str) -> (Disk, Self) {
        let disk = cluster.image(size, &[]);
        let scene = Self::new(&disk, &format!("read-with: {way}"));
        (disk, scene)
    }

    /// Replaces the job's configuration; `source` has lines of `key: value`.
    pub(crate) fn configure(&self, image: &str, source: &str) {
        let kind = if source.contains("vm:") { "flyingcircus" } else { "ceph-rbd" };
        let mut text = format!("source:\n  type: {kind}\n  pool: {POOL}\n  image: {image}\n");
        for line in source.lines() {
            text.push_str(&format!("  {line}\n"));
        }
        text.push_str("schedule:\n  daily: {interval: 1d, keep: 7}\n");
        self.world.configure(backy_testkit::JOB, &text);
    }

    /// Backs up and notes what the snapshot holds, which must be the only one of ours. Returns the revision's id.
    #[track_caller]
    pub(crate) fn backup(&mut self, disk: &Disk) -> String {
        let id = self.world.ok(&["backup", "daily"]).line();
        let snapshot = format!("backy-{id}");
        let ours: Vec<String> = disk
            .snapshots()
            .into_iter()
            .filter(|name| name.starts_with("backy-") && name.len() == 28)
            .collect();
        assert_eq!(ours, std::slice::from_ref(&snapshot), "the snapshots after a backup");
        self.expected.insert(id.clone(), disk.export(&snapshot));
        id
    }

    /// Backs up in the given mode.
    #[track_caller]
    pub(crate) fn backup_in(&mut self, disk: &Disk, mode: &str) -> String {
        let id = self.backup(disk);
        assert_eq!(self.revision(&id)["mode"], mode);
        id
    }

    /// Backs up with the libraries alone. `conf` of the source must say where the cluster is.
    pub(crate) fn backup_in_process(&self, environment: Environment) -> BackupReport {
        let job = Repository::discover(&self.world.job()).unwrap().into_job().unwrap();
        let config = JobConfig::load(&job.config_path()).unwrap();
        let tags = Tag::parse_list("daily").unwrap();
        let request = BackupRequest {
            tags,
            force_tags: false,
            accept_change: false,
            threads: 2,
            clock: Timestamp::now,
            environment,
        };
        backup::run(&job, &config, &request, &Silent).unwrap()
    }

    /// Runs a backup that must fail: with an error that says `part`, without a revision, and with tidy snapshots.
    #[track_caller]
    pub(crate) fn must_fail(&self, disk: Option<&Disk>, part: &str) -> Run {
        let before = self.world.ids();
        let snapshots = disk.map(Disk::snapshots);
        let run = self.world.run(&["backup", "daily"]).expect(1).says(part);
        assert_eq!(self.world.ids(), before, "a failed backup left a revision");
        if let (Some(disk), Some(before)) = (disk, snapshots) {
            let left: Vec<String> =
                disk.snapshots().into_iter().filter(|name| !before.contains(name)).collect();
            assert!(left.is_empty(), "a failed backup left {left:?}\n{run}");
        }
        run
    }

    /// What `status --json` says of a revision.
    pub(crate) fn revision(&self, id: &str) -> Value {
        self.world.ok(&["status", "--json", "-r", id]).json()["revisions"][0].clone()
    }

    /// Every revision restores to what its snapshot held.
    #[track_caller]
    pub(crate) fn must_restore_all(&self) {
        for (id, expected) in &self.expected {
            self.world.must_restore(id, &Image(expected.clone()), "at the end");
        }
        self.world.ok(&["verify", "-r", "all"]);
    }

    /// A program in the place of `rbd`: a shell script with `$RBD` as the real one.
    pub(crate) fn replace_rbd(&mut self, script: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.world.path("fake-rbd");
        fs::write(&path, format!("#!/bin/sh\nRBD=rbd\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self.world.set("BACKY_RBD", &path.to_string_lossy());
    }

    /// The real one again.
    pub(crate) fn restore_rbd(&mut self) {
        self.world.set("BACKY_RBD", "");
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.world.job().join("backy.log")).unwrap()
    }
}
