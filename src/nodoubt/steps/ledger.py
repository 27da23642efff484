"""The journal's calls, read and changed. Every change is a compare-and-set by the table in `protocol.compensation`.

Guarantees: a change that is returned stands, on disk; where nobody knows whether it was written, the record is read
again and tells, and what it tells is written once more: a row that is seen may yet be forgotten in a crash (I19).

Must not: know functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from ..engine import questions
from ..engine.context import Context, asked, backoff
from ..errors import JournalUnavailable, NoDoubtError, UsageError
from ..ports import Session
from ..protocol import compensation
from ..protocol.records import Call, CallState, Standing, Unreadable
from ..script import Pause, Script

CLOCK_GOOD_S = 60.0  # for so long a look at the journal's clock is good: clocks drift, and are set


def now(ctx: Context) -> Script[float]:
    """What the journal's clock shows, by our own since it was last looked at."""
    elapsed = ctx.clock.elapsed()
    if ctx.journal_clock is None or elapsed - ctx.journal_clock[1] > CLOCK_GOOD_S:
        shown = yield from questions.ask(ctx, ctx.journal.now)
        ctx.journal_clock = shown, ctx.clock.elapsed()
    shown, then = ctx.journal_clock
    return shown + ctx.clock.elapsed() - then


def calls(ctx: Context, attempts: Sequence[str]) -> Script[list[Call | Unreadable]]:
    """By attempt and number. Raises `JournalUnavailable`."""

    def body(session: Session) -> Script[list[Call | Unreadable]]:
        return ctx.journal.calls(session, attempts)

    return questions.ask(ctx, body)


def calls_of(ctx: Context, attempt: str) -> Script[list[Call]]:
    """All calls of one attempt, by number. Raises `JournalUnavailable`, and `UnreadableRecord` if one cannot be read:
    what comes after what among them, nobody can say.
    """
    return questions.calls(ctx, attempt)


def decided(ctx: Context, attempt: str) -> Script[Standing | None]:
    """A plain look: enough to refuse an action, never enough to undo one."""
    return questions.decided(ctx, attempt)


def intend(ctx: Context, call: Call) -> Script[None]:
    """Write it, forced. Raises `Conflict`, `BelowFloor`, `Refused`; `Unclear`: it may stand."""

    def body(session: Session) -> Script[None]:
        return ctx.journal.intend(session, call)

    return asked(ctx, ctx.journal_pool, body)


def change(
    ctx: Context,
    call: Call,
    event: compensation.Event,
    *,
    grace_s: float | None = None,
    if_renewed: compensation.Event | None = None,
) -> Script[Call]:
    """Let the event happen to the call, whatever it has become meanwhile, and return what it is now.

    `grace_s`: whoever has the call is left alone for so long, and no longer, whatever they have asked for.
    `if_renewed`: what happens instead if somebody else has taken time for it since.
    Raises `NotPossible` and `NotNow`, as the table says; `JournalUnavailable` after `decide_s`: it may have happened.
    """
    first = call.version

    def changed(call: Call, at: float) -> Call:
        held = call.state in (CallState.BEGUN, CallState.UNDOING)
        patient = not held or grace_s is None or at < call.changed_at + grace_s
        happens = event if if_renewed is None or call.version == first else if_renewed
        return compensation.step(call, happens, at=at, patient=patient)

    return _written(ctx, call, changed)


def confirm(ctx: Context, call: Call) -> Script[Call]:
    """A call that was seen, on disk, as it is now: its own row is written once more. Raises `JournalUnavailable`."""
    return _written(ctx, call, None)


def _written(ctx: Context, call: Call, change: Callable[[Call, float], Call] | None) -> Script[Call]:
    """None: nothing is to be changed, but what is there is to be on disk."""
    until, wanted = ctx.clock.elapsed() + ctx.settings.decide_s, change
    for pause_s in backoff():
        after: Call | None = None
        trouble: NoDoubtError | None = None
        try:
            at = yield from now(ctx)
            after = compensation.once_more(call, at=at) if wanted is None else wanted(call, at)
            if after is call or (yield from _advance(ctx, call, after)):
                return after
            fresh = yield from _again(ctx, call)
        except NoDoubtError as error:
            trouble = error
            yield Pause(pause_s)
            fresh = yield from _again_if_possible(ctx, call)
        if after is not None and same(fresh, after):
            wanted = None  # it was written, and only the answer was lost. It is seen, which is not yet flushed
        elif not same(fresh, call):
            wanted = change  # others have changed it, or a crash has taken it back
        if ctx.clock.elapsed() >= until:
            what, why = f"{call.step} #{call.number} of {call.attempt}", trouble or "others change it all the time"
            raise JournalUnavailable(f"the journal does not say whether {what} was changed: {why}") from trouble
        call = fresh
    raise AssertionError("backoff does not end")


def same(one: Call, other: Call) -> bool:
    """Whether nobody has changed it in between. `hold` gives it more time, which is no change."""
    return msgspec.structs.replace(one, until=other.until) == other


def _advance(ctx: Context, before: Call, after: Call) -> Script[bool]:
    def body(session: Session) -> Script[bool]:
        return ctx.journal.advance(session, before, after)

    return asked(ctx, ctx.journal_pool, body)


def _again(ctx: Context, call: Call) -> Script[Call]:
    for one in (yield from calls_of(ctx, call.attempt)):
        if one.number == call.number:
            return one
    raise UsageError(f"the journal knows no step #{call.number} of {call.attempt} any more")


def _again_if_possible(ctx: Context, call: Call) -> Script[Call]:
    try:
        return (yield from _again(ctx, call))
    except NoDoubtError:
        return call


def hold(ctx: Context) -> Script[None]:
    """Tell whoever may look that the attempts at work here are alive. If the journal is away, the next turn will."""
    held = sorted(ctx.holding)
    if not held:
        return
    until = (yield from now(ctx)) + ctx.settings.grace_s

    def body(session: Session) -> Script[None]:
        return ctx.journal.hold(session, held, until)

    yield from questions.ask(ctx, body, changes=True)
