"""Two-phase commit by hand on asyncio: asyncpg, asyncmy and pipelined psycopg, and plain local commits over them."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import asyncmy
import asyncpg
import psycopg

from nodoubt.url import Url, parse_url

from ..task import ADD, Task
from . import AsyncContender, Connections

UNKNOWN_XID = 1397
RETRY_S, RETRIES_MAX = 0.001, 5000


class Branch(Connections, ABC):
    """One database's connections, and what is said on them to prepare, commit, or both in one."""

    def __init__(self, url: Url, connections: int, number: int) -> None:
        super().__init__(connections)
        self.url, self.connections, self.number = url, connections, number

    async def open(self) -> None:
        for _ in range(self.connections):
            self.free.append(await self.connect())

    @abstractmethod
    async def connect(self) -> Any: ...

    @abstractmethod
    async def prepare(self, connection: Any, xid: str, rows: range) -> None: ...

    @abstractmethod
    async def commit(self, connection: Any, xid: str) -> None: ...

    @abstractmethod
    async def local(self, connection: Any, rows: range) -> None: ...


class AsyncpgBranch(Branch):
    """One message each: BEGIN, the statements, PREPARE; COMMIT PREPARED."""

    async def connect(self) -> Any:
        return await asyncpg.connect(self.url.secret())

    async def prepare(self, connection: Any, xid: str, rows: range) -> None:
        await connection.execute("BEGIN")
        for row in rows:
            await connection.execute(f"{ADD}$1", row)
        await connection.execute(f"PREPARE TRANSACTION '{xid}'")

    async def commit(self, connection: Any, xid: str) -> None:
        await connection.execute(f"COMMIT PREPARED '{xid}'")

    async def local(self, connection: Any, rows: range) -> None:
        await connection.execute("BEGIN")
        for row in rows:
            await connection.execute(f"{ADD}$1", row)
        await connection.execute("COMMIT")


class MergedAsyncpgBranch(AsyncpgBranch):
    """All of the first phase in one message, which no application can: its statements depend on each other's rows."""

    async def prepare(self, connection: Any, xid: str, rows: range) -> None:
        work = ";".join(f"{ADD}{row}" for row in rows)
        await connection.execute(f"BEGIN;{work};PREPARE TRANSACTION '{xid}'")


class PipelinedBranch(Branch):
    """psycopg's async connections, the first phase in its pipeline."""

    async def connect(self) -> Any:
        return await psycopg.AsyncConnection.connect(self.url.secret(), autocommit=True)

    async def prepare(self, connection: Any, xid: str, rows: range) -> None:
        async with connection.pipeline():
            await connection.execute("BEGIN")
            for row in rows:
                await connection.execute(f"{ADD}%s", (row,))
            await connection.execute(f"PREPARE TRANSACTION '{xid}'")

    async def commit(self, connection: Any, xid: str) -> None:
        await connection.execute(f"COMMIT PREPARED '{xid}'")

    async def local(self, connection: Any, rows: range) -> None:
        async with connection.pipeline():
            await connection.execute("BEGIN")
            for row in rows:
                await connection.execute(f"{ADD}%s", (row,))
            await connection.execute("COMMIT")


class AsyncmyBranch(Branch):
    """XA on asyncmy, one message each. The session that prepared also commits: elsewhere it must have closed first."""

    async def connect(self) -> Any:
        return await asyncmy.connect(
            host=self.url.host, port=self.url.port, user=self.url.user, password=self.url.password,
            db=self.url.database, autocommit=True, client_flag=1 << 16,  # several statements in a message
        )  # fmt: skip

    async def prepare(self, connection: Any, xid: str, rows: range) -> None:
        async with connection.cursor() as cursor:
            await cursor.execute(f"XA START '{xid}'")
            for row in rows:
                await cursor.execute(f"{ADD}%s", (row,))
            await cursor.execute(f"XA END '{xid}'")
            await cursor.execute(f"XA PREPARE '{xid}'")

    async def commit(self, connection: Any, xid: str) -> None:
        async with connection.cursor() as cursor:
            await cursor.execute(f"XA COMMIT '{xid}'")

    async def local(self, connection: Any, rows: range) -> None:
        async with connection.cursor() as cursor:
            await cursor.execute("BEGIN")
            for row in rows:
                await cursor.execute(f"{ADD}%s", (row,))
            await cursor.execute("COMMIT")


