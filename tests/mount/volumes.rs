//! Logical volumes as LVM itself makes them: their files hold what lies in their extents. Volumes are never activated,
//! so no device-mapper is needed.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::partitions::{Disks, partition};
use crate::{LoopDevice, path, tool};

const MIB: u64 = 1 << 20;

/// The two physical volumes of a disk.
struct Group<'a> {
    disks: &'a Disks,
    devices: [LoopDevice; 2],
    /// First byte of each on the disk.
    starts: [u64; 2],
}

impl<'a> Group<'a> {
    fn new(disks: &'a Disks, disk: &Path) -> Self {
        let starts = [MIB, 65 * MIB];
        let device = |start: u64| {
            let (offset, size) = (start.to_string(), (60 * MIB).to_string());
            let device = ["--find", "--show", "--offset", &offset, "--sizelimit", &size, path(disk)];
            LoopDevice(tool("losetup", &device))
        };
        let this = Self { disks, devices: starts.map(device), starts };
        let [first, second] = [0, 1].map(|number| this.devices[number].0.clone());
        this.lvm(&["pvcreate", "-y", &first, &second]);
        this.lvm(&["vgcreate", "-s", "1M", "data-vg", &first, &second]);
        this
    }

    fn lvm(&self, arguments: &[&str]) -> String {
        let (command, rest) = arguments.split_first().expect("a command");
        let place = path(&self.disks.at("")).to_owned();
        let accepted =
            self.devices.iter().map(|device| format!("\"a|^{}$|\",", device.0)).collect::<String>();
        let config = format!(
            "devices {{ filter=[{accepted}\"r|.*|\"] use_devicesfile=0 obtain_device_list_from_udev=0
             external_device_info_source=\"none\" }}
             global {{ locking_dir=\"{place}/lock\" use_lvmpolld=0 system_id_source=\"none\" }}
             activation {{ udev_sync=0 udev_rules=0 monitoring=0 }} backup {{ backup=0 archive=0 }}"
        );
        tool("timeout", &[&["60", "lvm", command, "--config", &config, "--driverloaded", "n"], rest].concat())
    }

    fn create(&self, name: &str, more: &[&str]) {
        self.lvm(&[&["lvcreate", "-an", "-Zn", "-Wn", "-n", name], more, &["data-vg"]].concat());
    }

    /// Writes the content of a volume into its extents, which LVM is asked for; returns how many pieces they are.
    fn fill(&self, disk: &Path, name: &str, content: &[u8]) -> usize {
        let disk = fs::OpenOptions::new().write(true).open(disk).expect("the disk opens");
        let volume = format!("data-vg/{name}");
        let listed = self.lvm(&["lvs", "--noheadings", "-o", "seg_start_pe,seg_pe_ranges", &volume]);
        let begins =
            self.lvm(&["pvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "pv_name,pe_start"]);
        for line in listed.lines() {
            // 20 /dev/loop0:30-62
            let (start, range) = line.trim().split_once(' ').expect("two columns");
            let (device, extents) = range.trim().split_once(':').expect("a device and extents");
            let (first, last) = extents.split_once('-').expect("a range");
            let number = |text: &str| text.trim().parse::<u64>().expect("a number");
            let begin =
                begins.lines().find_map(|line| line.trim().strip_prefix(device)).expect("it is listed");
            let place = self.devices.iter().position(|known| known.0 == device).expect("it is ours");
            let offset = self.starts[place] + number(begin) + number(first) * MIB;
            let from = (number(start) * MIB) as usize;
            let length = ((number(last) - number(first) + 1) * MIB) as usize;
            disk.write_all_at(&content[from..from + length], offset).expect("the extents are written");
        }
        listed.lines().count()
    }
}

#[test]
fn volumes_of_lvm_hold_what_lies_in_their_extents() {
    let Some(disks) = Disks::new() else { return };
    let disk = disks.empty("disk.img", 126 * MIB);
    partition(&disk, "label: gpt\nstart=1MiB,size=60MiB\nstart=65MiB,size=60MiB\n");
    let group = Group::new(&disks, &disk);
    group.create("striped", &["-L", "4M", "-i", "2"]);
    group.create("old", &["-L", "5M"]);
    group.create("root", &["-L", "10M"]);
    group.create("log", &["-L", "7M"]);
    group.lvm(&["lvremove", "-f", "data-vg/old"]);
    group.lvm(&["lvextend", "-L", "70M", "data-vg/root"]);
    group.lvm(&["lvextend", "-L", "9M", "data-vg/log"]);
    let root = disks.format("ext4", "root.img", 70 * MIB);
    let log: Vec<u8> = (0..9 * MIB).map(|at| (at / 4096 * 7) as u8).collect();
    let pieces = group.fill(&disk, "root", &fs::read(&root).expect("it is readable"));
    assert!(pieces >= 3, "root should be in pieces, on both volumes: {pieces}");
    group.fill(&disk, "log", &log);
    drop(group);
    disks.back_up("web01", &disk);
    disks.mount();

    let names = ["1.img", "2.img", "data-vg-log.img", "data-vg-root.img", "parts.json"];
    assert_eq!(disks.names("web01"), names);
    let shown = |name: &str| disks.mounted("web01", "parts").join(name);
    assert!(fs::read(shown("data-vg-log.img")).expect("it is readable") == log);
    tool("cmp", &[path(&root), path(&shown("data-vg-root.img"))]);
    disks.check_files("ext4", "ro,loop,noload", &shown("data-vg-root.img"));
    let facts = disks.description("web01");
    let left_out = "logical volume \"data-vg-striped\" is left out: it is not linear";
    assert_eq!(facts["findings"], serde_json::json!([left_out]));
    assert_eq!(facts["parts"][0]["content"], "LVM2");
}

#[test]
fn a_disk_may_be_one_physical_volume() {
    let Some(disks) = Disks::new() else { return };
    let disk = disks.empty("disk.img", 126 * MIB);
    // Both lie behind each other; the first is all that the disk is said to have.
    let group = Group::new(&disks, &disk);
    group.create("small", &["-L", "3M"]);
    let content: Vec<u8> = (0..3 * MIB).map(|at| (at / 512) as u8).collect();
    group.fill(&disk, "small", &content);
    drop(group);
    let first = disks.empty("first.img", 0);
    let input = format!("if={}", path(&disk));
    tool("dd", &[&input, &format!("of={}", path(&first)), "bs=1M", "skip=1", "count=60", "status=none"]);
    disks.back_up("web01", &first);
    disks.mount();
    assert_eq!(disks.names("web01"), ["data-vg-small.img", "parts.json"]);
    assert!(fs::read(disks.mounted("web01", "parts/data-vg-small.img")).expect("it is readable") == content);
}
