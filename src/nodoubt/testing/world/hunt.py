"""Looks for a schedule that breaks a rule: many seeds, in several processes, with figures of what was tried.

Guarantees: what it finds it shrinks, and prints with the command that replays it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from .diagram import diagram
from .running import SOUND, Ran, Variant, run
from .schedule import Focus, Schedule, drawn
from .shrink import shrunk

BATCH = 50


@dataclass(slots=True)
class Figures:
    """What was tried. `steps`: states of the world in which something had changed, each of them checked."""

    schedules: int = 0
    events: int = 0
    messages: int = 0
    steps: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[Schedule] = field(default_factory=list)

    def add(self, ran: Ran) -> None:
        """Count one run."""
        world = ran.world
        self.schedules += 1
        self.events += world.kernel.happened
        self.messages += sum(process.messages for process in world.processes.values())
        self.steps += world.checker.steps
        self.faults.update(world.faults.came)
        self.outcomes.update(str(deed.told or "not told") for deed in world.checker.deeds.values())
        if ran.violated is not None:
            self.failures.append(ran.schedule)

    def merge(self, other: Figures) -> None:
        """Count another's."""
        for name in ("schedules", "events", "messages", "steps"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.faults.update(other.faults)
        self.outcomes.update(other.outcomes)
        self.failures += other.failures

    def __str__(self) -> str:
        a_minute = self.schedules / self.seconds * 60 if self.seconds else 0
        faults = ", ".join(f"{kind} {count}" for kind, count in sorted(self.faults.items()))
        outcomes = ", ".join(f"{told} {count}" for told, count in sorted(self.outcomes.items()))
        return (
            f"{self.schedules} schedules in {self.seconds:.0f} s ({a_minute:.0f} a minute): {self.events} events, "
            f"{self.messages} messages, {self.steps} states checked\n"
            f"transactions: {outcomes}\nfaults: {faults}\nfailures: {len(self.failures)}"
        )


def batch(seeds: Iterable[int], variant: Variant = SOUND, focus: Focus | None = None) -> Figures:
    """Run these seeds, one after the other."""
    figures = Figures()
    for seed in seeds:
        figures.add(run(drawn(seed, focus), variant))
    return figures


def hunted(
    first: int,
    *,
    count: int | None = None,
    seconds: float | None = None,
    jobs: int = 2,
    variant: Variant = SOUND,
    focus: Focus | None = None,
) -> Figures:
    """Run seeds from `first` on: so many, or for so long."""
    began, figures = time.monotonic(), Figures()

    def over(next_one: int) -> bool:
        late = seconds is not None and time.monotonic() - began > seconds
        return late or (count is not None and next_one - first >= count) or len(figures.failures) > 0

    with ProcessPoolExecutor(jobs) as executor:
        next_one = first
        while not over(next_one):
            starts = [next_one + number * BATCH for number in range(jobs * 2)]
            next_one += jobs * 2 * BATCH
            last = next_one if count is None else min(next_one, first + count)
            parts = [range(start, min(start + BATCH, last)) for start in starts if start < last]
            for part in executor.map(partial(batch, variant=variant, focus=focus), parts):
                figures.merge(part)
    figures.seconds = time.monotonic() - began
    return figures


def report(ran: Ran, variant: Variant = SOUND, *, everything: bool = False) -> str:
    """What somebody needs who must understand a failure: the rule, the smallest schedule, the diagram, the command."""
    small = shrunk(ran, variant)
    assert small.violated is not None
    return "\n".join(
        [
            f"{small.violated}",
            "",
            f"found with seed {ran.schedule.seed}, {len(ran.schedule.keep)} acts and faults; these are enough:",
            str(small.schedule),
            "",
            diagram(small.world, everything=everything),
            "",
            f"replay it: {small.schedule.command}{f' VARIANT={variant.place}' if variant.place else ''}",
        ]
    )
