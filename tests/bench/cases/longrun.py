"""What a store costs in the long run: a year of scattered writes, and a year of mixed load with retention.

The days are virtual: each is a change of the image and a real backup. Every figure is about files below the store, maps,
manifests and the register included.
"""

import json
import os
import random
import shutil
import statistics
import struct
import subprocess

from bench.files import FRAME, MIB, remove
from bench.measure import run, say, text_of
from bench.peers.curves import curve

CHUNK, PAGE = 4 * MIB, 4096


class Disk:
    """An image whose pages are written one by one: half of them can be compressed well, the others not at all."""

    def __init__(self, path, size, seed=1):
        self.path, self.pages = path, size // PAGE
        self.random = random.Random(seed)
        with open(path, "wb") as file:
            for _ in range(self.pages // 256):
                file.write(b"".join(self.page() for _ in range(256)))
        self.file = open(path, "r+b")

    def page(self):
        if self.random.random() < 0.5:
            return self.random.randbytes(PAGE)
        return (self.random.randbytes(16) * (PAGE // 16))[:PAGE]

    def write(self, number):
        self.file.seek(number * PAGE)
        self.file.write(self.page())

    def scatter(self, count):
        for number in self.random.sample(range(self.pages), count):
            self.write(number)
        self.file.flush()

    def run_of(self, first, count):
        for number in range(first, first + count):
            self.write(number % self.pages)
        self.file.flush()


def earlier(case):
    """The curve of this case that was measured with an earlier format, and what that was."""
    with open(os.path.join(os.path.dirname(__file__), "../earlier.json")) as file:
        found = json.load(file).get(case, {})
    return found.get("points", []), found.get("label", "")


def draw(bench, case, title, points):
    """A curve over days, as a picture and as numbers."""
    os.makedirs(bench.results, exist_ok=True)
    with open(f"{bench.results}/{case}.json", "w") as file:
        json.dump([[day, round(value, 2)] for day, value in points], file)
    bench.texts.append(curve(title, points, f"{bench.results}/{case}.svg", *earlier(case)))


def stored(store):
    """Bytes and number of all files of a store but logs and the index; names of one file count once."""
    seen, total, chunks, others = set(), 0, 0, 0
    for folder, folders, names in os.walk(store):
        folders[:] = [name for name in folders if name not in ("tmp", "writers", ".reserve.d")]
        for name in names:
            if name.startswith((".reserve", "index.sqlite", "backy.log")):
                continue
            facts = os.lstat(os.path.join(folder, name))
            if (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            total += facts.st_size
            in_chunks = os.path.relpath(folder, store).startswith("chunks")
            chunks += in_chunks and "." not in name
            others += in_chunks and "." in name
    return total, chunks, others


def year(bench):
    """a year of scattered 4 KiB writes, every day kept: bytes for each write, files, restore of the last day"""
    days, chunks = (30, 16) if bench.options.quick else (bench.options.days, 128)
    writes = round(2.85 * chunks)
    image, target = f"{bench.work}/year.img", f"{bench.work}/year.out"
    disk = Disk(image, chunks * CHUNK)
    job = bench.make_job("year", image=image)
    store = os.path.dirname(job)
    bench.backup(job)
    first = restore_cost(bench, job, "first", target)
    before, full, _ = stored(store)
    costs, walls, curve_points = [], [], []
    for day in range(1, days + 1):
        if day % 20 == 1:
            say(f"year, day {day} of {days}")
        disk.scatter(writes)
        walls.append(bench.backup(job))
        total, full, groups = stored(store)
        costs.append((total - before) / writes)
        before = total
        curve_points.append((day, costs[-1] / 1024))
    average = statistics.mean(costs)
    bench.fact("year: stored for each write of 4 KiB, average", f"{average / 1024:.2f} KiB", "8 KiB")
    for name, part in (("first 30 days", costs[:30]), ("last 30 days", costs[-30:])):
        bench.fact(f"year: the same, {name}", f"{statistics.mean(part) / 1024:.2f} KiB")
    bench.fact("year: the dearest day, of the average", f"{max(costs) / average:.2f} times", "4 times")
    bench.fact("year: files below `chunks`", f"{full} full, {groups} groups", f"full + {3 * days}")
    bench.fact("year: backup on the first and last 10 days, CPU",
               f"{mean_cpu(walls[:10]):.2f} s, {mean_cpu(walls[-10:]):.2f} s")  # fmt: skip
    last = restore_cost(bench, job, "last", target)
    run("cmp", image, target)
    bench.fact("year: restore of the last day, CPU, of that of day 0", f"{last.cpu / first.cpu:.2f} times", "1.3 times")
    bench.fact("year: the same, wall", f"{last.wall / first.wall:.2f} times", "1.5 times")
    opened = opened_files(bench, job, target)
    bench.fact("year: files opened for each chunk by that restore", f"{opened / chunks:.2f}", "4")
    cold_reads(bench, store, image)
    draw(bench, "year", "Stored for each scattered write of 4 KiB, in KiB", curve_points)
    remove(target)
    remove(image)
    shutil.rmtree(store)


def mean_cpu(costs):
    return statistics.mean(cost.cpu for cost in costs)


def restore_cost(bench, job, revision, target):
    """The median cost of a restore, after one that brings the store into the page cache."""
    def restore():
        remove(target)
        return run(bench.backy, "-b", job, "restore", "-r", revision, target)

    restore()
    costs = [restore() for _ in range(max(3, bench.options.repeat))]
    return sorted(costs, key=lambda cost: cost.cpu)[len(costs) // 2]


def opened_files(bench, job, target):
    """How many files of chunks and groups a restore opens."""
    remove(target)
    trace = f"{bench.work}/trace"
    run("strace", "-f", "-qq", "-e", "trace=openat", "-o", trace, bench.backy, "-b", job, "restore", "-r", "last", target)
    with open(trace) as file:
        count = sum("/chunks/" in line and " = -1 " not in line and "O_DIRECTORY" not in line for line in file)
    remove(trace)
    return count


def cold_reads(bench, store, image):
    """The median time of a random 4 KiB read through the mount, of frames that are not decoded yet."""
    frames = os.path.getsize(image) // FRAME
    places = f"{bench.work}/places"
    with open(places, "w") as file:
        file.writelines(f"{frame * FRAME}\n" for frame in random.Random(2).sample(range(frames), min(1000, frames)))
    mount = bench.mount(store, "cache=512M")
    middle, late, _ = map(float, text_of(f"{bench.tools}/readers", f"{bench.mountpoint}/bench/last/image", "4096", "1", places).split())
    mount.end()
    remove(places)
    bench.fact("year: random cold 4 KiB read in the mount, median and 99 %", f"{middle / 1e3:.2f} ms, {late / 1e3:.2f} ms", "0.3 ms")


def mixed(bench):
    """a year of scattered and sequential writes with retention and a purge each day, against the distinct pages kept"""
    days, size, scattered, sequential = (25, 128 * MIB, 60, 640) if bench.options.quick else (bench.options.days, 1024 * MIB, 500, 5120)
    image = f"{bench.work}/mixed.img"
    disk = Disk(image, size, seed=3)
    job = bench.make_job("mixed", image=image)
    store = os.path.dirname(job)
    kept, curve_points, at = {}, [], 0
    for day in range(days + 1):
        if day % 20 == 1:
            say(f"mixed, day {day} of {days}")
        if day:
            disk.scatter(scattered)
            disk.run_of(at, sequential)
            at = (at + sequential) % disk.pages
        bench.backup(job)
        revision = json.loads(text_of(bench.backy, "-b", job, "status", "--json"))["revisions"][-1]["id"]
        kept[day] = revision
        for old in [old for old in kept if not is_kept(old, day)]:
            run(bench.backy, "-b", job, "forget", "-r", kept.pop(old))
        subprocess.run([bench.backy, "-b", store, "purge", "--now"], check=True, capture_output=True)
        curve_points.append((day, stored(store)[0] / MIB))
    bound = distinct_bytes(bench, job, list(kept.values()))
    total = stored(store)[0]
    bench.fact("mixed: store at the end, of the distinct pages kept, compressed", f"{total / bound:.2f} times", "1.3 times")
    bench.fact("mixed: the same in MiB, and revisions", f"{total / MIB:.0f} of {bound / MIB:.0f}, {len(kept)}")
    draw(bench, "mixed", "Size of the store with mixed load, in MiB", curve_points)
    remove(image)
    shutil.rmtree(store)


def is_kept(day, today):
    """7 daily, 4 weekly, 12 monthly."""
    return today - day < 7 or (day % 7 == 0 and today - day < 28) or (day % 30 == 0 and today - day < 360)


def distinct_bytes(bench, job, revisions):
    """The distinct 4 KiB pages of revisions, compressed in frames of 64 KiB with the level of the backups."""
    seen, pages = set(), f"{bench.work}/pages"
    with open(pages, "wb") as out:
        for revision in revisions:
            process = subprocess.Popen([bench.backy, "-b", job, "restore", "-r", revision, "-"], stdout=subprocess.PIPE,
                                       stderr=subprocess.DEVNULL)  # fmt: skip
            while block := process.stdout.read(FRAME):
                for at in range(0, len(block), PAGE):
                    page = block[at : at + PAGE]
                    if (name := hash(page)) not in seen and page.strip(b"\0"):
                        seen.add(name)
                        out.write(page)
            process.wait()
    # A frame of its own for each 64 KiB: `-B` cuts the input, as the jobs of a multithreaded run do.
    total = int(text_of("bash", "-c", f"split -b {FRAME} --filter='zstd -q -1 -c' {pages} | wc -c"))
    remove(pages)
    return total


def two_installs(bench):
    """first backups of two machines that were installed separately: the same files at other offsets"""
    stage = f"{bench.work}/stage"
    trees = [("a", ["/usr/lib/x86_64-linux-gnu", "/usr/bin"], "1800M"),
             ("b", ["/usr/share/doc", "/usr/lib/python3", "/usr/lib/x86_64-linux-gnu", "/usr/bin"], "2000M")]  # fmt: skip
    store, sizes = f"{bench.work}/installs", []
    shutil.rmtree(store, ignore_errors=True)
    before = 0
    for name, folders, size in trees:
        shutil.rmtree(stage, ignore_errors=True)
        os.makedirs(stage)
        for number, folder in enumerate(folders):
            # Sorted before the others.
            place = f"{stage}/{number:02}-{os.path.basename(folder)}" if len(folders) > 2 and number < 2 else f"{stage}/{os.path.basename(folder)}"
            run("cp", "-a", folder, place)
        image = f"{bench.work}/{name}.img"
        remove(image)
        run("mke2fs", "-q", "-t", "ext4", "-d", stage, image, size)
        job = f"{store}/{name}"
        run(bench.backy, "-b", job, "init", "file", f"filename={image}")
        cost = bench.backup(job)
        total = stored(store)[0]
        sizes.append(total - before)
        before = total
        bench.fact(f"two-installs: machine {name}", f"{sizes[-1] / MIB:.0f} MiB, {cost.cpu:.2f} s CPU, {cost.peak / 1e6:.0f} MB",
                   "80 MiB" if name == "b" else "")  # fmt: skip
        if name == "a":
            remove(image)
    shutil.rmtree(store)
    nothing_in_common(bench, store, image)
    remove(image)
    shutil.rmtree(stage)


def nothing_in_common(bench, store, image):
    """A first backup of which the index knows nothing: with an empty index, and with one that is full of other content."""
    costs = []
    for tib in (0, 10):
        job = f"{store}/alone"
        run(bench.backy, "-b", job, "init", "file", f"filename={image}")
        if tib:
            fill_index(f"{store}/.pages", tib)
            size = sum(os.path.getsize(f"{store}/.pages/{file}") for file in ("table", "donors"))
            bench.fact("page index that has just grown, for each TiB in chunks", f"{size / tib / 1e6:.0f} MB", "150 MB")
        costs.append(bench.backup(job))
        shutil.rmtree(store)
    bench.fact("first backup with 10 TiB of other content in the index: peak", f"{costs[1].peak / 1e6:.0f} MB", "150 MB")
    bench.fact("the same, CPU, of that with an empty index", f"{costs[1].cpu / costs[0].cpu:.2f} times", "1.1 times")


def fill_index(folder, tib):
    """Makes a page index as `docs/format.md` has it, with random entries for so many TiB of chunks."""
    os.makedirs(folder, mode=0o700)
    donors = tib * (1 << 40) // CHUNK
    entries = donors * (CHUNK // PAGE) // 24
    # As many as there are after the table has grown by a quarter.
    filled = 352
    buckets = entries // filled
    generation = os.urandom(16)
    for name, magic in (("table", b"BACKYPGT"), ("donors", b"BACKYPGS")):
        with open(f"{folder}/{name}", "wb") as file:
            file.write(struct.pack("<8sHH16sQQ", magic, 1, 0, generation, buckets, buckets * filled))
            if name == "table":
                file.write(bytes(4096 - 44))
                for _ in range(buckets):
                    file.write(os.urandom(filled * 8) + bytes(4096 - filled * 8))
            else:
                for _ in range(donors):
                    file.write(struct.pack("<I32sII", 1, os.urandom(32), 0, 0))
