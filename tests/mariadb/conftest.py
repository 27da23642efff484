"""One body for sync and async: a `World` drives scripts either way, from the test's thread.

The async world runs its loop in a thread of its own, so that a test can have one script wait inside the server
while it does something else, the same way in both. All worlds share one server, and XA RECOVER lists the
branches of all its databases: each world has a cluster id of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pymysql
import pytest
from pymysql.constants import CLIENT

import nodoubt.drivers.asyncmy
import nodoubt.drivers.pymysql
import nodoubt.resources.mariadb
from nodoubt.errors import NoDoubtError
from nodoubt.ports import Prepared, Reply, SessionLost, Work
from nodoubt.resources.mariadb import MariaDBResource
from nodoubt.script import Script, Watch, adrive, do, drive
from nodoubt.testing.servers import MariaDBServer
from nodoubt.url import parse_url
from nodoubt.xid import Xid, new_attempt, new_cluster

PATIENCE_S = 30.0
DISK = "/var/tmp"


class World:
    """One fresh database, a resource over it, and sessions of one style."""

    def __init__(self, url: str, style: str, make: Callable[..., Any] = MariaDBResource) -> None:
        self.url, self.style = url, style
        self.database = parse_url(url).database
        self.resource: Any = make("maria", self.database)
        self.cluster = new_cluster()
        self.sessions: list[Any] = []
        self._threads = ThreadPoolExecutor(8)
        self._loop = asyncio.new_event_loop()
        self._looper = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._looper.start()

    # -- scripts

    def start(self, script: Script[Any]) -> Future[Any]:
        """Begin to run it; the future has its result."""
        if self.style == "async":
            return asyncio.run_coroutine_threadsafe(adrive(script), self._loop)
        return self._threads.submit(drive, script, executor=self._threads, watch=Watch())

    def drive(self, script: Script[Any]) -> Any:
        return self.start(script).result(PATIENCE_S)

    def session(self, url: str | None = None, **options: Any) -> Any:
        target = parse_url(url or self.url)
        session: Any
        if self.style == "async":
            opening = nodoubt.drivers.asyncmy.connect(target, **options)
            session = asyncio.run_coroutine_threadsafe(opening, self._loop).result(PATIENCE_S)
        else:
            session = nodoubt.drivers.pymysql.connect(target, **options)
        self.sessions.append(session)
        return session

    def run(self, session: Any, sql: str) -> tuple[Reply, ...]:
        replies: tuple[Reply, ...] = self.drive(do(session, "run", sql))
        return replies

    def execute(self, session: Any, work: Work, statement: str, params: Any = None) -> Reply:
        reply: Reply = self.drive(self.resource.execute(session, work, statement, params))
        return reply

    def spy(self, session: Any) -> list[str]:
        """What `run` is asked to send from now on."""
        sent: list[str] = []
        run = session.run

        def noted(sql: str) -> Any:
            sent.append(sql)
            return run(sql)

        session.run = noted
        return sent

    def close_session(self, session: Any) -> None:
        self.drive(do(session, "close"))

    # -- branches

    def setup(self) -> World:
        self.drive(self.resource.setup(self.session(), new_attempt(), self.cluster))
        self.look("CREATE TABLE t (id INT PRIMARY KEY, v INT)")
        return self

    def work(self, branch: int = 0, epoch: int = 1) -> Work:
        return Work(Xid(self.cluster, new_attempt(), branch), epoch)

    def begun(self, session: Any, *statements: str, work: Work | None = None) -> Work:
        """A branch begun on the session, with these statements done."""
        work = work or self.work()
        self.drive(self.resource.begin(session, work))
        for statement in statements:
            self.execute(session, work, statement)
        return work

    def prepared(self, *statements: str, session: Any = None) -> Prepared:
        """A prepared branch, on the session given or on one that is then closed."""
        own = session or self.session()
        work = self.begun(own, *statements)
        self.drive(self.resource.prepare(own, work))
        prepared = Prepared(work.xid, handle=work.handle)
        if session is None:
            self.drive(self.resource.detach(own))
            self.until_gone(own)
        return prepared

    def listed(self, url: str | None = None) -> list[Prepared]:
        session = self.session(url)
        found = list(self.drive(self.resource.prepared(session, self.cluster)))
        self.close_session(session)
        return found

    def finish(self, verb: str, prepared: Prepared, session: Any = None) -> None:
        """Commit or roll back, over the moments in which a closed session has not quite let go."""
        script = self.resource.commit_prepared if verb == "commit" else self.resource.rollback_prepared
        at = session or self.session()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.drive(script(at, prepared))
                return
            except NoDoubtError:
                if time.monotonic() > deadline or not any(one.xid == prepared.xid for one in self.listed()):
                    raise

    # -- looking, past nodoubt

    def look(self, sql: str) -> list[tuple[Any, ...]]:
        url = parse_url(self.url)
        connection = pymysql.connect(
            host=url.host, port=url.port or 3306, user=url.user, password=url.password, database=url.database,
            autocommit=True, client_flag=CLIENT.MULTI_STATEMENTS, ssl_disabled=True,
        )  # fmt: skip
        with connection, connection.cursor() as cursor:
            cursor.execute(sql)
            rows = list(cursor.fetchall())
            while cursor.nextset():
                rows = list(cursor.fetchall())
            return rows

    def values(self) -> list[tuple[Any, ...]]:
        return self.look("SELECT id, v FROM t ORDER BY id")

    def receipts(self) -> list[tuple[Any, ...]]:
        return self.look("SELECT attempt, branch, verdict, alone, epoch, confirms FROM nodoubt_receipts ORDER BY 1, 2")

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain: {what}"
            time.sleep(0.002)

    def until_gone(self, session: Any) -> None:
        """Until the server has ended that session, and let go of what it held."""
        sql = f"SELECT 1 FROM information_schema.PROCESSLIST WHERE ID = {session.connection_id}"
        self.until(lambda: not self.look(sql), f"the end of session {session.connection_id}")

    def until_busy(self, session: Any, state: str = "%") -> None:
        """Until the server says that this session is at work on a statement."""
        sql = (
            f"SELECT 1 FROM information_schema.PROCESSLIST WHERE ID = {session.connection_id} "
            f"AND COMMAND = 'Query' AND STATE LIKE '{state}'"
        )
        self.until(lambda: self.look(sql), f"session {session.connection_id} at work")

    def close(self) -> None:
        for session in self.sessions:
            session.kill()
        for session in self.sessions:
            with contextlib.suppress(Exception):
                self.close_session(session)
        with contextlib.suppress(NoDoubtError, SessionLost):
            for prepared in self.listed():
                with contextlib.suppress(NoDoubtError):
                    self.finish("rollback", prepared)
        self.sessions[-1].kill()
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
def new_world(style: str) -> Iterator[Callable[..., World]]:
    """Worlds over a server of the test's own, or with a resource of its own."""
    worlds: list[World] = []

    def make(url: str, resource: Callable[..., Any] = MariaDBResource) -> World:
        worlds.append(World(url, style, resource))
        return worlds[-1]

    yield make
    for one in worlds:
        one.close()


