"""`python -m nodoubt.testing.world`: replay one schedule, hunt for one that fails, or go through all of small scenes.

`make sim SEED=… [KEEP=…]`, `make sim HOURS=…` and `make explore HOURS=…` call this.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
from dataclasses import replace

from .diagram import diagram
from .explore import LARGE, explored
from .hunt import hunted, report
from .running import SOUND, Variant, run
from .schedule import BEYOND, drawn


def main(arguments: list[str]) -> int:
    """Exit code 1: a rule was broken."""
    parser = argparse.ArgumentParser(prog="python -m nodoubt.testing.world", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this one")
    parser.add_argument("--keep", help="of its acts and faults, these alone: 0,3,7")
    parser.add_argument("--trace", action="store_true", help="print every line, instead of the diagram")
    parser.add_argument("--beyond", action="store_true", help="steps outside and idempotency keys in every schedule")
    parser.add_argument("--hours", type=float, help="hunt for so long")
    parser.add_argument("--count", type=int, help="hunt through so many seeds")
    parser.add_argument("--first", type=int, default=0, help="where to begin")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--explore", action="store_true", help="every order of the messages of small scenes; for HOURS")
    parser.add_argument("--variant", default="", help="module:name of other scripts over the same servers, a `Variant`")
    options = parser.parse_args(arguments)
    variant = _variant(options.variant)
    if options.seed is not None:
        return _replay(options, variant)
    if options.explore:
        return _explore(options.hours, variant)
    if options.hours is None and options.count is None:
        parser.error("say what to do: --seed, --hours, --count or --explore")
    seconds = None if options.hours is None else options.hours * 3600
    focus = BEYOND if options.beyond else None
    figures = hunted(
        options.first, count=options.count, seconds=seconds, jobs=options.jobs, variant=variant, focus=focus
    )
    print(figures)
    for schedule in figures.failures[:1]:
        print()
        print(report(run(schedule, variant), variant))
    return 1 if figures.failures else 0


def _variant(place: str) -> Variant:
    if not place:
        return SOUND
    module, _, name = place.partition(":")
    variant = getattr(importlib.import_module(module), name)
    return replace(variant, place=place)  # type: ignore[no-any-return]


def _explore(hours: float | None, variant: Variant) -> int:
    """The scenes one after the other, until all are through or the time is up."""
    until = math.inf if hours is None else time.monotonic() + hours * 3600
    for scene in LARGE:
        left_s = until - time.monotonic()
        if left_s <= 0:
            break
        result = explored(scene, variant, seconds_max=left_s)
        print(f"{result} in {result.seconds:.0f} s", flush=True)
        if result.violated is not None:
            print(result.story)
            return 1
    return 0


def _replay(options: argparse.Namespace, variant: Variant) -> int:
    schedule = drawn(options.seed, BEYOND if options.beyond else None)
    if options.keep is not None:
        schedule = schedule.only([int(number) for number in options.keep.split(",") if number])
    ran = run(schedule, variant)
    print(schedule)
    print()
    print(ran.world.trace.text() if options.trace else diagram(ran.world))
    print()
    print(ran.violated or "every rule held")
    return 1 if ran.violated is not None else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
