"""Calling a step: its intent, forced; a last look whether the attempt is still open; the action; its end, forced.

Guarantees (I19): no action starts without its intent on disk, none in an attempt of which a decision is seen after
that, and none that was called before under the same key, unless its function declares that it may be repeated. What
nobody knows to have happened dooms the transaction: it can only be rolled back, and then the step is undone.

What is left: between the last look and the action's first byte a process can stall. `StepContext.require_wanted` and
the key are for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..engine import questions, recent
from ..engine.attempt import Attempt, left_s
from ..engine.context import Context, check_seconds, log
from ..errors import (
    BranchDoomed,
    InDoubt,
    InvalidName,
    JournalUnavailable,
    NoDoubtError,
    OutcomeConflict,
    ResourceRefused,
    ResourceUnavailable,
    StepInFlight,
    StepRefused,
    StepTimedOut,
    TransactionAborted,
    TransactionDoomed,
    UnknownTransaction,
    UsageError,
    text_of,
)
from ..ports import BelowFloor, Conflict, Refused, Unclear
from ..protocol.compensation import Answered, Declined, Event, NotPossible, Overtaken, Renewed, Unanswered, pause_s
from ..protocol.records import ANSWERED, Call, CallState, Standing, Verdict
from ..script import Pause, Script
from ..xid import check_name
from . import ledger, running
from .encoding import Bound, bind, decoded_result, encoded_result, require_result
from .registry import STEP_TRIES_MAX, Compensation, IdempotencyKey, Step, StepContext
from .running import Job, Runner

INTENT_TRIES_MAX = 5  # numbers that somebody else takes before us, or answers that are lost
CALLS_MAX = 1000  # of one transaction

# What says of itself that nothing was done. Not `KeyInFlight`: whoever has the key may do it yet.
NOTHING_DONE = (TransactionAborted, UsageError, ResourceRefused, ResourceUnavailable, JournalUnavailable)
# What may have happened, or be at work yet: only a step that is idempotent is called again after it.
NEVER_REPEATED = (running.GaveNoAnswer, running.Broke, StepTimedOut, InDoubt)


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a step, checked. Nothing has been done yet."""

    bound: Bound
    key: str
    timeout_s: float | None


def use(
    step: Step[..., Any, Any],
    args: Sequence[Any],
    named: Mapping[str, Any],
    *,
    undo: Compensation[..., Any] | None,
    timeout_s: float | None,
    key: str | None,
) -> Use:
    """Check everything that can be checked here. Raises `UsageError`."""
    _require_declared(Step.kind, step, isinstance(step, Step))
    _require_declared(Compensation.kind, undo, undo is None or isinstance(undo, Compensation))
    if timeout_s is not None:
        check_seconds("a timeout", timeout_s)
    try:
        key = step.name if key is None else check_name(key)
    except InvalidName as error:
        raise UsageError(f"key= is what the call is known by in its transaction: {error}") from error
    bound = bind(step, undo, args, named)
    require_result(step)
    return Use(bound, key, timeout_s)


def _require_declared(kind: str, function: object, is_one: bool) -> None:
    if not is_one:
        name = getattr(function, "__qualname__", repr(function))
        raise UsageError(
            f"{name} is not declared: write @nodoubt.{kind} above it, so that whoever comes after a crash finds it"
        )


@dataclass(slots=True)
class _Site:
    """Where a step is called: in which attempt, for how long; whether it has come to the action; whether that is
    recorded as refused; and whether an earlier try of it, by whomever, may have happened: then a refusal does not say
    that nothing did.
    """

    attempt: str
    name: str
    within_s: float
    number: int
    acted: bool = False
    declined: bool = False
    uncertain: bool = False


def call(ctx: Context, attempt: Attempt, runner: Runner, use: Use) -> Script[Any]:
    """Call it inside of a block, and return what it returns; an error of its own comes out unchanged.

    Raises `StepTimedOut`, `StepInDoubt` (as `StepInFlight` or `TransactionDoomed`), `StepRefused`, `TransactionAborted`
    (somebody ended it meanwhile: the step was not begun), `BranchDoomed`, `JournalUnavailable` (it was not begun),
    `UsageError`.
    """
    within_s = min(_timeout_s(ctx, use), left_s(ctx, attempt))
    attempt.require_ours()
    with attempt.lock:
        attempt.require_open()
        if attempt.doomed is not None:
            raise BranchDoomed(
                "an earlier step gave no answer, so this transaction can only be rolled back: "
                f"{text_of(attempt.doomed)}"
            ) from attempt.doomed
        _require_journal_free(attempt)
        # Counted before anything is awaited or written: from now on only the register may end this attempt.
        site = _Site(attempt.id, attempt.name, within_s, attempt.calls)
        attempt.calls += 1
        attempt.calling += 1
    ctx.holding.add(attempt.id)
    try:
        value = yield from _call(ctx, runner, use, site)
        if attempt.closed:
            raise TransactionAborted(
                f"the block of {attempt.name or attempt.id!r} ended while {use.bound.step.name} was under way, so it "
                "was rolled back; the step is being undone",
                name=attempt.name,
                attempt=attempt.id,
            )
        return value
    except BaseException as error:
        if not _harmless(site, error):
            attempt.doomed = attempt.doomed or error
        raise
    finally:
        with attempt.lock:
            attempt.calling -= 1


