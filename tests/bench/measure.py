"""Runs commands and tells what they have cost: wall and CPU seconds, peak memory."""

import collections
import os
import statistics
import subprocess
import sys
import time

# Peak is the largest resident memory of one process, in bytes; CPU is user and system time of all threads and children.
Cost = collections.namedtuple("Cost", "wall cpu peak")


class Failed(Exception):
    """A command did not do what it was measured at; the other cases still run."""

    def __init__(self, status, text):
        super().__init__(status, text)
        self.status = status

    def __str__(self):
        return self.args[1]


class Errors:
    """Where measured commands write what they have to say in passing: of interest only when this is run by hand."""

    stream = subprocess.DEVNULL

    @classmethod
    def show(cls):
        cls.stream = sys.stderr


def say(text):
    print(f"... {text}", file=sys.stderr, flush=True)


def run(*command, output=subprocess.DEVNULL, env=None, cwd=None):
    """Runs a command to its end; returns what it has cost."""
    start = time.monotonic()
    return finish(subprocess.Popen(command, stdout=output, stderr=Errors.stream, env=env, cwd=cwd), start)


def finish(process, start):
    """Waits for a process; returns what it has cost. Fails with its errors if it failed."""
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise Failed(process.returncode, f"status {process.returncode} of {' '.join(process.args)}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def shell(command):
    """Runs a pipe whose parts must all succeed."""
    return run("bash", "-o", "pipefail", "-c", command)


def text_of(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def on_machine(measure):
    """Measures with the CPU seconds of the whole machine: those of servers that a command has worked for, too."""
    before = busy()
    cost = measure()
    return cost._replace(cpu=busy() - before)


def busy():
    """CPU seconds that all processors have worked since they were started."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, irq, softirq = map(int, file.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def total(*costs):
    """The cost of commands that ran one after the other."""
    return Cost(sum(c.wall for c in costs), sum(c.cpu for c in costs), max(c.peak for c in costs))


def median(costs):
    return Cost(*map(statistics.median, zip(*costs)))


def counters(pid):
    """The bytes that a process has asked for by reads, and its CPU seconds."""
    with open(f"/proc/{pid}/io") as file:
        asked = int(file.readline().split()[1])
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return asked, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_of(pid):
    """The largest resident memory so far of a process that runs, in bytes."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024


def processors():
    return len(os.sched_getaffinity(0))
