"""The table of keys in each kind of database: what is asked of it, and under which lock.

Guarantees: `claim` never waits. A key that a transaction has claimed, open, prepared or in doubt, is told as in flight:

- PostgreSQL: an advisory lock of the transaction, which PREPARE TRANSACTION keeps and a restart of the server restores.
  Trying for it waits for nobody; the row itself is written with the receipt, and its primary key has the last word.
- MariaDB: the row is inserted first, with a lock wait of zero; a prepared branch keeps its row locks.
- SQLite: one transaction writes at a time, and a prepared one has left its work in a record; so the row is written with
  that record, naming it, and counts as in flight while the record is there. Whoever rolls it back deletes the row.

Must not: wait for a branch, or tell a row that was merely seen: `confirm` flushes it first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..journals import rows
from ..journals.dialects import Dialect, MariaDBDialect, PostgresDialect, SqliteDialect
from ..journals.transactions import Transactions
from ..ports import Reply, Session, StatementFailed, Unclear, Work
from ..script import Script
from .keys import Key

FORGET_MAX = 500  # rows of one batch
OUT_OF_DATE = "40001"  # PostgreSQL, above READ COMMITTED: the row is there in our snapshot, and is deleted since


class Claim(Enum):
    """How trying for a key ended."""

    TAKEN = "taken"
    IN_FLIGHT = "in flight"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Row:
    """A key's row that can be seen. `pending`: it belongs to a prepared branch, so nothing has happened yet."""

    payload: str
    result: bytes
    pending: bool


class Store(Transactions):
    """The scripts; what differs is in the subclasses."""

    whose = "the table of idempotency keys"
    as_hex = "HEX(result)"
    pending = "0"

    def __init__(self, dialect: Dialect) -> None:
        super().__init__(dialect)
        self.table = dialect.table("keys")

    def look(self, session: Session, key: Key) -> Script[Row | None]:
        """A plain read: advice, never grounds to replay."""
        return _row((yield from self._read(session, self._select(key))))

    def confirm(self, session: Session, key: Key) -> Script[Row | None]:
        """The row, flushed by a forced UPDATE of its own: one that is seen may be forgotten in a crash (I5)."""
        _, reply = yield from self._write(
            session, f"UPDATE {self.table} SET confirms = confirms + 1 {self._where(key)}", self._select(key)
        )
        return _row(reply)

    def claim(self, session: Session, work: Work, key: Key) -> Script[Claim]:
        """Within the branch, before anything else of it."""
        raise NotImplementedError
        yield

    def closing(self, work: Work, key: Key, result: bytes, keep_s: float) -> tuple[str, ...]:
        """What the branch ends with, in the same message as its receipt."""
        kept_until = f"{self.dialect.now} + {self.dialect.seconds(keep_s)}"
        return (self._insert(work, key, self.blob(result), kept_until),)

    def take_over(self, session: Session, before: Key) -> Script[bool]:
        """Within the branch, which has claimed the key that comes after `before`: whether that is still the last one.

        Its row goes with this transaction, or stays with it. Whoever deletes it is its one successor, whatever
        snapshot they look at, and however much has happened since they looked.
        """
        try:
            (reply,) = yield from self._ask(session, f"DELETE FROM {self.table} {self._where(before)}")
        except StatementFailed as error:
            if error.code != OUT_OF_DATE:
                raise
            return False
        return reply.count == 1

    def leave_behind(self, before: Key) -> tuple[str, ...]:
        """What the branch ends with besides, where `take_over` could not delete."""
        return ()

    def last(self, session: Session, scope: str) -> Script[tuple[str, Row] | None]:
        """The last key of this scope, with its row: a plain read."""
        reply = yield from self._read(
            session,
            f"SELECT {self._columns()}, {self.dialect.reading('idempotency_key', 'idempotency_key')} FROM {self.table} "
            f"WHERE scope = {self.dialect.key(scope)} ORDER BY idempotency_key DESC LIMIT 1",
        )
        if not reply.rows:
            return None
        *columns, key = reply.rows[0]
        return rows.raw(key), _row_of(columns)

    def drop(self, session: Session, last: Key) -> Script[None]:
        """Delete the last key of its scope, and so the scope: nobody takes over from what is not there."""
        yield from self._write(session, f"DELETE FROM {self.table} {self._where(last)}")

    def due(self, now: float) -> str:
        """A condition: it was kept long enough, by the server's clock and by `now`, that of whoever cleans up."""
        return f"kept_until < {self.dialect.now} AND kept_until < {self.dialect.seconds(now)}"

    def forget(self, session: Session, now: float) -> Script[int]:
        """Delete a batch of rows that are `due`; how many there were."""
        raise NotImplementedError
        yield

    def blob(self, value: bytes) -> str:
        """A literal for bytes."""
        return f"x'{value.hex()}'"

    def _insert(self, work: Work, key: Key, result: str, kept_until: str) -> str:
        # A plain INSERT: never ON CONFLICT, which would let a second effect pass.
        return (
            f"INSERT INTO {self.table} (scope, idempotency_key, payload, result, xid, confirms, kept_until) VALUES "
            f"({self.dialect.key(key.scope)}, {self.dialect.key(key.key)}, {self.dialect.key(key.payload)}, {result}, "
            f"'{work.xid.gid}', 0, {kept_until})"
        )

    def _select(self, key: Key) -> str:
        return f"SELECT {self._columns()} FROM {self.table} {self._where(key)}"

    def _columns(self) -> str:
        return f"{self.dialect.reading('payload', 'payload')}, {self.as_hex}, {self.pending}"

    def _where(self, key: Key) -> str:
        return f"WHERE scope = {self.dialect.key(key.scope)} AND idempotency_key = {self.dialect.key(key.key)}"


