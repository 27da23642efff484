"""What a human may do about a call: look, have it tried again, skip it, mend its arguments.

Guarantees: whoever does it, and why, is in the trail; nothing is changed in an attempt that is not aborted, nor while a
worker is at it; mended arguments fit the compensation's types, where its code is at hand.

Must not: run anything. Recovery does.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ..engine import questions, register
from ..engine.apart import Apart, split, tell
from ..engine.context import Context
from ..errors import UnknownTransaction, UsageError
from ..protocol.compensation import Edited, Event, NotNow, NotPossible, Retried, Skipped
from ..protocol.records import Call, Verdict
from ..script import Script
from ..xid import is_attempt
from . import ledger
from .encoding import DoesNotFit, fit
from .registry import Registry

WORDS_LENGTH_MAX = 1000


@dataclass(frozen=True, slots=True)
class Mended:
    """The call as it is now. `checked`: its arguments were held against the compensation's types."""

    call: Call
    checked: bool = False


def steps(ctx: Context, name: str) -> Script[list[Call]]:
    """The calls of a transaction, by its name or attempt, the first first. Raises `UnknownTransaction`."""
    staging = yield from questions.find(ctx, name)
    if staging is None and not is_attempt(name):
        raise UnknownTransaction(name)
    return (yield from ledger.calls_of(ctx, name if staging is None else staging.attempt))


def parked(ctx: Context) -> Script[list[Call]]:
    """Every call that a human must look at; of those that cannot be read `questions.unreadable` tells."""
    apart: Apart = {}
    found = split((yield from questions.ask(ctx, ctx.journal.parked_calls)), apart)
    tell(ctx, apart.values())
    return found


def retry(ctx: Context, name: str, number: int, *, by: str) -> Script[Mended]:
    """Have it tried again from the start. Raises `UsageError` where that has no meaning."""
    call = yield from _aborted_call(ctx, name, number)
    return Mended((yield from _change(ctx, call, Retried(_said(by, "by")))))


def skip(ctx: Context, name: str, number: int, *, by: str, because: str) -> Script[Mended]:
    """Take it as done: a human has seen to it."""
    call = yield from _aborted_call(ctx, name, number)
    return Mended((yield from _change(ctx, call, Skipped(_said(by, "by"), _said(because, "because")))))


def edit(
    ctx: Context, registry: Registry, name: str, number: int, arguments: str, *, by: str, because: str
) -> Script[Mended]:
    """Mend its arguments (a JSON object, by parameter). It stays parked until it is retried; its key stays the same."""
    call = yield from _aborted_call(ctx, name, number)
    try:
        msgspec.json.decode(arguments, type=dict[str, msgspec.Raw])
    except msgspec.MsgspecError as error:
        raise UsageError(f"arguments are a JSON object, as {call.arguments}: {error}") from error
    function = registry.compensations.get(call.undo)
    if function is not None:
        try:
            fit(function, arguments)
        except DoesNotFit as error:
            raise UsageError(f"nothing was changed: {error}") from error
    compact = msgspec.json.encode(msgspec.json.decode(arguments)).decode()
    event = Edited(_said(by, "by"), _said(because, "because"), compact)
    return Mended((yield from _change(ctx, call, event)), checked=function is not None)


def _aborted_call(ctx: Context, name: str, number: int) -> Script[Call]:
    calls = yield from steps(ctx, name)
    call = next((one for one in calls if one.number == number), None)
    if call is None:
        have = ", ".join(f"#{one.number}" for one in calls) or "none"
        raise UsageError(f"{name!r} has no step #{number}; it has {have}")
    standing = yield from register.confirm_one(ctx, call.attempt)
    if standing is None:
        raise UsageError(f"{name!r} is not decided yet: there is nothing to undo. Commit it or roll it back first")
    if standing.decision.verdict is Verdict.COMMIT:
        raise UsageError(f"{name!r} was committed, so its steps stand: there is nothing to undo")
    return call


def _change(ctx: Context, call: Call, event: Event) -> Script[Call]:
    try:
        return (yield from ledger.change(ctx, call, event))
    except NotPossible as error:
        raise UsageError(f"{error}. Nothing was changed") from error
    except NotNow as error:
        raise UsageError(f"{error} for a while yet. Nothing was changed; try again") from error


def _said(words: str, option: str) -> str:
    if not words.strip() or len(words) > WORDS_LENGTH_MAX:
        raise UsageError(f"{option}= is a text of 1 to {WORDS_LENGTH_MAX} characters: it is kept in the trail")
    return words.strip()
