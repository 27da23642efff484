"""A simulated world: the real protocol, engine and recovery over simulated databases, network, clocks and disks.

`drawn(seed)` is a schedule, `run(schedule)` runs it, `shrunk(ran)` makes a failing one small. `explore` goes through
every interleaving of a small world. TESTING.md tells how to replay what was found.

Must not: be imported by production code.
"""

from __future__ import annotations

from .checker import Violated
from .running import Ran, Variant, run
from .schedule import Focus, Schedule, drawn, scripted
from .shrink import shrunk
from .world import Layout, World

__all__ = ["Focus", "Layout", "Ran", "Schedule", "Variant", "Violated", "World", "drawn", "run", "scripted", "shrunk"]
