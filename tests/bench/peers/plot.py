"""Draws a document of the bench as a small SVG for the README: a panel for each measure, a bar for each program.

Bars are relative to the best peer, whose value is the upright line; shorter is better everywhere.
"""

from html import escape

from bench.peers.summary import OURS, Summary

WIDTH, LABEL, BAR, ROW, TITLE, GAP = 560, 90, 330, 12, 18, 8
# A bar that would be longer than this many times the best peer's is cut off.
LONGEST = 3.0
# Greys of the middle, which can be read on white and on black: a drawing is not told which of the two its page is.
STYLE = "text{font:11px sans-serif;fill:#777}.title{font-weight:bold}.ours{fill:#2f7ed8}.peer{fill:#8b949e}.line{stroke:#d9534f}"


def measures(summary):
    """Title, how to show a value, and the values by program."""

    def by_program(of):
        return {name: of(name) for name in [OURS, *summary.peers]}

    def wall(step):
        return by_program(lambda name: summary.value(name, step, "wall"))

    writes = summary.document["dataset"]["writes"]
    scattered = by_program(lambda name: summary.value(name, "scattered", "stored"))
    yield "Stored for each scattered write of 4 KiB", lambda v: f"{v / writes / 1024:,.1f} KiB", scattered
    yield "First backup", seconds, wall("first")
    yield "Backup after a day of change", seconds, wall("day")
    yield "Restore of the whole image", seconds, wall("restore")
    waits = by_program(lambda name: reciprocal(summary.rate(name, "random")))
    yield "A random 4 KiB read through the mount, on average", lambda v: f"{v * 1000:,.2f} ms", waits


def reciprocal(rate):
    return 1 / rate if rate else None


def seconds(value):
    return f"{value:,.1f} s"


def svg(document):
    """The whole drawing; measures without a value of any peer are left out."""
    summary = Summary(document)
    parts, y = [], 0
    for title, show, values in measures(summary):
        values = {name: value for name, value in values.items() if value is not None}
        best = min((value for name, value in values.items() if name != OURS), default=None)
        if best and OURS in values:
            drawn, y = panel(title, show, values, best, y)
            parts += drawn
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" role="img">'
    return "\n".join([head, f"<title>backy and its peers</title><style>{STYLE}</style>", *parts, "</svg>"]) + "\n"


def panel(title, show, values, best, y):
    """The lines of one measure, and where the next one begins."""
    parts = [f'<text class="title" x="0" y="{y + TITLE - 7}">{escape(title)}</text>']
    top = y = y + TITLE
    for name, value in values.items():
        times = value / best
        width = max(1.0, min(times, LONGEST) / LONGEST * BAR)
        kind = "ours" if name == OURS else "peer"
        more = "› " if times > LONGEST else ""
        parts += [
            f'<text x="{LABEL - 6}" y="{y + ROW - 3}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="{kind}" x="{LABEL}" y="{y + 2}" width="{width:.1f}" height="{ROW - 3}"/>',
            f'<text x="{LABEL + BAR + 6}" y="{y + ROW - 3}">{more}{show(value)}, {times:.2f}×</text>',
        ]
        y += ROW
    at = LABEL + BAR / LONGEST
    parts.append(f'<line class="line" x1="{at:.1f}" y1="{top}" x2="{at:.1f}" y2="{y}"/>')
    return parts, y + GAP
