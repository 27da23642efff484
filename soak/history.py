"""What clients meant to do and what they were told: one line of JSON each, written before anything else is done.

Guarantees: a line is one write of its own, so a process that is killed leaves whole lines only. It is not flushed: the
machine is not killed, only processes are, and what was written survives those.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

BEGUN, STAGED, COMMITTED, ABORTED, DOUBT, ALARM, HELLO = (
    "begun", "staged", "committed", "aborted", "doubt", "alarm", "hello"
)  # fmt: skip
WHY_CHARACTERS_MAX = 400


class Leg(msgspec.Struct, frozen=True, array_like=True):
    """One database's share: `amount` for an account, or an append to a list (0). `key`: of the account or the list."""

    database: str
    key: int
    amount: int = 0


class Plan(msgspec.Struct, frozen=True, array_like=True):
    """What a transaction is to do. `fate`: commit, or what makes it fail: rollback, overdraft, duplicate."""

    kind: str  # bank or list
    how: str  # once or staged
    fate: str
    legs: tuple[Leg, ...]


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event. `at`: this machine's monotonic clock, which all processes share and nobody moves."""

    at: float
    who: str
    what: str
    tx: str = ""
    plan: Plan | None = None  # with `begun`
    why: str = ""
    clock_s: float = 0.0  # how far the process's wall clock is from the monotonic one


class Writer:
    """Appends lines; any number of processes may append to one file."""

    def __init__(self, path: Path, who: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._who = who

    def append(self, what: str, tx: str = "", *, plan: Plan | None = None, why: str = "") -> None:
        now = time.monotonic()
        line = Line(now, self._who, what, tx, plan, why[:WHY_CHARACTERS_MAX], round(time.time() - now, 3))
        data = msgspec.json.encode(line) + b"\n"
        written = os.write(self._file, data)
        assert written == len(data), "the history's own disk is full: what follows proves nothing"


def read(folder: Path) -> Iterator[Line]:
    """All lines of all files, file by file."""
    decoder = msgspec.json.Decoder(Line)
    for path in sorted(folder.glob("*.history")):
        with path.open("rb") as stream:
            for line in stream:
                yield decoder.decode(line)
