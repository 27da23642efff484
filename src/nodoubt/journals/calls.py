"""Steps that were called outside, and those who must confirm, in a SQL database.

Guarantees (I19): an intent is written only while no decision of its attempt is seen, and under the lock of the name's
row, if it has one, which the decision takes first; a call changes by compare-and-set alone; an answer to the question
whether somebody is ready is written once, and not where a decision is seen.

Must not: say what may follow what: that is `protocol.compensation`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..ports import BelowFloor, Session
from ..protocol.records import Call, CallState, Confirmation, Event, Readiness, Unreadable
from ..script import Script
from . import rows, trail
from .directory import Directory


class Calls(Directory):
    """The scripts about calls and confirmations."""

    # ---- calls

    def now(self, session: Session) -> Script[float]:
        """The server's clock."""
        return float((yield from self._read(session, f"SELECT {self.dialect.now}")).scalar())

    def intend(self, session: Session, call: Call) -> Script[None]:
        """Write it, unless the attempt is decided, or the number or the key is taken: `Conflict`.

        A decision that is written at the same moment is not seen: look for one before you act.
        """
        try:
            yield from self._write(session, *self._intent_rows(call))
        except BelowFloor as error:
            yield from self._tell_decided(session, [call.attempt], error)

    def _intent_rows(self, call: Call) -> tuple[str, ...]:
        attempt = rows.above_floor(self.dialect, call.attempt, undecided=True)
        values, table = rows.call_values(self.dialect, call, attempt), self.dialect.table("calls")
        return (
            *self.dialect.hold_floor(),
            self._count_call(call.attempt),
            f"INSERT INTO {table} ({rows.columns(tuple(values))}) VALUES ({rows.columns(tuple(values.values()))})",
            self._event_row(trail.of_call(call)),
        )

    def advance(self, session: Session, before: Call, after: Call) -> Script[bool]:
        """Compare-and-set on the version. The lock makes the look, the trail and the change one."""
        table = self.dialect.table("calls")
        which = f"attempt = {self.dialect.attempt(before.attempt)} AND number = {int(before.number)}"
        same = f"{which} AND version = {int(before.version)}"
        changes = rows.call_changes(self.dialect, after)
        event = trail.of_change(before, after)
        seen, *_ = yield from self._write(
            session,
            f"SELECT version FROM {table} WHERE {which}{self.dialect.row_lock}",
            *(() if event is None else (self._event_if(event, f"{table} WHERE {same}"),)),
            f"UPDATE {table} SET {', '.join(f'{column} = {value}' for column, value in changes.items())} WHERE {same}",
        )
        return bool(seen.rows) and int(seen.scalar()) == before.version

    def hold(self, session: Session, attempts: Sequence[str], until: float) -> Script[None]:
        """Unforced, and without a new version: whoever is alive says so again and again."""
        if not attempts:
            return
        which = f"unfinished IN ({self.dialect.attempts(attempts)})"
        value = self.dialect.seconds(until)
        yield from self._write(
            session,
            f"SELECT number FROM {self.dialect.table('calls')} WHERE {which} "
            f"ORDER BY attempt, number{self.dialect.row_lock}",
            f"UPDATE {self.dialect.table('calls')} SET held_until = {value} WHERE {which} AND held_until < {value}",
            forced=False,
        )

    def calls(self, session: Session, attempts: Sequence[str]) -> Script[list[Call | Unreadable]]:
        """By attempt and number."""
        if not attempts:
            return []
        return (yield from self._calls(session, f"attempt IN ({self.dialect.attempts(attempts)})"))

    def unfinished_calls(self, session: Session, after: str, limit: int) -> Script[list[str | Unreadable]]:
        """From an index that holds nothing else but what is parked."""
        reply = yield from self._read(
            session,
            f"SELECT {self.dialect.reading('unfinished', 'unfinished')} FROM {self.dialect.table('calls')} "
            f"WHERE unfinished > {self.dialect.raw(after)} AND state <> '{CallState.PARKED}' "
            f"GROUP BY unfinished ORDER BY unfinished LIMIT {int(limit)}",
        )
        return rows.unfinished.each(reply.rows)

    def parked_calls(self, session: Session) -> Script[list[Call | Unreadable]]:
        """Those that a human must look at."""
        parked = f"unfinished IS NOT NULL AND state = '{CallState.PARKED}'"
        return (yield from self._calls(session, parked))

    def _calls(self, session: Session, which: str) -> Script[list[Call | Unreadable]]:
        columns, table = rows.select(self.dialect, rows.CALL), self.dialect.table("calls")
        reply = yield from self._read(session, f"SELECT {columns} FROM {table} WHERE {which} ORDER BY attempt, number")
        return rows.call.each(reply.rows)

    def _unfinished(self, session: Session, which: str) -> Script[list[str | Call | Unreadable]]:
        """Those that have something left to do, and by which attempts they are found."""
        reply = yield from self._read(
            session,
            f"SELECT {self.dialect.reading('unfinished', 'unfinished')} FROM {self.dialect.table('calls')} "
            f"WHERE {which} GROUP BY unfinished",
        )
        calls = yield from self._calls(session, which)
        return [*rows.unfinished.each(reply.rows), *calls]

    # ---- confirmations

    def answer(
        self, session: Session, attempt: str, who: str, answer: Readiness, *, why: str, at: float
    ) -> Script[Confirmation | Unreadable | None]:
        """Write it if it is the first and nothing is decided; what stands is read back in the same transaction."""
        *_, stands = yield from self._write(session, *self._answer_rows(Confirmation(attempt, who, answer, why, at)))
        return rows.confirmation.apart(stands.rows[0]) if stands.rows else None

    def _answer_rows(self, said: Confirmation) -> tuple[str, ...]:
        table, literal = self.dialect.table("confirmations"), self.dialect.attempt(said.attempt)
        which = f"attempt = {literal} AND who = {self.dialect.key(said.who)}"
        undecided = f"NOT EXISTS (SELECT 1 FROM {self.dialect.table('decisions')} AS d WHERE d.attempt = {literal})"
        first = f"{which} AND answer = '{Readiness.ASKED.value}' AND {undecided}"
        say = (
            f"UPDATE {table} SET answer = '{Readiness(said.answer).value}', why = {self.dialect.free_text(said.why)}, "
            f"at = {self.dialect.seconds(said.at)} WHERE {first}"
        )
        before = f"SELECT 1 FROM {table} AS c WHERE {which} AND at <> {self.dialect.seconds(said.at)}"
        # No lock of the name's row is needed: a COMMIT wants an answer from everybody, and each is written once.
        return (
            f"SELECT who FROM {table} WHERE {which}{self.dialect.row_lock}",
            self._event_if(trail.of_answer(said), f"{table} WHERE {first}"),
            say,
            self._flush(f"EXISTS ({before})"),  # an answer of before may not be flushed, and will be told as it stands
            f"SELECT {rows.select(self.dialect, rows.CONFIRMATION)} FROM {table} WHERE {which}",
        )

    def confirmations(self, session: Session, attempt: str) -> Script[list[Confirmation | Unreadable]]:
        """Everybody who was asked."""
        return (yield from self._confirmations(session, f"attempt = {self.dialect.attempt(attempt)}"))

    def _confirmations(self, session: Session, which: str) -> Script[list[Confirmation | Unreadable]]:
        columns, table = rows.select(self.dialect, rows.CONFIRMATION), self.dialect.table("confirmations")
        reply = yield from self._read(session, f"SELECT {columns} FROM {table} WHERE {which} ORDER BY attempt, who")
        return rows.confirmation.each(reply.rows)

    def _event_if(self, event: Event, row: str) -> str:
        """A line of the trail, if there is such a row."""
        columns, values = rows.columns(rows.EVENT), rows.columns(self._event_values(event))
        return f"INSERT INTO {self.dialect.table('events')} ({columns}) SELECT {values} FROM {row}"

    def _count_call(self, attempt: str) -> str:
        """In the row that the decision of a staged attempt locks first: so neither passes the other."""
        names = self.dialect.table("names")
        return f"UPDATE {names} SET calls = calls + 1 WHERE attempt = {self.dialect.attempt(attempt)}"
