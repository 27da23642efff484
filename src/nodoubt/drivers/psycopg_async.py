"""PostgreSQL, asyncio: libpq as an async `ports.Session`. What is said, and the guarantees: `drivers.libpq`.

A round trip is one future, resolved when the socket has brought the whole answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ..errors import MissingExtra, ResourceUnavailable
from ..ports import Params, Reply, SessionLost, StatementFailed
from ..url import Url
from .libpq import TIMEOUT_S, LibpqSession, Message, R, Talk, options
from .postgres_failure import CHECK_CLIENT, CHECK_CLIENT_FROM_VERSION, introduction, require_alive, restore

try:
    import psycopg
except ImportError:
    raise MissingExtra("PostgreSQL", "postgres") from None


class AsyncPsycopgSession(LibpqSession):
    """One connection. Used by one task at a time, but for `kill`."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], *, prepares: bool = True) -> None:
        super().__init__(connection, prepares=prepares)
        self._wire = _Wire(self._pg, self._ended)

    def run(self, sql: str) -> Coroutine[Any, Any, tuple[Reply, ...]]:
        """Our own literal statements in one message (a simple query): a reply for each, in order."""
        return self._converse(self._run(sql))

    def run_each(self, statements: Sequence[str]) -> Coroutine[Any, Any, tuple[Reply, ...]]:
        """The same in one round trip, each a message of its own: also what may not stand beside others in one.

        Raises `StatementFailed`, with the number of those before it in `after`: what is behind it was not run.
        """
        return self._converse(self._run_each(statements))

    def execute(self, statement: str, params: Params) -> Coroutine[Any, Any, Reply]:
        """The user's statement, `%s` or `%(name)s`; of several, without parameters, the last one's reply."""
        return self._converse(self._execute(statement, params))

    def execute_after(
        self, before: Sequence[str], statement: str, params: Params
    ) -> Coroutine[Any, Any, tuple[Reply, ...]]:
        """Statements of ours, and then the user's, in one round trip; the replies of all of them.

        Raises `StatementFailed` where one of ours failed: the user's was not run.
        """
        return self._converse(self._execute_after(before, statement, params))

    async def _converse(self, talk: Talk[R]) -> R:
        results: list[Any] | None = None
        self.warnings.clear()
        while True:
            try:
                message = talk.send(results)  # type: ignore[arg-type] # None only begins
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            try:
                await self._wire.exchange(message)
            except psycopg.Error as error:
                raise self._gone(error, message, before=results is not None) from error
            except BaseException:
                # Cancelled in the middle of a call: nobody knows what is still to be read.
                self.usable = False
                self._wire.give_up()
                raise
            results = message.results

    async def close(self) -> None:
        """End the connection in good order. Never raises."""
        self.usable = False
        self._wire.end()
        with contextlib.suppress(Exception):
            await self.connection.close()
        self._socket.close()

    def _ended(self) -> None:
        """The socket has."""
        self.usable = False
        self._pg.finish()


class LentAsyncPsycopgSession(AsyncPsycopgSession):
    """A connection on loan from a pool of the user's."""

    def __init__(self, connection: psycopg.AsyncConnection[tuple[Any, ...]], isolation: str) -> None:
        super().__init__(connection, prepares=False)  # psycopg sends a DEALLOCATE ALL now and then
        connection.remove_notice_handler(self._notice)
        self._isolation = isolation
        self._durability = ""  # as the user has it
        self._autocommit = False

    async def take(self) -> None:
        """Take it over: for now, nobody but us begins a transaction."""
        self._autocommit = self.connection.autocommit
        await self.connection.set_autocommit(True)
        self.connection.add_notice_handler(self._notice)
        if not self._durability:
            self._durability = str((await self.run(introduction(self._isolation)))[0].scalar())
            await _watch_client(self)

    def doubt(self) -> None:
        """Others may have reset it since: what it was told is said again when it is taken."""
        self._durability, self.forced = "", False

    async def keep(self) -> None:
        """Take it over for good."""
        await self.take()

    async def give_back(self) -> None:
        """As it was."""
        undo = restore(self._durability) if self.forced else None
        if undo is not None:
            await self.run(undo)
            self.forced = False
        self._wire.rest()
        self.connection.remove_notice_handler(self._notice)
        await self.connection.set_autocommit(self._autocommit)


