"""What we must know of a file's tables to stage work on them, and the guards that lock them.

SQLite cannot lock a table beyond a transaction. A guard is a BEFORE trigger on a user's table that fails with our
message while `nodoubt_locks` names the table: triggers are in the file, so a plain sqlite3 shell meets them too.
Guards are created by the first prepare that locks a table (one change of the schema, once per table), in that
prepare's own transaction, and then stay: every ordinary write pays a look-up in a small table for each row. Measured:
0.15 to 0.2 microseconds a row, which a transaction of a few rows does not notice, and which makes a bulk insert without
flushes 1.8 times, a bulk update of a narrow table 5 times as long. Tables that are never staged pay nothing.

Must not: put a trigger on a shadow table (SQLite then recurses to death on an FTS5 table).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from .face import Connection, is_ours, kept, quoted

LOCKED = "nodoubt: this table is locked by a prepared transaction; try again when it has been committed or rolled back"
GUARD = "nodoubt_guard_"
OPERATIONS = ("INSERT", "UPDATE", "DELETE")
ROWID_NAMES = ("_rowid_", "rowid", "oid")

_COLUMNS = """
    SELECT t.name, t.wr, c.name, c.pk, c.hidden
    FROM pragma_table_list AS t, pragma_table_xinfo(t.name, 'main') AS c
    WHERE t.schema = 'main' AND t.type = 'table' ORDER BY t.name, c.cid"""
_PARENTS = """
    SELECT t.name, f."table" FROM pragma_table_list AS t, pragma_foreign_key_list(t.name, 'main') AS f
    WHERE t.schema = 'main' AND t.type = 'table'"""
_UNIQUE = """
    SELECT t.name, iif(i.partial, NULL, x.name)
    FROM pragma_table_list AS t, pragma_index_list(t.name, 'main') AS i, pragma_index_xinfo(i.name, 'main') AS x
    WHERE t.schema = 'main' AND t.type = 'table' AND i."unique" AND x.key"""
_ENTRIES = """
    SELECT CAST(tbl_name AS BLOB), type, CAST(name AS BLOB), CAST(sql AS BLOB)
    FROM main.sqlite_schema ORDER BY type, name"""
_VIRTUAL, _STORED = 2, 3  # `hidden` of generated columns


@dataclass(frozen=True, slots=True)
class Table:
    """One table whose rows can be staged. `key` names a row: its rowid, or the primary key where there is none."""

    name: str
    columns: tuple[str, ...]  # those that can be written
    key: tuple[str, ...]
    key_places: tuple[int, ...]  # where the key stands in a row; () for a rowid
    counted: bool  # AUTOINCREMENT: even an insert that is ignored uses up a number
    shape: str  # a digest of its definition and its indexes': it changes with everything that could move a row
    guarded: bool  # its guards are there, as this release writes them
    inert: bool  # nothing else acts when a row is written: no other trigger, no CHECK, no foreign key from or to it
    loose: frozenset[str]  # columns that no UNIQUE index looks at: their values are in no other row's way


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of the file at one `version`. `barred`: why a table cannot be staged."""

    version: int
    tables: dict[str, Table]
    barred: dict[str, str]
    kin: dict[str, frozenset[str]]  # by foreign keys, in both directions
    counts: bool  # AUTOINCREMENT's counters are there


def load(connection: Connection) -> Schema:
    """The schema as it is now. Read inside a write transaction, so that it stays true until that ends."""
    here = kept(connection)
    version = connection.query("PRAGMA main.schema_version")[0][0]
    if here.schema is None or here.schema.version != version:
        here.schema = _read(connection, version)
    return here.schema


Entry = tuple[str, str, str | None]  # of sqlite_schema: type, name, sql
Column = tuple[str, int, int]  # name, its place in the primary key, `hidden`
Key = tuple[tuple[str, ...], tuple[int, ...]]


def _read(connection: Connection, version: int) -> Schema:
    barred = {
        name: f"{name} is a virtual table, or the storage of one: SQLite has no triggers there, so it cannot be locked"
        for (name,) in connection.look(
            "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type IN ('virtual', 'shadow')"
        )
    }
    entries: dict[str, list[Entry]] = {}
    for table, kind, name, sql in connection.look(_ENTRIES):
        # A trigger names its table as it likes.
        entries.setdefault(_folded(_decoded(table)), []).append((kind, _decoded(name), sql and _decoded(sql)))
    columns: dict[str, list[Column]] = {}
    keyed: dict[str, bool] = {}
    for name, without_rowid, column, place, hidden in connection.look(_COLUMNS):
        if not name.startswith("sqlite_") and not is_ours(name):
            columns.setdefault(name, []).append((column, place, hidden))
            keyed[name] = bool(without_rowid)
    parents: dict[str, set[str]] = {}
    for name, parent in connection.look(_PARENTS):
        # A foreign key names its parent as somebody wrote it: SQLite folds ASCII letters, and so do we.
        parents.setdefault(name, set()).add(_folded(parent))
    tied = {_folded(name) for name, found in parents.items() if found}.union(*parents.values())
    unique: dict[str, set[str | None]] = {}
    for name, column in connection.look(_UNIQUE):
        unique.setdefault(name, set()).add(column)
    tables: dict[str, Table] = {}
    for name, found in columns.items():
        key = _primary(name, found) if keyed[name] else _rowid(name, found)
        if isinstance(key, str):
            barred[name] = key
        else:
            made = entries[_folded(name)]
            tables[name] = _table(name, found, key, made, unique.get(name, set()), tied=_folded(name) in tied)
    return Schema(version, tables, barred, _kin(parents, tables), "sqlite_sequence" in entries)


