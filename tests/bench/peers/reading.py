"""Reads a mounted image, sequentially and at random places, within limits of time that slow programs need."""

import contextlib
import os
import statistics
import time

from bench.files import MIB

SEQUENTIAL_SECS = 90
RANDOM_SECS = 20


@contextlib.contextmanager
def spent(mount, sample):
    """Adds the wall and CPU seconds of what is done inside: those of the reader and of the process that serves."""
    served, own, start = mount.counters()[1], time.process_time(), time.monotonic()
    yield
    sample["wall"] = time.monotonic() - start
    sample["cpu"] = mount.counters()[1] - served + time.process_time() - own


def read_sequentially(mount, path):
    """Reads the image in pieces of 4 MiB, or as much as the time allows."""
    sample, done, buffer = {}, 0, bytearray(4 * MIB)
    with open(path, "rb", buffering=0) as file, spent(mount, sample):
        end = time.monotonic() + SEQUENTIAL_SECS
        while time.monotonic() < end and (size := file.readinto(buffer)):
            done += size
        whole = done == os.fstat(file.fileno()).st_size
    return {**sample, "bytes": done, "whole": whole, "peak": mount.peak()}


def read_at_random(mount, path, places):
    """Reads 4 KiB at these places, or at as many as the time allows."""
    sample, times = {}, []
    with open(path, "rb", buffering=0) as file, spent(mount, sample):
        end = time.monotonic() + RANDOM_SECS
        for place in places:
            start = time.monotonic()
            if len(os.pread(file.fileno(), 4096, place)) != 4096:
                raise OSError(f"{path} ends before {place}")
            times.append(time.monotonic() - start)
            if time.monotonic() > end:
                break
    times.sort()
    return {
        **sample, "reads": len(times), "median": statistics.median(times), "late": times[(len(times) - 1) * 99 // 100],
        "peak": mount.peak(),
    }  # fmt: skip
