"""Reading mounted images: sequentially, at random places, and by many at once."""

import os
import random
import statistics
import subprocess

from bench.files import FRAME, MIB, extents, files_below
from bench.measure import median, run, say, text_of
from bench.mounts import dd_twice


def dd(bench):
    """dd of a mounted image, against what FUSE, the codec and the disk allow"""
    store = os.path.dirname(bench.filled_job())
    bench.pack()
    chunks = list(files_below(f"{store}/chunks"))
    size = os.path.getsize(bench.image)
    measured = {}
    # Whoever uses memory first that the system had given back pays for it: nobody who is measured.
    dd_twice(bench.zeros(size), "zeros")
    for number in range(bench.options.repeat):
        say(f"dd, {number + 1} of {bench.options.repeat}")
        for name, measure in (
            ("plain file", lambda: [run("dd", f"if={bench.image}", "of=/dev/null", "bs=4M", "status=none")]),
            ("disk: `cat` of the chunk files", lambda: [cat(bench, chunks)]),
            ("`zstd -d` to /dev/null", lambda: [run("zstd", "-q", "-d", "-c", bench.packed)]),
            ("decoding on all cores: `restore -`", lambda: [bench.decode(f"{store}/bench")]),
            ("FUSE: zeros from memory", lambda: dd_twice(bench.zeros(size), "zeros")),
            ("backy", lambda: dd_twice(bench.mount(store), "bench/last/image")),
            ("backy, `iflag=direct`", lambda: dd_twice(bench.mount(store), "bench/last/image", "iflag=direct")),
        ):
            bench.settle()
            for turn, cost in zip(("", ", second read"), measure()):
                measured.setdefault(name + turn, []).append(cost)
    rate = {name: size / MIB / median(costs).wall for name, costs in measured.items()}
    fuse, second = "FUSE: zeros from memory", ", second read"
    limits = [fuse, "decoding on all cores: `restore -`", "disk: `cat` of the chunk files"]
    ceiling = min(limits, key=rate.get)
    for name, costs in measured.items():
        cost, verdict = median(costs), ""
        if name in ("backy", "backy, `iflag=direct`"):
            verdict = f"{rate[name] / rate[ceiling]:.0%} of the lowest limit ({ceiling.split(':')[0]}); at least 80 %"
        elif name == "backy" + second:
            verdict = f"{rate[name] / rate[fuse]:.0%} of FUSE's limit; at least 90 %"
        bench.rate(name, rate[name], cost, verdict)


def cat(bench, paths):
    with open(f"{bench.work}/paths", "w") as file:
        file.write("\0".join(paths))
    return run("xargs", "-0", "-a", f"{bench.work}/paths", "cat")


def random_reads(bench):
    """random 4 KiB reads through the mount, by one and by four threads"""
    count = 200 if bench.options.quick else 1000
    places = write_places(bench, count)
    job = bench.filled_job()
    store, size = os.path.dirname(job), os.path.getsize(bench.image)
    measured, cpu, asked = {}, [], []

    def read(case, path, threads, place, *more):
        command = [f"{bench.tools}/readers", *more, path, "4096", str(threads), places[place]]
        middle, late, wall = map(float, text_of(*command).split())
        measured.setdefault((case, threads), []).append((middle / 1e3, late / 1e3, wall))

    for number in range(max(3, bench.options.repeat)):
        say(f"random reads, {number + 1} of {max(3, bench.options.repeat)}")
        bench.settle()
        mount = bench.zeros(size)
        read("FUSE: zeros", f"{bench.mountpoint}/zeros", 1, "cold1")
        read("FUSE: zeros", f"{bench.mountpoint}/zeros", 4, "cold4")
        mount.end()
        bench.settle()
        mount = bench.mount(store, "cache=512M")
        path, before = f"{bench.mountpoint}/bench/last/image", mount.counters()
        read("cold frames", path, 1, "cold1")
        after = mount.counters()
        cpu.append((after[1] - before[1]) / count * 1e3)
        asked.append((after[0] - before[0]) / count / 1024)
        read("cold frames", path, 4, "cold4")
        read("decoded frames", path, 1, "warm1")
        read("decoded frames", path, 4, "warm4")
        mount.end()
        bench.settle()
        read("whole chunks, without any mount", job, 1, "chunks", "--chunks")
    rates = report_reads(bench, measured, places)
    ratio = rates["cold frames", 1] / rates["whole chunks, without any mount", 1]
    bench.fact("cold frames against whole chunks, 1 thread", f"{ratio:.0f} times the rate", "at least 30")
    bench.fact("CPU of the mount for each cold read", f"{statistics.median(cpu):.2f} ms")
    bench.fact("bytes read from the store for each", f"{statistics.median(asked):.1f} KiB", "one frame, not 4 MiB")


def write_places(bench, count):
    """Writes lists of offsets for the reading program; returns the list files by name."""
    ranges = [part for part in extents(bench.image) if part[1] - part[0] >= FRAME]
    frames = {frame for first, end in ranges for frame in range(-(-first // FRAME), end // FRAME)}
    chosen = random.Random(1).sample(sorted(frames), min(5 * count, len(frames)))
    # Places of cold frames, three times one block further in each frame, and where whole chunks are decoded.
    places = {name: f"{bench.work}/{name}" for name in ("cold1", "cold4", "warm1", "warm4", "chunks")}
    for name, first, last, inside in (
        ("cold1", 0, count, 8192), ("warm1", 0, count, 24576), ("cold4", count, 3 * count, 8192),
        ("warm4", count, 3 * count, 24576), ("chunks", 4 * count, 4 * count + count // 5, 8192),
    ):  # fmt: skip
        with open(places[name], "w") as file:
            file.writelines(f"{frame * FRAME + inside}\n" for frame in chosen[first:last])
    return places


def report_reads(bench, measured, places):
    """Adds a row for each kind of read; returns the reads per second of each."""
    sizes = {name: sum(1 for _ in open(place)) for name, place in places.items()}
    rates = {}
    for (case, threads), results in measured.items():
        middle, late, wall = (statistics.median(column) for column in zip(*results))
        place = {"whole chunks, without any mount": "chunks"}.get(case, f"cold{threads}")
        rates[case, threads] = sizes[place] / wall * 1e6
        limit = "0.3 ms" if case == "cold frames" and threads == 1 else ""
        if case == "decoded frames":
            ratio = middle / statistics.median(m for m, _, _ in measured["FUSE: zeros", threads])
            limit = f"{ratio:.2f} times FUSE's median; 1.5"
        bench.fact(f"random 4 KiB reads, {threads} threads, {case}: median, 99 % within, reads per second",
                  f"{middle:.3f} ms, {late:.2f} ms, {rates[case, threads]:,.0f}", limit)  # fmt: skip
    return rates


def memory(bench):
    """memory of a mount with eight sequential readers at once"""
    store = os.path.dirname(bench.filled_job())
    bench.settle()
    mount = bench.mount(store, "cache=256M")
    blocks = os.path.getsize(bench.image) // (4 * MIB)
    readers = [
        subprocess.Popen(["dd", f"if={bench.mountpoint}/bench/last/image", "of=/dev/null", "bs=4M", "status=none",
                          f"skip={number * blocks // 8}"]) for number in range(8)
    ]  # fmt: skip
    for reader in readers:
        reader.wait()
    peak = mount.end().peak
    bench.fact("8 sequential readers, `cache=256M`: peak of the mount", f"{peak / MIB:.0f} MiB", "350 MiB")
