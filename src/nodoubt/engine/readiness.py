"""Readiness: those who were asked say whether a staged transaction may be committed.

Guarantees: an answer is durable before it is told, and the first of each stands; a COMMIT carries in its own
transaction the condition that all have confirmed (`Decision.gated`), so an answer and the decision cannot contradict
each other, however they race; a refusal aborts through the register, like everything that ends a transaction.
"""

from __future__ import annotations

from ..errors import (
    ConfirmationConflict,
    NotAsked,
    NotReady,
    OutcomeConflict,
    TransactionAborted,
    UnknownTransaction,
)
from ..ports import Session, readable
from ..protocol.records import ANSWERED, Confirmation, Readiness, Staging, Standing, Unreadable, Verdict
from ..script import Pause, Script
from . import questions
from .context import Context, backoff, check_number

WAIT_MOST_S = 0.5  # between two looks: somebody waits for this


def answer(
    ctx: Context, name: str, who: str, said: Readiness, *, attempt: str | None, why: str = ""
) -> Script[Staging]:
    """Record what somebody says, for good. Raises `UnknownTransaction`, `NotAsked`, `ConfirmationConflict`,
    `OutcomeConflict` (it is decided, the other way), `JournalUnavailable` (say it again).
    """
    staging = yield from _staging(ctx, name, attempt)
    now = ctx.clock.now()

    def body(session: Session) -> Script[Confirmation | Unreadable | None]:
        return ctx.journal.answer(session, staging.attempt, who, said, why=why, at=now)

    stands = readable((yield from questions.ask(ctx, body, changes=True)))
    if stands is None:
        raise NotAsked(name, who, staging.confirmations)
    if stands.answer is not said and stands.answer is not Readiness.ASKED:
        raise ConfirmationConflict(
            name, who, stands="confirmed" if stands.answer is Readiness.CONFIRMED else "refused", why=stands.why
        )
    standing = yield from _decided(ctx, staging)
    if standing is not None:
        _require_agreement(name, standing, said)
    if said is Readiness.CONFIRMED:
        ctx.notice("P4", staging.attempt, "confirmed", who=who)
    else:
        ctx.notice("P4", staging.attempt, "refused", who=who)
    return staging


def _staging(ctx: Context, name: str, attempt: str | None) -> Script[Staging]:
    staging = yield from questions.find(ctx, attempt or name)
    if staging is None or staging.name != name:
        raise UnknownTransaction(name)
    return staging


def _decided(ctx: Context, staging: Staging) -> Script[Standing | None]:
    return (yield from questions.decided(ctx, staging.attempt))


def _require_agreement(name: str, standing: Standing, said: Readiness) -> None:
    """Whoever is ready for what was aborted has something to take back; whoever refuses what was committed as well."""
    committed = standing.decision.verdict is Verdict.COMMIT
    if committed and said is Readiness.REFUSED:
        raise OutcomeConflict(name, stands="committed")
    if not committed and said is Readiness.CONFIRMED:
        raise OutcomeConflict(name, stands="aborted")


def require(ctx: Context, staging: Staging) -> Script[None]:
    """Raise `NotReady` if it could not be committed as things are. The COMMIT's own condition has the last word."""
    missing = yield from _missing(ctx, staging)
    steps: tuple[str, ...] = ()
    if staging.calls:
        calls = yield from questions.calls(ctx, staging.attempt)
        steps = tuple(f"{call.step} (key {call.key!r})" for call in calls if call.state not in ANSWERED)
    if missing or steps:
        raise NotReady(staging.name, missing=missing, steps=steps)


def _missing(ctx: Context, staging: Staging) -> Script[tuple[str, ...]]:
    if not staging.confirmations:
        return ()
    said = yield from confirmations(ctx, staging.attempt)
    return tuple(one.who for one in said if one.answer is not Readiness.CONFIRMED)


def confirmations(ctx: Context, attempt: str) -> Script[list[Confirmation]]:
    """What everybody who was asked has said."""

    def body(session: Session) -> Script[list[Confirmation | Unreadable]]:
        return ctx.journal.confirmations(session, attempt)

    return [readable(one) for one in (yield from questions.ask(ctx, body))]


def wait(ctx: Context, name: str, *, attempt: str | None, timeout_s: float | None) -> Script[list[Confirmation]]:
    """Wait until all have confirmed. Raises `TransactionAborted` (somebody refused, or it was rolled back),
    `TimeoutError` (who is missing), `UnknownTransaction`.
    """
    until = None if timeout_s is None else ctx.clock.elapsed() + check_number("a timeout", timeout_s)
    staging = yield from _staging(ctx, name, attempt)
    for pause_s in backoff(most_s=WAIT_MOST_S):
        said = yield from confirmations(ctx, staging.attempt)
        refused = next((one for one in said if one.answer is Readiness.REFUSED), None)
        standing = yield from _decided(ctx, staging)
        if refused is not None:
            raise _aborted(staging, f"{refused.who} has refused it" + (f": {refused.why}" if refused.why else ""))
        if standing is not None and standing.decision.verdict is Verdict.ABORT:
            raise _aborted(staging, standing.decision.reason)
        missing = [one.who for one in said if one.answer is not Readiness.CONFIRMED]
        if not missing:
            return said
        if until is not None and ctx.clock.elapsed() + pause_s > until:
            who = f"{', '.join(missing)} {'has' if len(missing) == 1 else 'have'} not confirmed"
            raise TimeoutError(f"{name!r} is not ready after {timeout_s:g} s: {who}. It stays as it is")
        yield Pause(pause_s)
    raise AssertionError("backoff does not end")


def _aborted(staging: Staging, why: str) -> TransactionAborted:
    return TransactionAborted(
        f"{staging.name!r} will not be committed: {why}", name=staging.name, attempt=staging.attempt
    )
