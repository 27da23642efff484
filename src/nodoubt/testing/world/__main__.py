"""`python -m nodoubt.testing.world`: replay one schedule with its whole trace, or hunt for one that fails.

`make sim SEED=… [KEEP=…]` and `make sim HOURS=…` call this.
"""

from __future__ import annotations

import argparse
import sys

from .diagram import diagram
from .hunt import hunted, report
from .running import run
from .schedule import drawn


def main(arguments: list[str]) -> int:
    """Exit code 1: a rule was broken."""
    parser = argparse.ArgumentParser(prog="python -m nodoubt.testing.world", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this one")
    parser.add_argument("--keep", help="of its acts and faults, these alone: 0,3,7")
    parser.add_argument("--trace", action="store_true", help="print every line, instead of the diagram")
    parser.add_argument("--hours", type=float, help="hunt for so long")
    parser.add_argument("--count", type=int, help="hunt through so many seeds")
    parser.add_argument("--first", type=int, default=0, help="where to begin")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return _replay(options)
    if options.hours is None and options.count is None:
        parser.error("say what to do: --seed, --hours or --count")
    seconds = None if options.hours is None else options.hours * 3600
    figures = hunted(options.first, count=options.count, seconds=seconds, jobs=options.jobs)
    print(figures)
    for schedule in figures.failures[:1]:
        print()
        print(report(run(schedule)))
    return 1 if figures.failures else 0


def _replay(options: argparse.Namespace) -> int:
    schedule = drawn(options.seed)
    if options.keep is not None:
        schedule = schedule.only([int(number) for number in options.keep.split(",") if number])
    ran = run(schedule)
    print(schedule)
    print()
    print(ran.world.trace.text() if options.trace else diagram(ran.world))
    print()
    print(ran.violated or "every rule held")
    return 1 if ran.violated is not None else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
