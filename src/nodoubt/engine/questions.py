"""Questions: what the journal, or a receipt, knows of a transaction. Nothing here changes anything.

Guarantees: an outcome that is told here was read plainly, so it is for people to see, and never acted on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeVar

from ..errors import (
    JournalUnavailable,
    NoDoubtError,
    ResourceRefused,
    ResourceUnavailable,
    UnknownTransaction,
    UnreadableRecord,
    UsageError,
)
from ..ports import START, Known, Listed, Prepared, Refused, Session, Spot, Unclear, readable
from ..protocol.records import Call, Mode, Quarantined, Staging, Standing, Unreadable, Verdict
from ..protocol.recovery import STALE
from ..script import Pause, Script
from ..xid import Xid, is_attempt
from .apart import Apart, split
from .context import Context, Participant, asked, backoff, check_number, told

R = TypeVar("R")
PAGE_MAX = 500
CLEANED_UP, MANUAL = "cleaned_up", "requires_manual_intervention"


class State(StrEnum):
    """Where a transaction stands, in words for people."""

    BEGINNING = "beginning"
    PREPARED = "prepared"
    COMMITTED = "committed"
    ABORTED = "aborted"
    UNREADABLE = "unreadable"  # a row of it cannot be read, so nobody can say


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
    unreadable: tuple[Unreadable, ...] = ()  # rows of it that cannot be read

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
        why = f"the journal cannot be asked, and nothing was changed; try again once this is mended: {error}"
        raise JournalUnavailable(why) from error
    except Unclear as error:
        done = "whether anything was changed is not known: look, or say it again" if changes else "nothing was changed"
        raise JournalUnavailable(f"the journal gave no answer, and {done}: {error}") from error


def find(ctx: Context, name: str) -> Script[Staging | None]:
    """Raises `UnreadableRecord`."""

    def body(session: Session) -> Script[Staging | Unreadable | None]:
        return ctx.journal.find(session, name)

    return readable((yield from ask(ctx, body)))


def known(ctx: Context, name: str) -> Script[tuple[Staging | None, Standing | None, bool]]:
    """The name's row, the decision that is seen, and whether X is surely prepared (False: ask for it).

    Raises `UnreadableRecord`.
    """
    staging, standing, listed = yield from _known(ctx, name)
    return readable(staging), readable(standing), listed


def _known(ctx: Context, name: str) -> Script[Known | tuple[None, None, bool]]:
    at = next((one for one in ctx.participants.values() if one.holds_journal), None)
    # Not `format`: the journal fills in what is its own.
    listed_sql = "" if at is None else at.resource.traits.listed_sql.replace("{cluster}", ctx.cluster)

    def body(session: Session) -> Script[Known | None]:
        return ctx.journal.known(session, name, listed_sql=listed_sql)

    return (yield from ask(ctx, body)) or (None, None, False)


def look(ctx: Context, attempts: Sequence[str]) -> Script[dict[str, Standing | Unreadable]]:
    def body(session: Session) -> Script[dict[str, Standing | Unreadable]]:
        return ctx.journal.look(session, attempts)

    return (yield from ask(ctx, body))


def decided(ctx: Context, attempt: str) -> Script[Standing | None]:
    """As `look`. Raises `UnreadableRecord`."""
    return readable((yield from look(ctx, [attempt])).get(attempt))


def calls(ctx: Context, attempt: str) -> Script[list[Call]]:
    """All its calls, by number. Raises `UnreadableRecord`."""
    return [readable(one) for one in (yield from _calls(ctx, attempt))]


def _calls(ctx: Context, attempt: str) -> Script[list[Call | Unreadable]]:
    if not is_attempt(attempt):
        return []

    def body(session: Session) -> Script[list[Call | Unreadable]]:
        return ctx.journal.calls(session, [attempt])

    return (yield from ask(ctx, body))


def unreadable(ctx: Context, *, old: bool = False) -> Script[list[Unreadable]]:
    """The rows of the journal that cannot be read, of all that is not over and of all below the floor, or `old`: of the
    latter alone. It is looked through page by page, each with its own time to answer.
    """
    apart: Apart = {}
    spot: Spot | None = START
    while spot is not None:

        def page(session: Session, spot: Spot = spot) -> Script[tuple[list[Unreadable], Spot | None]]:
            return ctx.journal.unreadable(session, spot, old=old)

        found, spot = yield from ask(ctx, page)
        split(found, apart)
    return list(apart.values())


def quarantined(ctx: Context) -> Script[list[Quarantined]]:
    """What recovery must not resolve, and no operator has cleared. An entry that cannot be read says that of itself."""
    found = yield from ask(ctx, ctx.journal.quarantined)
    return [_entry(one) if isinstance(one, Unreadable) else one for one in found]


def _entry(one: Unreadable) -> Quarantined:
    return Quarantined(one.printable, -1 if one.number is None else one.number, one.name, f"this entry {one.why}")


def status(ctx: Context, name: str) -> Script[TransactionRecord]:
    """What is known of a staged name, or of any attempt id. Raises `UnknownTransaction`.

    An attempt that wrote to one database only has no record in the journal: there its receipt is asked for.
    """
    staging, standing, _ = yield from _known(ctx, name)
    if staging is None and is_attempt(name):
        standing = (yield from look(ctx, [name])).get(name)
    if staging is None and standing is None:
        return (yield from _by_receipt(ctx, name))
    attempt = name if staging is None else staging.attempt
    why = yield from _need_a_human(ctx)
    apart: Apart = {}
    split((yield from _calls(ctx, attempt)), apart)
    record = _with(_record(staging, standing, why), apart)
    if isinstance(staging, Staging) and standing is None and not (yield from _last_is_listed(ctx, staging)):
        return replace(record, state=State.BEGINNING)
    return record


def _need_a_human(ctx: Context) -> Script[dict[str, str]]:
    """By attempt: what recovery has quarantined, and which compensations are parked."""
    apart: Apart = {}
    parked = split((yield from ask(ctx, ctx.journal.parked_calls)), apart)
    why = {call.attempt: f"the compensation {call.undo} of {call.step} is parked: {call.error}" for call in parked}
    why |= {entry.attempt: entry.why for entry in split((yield from ask(ctx, ctx.journal.quarantined)), apart)}
    return why | _apart_of(apart.values())


def _apart_of(found: Iterable[object]) -> dict[str, str]:
    return {one.attempt: f"{one.which} {one.why}" for one in found if isinstance(one, Unreadable)}


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
    """The directory of names, newest first. Those that cannot be read are listed with whatever state is asked for; they
    count if it is theirs.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise UsageError(f"a limit is a whole number above zero, not {limit!r}")
    if older_than_s is not None:
        older_than_s = check_number("older_than", older_than_s)
    why = yield from _need_a_human(ctx)
    size = min(limit, PAGE_MAX) if state is None and older_than_s is None else PAGE_MAX
    found: list[TransactionRecord] = []
    left, after = limit, ""
    while True:

        def page(session: Session, after: str = after) -> Script[list[Listed]]:
            return ctx.journal.list_staged(session, after, size)

        rows = yield from ask(ctx, page)
        beside = yield from _beside(ctx, [one.attempt for one, _ in rows])
        for staging, standing in rows:
            record = _with(_record(staging, standing, why), beside.get(staging.attempt, {}))
            begun = record.created_at
            young = older_than_s is not None and begun is not None and begun > ctx.clock.now() - older_than_s
            asked_for = state in (None, record.state, record.status)
            if not young and (asked_for or record.state is State.UNREADABLE):
                found.append(record)
                left -= asked_for
            if left == 0:
                return found
        if len(rows) < size:
            return found
        after = rows[-1][0].attempt


