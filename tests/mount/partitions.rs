//! Disks with tables of every kind, backed up and mounted: each partition is a file that mounts by itself, and every
//! file inside is what it was.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{LoopDevice, path, text, tool, unmount};

const MIB: u64 = 1 << 20;

/// A file system that is put into partitions.
struct FileSystem {
    name: &'static str,
    size_bytes: u64,
    /// How it is mounted without writing anything, not even its log.
    options: &'static str,
}

/// In the order of the partitions. An xfs has 300 MiB at least.
const FILE_SYSTEMS: [FileSystem; 3] = [
    FileSystem { name: "ext4", size_bytes: 40 * MIB, options: "ro,loop,noload" },
    FileSystem { name: "xfs", size_bytes: 300 * MIB, options: "ro,loop,norecovery" },
    FileSystem { name: "btrfs", size_bytes: 128 * MIB, options: "ro,loop,rescue=nologreplay" },
];

/// A store with a job for each disk, mounted; all is taken down at the end.
pub(crate) struct Disks {
    dir: tempfile::TempDir,
}

impl Disks {
    /// `None` where the kernel has no FUSE.
    pub(crate) fn new() -> Option<Self> {
        if !Path::new("/dev/fuse").exists() {
            println!("skipped: the kernel has no /dev/fuse");
            return None;
        }
        let this = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        for name in ["mnt", "inside"] {
            fs::create_dir(this.at(name)).expect("a mount point is made");
        }
        let files = this.at("files/deep/deeper");
        fs::create_dir_all(&files).expect("a directory is made");
        for number in 0..30usize {
            let line = format!("line of file {number}\n");
            fs::write(files.join(format!("{number}.conf")), line.repeat(number * number * 11))
                .expect("a file is written");
        }
        fs::copy(env!("CARGO_MANIFEST_DIR").to_owned() + "/Cargo.lock", this.at("files/lock"))
            .expect("a file is copied");
        Some(this)
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes an empty file; returns its path.
    pub(crate) fn empty(&self, name: &str, size_bytes: u64) -> PathBuf {
        let file = self.at(name);
        fs::File::create(&file).and_then(|file| file.set_len(size_bytes)).expect("a file is made");
        file
    }

    /// Makes a file system with the files in a file of its own.
    pub(crate) fn format(&self, kind: &str, name: &str, size_bytes: u64) -> PathBuf {
        let (file, files) = (self.empty(name, size_bytes), self.at("files"));
        match kind {
            "ext4" => drop(tool("mkfs.ext4", &["-q", "-F", "-d", path(&files), path(&file)])),
            "btrfs" => drop(tool("mkfs.btrfs", &["-q", "--rootdir", path(&files), path(&file)])),
            _ => {
                tool("mkfs.xfs", &["-q", path(&file)]);
                tool("mount", &["-t", kind, "-o", "loop", path(&file), path(&self.at("inside"))]);
                tool("cp", &["-a", &format!("{}/.", path(&files)), path(&self.at("inside"))]);
                unmount(&self.at("inside"));
            }
        }
        file
    }

    /// Backs a disk up as the job of this name.
    pub(crate) fn back_up(&self, job: &str, disk: &Path) {
        let base = self.at("srv").join(job);
        backy(&base, &["init", "file", &format!("filename={}", path(disk))]);
        backy(&base, &["backup", "daily"]);
    }

    pub(crate) fn mount(&self) {
        backy(&self.at("srv"), &["mount", "--background", path(&self.at("mnt"))]);
    }

    pub(crate) fn mounted(&self, job: &str, name: &str) -> PathBuf {
        self.at("mnt").join(job).join("last").join(name)
    }

    /// Mounts a file and compares every file inside with what was put there.
    pub(crate) fn check_files(&self, kind: &str, options: &str, file: &Path) {
        let inside = self.at("inside");
        tool("mount", &["-t", kind, "-o", options, path(file), path(&inside)]);
        let (wanted, found) = (checksums(&self.at("files")), checksums(&inside));
        unmount(&inside);
        assert_eq!(wanted.lines().count(), 31);
        assert_eq!(wanted, found, "{}", file.display());
    }

    /// Returns what `parts.json` says.
    pub(crate) fn description(&self, job: &str) -> serde_json::Value {
        let text = fs::read(self.mounted(job, "parts/parts.json")).expect("parts.json is readable");
        serde_json::from_slice(&text).expect("parts.json is JSON")
    }

    pub(crate) fn names(&self, job: &str) -> Vec<String> {
        tool("ls", &[path(&self.mounted(job, "parts"))]).lines().map(str::to_owned).collect()
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for name in ["inside", "mnt"] {
            drop(Command::new("umount").args(["-l", path(&self.at(name))]).stderr(Stdio::null()).output());
        }
    }
}

fn backy(base: &Path, arguments: &[&str]) {
    tool(env!("CARGO_BIN_EXE_backy"), &[&["-b", path(base)], arguments].concat());
}

/// Returns name and SHA-256 of all files below a directory.
fn checksums(dir: &Path) -> String {
    let script =
        "cd \"$0\" && find . -path ./lost+found -prune -o -type f -print0 | sort -z | xargs -0 sha256sum";
    tool("sh", &["-c", script, path(dir)])
}

/// Gives a table to a disk, as a script of sfdisk says.
pub(crate) fn partition(disk: &Path, script: &str) {
    let mut child = Command::new("sfdisk")
        .args(["--quiet", "--no-reread", "--no-tell-kernel", path(disk)])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sfdisk starts");
    use std::io::Write;
    child.stdin.take().expect("it is piped").write_all(script.as_bytes()).expect("sfdisk reads");
    let output = backy_testkit::output_of(child);
    assert!(output.status.success(), "{script}: {}", text(&output.stderr));
}

/// Copies a file to a place of a disk.
fn copy_into(disk: &Path, part: &Path, at_mib: u64) {
    let (input, output) = (format!("if={}", path(part)), format!("of={}", path(disk)));
    let seek = format!("seek={at_mib}");
    tool("dd", &[&input, &output, &seek, "bs=1M", "conv=notrunc,sparse", "status=none"]);
}

/// Whether the kernel can mount a file system; says so if not.
fn is_known(kind: &str) -> bool {
    drop(Command::new("modprobe").arg(kind).output());
    let known = fs::read_to_string("/proc/filesystems").expect("the list of file systems is readable");
    let is_known = known.split_whitespace().any(|name| name == kind);
    if !is_known {
        println!("skipped: {kind}, for this kernel does not know it");
    }
    is_known
}

#[test]
fn every_file_in_every_partition_is_what_it_was() {
    let Some(disks) = Disks::new() else { return };
    let kinds: Vec<&FileSystem> = FILE_SYSTEMS.iter().filter(|kind| is_known(kind.name)).collect();
    let gpt = disks.empty("gpt.img", 480 * MIB);
    let mbr = disks.empty("mbr.img", 480 * MIB);
    partition(
        &gpt,
        "label: gpt\nstart=1MiB,size=40MiB,name=root\nstart=50MiB,size=300MiB\nstart=351MiB,size=128MiB\n",
    );
    let logical = "start=50MiB,size=300MiB,type=83\nstart=351MiB,size=128MiB,type=83\n";
    partition(&mbr, &format!("label: dos\nstart=1MiB,size=40MiB,type=83\nstart=48MiB,type=5\n\n\n{logical}"));
    for kind in &kinds {
        let file = disks.format(kind.name, &format!("{}.img", kind.name), kind.size_bytes);
        let at_mib = match kind.name {
            "ext4" => 1,
            "xfs" => 50,
            _ => 351,
        };
        copy_into(&gpt, &file, at_mib);
        copy_into(&mbr, &file, at_mib);
        disks.back_up(kind.name, &file);
    }
    disks.back_up("gpt", &gpt);
    disks.back_up("mbr", &mbr);
    // The same disk without its first header, and without its first sectors at all.
    for (job, from) in [("header", 512), ("beginning", 0)] {
        let file = fs::OpenOptions::new().write(true).open(&gpt).expect("the disk opens");
        file.write_all_at(&vec![0; 20 << 10], from).expect("the beginning is overwritten");
        disks.back_up(job, &gpt);
    }
    disks.mount();

    assert_eq!(disks.names("gpt"), ["1.img", "2.img", "3.img", "parts.json"]);
    assert_eq!(disks.names("mbr"), ["1.img", "5.img", "6.img", "parts.json"]);
    for kind in &kinds {
        let number =
            FILE_SYSTEMS.iter().position(|other| other.name == kind.name).expect("it is one of them");
        let of_mbr = ["parts/1.img", "parts/5.img", "parts/6.img"][number];
        let of_gpt = &format!("parts/{}.img", number + 1);
        assert_eq!(disks.names(kind.name), ["parts.json"], "there is no table");
        for (job, name) in [
            (kind.name, "image"),
            ("gpt", of_gpt),
            ("mbr", of_mbr),
            ("header", of_gpt),
            ("beginning", of_gpt),
        ] {
            disks.check_files(kind.name, kind.options, &disks.mounted(job, name));
        }
    }
    let facts = disks.description("gpt");
    assert_eq!((&facts["table"], &facts["findings"]), (&"gpt".into(), &serde_json::json!([])));
    assert_eq!(facts["parts"][0]["label"], "root");
    assert_eq!(
        facts["parts"][0]["uuid"],
        tool("sfdisk", &["--part-uuid", path(&disks.mounted("gpt", "image")), "1"]).to_lowercase()
    );
    let damaged = disks.description("header");
    assert!(damaged["findings"].to_string().contains("its backup is"), "{damaged}");
    images_convert(&disks);
}

/// Images and partitions go through qemu-img and come out the same.
fn images_convert(disks: &Disks) {
    let out = disks.at("out.qcow2");
    for (shown, original) in [("image", "mbr.img"), ("parts/1.img", "ext4.img")] {
        let shown = disks.mounted("mbr", shown);
        tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", path(&shown), path(&out)]);
        tool("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", path(&out), path(&disks.at(original))]);
        tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", path(&shown), path(&disks.at(original))]);
    }
}