def _table(
    name: str, columns: list[Column], key: Key, entries: list[Entry], unique: set[str | None], *, tied: bool
) -> Table:
    made = [entry for entry in entries if entry[0] in ("table", "index")]
    triggers = {(trigger, sql) for kind, trigger, sql in entries if kind == "trigger"}
    guards = {_guard(name, operation) for operation in OPERATIONS}
    words = "".join(sql or "" for kind, _, sql in made if kind == "table").upper()
    written = tuple(column for column, _, hidden in columns if hidden not in (_VIRTUAL, _STORED))
    return Table(
        name,
        written,
        *key,
        counted="AUTOINCREMENT" in words,
        shape=hashlib.sha256(json.dumps(made).encode()).hexdigest(),
        guarded=guards <= triggers,
        inert=triggers <= guards and not tied and "CHECK" not in words,
        # A part of the rows, an expression or a generated column can depend on any other column.
        loose=frozenset(written) - unique if unique <= set(written) else frozenset(),
    )


def _rowid(name: str, columns: list[Column]) -> Key | str:
    taken = {_folded(column) for column, _, _ in columns}
    free = next((alias for alias in ROWID_NAMES if alias not in taken), None)
    if free is None:
        return f"{name} has columns called rowid, oid and _rowid_: its rows cannot be named. Rename one of them"
    return (free,), ()


def _primary(name: str, columns: list[Column]) -> Key | str:
    if any(hidden == _VIRTUAL for _, _, hidden in columns):
        return (
            f"{name} is WITHOUT ROWID and has a VIRTUAL generated column: SQLite's hook cannot tell its rows apart. "
            "Make the column STORED"
        )
    key = sorted((place, at, column) for at, (column, place, _) in enumerate(columns) if place)
    return tuple(column for _, _, column in key), tuple(at for _, at, _ in key)


def _kin(parents: dict[str, set[str]], tables: dict[str, Table]) -> dict[str, frozenset[str]]:
    by_folded = {_folded(name): name for name in tables}
    kin: dict[str, set[str]] = {}
    for name in tables:
        for parent in parents.get(name, ()):
            other = by_folded.get(parent)
            if other is not None:
                kin.setdefault(name, set()).add(other)
                kin.setdefault(other, set()).add(name)
    return {name: frozenset(others) for name, others in kin.items()}


def _decoded(text: bytes) -> str:
    """What is valid UTF-8, and what is not: SQLite takes any bytes, and nothing here may stumble over a stranger's."""
    return text.decode("utf-8", "surrogateescape")


def _folded(name: str) -> str:
    return name.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")  # bytes fold ASCII only


def guard(connection: Connection, tables: Iterable[Table]) -> None:
    """Make sure that these tables have their guards, as this release writes them."""
    missing = sorted(table.name for table in tables if not table.guarded)
    if not missing:
        return
    found = {
        name: (table, sql)
        for name, table, sql in connection.query(
            "SELECT name, tbl_name, sql FROM main.sqlite_schema WHERE type = 'trigger' AND name GLOB ?", (GUARD + "*",)
        )
    }
    for name in missing:
        for operation in OPERATIONS:
            trigger, sql = _guard(name, operation)
            if found.get(trigger) == (name, sql):
                continue
            if trigger in found:  # the table was renamed, or this is another release's
                connection.query(f"DROP TRIGGER main.{quoted(trigger)}")
            connection.query(sql)


def _guard(name: str, operation: str) -> tuple[str, str]:
    trigger = f"{GUARD}{operation.lower()}_{name}"
    text = name.replace("'", "''")
    return trigger, (
        f"CREATE TRIGGER {quoted(trigger)} BEFORE {operation} ON {quoted(name)} "
        f"WHEN EXISTS (SELECT 1 FROM nodoubt_locks WHERE tbl = '{text}') "
        f"BEGIN SELECT RAISE(ABORT, '{LOCKED}'); END"
    )
