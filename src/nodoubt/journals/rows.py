"""Between records and rows: which columns there are, how a record is written into them and read back.

Guarantees: what is read back equals what was written, whichever driver brings it (text as str or bytes, numbers as
numbers or text); the order of the columns is stated once.

Must not: do I/O.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from ..errors import UnreadableRecord
from ..ports import Identity
from ..protocol.records import (
    ANSWERED,
    BranchRef,
    Call,
    CallState,
    Confirmation,
    Decision,
    Event,
    Mode,
    Quarantined,
    Readiness,
    Staging,
    Standing,
    Unreadable,
    Verdict,
)
from ..xid import BRANCHES_MAX, is_attempt
from .dialects import Dialect

Row = Sequence[Any]
_BYTES = (bytes, bytearray, memoryview)
R = TypeVar("R")
WHY_LENGTH_MAX = 300  # of what is wrong with a row that cannot be read

# What Python's conversions and msgspec raise for what we have not written; the last one for JSON of a great depth.
UNREADABLE = (ValueError, TypeError, LookupError, OverflowError, msgspec.MsgspecError, RecursionError)
CHANGES_MAX = 1_000_000_000  # counted before it begins anew: any column holds that
TIME_END = 253402300800.0  # the year 10000: no clock of people's shows it
DECISION = ("attempt", "verdict", "mode", "name", "branches", "point", "owner", "reason", "decided_at")
STAGING = (
    "attempt", "name", "branches", "last_branch", "deadline", "owner", "metadata", "created_at", "begin_by",
    "confirmations", "calls",
)  # fmt: skip
QUARANTINED = ("attempt", "branch", "resource", "why", "since", "cleared_by")
EVENT = ("attempt", "at", "what", "detail")
FLOOR = ("value", "item")
RESOURCE = ("resource_id", "name", "cluster", "server", "epoch")
CONFIRMATION = ("attempt", "who", "answer", "why", "at")
CALL = (
    "attempt", "number", "call_key", "step", "compensation", "arguments", "state", "result", "error", "tries",
    "held_until", "claim", "worker", "begun_at", "changed_at", "version",
)  # fmt: skip


def columns(names: Sequence[str], table: str = "") -> str:
    """The list after INSERT INTO."""
    return ", ".join(f"{table}{name}" for name in names)


def select(dialect: Dialect, names: Sequence[str], table: str = "") -> str:
    """The list after SELECT: so that what is no text in a column fails where the row is read, and not in a driver."""
    return ", ".join(dialect.reading(f"{table}{name}", name) for name in names)


def unsure(dialect: Dialect) -> str:
    """Of a decision that no index has and that may be an open COMMIT: nobody knows what it says, or if it has ended."""
    never = f"ended_at < {dialect.seconds(0)} OR ended_at >= {dialect.seconds(TIME_END)}"
    return f"(verdict NOT IN ('commit', 'abort') OR verdict = 'commit' AND ({never}))"


def standing_columns(dialect: Dialect, table: str = "") -> str:
    """What `standing` reads."""
    return f"{select(dialect, DECISION, table)}, {dialect.reading(f'{table}ended_at', 'ended_at')} AS ended"


def changed(column: str) -> str:
    """Another number, whatever stands there: a row that is not changed is not flushed. Round and round, because at the
    greatest number that a column holds one more would fail, and with it the UPDATE of a whole page.
    """
    return f"{column} = CASE WHEN {column} < {CHANGES_MAX} THEN {column} + 1 ELSE 0 END"


def decision_values(dialect: Dialect, decision: Decision) -> dict[str, str]:
    """Literals by column."""
    return {
        "attempt": dialect.attempt(decision.attempt),
        "verdict": f"'{Verdict(decision.verdict).value}'",
        "mode": f"'{Mode(decision.mode).value}'",
        "name": dialect.key(decision.name),
        "branches": _branches(dialect, decision.branches),
        "point": number(decision.point),
        "owner": dialect.free_text(decision.owner),
        "reason": dialect.free_text(decision.reason),
        "decided_at": dialect.seconds(decision.decided_at),
    }


def staging_values(dialect: Dialect, staging: Staging) -> dict[str, str]:
    """Literals by column; but for `undecided`, which is the attempt."""
    return {
        "attempt": dialect.attempt(staging.attempt),
        "name": dialect.key(staging.name),
        "branches": _branches(dialect, staging.branches),
        "last_branch": number(staging.last),
        "deadline": dialect.seconds(staging.deadline),
        "owner": dialect.free_text(staging.owner),
        "metadata": dialect.text(json(staging.metadata)),
        "created_at": dialect.seconds(staging.created_at),
        "begin_by": dialect.seconds(staging.begin_by),
        "confirmations": dialect.text(json(staging.confirmations)),
        "calls": number(staging.calls),
    }


@functools.lru_cache
def _branches(dialect: Dialect, branches: tuple[BranchRef, ...]) -> str:
    """A literal. From transaction to transaction they are the same few."""
    return dialect.text(json(branches))


def call_values(dialect: Dialect, call: Call, attempt: str) -> dict[str, str]:
    """Literals by column, as `decision_values`."""
    return {
        "attempt": attempt,
        "number": number(call.number),
        "call_key": dialect.key(call.key),
        "step": dialect.text(call.step),
        "compensation": dialect.text(call.undo),
        **call_changes(dialect, call),
        "begun_at": dialect.seconds(call.begun_at),
    }


def call_changes(dialect: Dialect, call: Call) -> dict[str, str]:
    """Literals of the columns that change in a call's life."""
    return {
        "arguments": dialect.text(call.arguments),
        "state": f"'{CallState(call.state).value}'",
        "result": dialect.text(call.result),
        "error": dialect.free_text(call.error),
        "tries": number(call.tries),
        "held_until": dialect.seconds(call.until),
        "claim": dialect.key(call.claim),
        "worker": dialect.free_text(call.worker),
        "changed_at": dialect.seconds(call.changed_at),
        "version": number(call.version),
        "unfinished": "NULL" if call.closed else dialect.attempt(call.attempt),
    }


