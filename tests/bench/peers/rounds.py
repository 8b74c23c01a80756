"""Measures all programs in turns: every step of a round is done by each of them before the next step comes."""

import os
import random
import shutil

from bench.files import cool, files_below, remove, warm
from bench.measure import Failed, processors, run, say, total
from bench.peers.changes import draw_blocks
from bench.peers.dataset import digest
from bench.peers.reading import read_at_random, read_sequentially

# The backups of a round: label, machine, state of its disk.
BACKUPS = (
    ("first", "first", "base"),
    ("touched", "first", "base"),
    ("day", "first", "day"),
    ("scattered", "first", "scattered"),
    ("second", "second", "second"),
)
NEWEST = "scattered"
RANDOM_READS = 2000


class Rounds:
    """What is measured so far: for each program and step a list of samples, one for each round."""

    def __init__(self, work, cold, dataset, programs):
        self.work, self.cold, self.dataset, self.programs = work, cold, dataset, list(programs)
        self.samples = {program.name: {} for program in programs} | {"reference": {}}
        self.problems = {}
        self.checked = 0
        self.places = draw_blocks(dataset.image(NEWEST), RANDOM_READS, random.Random(6))
        self.target = f"{work}/restored"
        self.packed = f"{work}/data.zst"

    def one_round(self, number):
        for program in self.programs:
            program.create()
        for label, machine, state in BACKUPS:
            self.each(f"round {number + 1}, {label}", lambda program: self.backup(program, label, machine, state))  # noqa: B023
        self.refer()
        full = [program for program in self.programs if not program.variant]
        self.each(f"round {number + 1}, restore", self.restore, full)
        if number == 0:
            self.each("checking all restored images", self.check)
        self.each(f"round {number + 1}, mount", self.read_mounted, full)
        shutil.rmtree(self.target, ignore_errors=True)
        # Whoever came first comes last.
        self.programs.append(self.programs.pop(0))

    def each(self, what, measure, programs=None):
        """Does something with every program; one that fails is left out from there on."""
        for program in list(self.programs if programs is None else programs):
            if program not in self.programs:
                continue
            say(f"{what}: {program.name}")
            try:
                measure(program)
            except (Failed, OSError) as failure:
                say(f"{program.name} is left out: {failure}")
                self.problems[program.name] = f"{what}: {failure}"
                self.programs.remove(program)

    def add(self, name, step, cost, **more):
        sample = cost if isinstance(cost, dict) else cost._asdict()
        self.samples[name].setdefault(step, []).append({**sample, **more})

    def settle(self, *tops):
        """The page cache holds what is read next, or nothing."""
        if self.cold:
            cool()
        else:
            warm(*tops)

    # Steps

    def backup(self, program, label, machine, state):
        self.offer(program.source(machine), self.dataset.image(state))
        before = size_of(program.store)
        self.settle(program.source(machine))
        cost = program.backup(machine, label)
        stored, allocated = (after - earlier for after, earlier in zip(size_of(program.store), before))
        self.add(program.name, label, cost, stored=stored, allocated=allocated)

    def offer(self, folder, image):
        """Makes this image the machine's disk, with a time of just now, so that no program takes it for unchanged."""
        os.makedirs(folder, exist_ok=True)
        remove(f"{folder}/disk.img")
        os.link(image, f"{folder}/disk.img")
        os.utime(f"{folder}/disk.img")

    def restore(self, program):
        shutil.rmtree(self.target, ignore_errors=True)
        self.settle(program.store)
        self.add(program.name, "restore", program.restore("first", NEWEST, self.target))
        self.compare(NEWEST)

    def check(self, program):
        for label, machine, state in BACKUPS:
            if label == NEWEST and not program.variant:
                continue
            program.restore(machine, label, self.target)
            self.compare(state)

    def compare(self, state):
        if digest(f"{self.target}/disk.img") != self.dataset.about["sha256"][state]:
            raise Failed(1, f"the restored image of {state} is not what was backed up")
        self.checked += 1

    def read_mounted(self, program):
        program.prepare_mount("first", NEWEST)
        for step, read in (
            ("sequential", read_sequentially),
            ("random", lambda mount, path: read_at_random(mount, path, self.places)),
        ):
            self.settle(program.store, f"{program.place}/mounted")
            mount, path = program.mount("first", NEWEST, f"{self.work}/mnt")
            try:
                self.add(program.name, step, read(mount, path))
            finally:
                mount.abandon()

    def refer(self):
        """What the machine allows, on the same bytes: hashing, compressing, decompressing, copying."""
        say("references")
        data, image, target = self.dataset.data, self.dataset.image(NEWEST), self.target
        shutil.rmtree(target, ignore_errors=True)
        os.makedirs(target)
        zstd = ("zstd", "-q", "-f", "-1", f"-T{processors()}")
        for step, source, output, command in (
            ("b3sum", data, None, ("b3sum", data)),
            ("zstd -1", data, self.packed, (*zstd, data, "-o", self.packed)),
            ("zstd -d", self.packed, f"{target}/data", ("zstd", "-q", "-d", self.packed, "-o", f"{target}/data")),
            ("cp", image, f"{target}/disk.img", ("cp", "--sparse=always", image, f"{target}/disk.img")),
        ):
            self.settle(source)
            cost = run(*command)
            self.add("reference", step, total(cost, run("sync", output)) if output else cost)


def size_of(store):
    """The apparent bytes of all files of a store, and what is allocated for them and their directories."""
    apparent = allocated = 0
    for path in files_below(store):
        stat = os.stat(path)
        apparent += stat.st_size
        allocated += stat.st_blocks * 512
    return apparent, allocated + sum(os.stat(folder).st_blocks * 512 for folder, _, _ in os.walk(store))
