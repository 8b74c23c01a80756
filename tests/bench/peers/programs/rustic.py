"""rustic: restic's format, written in Rust. Its encryption cannot be turned off."""

from bench.peers.programs.program import Program


class Rustic(Program):
    name, tool = "rustic", "rustic"
    settings = "its defaults; encrypts, which cannot be turned off; this version restores no holes"

    def __init__(self, *places):
        super().__init__(*places)
        self.env |= {"RUSTIC_REPOSITORY": self.store, "RUSTIC_PASSWORD": "bench", "RUSTIC_CACHE_DIR": f"{self.place}/home/cache"}
        self.env |= {"RUSTIC_NO_PROGRESS": "true"}

    def create_store(self):
        self.run("init")

    def save(self, machine, label):
        return self.run("backup", "--host", machine, "--tag", label, "disk.img", cwd=self.source(machine))

    def load(self, machine, label, target):
        return self.run("restore", "--filter-tags", label, "latest", target)

    def mount(self, machine, label, mountpoint):
        mount = self.serve(mountpoint, "mount", "--filter-tags", label, mountpoint, "latest")
        return mount, f"{mountpoint}/disk.img"
