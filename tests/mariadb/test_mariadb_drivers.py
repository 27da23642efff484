"""The two sessions, and that they are alike."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import nodoubt.drivers.asyncmy as async_driver
import nodoubt.drivers.pymysql as sync_driver
from nodoubt.drivers import mysql_wire
from nodoubt.errors import MissingExtra, ResourceUnavailable, UsageError
from nodoubt.ports import Bound, SessionLost, StatementFailed
from nodoubt.script import do
from nodoubt.testing.proxy import TcpProxy
from nodoubt.testing.servers import MariaDBServer
from nodoubt.url import Url, parse_url

PATIENCE_S = 30.0


def failure(world: Any, session: Any, sql: str) -> StatementFailed:
    with pytest.raises(StatementFailed) as caught:
        world.run(session, sql)
    return caught.value


def test_every_statement_has_its_reply_with_count_columns_and_rows(blank: Any) -> None:
    replies = blank.run(
        blank.session(),
        "CREATE TABLE a (x INT PRIMARY KEY, y VARCHAR(9)); INSERT INTO a VALUES (1, 'ü'), (2, 'x;y'); "
        "UPDATE a SET y = 'z' WHERE x = 2; SELECT x, y AS name FROM a ORDER BY x; SELECT 1 FROM a WHERE x > 9; DO 1;",
    )
    assert [reply.tag for reply in replies] == [""] * 6
    assert [reply.count for reply in replies] == [0, 2, 1, 2, 0, 0]
    assert replies[3].columns == ("x", "name")
    assert replies[3].rows == ((1, "ü"), (2, "z"))
    assert list(replies[3]) == [{"x": 1, "name": "ü"}, {"x": 2, "name": "z"}]
    assert (replies[4].columns, replies[4].rows) == (("1",), ())


@pytest.mark.parametrize("language", ["en_US", "de_DE", "ru_RU", "zh_CN"])
def test_an_update_counts_the_rows_that_matched(blank: Any, language: str) -> None:
    """Whether they changed or not, and in whatever language the server says so."""
    session = blank.session()
    blank.run(session, f"SET lc_messages = '{language}'; CREATE TABLE a (x INT PRIMARY KEY, y INT)")
    blank.run(session, "INSERT INTO a VALUES " + ", ".join(f"({n}, 0)" for n in range(12)))
    for statement, count in (
        ("UPDATE a SET y = 0", 12),
        ("/* why */ update a set y = 1 where x < 2", 2),
        ("-- why\n# and\n UPDATE a SET y = 1 WHERE x < 3", 3),
        ("SET STATEMENT max_statement_time = 9 FOR UPDATE a SET y = 1 WHERE x < 3", 3),
        ("UPDATE a SET y = 1 WHERE x = 99", 0),
        ("UPDATE a JOIN a AS b ON a.x = b.x SET a.y = 1 WHERE a.x < 3", 3),
    ):
        assert blank.drive(do(session, "execute", statement, None)).count == count, statement
    counted = blank.drive(
        do(session, "execute", "UPDATE a SET y = 1 WHERE x = %s", Bound([(1,), (2,), (99,)], many=True))
    )
    assert counted.count == 2


def test_an_insert_that_leaves_a_row_as_it_is_does_not_count_it(blank: Any) -> None:
    """Catches: FOUND_ROWS, which would have an UPDATE count what matched, but this too."""
    session = blank.session()
    blank.run(session, "CREATE TABLE a (x INT PRIMARY KEY, y INT); INSERT INTO a VALUES (1, 1)")
    for values, count in (("(1, 2)", 0), ("(2, 2)", 1), ("(1, 3), (2, 3), (3, 3)", 1)):
        statement = f"INSERT INTO a VALUES {values} ON DUPLICATE KEY UPDATE x = x"
        assert blank.drive(do(session, "execute", statement, None)).count == count, values


def test_values_are_the_same_in_both_styles(blank: Any) -> None:
    (reply,) = blank.run(
        blank.session(), "SELECT 1, -1.5, 0.5e0, 'täxt 🎉', NULL, '', X'00FF', CAST('2026-01-02' AS DATE)"
    )
    *values, date = reply.rows[0]
    assert values == [1, Decimal("-1.5"), 0.5, "täxt 🎉", None, "", b"\x00\xff"]
    assert date.isoformat() == "2026-01-02"


def test_several_statements_travel_in_one_packet(blank: Any) -> None:
    """What the server counts as questions from the client goes up by one for all three."""
    session = blank.session()
    before, _, after = (
        reply.scalar()
        for reply in blank.run(
            session,
            "SELECT VARIABLE_VALUE FROM information_schema.SESSION_STATUS WHERE VARIABLE_NAME = 'BYTES_RECEIVED'; "
            "SELECT 'anything'; "
            "SELECT VARIABLE_VALUE FROM information_schema.SESSION_STATUS WHERE VARIABLE_NAME = 'BYTES_RECEIVED'",
        )
    )
    assert before == after


def test_the_first_error_ends_the_packet(blank: Any) -> None:
    session = blank.session()
    blank.run(session, "CREATE TABLE a (x INT PRIMARY KEY)")
    error = failure(blank, session, "INSERT INTO a VALUES (1); INSERT INTO a VALUES (1); INSERT INTO a VALUES (2)")
    assert error.code == "1062"
    assert "Duplicate entry" in error.message
    assert blank.run(session, "SELECT x FROM a")[0].rows == ((1,),)
    assert session.usable


def test_nothing_is_begun_behind_anybodys_back(blank: Any) -> None:
    session = blank.session()
    assert blank.run(session, "SELECT @@autocommit, @@in_transaction, @@completion_type")[0].rows == (
        (1, 0, "NO_CHAIN"),
    )


def test_a_session_speaks_utf8mb4_whatever_the_server_prefers(blank: Any) -> None:
    row = blank.run(
        blank.session(), "SELECT @@character_set_client, @@character_set_connection, @@character_set_results"
    )[0].rows[0]
    assert set(row) == {"utf8mb4"}


def test_the_users_statement_takes_both_kinds_of_placeholders(blank: Any) -> None:
    session = blank.session()
    sql = "SELECT %s, %s, '100%%'"
    assert blank.drive(do(session, "execute", sql, (1, "it's \\ ü"))).rows == ((1, "it's \\ ü", "100%"),)
    assert blank.drive(do(session, "execute", "SELECT %(a)s, %(a)s", {"a": None})).rows == ((None, None),)
    assert blank.drive(do(session, "execute", "SELECT '100%'", None)).rows == (("100%",),)


@pytest.mark.parametrize("mode", ["", "NO_BACKSLASH_ESCAPES", "ANSI"])
def test_no_value_becomes_sql_whatever_the_sql_mode(blank: Any, mode: str) -> None:
    """Where a backslash means nothing, one before a quote does not keep the value in its quotes."""
    session = blank.session()
    blank.run(session, f"SET SESSION sql_mode = '{mode}'")
    for text in ("' or 1=1 -- ", "\\' or 1=1 -- ", "\\", "it's", '"', "\0\x1a\n", "%s %%", ""):
        raw = text.encode() + b"\xff"
        for value, answer in ((text, text), (raw, raw), (bytearray(raw), raw), (memoryview(raw), raw)):
            for sql, values in (("SELECT %s", (value,)), ("SELECT %s", [value]), ("SELECT %(a)s", {"a": value})):
                reply = blank.drive(do(session, "execute", sql, values))
                assert reply.rows == ((answer,),), (text, type(value))
        for members in ((text, "b"), [text, b"b"], (1, text)):
            reply = blank.drive(do(session, "execute", "SELECT CONVERT(%s USING utf8mb4) IN %s, 2", (text, members)))
            assert reply.rows == ((1, 2),), members


def test_a_wrong_parameter_leaves_the_session_as_it_was(blank: Any) -> None:
    session = blank.session()
    with pytest.raises(Exception, match="not enough arguments"):
        blank.drive(do(session, "execute", "SELECT %s, %s", (1,)))
    assert session.usable
    assert blank.run(session, "SELECT 1")[0].scalar() == 1


def test_the_drivers_own_errors_reach_the_user(blank: Any) -> None:
    session = blank.session()
    with pytest.raises(Exception, match="doesn't exist") as caught:
        blank.drive(do(session, "execute", "SELECT * FROM nowhere", None))
    assert type(caught.value).__module__.split(".")[0] == ("asyncmy" if blank.style == "async" else "pymysql")
    assert not session.lost(caught.value)
    assert session.usable


def test_two_statements_in_one_text_are_an_error_after_all_results_were_read(blank: Any) -> None:
    """Catches: taking the first result for the answer, which leaves the second to be read as the next statement's."""
    session = blank.session()
    with pytest.raises(UsageError, match="held 2 statements"):
        blank.drive(do(session, "execute", "SELECT 1; SELECT 2", None))
    assert blank.drive(do(session, "execute", "SELECT 3", None)).scalar() == 3


