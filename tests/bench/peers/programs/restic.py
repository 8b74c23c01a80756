"""restic: snapshots with tags. Its encryption cannot be turned off."""

from bench.measure import text_of
from bench.peers.programs.program import Program


class Restic(Program):
    name, tool = "restic", "restic"
    settings = "`--compression auto`; encrypts, which cannot be turned off"

    def __init__(self, *places):
        super().__init__(*places)
        self.env |= {"RESTIC_REPOSITORY": self.store, "RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": f"{self.place}/home/cache"}
        # Versions before 0.15 have neither.
        self.no_scan = [option for option in ("--no-scan",) if self.understands(["backup"], option)]
        self.sparse = [option for option in ("--sparse",) if self.understands(["restore"], option)]
        self.settings = ", ".join([*(f"`{option}`" for option in self.no_scan + self.sparse), self.settings])
        if not self.sparse:
            self.settings += "; this version restores no holes"

    def version(self):
        return " ".join(text_of(self.path, "version").split()[:2])

    def create_store(self):
        self.run("init")

    def save(self, machine, label):
        words = ("backup", "--compression", "auto", *self.no_scan, "--host", machine, "--tag", label, "disk.img")
        return self.run(*words, cwd=self.source(machine))

    def load(self, machine, label, target):
        return self.run("restore", "latest", "--tag", label, "--target", target, *self.sparse)

    def mount(self, machine, label, mountpoint):
        return self.serve(mountpoint, "mount", mountpoint), f"{mountpoint}/tags/{label}/latest/disk.img"
