//! A large disk with little on it: tools see the holes through the mount, copy quickly and read nothing of them.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use backy_testkit::{CHUNK, Random, World};

use crate::process::Mount;
use crate::{path, tool};

const SIZE: u64 = 2 << 30;

/// Where there is data: a chunk, and its bytes.
const DATA: [(u64, usize); 4] = [(0, 100_000), (7, CHUNK), (300, 5000), (511, 200_000)];

/// Where the only partition lies: from 2 MiB to 1.5 GiB.
const PART: (u64, u64) = (2 << 20, (3 << 29) - (2 << 20));

/// Bytes of the image, and of the partition, that are not in holes.
const IMAGE_BYTES: u64 = 4 * CHUNK as u64;
const PART_BYTES: u64 = IMAGE_BYTES - CHUNK as u64 - PART.0;

/// What a tool may write beside the data.
const SLACK: u64 = 2 << 20;

/// What the mount may be asked for beside the data: the kernel reads ahead beyond the end of each piece of data.
const AHEAD: u64 = 32 << 20;

/// Makes the image with its holes.
fn make_image(target: &Path) {
    let image = File::create(target).expect("an image is made");
    image.set_len(SIZE).expect("it gets a size");
    let mut random = Random::new(9);
    for (chunk, length) in DATA {
        let mut data = vec![0; length];
        random.fill(&mut data);
        if chunk == 0 {
            data[440..512].fill(0);
            data[450] = 0x83;
            data[454..458].copy_from_slice(&((PART.0 / 512) as u32).to_le_bytes());
            data[458..462].copy_from_slice(&((PART.1 / 512) as u32).to_le_bytes());
            data[510..512].copy_from_slice(&[0x55, 0xaa]);
        }
        image.write_all_at(&data, chunk * CHUNK as u64).expect("it is written");
    }
}

/// Bytes that a process has read so far with the calls of the system. Those of the mount carry what the kernel asks for
/// away in its answers.
fn bytes(pid: u32, kind: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix(kind)).expect("it is counted");
    line.trim().parse().expect("a number")
}

/// Compares two sparse files in those places only where one of them has data.
fn same(one: &Path, other: &Path) {
    tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", path(one), path(other)]);
}

#[test]
fn holes_are_seen_copied_and_never_read() {
    if !Path::new("/dev/fuse").exists() {
        println!("skipped: the kernel has no /dev/fuse");
        return;
    }
    let world = World::new(env!("CARGO_BIN_EXE_backy"));
    let source = world.path("image.img");
    make_image(&source);
    let id = world.ok(&["backup", "daily"]).line();
    let mount = Mount::new(&world, &[]);
    let dir = mount.point.join("web01").join(&id);
    let (image, part) = (dir.join("image"), dir.join("parts/1.img"));

    // The first question about a file that nobody has opened, of its partition before the image.
    for (file, size, data) in [(&part, PART.1, PART_BYTES), (&image, SIZE, IMAGE_BYTES)] {
        let du = |option: &str| -> u64 {
            let said = tool("du", &["--block-size=1", option, path(file)]);
            said.split_whitespace().next().and_then(|word| word.parse().ok()).expect("du says a number")
        };
        assert_eq!((du("--total"), du("--apparent-size")), (data, size), "{}", file.display());
    }
    let tools = ["cp", "qemu-img", "tar", "rsync"];
    for (file, data, tools) in [(&image, IMAGE_BYTES, &tools[..]), (&part, PART_BYTES, &tools[..3])] {
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).expect("it has a name");
        for &kind in tools {
            let target = world.path(&format!("{kind}-{name}"));
            let before = bytes(mount.pid(), "wchar:");
            match kind {
                "cp" => tool("cp", &["--sparse=auto", path(file), path(&target)]),
                "qemu-img" => {
                    tool("qemu-img", &["convert", "-f", "raw", "-O", "raw", path(file), path(&target)])
                }
                // Its protocol carries every byte, those of holes too.
                "rsync" => tool("rsync", &["-S", "--whole-file", path(file), path(&target)]),
                _ => {
                    let dir = file.parent().expect("it lies in a directory");
                    tool("tar", &["-S", "-C", path(dir), "-cf", path(&world.path("tar")), &name]);
                    let archive = fs::metadata(world.path("tar")).expect("it was made").len();
                    assert!(archive < data + SLACK, "{kind} {name}: an archive of {archive} bytes");
                    fs::create_dir_all(world.path("untar")).expect("a directory is made");
                    tool("tar", &["-S", "-C", path(&world.path("untar")), "-xf", path(&world.path("tar"))]);
                    tool("mv", &[path(&world.path("untar").join(&name)), path(&target)])
                }
            };
            let read = bytes(mount.pid(), "wchar:") - before;
            let taken = fs::metadata(&target).expect("it was copied");
            println!("{kind} {name}: {read} bytes asked for, {} taken", taken.blocks() * 512);
            assert!(taken.blocks() * 512 <= data + SLACK, "{kind} {name}: {} blocks", taken.blocks());
            if kind != "rsync" {
                assert!(read <= data + AHEAD, "{kind} {name}: read {read} bytes");
            }
            assert_eq!(taken.len(), fs::metadata(file).expect("it is there").len(), "{kind} {name}");
            same(file, &target);
            tool("rm", &[path(&target)]);
        }
    }
    same(&image, &source);
    mount.finish();
}
