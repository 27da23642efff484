"""How a script ends that does not return: what a database lacks, and what its refusal or silence means.

Must not: know what was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from ..errors import NoDoubtError, ResourceRefused, UnreadableRecord
from ..protocol.records import Unreadable

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortcoming:
    """Why a database cannot, or may not, keep a promise. `refused`: it may not take part; else it is a warning.

    `line`: the one line that mends it, where there is one, and `where` it belongs: a file, or "" for a statement.
    """

    what: str
    advice: str
    refused: bool = False
    line: str = ""
    where: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.advice}"


def require_none(shortcomings: Sequence[Shortcoming], name: str) -> tuple[str, ...]:
    """The warnings; raises `ResourceRefused` for the first that is more than one."""
    for one in shortcomings:
        if one.refused:
            raise ResourceRefused(f"{name} cannot take part: {one}")
    return tuple(map(str, shortcomings))


class Refused(NoDoubtError):
    """Surely not done. `retry`: the same may succeed later (a deadlock, a serialization failure, a full table)."""

    def __init__(self, why: str, *, retry: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.retry = retry


class UnknownXid(Refused):
    """The server knows no such prepared branch *in a way it will act on*. Never taken for success (I7)."""


class Conflict(Refused):
    """A row with this key stands already: somebody has decided, or fenced, or taken the name."""


class BelowFloor(Refused):
    """The attempt is older than what the journal still remembers: nothing may be decided for it any more."""


class Unclear(NoDoubtError):
    """No answer: it may have been done, or not, or be done later."""


def readable(one: R | Unreadable) -> R:
    """What was asked for; raises `UnreadableRecord` where its row cannot be read."""
    if isinstance(one, Unreadable):
        raise UnreadableRecord(
            f"{one.which}: this row of the journal {one.why}. Nothing was done on the strength of it"
        )
    return one


class Failure(Enum):
    """What an error code means to us. Each resource has one table from codes to these."""

    UNKNOWN_XID = "unknown xid"
    HELD = "held by another session"
    DUPLICATE = "duplicate key or xid"
    TRANSIENT = "lost a race: deadlock, serialization, lock time-out"
    FULL = "no room"
    REFUSED = "not possible"
    NO_FLOOR = "below the floor, or not in the transaction that was begun"
    LOST = "connection lost"


class StatementFailed(Exception):
    """A server answered one of our statements with an error. `code`: SQLSTATE, errno or extended result code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} [{code}]")
        self.code = code
        self.message = message


class SessionLost(Exception):
    """The connection ended, or did not answer in time: what was sent last may or may not have happened.

    `answered`: the server had begun to answer it.
    """

    answered = False