def _harmless(site: _Site, error: BaseException) -> bool:
    """Whether the transaction may go on after it: surely nothing happened, and nothing is in doubt."""
    if site.acted:
        return site.declined
    return isinstance(error, (UsageError, StepRefused)) and not site.uncertain


def call_named(ctx: Context, name: str, attempt: str | None, runner: Runner, use: Use) -> Script[Any]:
    """Call it in a staged transaction, by name, from any process. Called again under its key, it returns what it did.

    Raises as `call`; `UnknownTransaction`, `OutcomeConflict` (it is committed already).
    """
    staging = yield from questions.find(ctx, attempt or name)
    if staging is None or staging.name != name:
        raise UnknownTransaction(name)
    recent.forget(ctx, name)  # its commit waits for the step, so it will have to ask
    return (yield from _call(ctx, runner, use, _Site(staging.attempt, name, _timeout_s(ctx, use), staging.calls)))


def _timeout_s(ctx: Context, use: Use) -> float:
    return use.timeout_s or use.bound.step.options.timeout_s or ctx.settings.step_s


def _require_journal_free(attempt: Attempt) -> None:
    for branch in attempt.branches.values():
        at = branch.participant
        if at.holds_journal and at.resource.traits.locks_all and branch.session is not None:
            raise UsageError(
                f"this transaction has locked {at.name}, the file in which the step's intent must be written first: "
                "call the step before the first statement there, or between begin_distributed and commit_distributed, "
                'or give the journal a file of its own, journal="sqlite:///…"'
            )


def _call(ctx: Context, runner: Runner, use: Use, site: _Site) -> Script[Any]:
    began = ctx.clock.elapsed()
    ctx.notice("S1", site.attempt, "calling", step=use.bound.step.name)
    record, known = yield from _intend(ctx, use, site)
    if known:
        again = yield from _called_before(ctx, use, site, record)
        if again is None:
            return decoded_result(use.bound.step, record.result)
        record, site.uncertain = again, True
    ctx.notice("S2", site.attempt, "intended", step=use.bound.step.name, number=record.number)
    record = yield from _still_open(ctx, site, record, began)
    return (yield from _act(ctx, runner, use, site, record))


# ---- the intent -----------------------------------------------------------------------------------


def _intend(ctx: Context, use: Use, site: _Site) -> Script[tuple[Call, bool]]:
    """The call as it is written now, and whether it was called before."""
    refused: Refused | Unclear | None = None
    number, at = site.number, (yield from ledger.now(ctx))
    # By their clocks and names alone two who call the same at once could both take it for theirs.
    mine = ctx.ids.mark()
    for _ in range(INTENT_TRIES_MAX):
        if number >= CALLS_MAX:
            raise UsageError(f"a transaction calls at most {CALLS_MAX} steps")
        record = Call(
            site.attempt,
            number,
            use.key,
            use.bound.step.name,
            "" if use.bound.undo is None else use.bound.undo.name,
            use.bound.arguments,
            until=at + site.within_s + ctx.settings.grace_s,
            claim=mine,
            worker=ctx.owner,
            begun_at=at,
            changed_at=at,
        )
        try:
            yield from ledger.intend(ctx, record)
            return record, False
        except (Conflict, Unclear) as error:
            refused = error
        except BelowFloor as error:
            raise _too_late(site, "it is older than what the journal remembers") from error
        except NoDoubtError as error:
            raise JournalUnavailable(
                f"the journal did not take the intent of {use.bound.step.name}, so it was not begun: {error}"
            ) from error
        others = yield from ledger.calls_of(ctx, site.attempt)
        same = next((one for one in others if one.key == use.key), None)
        if same is not None and ledger.same(same, record):
            # Ours, and its answer was lost. It is seen, which is not yet flushed: written once more, it is.
            return (yield from _renewed(ctx, site, record)), False
        if same is not None:
            return same, True
        standing = yield from ledger.decided(ctx, site.attempt)
        if standing is not None:
            raise _ended(site, standing)
        if isinstance(refused, Conflict):
            number = max((one.number for one in others), default=-1) + 1
    raise JournalUnavailable(
        f"the journal took no intent of {use.bound.step.name} in {INTENT_TRIES_MAX} tries; it was not begun: {refused}"
    )


