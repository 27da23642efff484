"""The process that places an order and dies: `python -m nodoubt.demo.child`, with a `Job` as JSON on standard input.

It reports every point of the protocol on its standard output, and at the point that its `Fate` names it kills itself
with SIGKILL, from inside `Observer.notice`: no handler runs, no file is closed, no connection says good-bye.

Must not: catch its own death, or help recovery in any way.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

import msgspec

from ..ports import Notice
from .world import Order, World, place_order

NEVER_S = 60.0


class Fate(msgspec.Struct, frozen=True):
    """Where to die: at the notice `what`, of the branch on `on` ("": of whichever).

    `hold`: the database whose branch waits before the same step, because branches go on at the same time and the other
    one is to be caught alone.
    """

    what: str
    on: str = ""
    hold: str = ""

    @property
    def hold_at(self) -> str:
        """The notice at which the branch that is held back waits."""
        return {"prepared": "prepare", "branch committed": "commit"}.get(self.what, "")


class Job(msgspec.Struct, frozen=True):
    """All that a child needs."""

    world: World
    order: Order
    fate: Fate
    deadline: float | None = None


class Report(msgspec.Struct, frozen=True):
    """A line of the child's standard output: a point that it has reached."""

    attempt: str
    point: str


class Knife:
    """An observer that tells what it sees, and kills."""

    def __init__(self, fate: Fate) -> None:
        self._fate = fate
        self._databases: dict[int, str] = {}
        self._lock = threading.Lock()

    def notice(self, notice: Notice) -> None:
        if notice.branch is not None and "resource" in notice.fields:
            self._databases[notice.branch] = str(notice.fields["resource"])
        if notice.what in ("begun", "work"):
            return
        on = "" if notice.branch is None else self._databases.get(notice.branch, "")
        if on and on == self._fate.hold and notice.what == self._fate.hold_at:
            threading.Event().wait(NEVER_S)
        with self._lock:
            report = Report(notice.attempt, f"{notice.what} {on}".strip())
            print(msgspec.json.encode(report).decode(), flush=True)
            if notice.what == self._fate.what and on == (self._fate.on or on):
                os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Place the order, as far as one gets."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    with job.world.coordinator(observer=Knife(job.fate)) as db:
        place_order(db, job.world, job.order, deadline=job.deadline)


if __name__ == "__main__":
    main()
