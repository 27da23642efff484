"""Alternating rounds: every contender has its turn in each, in a new order, so that the machine's moods hit all alike.

What comes out is ratios, taken within a round. Two figures from different rounds are never compared.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from .task import Order, Round, Task
from .workers import Worker

Measure = Callable[[Round], float]
WARM_UP_S = 0.2  # before each turn, not counted: idle sessions are asked whether they still live, caches are cold


@dataclass(frozen=True, slots=True)
class Quartiles:
    """The median of some ratios, and the half of them that lies in the middle."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(low, median, high)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, slots=True)
class Race:
    """The rounds of several contenders on the same work."""

    rounds: dict[str, list[Round]]
    grown_bytes: dict[str, int]

    def ratio(self, ours: str, theirs: str, measure: Measure) -> Quartiles:
        """How often theirs goes into ours, round by round."""
        pairs = zip(self.rounds[ours], self.rounds[theirs], strict=True)
        return Quartiles.of([measure(one) / measure(other) for one, other in pairs])

    def has(self, names: Sequence[str]) -> bool:
        """Whether all of them took part."""
        return all(name in self.rounds for name in names)

    def median(self, name: str, measure: Measure) -> float:
        """For orientation only: of the machine, at that time."""
        return statistics.median(measure(one) for one in self.rounds[name])

    def bytes_per_client(self, name: str, clients: int) -> float:
        """How much the peak of resident memory lies above what the connected worker had before, for each client."""
        return self.grown_bytes[name] / clients


def race(tasks: Sequence[Task], *, rounds: int, seconds: float, servers_s: Callable[[], float]) -> Race:
    """Run them against each other. All are connected before the first round, and stay so."""
    found: dict[str, list[Round]] = {label(task): [] for task in tasks}
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(task)) for task in tasks]
        assert all(worker.pid for worker in workers)  # connected
        for _ in range(rounds):
            random.shuffle(workers)
            for worker in workers:
                worker.ask(Order(seconds=WARM_UP_S, settle=False))
                before = servers_s()
                done = worker.ask(Order(seconds=seconds))
                found[label(worker.task)].append(replace(done, servers_s=servers_s() - before))
        grown = {label(worker.task): worker.grown_bytes for worker in workers}
    return Race(found, grown)


def label(task: Task) -> str:
    """The contender's name in tables."""
    if task.called:
        return task.called
    own = ", journal elsewhere" if task.journal else ""
    return f"{task.contender}{own}{', uvloop' if task.uvloop else ''}"