@pytest.fixture
def blank(mariadb: MariaDBServer, new_world: Callable[..., World]) -> World:
    """A database that has never seen us."""
    return new_world(mariadb.url())


@pytest.fixture
def world(blank: World) -> World:
    """A database with our tables, and a table t (id, v)."""
    return blank.setup()


@pytest.fixture(scope="module")
def _server() -> Iterator[MariaDBServer]:
    """On a disk: in /dev/shm InnoDB takes its log for persistent memory, and kill -9 loses nothing at all.

    With a directory of its own for temporary files: a server that starts deletes those of others in a shared one.
    """
    with tempfile.TemporaryDirectory(prefix="nodoubt-disk-", dir=DISK) as place, pytest.MonkeyPatch.context() as patch:
        Path(place).chmod(0o1777)
        patch.setenv("TMPDIR", place)
        with MariaDBServer({"tmpdir": place}) as server:
            yield server


@pytest.fixture
def own_server(_server: MariaDBServer) -> Iterator[MariaDBServer]:
    """A server to kill, restart and set as the test likes: whatever it does to it is undone."""
    settings = dict(_server.settings)
    yield _server
    if _server.settings != settings or not _server.running:
        _server.settings = settings
        _server.restart()


@pytest.fixture
def mutant(mariadb: MariaDBServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], World]]:
    """Worlds whose resource lacks one safety check: one place of its source is replaced."""
    worlds: list[World] = []

    def make(old: str, new: str) -> World:
        source = Path(nodoubt.resources.mariadb.__file__).read_text(encoding="utf-8")
        assert source.count(old) == 1, f"the place to change occurs {source.count(old)} times: {old}"
        changed: Any = ModuleType("nodoubt.resources.mariadb_mutant")
        changed.__package__ = "nodoubt.resources"
        monkeypatch.setitem(sys.modules, changed.__name__, changed)
        exec(compile(source.replace(old, new), "mariadb_mutant.py", "exec"), changed.__dict__)
        changed.LOCK_WAIT_S = 0
        world = World(mariadb.url(), "sync", changed.MariaDBResource).setup()
        worlds.append(world)
        return world

    yield make
    for one in worlds:
        one.resource = MariaDBResource("maria", one.database)
        one.close()


class Cut:
    """A proxy that keeps the replies to itself: the server does what it is asked, and the client never hears of it."""

    def __init__(self, url: str) -> None:
        self._target = parse_url(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        login = f"{self._target.user}:{self._target.password}"
        self.url = f"mariadb://{login}@127.0.0.1:{port}/{self._target.database}"
        self.deaf = False
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection((self._target.host, self._target.port or 3306))
                self._sockets += [client, server]
                threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, reply: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not (reply and self.deaf):
                    sink.sendall(data)

    def sever(self) -> None:
        """End every connection, at both ends."""
        for one in self._sockets[1:]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.sever()
        for one in self._sockets:
            one.close()


@pytest.fixture
def cut() -> Iterator[Callable[[str], Cut]]:
    """Proxies that keep replies to themselves once `deaf` is set."""
    proxies: list[Cut] = []

    def make(url: str) -> Cut:
        proxies.append(Cut(url))
        return proxies[-1]

    yield make
    for one in proxies:
        one.close()
