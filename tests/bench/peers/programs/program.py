"""What all compared programs have in common."""

import os
import shutil
import subprocess

from bench.measure import Errors, run, text_of, total
from bench.mounts import Mount


class Program:
    """One program with one store below `place`. Images are backed up as `disk.img` in a directory for each machine."""

    # In tables and options; several programs may use one `tool`.
    name = tool = settings = None
    # Only backups are measured of a variant whose restore and mount are those of another one.
    variant = False
    # Why the program cannot do what is measured of others.
    cannot_mount = None

    def __init__(self, path, place, sources):
        self.path, self.place, self.sources = path, place, sources
        self.store = f"{place}/store"
        self.env = {**os.environ, "HOME": f"{place}/home"}

    def create(self):
        """Makes an empty store."""
        shutil.rmtree(self.place, ignore_errors=True)
        os.makedirs(f"{self.place}/home")
        self.create_store()

    def backup(self, machine, label):
        """Backs up the machine's disk as it is now, synced; returns the cost."""
        return total(self.save(machine, label), run("sync", "-f", self.store))

    def restore(self, machine, label, target):
        """Restores to `disk.img` in the directory `target`, synced; returns the cost."""
        shutil.rmtree(target, ignore_errors=True)
        os.makedirs(target)
        return total(self.load(machine, label, target), run("sync", f"{target}/disk.img"))

    def version(self):
        return text_of(self.path, "--version").split("\n")[0]

    # What each program does its own way

    def create_store(self):
        raise NotImplementedError

    def save(self, machine, label):
        raise NotImplementedError

    def load(self, machine, label, target):
        raise NotImplementedError

    def mount(self, machine, label, mountpoint):
        """Mounts a backup; returns the mount and the path of the image."""
        raise NotImplementedError

    def prepare_mount(self, machine, label):
        """Makes what only the mount needs; not measured."""

    # Means for them

    def run(self, *words, cwd=None):
        return run(self.path, *words, env=self.env, cwd=cwd)

    def serve(self, mountpoint, *words):
        return Mount([self.path, *words], mountpoint, env=self.env, stderr=Errors.stream)

    def source(self, machine):
        return f"{self.sources}/{machine}"

    def understands(self, command, option):
        """Whether this version of the program knows an option."""
        return (
            option
            in subprocess.run([self.path, *command, "--help"], capture_output=True, text=True, check=False, env=self.env).stdout
        )
