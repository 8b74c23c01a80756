"""Stores that the original program wrote, against the original itself."""

import os
import random
import shutil
import statistics
import time

from bench.files import MIB, extents, remove
from bench.measure import median, processors, run, say
from bench.mounts import dd_twice


def original(bench):
    """a store of the original: restore, mount and upgrade against the original's own restore (--original)"""
    if not bench.options.original:
        bench.fact("a store of the original", "not measured: `--original BINARY`")
        return
    job, target = original_job(bench), f"{bench.work}/restored"
    size, rate = os.path.getsize(bench.image), {}
    theirs = [bench.options.original, "-b", job, "restore", "-r", "latest"]

    def to_file(command, *words):
        remove(target)
        return run(*command, *words, target)

    def mounted():
        return dd_twice(bench.mount(os.path.dirname(job)), "bench/last/image")[0]

    for number in range(bench.options.repeat):
        say(f"original, {number + 1} of {bench.options.repeat}")
        for name, measure in (
            ("the original: `restore -`", lambda: run(*theirs, "-")),
            ("backy: `restore -`", lambda: bench.decode(job)),
            ("backy: `dd` of the mounted image", mounted),
            ("the original: restore to a file", lambda: to_file(theirs)),
            ("backy: restore to a file", lambda: to_file([bench.backy, "-b", job, "restore", "--force"])),
        ):
            bench.settle()
            rate.setdefault(name, []).append(measure())
    run("cmp", bench.image, target)
    remove(target)
    rates = {name: size / MIB / median(costs).wall for name, costs in rate.items()}
    for name, costs in rate.items():
        stream = rates[name] / rates["the original: `restore -`"]
        verdict = f"{stream:.1f} times the original's stream; at least 3" if "-`" in name or "dd" in name else ""
        bench.rate(name, rates[name], median(costs), verdict)
    random_old(bench, job)
    restored = rate["backy: restore to a file"]
    upgrade(bench, job, size, rates["backy: restore to a file"])
    least(bench, median(rate["backy: `restore -`"]).cpu, median(restored).wall)


def upgrade(bench, job, size, restored):
    """The conversion of such a store, against the rate of a restore."""
    copy, costs = f"{bench.work}/upgraded", []
    for _ in range(bench.options.repeat):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(os.path.dirname(job), copy)
        run(bench.backy, "init", copy)
        bench.settle()
        costs.append(run(bench.backy, "-b", f"{copy}/bench", "upgrade"))
    shutil.rmtree(copy)
    rate = size / MIB / median(costs).wall
    bench.rate("backy: upgrade", rate, median(costs), f"{rate / restored:.0%} of the restore to a file; at least 50 %")


def least(bench, decoding, restored):
    """What no upgrade can do without, each part by a program of its own, against the wall time of a restore."""
    parts = {"zstd -1": [], "b3sum": [], "zstd -d": []}
    for _ in range(bench.options.repeat):
        bench.settle()
        parts["zstd -1"].append(bench.pack().cpu)
        parts["b3sum"].append(run("b3sum", bench.data).cpu)
        parts["zstd -d"].append(run("zstd", "-q", "-d", "-c", bench.packed).cpu)
    parts = {"`restore -`": decoding, **{name: statistics.median(costs) for name, costs in parts.items()}}
    wall = sum(parts.values()) / processors()
    bench.fact("CPU of the parts of an upgrade: " + ", ".join(parts), ", ".join(f"{cpu:.2f} s" for cpu in parts.values()),
               f"on {processors()} cores {wall:.2f} s: {restored / wall:.0%} of the restore to a file is the most")  # fmt: skip


def original_job(bench):
    """A store with one revision of the image, made by the original itself, once."""
    job = f"{bench.work}/original/bench"
    if not os.path.exists(f"{bench.work}/original-ready"):
        shutil.rmtree(os.path.dirname(job), ignore_errors=True)
        os.makedirs(job)
        with open(f"{job}/config", "w") as file:
            file.write(f"source: {{type: file, filename: {bench.image}}}\nschedule: {{daily: {{interval: 1d, keep: 7}}}}\n")
        say("the original makes a backup")
        run(bench.options.original, "-b", job, "backup", "manual:bench")
        open(f"{bench.work}/original-ready", "w").close()
    return job


def random_old(bench, job):
    """4 KiB reads at random places of allocated data, each mostly of a chunk that is not in memory."""
    places = [at for first, end in extents(bench.image) for at in range(first, end - 4096, MIB)]
    chosen = random.Random(1).sample(places, min(300, len(places)))
    mount = bench.mount(os.path.dirname(job))
    times = []
    with open(f"{bench.mountpoint}/bench/last/image", "rb", buffering=0) as file:
        for at in chosen:
            begun = time.monotonic()
            os.pread(file.fileno(), 4096, at)
            times.append(time.monotonic() - begun)
    mount.end()
    times.sort()
    bench.fact("4 KiB reads at random places of a store of the original: median, 99 % within",
               f"{times[len(times) // 2] * 1000:.2f} ms, {times[len(times) * 99 // 100] * 1000:.2f} ms")  # fmt: skip
