"""The sync session on MariaDB and MySQL, over PyMySQL.

Guarantees: autocommit, utf8mb4, one packet per `run`; after anything but an answer of the server (a cancelled
call, a time-out, a result that can't be read) the session is closed and not `usable`.

Must not: reset a session (COM_RESET_CONNECTION or COM_CHANGE_USER on the session that prepared a branch makes XA COMMIT
elsewhere answer OK and commit nothing, see FACTS), or reconnect by itself.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Sequence
from typing import Any

from ..errors import MissingExtra, ResourceUnavailable
from ..ports import Bound, Params, Reply, SessionLost, StatementFailed
from ..url import Url
from . import mysql_wire as wire

try:
    import pymysql
    from pymysql.constants import CLIENT, COMMAND
except ImportError as missing:
    raise MissingExtra("MariaDB or MySQL", "mysql") from missing


class PyMySQLSession:
    """One connection; see `ports.Session`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.usable = True
        self.connection_id = 0
        self.server_started = 0

    def run(self, sql: str) -> tuple[Reply, ...]:
        """Our statements in one packet, every result read. The first error ends the packet."""
        try:
            return self._query(sql)
        except pymysql.err.MySQLError as error:
            raise self._failed(error) from error
        except Exception as error:
            raise SessionLost(f"the answer could not be read: {error}") from error

    def execute(self, statement: str, params: Params) -> Reply:
        """The user's statement, with %s or %(name)s placeholders."""
        return self.execute_after((), statement, params)[-1]

    def execute_after(self, before: Sequence[str], statement: str, params: Params) -> tuple[Reply, ...]:
        """Statements of ours, and then the user's, in one packet; the replies of all of them.

        Raises `StatementFailed` where one of ours failed: the user's was not run.
        """
        if isinstance(params, Bound):
            if params.many:
                ours = (self.run("; ".join(before))) if before else ()
                return *ours, self._many(statement, params)
            params = params.values
        # Filled in before anything is sent: a wrong parameter leaves the connection as it was.
        text = statement if params is None else wire.filled(self._connection.escape, statement, params)
        replies: list[Reply] = []
        try:
            self._query("; ".join((*before, text)), replies, (*before, text))
        except pymysql.err.MySQLError as error:
            if len(replies) >= len(before):
                raise
            raise self._failed(error) from error
        return *replies[: len(before)], wire.only_reply(statement, replies[len(before) :])

    def _failed(self, error: Any) -> Exception:
        """What an error of our own statements is."""
        code = wire.error_code(error)
        if wire.is_loss(code):
            return SessionLost(f"the connection was lost: {wire.error_text(error)}")
        return StatementFailed(str(code), wire.error_text(error))

    def _many(self, statement: str, rows: Bound) -> Reply:
        count = 0
        for text, wanted in wire.batches([wire.filled(self._connection.escape, statement, one) for one in rows.values]):
            count += wire.batch_reply(self._query(text), wanted)
        return Reply(count=count)

    def _query(self, sql: str, replies: list[Reply] | None = None, each: Sequence[str] = ()) -> tuple[Reply, ...]:
        replies = [] if replies is None else replies
        try:
            self._connection.query(sql)
            replies.append(wire.reply(self._connection._result, wire.which(each, len(replies), sql)))
            while self._connection._result.has_next:
                self._connection.next_result()
                replies.append(wire.reply(self._connection._result, wire.which(each, len(replies), sql)))
            return tuple(replies)
        except BaseException as error:
            if not isinstance(error, pymysql.err.MySQLError) or self.lost(error):
                self.kill()
            raise

    def lost(self, error: BaseException) -> bool:
        """Whether the connection went with this error."""
        if isinstance(error, pymysql.err.MySQLError):
            return wire.is_loss(wire.error_code(error))
        return isinstance(error, SessionLost)

    def close(self) -> None:
        """Say goodbye and close. A prepared branch is then free for other sessions."""
        self.usable = False
        with contextlib.suppress(Exception):
            self._connection.close()

    def kill(self) -> None:
        """Shut the socket down, so that a call in progress in another thread fails now."""
        self.usable = False
        # Taken by the plain socket's method: that of a TLS socket would swap the state under the reading thread.
        with contextlib.suppress(OSError, AttributeError, TypeError):
            socket.socket.shutdown(self._connection._sock, socket.SHUT_RDWR)

    def timed_out(self, seconds: float) -> Exception:
        return SessionLost(f"the server did not answer within {seconds:g} s; the connection was closed")


class LentPyMySQLSession(PyMySQLSession):
    """A connection on loan from a pool of the user's. Between XA START and XA COMMIT its autocommit does not matter."""

    def take(self) -> None:
        """Take it over: for now, a packet may hold several statements."""
        self._several(True)
        if not self.connection_id:
            self.connection_id, self.server_started = wire.introduced(self.run(wire.INTRODUCTION))

    def keep(self) -> None:
        """Take it over for good, for transactions of our own."""
        self.take()
        self.run(wire.AUTOCOMMIT)

    def close(self) -> None:
        """As ever; and the pool, which then has it closed, too, is not to stumble: PyMySQL raises at a second time."""
        super().close()
        self._connection._closed = self._connection.open

    def give_back(self) -> None:
        """As it was. Left on, the setting would make a hole in somebody's program a wide one."""
        self._several(False)

    def _several(self, on: bool) -> None:
        if self._connection.client_flag & CLIENT.MULTI_STATEMENTS:
            return  # it has been so since the user connected
        try:
            self._connection._execute_command(COMMAND.COM_SET_OPTION, struct.pack("<H", 0 if on else 1))
            self._connection._read_packet()
        except BaseException as error:
            self.kill()
            if not isinstance(error, Exception):
                raise
            raise SessionLost(f"the connection was lost: {error}") from error


def lend(connection: Any, _: str) -> LentPyMySQLSession:
    """A session over a connection of the user's pool. Its isolation level is the connection's own already."""
    return LentPyMySQLSession(connection)


def connect(url: Url, *, connect_timeout_s: float = 10.0) -> PyMySQLSession:
    """Open a session. `ResourceUnavailable` if that fails, within the time given."""
    options = wire.options(url)
    connection: Any = pymysql.connections.Connection(
        host=url.host,
        port=url.port or wire.PORT_DEFAULT,
        unix_socket=options.unix_socket,
        user=url.user or None,
        password=url.password.encode(),  # a text would be sent as Latin-1
        database=url.database,
        charset=wire.CHARSET,
        autocommit=True,
        client_flag=CLIENT.MULTI_STATEMENTS,
        connect_timeout=connect_timeout_s,
        read_timeout=connect_timeout_s,
        write_timeout=connect_timeout_s,
        ssl=options.tls,
        ssl_disabled=options.tls is None,
        defer_connect=True,
    )
    session = PyMySQLSession(connection)
    try:
        connection.connect()
        session.connection_id, session.server_started = wire.started(session.run(wire.HELLO))
    except (pymysql.err.MySQLError, OSError, SessionLost, StatementFailed) as error:
        session.kill()
        raise ResourceUnavailable(f"no connection to {url}: {error}") from error
    except BaseException:
        session.kill()
        raise
    # The handshake was bounded by the time to connect; statements have a bound of their own.
    connection._read_timeout = connection._write_timeout = options.read_timeout_s
    return session
