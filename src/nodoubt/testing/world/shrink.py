"""Makes a failing schedule small: takes away acts and faults for as long as the same rule is still broken.

Delta debugging (Zeller and Hildebrandt's ddmin, without its complements): halves first, then quarters, down to single
items, until none can be spared.
"""

from __future__ import annotations

from collections.abc import Callable

from .running import SOUND, Ran, Variant, run
from .schedule import Schedule

RUNS_MAX = 2000


def shrunk(ran: Ran, variant: Variant = SOUND, *, runs: Callable[[Schedule, Variant], Ran] = run) -> Ran:
    """The smallest run that was found to break the same rule as this one; itself if it broke none."""
    if ran.violated is None:
        return ran
    number, best = ran.violated.number, ran
    size, left = max(len(ran.schedule.keep) // 2, 1), RUNS_MAX
    while size and left > 0:
        at, spared = 0, False
        while at < len(best.schedule.keep) and left > 0:
            keep = best.schedule.keep
            trial = runs(ran.schedule.only(keep[:at] + keep[at + size :]), variant)
            left -= 1
            if trial.violated is not None and trial.violated.number == number:
                best, spared = trial, True
            else:
                at += size
        if not spared:
            size //= 2
    return best
