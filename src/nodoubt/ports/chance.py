"""What differs from run to run: clocks, and fresh ids. A simulated world gives its own."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Clocks choose when to try, never what is true (I14)."""

    def now(self) -> float:
        """Seconds since the epoch."""
        ...

    def elapsed(self) -> float:
        """Seconds on a clock that never goes back."""
        ...


class Ids(Protocol):
    """Fresh ids: random, and seeded in a simulated world. See `xid` for their forms."""

    def attempt(self) -> str:
        """An attempt, or a resource: rises with the clock."""
        ...

    def cluster(self) -> str: ...
    def mark(self) -> str:
        """What tells an epoch from another of the same number."""
        ...
