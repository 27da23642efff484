"""Each rule taken out of the product, for one process or one test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from nodoubt.engine import register, start, verbs
from nodoubt.engine.context import Context
from nodoubt.ports import readable
from nodoubt.protocol.compensation import Answered
from nodoubt.protocol.records import Call, Decision, Standing, Verdict
from nodoubt.script import Script
from nodoubt.steps import calling, ledger, running, undoing
from nodoubt.steps.encoding import encoded_result
from nodoubt.steps.registry import IdempotencyKey
from nodoubt.steps.running import Job

Patch = Callable[[pytest.MonkeyPatch], None]


def intent_after_the_action(patch: pytest.MonkeyPatch) -> None:
    """The intent is written when the action has ended."""
    intend = ledger.intend

    def late(ctx: Context, runner: Any, use: Any, site: Any, record: Call) -> Script[Any]:
        job = Job(use.bound.step, use.bound.values, calling._context(site, record, 1), site.within_s)
        value = yield from running.run(runner, job)
        yield from intend(ctx, record)
        yield from ledger.change(ctx, record, Answered(encoded_result(value)))
        return value

    def nothing(ctx: Context, call: Call) -> Script[None]:
        yield from ()

    patch.setattr(calling, "_act", late)
    patch.setattr(ledger, "intend", nothing)


def no_fence(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks whether the attempt is still open before the action starts."""

    def always(ctx: Context, site: Any, record: Call, began: float) -> Script[Call]:
        return record
        yield

    patch.setattr(calling, "_still_open", always)


def undone_although_committed(patch: pytest.MonkeyPatch) -> None:
    """A lease that has run out is taken for an abort: the register is not asked."""

    def aborted(ctx: Context, attempts: Sequence[str]) -> Script[dict[str, Standing]]:
        stand = yield from CONFIRM(ctx, attempts)
        return {
            attempt: Standing(msgspec.structs.replace(readable(one).decision, verdict=Verdict.ABORT), ended=False)
            for attempt, one in stand.items()
        }

    patch.setattr(register, "confirm", aborted)


CONFIRM = register.confirm


def in_order(patch: pytest.MonkeyPatch) -> None:
    """From the first step to the last."""

    def first(calls: Sequence[Call]) -> Call | None:
        left = [call for call in calls if not call.closed]
        return min(left, key=lambda call: call.number, default=None)

    patch.setattr(undoing, "following", first)


def another_key_for_each_try(patch: pytest.MonkeyPatch) -> None:
    """Whoever tries again has a key of its own."""
    sound = undoing._context

    def fresh(call: Call, decision: Decision) -> Any:
        context = sound(call, decision)
        return type(context)(
            IdempotencyKey(f"{context.key}.{call.claim}"),
            context.action_key,
            context.attempt,
            context.transaction,
            context.number,
            context.tries,
        )

    patch.setattr(undoing, "_context", fresh)


def short_cut_with_steps(patch: pytest.MonkeyPatch) -> None:
    """One writer commits in one phase, and an abort is presumed, whatever was called outside."""
    plan = verbs._plan

    def plain(*args: Any) -> Any:
        return msgspec.structs.replace(plan(*args), calls=False)

    patch.setattr(verbs, "_plan", plain)


def any_journal_will_do(patch: pytest.MonkeyPatch) -> None:
    """Nobody asks whether the journal was set back."""

    def fine(ctx: Context) -> Script[Any]:
        return start.Lineage(reached=1)
        yield

    patch.setattr(start, "lineage", fine)


MUTANTS: dict[str, Patch] = {
    one.__name__: one
    for one in (
        intent_after_the_action,
        no_fence,
        undone_although_committed,
        in_order,
        another_key_for_each_try,
        short_cut_with_steps,
        any_journal_will_do,
    )
}


def apply(name: str) -> None:
    """For a process's whole life."""
    if name:
        MUTANTS[name](pytest.MonkeyPatch())
