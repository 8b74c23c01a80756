//! Block devices, and what is made of what: partitions, loop devices, volumes. A device that nobody seems to use can
//! hold the bytes of a mounted file system all the same: two loop devices can have one file, and a file can lie below a
//! loop device that is mounted. The kernel refuses to overwrite only the very device that is mounted.
//!
//! The answer is a pure function of a [`Picture`] of the system; reading that is best effort. Mounts in other mount
//! namespaces are not seen, and files on network file systems are compared by their paths: to examine one could take
//! for ever.

use std::collections::BTreeSet;
use std::fs::{read_link, read_to_string};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::users::{self, children};

/// File systems whose servers can be away.
const REMOTE: [&str; 10] =
    ["nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "glusterfs", "lustre", "virtiofs"];

/// Something that holds bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Node {
    /// A block device, by its number: `7:0`.
    Device(String),
    /// A regular file, by device and inode.
    File(u64, u64),
    /// A regular file that cannot be examined, by its path.
    Path(String),
}

impl Node {
    /// The block device with this number.
    pub(super) fn device(number: u64) -> Self {
        Self::Device(users::number(number))
    }

    /// The file with this metadata.
    pub(super) fn file(facts: &std::fs::Metadata) -> Self {
        Self::File(facts.dev(), facts.ino())
    }
}

/// What a loop device is made of: a file or a device, and the range in it.
#[derive(Clone, Debug)]
struct Backing {
    node: Node,
    start: u64,
    end: u64,
}

impl Backing {
    fn overlaps(&self, other: &Self) -> bool {
        self.node == other.node && self.start < other.end && other.start < self.end
    }
}

/// One block device.
#[derive(Clone, Debug, Default)]
struct Device {
    number: String,
    /// As in `/dev`: `loop0`.
    name: String,
    /// Of a volume, as in `/dev/mapper`.
    volume: Option<String>,
    /// Of a partition, the number of the whole device.
    whole: Option<String>,
    /// The numbers of the devices that it is made of.
    parts: Vec<String>,
    backing: Option<Backing>,
}

impl Device {
    fn node(&self) -> Node {
        Node::Device(self.number.clone())
    }

    /// What it is directly made of.
    fn below(&self) -> impl Iterator<Item = Node> {
        let devices = self.whole.iter().chain(&self.parts).cloned().map(Node::Device);
        devices.chain(self.backing.iter().map(|backing| backing.node.clone()))
    }

    /// Whether a table of mounts or swap areas means it.
    fn is_called(&self, path: &str) -> bool {
        let of = |dir: &str, name: &str| path.strip_prefix(dir) == Some(name);
        of("/dev/", &self.name) || self.volume.as_deref().is_some_and(|volume| of("/dev/mapper/", volume))
    }
}

/// One line of the table of mounts.
#[derive(Clone, Debug)]
struct Mount {
    number: String,
    point: String,
    kind: String,
    source: String,
}

/// The system's devices, and what they are used for.
#[derive(Clone, Debug, Default)]
pub(super) struct Picture {
    devices: Vec<Device>,
    mounts: Vec<Mount>,
    swaps: Vec<String>,
    /// Names of devices that are members of mounted file systems whose mounts have other numbers: btrfs.
    members: Vec<String>,
}

impl Picture {
    /// Returns the uses of what would be overwritten together with `target`: mounts and swap areas, in words.
    pub(super) fn uses_of(&self, target: &Node) -> Vec<String> {
        let touched = self.touched(target);
        let mut uses = Vec::new();
        for device in self.devices.iter().filter(|device| touched.contains(&device.node())) {
            let on =
                if device.node() == *target { String::new() } else { format!(" (/dev/{})", device.name) };
            let is_it = |mount: &&Mount| mount.number == device.number || device.is_called(&mount.source);
            let mounts: Vec<_> = self.mounts.iter().filter(is_it).collect();
            uses.extend(mounts.iter().map(|mount| format!("mounted at {}{on}", mount.point)));
            if mounts.is_empty() && self.members.contains(&device.name) {
                uses.push(format!("part of a mounted btrfs file system{on}"));
            }
            if self.swaps.iter().any(|swap| device.is_called(swap)) {
                uses.push(format!("swap{on}"));
            }
        }
        uses
    }

