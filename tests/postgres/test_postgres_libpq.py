"""What libpq is told by ourselves, not by psycopg: prepared statements, parameters, encodings, last words."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from nodoubt.errors import UsageError
from nodoubt.ports import SessionLost
from nodoubt.script import do
from nodoubt.testing.proxy import TcpProxy


def held(world: Any, session: Any) -> int:
    """How many statements the server holds for the session."""
    return int(world.run(session, "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'nd%'")[0].scalar())


def test_a_statement_that_fails_for_its_values_stays_prepared_and_costs_the_server_nothing_more(blank: Any) -> None:
    session = blank.session()
    blank.run(session, "CREATE TABLE a (x int PRIMARY KEY)")
    for n in range(40):
        insert = do(session, "execute", "INSERT INTO a VALUES (%s)", [n // 2])
        if n % 2:
            assert isinstance(blank.error(insert), psycopg.errors.UniqueViolation)
        else:
            blank.drive(insert)
    assert held(blank, session) == 1


def test_what_a_session_has_prepared_is_bounded_whatever_becomes_outdated(
    blank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodoubt.drivers.libpq.STATEMENTS_MAX", 5)
    session = blank.session()
    blank.run(session, "CREATE TABLE a (x int)")
    outdated = 0
    for n in range(10):
        for _ in range(4):
            blank.drive(do(session, "execute", "SELECT * FROM a WHERE x = %s", [1]))
        blank.run(session, f"ALTER TABLE a ADD y{n} int")
        select = blank.start(do(session, "execute", "SELECT * FROM a WHERE x = %s", [1]))
        outdated += isinstance(select.exception(20), psycopg.errors.FeatureNotSupported)
    assert (outdated, held(blank, session)) == (5, 5)


def test_an_answer_that_python_cannot_hold_fails_the_same_way_each_time(blank: Any) -> None:
    session = blank.session()
    for _ in range(6):
        error = blank.error(do(session, "execute", "SELECT date '4000-01-01 BC', %s::int", [1]))
        assert isinstance(error, psycopg.DataError) and "date too small" in str(error)
    assert session.usable and not session.in_transaction


def test_too_many_parameters_are_refused_before_anything_is_sent(blank: Any) -> None:
    session = blank.session()
    many = ", ".join(["%s"] * 65536)
    error = blank.error(do(session, "execute_after", ["BEGIN"], f"SELECT 1 WHERE 1 IN ({many})", list(range(65536))))
    assert isinstance(error, UsageError) and "65536" in str(error) and "ANY" in str(error)
    assert session.usable and not session.in_transaction


def test_text_travels_in_the_encoding_that_the_url_asks_for(blank: Any) -> None:
    session = blank.session(f"{blank.url}?client_encoding=latin1")
    assert blank.run(session, "SELECT 'é'")[0].scalar() == "é"
    for statement, params in [("SELECT 'é'", None), ("SELECT 1; SELECT 'é'", None), ("SELECT %s::text", ["é"])]:
        assert blank.drive(do(session, "execute", statement, params)).scalar() == "é"
    after = blank.drive(do(session, "execute_after", ["BEGIN", "SET LOCAL a.b = 'é'"], "SHOW a.b", []))
    assert after[-1].scalar() == "é"
    assert blank.drive(do(session, "execute", 'SELECT 1 AS "é"', None)).columns == ("é",)


def test_a_server_s_last_words_are_told_in_a_pipeline_too(blank: Any) -> None:
    session = blank.session()
    call = blank.start(do(session, "execute_after", ["BEGIN"], "SELECT pg_sleep(%s)", [60]))
    blank.until_waiting(session, "PgSleep")
    blank.look(f"SELECT pg_terminate_backend({session.connection_id})")
    error = call.exception(20)
    assert isinstance(error, SessionLost) and "due to administrator command" in str(error)


def test_a_session_that_is_lost_after_its_first_answer_has_answered(blank: Any) -> None:
    """Texts of several statements go by themselves, behind ours: whether the session was alive is known by then."""
    with TcpProxy.to(blank.url) as proxy:
        session = blank.session(proxy.url_for(blank.url))
        proxy.cut_request(b"SELECT 7")
        lost = blank.error(do(session, "execute_after", ["BEGIN"], "SELECT 7; SELECT 8", None))
        assert isinstance(lost, SessionLost) and lost.answered
        session = blank.session(proxy.url_for(blank.url))
        proxy.cut_request(b"SELECT 9")
        lost = blank.error(do(session, "execute_after", ["BEGIN"], "SELECT 9", None))
        assert isinstance(lost, SessionLost) and not lost.answered


def test_a_session_that_was_ended_in_the_pool_has_answered_nothing_that_was_sent_since(blank: Any) -> None:
    """Its server's last words are read as the first result; a branch that was to begin there begins elsewhere."""
    for statement in ("SELECT 1", "SELECT 1; SELECT 2"):
        session = blank.session()
        blank.look(f"SELECT pg_terminate_backend({session.connection_id}, 20000)")
        lost = blank.error(do(session, "execute_after", ["BEGIN"], statement, None))
        assert isinstance(lost, SessionLost) and not lost.answered
