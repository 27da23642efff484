"""SQLite through apsw: one connection as a `ports.Session`, blocking, and for asyncio with a thread of its own.

Beyond `run` and `execute` a session has `call(function, *args)`: it runs `function(connection, *args)` in the
session's thread as one effect, so that an algorithm of many small statements costs one hop. `connection` is a
`Connection` (sqlite_connection).

Guarantees: every connection waits for locks at most `lock_wait_s`, and not at all once killed; it writes in WAL with
synchronous=FULL, or in a rollback journal with EXTRA (what the file has; a new file gets WAL); a fatal I/O error, an
interrupted call and a transaction left open each make the session unusable; a connection is never used by two threads
at a time, not even after a cancelled await; a session that a fork has copied refuses to work.

Must not: decide what an answer means, or know tables of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from ..errors import MissingExtra, ResourceUnavailable
from ..ports import Params, Reply, SessionLost, StatementFailed
from ..url import Url
from . import sqlite_files
from .sqlite_connection import Connection

try:
    import apsw
except ImportError:
    raise MissingExtra("SQLite", "sqlite") from None

R = TypeVar("R")
TIMEOUT_S = 10.0
LOCK_WAIT_S = 5.0

WAL_SAFE_VERSION = (3, 51, 3)  # 3.7.0 to 3.51.2 can corrupt the file when a WAL is reset


class SqliteSession:
    """One connection. Used by one thread at a time, but for `kill`."""

    connection_id = 0  # there is no server
    server_started = 0

    def __init__(self, connection: Connection, key: sqlite_files.Key) -> None:
        self.connection = connection
        self._key = key
        self._pid = os.getpid()
        self._mutex = threading.Lock()  # guards _busy and _closed, so that `kill` never meets a closed connection
        self._busy = False
        self._closed = False
        self._open_transaction = False
        self._set_aside = False

    @property
    def usable(self) -> bool:
        """False in a call, in a transaction that is no branch's; for good once closed, killed, broken or set False."""
        return not (
            self._closed
            or self._set_aside
            or self._busy
            or (self._open_transaction and not self.connection.at_work)
            or self.connection.killed
            or self.connection.broken
        )

    @usable.setter
    def usable(self, value: bool) -> None:
        self._set_aside = self._set_aside or not value

    @property
    def inherited(self) -> bool:
        """Whether this is the copy that a fork has made: it has none of the locks it believes to have."""
        return self._pid != os.getpid()

    def refuse_inherited(self) -> None:
        """Raise `SessionLost` in the child of a fork."""
        if self._pid != os.getpid():
            raise SessionLost(f"the connection to {self.connection.path} was opened before a fork: open a new one")

    def run(self, sql: str) -> tuple[Reply, ...]:
        """Our own literal statements, `;` between them: a reply for each."""
        return self.call(Connection.run, sql)

    def execute(self, statement: str, params: Params) -> Reply:
        """The user's statement, `?` or `:name`. Raises apsw's own errors."""
        return self.call(Connection.execute, statement, params)

    def call(self, function: Callable[..., R], *args: Any) -> R:
        """Run `function(connection, *args)`: many statements, one effect."""
        self.refuse_inherited()
        connection = self.connection
        with self._mutex:
            if self._busy or self._closed or connection.killed:
                raise self._not_free()
            self._busy = True
        try:
            return function(connection, *args)
        except Exception:
            raise
        except BaseException:
            self._set_aside = True  # Ctrl-C in the middle of a call: nobody knows how far it came
            raise
        finally:
            # Closed or not, what the connection is in now is read here, by the thread that used it.
            self._open_transaction = connection.in_transaction
            with self._mutex:
                self._busy = False
                killed = connection.killed
            if killed:
                self.close()

    def _not_free(self) -> SessionLost:
        ended = self._closed or self.connection.killed
        return SessionLost(
            f"the connection to {self.connection.path} is {'closed' if ended else 'in use by another thread'}"
        )

    def lost(self, error: BaseException) -> bool:
        """Whether this error of `execute` means that the connection is gone."""
        return self._closed or isinstance(error, SessionLost) or self.connection.lost(error)

    def close(self) -> None:
        """End the connection; what is open is rolled back. Never raises."""
        with self._mutex:
            if self._closed or self._busy or self.inherited:
                return  # a busy one is closed by its own thread; a parent's is not ours to close
            self._closed = True
        with contextlib.suppress(Exception):
            self.connection.close()
        sqlite_files.let_go(self._key)

    def kill(self) -> None:
        """End it at once, from any thread: a call in progress fails, and its own thread then closes the connection."""
        if self.interrupt():
            self.close()

    def interrupt(self) -> bool:
        """The part of `kill` that never waits. True: the connection is idle, and still to be closed."""
        if self.inherited:
            return False
        with self._mutex:
            if not self._closed:
                self.connection.kill()
            return not self._closed and not self._busy

    def timed_out(self, seconds: float) -> Exception:
        """The error of a call that `kill` cut short."""
        file, why = self.connection, ""
        if file.waits():
            why = f": it waited for {file.path}, which is locked for writing by {file.writers()}"
        return SessionLost(f"no answer within {seconds:.3g} s{why}")


