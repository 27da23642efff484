"""Attempt ids as points in time, for the floor. They begin with 48 bits of milliseconds (UUIDv7).

Guarantees: ids compare as their times do, up to the clocks that made them.

Must not: decide anything: a clock chooses when to try, never what is true (I14).
"""

from __future__ import annotations

FLOOR_LOWEST = "0" * 32
_ATTEMPT_MAX = (1 << 128) - 1


def begun_at(attempt: str) -> float:
    """The time that the clock which made this id showed then, in seconds since the epoch."""
    return int(attempt[:12], 16) / 1000


def next_attempt(attempt: str) -> str:
    """The smallest id above this one."""
    return f"{min(int(attempt, 16) + 1, _ATTEMPT_MAX):032x}"
