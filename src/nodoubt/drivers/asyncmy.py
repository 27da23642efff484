"""The async session on MariaDB and MySQL, over asyncmy.

Guarantees: autocommit, utf8mb4, and what `mysql_async` guarantees.

Must not: see `mysql_async`.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from ..errors import MissingExtra, ResourceUnavailable
from ..ports import SessionLost, StatementFailed
from ..url import Url
from . import mysql_wire as wire
from .mysql_async import AsyncMySQLSession, LentMySQLSession

try:
    import asyncmy
    from asyncmy.errors import MySQLError
except ImportError as missing:
    raise MissingExtra("MariaDB or MySQL", "mysql") from missing


class AsyncmySession(AsyncMySQLSession):
    """One connection; see `ports.Session`."""

    errors: ClassVar[type[Exception]] = MySQLError
    _first_transport: Any = None

    def remember_transport(self) -> None:
        """The driver forgets its transport when it closes on a cancelled read; `kill` still needs it."""
        self._first_transport = self._connection._transport

    def _transport(self) -> Any:
        return self._connection._transport or self._first_transport


class LentAsyncmySession(LentMySQLSession, AsyncmySession):
    """A connection on loan."""


def lend(connection: Any, _: str) -> LentAsyncmySession:
    """A session over a connection of the user's pool. Its isolation level is the connection's own already."""
    session = LentAsyncmySession(connection, wire.READ_TIMEOUT_DEFAULT_S)
    session.remember_transport()
    return session


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
        connect_timeout=connect_timeout_s,
        ssl=options.tls,
    )
    session = AsyncmySession(connection, options.read_timeout_s)
    try:
        async with asyncio.timeout(connect_timeout_s):
            await connection.connect()
            session.connection_id, session.server_started = wire.started(await session.run(wire.HELLO))
            session.remember_transport()
    except (MySQLError, OSError, TimeoutError, SessionLost, StatementFailed) as error:
        session.kill()
        raise ResourceUnavailable(f"no connection to {url}: {error or 'no answer in time'}") from error
    except BaseException:
        session.kill()
        raise
    return session
