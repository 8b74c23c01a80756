//! The original's revisions in a mount: whole, at random, and with their holes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use backy_testkit::{Original, Random};

use crate::{ALL, unpack};

/// The mounting process. Dropping it takes the mount away.
pub(crate) struct Mount<'o> {
    child: Child,
    original: &'o Original,
}

impl<'o> Mount<'o> {
    /// `None` where the kernel has no FUSE.
    pub(crate) fn new(original: &'o Original) -> Option<Self> {
        if !Path::new("/dev/fuse").exists() {
            println!("skipped: the kernel has no /dev/fuse");
            return None;
        }
        let point = original.path("mnt");
        fs::create_dir_all(&point).expect("a mount point");
        let mut command = original.command(&["mount"]);
        let child = command.arg(&point).stdin(Stdio::null()).spawn().expect("it starts");
        let this = Self { child, original };
        let since = Instant::now();
        while !this.dir().is_dir() {
            assert!(since.elapsed() < Duration::from_secs(20), "it is not mounted");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(this)
    }

    fn dir(&self) -> std::path::PathBuf {
        self.original.path("mnt").join(&self.original.job)
    }

    pub(crate) fn image(&self, id: &str) -> File {
        File::open(self.dir().join(id).join("image")).expect("an image")
    }

    pub(crate) fn shows(&self, id: &str) -> bool {
        self.dir().join(id).is_dir()
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.original.path("mnt")).output());
        backy_testkit::end(&mut self.child);
    }
}

#[test]
fn every_revision_is_shown_exactly_and_the_directory_stays_as_it_is() {
    for name in ALL {
        let original = unpack(name);
        let before = original.fingerprint();
        let Some(mount) = Mount::new(&original) else { return };
        for revision in &original.revisions {
            let image = mount.image(&revision.id);
            let size = image.metadata().expect("its size").len();
            assert_eq!(size, revision.size);
            let mut whole = vec![0; size as usize];
            image.read_exact_at(&mut whole, 0).expect("all of it");
            let mut sum = Command::new("sha256sum").stdin(Stdio::from(mount.image(&revision.id))).output();
            let sum = sum.as_mut().expect("sha256sum").stdout.clone();
            assert_eq!(String::from_utf8_lossy(&sum[..64]), revision.sha256, "{name} {}", revision.id);
            let mut random = Random::new(7);
            for _ in 0..200 {
                let at = random.below(size);
                let mut page = [0; 4096];
                let read = image.read_at(&mut page, at).expect("a page");
                assert!(
                    page[..read] == whole[at as usize..][..read]
                        && read == page.len().min((size - at) as usize)
                );
            }
        }
        drop(mount);
        assert!(original.fingerprint() == before, "{name}: the directory changed");
    }
}

#[test]
fn an_upgrade_beside_a_reader_leaves_it_what_it_reads() {
    for name in ["vm-alpha", "vm-cow"] {
        let original = unpack(name);
        original.init();
        let Some(mount) = Mount::new(&original) else { return };
        let revision = &original.revisions[0];
        let image = mount.image(&revision.id);
        let run = original.run(&["upgrade"]).expect(0);
        if name == "vm-alpha" {
            assert!(run.stderr.contains("wait for a later purge") && !original.chunks().is_empty(), "{run}");
        }
        let sum = |image: File| {
            let output = Command::new("sha256sum").stdin(image).output().expect("sha256sum");
            String::from_utf8_lossy(&output.stdout[..64]).into_owned()
        };
        assert_eq!(sum(image), revision.sha256, "{name}: open since before the upgrade");
        for revision in &original.revisions {
            assert_eq!(sum(mount.image(&revision.id)), revision.sha256, "{name}: opened after the upgrade");
        }
        drop(mount);
        original.run(&["purge"]).expect(0);
        assert!(original.chunks().is_empty() && !original.dir().join(".purge_pending").exists());
        original.must_restore_all("after a purge");
    }
}

#[test]
fn zero_chunks_are_holes() {
    let original = unpack("vm-alpha");
    let Some(mount) = Mount::new(&original) else { return };
    let image = mount.image(&original.revisions[0].id);
    // Chunk 2 is all zeros, chunk 1 and 3 are not.
    let hole = nix_seek(&image, 0, "hole");
    assert_eq!((hole, nix_seek(&image, hole, "data")), (2 << 22, 3 << 22));
}

/// Asks for the next hole or data with a tool, since the standard library cannot.
fn nix_seek(image: &File, from: u64, what: &str) -> u64 {
    let code = "import os,sys; print(os.lseek(0, int(sys.argv[1]), os.SEEK_HOLE if sys.argv[2] == 'hole' else os.SEEK_DATA))";
    let image = image.try_clone().expect("a second handle");
    let output = Command::new("python3").args(["-c", code, &from.to_string(), what]).stdin(image).output();
    String::from_utf8_lossy(&output.expect("python3").stdout).trim().parse().expect("an offset")
}
