"""The states of two machines' disks that are backed up, made once for a work directory, and their checksums."""

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import shutil

from bench.files import GIB, cool, copy_allocated, extents
from bench.measure import run, say
from bench.peers.changes import changed_bytes, pass_day, scatter
from bench.peers.machines import choose_packages, make_template, settle

STATES = ("base", "day", "scattered", "second")
WRITES = 2000
SEED = 20


class Dataset:
    """Images below one directory, and what is known about them."""

    def __init__(self, place, gib):
        self.place, self.gib = place, gib
        self.data = f"{place}/data"
        if self.facts() is None:
            shutil.rmtree(place, ignore_errors=True)
            os.makedirs(place)
            # In a process of its own: what this one has ever used would show as the peak of everybody it starts.
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as executor:
                executor.submit(self.make).result()
        self.about = self.facts()

    def image(self, state):
        return f"{self.place}/{state}.img"

    def facts(self):
        """What was written down when the images were made; None if others are there, or none."""
        try:
            with open(f"{self.place}/facts.json") as file:
                facts = json.load(file)
        except FileNotFoundError:
            return None
        return facts if facts["gib"] == self.gib else None

    def make(self):
        say(f"making disk images with {self.gib:g} GiB of files")
        packages = choose_packages("/usr", int(self.gib * 0.75 * GIB), SEED)
        make_template(self.image("template"), self.gib, list(packages), SEED)
        self.copy("template", "base")
        settle(self.image("base"), self.gib, "web01", SEED + 1)
        self.dig_holes("base")
        say("a day passes")
        self.copy("base", "day")
        day = pass_day(self.image("day"), self.gib, packages, "web01", SEED + 2)
        self.dig_holes("day")
        self.copy("day", "scattered")
        scatter(self.image("scattered"), WRITES, SEED + 3)
        say("making a second machine")
        self.copy("template", "second")
        settle(self.image("second"), self.gib, "db02", SEED + 4)
        self.dig_holes("second")
        os.remove(self.image("template"))
        # Which ranges are allocated is known for certain once all is written.
        cool()
        copy_allocated(self.image("base"), self.data)
        facts = {
            "gib": self.gib,
            "virtual_bytes": os.path.getsize(self.image("base")),
            "tree_bytes": sum(os.path.getsize(path) for paths in packages for path in paths),
            "day": day,
            "day_bytes": changed_bytes(self.image("base"), self.image("day")),
            "writes": WRITES,
            "allocated": {state: allocated(self.image(state)) for state in STATES},
            "sha256": {state: digest(self.image(state)) for state in STATES},
        }
        with open(f"{self.place}/facts.json", "w") as file:
            json.dump(facts, file, indent=1)

    def dig_holes(self, state):
        """Leaves nothing allocated that is only zeros: whether such places count as holes depends on who has read them."""
        self.copy(state, "tight")
        os.replace(self.image("tight"), self.image(state))

    def copy(self, state, copy):
        run("cp", "--sparse=always", self.image(state), self.image(copy))


def allocated(path):
    return sum(end - first for first, end in extents(path))


def digest(path):
    """The SHA-256 of a whole file, holes included."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