def _beside(ctx: Context, attempts: Sequence[str]) -> Script[dict[str, Apart]]:
    """What cannot be read of these attempts beside their decisions: names, steps, answers."""
    apart: dict[str, Apart] = {}

    def body(session: Session) -> Script[list[Unreadable]]:
        return ctx.journal.unreadable_of(session, [one for one in attempts if is_attempt(one)])

    for one in (yield from ask(ctx, body)):
        apart.setdefault(one.attempt, {})[one.key] = one
    return apart


def _with(record: TransactionRecord, apart: Apart) -> TransactionRecord:
    if not apart:
        return record
    every_one = tuple(({one.key: one for one in record.unreadable} | apart).values())
    why = record.heuristic or "; ".join(f"{one.which} {one.why}" for one in every_one)
    return replace(record, heuristic=why, unreadable=every_one)


def _record(
    staging: Staging | Unreadable | None, standing: Standing | Unreadable | None, why: dict[str, str]
) -> TransactionRecord:
    if isinstance(staging, Unreadable) or isinstance(standing, Unreadable):
        return _unreadable(staging, standing)
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


def _unreadable(staging: Staging | Unreadable | None, standing: Standing | Unreadable | None) -> TransactionRecord:
    """With what its rows say all the same: who it is. How it stands, nobody knows."""
    apart = [one for one in (staging, standing) if isinstance(one, Unreadable)]
    name = next((one.name for one in (staging, *apart) if one is not None and one.name), "")
    told = staging if isinstance(staging, Staging) else None
    return TransactionRecord(
        name,
        apart[0].printable,
        "" if told is None else Mode.STAGED,
        State.UNREADABLE,
        () if told is None else tuple(ref.resource for ref in told.branches),
        complete=False,
        created_at=None if told is None else told.created_at,
        deadline=None if told is None else told.deadline,
        owner="" if told is None else told.owner,
        heuristic="; ".join(f"{one.which} {one.why}" for one in apart),
        unreadable=tuple(apart),
    )


def wait_until(
    ctx: Context, name: str, timeout_s: float | None, done: Callable[[TransactionRecord], bool]
) -> Script[TransactionRecord]:
    """Ask until `done`, or raise `TimeoutError` after `timeout_s`; the transaction goes on either way.

    Raises `UnreadableRecord`: how it stands, nobody can say, however long they wait.
    """
    until = None if timeout_s is None else ctx.clock.elapsed() + check_number("a timeout", timeout_s)
    for pause_s in backoff():
        record = yield from status(ctx, name)
        if record.state is State.UNREADABLE:
            raise UnreadableRecord(f"{name!r}: {record.heuristic}. Nothing was changed")
        if done(record):
            return record
        if until is not None and ctx.clock.elapsed() + pause_s > until:
            raise TimeoutError(f"{name!r} is {record.state.value} after {timeout_s:g} s; it goes on")
        yield Pause(pause_s)
    raise AssertionError("backoff does not end")
