"""Jobs with many revisions: listing them, and their mount."""

import os
import random
import shutil
import statistics
import time

from bench.files import GIB, remove, write_small
from bench.measure import median, run, say, text_of


def listing(bench):
    """a mounted job with 10,000 revisions"""
    count = 500 if bench.options.quick else 10_000
    image = f"{bench.work}/small.img"
    write_small(image, 0)
    job = bench.make_job("listing", image)
    bench.backup(job)
    say(f"making {count:,} revisions")
    multiply(job, count)
    run(bench.backy, "-b", job, "status")
    results = []
    for _ in range(max(5, bench.options.repeat)):
        mount = bench.mount(os.path.dirname(job))
        begun = time.monotonic()
        run("ls", f"{bench.mountpoint}/bench")
        first = time.monotonic()
        run("ls", f"{bench.mountpoint}/bench")
        second = time.monotonic()
        names = os.listdir(f"{bench.mountpoint}/bench")
        lookups = []
        for name in random.Random(3).sample(names, 200):
            before = time.monotonic()
            os.lstat(f"{bench.mountpoint}/bench/{name}")
            lookups.append(time.monotonic() - before)
        results.append((mount.ready, first - begun, second - first, statistics.median(lookups)))
        # After a change: what must be read anew.
        bench.backup(job)
        before = time.monotonic()
        while len(os.listdir(f"{bench.mountpoint}/bench")) == len(names):
            time.sleep(0.01)
        results[-1] += (time.monotonic() - before,)
        mount.end()
    values = [statistics.median(column) * 1e3 for column in zip(*results)]
    for (what, limit), value in zip((("start of the mount", "100 ms"), ("first `ls` of the job", "100 ms"), ("second `ls`", ""),
                                     ("lookup of one revision", "1 ms"), ("a new revision is listed after", "1000 ms")), values):  # fmt: skip
        bench.fact(f"{count:,} revisions: {what}", f"{value:.3g} ms", limit)
    shutil.rmtree(os.path.dirname(job))
    remove(image)


def multiply(job, count):
    """Makes many revisions out of one, by its manifest and its map, as docs/format.md describes them."""
    name = next(name for name in os.listdir(job) if name.endswith(".rev"))
    with open(f"{job}/{name}") as file:
        lines = [line for line in file if not line.startswith("seal: ")]
    letters = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    ids = ["".join(random.Random(number).choices(letters, k=22)) for number in range(count - 1)]
    for number, id in enumerate(ids):
        stamp = time.strftime("%Y-%m-%d %H:%M:%S+00:00", time.gmtime(1_600_000_000 + 3600 * number))
        changed = {"uuid": id, "timestamp": stamp}
        with open(f"{job}/{id}.rev", "w") as file:
            for line in lines:
                key = line.split(":")[0]
                file.write(f"{key}: {changed[key]}\n" if key in changed else line)
        os.link(f"{job}/{name.removesuffix('.rev')}.map", f"{job}/{id}.map")
    for first in range(0, len(ids), 1000):
        part = ids[first : first + 1000]
        seals = text_of("b3sum", "--no-names", *(f"{job}/{id}.rev" for id in part)).split()
        for id, seal in zip(part, seals):
            with open(f"{job}/{id}.rev", "a") as file:
                file.write(f"seal: {seal}\n")


def revisions(bench):
    """status and the start of a mount with many revisions"""
    count = 100 if bench.options.quick else 1000
    image = f"{bench.work}/sparse.img"
    with open(image, "wb") as file:
        file.write(b"one block".ljust(4096))
        file.truncate(16 * GIB)
    job = bench.make_job("revisions", image)
    say(f"making {count} revisions")
    for _ in range(count):
        bench.backup(job)
    store = os.path.dirname(job)
    name = f"{count} revisions of 4,096 chunks"
    for what, where in (("status of the job", job), ("status of the store", store)):
        cost = median([run(bench.backy, "-b", where, "status") for _ in range(max(5, bench.options.repeat))])
        bench.fact(f"{name}: {what}", f"{cost.wall * 1e3:.0f} ms, {cost.peak / 1e6:.0f} MB", "50 ms")
    starts = []
    for _ in range(max(5, bench.options.repeat)):
        mount = bench.mount(store)
        starts.append(mount.ready)
        begun = time.monotonic()
        listed = len(os.listdir(f"{bench.mountpoint}/bench"))
        listing = time.monotonic() - begun
        mount.end()
    bench.fact(f"{name}: start of the mount", f"{statistics.median(starts) * 1e3:.0f} ms", "50 ms")
    bench.fact(f"{name}: listing of the mounted job, {listed} names", f"{listing * 1e3:.0f} ms")
    shutil.rmtree(store)
    remove(image)
