"""Draws a curve over days as a small SVG."""

import os
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 560, 200, 50, 20, 20
STYLE = "text{font:11px sans-serif;fill:#777}.curve{fill:none;stroke:#2f7ed8}.axis{stroke:#8b949e}"


def curve(title, points, path):
    """Writes the drawing to `path`; returns a line that names it."""
    highest = max(value for _, value in points) or 1
    last = max(day for day, _ in points) or 1

    def place(day, value):
        x = LEFT + day / last * (WIDTH - LEFT - 10)
        y = HEIGHT - BOTTOM - value / highest * (HEIGHT - BOTTOM - TOP)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(place(day, value) for day, value in points)
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
        f'<polyline class="curve" points="{line}"/>',
        "</svg>",
    ]
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write("\n".join(parts) + "\n")
    return f"{title}: `{path}`"
