"""Questions: what the journal, or a receipt, knows of a transaction. Nothing here changes anything.

Guarantees: an outcome that is told here was read plainly, so it is for people to see, and never acted on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeVar

from ..errors import JournalUnavailable, NoDoubtError, ResourceRefused, ResourceUnavailable, UnknownTransaction
from ..ports import Known, Prepared, Refused, Session, Unclear
from ..protocol.records import Mode, Staging, Standing, Verdict
from ..protocol.recovery import STALE
from ..script import Pause, Script
from ..xid import Xid, is_attempt
from .context import Context, Participant, asked, backoff, told

R = TypeVar("R")
PAGE_MAX = 500
CLEANED_UP, MANUAL = "cleaned_up", "requires_manual_intervention"


class State(StrEnum):
    """Where a transaction stands, in words for people."""

    BEGINNING = "beginning"
    PREPARED = "prepared"
    COMMITTED = "committed"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class TransactionRecord:
    """What the journal knows of a transaction. Times are seconds since the epoch, None where not (yet) known."""

    name: str
    attempt: str
    mode: str
    state: State
    branches: tuple[str, ...]  # the resources that wrote
    complete: bool
    created_at: float | None = None
    deadline: float | None = None
    decided_at: float | None = None
    reason: str = ""
    owner: str = ""
    metadata: tuple[tuple[str, str], ...] = ()
    heuristic: str = ""  # why a human must look, if one must: a quarantined branch, a parked compensation

    @property
    def status(self) -> str:
        """As `state`, in two words more: `cleaned_up` by the reaper, `requires_manual_intervention`."""
        if self.heuristic:
            return MANUAL
        return CLEANED_UP if self.state is State.ABORTED and STALE in self.reason else self.state.value


def ask(ctx: Context, body: Callable[[Session], Script[R]], *, changes: bool = False) -> Script[R]:
    """Ask the journal, for somebody who must be told in plain words when it does not answer: `JournalUnavailable`."""
    try:
        return (yield from (asked if changes else told)(ctx, ctx.journal_pool, body))
    except Refused as error:
        if not error.retry:
            raise ResourceRefused(f"the journal's database refuses, and nothing was changed: {error}") from error
        raise JournalUnavailable(f"the journal is busy, and nothing was changed; try again: {error}") from error
    except ResourceUnavailable as error:
        why = f"the journal cannot be asked now, and nothing was changed; try again: {error}"
        raise JournalUnavailable(why) from error
    except Unclear as error:
        done = "whether anything was changed is not known: look, or say it again" if changes else "nothing was changed"
        raise JournalUnavailable(f"the journal gave no answer, and {done}: {error}") from error


def find(ctx: Context, name: str) -> Script[Staging | None]:
    def body(session: Session) -> Script[Staging | None]:
        return ctx.journal.find(session, name)

    return (yield from ask(ctx, body))


def known(ctx: Context, name: str) -> Script[tuple[Staging | None, Standing | None, bool]]:
    """The name's row, the decision that is seen, and whether X is surely prepared (False: ask for it)."""
    at = next((one for one in ctx.participants.values() if one.holds_journal), None)
    # Not `format`: the journal fills in what is its own.
    listed_sql = "" if at is None else at.resource.traits.listed_sql.replace("{cluster}", ctx.cluster)

    def body(session: Session) -> Script[Known | None]:
        return ctx.journal.known(session, name, listed_sql=listed_sql)

    return (yield from ask(ctx, body)) or (None, None, False)


def look(ctx: Context, attempts: Sequence[str]) -> Script[dict[str, Standing]]:
    def body(session: Session) -> Script[dict[str, Standing]]:
        return ctx.journal.look(session, attempts)

    return (yield from ask(ctx, body))


def status(ctx: Context, name: str) -> Script[TransactionRecord]:
    """What is known of a staged name, or of any attempt id. Raises `UnknownTransaction`.

    An attempt that wrote to one database only has no record in the journal: there its receipt is asked for.
    """
    staging, standing, _ = yield from known(ctx, name)
    if staging is None and is_attempt(name):
        standing = (yield from look(ctx, [name])).get(name)
    if staging is None and standing is None:
        return (yield from _by_receipt(ctx, name))
    record = _record(staging, standing, (yield from _need_a_human(ctx)))
    if staging is not None and standing is None and not (yield from _last_is_listed(ctx, staging)):
        return replace(record, state=State.BEGINNING)
    return record


