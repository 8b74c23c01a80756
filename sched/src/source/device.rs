//! What the system knows of a block device that tells it from another one: the kernel's `/sys`, which costs no reading of
//! the disk and needs no rights. What is not there says nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// A value is never longer.
const VALUE_BYTES_MAX: u64 = 4096;

/// Each mark and the files that may hold it, below a disk's directory.
const MARKS: [(&str, &[&str]); 4] = [
    ("serial", &["serial", "device/serial"]),
    ("wwid", &["wwid", "device/wwid"]),
    ("dm-uuid", &["dm/uuid"]),
    ("backing-file", &["loop/backing_file"]),
];
/// What the UUIDs of LVM's volumes begin with; the id of their group follows, then that of the volume.
const LVM_PREFIX: &str = "LVM-";
/// Length of an id of LVM.
const LVM_ID_LEN: usize = 32;

/// Returns the marks of the block device with this number.
pub(super) fn marks(number: u64) -> BTreeMap<String, String> {
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    marks_in(&PathBuf::from(format!("/sys/dev/block/{major}:{minor}")))
}

fn marks_in(dir: &Path) -> BTreeMap<String, String> {
    // A partition has the marks of its disk, which is the directory above it.
    let above = dir.join("partition").exists().then(|| dir.join(".."));
    let disk = above.as_deref().unwrap_or(dir);
    let mark = |(name, files): &(&str, &[&str])| {
        let value = files.iter().find_map(|file| value(&disk.join(file)))?;
        Some(((*name).to_owned(), in_general(name, value)))
    };
    MARKS.iter().filter_map(mark).collect()
}

/// Of a volume of LVM only the group counts: a snapshot that is made for each backup has another id every time. Which
/// volume it is, its content tells.
fn in_general(mark: &str, mut value: String) -> String {
    if mark == "dm-uuid" && value.starts_with(LVM_PREFIX) && value.is_ascii() {
        value.truncate(LVM_PREFIX.len() + LVM_ID_LEN);
    }
    value
}

fn value(file: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(file).ok()?.take(VALUE_BYTES_MAX).read_to_string(&mut text).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_disks_partitions_and_volumes() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("sda/device/wwid", "naa.5000c500\n");
        write("sda/sda1/partition", "1\n");
        write("vda/serial", "disk-7\n");
        write("loop0/loop/backing_file", "/srv/a b.img\n");
        let (group, volume) = ("g".repeat(32), "v".repeat(32));
        write("dm-0/dm/uuid", &format!("LVM-{group}{volume}-real\n"));
        write("dm-1/dm/uuid", "CRYPT-LUKS2-0123-x\n");
        write("empty/serial", "\n");
        for (disk, expected) in [
            ("sda", vec![("wwid", "naa.5000c500")]),
            ("sda/sda1", vec![("wwid", "naa.5000c500")]),
            ("vda", vec![("serial", "disk-7")]),
            ("loop0", vec![("backing-file", "/srv/a b.img")]),
            ("dm-0", vec![("dm-uuid", &*format!("LVM-{group}"))]),
            ("dm-1", vec![("dm-uuid", "CRYPT-LUKS2-0123-x")]),
            ("empty", vec![]),
            ("missing", vec![]),
        ] {
            let found = marks_in(&dir.path().join(disk));
            let found: Vec<(&str, &str)> =
                found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            assert_eq!(found, expected, "{disk}");
        }
    }
}
