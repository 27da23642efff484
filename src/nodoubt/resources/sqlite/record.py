"""The format of a prepared branch's record, version 1. Everything needed to commit the branch is in it.

    offset  length  content
    0       4       the bytes `ndrd`
    4       1       version: 1
    5       32      SHA-256 of all that follows
    37      …       a msgpack map: the fields of `Record`, by name

    Record     gid        the branch's xid as text
               tables     the tables whose rows change, each a `TableRedo`
               sequences  [table, number] pairs to set in sqlite_sequence; nil: no number is to stand there
    TableRedo  name       the table
               shape      `tables.Table.shape` at prepare time, in hex
               before     `digest` of the rows under `erase` as they were before the branch, in hex
               key        the columns that name a row: the rowid's name, or the primary key
               columns    the columns of a row under `insert`: the key, then all that can be written
               erase      keys of all the rows that the branch has touched
               insert     those of them that exist after it, complete

To commit: bring the rows that `erase` names into the state of `insert`, all else deleted, with triggers, foreign keys
and CHECKs off.
A value is a msgpack nil, integer, float, str (text) or bin (blob); text that is not valid UTF-8 is an extension of type
1 that holds its bytes.

Guarantees: `decode` answers with what `encode` was given, or raises `UnreadableRecord`, never anything else. A
record of a version that this release does not know is left as it is.

Must not: use pickle or marshal, or guess.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from ...ports import Refused

MAGIC = b"ndrd"
VERSION = 1
HEAD = len(MAGIC) + 1
BODY = HEAD + 32
_TEXT = 1


class UnreadableRecord(Refused):
    """The record of a prepared branch cannot be read. The branch stays prepared, its tables stay locked."""


class RawText:
    """Text that is not valid UTF-8. SQLite stores it all the same, so it is kept byte by byte."""

    __slots__ = ("stored",)  # a plain class: msgspec has a form of its own for structs and dataclasses

    def __init__(self, stored: bytes) -> None:
        self.stored = stored

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RawText) and other.stored == self.stored

    def __hash__(self) -> int:
        return hash(self.stored)

    def __repr__(self) -> str:
        return f"RawText({self.stored!r})"


Value = None | int | float | str | bytes | RawText
Row = tuple[Value, ...]


class TableRedo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happens to one table."""

    name: str
    shape: str
    before: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    erase: tuple[tuple[Any, ...], ...]
    insert: tuple[tuple[Any, ...], ...]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prepared branch."""

    gid: str
    tables: tuple[TableRedo, ...]
    sequences: tuple[tuple[str, int | None], ...]


def _out(value: object) -> msgspec.msgpack.Ext:
    if isinstance(value, RawText):
        return msgspec.msgpack.Ext(_TEXT, value.stored)
    raise NotImplementedError(type(value))


def _in(kind: int, data: memoryview) -> RawText:
    if kind == _TEXT:
        return RawText(bytes(data))
    raise ValueError(f"extension {kind}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_out)
_decoder = msgspec.msgpack.Decoder(Record, ext_hook=_in)


def exact(rows: Sequence[Row]) -> bytes:
    """What tells rows apart, with the types of their values: 1, 1.0 and '1' differ."""
    return _encoder.encode(rows)


def digest(rows: bytes) -> str:
    """Of what `exact` has made of rows."""
    return hashlib.sha256(rows).hexdigest()


def order(key: Row) -> bytes:
    """A total order over keys of mixed types; which one does not matter."""
    return _encoder.encode(key)


def encode(record: Record) -> bytes:
    """As it is stored. It is read back before anything is promised on the strength of it."""
    body = _encoder.encode(record)
    if _read(body, record.gid) != record:
        raise Refused(f"the work of {record.gid} cannot be recorded exactly, so not be prepared; nothing was done")
    return MAGIC + bytes([VERSION]) + hashlib.sha256(body).digest() + body


def decode(stored: object, gid: str) -> Record:
    """Read a stored record, which must be that of `gid`."""
    if not isinstance(stored, bytes) or len(stored) < BODY or not stored.startswith(MAGIC):
        raise _unreadable(gid, "it does not begin like a record, or is cut short")
    version = stored[len(MAGIC)]
    if version != VERSION:
        raise UnreadableRecord(
            f"the prepared branch {gid} has a record of version {version}; this release reads version {VERSION}. It "
            "stays prepared: commit it with the release that wrote it, or roll it back with any"
        )
    body = stored[BODY:]
    if hashlib.sha256(body).digest() != stored[HEAD:BODY]:
        raise _unreadable(gid, "its checksum is wrong")
    return _read(body, gid)


def _read(body: bytes, gid: str) -> Record:
    try:
        record = _decoder.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _unreadable(gid, str(error)) from error
    if record.gid != gid:
        raise _unreadable(gid, f"it is the record of {record.gid}")
    for table in record.tables:
        if not table.key or table.columns[: len(table.key)] != table.key:
            raise _unreadable(gid, f"the columns of {table.name} do not begin with its key")
        _check_rows(gid, table, table.erase, len(table.key))
        _check_rows(gid, table, table.insert, len(table.columns))
    if not all(number is None or _is_stored(number) for _, number in record.sequences):
        raise _unreadable(gid, "a counter is out of bounds")
    return record


def _check_rows(gid: str, table: TableRedo, rows: tuple[Row, ...], width: int) -> None:
    for row in rows:
        if len(row) != width or not all(map(_is_stored, row)):
            raise _unreadable(gid, f"a row of {table.name} is malformed")


def _is_stored(value: object) -> bool:
    """Whether SQLite can have stored that: whole numbers have 64 bits, and what is not a number is NULL."""
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return value is None or (type(value) in (float, str, bytes, RawText) and value == value)  # noqa: PLR0124 - a NaN


def _unreadable(gid: str, why: str) -> UnreadableRecord:
    return UnreadableRecord(
        f"the record of the prepared branch {gid} cannot be read: {why}. It stays prepared and its tables stay locked: "
        "restore the file from before the damage, or roll the branch back and repair by hand what it should have done"
    )