def ready(dialect: Dialect, literal: str) -> str:
    """A condition on an attempt: nobody who was asked is still to confirm, and every step that was called is answered.

    Under the lock of the name's row, which an intent takes too, it stays so until the COMMIT: no answer changes.
    """
    answered = ", ".join(sorted(f"'{state.value}'" for state in ANSWERED))
    return (
        f"NOT EXISTS (SELECT 1 FROM {dialect.table('confirmations')} WHERE attempt = {literal} "
        f"AND answer <> '{Readiness.CONFIRMED.value}') "
        f"AND NOT EXISTS (SELECT 1 FROM {dialect.table('calls')} WHERE attempt = {literal} "
        f"AND state NOT IN ({answered}))"
    )


def plain(dialect: Dialect, literal: str) -> str:
    """A condition likewise: nobody was asked and no step was called, so that nothing can be missing. A look at one row.

    Most of what is staged is so, and should not pay for a look at two tables more, nor for a change of that row. The
    look locks it, as an intent does; if it has to wait for one, it sees what that has written. Nor is a name committed
    whose row is gone: nothing but a decision lets it go.
    """
    nobody = f"calls = 0 AND confirmations = {dialect.text(json(()))}"
    names = f"SELECT {nobody} FROM {dialect.table('names')} WHERE attempt = {literal}{dialect.row_lock}"
    return f"COALESCE(({names}), false)"


def not_cleared(dialect: Dialect, table: str = "") -> str:
    """A condition on what was quarantined: no operator has looked at it."""
    return f"{table}cleared_by = {dialect.nothing}"


def above_floor(dialect: Dialect, attempt: str, *, undecided: bool = False) -> str:
    """An expression: the attempt if it is not below the floor, else NULL, for a column that is NOT NULL. A floor that
    is no attempt itself, '' say, was spoilt: it would be below them all, and permits none.

    Together with the statements of `hold_floor` before it, it holds the floor where it is until this transaction ends.
    If the floor is being raised it waits, and then sees the new one, or fails.

    `undecided`: NULL also where a decision is seen. One that is written at the same moment is not.
    """
    return above_floor_of(dialect, dialect.attempt(attempt), undecided=undecided)


def above_floor_of(dialect: Dialect, literal: str, *, undecided: bool = False, only_if: str = "") -> str:
    """The same, where the attempt is a literal already. `only_if`: NULL also where this condition does not hold."""
    conditions = [f"value <= {literal}", f"NOT {dialect.no_attempt('value')}"]
    if undecided:
        conditions.append(f"NOT EXISTS (SELECT 1 FROM {dialect.table('decisions')} WHERE attempt = {literal})")
    conditions += [only_if] if only_if else []
    return dialect.read_floor(
        f"SELECT {literal} FROM {dialect.table('journal')} WHERE item = {dialect.key('floor')} "
        f"AND {' AND '.join(conditions)}"
    )


def why(error: Exception, column: str = "") -> str:
    """What is wrong with a row: the end of a sentence about it."""
    told = f"{column}{type(error).__name__}: {error}".encode("utf-8", "backslashreplace").decode()[:WHY_LENGTH_MAX]
    return f"cannot be read ({told}): it was written by a release that this one does not know, or changed by hand"


def unreadable(what: str, error: Exception) -> UnreadableRecord:
    """The error that says so, of a row that was asked for."""
    return UnreadableRecord(f"{what} {why(error)}. Nothing was done on the strength of it")


