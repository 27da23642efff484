"""Finishing what dead processes left: whoever called steps and is not heard of any more is aborted, its steps undone.

Any number of workers may do this at any time (I13). Those without the code leave compensations to those who have it.

Guarantees: nothing is aborted, or undone, by a journal that was restored (I15), and all is by the register's word; a
compensation that hangs holds up one lane of many, and none of the others' attempts; an attempt that is staged is left
to its deadline. What waits for its time, for a worker or for a human costs a read, however often it is looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..engine import questions, register, start
from ..engine.apart import Apart, ownerless, split, tell
from ..engine.context import Context, Participant, asked, log
from ..errors import NoDoubtError
from ..ports import BelowFloor, Prepared, Session
from ..protocol.compensation import NotNow, NotPossible, Unfit
from ..protocol.records import Call, Decision, Mode, Staging, Standing, Unreadable, Verdict
from ..script import Script, every
from ..xid import Xid
from . import ledger
from .undoing import Hand, Undoing, something_to_do, undo

PAGE_MAX = 200
LANES_MAX = 8


@dataclass(slots=True)
class _Page:
    """What was read, plainly, of so many attempts: advice what to look at."""

    at: float  # by the journal's clock
    apart: Apart
    calls: dict[str, list[Call]] = field(default_factory=dict)
    standings: dict[str, Standing] = field(default_factory=dict)
    stagings: dict[str, Staging] = field(default_factory=dict)
    beginning: set[str] = field(default_factory=set)  # listed before their work, and surely not prepared


def turn(hand: Hand) -> Script[Undoing]:
    """One look at every attempt that has steps which are neither undone nor parked. Raises `JournalUnavailable`."""
    ctx, report = hand.ctx, hand.report
    attempts, apart = (yield from _page(ctx, "")), Apart()
    if not attempts:
        ctx.unclaimed = {}
        return report  # without a look at the databases, of which one may be frozen
    lineage = yield from start.lineage(ctx)
    if lineage.restored or not lineage.reached:
        # A journal that has forgotten a COMMIT would have it undone (I15): somebody must vouch for it.
        log.warning("no steps are undone: %s", "; ".join(lineage.trouble.values()))
        return report
    stray = yield from ownerless(ctx)
    if stray:  # a step among them may be the one to undo first
        report.unreadable += stray
        tell(ctx, stray)
        return report
    ctx.journal_clock = None  # looked at anew
    while True:
        mine = [attempt for attempt in split(attempts, apart) if attempt not in ctx.holding]
        yield from _look_after_page(hand, mine, apart)
        if len(attempts) < PAGE_MAX:
            ctx.unclaimed = {which: since for which, since in ctx.unclaimed.items() if which in hand.lacking}
            report.unreadable += apart.values()
            tell(ctx, apart.values())
            return report
        last = attempts[-1]
        attempts = yield from _page(ctx, last.attempt if isinstance(last, Unreadable) else last)


def _page(ctx: Context, after: str) -> Script[list[str | Unreadable]]:
    def body(session: Session) -> Script[list[str | Unreadable]]:
        return ctx.journal.unfinished_calls(session, after, PAGE_MAX)

    return questions.ask(ctx, body)


def _look_after_page(hand: Hand, attempts: Sequence[str], apart: Apart) -> Script[None]:
    """What hangs on a row that cannot be read is left: which step comes first, or how it ended, nobody knows."""
    if not attempts:
        return
    read = yield from _read(hand.ctx, attempts)
    apart.update(read.apart)
    held = {one.attempt for one in read.apart.values()}
    waiting = deque(attempt for attempt in attempts if attempt not in held)
    lanes = min(LANES_MAX, len(waiting))
    for lane in (yield from every([_lane(hand, waiting, read) for _ in range(lanes)])):
        lane.get()


def _read(ctx: Context, attempts: Sequence[str]) -> Script[_Page]:
    page = _Page((yield from ledger.now(ctx)), {})
    for call in split((yield from ledger.calls(ctx, attempts)), page.apart):
        page.calls.setdefault(call.attempt, []).append(call)
    stand = yield from questions.look(ctx, attempts)
    page.standings = {one.attempt: one for one in split(stand.values(), page.apart)}
    undecided = [attempt for attempt in attempts if attempt not in stand]
    if undecided:

        def body(session: Session) -> Script[dict[str, Staging | Unreadable]]:
            return ctx.journal.staged(session, undecided)

        staged = yield from questions.ask(ctx, body)
        page.stagings = {one.attempt: one for one in split(staged.values(), page.apart)}
        page.beginning = yield from _beginning(ctx, [one for one in page.stagings.values() if one.begin_by])
    return page


def _beginning(ctx: Context, early: Sequence[Staging]) -> Script[set[str]]:
    """Which of these names, listed before their work, are not prepared. One listing for all; what it can't tell is
    not.
    """
    if not early:
        return set()
    listed: set[Xid] = set()
    reached: set[str] = set()
    for participant in ctx.participants.values():

        def body(session: Session, participant: Participant = participant) -> Script[tuple[Prepared, ...]]:
            return participant.resource.prepared(session, ctx.cluster)

        try:
            listed.update(one.xid for one in (yield from asked(ctx, participant.reserve, body)))
            reached.add(participant.resource_id)
        except NoDoubtError as error:
            log.warning("%s does not tell what is prepared there: %s", participant.name, error)
    return {
        one.attempt
        for one in early
        for ref in one.branches
        if ref.number == one.last
        and ref.resource_id in reached
        and Xid(ctx.cluster, one.attempt, ref.number) not in listed
    }


def _lane(hand: Hand, waiting: deque[str], page: _Page) -> Script[None]:
    """One of several that take the next attempt each: where one waits for a function that hangs, the others go on."""
    while waiting:
        try:
            attempt = waiting.popleft()
        except IndexError:
            return
        try:
            yield from _look_after(hand, attempt, page)
        except NoDoubtError as error:
            log.warning("the steps of %s are left for now: %s", attempt, error)


def _look_after(hand: Hand, attempt: str, page: _Page) -> Script[None]:
    calls, standing = page.calls.get(attempt, []), page.standings.get(attempt)
    if standing is None:
        if not (yield from _given_up(hand, attempt, calls, page)):
            return
    elif standing.decision.verdict is Verdict.COMMIT or not something_to_do(hand, calls, page.at):
        return  # steps that were committed stand; their end closes them
    yield from undo(hand, attempt)


def _given_up(hand: Hand, attempt: str, calls: Sequence[Call], page: _Page) -> Script[bool]:
    """Whether an undecided attempt is aborted now: its process has been silent for longer than it had said."""
    ctx, staging = hand.ctx, page.stagings.get(attempt)
    left = [call for call in calls if not call.closed]
    if not left or page.at < max(_left_alone_until(hand, call) for call in left):
        return False
    if staging is not None and attempt not in page.beginning:
        return False  # staged: its deadline will, or the sweep
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
        yield from _park_all(ctx, left, f"nobody can tell any more how it ended: {error}")
        return False
    return stands.verdict is Verdict.ABORT


def _left_alone_until(hand: Hand, call: Call) -> float:
    return call.until if hand.grace_s is None else min(call.until, call.changed_at + hand.grace_s)


def _park_all(ctx: Context, calls: Sequence[Call], why: str) -> Script[None]:
    for call in calls:
        try:
            yield from ledger.change(ctx, call, Unfit(why))
            log.error("PARKED: %s #%d of %s: %s. A human must look", call.step, call.number, call.attempt, why)
        except (NotNow, NotPossible):
            continue
