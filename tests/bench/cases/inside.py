"""The file system inside a mounted image."""

import os
import random
import statistics
import time

from bench.files import MIB
from bench.measure import run, say, text_of


def files(bench):
    """a file system inside a mounted image: find, and 100 files, against the raw image file"""
    store = os.path.dirname(bench.filled_job())
    inside = f"{bench.work}/inside"
    os.makedirs(inside, exist_ok=True)
    names, measured = [], {}

    def look(path):
        device = text_of("losetup", "--find", "--show", "--read-only", path)
        start = time.monotonic()
        try:
            run("mount", "-o", "ro,noload", device, inside)
            if not names:
                found = sorted(f"{dir[len(inside) :]}/{name}" for dir, _, files in os.walk(inside) for name in files)
                names.extend(random.Random(2).sample(found, 100))
                return None
            run("find", inside, "-size", "+1k")
            listed = time.monotonic()
            for name in names:
                with open(inside + name, "rb") as file:
                    while file.read(MIB):
                        pass
            return listed - start, time.monotonic() - listed
        finally:
            run("umount", inside)
            run("losetup", "-d", device)

    look(bench.image)
    for number in range(bench.options.repeat):
        say(f"files inside the image, {number + 1} of {bench.options.repeat}")
        bench.settle()
        for turn in ("first", "second"):
            measured.setdefault(("raw file", turn), []).append(look(bench.image))
        bench.settle()
        mount = bench.mount(store)
        for turn in ("first", "second"):
            measured.setdefault(("backy", turn), []).append(look(f"{bench.mountpoint}/bench/last/image"))
        mount.end()
    for turn in ("first", "second"):
        ours, raw = ([statistics.median(column) for column in zip(*measured[what, turn])] for what in ("backy", "raw file"))
        for number, what in enumerate(("losetup, mount, find", "100 random files")):
            bench.fact(f"{what}, {turn} time: backy, raw file", f"{ours[number]:.2f} s, {raw[number]:.2f} s",
                      f"{ours[number] / raw[number]:.2f} times; 2" if number == 0 else "")  # fmt: skip
        bench.fact(f"all of it, {turn} time", f"{sum(ours) / sum(raw):.2f} times", "2")
