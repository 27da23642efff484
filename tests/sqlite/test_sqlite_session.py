"""Sessions on SQLite: what they answer, how they end, and what they keep away from the file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apsw
import pytest

from nodoubt.drivers import sqlite as driver
from nodoubt.drivers.sqlite import SqliteSession, aconnect, connect
from nodoubt.drivers.sqlite_connection import Connection
from nodoubt.errors import ResourceRefused, ResourceUnavailable
from nodoubt.ports import Refused, Session, SessionLost, StatementFailed
from nodoubt.resources.sqlite.face import Connection as Face
from nodoubt.url import Url, parse_url
from sqlite.world import World, until

SLOW = "with recursive c(x) as (select 1 union all select x + 1 from c limit 100000000) select count(*) from c"


def fits(session: SqliteSession, connection: Connection) -> tuple[Session, Face]:
    """For the type checker: the driver has the faces that are asked of it."""
    return session, connection


def url_of(path: Path) -> Url:
    return parse_url(f"sqlite:///{path}")


# ---- answers


def test_each_statement_has_a_reply_with_tag_count_and_columns(world: World) -> None:
    session = world.session()
    replies = world.ask(
        session,
        "run",
        "/* first */ create table t(a, b); -- a comment; with a semicolon\n"
        "begin immediate; insert into t values (1, 'x;y'), (2, x'00'); update t set a = a + 1 where a = 2; commit;"
        "select a, b from t order by a; select a as absent from t where 0; delete from t where 0; "
        "with w as (select 1) insert into t select 3, 3 from w; insert into t values (4, 4) returning a as id",
    )
    assert [(r.tag, r.count, r.columns, list(r.rows)) for r in replies] == [
        ("CREATE", -1, (), []),
        ("BEGIN", -1, (), []),
        ("INSERT", 2, (), []),
        ("UPDATE", 1, (), []),
        ("COMMIT", -1, (), []),
        ("SELECT", 2, ("a", "b"), [(1, "x;y"), (3, b"\x00")]),
        ("SELECT", 0, ("absent",), []),
        ("DELETE", 0, (), []),
        ("WITH", 1, (), []),
        ("INSERT", 1, ("id",), [(4,)]),
    ]


def test_the_users_statement_takes_both_kinds_of_parameters(world: World) -> None:
    session = world.session()
    world.run(session, "create table t(a, b)")
    assert world.ask(session, "execute", "insert into t values (?, ?)", (1, "x")).count == 1
    assert world.ask(session, "execute", "insert into t values (:a, :b)", {"a": 2, "b": None}).tag == "INSERT"
    assert [dict(row) for row in world.ask(session, "execute", "select * from t", None)] == [
        {"a": 1, "b": "x"},
        {"a": 2, "b": None},
    ]
    assert world.ask(session, "execute", "", None).columns == ()
    with pytest.raises(apsw.SQLError):
        world.ask(session, "execute", "select nothing", None)
    with pytest.raises(apsw.BindingsError):
        world.ask(session, "execute", "select ?", (1, 2))
    assert session.usable


def test_an_error_ends_the_message_and_names_its_code(world: World) -> None:
    session = world.session()
    world.run(session, "create table t(a primary key, b not null)")
    for sql, code in (
        ("insert into t values (1, 1); insert into t values (1, 1); insert into t values (2, 2)", "1555"),
        ("insert into t values (3, null)", "1299"),
        ("select * from missing", "1"),
    ):
        with pytest.raises(StatementFailed) as caught:
            world.run(session, sql)
        assert caught.value.code == code
    assert world.rows(session, "select a from t") == [(1,)]
    assert session.usable


@pytest.mark.parametrize("ask", ["query", "run"])
def test_a_text_that_is_no_utf_8_is_a_statement_that_failed_and_leaves_no_reading_behind(
    world: World, ask: str
) -> None:
    session, other = world.session(), world.session()
    world.run(session, "create table t(a); insert into t values (cast(x'ff' as text)), (1), (2)")
    with pytest.raises(StatementFailed, match="a text that was read is no UTF-8"):
        world.ask(session, "call", getattr(Connection, ask), "select a from t")
    assert session.usable
    world.run(other, "insert into t values (3)")
    assert world.rows(other, "pragma wal_checkpoint(truncate)") == [(0, 0, 0)], "a reader is still at it"


def test_a_transaction_left_open_makes_the_session_unusable_until_it_ends(world: World) -> None:
    session = world.session()
    world.run(session, "begin immediate")
    assert not session.usable
    world.run(session, "rollback")
    assert session.usable
    with pytest.raises(StatementFailed):
        world.run(session, "begin immediate; select * from missing; commit")
    assert not session.usable
    world.run(session, "rollback")
    assert session.usable


def test_a_session_set_aside_stays_set_aside(world: World) -> None:
    session = world.session()
    session.usable = False
    session.usable = True
    assert not session.usable


# ---- ends


def test_a_closed_session_answers_nothing(world: World) -> None:
    session = world.session()
    world.ask(session, "close")
    world.ask(session, "close")
    assert not session.usable
    with pytest.raises(SessionLost):
        world.run(session, "select 1")
    session.kill()


@pytest.mark.parametrize("what", ["a statement", "a lock", "many statements"])
def test_kill_makes_a_call_in_progress_fail_at_once(world: World, what: str) -> None:
    """The wait for a lock is our own busy handler: SQLite's would sleep on through an interrupt."""
    holder, session = world.session(), world.session(lock_wait_s=60)
    world.run(holder, "create table t(a); begin immediate; insert into t values (1)")
    entered = threading.Event()

    def many(connection: Connection) -> None:
        entered.set()
        while True:
            connection.query("select 1")

    def run(connection: Connection) -> None:
        entered.set()
        connection.run(SLOW if what == "a statement" else "begin immediate")

    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(world.ask, session, "call", many if what == "many statements" else run)
        assert entered.wait(5)
        time.sleep(0.02)
        begun = time.monotonic()
        session.kill()
        with pytest.raises((SessionLost, StatementFailed)):
            call.result(5)
    assert time.monotonic() - begun < 1
    assert not session.usable
    with pytest.raises(SessionLost):
        world.run(session, "select 1")
    until(lambda: closed(session.connection), "its own thread closes it")


