"""Purge of many chunks beside backups."""

import contextlib
import hashlib
import os
import shutil
import statistics
import subprocess
import threading
import time

from bench.files import cool, remove, write_small
from bench.measure import Failed, finish, say

# The exit status of a command that another one keeps out.
LOCKED = 3


def purge(bench):
    """purge of many chunks, with backups beside it"""
    count = 20_000 if bench.options.quick else 1_000_000
    image = f"{bench.work}/small.img"
    write_small(image, 0)
    job = bench.make_job("purge", image)
    store = os.path.dirname(job)
    alone = []
    for number in range(20):
        write_small(image, number)
        alone.append(bench.backup(job).wall)
    say(f"making {count:,} chunk files of a backup that died")
    session = f"{store}/writers/{'0' * 32}"
    os.close(os.open(f"{session}.refs", os.O_WRONLY | os.O_CREAT, 0o600))
    with open(f"{session}.new", "wb") as written:
        for number in range(count):
            digest = hashlib.blake2b(b"%d" % number, digest_size=32)
            name = digest.hexdigest()
            written.write(digest.digest())
            os.close(os.open(f"{store}/chunks/{name[:2]}/{name}", os.O_WRONLY | os.O_CREAT, 0o600))
    cool()
    say("purge")
    start = time.monotonic()
    purge = subprocess.Popen([bench.backy, "-b", store, "purge", "--now"], stdout=subprocess.DEVNULL)
    costs, beside, refused = [], [], 0

    def wait():
        with contextlib.suppress(Failed):
            costs.append(finish(purge, start))

    waiter = threading.Thread(target=wait)
    waiter.start()
    bench.cleanups.append(waiter.join)
    while waiter.is_alive():
        write_small(image, 1000 + len(beside))
        begun = time.monotonic()
        while True:
            try:
                bench.backup(job)
                break
            except Failed as failure:
                if failure.status != LOCKED:
                    raise
                refused += 1
        beside.append(time.monotonic() - begun)
    waiter.join()
    if not costs:
        raise Failed(1, "the purge")
    cost, left = costs[0], sum(len(names) for _, _, names in os.walk(f"{store}/chunks"))
    name = f"purge of {count:,} chunks"
    bench.fact(f"{name}: peak", f"{cost.peak / 1e6:.0f} MB", "300 MB")
    bench.fact(f"{name}: wall, CPU", f"{cost.wall:.1f} s, {cost.cpu:.1f} s; {left} chunks left")
    bench.fact(f"{name}: {len(beside)} small backups beside it, median and slowest",
              f"{statistics.median(beside) * 1e3:.0f} ms, {max(beside) * 1e3:.0f} ms")  # fmt: skip
    bench.fact(f"{name}: backups refused because of it, and tried again", f"{refused}", "0")
    bench.fact("the same backups alone, median and slowest",
              f"{statistics.median(alone) * 1e3:.0f} ms, {max(alone) * 1e3:.0f} ms")  # fmt: skip
    say("removing the rest")
    shutil.rmtree(store)
    remove(image)