def _row(reply: Reply) -> Row | None:
    return _row_of(reply.rows[0]) if reply.rows else None


def _row_of(columns: Sequence[Any]) -> Row:
    """Raises `UnreadableRecord`: whether its effect happened is not guessed at."""
    payload, result, pending = columns
    try:
        return Row(rows.text(payload), bytes.fromhex(rows.text(result)), bool(pending))
    except rows.UNREADABLE as error:
        raise rows.unreadable("the row of an idempotency key", error) from error


class PostgresStore(Store):
    """PostgreSQL."""

    as_hex = "pg_catalog.encode(result, 'hex')"

    def claim(self, session: Session, work: Work, key: Key) -> Script[Claim]:
        """Two statements, so that the second's snapshot is newer than the lock, at READ COMMITTED.

        At the stricter levels it is not, and the primary key refuses the commit of a transaction that came too late.
        """
        try_lock = f"SELECT pg_catalog.pg_try_advisory_xact_lock({key.lock})"
        locked, row = yield from self._ask(session, try_lock, self._select(key))
        if locked.scalar() is not True:
            return Claim.IN_FLIGHT
        return Claim.DONE if row.rows else Claim.TAKEN

    def forget(self, session: Session, now: float) -> Script[int]:
        """Waits for nobody who confirms a row at this moment."""
        some = (
            f"SELECT ctid FROM {self.table} WHERE {self.due(now)} ORDER BY kept_until "
            f"LIMIT {FORGET_MAX} FOR UPDATE SKIP LOCKED"
        )
        (reply,) = yield from self._write(
            session, f"DELETE FROM {self.table} WHERE ctid = ANY (ARRAY({some})) RETURNING 1"
        )
        return len(reply.rows)

    def blob(self, value: bytes) -> str:
        return f"pg_catalog.decode('{value.hex()}', 'hex')"


