"""What is reported to the machine: each event says what somebody *answered*, never what we hope.

"No answer" has events of its own (`Vote.UNKNOWN`, `Undecided`, `Unfinished`): it is a third outcome.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .records import Verdict


class Vote(Enum):
    """A branch's answer to prepare."""

    YES = "yes"
    READ_ONLY = "read-only"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class CommitAsked:
    """The work is done; commit it, now or (staged) after having been prepared."""


@dataclass(frozen=True, slots=True)
class StageAsked:
    """The work is done; prepare it and leave it for a later decision."""


@dataclass(frozen=True, slots=True)
class AbortAsked:
    """Give up."""

    why: str


@dataclass(frozen=True, slots=True)
class Voted:
    """A branch answered its prepare, or its plain commit if it only read."""

    branch: int
    vote: Vote
    why: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """The directory row stands, durably or covered by the prepare that follows in its session."""


@dataclass(frozen=True, slots=True)
class NotListed:
    """The directory row was refused, or nobody knows: this begin has failed."""

    why: str


@dataclass(frozen=True, slots=True)
class Decided:
    """What stands, durably."""

    verdict: Verdict
    why: str = ""


@dataclass(frozen=True, slots=True)
class Declined:
    """The local commit that was to carry the decision, or to be it, was surely not done."""

    why: str


@dataclass(frozen=True, slots=True)
class Undecided:
    """No answer to the decision: it may stand or not."""

    why: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A branch has carried out the decision, and proved it."""

    branch: int


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A branch has not, within the time allowed: recovery's business now."""

    branch: int
    why: str = ""


Event = (
    CommitAsked
    | StageAsked
    | AbortAsked
    | Voted
    | Listed
    | NotListed
    | Decided
    | Declined
    | Undecided
    | Finished
    | Unfinished
)
EVENTS: tuple[type[Event], ...] = (
    CommitAsked,
    StageAsked,
    AbortAsked,
    Voted,
    Listed,
    NotListed,
    Decided,
    Declined,
    Undecided,
    Finished,
    Unfinished,
)
