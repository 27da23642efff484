"""The scripts that read the record, create our tables where there are none, and migrate them.

Guarantees: one session at a time migrates a database; a migration is done as a whole, or, on MariaDB, where each CREATE
and ALTER commits by itself, step by step with a note of each, so that whoever comes after a crash goes on there.
Waiting for a table that transactions hold is bounded: others queue behind whoever waits.

Raises `SchemaMismatch`, `ResourceRefused` and `ResourceUnavailable` (nothing was changed, or so much as they say), and
`Unclear`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from ..errors import ResourceRefused, ResourceUnavailable
from ..ports import Reply, Session, SessionLost, StatementFailed, Unclear, Version
from ..script import Pause, Script, do
from .files import DATABASE, Migration, Schema
from .standing import judge, pending

LOCK = 0x6E6462  # PostgreSQL: the advisory lock of whoever makes or changes our tables
LOCK_WAIT_S = 30  # for somebody else's migration
TABLE_WAIT_S = 2  # for transactions that hold a table; what comes after them waits as well
TABLE_TRIES_MAX = 4
TABLE_PAUSE_S = 0.5

# 23505: somebody who does not take our lock creates a schema at the same time.
BUSY = frozenset({"55P03", "57014", "40P01", "40001", "23505", "1205", "1213", "5", "6", "261", "517", "773"})
NO_RIGHTS = frozenset({"42501", "1044", "1142", "1227", "8"})
NO_TABLE = frozenset({"42P01", "3F000", "1049", "1146", "1"})
# What MariaDB and MySQL say of a step that was done before: the table, column or key is there already, or gone.
ALREADY = frozenset({"1050", "1051", "1060", "1061", "1091", "1146"})

_DURABLY = (
    "SELECT pg_catalog.set_config('synchronous_commit', CASE pg_catalog.current_setting('synchronous_commit')"
    " WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)"
)


@dataclass(frozen=True, slots=True)
class Row:
    """A migration as the record has it."""

    number: int
    works_from: int
    steps: int
    steps_done: int


class Tables:
    """One schema in one database. `whose`: who is told of when something is wrong; `database`: MariaDB's."""

    def __init__(self, schema: Schema, *, whose: str, database: str = "") -> None:
        self.schema = schema
        self.whose = whose
        self._database = "`" + database.replace("`", "``") + "`"
        # Lock names belong to the whole server, and have at most 64 characters.
        self._lock = f"CONCAT('nodoubt.', MD5(CONVERT(x'{database.encode().hex()}' USING utf8mb4)))"

    @property
    def known(self) -> int:
        """The newest version that this release knows."""
        return self.schema.known

    def text(self, sql: str) -> str:
        """The statement, or file, with the database in it."""
        return sql.replace(DATABASE, self._database)

    # ---- what there is

    def version(self, session: Session) -> Script[Version | None]:
        """As the record says; None: nothing was ever applied."""
        return version_of((yield from self._rows(session)))

    def require(self, session: Session) -> Script[None]:
        """Raise `SchemaMismatch` unless this release may work on the tables."""
        judge((yield from self.version(session)), self.schema, self.whose)

    def shuts_out(self, version: Version | None) -> bool:
        """Whether a migration that is pending refuses older coordinators. Where there are no tables, there are none."""
        return version is not None and any(one.refuses_older for one in pending(version, self.schema))

    def record_query(self) -> str:
        """Asks the record: for whoever has more to ask in the same message. `version_of` reads the answer."""
        return self.text(
            f"SELECT number, works_from, steps, steps_done FROM {self.schema.record} "
            f"WHERE part = '{self.schema.part}' ORDER BY number"
        )

    def _rows(self, session: Session) -> Script[list[Row]]:
        try:
            (reply,) = yield from self._run(session, self.record_query())
        except StatementFailed as error:
            if error.code in NO_TABLE:
                return []
            raise ResourceRefused(f"{self.whose}: the record of our tables can't be read: {error}") from error
        return rows_of(reply)

    def script(self, *, after: int = 0) -> str:
        """All of it for a client of the server's, from the migration behind `after` on: record, tables, and rows.

        It may be run again, whole, wherever it, or `migrate`, has stopped, up to the first migration that changes what
        stands: that one fails where it was done before.
        """
        parts = [] if after else [self.text(self.schema.record_sql())]
        for migration in self.schema.migrations[after:]:
            row = self._row_sql(migration, len(migration.statements))
            if migration.repeatable:
                mariadb = self.schema.kind == "mariadb"  # where `migrate` may have noted a part of its steps
                row += " ON DUPLICATE KEY UPDATE steps_done = steps" if mariadb else " ON CONFLICT DO NOTHING"
            tables = self.text(migration.sql).strip()
            if self.schema.kind == "mariadb":
                parts.append(f"{tables}\n\n{row};")
            else:
                parts.append(f"BEGIN;\n\n{row};\n\n{tables}\n\nCOMMIT;")
        return "\n\n".join(part.strip() for part in parts) + "\n"

    # ---- what is done about it

    def create(self, session: Session) -> Script[None]:
        """Make the tables where there are none. Those that stand must be such that this release may work on them.

        Where the first migration has begun, somebody is at it or has crashed in it: wait, and finish it.
        """
        version = yield from self.version(session)
        if version is None or version.stands == 0:
            yield from self.migrate(session)
        elif version.stands < self.known and self.schema.kind == "mariadb":
            yield from self._let_finish(session)
        yield from self.require(session)

    def _let_finish(self, session: Session) -> Script[None]:
        """Older tables, or somebody who makes new ones and is between two migrations: that one holds the lock."""
        yield from self._run(
            session, f"SELECT GET_LOCK({self._lock}, {LOCK_WAIT_S}); SELECT RELEASE_LOCK({self._lock})"
        )

    def migrate(self, session: Session) -> Script[None]:
        """Apply what is missing. Refuses, before it does anything, what only a newer release knows."""
        if self.schema.kind == "mariadb":
            yield from self._migrate_by_steps(session)
        else:
            yield from self._migrate_at_once(session)
        yield from self.require(session)

    def _missing(self, version: Version | None) -> tuple[Migration, ...]:
        if version is not None and version.works_from > self.schema.known:
            judge(version, self.schema, self.whose)
        return pending(version, self.schema)

    # ---- where a transaction holds all of it

    def _migrate_at_once(self, session: Session) -> Script[None]:
        tries = 0
        while True:
            version = yield from self.version(session)
            missing = self._missing(version)
            if not missing:
                return
            try:
                # All of the first ones together: nobody else must find a part of them, and take it for old tables.
                yield from self._at_once(session, missing if version is None else missing[:1], first=version is None)
            except StatementFailed as error:
                tries += 1
                if (yield from self.version(session)) != version:
                    continue  # somebody else was faster
                if error.code not in BUSY or tries >= TABLE_TRIES_MAX:
                    self._refuse(error, missing[0])
                yield Pause(TABLE_PAUSE_S)  # let those pass who have queued behind us

    def _at_once(self, session: Session, migrations: Iterable[Migration], *, first: bool) -> Script[None]:
        """The row first: of two who do it at a time, the second one's fails, and with it all the rest."""
        statements = [self.schema.record_sql()] if first else []
        for migration in migrations:
            statements += (self._row_sql(migration, len(migration.statements)), migration.sql)
        message = ";\n".join((*self._begin(), *statements, "COMMIT"))
        try:
            replies = yield from self._run(session, message)
        except StatementFailed:
            yield from self._rollback(session)
            raise
        if replies[-1].tag != "COMMIT":
            raise Unclear(f"{self.whose}: the server answered {replies[-1].tag!r} to the COMMIT of a migration")

    def _begin(self) -> tuple[str, ...]:
        if self.schema.kind == "sqlite":
            return "PRAGMA main.synchronous = EXTRA", "BEGIN IMMEDIATE"
        return (
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
            _DURABLY,
            f"SET LOCAL lock_timeout = '{LOCK_WAIT_S}s'",
            f"SELECT pg_catalog.pg_advisory_xact_lock({LOCK})",
            f"SET LOCAL lock_timeout = '{TABLE_WAIT_S}s'",
        )

    def _row_sql(self, migration: Migration, steps_done: int) -> str:
        return self.text(
            f"INSERT INTO {self.schema.record} (part, number, works_from, steps, steps_done) VALUES "
            f"('{self.schema.part}', {migration.number}, {migration.works_from}, {len(migration.statements)}, "
            f"{steps_done})"
        )

    def _rollback(self, session: Session) -> Script[None]:
        try:
            yield from self._run(session, "ROLLBACK")
        except StatementFailed:
            # SQLite says so where nothing is open, as after a BEGIN that found the file locked.
            if self.schema.kind != "sqlite":
                session.kill()

    # ---- where each step commits by itself

    def _migrate_by_steps(self, session: Session) -> Script[None]:
        if not self._missing((yield from self.version(session))):
            return  # who may not create, or lock, can still use what is there
        try:
            (held,) = yield from self._run(session, f"SELECT GET_LOCK({self._lock}, {LOCK_WAIT_S})")
            if held.scalar() != 1:
                raise ResourceUnavailable(f"{self.whose}: somebody else is migrating our tables: try again")
            yield from self._run(
                session,
                f"SET SESSION lock_wait_timeout = {TABLE_WAIT_S}, innodb_lock_wait_timeout = {TABLE_WAIT_S}; "
                f"{self.text(self.schema.record_sql())}",
            )
            rows = {row.number: row for row in (yield from self._rows(session))}
            for migration in self._missing(version_of(rows.values())):
                yield from self._by_steps(session, migration, rows.get(migration.number))
            yield from self._run(
                session,
                "SET SESSION lock_wait_timeout = DEFAULT, innodb_lock_wait_timeout = DEFAULT; "
                f"SELECT RELEASE_LOCK({self._lock})",
            )
        except StatementFailed as error:
            session.kill()
            self._refuse(error, None)
        except BaseException:
            session.kill()  # with the session goes the lock
            raise

    def _by_steps(self, session: Session, migration: Migration, row: Row | None) -> Script[None]:
        """Go on where the record says. Of the first step from there nobody knows whether it was done."""
        done = 0 if row is None else row.steps_done
        if row is None:
            yield from self._run(session, self._row_sql(migration, 0))
        which = f"WHERE part = '{self.schema.part}' AND number = {migration.number}"
        for number, statement in enumerate(migration.statements[done:], done + 1):
            note = self.text(f"UPDATE {self.schema.record} SET steps_done = {number} {which}")
            begun = row is not None and number == done + 1
            begun, error = yield from self._step(session, self.text(statement), note, begun=begun)
            if error is None:
                continue
            if number == 1 and not begun:
                yield from self._run(session, self.text(f"DELETE FROM {self.schema.record} {which}"))
                raise error
            self._refuse(error, migration, after=number - 1)

    def _step(
        self, session: Session, statement: str, note: str, *, begun: bool
    ) -> Script[tuple[bool, StatementFailed | None]]:
        """Take a step and note it. Whether it may have been taken, noted or not, and why it is not noted.

        Rows that it changes are committed with its note. A CREATE or ALTER commits by itself: from then on, whatever
        holds up the note, nobody may take it for one that was not taken.
        """
        turn = 0
        while True:
            try:
                try:
                    yield from self._run(session, f"START TRANSACTION; {statement}")
                except StatementFailed as error:
                    if not begun or error.code not in ALREADY:
                        raise
                begun = True
                yield from self._run(session, f"{note}; COMMIT")
                return begun, None
            except StatementFailed as error:
                yield from self._run(session, "ROLLBACK")
                turn += 1
                if error.code not in BUSY or turn == TABLE_TRIES_MAX:
                    return begun, error
            yield Pause(TABLE_PAUSE_S)

    # ---- how it is asked, and what is said when it can't be done

    def _run(self, session: Session, message: str) -> Script[tuple[Reply, ...]]:
        try:
            return (yield from do(session, "run", message))  # type: ignore[no-any-return]
        except SessionLost as error:
            raise Unclear(
                f"{self.whose} gave no answer, and our tables may have been changed or not: run nodoubt schema apply "
                f"again: {error}"
            ) from error

    def _refuse(self, error: StatementFailed, migration: Migration | None, *, after: int = 0) -> NoReturn:
        changed = "nothing was changed"
        if migration is not None and self.schema.kind == "mariadb":
            changed = (
                f"migration {migration.number} stopped after step {after} of {len(migration.statements)}; nodoubt "
                "schema apply goes on from there"
            )
        if error.code in BUSY:
            raise ResourceUnavailable(
                f"{self.whose}: transactions that are prepared or under way hold our tables, and a migration needs "
                f"them for itself, or somebody else is migrating: {changed}. End those (nodoubt ls), or try again: "
                f"{error}"
            ) from error
        if error.code in NO_RIGHTS:
            raise ResourceRefused(
                f"{self.whose}: this account may not create or change our tables; {changed}. Run nodoubt schema apply "
                f"with one that may, or have an administrator run what nodoubt schema sql prints: {error}"
            ) from error
        raise ResourceRefused(f"{self.whose}: our tables can't be made; {changed}: {error}") from error


def rows_of(reply: Reply) -> list[Row]:
    """The answer to `Tables.record_query`."""
    return [Row(*map(int, row)) for row in reply.rows]


def version_of(rows: Iterable[Row]) -> Version | None:
    """What the record's rows say together.

    A migration that has begun counts already for whom it refuses, and not yet for what it makes.
    """
    known = sorted(rows, key=lambda row: row.number)
    if not known:
        return None
    finished = [row.number for row in known if row.steps_done >= row.steps]
    return Version(max(finished, default=0), max(row.works_from for row in known), len(finished) < len(known))
