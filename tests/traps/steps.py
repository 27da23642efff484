"""Something else happens at the k-th effect of a coordinator: every interleaving at that grain, one after the other.

Scripts talk to the world by effects alone, and two functions perform them all. So the steps of any verb can be
counted, and before the k-th of them a rival may act, the caller be cancelled, or the process be interrupted.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from kit import Face
from nodoubt import script
from nodoubt.script import Do

STEPS_MAX = 200


class Steps:
    """Counts the calls of one coordinator, and acts once, before the k-th of them."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self._at, self._act = at, act
        self._lock = threading.Lock()
        self.count = 0
        self.acted = False
        self.trail: list[str] = []

    def step(self, effect: Any) -> None:
        if not isinstance(effect, Do):
            return
        with self._lock:
            self.count += 1
            self.trail.append(f"{type(effect.target).__name__}.{effect.verb}")
            mine = self.count == self._at
            self.acted |= mine
        if mine:
            self._act()


@contextlib.contextmanager
def at_step(db: Face, at: int, act: Callable[[], None]) -> Iterator[Steps]:
    """In the block, `act` runs before this coordinator's `at`-th call. A rival must be a sync coordinator."""
    steps = Steps(at, act)
    perform, aperform = script._perform, script._aperform

    def performed(effect: Any, executor: Any, watch: Any) -> Any:
        if db.mode == "sync" and watch is db.db._shell._watch:
            steps.step(effect)
        return perform(effect, executor, watch)

    async def aperformed(effect: Any) -> Any:
        steps.step(effect)
        return await aperform(effect)

    script._perform, script._aperform = performed, aperformed
    try:
        yield steps
    finally:
        script._perform, script._aperform = perform, aperform


def every_step() -> Iterator[int]:
    """1, 2, 3 …: leave the loop when nothing has been acted any more."""
    for at in itertools.count(1):
        assert at <= STEPS_MAX, "the verb does not end"
        yield at