    /// Returns everything that changes when the target is overwritten: what it is made of, what is made of it, and what
    /// else is made of the same bytes. Of a disk that the target is a part of, the other parts are left alone.
    fn touched(&self, target: &Node) -> BTreeSet<Node> {
        let mut above = BTreeSet::new();
        self.add_above(target.clone(), &mut above);
        let mut below = BTreeSet::new();
        self.add_below(target.clone(), &mut below);
        let known: BTreeSet<&Node> = above.union(&below).collect();
        let own: Vec<&Backing> = self
            .devices
            .iter()
            .filter(|device| below.contains(&device.node()))
            .filter_map(|device| device.backing.as_ref())
            .collect();
        let mut beside = BTreeSet::new();
        for device in self.devices.iter().filter(|device| !known.contains(&device.node())) {
            let Some(backing) = device.backing.as_ref().filter(|backing| below.contains(&backing.node))
            else {
                continue;
            };
            // What a device below is a loop device of is known to the byte, everything else is taken as a whole.
            let is_known = own.iter().any(|one| one.node == backing.node);
            if !is_known || own.iter().any(|one| one.overlaps(backing)) {
                self.add_above(device.node(), &mut beside);
            }
        }
        above.into_iter().chain(below).chain(beside).collect()
    }

    /// Adds a node and what is made of it.
    fn add_above(&self, node: Node, found: &mut BTreeSet<Node>) {
        let mut waiting = vec![node];
        while let Some(node) = waiting.pop() {
            let made_of_it = self.devices.iter().filter(|device| device.below().any(|below| below == node));
            let next: Vec<Node> = made_of_it.map(Device::node).collect();
            if found.insert(node) {
                waiting.extend(next);
            }
        }
    }

    /// Adds a node and what it is made of.
    fn add_below(&self, node: Node, found: &mut BTreeSet<Node>) {
        let mut waiting = vec![node];
        while let Some(node) = waiting.pop() {
            let device = self.devices.iter().filter(|device| device.node() == node);
            let next: Vec<Node> = device.flat_map(Device::below).collect();
            if found.insert(node) {
                waiting.extend(next);
            }
        }
    }

    /// Looks at the system as it is now.
    pub(super) fn take() -> Self {
        let text = |path: &str| read_to_string(path).unwrap_or_default();
        let mounts = mounts(&text("/proc/self/mountinfo"));
        let devices = devices(Path::new("/sys/class/block"), &mounts);
        let swaps = text("/proc/swaps");
        let swaps =
            swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next().map(str::to_owned));
        let members = children(Path::new("/sys/fs/btrfs"));
        let members = members.iter().flat_map(|one| children(one.join("devices")));
        Self { devices, mounts, swaps: swaps.collect(), members: members.map(|path| name(&path)).collect() }
    }
}

fn mounts(table: &str) -> Vec<Mount> {
    let parse = |line: &str| {
        let (own, of_kind) = line.split_once(" - ")?;
        let (mut own, mut of_kind) = (own.split(' ').skip(2), of_kind.split(' '));
        Some(Mount {
            number: own.next()?.to_owned(),
            point: own.nth(1)?.to_owned(),
            kind: of_kind.next()?.to_owned(),
            source: of_kind.next()?.to_owned(),
        })
    };
    table.lines().filter_map(parse).collect()
}

fn devices(class: &Path, mounts: &[Mount]) -> Vec<Device> {
    let number = |dir: &Path| Some(read_to_string(dir.join("dev")).ok()?.trim().to_owned());
    let device = |dir: PathBuf| {
        // A partition's directory lies in that of the whole device.
        let whole = || number(&class.join(read_link(&dir).ok()?).join(".."));
        let volume = read_to_string(dir.join("dm/name")).ok();
        Some(Device {
            number: number(&dir)?,
            name: name(&dir),
            volume: volume.map(|volume| volume.trim().to_owned()),
            whole: if dir.join("partition").exists() { whole() } else { None },
            parts: children(dir.join("slaves")).iter().filter_map(|part| number(part)).collect(),
            backing: backing(&dir, mounts),
        })
    };
    children(class).into_iter().filter_map(device).collect()
}

