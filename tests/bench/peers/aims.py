"""What backy has to reach against its peers, and whether it did."""

from bench.peers.summary import BACKUPS, OURS, REFERENCE

BORG = "borg"


def aims(summary):
    """Yields for each aim: what, ours, the bound, whether it is reached (None: cannot be told)."""

    def wall(step):
        return lambda name: summary.value(name, step, "wall")

    def stored(step):
        return lambda name: summary.value(name, step, "stored")

    def at_most(what, ours, other, factor, unit):
        return judge(what, ours, scaled(other, factor), unit, lambda value, bound: value <= bound)

    def value(name, step, field):
        return summary.value(name, step, field)

    yield at_most("first backup: wall, half of borg's", value(OURS, "first", "wall"), value(BORG, "first", "wall"), 0.5, "s")
    yield at_most("first backup: CPU, 0.8 times borg's", value(OURS, "first", "cpu"), value(BORG, "first", "cpu"), 0.8, "s")
    yield at_most("touched: wall, half of borg's", value(OURS, "touched", "wall"), value(BORG, "touched", "wall"), 0.5, "s")
    yield at_most("touched: CPU, 1.3 times b3sum's", value(OURS, "touched", "cpu"), value(REFERENCE, "b3sum", "cpu"), 1.3, "s")
    yield at_most("day of change: wall, half of borg's", value(OURS, "day", "wall"), value(BORG, "day", "wall"), 0.5, "s")
    for step, what in (("day", "day of change"), ("second", "second machine")):
        peer, least = summary.best(stored(step))
        yield judge(
            f"{what}: store growth, below the best peer's ({peer or 'none measured'})",
            value(OURS, step, "stored"),
            least,
            "MB",
            lambda a, b: a < b,
        )
    writes = summary.document["dataset"]["writes"]
    each = scaled(value(OURS, "scattered", "stored"), 1 / writes)
    yield at_most("scattered writes: stored for each of 4 KiB, 8 KiB", each, 8192, 1, "KiB")
    peer, least = summary.best(wall("restore"))
    yield at_most(
        f"restore: wall, half of the best peer's ({peer or 'none measured'})", value(OURS, "restore", "wall"), least, 0.5, "s"
    )
    yield at_most(
        "restore: CPU, 1.3 times `zstd -d`'s", value(OURS, "restore", "cpu"), value(REFERENCE, "zstd -d", "cpu"), 1.3, "s"
    )
    for step, what, factor, unit in (("sequential", "sequential read", 3, "MB/s"), ("random", "random 4 KiB reads", 10, "/s")):
        peer, most = summary.best(lambda name: summary.rate(name, step), max)  # noqa: B023
        bound = scaled(most, factor)
        yield judge(
            f"mount: {what}, {factor} times the best peer's ({peer or 'none measured'})",
            summary.rate(OURS, step),
            bound,
            unit,
            lambda a, b: a >= b,
        )
    yield at_most(f"peak memory of {len(BACKUPS)} backups, 150 MB", summary.peak(OURS), 150e6, 1, "MB")


def scaled(value, factor):
    return None if value is None else value * factor


def judge(what, ours, bound, unit, reached):
    known = ours is not None and bound is not None
    return what, show(ours, unit), show(bound, unit), reached(ours, bound) if known else None


def show(value, unit):
    if value is None:
        return "-"
    scale, digits = {"s": (1, 2), "MB": (1e6, 1), "MB/s": (1e6, 0), "KiB": (1024, 1), "/s": (1, 0)}[unit]
    return f"{value / scale:,.{digits}f} {unit}" if unit != "/s" else f"{value:,.0f}/s"
