"""File systems in user space that are mounted while something is measured."""

import os
import subprocess
import time

from bench.measure import Cost, Failed, counters, finish, peak_of, run


class Mount:
    """A process that serves a file system on a mount point until `end`."""

    def __init__(self, command, mountpoint, patience=60, **more):
        """`more` is for Popen, for example `env` and `stderr`."""
        self.mountpoint = mountpoint
        os.makedirs(mountpoint, exist_ok=True)
        self.start = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, **more)
        while not os.path.ismount(mountpoint):
            if self.process.poll() is not None or time.monotonic() - self.start > patience:
                self.abandon()
                raise Failed(1, f"{command[0]} did not mount")
            time.sleep(0.001)
        os.listdir(mountpoint)
        # Seconds until the tree was there.
        self.ready = time.monotonic() - self.start

    def counters(self):
        return counters(self.process.pid)

    def peak(self):
        return peak_of(self.process.pid)

    def end(self):
        """Unmounts; returns what the process has cost."""
        subprocess.run(["umount", self.mountpoint], check=True)
        return finish(self.process, self.start)

    def abandon(self):
        """Ends it in whatever state it is; some programs do not end by themselves when they are unmounted."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        # After a process that was killed the directory is still a mount point, which cannot be looked at.
        if os.path.ismount(self.mountpoint) or not os.path.exists(self.mountpoint):
            subprocess.run(["umount", "-l", self.mountpoint], check=False, stderr=subprocess.DEVNULL)


def dd_twice(mount, path, *more):
    """The wall time of dd; the CPU seconds of dd and of the process that serves it. Ends the mount. `more` is for dd."""
    costs = []
    for _ in range(2):
        before = mount.counters()[1]
        copy = run("dd", f"if={mount.mountpoint}/{path}", "of=/dev/null", "bs=4M", "status=none", *more)
        costs.append(Cost(copy.wall, copy.cpu + mount.counters()[1] - before, 0))
    mount.end()
    return costs