def closed(connection: Connection) -> bool:
    try:
        return connection.in_transaction is None
    except apsw.ConnectionClosedError:
        return True


def test_an_interrupt_that_sqlite_has_forgotten_is_noticed_all_the_same(world: World) -> None:
    """One that comes between two statements is lost; the next statement may run for hours."""
    session = world.session()

    def work(connection: Connection) -> None:
        threading.Timer(0.02, setattr, (connection, "killed", True)).start()
        connection.query(SLOW)

    begun = time.monotonic()
    with pytest.raises(SessionLost):
        world.ask(session, "call", work)
    assert time.monotonic() - begun < 2


def test_a_killed_session_lets_go_of_the_file(world: World) -> None:
    session, other = world.session(), world.session(lock_wait_s=5)
    world.run(session, "create table t(a); begin immediate; insert into t values (1)")
    session.kill()
    world.run(other, "begin immediate; insert into t values (2); commit")
    assert world.rows(other, "select a from t") == [(2,)]


@pytest.mark.anyio
async def test_a_cancelled_await_leaves_no_usable_session_and_no_lock(tmp_path: Path) -> None:
    url = url_of(tmp_path / "file.db")
    session, other = await aconnect(url), await aconnect(url)
    await session.run("create table t(a)")
    entered = threading.Event()

    def work(connection: Connection) -> None:
        connection.query("begin immediate")
        connection.query("insert into t values (1)")
        entered.set()
        connection.query(SLOW)

    task = asyncio.create_task(session.call(work))
    await asyncio.to_thread(entered.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not session.usable
    with pytest.raises(SessionLost):
        await session.run("select 1")
    await other.run("begin immediate; insert into t values (2); commit")
    assert (await other.run("select a from t"))[0].rows == ((2,),)
    await session.close()
    await other.close()


@pytest.mark.anyio
async def test_a_cancelled_commit_ends_whole_and_in_its_own_thread(tmp_path: Path) -> None:
    """Whatever came of it, nobody else touches the connection meanwhile, and the file tells."""
    url = url_of(tmp_path / "file.db")
    session, other = await aconnect(url), await aconnect(url)
    await session.run("create table t(a)")
    threads: set[int] = set()
    gate, entered = threading.Event(), threading.Event()

    def work(connection: Connection) -> None:
        threads.add(threading.get_ident())
        connection.query("begin immediate")
        connection.query("insert into t values (1)")
        entered.set()
        gate.wait(5)
        connection.query("commit")

    task = asyncio.create_task(session.call(work))
    await asyncio.to_thread(entered.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    await session.close()
    assert len(threads) == 1 and threading.get_ident() not in threads
    assert (await other.run("select count(*) from t"))[0].scalar() == 0
    await other.close()


@pytest.mark.anyio
async def test_a_cancelled_connect_closes_what_it_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.db"
    gate, entered = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        entered.set()
        gate.wait(5)

    monkeypatch.setattr(driver, "_settle", slow)
    task = asyncio.create_task(aconnect(url_of(path)))
    await asyncio.to_thread(entered.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    await asyncio.to_thread(until, lambda: not opened(path), "the late connection is closed")


def opened(path: Path) -> bool:
    """Whether this process has a descriptor of the file."""
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed while we look
            if os.readlink(f"/proc/self/fd/{number}") == str(path):
                return True
    return False


def test_two_threads_never_meet_in_one_connection(tmp_path: Path) -> None:
    session = connect(url_of(tmp_path / "file.db"))
    entered, gate = threading.Event(), threading.Event()

    def work(_: Connection) -> None:
        entered.set()
        gate.wait(5)

    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(session.call, work)
        assert entered.wait(5)
        assert not session.usable
        with pytest.raises(SessionLost, match="another thread"):
            session.run("select 1")
        session.close()  # does not pull it away from the thread that is in it
        gate.set()
        call.result(5)
    assert session.usable
    session.close()


# ---- waiting for locks


def test_a_locked_file_is_waited_for_within_bounds_and_its_holder_is_named(world: World) -> None:
    holder, session = world.session(), world.session(lock_wait_s=0.05)
    world.run(holder, "begin immediate")
    begun = time.monotonic()
    with pytest.raises(Refused, match="another connection of this process") as caught:
        world.begin(session)
    assert 0.05 <= time.monotonic() - begun < 2
    assert caught.value.retry
    assert session.usable
    world.run(holder, "rollback")
    work = world.begin(session)
    world.drive(world.resource.rollback(session, work))


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_holder_in_another_process_is_named_by_its_id(world: World, mode: str) -> None:
    import subprocess

    path = world.path.with_name("other.db")
    with contextlib.closing(apsw.Connection(str(path))) as creator:
        creator.execute(f"pragma journal_mode = {mode}; create table t(a)").fetchall()
    session = world.session(lock_wait_s=0.05, path=path)
    world.drive(world.resource.setup(session, "a" * 32, "0" * 16))
    holder = subprocess.Popen(["sqlite3", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdin and holder.stdout
    holder.stdin.write("begin immediate; select 'locked';\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(Refused, match=rf"process {holder.pid} \(sqlite3\)"):
        world.begin(session)
    holder.communicate(".quit\n", timeout=5)


def test_a_lock_that_is_let_go_in_time_is_had(world: World) -> None:
    holder, session = world.session(), world.session(lock_wait_s=10)
    world.run(holder, "begin immediate")
    beginning = world.start(world.resource.begin(session, work := world.work()))
    time.sleep(0.03)
    world.run(holder, "rollback")
    beginning.result(10)
    world.drive(world.resource.rollback(session, work))


# ---- durability


def settings(world: World, session: Any) -> tuple[Any, ...]:
    return tuple(
        world.rows(session, f"pragma {name}")[0][0]
        for name in ("journal_mode", "synchronous", "foreign_keys", "recursive_triggers")
    )


def test_a_new_file_is_in_wal_with_full(world: World) -> None:
    assert settings(world, world.session()) == ("wal", 2, 1, 0)


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist"])
def test_a_file_with_a_rollback_journal_keeps_it_with_extra(world: World, mode: str) -> None:
    path = world.path.with_name("other.db")
    with contextlib.closing(apsw.Connection(str(path))) as creator:
        creator.execute(f"pragma journal_mode = {mode}; create table t(a)").fetchall()
    assert settings(world, world.session(path=path)) == ("delete", 3, 1, 0)


def test_a_library_that_is_unsafe_in_wal_starts_new_files_without(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "library", (3, 40, 1))
    assert settings(world, world.session(path=world.path.with_name("new.db"))) == ("delete", 3, 1, 0)


def test_many_open_a_new_file_at_once(tmp_path: Path) -> None:
    url = url_of(tmp_path / "new.db")
    with ThreadPoolExecutor(8) as threads:
        sessions = list(threads.map(lambda _: connect(url), range(16)))
    assert {s.run("pragma journal_mode; pragma synchronous")[1].scalar() for s in sessions} == {2}
    for session in sessions:
        session.close()


def test_a_new_file_that_somebody_has_locked_is_waited_for(tmp_path: Path) -> None:
    """SQLite does not wait for the lock that it takes to enter WAL."""
    path = tmp_path / "new.db"
    with contextlib.closing(apsw.Connection(str(path))) as holder, ThreadPoolExecutor(1) as thread:
        holder.execute("begin immediate").fetchall()
        opening = thread.submit(connect, url_of(path))
        time.sleep(0.05)
        assert not opening.done()
        holder.execute("rollback").fetchall()
        session = opening.result(10)
    assert session.run("pragma journal_mode")[0].scalar() == "wal"
    session.close()


@pytest.mark.parametrize("content", ["directory missing", "not a database"])
def test_what_cannot_be_opened_is_unavailable_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "missing" / "file.db" if content == "directory missing" else tmp_path / "file.db"
    if content == "not a database":
        path.write_bytes(b"no database at all" * 100)
    with pytest.raises(ResourceUnavailable, match="file.db"):
        connect(url_of(path))
    assert not opened(path)


# ---- a second SQLite library in this process


def as_link(path: Path) -> str:
    link = path.with_name("link.db")
    link.symlink_to(path)
    return str(link)


def as_hard_link(path: Path) -> str:
    link = path.with_name("hard.db")
    link.hardlink_to(path)
    return str(link)


NAMES: dict[str, Callable[[Path], Any]] = {
    "text": str,
    "bytes": lambda path: str(path).encode(),
    "path": lambda path: path,
    "uri": lambda path: f"file:{path}?mode=ro",
    "uri with authority": lambda path: f"file://localhost{path}",
    "relative": os.path.relpath,
    "symbolic link": as_link,
    "hard link": as_hard_link,
}


@pytest.mark.parametrize("name", NAMES)
def test_pythons_sqlite3_is_kept_off_a_file_that_we_hold(tmp_path: Path, name: str) -> None:
    """Without the guard, the `close` of the other library drops our locks, and commits are lost."""
    path = tmp_path / "our file.db"
    session, second = connect(url_of(path)), connect(url_of(path))
    target = NAMES[name](path)
    uri = name.startswith("uri")
    with pytest.raises(ResourceRefused, match="two libraries in one process lose commits"):
        sqlite3.connect(target, uri=uri)
    session.close()
    with pytest.raises(ResourceRefused):
        sqlite3.connect(target, uri=uri)
    second.close()
    sqlite3.connect(target, uri=uri).close()


def test_pythons_sqlite3_may_open_everything_else(tmp_path: Path) -> None:
    session = connect(url_of(tmp_path / "file.db"))
    sqlite3.connect(":memory:").close()
    sqlite3.connect("").close()
    sqlite3.connect(tmp_path / "other.db").close()
    session.close()


def test_a_file_that_pythons_sqlite3_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    first = sqlite3.connect(path)
    first.execute("create table t(a)")
    with pytest.raises(ResourceRefused, match="by something else than nodoubt"):
        connect(url_of(path))
    first.close()
    session = connect(url_of(path))
    session.close()


def test_a_connection_of_the_same_library_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    first = apsw.Connection(str(path))
    first.execute("create table t(a)").fetchall()
    session = connect(url_of(path))
    assert session.run("select count(*) from t")[0].scalar() == 0
    session.close()
    first.close()


# ---- fork


def in_child(function: Callable[[], None]) -> str:
    """What `function` raised in a forked child."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            function()
            answer = "nothing"
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        return pipe.read().decode()


def test_the_child_of_a_fork_can_neither_use_nor_reopen_the_parents_file(tmp_path: Path) -> None:
    """Measured without the guard: the child's new connection holds no lock at all, and believes it does."""
    path = tmp_path / "file.db"
    session = connect(url_of(path))
    session.run("create table t(a)")

    def use() -> None:
        session.run("select 1")

    def end() -> None:
        session.close()
        session.kill()

    assert "SessionLost" in in_child(use)
    assert in_child(end) == "nothing"
    assert "when it forked" in in_child(lambda: connect(url_of(path)).close())
    assert in_child(lambda: connect(url_of(tmp_path / "other.db")).close()) == "nothing"
    assert session.usable
    session.run("begin immediate; insert into t values (1); commit")
    session.close()
    assert in_child(lambda: connect(url_of(path)).close()) == "nothing"


# A transaction that is larger than what the library holds in memory, and a child that ends as programs end.
PARENT = """
import os, sys
import apsw
from nodoubt import Coordinator
from nodoubt.drivers import sqlite_connection

path, mode, guarded = sys.argv[1:]
file = apsw.Connection(path)
file.pragma("journal_mode", mode)
file.execute("create table t (id integer primary key, v int, pad text)")
numbers = "with recursive n (i) as (select 1 union all select i + 1 from n where i < 10000)"
file.execute(f"insert into t {numbers} select i, 100, hex(zeroblob(400)) from n")
file.close()
with Coordinator(f"sqlite:///{path}", recovery=False) as db:
    db.setup()
    with db.transaction() as tx:
        tx.execute("update t set v = 50")
        if guarded == "no":
            sqlite_connection._OPENED.clear()
        child = os.fork()
        if child == 0:
            sys.exit(7)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), mode == "delete" and os.path.exists(path + "-journal"))
    with db.transaction() as tx:
        print(tx.execute("select sum(v) from t").scalar())
"""


def left_by_a_child_that_ends(path: Path, mode: str, guarded: str) -> list[str]:
    """Its exit code, whether the parent's journal stands, and what the parent's transaction has come to."""
    run = [sys.executable, "-c", PARENT, str(path), mode, guarded]
    return subprocess.run(run, check=True, capture_output=True, text=True, timeout=60).stdout.split()


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_child_of_a_fork_that_ends_rolls_back_nothing_of_its_parents(mode: str, tmp_path: Path) -> None:
    """Half of the parent's work was gone, and the parent was told that it was committed."""
    assert left_by_a_child_that_ends(tmp_path / "f.db", mode, "yes") == ["7", str(mode == "delete"), "500000"]


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_mutant_that_lets_the_interpreter_close_the_copies_loses_half_of_the_parents_work(
    mode: str, tmp_path: Path
) -> None:
    code, journal, total = left_by_a_child_that_ends(tmp_path / "f.db", mode, "no")
    assert (code, journal) == ("7", "False") and 500_000 < int(total) < 1_000_000


@pytest.mark.anyio
async def test_an_async_session_copied_by_a_fork_fails_instead_of_waiting(tmp_path: Path) -> None:
    session = await aconnect(url_of(tmp_path / "file.db"))

    def use() -> None:
        asyncio.set_event_loop(None)
        coroutine = session.run("select 1")
        try:
            coroutine.send(None)
        finally:
            coroutine.close()

    assert "SessionLost" in in_child(use)
    await session.close()
