"""Spans of time and large numbers, as short as people say them; times, as programs want them.

Must not: know what is measured.
"""

from __future__ import annotations

from datetime import UTC, datetime

_STEPS = ((1.0, "ms", 1000.0), (90.0, "s", 1.0), (90 * 60.0, "min", 60.0), (48 * 3600.0, "h", 3600.0))
_LETTERS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def span(seconds: float) -> str:
    """A length of time: `250 ms`, `42 s`, `7 min`, `5 h`, `3 d`."""
    for below, unit, factor in _STEPS:
        if abs(seconds) < below:
            return f"{seconds * factor:.0f} {unit}" if unit == "ms" else f"{seconds / factor:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def quantity(number: float) -> str:
    """A count: `950`, `1.2 k`, `200 M`."""
    for least, letter in _LETTERS:
        if number >= least:
            return f"{number / least:.3g} {letter}"
    return f"{number:.0f}"


def iso(at: float | None) -> str | None:
    """A time for programs: UTC, with milliseconds."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
