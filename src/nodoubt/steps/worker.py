"""Finishing what dead processes left: whoever called steps and is not heard of any more is aborted, and its steps
undone.

Any number of workers may do this at any time (I13). Those without the code leave compensations to those who have it.
 Guarantees: nothing is aborted, or undone, by a journal that was restored (I15), and all is by the register's word; a
compensation that hangs holds up one lane of many, and none of the others' attempts; an attempt that is staged is left
to its deadline.
"""

from __future__ import annotations

from collections import deque

from ..engine import questions, register, start
from ..engine.context import Context, asked, log
from ..errors import NoDoubtError
from ..ports import BelowFloor, Session
from ..protocol.compensation import NotNow, NotPossible, Unfit
from ..protocol.records import Call, Decision, Mode, Staging, Standing, Verdict
from ..script import Script, every
from . import ledger
from .undoing import Hand, Undoing, undo

PAGE_MAX = 200
LANES = 8


def turn(hand: Hand) -> Script[Undoing]:
    """One look at every attempt that has steps which are neither undone nor parked. Raises `JournalUnavailable`."""
    ctx, report = hand.ctx, hand.report
    lineage = yield from start.lineage(ctx)
    if lineage.restored or not lineage.reached:
        # A journal that has forgotten a COMMIT would have it undone (I15): somebody must vouch for it.
        log.warning("no steps are undone: %s", "; ".join(lineage.trouble.values()))
        return report
    ctx.journal_clock = None  # looked at anew
    after = ""
    while True:

        def page(session: Session, after: str = after) -> Script[list[str]]:
            return ctx.journal.unfinished_calls(session, after, PAGE_MAX)

        attempts = yield from questions.ask(ctx, page)
        theirs = [attempt for attempt in attempts if attempt not in ctx.holding]
        standings = yield from questions.look(ctx, theirs)
        waiting = deque(theirs)
        lanes = yield from every([_lane(hand, waiting, standings) for _ in range(LANES)])
        for lane in lanes:
            lane.get()
        if len(attempts) < PAGE_MAX:
            return report
        after = attempts[-1]


def _lane(hand: Hand, waiting: deque[str], standings: dict[str, Standing]) -> Script[None]:
    """One of several that take the next attempt each: where one waits for a function that hangs, the others go on."""
    while waiting:
        try:
            attempt = waiting.popleft()
        except IndexError:
            return
        try:
            yield from _look_after(hand, attempt, standings.get(attempt))
        except NoDoubtError as error:
            log.warning("the steps of %s are left for now: %s", attempt, error)


def _look_after(hand: Hand, attempt: str, standing: Standing | None) -> Script[None]:
    if standing is None and not (yield from _given_up(hand, attempt)):
        return
    if standing is not None and standing.decision.verdict is Verdict.COMMIT:
        return  # they stand; its end closes them
    yield from undo(hand, attempt)


def _given_up(hand: Hand, attempt: str) -> Script[bool]:
    """Whether an undecided attempt is aborted now: its process has been silent for longer than it had said."""
    ctx = hand.ctx
    calls = [call for call in (yield from ledger.calls(ctx, [attempt])) if not call.closed]
    at = yield from ledger.now(ctx)
    if not calls or at < max(_left_alone_until(hand, call) for call in calls):
        return False

    def body(session: Session) -> Script[dict[str, Staging]]:
        return ctx.journal.staged(session, [attempt])

    staging = (yield from asked(ctx, ctx.journal_pool, body)).get(attempt)
    if staging is not None and (yield from questions.last_is_listed(ctx, staging)):
        return False  # staged, or we cannot tell: its deadline will
    wanted = Decision(
        attempt,
        Verdict.ABORT,
        Mode.ONCE if staging is None else Mode.STAGED,
        "" if staging is None else staging.name,
        () if staging is None else staging.branches,
        owner=ctx.owner,
        reason="recovery: whoever called its steps has not been heard of",
        decided_at=ctx.clock.now(),
    )
    try:
        stands = yield from register.decide(ctx, wanted)
    except BelowFloor as error:
        yield from _park_all(ctx, calls, f"nobody can tell any more how it ended: {error}")
        return False
    return stands.verdict is Verdict.ABORT


def _left_alone_until(hand: Hand, call: Call) -> float:
    return call.until if hand.grace_s is None else min(call.until, call.changed_at + hand.grace_s)


def _park_all(ctx: Context, calls: list[Call], why: str) -> Script[None]:
    for call in calls:
        try:
            yield from ledger.change(ctx, call, Unfit(why))
            log.error("PARKED: %s #%d of %s: %s. A human must look", call.step, call.number, call.attempt, why)
        except (NotNow, NotPossible):
            continue