class Reading(Generic[R]):
    """How a row of one table is read, and which of its columns say whose it is. Called, it raises `UnreadableRecord`
    for a row that nobody of ours has written.
    """

    def __init__(
        self,
        reading: Callable[[Row], R],
        table: str,
        columns: Sequence[str],
        attempt: int | None,
        name: int | None,
        number: int | None,
    ) -> None:
        self.bare, self._table, self._columns = reading, table, columns
        self._attempt, self._name, self._number = attempt, name, number

    def __call__(self, row: Row) -> R:
        try:
            return self.bare(row)
        except UNREADABLE as error:
            raise unreadable("a row of the journal", error) from error

    def apart(self, row: Row) -> R | Unreadable:
        """The same for a row among others, none of which it may hold up."""
        try:
            return self.bare(row)
        except UNREADABLE as error:
            return Unreadable(
                self._table,
                raw(_at(row, self._attempt)),
                self._why(row, error),
                raw(_at(row, self._name)).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"),
                _whole(_at(row, self._number)),
            )

    def _why(self, row: Row, error: Exception) -> str:
        """With the column, where it is one alone: whoever mends the row looks for it."""
        for column, value in zip(self._columns, row, strict=False):
            try:
                CONVERSIONS.get(column, text)(value)
            except UNREADABLE as found:
                return why(found, f"{column}: ")
        return why(error)

    def each(self, found: Iterable[Row]) -> list[R | Unreadable]:
        """A page."""
        return [self.apart(row) for row in found]


def _at(row: Row, place: int | None) -> Any:
    return None if place is None or place >= len(row) else row[place]


def _whole(value: Any) -> int | None:
    try:
        return None if value is None else int(value)
    except (ValueError, TypeError, OverflowError):
        return None


def raw(value: Any) -> str:
    """As `text`, of whatever bytes; "" for NULL. Bytes that are no text become lone surrogates: see `Dialect.raw`."""
    if value is None:
        return ""
    return bytes(value).decode("utf-8", "surrogateescape") if isinstance(value, _BYTES) else str(value)


def read(
    table: str,
    columns: Sequence[str] = (),
    *,
    attempt: int | None = 0,
    name: int | None = None,
    number: int | None = None,
) -> Callable[[Callable[[Row], R]], Reading[R]]:
    """Makes a `Reading` of a function. `attempt`, `name`, `number`: where in the row they stand."""
    return lambda reading: Reading(reading, table, columns, attempt, name, number)


@read("decisions", DECISION, name=3)
def standing(row: Row) -> Standing:
    """A row of `standing_columns`."""
    decision = Decision(
        attempt=attempt(row[0]),
        verdict=Verdict(text(row[1])),
        mode=Mode(text(row[2])),
        name=text(row[3]),
        branches=branches(row[4]),
        point=_nullable(row[5]),
        owner=text(row[6]),
        reason=text(row[7]),
        decided_at=moment(row[8]),
    )
    _require_listed(decision.point, decision.branches)
    return Standing(decision, _has_ended(row[9]))


@read("names", STAGING, name=1)
def staging(row: Row) -> Staging:
    """A row of `STAGING`."""
    found = Staging(
        attempt=attempt(row[0]),
        name=text(row[1]),
        branches=branches(row[2]),
        last=_nullable(row[3]),
        deadline=moment(row[4]),
        owner=text(row[5]),
        metadata=_metadata(row[6]),
        created_at=moment(row[7]),
        begin_by=moment(row[8]),
        confirmations=_who(row[9]),
        calls=int(row[10]),
    )
    _require_listed(found.last, found.branches)
    return found


@read("confirmations", CONFIRMATION, name=1)
def confirmation(row: Row) -> Confirmation:
    """A row of `CONFIRMATION`."""
    of, who, answer, why, at = row
    return Confirmation(attempt(of), text(who), Readiness(text(answer)), text(why), moment(at))


@read("calls", CALL, name=3, number=1)
def call(row: Row) -> Call:
    """A row of `CALL`."""
    return Call(
        attempt=attempt(row[0]),
        number=int(row[1]),
        key=text(row[2]),
        step=text(row[3]),
        undo=text(row[4]),
        arguments=text(row[5]),
        state=CallState(text(row[6])),
        result=text(row[7]),
        error=text(row[8]),
        tries=int(row[9]),
        until=moment(row[10]),
        claim=text(row[11]),
        worker=text(row[12]),
        begun_at=moment(row[13]),
        changed_at=moment(row[14]),
        version=int(row[15]),
    )


@read("quarantine", QUARANTINED, name=2, number=1)
def quarantined(row: Row) -> Quarantined:
    """A row of `QUARANTINED`."""
    of, number, resource, why, since, cleared_by = row
    return Quarantined(attempt(of), branch(number), text(resource), text(why), moment(since), text(cleared_by))


@read("events", EVENT)
def event(row: Row) -> Event:
    """A row of `EVENT`."""
    of, at, what, detail = row
    return Event(attempt(of), moment(at), text(what), text(detail))