#[test]
fn disks_with_large_sectors_are_read() {
    let Some(disks) = Disks::new() else { return };
    let file = disks.format("ext4", "ext4.img", 40 * MIB);
    for (job, label) in [("gpt", "gpt"), ("mbr", "dos")] {
        let disk = disks.empty(&format!("{job}.img"), 48 * MIB);
        let device = LoopDevice(tool("losetup", &["--find", "--show", "--sector-size", "4096", path(&disk)]));
        partition(Path::new(&device.0), &format!("label: {label}\nstart=256,size=10240\n"));
        drop(device);
        copy_into(&disk, &file, 1);
        disks.back_up(job, &disk);
    }
    disks.mount();
    for job in ["gpt", "mbr"] {
        assert_eq!(disks.description(job)["sector_size_bytes"], 4096, "{job}");
        tool("cmp", &[path(&file), path(&disks.mounted(job, "parts/1.img"))]);
        disks.check_files("ext4", "ro,loop,noload", &disks.mounted(job, "parts/1.img"));
    }
}

#[test]
fn a_partition_takes_part_in_what_files_can_do() {
    use std::os::unix::fs::MetadataExt;
    let Some(disks) = Disks::new() else { return };
    let disk = disks.empty("disk.img", 64 * MIB);
    partition(&disk, "label: dos\nstart=2MiB,size=20MiB,type=83\nstart=32MiB,size=32MiB,type=83\n");
    let file = fs::OpenOptions::new().write(true).open(&disk).expect("the disk opens");
    file.write_all_at(&vec![7; 3 << 20], 10 << 20).expect("data is written");
    disks.back_up("web01", &disk);
    disks.mount();

    assert_eq!(tool("ls", &[path(&disks.mounted("web01", ""))]), "image\ninfo.json\nparts");
    let part = disks.mounted("web01", "parts/1.img");
    let facts = fs::metadata(&part).expect("it is there");
    let image = fs::metadata(disks.mounted("web01", "image")).expect("it is there");
    assert_eq!((facts.len(), facts.mtime(), facts.mode()), (20 * MIB, image.mtime(), image.mode()));
    let open = fs::File::open(&part).expect("it opens");
    assert_eq!(
        open.metadata().expect("it is open").blocks() * 512,
        10 * MIB,
        "a half chunk with the table, two with data"
    );
    use nix::unistd::Whence::{SeekData, SeekHole};
    let seek = |offset, whence| nix::unistd::lseek(&open, offset, whence);
    // The partition begins at 2 MiB; the chunks of 4 MiB at 0, 8 and 12 MiB of the disk have data.
    assert_eq!((seek(0, SeekData), seek(0, SeekHole)), (Ok(0), Ok(2 << 20)));
    assert_eq!(seek(2 << 20, SeekData), Ok(6 << 20));
    assert_eq!(seek(6 << 20, SeekHole), Ok(14 << 20));
    assert_eq!(seek(14 << 20, SeekData), Err(nix::errno::Errno::ENXIO));
    let mut page = [0; 4096];
    open.read_exact_at(&mut page, (11 << 20) - 96).expect("it is readable");
    assert!(page[..96] == [7; 96] && page[96..] == [0; 4000]);
    assert_eq!(fs::metadata(&part).expect("it is there").ino(), facts.ino());
    assert!(!disks.mounted("web01", "parts/3.img").exists());
    assert!(fs::OpenOptions::new().write(true).open(&part).is_err());
    assert!(fs::read_dir(&part).is_err() && fs::read(disks.mounted("web01", "parts")).is_err());
}