def test_a_procedure_may_answer_with_several_results(blank: Any) -> None:
    session = blank.session()
    blank.run(session, "CREATE PROCEDURE p() BEGIN SELECT 7 AS seven; SELECT 8; END")
    for text in ("CALL p()", "  /* why */ call p()"):
        reply = blank.drive(do(session, "execute", text, None))
        assert list(reply) == [{"seven": 7}]
    assert blank.run(session, "SELECT 1")[0].scalar() == 1


def test_a_warning_costs_no_round_trip_and_stays_readable(blank: Any) -> None:
    session = blank.session()
    blank.run(session, "SET sql_mode = ''; CREATE TABLE a (x VARCHAR(2))")
    blank.drive(do(session, "execute", "INSERT INTO a VALUES ('long')", None))
    assert blank.run(session, "SHOW WARNINGS")[0].rows[0][1] == 1265


def test_the_session_knows_its_id_and_when_its_server_started(blank: Any) -> None:
    session = blank.session()
    row = blank.run(session, "SELECT CONNECTION_ID(), UNIX_TIMESTAMP()")[0].rows[0]
    assert session.connection_id == row[0]
    assert abs(session.server_started - blank.session().server_started) <= 1
    assert row[1] - 3600 * 24 < session.server_started <= row[1] + 1


