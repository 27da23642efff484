"""Ending one branch, whoever does it: phase two, a staged verb, or recovery.

Guarantees: `carry_out` reports success only on proof (I7): the command's own tag, or, for a commit whose xid is
unknown, a receipt confirmed in a new snapshot; for a rollback, that the branch is not listed.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from ..errors import NoDoubtError
from ..ports import Prepared, Session, SessionLost, UnknownXid
from ..protocol.records import Verdict
from ..script import Pause, Script
from .context import Context, Participant, backoff, bounded, using

if TYPE_CHECKING:
    from collections.abc import Iterator


class End(Enum):
    """How far a branch has been brought."""

    PROVED = "proved"
    ABSENT = "neither prepared nor receipt"
    OPEN = "not yet"


class Ending(msgspec.Struct, frozen=True):
    """The answer of `carry_out`: PROVED, or why not."""

    end: End
    why: str = ""


def carry_out(
    ctx: Context, participant: Participant, prepared: Prepared, verdict: Verdict, *, session: Session | None = None
) -> Script[Ending]:
    """Commit or roll back one prepared branch, bounded by `apply_s`. `session`: the one that prepared it, if at hand.

    The caller has the decision, durably. Never raises for what a database says.
    """
    until = ctx.clock.elapsed() + ctx.settings.apply_s
    ending = Ending(End.OPEN, "not tried")
    pauses: Iterator[float] = iter(backoff())
    while True:
        left_s = until - ctx.clock.elapsed()
        if left_s <= 0:
            return ending
        ending = yield from bounded(_try(participant, prepared, verdict, session), left_s, ctx.clock)
        if ending.end is not End.OPEN:
            return ending
        session = None  # whatever went wrong with it, any session can finish the branch
        yield Pause(next(pauses))


def _try(participant: Participant, prepared: Prepared, verdict: Verdict, session: Session | None) -> Script[Ending]:
    resource = participant.resource

    def end_it(at: Session) -> Script[None]:
        if verdict is Verdict.COMMIT:
            return resource.commit_prepared(at, prepared)
        return resource.rollback_prepared(at, prepared)

    try:
        if session is not None:
            yield from end_it(session)
        elif resource.traits.holds_session and prepared.handle is None:
            return (yield from _look(participant, prepared, verdict))
        else:
            yield from using(participant.reserve, end_it)
        return Ending(End.PROVED)
    except UnknownXid:
        # Not success: the session that prepared it may hold it still, or somebody else has ended it (I7).
        try:
            return (yield from _look(participant, prepared, verdict))
        except NoDoubtError as error:
            return Ending(End.OPEN, str(error))
    except (NoDoubtError, SessionLost) as error:
        return Ending(End.OPEN, str(error))


def _look(participant: Participant, prepared: Prepared, verdict: Verdict) -> Script[Ending]:
    """The xid was unknown, or its handle is: list, free, try again; else look for the receipt."""
    resource = participant.resource

    def listed(session: Session) -> Script[Prepared | None]:
        found = yield from resource.prepared(session, prepared.xid.cluster, prepared.xid)
        return found[0] if found else None

    def receipt(session: Session) -> Script[bool]:
        return resource.receipt(session, prepared.xid)

    found = yield from using(participant.reserve, listed)
    if found is not None:
        return (yield from _again(participant, found, verdict))
    if verdict is Verdict.ABORT:
        return Ending(End.PROVED)
    if (yield from using(participant.reserve, receipt)):
        return Ending(End.PROVED)
    return Ending(End.ABSENT, f"{participant.name} lists no such branch and has no receipt of it")


def _again(participant: Participant, found: Prepared, verdict: Verdict) -> Script[Ending]:
    resource = participant.resource

    def end_it(session: Session) -> Script[None]:
        if verdict is Verdict.COMMIT:
            return resource.commit_prepared(session, found)
        return resource.rollback_prepared(session, found)

    def free(session: Session) -> Script[bool]:
        return resource.free(session, found)

    try:
        yield from using(participant.reserve, end_it)
        return Ending(End.PROVED)
    except UnknownXid:
        freed = yield from using(participant.reserve, free)
        return Ending(End.OPEN, "its session was ended" if freed else "its session still holds it")
