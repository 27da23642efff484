"""The ways on which a verb reaches a database: each kind, sync and async, by URL and by engine, at once and staged."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from kit import QUICK, Database, Watching
from nodoubt import AsyncCoordinator, Coordinator, Notice, Reply
from nodoubt.query import Kind, Runner, Verbs
from query.cases import Build
from query.tables import Stranger

URLS = ("postgres sync", "postgres async", "mariadb sync", "mariadb async", "sqlite sync", "sqlite async")
ENGINES = ("postgres sync engine", "postgres async engine", "mariadb sync engine", "mariadb async engine")
STAGED = tuple(f"{way} staged" for way in URLS)
DRIVERS = {
    "postgres sync": "postgresql+psycopg",
    "postgres async": "postgresql+asyncpg",
    "mariadb sync": "mariadb+pymysql",
    "mariadb async": "mariadb+asyncmy",
}


class Way:
    """One database, and transactions on it."""

    def __init__(self, name: str, database: Database) -> None:
        self.name = name
        self.kind: Kind = database.kind  # type: ignore[assignment]
        self.database = database
        self.stranger = Stranger(database)
        self.sent: list[Notice] = []  # one for each statement of ours
        self._names = (f"{name} {number}" for number in itertools.count())
        self._staged = name.endswith("staged")
        resources: dict[str, Any] = {"shop": self._resource()}
        options: dict[str, Any] = {"settings": QUICK, "recovery": False, "observer": Watching(self._notice)}
        self._runner = asyncio.Runner() if "async" in name else None
        if self._runner is None:
            self._sync = Coordinator(resources, **options)
            self._sync.open()
            self._sync.setup()
        else:
            self._async = AsyncCoordinator(resources, **options)
            self._runner.run(self._open())

    def _resource(self) -> Any:
        if not self.name.endswith("engine"):
            return self.database.url
        plain = self.name.removesuffix(" engine")
        make = create_async_engine if "async" in plain else sa.create_engine
        return make(DRIVERS[plain] + self.database.url[self.database.url.index("://") :])

    def _notice(self, notice: Notice) -> None:
        if notice.point == "P2":
            self.sent.append(notice)

    async def _open(self) -> None:
        await self._async.open()
        await self._async.setup()

    def run(self, *builds: Build) -> Any:
        """Execute what they build in one transaction, and commit it; the last one's result."""
        if self._runner is not None:
            return self._runner.run(self._run(builds))
        name = next(self._names)
        with self._sync.begin_distributed(name) if self._staged else self._sync.transaction() as tx:
            result = [build(tx["shop"]).execute() for build in builds][-1]
        if self._staged:
            self._sync.commit_distributed(name)
        return result

    async def _run(self, builds: Sequence[Build]) -> Any:
        name = next(self._names)
        async with self._async.begin_distributed(name) if self._staged else self._async.transaction() as tx:
            result = [await build(tx["shop"]).execute() for build in builds][-1]
        if self._staged:
            await self._async.commit_distributed(name)
        return result

    def close(self) -> None:
        if self._runner is not None:
            self._runner.run(self._async.close())
            self._runner.close()
        else:
            self._sync.close()
        self.stranger.close()


@contextmanager
def opened(name: str, database: Database) -> Iterator[Way]:
    way = Way(name, database)
    try:
        yield way
    finally:
        way.close()


class Noted(Verbs[Reply, int]):
    """Verbs whose statements are kept, and not run."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.statements: list[Any] = []

    def _runner(self) -> Runner[Reply, int]:
        return Runner(self.kind, self._keep, lambda statement: self._keep(statement).count)

    def _keep(self, statement: Any) -> Reply:
        self.statements.append(statement)
        return Reply()
