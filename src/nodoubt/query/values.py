"""What a value becomes on its way into each kind of database.

A builder knows names, not types, so the database's own column decides what a value is; the value is bound without a
type. PostgreSQL gets Python's own objects. What the others have no type for is written the way SQLAlchemy's types do:

| value | PostgreSQL | MariaDB | SQLite |
| --- | --- | --- | --- |
| None, int, str, bytes | as they are | as they are | as they are |
| float | as it is | as it is; no NaN, no infinity | as it is; no NaN (SQLite would store NULL) |
| bool | boolean | 1 or 0 | 1 or 0 |
| Decimal | numeric | decimal | text: a NUMERIC column makes a number of it (15 digits), a TEXT column keeps it exact |
| datetime | timestamp | datetime | text, `2026-01-02 03:04:05.000006` |
| … with a time zone | timestamptz: the same instant | the same instant in UTC, without a zone | likewise |
| date, time | date, time | date, time | text, ISO |
| timedelta | interval | refused | refused |
| UUID | uuid | text | text |
| dict, list | JSON text, for json and jsonb columns | JSON text | JSON text |

What comes back is what the driver makes of the column: text where the table says text, a timedelta from MariaDB's
time, and JSON parsed only by psycopg. asyncpg takes for a column only the Python type that belongs to it (a str is no
date). A column keeps what it can: MariaDB's plain DATETIME has no microseconds; its TIMESTAMP, and PostgreSQL's
timestamp, read a moment in the session's time zone.

Must not: need SQLAlchemy, or know a driver.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from ..errors import UsageError
from .fragments import Kind

_INTEGER_BITS = 63  # of SQLite's integers, beside the sign
_PLAIN_DIGITS_MAX = 100
_KNOWN = "None, bool, int, float, str, bytes, Decimal, datetime, date, time, timedelta, UUID, dict, list"


def stored(value: Any, kind: Kind, where: str) -> Any:
    """The value as it is to be written to a column. Raises `UsageError`, which names the column (`where`)."""
    if isinstance(value, (dict, list)):
        return _json(value, where)
    return compared(value, kind, where)


def compared(value: Any, kind: Kind, where: str) -> Any:
    """The value as a column is to be compared with it. Raises `UsageError`."""
    match value:
        case None | bool() | int():
            return _number(value, kind, where)
        case str():
            return _text(value, kind, where)
        case bytes() | bytearray() | memoryview():
            return bytes(value)
        case float() | Decimal():
            return _fraction(value, kind, where)
        case datetime() | date() | time() | timedelta():
            return _moment(value, kind, where)
        case UUID():
            return value if kind == "postgres" else str(value)
        case dict() | list():
            raise UsageError(
                f"{where}: JSON can be stored, and is not compared with a {type(value).__name__}: how a database does "
                "that differs, so write it as a sql()"
            )
    raise UsageError(f"{where}: a value is one of {_KNOWN}, not {type(value).__qualname__}")


def _number(value: int | None, kind: Kind, where: str) -> int | None:
    if value is None or (isinstance(value, bool) and kind != "sqlite"):
        return value
    if kind == "sqlite" and value.bit_length() > _INTEGER_BITS and value != -(2**_INTEGER_BITS):
        raise UsageError(f"{where}: SQLite's integers have 64 bits, and this one does not fit")
    return int(value)


def _text(value: str, kind: Kind, where: str) -> str:
    if kind == "postgres" and "\0" in value:
        raise UsageError(f"{where}: PostgreSQL cannot store a NUL in text: remove it, or use a bytea column and bytes")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{where}: the text holds half of a surrogate pair, which no database can store") from None
    return str.__str__(value)  # of a subclass (an Enum, markup) each driver makes something else


def _fraction(value: float | Decimal, kind: Kind, where: str) -> float | Decimal | str:
    if isinstance(value, float):
        storable = math.isfinite(value) or kind == "postgres" or (kind == "sqlite" and math.isinf(value))
    else:
        storable = value.is_finite() or kind == "postgres"
    if not storable:
        raise UsageError(f"{where}: {value} is no number that {kind} could store")
    if kind == "sqlite" and isinstance(value, Decimal):
        plain = abs(value.adjusted()) <= _PLAIN_DIGITS_MAX  # as a TEXT column is compared: "1000", not "1E+3"
        return format(value, "f") if plain else str(value)
    return float(value) if isinstance(value, float) else value


def _moment(value: date | time | timedelta, kind: Kind, where: str) -> Any:
    if kind == "postgres":
        return value
    match value:
        case timedelta():
            raise UsageError(f"{where}: {kind} has no type for a timedelta: store a number of seconds")
        case datetime():
            if value.utcoffset() is not None:
                value = _in_utc(value, where)
            return value if kind == "mariadb" else value.isoformat(" ", "microseconds")
        case time():
            if value.tzinfo is not None:
                raise UsageError(f"{where}: {kind} stores no time zone with a time of day: convert it to one first")
            return value if kind == "mariadb" else value.isoformat("microseconds")
    return value if kind == "mariadb" else value.isoformat()


def _in_utc(value: datetime, where: str) -> datetime:
    try:
        return value.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:
        raise UsageError(f"{where}: {value} has no year of four digits in UTC") from None


def _json(value: Any, where: str) -> str:
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
        same = json.loads(text) == value
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{where}: the value cannot be written as JSON: {error}") from None
    if not same:
        raise UsageError(f"{where}: JSON would change the value (keys that are not text, tuples): convert it first")
    return text
