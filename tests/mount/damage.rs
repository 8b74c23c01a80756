//! A damaged store behind a mount: how much a reader loses, what is said about it, and that a backup heals it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use backy_testkit::{CHUNK, Image, Random, Run, World};
use nix::fcntl::OFlag;

use crate::process::Mount;
use crate::{eventually, path, tool};

const FRAME: usize = 64 << 10;
const CHUNKS: usize = 6;

/// Where the only partition begins; not at the beginning of a page.
const PART: usize = 33 * 512;

fn can_mount() -> bool {
    let can = Path::new("/dev/fuse").exists();
    if !can {
        println!("skipped: the kernel has no /dev/fuse");
    }
    can
}

/// Noise, which lies in the chunks as it is, with a partition of all but the beginning.
/// Bytes of the hash at the end of a chunk file.
const HASH: usize = 32;

fn image() -> Image {
    let mut image = Image::zeros(CHUNKS * CHUNK);
    Random::new(3).fill(&mut image.0);
    image.0[440..512].fill(0);
    image.0[450] = 0x83;
    image.0[454..458].copy_from_slice(&((PART / 512) as u32).to_le_bytes());
    let sectors = ((image.0.len() - PART) / 512) as u32;
    image.0[458..462].copy_from_slice(&sectors.to_le_bytes());
    image.0[510..512].copy_from_slice(&[0x55, 0xaa]);
    image
}

/// The file of one of the image's chunks, which end with noise that does not compress.
fn chunk_of(world: &World, image: &Image, number: usize) -> PathBuf {
    let end = &image.0[(number + 1) * CHUNK - 4096..(number + 1) * CHUNK];
    let ends_so = |file: &Vec<u8>| file[..file.len().saturating_sub(HASH)].ends_with(end);
    let mut found = world.chunks().into_iter().filter(|chunk| ends_so(&fs::read(chunk).expect("it is read")));
    found.next().expect("the chunk is there")
}

/// Changes a byte of a file; negative places count from the end of its frames.
fn spoil(file: &Path, at: i64) {
    let file = OpenOptions::new().read(true).write(true).open(file).expect("it opens");
    let length = file.metadata().expect("it has a length").len() as i64;
    let at = if at < 0 { length - HASH as i64 + at } else { at } as u64;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("it is read");
    file.write_all_at(&[byte[0] ^ 4], at).expect("it is written");
}

/// Changes a byte of a frame of one of the image's chunks.
fn spoil_frame(world: &World, image: &Image, chunk: usize, frame: usize) {
    let file = chunk_of(world, image, chunk);
    spoil(&file, (frame * FRAME + 100) as i64 - CHUNK as i64);
}

/// Copies with dd, past all errors, in blocks of `block` bytes.
fn copy(world: &World, from: &Path, block: usize, flags: &str) -> Vec<u8> {
    let target = world.path("copy");
    let mut command = Command::new("dd");
    command.arg(format!("if={}", path(from))).arg(format!("of={}", path(&target)));
    command.arg(format!("bs={block}")).args(["conv=noerror,sync", "status=none"]);
    if !flags.is_empty() {
        command.arg(format!("iflag={flags}"));
    }
    command.output().expect("dd starts");
    fs::read(target).expect("dd wrote a file")
}

/// The ranges, in blocks of 512 bytes, in which a copy has zeros for other bytes.
fn lost(copy: &[u8], good: &[u8]) -> Vec<std::ops::Range<usize>> {
    assert!(copy.len() >= good.len() && copy[good.len()..].iter().all(|byte| *byte == 0));
    let mut ranges: Vec<std::ops::Range<usize>> = Vec::new();
    for at in (0..good.len()).step_by(512) {
        if copy[at..at + 512] == good[at..at + 512] {
            continue;
        }
        assert!(copy[at..at + 512] == [0; 512], "wrong bytes at {at}");
        match ranges.last_mut() {
            Some(range) if range.end == at => range.end += 512,
            _ => ranges.push(at..at + 512),
        }
    }
    ranges
}

fn frame(chunk: usize, frame: usize) -> std::ops::Range<usize> {
    let start = chunk * CHUNK + frame * FRAME;
    start..start + FRAME
}

/// The lines of the log about what could not be read.
fn complaints(world: &World) -> Vec<String> {
    logged(world, "cannot-read-from-an-image")
}

