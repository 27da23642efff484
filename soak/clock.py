"""A wall clock that others can move: what it takes to run a program under libfaketime.

    python -m soak.clock recover --watch …      # the command line of nodoubt, under such a clock

Only the wall clock moves. The monotonic clock is the machine's: time steps, as ntpd or an operator makes them, do not
touch it, and lock waits and the history go by it.

Debian's libfaketime 0.9.10 breaks an absolute `clock_nanosleep` when the monotonic clock is left alone (its issue 426,
mended later), and Python's `time.sleep` is one: `mend_sleep` waits in `select` instead.
"""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

LIBRARIES = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib/faketime/libfaketime.so.1")


def library() -> str | None:
    """Where libfaketime is, if it is installed."""
    found = [path for pattern in LIBRARIES for path in Path("/").glob(pattern.lstrip("/"))]
    return str(found[0]) if found else None


class Clock:
    """The wall clock of one program: a file that libfaketime looks at every second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set(0)

    @property
    def variables(self) -> dict[str, str]:
        """For the program's environment."""
        where = library()
        assert where is not None
        return {
            "LD_PRELOAD": where,
            "FAKETIME_TIMESTAMP_FILE": str(self.path),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_CACHE_DURATION": "1",
            "NO_FAKE_STAT": "1",
        }

    def set(self, seconds: int) -> None:
        """So far from the true time, from the next second on. A half-written file would end the program."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n")
        fresh.chmod(0o644)
        fresh.replace(self.path)


def mend_sleep() -> None:
    """See the module."""
    if "FAKETIME_TIMESTAMP_FILE" in os.environ:
        time.sleep = _sleep  # type: ignore[assignment]


def _sleep(seconds: float) -> None:
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    select.select([], [], [], seconds)


if __name__ == "__main__":
    mend_sleep()
    from nodoubt.cli import main

    main()
