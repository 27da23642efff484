"""Watching one branch's work: which rows it touches, which tables it reads and writes, and what it may not do.

SQLite asks its authorizer as a statement is compiled, and tells its preupdate hook of each row about to change. The
hook gives row keys, not images: what the rows hold is read once, at prepare. (A session changeset would not do: it
skips tables without a primary key and loses rowids.)

Guarantees: what cannot be staged is refused by name while the user is at work, never at commit; a change that the
hook did not see, or that this module does not understand, stops the prepare (`Branch.refuse_unseen`).

Must not: run SQL (neither hook nor authorizer may touch the connection).
"""

from __future__ import annotations

from typing import Any

from ...errors import UsageError
from ...ports import Refused
from .face import Change, is_ours
from .record import Row
from .tables import Schema

SAVEPOINT = "nodoubt_branch"
Locks = dict[str, tuple[str, str]]  # table -> the branch that has it locked, and how ("X" before "S")

_WRITES = frozenset({"INSERT", "UPDATE", "DELETE"})
_QUIET = frozenset({"SELECT", "FUNCTION", "RECURSIVE"})
_READING_PRAGMAS = frozenset(
    {
        "application_id",
        "data_version",
        "foreign_key_list",
        "foreign_keys",
        "function_list",
        "index_info",
        "index_list",
        "index_xinfo",
        "schema_version",
        "table_info",
        "table_list",
        "table_xinfo",
        "user_version",
    }
)
_PRAGMAS_WITH_NAMES = frozenset({"foreign_key_list", "index_info", "index_list", "index_xinfo"}) | frozenset(
    {"table_info", "table_list", "table_xinfo"}
)
_SCHEMA_TABLES = frozenset({"sqlite_master", "sqlite_schema"})
_STORED_PRAGMAS = frozenset({"application_id", "user_version"})  # part of the file, rolled back with a transaction

TRANSACTION = "BEGIN, COMMIT and ROLLBACK belong to the coordinator: leave the block to end the transaction"
SAVEPOINTS = "savepoints of a branch are made by connection.begin_nested(): it must know which work lies behind one"
ATTACH = "{0} inside a transaction: only the file itself takes part. Make the other file a resource of its own"
PRAGMA = "PRAGMA {0} inside a transaction: it would change the connection, or the file, beyond the transaction"
TEMPORARY = "temporary tables, views and triggers belong to a connection, not to the file, and cannot take part"
DEFINITION = (
    "{0} changes what SQLite itself keeps of the file, such as its schema, and that cannot be prepared: run it in a "
    "transaction of a coordinator with this one database only, or as a migration"
)


