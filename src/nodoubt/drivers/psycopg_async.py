"""PostgreSQL, asyncio, over psycopg 3: for users' own engines alone; URLs are served by asyncpg.

Guarantees: as `drivers.psycopg`.

Must not: as `drivers.psycopg`.
"""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import psycopg

from ..ports import Bound, Params, Reply, SessionLost, StatementFailed
from .postgres_failure import CHECK_CLIENT, CHECK_CLIENT_FROM_VERSION, introduction, restore
from .psycopg import BasicSession, reply, types


class LentAsyncPsycopgSession(BasicSession):
    """A connection on loan from a pool of the user's."""

    def __init__(self, connection: psycopg.AsyncConnection[tuple[Any, ...]], isolation: str) -> None:
        super().__init__(connection)
        connection.remove_notice_handler(self._notice)
        self._isolation = isolation
        self._durability = ""  # as the user has it
        self._autocommit = False

    async def run(self, sql: str) -> tuple[Reply, ...]:
        """Our own literal statements in one message: a reply for each, in order."""
        self.warnings.clear()
        try:
            async with self.connection.cursor() as cursor:
                await cursor.execute(sql.encode(), prepare=False)
                return await _replies(cursor)
        except psycopg.Error as error:
            raise self.failed(error) from error
        except BaseException:
            self.usable = False
            raise

    async def execute(self, statement: str, params: Params) -> Reply:
        """The user's statement, `%s` or `%(name)s`; of several, without parameters, the last one's reply."""
        self.warnings.clear()
        try:
            async with self.connection.cursor() as cursor:
                if isinstance(params, Bound):
                    return await _in_full(cursor, statement, params)
                await cursor.execute(statement, params)
                return (await _replies(cursor))[-1]
        except psycopg.Error as error:
            if self.lost(error):
                self.usable = False
            raise
        except BaseException:
            self.usable = False
            raise

    async def close(self) -> None:
        """End the connection in good order. Never raises."""
        self.usable = False
        with contextlib.suppress(Exception):
            await self.connection.close()
        self._socket.close()

    async def take(self) -> None:
        """Take it over: for now, nobody but us begins a transaction."""
        self._autocommit = self.connection.autocommit
        await self.connection.set_autocommit(True)
        self.connection.add_notice_handler(self._notice)
        if not self._durability:
            self._durability = str((await self.run(introduction(self._isolation)))[0].scalar())
            if self.connection.info.server_version >= CHECK_CLIENT_FROM_VERSION * 10_000:
                with contextlib.suppress(StatementFailed, SessionLost):  # not every system it runs on can do that
                    await self.run(CHECK_CLIENT)

    async def keep(self) -> None:
        """Take it over for good."""
        await self.take()

    async def give_back(self) -> None:
        """As it was."""
        undo = restore(self._durability) if self.forced else None
        if undo is not None:
            await self.run(undo)
            self.forced = False
        self.connection.remove_notice_handler(self._notice)
        await self.connection.set_autocommit(self._autocommit)


def lend(connection: Any, isolation: str) -> LentAsyncPsycopgSession:
    """A session over a connection of the user's pool. `isolation`: the level of the engine's own transactions."""
    return LentAsyncPsycopgSession(connection, isolation)


async def _replies(cursor: Any) -> tuple[Reply, ...]:
    replies = []
    more: bool | None = True
    while more:
        replies.append(reply(cursor, await cursor.fetchall() if cursor.description else ()))
        more = cursor.nextset()
    return tuple(replies)


async def _in_full(cursor: Any, statement: str, params: Bound) -> Reply:
    if params.many:
        await cursor.executemany(statement, params.values)
        return Reply(cursor.statusmessage or "", cursor.rowcount)
    await cursor.execute(statement, params.values)
    replies = await _replies(cursor)
    return msgspec.structs.replace(replies[-1], types=types(cursor))
