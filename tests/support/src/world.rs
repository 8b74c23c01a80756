//! A store with one job and its image in a temporary directory, and the binary run there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::image::{Image, is_all_of};
use crate::run::Run;
use crate::tree::{copy_file, copy_tree};

/// The job that every world has.
pub const JOB: &str = "web01";

/// Room that a directory in memory must have to be used for tests.
const ROOM_MIN: u64 = 1 << 30;

const CONFIG: &str = "source: {type: file, filename: image.img}
schedule:
  daily: {interval: 1d, keep: 7}
  weekly: {interval: 1w, keep: 4}
";

/// A directory with `srv`, a store; `srv/web01`, a job; and `image.img`, its image. The binary runs with this
/// directory as its working directory, so that a copy of all of it works like the original.
#[derive(Debug)]
pub struct World {
    dir: tempfile::TempDir,
    binary: PathBuf,
    environment: BTreeMap<String, String>,
    /// What every revision must restore to.
    pub expected: BTreeMap<String, Arc<Image>>,
}

impl World {
    /// A store with a job without revisions, made with the binary. There is no image yet.
    pub fn new(binary: &str) -> Self {
        let dir = tempdir();
        let environment = BTreeMap::from([("TZ".to_owned(), "UTC".to_owned())]);
        let world = Self { dir, binary: binary.into(), environment, expected: BTreeMap::new() };
        world.add_job(JOB, "image.img");
        world
    }

    /// Adds a job of the image `image`.
    pub fn add_job(&self, job: &str, image: &str) {
        let filename = format!("filename={image}");
        Run::of(&mut self.bare(&["-b", &format!("srv/{job}"), "init", "file", &filename])).expect(0);
        self.configure(job, &CONFIG.replace("image.img", image));
    }

    /// Replaces the configuration of a job.
    pub fn configure(&self, job: &str, text: &str) {
        fs::write(self.store().join(job).join("config"), text).expect("write a configuration");
    }

    /// Sets an environment variable for all later runs.
    pub fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// A copy with everything as it is now.
    pub fn copy(&self) -> Self {
        let dir =
            tempfile::tempdir_in(self.dir.path().parent().unwrap_or(Path::new("/"))).expect("a directory");
        for name in ["srv", "image.img"] {
            let (from, to) = (self.path(name), dir.path().join(name));
            match from.is_dir() {
                true => copy_tree(&from, &to),
                false if from.exists() => copy_file(&from, &to),
                false => {}
            }
        }
        let (binary, environment) = (self.binary.clone(), self.environment.clone());
        Self { dir, binary, environment, expected: self.expected.clone() }
    }

    /// A path in the world's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The store's directory.
    pub fn store(&self) -> PathBuf {
        self.path("srv")
    }

    /// The job's directory.
    pub fn job(&self) -> PathBuf {
        self.store().join(JOB)
    }

    /// The binary with exactly these arguments.
    pub fn bare(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(words).current_dir(self.dir.path()).envs(&self.environment);
        command.env_remove("RUST_BACKTRACE").env_remove("BACKY_FAULT");
        command
    }

    /// The binary for the job.
    pub fn command(&self, words: &[&str]) -> Command {
        self.command_for(JOB, words)
    }

    /// The binary for another job.
    pub fn command_for(&self, job: &str, words: &[&str]) -> Command {
        let mut command = self.bare(&["-b", &format!("srv/{job}")]);
        command.args(words);
        command
    }

    /// Runs the binary for the job.
    pub fn run(&self, words: &[&str]) -> Run {
        Run::of(&mut self.command(words))
    }

    /// Runs with a fault: `kill:3` and the like. One thread works, so that the same number means the same change.
    pub fn run_with_fault(&self, words: &[&str], fault: &str) -> Run {
        let mut command = self.command(words);
        if ["backup", "verify", "restore"].contains(&words[0]) {
            command.args(["--threads", "1"]);
        }
        Run::of(command.env("BACKY_FAULT", fault))
    }

