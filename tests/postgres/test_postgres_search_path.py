"""What anybody may put into the schema `public` (until PostgreSQL 15, every account may) is never run by us.

An operator whose operands are of the very types that a statement has is preferred to one of the server's own that would
have to convert them: `oid = 0` is anybody's. It runs with the rights of whoever asks (CVE-2018-1058).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from doctor.conftest import doctor
from kit import QUICK, Database, make_database, until
from nodoubt import Coordinator
from nodoubt.doctor import postgres as doctors
from nodoubt.journals.dialects import Dialect, PostgresDialect
from nodoubt.testing.servers import PostgresServer

TYPES = (
    "int2", "int4", "int8", "oid", "xid", "tid", "text", "name", '"char"', "bool", "float8", "numeric", "timestamptz",
    "interval", "bytea", "regtype",
)  # fmt: skip
OPERATORS = ("=", "<>", "<", ">", "<=", ">=", "+", "-", "&", "||", "~~", "~*")
_RESULTS = {"||": "text", "+": "int4", "-": "int4", "&": "int4"}


def plant(url: str) -> None:
    """Every operator that the server does not have for just these types. Each refuses, and says so."""
    with psycopg.connect(url, autocommit=True) as session:
        known = (
            "select oprname, oprleft::regtype::text, oprright::regtype::text from pg_operator "
            "where oprnamespace = 'pg_catalog'::regnamespace"
        )
        there = set(session.execute(known).fetchall())
        names: dict[str, str] = dict(
            session.execute("select t, t::regtype::text from unnest(%s::text[]) t", (list(TYPES),)).fetchall()
        )
        statements = []
        for number, (left, right, operator) in enumerate(itertools.product(TYPES, TYPES, OPERATORS)):
            if (operator, names[left], names[right]) not in there:
                result = _RESULTS.get(operator, "bool")
                words = f"planted {operator} ({names[left]}, {names[right]})".replace('"', "")
                statements.append(
                    f"create function public.planted_{number}({left}, {right}) returns {result} language "
                    f"plpgsql as $$ begin raise exception '{words}'; end $$; create operator "
                    f"public.{operator} (leftarg = {left}, rightarg = {right}, function = public.planted_{number})"
                )
        session.execute("; ".join(statements).encode())


@pytest.fixture
def pair(postgres: PostgresServer, request: Any, tmp_path: Path) -> Iterator[list[Database]]:
    """Two databases with our tables and a user's trigger, in which a low account has planted what it may."""
    made = [make_database("postgres", name, request, tmp_path) for name in "ab"]
    with Coordinator({one.name: one.url for one in made}, recovery=False) as db:
        db.setup()
    made[0].query("create role meddler login")
    for one in made:
        one.query("grant create on schema public to meddler")
        one.query("create function theirs() returns trigger language plpgsql as 'begin return new; end'")
        one.query("create trigger theirs after insert on accounts for each row execute function theirs()")
        plant(one.url.replace(f"{postgres.user}@", "meddler@"))
    yield made
    for one in made:
        one.query("drop owned by meddler cascade")
    made[0].query("drop role meddler")


def live(pair: list[Database]) -> None:
    """All that a coordinator asks, from start to drop."""
    with Coordinator({one.name: one.url for one in pair}, settings=QUICK, recovery=False) as db:
        for written in ("ab", "b", ""):
            with db.transaction() as tx:
                for name in "ab":
                    work = "update accounts set balance = balance" if name in written else "select 1"
                    tx[name].execute(work)
        for number, name in enumerate(("kept", "left", "late"), 10):
            with db.begin_distributed(name, deadline=0.5 if name == "late" else 60) as tx:
                for one in "ab":
                    tx[one].execute(f"insert into accounts values ({number}, 0)")
            if name == "kept":
                assert db.commit_distributed(name).complete
            if name == "left":
                assert db.rollback_distributed(name).complete
        db.reap()
        until(lambda: not db.recover(grace=0).trouble and not any(one.prepared() for one in pair))
        assert list(db.jobs()) == [] and list(db.quarantined()) == [] and list(db.unreadable()) == []
        assert {one.name for one in db.transactions()} >= {"kept"}
        db.drop("b")


def test_no_operator_that_others_have_planted_is_called_by_a_coordinator(pair: list[Database]) -> None:
    live(pair)


def test_a_mutant_that_compares_a_double_with_a_decimal_calls_it(
    pair: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PostgresDialect, "seconds", Dialect.seconds)
    with pytest.raises(Exception, match="planted <=? \\(double precision, numeric\\)"):
        live(pair)


def look(pair: list[Database]) -> None:
    """With something prepared, and locked."""
    one = pair[0]
    with psycopg.connect(one.url, autocommit=True) as session:
        session.execute("begin; lock table accounts; insert into accounts values (99, 0); prepare transaction 'theirs'")
        try:
            found = doctor(*(each.url for each in pair), "--grace", "0")["databases"]
        finally:
            session.execute("rollback prepared 'theirs'")
    assert [each["error"] for each in found] == [None, None]
    assert all(each["journal"] or each["identity"] for each in found)


def test_no_operator_that_others_have_planted_is_called_by_the_doctor(pair: list[Database]) -> None:
    """An administrator looks, with all rights: what is planted could run a program as the server."""
    look(pair)


def test_a_mutant_that_looks_through_the_search_path_calls_it(
    pair: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctors, "_BEGIN", doctors._BEGIN.rpartition(";")[0])
    monkeypatch.setattr(doctors, "_read_only_for_good", lambda _: "SELECT 'public'; SELECT 1")
    with pytest.raises(AssertionError):
        look(pair)
