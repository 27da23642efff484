"""What is reported to the machine: each event says what somebody *answered*, never what we hope.

"No answer" has events of its own (`Vote.UNKNOWN`, `Undecided`, `Unfinished`): it is a third outcome.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from .records import Verdict


class Vote(StrEnum):
    """A branch's answer to prepare."""

    YES = "yes"
    READ_ONLY = "read-only"
    NO = "no"
    UNKNOWN = "unknown"


class CommitAsked(msgspec.Struct, frozen=True):
    """The work is done; commit it, now or (staged) after having been prepared."""


class StageAsked(msgspec.Struct, frozen=True):
    """The work is done; prepare it and leave it for a later decision."""


class AbortAsked(msgspec.Struct, frozen=True):
    """Give up."""

    why: str


class Voted(msgspec.Struct, frozen=True):
    """A branch answered its prepare, or its plain commit if it only read."""

    branch: int
    vote: Vote
    why: str = ""


class Listed(msgspec.Struct, frozen=True):
    """The directory row stands, durably or covered by the prepare that follows in its session."""


class NotListed(msgspec.Struct, frozen=True):
    """The directory row was refused, or nobody knows: this begin has failed."""

    why: str


class Decided(msgspec.Struct, frozen=True):
    """What stands, durably."""

    verdict: Verdict
    why: str = ""


class Declined(msgspec.Struct, frozen=True):
    """The local commit that was to carry the decision, or to be it, was surely not done."""

    why: str


class Undecided(msgspec.Struct, frozen=True):
    """No answer to the decision: it may stand or not."""

    why: str


class Finished(msgspec.Struct, frozen=True):
    """A branch has carried out the decision, and proved it."""

    branch: int


class Unfinished(msgspec.Struct, frozen=True):
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
