"""What the machine asks for. The engine carries it out and reports an event for each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .records import Decision, Staging


@dataclass(frozen=True, slots=True)
class EndReader:
    """Plain commit of a branch that wrote nothing. Answered by `Voted`."""

    branch: int


@dataclass(frozen=True, slots=True)
class Prepare:
    """Prepare the branch; `row` rides inside, where the resource can do that. Answered by `Voted`."""

    branch: int
    row: Staging | None = None


@dataclass(frozen=True, slots=True)
class CommitAlone:
    """One-phase commit with a receipt. Answered by `Decided(COMMIT)`, `Declined` or `Undecided`."""

    branch: int


@dataclass(frozen=True, slots=True)
class Settle:
    """Fence the receipt of a one-phase commit whose reply was lost. Answered by `Decided` or `Undecided`."""

    branch: int


@dataclass(frozen=True, slots=True)
class CommitPoint:
    """Commit the branch with the decision riding in it. Answered by `Decided`, `Declined` or `Undecided`."""

    branch: int
    row: Decision


@dataclass(frozen=True, slots=True)
class Fence:
    """Ask the register for ABORT and obey what it answers. Answered by `Decided` or `Undecided`."""

    why: str


@dataclass(frozen=True, slots=True)
class Commit:
    """Phase two. Answered by `Finished` or `Unfinished`."""

    branch: int


@dataclass(frozen=True, slots=True)
class Rollback:
    """Roll back a branch that is prepared, or may be. Answered by `Finished` or `Unfinished`."""

    branch: int


@dataclass(frozen=True, slots=True)
class Undo:
    """Roll back work that was never asked to prepare. Answered by `Finished` or `Unfinished`."""

    branch: int


Command = EndReader | Prepare | CommitAlone | Settle | CommitPoint | Fence | Commit | Rollback | Undo


class Answer(Enum):
    """What may honestly be told to the caller (I5)."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    STAGED = "staged"
    IN_DOUBT = "in doubt"


@dataclass(frozen=True, slots=True)
class Ended:
    """A record: every branch has proved itself, so the decision's row may end (I6)."""


Record = Decision | Staging | Ended


@dataclass(frozen=True, slots=True)
class Ready:
    """Append `records`, forced if `must_sync`, before running `commands`; tell the caller `answer` if there is one."""

    records: tuple[Record, ...] = ()
    must_sync: bool = False
    commands: tuple[Command, ...] = ()
    answer: Answer | None = None
