"""SQLite through apsw: one connection as a `ports.Session`, blocking, and for asyncio with a thread of its own.

Beyond `run` and `execute` a session has `call(function, *args)`: it runs `function(connection, *args)` in the
session's thread as one effect, so that an algorithm of many small statements costs one hop. `connection` is a
`Connection` (below), the only face of apsw that anybody else sees.

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
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from ..errors import MissingExtra, ResourceUnavailable
from ..ports import Bound, Params, Reply, SessionLost, StatementFailed
from ..url import Url
from . import sqlite_files

try:
    import apsw
except ImportError:
    raise MissingExtra("SQLite", "sqlite") from None

R = TypeVar("R")
OnChange = Callable[[Any], None]
OnAccess = Callable[[str, str | None, str | None, str | None, str | None], None]

TIMEOUT_S = 10.0
LOCK_WAIT_S = 5.0
_PAUSES_S = (0.001, 0.002, 0.005, 0.01, 0.02)  # between tries for a lock; the last one repeats

_WAITED_S = 0.1  # a few of the longest pauses

_STEPS_BETWEEN_LOOKS = 100_000  # instructions of SQLite's machine: a millisecond or two

LIBRARY = tuple(map(int, apsw.sqlite_lib_version().split(".")[:3]))
WAL_SAFE_VERSION = (3, 51, 3)  # 3.7.0 to 3.51.2 can corrupt the file when a WAL is reset

_BEGIN = re.compile(r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?(?:\*/|$))*([A-Za-z]+)", re.DOTALL)
_CHANGING = frozenset({"INSERT", "UPDATE", "DELETE", "REPLACE", "WITH"})
_ACTIONS: dict[int, str] = {
    number: name.removeprefix("SQLITE_")
    for number, name in apsw.mapping_authorizer_function.items()
    if isinstance(number, int) and isinstance(name, str)
}

# Primary result codes after which the connection must not be used again. After the first two, nothing is
# known of the statement either: a failed fsync may have written, and cannot be repeated.
_UNKNOWN = frozenset({apsw.SQLITE_IOERR, apsw.SQLITE_INTERRUPT})
_BROKEN = frozenset(
    {
        apsw.SQLITE_CORRUPT,
        apsw.SQLITE_NOTADB,
        apsw.SQLITE_CANTOPEN,
        apsw.SQLITE_NOMEM,
        apsw.SQLITE_PROTOCOL,
        apsw.SQLITE_MISUSE,
    }
)


# What PEP 249 calls apsw's errors, as Python's sqlite3 does; the first that fits.
_STANDARD: tuple[tuple[type[Exception], str], ...] = (
    (apsw.ConstraintError, "IntegrityError"),
    (apsw.MismatchError, "IntegrityError"),
    (apsw.TooBigError, "DataError"),
    (apsw.BindingsError, "ProgrammingError"),
    (apsw.MisuseError, "InterfaceError"),
    (apsw.InternalError, "InternalError"),
    (apsw.CorruptError, "DatabaseError"),
    (apsw.NotADBError, "DatabaseError"),
    (apsw.Error, "OperationalError"),
)


def standard_name(error: Exception) -> str | None:
    """PEP 249's name for an error of apsw's; None if it is another's."""
    return next((name for kind, name in _STANDARD if isinstance(error, kind)), None)


