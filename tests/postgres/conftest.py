"""One body for sync and async: a `World` drives scripts either way, from the test's thread.

The async world runs its loop in a thread of its own, so that a test can have one script wait inside the server
while it does something else, the same way in both.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

import nodoubt.drivers.asyncpg
import nodoubt.drivers.psycopg
import nodoubt.drivers.psycopg_async
from nodoubt.ports import Prepared, Reply, Work
from nodoubt.resources.postgres import PostgresResource
from nodoubt.script import Script, Watch, adrive, do, drive
from nodoubt.testing.proxy import TcpProxy
from nodoubt.testing.servers import PostgresServer
from nodoubt.url import parse_url
from nodoubt.xid import Xid, new_attempt

CLUSTER = "00000000000000c1"
PATIENCE_S = 20.0


class World:
    """One fresh database, a resource over it, and sessions of one style."""

    def __init__(self, url: str, style: str) -> None:
        self.url, self.style = url, style
        self.resource = PostgresResource("pg")
        self.sessions: list[Any] = []
        self._threads = ThreadPoolExecutor(8)
        self._loop = asyncio.new_event_loop()
        self._looper = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._looper.start()

    # -- scripts

    def start(self, script: Script[Any]) -> Future[Any]:
        """Begin to run it; the future has its result."""
        if self.style != "sync":
            return asyncio.run_coroutine_threadsafe(adrive(script), self._loop)
        return self._threads.submit(drive, script, executor=self._threads, watch=Watch())

    def drive(self, script: Script[Any]) -> Any:
        return self.start(script).result(PATIENCE_S)

    def error(self, script: Script[Any]) -> Any:
        """What the script raises."""
        error = self.start(script).exception(PATIENCE_S)
        assert error is not None, "it returned"
        return error

    def fails(self, script: Script[Any]) -> bool:
        """Whether the script raises; for `until`, which asks again."""
        return self.start(script).exception(PATIENCE_S) is not None

    def session(self, url: str | None = None, **how: float) -> Any:
        target = parse_url(url or self.url)
        session: Any
        if self.style != "sync":
            driver = nodoubt.drivers.asyncpg if self.style == "asyncpg" else nodoubt.drivers.psycopg_async
            opening: Any = driver.connect(target, **how)
            session = asyncio.run_coroutine_threadsafe(opening, self._loop).result(PATIENCE_S)
        else:
            session = nodoubt.drivers.psycopg.connect(target, **how)
        self.sessions.append(session)
        return session

    def run(self, session: Any, sql: str) -> tuple[Reply, ...]:
        replies: tuple[Reply, ...] = self.drive(do(session, "run", sql))
        return replies

    # -- branches

    def setup(self) -> World:
        self.drive(self.resource.setup(self.session(), "resource-1", CLUSTER))
        self.look("CREATE TABLE IF NOT EXISTS t (id int PRIMARY KEY, v int)")
        return self

    def work(self, branch: int = 0, epoch: int = 1) -> Work:
        return Work(Xid(CLUSTER, new_attempt(), branch), epoch)

    def seasoned(self, url: str | None = None) -> Any:
        """A session that has prepared those of our statements that it keeps (`nodoubt.kept`)."""
        session = self.session(url)
        self.drive(self.resource.commit_alone(session, self.begun(session)))
        self.look("DELETE FROM nodoubt.receipts")
        return session

    def begun(self, session: Any, work: Work | None = None, *statements: str) -> Work:
        """A branch begun on the session, with these statements done."""
        work = work or self.work()
        self.drive(self.resource.begin(session, work))
        for statement in statements:
            self.drive(self.resource.execute(session, work, statement, None))
        return work

    def prepared(self, *statements: str, session: Any = None) -> Prepared:
        session = session or self.session()
        work = self.begun(session, None, *statements)
        self.drive(self.resource.prepare(session, work))
        return Prepared(work.xid)

    # -- looking, past nodoubt

    def look(self, sql: str, url: str | None = None) -> list[tuple[Any, ...]]:
        with psycopg.connect(url or self.url, autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def gids(self) -> list[str]:
        return [gid for (gid,) in self.look("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")]

    def receipts(self) -> list[tuple[Any, ...]]:
        return self.look("SELECT attempt, branch, verdict, epoch, alone, confirms FROM nodoubt.receipts ORDER BY 1, 2")

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain: {what}"
            time.sleep(0.005)

    def until_waiting(self, session: Any, event: str = "%") -> None:
        """Until the server says that this session waits inside it (for a lock, a standby …)."""
        sql = (
            f"SELECT 1 FROM pg_stat_activity WHERE pid = {session.connection_id} AND state = 'active' "
            f"AND wait_event LIKE '{event}'"
        )
        self.until(lambda: self.look(sql), f"session {session.connection_id} waiting for {event}")

    def until_gone(self, session: Any) -> None:
        """Until the server has noticed the session's end."""
        sql = f"SELECT 1 FROM pg_stat_activity WHERE pid = {session.connection_id}"
        self.until(lambda: not self.look(sql), f"session {session.connection_id} to end")

    def close(self) -> None:
        for session in self.sessions:
            session.kill()
        with contextlib.suppress(psycopg.Error):
            for gid in self.gids():
                self.look(f"ROLLBACK PREPARED '{gid}'")
        for session in self.sessions:
            with contextlib.suppress(Exception):
                self.drive(do(session, "close"))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._looper.join()
        self._loop.close()
        self._threads.shutdown()


@pytest.fixture(params=["sync", "async"])
def style(request: pytest.FixtureRequest) -> str:
    """Every test that asks for it, or for a world, runs once each way."""
    name: str = request.param
    return name


@pytest.fixture
def blank(postgres: PostgresServer, style: str) -> Iterator[World]:
    """A database that has never seen us."""
    world = World(postgres.url(), style)
    yield world
    world.close()


@pytest.fixture
def fresh(blank: World) -> World:
    """A database of the test's own with our tables, and a table t (id, v)."""
    return blank.setup()


@pytest.fixture(scope="session")
def shared_url(postgres: PostgresServer) -> str:
    """For tests that leave nothing but rows behind. It has a name, so it outlives the module."""
    return postgres.url("rows")


@pytest.fixture
def world(shared_url: str, style: str) -> Iterator[World]:
    """A database with our tables, and a table t (id, v), both empty."""
    world = World(shared_url, style).setup()
    world.look("TRUNCATE t, nodoubt.receipts; UPDATE nodoubt.identity SET epoch = 0")
    yield world
    world.close()


@pytest.fixture
def new_world(style: str) -> Iterator[Callable[[str], World]]:
    """Worlds over a server of the test's own."""
    worlds: list[World] = []

    def make(url: str) -> World:
        worlds.append(World(url, style))
        return worlds[-1]

    yield make
    for one in worlds:
        one.close()


@pytest.fixture
def proxy(world: World) -> Iterator[TcpProxy]:
    """Stands before the world's server and loses what it is told to lose."""
    with TcpProxy.to(world.url) as one:
        yield one


@pytest.fixture(scope="session")
def without_standby() -> Iterator[PostgresServer]:
    """A server that waits for a synchronous standby which never comes: but only who asks for it waits."""
    with PostgresServer({"synchronous_standby_names": "nobody", "synchronous_commit": "local"}) as server:
        yield server


@pytest.fixture
def synced(without_standby: PostgresServer, new_world: Callable[[str], World]) -> World:
    """A world there. `setup` would wait, so the tables are made without it."""
    world = new_world(without_standby.url())
    world.look(world.resource.tables.script())
    world.look("CREATE TABLE t (id int PRIMARY KEY, v int)")
    return world
