"""Ending one branch, whoever does it: phase two, a staged verb, or recovery.

Guarantees: `carry_out` reports success only on proof (I7): the command's own tag, or, where the xid is unknown, a
receipt confirmed in a new snapshot, for a commit; for a rollback, that the branch is not listed and has no receipt. One
that has a receipt was committed by somebody else: quarantined, loudly (I17).
"""

from __future__ import annotations

from enum import Enum

import msgspec

from ..errors import NoDoubtError
from ..ports import Prepared, Session, SessionLost, UnknownXid
from ..protocol.records import Decision, Mode, Quarantined, Verdict
from ..script import Pause, Script
from ..xid import Xid
from .context import Context, Participant, asked, backoff, bounded, log, using


class End(Enum):
    """How far a branch has been brought."""

    PROVED = "proved"
    ABSENT = "neither prepared nor receipt"
    BROKEN = "committed by somebody else, against the decision"
    UNKNOWN = "its server knows no such branch"
    OPEN = "not yet"


COMMITTED_AGAINST = "heuristic: somebody else committed it, against the decision to abort (I17)"


class Ending(msgspec.Struct, frozen=True):
    """The answer of `carry_out`: PROVED, or why not."""

    end: End
    why: str = ""


def carry_out(
    ctx: Context,
    participant: Participant,
    prepared: Prepared,
    verdict: Verdict,
    *,
    session: Session | None = None,
    look: bool = True,
) -> Script[Ending]:
    """Commit or roll back one prepared branch, bounded by `apply_s`. `session`: the one that prepared it, if at hand.

    The caller has the decision, durably. Never raises for what a database says. Without `look` an unknown xid is
    UNKNOWN: for whoever has many branches in hand, and looks for all of those in one listing.
    """
    left_s = ctx.settings.apply_s
    until = ctx.clock.elapsed() + left_s
    ending: Ending = yield from bounded(_try(ctx, participant, prepared, verdict, session, look), left_s, ctx.clock)
    if ending.end is not End.OPEN:
        return ending
    for pause_s in backoff():
        yield Pause(pause_s)
        left_s = until - ctx.clock.elapsed()
        if left_s <= 0:
            break
        # Whatever went wrong with the session that had prepared it, any can finish the branch.
        ending = yield from bounded(_try(ctx, participant, prepared, verdict, None, look), left_s, ctx.clock)
        if ending.end is not End.OPEN:
            break
    return ending


def _try(
    ctx: Context, participant: Participant, prepared: Prepared, verdict: Verdict, session: Session | None, look: bool
) -> Script[Ending]:
    resource = participant.resource

    def end_it(at: Session) -> Script[None]:
        if verdict is Verdict.COMMIT:
            return resource.commit_prepared(at, prepared)
        return resource.rollback_prepared(at, prepared)

    try:
        if session is not None:
            yield from end_it(session)
        elif resource.traits.holds_session and prepared.handle is None:
            return (yield from _look(ctx, participant, prepared, verdict))
        else:
            yield from using(participant.reserve, end_it)
        return Ending(End.PROVED)
    except UnknownXid as error:
        # Not success: the session that prepared it may hold it still, or somebody else has ended it (I7).
        if not look:
            return Ending(End.UNKNOWN, str(error))
        try:
            return (yield from _look(ctx, participant, prepared, verdict))
        except NoDoubtError as error:
            return Ending(End.OPEN, str(error))
    except (NoDoubtError, SessionLost) as error:
        return Ending(End.OPEN, str(error))


def _look(ctx: Context, participant: Participant, prepared: Prepared, verdict: Verdict) -> Script[Ending]:
    """The xid was unknown, or its handle is: list, free, try again; else look for the receipt."""
    resource = participant.resource

    def listed(session: Session) -> Script[Prepared | None]:
        found = yield from resource.prepared(session, prepared.xid.cluster, prepared.xid)
        return found[0] if found else None

    found = yield from using(participant.reserve, listed)
    if found is not None:
        return (yield from _again(participant, found, verdict))
    if verdict is Verdict.ABORT:
        broken = yield from alarm_if_committed(ctx, participant, prepared.xid)
        return Ending(End.BROKEN, COMMITTED_AGAINST) if broken else Ending(End.PROVED)
    if (yield from has_receipt(ctx, participant, prepared.xid)):
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


# ---- what a branch that is not prepared any more has become ---------------------------------------


def has_receipt(ctx: Context, participant: Participant, xid: Xid) -> Script[bool]:
    """Whether the branch committed, durably."""

    def receipt(session: Session) -> Script[bool]:
        return participant.resource.receipt(session, xid)

    return asked(ctx, participant.reserve, receipt)


def alarm_if_committed(ctx: Context, participant: Participant, xid: Xid) -> Script[bool]:
    """For a branch whose attempt was aborted: whether it has committed all the same. Then it is quarantined (I17)."""
    committed = yield from has_receipt(ctx, participant, xid)
    if committed:
        yield from quarantine(ctx, xid, participant.name, COMMITTED_AGAINST)
    return committed


def may_have_committed(ctx: Context, decision: Decision) -> list[tuple[Participant, Xid]]:
    """Where an attempt that was aborted may have branches, here. Each resource has one at most.

    At once nothing lists them beforehand: whoever decided for a dead coordinator knew only of those that were prepared.
    """
    number_of = {ref.resource_id: ref.number for ref in decision.branches}
    others = set(range(len(ctx.participants))) - set(number_of.values()) if decision.mode is Mode.ONCE else set[int]()
    return [
        (participant, Xid(ctx.cluster, decision.attempt, number))
        for participant in ctx.participants.values()
        for number in ([number_of[participant.resource_id]] if participant.resource_id in number_of else sorted(others))
    ]


def quarantine(ctx: Context, xid: Xid, resource: str, why: str) -> Script[None]:
    """Store that a human must look, and say so, loudly (I17)."""
    log.error("QUARANTINED: branch %d of %s on %s: %s. A human must look.", xid.branch, xid.attempt, resource, why)

    def body(session: Session) -> Script[None]:
        entry = Quarantined(xid.attempt, xid.branch, resource, why, ctx.clock.now())
        return ctx.journal.quarantine(session, entry)

    yield from asked(ctx, ctx.journal_pool, body)