def test_the_start_of_the_server_is_told_by_a_clock_that_was_set_back_to_before_it(blank: Any) -> None:
    """Uptime has no sign, and wraps. A start below zero made ids of branches that no sweep took for ours."""
    session = blank.session()
    blank.run(session, "SET timestamp = 1000000000")  # the clock by which the server tells both, for this session
    assert int(blank.run(session, "SHOW GLOBAL STATUS LIKE 'Uptime'")[0].rows[0][1]) > 1 << 63
    for message, read in ((mysql_wire.HELLO, mysql_wire.started), (mysql_wire.INTRODUCTION, mysql_wire.introduced)):
        connection_id, started = read(blank.run(session, message))
        assert connection_id == session.connection_id and abs(started - session.server_started) <= 1


def test_kill_from_another_thread_fails_the_call_in_progress(blank: Any) -> None:
    session = blank.session()
    call = blank.start(do(session, "run", "SELECT SLEEP(60)"))
    blank.until_busy(session)
    session.kill()
    with pytest.raises(SessionLost):
        call.result(PATIENCE_S)
    assert not session.usable
    with pytest.raises(SessionLost):
        blank.run(session, "SELECT 1")
    session.kill()  # a second time does no harm
    blank.close_session(session)


def test_a_session_killed_by_the_server_is_lost(blank: Any) -> None:
    session = blank.session()
    blank.look(f"KILL {session.connection_id}")
    blank.until_gone(session)
    with pytest.raises(SessionLost):
        blank.run(session, "SELECT 1")
    assert not session.usable


def test_a_statement_of_the_user_on_a_lost_session_raises_the_drivers_error_and_is_told_as_lost(blank: Any) -> None:
    session = blank.session()
    blank.look(f"KILL {session.connection_id}")
    blank.until_gone(session)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the driver's own, whichever it is
        blank.drive(do(session, "execute", "SELECT 1", None))
    assert session.lost(caught.value)
    assert not session.usable


def test_a_killed_query_is_no_lost_session(blank: Any) -> None:
    session = blank.session()
    call = blank.start(do(session, "run", "SELECT SLEEP(60) FROM information_schema.ENGINES"))
    blank.until_busy(session)
    blank.look(f"KILL QUERY {session.connection_id}")
    with pytest.raises(StatementFailed) as caught:
        call.result(PATIENCE_S)
    assert caught.value.code == "1317"
    assert session.usable