fn backing(dir: &Path, mounts: &[Mount]) -> Option<Backing> {
    let path = read_to_string(dir.join("loop/backing_file")).ok()?;
    let path = path.strip_suffix('\n').unwrap_or(&path);
    let bytes = |of: &str| read_to_string(dir.join(of)).ok()?.trim().parse::<u64>().ok();
    let start = bytes("loop/offset").unwrap_or(0);
    let length = bytes("loop/sizelimit").filter(|&limit| limit > 0);
    let facts = if is_remote(path, mounts) { None } else { std::fs::metadata(path).ok() };
    let node = match facts {
        Some(facts) if facts.is_file() => Node::file(&facts),
        Some(facts) => Node::device(facts.rdev()),
        None => Node::Path(path.to_owned()),
    };
    Some(Backing { node, start, end: length.map_or(u64::MAX, |length| start.saturating_add(length)) })
}

/// Whether a path lies on a file system that may not answer.
fn is_remote(path: &str, mounts: &[Mount]) -> bool {
    let above = |mount: &&Mount| Path::new(path).starts_with(unescape(&mount.point));
    // Of those at one point the last one is seen.
    let on = mounts.iter().filter(above).max_by_key(|mount| mount.point.len());
    on.is_some_and(|mount| REMOTE.contains(&&*mount.kind) || mount.kind.starts_with("fuse"))
}

/// Reads a path as the table of mounts writes it.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

