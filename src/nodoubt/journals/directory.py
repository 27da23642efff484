"""The journal's other tables in a SQL database: staged names, resources, what is quarantined, what happened.

Guarantees: a name is staged at most once, compared byte by byte, and only for an attempt that is neither decided
nor below the floor (I10); what is quarantined stays listed until a named operator clears it (I17).

Must not: write a decision.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from ..errors import InvalidName, UnreadableRecord, UsageError
from ..kept import Kept
from ..ports import BelowFloor, Conflict, Identity, Known, Listed, Reply, Session
from ..protocol.records import Event, Quarantined, Readiness, Staging, Unreadable
from ..script import Script
from ..xid import check_name, is_attempt
from . import rows, trail
from .transactions import Transactions

OPERATOR_LENGTH_MAX = 200


class Directory(Transactions):
    """The scripts about names, resources, quarantine and events."""

    def _flush(self, only_if: str = "") -> str:
        """A write for its own sake: with it, what this transaction has seen before is as durable as itself.

        A log is flushed in order, and no crash can lie between a look and a write of one transaction.
        """
        which = f"item = {self.dialect.key('cluster')}{f' AND {only_if}' if only_if else ''}"
        return f"UPDATE {self.dialect.table('journal')} SET {rows.changed('counter')} WHERE {which}"

    # ---- the floor --------------------------------------------------------------------------------

    def floor(self, session: Session, *, flushed: bool = False) -> Script[str]:
        """Below it nothing can be decided any more, and what is not found is unknown. Raises `UnreadableRecord`."""
        found = yield from self._floor(session, flushed=flushed)
        if isinstance(found, Unreadable):
            raise UnreadableRecord(
                f"{found.which} {found.why}. Until it is mended nothing is decided, and nothing forgotten: "
                "docs/operations.md, A row cannot be read"
            )
        return found

    def _floor(self, session: Session, *, flushed: bool = False) -> Script[str | Unreadable]:
        if flushed:
            found, _ = yield from self._write(session, self._floor_row(), self._flush())
        else:
            found = yield from self._read(session, self._floor_row())
        return self._floor_of(found)

    def _floor_row(self) -> str:
        columns, table = rows.select(self.dialect, rows.FLOOR), self.dialect.table("journal")
        return f"SELECT {columns} FROM {table} WHERE item = {self.dialect.key('floor')}"

    def _floor_of(self, found: Reply) -> str | Unreadable:
        return rows.floor.apart(found.rows[0] if found.rows else (None, "floor"))

    # ---- names ------------------------------------------------------------------------------------

    def stage(
        self, session: Session, staging: Staging, *, replace: Staging | None = None, forced: bool = True
    ) -> Script[None]:
        """Write the row. `Conflict`: the name or the attempt is taken, or the attempt was fenced."""
        try:
            yield from self._write(session, *self.staging_rows(staging, replace=replace), forced=forced)
        except BelowFloor as error:
            yield from self._tell_decided(session, [staging.attempt], error)

    def staging_rows(self, staging: Staging, *, replace: Staging | None = None) -> tuple[str, ...]:
        """The statements of `stage`, for a transaction that somebody else begins and commits.

        An attempt that was fenced while it began must not come alive: there too the statement refuses, as it does
        below the floor. A fence written at the same moment is not seen here, and need not be: its ABORT stands.
        """
        check_name(staging.name)
        names, decisions = self.dialect.table("names"), self.dialect.table("decisions")
        insert = self._insert_name(*rows.staging_values(self.dialect, staging).values())
        asked = self._asked_rows(staging)
        hold = self.dialect.hold_floor()
        if replace is None:
            return *hold, insert, *asked
        # Only an attempt that has been decided makes room; if it has not, its row stays and the INSERT conflicts.
        old = self.dialect.attempt(replace.attempt)
        make_room = (
            f"DELETE FROM {names} WHERE name = {self.dialect.key(staging.name)} AND attempt = {old} "
            f"AND EXISTS (SELECT 1 FROM {decisions} AS d WHERE d.attempt = {old})"
        )
        return *hold, make_room, insert, *asked, self._event_row(trail.of_staging(replace))

    def _asked_rows(self, staging: Staging) -> tuple[str, ...]:
        """Who must confirm. They are asked by the very transaction that lists the name, and by no other."""
        if not staging.confirmations:
            return ()
        attempt, table = self.dialect.attempt(staging.attempt), self.dialect.table("confirmations")
        values = ", ".join(
            f"({attempt}, {self.dialect.key(who)}, {self.dialect.nothing})" for who in staging.confirmations
        )
        return (f"INSERT INTO {table} (attempt, who, why) VALUES {values}",)

    @functools.cached_property
    def _insert_name(self) -> Kept:
        def build(attempt: str, *values: str) -> str:
            checked = rows.above_floor_of(self.dialect, attempt, undecided=True)
            columns = rows.columns((*rows.STAGING, "undecided"))
            return f"INSERT INTO {names} ({columns}) VALUES ({rows.columns((checked, *values, attempt))})"

        names = self.dialect.table("names")
        return Kept("name", len(rows.STAGING), build)

    def _tell_decided(self, session: Session, attempts: Sequence[str], error: BelowFloor) -> Script[None]:
        """Raise `Conflict` if one of the attempts has been decided, `UnreadableRecord` if the floor is none, else the
        error.

        The statement can't tell them apart. Only which refusal is raised hangs on these plain reads: whoever then
        acts on the decision confirms it.
        """
        table = self.dialect.table("decisions")
        decided = yield from self._read(
            session, f"SELECT count(*) FROM {table} WHERE attempt IN ({self.dialect.attempts(attempts)})"
        )
        if int(decided.scalar()):
            raise Conflict("the attempt has been decided already") from error
        yield from self.floor(session)
        raise error

    def find(self, session: Session, name: str) -> Script[Staging | Unreadable | None]:
        """By name; failing that, by attempt: a name may look like one."""
        try:
            which = f"name = {self.dialect.key(check_name(name))}"
        except InvalidName:
            return None
        found = yield from self._stagings(session, which)
        if not found and is_attempt(name):
            found = yield from self._stagings(session, f"attempt = {self.dialect.attempt(name)}")
        return found[0] if found else None

    def known(self, session: Session, name: str, *, listed_sql: str = "") -> Script[Known | None]:
        """`find` and `look` in one question, and, where SQL can ask for it, whether X is prepared."""
        if listed_sql not in self._questions:
            self._questions[listed_sql] = self._question(listed_sql)
        by_name, by_attempt = self._questions[listed_sql]
        try:
            found = yield from self._read(session, by_name(self.dialect.key(check_name(name))))
        except InvalidName:
            return None
        if not found.rows and is_attempt(name):
            found = yield from self._read(session, by_attempt(self.dialect.attempt(name)))
        if not found.rows:
            return None
        *row, listed = found.rows[0]
        return *_with_decision(row), bool(int(listed))

    @functools.cached_property
    def _questions(self) -> dict[str, tuple[Kept, Kept]]:
        return {}

    def _question(self, listed_sql: str) -> tuple[Kept, Kept]:
        names, decisions = self.dialect.table("names"), self.dialect.table("decisions")
        # One name whatever the cluster, which is in the text: only sessions of a coordinator's own pools keep
        # statements, so each has prepared what it runs, for one journal. Should that be set up anew under them, as
        # another cluster, the old question finds none of its branches listed, and they are asked for one by one.
        kind = "known_listed" if listed_sql else "known"
        listed = listed_sql.format(attempt="n.attempt", branch="n.last_branch") or "NULL IS NOT NULL"
        select = (
            f"SELECT {rows.select(self.dialect, rows.STAGING, 'n.')}, {rows.standing_columns(self.dialect, 'd.')}, "
            f"CASE WHEN {listed} THEN 1 ELSE 0 END AS listed FROM {names} AS n "
            f"LEFT JOIN {decisions} AS d ON d.attempt = n.attempt"
        )
        return (
            Kept(kind, 1, lambda name: f"{select} WHERE n.name = {name}"),
            Kept(f"{kind}_attempt", 1, lambda attempt: f"{select} WHERE n.attempt = {attempt}"),
        )

    def staged(self, session: Session, attempts: Sequence[str]) -> Script[dict[str, Staging | Unreadable]]:
        """The rows of these attempts."""
        if not attempts:
            return {}
        found = yield from self._stagings(session, f"attempt IN ({self.dialect.attempts(attempts)})")
        return {one.attempt: one for one in found}

    def _stagings(self, session: Session, which: str) -> Script[list[Staging | Unreadable]]:
        names, columns = self.dialect.table("names"), rows.select(self.dialect, rows.STAGING, "n.")
        reply = yield from self._read(session, f"SELECT {columns} FROM {names} AS n WHERE {which}")
        return rows.staging.each(reply.rows)

    def undecided(self, session: Session, after: str, limit: int) -> Script[list[Staging | Unreadable]]:
        """By attempt, from an index that holds little else.

        A name that was staged at the very moment when its attempt was fenced is in that index for good, so the
        decisions are asked too.
        """
        return (yield from self._undecided(session, self._undecided_after(after, "", limit)))

    def _undecided(self, session: Session, which: str) -> Script[list[Staging | Unreadable]]:
        names, columns = self.dialect.table("names"), rows.select(self.dialect, (*rows.STAGING, "undecided"), "n.")
        reply = yield from self._read(session, f"SELECT {columns} FROM {names} AS n WHERE {which}")
        return rows.undecided.each(reply.rows)

    def overdue(self, session: Session, before: float, after: str, limit: int) -> Script[list[Staging | Unreadable]]:
        """Those of `undecided` that nothing but an ABORT can end: past their deadline, or refused."""
        refused = (
            f"SELECT 1 FROM {self.dialect.table('confirmations')} AS r WHERE r.attempt = n.attempt "
            f"AND r.answer = '{Readiness.REFUSED.value}'"
        )
        only = f" AND (n.deadline <= {self.dialect.seconds(before)} OR EXISTS ({refused}))"
        return (yield from self._undecided(session, self._undecided_after(after, only, limit)))

    def _undecided_after(self, after: str, only: str, limit: int) -> str:
        return (
            f"undecided > {self.dialect.raw(after)} AND NOT EXISTS (SELECT 1 FROM {self.dialect.table('decisions')} "
            f"AS d WHERE d.attempt = undecided){only} ORDER BY undecided LIMIT {int(limit)}"
        )

    def list_staged(self, session: Session, after: str, limit: int) -> Script[list[Listed]]:
        """Newest first; `after`: the attempt that the page before ended with, or ""."""
        older = f"WHERE attempt < {self.dialect.raw(after)} " if after else ""
        # The page first, from an index that holds all it takes: else MariaDB would read and sort every name there is.
        names, decisions = self.dialect.table("names"), self.dialect.table("decisions")
        page = f"SELECT attempt AS begun FROM {names} {older}ORDER BY attempt DESC LIMIT {int(limit)}"
        reply = yield from self._read(
            session,
            f"SELECT {rows.select(self.dialect, rows.STAGING, 'n.')}, {rows.standing_columns(self.dialect, 'd.')} "
            f"FROM ({page}) AS page "
            f"JOIN {names} AS n ON n.attempt = page.begun LEFT JOIN {decisions} AS d ON d.attempt = page.begun "
            "ORDER BY page.begun DESC",
        )
        return [_with_decision(row) for row in reply.rows]

    # ---- resources --------------------------------------------------------------------------------

    def register(self, session: Session, name: str, identity: Identity) -> Script[None]:
        """Remember the resource, forced. What was known under its id is overwritten."""
        row = {
            "resource_id": self.dialect.key(identity.resource_id),
            "name": self.dialect.free_text(name),
            "cluster": self.dialect.free_text(identity.cluster),
            "server": self.dialect.free_text(identity.server),
            "epoch": rows.number(identity.epoch),
        }
        changes = {column: self.dialect.new(column) for column in row if column != "resource_id"}
        yield from self._write(session, self.dialect.upsert("resources", ("resource_id",), row, changes))

    def registered(self, session: Session) -> Script[dict[str, tuple[str, Identity] | Unreadable]]:
        """By resource id."""
        columns, resources = rows.select(self.dialect, rows.RESOURCE), self.dialect.table("resources")
        reply = yield from self._read(session, f"SELECT {columns} FROM {resources}")
        return {rows.raw(row[0]): rows.resource.apart(row) for row in reply.rows}

    def unregister(self, session: Session, resource_id: str) -> Script[None]:
        """Forget a resource. `Conflict` while a COMMIT that has not ended, or an undecided name, lists it; or while
        there is a decision of which nobody knows whether it is such a one: no index has that, so all are looked at,
        without a lock, for nobody of ours writes one.

        The journal can't see a branch that is prepared and has no decision yet: look at the resource itself first.
        """
        table, decisions = self.dialect.table("resources"), self.dialect.table("decisions")
        which = f"resource_id = {self.dialect.key(resource_id)}"
        listed = f"{self.dialect.find_text}(branches, {self.dialect.text(rows.lists_resource(resource_id))}) > 0"
        columns = rows.standing_columns(self.dialect)
        of_these = f"{decisions} WHERE {rows.unsure(self.dialect)}"
        unsure = yield from self._read(session, f"SELECT {columns} FROM {of_these} LIMIT 1")
        for one in rows.standing.each(unsure.rows):
            if isinstance(one, Unreadable):
                raise Conflict(f"{one.which} {one.why}. It may list this resource: mend it first")
        yield from self._write(
            session,
            f"DELETE FROM {table} WHERE {which} "
            f"AND NOT EXISTS (SELECT 1 FROM {decisions} WHERE {self.dialect.is_open} AND {listed}) "
            f"AND NOT EXISTS (SELECT 1 FROM {self.dialect.table('names')} AS n WHERE {listed} "
            f"AND NOT EXISTS (SELECT 1 FROM {decisions} AS d WHERE d.attempt = n.attempt))",
        )
        left = yield from self._read(session, f"SELECT count(*) FROM {table} WHERE {which}")
        if int(left.scalar()):
            raise Conflict("transactions that have not ended list this resource: finish them before it is dropped")

    # ---- quarantine -------------------------------------------------------------------------------

    def quarantine(self, session: Session, entry: Quarantined) -> Script[None]:
        """Store it, forced. Seen again, it keeps its first time; seen again after it was cleared, it is new."""
        nothing = self.dialect.nothing
        row = {
            "attempt": self.dialect.key(entry.attempt),
            "branch": rows.number(entry.branch),
            "resource": self.dialect.free_text(entry.resource),
            "why": self.dialect.free_text(entry.why),
            "since": self.dialect.seconds(entry.since),
            "cleared_by": nothing,
        }
        new, old = self.dialect.new, self.dialect.old
        changes = {
            "resource": new("resource"),
            "why": new("why"),
            "since": f"CASE WHEN {old('cleared_by')} = {nothing} THEN {old('since')} ELSE {new('since')} END",
            "cleared_by": nothing,
        }
        # Every sweep sees it again; the trail tells the first time only.
        told = rows.columns(self._event_values(trail.of_quarantine(entry)))
        first_time = (
            f"INSERT INTO {self.dialect.table('events')} ({rows.columns(rows.EVENT)}) "
            f"SELECT {told} FROM (SELECT 1 AS one) AS x WHERE NOT EXISTS "
            f"(SELECT 1 FROM {self.dialect.table('quarantine')} AS q WHERE q.attempt = "
            f"{self.dialect.key(entry.attempt)} AND q.branch = {int(entry.branch)} "
            f"AND {rows.not_cleared(self.dialect, 'q.')})"
        )
        yield from self._write(
            session, first_time, self.dialect.upsert("quarantine", ("attempt", "branch"), row, changes)
        )

    def quarantined(self, session: Session, limit: int | None = None) -> Script[list[Quarantined | Unreadable]]:
        """Those not cleared, oldest first."""
        reply = yield from self._read(
            session,
            f"SELECT {rows.select(self.dialect, rows.QUARANTINED)} FROM {self.dialect.table('quarantine')} "
            f"WHERE {rows.not_cleared(self.dialect)} ORDER BY since, attempt, branch"
            f"{'' if limit is None else f' LIMIT {int(limit)}'}",
        )
        return rows.quarantined.each(reply.rows)

    def clear(self, session: Session, attempt: str, branch: int, by: str) -> Script[None]:
        """Take it off the list, in the name of an operator. Forced."""
        if not by.strip():
            raise UsageError("clearing a quarantined branch takes the name of the operator who has looked at it")
        yield from self._write(
            session,
            f"UPDATE {self.dialect.table('quarantine')} SET cleared_by = "
            f"{self.dialect.text(by[:OPERATOR_LENGTH_MAX])} "
            f"WHERE attempt = {self.dialect.key(attempt)} AND branch = {int(branch)} "
            f"AND {rows.not_cleared(self.dialect)}",
        )

    # ---- events -----------------------------------------------------------------------------------

    def record(self, session: Session, events: Sequence[Event]) -> Script[None]:
        """Append to the trail. Unforced: nothing hangs on an event."""
        if not events:
            return
        yield from self._write(session, self._event_rows(events), forced=False)

    def _event_row(self, event: Event) -> str:
        return self._insert_event(*self._event_values(event))

    @functools.cached_property
    def _insert_event(self) -> Kept:
        events = self.dialect.table("events")
        into = f"INSERT INTO {events} ({rows.columns(rows.EVENT)})"
        return Kept("event", len(rows.EVENT), lambda *values: f"{into} VALUES ({rows.columns(values)})")

    def _event_rows(self, events: Sequence[Event]) -> str:
        values = ", ".join(f"({rows.columns(self._event_values(event))})" for event in events)
        return f"INSERT INTO {self.dialect.table('events')} ({rows.columns(rows.EVENT)}) VALUES {values}"

    def _event_values(self, event: Event) -> tuple[str, ...]:
        text, at = self.dialect.free_text, self.dialect.seconds(event.at)
        return self.dialect.key(event.attempt), at, text(event.what), text(event.detail)

    def events(self, session: Session, attempt: str) -> Script[list[Event]]:
        """The trail of one attempt. What is stored is read last: there is the line of a name that has just gone."""
        which = f"attempt = {self.dialect.key(attempt)}"
        names = yield from self._stagings(session, which)
        decided = yield from self._read(
            session,
            f"SELECT {rows.standing_columns(self.dialect)}, {self.dialect.reading('ended_at', 'ended_at')} "
            f"FROM {self.dialect.table('decisions')} WHERE {which}",
        )
        stored = yield from self._read(
            session,
            f"SELECT {rows.select(self.dialect, rows.EVENT)} FROM {self.dialect.table('events')} WHERE {which} "
            "ORDER BY id",
        )
        *row, ended_at = decided.rows[0] if decided.rows else (None,)
        return trail.told(
            rows.event.each(stored.rows),
            names[0] if names else None,
            rows.standing.apart(row) if row else None,
            None if ended_at is None else rows.ended(ended_at),
        )


def _with_decision(row: rows.Row) -> Listed:
    """A row of `STAGING` and `standing_columns`, of which the latter may be empty."""
    width = len(rows.STAGING)
    return rows.staging.apart(row[:width]), None if row[width] is None else rows.standing.apart(row[width:])
