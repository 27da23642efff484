"""The way to the one decision: `decide(attempt, wanted) -> the decision that stands, durably`.

Guarantees: what it returns was either written by us, forced, and acknowledged, or confirmed by a forced
UPDATE of its own row. Nobody acts on a plain read. Concurrent decisions of one process share a forced write.

Raises `NotDecided` when surely nothing was decided, by us or, as far as was seen, by others; `Unclear` when nobody
knows; `BelowFloor` when the journal no longer remembers; `UnreadableRecord` where a decision stands and cannot be read:
it is never decided again. `NoFloor` is both: nothing was written, because what the journal remembers cannot be read.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import NoDoubtError, UnreadableRecord
from ..ports import BelowFloor, Conflict, Refused, Session, Unclear, readable
from ..protocol.records import Decision, Standing, Unreadable
from ..script import Do, Pause, Script
from .context import Context, backoff, bounded, using


class NotDecided(NoDoubtError):
    """The journal could not be reached, or refused, before anything of ours was written."""


class NoFloor(NotDecided, UnreadableRecord):
    """The journal's floor cannot be read, so nothing is decided."""


def write(ctx: Context, decisions: Sequence[Decision]) -> Script[list[NoDoubtError | None]]:
    """One forced write for all of them; where that is refused, one for each half. None: written, durably.

    One decision that stands already must not keep its neighbours from being written, nor cost each a write of its own.
    """

    def together(session: Session) -> Script[None]:
        return ctx.journal.insert(session, decisions)

    try:
        yield from bounded(using(ctx.journal_pool, together), _try_s(ctx), ctx.clock)
    except Refused as error:
        if len(decisions) == 1:
            return [error]
        middle = len(decisions) // 2
        answers = yield from write(ctx, decisions[:middle])
        return answers + (yield from write(ctx, decisions[middle:]))
    except NoDoubtError as error:
        return [error] * len(decisions)
    return [None] * len(decisions)


def decide(ctx: Context, decision: Decision) -> Script[Decision]:
    """Write the decision, or learn the one that stands. Bounded by `decide_s`."""
    until = ctx.clock.elapsed() + ctx.settings.decide_s
    maybe_stands = False
    for pause_s in backoff():
        error: NoDoubtError | None
        try:
            error = yield Do(ctx.register_batch, "submit", (decision,))
        except NoDoubtError as trouble:
            error = trouble
        if error is None:
            return decision
        if isinstance(error, (BelowFloor, UnreadableRecord)):
            if maybe_stands:
                # An earlier try may have been written, carried out and forgotten since: unknown, never "not done".
                raise Unclear(f"an earlier try had no answer, and now it is refused: {error}") from error
            if isinstance(error, BelowFloor):
                raise error
            raise NoFloor(str(error)) from error
        if isinstance(error, Refused) and not isinstance(error, Conflict) and not error.retry and not maybe_stands:
            raise NotDecided(f"the journal refuses, and waiting will not help: {error}") from error
        # Anything but a refusal may have been written, or be written yet; and what conflicts with it has been.
        maybe_stands |= isinstance(error, (Unclear, Conflict))
        if maybe_stands:
            try:
                standing = yield from _confirm_once(ctx, [decision.attempt])
            except NoDoubtError as trouble:
                error = trouble
            else:
                if decision.attempt in standing:
                    return readable(standing[decision.attempt]).decision
        if ctx.clock.elapsed() + pause_s >= until:
            kind = Unclear if maybe_stands else NotDecided
            raise kind(f"the journal gave no decision within {ctx.settings.decide_s:g} s: {error}") from error
        yield Pause(pause_s)
    raise AssertionError("backoff does not end")


def decide_all(ctx: Context, wanted: Sequence[Decision]) -> Script[list[Decision]]:
    """`decide` for many, in as few forced writes as possible. Raises what `decide` raises for the first that it
    cannot do.
    """
    if not wanted:
        return []
    answers = yield from write(ctx, wanted)
    stand: list[Decision] = []
    for decision, error in zip(wanted, answers, strict=True):
        stand.append(decision if error is None else (yield from decide(ctx, decision)))
    return stand


def confirm_one(ctx: Context, attempt: str) -> Script[Standing | None]:
    """As `confirm`. Raises `UnreadableRecord`: there is one, and nobody can say which."""
    return readable((yield from confirm(ctx, [attempt])).get(attempt))


def confirm(ctx: Context, attempts: Sequence[str]) -> Script[dict[str, Standing | Unreadable]]:
    """The decisions that stand among these attempts, flushed. Bounded by `decide_s`; raises `Unclear`."""
    until = ctx.clock.elapsed() + ctx.settings.decide_s
    for pause_s in backoff():
        try:
            return (yield from _confirm_once(ctx, attempts))
        except NoDoubtError as error:
            if ctx.clock.elapsed() + pause_s >= until:
                raise Unclear(f"the journal could not be read: {error}") from error
        yield Pause(pause_s)
    raise AssertionError("backoff does not end")


def _try_s(ctx: Context) -> float:
    """How long one try may take: a server that has stopped answering must not use up the time of all."""
    return min(ctx.settings.answer_s, ctx.settings.decide_s)


def _confirm_once(ctx: Context, attempts: Sequence[str]) -> Script[dict[str, Standing | Unreadable]]:
    def body(session: Session) -> Script[dict[str, Standing | Unreadable]]:
        return ctx.journal.confirm(session, sorted(attempts))

    return (yield from bounded(using(ctx.journal_pool, body), _try_s(ctx), ctx.clock))