def _need_a_human(ctx: Context) -> Script[dict[str, str]]:
    """By attempt: what recovery has quarantined, and which compensations are parked."""
    parked = yield from ask(ctx, ctx.journal.parked_calls)
    why = {call.attempt: f"the compensation {call.undo} of {call.step} is parked: {call.error}" for call in parked}
    entries = yield from ask(ctx, ctx.journal.quarantined)
    return why | {entry.attempt: entry.why for entry in entries}


def _by_receipt(ctx: Context, attempt: str) -> Script[TransactionRecord]:
    if is_attempt(attempt):
        silent: NoDoubtError | None = None
        for participant in ctx.participants.values():
            for number in range(len(ctx.participants)):
                try:
                    found = yield from _has_receipt(ctx, participant, Xid(ctx.cluster, attempt, number))
                except NoDoubtError as error:
                    silent = error
                    break
                if found:
                    names = (participant.name,)
                    return TransactionRecord("", attempt, Mode.ONCE, State.COMMITTED, names, complete=True)
        if silent is not None:
            raise ResourceUnavailable(
                f"not every database says whether {attempt} committed there: {silent}"
            ) from silent
    raise UnknownTransaction(attempt)


def _has_receipt(ctx: Context, participant: Participant, xid: Xid) -> Script[bool]:
    def body(session: Session) -> Script[bool]:
        return participant.resource.receipt(session, xid)

    return told(ctx, participant.reserve, body)


def _last_is_listed(ctx: Context, staging: Staging) -> Script[bool]:
    """Whether its last branch is prepared; True also where that cannot be found out."""
    ref = next((ref for ref in staging.branches if ref.number == staging.last), None)
    participant = None if ref is None else ctx.by_id(ref.resource_id)
    if ref is None or participant is None:
        return True

    xid = Xid(ctx.cluster, staging.attempt, ref.number)

    def body(session: Session) -> Script[tuple[Prepared, ...]]:
        return participant.resource.prepared(session, ctx.cluster, xid)

    try:
        return bool((yield from told(ctx, participant.reserve, body)))
    except NoDoubtError:
        return True


def listing(
    ctx: Context, *, state: State | str | None, older_than_s: float | None, limit: int
) -> Script[list[TransactionRecord]]:
    """The directory of names, newest first."""
    why = yield from _need_a_human(ctx)
    found: list[TransactionRecord] = []
    after = ""
    while True:

        def page(session: Session, after: str = after) -> Script[list[tuple[Staging, Standing | None]]]:
            return ctx.journal.list_staged(session, after, PAGE_MAX)

        rows = yield from ask(ctx, page)
        for staging, standing in rows:
            record = _record(staging, standing, why)
            young = older_than_s is not None and staging.created_at > ctx.clock.now() - older_than_s
            if state in (None, record.state, record.status) and not young:
                found.append(record)
            if len(found) >= limit:
                return found
        if len(rows) < PAGE_MAX:
            return found
        after = rows[-1][0].attempt


def _record(staging: Staging | None, standing: Standing | None, why: dict[str, str]) -> TransactionRecord:
    decision = None if standing is None else standing.decision
    known: Any = staging or decision
    state = State.PREPARED
    if decision is not None:
        state = State.COMMITTED if decision.verdict is Verdict.COMMIT else State.ABORTED
    return TransactionRecord(
        known.name,
        known.attempt,
        Mode.STAGED if staging is not None else decision.mode if decision is not None else Mode.ONCE,
        state,
        tuple(ref.resource for ref in known.branches),
        standing is not None and (standing.ended or state is State.ABORTED),
        created_at=None if staging is None else staging.created_at,
        deadline=None if staging is None else staging.deadline,
        decided_at=None if decision is None else decision.decided_at,
        reason="" if decision is None else decision.reason,
        owner=known.owner,
        metadata=() if staging is None else tuple(sorted(staging.metadata.items())),
        heuristic=why.get(known.attempt, ""),
    )


def wait_until(
    ctx: Context, name: str, timeout_s: float | None, done: Callable[[TransactionRecord], bool]
) -> Script[TransactionRecord]:
    """Ask until `done`, or raise `TimeoutError` after `timeout_s`; the transaction goes on either way."""
    until = None if timeout_s is None else ctx.clock.elapsed() + timeout_s
    for pause_s in backoff():
        record = yield from status(ctx, name)
        if done(record):
            return record
        if until is not None and ctx.clock.elapsed() + pause_s > until:
            raise TimeoutError(f"{name!r} is {record.state.value} after {timeout_s:g} s; it goes on")
        yield Pause(pause_s)
    raise AssertionError("backoff does not end")