def test_a_lost_reply_is_a_lost_session(blank: Any) -> None:
    with TcpProxy.to(blank.url) as proxy:
        session = blank.session(proxy.url_for(blank.url))
        fault = proxy.cut_reply(after=b"DO 'here'")
        with pytest.raises(SessionLost):
            blank.run(session, "DO 'here'")
        fault.wait_hit()
        assert not session.usable


def test_a_silent_server_is_cut_off_by_the_read_timeout(blank: Any) -> None:
    with TcpProxy.to(blank.url) as proxy:
        session = blank.session(proxy.url_for(blank.url) + "?read_timeout=0.2")
        proxy.stall(b"SELECT 'here'")
        with pytest.raises(SessionLost):
            blank.run(session, "SELECT 'here'")
        assert not session.usable


def test_statements_may_take_longer_than_connecting_may(blank: Any) -> None:
    """Catches: the time to connect left in place as the bound of every statement."""
    session = blank.session(connect_timeout_s=0.5)
    assert blank.run(session, "SELECT SLEEP(0.7)")[0].scalar() == 0


def test_connecting_to_a_server_that_says_nothing_ends_in_time(blank: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"mariadb://me:secret@127.0.0.1:{listener.getsockname()[1]}/db"
        began = time.monotonic()
        with pytest.raises(ResourceUnavailable) as caught:
            blank.session(url, connect_timeout_s=0.3)
        assert time.monotonic() - began < 5
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("part", "value"), [("port", 1), ("password", "hunter2"), ("database", "nowhere")])
def test_a_refused_connection_is_unavailable_and_shows_no_password(blank: Any, part: str, value: object) -> None:
    url = parse_url(blank.url)
    parts: dict[str, object] = {"port": url.port, "password": url.password, "database": url.database, part: value}
    text = f"mariadb://{url.user}:{parts['password']}@{url.host}:{parts['port']}/{parts['database']}"
    with pytest.raises(ResourceUnavailable) as caught:
        blank.session(text)
    assert "hunter2" not in str(caught.value)
    assert f":{url.password}@" not in str(caught.value)


def test_a_password_is_sent_as_utf8(blank: Any) -> None:
    blank.look("CREATE OR REPLACE USER 'ünï'@'%' IDENTIFIED BY 'gehe1m→'; GRANT ALL ON *.* TO 'ünï'@'%'")
    url = parse_url(blank.url)
    session = blank.session(str(Url(**{**_fields(url), "user": "ünï", "password": ""})).replace("@", ":gehe1m→@", 1))
    assert blank.run(session, "SELECT USER()")[0].scalar().startswith("ünï@")


def test_connecting_by_a_unix_socket(own_server: MariaDBServer, new_world: Callable[..., Any]) -> None:
    world = new_world(own_server.url())
    path = own_server.data / "server.sock"
    session = world.session(f"{world.url}?unix_socket={path}")
    assert (
        world.run(session, "SELECT HOST FROM information_schema.PROCESSLIST WHERE ID = CONNECTION_ID()")[0].scalar()
        == "localhost"
    )


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with a certificate of its own making, for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    folder.chmod(0o755)
    parent = folder.parent
    while parent != parent.parent and parent.stat().st_uid == 0 and "pytest" in str(parent):
        parent.chmod(0o755)
        parent = parent.parent
    key, certificate = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    key.chmod(0o644)
    server = MariaDBServer({"ssl-cert": str(certificate), "ssl-key": str(key)})
    del server.settings["skip-ssl"]
    with server:
        yield server, certificate


def test_tls_is_verified_unless_asked_otherwise(
    tls_server: tuple[MariaDBServer, Path], new_world: Callable[..., Any]
) -> None:
    server, certificate = tls_server
    world = new_world(server.url())
    cipher = "SHOW SESSION STATUS LIKE 'Ssl_cipher'"
    for options, encrypted in (("", False), (f"?ssl=on&ssl_ca={certificate}", True), ("?ssl=unverified", True)):
        session = world.session(world.url + options)
        assert bool(world.run(session, cipher)[0].rows[0][1]) is encrypted
        call = world.start(do(session, "run", "SELECT SLEEP(60)"))
        world.until_busy(session)
        session.kill()
        with pytest.raises(SessionLost):
            call.result(PATIENCE_S)
    with pytest.raises(ResourceUnavailable, match="(?i)certificate"):
        world.session(world.url + "?ssl=on")