fn logged(world: &World, event: &str) -> Vec<String> {
    let log = fs::read_to_string(world.store().join("backy.log")).expect("there is a log");
    let lines = log.lines().filter(|line| line.contains(event));
    lines.map(str::to_owned).collect()
}

fn trust(world: &World, job: &str, id: &str) -> String {
    let status = Run::of(&mut world.command_for(job, &["status", "--json"])).expect(0).json();
    let revisions = status["revisions"].as_array().expect("a list of revisions");
    let found = revisions.iter().find(|revision| revision["id"] == id).expect("it is listed");
    found["trust"].as_str().expect("text").to_owned()
}

#[test]
fn a_reader_that_goes_on_loses_the_bad_frame_and_nothing_else() {
    if !can_mount() {
        return;
    }
    let mut world = World::new(env!("CARGO_BIN_EXE_backy"));
    let good = Arc::new(image());
    let other = world.backup(&Arc::new(Image::zeros(CHUNK).noise(0, 1)), "daily");
    let id = world.backup(&good, "daily");
    world.add_job("twin", "image.img");
    let twin = Run::of(&mut world.command_for("twin", &["backup", "daily"])).expect(0).line();
    spoil_frame(&world, &good, 1, 21);
    spoil_frame(&world, &good, 3, 0);
    spoil_frame(&world, &good, 5, 7);
    let frames = [frame(1, 21), frame(3, 0), frame(5, 7)];
    let mount = Mount::new(&world, &[]);
    let image = mount.point.join("web01").join(&id).join("image");

    // The first meeting is through the partition; the place in the log is that of the disk.
    let part = mount.point.join("web01").join(&id).join("parts/1.img");
    let found = lost(&copy(&world, &part, 512, "direct"), &good.0[PART..]);
    assert_eq!(found, frames.clone().map(|range| range.start - PART..range.end - PART));
    // Through the kernel's read-ahead, past it, in larger and smaller pieces than it reads: never more than a frame,
    // or the rest of a larger block that dd gives up.
    for (block, flags) in [(FRAME, ""), (4096, ""), (FRAME, "direct"), (4096, "direct")] {
        assert_eq!(lost(&copy(&world, &image, block, flags), &good.0), frames, "{block} {flags}");
    }
    for flags in ["", "direct"] {
        let rest = frame(1, 21).start..CHUNK + (2 << 20);
        let rests = [rest, 3 * CHUNK..3 * CHUNK + (1 << 20), frame(5, 7).start..5 * CHUNK + (1 << 20)];
        assert_eq!(lost(&copy(&world, &image, 1 << 20, flags), &good.0), rests, "{flags}");
    }
    let lines = complaints(&world);
    let chunk = |number: usize| {
        let file = chunk_of(&world, &good, number);
        file.file_name().expect("it has a name").to_string_lossy().into_owned()
    };
    assert_eq!(lines.len(), frames.len(), "{lines:#?}");
    for (line, range) in lines.iter().zip(frames) {
        let parts = ["web01".to_owned(), format!("revision={id}"), format!("offset={} ", range.start)];
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
        assert!(line.contains(&format!("chunk={}", chunk(range.start / CHUNK))), "{line}");
    }
    eventually("those are distrusted that use the chunk", || {
        trust(&world, "web01", &id) == "distrusted" && trust(&world, "twin", &twin) == "distrusted"
    });
    assert_eq!(trust(&world, "web01", &other), "trusted");
    mount.finish();
}

