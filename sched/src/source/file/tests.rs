//! Real files in a temporary directory, read into a sink that remembers them.

use std::io::Write as _;

use backy_store::{CHUNK_SIZE, Silent};
use tempfile::TempDir;

use super::*;
use crate::source::testing::{Counting, MemorySink};

const C: u64 = CHUNK_SIZE;

struct Disk {
    dir: TempDir,
}

impl Disk {
    fn new(size_bytes: u64, parts: &[(u64, &[u8])]) -> Self {
        let disk = Self { dir: TempDir::new().unwrap() };
        let file = File::create(disk.path()).unwrap();
        file.set_len(size_bytes).unwrap();
        for (offset, data) in parts {
            file.write_all_at(data, *offset).unwrap();
        }
        disk
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    fn writable(&self) -> File {
        File::options().write(true).open(self.path()).unwrap()
    }

    fn open(&self) -> FileSnapshot {
        FileSnapshot::open(&self.path()).unwrap()
    }

    /// A modification time that no later write can have again.
    fn age(&self) {
        self.writable().set_modified(std::time::UNIX_EPOCH).unwrap();
    }
}

fn copy(snapshot: &FileSnapshot) -> (MemorySink, CopyStats) {
    let sink = MemorySink::new(snapshot.size_bytes());
    let stats = snapshot.copy_changes(None, &sink, 3, &Silent).unwrap();
    (sink, stats)
}

#[test]
fn images_of_any_size_are_read_exactly() {
    let noise: Vec<u8> = (0..3 * C + 1000).map(|n| (n * n / 7 + n) as u8).collect();
    for size in [0, 1, 511, 4096, C - 1, C, C + 1, 3 * C + 777] {
        let disk = Disk::new(0, &[(0, &noise[..size as usize])]);
        let snapshot = disk.open();
        assert_eq!(snapshot.size_bytes(), size);
        let (sink, stats) = copy(&snapshot);
        assert!(sink.image() == noise[..size as usize], "{size} bytes");
        assert_eq!(stats, CopyStats { bytes_read: size, mode: CopyMode::Full });
        snapshot.check_unchanged().unwrap();
    }
}

#[test]
fn holes_are_not_read() {
    // Data at the end of chunk 1, over the border of 3 and 4, and in the last, short chunk.
    let disk = Disk::new(9 * C + 5000, &[(2 * C - 4096, b"a"), (4 * C - 10, &[7; 20]), (9 * C + 4999, b"z")]);
    let snapshot = disk.open();
    let (sink, stats) = copy(&snapshot);
    assert!(sink.image() == std::fs::read(disk.path()).unwrap());
    assert_eq!(sink.holes(), [0, 2, 5, 6, 7, 8]);
    assert!(stats.bytes_read < 100_000, "{}", stats.bytes_read);
    assert!(snapshot.is_hole(0, C).unwrap() && snapshot.is_hole(5 * C, 4 * C).unwrap());
    assert!(!snapshot.is_hole(C, C).unwrap() && !snapshot.is_hole(9 * C, 5000).unwrap());
}

#[test]
fn an_image_of_one_hole_is_not_read_at_all() {
    let disk = Disk::new(100 * C + 1, &[]);
    let (sink, stats) = copy(&disk.open());
    assert_eq!((sink.holes().len(), stats.bytes_read), (101, 0));
}

#[test]
fn every_byte_of_the_image_is_reported_as_progress() {
    let disk = Disk::new(3 * C + 5, &[(C, b"x")]);
    let monitor = Counting::new(u64::MAX);
    let snapshot = disk.open();
    snapshot.copy_changes(None, &MemorySink::new(snapshot.size_bytes()), 2, &monitor).unwrap();
    assert_eq!(monitor.bytes.into_inner(), 3 * C + 5);
}

#[test]
fn a_request_to_stop_is_seen_at_the_next_chunk() {
    let disk = Disk::new(100 * C, &[]);
    let snapshot = disk.open();
    let sink = MemorySink::new(snapshot.size_bytes());
    let error = snapshot.copy_changes(None, &sink, 2, &Counting::new(5 * C)).unwrap_err();
    assert!(error.is_cancelled());
    assert!(sink.chunks.into_inner().unwrap().len() < 10);
}

#[test]
fn other_kinds_of_files_are_refused() {
    let dir = TempDir::new().unwrap();
    let pipe = dir.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (path, expected) in
        [(dir.path(), "directory"), (&pipe, "pipe"), (Path::new("/dev/null"), "character device")]
    {
        match FileSnapshot::open(path).unwrap_err() {
            Error::SourceKind { kind, name } => {
                assert_eq!((kind, name), (expected, path.display().to_string()));
            }
            other => panic!("{other}"),
        }
    }
    let missing = FileSnapshot::open(&dir.path().join("nothing")).unwrap_err();
    assert!(matches!(missing, Error::SourceMissing { .. }), "{missing}");
    let below_a_file = FileSnapshot::open(Path::new("/dev/null/x")).unwrap_err();
    assert!(matches!(below_a_file, Error::SourceUnusable { .. }), "{below_a_file}");
}

#[test]
fn a_file_that_shrinks_is_noticed() {
    let disk = Disk::new(0, &[(0, &[1; 10_000])]);
    let snapshot = disk.open();
    disk.writable().set_len(5000).unwrap();
    match snapshot.read_at(0, &mut [0; 10_000]).unwrap_err() {
        Error::SourceShort { offset, size_bytes, .. } => assert_eq!((offset, size_bytes), (5000, 10_000)),
        other => panic!("{other}"),
    }
    assert!(matches!(
        snapshot.check_unchanged().unwrap_err(),
        Error::SourceResized { after_bytes: 5000, .. }
    ));
}

#[test]
fn a_file_that_grows_is_noticed() {
    let disk = Disk::new(10, &[]);
    let snapshot = disk.open();
    disk.writable().set_len(11).unwrap();
    let error = snapshot.check_unchanged().unwrap_err();
    assert!(matches!(error, Error::SourceResized { before_bytes: 10, after_bytes: 11, .. }), "{error}");
}

#[test]
fn a_write_is_noticed_and_reading_is_not() {
    let disk = Disk::new(10, &[]);
    disk.age();
    let snapshot = disk.open();
    copy(&snapshot);
    snapshot.check_unchanged().unwrap();
    disk.writable().write_all_at(b"x", 5).unwrap();
    assert!(matches!(snapshot.check_unchanged().unwrap_err(), Error::SourceModified { .. }));
}

#[test]
fn a_file_that_disappears_or_is_replaced_is_noticed() {
    let disk = Disk::new(10, &[]);
    let snapshot = disk.open();
    let aside = disk.dir.path().join("aside");
    let file = File::create(&aside).unwrap();
    (&file).write_all(&[0; 10]).unwrap();
    nix::fcntl::renameat(nix::fcntl::AT_FDCWD, &aside, nix::fcntl::AT_FDCWD, &disk.path()).unwrap();
    assert!(matches!(snapshot.check_unchanged().unwrap_err(), Error::SourceReplaced { .. }));
    nix::unistd::unlink(&disk.path()).unwrap();
    assert!(matches!(snapshot.check_unchanged().unwrap_err(), Error::SourceMissing { .. }));
}

#[test]
fn a_read_error_names_file_and_offset() {
    // The kernel answers EIO where no memory is mapped.
    let snapshot = FileSnapshot::open(Path::new("/proc/self/mem")).unwrap();
    let error = snapshot.read_at(16, &mut [0; 8]).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the source /proc/self/mem at byte 16");
    assert!(matches!(error, Error::SourceRead { source, .. } if source.raw_os_error() == Some(5)));
}

#[test]
fn facts_tell_what_was_read() {
    let disk = Disk::new(10, &[]);
    disk.age();
    let facts = disk.open().facts();
    let text = |key: &str| facts[key].as_str().unwrap().to_owned();
    assert_eq!((text("type"), text("kind")), ("file".to_owned(), "regular file".to_owned()));
    assert_eq!(text("filename"), disk.path().display().to_string());
    assert_eq!(facts["size"], 10);
    assert_eq!(text("mtime"), "1970-01-01T00:00:00Z");
}

#[test]
fn a_symbolic_link_is_followed() {
    let disk = Disk::new(10, &[]);
    let link = disk.dir.path().join("link");
    std::os::unix::fs::symlink(disk.path(), &link).unwrap();
    let snapshot = FileSnapshot::open(&link).unwrap();
    assert_eq!(snapshot.size_bytes(), 10);
    snapshot.check_unchanged().unwrap();
}

/// A loop device over a file, detached when dropped; `None` where the system lets us have none.
struct Loop(PathBuf);

impl Loop {
    fn over(path: &Path) -> Option<Self> {
        let output =
            std::process::Command::new("losetup").args(["--find", "--show"]).arg(path).output().ok()?;
        let name = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| Self(name.trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_block_device_is_read_to_its_end() {
    let disk = Disk::new(2 * C + 512, &[(C, &[3; 5000]), (2 * C + 500, b"end")]);
    let Some(device) = Loop::over(&disk.path()) else {
        eprintln!("skipped: no loop device can be made here");
        return;
    };
    let snapshot = FileSnapshot::open(&device.0).unwrap();
    assert_eq!(snapshot.size_bytes(), 2 * C + 512);
    let (sink, _) = copy(&snapshot);
    assert!(sink.image() == std::fs::read(disk.path()).unwrap());
    snapshot.check_unchanged().unwrap();
    let facts = snapshot.facts();
    assert_eq!(facts["kind"], "block device");
    assert!(!facts.contains_key("mtime"));
}

#[test]
fn a_thread_asks_ahead_at_first_and_as_long_as_it_reads_from_a_disk() {
    // A thread of its own, whose reads nobody else counts into.
    let answers = std::thread::spawn(|| {
        let mut disk = DiskReads::new();
        [disk.is_read(), disk.is_read(), disk.is_read()]
    });
    assert_eq!(answers.join().unwrap(), [true, false, false], "nothing was read");
}

#[test]
fn what_was_fetched_ahead_is_not_read_from_the_disk_again() {
    let data = vec![7; chunks::length(&(0..C))];
    // Beside this program: the usual place for temporary files may be in memory.
    let program = std::env::current_exe().unwrap();
    let disk = Disk { dir: TempDir::new_in(program.parent().unwrap()).unwrap() };
    std::fs::write(disk.path(), &data).unwrap();
    let file = File::open(disk.path()).unwrap();
    file.sync_all().unwrap();
    let cooled = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    assert_eq!(cooled, Ok(()));
    let read = std::thread::spawn(move || {
        let snapshot = disk.open();
        let mut reads = DiskReads::new();
        reads.is_read();
        snapshot.fetch(&(0..C));
        let fetched = reads.is_read();
        let mut buf = vec![0; data.len()];
        snapshot.read_at(0, &mut buf).unwrap();
        assert!(buf == data);
        (fetched, reads.is_read())
    });
    let (fetched, read_again) = read.join().unwrap();
    // Where the file system does not count, as in memory, nothing was fetched, and nothing is asked for.
    assert!(!read_again, "fetched: {fetched}");
}
