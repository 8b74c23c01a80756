"""Backup and restore of a whole image against b3sum and zstd."""

import os
import shutil

from bench.files import MIB, files_below, remove
from bench.measure import run, total


def first(bench):
    """first backup"""
    for verify, limit in (("off", 1.3), ("full", None)):
        job = f"{bench.work}/first/bench"
        bench.compare(
            f"first backup, `verify: {verify}`", "b3sum + zstd -1", limit,
            lambda: bench.make_job("first", verify=verify), lambda: bench.backup(job),
            lambda: total(run("b3sum", bench.data), bench.pack()),
        )  # fmt: skip
    shutil.rmtree(f"{bench.work}/first")


def noise(bench):
    """first backup of what cannot be compressed, against b3sum and cp of it"""
    image, copy, job = (f"{bench.work}/{name}" for name in ("noise.img", "noise.copy", "noise/bench"))
    with open(image, "wb") as file:
        for _ in range(int(bench.options.gib * 1024)):
            file.write(os.urandom(MIB))
    run("sync", "-f", image)

    def refer():
        remove(copy)
        return total(run("b3sum", image), run("cp", image, copy))

    bench.compare(
        "first backup of noise, `verify: off`", "b3sum + cp", None,
        lambda: bench.make_job("noise", image=image), lambda: bench.backup(job), refer,
    )  # fmt: skip
    stored = sum(os.path.getsize(path) for path in files_below(f"{bench.work}/noise/chunks"))
    bench.fact("stored of noise", f"{stored / os.path.getsize(image):.2%}")
    for path in (image, copy):
        remove(path)
    shutil.rmtree(f"{bench.work}/noise")


def unchanged(bench):
    """backup of an unchanged image"""
    job = bench.filled_job()
    for verify, limit in (("off", 1.3), ("full", None)):
        with open(f"{job}/config") as file:
            lines = [line for line in file if not line.startswith("verify:")]
        with open(f"{job}/config", "w") as file:
            file.writelines([*lines, f"verify: {verify}\n"])
        bench.compare(
            f"unchanged backup, `verify: {verify}`", "b3sum", limit,
            lambda: None, lambda: bench.backup(job), lambda: run("b3sum", bench.data),
        )  # fmt: skip


def restore(bench):
    """restore to a file"""
    job, target = bench.filled_job(), f"{bench.work}/restored"
    bench.pack()
    bench.compare(
        "restore to a file", "zstd -d", 1.5,
        lambda: None, lambda: restore_to(bench, job, target), lambda: unpack(bench),
    )  # fmt: skip
    run("cmp", bench.image, target)
    remove(target)
    remove(f"{bench.work}/unpacked")


# Both targets are removed just before, so that both get the same kind of memory for their pages.


def restore_to(bench, job, target):
    remove(target)
    return run(bench.backy, "-b", job, "restore", target)


def unpack(bench):
    remove(f"{bench.work}/unpacked")
    return run("zstd", "-q", "-d", "-f", bench.packed, "-o", f"{bench.work}/unpacked")


def levels(bench):
    """first backup at the zstd levels 1 to 3"""
    for level in (1, 2, 3):
        job = f"{bench.work}/level/bench"
        bench.compare(
            f"first backup, level {level}", f"b3sum + zstd -{level}", None,
            lambda: bench.make_job("level", level=level), lambda: bench.backup(job),
            lambda: total(run("b3sum", bench.data), bench.pack(level)),
        )  # fmt: skip
        stored = sum(os.path.getsize(path) for path in files_below(f"{bench.work}/level/chunks"))
        bench.fact(f"stored at level {level}, of the allocated bytes", f"{stored / bench.bytes:.1%}")
    shutil.rmtree(f"{bench.work}/level")