def _called_before(ctx: Context, use: Use, site: _Site, known: Call) -> Script[Call | None]:
    """None: it was done, and is not done again. Else the call, ours to repeat."""
    step = use.bound.step
    undo = "" if use.bound.undo is None else use.bound.undo.name
    if (known.step, known.undo, known.arguments) != (step.name, undo, use.bound.arguments):
        raise UsageError(
            f"{known.step} was called in {site.name or site.attempt!r} under the key {use.key!r} already, and not with "
            "the same arguments: give each call of a transaction a key of its own, key=…"
        )
    if known.state in ANSWERED:
        known = yield from ledger.confirm(ctx, known)  # what is told is on disk first
    standing = yield from ledger.decided(ctx, site.attempt)
    aborted = standing is not None and standing.decision.verdict is Verdict.ABORT
    if known.state is CallState.DONE and not aborted:
        return None
    if standing is not None:
        raise _ended(site, standing)
    if known.state is CallState.REFUSED:
        raise StepRefused(
            f"{step.name} was refused under the key {use.key!r}, and nothing happened: {known.error}. To try again, "
            "give the call another key, key=…"
        )
    if not step.options.idempotent:
        raise TransactionDoomed(
            f"{step.name} was called under the key {use.key!r} before, by {known.worker}, and nobody knows whether it "
            "happened. It is not declared idempotent, so it is not repeated: roll the transaction back, which undoes it"
        )
    at = yield from ledger.now(ctx)
    if known.state is CallState.BEGUN and at < known.until:
        raise StepInFlight(
            f"{step.name} is under way under the key {use.key!r}, by {known.worker}. Nothing was done here: call it "
            "again with the same key. Its result is returned once there is one; if there is none in "
            f"{known.until - at:.0f} s, it is repeated"
        )
    return (yield from _renewed(ctx, site, known))


def _still_open(ctx: Context, site: _Site, record: Call, began: float) -> Script[Call]:
    """The fence: whoever aborts writes the decision and then looks for calls; we wrote the call, and look for it."""
    while True:
        standing = yield from ledger.decided(ctx, site.attempt)
        if standing is not None:
            yield from _recorded_quietly(ctx, record, Overtaken("its transaction had been decided before it acted"))
            raise _ended(site, standing)
        if ctx.clock.elapsed() - began < ctx.settings.grace_s:
            return record
        # Stopped for so long, we may have been taken for dead, and our intent be undone already.
        began = ctx.clock.elapsed()
        record = yield from _renewed(ctx, site, record)


def _renewed(ctx: Context, site: _Site, record: Call) -> Script[Call]:
    until = (yield from ledger.now(ctx)) + site.within_s + ctx.settings.grace_s
    try:
        return (yield from ledger.change(ctx, record, Renewed(until)))
    except NotPossible as error:
        raise _too_late(site, f"whoever took it for dead has begun to undo it ({error})") from error


def _ended(site: _Site, standing: Standing) -> NoDoubtError:
    if standing.decision.verdict is Verdict.COMMIT:
        return OutcomeConflict(site.name or site.attempt, stands="committed")
    return _too_late(site, standing.decision.reason or "it was decided to abort")


def _too_late(site: _Site, why: str) -> TransactionAborted:
    return TransactionAborted(
        f"{site.name or site.attempt!r} was aborted meanwhile, so the step was not begun: {why}",
        name=site.name,
        attempt=site.attempt,
    )


# ---- the action -----------------------------------------------------------------------------------


