"""What a value is when it comes back: the same from all databases, or what the table in `nodoubt.query.values` says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any
from uuid import UUID

import pytest

from nodoubt import UsageError
from query.cases import KINDS
from query.ways import URLS, Way

Ways = Callable[[str], Way]

NOON = datetime(2026, 1, 2, 12, 0, 0, 6)  # noqa: DTZ001 — with and without a zone are two things here
ZONED = NOON.replace(tzinfo=timezone(timedelta(hours=2)))
ID = UUID("01234567-89ab-4def-8123-456789abcdef")


class Colour(StrEnum):
    RED = "red"


class Shade(str, Enum):  # noqa: UP042 — the older way, whose str() is another
    DARK = "dark"


COLUMNS = {
    "postgres": {
        "n": "bigint", "f": "double precision", "t": "text", "b": "bytea", "flag": "boolean", "d": "numeric(20, 4)",
        "at": "timestamp", "zoned": "timestamptz", "day": "date", "clock": "time", "u": "uuid", "j": "jsonb",
    },
    "mariadb": {
        "n": "bigint", "f": "double", "t": "text character set utf8mb4 collate utf8mb4_nopad_bin", "b": "blob",
        "flag": "boolean", "d": "decimal(20, 4)", "at": "datetime(6)", "zoned": "datetime(6)", "day": "date",
        "clock": "time(6)", "u": "uuid", "j": "json",
    },
    "sqlite": {
        "n": "integer", "f": "real", "t": "text", "b": "blob", "flag": "boolean", "d": "numeric", "at": "timestamp",
        "zoned": "timestamp", "day": "date", "clock": "time", "u": "text", "j": "json",
    },
}  # fmt: skip

TEXT_FROM = ("mariadb", "sqlite")  # JSON comes back as text there

# column, value, and what comes back from where that is something else
VALUES: list[tuple[str, Any, dict[str, Any]]] = [
    ("n", 42, {}),
    ("n", -(2**63), {}),
    ("n", 2**63 - 1, {}),
    ("n", None, {}),
    ("f", 0.1, {}),
    ("f", 1e308, {}),
    ("t", "ä😀'\"\\%s", {}),
    ("t", "", {}),
    ("t", Colour.RED, {"": "red"}),
    ("t", Shade.DARK, {"": "dark"}),
    ("b", b"\x00\xff'\\", {}),
    ("b", bytearray(b"ab"), {"": b"ab"}),
    ("b", memoryview(b"ab"), {"": b"ab"}),
    ("flag", True, {"mariadb": 1, "sqlite": 1}),
    ("flag", False, {"mariadb": 0, "sqlite": 0}),
    ("d", Decimal("19.9900"), {"sqlite": 19.99}),
    ("d", Decimal("1234567890123456.7891"), {"sqlite": 1234567890123456.8}),
    ("t", Decimal("0.10"), {"postgres": None, "mariadb": "0.10", "sqlite": "0.10"}),
    ("at", NOON, {"sqlite": "2026-01-02 12:00:00.000006"}),
    ("zoned", ZONED, {"mariadb": NOON.replace(hour=10), "sqlite": "2026-01-02 10:00:00.000006"}),
    ("day", date(2026, 1, 2), {"sqlite": "2026-01-02"}),
    ("clock", time(1, 2, 3, 4), {"mariadb": timedelta(0, 3723, 4), "sqlite": "01:02:03.000004"}),
    ("u", ID, {"mariadb": str(ID), "sqlite": str(ID)}),
    ("j", {"a": [1, None, "ä"]}, dict.fromkeys(TEXT_FROM, '{"a": [1, null, "ä"]}')),
    ("j", [1, {"b": 2.5}], dict.fromkeys(TEXT_FROM, '[1, {"b": 2.5}]')),
    ("j", [], dict.fromkeys(TEXT_FROM, "[]")),
]  # fmt: skip


def with_columns(at: Way) -> Way:
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS[at.kind].items())
    at.stranger.run("drop table if exists kinds")
    at.stranger.run(f"create table kinds (id integer primary key, {columns})")
    return at


@pytest.mark.parametrize("way", URLS)
def test_values_come_back_as_the_table_says(way: str, ways: Ways) -> None:
    at = with_columns(ways(way))
    for number, (column, value, differently) in enumerate(VALUES):
        expected = next((differently[key] for key in (at.name, at.kind, "") if key in differently), value)
        if expected is None and value is not None:
            continue  # the column's type is not for such a value there
        at.run(lambda tx, row={"id": number, column: value}: tx.insert_into("kinds").values(row))  # type: ignore[misc]
        found = at.run(lambda tx, n=number, c=column: tx.select_from("kinds").columns(c).where({"id": n})).scalar()  # type: ignore[misc]
        assert found == expected, f"{column} {value!r}"
        assert isinstance(found, type(expected)), f"{column} {value!r}: {type(found)}"
        assert isinstance(found, bool) is isinstance(expected, bool)


@pytest.mark.parametrize("way", URLS)
def test_what_was_written_is_found_by_the_same_value(way: str, ways: Ways) -> None:
    """A condition says a value in the same way as a row does; in SQLite, where days are text, in its order too."""
    at = with_columns(ways(way))
    row = {"n": 42, "t": "ä'", "b": b"\x00", "flag": True, "d": Decimal("19.99"), "at": NOON, "zoned": ZONED, "u": ID}
    row |= {"day": date(2026, 1, 2), "clock": time(1, 2, 3, 4)}
    at.run(lambda tx: tx.insert_into("kinds").values({"id": 1, **row}))
    for column, value in row.items():
        conditions: list[tuple[str, str, Any]] = [(column, "=", value), (column, "in", [value])]
        if column != "flag":
            conditions.append((column, "between", [value, value]))
        for condition in conditions:
            found = at.run(lambda tx, c=condition: tx.select_from("kinds").columns("id").where(*c))  # type: ignore[misc]
            assert list(found) == [{"id": 1}], condition
    later = at.run(
        lambda tx: tx.select_from("kinds").columns("id").where("zoned", ">", ZONED - timedelta(microseconds=1))
    )
    assert list(later) == [{"id": 1}]
    assert not at.run(lambda tx: tx.select_from("kinds").where("at", ">", NOON)).rows


REFUSED: list[tuple[Any, Sequence[str], str]] = [
    (..., KINDS, "a value is one of"),
    ((1, 2), KINDS, "a value is one of"),
    ({1, 2}, KINDS, "a value is one of"),
    (1j, KINDS, "a value is one of"),
    ("\ud800", KINDS, "surrogate"),
    ({"a": ...}, KINDS, "cannot be written as JSON"),
    ({"a": float("nan")}, KINDS, "cannot be written as JSON"),
    ({"a": "\ud800"}, KINDS, "cannot be written as JSON"),
    ({1: "a"}, KINDS, "JSON would change"),
    ([(1, 2)], KINDS, "JSON would change"),
    ("a\0b", ("postgres",), "NUL"),
    (float("nan"), ("mariadb", "sqlite"), "is no number"),
    (float("inf"), ("mariadb",), "is no number"),
    (Decimal("NaN"), ("mariadb", "sqlite"), "is no number"),
    (Decimal("sNaN"), ("mariadb", "sqlite"), "is no number"),
    (Decimal("Infinity"), ("mariadb", "sqlite"), "is no number"),
    (timedelta(1), ("mariadb", "sqlite"), "no type for a timedelta"),
    (time(1, tzinfo=UTC), ("mariadb", "sqlite"), "no time zone"),
    (datetime.min.replace(tzinfo=timezone(timedelta(hours=14))), ("mariadb", "sqlite"), "in UTC"),
    (2**63, ("sqlite",), "64 bits"),
    (-(2**63) - 1, ("sqlite",), "64 bits"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "kind", "why"), [(value, kind, why) for value, kinds, why in REFUSED for kind in kinds], ids=repr
)
def test_what_a_database_cannot_store_is_refused_there(value: Any, kind: str, why: str, ways: Ways) -> None:
    at = ways(f"{kind} sync")
    with pytest.raises(UsageError, match=f"^t: .*{why}"):
        at.run(lambda tx: tx.insert_into("stored").values({"id": 1, "t": value}))
    assert not at.sent
