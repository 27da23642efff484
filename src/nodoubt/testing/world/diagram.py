"""A trace as a sequence diagram in text: a column for each process and server, an arrow for each message.

What every coordinator asks again and again (who is who, which epoch it is; what is prepared, where nothing is) is left
out, unless all is wanted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .trace import Kind, Line, Trace
from .world import World

WIDTH = 9
TEXT_MAX = 110
_NOISE = re.compile(
    r"^(apply (registered|epoch|minted|cluster|register)|identity|server|run SELECT|witness|apply raise_epoch)"
)
_LOOK = re.compile(r"^(list|xa recover|apply (undecided|open_commits|floor|look|confirm|staged))")
_ATTEMPT = re.compile(r"\bT\d+\b")
_ENDED = re.compile(r"^session \d+ has ended$")


def diagram(world: World, *, everything: bool = False) -> str:
    """The diagram."""
    lines = list(_told(world.trace, everything=everything))
    everybody = [*world.processes, *world.machines, world.service.name]
    names = [name for name in everybody if any(name in (o.who, o.whom) for o, _ in lines)]
    places = {name: number * WIDTH for number, name in enumerate(names)}
    head = "".join(name.ljust(WIDTH) for name in names)
    rows = [f"{'':>10} {head}"]
    for line, text in lines:
        rows.append(f"{line.at:10.4f} {_picture(line, places)} {text[:TEXT_MAX]}".rstrip())
    return "\n".join(rows)


def _told(trace: Trace, *, everything: bool) -> Iterator[tuple[Line, str]]:
    """The lines that matter, with their words."""
    asked = set[tuple[str, int]]()
    lines = list(trace.texts())
    answers = {(line.whom, line.number): text for line, text in lines if line.kind is Kind.ANSWERED}
    for line, text in lines:
        if not everything:
            if line.who == "setup" or line.whom == "setup" or _ENDED.match(text):
                continue
            if line.kind is Kind.SENT and (
                _NOISE.match(text) or _idle(text, answers.get((line.who, line.number), "T0"))
            ):
                asked.add((line.who, line.number))
                continue
            if line.kind is Kind.ANSWERED and (line.whom, line.number) in asked:
                continue
        yield line, f"#{line.number} {text}" if line.number else text


def _idle(question: str, answer: str) -> bool:
    """Whether it asked what there is to do, and nothing was."""
    return _LOOK.match(question) is not None and not _ATTEMPT.search(question + answer)


def _picture(line: Line, places: dict[str, int]) -> str:
    width = (max(places.values(), default=0)) + WIDTH
    row = [" "] * width
    for place in places.values():
        row[place] = "|"
    start = places.get(line.who)
    if start is None:
        return "".join(row)
    end = places.get(line.whom)
    if end is None:
        row[start] = "*" if line.kind is Kind.NOTE else "!"
        return "".join(row)
    left, right = min(start, end), max(start, end)
    row[left:right] = "-" * (right - left)
    row[start], row[end] = "o", ">" if end > start else "<"
    return "".join(row)
