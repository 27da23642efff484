"""The process that places an order and dies: `python -m nodoubt.demo.child`, with a `Job` as JSON on standard input.

It reports every point of the protocol on its standard output, and at the one that it was told it kills itself
with SIGKILL, from inside `Observer.notice`: no handler runs, no file is closed, no connection says good-bye.

Must not: catch its own death, or help recovery in any way.
"""

from __future__ import annotations

import sys
import threading

import msgspec

from ..points import AtPoint, Point
from ..ports import Notice
from .world import Order, World, place_order


class Job(msgspec.Struct, frozen=True):
    """All that a child needs. `point`: where it dies, by its name in `points`. `hold`: as `points.AtPoint` has it."""

    world: World
    order: Order
    point: str
    hold: tuple[str, ...] = ()
    deadline: float | None = None


class Report(msgspec.Struct, frozen=True):
    """A line of the child's standard output: a point that it has reached."""

    attempt: str
    point: str


class Teller(AtPoint):
    """Tells what it sees, and then is killed by it."""

    _telling = threading.Lock()

    def notice(self, notice: Notice) -> None:
        if notice.what not in ("begun", "work"):
            with self._telling:
                report = Report(notice.attempt, f"{notice.what} {notice.fields.get('resource', '')}".strip())
                print(msgspec.json.encode(report).decode(), flush=True)
        super().notice(notice)


def main() -> None:
    """Place the order, as far as one gets."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    with job.world.coordinator(observer=Teller(Point.parse(job.point), hold=job.hold)) as db:
        place_order(db, job.world, job.order, deadline=job.deadline)


if __name__ == "__main__":
    main()
