"""A run's main ratios as an SVG for the README: bars for throughput, with their quartiles. No dependency."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .results import Figures, Results, Table

WIDTH, LEFT, BAR, GAP, HEAD = 760, 300, 16, 6, 34
Shown = tuple[str, int, tuple[str, ...]]  # a scenario, its number of clients, and whose bars


def svg(results: Results, shown: Sequence[Shown]) -> str:
    """These races, as far as they were run, one below the other, each relative to its yardstick."""
    races = [
        (t, _rows(t, names)) for name, n, names in shown for t in results.tables if (t.scenario, t.clients) == (name, n)
    ]
    most = max((row.throughput.high for _, rows in races for row in rows), default=1.0)
    scale = (WIDTH - LEFT - 70) / max(most, 1.0)
    parts: list[str] = []
    y = 10
    for table, rows in races:
        parts.append(text(8, y + 16, f"{table.scenario}, {table.clients} clients: throughput", weight="bold"))
        y += HEAD - 8
        top = y
        for row in rows:
            parts += _bar(row, y, scale)
            y += BAR + GAP
        parts.append(line(LEFT + scale, top - 4, LEFT + scale, y, dash=True))  # the yardstick: 1
        y += 12
    parts.append(text(8, y + 10, f"Ratios within alternating rounds, median and quartiles, {results.date}.", size=11))
    style = "font-family:sans-serif;font-size:12px;background:#fff"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 20}" style="{style}" role="img">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _rows(table: Table, names: tuple[str, ...]) -> list[Figures]:
    return [row for row in table.rows if row.name in names]


def _bar(row: Figures, y: int, scale: float) -> list[str]:
    ratio = row.throughput
    colour = "#1a6b54" if row.name.startswith("nodoubt") else "#9aa5b1"
    middle = y + BAR / 2
    return [
        text(LEFT - 8, y + 12, row.name, anchor="end"),
        f'<rect x="{LEFT}" y="{y}" width="{ratio.median * scale:.1f}" height="{BAR}" fill="{colour}"/>',
        line(LEFT + ratio.low * scale, middle, LEFT + ratio.high * scale, middle),
        text(LEFT + max(ratio.high, ratio.median) * scale + 6, y + 12, f"{ratio.median:.2f}"),
    ]


def text(x: float, y: float, what: str, *, anchor: str = "start", weight: str = "normal", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" font-size="{size}" '
        f'fill="#222">{escape(what)}</text>'
    )


def line(x: float, y: float, to_x: float, to_y: float, *, dash: bool = False) -> str:
    dashes = ' stroke-dasharray="3 3"' if dash else ""
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="#222"{dashes}/>'
