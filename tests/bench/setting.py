"""What the cases share: the image and its allocated bytes, jobs of backy, mounts, and the rows that they add to the tables."""

import contextlib
import os
import shutil

from bench.files import GIB, MIB, cool, copy_allocated, copy_files, remove, warm
from bench.measure import median, processors, run, say
from bench.mounts import Mount


class Bench:
    """One run of the bench: its files lie below one directory."""

    def __init__(self, options):
        self.options = options
        self.backy, self.work = options.backy, options.work
        self.tools = os.path.join(os.path.dirname(options.backy), "examples")
        self.image, self.data, self.packed = (f"{self.work}/{name}" for name in ("image.img", "data", "data.zst"))
        self.mountpoint = f"{self.work}/mnt"
        # Files that stay, for example raw numbers.
        self.results = f"{self.work}/results"
        # Rows of the three tables, and what was written for a table of its own.
        self.costs, self.rates, self.facts, self.texts = [], [], [], []
        self.cleanups = []
        self.bytes = 0

    # The image and jobs of it

    def make_image(self):
        """An ext4 file system with as many files of /usr as were asked for; kept for the next run."""
        wanted = int(self.options.gib * GIB)
        mark = f"{self.work}/image-of-{wanted}"
        if not os.path.exists(mark):
            say(f"making an image with {self.options.gib:g} GiB of files")
            stage = f"{self.work}/stage"
            shutil.rmtree(stage, ignore_errors=True)
            copy_files("/usr", stage, wanted)
            with open(self.image, "wb") as file:
                file.truncate(wanted * 3 // 2 + 64 * MIB)
            run("mkfs.ext4", "-q", "-F", "-d", stage, self.image)
            shutil.rmtree(stage)
            open(mark, "w").close()
        # Which ranges are allocated is known for certain once all is written.
        cool()
        self.bytes = copy_allocated(self.image, self.data)

    def make_job(self, name, image=None, verify="off", level=1):
        """An empty store with one job; returns the job's directory."""
        store = f"{self.work}/{name}"
        shutil.rmtree(store, ignore_errors=True)
        run(self.backy, "-b", f"{store}/bench", "init", "file", f"filename={image or self.image}")
        with open(f"{store}/bench/config", "a") as file:
            file.write(f"verify: {verify}\ncompression-level: {level}\n")
        return f"{store}/bench"

    def filled_job(self):
        """A job with one revision of the image, made once."""
        job = f"{self.work}/filled/bench"
        if not os.path.exists(f"{job}/ready"):
            self.make_job("filled")
            self.backup(job)
            open(f"{job}/ready", "w").close()
        return job

    def backup(self, job):
        return run(self.backy, "-b", job, "backup", "manual:bench")

    def decode(self, job):
        return run(self.backy, "-b", job, "restore", "-r", "last", "-")

    def pack(self, level=1):
        """Compresses the allocated bytes, as a reference."""
        remove(self.packed)
        return run("zstd", "-q", "-f", f"-{level}", f"-T{processors()}", self.data, "-o", self.packed)

    # Mounts

    def mount(self, store, options="cache=128M"):
        return self.serve([self.backy, "-b", store, "mount", "-o", options, self.mountpoint])

    def zeros(self, size):
        """The file system that serves zeros, with as many threads as ours."""
        threads = max(4, min(8, processors()))
        return self.serve([f"{self.tools}/zeros", self.mountpoint, str(size), str(threads)])

    def serve(self, command):
        mount = Mount(command, self.mountpoint)
        self.cleanups.append(mount.abandon)
        return mount

    def end_leftovers(self):
        """Ends what a failed case has left running."""
        while self.cleanups:
            self.cleanups.pop()()

    def remove_files(self):
        """Removes everything but the results."""
        for name in os.listdir(self.work):
            path = f"{self.work}/{name}"
            if path != self.results:
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        with contextlib.suppress(OSError):
            os.rmdir(self.work)

    # Measuring

    def settle(self):
        """Writes everything out and brings the page cache into the state to measure from."""
        if self.options.cold:
            cool()
        else:
            warm(self.image, self.data, self.packed, f"{self.work}/filled")

    def compare(self, name, reference, limit, prepare, measure, refer):
        """Measures a case and its reference in turns."""
        costs, references = [], []
        for number in range(self.options.repeat):
            say(f"{name}, {number + 1} of {self.options.repeat}")
            self.settle()
            references.append(refer())
            prepare()
            self.settle()
            costs.append(measure())
        cost, base = median(costs), median(references)
        ratio = cost.cpu / base.cpu
        verdict = "" if limit is None else f"{limit:g}, {'met' if ratio <= limit else 'MISSED'}"
        self.costs.append(
            f"| {name} | {cost.wall:.2f} | {cost.cpu:.2f} | {cost.peak / 1e6:.0f} "
            f"| {reference} | {base.wall:.2f} | {base.cpu:.2f} | {ratio:.2f} | {verdict} |"
        )

    def rate(self, name, rate, cost, verdict=""):
        self.rates.append(f"| {name} | {rate:.0f} | {cost.wall:.2f} | {cost.cpu:.2f} | {verdict} |")

    def fact(self, name, value, limit=""):
        self.facts.append(f"| {name} | {value} | {limit} |")
