"""What the machine asks for. The engine carries it out and reports an event for each."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from .records import Decision, Staging


class EndReader(msgspec.Struct, frozen=True):
    """Plain commit of a branch that wrote nothing. Answered by `Voted`."""

    branch: int


class Prepare(msgspec.Struct, frozen=True):
    """Prepare the branch; `row` rides inside, where the resource can do that. Answered by `Voted`."""

    branch: int
    row: Staging | None = None


class CommitAlone(msgspec.Struct, frozen=True):
    """One-phase commit with a receipt. Answered by `Decided(COMMIT)`, `Declined` or `Undecided`."""

    branch: int


class Settle(msgspec.Struct, frozen=True):
    """Fence the receipt of a one-phase commit whose reply was lost. Answered by `Decided` or `Undecided`."""

    branch: int


class CommitPoint(msgspec.Struct, frozen=True):
    """Commit the branch with the decision riding in it. Answered by `Decided`, `Declined` or `Undecided`."""

    branch: int
    row: Decision


class Fence(msgspec.Struct, frozen=True):
    """Ask the register for ABORT and obey what it answers. Answered by `Decided` or `Undecided`.

    `frees_name`: of a begin that nobody, surely, has seen staged (`Decision.frees_name`).
    """

    why: str
    frees_name: bool = False


class Commit(msgspec.Struct, frozen=True):
    """Phase two. Answered by `Finished` or `Unfinished`."""

    branch: int


class Rollback(msgspec.Struct, frozen=True):
    """Roll back a branch that is prepared, or may be. Answered by `Finished` or `Unfinished`."""

    branch: int


class Undo(msgspec.Struct, frozen=True):
    """Roll back work that was never asked to prepare. Answered by `Finished` or `Unfinished`."""

    branch: int


Command = EndReader | Prepare | CommitAlone | Settle | CommitPoint | Fence | Commit | Rollback | Undo


class Answer(StrEnum):
    """What may honestly be told to the caller (I5)."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    STAGED = "staged"
    IN_DOUBT = "in doubt"


class Ended(msgspec.Struct, frozen=True):
    """A record: every branch has proved itself, so the decision's row may end (I6)."""


Record = Decision | Staging | Ended


class Ready(msgspec.Struct, frozen=True):
    """Append `records`, forced if `must_sync`, before running `commands`; tell the caller `answer` if there is one."""

    records: tuple[Record, ...] = ()
    must_sync: bool = False
    commands: tuple[Command, ...] = ()
    answer: Answer | None = None
