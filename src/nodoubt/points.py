"""The points of the protocol by name, and an observer that acts at one of them.

A point is a place where a process can die. `P3.prepare@stock` is the moment before PREPARE is sent to the branch on
`stock`; `P7.branch-committed@shop#2` the second time that the branch on `shop` has answered its commit. Without `@…`
any branch is meant, without `#…` the first time. `KNOWN` says which there are, and what each means.

Guarantees: `parse(str(point)) == point`, and `parse` refuses every text that `str` would not have written.

Must not: know the engine. It reaches in through `ports.Observer`, as everybody's observer does.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Self

from .errors import UsageError
from .ports import Notice

KNOWN: dict[tuple[str, str], str] = {
    ("P1", "begun"): "the branch has begun; nothing is done on it yet",
    ("P2", "work"): "before a statement is sent",
    ("P2", "savepoint"): "before a savepoint is set, released or rolled back to",
    ("P3", "prepare"): "before the branch is asked to prepare",
    ("P3", "prepared"): "the branch has promised; nobody else knows",
    ("P4", "all prepared"): "every branch has promised; nothing is decided",
    ("P4", "staged"): "all is prepared and listed under its name, for anybody to decide",
    ("P4", "confirmed"): "somebody who was asked has said that they are ready, durably",
    ("P4", "refused"): "somebody who was asked has refused, durably; nothing is decided yet",
    ("P5", "deciding"): "before the decision is written",
    ("P5", "in doubt"): "whether the decision was written is not known",
    ("P5", "unreadable"): "a row of the journal cannot be read; nothing is done on the strength of it",
    ("P6", "committed"): "COMMIT is decided, durably; the caller has not been told",
    ("P6", "aborted"): "nothing of it can happen any more; the caller has not been told",
    ("P7", "branch committed"): "one branch has answered its commit",
    ("P8", "commit"): "before a prepared branch is told to commit",
    ("P9", "every branch proved"): "all are committed; the record still stands",
    ("P10", "ended"): "the record has ended",
    ("S1", "calling"): "before a step's intent is written",
    ("S2", "intended"): "the intent is durable; the step's function is not called yet",
    ("S3", "answered"): "the function has answered; nobody else knows",
    ("S4", "recorded"): "its answer is durable",
    ("S5", "undoing"): "the compensation is claimed; its function is not called yet",
    ("S6", "undone"): "the compensation has answered; nobody else knows",
    ("S7", "undo recorded"): "its answer is durable, and nobody undoes the step again",
}
STEP_BEFORE = {"prepared": "prepare", "branch committed": "commit"}  # where the others wait, for one to be alone
HOLD_MAX_S = 60.0  # for a branch that waits for its process to be killed

_FORM = re.compile(r"([PS][0-9]+)\.([a-z]+(?:-[a-z]+)*)(?:@(.+?))?(?:#([1-9][0-9]{0,8}))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Point:
    """One point: its number in the fault matrix, what happens there, on which resource, at which occurrence."""

    number: str
    what: str
    on: str = ""  # the resource's name; "": whichever
    count: int = 1

    def __post_init__(self) -> None:
        if (self.number, self.what) not in KNOWN:
            known = ", ".join(f"{number}.{what.replace(' ', '-')}" for number, what in KNOWN)
            raise UsageError(f"no point is called {self.number}.{self.what.replace(' ', '-')}; there are {known}")
        if self.count < 1:
            raise UsageError(f"the occurrence of a point is 1 or above, not {self.count}")

    def __str__(self) -> str:
        on = f"@{self.on}" if self.on else ""
        # A resource's name may end like a count.
        count = f"#{self.count}" if self.count > 1 or "#" in self.on else ""
        return f"{self.number}.{self.what.replace(' ', '-')}{on}{count}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The point of that name. Raises `UsageError`."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise UsageError(f"{text!r} names no point: write it like P3.prepare@stock or P7.branch-committed@shop#2")
        number, what, on, count = match.groups()
        found = cls(number, what.replace("-", " "), on or "", int(count or 1))
        if str(found) != text:
            raise UsageError(f"{text!r} names no point: it would be written {str(found)!r}")
        return found

    @property
    def meaning(self) -> str:
        """What is so at this point."""
        return KNOWN[self.number, self.what]

    def fits(self, notice: Notice) -> bool:
        """Whether the notice is one of this point, at whichever occurrence."""
        return (notice.point, notice.what) == (self.number, self.what) and self.on in ("", _resource(notice))


def _resource(notice: Notice) -> str:
    return str(notice.fields.get("resource", ""))


class Names:
    """Gives the notices of one process their points' names, in the order in which they come."""

    def __init__(self) -> None:
        self._seen: Counter[tuple[str, str, str]] = Counter()
        self._lock = threading.Lock()

    def of(self, notice: Notice) -> Point:
        key = (notice.point, notice.what, _resource(notice))
        with self._lock:
            self._seen[key] += 1
            return Point(*key, self._seen[key])


def die() -> None:
    """SIGKILL to this process: no handler runs, no file is closed, no connection says good-bye."""
    os.kill(os.getpid(), signal.SIGKILL)


class AtPoint:
    """An observer that acts, once, in the thread or task that reaches the point. What it does by default is to die.

    `hold`: resources whose branches, which go on at the same time, wait at the step before, so that this one is caught
    alone. They wait in their threads: for coordinators on asyncio, whose branches share one, it is not possible.
    """

    def __init__(self, point: Point, act: Callable[[], None] = die, *, hold: Collection[str] = ()) -> None:
        self.point, self._act = point, act
        self._left = point.count
        self._hold, self._held_at = frozenset(hold), STEP_BEFORE.get(point.what)
        self._lock = threading.Lock()

    def notice(self, notice: Notice) -> None:
        if notice.what == self._held_at and _resource(notice) in self._hold:
            threading.Event().wait(HOLD_MAX_S)
        if not self.point.fits(notice):
            return
        with self._lock:  # whoever else comes here meanwhile waits for what is done
            self._left -= 1
            if self._left == 0:
                self._act()
