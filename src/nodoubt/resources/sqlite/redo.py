"""After-images: read the rows a branch has touched, and write them again as they are.

Guarantees: `apply` is physical (no trigger, foreign key, CHECK or default takes part) and does not depend on order:
a table's deletes come before its inserts, so rows may have swapped their UNIQUE values; a row is changed where it
stands only in columns that are in no UNIQUE index. `rehearse` proves, before anything is promised, that what was
captured gives exactly the rows that the user saw.

Must not: begin or end a transaction.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from ...ports import Failure, Refused, StatementFailed
from .face import Connection, quoted
from .failures import failure, refusal
from .record import RawText, Record, Row, TableRedo, Value, exact
from .tables import Schema, Table

TEXTS_MAX = 1000  # of each form of statement: one for a table, or for some columns of it
Images = dict[str, tuple[Row, ...]]  # each table's rows


def columns_of(table: Table) -> tuple[str, ...]:
    """The columns of an image: the key, then all that can be written."""
    return tuple(dict.fromkeys(table.key + table.columns))


def image(
    connection: Connection, name: str, key: Sequence[str], columns: Sequence[str], keys: Sequence[Row]
) -> tuple[Row, ...]:
    """The rows of these keys that exist, exactly as they are stored.

    A key is compared with BINARY as well, because one row of a NOCASE key must not be read twice, under both its
    spellings.
    """
    try:
        sql = _select(name, tuple(key), tuple(columns))
        return tuple([row for one in keys for row in connection.query(sql, one)])
    except StatementFailed as error:
        if not isinstance(error.__cause__, UnicodeDecodeError):
            raise
    sql = _select(name, tuple(key), tuple(columns), as_bytes=True)
    return tuple([_values(row) for one in keys for row in connection.query(sql, one)])


@functools.lru_cache(TEXTS_MAX)
def _select(name: str, key: tuple[str, ...], columns: tuple[str, ...], *, as_bytes: bool = False) -> str:
    """`as_bytes`: each column's type and then its value, text as bytes, for it need not be UTF-8."""
    fields = list(map(quoted, columns))
    if as_bytes:
        fields = [f"typeof({c}), CASE typeof({c}) WHEN 'text' THEN CAST({c} AS BLOB) ELSE {c} END" for c in fields]
    where = " AND ".join(f"{k} = ?{n} AND {k} COLLATE BINARY = ?{n}" for n, k in enumerate(map(quoted, key), 1))
    return f"SELECT {', '.join(fields)} FROM main.{quoted(name)} WHERE {where}"


@functools.lru_cache(TEXTS_MAX)
def _delete(name: str, key: tuple[str, ...]) -> str:
    return f"DELETE FROM main.{quoted(name)} WHERE {' AND '.join(f'{k} = ?' for k in map(quoted, key))}"


@functools.lru_cache(TEXTS_MAX)
def _update(name: str, key: tuple[str, ...], columns: tuple[str, ...]) -> str:
    changes = ", ".join(f"{column} = ?" for column in map(quoted, columns))
    return (
        f"UPDATE OR ABORT main.{quoted(name)} SET {changes} WHERE {' AND '.join(f'{k} = ?' for k in map(quoted, key))}"
    )


@functools.lru_cache(TEXTS_MAX)
def _into(name: str, columns: tuple[str, ...]) -> tuple[str, str]:
    """The text before the values, and all of it where each value is a parameter."""
    head = f"INSERT OR ABORT INTO main.{quoted(name)} ({', '.join(map(quoted, columns))}) VALUES "
    return head, f"{head}({', '.join('?' * len(columns))})"


def _values(row: tuple[Any, ...]) -> Row:
    pairs = zip(row[::2], row[1::2], strict=True)
    return tuple([_text(value) if kind == "text" else value for kind, value in pairs])


def _text(stored: bytes) -> Value:
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return RawText(stored)


def sequences(connection: Connection, schema: Schema) -> dict[str, int]:
    """AUTOINCREMENT's counters. The hook is not told of them."""
    return dict(connection.query("SELECT name, seq FROM main.sqlite_sequence")) if schema.counts else {}


