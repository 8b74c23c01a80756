"""The scheduler service with many jobs, and its scheduler on a virtual clock."""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import time

from bench.files import remove, write_small
from bench.measure import Failed, counters, median, peak_of, run, say, text_of


def year(bench):
    """a year of many jobs on a virtual clock: spread, starvation, service levels"""
    count, workers = (1000, 15) if bench.options.quick else (10_000, 150)
    result = json.loads(text_of(f"{bench.tools}/year", str(count), str(workers)))
    name = f"a year of {count:,} jobs, {workers} workers in each pool"
    low, middle, high = result["starts_per_hour_min_median_max"]
    bench.fact(f"{name}: wall", f"{result['seconds']:.1f} s", "60 s")
    bench.fact(f"{name}: rounds, of them failed", f"{result['rounds']:,}, {result['failed']:,}")
    bench.fact(f"{name}: rounds begun in an hour, fewest, median, most", f"{low}, {middle}, {high}")
    bench.fact(f"{name}: jobs that never ran", f"{count - result['jobs_that_ran']}", "0")
    bench.fact(f"{name}: longest time between two good rounds of a job",
              f"{result['longest_gap_hours']:.1f} h", f"{result['allowed_gap_hours']:.0f} h")  # fmt: skip
    bench.fact(f"{name}: service levels missed", f"{result['service_levels_missed']}", "0")


def service(bench):
    """the idle service with many jobs and revisions"""
    jobs, revisions = (500, 20) if bench.options.quick else (10_000, 100)
    say(f"making {jobs:,} jobs with {revisions} revisions each")
    base, config = make_jobs(bench, jobs, revisions), f"{bench.work}/service.conf"
    # Directories that have just been written may still change unseen.
    time.sleep(3)
    name = f"service with {jobs:,} jobs, {revisions} revisions each"
    process, known = start_service(bench, config)
    bench.fact(f"{name}: all jobs known, the first time ever", f"{known:.1f} s")
    starts = []
    for _ in range(bench.options.repeat):
        stop_service(process)
        process, known = start_service(bench, config)
        starts.append(known)
    bench.fact(f"{name}: started, all jobs known", f"{statistics.median(starts):.2f} s", "3 s")
    for words in ("jobs", "check"):
        cost = median([run(bench.backy, "client", "-c", config, words) for _ in range(5)])
        bench.fact(f"{name}: `client {words}`", f"{cost.wall:.2f} s", "0.5 s")
    check = median([run(bench.backy, "check", "-c", config) for _ in range(3)])
    bench.fact(f"{name}: `check` without the service", f"{check.wall:.2f} s, {check.peak / 1e6:.0f} MB")
    before, secs = counters(process.pid)[1], 10 if bench.options.quick else 120
    time.sleep(secs)
    bench.fact(f"{name}: CPU while idle", f"{(counters(process.pid)[1] - before) / secs:.2%}")
    bench.fact(f"{name}: peak", f"{peak_of(process.pid) / 1e6:.0f} MB", "150 MB")
    stop_service(process)
    shutil.rmtree(base)


def make_jobs(bench, jobs, revisions):
    """A store of many jobs and manifests in the original's form, and the main configuration; returns the store."""
    base, image = f"{bench.work}/service", f"{bench.work}/small.img"
    shutil.rmtree(base, ignore_errors=True)
    run(bench.backy, "init", base)
    write_small(image, 0)
    now = time.time()
    for job in range(jobs):
        os.mkdir(f"{base}/vm{job:05}", 0o700)
        with open(f"{base}/vm{job:05}/config", "w") as file:
            file.write(f"source:\n  type: file\n  filename: {image}\nschedule:\n  monthly:\n    interval: 30d\n    keep: 400\n")
        for number in range(revisions):
            stamp = time.strftime("%Y-%m-%d %H:%M:%S+00:00", time.gmtime(now - 600 - 86400 * number))
            id = f"r{job:05}x{number:05}"
            with open(f"{base}/vm{job:05}/{id}.rev", "w") as file:
                file.write(
                    f"backend_type: chunked\norig_tags: []\nparent: ''\nserver: ''\nstats:\n  bytes_written: 12345678\n"
                    f"  duration: 34.5\ntags:\n- monthly\ntimestamp: {stamp}\ntrust: trusted\nuuid: {id}\n"
                )
    with open(f"{bench.work}/service.conf", "w") as file:
        file.write(
            f"global: {{base-dir: {base}}}\napi: {{addrs: 127.0.0.1, port: 16023, tokens: {{bench: bench}}, cli-default: {{token: bench}}}}\n"
            "schedules: {default: {monthly: {interval: 30d, keep: 400}}}\njobs:\n"
        )
        for job in range(jobs):
            file.write(f"  vm{job:05}: {{schedule: default, source: {{type: file, filename: {image}}}}}\n")
    return base


def start_service(bench, config):
    """Starts the service; returns it, and the seconds until it knows all jobs."""
    log = f"{bench.work}/service.log"
    remove(log)
    start = time.monotonic()
    process = subprocess.Popen([bench.backy, "-l", log, "scheduler", "-c", config])
    bench.cleanups.append(process.terminate)
    while True:
        if process.poll() is not None or time.monotonic() - start > 1200:
            raise Failed(1, "the service did not start")
        with contextlib.suppress(FileNotFoundError), open(log) as file:
            if "jobs-known" in file.read():
                return process, time.monotonic() - start
        time.sleep(0.01)


def stop_service(process):
    process.terminate()
    process.wait()
