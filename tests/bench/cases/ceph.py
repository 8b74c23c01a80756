"""Images in a Ceph cluster, against Ceph's own program."""

import contextlib
import json
import os
import random
import shutil
import struct
import subprocess
import tempfile

from bench.files import FRAME, GIB, MIB
from bench.measure import Failed, median, on_machine, processors, run, say, shell, text_of
from bench.tools import ROOT

# How backy reads from the cluster.
WAYS = ("librbd", "rbd")


def ceph(bench):
    """backup and restore of a 2 GiB RBD image, on a cluster of its own (scripts/ceph-cluster, as root)"""
    size = min(2 * GIB, bench.bytes // (4 * MIB) * 4 * MIB)
    raw = f"{bench.work}/rbd.raw"
    with ceph_cluster():
        run("dd", f"if={bench.data}", f"of={raw}", "bs=1M", f"count={size // MIB}")
        run("rbd", "import", "--no-progress", raw, "rbd/bench")
        write, costs = rbd_writer(size), {}
        for turn in range(bench.options.repeat):
            say(f"ceph, {turn + 1} of {bench.options.repeat}")
            for name, cost in one_turn(bench, raw, write, writes_of(size)):
                costs.setdefault(name, []).append(cost)
        report(bench, size, {name: median(list) for name, list in costs.items()})


def writes_of(size):
    return max(16, size // (2 * MIB))


def one_turn(bench, raw, write, writes):
    """Yields names and costs of a first backup, an incremental one and a restore in each way, and of their references."""
    touched = f"{bench.work}/rbd.touched"
    run("rbd", "snap", "create", "--no-progress", "rbd/bench@before")
    yield "export", on_machine(lambda: shell("rbd export-diff --no-progress rbd/bench@before - | b3sum"))
    yield "pack", run("zstd", "-q", "-f", "-1", f"-T{processors()}", raw, "-o", touched)
    for way in WAYS:
        make_rbd_job(bench, way)
        os.sync()
        yield f"first {way}", on_machine(lambda way=way: bench.backup(f"{bench.work}/{way}/bench"))
    numbers = write(writes)
    run("rbd", "snap", "create", "--no-progress", "rbd/bench@after")
    os.sync()
    yield "diff", shell("rbd export-diff --no-progress --from-snap before rbd/bench@after - | cat > /dev/null")
    with open(touched, "wb") as file:
        file.truncate(len({number // 64 for number in numbers}) * 4 * MIB)
    yield "hash", run("b3sum", touched)
    for way in WAYS:
        os.sync()
        yield f"next {way}", bench.backup(f"{bench.work}/{way}/bench")
        yield f"restore {way}", run(bench.backy, "-b", f"{bench.work}/{way}/bench", "restore", "--to", f"rbd:rbd/{way}")
        run("rbd", "rm", "--no-progress", f"rbd/{way}")
    yield "import", run("rbd", "import", "--no-progress", raw, "rbd/import")
    run("rbd", "rm", "--no-progress", "rbd/import")
    for name in ("before", "after"):
        run("rbd", "snap", "rm", "--no-progress", f"rbd/bench@{name}")
    for way in WAYS:
        shutil.rmtree(f"{bench.work}/{way}")
        for snap in json.loads(text_of("rbd", "snap", "ls", "rbd/bench", "--format", "json")):
            run("rbd", "snap", "rm", "--no-progress", f"rbd/bench@{snap['name']}")


def report(bench, size, costs):
    wall = {name: cost.wall for name, cost in costs.items()}
    base, both = wall["export"], wall["export"] + wall["pack"]
    bench.fact(f"Ceph, {size / GIB:g} GiB: `rbd export-diff - | b3sum`, and `zstd -1` of the bytes",
               f"{base:.2f} s + {wall['pack']:.2f} s")  # fmt: skip
    for way in WAYS:
        took = wall[f"first {way}"]
        bench.fact(f"Ceph, first backup with {way}",
                   f"{took:.2f} s: {took / base:.2f} times, with zstd {took / both:.2f} times", "1.3 times")  # fmt: skip
    cpu = [costs[name].cpu for name in ("export", "pack", *(f"first {way}" for way in WAYS))]
    bench.fact("Ceph, CPU of the machine, OSD included: `export-diff | b3sum`, `zstd -1`, first backups",
               ", ".join(f"{seconds:.2f} s" for seconds in cpu),
               f"the first two on {processors()} cores: {sum(cpu[:2]) / processors() / base:.2f} times the wall")  # fmt: skip
    bench.fact(f"Ceph, {writes_of(size)} writes of 64 KiB: `rbd export-diff --from-snap`, and b3sum of the chunks that they touch",
               f"{wall['diff']:.2f} s + {wall['hash']:.2f} s")  # fmt: skip
    for way in WAYS:
        took = wall[f"next {way}"]
        bench.fact(f"Ceph, incremental backup of them with {way}",
                   f"{took:.2f} s, {took / (wall['diff'] + wall['hash']):.2f} times", "1.3 times")  # fmt: skip
    bench.fact("Ceph, `rbd import` of a file", f"{wall['import']:.2f} s")
    for way in WAYS:
        bench.fact(f"Ceph, `restore --to rbd:` with {way}", f"{wall[f'restore {way}']:.2f} s")


def make_rbd_job(bench, way):
    """An empty store with a job of the image rbd/bench that is read in this way."""
    shutil.rmtree(f"{bench.work}/{way}", ignore_errors=True)
    run(bench.backy, "-b", f"{bench.work}/{way}/bench", "init", "rbd", "pool=rbd", "image=bench", f"read-with={way}")


@contextlib.contextmanager
def ceph_cluster():
    """A cluster for the time of a case, with its data in a file, and its configuration in the environment."""
    script = f"{ROOT}/scripts/ceph-cluster"
    os.environ["CEPH_CLUSTER_DIR"] = f"{tempfile.gettempdir()}/backy-bench-{os.getpid()}"
    run(script, "install")
    try:
        run(script, "start", "--disk")
        os.environ["CEPH_CONF"] = os.environ["CEPH_CLUSTER_DIR"] + "/ceph.conf"
        yield
    finally:
        os.environ.pop("CEPH_CONF", None)
        run(script, "stop")


def rbd_writer(size):
    """Returns a function that writes 64 KiB of noise to so many random places of rbd/bench, and returns the places."""
    draw = random.Random(5)

    def write(count):
        numbers = draw.sample(range(size // FRAME), count)
        diff = b"rbd diff v1\ns" + struct.pack("<Q", size)
        with subprocess.Popen(("rbd", "import-diff", "--no-progress", "-", "rbd/bench"), stdin=subprocess.PIPE) as process:
            process.stdin.write(diff)
            for number in sorted(numbers):
                process.stdin.write(b"w" + struct.pack("<QQ", number * FRAME, FRAME) + os.urandom(FRAME))
            process.stdin.write(b"e")
            process.stdin.close()
            if process.wait() != 0:
                raise Failed(process.returncode, "rbd import-diff")
        return numbers

    return write
