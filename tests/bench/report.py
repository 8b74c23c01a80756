"""Prints what was measured, and where, as Markdown."""

import os
import platform

from bench.files import GIB
from bench.measure import processors, run, text_of


def print_tables(bench):
    if bench.costs or bench.rates or bench.facts:
        print(f"{machine(bench)}\n")
    if bench.costs:
        print("| case | wall s | CPU s | peak MB | reference | wall s | CPU s | CPU ratio | at most |")
        print("| --- | --: | --: | --: | --- | --: | --: | --: | --- |")
        print("\n".join(bench.costs) + "\n")
    if bench.rates:
        print("| whole image | MiB/s of the image | wall s | CPU s | |\n| --- | --: | --: | --: | --- |")
        print("\n".join(bench.rates) + "\n")
    if bench.facts:
        print("| measured | result | at most |\n| --- | --- | --- |")
        print("\n".join(bench.facts) + "\n")
    for text in bench.texts:
        print(text)


def machine(bench):
    """One paragraph on where this ran."""
    versions = ", ".join(
        version(*command) for command in ((bench.backy, "--version"), ("b3sum", "--version"), ("zstd", "--version"))
    )
    cache = "cold" if bench.options.cold and os.geteuid() == 0 else "warm"
    image = f"Image: ext4, {bench.bytes / GIB:.2f} GiB allocated. " if bench.bytes else ""
    return (
        f"{hardware(bench.work)}; {versions}. {image}Medians of {bench.options.repeat}, {cache} page cache. "
        f"Peaks below {run('true').peak / 1e6:.0f} MB do not show."
    )


def hardware(work):
    """Processors, memory, kernel, and the file system of the work directory."""
    with open("/proc/cpuinfo") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    model = names[0] if names else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    system = text_of("stat", "-f", "-c", "%T", work)
    return f"{processors()} cores of {model}, {memory:.0f} GiB of memory, Linux {platform.release()}, {system}"


def version(*command):
    return text_of(*command).split("\n")[0].strip("* ")
