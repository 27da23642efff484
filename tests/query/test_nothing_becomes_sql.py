"""No input becomes SQL: names end up in quotes, values in placeholders, or they are refused before a statement exists.

The compiled statement is taken apart for every dialect and driver; then a sample is executed, and comes back as it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nodoubt import UsageError, sql
from query.compiled import DIALECTS, KIND_OF, compiled
from query.ways import URLS, Noted, Way

Ways = Callable[[str], Way]

SHARP = "'\"`\\%:?$;-/*#@(){}[]=<>!&|,.~^\n\r\t\x00\x1a\u2028\ufeff😀ß aZ_019"
texts = st.text(st.one_of(st.sampled_from(SHARP), st.characters()), max_size=24) | st.sampled_from(
    [
        "' or 1=1 --", "\\' or 1=1 #", '"; drop table people; --', "`) values (1) --", "%(param_1)s", "%s", "%%", "?",
        "$1", ":x", "::text", "__[POSTCOMPILE_param_1]", "{x}", "{{", "\\", "''", '""', "``", "/*", "*/", "--", "1",
        "null", "*", "%(", ")s", "people.id", "a.b.c", "%(param_2)s", "param_1", "\ud800",
    ]
)  # fmt: skip
values: st.SearchStrategy[Any] = st.one_of(
    texts, st.integers(), st.booleans(), st.none(), st.binary(max_size=8), st.decimals(), st.floats(), st.datetimes(),
    st.dates(), st.uuids(), st.lists(texts, max_size=3), st.dictionaries(texts, texts, max_size=2),
)  # fmt: skip
operators = texts | st.sampled_from(["=", "!=", "in", "not in", "like", "between", "is", "NOT  IN", "ilike", "<="])


def built(build: Callable[[Any], Any], dialect: str) -> Any:
    """The statement, or None if it was refused. Any other error is a defect."""
    noted = Noted(KIND_OF[dialect])
    try:
        build(noted).execute()
    except UsageError:
        return None
    return noted.statements[0]


def only_names_and_placeholders(build: Callable[[Any], Any], inputs: set[str]) -> None:
    for dialect in DIALECTS:
        statement = built(build, dialect)
        if statement is None:
            continue
        try:
            taken_apart = compiled(statement, dialect)
        except UsageError:
            assert dialect == "mysql+pymysql", "only MySQL itself can refuse this late: it has no RETURNING"
            continue
        assert not taken_apart.strangers, f"{dialect}: {taken_apart.strangers} in {taken_apart.text}"
        assert set(taken_apart.names) <= inputs, f"{dialect}: other names in {taken_apart.text}"


@given(table=texts, column=texts, operator=operators, value=values, other=texts)
@example(table="t", column="%(param_1)s", operator="in", value=["x"], other="a")
@example(table="t", column="a b", operator="=", value=1, other="a_b")
@example(table='t" where 1=1 --', column='c" = 1 --', operator="=", value="' --", other="x")
@settings(max_examples=150, deadline=None)
def test_a_select_is_names_and_placeholders(table: str, column: str, operator: str, value: Any, other: str) -> None:
    names = {*table.split("."), column, other}
    only_names_and_placeholders(
        lambda tx: (
            tx.select_from(table)
            .columns(column, **({other: column} if other != column else {}))
            .where(column, operator, value)
            .or_where({other: value})
            .order_by(other, "desc")
            .limit(3)
            .offset(1)
        ),
        names,
    )


@given(table=texts, first=texts, second=texts, value=values, returned=texts)
@example(table="t", first="%(param_1)s", second="a", value=1, returned="b")
@example(table="t", first="a b", second="a_b", value=1, returned="b")
@settings(max_examples=150, deadline=None)
def test_writes_are_names_and_placeholders(table: str, first: str, second: str, value: Any, returned: str) -> None:
    names = {*table.split("."), first, second, returned}
    row = {first: value, second: "x"}
    for build in (
        lambda tx: tx.insert_into(table).values([row, row]),
        lambda tx: tx.insert_or_ignore(table, row),
        lambda tx: tx.insert_into(table).values(row).returning(returned),
        lambda tx: tx.update_table(table).set(row).where([[first, "=", value], [second, "!=", value]]),
        lambda tx: tx.delete_from(table).where({first: value, second: [value]}),
        lambda tx: tx.delete_from(table).where({first: None}).returning(returned),
    ):
        only_names_and_placeholders(build, names)


@given(values)
@settings(max_examples=150, deadline=None)
def test_each_value_has_a_placeholder_of_its_own_and_arrives_there(value: Any) -> None:
    """Two values of one statement are never exchanged or shared, whatever the columns are called."""
    columns = ["a b", "a_b", "a.b".replace(".", ":"), "a%b", "param_1", "param_2"]
    row = {column: number for number, column in enumerate(columns)} | {"x": value}
    for dialect in DIALECTS:
        statement = built(lambda tx: tx.insert_into("t").values(row), dialect)
        if statement is not None:
            assert compiled(statement, dialect).values[:-1] == list(range(len(columns)))


@given(text=texts, value=values)
@settings(max_examples=200, deadline=None)
def test_a_fragment_s_value_stays_out_of_the_text(text: str, value: Any) -> None:
    """Whatever the text of a fragment is: it is refused, or the value is bound exactly where it says."""
    try:
        fragment = sql(text + " {v} " + text, v=value)
    except UsageError:
        return
    for dialect in DIALECTS:
        statement = built(lambda tx: tx.update_table("t").set({"c": fragment}).where({"id": 7}), dialect)
        if statement is None:
            continue
        done = statement.compile(dialect=DIALECTS[dialect])
        written = text.replace("{{", "{").replace("}}", "}")
        if DIALECTS[dialect].paramstyle.endswith("format"):
            written = written.replace("%", "%%")
        _, _, after = str(done).partition("(" + written)
        assert after, f"the text is not there as it was written: {done}"
        assert re.fullmatch(
            r" (%\(param_1\)s|%s|\?|\$1) " + re.escape(written) + r"\) WHERE [\"`]t[\"`]\.[\"`]id[\"`] = \S+",
            after,
            re.DOTALL,
        ), f"{done}"
        assert list(done.params) == ["param_1", "param_2"]
        assert done.params["param_2"] == 7


@pytest.mark.parametrize("verb", ["INSERT", "DELETE"])
def test_mysql_refuses_to_return_before_anything_is_sent(verb: str) -> None:
    """SQLAlchemy would write RETURNING for it. On MariaDB the same is compiled."""

    def build(tx: Any) -> Any:
        insert, delete = tx.insert_into("t").values({"a": 1}), tx.delete_from("t").where({"a": 1})
        return (insert if verb == "INSERT" else delete).returning("a")

    with pytest.raises(UsageError, match=f"no {verb} … RETURNING"):
        compiled(built(build, "mysql+pymysql"), "mysql+pymysql")
    assert "RETURNING `t`.`a`" in compiled(built(build, "mariadb+pymysql"), "mariadb+pymysql").text


STORED = st.text(st.one_of(st.sampled_from(SHARP), st.characters(exclude_categories=["Cs"])), max_size=20)


@pytest.mark.parametrize("way", URLS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=STORED, number=st.integers(-(2**31), 2**31 - 1), blob=st.binary(max_size=20))
@example(text="\\' or 1=1 -- ", number=-1, blob=b"\x00'\\\"%s?")
@example(text="%s %(param_1)s :x ? $1 {n} %% \\", number=0, blob=b"")
def test_what_is_stored_comes_back_byte_for_byte(way: str, ways: Ways, text: str, number: int, blob: bytes) -> None:
    at = ways(way)
    if at.kind == "postgres":
        text = text.replace("\0", "")  # refused there: see test_values
    row = {"id": 1, "t": text, "n": number, "b": blob}
    at.run(
        lambda tx: tx.delete_from("stored").everywhere(),
        lambda tx: tx.insert_into("stored").values(row),
        lambda tx: (
            tx.update_table("stored").set({"t": sql("{t}", t=text)}).where([["b", "=", blob], ["n", "=", number]])
        ),
    )
    assert list(at.run(lambda tx: tx.select_from("stored").where({"t": text}))) == [row]


@pytest.mark.parametrize("way", URLS)
@pytest.mark.parametrize(
    "name",
    ['a"b', "a`b", "a'b", "a%b", "a%sb", "a:b", "a?b", "a$1b", "a\\b", "a\nb", "a;b", "a--b", "a/*b", "ä", "a]b", "*"],
)
def test_a_column_of_any_name_is_written_and_read(way: str, name: str, ways: Ways) -> None:
    at = ways(way)
    quoted = at.stranger.quoted(name)
    at.stranger.run("drop table if exists named")
    at.stranger.run(f"create table named (id integer primary key, {quoted} varchar(20))")
    at.run(
        lambda tx: tx.insert_into("named").values([{"id": 1, name: "x"}, {"id": 2, name: "y"}]),
        lambda tx: tx.update_table("named").set({name: "z"}).where({name: "x"}),
    )
    rows = at.run(lambda tx: tx.select_from("named").columns("id", n=name).where(name, "in", ["y", "z"]).order_by("id"))
    assert list(rows) == [{"id": 1, "n": "z"}, {"id": 2, "n": "y"}]