class MariaDBStore(Store):
    """MariaDB. MySQL does not know the clause: there a second caller waits for `innodb_lock_wait_timeout`."""

    no_wait = "/*M! SET STATEMENT innodb_lock_wait_timeout = 0 FOR */ "

    def claim(self, session: Session, work: Work, key: Key) -> Script[Claim]:
        """1205: somebody's uncommitted row has this key. 1062: a committed one has. Either way we roll back."""
        try:
            yield from self._ask(session, self.no_wait + self._insert(work, key, "x''", "0"))
        except StatementFailed as error:
            if error.code == "1205":
                return Claim.IN_FLIGHT
            if error.code == "1062":
                return Claim.DONE
            raise
        return Claim.TAKEN

    def closing(self, work: Work, key: Key, result: bytes, keep_s: float) -> tuple[str, ...]:
        """The row anew. An UPDATE could find none, and say nothing; an INSERT leaves one, or ends the commit."""
        return f"DELETE FROM {self.table} {self._where(key)}", *super().closing(work, key, result, keep_s)

    def forget(self, session: Session, now: float) -> Script[int]:
        """Each row by a statement of its own: a range would lock its gaps, and with them the keys of others."""
        due = self.due(now)
        old = yield from self._read(
            session,
            f"SELECT HEX(scope), HEX(idempotency_key) FROM {self.table} WHERE {due} ORDER BY kept_until "
            f"LIMIT {FORGET_MAX}",
        )
        if not old.rows:
            return 0
        replies = yield from self._write(
            session,
            *(
                f"DELETE FROM {self.table} WHERE scope = x'{scope}' AND idempotency_key = x'{key}' AND {due}"
                for scope, key in old.rows
            ),
        )
        return sum(reply.count for reply in replies)


class SqliteStore(Store):
    """SQLite."""

    pending = "EXISTS (SELECT 1 FROM main.nodoubt_prepared AS p WHERE p.xid = nodoubt_keys.xid)"

    def claim(self, session: Session, work: Work, key: Key) -> Script[Claim]:
        """BEGIN IMMEDIATE has locked the file: nobody else writes, so what is not there now will not be."""
        row = yield from self.look(session, key)
        if row is None:
            return Claim.TAKEN
        return Claim.IN_FLIGHT if row.pending else Claim.DONE

    def take_over(self, session: Session, before: Key) -> Script[bool]:
        """What a prepared branch deletes of ours would be gone although it were rolled back; so the row stays.

        The file is locked: what is the last one now is so until this branch has ended, or is prepared with the next.
        """
        last = yield from self.last(session, before.scope)
        return last is not None and last[0] == before.key and not last[1].pending

    def leave_behind(self, before: Key) -> tuple[str, ...]:
        """The rows that `before` has followed: that one is surely committed, so they are history."""
        scope, key = self.dialect.key(before.scope), self.dialect.key(before.key)
        return (f"DELETE FROM {self.table} WHERE scope = {scope} AND idempotency_key < {key}",)

    def drop(self, session: Session, last: Key) -> Script[None]:
        """The one that it has followed, too, which would be the last one again."""
        yield from self._write(session, f"DELETE FROM {self.table} WHERE scope = {self.dialect.key(last.scope)}")

    def forget(self, session: Session, now: float) -> Script[int]:
        """Not what is still prepared: its effect is to come."""
        some = (
            f"SELECT scope, idempotency_key FROM {self.table} WHERE {self.due(now)} "
            f"AND NOT {self.pending} ORDER BY kept_until LIMIT {FORGET_MAX}"
        )
        (reply,) = yield from self._write(
            session, f"DELETE FROM {self.table} WHERE (scope, idempotency_key) IN ({some}) RETURNING 1"
        )
        return len(reply.rows)


def store_of(kind: str, database: str) -> Store:
    """For a participant of that kind. `database`: MariaDB's."""
    match kind:
        case "postgres":
            return PostgresStore(PostgresDialect())
        case "mariadb":
            return MariaDBStore(MariaDBDialect(database))
        case "sqlite":
            return SqliteStore(SqliteDialect())
    raise Unclear(f"there are no idempotency keys on {kind}")