    /// Runs the binary for the job, which must succeed.
    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> Run {
        self.run(words).expect(0)
    }

    /// Runs the binary for the whole store.
    pub fn on_store(&self, words: &[&str]) -> Run {
        let mut command = self.bare(&["-b", "srv"]);
        Run::of(command.args(words))
    }

    /// Replaces the image.
    pub fn write_image(&self, image: &Image) {
        image.write(&self.path("image.img"));
    }

    /// Backs the image up, and notes what the revision must restore to. Returns its id.
    #[track_caller]
    pub fn backup(&mut self, image: &Arc<Image>, tags: &str) -> String {
        self.write_image(image);
        let id = self.ok(&["backup", tags]).line();
        self.expected.insert(id.clone(), Arc::clone(image));
        id
    }

    /// The ids of all revisions, oldest first.
    #[track_caller]
    pub fn ids(&self) -> Vec<String> {
        self.ok(&["find", "-r", "all", "--uuid"]).text().lines().map(str::to_owned).collect()
    }

    /// Restores to a new file; returns the run and what the file holds, if it is there.
    pub fn restore(&self, id: &str) -> (Run, Option<Image>) {
        self.restore_of(JOB, id)
    }

    /// The same for another job.
    pub fn restore_of(&self, job: &str, id: &str) -> (Run, Option<Image>) {
        self.restore_and(job, id, |target| fs::read(target).ok().map(Image))
    }

    /// Restores to a new file, gives that to `look`, and removes it.
    fn restore_and<T>(&self, job: &str, id: &str, look: impl FnOnce(&Path) -> T) -> (Run, T) {
        let target = self.path(&format!("restored-{job}-{id}"));
        let name = target.to_string_lossy().into_owned();
        let run = Run::of(&mut self.command_for(job, &["restore", "-r", id, &name]));
        let seen = look(&target);
        drop(fs::remove_file(&target));
        (run, seen)
    }

    /// Fails the test unless the revision restores to exactly `image`.
    #[track_caller]
    pub fn must_restore(&self, id: &str, image: &Image, when: &str) {
        let is_image =
            |target: &Path| fs::File::open(target).is_ok_and(|mut file| is_all_of(&mut file, &image.0));
        let (run, is_right) = self.restore_and(JOB, id, is_image);
        assert_eq!(run.code(), 0, "{when}: {run}");
        assert!(is_right, "{when}: revision {id} restores to other bytes");
    }

    /// Fails the test unless every expected revision is there and restores exactly.
    #[track_caller]
    pub fn must_restore_all(&self, when: &str) {
        for (id, image) in &self.expected {
            self.must_restore(id, image, when);
        }
    }

    /// All chunk files, sorted.
    pub fn chunks(&self) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = fs::read_dir(self.store().join("chunks"))
            .expect("list the chunks")
            .flat_map(|shard| list(&shard.expect("list the chunks").path()))
            .collect();
        found.sort();
        found
    }

    /// What dead runs have left: temporary chunks and unfinished revisions.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let unfinished = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".unfinished-"))
        };
        list(&self.store().join("tmp"))
            .into_iter()
            .chain(list(&self.job()).into_iter().filter(unfinished))
            .collect()
    }
}

/// The paths in a directory, sorted.
fn list(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .expect("list a directory")
        .map(|entry| entry.expect("list a directory").path())
        .collect();
    found.sort();
    found
}

/// A temporary directory, in memory where there is room: syncing a busy disk takes most of a test's time.
/// `TMPDIR` overrides.
pub(crate) fn tempdir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let has_room = nix::sys::statvfs::statvfs(memory)
        .is_ok_and(|facts| facts.blocks_available() * facts.fragment_size() > ROOM_MIN);
    match std::env::var_os("TMPDIR") {
        None if has_room => tempfile::tempdir_in(memory),
        _ => tempfile::tempdir(),
    }
    .expect("make a temporary directory")
}