class AsyncSqliteSession:
    """One connection and the thread that alone uses it. Used by one task at a time, but for `kill`."""

    connection_id = 0
    server_started = 0

    def __init__(self, session: SqliteSession, thread: ThreadPoolExecutor) -> None:
        self._session = session
        self._thread = thread
        self._once = threading.Lock()
        self._closing: Future[None] | None = None

    @property
    def connection(self) -> Connection:
        return self._session.connection

    @property
    def usable(self) -> bool:
        """As in `SqliteSession`."""
        return self._session.usable

    @usable.setter
    def usable(self, value: bool) -> None:
        self._session.usable = value

    async def run(self, sql: str) -> tuple[Reply, ...]:
        """Our own literal statements, `;` between them: a reply for each."""
        return await self._hop(self._session.run, sql)

    async def execute(self, statement: str, params: Params) -> Reply:
        """The user's statement, `?` or `:name`. Raises apsw's own errors."""
        return await self._hop(self._session.execute, statement, params)

    async def call(self, function: Callable[..., R], *args: Any) -> R:
        """Run `function(connection, *args)` in the session's thread: many statements, one hop."""
        return await self._hop(self._session.call, function, *args)

    async def _hop(self, function: Callable[..., R], *args: Any) -> R:
        try:
            self._session.refuse_inherited()  # the fork has copied no thread: the call would wait for ever
            work = self._thread.submit(function, *args)
        except RuntimeError:  # the thread has been ended, by `kill` or `close`
            raise SessionLost(f"the connection to {self.connection.path} is closed") from None
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            # The thread is still at it. It is told to stop, ends by itself, and takes nothing new.
            self.kill()
            raise

    def lost(self, error: BaseException) -> bool:
        """As in `SqliteSession`."""
        return self._session.lost(error)

    async def close(self) -> None:
        """End the connection; what is open is rolled back. Never raises."""
        if not self._session.inherited:
            await asyncio.wrap_future(self._end())

    def kill(self) -> None:
        """End it at once, from any thread; the connection is closed by its own thread, behind what runs there."""
        if not self._session.inherited:
            self._session.interrupt()
            self._end()

    def _end(self) -> Future[None]:
        with self._once:
            if self._closing is None:
                try:
                    self._closing = self._thread.submit(self._session.close)
                    self._thread.shutdown(wait=False)
                except RuntimeError:  # the interpreter is ending and has ended the thread: there is only this one
                    self._session.close()
                    self._closing = Future()
                    self._closing.set_result(None)
            return self._closing

    def timed_out(self, seconds: float) -> Exception:
        """As in `SqliteSession`."""
        return self._session.timed_out(seconds)


def connect(url: Url, *, connect_timeout_s: float = TIMEOUT_S, lock_wait_s: float = LOCK_WAIT_S) -> SqliteSession:
    """Open a session; a missing file is created. Raises `ResourceUnavailable` or `ResourceRefused`."""
    path = os.path.abspath(url.database)
    database: apsw.Connection | None = None
    try:
        database, key = sqlite_files.hold(path, lambda: apsw.Connection(path), _may_be_open)
    except apsw.Error as error:
        raise ResourceUnavailable(f"cannot open {url}: {error}") from error
    connection = Connection(database, connect_timeout_s)
    session = SqliteSession(connection, key)
    try:
        session.call(_settle)
    except BaseException as error:
        session.close()
        if isinstance(error, (StatementFailed, SessionLost, apsw.Error)):
            raise ResourceUnavailable(f"cannot open {url}: {error}") from error
        raise
    connection.lock_wait_s = lock_wait_s
    return session


BUSY_TRIES_MAX = 1000
BUSY_PAUSE_S = 0.001


def _may_be_open(key: sqlite_files.Key) -> bool:
    """Whether a connection of this very library, ours or the user's, has the file open; a busy one does not tell."""
    for database in apsw.connections():
        try:
            if sqlite_files.key_of(database.filename) == key:
                return True
        except apsw.ThreadingViolationError:
            return True
        except apsw.ConnectionClosedError:
            continue
    return False


def _settle(connection: Connection) -> None:
    """Durability first: what `check` finds wanting afterwards, the resource refuses."""
    database = connection._database
    database.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    database.config(apsw.SQLITE_DBCONFIG_ENABLE_FKEY, 1)
    # Builds differ in this default. Off is SQLite's own: REPLACE fires no DELETE triggers.
    connection.query("PRAGMA recursive_triggers = OFF")
    connection.query("PRAGMA locking_mode = NORMAL")
    mode = connection.query("PRAGMA main.journal_mode")[0][0] if connection.readonly else _journal(connection)
    connection.query(f"PRAGMA main.synchronous = {'FULL' if mode == 'wal' else 'EXTRA'}")


def _journal(connection: Connection) -> str:
    """The file's own journal mode; a new file gets WAL. For that lock SQLite does not wait, so we do."""
    for tries in itertools.count():
        mode: str = connection.query("PRAGMA main.journal_mode")[0][0]
        if mode == "wal":
            return mode
        try:
            empty = connection.query("PRAGMA main.page_count")[0][0] == 0
            wanted = "WAL" if empty and connection.library >= WAL_SAFE_VERSION else "DELETE"
            return str(connection.query(f"PRAGMA main.journal_mode = {wanted}")[0][0])
        except StatementFailed as error:
            if error.code != str(apsw.SQLITE_BUSY) or not connection.wait(tries):
                raise
    raise AssertionError("counting does not end")


async def aconnect(
    url: Url, *, connect_timeout_s: float = TIMEOUT_S, lock_wait_s: float = LOCK_WAIT_S
) -> AsyncSqliteSession:
    """As `connect`, with a thread for the connection."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="nodoubt-sqlite")
    opening = thread.submit(connect, url, connect_timeout_s=connect_timeout_s, lock_wait_s=lock_wait_s)
    try:
        session = await asyncio.wrap_future(opening)
    except BaseException:
        thread.submit(_close_late, opening)  # cancelled: nobody will know of the session that is still to come
        thread.shutdown(wait=False)
        raise
    return AsyncSqliteSession(session, thread)


def _close_late(opening: Future[SqliteSession]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
