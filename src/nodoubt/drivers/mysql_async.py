"""What the async sessions on MariaDB and MySQL share: asyncmy and aiomysql are two children of PyMySQL.

Guarantees: one packet per `run`; after anything but an answer of the server (a cancelled task, a time-out, a result
that can't be read) the session is closed and not `usable`.

Must not: reset a session (COM_RESET_CONNECTION or COM_CHANGE_USER on the session that prepared a branch makes XA COMMIT
elsewhere answer OK and commit nothing, see FACTS), or reconnect by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Any, ClassVar

from ..ports import Bound, Params, Reply, SessionLost, StatementFailed
from ..script import within
from . import mysql_wire as wire


class AsyncMySQLSession:
    """One connection; see `ports.Session`."""

    errors: ClassVar[type[Exception]]  # the root of the driver's own errors

    def __init__(self, connection: Any, read_timeout_s: float) -> None:
        self._connection = connection
        self._read_timeout_s = read_timeout_s
        self.usable = True
        self.connection_id = 0
        self.server_started = 0

    async def run(self, sql: str) -> tuple[Reply, ...]:
        """Our statements in one packet, every result read. The first error ends the packet."""
        try:
            return await self._query(sql)
        except self.errors as error:
            raise self._failed(error) from error
        except SessionLost:
            raise
        except Exception as error:
            raise SessionLost(f"the answer could not be read: {error}") from error

    async def execute(self, statement: str, params: Params) -> Reply:
        """The user's statement, with %s or %(name)s placeholders."""
        return (await self.execute_after((), statement, params))[-1]

    async def execute_after(self, before: Sequence[str], statement: str, params: Params) -> tuple[Reply, ...]:
        """Statements of ours, and then the user's, in one packet; the replies of all of them.

        Raises `StatementFailed` where one of ours failed: the user's was not run.
        """
        if isinstance(params, Bound):
            if params.many:
                ours = (await self.run("; ".join(before))) if before else ()
                return *ours, await self._many(statement, params)
            params = params.values
        # Filled in before anything is sent: a wrong parameter leaves the connection as it was.
        text = statement if params is None else wire.filled(self._connection.literal, statement, params)
        replies: list[Reply] = []
        try:
            await self._query("; ".join((*before, text)), replies, (*before, text))
        except self.errors as error:
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

    async def _many(self, statement: str, rows: Bound) -> Reply:
        count = 0
        for text, wanted in wire.batches(
            [wire.filled(self._connection.literal, statement, one) for one in rows.values]
        ):
            count += wire.batch_reply(await self._query(text), wanted)
        return Reply(count=count)

    async def _query(self, sql: str, replies: list[Reply] | None = None, each: Sequence[str] = ()) -> tuple[Reply, ...]:
        replies = [] if replies is None else replies
        # Not through a cursor: asyncmy's follows every statement that warns with a SHOW WARNINGS, and logs the answer.
        try:
            await within(self._answered(sql, replies, each), self._read_timeout_s)
            return tuple(replies)
        except TimeoutError as error:
            self.kill()
            raise self.timed_out(self._read_timeout_s) from error
        except BaseException as error:
            if not isinstance(error, self.errors) or self.lost(error):
                self.kill()
            raise

    async def _answered(self, sql: str, replies: list[Reply], each: Sequence[str]) -> None:
        await self._connection.query(sql)
        replies.append(wire.reply(self._connection._result, wire.which(each, len(replies), sql)))
        while self._connection._result.has_next:
            await self._connection.next_result()
            replies.append(wire.reply(self._connection._result, wire.which(each, len(replies), sql)))

    def lost(self, error: BaseException) -> bool:
        """Whether the connection went with this error."""
        if isinstance(error, self.errors):
            return wire.is_loss(wire.error_code(error))
        return isinstance(error, SessionLost)

    async def close(self) -> None:
        """Say goodbye and close. A prepared branch is then free for other sessions."""
        self.usable = False
        try:
            async with asyncio.timeout(wire.CLOSE_TIMEOUT_S):
                await self._connection.ensure_closed()
        except (self.errors, OSError, RuntimeError):
            self.kill()
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """Shut the socket down, so that a call in progress fails now."""
        self.usable = False
        transport = self._transport()
        wrapper = None if transport is None else transport.get_extra_info("socket")
        if wrapper is None:
            return
        # On a descriptor of our own: closing the transport is for its own loop alone, and uvloop's has no shutdown.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(wrapper.fileno())) as own:
            own.shutdown(socket.SHUT_RDWR)

    def _transport(self) -> Any:
        """The connection's transport, also of one that the driver has given up."""
        raise NotImplementedError

    def timed_out(self, seconds: float) -> Exception:
        return SessionLost(f"the server did not answer within {seconds:g} s; the connection was closed")


class LentMySQLSession(AsyncMySQLSession):
    """A connection on loan from a pool of the user's. Between XA START and XA COMMIT its autocommit does not matter."""

    async def take(self) -> None:
        """Take it over."""
        if not self.connection_id:
            self.connection_id, self.server_started = wire.introduced(await self.run(wire.INTRODUCTION))

    async def keep(self) -> None:
        """Take it over for good, for transactions of our own."""
        await self.take()
        await self.run(wire.AUTOCOMMIT)

    async def give_back(self) -> None:
        """Nothing was changed. Both drivers let a packet hold several statements from the start."""
