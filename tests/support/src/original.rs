//! Stores that the original wrote: unpacked from the fixtures, with what its own `restore` made of every revision.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use crate::image::is_all_of;
use crate::run::Run;
use crate::world::tempdir;

/// What is known of a revision.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Its id.
    pub id: String,
    /// Size of its image.
    pub size: u64,
    /// SHA-256 of its image, in hex.
    pub sha256: String,
    /// Its image, once something has restored to this hash: comparing bytes is much faster than hashing them again.
    image: Arc<OnceLock<Vec<u8>>>,
}

impl Expected {
    /// Whether all that comes is the image. The first time it is hashed, and kept if it is.
    fn is(&self, from: &mut dyn Read) -> bool {
        match self.image.get() {
            Some(image) => is_all_of(from, image),
            None => {
                let mut found = Vec::new();
                from.read_to_end(&mut found).expect("read an image");
                let is_right = sha256_of_bytes(&found) == self.sha256;
                if is_right {
                    // Another thread may have been faster, with the same bytes.
                    let _ = self.image.set(found);
                }
                is_right
            }
        }
    }
}

/// A temporary directory with `srv`, a base directory of the original, and one of its jobs there.
#[derive(Debug)]
pub struct Original {
    dir: tempfile::TempDir,
    binary: PathBuf,
    /// The job's name.
    pub job: String,
    /// Its revisions, oldest first.
    pub revisions: Vec<Expected>,
}

impl Original {
    /// Unpacks the fixture `name` from the directory of fixtures.
    pub fn unpack(binary: &str, fixtures: &Path, name: &str) -> Self {
        let dir = tempdir();
        let base = dir.path().join("srv");
        fs::create_dir(&base).expect("make a directory");
        let packed = File::open(fixtures.join(format!("{name}.tar.zst"))).expect("open a fixture");
        let mut tar = Command::new("tar")
            .args(["xpf", "-", "-C"])
            .arg(&base)
            .stdin(Stdio::piped())
            .spawn()
            .expect("tar can be started");
        let mut decoder = zstd::stream::read::Decoder::new(packed).expect("a decoder");
        decoder.window_log_max(27).expect("a decoder");
        io::copy(&mut decoder, &mut tar.stdin.take().expect("it is piped")).expect("unpack a fixture");
        assert!(crate::ended(&mut tar).success());
        let manifest = fs::read(fixtures.join(format!("{name}.manifest.json"))).expect("read a fixture");
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("a fixture is JSON");
        let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
        let revisions = manifest["revisions"].as_array().expect("a list").iter();
        let revisions = revisions.map(|revision| Expected {
            id: text(&revision["uuid"]),
            size: revision["size"].as_u64().expect("a size"),
            sha256: text(&revision["sha256"]),
            image: Arc::default(),
        });
        let revisions = revisions.collect();
        Self { dir, binary: binary.into(), job: name.to_owned(), revisions }
    }

    /// Removes all but the first `count` revisions as if they had never been: half of them take half of the time.
    pub fn keep_first(&mut self, count: usize) {
        for gone in self.revisions.split_off(count) {
            fs::remove_file(self.dir().join(&gone.id)).expect("remove an image");
            fs::remove_file(self.dir().join(format!("{}.rev", gone.id))).expect("remove a manifest");
        }
    }

    /// A copy with everything as it is now, links and modes too.
    pub fn copy(&self) -> Self {
        let dir = tempdir();
        let status = Command::new("cp").arg("-a").arg(self.base()).arg(dir.path()).status();
        assert!(status.expect("cp can be started").success());
        drop(fs::remove_file(dir.path().join("srv/.reserve")));
        drop(fs::remove_dir_all(dir.path().join("srv/.reserve.d")));
        let (binary, job, revisions) = (self.binary.clone(), self.job.clone(), self.revisions.clone());
        Self { dir, binary, job, revisions }
    }

    /// A path in the temporary directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The base directory.
    pub fn base(&self) -> PathBuf {
        self.path("srv")
    }

    /// The job's directory.
    pub fn dir(&self) -> PathBuf {
        self.base().join(&self.job)
    }

    /// The binary for the job.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.bare(&["-b", &format!("srv/{}", self.job)]);
        command.args(words);
        command
    }

    /// The binary with exactly these arguments.
    pub fn bare(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.current_dir(self.dir.path()).env("TZ", "UTC").env_remove("BACKY_FAULT").args(words);
        command
    }

    /// Runs the binary for the job.
    pub fn run(&self, words: &[&str]) -> Run {
        Run::of(&mut self.command(words))
    }

    /// Makes a store beside the job.
    #[track_caller]
    pub fn init(&self) {
        Run::of(&mut self.bare(&["init", "srv"])).expect(0);
    }

    /// SHA-256 of what a revision restores to; the run where that fails.
    pub fn sha256(&self, id: &str) -> Result<String, Run> {
        let mut restore = self.command(&["restore", "-r", id, "-"]);
        let mut restore = restore.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let hash = sha256_of(restore.stdout.take().expect("it is piped").into());
        let run = Run::of_ended(restore, &format!("restore {id}"));
        if run.code() == 0 { Ok(hash) } else { Err(run) }
    }

    /// Fails the test unless every revision restores to what the original made of it.
    #[track_caller]
    pub fn must_restore_all(&self, when: &str) {
        for revision in &self.revisions {
            let mut restore = self.command(&["restore", "-r", &revision.id, "-"]);
            let mut restore =
                restore.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
            let is_right = revision.is(&mut restore.stdout.take().expect("it is piped"));
            let run = Run::of_ended(restore, &format!("restore {}", revision.id));
            assert_eq!(run.code(), 0, "{when}: {run}");
            assert!(is_right, "{when}: revision {} restores to other bytes", revision.id);
        }
    }

    /// Chunk files of the original that are there.
    pub fn chunks(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        below(&self.dir().join("chunks"), &mut |path| found.push(path.to_owned()));
        found.retain(|path| path.extension().is_some_and(|end| end == "lzo"));
        found.sort();
        found
    }

    /// Every file of the base directory with its kind, mode, time and content, or where it leads.
    pub fn fingerprint(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        below(&self.base(), &mut |path| {
            let facts = fs::symlink_metadata(path).expect("examine a file");
            let content = match (facts.is_symlink(), facts.is_file()) {
                (true, _) => fs::read_link(path).expect("read a link").display().to_string(),
                (_, true) => {
                    let mut hasher = DefaultHasher::new();
                    hasher.write(&fs::read(path).expect("read a file"));
                    format!("{:016x}", hasher.finish())
                }
                _ => String::new(),
            };
            let (mode, at) = (facts.mode(), (facts.mtime(), facts.mtime_nsec()));
            found.insert(path.to_owned(), format!("{mode:o} {at:?} {content}"));
        });
        found
    }
}

/// SHA-256 of all that comes, in hex.
pub(crate) fn sha256_of(from: Stdio) -> String {
    let output = Command::new("sha256sum").stdin(from).output().expect("sha256sum can be started");
    String::from_utf8_lossy(&output.stdout)[..64].to_owned()
}

fn sha256_of_bytes(bytes: &[u8]) -> String {
    let mut file = tempfile::tempfile_in(tempdir().path()).expect("make a temporary file");
    file.write_all(bytes).and_then(|()| file.rewind()).expect("write a temporary file");
    sha256_of(file.into())
}

fn below(dir: &Path, found: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries {
        let path = entry.expect("list a directory").path();
        found(&path);
        if fs::symlink_metadata(&path).is_ok_and(|facts| facts.is_dir()) {
            below(&path, found);
        }
    }
}
