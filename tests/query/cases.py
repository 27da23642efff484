"""The table of cases: what a chain of verbs does to the database, what it gives back, or why it is refused.

One table for all databases: a case says the same of each, unless it says `only`. `bug` names what the page's original
(stacksjs/bun-query-builder, by issue or by place in its source) does or did instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from nodoubt import sql
from nodoubt.query import Kind

Row = Mapping[str, Any]
Build = Callable[[Any], Any]  # from something with verbs to a builder
KINDS: tuple[Kind, ...] = ("postgres", "mariadb", "sqlite")

PEOPLE: tuple[Row, ...] = (
    {"id": 1, "name": "ada", "age": 36, "status": "active"},
    {"id": 2, "name": "bob", "age": 17, "status": "active"},
    {"id": 3, "name": "cyd", "age": None, "status": "blocked"},
    {"id": 4, "name": "dan", "age": 52, "status": None},
)
NOTES: tuple[Row, ...] = ({"id": 1, "person": 1, "body": "first"},)
ODD_COLUMNS = ("where", "a b", "a_b", 'qu"ote', "back`tick", "per%cent", "co:lon", "Capital", "dol$1lar", "ques?tion")
ODD: tuple[Row, ...] = ({"id": 1, **dict.fromkeys(ODD_COLUMNS, "old")}, {"id": 2, **dict.fromkeys(ODD_COLUMNS, "old")})
TABLES: Mapping[str, tuple[Row, ...]] = {"people": PEOPLE, "notes": NOTES, "select": ODD}


@dataclass(frozen=True)
class Case:
    claim: str
    build: Build | Sequence[Build]
    # What must come of it: a count, or rows, or a refusal before anything is sent, or the database's own error.
    count: int | None = None
    rows: Sequence[Row] | None = None
    refused: str | None = None
    fails: bool = False
    # What it changes.
    edited: Mapping[int, Row] = field(default_factory=dict)
    gone: frozenset[int] = frozenset()
    added: Sequence[Row] = ()
    table: str = "people"
    only: Sequence[Kind] = KINDS
    bug: str = ""

    @property
    def builds(self) -> Sequence[Build]:
        return self.build if isinstance(self.build, Sequence) else (self.build,)

    def after(self) -> dict[str, list[Row]]:
        tables = {name: list(rows) for name, rows in TABLES.items()}
        rows = [{**row, **self.edited.get(row["id"], {})} for row in tables[self.table] if row["id"] not in self.gone]
        tables[self.table] = sorted([*rows, *self.added], key=lambda row: int(row["id"]))
        return tables


def people(*ids: int) -> list[Row]:
    return [row for row in PEOPLE if row["id"] in ids]


def selected(claim: str, *ids: int, where: Any, bug: str = "", only: Sequence[Kind] = KINDS) -> Case:
    """A condition, by the people whom it selects."""
    condition = where if isinstance(where, tuple) else (where,)
    return Case(
        claim,
        lambda tx: tx.select_from("people").where(*condition).order_by("id"),
        rows=people(*ids),
        bug=bug,
        only=only,
    )


def refused_condition(claim: str, why: str, *condition: Any, bug: str = "") -> Case:
    return Case(claim, lambda tx: tx.delete_from("people").where(*condition), refused=why, bug=bug)


EVE: Row = {"id": 5, "name": "eve", "age": 20, "status": "new"}
FAY: Row = {"id": 6, "name": "fay", "age": None, "status": "new"}

SCHEMA_TABLE = "people"  # with its schema where there is one; set by the tests for each database

CONDITIONS = [
    selected("a mapping is equality", 2, where={"name": "bob"}),
    selected("a mapping of two is both", 1, where={"status": "active", "age": 36}),
    selected("column, operator, value", 1, 4, where=("age", ">=", 18)),
    selected("a triple is a condition", 1, 2, where=["status", "in", ["active", "new"]]),
    selected("a tuple is a triple, too", 2, where=(("age", "<", 18),)),
    selected(
        "a list of triples is all of them",
        1,
        where=[["status", "=", "active"], ["age", ">", 18]],
        bug="where([[…], […]]) takes the first list for a column's name",
    ),
    selected(
        "a list may mix mappings, triples and fragments", 1, where=[{"id": [1, 2]}, ["age", ">", 18], sql("1 = 1")]
    ),
    selected("an empty mapping is no condition on a SELECT", 1, 2, 3, 4, where={}),
    selected("an empty list is no condition on a SELECT", 1, 2, 3, 4, where=([],)),
    selected(
        "None is IS NULL", 3, where={"age": None}, bug="where({age: null}) binds the null to =, and matches nothing"
    ),
    selected(
        "a number makes numbers of MariaDB's texts, most of them 0", 1, 2, 3, 4, where={"name": 0}, only=("mariadb",)
    ),
    selected("a number equals none of SQLite's texts", where={"name": 0}, only=("sqlite",)),
    selected("= None is IS NULL", 4, where=("status", "=", None)),
    selected("is None is IS NULL", 3, where=("age", "is", None), bug='"is" binds the null: a syntax error'),
    selected("!= None is IS NOT NULL", 1, 2, 4, where=("age", "!=", None)),
    selected("<> None is IS NOT NULL", 1, 2, 4, where=("age", "<>", None)),
    selected("is not None is IS NOT NULL", 1, 2, 3, where=("status", "is not", None)),
    selected("!= leaves NULLs out, as SQL does", 3, where=("status", "!=", "active")),
    selected("a list is IN", 1, 3, where={"id": [1, 3]}, bug="#1114: an array in where({}) of a write matches nothing"),
    selected("a tuple and a set are lists", 3, where=[{"id": (1, 3)}, ["id", "in", {3, 4}]]),
    selected("= with a list is IN", 1, 3, where=("id", "=", [1, 3])),
    selected("!= with a list is NOT IN", 2, 4, where=("id", "!=", [1, 3])),
    selected("not in", 2, 4, where=("id", "not in", [1, 3])),
    selected("operators in capitals, with more spaces", 2, 4, where=("id", "NOT   IN", [1, 3])),
    selected(
        "an empty list matches nothing", where={"id": []}, bug='#1083: "in" [] is IN (), a syntax error on two of three'
    ),
    selected("in an empty list matches nothing", where=("id", "in", [])),
    selected("not in an empty list matches everything", 1, 2, 3, 4, where=("age", "not in", [])),
    selected(
        "None in a list is IS NULL", 1, 3, where=("age", "in", [36, None]), bug="IN (36, NULL) never finds a NULL"
    ),
    selected("only None in a list", 3, where=("age", "in", [None])),
    selected("None in not in", 2, 4, where=("age", "not in", [36, None]), bug="NOT IN (36, NULL) never finds anything"),
    selected("only None in not in", 1, 2, 4, where=("age", "not in", [None])),
    selected("between", 1, 2, where=("age", "between", [17, 36]), bug='"between" binds one value: a syntax error'),
    selected("not between", 4, where=("age", "not between", (17, 36))),
    selected("like", 1, 4, where=("name", "like", "%a%")),
    selected("not like", 2, 3, where=("name", "not like", "%a%")),
    selected("a percent sign in a pattern is escaped by a backslash, everywhere", where=("name", "like", "\\%a%")),
    selected("ilike ignores case", 1, where=("name", "ilike", "ADA")),
    selected("not ilike", 2, 3, 4, where=("name", "not ilike", "ADA")),
    selected("a fragment is a condition", 1, 4, where=sql("age > {n}", n=20)),
    selected(
        "a fragment with OR stays within its brackets", 1, where=[sql("age > {n} or age < 0", n=20), {"id": [1, 2]}]
    ),
    selected("a fragment on the right", 1, 2, 4, where=("id", "<=", sql("age - {n}", n=2))),
    selected("a fragment on the left", 2, where=(sql("upper(name)"), "=", "BOB")),
    selected("an expression of SQLAlchemy's", 1, where=sa.column("age") == 36),
    Case(
        "two calls are both",
        lambda tx: tx.select_from("people").where({"status": "active"}).where("age", "<", 18),
        rows=people(2),
    ),
    Case(
        "or_where widens the condition before it",
        lambda tx: tx.select_from("people").where({"id": 1}).or_where({"id": 2}).order_by("id"),
        rows=people(1, 2),
    ),
    Case(
        "or_where lets what was said earlier stand",
        lambda tx: tx.select_from("people").where("id", "<=", 2).where({"name": "ada"}).or_where({"name": "dan"}),
        rows=people(1),
        bug="#1083: (a AND b) OR c, so that the first filter ceased to apply",
    ),
    Case(
        "a where after or_where narrows all of it",
        lambda tx: tx.select_from("people").where({"id": 1}).or_where({"id": 4}).where("age", ">", 40),
        rows=people(4),
        bug="#1083: a OR (b AND c)",
    ),
    Case(
        "(a and b) or c is said by one call for a and b",
        lambda tx: (
            tx.select_from("people").where([["id", "<=", 2], ["age", ">", 18]]).or_where({"name": "dan"}).order_by("id")
        ),
        rows=people(1, 4),
    ),
    Case(
        "or_where first is a where",
        lambda tx: tx.select_from("people").or_where({"id": 1}).or_where({"id": 4}).order_by("id"),
        rows=people(1, 4),
        bug="#1083: FROM people OR …, a syntax error",
    ),
    Case(
        "nothing or something is everything",
        lambda tx: tx.select_from("people").where({}).or_where({"id": 1}).order_by("id"),
        rows=PEOPLE,
    ),
    Case(
        "or_where({}) is refused",
        lambda tx: tx.select_from("people").where({"id": 1}).or_where({}),
        refused="everything",
    ),
]

REFUSED_CONDITIONS = [
    refused_condition("where({}) on a delete is refused", "every row", {}, bug="#1095"),
    refused_condition("where([]) on a delete is refused", "every row", []),
    refused_condition("where() without anything is refused", "where takes"),
    refused_condition("where(None) is refused", "no condition", None, bug="#1101: deleted every row"),
    refused_condition("where(True) is refused", "no condition", True),
    refused_condition("where(42) is refused", "no condition", 42),
    refused_condition("a lone column is refused", "no condition", "active"),
    refused_condition("column and value without an operator are refused", "where takes", "id", 1),
    refused_condition("a text is no list of characters", "no condition", "a=b"),
    refused_condition(
        "a callback is refused", "no condition", lambda q: q, bug="#1101: where(eb => …) matched every row"
    ),
    refused_condition("an empty condition in a list is refused", "no condition", [{"id": 1}, {}]),
    refused_condition("an unknown operator is refused", "no operator", "id", "= 1 or 1 =", 1),
    refused_condition("an operator that is no text is refused", "no operator", "id", None, 1),
    refused_condition("less than None is refused", "NULL", "age", "<", None),
    refused_condition("like None is refused", "NULL", "name", "like", None),
    refused_condition(
        "is with a value is refused", "None alone", "age", "is", 3, bug='"is" binds any value: a syntax error'
    ),
    refused_condition("in too long a list is refused", "too many", "id", "in", list(range(40_000))),
    refused_condition("in without a list is refused", "a list", "id", "in", 1),
    refused_condition("in a text is refused", "a list", "name", "in", "ada"),
    refused_condition("in None is refused", "a list", "name", "in", None),
    refused_condition("less than a list is refused", "a list", "id", "<", [1]),
    refused_condition("between one value is refused", "two values", "age", "between", [1]),
    refused_condition("between with None is refused", "two values", "age", "between", [1, None]),
    refused_condition("comparing with JSON is refused", "not compared with a dict", "name", "=", {"raw": "1=1"}),
    refused_condition("a list in a list is refused", "not compared with a list", "id", "in", [[1]]),
    refused_condition("a type that no database has is refused", "a value is one of", "id", "=", object()),
    refused_condition("a column named by nothing is refused", "not empty", {"": 1}),
    refused_condition("a column with a NUL is refused", "NUL", {"a\0b": 1}),
    refused_condition("a column with a dot is refused", "one table", {"people.id": 1}),
    refused_condition("a column that is no text is refused", "not empty", {1: 1}),
    refused_condition("a column like SQLAlchemy's placeholders is refused", "placeholder", {"%(param_1)s": 1}),
    refused_condition("a column like SQLAlchemy's lists is refused", "placeholder", {"__[POSTCOMPILE_param_1]": [1]}),
]

SELECTS = [
    Case("everything", lambda tx: tx.select_from("people").order_by("id"), rows=PEOPLE),
    Case(
        "columns",
        lambda tx: tx.select_from("people").columns("name", "id").where({"id": 1}),
        rows=[{"name": "ada", "id": 1}],
    ),
    Case("a star is everything", lambda tx: tx.select_from("people").columns("*").where({"id": 1}), rows=people(1)),
    Case(
        "a keyword renames a column and names a fragment",
        lambda tx: tx.select_from("people").columns("id", who="name", next=sql("age + {n}", n=1)).where({"id": 1}),
        rows=[{"id": 1, "who": "ada", "next": 37}],
    ),
    Case(
        "order_by desc",
        lambda tx: tx.select_from("people").columns("id").order_by("id", "desc").limit(2),
        rows=[{"id": 4}, {"id": 3}],
    ),
    Case(
        "order_by twice",
        lambda tx: (
            tx.select_from("people").columns("id").where("id", "<", 4).order_by("status").order_by("name", "desc")
        ),
        rows=[{"id": 2}, {"id": 1}, {"id": 3}],
    ),
    Case(
        "order_by a fragment",
        lambda tx: tx.select_from("people").columns("id").order_by(sql("0 - id")).limit(1),
        rows=[{"id": 4}],
    ),
    Case(
        "NULLs come last on PostgreSQL",
        lambda tx: tx.select_from("people").columns("id").order_by("age").limit(1),
        rows=[{"id": 2}],
        only=["postgres"],
    ),
    Case(
        "NULLs come first elsewhere",
        lambda tx: tx.select_from("people").columns("id").order_by("age").limit(1),
        rows=[{"id": 3}],
        only=["mariadb", "sqlite"],
    ),
    Case(
        "limit and offset",
        lambda tx: tx.select_from("people").columns("id").order_by("id").limit(2).offset(1),
        rows=[{"id": 2}, {"id": 3}],
    ),
    Case(
        "offset alone",
        lambda tx: tx.select_from("people").columns("id").order_by("id").offset(3),
        rows=[{"id": 4}],
        bug="OFFSET without LIMIT is a syntax error on two of three",
    ),
    Case("limit 0", lambda tx: tx.select_from("people").limit(0), rows=[]),
    Case(
        "distinct",
        lambda tx: tx.select_from("people").columns("status").where({"id": [1, 2]}).distinct(),
        rows=[{"status": "active"}],
    ),
    Case("for_update", lambda tx: tx.select_from("people").where({"id": 1}).for_update(), rows=people(1)),
    Case("schema.table", lambda tx: tx.select_from(SCHEMA_TABLE).where({"id": 1}), rows=people(1)),
    Case("a misspelt column is an error", lambda tx: tx.select_from("people").columns("nmae"), fails=True),
    Case(
        "a misspelt column in a condition is an error",
        lambda tx: tx.delete_from("people").where("nmae", "!=", 1),
        fails=True,
    ),
    Case("a limit below 0 is refused", lambda tx: tx.select_from("people").limit(-1), refused="0 or more"),
    Case(
        "a limit that is no number is refused",
        lambda tx: tx.select_from("people").limit("1; drop"),
        refused="0 or more",
    ),
    Case("a limit of True is refused", lambda tx: tx.select_from("people").limit(True), refused="0 or more"),
    Case(
        "another direction is refused",
        lambda tx: tx.select_from("people").order_by("id", "asc; drop"),
        refused="direction",
    ),
    Case(
        "a fragment without a name is refused",
        lambda tx: tx.select_from("people").columns(sql("count(*)")),
        refused="give it a name",
    ),
    Case("a column twice is refused", lambda tx: tx.select_from("people").columns("id", "id"), refused="twice"),
    Case("a name twice is refused", lambda tx: tx.select_from("people").columns("id", id="name"), refused="twice"),
    Case("a star with others is refused", lambda tx: tx.select_from("people").columns("*", "id"), refused="alone"),
    Case("no columns are refused", lambda tx: tx.select_from("people").columns(), refused="no column"),
    Case(
        "columns twice are refused",
        lambda tx: tx.select_from("people").columns("id").columns("name"),
        refused="already",
    ),
    Case("a table without a name is refused", lambda tx: tx.select_from(""), refused="not empty"),
    Case("a table with a NUL is refused", lambda tx: tx.select_from("a\0b"), refused="NUL"),
    Case("a table of three parts is refused", lambda tx: tx.select_from("a.b.c"), refused="schema.table"),
    Case("a schema without a name is refused", lambda tx: tx.select_from(".people"), refused="not empty"),
    Case("half a character in a name is refused", lambda tx: tx.select_from("\ud800"), refused="surrogate"),
]

INSERTS = [
    Case("one row", lambda tx: tx.insert_into("people").values(EVE), count=1, added=[EVE]),
    Case("several rows", lambda tx: tx.insert_into("people").values([EVE, FAY]), count=2, added=[EVE, FAY]),
    Case(
        "rows from a generator",
        lambda tx: tx.insert_into("people").values(row for row in (EVE, FAY)),
        count=2,
        added=[EVE, FAY],
    ),
    Case(
        "the order of keys does not matter",
        lambda tx: tx.insert_into("people").values([EVE, dict(reversed(list(FAY.items())))]),
        count=2,
        added=[EVE, FAY],
    ),
    Case(
        "columns left out are NULL",
        lambda tx: tx.insert_into("people").values({"id": 5, "name": "eve"}),
        count=1,
        added=[{"id": 5, "name": "eve", "age": None, "status": None}],
    ),
    Case(
        "a fragment is a value",
        lambda tx: tx.insert_into("people").values([EVE, {**FAY, "age": sql("{a} + {b}", a=20, b=2)}]),
        count=2,
        added=[EVE, {**FAY, "age": 22}],
        bug="db.sql`…` becomes the text [object Promise]",
        only=["mariadb", "sqlite"],
    ),
    Case(
        "a fragment is a value: what PostgreSQL cannot infer is said",
        lambda tx: tx.insert_into("people").values({**FAY, "age": sql("cast({a} as integer) + 2", a=20)}),
        count=1,
        added=[{**FAY, "age": 22}],
    ),
    Case("a duplicate is an error", lambda tx: tx.insert_into("people").values([EVE, PEOPLE[0]]), fails=True),
    Case(
        "returning a column",
        lambda tx: tx.insert_into("people").values(EVE).returning("id"),
        rows=[{"id": 5}],
        added=[EVE],
    ),
    Case(
        "returning of several rows, renamed, and a fragment",
        lambda tx: tx.insert_into("people").values([EVE, FAY]).returning("id", who="name", double=sql("id * {n}", n=2)),
        rows=[{"id": 5, "who": "eve", "double": 10}, {"id": 6, "who": "fay", "double": 12}],
        added=[EVE, FAY],
        bug="on MySQL it reads the ids from the first generated one on, whosever they are",
    ),
    Case(
        "returning everything", lambda tx: tx.insert_into("people").values(EVE).returning("*"), rows=[EVE], added=[EVE]
    ),
    Case(
        "returning a misspelt column is an error",
        lambda tx: tx.insert_into("people").values(EVE).returning("nmae"),
        fails=True,
        bug="columns of RETURNING are not quoted, so they are SQL; quoted, SQLite gives back the name as a text",
    ),
    Case(
        "returning nothing is refused", lambda tx: tx.insert_into("people").values(EVE).returning(), refused="no column"
    ),
    Case(
        "no rows are refused",
        lambda tx: tx.insert_into("people").values([]),
        refused="no row",
        bug="#1097: SELECT 1, and a made-up row",
    ),
    Case("an empty row is refused", lambda tx: tx.insert_into("people").values({}), refused="no row|not empty"),
    Case(
        "an empty row among others is refused",
        lambda tx: tx.insert_into("people").values([EVE, {}]),
        refused="not empty",
    ),
    Case(
        "a row that is no mapping is refused",
        lambda tx: tx.insert_into("people").values([(1, "x")]),
        refused="a row is a mapping",
    ),
    Case("a text is no row", lambda tx: tx.insert_into("people").values("eve"), refused="a row is a mapping"),
    Case("None is no row", lambda tx: tx.insert_into("people").values(None), refused="no row"),
    Case("an insert without values is refused", lambda tx: tx.insert_into("people"), refused="no row"),
    Case(
        "values twice are refused",
        lambda tx: tx.insert_into("people").values(EVE).values(FAY),
        refused="already",
        bug="the last call wins, the first rows are gone",
    ),
    Case(
        "a row with a column more is refused",
        lambda tx: tx.insert_into("people").values([{"id": 5, "name": "eve"}, {"id": 6, "name": "fay", "age": 3}]),
        refused=r"row 1 .*\(age\)",
        bug="values() takes the columns of the first row, and drops the others in silence",
    ),
    Case(
        "a row with a column less is refused",
        lambda tx: tx.insert_into("people").values([EVE, {"id": 6, "name": "fay", "age": 3}]),
        refused=r"row 1 .*\(status\)",
        bug="binds undefined",
    ),
    Case(
        "too many values are refused",
        lambda tx: tx.insert_into("people").values([{"id": n} for n in range(40_000)]),
        refused="batches",
    ),
    Case(
        "a value of no database's is refused",
        lambda tx: tx.insert_into("people").values({"id": object()}),
        refused="id: a value is one of",
    ),
]

OR_IGNORE = [
    Case("a new row is inserted", lambda tx: tx.insert_or_ignore("people", EVE), count=1, added=[EVE]),
    Case(
        "a duplicate of the primary key is ignored", lambda tx: tx.insert_or_ignore("people", {**EVE, "id": 1}), count=0
    ),
    Case(
        "a duplicate of a unique key is ignored",
        lambda tx: tx.insert_or_ignore("people", {**EVE, "name": "ada"}),
        count=0,
    ),
    Case(
        "new rows among duplicates are inserted, and counted",
        lambda tx: tx.insert_or_ignore("people", [{**EVE, "id": 1}, FAY, {**EVE, "name": "bob"}]),
        count=1,
        added=[FAY],
    ),
    Case(
        "a duplicate within the rows is ignored",
        lambda tx: tx.insert_or_ignore("people", [EVE, {**EVE, "age": 1}]),
        count=1,
        added=[EVE],
    ),
    Case(
        "a NULL where none may be is an error",
        lambda tx: tx.insert_or_ignore("people", {**EVE, "name": None}),
        fails=True,
        bug="INSERT IGNORE makes '' of it on MySQL",
    ),
    Case(
        "a NULL among several rows is an error",
        lambda tx: tx.insert_or_ignore("people", [EVE, {**FAY, "name": None}]),
        fails=True,
    ),
    Case(
        "a text that is too long is an error",
        lambda tx: tx.insert_or_ignore("people", {**EVE, "status": "x" * 21}),
        fails=True,
        only=["postgres", "mariadb"],  # SQLite has no lengths
        bug="INSERT IGNORE cuts it off on MySQL",
    ),
    Case(
        "a missing parent is an error",
        lambda tx: tx.insert_or_ignore("notes", {"id": 2, "person": 99, "body": "x"}),
        fails=True,
        only=["postgres", "mariadb"],  # SQLite checks parents where the connection is told to
        bug="INSERT IGNORE drops the row on MySQL",
    ),
    Case("a failed CHECK is an error", lambda tx: tx.insert_or_ignore("people", {**EVE, "age": -1}), fails=True),
    Case(
        "no rows are refused there, too",
        lambda tx: tx.insert_or_ignore("people", []),
        refused="no row",
        bug="answers undefined",
    ),
    Case(
        "rows that differ are refused there, too",
        lambda tx: tx.insert_or_ignore("people", [EVE, {"id": 6}]),
        refused="same columns",
    ),
    Case(
        "it returns the rows that it inserted",
        lambda tx: tx.insert_or_ignore("people", [{**EVE, "id": 1}, FAY]).returning("id"),
        rows=[{"id": 6}],
        added=[FAY],
        only=["postgres", "sqlite"],
    ),
    Case(
        "on MariaDB it can return none",
        lambda tx: tx.insert_or_ignore("people", FAY).returning("id"),
        refused="cannot say",
        only=["mariadb"],
    ),
]


def forked(tx: Any) -> Any:
    update = tx.update_table("people").set({"age": 1})
    update.where({"id": 1})
    return update.where({"id": 2})


UPDATES = [
    Case(
        "a mapping of values",
        lambda tx: tx.update_table("people").set({"age": 37, "status": None}).where({"id": 1}),
        count=1,
        edited={1: {"age": 37, "status": None}},
    ),
    Case(
        "it counts the rows that matched",
        lambda tx: tx.update_table("people").set({"age": 1}).where("id", "<", 4),
        count=3,
        edited={n: {"age": 1} for n in (1, 2, 3)},
    ),
    Case(
        "rows that do not change are counted",
        lambda tx: tx.update_table("people").set({"age": 36}).where({"id": 1}),
        count=1,
    ),
    Case("no row matched", lambda tx: tx.update_table("people").set({"age": 1}).where({"id": 99}), count=0),
    Case(
        "in an empty list no row matches",
        lambda tx: tx.update_table("people").set({"age": 1}).where({"id": []}),
        count=0,
    ),
    Case(
        "None in a condition finds its rows",
        lambda tx: tx.update_table("people").set({"age": 1}).where({"age": None}),
        count=1,
        edited={3: {"age": 1}},
        bug="where({age: null}) of a write binds the null to =",
    ),
    Case(
        "a list in a condition finds its rows",
        lambda tx: tx.update_table("people").set({"age": 1}).where({"id": [1, 2]}),
        count=2,
        edited={1: {"age": 1}, 2: {"age": 1}},
        bug="#1114",
    ),
    Case(
        "a fragment counts up",
        lambda tx: tx.update_table("people").set({"age": sql("age + {n}", n=3)}).where({"id": 1}),
        count=1,
        edited={1: {"age": 39}},
        bug="db.sql`stock + ${n}`: [object Promise]",
    ),
    Case(
        "a fragment with a WHERE of its own leaves ours alone",
        lambda tx: (
            tx.update_table("people")
            .set({"age": sql("(select count(*) from notes where person = 1)")})
            .where({"id": 2})
        ),
        count=1,
        edited={2: {"age": 1}},
        bug="#1113: the condition becomes part of the value, and every row is written",
    ),
    Case(
        "an expression of SQLAlchemy's is a value",
        lambda tx: tx.update_table("people").set({"age": sa.column("age") + 3}).where({"id": 1}),
        count=1,
        edited={1: {"age": 39}},
    ),
    Case(
        "set twice is both",
        lambda tx: tx.update_table("people").set({"age": 1}).set({"status": "x"}).where({"id": 1}),
        count=1,
        edited={1: {"age": 1, "status": "x"}},
        bug="SET a = 1 SET b = 2",
    ),
    Case(
        "where before set",
        lambda tx: tx.update_table("people").where({"id": 1}).set({"age": 1}),
        count=1,
        edited={1: {"age": 1}},
        bug="WHERE … SET …",
    ),
    Case(
        "everywhere, if it is said",
        lambda tx: tx.update_table("people").set({"age": 1}).everywhere(),
        count=4,
        edited={n: {"age": 1} for n in (1, 2, 3, 4)},
    ),
    Case(
        "columns of a condition may be assigned",
        lambda tx: tx.update_table("people").set({"age": 0}).where("age", ">", 30),
        count=2,
        edited={1: {"age": 0}, 4: {"age": 0}},
    ),
    Case(
        "a swap takes the values before it",
        lambda tx: tx.update_table("people").set({"id": sql("age"), "age": sql("id")}).where({"id": 2}),
        count=1,
        gone=frozenset({2}),
        added=[{**PEOPLE[1], "id": 17, "age": 2}],
        only=["postgres", "sqlite"],
    ),
    Case(
        "on MariaDB it assigns from left to right",
        lambda tx: tx.update_table("people").set({"id": sql("age"), "age": sql("id")}).where({"id": 2}),
        count=1,
        gone=frozenset({2}),
        added=[{**PEOPLE[1], "id": 17, "age": 17}],
        only=["mariadb"],
    ),
    Case(
        "where({}) on an update is refused",
        lambda tx: tx.update_table("people").set({"age": 1}).where({}),
        refused="every row",
        bug="#1095",
    ),
    Case(
        "where({}) after a condition is refused",
        lambda tx: tx.update_table("people").set({"age": 1}).where({"id": 1}).where({}),
        refused="every row",
    ),
    Case(
        "an update without a where is refused",
        lambda tx: tx.update_table("people").set({"age": 1}),
        refused="everywhere",
        bug="writes every row",
    ),
    Case(
        "everywhere and where contradict",
        lambda tx: tx.update_table("people").set({"age": 1}).where({"id": 1}).everywhere(),
        refused="contradict",
    ),
    Case(
        "an update without set is refused",
        lambda tx: tx.update_table("people").where({"id": 1}),
        refused="nothing to update",
    ),
    Case(
        "an empty set is refused",
        lambda tx: tx.update_table("people").set({}).where({"id": 1}),
        refused="set takes a mapping",
        bug="SET  WHERE: a syntax error",
    ),
    Case(
        "set of no mapping is refused",
        lambda tx: tx.update_table("people").set("age = 1").where({"id": 1}),
        refused="set takes a mapping",
    ),
    Case(
        "a column set twice is refused",
        lambda tx: tx.update_table("people").set({"age": 1}).set({"age": 2}).where({"id": 1}),
        refused="set twice",
    ),
    Case(
        "a misspelt column of a set is an error",
        lambda tx: tx.update_table("people").set({"aeg": 1}).where({"id": 1}),
        fails=True,
    ),
    Case(
        "returning from an update",
        lambda tx: tx.update_table("people").set({"age": 37}).where({"id": 1}).returning("id", "age"),
        rows=[{"id": 1, "age": 37}],
        edited={1: {"age": 37}},
        only=["postgres", "sqlite"],
    ),
    Case(
        "returning from an update with a misspelt column is an error",
        lambda tx: tx.update_table("people").set({"age": 37}).where({"id": 1}).returning("nmae"),
        fails=True,
        only=["postgres", "sqlite"],
    ),
    Case(
        "returning from an update is refused on MariaDB",
        lambda tx: tx.update_table("people").set({"age": 37}).where({"id": 1}).returning("id"),
        refused="no UPDATE … RETURNING",
        only=["mariadb"],
        bug="two statements, between which others write",
    ),
    Case(
        "returning without a where is refused, too",
        lambda tx: tx.update_table("people").set({"age": 37}).returning("id"),
        refused="everywhere|RETURNING",
        bug="#1110: a filter after returning() was dropped, and every row written",
    ),
    Case(
        "one of two continuations knows nothing of the other",
        forked,
        count=1,
        edited={2: {"age": 1}},
        bug="#1110: builders change in place",
    ),
]


DELETES = [
    Case("delete", lambda tx: tx.delete_from("people").where({"id": 4}), count=1, gone=frozenset({4})),
    Case("delete several", lambda tx: tx.delete_from("people").where("id", ">", 2), count=2, gone=frozenset({3, 4})),
    Case("delete by None", lambda tx: tx.delete_from("people").where({"status": None}), count=1, gone=frozenset({4})),
    Case(
        "delete in an empty list deletes nothing",
        lambda tx: tx.delete_from("people").where("id", "in", []),
        count=0,
        bug="#1083",
    ),
    Case(
        "delete not in a list",
        lambda tx: tx.delete_from("people").where("id", "not in", [1, 2]),
        count=2,
        gone=frozenset({3, 4}),
    ),
    Case(
        "delete everywhere, if it is said",
        lambda tx: tx.delete_from("notes").everywhere(),
        count=1,
        gone=frozenset({1}),
        table="notes",
    ),
    Case(
        "a delete without a where is refused",
        lambda tx: tx.delete_from("people"),
        refused="everywhere",
        bug="deletes every row",
    ),
    Case(
        "returning from a delete",
        lambda tx: tx.delete_from("people").where({"id": 4}).returning("name"),
        rows=[{"name": "dan"}],
        gone=frozenset({4}),
    ),
    Case(
        "returning from a delete without a where is refused",
        lambda tx: tx.delete_from("people").returning("id"),
        refused="everywhere",
        bug="#1110: deletes every row",
    ),
    Case(
        "two statements of one transaction",
        [
            lambda tx: tx.delete_from("people").where({"id": 4}),
            lambda tx: tx.select_from("people").where({"id": [3, 4]}),
        ],
        rows=people(3),
        gone=frozenset({4}),
    ),
]

NAMES = [
    Case(
        "names are quoted, whatever they hold",
        lambda tx: tx.update_table("select").set({name: f"new {name}" for name in ODD_COLUMNS}).where({"id": 1}),
        count=1,
        edited={1: {name: f"new {name}" for name in ODD_COLUMNS}},
        table="select",
        bug="identifiers of a SELECT are not quoted",
    ),
    Case(
        "quoted names in every place of a SELECT",
        lambda tx: (
            tx.select_from("select")
            .columns(*ODD_COLUMNS, **{'as "x`%s:y?$1': "where"})
            .where({"id": 1} | dict.fromkeys(ODD_COLUMNS, "old"))
            .where("per%cent", "in", ["old", "new"])
            .order_by("per%cent")
            .limit(1)
        ),
        rows=[{**dict.fromkeys(ODD_COLUMNS, "old"), 'as "x`%s:y?$1': "old"}],
        table="select",
    ),
    Case(
        "quoted names in an INSERT, and in what it returns",
        lambda tx: tx.insert_into("select").values({"id": 3} | {n: n for n in ODD_COLUMNS}).returning(*ODD_COLUMNS),
        rows=[{n: n for n in ODD_COLUMNS}],
        added=[{"id": 3} | {n: n for n in ODD_COLUMNS}],
        table="select",
        bug="columns of RETURNING are not quoted",
    ),
    Case(
        "quoted names without any value",
        lambda tx: tx.delete_from("select").where({"per%cent": None}).returning("per%cent"),
        rows=[],
        table="select",
    ),
    Case(
        "a name that would be SQL is a name", lambda tx: tx.delete_from('people" where 1=1 --').everywhere(), fails=True
    ),
    Case(
        "a column that would be SQL is a name",
        lambda tx: tx.update_table("people").set({'age" = 1 --': 1, "age` = 1 #": 2}).where({"id": 1}),
        fails=True,
    ),
]

FRAGMENTS = [
    Case(
        "what looks like a placeholder within quotes is text, to every driver",
        lambda tx: (
            tx.update_table("people")
            .set({"status": sql("concat(' :x ? %s $1 {{n}} 5% ', {n})", n="!")})
            .where({"id": 1})
        ),
        count=1,
        edited={1: {"status": " :x ? %s $1 {n} 5% !"}},
        only=["mariadb"],
    ),
    Case(
        "what looks like a placeholder within quotes is text, on PostgreSQL too",
        lambda tx: (
            tx.update_table("people").set({"status": sql("' :x ? %s $1 {{n}} 5% ' || {n}", n="!")}).where({"id": 1})
        ),
        count=1,
        edited={1: {"status": " :x ? %s $1 {n} 5% !"}},
        only=["postgres", "sqlite"],
    ),
    Case(
        "a modulo",
        lambda tx: tx.select_from("people").where(sql("id % 3 = {n}", n=1)).order_by("id"),
        rows=people(1, 4),
    ),
    Case(
        "a modulo without any value",
        lambda tx: tx.select_from("people").where(sql("id % 3 = 1")).order_by("id"),
        rows=people(1, 4),
    ),
    Case(
        "a placeholder twice is bound twice",
        lambda tx: tx.select_from("people").where(sql("id = {n} or age = {n} + 35", n=1)),
        rows=people(1),
    ),
    Case(
        "a value that would be SQL is a value",
        lambda tx: tx.select_from("people").where(sql("name = {s}", s="' or 1=1 --")),
        rows=[],
    ),
    Case(
        "a backslash before a quote is a value",
        lambda tx: tx.update_table("people").set({"status": "\\' or 1=1 --"}).where({"name": "\\' or 1=1 -- "}),
        count=0,
    ),
    Case(
        "a negative value after a minus",
        lambda tx: tx.update_table("people").set({"age": sql("age -{n}", n=-3)}).where({"id": 1}),
        count=1,
        edited={1: {"age": 39}},
    ),
    Case(
        "a cast of PostgreSQL's",
        lambda tx: tx.update_table("people").set({"status": sql("age::text")}).where({"id": 1}),
        count=1,
        edited={1: {"status": "36"}},
        only=["postgres"],
    ),
    Case(
        "a cast of a placeholder",
        lambda tx: tx.select_from("people").columns(v=sql("{n}::int + 1", n=2)).limit(1),
        rows=[{"v": 3}],
        only=["postgres"],
    ),
    Case(
        "an operator of PostgreSQL's with a question mark",
        lambda tx: tx.select_from("people").where(sql("""'{{"a": 1}}'::jsonb ? 'a'""")).where({"id": 1}),
        rows=people(1),
        only=["postgres"],
    ),
    Case(
        "DEFAULT is a value",
        lambda tx: tx.update_table("people").set({"status": sql("default")}).where({"id": 1}),
        count=1,
        edited={1: {"status": None}},
        only=["postgres", "mariadb"],
    ),
    Case(
        "a colon is a parameter to SQLite",
        lambda tx: tx.select_from("people").where(sql("id = :x")),
        refused="is a parameter to sqlite",
        only=["sqlite"],
    ),
    Case(
        "a question mark is a parameter to SQLite",
        lambda tx: tx.select_from("people").where(sql("id = ?")),
        refused="is a parameter to sqlite",
        only=["sqlite"],
    ),
    Case(
        "an at sign is a parameter to SQLite",
        lambda tx: tx.select_from("people").where(sql("id = @x")),
        refused="is a parameter to sqlite",
        only=["sqlite"],
    ),
    Case(
        "a hash is a comment to MariaDB",
        lambda tx: tx.update_table("people").set({"age": sql("1 # x")}).where({"id": 1}),
        refused="comment to mariadb",
        only=["mariadb"],
    ),
    Case(
        "a square bracket begins a name to SQLite",
        lambda tx: tx.update_table("people").set({"age": 1}).where({"id": 1}).where(sql("[x(] ) or 1=1 or ([y)]")),
        refused="the beginning of a quoted name to sqlite",
        only=["sqlite"],
    ),
    Case(
        "a backtick is no quote to PostgreSQL",
        lambda tx: tx.update_table("people").set({"age": 1}).where({"id": 1}).where(sql("` 1) or 1=1 or (` 1")),
        refused="operator's sign to postgres",
        only=["postgres"],
    ),
    Case(
        "a fragment cannot leave its brackets",
        lambda tx: tx.update_table("people").set({"age": sql("1, status = 'x'")}).where({"id": 1}),
        fails=True,
    ),
    Case(
        "what looks like a fragment of the original's is JSON",
        lambda tx: tx.update_table("people").set({"status": {"raw": "'x'"}}).where({"id": 1}),
        count=1,
        edited={1: {"status": '{"raw": "\'x\'"}'}},
        bug="any object with a text `raw` or `sql`, from a request too, is SQL",
    ),
]

CASES = [
    *CONDITIONS,
    *REFUSED_CONDITIONS,
    *SELECTS,
    *INSERTS,
    *OR_IGNORE,
    *UPDATES,
    *DELETES,
    *NAMES,
    *FRAGMENTS,
]
