"""The journal in a SQL database: the register, its floor, and how it is set up. Its other tables: `directory`.

Guarantees: a decision is a plain INSERT under the floor's lock, its COMMIT in the same message; `confirm` flushes the
very rows it returns; the floor is raised, durably, before anything below it is deleted, and never above a COMMIT
that has not ended or a name that is undecided (I6, I10).

Must not: act on a plain read, use ON CONFLICT for a decision, or know a driver.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ResourceRefused, SchemaMismatch, invariant
from ..kept import Kept
from ..ports import START, BelowFloor, Session, Spot, StatementFailed, Unclear, require_none
from ..protocol.records import Decision, Epoch, Mode, Standing, Unreadable, Verdict
from ..schema import Part, Tables, judge, meddlers, meddlers_sql, rows_of, shipped, version_of
from ..script import Script
from ..xid import first_attempt_of, is_attempt
from . import rows
from .attempts import FLOOR_LOWEST, next_attempt
from .calls import Calls
from .dialects import Dialect

ATTEMPTS_PER_STATEMENT = 500
# Rows, or keys, in one look for what cannot be read. For 200 keys and more MariaDB guesses how many rows they find, by
# the statistics of an index that is full of NULLs, and may read the whole table.
LOOK_MAX = 150
VERDICTS = frozenset(verdict.value for verdict in Verdict)
NEWEST_MAX = 20  # records, of which one at least has an attempt for its key
_Reading = Callable[[Session, str], Script[list[Any]]]  # by a condition
# After a key, None: from the first; a page of it, and its last key, None: the set is through.
_Set = Callable[[Session, str | None], Script[tuple[list[Any], str | None]]]
BEHIND = "="  # before the key, in a spot behind one: that key may be empty
OLD_SETS = 4


OWNERLESS_MAX = 100  # of each kind: they should not be there at all


class SqlJournal(Calls):
    """`ports.Journal` on PostgreSQL, MariaDB or SQLite, by dialect."""

    def __init__(self, dialect: Dialect) -> None:
        super().__init__(dialect)
        self.tables = Tables(shipped(Part.JOURNAL, dialect.kind), whose="the journal", database=dialect.database)

    # ---- setup ------------------------------------------------------------------------------------

    def setup(self, session: Session, cluster: str) -> Script[None]:
        """Create what is missing; a cluster id that stands is kept. Safe when run by several at a time."""
        if (yield from self.tables.version(session)) is None:
            yield from self._require_encoding(session)
        yield from self.tables.create(session)
        if (yield from self._read(session, self._item("value", "cluster"))).scalar() is None:
            yield from self._write(session, *self._first_rows(cluster))

    def _require_encoding(self, session: Session) -> Script[None]:
        if not self.dialect.encoding_sql:
            return
        encoding = rows.text((yield from self._read(session, self.dialect.encoding_sql)).scalar())
        if encoding != self.dialect.encoding:
            raise ResourceRefused(
                f"the database stores text as {encoding}, which can't hold every name: put the journal into one "
                f"that is {self.dialect.encoding}"
            )

    def _first_rows(self, cluster: str) -> tuple[str, ...]:
        """Of two setups the first one's rows stand: by the primary key."""
        key = self.dialect.key
        items = {"cluster": cluster, "epoch": "", "floor": FLOOR_LOWEST}
        return tuple(
            self.dialect.upsert(
                "journal",
                ("item",),
                {"item": key(item), "value": key(value), "counter": "0"},
                {"item": self.dialect.old("item")},
            )
            for item, value in items.items()
        )

    def cluster(self, session: Session, *, judged: bool = True) -> Script[str]:
        """The cluster id. `SchemaMismatch` where there are no tables, or this release may not work on them."""
        if judged:
            yield from self.tables.require(session)
        found = (yield from self._read(session, self._item("value", "cluster"))).scalar()
        if found is None:
            raise SchemaMismatch("the journal's setup has not finished: run nodoubt schema apply")
        return rows.text(found)

    def epoch(self, session: Session) -> Script[Epoch]:
        """The epoch as it stands. `SchemaMismatch` where this release may not, or no longer, work on our tables."""
        epochs = self.dialect.table("epochs")
        try:
            record, found = yield from self._ask(
                session,
                f"{self.tables.record_query()}; SELECT j.counter, e.mark FROM {self.dialect.table('journal')} AS j "
                f"LEFT JOIN {epochs} AS e ON e.number = j.counter WHERE j.item = {self.dialect.key('epoch')}",
            )
        except StatementFailed as error:
            raise self._refusal(error) from error
        # Every sweep comes by here: have the tables been migrated beyond this release since it began?
        judge(version_of(rows_of(record)), self.tables.schema, self.tables.whose)
        number, mark = found.rows[0]
        return Epoch(int(number), "" if mark is None else rows.text(mark))

    def raise_epoch(self, session: Session, mark: str) -> Script[Epoch]:
        """One more, forced. The UPDATE locks the row, so what comes behind it sees what this transaction commits.

        Each start of a coordinator comes by here: no decision is to be written where something could swallow it.
        """
        asked = meddlers_sql(self.dialect.kind, self.dialect.text(self.dialect.database))
        require_none(meddlers(self.dialect.kind, (yield from self._read(session, asked)).rows), self.whose)
        journal, item = self.dialect.table("journal"), self.dialect.key("epoch")
        raised = f"UPDATE {journal} SET counter = counter + 1 WHERE item = {item}"
        minted = (
            f"INSERT INTO {self.dialect.table('epochs')} (number, mark) "
            f"SELECT counter, {self.dialect.key(mark)} FROM {journal} WHERE item = {item}"
        )
        *_, after = yield from self._write(session, raised, minted, self._item("counter", "epoch"))
        return Epoch(int(after.scalar()), mark)

    def minted(self, session: Session, mark: str) -> Script[bool]:
        """A plain read will do: whoever shows the mark was shown it after it had been flushed."""
        which = f"mark = {self.dialect.key(mark)}"
        found = yield from self._read(session, f"SELECT count(*) FROM {self.dialect.table('epochs')} WHERE {which}")
        return int(found.scalar()) > 0

    def _item(self, column: str, item: str) -> str:
        return f"SELECT {column} FROM {self.dialect.table('journal')} WHERE item = {self.dialect.key(item)}"

    # ---- the register -----------------------------------------------------------------------------

    def insert(self, session: Session, decisions: Sequence[Decision]) -> Script[None]:
        """Write the decisions: all of them, durably, or none."""
        if not decisions:
            return
        statements = [row for decision in decisions for row in self._decision_rows(decision)]
        try:
            replies = yield from self._write(session, *self.dialect.hold_floor(), *statements)
        except BelowFloor as error:
            # A record that stands says more than that it would be too old to be written now.
            yield from self._tell_decided(session, [decision.attempt for decision in decisions], error)
            return
        written = zip(statements, replies[-len(statements) :], strict=True)
        if any(statement.startswith("INSERT") and reply.count == 0 for statement, reply in written):
            # A rule of PostgreSQL's; what is prepared here follows it after it has been dropped, too.
            session.usable = False
            invariant(condition=False, number="I4", message="a row of the protocol wrote nothing")

    def decision_rows(self, decision: Decision) -> tuple[str, ...]:
        """The statements of `insert`, for a transaction that somebody else begins and commits."""
        return *self.dialect.hold_floor(), *self._decision_rows(decision)

    def _decision_rows(self, decision: Decision) -> tuple[str, ...]:
        """The decision, and that its name is decided, which a plain COMMIT leaves to `end`, or free again.

        One row each: in an INSERT of several, MariaDB with a lax sql_mode stores '' for the NULL that refuses.
        """
        statement = self._insert(decision)
        insert = statement(*rows.decision_values(self.dialect, decision).values())
        if decision.mode is Mode.ONCE or statement is self._insert_plain:
            return (insert,)
        # The name's row first: this lock is what keeps an intent from coming between the look whether all are ready and
        # the COMMIT. The plain one's look is the lock.
        name = self._name_is_free if decision.frees_name else self._name_is_decided
        return name(self.dialect.attempt(decision.attempt)), insert

    def _insert(self, decision: Decision) -> Kept:
        if decision.mode is Mode.STAGED and decision.verdict is Verdict.COMMIT:
            return self._insert_gated if decision.gated else self._insert_plain
        return self._insert_decision

    @functools.cached_property
    def _insert_decision(self) -> Kept:
        return self._inserting("decision", None)

    @functools.cached_property
    def _insert_plain(self) -> Kept:
        return self._inserting("decision_plain", rows.plain)

    @functools.cached_property
    def _insert_gated(self) -> Kept:
        return self._inserting("decision_gated", rows.ready)

    def _inserting(self, name: str, condition: Callable[[Dialect, str], str] | None) -> Kept:
        """The INSERT of a decision; where the condition on its attempt does not hold, it is refused."""

        def build(attempt: str, *values: str) -> str:
            only_if = "" if condition is None else condition(self.dialect, attempt)
            checked = rows.above_floor_of(self.dialect, attempt, only_if=only_if)
            return f"INSERT INTO {table} ({rows.columns(rows.DECISION)}) VALUES ({rows.columns((checked, *values))})"

        table = self.dialect.table("decisions")
        return Kept(name, len(rows.DECISION), build)

    @functools.cached_property
    def _name_is_decided(self) -> Kept:
        names = self.dialect.table("names")
        return Kept("decided", 1, lambda attempt: f"UPDATE {names} SET undecided = NULL WHERE undecided = {attempt}")

    @functools.cached_property
    def _name_is_free(self) -> Kept:
        names = self.dialect.table("names")
        return Kept("freed", 1, lambda attempt: f"DELETE FROM {names} WHERE undecided = {attempt}")

    def confirm(self, session: Session, attempts: Sequence[str]) -> Script[dict[str, Standing | Unreadable]]:
        """Flush the rows of these attempts and return them.

        The SELECT locks what it returns, in the order of the attempts, so the UPDATE changes at least those, and the
        COMMIT flushes them. The other way round, a row that came between the two would be returned unconfirmed.
        A verdict that is neither of the two is left out: the table's CHECK would refuse the UPDATE, and so all of it.
        """
        found: dict[str, Standing | Unreadable] = {}
        table = self.dialect.table("decisions")
        for some in pieces(attempts):
            which = f"attempt IN ({self.dialect.attempts(some)})"
            readable = f"{which} AND verdict IN ('commit', 'abort')"
            locked, confirmed = yield from self._write(
                session,
                f"SELECT {rows.standing_columns(self.dialect)} FROM {table} WHERE {which} "
                f"ORDER BY attempt{self.dialect.row_lock}",
                f"UPDATE {table}{self.dialect.by_attempt} SET {rows.changed('confirms')} WHERE {readable}",
            )
            shown = rows.standing.each(locked.rows)
            wanted = sum(rows.raw(row[1]) in VERDICTS for row in locked.rows)
            if 0 <= confirmed.count < wanted:
                raise Unclear(f"the journal confirmed {confirmed.count} of {wanted} decisions")
            found.update((one.attempt, one) for one in shown)
        return found

    def look(self, session: Session, attempts: Sequence[str]) -> Script[dict[str, Standing | Unreadable]]:
        """A plain read: advice, never grounds to act."""
        found: dict[str, Standing | Unreadable] = {}
        for some in pieces(attempts):
            reply = yield from self._read(
                session,
                f"SELECT {rows.standing_columns(self.dialect)} FROM {self.dialect.table('decisions')} "
                f"WHERE attempt IN ({self.dialect.attempts(some)})",
            )
            found.update((one.attempt, one) for one in rows.standing.each(reply.rows))
        return found

    def open_commits(self, session: Session, after: str, limit: int) -> Script[list[Standing | Unreadable]]:
        """COMMIT decisions that have not ended, from the index that holds nothing else."""
        key = self.dialect.open_key
        which = f"{self.dialect.is_open} AND {key} > {self.dialect.raw(after)}"
        return (yield from self._standings(session, f"{which} ORDER BY {key} LIMIT {int(limit)}"))

    def _standings(self, session: Session, which: str) -> Script[list[Standing | Unreadable]]:
        decisions, columns = self.dialect.table("decisions"), rows.standing_columns(self.dialect, "d.")
        reply = yield from self._read(session, f"SELECT {columns} FROM {decisions} AS d WHERE {which}")
        return rows.standing.each(reply.rows)

    def end(self, session: Session, attempts: Sequence[str]) -> Script[None]:
        """Mark them ended, forced: receipts are deleted on the strength of it.

        An end that is there already may not be flushed (InnoDB shows a commit before), and an UPDATE that changes
        nothing flushes nothing: so each row is confirmed, too, whoever has ended it.
        """
        for some in pieces(attempts):
            listed, table = self.dialect.attempts(some), self.dialect.table
            names = f"{table('names')}{self.dialect.by_undecided}"
            calls = f"{table('calls')}{self.dialect.by_unfinished}"
            decisions = f"{table('decisions')}{self.dialect.by_attempt}"
            which, marked = f"attempt IN ({listed})", f"undecided IN ({listed})"
            yield from self._write(
                session,
                # Names before decisions, in order, as whoever decides takes them.
                f"SELECT attempt FROM {names} WHERE {marked} ORDER BY undecided{self.dialect.row_lock}",
                f"UPDATE {names} SET undecided = NULL WHERE {marked}",
                self._lock_decisions(which),
                f"UPDATE {decisions} SET ended_at = COALESCE(ended_at, {self.dialect.now}), "
                f"{rows.changed('confirms')} WHERE {which}",
                f"UPDATE {calls} SET unfinished = NULL WHERE unfinished IN ({listed})",
            )

    def _lock_decisions(self, which: str) -> str:
        """Locks the rows in the order of their attempts: an UPDATE or DELETE alone takes them in any order."""
        table = self.dialect.table("decisions")
        return f"SELECT attempt FROM {table} WHERE {which} ORDER BY attempt{self.dialect.row_lock}"

    # ---- retention --------------------------------------------------------------------------------

    def aborted(
        self, session: Session, older_than: float, limit: int, after: str = ""
    ) -> Script[list[Standing | Unreadable]]:
        """What `_retirable` finds of them, and, where something holds the floor down, some that it does not find yet.

        Those come last: the floor is never above the first attempt of that time.
        """
        ceiling = first_attempt_of(older_than)
        which = f"verdict <> 'commit' AND decided_at < {self.dialect.seconds(older_than)}"
        readable, unreadable = yield from self._forgettable(session, ceiling, which, limit, after)
        return [*readable, *unreadable]

    def _forgettable(
        self, session: Session, ceiling: str, which: str, limit: int, after: str = ""
    ) -> Script[tuple[list[Standing], list[Unreadable]]]:
        """Of the decisions after one and below the ceiling the first that nothing keeps; and those met on the way that
        can't be read.

        What is quarantined is kept: an operator may still ask what was decided (I17). So is what has steps to undo, and
        that of which any row cannot be read: nobody knows what it would take to forget it.
        """
        limit = max(1, min(limit, ATTEMPTS_PER_STATEMENT))
        found, apart = list[Standing](), list[Unreadable]()
        which = (
            f"attempt < {self.dialect.attempt(ceiling)} AND {which} AND {self._not_quarantined()} "
            f"AND NOT EXISTS (SELECT 1 FROM {self.dialect.table('calls')} AS c WHERE c.unfinished = d.attempt)"
        )
        while True:
            page = yield from self._standings(
                session, f"attempt > {self.dialect.raw(after)} AND {which} ORDER BY attempt LIMIT {limit}"
            )
            standings = [one for one in page if not isinstance(one, Unreadable)]
            kept = yield from self.unreadable_of(session, [one.attempt for one in standings])
            apart += [one for one in page if isinstance(one, Unreadable)] + kept
            held = {one.attempt for one in kept}
            found += [one for one in standings if one.attempt not in held]
            if len(found) >= limit or len(page) < limit:
                return found[:limit], apart
            after = page[-1].attempt

    def unreadable_of(self, session: Session, attempts: Sequence[str]) -> Script[list[Unreadable]]:
        """Names, steps and answers."""
        found: list[Any] = []
        for some in pieces(attempts):
            which = f"attempt IN ({self.dialect.attempts(some)})"
            found += yield from self._stagings(session, which)
            found += yield from self._calls(session, which)
            found += yield from self._confirmations(session, which)
        return [one for one in found if isinstance(one, Unreadable)]

    def unreadable(
        self, session: Session, after: Spot = START, *, old: bool = False
    ) -> Script[tuple[list[Unreadable], Spot | None]]:
        """Set by set, each by its own index. The floor's own attempt is what holds it down: a decision that is
        unsure stands in no index.
        """
        place, behind = after
        sets = self._sets[:OLD_SETS] if old else self._sets
        last: str | None = None
        if place < len(sets):
            found, last = yield from sets[place](session, behind[len(BEHIND) :] if behind else None)
        else:
            found = [(yield from self._floor(session)), *(yield from self.quarantined(session))]
            found += (yield from self.registered(session)).values()
        apart = [one for one in found if isinstance(one, Unreadable)]
        if place == len(sets):
            return apart, None
        return apart, (place + 1, "") if last is None else (place, BEHIND + last)

    def ownerless(self, session: Session) -> Script[list[Unreadable]]:
        """In one message: three conditions, each on an index that holds little but what is not over, and the floor.

        Without that nobody knows of whom a decision may have been forgotten.
        """
        ask = self.dialect
        staged, called = (*rows.STAGING, "undecided"), ("attempt", "call_key", "unfinished")
        try:
            decisions, names, calls, floor = yield from self._ask(
                session,
                f"SELECT {rows.standing_columns(ask, 'd.')} FROM {ask.table('decisions')} AS d "
                f"WHERE {ask.is_open} AND {ask.no_attempt(ask.open_key)} LIMIT {OWNERLESS_MAX}",
                f"SELECT {rows.select(ask, staged, 'n.')} FROM {ask.table('names')} AS n "
                f"WHERE {self._parted('n.', 'undecided')} LIMIT {OWNERLESS_MAX}",
                f"SELECT {rows.select(ask, called, 'c.')} FROM {ask.table('calls')} AS c "
                f"WHERE {self._parted('c.', 'unfinished')} LIMIT {OWNERLESS_MAX}",
                self._floor_row(),
            )
        except StatementFailed as error:
            raise self._refusal(error) from error
        found: list[Any] = [*rows.standing.each(decisions.rows), *rows.undecided.each(names.rows)]
        found += [*rows.owner.each(calls.rows), self._floor_of(floor)]
        return [one for one in found if isinstance(one, Unreadable)]

    def _parted(self, table: str, key: str) -> str:
        """A condition: by its key the row belongs to no attempt, or to another than by its attempt."""
        parted = f"{table}{key} <> {table}attempt OR {self.dialect.no_attempt(table + key)}"
        return f"{table}{key} IS NOT NULL AND ({parted})"

    @functools.cached_property
    def _sets(self) -> tuple[_Set, ...]:
        """What lies below the floor, `OLD_SETS`; then what is not over."""
        by_row, by_key = self._by_row, self._by_key
        return (
            by_row(self._standings, "attempt"),
            by_row(self._stagings, "attempt"),
            by_key(self._calls, "calls", "attempt"),
            by_key(self._confirmations, "confirmations", "attempt"),
            by_row(self._standings, self.dialect.open_key, self.dialect.is_open),
            self._undecided_and_asked,
            by_key(self._unfinished, "calls", "unfinished", "unfinished IS NOT NULL"),
        )

    def _below(self, session: Session) -> Script[str]:
        """A condition: it lies below the floor."""
        floor = yield from self._floor(session)
        return f"attempt <= {self.dialect.attempt(FLOOR_LOWEST if isinstance(floor, Unreadable) else floor)}"

    def _after(self, key: str, after: str | None) -> str:
        """A condition, and AND; nothing where the set begins: a key that was emptied comes first of all."""
        return "" if after is None else f"{key} > {self.dialect.raw(after)} AND "

    def _undecided_and_asked(self, session: Session, after: str | None) -> Script[tuple[list[Any], str | None]]:
        """Names by `undecided`, and what was said by those who must confirm them."""
        found, last = yield from self._by_row(self._undecided, "undecided", "undecided IS NOT NULL")(session, after)
        if last is not None:  # where one is spoilt, it may be listed by the key of another
            found += yield from self._undecided(session, f"undecided = {self.dialect.raw(last)}")
        asked = [one.attempt for one in found if isinstance(one, Unreadable) or one.confirmations]
        if asked:
            listed = ", ".join(map(self.dialect.raw, asked))
            found += yield from self._confirmations(session, f"attempt IN ({listed})")
        return found, last

    def _by_row(self, reading: _Reading, key: str, which: str = "") -> _Set:
        """Of a set in which a key has one row: the next rows, and the last of their keys."""

        def page(session: Session, after: str | None) -> Script[tuple[list[Any], str | None]]:
            later = f"{self._after(key, after)}{which or (yield from self._below(session))}"
            found = yield from reading(session, f"{later} ORDER BY {key} LIMIT {LOOK_MAX}")
            return found, found[-1].attempt if len(found) == LOOK_MAX else None

        return page

    def _by_key(self, reading: _Reading, table: str, key: str, which: str = "") -> _Set:
        """Of one in which it may have many: the next keys, and then their rows."""

        def page(session: Session, after: str | None) -> Script[tuple[list[Any], str | None]]:
            later = f"{self._after(f'r.{key}', after)}{which or (yield from self._below(session))}"
            reply = yield from self._read(
                session,
                f"SELECT {self.dialect.reading(f'r.{key}', key)} FROM {self.dialect.table(table)} AS r "
                f"WHERE {later} GROUP BY r.{key} ORDER BY r.{key} LIMIT {LOOK_MAX}",
            )
            keys = [rows.raw(value) for (value,) in reply.rows]
            if not keys:
                return [], None
            found = yield from reading(session, f"{key} IN ({', '.join(map(self.dialect.raw, keys))})")
            return found, keys[-1] if len(keys) == LOOK_MAX else None

        return page

    def _not_quarantined(self) -> str:
        """Of the decision d. What is quarantined is kept: an operator may still ask what was decided (I17)."""
        quarantine, not_cleared = self.dialect.table("quarantine"), rows.not_cleared(self.dialect, "q.")
        return f"NOT EXISTS (SELECT 1 FROM {quarantine} AS q WHERE q.attempt = d.attempt AND {not_cleared})"

    def retire(self, session: Session, older_than: float, limit: int, after: str = "") -> Script[tuple[str, ...]]:
        """Raise the floor; then, in a transaction of its own, delete what lies below it and has ended.

        A crash between the two leaves records that the next call deletes. In the other order it would leave attempts
        without a record that could be decided again, the other way.
        """
        limit = max(1, min(limit, ATTEMPTS_PER_STATEMENT))
        yield from self._raise_floor(session, older_than)
        yield from self._forget_epochs(session)
        floor = yield from self.floor(session)
        retired = yield from self._retirable(session, floor, older_than, limit, after)
        strays = yield from self._stray_events(session, floor, older_than, limit)
        if retired or strays:
            yield from self._delete(session, retired, strays)
        return tuple(retired)

    def _raise_floor(self, session: Session, older_than: float) -> Script[None]:
        floor = yield from self.floor(session)
        wanted = yield from self._highest_floor(session, floor, first_attempt_of(older_than))
        if wanted > floor:
            yield from self._write(session, *self._floor_statements(floor, wanted))

    def _forget_epochs(self, session: Session) -> Script[None]:
        """Those that no registered resource can show any more. What one has witnessed only rises: a plain read does."""
        epochs, resources = self.dialect.table("epochs"), self.dialect.table("resources")
        oldest = (yield from self._read(session, f"SELECT min(epoch) FROM {resources}")).scalar()
        first = (yield from self._read(session, f"SELECT min(number) FROM {epochs}")).scalar()
        if oldest is not None and first is not None and int(first) < int(oldest):
            yield from self._write(session, f"DELETE FROM {epochs} WHERE number < {int(oldest)}")

    def _highest_floor(self, session: Session, floor: str, cutoff: str) -> Script[str]:
        """How far the floor may rise, by a plain read that holds up nobody. `_floor_statements` makes sure of it.

        Not above the newest record: a clock that has jumped ahead must not lock out every transaction to come. Nor
        above a decision that is unsure: what it would take to forget it, nobody knows.
        """
        decisions, undecided = self.dialect.table("decisions"), self._undecided_between(floor, cutoff)
        calls, reading = self._undecided_calls_between(floor, cutoff), self.dialect.reading
        unsure = f"{self._between('attempt', floor, cutoff)} AND {rows.unsure(self.dialect)}"
        newest = yield from self._read(
            session,
            f"SELECT {reading('attempt', 'attempt')} FROM {decisions} ORDER BY attempt DESC LIMIT {NEWEST_MAX}",
        )
        reply = yield from self._read(
            session,
            f"SELECT (SELECT {reading(f'min({self.dialect.open_key})', 'attempt')} FROM {decisions} "
            f"WHERE {self._open_between(floor, cutoff)}), "
            f"(SELECT {reading('min(n.undecided)', 'attempt')} {undecided}), "
            f"(SELECT {reading('min(c.unfinished)', 'attempt')} {calls}), "
            f"(SELECT {reading('min(attempt)', 'attempt')} FROM {decisions} WHERE {unsure})",
        )
        bounds = [rows.raw(value) for value in reply.rows[0] if value is not None]
        last = next((one for one in map(rows.raw, (value for (value,) in newest.rows)) if is_attempt(one)), None)
        if last is None or not all(map(is_attempt, bounds)):
            return floor  # what holds it down is no attempt: a row that cannot be read
        return min(cutoff, next_attempt(last), *bounds)

    def _between(self, column: str, floor: str, ceiling: str) -> str:
        return f"{column} >= {self.dialect.attempt(floor)} AND {column} < {self.dialect.attempt(ceiling)}"

    def _open_between(self, floor: str, ceiling: str) -> str:
        """The COMMITs that have not ended. There are none below a floor, but what has no attempt for its key."""
        return f"{self.dialect.is_open} AND {self._between(self.dialect.open_key, floor, ceiling)}"

    def _undecided_between(self, floor: str, ceiling: str) -> str:
        """The live names that began from `floor` on and before `ceiling`, from the index that holds little else.

        There are none below a floor: they were decided before it rose to there, and no name is staged below it.
        """
        return (
            f"FROM {self.dialect.table('names')} AS n "
            f"WHERE n.undecided >= {self.dialect.attempt(floor)} AND n.undecided < {self.dialect.attempt(ceiling)} "
            f"AND NOT EXISTS (SELECT 1 FROM {self.dialect.table('decisions')} AS d WHERE d.attempt = n.undecided)"
        )

    def _undecided_calls_between(self, floor: str, ceiling: str) -> str:
        """The same for attempts that called steps: without a decision nobody could undo those any more.

        Once it is decided, a call that waits for a human holds up nothing (I20).
        """
        return (
            f"FROM {self.dialect.table('calls')} AS c "
            f"WHERE c.unfinished >= {self.dialect.attempt(floor)} AND c.unfinished < {self.dialect.attempt(ceiling)} "
            f"AND NOT EXISTS (SELECT 1 FROM {self.dialect.table('decisions')} AS d WHERE d.attempt = c.unfinished)"
        )

    def _floor_statements(self, floor: str, wanted: str) -> tuple[str, ...]:
        """Raise the floor from `floor` to `wanted`, unless an open COMMIT or an undecided name lies below that.

        The lock waits for every transaction that holds the floor to decide or to stage; the UPDATE, with a snapshot
        taken after that wait, sees what they wrote. In one statement, PostgreSQL would look for it with the
        snapshot of before.
        """
        journal, item = self.dialect.table("journal"), self.dialect.key("floor")
        nothing_open = (
            f"NOT EXISTS (SELECT 1 FROM {self.dialect.table('decisions')} WHERE {self._open_between(floor, wanted)})"
        )
        nothing_undecided = (
            f"NOT EXISTS (SELECT 1 {self._undecided_between(floor, wanted)}) "
            f"AND NOT EXISTS (SELECT 1 {self._undecided_calls_between(floor, wanted)})"
        )
        value = self.dialect.attempt(wanted)
        rise = f"UPDATE {journal} SET value = {value} WHERE item = {item} AND value < {value}"
        return *self.dialect.lock_floor(), f"{rise} AND {nothing_open} AND {nothing_undecided}"

    def _retirable(
        self, session: Session, floor: str, older_than: float, limit: int, after: str = ""
    ) -> Script[list[str]]:
        """Below the floor a record can't come back, and one that has ended stays so: a plain read will do."""
        before = self.dialect.seconds(older_than)
        which = f"decided_at < {before} AND (verdict = 'abort' OR ended_at < {before})"
        found, _ = yield from self._forgettable(session, floor, which, limit, after)
        return [one.attempt for one in found]

    def _stray_events(self, session: Session, floor: str, older_than: float, limit: int) -> Script[list[str]]:
        """Attempts that have left events but never a decision: nothing else would ever delete those."""
        decisions = self.dialect.table("decisions")
        reply = yield from self._read(
            session,
            f"SELECT {self.dialect.reading('attempt', 'attempt')} FROM {self.dialect.table('events')} AS e "
            f"WHERE attempt < {self.dialect.attempt(floor)} AND at < {self.dialect.seconds(older_than)} "
            f"AND NOT EXISTS (SELECT 1 FROM {decisions} AS d WHERE d.attempt = e.attempt) "
            f"GROUP BY attempt ORDER BY attempt LIMIT {limit}",
        )
        return [rows.raw(attempt) for (attempt,) in reply.rows]

    def _delete(self, session: Session, retired: Sequence[str], strays: Sequence[str]) -> Script[None]:
        """The last DELETE says again what must never go: a COMMIT that has not ended (I6)."""
        table, key = self.dialect.table, self.dialect.raw
        statements = []
        if retired:
            which = f"attempt IN ({self.dialect.attempts(retired)})"
            statements = [
                self._lock_decisions(which),
                f"DELETE FROM {table('names')} WHERE {which}",
                f"DELETE FROM {table('confirmations')} WHERE {which}",
                f"DELETE FROM {table('calls')} WHERE {which}",
                f"DELETE FROM {table('decisions')} WHERE {which} AND (verdict = 'abort' OR ended_at IS NOT NULL)",
            ]
        trails = ", ".join(key(attempt) for attempt in sorted({*retired, *strays}))
        statements.append(f"DELETE FROM {table('events')} WHERE attempt IN ({trails})")
        yield from self._write(session, *statements)


def pieces(attempts: Sequence[str]) -> list[Sequence[str]]:
    """The attempts in statements of bounded length."""
    every = sorted(set(attempts))
    return [every[at : at + ATTEMPTS_PER_STATEMENT] for at in range(0, len(every), ATTEMPTS_PER_STATEMENT)]
