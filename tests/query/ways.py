"""The ways on which a verb reaches a database: each kind, sync and async, and one place that knows how it is run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from kit import Database
from nodoubt import Reply
from nodoubt.query import Kind, Runner, Verbs
from query.cases import Build
from query.tables import Stranger

WAYS = ("postgres sync", "postgres async", "mariadb sync", "mariadb async", "sqlite sync")
DRIVERS = {
    "postgres sync": "postgresql+psycopg",
    "postgres async": "postgresql+asyncpg",
    "mariadb sync": "mariadb+pymysql",
    "mariadb async": "mariadb+asyncmy",
    "sqlite sync": "sqlite",
}


class Way:
    """One database, and how a transaction with verbs is run on it."""

    def __init__(self, name: str, database: Database) -> None:
        self.name, self.database = name, database
        self.kind: Kind = database.kind  # type: ignore[assignment]
        self.sent: list[Any] = []  # the statements that were run
        self.stranger = Stranger(database)

    def run(self, *builds: Build) -> Any:
        """Execute what they build in one transaction, and commit; the last one's result."""
        raise NotImplementedError

    def close(self) -> None:
        self.stranger.close()


class SyncVerbs(Verbs[Reply, int]):
    def __init__(self, kind: Kind, run: Callable[[Any], Reply]) -> None:
        self._kind, self._run = kind, run

    def _runner(self) -> Runner[Reply, int]:
        return Runner(self._kind, self._run, lambda statement: self._run(statement).count)


class AsyncVerbs(Verbs[Coroutine[Any, Any, Reply], Coroutine[Any, Any, int]]):
    def __init__(self, kind: Kind, run: Callable[[Any], Coroutine[Any, Any, Reply]]) -> None:
        self._kind, self._run = kind, run

    def _runner(self) -> Runner[Coroutine[Any, Any, Reply], Coroutine[Any, Any, int]]:
        async def count(statement: Any) -> int:
            return (await self._run(statement)).count

        return Runner(self._kind, self._run, count)


def _reply(result: sa.CursorResult[Any]) -> Reply:
    if not result.returns_rows:
        return Reply(count=result.rowcount)
    rows = tuple(tuple(row) for row in result.fetchall())
    return Reply(count=len(rows), columns=tuple(result.keys()), rows=rows)


class PlainSync(Way):
    def __init__(self, name: str, database: Database) -> None:
        super().__init__(name, database)
        self.engine = sa.create_engine(DRIVERS[name] + database.url[database.url.index("://") :])

    def run(self, *builds: Build) -> Any:
        with self.engine.begin() as connection:

            def run(statement: Any) -> Reply:
                self.sent.append(statement)
                return _reply(connection.execute(statement, execution_options={"preserve_rowcount": True}))

            verbs = SyncVerbs(self.kind, run)
            return [build(verbs).execute() for build in builds][-1]

    def close(self) -> None:
        self.engine.dispose()
        super().close()


class PlainAsync(Way):
    def __init__(self, name: str, database: Database) -> None:
        super().__init__(name, database)
        self.runner = asyncio.Runner()
        self.engine = create_async_engine(DRIVERS[name] + database.url[database.url.index("://") :])

    def run(self, *builds: Build) -> Any:
        return self.runner.run(self._run(builds))

    async def _run(self, builds: tuple[Build, ...]) -> Any:
        async with self.engine.begin() as connection:
            verbs = AsyncVerbs(self.kind, lambda statement: self._execute(connection, statement))
            return [await build(verbs).execute() for build in builds][-1]

    async def _execute(self, connection: AsyncConnection, statement: Any) -> Reply:
        self.sent.append(statement)
        return _reply(await connection.execute(statement, execution_options={"preserve_rowcount": True}))

    def close(self) -> None:
        self.runner.run(self.engine.dispose())
        self.runner.close()
        super().close()


@contextmanager
def opened(name: str, database: Database) -> Iterator[Way]:
    way = (PlainAsync if name.endswith("async") else PlainSync)(name, database)
    try:
        yield way
    finally:
        way.close()