#[test]
fn a_direct_read_ends_before_the_bad_frame_and_a_buffered_copy_fails() {
    if !can_mount() {
        return;
    }
    let mut world = World::new(env!("CARGO_BIN_EXE_backy"));
    let good = Arc::new(image());
    let id = world.backup(&good, "daily");
    spoil_frame(&world, &good, 1, 21);
    let overlay = world.path("overlay");
    for arguments in [&[][..], &["--overlay", path(&overlay)]] {
        let mount = Mount::new(&world, arguments);
        let image = mount.point.join("web01").join(&id).join("image");
        let open = |flags| OpenOptions::new().read(true).custom_flags(flags).open(&image).expect("it opens");
        let file = open(OFlag::O_DIRECT.bits());
        if !arguments.is_empty() {
            let writer = OpenOptions::new().write(true).open(&image).expect("it opens");
            // In the same request as the bad frame, before it.
            writer
                .write_all_at(&good.0[CHUNK + 4096..CHUNK + 8192], CHUNK as u64 + 4096)
                .expect("it is written");
        }
        let mut buffer = vec![7; 2 << 20];
        let start = CHUNK + 4096;
        let read = file.read_at(&mut buffer, start as u64).expect("the bytes before it are good");
        assert_eq!(start + read, frame(1, 21).start);
        assert!(buffer[..read] == good.0[start..start + read]);
        let bad = frame(1, 21).start as u64;
        assert_eq!(file.read_at(&mut buffer, bad).expect_err("it is bad").raw_os_error(), Some(5));
        let after = frame(1, 22).start;
        assert_eq!(file.read_at(&mut buffer, after as u64).expect("it is good"), buffer.len());
        assert!(buffer == good.0[after..after + buffer.len()]);
        // A copy of cp or cat must fail and not look whole.
        let copied = Command::new("cp").args([path(&image), path(&world.path("copy"))]).output();
        assert!(!copied.expect("cp starts").status.success());
        drop(file);
        mount.finish();
    }
}

#[test]
fn a_chunk_that_does_not_open_costs_its_four_mib_and_is_healed_under_the_reader() {
    if !can_mount() {
        return;
    }
    let mut world = World::new(env!("CARGO_BIN_EXE_backy"));
    let good = Arc::new(image());
    let id = world.backup(&good, "daily");
    let headless = chunk_of(&world, &good, 2);
    spoil(&headless, 20);
    tool("rm", &[path(&chunk_of(&world, &good, 4))]);
    let mount = Mount::new(&world, &[]);
    let image = mount.point.join("web01").join(&id).join("image");
    let chunk = |number: usize| number * CHUNK..(number + 1) * CHUNK;
    let open = File::open(&image).expect("it opens");
    for flags in ["", "direct"] {
        let copy = copy(&world, &image, 1 << 20, flags);
        assert_eq!(lost(&copy, &good.0), [chunk(2), chunk(4)], "{flags}");
    }
    let lines = complaints(&world);
    assert_eq!(lines.len(), 2, "one for each chunk: {lines:#?}");
    for (line, number) in lines.iter().zip([2, 4]) {
        assert!(line.contains(&format!("offset={} ", number * CHUNK)), "{line}");
    }
    eventually("it is distrusted", || trust(&world, "web01", &id) == "distrusted");

    // The same file, which is open all the time.
    world.backup(&good, "daily");
    let mut read = vec![0; good.0.len()];
    open.read_exact_at(&mut read, 0).expect("it is healed");
    assert!(read == good.0);
    assert!(fs::read(&image).expect("it is healed") == good.0);
    drop(open);
    mount.finish();
}

#[test]
fn a_damaged_page_of_the_map_costs_its_range() {
    if !can_mount() {
        return;
    }
    const PAGE: u64 = 8 << 30;
    let mut world = World::new(env!("CARGO_BIN_EXE_backy"));
    let file = File::create(world.path("image.img")).expect("an image is made");
    file.set_len(2 * PAGE + (1 << 30)).expect("it gets a size");
    let places = [5, PAGE - 4096, PAGE, 2 * PAGE - 4096, 2 * PAGE, 2 * PAGE + (1 << 30) - 4096];
    for at in places {
        file.write_all_at(&at.to_le_bytes().repeat(512), at).expect("it is written");
    }
    let id = world.ok(&["backup", "daily"]).line();
    let map = world.job().join(format!("{id}.map"));
    // An entry of the second page.
    spoil(&map, 64 + 3 * 32 + 2048 * 32 + 1000);
    let mount = Mount::new(&world, &[]);
    let image = File::open(mount.point.join("web01/last/image")).expect("it opens");
    for at in places {
        let mut page = [0; 4096];
        let read = image.read_exact_at(&mut page, at);
        if (PAGE..2 * PAGE).contains(&at) {
            assert_eq!(read.expect_err("the page is damaged").raw_os_error(), Some(5), "{at}");
        } else {
            read.expect("the page is good");
            assert!(page[..] == at.to_le_bytes().repeat(512), "{at}");
        }
    }
    let lines = complaints(&world);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains(&format!("offset={PAGE} ")), "{lines:#?}");
    eventually("it is distrusted", || trust(&world, "web01", &id) == "distrusted");
    drop(image);
    mount.finish();
    world.expected.clear();
}

