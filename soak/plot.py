"""A run as an SVG: commits over time, and below it what was broken when. No dependency, as the benchmarks' plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from benchmarks.plot import line, text

from .campaign import Outcome
from .history import COMMITTED
from .nemesis import Done
from .report import unwanted

WIDTH, LEFT, TOP, HEIGHT, ROW = 1100, 150, 34, 220, 16
BINS_MAX = 360
# A row for each, in this order: its name, its colour, and which acts are in it.
ROWS = (
    ("server killed", "#b3261e", ("server",), ("kill", "kill a backend", "restart")),
    ("server frozen", "#d98c00", ("server",), ("freeze",)),
    ("disk full", "#7b4ea3", ("server", "process"), ("fill the disk",)),
    ("process killed", "#b3261e", ("process",), ("kill",)),
    ("process stopped", "#d98c00", ("process",), ("stop",)),
    ("network broken", "#38618c", ("network",), ()),
    ("clock moved", "#5d6b2f", ("clock",), ()),
)


def svg(outcome: Outcome) -> str:
    """The whole picture."""
    scale = (WIDTH - LEFT - 20) / outcome.seconds
    bin_s = max(1.0, outcome.seconds / BINS_MAX)
    committed = _rates(outcome, bin_s, (one.at for one in outcome.lines if one.what == COMMITTED))
    failed = _rates(outcome, bin_s, (one.at for one in outcome.lines if unwanted(one)))
    most = max([1.0, *committed, *failed])
    floor = TOP + HEIGHT
    parts = [
        text(
            LEFT, 16, f"commits per second ({bin_s:g} s each), and what was broken; seed {outcome.seed}", weight="bold"
        )
    ]
    for share in (0.0, 0.5, 1.0):
        y = floor - share * HEIGHT
        parts += [
            line(LEFT - 4, y, WIDTH - 20, y, dash=True),
            text(LEFT - 8, y + 4, f"{most * share:.0f}", anchor="end"),
        ]
    # SIGKILLs of servers go through the picture.
    for done in outcome.done:
        if _row(done) == 0:
            x = LEFT + (done.began - outcome.began) * scale
            parts.append(
                f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{floor}" stroke="#b3261e" stroke-opacity="0.35"/>'
            )
    parts.append(_curve(failed, bin_s * scale, most, "#9aa5b1"))
    parts.append(_curve(committed, bin_s * scale, most, "#1a6b54"))
    for number, (name, colour, _, _) in enumerate(ROWS):
        y = floor + 14 + number * ROW
        parts.append(text(LEFT - 8, y + 9, name, anchor="end", size=11))
        parts += [_mark(done, outcome.began, scale, y, colour) for done in outcome.done if _row(done) == number]
    bottom = floor + 14 + len(ROWS) * ROW
    minutes = max(1, round(outcome.seconds / 60))
    for minute in range(0, minutes + 1, max(1, minutes // 12)):
        parts.append(text(LEFT + minute * 60 * scale, bottom + 14, f"{minute} min", anchor="middle", size=11))
    parts.append(
        text(LEFT, bottom + 34, "green: committed; grey: aborted or in doubt although nobody had wished it", size=11)
    )
    style = "font-family:sans-serif;font-size:12px;background:#fff"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 44}" style="{style}" role="img">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _row(done: Done) -> int | None:
    lane = done.act.lane.split()[0]
    found = (
        n for n, (_, _, lanes, faults) in enumerate(ROWS) if lane in lanes and (not faults or done.act.fault in faults)
    )
    return next(found, None)


def _rates(outcome: Outcome, bin_s: float, times: Iterable[float]) -> list[float]:
    counted = Counter(int((at - outcome.began) / bin_s) for at in times if at >= outcome.began)
    return [counted[number] / bin_s for number in range(int(outcome.seconds / bin_s))]


def _curve(rates: list[float], step: float, most: float, colour: str) -> str:
    points = " ".join(
        f"{LEFT + (number + 0.5) * step:.1f},{TOP + HEIGHT - rate / most * HEIGHT:.1f}"
        for number, rate in enumerate(rates)
    )
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _mark(done: Done, began: float, scale: float, y: float, colour: str) -> str:
    x, width = LEFT + (done.began - began) * scale, max((done.ended - done.began) * scale, 1.5)
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{ROW - 4}" fill="{colour}" fill-opacity="0.7">'
        f"<title>{done.act.fault} {done.act.target}</title></rect>"
    )
