"""Draws a curve over days as a small SVG."""

import os
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 560, 200, 50, 20, 20
STYLE = (
    "text{font:11px sans-serif;fill:#777}.curve{fill:none;stroke:#2f7ed8}.before{fill:none;stroke:#8b949e;stroke-dasharray:3 2}"
    ".axis{stroke:#8b949e}"
)


def curve(title, points, path, before=(), label=""):
    """Writes the drawing to `path`; returns a line that names it. `before` are the points of an earlier format, which are
    broken lines, and `label` says what they are."""
    highest = max(value for _, value in [*points, *before]) or 1
    last = max(day for day, _ in [*points, *before]) or 1

    def place(day, value):
        x = LEFT + day / last * (WIDTH - LEFT - 10)
        y = HEIGHT - BOTTOM - value / highest * (HEIGHT - BOTTOM - TOP)
        return f"{x:.1f},{y:.1f}"

    def line(kind, points):
        return f'<polyline class="{kind}" points="{" ".join(place(day, value) for day, value in points)}"/>'

    floor = HEIGHT - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<text x="0" y="12">{escape(title)}</text>',
        f'<line class="axis" x1="{LEFT}" y1="{floor}" x2="{WIDTH - 10}" y2="{floor}"/>',
        f'<line class="axis" x1="{LEFT}" y1="{TOP}" x2="{LEFT}" y2="{floor}"/>',
        f'<text x="{LEFT - 4}" y="{TOP + 8}" text-anchor="end">{highest:,.1f}</text>',
        f'<text x="{LEFT - 4}" y="{floor}" text-anchor="end">0</text>',
        f'<text x="{WIDTH - 10}" y="{HEIGHT - 5}" text-anchor="end">day {last}</text>',
        line("curve", points),
    ]
    if before:
        parts.append(line("before", before))
        x, y = place(*before[-1]).split(",")
        parts.append(f'<text x="{float(x) + 6:.1f}" y="{max(float(y) + 4, TOP + 12):.1f}">{escape(label)}</text>')
    parts.append("</svg>")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write("\n".join(parts) + "\n")
    return f"{title}: `{path}`"
