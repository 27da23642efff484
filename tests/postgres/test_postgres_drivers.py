"""The two sessions, and that they are alike."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
import threading
from typing import Any

import pytest

import nodoubt.drivers.asyncpg as async_driver
from nodoubt.errors import MissingExtra, ResourceUnavailable, UsageError
from nodoubt.ports import SessionLost, StatementFailed
from nodoubt.script import Do, Script, do
from nodoubt.testing.proxy import TcpProxy
from nodoubt.url import parse_url


@pytest.fixture(params=["sync", "async", "asyncpg"])
def style(request: pytest.FixtureRequest) -> str:
    """Each driver that a URL can ask for."""
    name: str = request.param
    return name


def calling(session: Any, verb: str, statement: str = "SELECT pg_sleep(60)") -> Script[Any]:
    """The call of one verb or the other."""
    return do(session, verb, *((statement,) if verb == "run" else (statement, None)))


def failure(world: Any, session: Any, sql: str) -> StatementFailed:
    with pytest.raises(StatementFailed) as caught:
        world.run(session, sql)
    return caught.value


def test_every_statement_has_its_reply_with_tag_columns_and_rows(blank: Any) -> None:
    replies = blank.run(
        blank.session(),
        "BEGIN; CREATE TABLE a (x int); INSERT INTO a VALUES (1), (2); UPDATE a SET x = x + 1 RETURNING x AS y; "
        "SELECT 1 WHERE false; SET LOCAL a.b = 'c'; COMMIT;",
    )
    assert [reply.tag for reply in replies] == [
        "BEGIN", "CREATE TABLE", "INSERT 0 2", "UPDATE 2", "SELECT 0", "SET", "COMMIT",
    ]  # fmt: skip
    assert [reply.count for reply in replies] == [-1, -1, 2, 2, 0, -1, -1]
    assert replies[3].columns == ("y",)
    assert replies[3].rows == ((2,), (3,))
    assert list(replies[3]) == [{"y": 2}, {"y": 3}]
    assert replies[4].columns == ("?column?",)
    assert replies[4].rows == ()


def test_values_are_the_same_in_both_styles(blank: Any) -> None:
    (reply,) = blank.run(
        blank.session(),
        "SELECT true, false, 1::int2, 2::int4, 3::int8, 4::oid, 1.5::float8, 0.5::float4, 'täxt'::text, 'v'::varchar, "
        "NULL::int, ''::text, decode('00ff', 'hex')",
    )
    assert reply.rows == ((True, False, 1, 2, 3, 4, 1.5, 0.5, "täxt", "v", None, "", b"\x00\xff"),)


def test_several_statements_travel_in_one_message(blank: Any) -> None:
    """The server shows the text of the message that it is working on: all of it."""
    sql = "SELECT 1; SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    session = blank.session()
    for _ in range(7):  # psycopg prepares what it sees often; what is prepared cannot hold two statements
        assert blank.run(session, sql)[1].scalar() == sql


def test_large_answers_in_many_packets_are_read_whole(blank: Any) -> None:
    (reply,) = blank.run(blank.session(), "SELECT n, repeat('x', 100) FROM generate_series(1, 20000) n")
    assert reply.count == len(reply) == 20000
    assert reply.rows[-1] == (20000, "x" * 100)


def test_the_first_error_ends_the_message_and_the_session_stays_usable(blank: Any) -> None:
    session = blank.session()
    error = failure(blank, session, "BEGIN; SELECT 1/0; CREATE TABLE never (a int); COMMIT")
    assert error.code == "22012"
    assert session.usable
    assert [reply.tag for reply in blank.run(session, "ROLLBACK; SELECT to_regclass('never')")] == [
        "ROLLBACK",
        "SELECT 1",
    ]


def test_an_error_names_the_schema_of_its_table(blank: Any) -> None:
    """Without this a duplicate key of the user's, found at COMMIT, reads as somebody else's decision."""
    session = blank.session()
    blank.run(session, "CREATE SCHEMA s; CREATE TABLE s.a (x int PRIMARY KEY); INSERT INTO s.a VALUES (1)")
    error: Any = failure(blank, session, "INSERT INTO s.a VALUES (1)")
    assert (error.code, error.schema) == ("23505", "s")
    assert "(x)=(1)" in error.message
    other: Any = failure(blank, session, "SELECT 1/0")
    assert other.schema == ""


def test_execute_takes_the_drivers_own_placeholders(blank: Any) -> None:
    session = blank.session()
    mark = "$1" if blank.style == "asyncpg" else "%s"
    reply = blank.drive(do(session, "execute", f"SELECT {mark}::int + 1 AS n, 'x' AS t", [41]))
    assert (reply.tag, reply.count, reply.columns, reply.rows) == ("SELECT 1", 1, ("n", "t"), ((42, "x"),))
    empty = blank.drive(do(session, "execute", f"SELECT {mark}::int AS n WHERE false", [41]))
    assert (empty.tag, empty.columns, empty.rows) == ("SELECT 0", ("n",), ())
    made = blank.drive(do(session, "execute", "CREATE TABLE a (x int)", None))
    assert (made.tag, made.columns) == ("CREATE TABLE", ())
    written = blank.drive(do(session, "execute", "INSERT INTO a VALUES (1), (2)", None))
    assert (written.tag, written.count) == ("INSERT 0 2", 2)


def test_named_parameters_are_refused_where_they_are_numbered(blank: Any) -> None:
    session = blank.session()
    if blank.style != "asyncpg":
        assert blank.drive(do(session, "execute", "SELECT %(n)s::int", {"n": 3})).scalar() == 3
    else:
        with pytest.raises(UsageError, match=r"\$1"):
            blank.drive(do(session, "execute", "SELECT 1", {"n": 3}))
        assert session.usable


def test_execute_raises_the_drivers_own_errors(blank: Any) -> None:
    session = blank.session()
    with pytest.raises(Exception, match="division by zero") as caught:
        blank.drive(do(session, "execute", "SELECT 1/0", None))
    assert type(caught.value).__module__.startswith(("psycopg", "asyncpg"))
    assert not session.lost(caught.value)
    assert session.usable


def test_nothing_is_begun_behind_our_back(blank: Any) -> None:
    session = blank.session()
    blank.drive(do(session, "execute", "CREATE TABLE a (x int)", None))
    assert blank.look("SELECT count(*) FROM a") == [(0,)]


@pytest.mark.parametrize("verb", ["run", "execute"])
def test_a_session_ended_by_the_server_is_lost(blank: Any, verb: str) -> None:
    session = blank.session()
    call = blank.start(calling(session, verb))
    blank.until_waiting(session, "PgSleep")
    blank.look(f"SELECT pg_terminate_backend({session.connection_id})")
    error = call.exception(20)
    assert isinstance(error, SessionLost) if verb == "run" else session.lost(error)
    assert not session.usable


@pytest.mark.parametrize("verb", ["run", "execute"])
def test_a_session_that_was_ended_while_idle_is_lost(blank: Any, verb: str) -> None:
    session = blank.session()
    blank.look(f"SELECT pg_terminate_backend({session.connection_id})")
    blank.until(
        lambda: not blank.look(f"SELECT 1 FROM pg_stat_activity WHERE pid = {session.connection_id}"), "its end"
    )
    error = blank.error(calling(session, verb, "SELECT 1"))
    assert isinstance(error, SessionLost) if verb == "run" else session.lost(error)
    assert not session.usable


@pytest.mark.parametrize("code", ["08006", "57P01"])
@pytest.mark.parametrize("verb", ["run", "execute"])
def test_an_error_that_speaks_of_the_connection_counts_as_its_end(blank: Any, verb: str, code: str) -> None:
    """A pooler says so of *its* connection while ours stays open. Fails without the codes in `ends_session`."""
    session = blank.session()
    raised = f"DO $$ BEGIN RAISE EXCEPTION 'gone' USING ERRCODE = '{code}'; END $$"
    error = blank.error(calling(session, verb, raised))
    assert isinstance(error, SessionLost) if verb == "run" else session.lost(error)
    assert not session.usable


@pytest.mark.parametrize("verb", ["run", "execute"])
def test_kill_from_another_thread_ends_a_blocked_call_at_once(blank: Any, verb: str) -> None:
    session = blank.session()
    call = blank.start(
        do(session, verb, *(("SELECT pg_sleep(60)",) if verb == "run" else ("SELECT pg_sleep(60)", None)))
    )
    blank.until_waiting(session, "PgSleep")
    session.kill()
    error = call.exception(5)
    assert isinstance(error, SessionLost) if verb == "run" else session.lost(error)
    assert not session.usable


def test_a_killed_session_can_be_killed_and_closed_again(blank: Any) -> None:
    session = blank.session()
    session.kill()
    session.kill()
    blank.drive(do(session, "close"))
    blank.drive(do(session, "close"))
    session.kill()
    with pytest.raises(SessionLost):
        blank.run(session, "SELECT 1")


def test_a_closed_session_leaves_the_server(blank: Any) -> None:
    session = blank.session()
    blank.drive(do(session, "close"))
    assert not session.usable
    blank.until(
        lambda: not blank.look(f"SELECT 1 FROM pg_stat_activity WHERE pid = {session.connection_id}"), "its end"
    )


def test_a_call_that_takes_too_long_is_cut_off(blank: Any) -> None:
    if blank.style == "sync":
        session = blank.session()
        assert isinstance(session.timed_out(1.5), SessionLost)
        assert "1.5 s" in str(session.timed_out(1.5))
        return
    session = blank.session()

    def script() -> Script[Any]:
        return (yield Do(session, "run", ("SELECT pg_sleep(60)",), 0.05))

    with pytest.raises(SessionLost, match="0.05 s"):
        blank.drive(script())
    assert not session.usable


def test_a_cancelled_call_makes_the_session_unusable(blank: Any) -> None:
    """The answer of the cancelled call is still to come: the next call would read it as its own (I18)."""
    for verb, arguments in (("run", ("SELECT pg_sleep(60)",)), ("execute", ("SELECT pg_sleep(60)", None))):
        session = blank.session()
        if blank.style == "sync":
            waiter = threading.Thread(target=_interrupt_once_waiting, args=(blank, session))
            waiter.start()
            with pytest.raises(KeyboardInterrupt):
                getattr(session, verb)(*arguments)
            waiter.join()
        else:
            call = blank.start(do(session, verb, *arguments))
            blank.until_waiting(session, "PgSleep")
            call.cancel()
        blank.until(lambda session=session: not session.usable, "the cancellation to arrive")


def _interrupt_once_waiting(world: Any, session: Any) -> None:
    world.until_waiting(session, "PgSleep")
    os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C, in the main thread


def test_warnings_of_the_last_call_are_kept_with_the_routine_that_gave_them(blank: Any) -> None:
    session = blank.session()
    blank.run(session, "BEGIN; BEGIN; COMMIT")
    assert session.warnings == ["BeginTransactionBlock: there is already a transaction in progress"]
    blank.run(session, "SELECT 1")
    assert session.warnings == []
    blank.run(session, "DO $$ BEGIN RAISE NOTICE 'n'; RAISE WARNING 'w'; END $$")
    assert session.warnings == ["exec_stmt_raise: w"]


def test_the_server_knows_us_by_name_and_we_know_its_process(blank: Any) -> None:
    session = blank.session()
    (reply,) = blank.run(session, "SELECT pg_backend_pid(), current_setting('application_name')")
    assert reply.rows == ((session.connection_id, "nodoubt"),)
    named = blank.session(blank.url + "?application_name=shop&connect_timeout=5&keepalives=1&channel_binding=prefer")
    assert blank.run(named, "SELECT current_setting('application_name')")[0].scalar() == "shop"


def test_a_url_that_requires_channel_binding_is_not_weakened(blank: Any) -> None:
    with pytest.raises(UsageError if blank.style == "asyncpg" else ResourceUnavailable, match="channel binding"):
        blank.session(blank.url + "?channel_binding=require")


def test_host_and_port_may_stand_in_the_options_as_for_libpq(blank: Any) -> None:
    url = parse_url(blank.url)
    session = blank.session(f"postgresql://{url.user}@elsewhere:1/{url.database}?host={url.host}&port={url.port}")
    assert blank.run(session, "SELECT 1")[0].scalar() == 1


@pytest.mark.parametrize("place", ["127.0.0.1:1", None])
def test_what_cannot_be_connected_to_is_unavailable_and_the_password_is_not_told(blank: Any, place: str | None) -> None:
    url = parse_url(blank.url)
    with pytest.raises(ResourceUnavailable) as caught:
        blank.session(f"postgresql://postgres:geheim@{place or f'{url.host}:{url.port}'}/no_such_database")
    assert "geheim" not in str(caught.value)
    assert "cannot connect" in str(caught.value)


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch, style: str) -> None:
    module, library, extra = {
        "sync": ("psycopg", "psycopg", "postgres"),
        "async": ("libpq", "psycopg", "postgres"),
        "asyncpg": ("asyncpg", "asyncpg", "asyncpg"),
    }[style]
    name = f"nodoubt.drivers.{module}"
    loaded = sys.modules[name]
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtra, match=rf"nodoubt\[{extra}\]"):
        importlib.import_module(name)
    monkeypatch.undo()
    assert sys.modules[name] is loaded


# ---- what only asyncpg needs: the copy of the answer ------------------------------------------------


class _Answer:
    """A connection whose answer is given; `run` reads it from the tap as if it had come from a server."""

    def __init__(self, tag: str, answer: bytes) -> None:
        self.tag, self.answer = tag, answer
        self.tap: Any = None
        self._transport = self

    def get_server_pid(self) -> int:
        return 1

    def get_protocol(self) -> Any:
        class Inner:
            data_received = connection_lost = eof_received = pause_writing = resume_writing = staticmethod(
                lambda *_: None
            )

        return Inner()

    def set_protocol(self, tap: Any) -> None:
        self.tap = tap

    async def execute(self, _: str) -> str:
        self.tap.data_received(self.answer)
        return self.tag


_COMMIT = b"C\0\0\0\x0bCOMMIT\0"
_READY = b"Z\0\0\0\x05I"


@pytest.mark.parametrize(
    ("tag", "answer"),
    [
        ("COMMIT", _COMMIT),  # without the end
        ("COMMIT", _COMMIT + _READY[:-1]),
        ("COMMIT", _READY),  # without the reply
        ("COMMIT", b"C\0\0\0\x0cPREPARE\0" + _READY),  # another one's
        ("COMMIT", b"\0\0\0\0\0" + _COMMIT + _READY),
        ("COMMIT", b"M\x01\x02" + _COMMIT + _READY),  # begun in the middle of a message
        ("COMMIT", _READY + _COMMIT),
        ("COMMIT", b"D\0\0\0\x06\0\x01" + b"T\0\0\0\x06\0\x01" + _COMMIT + _READY),
        ("COMMIT", b"E\0\0\0\x05\0" + _COMMIT + _READY),
    ],
)
def test_an_answer_that_cannot_be_read_to_its_end_counts_as_lost(tag: str, answer: bytes) -> None:
    """Fails without the checks at the end of `run`: a COMMIT would be reported on half an answer."""

    async def main() -> None:
        session = async_driver.AsyncpgSession(_Answer(tag, answer))
        with pytest.raises(SessionLost):
            await session.run("COMMIT")
        assert not session.usable

    asyncio.run(main())


def test_an_answer_that_is_whole_is_read() -> None:
    async def main() -> None:
        session = async_driver.AsyncpgSession(_Answer("COMMIT", _COMMIT + _READY))
        (reply,) = await session.run("COMMIT")
        assert reply.tag == "COMMIT"
        assert session.usable

    asyncio.run(main())


def test_an_answer_larger_than_any_buffer_arrives(blank: Any) -> None:
    reply = blank.drive(do(blank.session(), "execute", "SELECT repeat('x', 30000000)", None))
    assert len(reply.scalar()) == 30_000_000


def test_a_server_that_takes_the_connection_and_then_stops_holds_up_nobody(blank: Any) -> None:
    with TcpProxy.to(blank.url) as proxy:
        fault = proxy.stall(b"client_connection_check_interval")
        with pytest.raises(ResourceUnavailable, match="took the connection, and then did not answer"):
            blank.session(proxy.url_for(blank.url), connect_timeout_s=1.0)
        fault.wait_hit()
