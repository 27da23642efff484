"""Builders with one check taken out, and the case that shows the harm. A mutant that passes its case is a hole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from nodoubt import UsageError
from nodoubt.query import builders, expressions, fragments
from query.cases import CASES
from query.test_cases import check
from query.test_nothing_becomes_sql import only_names_and_placeholders
from query.ways import Way

Ways = Callable[[str], Way]
BY_CLAIM = {case.claim: case for case in CASES}


@dataclass(frozen=True)
class Mutant:
    what: str  # it does
    where: Any
    name: str
    instead: Any
    caught_by: str  # the claim of a case
    way: str = "sqlite sync"


def keep_everything(self: Any) -> Any:
    return self


def without_asking_which(self: Any, statement: Any) -> Any:
    return statement.where(self._condition()) if self.groups else statement


def of_the_first_row(self: Any, rows: Any) -> Any:
    first, *others = [rows] if isinstance(rows, Mapping) else list(rows)
    return values(self, [first, *({column: row.get(column) for column in first} for row in others)])


def insert_ignore(self: Any) -> Any:
    rows = [dict(row) for row in self.rows]
    return mysql.insert(self.table).prefix_with("IGNORE").values(rows)


def or_as_sql_reads_it(self: Any) -> Any:
    *groups, last = self.groups
    return sa.or_(sa.and_(*(group[0] for group in groups), last[0]), *last[1:])


def all_in_no_list(self: Any, column: Any, sign: str, members: Any, where: str) -> Any:
    return sa.true() if not members else membership(self, column, sign, members, where)


def null_as_a_member(self: Any, column: Any, sign: str, members: Any, where: str) -> Any:
    inside = column.in_([expressions.bound(one) for one in members])
    return inside if sign in ("in", "=") else sa.not_(inside)


def equal_to_null(self: Any, left: Any, how: Any, right: Any) -> Any:
    if right is None and how == "=":
        return expressions.column_of(self.table, left) == expressions.bound(None)
    return comparison(self, left, how, right)


def as_sqlalchemy_s_text(fragment: Any, kind: str) -> Any:
    text = "".join(piece if isinstance(piece, str) else f":{piece.name}" for piece in fragment.pieces)
    return expressions.Verbatim(
        sa.literal_column("("), sa.text(text).bindparams(**fragment.values), sa.literal_column(")")
    )


def without_brackets(fragment: Any, kind: str) -> Any:
    parts = [piece if isinstance(piece, str) else piece.name for piece in fragment.pieces]
    return expressions.Verbatim(*map(sa.literal_column, parts))


def as_a_literal(value: Any) -> Any:
    return sa.literal_column(repr(value) if isinstance(value, (int, str)) else "null")


def unquoted(text: object, what: str) -> Any:
    return sa.quoted_name(str(text), quote=False)


def name_without_a_look(text: object, what: str) -> Any:
    return sa.quoted_name(str(text), quote=True)


values = builders.InsertInto.values
membership = expressions.Scope._membership
comparison = expressions.Scope._comparison

MUTANTS = [
    Mutant(
        "takes where({}) for no condition",
        builders._Aimed,
        "_everything",
        keep_everything,
        "where({}) after a condition is refused",
    ),
    Mutant(
        "does not ask which rows",
        builders._Aimed,
        "_aimed",
        without_asking_which,
        "an update without a where is refused",
    ),
    Mutant(
        "deletes without being asked which",
        builders._Aimed,
        "_aimed",
        without_asking_which,
        "a delete without a where is refused",
    ),
    Mutant(
        "takes the columns of the first row",
        builders.InsertInto,
        "values",
        of_the_first_row,
        "a row with a column more is refused",
    ),
    Mutant(
        "uses INSERT IGNORE: NULL",
        builders.InsertInto,
        "statement",
        insert_ignore,
        "a NULL where none may be is an error",
        "mariadb sync",
    ),
    Mutant(
        "uses INSERT IGNORE: length",
        builders.InsertInto,
        "statement",
        insert_ignore,
        "a text that is too long is an error",
        "mariadb sync",
    ),
    Mutant(
        "uses INSERT IGNORE: parent",
        builders.InsertInto,
        "statement",
        insert_ignore,
        "a missing parent is an error",
        "mariadb sync",
    ),
    Mutant(
        "matches all in an empty list",
        expressions.Scope,
        "_membership",
        all_in_no_list,
        "delete in an empty list deletes nothing",
    ),
    Mutant("leaves NULL to IN", expressions.Scope, "_membership", null_as_a_member, "None in a list is IS NULL"),
    Mutant("leaves NULL to NOT IN", expressions.Scope, "_membership", null_as_a_member, "None in not in"),
    Mutant(
        "compares with NULL by =", expressions.Scope, "_comparison", equal_to_null, "None in a condition finds its rows"
    ),
    Mutant(
        "lets OR go its way",
        builders._Filtered,
        "_condition",
        or_as_sql_reads_it,
        "or_where lets what was said earlier stand",
    ),
    Mutant(
        "leaves RETURNING to SQLAlchemy",
        builders._Writing,
        "_output",
        builders._Verb._output,
        "returning a misspelt column is an error",
    ),
    Mutant(
        "reads a fragment as SQLAlchemy's text",
        expressions,
        "raw",
        as_sqlalchemy_s_text,
        "what looks like a placeholder within quotes is text, on PostgreSQL too",
    ),
    Mutant(
        "writes fragments without brackets",
        expressions,
        "raw",
        without_brackets,
        "a fragment cannot leave its brackets",
    ),
    Mutant(
        "lets a colon pass on SQLite",
        fragments.Fragment,
        "refuse_on",
        lambda *_: None,
        "a colon is a parameter to SQLite",
    ),
    Mutant(
        "lets a name in square brackets pass on SQLite",
        fragments.Fragment,
        "refuse_on",
        lambda *_: None,
        "a square bracket begins a name to SQLite",
    ),
    Mutant(
        "lets a backtick pass on PostgreSQL",
        fragments.Fragment,
        "refuse_on",
        lambda *_: None,
        "a backtick is no quote to PostgreSQL",
        "postgres sync",
    ),
    Mutant(
        "lets a comment pass on MariaDB",
        fragments.Fragment,
        "refuse_on",
        lambda *_: None,
        "a hash is a comment to MariaDB",
        "mariadb sync",
    ),
    Mutant(
        "lets SQLAlchemy's placeholders pass",
        expressions,
        "_name",
        name_without_a_look,
        "a column like SQLAlchemy's placeholders is refused",
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_a_mutant_fails_its_case(mutant: Mutant, ways: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    case, way = BY_CLAIM[mutant.caught_by], ways(mutant.way)
    check(case, way)
    monkeypatch.setattr(mutant.where, mutant.name, mutant.instead)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 — a driver's error for a wrong statement is one, too
        check(case, way)
    assert not isinstance(caught.value, (KeyboardInterrupt, TypeError, AttributeError)), caught.value


INSERTS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "values into the text": ("bound", as_a_literal, {"a": "' or 1=1 --"}),
    "names as they are": ("_name", unquoted, {"a) values (1) --": 1}),
    "names that SQLAlchemy takes for placeholders": ("_name", name_without_a_look, {"%(param_1)s": 1, "b": 2}),
}


@pytest.mark.parametrize("what", INSERTS)
def test_a_mutant_that_writes_such_things_is_found(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, instead, row = INSERTS[what]

    def build(tx: Any) -> Any:
        return tx.insert_into("t").values(row)

    only_names_and_placeholders(build, {"t", *row})
    monkeypatch.setattr(expressions, name, instead)
    with pytest.raises((AssertionError, KeyError, IndexError)):
        only_names_and_placeholders(build, {"t", *row})


def test_a_mutant_that_does_not_look_into_a_fragment_loses_the_where(
    ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comment at the end of a value: the condition behind it is gone, and every row is written."""
    monkeypatch.setattr(fragments, "_scan", lambda *_: frozenset())
    monkeypatch.setattr(expressions, "raw", without_brackets)
    way = ways("mariadb sync")
    way.stranger.run("insert into stored (id) values (1), (2)")
    harm = way.run(lambda tx: tx.update_table("stored").set({"n": fragments.sql("1 --")}).where({"id": -1}))
    assert harm == len(way.stranger.run("select * from stored"))


def test_a_mutant_that_does_not_know_square_brackets_reaches_every_row(
    ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite reads a name where the fragment's brackets were counted: the condition before it is gone."""

    def everything(tx: Any) -> Any:
        return tx.update_table("odd").set({"v": 1}).where({"id": 1}).where(fragments.sql("[x(] ) or 1=1 or ([y)]"))

    way = ways("sqlite sync")
    way.stranger.run("drop table if exists odd")
    way.stranger.run('create table odd (id integer primary key, "x(" integer, "y)" integer, v integer)')
    way.stranger.run("insert into odd (id) values (1), (2), (3)")
    with pytest.raises(UsageError, match="quoted name"):
        way.run(everything)
    monkeypatch.setattr(fragments.Fragment, "refuse_on", lambda *_: None)
    assert way.run(everything) == 3, "WHERE id = 1 named one of them"