def apply(connection: Connection, record: Record, schema: Schema, standing: Images) -> None:
    """Bring the rows into the state they had in the branch. Whatever locks their tables has been taken away.

    `standing`: what there is now of the rows that the branch has touched.

    To switch off what could act makes SQLite compile every statement anew, so it is not done where nothing could.
    """
    if all(schema.tables[table.name].inert for table in record.tables):
        _write(connection, record, schema, standing)
        return
    connection.bare(True)
    try:
        _write(connection, record, schema, standing)
    finally:
        connection.bare(False)


def _write(connection: Connection, record: Record, schema: Schema, standing: Images) -> None:
    for table in record.tables:
        _bring(connection, table, schema.tables[table.name].loose, standing[table.name])
    for name, number in record.sequences:
        _count(connection, name, number)


def _bring(connection: Connection, table: TableRedo, loose: frozenset[str], standing: tuple[Row, ...]) -> None:
    """A row that stays is changed where it stands, if it can be: it costs no index that has nothing to do with it."""
    name, columns, width = table.name, table.columns, len(table.key)
    old = {row[:width]: row for row in standing}  # by a key that is equal; whether it is the same, `_changed` tells
    insert: list[Row] = []
    change: dict[tuple[str, ...], list[Row]] = {}
    for row in table.insert:
        key = row[:width]
        changed = _changed(columns, old[key], row) if key in old else None
        if changed is None or not loose.issuperset(changed):
            insert.append(row)
            continue
        del old[key]
        if changed:
            change.setdefault(tuple(changed), []).append((*changed.values(), *key))
    if old:
        connection.many(_delete(name, table.key), list(old))
    for which, rows in change.items():
        connection.many(_update(name, table.key, which), rows)
    if insert:
        _insert(connection, name, columns, insert)


def _changed(columns: tuple[str, ...], old: Row, new: Row) -> dict[str, Value] | None:
    """What is stored otherwise now; None if that can't be bound as it is. A float counts always: 0.0 equals -0.0."""
    found: dict[str, Value] = {}
    for column, was, to in zip(columns, old, new, strict=True):
        if was != to or type(was) is not type(to) or type(to) is float:
            if type(to) is RawText:
                return None
            found[column] = to
    return found


def _count(connection: Connection, name: str, number: int | None) -> None:
    """Set one of AUTOINCREMENT's counters. The inserts above may have raised it where the branch's UPDATE had not."""
    if number is not None:
        update = "UPDATE main.sqlite_sequence SET seq = ? WHERE name = ? RETURNING 1"
        if not connection.query(update, (number, name)):
            connection.query("INSERT INTO main.sqlite_sequence (name, seq) VALUES (?, ?)", (name, number))
    elif connection.query("SELECT 1 FROM main.sqlite_schema WHERE name = 'sqlite_sequence'"):
        connection.query("DELETE FROM main.sqlite_sequence WHERE name = ?", (name,))


def _insert(connection: Connection, name: str, columns: tuple[str, ...], rows: list[Row]) -> None:
    head, plain = _into(name, columns)
    raw = [row for row in rows if RawText in map(type, row)]
    plainly = [row for row in rows if RawText not in map(type, row)] if raw else rows
    if plainly:
        connection.many(plain, plainly)
    for row in raw:
        marks = ", ".join("CAST(? AS TEXT)" if isinstance(value, RawText) else "?" for value in row)
        values = [value.stored if isinstance(value, RawText) else value for value in row]
        connection.query(f"{head}({marks})", values)


def rehearse(
    connection: Connection,
    record: Record,
    schema: Schema,
    before: Images,
    after: dict[str, bytes],
    numbers: dict[str, int],
) -> None:
    """Apply the record and compare with what the branch had: `Refused` if it differs. The caller takes it back.

    `before`: the rows that stand now. `after`: each table's rows, `exact`.
    """
    try:
        apply(connection, record, schema, before)
    except StatementFailed as error:
        if failure(error) is Failure.FULL:
            raise refusal(error, "prepare") from error
        raise Refused(f"the work cannot be replayed ({error}), so it cannot be prepared; nothing was done") from error
    different = [table.name for table in record.tables if exact(standing(connection, table)) != after[table.name]]
    if sequences(connection, schema) != numbers:
        different.append("sqlite_sequence")
    if different:
        raise Refused(
            f"replaying the work does not give the same rows in {', '.join(different)}, so it cannot be prepared; "
            "nothing was done"
        )


def standing(connection: Connection, table: TableRedo) -> tuple[Row, ...]:
    """What there is now of the rows that a branch has touched."""
    return image(connection, table.name, table.key, table.columns, table.erase)