fn name(path: &Path) -> String {
    // In names of devices the kernel writes `!` for `/`.
    path.file_name().unwrap_or_default().to_string_lossy().replace('!', "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: (u64, u64) = (0, u64::MAX);

    fn disk(number: &str, name: &str) -> Device {
        Device { number: number.into(), name: name.into(), ..Device::default() }
    }

    fn part(number: &str, name: &str, whole: &str) -> Device {
        Device { whole: Some(whole.into()), ..disk(number, name) }
    }

    fn volume(number: &str, name: &str, parts: &[&str]) -> Device {
        let parts = parts.iter().map(|&part| part.to_owned()).collect();
        Device { volume: Some(format!("vg-{name}")), parts, ..disk(number, name) }
    }

    fn loop_of(number: &str, name: &str, node: Node, (start, end): (u64, u64)) -> Device {
        Device { backing: Some(Backing { node, start, end }), ..disk(number, name) }
    }

    fn at(number: &str) -> Node {
        Node::Device(number.into())
    }

    const FILE: Node = Node::File(8, 100);

    fn picture(devices: &[Device], mounted: &[&str]) -> Picture {
        let mount = |number: &&str| Mount {
            number: (*number).into(),
            point: format!("/on-{number}"),
            kind: "ext4".into(),
            source: "none".into(),
        };
        Picture {
            devices: devices.to_vec(),
            mounts: mounted.iter().map(mount).collect(),
            ..Picture::default()
        }
    }

    #[test]
    fn a_file_that_is_mounted_through_another_loop_device_is_in_use() {
        let loops = [loop_of("7:0", "loop0", FILE, WHOLE), loop_of("7:1", "loop1", FILE, WHOLE)];
        let used = picture(&loops, &["7:0"]);
        for target in [at("7:1"), FILE] {
            assert_eq!(used.uses_of(&target), ["mounted at /on-7:0 (/dev/loop0)"], "{target:?}");
        }
        assert_eq!(used.uses_of(&at("7:0")), ["mounted at /on-7:0"]);
        assert!(used.uses_of(&Node::File(8, 101)).is_empty() && used.uses_of(&at("8:0")).is_empty());
        assert!(picture(&loops, &["8:0"]).uses_of(&at("7:1")).is_empty());
    }

    #[test]
    fn parts_of_a_file_that_do_not_overlap_leave_each_other_alone() {
        let at_start = loop_of("7:0", "loop0", FILE, (0, 1000));
        let behind = loop_of("7:1", "loop1", FILE, (1000, 2000));
        let across = loop_of("7:2", "loop2", FILE, (500, u64::MAX));
        let used = picture(&[at_start, behind, across], &["7:0"]);
        assert!(used.uses_of(&at("7:1")).is_empty());
        assert_eq!(used.uses_of(&at("7:2")).len(), 1);
        assert_eq!(used.uses_of(&FILE).len(), 1, "the file has all of them");
    }

    #[test]
    fn what_is_made_of_it_through_any_number_of_layers_counts() {
        // A file, a loop device, its partition, a volume on that, a loop device of the volume, mounted.
        let layers = [
            loop_of("7:0", "loop0", FILE, WHOLE),
            loop_of("7:1", "loop1", FILE, WHOLE),
            part("259:1", "loop1p1", "7:1"),
            volume("253:0", "dm-0", &["259:1"]),
            loop_of("7:2", "loop2", at("253:0"), WHOLE),
        ];
        let used = picture(&layers, &["7:2"]);
        for target in [FILE, at("7:0"), at("7:1"), at("259:1"), at("253:0")] {
            assert_eq!(used.uses_of(&target), ["mounted at /on-7:2 (/dev/loop2)"], "{target:?}");
        }
    }

    #[test]
    fn other_parts_of_the_same_disk_are_left_alone() {
        let disks = [
            disk("8:0", "sda"),
            part("8:1", "sda1", "8:0"),
            part("8:2", "sda2", "8:0"),
            volume("253:0", "dm-0", &["8:2"]),
            volume("253:1", "dm-1", &["8:2"]),
        ];
        let used = picture(&disks, &["8:1", "253:0"]);
        assert!(used.uses_of(&at("253:1")).is_empty(), "a volume beside a mounted one");
        assert_eq!(used.uses_of(&at("8:2")), ["mounted at /on-253:0 (/dev/dm-0)"]);
        assert_eq!(used.uses_of(&at("8:0")).len(), 2);
        assert_eq!(picture(&disks, &["8:0"]).uses_of(&at("8:2")), ["mounted at /on-8:0 (/dev/sda)"]);
    }

    #[test]
    fn swap_btrfs_and_mounts_by_name_count() {
        let loops = [loop_of("7:0", "loop0", FILE, WHOLE), volume("253:0", "dm-0", &["7:0"])];
        let mut used = picture(&loops, &[]);
        used.swaps = vec!["/dev/mapper/vg-dm-0".into()];
        assert_eq!(used.uses_of(&FILE), ["swap (/dev/dm-0)"]);
        used.swaps = vec!["/dev/loop1".into()];
        used.members = vec!["loop0".into()];
        assert_eq!(used.uses_of(&FILE), ["part of a mounted btrfs file system (/dev/loop0)"]);
        used.members.clear();
        used.mounts = mounts("40 1 0:45 / /mnt rw shared:1 - btrfs /dev/loop0 rw\n\n41 1\n");
        assert_eq!(used.uses_of(&FILE), ["mounted at /mnt (/dev/loop0)"]);
    }

    #[test]
    fn circles_end() {
        let circle = [
            loop_of("7:0", "loop0", at("7:1"), WHOLE),
            loop_of("7:1", "loop1", at("7:0"), WHOLE),
            volume("253:0", "dm-0", &["253:0", "7:0"]),
            part("8:1", "sda1", "8:1"),
        ];
        assert_eq!(picture(&circle, &["253:0"]).uses_of(&at("7:1")).len(), 1);
        assert!(picture(&circle, &[]).uses_of(&at("8:1")).is_empty());
    }

    #[test]
    fn files_on_network_file_systems_are_not_examined() {
        let table = mounts(
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 1 0:50 / /srv/a\\040b rw - nfs4 host:/x rw\n\
             24 1 0:51 / /srv/fuse rw - fuse.sshfs host:/x rw\n",
        );
        assert!(is_remote("/srv/a b/image", &table) && is_remote("/srv/fuse/x", &table));
        assert!(!is_remote("/srv/a", &table) && !is_remote("/image (deleted)", &table));
    }

    #[test]
    fn the_picture_of_this_system_can_be_taken() {
        let picture = Picture::take();
        assert!(picture.mounts.iter().any(|mount| mount.point == "/"), "{:?}", picture.mounts);
        assert!(picture.uses_of(&Node::File(0, 0)).is_empty());
    }
}
