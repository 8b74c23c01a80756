"""Borg: one archive for each backup, without encryption."""

from bench.peers.programs.program import Program


class Borg(Program):
    name, tool = "borg", "borg"
    settings = "fixed chunks of 4 MiB, `--sparse`, zstd 1, no encryption"
    chunks = ("--sparse", "--chunker-params", "fixed,4194304")

    def __init__(self, *places):
        super().__init__(*places)
        self.env |= {"BORG_BASE_DIR": f"{self.place}/home", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}

    def create_store(self):
        self.run("init", "--encryption", "none", self.store)

    def save(self, machine, label):
        words = ("create", *self.chunks, "--compression", "zstd,1", f"{self.store}::{label}", "disk.img")
        return self.run(*words, cwd=self.source(machine))

    def load(self, machine, label, target):
        return self.run("extract", "--sparse", f"{self.store}::{label}", cwd=target)

    def mount(self, machine, label, mountpoint):
        mount = self.serve(mountpoint, "mount", "--foreground", f"{self.store}::{label}", mountpoint)
        return mount, f"{mountpoint}/disk.img"


class BorgBuzhash(Borg):
    name = "borg, buzhash"
    settings = "its default, chunks cut by content (2 MiB on average), zstd 1, no encryption"
    chunks = ()
    variant = True
