"""What is known of a job.

Must not: do I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..errors import UsageError

ITEMS_MAX = 2**53  # what every database, and every reader of JSON, counts up to


def number_of_items(value: object) -> int:
    """Raises `UsageError` for what is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= ITEMS_MAX:
        raise UsageError(f"that is not a number of items, a whole one from 0 to {ITEMS_MAX}: {value!r}")
    return value


class JobState(StrEnum):
    """How a job stands. `STOPPED` and `ABANDONED` go on from their checkpoint when somebody begins them again."""

    RUNNING = "running"
    STOPPED = "stopped"  # its worker has left it: an error, or a pause
    ABANDONED = "abandoned"  # its worker has not been heard of for as long as its lease lasts
    DONE = "done"
    UNREADABLE = "unreadable"  # its row cannot be read: a human must look. Its note says why


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job, for people. `done` and `total` count items; `note` is what was said last, or why it stopped.

    So much is surely committed, but for what was said by `report`. After a crash it can be one chunk more: that is
    found out when somebody begins the job again.
    """

    name: str
    state: JobState
    done: int
    total: int | None
    checkpoint: Any
    note: str
    worker: str
    begun_at: float
    changed_at: float


@dataclass(frozen=True, slots=True)
class Row:
    """The journal's row. `keeper`: the resource id of the database that keeps its checkpoints."""

    record: JobRecord
    run: str
    keeper: str
    claim: str
    held_s: float  # for so long yet somebody has it


@dataclass(frozen=True, slots=True)
class Link:
    """A checkpoint: the last one of its run is how far the job is."""

    number: int = 0
    checkpoint: Any = None
    done: int = 0
    finished: bool = False