class MergedAsyncmyBranch(AsyncmyBranch):
    """START to PREPARE in one message."""

    async def prepare(self, connection: Any, xid: str, rows: range) -> None:
        work = ";".join(f"{ADD}{row}" for row in rows)
        await connection.query(f"XA START '{xid}';{work};XA END '{xid}';XA PREPARE '{xid}'")
        while connection._result.has_next:
            await connection.next_result()


class ClosingAsyncmyBranch(AsyncmyBranch):
    """Closes the session that prepared, without which no other process could commit: MariaDB keeps it bound."""

    async def prepare(self, connection: Any, xid: str, rows: range) -> None:
        await super().prepare(connection, xid, rows)
        await connection.ensure_closed()
        await connection.connect()

    async def commit(self, connection: Any, xid: str) -> None:
        # The server may take a moment to let go of the session that has said goodbye: until then it denies the xid.
        for _ in range(RETRIES_MAX):
            try:
                return await super().commit(connection, xid)
            except asyncmy.errors.OperationalError as error:
                if error.args[0] != UNKNOWN_XID:
                    raise
                await asyncio.sleep(RETRY_S)
        raise TimeoutError(f"{xid} was not let go of")


class ByHand(AsyncContender):
    """Both phases in parallel on all branches."""

    kinds: ClassVar[dict[str, type[Branch]]] = {"postgres": AsyncpgBranch, "mariadb": AsyncmyBranch}

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        urls = [parse_url(url) for url in task.urls]
        self.branches = [self.kinds[url.kind](url, task.connections, number) for number, url in enumerate(urls)]

    async def open(self) -> None:
        for branch in self.branches:
            await branch.open()

    async def transact(self, client: int) -> None:
        # In the same order everywhere, so that two clients never wait for each other's connections.
        held = [(branch, await branch.take()) for branch in self.branches]
        await self.end(held, self.name(), self.rows(client))
        for branch, connection in held:
            branch.put_back(connection)

    async def end(self, held: list[tuple[Branch, Any]], xid: str, rows: range) -> None:
        await asyncio.gather(
            *(branch.prepare(connection, f"{xid}-{branch.number}", rows) for branch, connection in held)
        )
        await asyncio.gather(*(branch.commit(connection, f"{xid}-{branch.number}") for branch, connection in held))


class Merged(ByHand):
    """The first phase is one message for each branch."""

    kinds: ClassVar = {"postgres": MergedAsyncpgBranch, "mariadb": MergedAsyncmyBranch}


class Closing(ByHand):
    """Staged so that another process may decide: MariaDB's sessions end after PREPARE."""

    kinds: ClassVar = {"postgres": AsyncpgBranch, "mariadb": ClosingAsyncmyBranch}


class Pipelined(ByHand):
    """Over psycopg's pipeline."""

    kinds: ClassVar = {"postgres": PipelinedBranch, "mariadb": AsyncmyBranch}


class DecisionInBranch(Merged):
    """A coordinator's least: the others prepare, the first one's own commit carries the decision. One message a step.

    It has no receipts, no recovery, no fence and checks no tag: how far a crash-safe one can be from the floor.
    """

    async def open(self) -> None:
        await super().open()
        first = self.branches[0]
        connection = await first.connect()
        await connection.execute("CREATE TABLE IF NOT EXISTS decisions (xid text primary key)")
        await connection.close()

    async def end(self, held: list[tuple[Branch, Any]], xid: str, rows: range) -> None:
        (_, point), *others = held
        work = ";".join(f"{ADD}{row}" for row in rows)
        await asyncio.gather(
            point.execute(f"BEGIN;{work}"),
            *(branch.prepare(connection, f"{xid}-{branch.number}", rows) for branch, connection in others),
        )
        await point.execute(f"INSERT INTO decisions VALUES ('{xid}');COMMIT")
        await asyncio.gather(*(branch.commit(connection, f"{xid}-{branch.number}") for branch, connection in others))


class Local(ByHand):
    """Each database commits by itself: no atomicity over several."""

    async def end(self, held: list[tuple[Branch, Any]], xid: str, rows: range) -> None:
        await asyncio.gather(*(branch.local(connection, rows) for branch, connection in held))