class _Wire:
    """The socket: sends, flushes, and collects results until the answer is whole."""

    def __init__(self, pg: Any, ended: Callable[[], None]) -> None:
        self._pg, self._ended = pg, ended
        self._loop = asyncio.get_running_loop()
        self._socket = pg.socket
        self._waiting: tuple[Message, asyncio.Future[None]] | None = None
        self._watching = False
        self._writing = False
        self._over = False

    def exchange(self, message: Message) -> asyncio.Future[None]:
        """Send; what is returned is done when the answer is whole.

        This, and that, raise `psycopg.Error` when the connection is lost, or has been.
        """
        if self._over:
            raise psycopg.OperationalError("the connection has ended")
        if not self._watching:
            self._watching = True
            self._loop.add_reader(self._socket, self._readable)
        message.send()
        self._flush()
        whole = self._loop.create_future()
        self._waiting = message, whole
        return whole

    def give_up(self) -> None:
        """Nobody waits for the answer any more."""
        self._waiting = None

    def rest(self) -> None:
        """Look at the socket no more, until the next exchange: psycopg may."""
        if self._loop.is_closed():
            return
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self._socket)
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._socket)

    def end(self) -> None:
        """Look at the socket no more."""
        self._over = True
        self.rest()

    def _flush(self) -> None:
        more = self._pg.flush()
        if more and not self._writing:
            self._writing = True
            self._loop.add_writer(self._socket, self._writable)
        elif self._writing and not more:
            self._writing = False
            self._loop.remove_writer(self._socket)

    def _writable(self) -> None:
        try:
            self._flush()
        except psycopg.Error as error:
            self._fail(error)

    def _readable(self) -> None:
        try:
            self._pg.consume_input()
            if self._writing:
                self._flush()  # libpq: what came in may have made room for what is to go out
            if self._waiting is None:
                return  # unasked: a notification, or a server's last words, which the next read follows
            message, whole = self._waiting
            if not message.take():
                return
        except psycopg.Error as error:
            self._fail(error)
        else:
            self._waiting = None
            if not whole.done():
                whole.set_result(None)

    def _fail(self, error: Exception) -> None:
        self.end()
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting[1].done():
            waiting[1].set_exception(error)
        self._ended()


def lend(connection: Any, isolation: str) -> LentAsyncPsycopgSession:
    """A session over a connection of the user's pool. `isolation`: the level of the engine's own transactions."""
    return LentAsyncPsycopgSession(connection, isolation)


async def connect(url: Url, *, connect_timeout_s: float = TIMEOUT_S) -> AsyncPsycopgSession:
    """Open a session. Raises `ResourceUnavailable`, without the password, and within about the time given."""
    try:
        connection = await psycopg.AsyncConnection.connect(**options(url, connect_timeout_s))
    except psycopg.Error as error:
        raise ResourceUnavailable(f"cannot connect to {url}: {error}") from error
    session = AsyncPsycopgSession(connection)
    try:
        async with asyncio.timeout(connect_timeout_s):
            await _watch_client(session)
    except BaseException as error:
        session.kill()
        if not isinstance(error, TimeoutError):
            raise
    require_alive(session, url)
    return session


async def _watch_client(session: AsyncPsycopgSession) -> None:
    if session.connection.info.server_version >= CHECK_CLIENT_FROM_VERSION * 10_000:
        with contextlib.suppress(StatementFailed, SessionLost):  # not every system it runs on can do that
            await session.run(CHECK_CLIENT)
