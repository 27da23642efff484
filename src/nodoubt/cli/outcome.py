"""Exit codes: what a script or an operator's alarm may rely on.

    0   fine
    1   failed: the message says why; asking again the same way fails again
    2   usage: the command was not understood, or something it needs was not given
    3   something is in doubt, or needs a human
    75  try again: something could not be reached, or is not ready yet (EX_TEMPFAIL)
    130 interrupted: what was decided by then stands

Guarantees: an error that leaves an outcome unknown is never 0 or 1.
"""

from __future__ import annotations

from enum import IntEnum

from ..engine.register import NotDecided
from ..errors import (
    Heuristic,
    InDoubt,
    InvalidName,
    JobTaken,
    JournalUnavailable,
    LineageBroken,
    NotReady,
    ResourceUnavailable,
    StillBeginning,
    UnreadableRecord,
    UsageError,
)
from ..ports import Refused, SessionLost, Unclear


class Exit(IntEnum):
    """The process's exit code."""

    FINE = 0
    FAILED = 1
    USAGE = 2
    HUMAN = 3
    AGAIN = 75
    INTERRUPTED = 130


# The first row that fits counts.
_CODES: tuple[tuple[tuple[type[BaseException], ...], Exit], ...] = (
    ((InDoubt, Heuristic, LineageBroken, UnreadableRecord), Exit.HUMAN),
    (
        (ResourceUnavailable, JournalUnavailable, JobTaken, StillBeginning, NotReady, NotDecided, TimeoutError),
        Exit.AGAIN,
    ),
    # No answer, raised before anything was decided: a verb whose outcome is unknown raises InDoubt.
    ((Unclear, SessionLost), Exit.AGAIN),
    ((UsageError, InvalidName), Exit.USAGE),
)


def code_of(error: BaseException) -> Exit:
    """The exit code for an error."""
    if isinstance(error, Refused) and error.retry:
        return Exit.AGAIN
    if isinstance(error.__cause__, UnreadableRecord):
        return Exit.HUMAN  # no other try reads it
    return next((code for kinds, code in _CODES if isinstance(error, kinds)), Exit.FAILED)


def worst(*codes: Exit) -> Exit:
    """Of several, the one that must be seen: a human first, then a failure, then another try."""
    order = (Exit.HUMAN, Exit.USAGE, Exit.FAILED, Exit.AGAIN)
    return next((code for code in order if code in codes), Exit.FINE)