class Branch:
    """The work of one branch on one connection, from `begin` to its end.

    `schema` is None where the branch can only end in one phase (a coordinator with one resource): its rows need not be
    captured then, and it may change the schema.
    """

    def __init__(self, gid: str, schema: Schema | None, locks: Locks, changes: int) -> None:
        self.gid = gid
        self.schema = schema
        self.locks = locks
        self.touched: dict[str, set[Row]] = {}
        self.reads: set[str] = set()
        self.writes: set[str] = set()
        self.defined = False  # the schema, or a number in the file's header, was changed
        self.broken: Refused | None = None
        self.steps = False  # a savepoint of ours is being set, released or rolled back to
        self._changes_before = changes
        self._seen = 0

    # -- as a statement is compiled
    def on_access(
        self, action: str, first: str | None, second: str | None, database: str | None, trigger: str | None
    ) -> None:
        """The authorizer: raises `UsageError` for what may not be done, `Refused` for what may be later.

        What `first` and `second` are depends on the action.
        """
        if action == "READ":
            if first and (database == "main" or database is None):
                self.reads.add(first)
        elif action in _WRITES:
            self._write(first or "", database, trigger)
        elif action == "PRAGMA":
            self._pragma((first or "").lower(), second)
        elif action == "SAVEPOINT":
            if not self.steps:
                raise UsageError(SAVEPOINTS)
        elif action == "TRANSACTION":
            raise UsageError(TRANSACTION)
        elif action in ("ATTACH", "DETACH"):
            raise UsageError(ATTACH.format(action))
        elif action not in _QUIET:
            self._define(action, first or "", second or "", database)

    def _write(self, table: str, database: str | None, trigger: str | None) -> None:
        if database == "temp" and self.schema is None and table.startswith("sqlite_temp_"):
            return  # ALTER TABLE looks for temporary triggers to rename; to create one is another action, refused below
        if database == "temp":
            raise UsageError(TEMPORARY)
        if database != "main":
            raise UsageError(ATTACH.format(f"a write to {database}.{table}"))
        if is_ours(table):
            by = f" (by trigger {trigger})" if trigger else ""
            raise UsageError(f"{table} is written by nodoubt alone{by}")
        if table in self.locks:
            raise Refused(
                f"table {table} is locked by the prepared branch {self.locks[table][0]}; nothing was done, try again "
                "when that has been committed or rolled back",
                retry=True,
            )
        if self.schema is not None and table in self.schema.barred:
            raise UsageError(f"cannot stage a write: {self.schema.barred[table]}")
        if self.schema is not None and table.startswith("sqlite_"):
            # SQLite asks for the row in its schema first, and says only then which statement wants it.
            what = "DDL (CREATE, DROP, ALTER)" if table in _SCHEMA_TABLES else f"a write to {table}"
            raise UsageError(DEFINITION.format(what))
        self.writes.add(table)

    def _pragma(self, name: str, value: str | None) -> None:
        if name in _STORED_PRAGMAS and value is not None and self.schema is None:
            self.defined = True
        elif name not in _READING_PRAGMAS or (value is not None and name not in _PRAGMAS_WITH_NAMES):
            raise UsageError(PRAGMA.format(name))

    def _define(self, action: str, first: str, second: str, database: str | None) -> None:
        """DDL, ANALYZE, REINDEX, and whatever a later SQLite may bring."""
        what = action.replace("_", " ")
        if "TEMP" in action or database == "temp":
            raise UsageError(TEMPORARY)
        if self.schema is not None:
            raise UsageError(DEFINITION.format(what))
        if action not in ("DROP_TRIGGER", "ANALYZE", "REINDEX") and (is_ours(first) or is_ours(second)):
            # DROP TABLE of a user's table drops our guards with it. They come back with the next prepare.
            raise UsageError(f"{what}: names that begin with nodoubt_ are reserved")
        if self.locks:
            table, (gid, _) = next(iter(self.locks.items()))
            raise Refused(
                f"{what}: the schema cannot be changed while the prepared branch {gid} has {table} locked; nothing was "
                "done, try again when it has been committed or rolled back",
                retry=True,
            )
        self.defined = True

    # -- as a row changes
    def on_change(self, change: Change) -> None:
        """The preupdate hook. It cannot stop the statement, so what it finds wrong is remembered."""
        try:
            self._touch(change)
        except Exception as error:  # a key that is not UTF-8, or a row the hook cannot show
            self.broken = self.broken or Refused(f"the key of a row in {change.table_name} cannot be read: {error}")

    def _touch(self, change: Change) -> None:
        table = self.schema.tables.get(change.table_name) if self.schema is not None else None
        if table is None or change.database_name != "main":
            what = f"{change.database_name}.{change.table_name}"
            self.broken = self.broken or Refused(f"a write to {what} was not expected, so it cannot be staged")
            return
        self._seen += 1
        keys = self.touched.setdefault(table.name, set())
        if table.key_places:
            for row in (change.old, change.new):
                if row is not None:
                    keys.add(tuple(row[place] for place in table.key_places))
            return
        if change.op != "INSERT":
            keys.add((change.rowid,))
        if change.op != "DELETE":
            keys.add((change.rowid_new,))

    # -- what came of it
    def wrote(self, changes: int) -> bool:
        """False only if surely nothing was written. `changes`: the connection's count now."""
        if self.schema is None:
            return self.defined or bool(self.writes)
        if self._seen > 0 or changes != self._changes_before:
            return True
        tables = self.schema.tables
        return any(tables[name].counted for name in self.writes if name in tables)

    def refuse_unseen(self, changes: int) -> None:
        """Raise unless every change that SQLite has counted went through the hook."""
        if self.broken is not None:
            raise self.broken
        counted = changes - self._changes_before
        if counted > self._seen:
            raise Refused(
                f"SQLite counted {counted} changed rows and showed {self._seen}: the work cannot be staged as it was "
                "done, and nothing was"
            )

    def locked(self) -> tuple[set[str], set[str]]:
        """The tables to lock: those the branch writes, and those it relies on (read, or tied by a foreign key).

        A parent that a foreigner deletes, or a child he adds, while the branch is prepared would break a
        foreign key that is not checked again; a row that was read and then changed would break what was decided by it.
        """
        if self.schema is None:
            return set(), set()
        known = self.schema.tables
        exclusive = set(self.touched) | (self.writes & known.keys())
        kin = {other for name in exclusive for other in self.schema.kin.get(name, ())}
        return exclusive, ((self.reads & known.keys()) | kin) - exclusive

    def keys(self) -> dict[str, list[Any]]:
        """The touched rows' keys by table."""
        return {name: list(found) for name, found in sorted(self.touched.items()) if found}
