//! A cluster and its images, handled with Ceph's own programs alone.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

/// The pool that `scripts/ceph-cluster` makes.
pub(crate) const POOL: &str = "rbd";

/// A running cluster.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) conf: PathBuf,
}

impl Cluster {
    /// Runs one of Ceph's programs with some input.
    pub(crate) fn run(&self, program: &str, words: &[&str], input: &[u8]) -> Output {
        let mut command = Command::new(program);
        command.arg("--conf").arg(&self.conf).args(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = backy_testkit::output_of(child);
        writer.join().unwrap();
        output
    }

    /// Runs `rbd`, which must succeed; returns its output.
    #[track_caller]
    pub(crate) fn rbd(&self, words: &[&str]) -> Vec<u8> {
        let output = self.run("rbd", words, b"");
        assert!(output.status.success(), "rbd {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// Makes an image of a name of its own.
    pub(crate) fn image(&self, size: u64, options: &[&str]) -> Disk {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("t{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let spec = format!("{POOL}/{name}");
        let size = format!("{size}B");
        self.rbd(&[&["create", "--size", &size][..], options, &[&spec]].concat());
        Disk { cluster: self.clone(), name }
    }
}

/// An image; removed with its snapshots when it is dropped.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) cluster: Cluster,
    pub(crate) name: String,
}

/// A change of an image.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Write(u64, Vec<u8>),
    /// Discards, so that it reads as zeros.
    Zero(u64, u64),
}

impl Disk {
    pub(crate) fn spec(&self) -> String {
        format!("{POOL}/{}", self.name)
    }

    pub(crate) fn at(&self, snapshot: &str) -> String {
        format!("{POOL}/{}@{snapshot}", self.name)
    }

    /// Gives the image a size and changes it.
    #[track_caller]
    pub(crate) fn change(&self, size: u64, changes: &[Change]) {
        let mut diff = b"rbd diff v1\ns".to_vec();
        diff.extend(size.to_le_bytes());
        for change in changes {
            match change {
                Change::Write(offset, data) => {
                    diff.push(b'w');
                    diff.extend(offset.to_le_bytes());
                    diff.extend((data.len() as u64).to_le_bytes());
                    diff.extend(data);
                }
                Change::Zero(offset, length) => {
                    diff.push(b'z');
                    diff.extend(offset.to_le_bytes());
                    diff.extend(length.to_le_bytes());
                }
            }
        }
        diff.push(b'e');
        let words = ["import-diff", "--no-progress", "-", &self.spec()];
        let output = self.cluster.run("rbd", &words, &diff);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// The names of the snapshots, sorted.
    pub(crate) fn snapshots(&self) -> Vec<String> {
        let list = self.cluster.rbd(&["snap", "ls", &self.spec(), "--format", "json"]);
        let list: Value = serde_json::from_slice(&list).unwrap();
        let names = list.as_array().unwrap().iter().map(|snapshot| snapshot["name"].as_str().unwrap());
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort();
        names
    }

    /// What a snapshot holds.
    pub(crate) fn export(&self, snapshot: &str) -> Vec<u8> {
        self.cluster.rbd(&["export", "--no-progress", &self.at(snapshot), "-"])
    }

    pub(crate) fn make_snapshot(&self, name: &str) {
        self.cluster.rbd(&["snap", "create", "--no-progress", &self.at(name)]);
    }

    pub(crate) fn remove_snapshot(&self, name: &str) {
        self.cluster.rbd(&["snap", "rm", "--no-progress", &self.at(name)]);
    }

    /// Removes the image with its snapshots, whatever state they are in.
    pub(crate) fn remove(&self) {
        for _ in 0..2 {
            let list = self.cluster.run("rbd", &["snap", "ls", &self.spec(), "--format", "json"], b"");
            let list: Value = serde_json::from_slice(&list.stdout).unwrap_or_default();
            for snapshot in list.as_array().into_iter().flatten() {
                let at = self.at(snapshot["name"].as_str().unwrap_or_default());
                self.cluster.run("rbd", &["snap", "unprotect", &at], b"");
                self.cluster.run("rbd", &["snap", "rm", "--no-progress", &at], b"");
            }
            if self.cluster.run("rbd", &["rm", "--no-progress", &self.spec()], b"").status.success() {
                return;
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Bytes that do not compress well and differ for every seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut data = Vec::with_capacity(length + 8);
    while data.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        data.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    data.truncate(length);
    data
}
