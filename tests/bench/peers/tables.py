"""Turns a document of the bench into Markdown for docs/performance.md."""

from bench.files import GIB
from bench.peers.aims import aims
from bench.peers.summary import REFERENCE, Summary

TITLES = {
    "first": "first backup",
    "touched": "touched, but unchanged",
    "day": "a day of change",
    "scattered": "scattered writes",
    "second": "a second machine into the same store",
}


def markdown(document):
    summary = Summary(document)
    parts = [
        conditions(document), settings(document), backups(summary), growth(summary), restores(summary), mounts(summary),
        references(summary), verdicts(summary),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def table(head, rows):
    """The first column is text, all others numbers."""
    lines = [f"| {' | '.join(head)} |", f"| --- |{' --: |' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def number(value, scale=1, digits=2):
    return "-" if value is None else f"{value / scale:,.{digits}f}"


def conditions(document):
    """One paragraph on where, how and on what this was measured."""
    data = document["dataset"]
    tree, disk, base, second = (
        f"{size / GIB:.2f} GiB"
        for size in (data["tree_bytes"], data["virtual_bytes"], data["allocated"]["base"], data["allocated"]["second"])
    )
    return " ".join((
        f"{document['machine']}. Medians of {document['rounds']} rounds, all programs in turns; page cache: {document['cache']}.",
        f"Disk of {disk} with GPT and ext4, {base} allocated, of which {tree} are files of /usr,",
        f"the rest a database, logs and incompressible files. The day: {data['day']};",
        f"{data['day_bytes'] / 1e6:.1f} MB of the disk changed, in blocks of 4 KiB.",
        f"Scattered: {data['writes']:,} blocks of 4 KiB of the allocated parts overwritten with noise.",
        "The second machine: made from a copy of the same template, with its own name, keys, database, logs and files;",
        f"{second} allocated. Every backup and every restore ends with a sync, which is counted.",
        "What a program keeps outside its store, as caches, is not counted as growth.",
        f"Peaks below {document['floor'] / 1e6:.0f} MB do not show.",
        f"{document['checked']} restored images had the SHA-256 of what was backed up.",
    ))  # fmt: skip


def settings(document):
    rows = [[name, about["version"], about["settings"]] for name, about in document["programs"].items()]
    rows += [[name, "-", f"not measured: {reason}"] for name, reason in document["missing"].items()]
    problems = "".join(f"\n\n**{name} failed**: {problem}" for name, problem in document["problems"].items())
    lines = ["| program | version | settings |", "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + problems


def backups(summary):
    rows = []
    for step, title in TITLES.items():
        for name in summary.programs:
            wall, cpu, peak = (summary.value(name, step, field) for field in ("wall", "cpu", "peak"))
            if wall is not None:
                rows.append([f"{title}: {name}", number(wall), number(cpu), number(peak, 1e6, 0)])
    return table(["backup", "wall s", "CPU s", "peak MB"], rows)


def growth(summary):
    """Apparent bytes of the store's files, and in brackets what is allocated for them."""
    rows = []
    for name in summary.programs:
        cells = [(summary.value(name, step, "stored"), summary.value(name, step, "allocated")) for step in TITLES]
        rows.append([name, *(f"{number(stored, 1e6, 1)} ({number(space, 1e6, 1)})" for stored, space in cells)])
    return table(["store growth in MB: size of files (allocated)", *TITLES.values()], rows)


def restores(summary):
    rows = []
    for name in summary.programs:
        if summary.value(name, "restore", "wall") is not None:
            cells = [summary.value(name, "restore", field) for field in ("wall", "cpu", "peak")]
            rows.append([name, number(cells[0]), number(cells[1]), number(cells[2], 1e6, 0)])
    return table(["restore of the newest image to a file", "wall s", "CPU s", "peak MB"], rows)


def mounts(summary):
    rows = []
    for name in summary.programs:
        for step, title in (("sequential", "whole image"), ("random", "4 KiB at random places")):
            rate = summary.rate(name, step)
            if rate is None:
                continue
            sample = summary.samples[name][step][0]
            if step == "sequential":
                shown = f"{rate / 1e6:,.0f} MB/s" + ("" if sample["whole"] else " (ended by time)")
            else:
                middle, late = (summary.value(name, step, field) * 1e3 for field in ("median", "late"))
                shown = f"{rate:,.0f}/s; median {middle:.2f} ms, 99 % within {late:.2f} ms; {sample['reads']:,} reads"
            wall, cpu, peak = (summary.value(name, step, field) for field in ("wall", "cpu", "peak"))
            rows.append([f"{title}: {name}", shown, number(wall), number(cpu), number(peak, 1e6, 0)])
    return table(["reading the newest image through a mount", "rate", "wall s", "CPU s", "peak MB of the mount"], rows)


def references(summary):
    rows = []
    for step in summary.samples[REFERENCE]:
        rows.append([f"`{step}`", *(number(summary.value(REFERENCE, step, field)) for field in ("wall", "cpu"))])
    return table(["reference: the allocated bytes; `cp --sparse=always` of the image", "wall s", "CPU s"], rows)


def verdicts(summary):
    words = {True: "reached", False: "**missed**", None: "not measured"}
    rows = [[what, ours, bound, words[reached]] for what, ours, bound, reached in aims(summary)]
    return table(["aim", "backy", "bound", ""], rows)
