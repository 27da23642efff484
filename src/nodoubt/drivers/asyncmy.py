"""The async session on MariaDB and MySQL, over asyncmy.

Guarantees: autocommit, utf8mb4, one packet per `run`; after anything but an answer of the server (a cancelled
task, a time-out, a result that can't be read) the session is closed and not `usable`.

Must not: reset a session (COM_RESET_CONNECTION or COM_CHANGE_USER on the session that prepared a branch makes XA COMMIT
elsewhere answer OK and commit nothing, see FACTS), or reconnect by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Any

from ..errors import MissingExtra, ResourceUnavailable
from ..ports import Bound, Params, Reply, SessionLost, StatementFailed
from ..url import Url
from . import mysql_wire as wire

try:
    import asyncmy
    from asyncmy.constants import CLIENT
    from asyncmy.errors import MySQLError
except ImportError as missing:
    raise MissingExtra("MariaDB or MySQL", "mysql") from missing


class AsyncmySession:
    """One connection; see `ports.Session`."""

    def __init__(self, connection: Any, read_timeout_s: float) -> None:
        self._connection = connection
        self._transport: Any = None
        self._read_timeout_s = read_timeout_s
        self.usable = True
        self.connection_id = 0
        self.server_started = 0

    async def run(self, sql: str) -> tuple[Reply, ...]:
        """Our statements in one packet, every result read. The first error ends the packet."""
        try:
            return await self._query(sql)
        except MySQLError as error:
            code = wire.error_code(error)
            if wire.is_loss(code):
                raise SessionLost(f"the connection was lost: {wire.error_text(error)}") from error
            raise StatementFailed(str(code), wire.error_text(error)) from error
        except SessionLost:
            raise
        except Exception as error:
            raise SessionLost(f"the answer could not be read: {error}") from error

    async def execute(self, statement: str, params: Params) -> Reply:
        """The user's statement, with %s or %(name)s placeholders."""
        if isinstance(params, Bound):
            if params.many:
                return await self._many(statement, params)
            params = params.values
        # Filled in before anything is sent: a wrong parameter leaves the connection as it was.
        text = statement if params is None else self._connection.cursor().mogrify(statement, params)
        return wire.only_reply(statement, await self._query(text))

    async def _many(self, statement: str, rows: Bound) -> Reply:
        cursor = self._connection.cursor()
        count = 0
        for text, wanted in wire.batches([cursor.mogrify(statement, values) for values in rows.values]):
            count += wire.batch_reply(await self._query(text), wanted)
        return Reply(count=count)

    async def _query(self, sql: str) -> tuple[Reply, ...]:
        # Not through a cursor: it follows every statement that warns with a SHOW WARNINGS, and logs the answer.
        try:
            async with asyncio.timeout(self._read_timeout_s):
                await self._connection.query(sql)
                replies = [wire.reply(self._connection._result)]
                while self._connection._result.has_next:
                    await self._connection.next_result()
                    replies.append(wire.reply(self._connection._result))
            return tuple(replies)
        except TimeoutError as error:
            self.kill()
            raise self.timed_out(self._read_timeout_s) from error
        except BaseException as error:
            if not isinstance(error, MySQLError) or self.lost(error):
                self.kill()
            raise

    def lost(self, error: BaseException) -> bool:
        """Whether the connection went with this error."""
        if isinstance(error, MySQLError):
            return wire.is_loss(wire.error_code(error))
        return isinstance(error, SessionLost)

    async def close(self) -> None:
        """Say goodbye and close. A prepared branch is then free for other sessions."""
        self.usable = False
        try:
            async with asyncio.timeout(wire.CLOSE_TIMEOUT_S):
                await self._connection.ensure_closed()
        except (MySQLError, OSError, RuntimeError):
            self.kill()
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """Shut the socket down, so that a call in progress fails now."""
        self.usable = False
        # The driver forgets its transport when it closes on a cancelled read.
        transport = self._connection._transport or self._transport
        wrapper = None if transport is None else transport.get_extra_info("socket")
        if wrapper is None:
            return
        # On a descriptor of our own: closing the transport is for its own loop alone, and uvloop's has no shutdown.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(wrapper.fileno())) as own:
            own.shutdown(socket.SHUT_RDWR)

    def timed_out(self, seconds: float) -> Exception:
        return SessionLost(f"the server did not answer within {seconds:g} s; the connection was closed")


async def connect(url: Url, *, connect_timeout_s: float = 10.0) -> AsyncmySession:
    """Open a session. `ResourceUnavailable` if that fails, within the time given."""
    options = wire.options(url)
    connection: Any = asyncmy.connection.Connection(  # type: ignore[no-untyped-call]
        host=url.host,
        port=url.port or wire.PORT_DEFAULT,
        unix_socket=options.unix_socket,
        user=url.user or None,
        password=url.password.encode(),  # a text would be sent as Latin-1
        database=url.database,
        charset=wire.CHARSET,
        autocommit=True,
        client_flag=CLIENT.FOUND_ROWS,  # rows matched count, changed or not, as elsewhere
        connect_timeout=connect_timeout_s,
        ssl=options.tls,
    )
    session = AsyncmySession(connection, options.read_timeout_s)
    try:
        async with asyncio.timeout(connect_timeout_s):
            await connection.connect()
            session.connection_id, session.server_started = wire.started(await session.run(wire.HELLO))
            session._transport = connection._transport
    except (MySQLError, OSError, TimeoutError, SessionLost, StatementFailed) as error:
        session.kill()
        raise ResourceUnavailable(f"no connection to {url}: {error or 'no answer in time'}") from error
    except BaseException:
        session.kill()
        raise
    return session