class Connection:
    """An open file, as the functions in `call` see it. Used by one thread at a time.

    `kept` is a place for whoever calls: what must live and die with this connection.
    """

    def __init__(self, database: apsw.Connection, lock_wait_s: float) -> None:
        self.path: str = database.filename
        self.lock_wait_s = lock_wait_s
        self.broken = False
        self.killed = False
        self.at_work = False  # the open transaction is a branch's, and whoever began it will end it
        self.kept: Any = None
        self._database = database
        self._waiting_since = 0.0
        self._waited_at = 0.0
        self._on_access: OnAccess | None = None
        # But for a look at the schema, for good: each time that it is set, SQLite compiles all statements anew.
        database.authorizer = self._authorize
        database.set_busy_handler(self.wait)
        # SQLite forgets an interrupt that comes just before a statement begins. This asks again while it runs.
        database.set_progress_handler(lambda: self.killed, _STEPS_BETWEEN_LOOKS)

    # -- our own statements
    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Our own statements; all rows. Raises `StatementFailed` or `SessionLost`."""
        if self.killed:
            raise self._ended()
        try:
            rows: list[Any] = self._database.execute(sql, values).fetchall()
        except (apsw.Error, UnicodeDecodeError) as error:
            raise self._translated(error) from error
        return rows

    def look(self, sql: str) -> list[tuple[Any, ...]]:
        """The same, of the schema. For that SQLite resolves every view there is, and would tell the authorizer of
        strangers' names, which need not be text. All statements are compiled anew then.
        """
        self._database.authorizer = None
        try:
            return self.query(sql)
        finally:
            self._database.authorizer = self._authorize

    def many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """One statement of our own, for each of the rows."""
        if self.killed:
            raise self._ended()
        try:
            self._database.executemany(sql, rows).fetchall()
        except apsw.Error as error:
            raise self._translated(error) from error

    def run(self, sql: str) -> tuple[Reply, ...]:
        """Our own literal statements, a reply for each. Raises `StatementFailed` or `SessionLost`."""
        if self.killed:
            raise self._ended()
        try:
            return tuple(self._replies(sql, None))
        except (apsw.Error, UnicodeDecodeError) as error:
            raise self._translated(error) from error

    # -- the user's
    def execute(self, statement: str, params: Params) -> Reply:
        """The user's statement, `?` or `:name`; of several, the last one's reply. Raises apsw's own errors.

        It is always compiled anew: one compiled without the authorizer would skip it, and one compiled before the hook
        was there deletes a whole table without telling it. (SQLite expires what is cached; we do not rely on that.)
        """
        if self.killed:
            raise self._ended()
        try:
            if isinstance(params, Bound):
                return self._in_full(statement, params)
            replies = self._replies(statement, params)
        except apsw.Error as error:
            if self.lost(error) and self.killed:
                raise SessionLost(str(error)) from error
            raise
        return replies[-1] if replies else Reply()

    def _in_full(self, statement: str, params: Bound) -> Reply:
        if params.many:
            counts = [one.count for values in params.values for one in self._replies(statement, values)[-1:]]
            return Reply(count=sum(counts))
        reply = next(reversed(self._replies(statement, params.values)), Reply())
        return msgspec.structs.replace(reply, last_id=self._database.last_insert_rowid())

    def _replies(self, sql: str, params: Any) -> list[Reply]:
        database, replies = self._database, list[Reply]()
        tag, columns, rows, before = "", tuple[str, ...](), list[Any](), 0
        started = False

        def finish() -> None:
            if started:
                if tag in _CHANGING and database.total_changes() != before:
                    count = database.changes()
                elif columns:
                    count = len(rows)
                else:
                    count = 0 if tag in _CHANGING else -1
                replies.append(Reply(self._proven(tag), count, columns, tuple(rows)))

        def next_one(cursor: apsw.Cursor, statement: str, _: Any) -> bool:
            nonlocal tag, columns, rows, before, started
            finish()
            match = _BEGIN.match(statement)
            tag, rows, before, started = (match[1].upper() if match else ""), [], database.total_changes(), True
            columns = tuple(column[0] for column in cursor.get_description())
            return True

        cursor = database.cursor()
        cursor.exec_trace = next_one  # called as each statement begins
        for row in cursor.execute(sql, params, can_cache=False):
            rows.append(row)
        finish()
        return replies

    def _proven(self, tag: str) -> str:
        """The tag, if the connection's state bears it out: SQLite has no tags of its own."""
        inside = self._database.in_transaction
        if (tag == "BEGIN" and not inside) or (tag in ("COMMIT", "END") and inside):
            return ""
        return "COMMIT" if tag == "END" else tag

    # -- what the connection knows
    @property
    def in_transaction(self) -> bool:
        return self._database.in_transaction

    @property
    def library(self) -> tuple[int, ...]:
        """The version of SQLite in use."""
        return LIBRARY

    @property
    def readonly(self) -> bool:
        return self._database.readonly("main")

    def total_changes(self) -> int:
        """Rows inserted, updated and deleted since the connection was opened, by triggers and cascades too."""
        return self._database.total_changes()

    def unresolved_references(self) -> bool:
        """Whether a deferred foreign key is violated now."""
        return self._database.status(apsw.SQLITE_DBSTATUS_DEFERRED_FKS)[0] != 0

    def writers(self) -> str:
        """Who holds the file's write lock, in words."""
        return sqlite_files.writers(self.path)

    def waits(self) -> bool:
        """Whether it waits for a lock now, or did a moment ago. From any thread; for people, so a guess will do."""
        return time.monotonic() - self._waited_at < _WAITED_S

    def lockers(self) -> tuple[str, ...] | None:
        """The processes that hold it now; None where the system does not tell."""
        return sqlite_files.lockers(self.path)

    # -- watching the user's work
    def watch(self, on_access: OnAccess, on_change: OnChange | None) -> None:
        """Call `on_access(action, first, second, database, trigger)` for all that a statement wants, and `on_change`
        before each row changes. What `on_access` raises stops the statement and comes out of `execute`.
        """
        self._database.preupdate_hook(on_change)
        self._on_access = on_access

    def unwatch(self) -> None:
        self._on_access = None
        self._database.preupdate_hook(None)

    def _authorize(self, action: int, *names: str | None) -> int:
        if self._on_access is not None:
            self._on_access(_ACTIONS.get(action) or str(action), *names)
        return apsw.SQLITE_OK

    def bare(self, on: bool) -> None:
        """Switch triggers, foreign keys and CHECKs off, so that rows are written as they are; or on again."""
        known, self.broken = self.broken, True  # a connection that stayed bare would let everything pass
        self._database.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0 if on else 1)
        self._database.config(apsw.SQLITE_DBCONFIG_ENABLE_FKEY, 0 if on else 1)
        self.query(f"PRAGMA ignore_check_constraints = {'ON' if on else 'OFF'}")
        self.broken = known

    # -- its end
    def lost(self, error: BaseException) -> bool:
        """Whether nothing more can be had from the connection after this error; remembers it."""
        if not isinstance(error, apsw.Error):
            return False
        code = getattr(error, "result", 0)
        if code in _UNKNOWN or code in _BROKEN or isinstance(error, apsw.ConnectionClosedError):
            self.broken = True
        return code in _UNKNOWN or isinstance(error, apsw.ConnectionClosedError)

    def kill(self) -> None:
        """From any thread: whatever runs ends at its next step, and nothing new begins."""
        self.killed = True
        with contextlib.suppress(apsw.Error):
            self._database.interrupt()

    def close(self) -> None:
        """Rolls back what is open."""
        self._database.close(force=True)

    def _ended(self) -> SessionLost:
        return SessionLost(f"the connection to {self.path} was ended in the middle of a call")

    def _translated(self, error: apsw.Error | UnicodeDecodeError) -> StatementFailed | SessionLost:
        if isinstance(error, UnicodeDecodeError):  # any bytes can be a text here
            return StatementFailed(str(apsw.SQLITE_ERROR), f"a text that was read is no UTF-8: {error}")
        if self.lost(error):
            return SessionLost(str(error))
        return StatementFailed(str(getattr(error, "extendedresult", 0) or getattr(error, "result", 0)), str(error))

    def wait(self, tries: int) -> bool:
        """SQLite's busy handler: True, try again. Our own, because SQLite's cannot be interrupted."""
        now = self._waited_at = time.monotonic()
        if tries == 0:
            self._waiting_since = now
        if self.killed or now - self._waiting_since >= self.lock_wait_s:
            return False
        time.sleep(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)])
        return True


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
        if self.inherited:
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
        with self._mutex:
            if self._closed or self.connection.killed:
                raise SessionLost(f"the connection to {self.connection.path} is closed")
            if self._busy:
                raise SessionLost(f"the connection to {self.connection.path} is in use by another thread")
            self._busy = True
        try:
            return function(self.connection, *args)
        except Exception:
            raise
        except BaseException:
            self._set_aside = True  # Ctrl-C in the middle of a call: nobody knows how far it came
            raise
        finally:
            # Closed or not, what the connection is in now is read here, by the thread that used it.
            self._open_transaction = self.connection.in_transaction
            with self._mutex:
                self._busy = False
                killed = self.connection.killed
            if killed:
                self.close()

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
