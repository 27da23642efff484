"""PostgreSQL, blocking: one psycopg 3 connection as a `ports.Session`.

Guarantees: autocommit, so that nothing is begun behind anybody's back; `run` is one simple-query message
and gives a reply, with its command tag, for each statement in it; every ending that leaves the
connection in an unknown state clears `usable`.

Must not: decide what an answer means. `run` tells a server's error (`StatementFailed`) from an ending without
an answer (`SessionLost`), and that is all.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import weakref
from collections.abc import Sequence
from typing import Any

import msgspec

from ..errors import MissingExtra, ResourceUnavailable
from ..ports import Bound, Params, Reply, SessionLost, StatementFailed
from ..url import Url
from .postgres_failure import (
    CHECK_CLIENT,
    CHECK_CLIENT_FROM_VERSION,
    PostgresFailed,
    ends_session,
    introduction,
    restore,
)

try:
    import psycopg
except ImportError:
    raise MissingExtra("PostgreSQL", "postgres") from None

TIMEOUT_S = 10.0


class BasicSession:
    """What needs no waiting: shared with `psycopg_async`. One connection, used by one thread or task at a time."""

    server_started = 0  # a prepared branch is not bound to its session here, so nobody asks

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.connection_id: int = connection.info.backend_pid
        self.usable = True
        self.forced = False  # a resource's note: commands outside a transaction wait for the standbys too
        self.stained = False  # a resource's note: the user has left settings, locks or temporary tables in the session
        self.kept: frozenset[str] | None = None  # see `kept`: which statements of ours it has prepared
        self.warnings: list[str] = []  # of the last call: "routine: message", in which only the routine is untranslated
        # A descriptor of our own: `kill` comes from another thread, by when the connection's number may
        # have been closed and given to a stranger's file.
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        weakref.finalize(self, self._socket.close)
        connection.add_notice_handler(self._notice)

    def failed(self, error: psycopg.Error) -> Exception:
        """What an error of `run` is."""
        if error.sqlstate is None or self.lost(error):
            self.usable = False
            return SessionLost(str(error))
        detail = error.diag.message_detail
        message = (error.diag.message_primary or str(error)) + (f" ({detail})" if detail else "")
        return PostgresFailed(error.sqlstate, message, error.diag.schema_name or "")

    def lost(self, error: BaseException) -> bool:
        """Whether the connection is gone with this error: the server ended it, or the socket did."""
        if isinstance(error, psycopg.Error) and ends_session(error.sqlstate, error.diag.severity_nonlocalized):
            return True
        return bool(self.connection.closed)

    def kill(self) -> None:
        """Shut the socket down, from any thread: a call that waits for an answer fails at once."""
        self.usable = False
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def timed_out(self, seconds: float) -> Exception:
        """The error of a call that `kill` cut short."""
        return SessionLost(f"no answer within {seconds:g} s")

    def _notice(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self.warnings.append(f"{notice.source_function}: {notice.message_primary}")


class PsycopgSession(BasicSession):
    """One connection. Used by one thread at a time, but for `kill`."""

    def run(self, sql: str) -> tuple[Reply, ...]:
        """Our own literal statements in one message (libpq's PQsendQuery): a reply for each, in order."""
        self.warnings.clear()
        try:
            # Never as a prepared statement: only a simple query carries several statements.
            with self.connection.cursor() as cursor:
                cursor.execute(sql.encode(), prepare=False)
                return _replies(cursor)
        except psycopg.Error as error:
            raise self.failed(error) from error
        except BaseException:
            self.usable = False  # interrupted in the middle of a call: nobody knows what is still to be read
            raise

    def execute(self, statement: str, params: Params) -> Reply:
        """The user's statement, `%s` or `%(name)s`; of several, without parameters, the last one's reply."""
        self.warnings.clear()
        query: Any = statement
        try:
            with self.connection.cursor() as cursor:
                if isinstance(params, Bound):
                    return _in_full(cursor, query, params)
                cursor.execute(query, params)
                return _replies(cursor)[-1]
        except psycopg.Error as error:
            if self.lost(error):
                self.usable = False
            raise
        except BaseException:
            self.usable = False
            raise

    def close(self) -> None:
        """End the connection in good order. Never raises."""
        self.usable = False
        with contextlib.suppress(Exception):
            self.connection.close()
        self._socket.close()


class LentPsycopgSession(PsycopgSession):
    """A connection on loan from a pool of the user's."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]], isolation: str) -> None:
        super().__init__(connection)
        connection.remove_notice_handler(self._notice)
        self._isolation = isolation
        self._durability = ""  # as the user has it
        self._autocommit = False

    def take(self) -> None:
        """Take it over: for now, nobody but us begins a transaction."""
        self._autocommit = self.connection.autocommit
        self.connection.autocommit = True
        self.connection.add_notice_handler(self._notice)
        if not self._durability:
            self._durability = str(self.run(introduction(self._isolation))[0].scalar())
            _watch_client(self)

    def keep(self) -> None:
        """Take it over for good."""
        self.take()

    def give_back(self) -> None:
        """As it was."""
        undo = restore(self._durability) if self.forced else None
        if undo is not None:
            self.run(undo)
            self.forced = False
        self.connection.remove_notice_handler(self._notice)
        self.connection.autocommit = self._autocommit


def lend(connection: Any, isolation: str) -> LentPsycopgSession:
    """A session over a connection of the user's pool. `isolation`: the level of the engine's own transactions."""
    return LentPsycopgSession(connection, isolation)


def connect(url: Url, *, connect_timeout_s: float = TIMEOUT_S) -> PsycopgSession:
    """Open a session. Raises `ResourceUnavailable`, without the password."""
    try:
        connection = psycopg.connect(
            url.secret(),
            autocommit=True,
            connect_timeout=max(2, math.ceil(connect_timeout_s)),  # whole seconds, and libpq takes 1 for 2
            fallback_application_name="nodoubt",
        )
    except psycopg.Error as error:
        raise ResourceUnavailable(f"cannot connect to {url}: {error}") from error
    session = PsycopgSession(connection)
    _watch_client(session)
    return session


def _watch_client(session: PsycopgSession) -> None:
    if session.connection.info.server_version >= CHECK_CLIENT_FROM_VERSION * 10_000:
        with contextlib.suppress(StatementFailed, SessionLost):  # not every system it runs on can do that
            session.run(CHECK_CLIENT)


def _replies(cursor: psycopg.Cursor[tuple[Any, ...]]) -> tuple[Reply, ...]:
    replies = []
    more: bool | None = True
    while more:
        replies.append(reply(cursor, cursor.fetchall() if cursor.description else ()))
        more = cursor.nextset()
    return tuple(replies)


def reply(cursor: Any, rows: Sequence[tuple[Any, ...]]) -> Reply:
    """What a cursor of either kind tells of its present result."""
    columns = tuple(column.name for column in cursor.description or ())
    return Reply(cursor.statusmessage or "", cursor.rowcount, columns, tuple(rows))


def _in_full(cursor: psycopg.Cursor[tuple[Any, ...]], query: Any, params: Bound) -> Reply:
    if params.many:
        cursor.executemany(query, params.values)  # a pipeline: one wait for all of them
        return Reply(cursor.statusmessage or "", cursor.rowcount)
    cursor.execute(query, params.values)
    return msgspec.structs.replace(_replies(cursor)[-1], types=types(cursor))


def types(cursor: Any) -> tuple[int, ...]:
    """The types' oids."""
    return tuple(column.type_code for column in cursor.description or ())
