"""What the verbs promise beside the cases: their types, what they import, and what MariaDB does for a duplicate."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nodoubt
from nodoubt import AsyncTransaction, Reply, Transaction, sql
from nodoubt.query import Kind
from query.cases import KINDS
from query.ways import Noted, Way

Ways = Callable[[str], Way]
SOURCE = str(Path(nodoubt.__file__).parents[1])


def the_types_of_what_is_executed(tx: Transaction) -> tuple[int, int, int, Reply, Reply]:
    """For the type checker, which finds out what `execute` gives."""
    return (
        tx.insert_into("t").values({"a": 1}).execute(),
        tx["shop"].update_table("t").set({"a": 1}).where({"a": 2}).execute(),
        tx["shop"].delete_from("t").everywhere().execute(),
        tx.insert_into("t").values([{"a": 1}]).returning("a").execute(),
        tx["shop"].select_from("t").columns("a").limit(1).execute(),
    )


async def the_types_of_what_is_awaited(tx: AsyncTransaction) -> tuple[int, int, int, Reply, Reply]:
    return (
        await tx.insert_into("t").values({"a": 1}).execute(),
        await tx["shop"].update_table("t").set({"a": 1}).where({"a": 2}).execute(),
        await tx["shop"].delete_from("t").everywhere().execute(),
        await tx.insert_into("t").values([{"a": 1}]).returning("a").execute(),
        await tx["shop"].select_from("t").columns("a").limit(1).execute(),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_verbs_with_other_values_are_compiled_once(kind: Kind) -> None:
    """By this key SQLAlchemy keeps what it compiled (but no INSERT of several rows). Another fragment, another key."""

    def keys(value: int, name: str, text: str = "n + {n}") -> list[Any]:
        tx = Noted(kind)
        for builder in (
            tx.select_from("t").columns("a", b=sql(text, n=value)).where("a", "in", [value, 3]).limit(value),
            tx.insert_into("t").values({"a": value, "b": name}),
            tx.insert_or_ignore("t", {"a": value, "b": name}),
            tx.insert_into("t").values({"a": value}).returning("a", c="b"),
            tx.update_table("t").set({"a": sql(text, n=value), "b": name}).where({"id": value}),
            tx.delete_from("t").where("a", "between", [value, 9]).or_where(sql(text, n=value)),
        ):
            builder.execute()
        return [statement._generate_cache_key() for statement in tx.statements]

    assert None not in keys(1, "x")
    assert keys(1, "x") == keys(2, "y")
    other = keys(1, "x", "n - {n}")
    assert [a == b for a, b in zip(keys(1, "x"), other, strict=True)] == [False, True, True, True, False, False]


def run_without_sqlalchemy(program: str) -> str:
    start = f"import sys\nsys.path[:0] = [{SOURCE!r}]\nsys.modules['sqlalchemy'] = None\n"
    done = subprocess.run([sys.executable, "-c", start + program], capture_output=True, text=True, check=True)
    return done.stdout


def test_without_sqlalchemy_a_verb_names_the_extra_and_the_rest_works() -> None:
    said = run_without_sqlalchemy(
        "from nodoubt import MissingExtra, sql\n"
        "from nodoubt.query import Verbs\n"
        "print(sql('stock + {n}', n=3).values['n'])\n"
        "for verb in ('select_from', 'insert_into', 'update_table', 'delete_from'):\n"
        "    try:\n"
        "        getattr(Verbs(), verb)('t')\n"
        "    except MissingExtra as missing:\n"
        "        print(missing.extra, 'nodoubt[sqlalchemy]' in str(missing))\n"
    )
    assert said.split("\n")[:-1] == ["3", *["sqlalchemy True"] * 4]


def test_importing_nodoubt_imports_no_sqlalchemy() -> None:
    program = f"import sys\nsys.path[:0] = [{SOURCE!r}]\nimport nodoubt\nprint('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_duplicate_that_mariadb_ignores_leaves_the_row_as_it_was_and_calls_update_triggers(ways: Ways) -> None:
    way = ways("mariadb sync")
    way.stranger.run("drop table if exists seen; drop table if exists told")
    way.stranger.run(
        "create table seen (id integer primary key, v varchar(10), "
        "at timestamp default '2001-01-01' on update current_timestamp);"
        "create table told (what varchar(10));"
        "create trigger seen_update before update on seen for each row insert into told values ('update');"
        "create trigger seen_insert after insert on seen for each row insert into told values ('insert')"
    )
    rows = [{"id": 1, "v": "a"}, {"id": 1, "v": "b"}, {"id": 2, "v": "c"}]
    way.run(lambda tx: tx.insert_or_ignore("seen", rows))
    assert way.stranger.run("select id, v, cast(at as char) from seen order by id") == [
        (1, "a", "2001-01-01 00:00:00"),
        (2, "c", "2001-01-01 00:00:00"),
    ]
    assert sorted(way.stranger.run("select what from told")) == [("insert",), ("insert",), ("update",)]
