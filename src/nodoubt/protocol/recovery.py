"""The table a sweep reads: what the journal knows, how the branch was seen, how old -> what to do.

Guarantees: exactly one row matches each combination (a test proves it), and ABORT is only ever *asked for*
(`FENCE`), never assumed: what the register answers is carried out.

Must not: do anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .records import Staging, Standing, Verdict


class Known(Enum):
    """What the journal knows of an attempt."""

    COMMIT = "decided commit, open"
    COMMIT_ENDED = "decided commit, ended"
    ABORT = "decided abort"
    STAGED = "staged, complete, before its deadline"
    STAGED_DUE = "staged, past its deadline"
    STAGED_PARTLY = "staged, its last branch not prepared"
    NOTHING = "nothing"
    BELOW_FLOOR = "older than the journal remembers"


class Seen(Enum):
    """How a branch was seen."""

    PREPARED = "prepared"
    PREPARED_STILL = "prepared, in a listing made after the record was read"
    RECEIPT = "not prepared, its receipt confirmed"
    ABSENT = "neither prepared nor receipt"
    ABSENT_STILL = "neither, in a second look made after the record was read again"


class Age(Enum):
    """Against the grace, by the server's own time or since a sweeper first saw it (I14)."""

    YOUNG = "within the grace"
    OLD = "past the grace"


class Action(Enum):
    """What to do."""

    LEAVE = "leave"
    COMMIT = "confirm the decision and commit the branch"
    ROLLBACK = "confirm the decision and roll the branch back"
    FENCE = "ask the register for ABORT and carry out its answer"
    LOOK_AGAIN = "look again, after reading the record again"
    DONE = "nothing to do: proved"
    QUARANTINE = "quarantine, loudly"


def what_is_known(
    attempt: str,
    standing: Standing | None,
    staging: Staging | None,
    *,
    floor: str,
    now: float,
    last_listed: bool | None,
) -> Known:
    """What the journal's rows for an attempt say. `last_listed`: whether the branch that prepares last is listed as
    prepared; None where no listing can show that it is not: its server may just be down.
    """
    if standing is not None:
        if standing.decision.verdict is Verdict.ABORT:
            return Known.ABORT
        return Known.COMMIT_ENDED if standing.ended else Known.COMMIT
    if attempt < floor:
        return Known.BELOW_FLOOR
    if staging is None:
        return Known.NOTHING
    if staging.deadline <= now:
        return Known.STAGED_DUE
    if staging.begin_by > now:
        return Known.STAGED  # its row went before its work, which has that long
    return Known.STAGED_PARTLY if last_listed is False else Known.STAGED


@dataclass(frozen=True, slots=True)
class Row:
    """One line; None matches anything."""

    known: Known
    seen: frozenset[Seen]
    age: Age | None
    action: Action
    why: str


STALE = "stale_timeout: nobody decided before its deadline"
_LISTED = frozenset({Seen.PREPARED, Seen.PREPARED_STILL})
_UNLISTED = frozenset({Seen.RECEIPT, Seen.ABSENT, Seen.ABSENT_STILL})
_FIRST = frozenset({Seen.PREPARED})
_STILL = frozenset({Seen.PREPARED_STILL})
_K, _A = Known, Action

TABLE: tuple[Row, ...] = (
    Row(_K.COMMIT, _LISTED, None, _A.COMMIT, "decided; any process may carry it out (I13)"),
    Row(_K.COMMIT, frozenset({Seen.RECEIPT}), None, _A.DONE, "its own transaction says so (I7)"),
    Row(_K.COMMIT, frozenset({Seen.ABSENT}), None, _A.LOOK_AGAIN, "another may just have ended it"),
    Row(_K.COMMIT, frozenset({Seen.ABSENT_STILL}), None, _A.QUARANTINE, "rolled back by somebody else (I17)"),
    Row(_K.COMMIT_ENDED, _FIRST, None, _A.LOOK_AGAIN, "the listing may be older than the end"),
    Row(_K.COMMIT_ENDED, _STILL, None, _A.QUARANTINE, "it proved itself committed, so it was restored (I15)"),
    Row(_K.COMMIT_ENDED, _UNLISTED, None, _A.DONE, "ended"),
    Row(_K.ABORT, _LISTED, None, _A.ROLLBACK, "also a prepare that came late (I11)"),
    Row(_K.ABORT, _UNLISTED, None, _A.DONE, "nothing is left"),
    Row(_K.STAGED, _LISTED | _UNLISTED, None, _A.LEAVE, "somebody will decide"),
    Row(_K.STAGED_DUE, _LISTED, None, _A.FENCE, STALE),
    Row(_K.STAGED_DUE, _UNLISTED, None, _A.FENCE, STALE),
    Row(_K.STAGED_PARTLY, _LISTED | _UNLISTED, Age.YOUNG, _A.LEAVE, "its begin may be at work"),
    Row(_K.STAGED_PARTLY, _LISTED | _UNLISTED, Age.OLD, _A.FENCE, "its begin died"),
    Row(_K.NOTHING, _LISTED, Age.YOUNG, _A.LEAVE, "its coordinator may be about to decide"),
    Row(_K.NOTHING, _LISTED, Age.OLD, _A.FENCE, "presumed abort, with the register as the fence"),
    Row(_K.NOTHING, _UNLISTED, None, _A.DONE, "nothing is left"),
    Row(_K.BELOW_FLOOR, _FIRST, None, _A.LOOK_AGAIN, "the listing may be older than the end"),
    Row(_K.BELOW_FLOOR, _STILL, None, _A.QUARANTINE, "unknown, never aborted"),
    Row(_K.BELOW_FLOOR, _UNLISTED, None, _A.DONE, "nothing is left"),
)


def matching(known: Known, seen: Seen, age: Age) -> tuple[Row, ...]:
    """The rows that match; a test holds that there is exactly one."""
    return tuple(r for r in TABLE if r.known is known and seen in r.seen and r.age in (None, age))


_ACTIONS = {(known, seen, age): matching(known, seen, age)[0] for known in Known for seen in Seen for age in Age}


def what_to_do(known: Known, seen: Seen, age: Age) -> Row:
    """The one row."""
    return _ACTIONS[known, seen, age]