def _act(ctx: Context, runner: Runner, use: Use, site: _Site, record: Call) -> Script[Any]:
    step = use.bound.step
    tries_max = step.options.tries_max or STEP_TRIES_MAX
    site.acted, tries = True, 0
    while True:
        tries += 1
        job = Job(step, use.bound.values, _context(site, record, tries), site.within_s)
        try:
            value = yield from running.run(runner, job)
            break
        except Exception as error:
            if isinstance(error, step.options.refused) and not leaves_open(error):
                yield from _refused(ctx, site, record, error)
                raise
            site.uncertain = True
            silent = isinstance(error, running.GaveNoAnswer)
            named = isinstance(error, step.options.retry_on) and not isinstance(error, NEVER_REPEATED)
            if tries < tries_max and (step.options.idempotent or named):
                log.warning("%s failed and is tried again: %s", step.name, words(error))
                yield Pause(pause_between(ctx, tries))
                try:
                    record = yield from _renewed(ctx, site, record)
                except JournalUnavailable as trouble:
                    raise _unrecorded(record, trouble) from error
                continue
            yield from _recorded_quietly(ctx, record, Unanswered(words(error)))
            if silent:
                raise StepTimedOut(
                    f"{error}: it may have happened, or happen yet. The transaction can only be rolled back, and then "
                    "its compensation runs"
                ) from error
            raise
    ctx.notice("S3", site.attempt, "answered", step=step.name)
    try:
        result = encoded_result(value)
    except UsageError as error:
        yield from _recorded_quietly(ctx, record, Unanswered(f"it was done, but {error}"))
        raise
    yield from _recorded(ctx, site, record, Answered(result))
    ctx.notice("S4", site.attempt, "recorded", step=step.name)
    return value


def leaves_open(error: BaseException) -> bool:
    """Whether it is one of nodoubt's own that does not itself say that nothing was done: silence is no refusal (I19).

    However broad a `refused=` is, it does not cover that.
    """
    if isinstance(error, BaseExceptionGroup):
        return any(leaves_open(one) for one in error.exceptions)
    return isinstance(error, NoDoubtError) and not isinstance(error, NOTHING_DONE)


def _refused(ctx: Context, site: _Site, record: Call, error: Exception) -> Script[None]:
    if site.uncertain:
        yield from _recorded_quietly(ctx, record, Unanswered(words(error)))
        raise TransactionDoomed(
            f"{record.step} was refused, but an earlier try of it gave no answer and may have happened. The "
            "transaction can only be rolled back, and then its compensation runs"
        ) from error
    yield from _recorded(ctx, site, record, Declined(words(error)))
    site.declined = True


def pause_between(ctx: Context, tries: int) -> float:
    """After so many tries, with jitter."""
    first_s, most_s = ctx.settings.retry_first_s, ctx.settings.retry_most_s
    return pause_s(tries, first_s=first_s, most_s=most_s, jitter=ctx.chance())


def _context(site: _Site, record: Call, tries: int) -> StepContext:
    key = IdempotencyKey(f"{record.attempt}.{record.number}")
    return StepContext(key, key, record.attempt, site.name, record.number, tries)


def words(error: BaseException) -> str:
    return f"{type(error).__name__}: {text_of(error)}"


def _recorded(ctx: Context, site: _Site, record: Call, event: Event) -> Script[None]:
    """The end of the action stands in the journal, or the caller is told that its transaction is lost."""
    try:
        # Whoever has renewed the call since acts as well: then a refusal of ours does not say that nothing happened.
        otherwise = Unanswered(event.why) if isinstance(event, Declined) else None
        try:
            state = (yield from ledger.change(ctx, record, event, if_renewed=otherwise)).state
        except NotPossible as error:
            # Somebody else has recorded it, or undoes it; what is told of it is on disk first.
            state = (yield from ledger.confirm(ctx, error.call)).state
    except JournalUnavailable as error:
        site.uncertain = True
        raise _unrecorded(record, error) from error
    if state is CallState.DOUBT:
        site.uncertain = True
        raise TransactionDoomed(
            f"{record.step} was called by somebody else at the same time, and nobody knows whether it happened: roll "
            "the transaction back, which undoes it"
        )
    if state not in ANSWERED:
        log.warning(
            "%s #%d of %s was answered after its transaction had been aborted: it is %s",
            record.step, record.number, record.attempt, state.value,
        )  # fmt: skip
        raise TransactionAborted(
            f"{site.name or site.attempt!r} was aborted while {record.step} was under way; it is being undone",
            name=site.name,
            attempt=site.attempt,
        )


def _unrecorded(record: Call, error: JournalUnavailable) -> TransactionDoomed:
    return TransactionDoomed(
        f"{record.step} was called, and what came of it could not be recorded. The transaction can only be rolled "
        f"back, and then its compensation runs: {error}"
    )


def _recorded_quietly(ctx: Context, record: Call, event: Event) -> Script[None]:
    """For an end that is told anyway, and that whoever undoes it need not know."""
    try:
        yield from ledger.change(ctx, record, event)
    except (NoDoubtError, NotPossible) as error:
        log.warning("%s #%d of %s: %s", record.step, record.number, record.attempt, error)