def test_tls_asked_for_is_never_silently_left_out(blank: Any) -> None:
    """Catches: a fallback to plain text when the server offers no TLS."""
    with pytest.raises(ResourceUnavailable):
        blank.session(blank.url + "?ssl=unverified")


@pytest.mark.parametrize(
    "options", ["?charset=latin1", "?sslmode=require", "?ssl=maybe", "?ssl_ca=x", "?read_timeout=0", "?read_timeout=x"]
)
def test_an_option_that_is_not_understood_is_refused(blank: Any, options: str) -> None:
    with pytest.raises(UsageError):
        blank.session(blank.url + options)


def test_closing_ends_the_servers_session(blank: Any) -> None:
    session = blank.session()
    blank.close_session(session)
    assert not session.usable
    blank.until_gone(session)
    blank.close_session(session)


@pytest.mark.parametrize("module", ["nodoubt.drivers.pymysql", "nodoubt.drivers.asyncmy"])
def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module.rpartition(".")[2], None)
    monkeypatch.delitem(sys.modules, module)
    with pytest.raises(MissingExtra, match=r"nodoubt\[mysql\]"):
        importlib.import_module(module)


def test_a_cancelled_task_leaves_a_session_that_no_pool_takes(mariadb: MariaDBServer) -> None:
    """Catches: a session handed on with an answer still to come (I18)."""

    async def scene() -> None:
        session = await async_driver.connect(parse_url(mariadb.url()))
        task = asyncio.create_task(session.run("SELECT SLEEP(60)"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not session.usable
        with pytest.raises(SessionLost):
            await session.run("SELECT 1")
        await session.close()

    asyncio.run(scene())


def test_an_interrupted_call_leaves_a_session_that_no_pool_takes(mariadb: MariaDBServer) -> None:
    """The sync way of being cancelled: an exception raised in the thread while it waits for the answer."""
    session = sync_driver.connect(parse_url(mariadb.url()))
    original = session._connection._read_bytes

    def interrupted(count: int) -> bytes:
        session._connection._read_bytes = original
        raise KeyboardInterrupt

    session._connection._read_bytes = interrupted
    with pytest.raises(KeyboardInterrupt):
        session.run("SELECT 1")
    assert not session.usable


def test_an_answer_that_cannot_be_read_ends_the_session(blank: Any) -> None:
    """Catches: the rest of a half-read answer taken for the answer to the next statement."""
    session = blank.session()
    sql = "SELECT _latin1 X'FF' AS x; SET NAMES latin1; SELECT _latin1 X'FF'; SELECT 2"
    with pytest.raises(SessionLost, match="could not be read"):
        blank.run(session, sql)
    assert not session.usable


def test_one_thread_kills_while_many_calls_run(blank: Any) -> None:
    sessions = [blank.session() for _ in range(6)]
    calls = [blank.start(do(session, "run", "SELECT SLEEP(60)")) for session in sessions]
    for session in sessions:
        blank.until_busy(session)
    killers = [threading.Thread(target=session.kill) for session in sessions]
    for thread in killers:
        thread.start()
    for thread in killers:
        thread.join()
    for call in calls:
        with pytest.raises(SessionLost):
            call.result(PATIENCE_S)


def test_a_dropped_session_leaves_no_descriptor(blank: Any) -> None:
    """A pool kills what it does not take back, and forgets it."""
    for _ in range(5):
        session = blank.session()
        blank.sessions.pop()
        session.kill()
        number = session.connection_id
        del session
        gc.collect()
        sql = f"SELECT 1 FROM information_schema.PROCESSLIST WHERE ID = {number}"
        blank.until(lambda sql=sql: not blank.look(sql), "the server's end of it")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        session = blank.session()
        blank.sessions.pop()
        session.kill()
        del session
    gc.collect()
    blank.until(lambda: len(os.listdir("/proc/self/fd")) <= before + 2, "the descriptors to be closed")


@pytest.mark.parametrize(
    ("code", "loss"),
    [(None, True), (0, True), (2006, True), (2013, True), (1927, True), (1053, True), (1062, False), (3000, False)],
)
def test_which_numbers_mean_that_the_connection_is_gone(code: int | None, loss: bool) -> None:
    assert mysql_wire.is_loss(code) is loss


def _fields(url: Url) -> dict[str, Any]:
    return {name: getattr(url, name) for name in url.__slots__}