@read("resources", RESOURCE, attempt=None, name=0)
def resource(row: Row) -> tuple[str, Identity]:
    """A row of `RESOURCE`: the name it was registered under, and who it said it was."""
    resource_id, name, cluster, server, epoch = row
    return text(name), Identity(text(resource_id), text(cluster), text(server), int(epoch))


@read("journal", FLOOR, attempt=None, name=1)
def floor(row: Row) -> str:
    """A row of `FLOOR`."""
    return attempt(row[0])


@read("names", (*STAGING, "undecided"), attempt=len(STAGING), name=1)
def undecided(row: Row) -> Staging:
    """A row of `STAGING` and `undecided`, by which it was found, and by which its page goes on."""
    *columns, listed = row
    found = staging.bare(columns)
    if attempt(listed) != found.attempt:
        raise ValueError(f"it is listed as undecided for {text(listed)!r}")
    return found


@read("calls", ("unfinished",))
def unfinished(row: Row) -> str:
    """A row of one column, `unfinished`."""
    (of,) = row
    return attempt(of)


@read("calls", ("attempt", "call_key", "unfinished"), attempt=2, name=1)
def owner(row: Row) -> str:
    """A row of these columns: both must say the same."""
    of, _, listed = map(text, row)
    if attempt(of) != attempt(listed):
        raise ValueError(f"it is listed as unfinished for {listed!r}")
    return of


def text(value: Any) -> str:
    """A text column: MariaDB's byte-exact ones, and all of SQLite's, come as bytes. None of ours may be NULL."""
    if value is None:
        raise ValueError("NULL")
    return bytes(value).decode() if isinstance(value, _BYTES) else str(value)


def number(value: int | None) -> str:
    """A literal for a whole number, or NULL."""
    return "NULL" if value is None else str(int(value))


def json(value: object) -> str:
    """As it is stored. Compact and in the order of the fields: `lists_resource` relies on it."""
    return msgspec.json.encode(value).decode()


def lists_resource(resource_id: str) -> str:
    """The piece of a `branches` column that every branch of this resource has, and no other."""
    return f'"resource_id":{json(resource_id)}'


def branches(value: Any) -> tuple[BranchRef, ...]:
    """A `branches` column."""
    found = msgspec.json.decode(text(value), type=tuple[BranchRef, ...])
    numbers = [branch(ref.number) for ref in found]
    if len(set(numbers)) < len(numbers):
        raise ValueError("two branches have one number")
    return found


def attempt(value: Any) -> str:
    """An attempt's id."""
    found = text(value)
    if not is_attempt(found):
        raise ValueError(f"{found[:40]!r} is no attempt")
    return found


def branch(value: Any) -> int:
    """A branch's number."""
    found = int(value)
    if not 0 <= found < BRANCHES_MAX:
        raise ValueError(f"{found} is no branch")
    return found


def ended(value: Any) -> float:
    """When, for people; what is no time is told as the beginning of all times."""
    try:
        return moment(value)
    except UNREADABLE:
        return 0.0


def moment(value: Any) -> float:
    """A time."""
    found = float(value)
    if not 0 <= found < TIME_END:
        raise ValueError(f"{found} is no time")
    return found


def _has_ended(value: Any) -> bool:
    if value is not None:
        moment(value)  # what is no time does not say that it has
    return value is not None


def _nullable(value: Any) -> int | None:
    return None if value is None else branch(value)


def _require_listed(number: int | None, branches: Sequence[BranchRef]) -> None:
    if number is not None and number not in {ref.number for ref in branches}:
        raise ValueError(f"branch {number} is not among its branches")


def _metadata(value: Any) -> dict[str, str]:
    return msgspec.json.decode(text(value), type=dict[str, str])


def _who(value: Any) -> tuple[str, ...]:
    return msgspec.json.decode(text(value), type=tuple[str, ...])


# What a column is read by, if it is no plain text: to tell which one of a row cannot be.
CONVERSIONS: dict[str, Callable[[Any], object]] = {
    **dict.fromkeys(("attempt", "undecided", "unfinished", "value"), attempt),
    **dict.fromkeys(("point", "last_branch"), _nullable),
    **dict.fromkeys(("number", "calls", "tries", "version", "epoch"), int),
    **dict.fromkeys(("decided_at", "deadline", "created_at", "begin_by", "since", "at"), moment),
    **dict.fromkeys(("held_until", "begun_at", "changed_at"), moment),
    "verdict": lambda value: Verdict(text(value)),
    "mode": lambda value: Mode(text(value)),
    "state": lambda value: CallState(text(value)),
    "answer": lambda value: Readiness(text(value)),
    "branches": branches,
    "branch": branch,
    "metadata": _metadata,
    "confirmations": _who,
}