/// Backs up for the job `twin`, the second time with changes of two chunks; returns the ids of the two.
fn twin_with_runs(world: &World, good: &Image) -> Vec<String> {
    world.add_job("twin", "image.img");
    let backup = |image: &Image| {
        world.write_image(image);
        Run::of(&mut world.command_for("twin", &["backup", "daily"])).expect(0);
    };
    let mut before = Image(good.0.clone());
    [1, 3].into_iter().for_each(|chunk| before.0[chunk * CHUNK + 9 * FRAME] ^= 1);
    backup(&before);
    backup(good);
    let id = |chunk: usize| backy_store::ChunkId::of(&good.0[chunk * CHUNK..(chunk + 1) * CHUNK]).to_string();
    [1, 3].into_iter().map(id).collect()
}

#[test]
fn what_is_read_from_another_file_of_a_chunk_is_marked_and_told_once() {
    if !can_mount() {
        return;
    }
    let mut world = World::new(env!("CARGO_BIN_EXE_backy"));
    let good = Arc::new(image());
    let chunks = twin_with_runs(&world, &good);
    let [first, second] = &chunks[..] else { panic!("{chunks:?}") };
    let mark = |id: &str| world.store().join("damaged").join(id);
    let marks = [mark(first), mark(second)];
    // What is marked is written in full.
    marks.iter().for_each(|mark| drop(File::create(mark).expect("a mark is made")));
    let id = world.backup(&good, "daily");
    assert!(!marks.iter().any(|mark| mark.exists()), "they are healed");
    let full = |id: &str| world.store().join("chunks").join(&id[..2]).join(id);
    spoil(&full(first), (21 * FRAME + 100) as i64 - CHUNK as i64);
    tool("rm", &[path(&full(second))]);

    let mount = Mount::new(&world, &[]);
    let image = mount.point.join("web01").join(&id).join("image");
    for (block, flags) in [(1 << 20, ""), (4096, "direct"), (FRAME, "")] {
        assert_eq!(lost(&copy(&world, &image, block, flags), &good.0), [], "{block} {flags}");
    }
    eventually("it is marked and distrusted", || {
        marks.iter().all(|mark| mark.exists()) && trust(&world, "web01", &id) == "distrusted"
    });
    let lines = logged(&world, "got-around-damage-of-an-image");
    assert_eq!(lines.len(), 2, "one for each chunk: {lines:#?}");
    assert!([first, second].iter().all(|id| lines.iter().any(|line| line.contains(*id))), "{lines:#?}");
    assert!(complaints(&world).is_empty());
    mount.finish();

    // Before the other job's files go, which nothing keeps for this one.
    world.backup(&good, "daily");
    assert!(!marks.iter().any(|mark| mark.exists()), "they are healed");
    Run::of(&mut world.command_for("twin", &["forget", "-r", "all"])).expect(0);
    world.ok(&["purge", "--now"]);
    world.must_restore_all("after the groups were purged");
}

#[test]
fn a_page_of_places_that_is_done_without_distrusts_its_revision() {
    if !can_mount() {
        return;
    }
    let mut world = World::new(env!("CARGO_BIN_EXE_backy"));
    let good = Arc::new(image());
    let other = world.backup(&good, "daily");
    let mut after = good.0.clone();
    after[CHUNK + 9 * FRAME] ^= 1;
    let after = Arc::new(Image(after));
    let id = world.backup(&after, "daily");
    spoil(&world.job().join(format!("{id}.map")), -1);
    let mount = Mount::new(&world, &[]);
    let image = mount.point.join("web01").join(&id).join("image");
    assert!(fs::read(&image).expect("nothing is lost") == after.0);
    assert!(fs::read(&image).expect("nothing is lost") == after.0);
    eventually("it is distrusted", || trust(&world, "web01", &id) == "distrusted");
    assert_eq!(trust(&world, "web01", &other), "trusted");
    let lines = logged(&world, "got-around-damage-of-an-image");
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("page of places 0"), "{lines:#?}");
    mount.finish();
}
