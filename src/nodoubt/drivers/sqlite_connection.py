"""SQLite through apsw: one open file, and the only face of apsw that anybody else sees. Its sessions: `sqlite`.

Guarantees: what a branch's statement wants is asked of whoever watches it, whether SQLite compiles it now or had done
so before; a lock is waited for at most `lock_wait_s`, and not at all once killed; the copy that a fork has made is
never closed, not even as its process ends.

Must not: decide what an answer means, or know tables of ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ..errors import MissingExtra
from ..ports import Bound, Params, Reply, SessionLost, StatementFailed
from . import sqlite_files

try:
    import apsw
except ImportError:
    raise MissingExtra("SQLite", "sqlite") from None

OnChange = Callable[[Any], None]
OnAccess = Callable[[str, str | None, str | None, str | None, str | None], None]

_PAUSES_S = (0.001, 0.002, 0.005, 0.01, 0.02)  # between tries for a lock; the last one repeats

_WAITED_S = 0.1  # a few of the longest pauses

_STEPS_BETWEEN_LOOKS = 100_000  # instructions of SQLite's machine: a millisecond or two

LIBRARY = tuple(map(int, apsw.sqlite_lib_version().split(".")[:3]))

_KNOWN_MAX = 64  # of the user's texts that a connection remembers; apsw keeps 100 compiled, ours among them
_KNOWN_LENGTH_MAX = 4096
_KEPT_LENGTH_MAX = 4096  # of a parameter

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


def _may_be_kept(params: Any) -> bool:
    """A compiled statement holds its last parameters until it runs again."""
    values = params.values() if isinstance(params, dict) else params
    if not isinstance(params, (tuple, list, dict)):
        return params is None
    return not any(isinstance(value, (str, bytes)) and len(value) > _KEPT_LENGTH_MAX for value in values)


class _Known(msgspec.Struct, frozen=True):
    """A change of the user's, of one statement, without RETURNING, that was compiled before.

    `wants`: what it asked the authorizer for. `tag`: its reply's.
    """

    wants: tuple[tuple[Any, ...], ...]
    tag: str


_OPENED: weakref.WeakSet[Connection] = weakref.WeakSet()


def _keep_for_good() -> None:
    """In the child of a fork: SQLite would roll back, as it closes the copy, what the parent is at work on.

    It would take the parent's journal for its own, write what stood before over what the parent has written, and delete
    it; in WAL it would wipe that from the index that both share. An interpreter that ends closes all that it lets go
    of, whatever holds it: so these have a reference more than there are.
    """
    for connection in list(_OPENED):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


os.register_at_fork(after_in_child=_keep_for_good)


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
        self._cursor = database.cursor()  # for what is read to its end at once; a new one costs as much as a statement
        self._waiting_since = 0.0
        self._waited_at = 0.0
        self._on_access: OnAccess | None = None
        self._flags = 0  # with which the user's statements are compiled: apsw keeps them apart by that
        self._heard: list[tuple[Any, ...]] = []  # what the authorizer was asked for since the last statement began
        self._known: dict[str, _Known] = {}
        # But for a look at the schema, for good: each time that it is set, SQLite compiles all statements anew.
        database.authorizer = self._authorize
        database.set_busy_handler(self.wait)
        # SQLite forgets an interrupt that comes just before a statement begins. This asks again while it runs.
        database.set_progress_handler(lambda: self.killed, _STEPS_BETWEEN_LOOKS)
        _OPENED.add(self)

    # -- our own statements
    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Our own statement, compiled once; all rows. Raises `StatementFailed` or `SessionLost`."""
        if self.killed:
            raise self._ended()
        try:
            return self._cursor.execute(sql, values).fetchall()
        except (apsw.Error, UnicodeDecodeError) as error:
            raise self._translated(error) from error

    def look(self, sql: str) -> list[tuple[Any, ...]]:
        """The same, of the schema. For that SQLite resolves every view there is, and would tell the authorizer of
        strangers' names, which need not be text. All statements are compiled anew then.
        """
        self._database.authorizer = None
        try:
            return self.query(sql)
        finally:
            self._database.authorizer = self._authorize

    def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """One statement of our own, for each of the rows."""
        if len(rows) == 1:
            self.query(sql, rows[0])
            return
        if self.killed:
            raise self._ended()
        try:
            self._cursor.executemany(sql, rows).fetchall()
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
        """The user's statement, `?` or `:name`; of several, the last one's reply. Raises apsw's own errors."""
        if self.killed:
            raise self._ended()
        try:
            if isinstance(params, Bound):
                return self._in_full(statement, params)
            return self._last(statement, params)
        except apsw.Error as error:
            if self.lost(error) and self.killed:
                raise SessionLost(str(error)) from error
            raise

    def _in_full(self, statement: str, params: Bound) -> Reply:
        if params.many:
            return Reply(count=sum([self._last(statement, values).count for values in params.values]))
        reply = self._last(statement, params.values)
        return msgspec.structs.replace(reply, last_id=self._database.last_insert_rowid())

    def _last(self, statement: str, params: Any) -> Reply:
        """The last reply. A change that is known is not compiled again, so it asks here for what it asked for then.

        Where the schema, or a setting, has changed since, SQLite compiles it anew, and asks the authorizer. If that is
        asked while a known change runs, the change is forgotten: it was compiled anew, or a virtual table in it has
        compiled something of its own, and nobody can tell which from outside.
        """
        ask = self._on_access
        if ask is None:
            return self._of_last(self._replies(statement, params))
        known = self._known.get(statement) if _may_be_kept(params) else None
        if known is not None:
            try:
                for names in known.wants:
                    ask(*names)
            except Exception:
                known = None  # it may not want that any more: compiled anew, it says so itself
                del self._known[statement]
        self._heard.clear()
        if known is not None:
            try:
                return self._change(statement, params, known.tag)
            finally:
                if self._heard:
                    self._known.pop(statement, None)
        replies = self._replies(statement, params)
        reply = self._of_last(replies)
        self._remember(statement, reply, single=len(replies) == 1)
        return reply

    def _remember(self, statement: str, reply: Reply, *, single: bool) -> None:
        """It was compiled just now. What returns rows is so each time: apsw tells the columns of before a change."""
        if single and reply.tag in _CHANGING and not reply.columns and len(statement) <= _KNOWN_LENGTH_MAX:
            if len(self._known) >= _KNOWN_MAX:
                del self._known[next(iter(self._known))]
            self._known[statement] = _Known(tuple(dict.fromkeys(self._heard)), reply.tag)

    @staticmethod
    def _of_last(replies: Sequence[Reply]) -> Reply:
        return replies[-1] if replies else Reply()

    def _change(self, statement: str, params: Any, tag: str) -> Reply:
        """The reply of a known change, which returns no rows: it has run when `execute` returns."""
        database = self._database
        before = database.total_changes()
        self._cursor.execute(statement, params, prepare_flags=self._flags)
        return Reply(tag, database.changes() if database.total_changes() != before else 0)

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
        try:
            for row in cursor.execute(sql, params, can_cache=False, prepare_flags=self._flags):
                rows.append(row)
        except UnicodeDecodeError:
            cursor.close(force=True)  # see `_translated`
            raise
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
        # One compiled without the hook deletes a whole table without telling it.
        self._flags = 0 if on_change is None else apsw.SQLITE_PREPARE_PERSISTENT
        self._on_access = on_access

    def unwatch(self) -> None:
        self._on_access, self._flags = None, 0
        self._database.preupdate_hook(None)

    def _authorize(self, action: int, *names: str | None) -> int:
        if self._on_access is not None:
            kind = _ACTIONS.get(action) or str(action)
            self._heard.append((kind, *names))
            self._on_access(kind, *names)
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
            self._cursor.close(force=True)  # it stands in the middle of its rows, and would hold up every checkpoint
            self._cursor = self._database.cursor()
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
