"""casync: an index file for each backup beside one store of chunks."""

import os
import shutil

from bench.peers.programs.program import Program


class Casync(Program):
    name, tool = "casync", "casync"
    settings = "chunks of 64 KiB on average, zstd; its mount shows an index of a directory, made aside"
    options = ("--chunk-size=65536", "--compression=zstd")

    def create_store(self):
        os.makedirs(self.store)

    def save(self, machine, label):
        words = ("make", "--what=blob-index", *self.options, f"--store={self.store}/default.castr")
        return self.run(*words, f"{self.store}/{label}.caibx", f"{self.source(machine)}/disk.img")

    def load(self, machine, label, target):
        words = ("extract", "--seed-output=no", f"--store={self.store}/default.castr")
        return self.run(*words, f"{self.store}/{label}.caibx", f"{target}/disk.img")

    # Indexes of one file are served as block devices only, by NBD, which a kernel need not have.

    def prepare_mount(self, machine, label):
        aside = f"{self.place}/mounted"
        shutil.rmtree(aside, ignore_errors=True)
        os.makedirs(aside)
        words = ("make", "--what=archive-index", *self.options, f"--store={aside}/store.castr")
        self.run(*words, f"{aside}/disk.caidx", self.source(machine))

    def mount(self, machine, label, mountpoint):
        aside = f"{self.place}/mounted"
        mount = self.serve(mountpoint, "mount", f"--store={aside}/store.castr", f"{aside}/disk.caidx", mountpoint)
        return mount, f"{mountpoint}/disk.img"
