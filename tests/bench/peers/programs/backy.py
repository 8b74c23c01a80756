"""backy: a job for each machine in one store."""

from bench.peers.programs.program import Program


class Backy(Program):
    name, tool = "backy", "backy"
    settings = "`verify: off`, zstd 1; peers do not read their source a second time either"
    more = "verify: off\n"

    def create_store(self):
        for machine in ("first", "second"):
            job = f"{self.store}/{machine}"
            self.run("-b", job, "init", "file", f"filename={self.source(machine)}/disk.img")
            with open(f"{job}/config", "a") as file:
                file.write(self.more)

    def save(self, machine, label):
        return self.run("-b", f"{self.store}/{machine}", "backup", f"manual:{label}")

    def load(self, machine, label, target):
        return self.run("-b", f"{self.store}/{machine}", "restore", "-r", f"manual:{label}", f"{target}/disk.img")

    def mount(self, machine, label, mountpoint):
        mount = self.serve(mountpoint, "-b", self.store, "mount", mountpoint)
        return mount, f"{mountpoint}/{machine}/manual:{label}/image"


class BackyVerifying(Backy):
    name = "backy, verifying"
    settings = "the default `verify: full`: compares what was stored with a second read of the source"
    more = ""
    variant = True
