"""Undoing the steps of an attempt: from the last call to the first, each claimed, run and recorded.

Guarantees (I19, I20): nothing is undone before the register's ABORT is confirmed; a compensation that nobody has begun
waits for those of later calls to be over or parked; each try has the call's own key; after so many tries it is parked,
and holds up no other. A claim keeps others away for a while. It saves work, and decides nothing: whoever is stopped for
longer than it lasts has to claim again before it acts, and two that act have one key.

Must not: undo where somebody else's clock, or a lease, says that it is time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ..engine import register
from ..engine.apart import require_owned
from ..engine.context import Context, log
from ..errors import NoDoubtError
from ..protocol.compensation import Bare, Claimed, Failed, GivenUp, NotNow, NotPossible, Undone, Unfit, following
from ..protocol.records import Call, CallState, Decision, Unreadable, Verdict
from ..script import Script
from . import ledger, running
from .calling import CALLS_MAX, pause_between, words
from .encoding import DoesNotFit, fit
from .registry import Compensation, IdempotencyKey, Registry, StepContext
from .running import Job, Runner


@dataclass(slots=True)
class Undoing:
    """What became of the steps of aborted attempts. `without_code`: compensations that this process does not know.

    `unreadable`: rows that cannot be read. Of their attempts nothing was undone.
    """

    undone: int = 0
    failed: int = 0
    parked: int = 0
    waiting: int = 0  # calls that are neither undone nor parked yet
    without_code: Counter[str] = field(default_factory=Counter)
    unreadable: list[Unreadable] = field(default_factory=list)


TURNS_MAX = 4 * CALLS_MAX  # looks at one attempt: each brings one of its calls further


class _After(Enum):
    """What to do after a look at one call."""

    NEXT = "go on"
    WAIT = "somebody has it, or it is not time yet, or the code is not here"


@dataclass(slots=True)
class Hand:
    """Who undoes, and with what.

    `mine`: the attempt's own process, whose actions are over. `grace_s`: as in `ledger.change`. `lacking`: calls whose
    code is not here, as far as this turn has come.
    """

    ctx: Context
    registry: Registry
    runner: Runner
    mine: bool = False
    grace_s: float | None = None
    report: Undoing = field(default_factory=Undoing)
    lacking: set[tuple[str, int]] = field(default_factory=set)


def something_to_do(hand: Hand, calls: Sequence[Call], at: float) -> bool:
    """Whether a look at one aborted attempt, which costs a forced write, is worth it now. What waits is counted."""
    chosen = following(calls)
    if chosen is None:
        return False
    waits = chosen.state in (CallState.BEGUN, CallState.UNDOING, CallState.DUE) and at < chosen.until
    if hand.grace_s is None and waits:
        hand.report.waiting += _open(calls)
        return False
    if chosen.undo and chosen.undo not in hand.registry.compensations and not _overdue(hand, chosen):
        hand.report.waiting += _open(calls)
        hand.report.without_code[chosen.undo] += 1
        return False
    return True


def _open(calls: Sequence[Call]) -> int:
    return sum(not call.closed and call.state is not CallState.PARKED for call in calls)


def undo(hand: Hand, attempt: str) -> Script[Undoing]:
    """Undo what can be undone now. Raises `JournalUnavailable`, `Unclear`: recovery goes on with it."""
    ctx, report = hand.ctx, hand.report
    standing = yield from register.confirm_one(ctx, attempt)
    if standing is None or standing.decision.verdict is not Verdict.ABORT:
        return report
    calls: list[Call] = []
    for _ in range(TURNS_MAX):
        calls = yield from ledger.calls_of(ctx, attempt)
        chosen = following(calls)
        if chosen is None:
            break
        try:
            after = yield from _undo_one(hand, chosen, standing.decision)
        except NotNow:
            after = _After.WAIT
        except NotPossible:
            after = _After.NEXT  # somebody has brought it further since it was read
        if after is _After.WAIT:
            break
    report.waiting += _open(calls)
    return report


def _undo_one(hand: Hand, call: Call, decision: Decision) -> Script[_After]:
    ctx = hand.ctx
    if not call.undo:
        yield from ledger.change(ctx, call, Bare())
        return _After.NEXT
    function = hand.registry.compensations.get(call.undo)
    if function is None:
        return (yield from _without_code(hand, call))
    try:
        values = fit(function, call.arguments)
    except DoesNotFit as error:
        return (yield from _park(hand, call, str(error)))
    if call.tries >= _tries_max(hand, function):
        why = f"it was begun {call.tries} times, and whoever began it did not come back: {call.error or 'killed?'}"
        return (yield from _park(hand, call, why))
    return (yield from _run(hand, call, decision, function, values))


def _park(hand: Hand, call: Call, why: str) -> Script[_After]:
    yield from ledger.change(hand.ctx, call, Unfit(why), grace_s=hand.grace_s)
    hand.report.parked += 1
    _tell_parked(call, why)
    return _After.NEXT


def _tell_parked(call: Call, why: str) -> None:
    log.error(
        "PARKED: the compensation %s of %s (#%d of %s): %s. A human must look: nodoubt steps show %s",
        call.undo, call.step, call.number, call.attempt, why, call.attempt,
    )  # fmt: skip


def _without_code(hand: Hand, call: Call) -> Script[_After]:
    """Another process may have it: of another service, or of the release that is being rolled out. Not for ever."""
    hand.report.without_code[call.undo] += 1
    if not _overdue(hand, call):
        return _After.WAIT
    why = (
        f"no worker that has the compensation {call.undo} has come within {hand.ctx.settings.unclaimed_s:g} s. Was it "
        "renamed? Bring it back, or run nodoubt recover --watch --app MODULE where it is; then nodoubt steps retry"
    )
    return (yield from _park(hand, call, why))


def _overdue(hand: Hand, call: Call) -> bool:
    """Since this process first saw it so: after an outage of everybody, those with the code must have their time."""
    ctx, which = hand.ctx, (call.attempt, call.number)
    hand.lacking.add(which)
    since = ctx.unclaimed.setdefault(which, ctx.clock.elapsed())
    return ctx.clock.elapsed() - since > ctx.settings.unclaimed_s


def _tries_max(hand: Hand, function: Compensation[..., Any]) -> int:
    return function.options.tries_max or hand.ctx.settings.tries_max


def _run(
    hand: Hand, call: Call, decision: Decision, function: Compensation[..., Any], values: dict[str, object]
) -> Script[_After]:
    ctx = hand.ctx
    if running.saturated():
        log.error("so many steps hang in this process that no compensation is begun any more: restart it")
        return _After.WAIT
    began = ctx.clock.elapsed()
    within_s, margin_s = function.options.timeout_s or ctx.settings.step_s, ctx.settings.grace_s
    at = yield from ledger.now(ctx)
    claim = ctx.ids.mark()
    wanted = Claimed(claim, ctx.owner, at + within_s + margin_s, hand.mine, _tries_max(hand, function))
    claimed = yield from ledger.change(ctx, call, wanted, grace_s=hand.grace_s)
    if claimed.claim != claim:
        return _After.WAIT
    ctx.notice("S5", call.attempt, "undoing", step=call.undo)
    if ctx.clock.elapsed() - began >= margin_s:
        # Stopped for so long, we may not have it any more by the time that it ends: claim it again.
        yield from ledger.change(ctx, claimed, Failed(claim, "its worker was stopped before it began", at))
        return _After.NEXT
    try:
        yield from running.run(hand.runner, Job(function, values, _context(claimed, decision), within_s))
    except Exception as error:
        yield from _failed(hand, claimed, function, words(error))
        return _After.NEXT
    ctx.notice("S6", call.attempt, "undone", step=call.undo)
    yield from ledger.change(ctx, claimed, Undone())
    hand.report.undone += 1
    ctx.notice("S7", call.attempt, "undo recorded", step=call.undo)
    return _After.NEXT


def _failed(hand: Hand, call: Call, function: Compensation[..., Any], why: str) -> Script[None]:
    ctx, report = hand.ctx, hand.report
    if call.tries >= _tries_max(hand, function):
        after = yield from ledger.change(ctx, call, GivenUp(call.claim, why))
        if after.state is CallState.PARKED:
            report.parked += 1
            _tell_parked(call, f"{why} (tried {call.tries} times)")
        return
    report.failed += 1
    at = yield from ledger.now(ctx)
    pause_s = pause_between(ctx, call.tries)
    yield from ledger.change(ctx, call, Failed(call.claim, why, at + pause_s))
    log.warning("the compensation %s of %s failed, and is tried again: %s", call.undo, call.attempt, why)


def _context(call: Call, decision: Decision) -> StepContext:
    action = f"{call.attempt}.{call.number}"
    return StepContext(
        IdempotencyKey(f"{action}.undo"),
        IdempotencyKey(action),
        call.attempt,
        decision.name,
        call.number,
        call.tries,
        result_json=call.result,
    )


def undo_quietly(hand: Hand, attempt: str) -> Script[int]:
    """For whoever has just aborted it: undo what can be undone now; how many steps are left to recovery, or a human.

    Not while a row may be anybody's: the COMMIT of this very attempt, or the step that is to be undone first.
    """
    try:
        yield from require_owned(hand.ctx)
        report = yield from undo(hand, attempt)
        left = yield from ledger.calls_of(hand.ctx, attempt)
    except NoDoubtError as error:
        log.warning("the steps of %s are left to recovery: %s", attempt, error)
        return 1
    if report.waiting:
        log.warning("%d steps of %s are not undone yet: recovery goes on with them", report.waiting, attempt)
    return sum(not call.closed for call in left)
