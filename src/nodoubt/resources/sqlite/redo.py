"""After-images: read the rows a branch has touched, and write them again as they are.

Guarantees: `apply` is physical (no trigger, foreign key, CHECK or default takes part) and does not depend on order:
all deletes come before all inserts, so rows may have swapped their UNIQUE values. `rehearse` proves, before anything
is promised, that what was captured gives exactly the rows that the user saw.

Must not: begin or end a transaction.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from ...ports import Failure, Refused, StatementFailed
from .face import Connection, quoted
from .failures import failure, refusal
from .record import RawText, Record, Row, TableRedo, Value, digest, exact
from .tables import Schema, Table

TEXTS_MAX = 1000  # of each form of statement: one for a table


def columns_of(table: Table) -> tuple[str, ...]:
    """The columns of an image: the key, then all that can be written."""
    return tuple(dict.fromkeys(table.key + table.columns))


def image(
    connection: Connection, name: str, key: Sequence[str], columns: Sequence[str], keys: Sequence[Row]
) -> tuple[Row, ...]:
    """The rows of these keys that exist, exactly as they are stored.

    Text is read as bytes: it need not be UTF-8. A key is compared with BINARY as well, because one row of a NOCASE key
    must not be read twice, under both its spellings.
    """
    sql = _select(name, tuple(key), tuple(columns))
    return tuple([_values(row) for one in keys for row in connection.query(sql, one)])


@functools.lru_cache(TEXTS_MAX)
def _select(name: str, key: tuple[str, ...], columns: tuple[str, ...]) -> str:
    fields = ", ".join(
        f"typeof({c}), CASE typeof({c}) WHEN 'text' THEN CAST({c} AS BLOB) ELSE {c} END" for c in map(quoted, columns)
    )
    where = " AND ".join(f"{k} = ?{n} AND {k} COLLATE BINARY = ?{n}" for n, k in enumerate(map(quoted, key), 1))
    return f"SELECT {fields} FROM main.{quoted(name)} WHERE {where}"


@functools.lru_cache(TEXTS_MAX)
def _delete(name: str, key: tuple[str, ...]) -> str:
    return f"DELETE FROM main.{quoted(name)} WHERE {' AND '.join(f'{k} = ?' for k in map(quoted, key))}"


@functools.lru_cache(TEXTS_MAX)
def _into(name: str, columns: tuple[str, ...]) -> tuple[str, str]:
    """The text before the values, and all of it where each value is a parameter."""
    head = f"INSERT OR ABORT INTO main.{quoted(name)} ({', '.join(map(quoted, columns))}) VALUES "
    return head, f"{head}({', '.join('?' * len(columns))})"


def _values(row: tuple[Any, ...]) -> Row:
    kinds, values = row[::2], row[1::2]
    if "text" not in kinds:
        return values
    return tuple([_text(value) if kind == "text" else value for kind, value in zip(kinds, values, strict=True)])


def _text(stored: bytes) -> Value:
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return RawText(stored)


def sequences(connection: Connection, schema: Schema) -> dict[str, int]:
    """AUTOINCREMENT's counters. The hook is not told of them."""
    return dict(connection.query("SELECT name, seq FROM main.sqlite_sequence")) if schema.counts else {}


def apply(connection: Connection, record: Record, schema: Schema) -> None:
    """Bring the rows into the state they had in the branch. Whatever locks their tables has been taken away.

    To switch off what could act makes SQLite compile every statement anew, so it is not done where nothing could.
    """
    if all(schema.tables[table.name].inert for table in record.tables):
        _write(connection, record)
        return
    connection.bare(True)
    try:
        _write(connection, record)
    finally:
        connection.bare(False)


def _write(connection: Connection, record: Record) -> None:
    for table in record.tables:
        _erase(connection, table)
    for table in record.tables:
        _insert(connection, table)
    for name, number in record.sequences:
        _count(connection, name, number)


def _count(connection: Connection, name: str, number: int | None) -> None:
    """Set one of AUTOINCREMENT's counters. The inserts above may have raised it where the branch's UPDATE had not."""
    if number is not None:
        update = "UPDATE main.sqlite_sequence SET seq = ? WHERE name = ? RETURNING 1"
        if not connection.query(update, (number, name)):
            connection.query("INSERT INTO main.sqlite_sequence (name, seq) VALUES (?, ?)", (name, number))
    elif connection.query("SELECT 1 FROM main.sqlite_schema WHERE name = 'sqlite_sequence'"):
        connection.query("DELETE FROM main.sqlite_sequence WHERE name = ?", (name,))


def _erase(connection: Connection, table: TableRedo) -> None:
    connection.many(_delete(table.name, table.key), table.erase)


def _insert(connection: Connection, table: TableRedo) -> None:
    head, plain = _into(table.name, table.columns)
    raw = [row for row in table.insert if RawText in map(type, row)]
    connection.many(plain, [row for row in table.insert if RawText not in map(type, row)] if raw else table.insert)
    for row in raw:
        marks = ", ".join("CAST(? AS TEXT)" if isinstance(value, RawText) else "?" for value in row)
        values = [value.stored if isinstance(value, RawText) else value for value in row]
        connection.query(f"{head}({marks})", values)


def rehearse(
    connection: Connection, record: Record, schema: Schema, after: dict[str, bytes], numbers: dict[str, int]
) -> None:
    """Apply the record and compare with what the branch had: `Refused` if it differs. The caller takes it back.

    `after`: each table's rows, `exact`.
    """
    try:
        apply(connection, record, schema)
    except StatementFailed as error:
        if failure(error) is Failure.FULL:
            raise refusal(error, "prepare") from error
        raise Refused(f"the work cannot be replayed ({error}), so it cannot be prepared; nothing was done") from error
    different = [table.name for table in record.tables if _standing(connection, table) != after[table.name]]
    if sequences(connection, schema) != numbers:
        different.append("sqlite_sequence")
    if different:
        raise Refused(
            f"replaying the work does not give the same rows in {', '.join(different)}, so it cannot be prepared; "
            "nothing was done"
        )


def changed_since(connection: Connection, table: TableRedo) -> bool:
    """Whether the rows that a prepared branch touches are not what they were when it was prepared."""
    return digest(_standing(connection, table)) != table.before


def _standing(connection: Connection, table: TableRedo) -> bytes:
    return exact(image(connection, table.name, table.key, table.columns, table.erase))
