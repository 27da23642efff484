"""What a look at a database collects, before it is `facts`.

Must not: know a kind of database.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..ports import Shortcoming
from . import facts as f


@dataclass(slots=True)
class Seen:
    """Filled in by one kind's script. `ours`: those of our tables that are there, and whether they may be read."""

    server: f.Server | None = None
    settings: dict[str, f.Setting] = field(default_factory=dict)
    flaws: list[Shortcoming] = field(default_factory=list)
    prepared: list[f.Prepared] = field(default_factory=list)
    prepared_count: int = 0
    listed: bool = True
    waiting: list[f.Waiting] = field(default_factory=list)
    vacuum: f.Vacuum | None = None
    history_length: int | None = None
    replicas: list[f.Replica] = field(default_factory=list)
    file: f.File | None = None
    ours: dict[str, bool] = field(default_factory=dict)
    gaps: list[f.Gap] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
