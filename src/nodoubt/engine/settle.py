"""Ending a doubt: how did this attempt end? If it has not ended, it ends now.

For whoever was told `InDoubt`, or found an attempt in a log. It looks nowhere without closing the door: the receipt's
place is fenced on every database, so that a commit that is still on its way can no longer happen.

Guarantees: COMMITTED only on a confirmed decision or receipt; ABORTED only when neither a receipt nor a decision can
come to stand any more. What has been kept for too short a time to tell, or cannot be reached, is an error (I5).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InDoubt, NoDoubtError, ResourceUnavailable, UsageError
from ..ports import BelowFloor, Prepared, Session, Unclear, readable
from ..protocol.records import Decision, Mode, Verdict
from ..script import Script, every
from ..xid import Xid, is_attempt
from . import ends, questions, register, start
from .apart import require_owned
from .context import Context, Participant, asked, told
from .questions import State
from .verbs import Result


@dataclass(frozen=True, slots=True)
class _Fenced:
    """What one database says. `verdict` None: a branch of the attempt is prepared there, only a decision can tell."""

    verdict: Verdict | None


def settle(ctx: Context, attempt: str) -> Script[Result]:
    """How the attempt ended. Raises `InDoubt` (too old to tell), `ResourceUnavailable`, `JournalUnavailable`,
    `UsageError` (staged and undecided, or a database of the cluster is not among the resources).
    """
    if not is_attempt(attempt):
        raise UsageError(f"settle takes an attempt's id, 32 hexadecimal digits, not {attempt!r}: see nodoubt show NAME")
    staging = yield from questions.find(ctx, attempt)
    standing = yield from register.confirm_one(ctx, attempt)
    if standing is not None:
        return _result(standing.decision, complete=standing.ended)
    if staging is not None:
        raise UsageError(
            f"{staging.name!r} is staged and undecided: commit or roll it back by its name. Nothing was changed"
        )
    yield from require_owned(ctx)
    _require_recent(ctx, attempt)
    numbers = yield from _require_everybody(ctx)
    outcomes = yield from every([_fence(ctx, one, attempt, numbers) for one in ctx.participants.values()])
    fenced = [outcome.get() for outcome in outcomes]
    if any(one.verdict is Verdict.COMMIT for one in fenced):
        return Result("", attempt, State.COMMITTED, True)
    # Several branches may have been about to decide. From here on they cannot.
    wanted = Decision(
        attempt, Verdict.ABORT, Mode.ONCE, "", (), owner=ctx.owner, reason="settled", decided_at=ctx.clock.now()
    )
    try:
        stands = yield from register.decide(ctx, wanted)
    except BelowFloor as error:
        raise _too_old(attempt) from error
    return _result(stands, complete=all(one.verdict is not None for one in fenced))


def _result(decision: Decision, *, complete: bool) -> Result:
    committed = decision.verdict is Verdict.COMMIT
    return Result(decision.name, decision.attempt, State.COMMITTED if committed else State.ABORTED, complete)


def _too_old(attempt: str) -> InDoubt:
    return InDoubt("it is so old that its records may have been removed", name=None, attempt=attempt)


def _require_recent(ctx: Context, attempt: str) -> None:
    """Only while no clean-up can have removed its receipt does the lack of one say anything."""
    if ends.may_be_forgotten(ctx, attempt):
        raise _too_old(attempt)


def _require_everybody(ctx: Context) -> Script[int]:
    """How many branches an attempt can have had. A database of the cluster that is not here may have committed one."""
    registered = yield from questions.ask(ctx, ctx.journal.registered)
    for participant in ctx.participants.values():
        yield from start.admit(ctx, participant)
    names = {resource_id: readable(one)[0] for resource_id, one in registered.items()}
    missing = [name for resource_id, name in names.items() if ctx.by_id(resource_id) is None]
    if missing:
        raise UsageError(
            f"this coordinator does not know {', '.join(sorted(missing))}, where the attempt may have committed: name "
            "it among the resources, or, if it is gone for good, drop it: nodoubt drop NAME --gone. Nothing was changed"
        )
    return max(len(registered), len(ctx.participants))


def _fence(ctx: Context, participant: Participant, attempt: str, numbers: int) -> Script[_Fenced]:
    """Fence the place of every receipt that the attempt can have here."""
    for number in range(numbers):
        xid = Xid(ctx.cluster, attempt, number)

        def body(session: Session, xid: Xid = xid) -> Script[Verdict]:
            return participant.resource.fence(session, xid)

        try:
            verdict = yield from asked(ctx, participant.reserve, body)
        except Unclear as error:
            if (yield from _is_prepared(ctx, participant, attempt)):
                return _Fenced(None)
            raise ResourceUnavailable(
                f"{participant.name} does not tell yet whether {attempt} committed there; try again: {error}"
            ) from error
        if verdict is Verdict.COMMIT:
            return _Fenced(Verdict.COMMIT)
    return _Fenced(Verdict.ABORT)


def _is_prepared(ctx: Context, participant: Participant, attempt: str) -> Script[bool]:
    def body(session: Session) -> Script[tuple[Prepared, ...]]:
        return participant.resource.prepared(session, ctx.cluster)

    try:
        listed = yield from told(ctx, participant.reserve, body)
    except NoDoubtError:
        return False
    return any(one.xid.attempt == attempt for one in listed)
