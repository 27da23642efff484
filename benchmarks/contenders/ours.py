"""nodoubt with its defaults: everything that makes it crash-safe, recovery in the background included.

Only the pools are as large as everybody's. What it leaves to be done behind (the ends of records, a sweep) is done once
in each round, and counted: more often than it would be by itself.
"""

from __future__ import annotations

import asyncio
from typing import Any

from nodoubt import AsyncCoordinator, Coordinator, Settings
from nodoubt.url import parse_url

from ..task import ADD, Task
from . import AsyncContender, Contender

PLACEHOLDER = {"postgres": "%s", "mariadb": "%s", "sqlite": "?"}


def resources(task: Task) -> str | dict[str, str]:
    """One URL alone, or each under a letter."""
    return task.urls[0] if len(task.urls) == 1 else dict(zip("abcdefgh", task.urls, strict=False))


def settings(task: Task) -> Settings:
    return Settings(pool_size=task.connections)


class AtOnce(AsyncContender):
    """At once or staged, the statements on all branches in parallel, as by hand."""

    wait: Any = "applied"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.db = AsyncCoordinator(resources(task), journal=task.journal, settings=settings(task))
        names = ["db"] if len(task.urls) == 1 else list("abcdefgh"[: len(task.urls)])
        self.statements = {
            name: ADD + PLACEHOLDER[parse_url(url).kind] for name, url in zip(names, task.urls, strict=True)
        }

    async def open(self) -> None:
        await self.db.open()
        await self.db.setup()

    async def transact(self, client: int) -> None:
        if self.task.staged:
            name = self.name()
            async with self.db.begin_distributed(name) as tx:
                await self.work(tx, client)
            await self.commit(name)
            return
        async with self.db.transaction(wait=self.wait) as tx:
            await self.work(tx, client)

    async def commit(self, name: str) -> None:
        await self.db.commit_distributed(name, wait=self.wait)

    async def work(self, tx: Any, client: int) -> None:
        if len(self.statements) == 1:
            await self.branch(tx, "db", client)
            return
        await asyncio.gather(*(self.branch(tx, name, client) for name in self.statements))

    async def branch(self, tx: Any, name: str, client: int) -> None:
        for row in self.rows(client):
            await tx[name].execute(self.statements[name], (row,))

    async def settle(self) -> None:
        await self.db.recover()

    async def close(self) -> None:
        await self.db.close()


class InTurn(AtOnce):
    """The statements branch after branch, as most programs are written."""

    async def work(self, tx: Any, client: int) -> None:
        for name in self.statements:
            await self.branch(tx, name, client)


class Decided(AtOnce):
    """Answered when it is decided; phase two goes on behind."""

    wait = "decided"


class CommittedElsewhere(AtOnce):
    """Staged here, and committed by another coordinator, which knows of it what the journal knows."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.other = AsyncCoordinator(resources(task), journal=task.journal, settings=settings(task))

    async def open(self) -> None:
        await super().open()
        await self.other.open()

    async def commit(self, name: str) -> None:
        await self.other.commit_distributed(name, wait=self.wait)

    async def settle(self) -> None:
        await super().settle()
        await self.other.recover()

    async def close(self) -> None:
        await self.other.close()
        await super().close()


class NothingDecided(AtOnce):
    """The journal is never told a decision, so nothing is crash-safe: what it costs to decide is measured from here."""

    async def open(self) -> None:
        await super().open()
        self.db._ctx.register_batch = _Deaf()


class _Deaf:
    async def submit(self, _: object) -> None:
        """As if it had been written."""


class Sweep(AtOnce):
    """Not a transaction but one sweep of recovery, which leaves nothing alone for being young."""

    async def open(self) -> None:
        await self.db.open()

    async def transact(self, client: int) -> None:
        await self.db.recover(grace=0)


class Threads(Contender):
    """The sync coordinator, each client a thread; the statements branch after branch."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.db = Coordinator(resources(task), journal=task.journal, settings=settings(task))
        names = ["db"] if len(task.urls) == 1 else list("abcdefgh"[: len(task.urls)])
        self.statements = {
            name: ADD + PLACEHOLDER[parse_url(url).kind] for name, url in zip(names, task.urls, strict=True)
        }

    def open(self) -> None:
        self.db.open()
        self.db.setup()

    def transact(self, client: int) -> None:
        if self.task.staged:
            name = self.name()
            with self.db.begin_distributed(name) as tx:
                self.work(tx, client)
            self.db.commit_distributed(name)
            return
        with self.db.transaction() as tx:
            self.work(tx, client)

    def work(self, tx: Any, client: int) -> None:
        for name, statement in self.statements.items():
            for row in self.rows(client):
                tx[name].execute(statement, (row,))

    def settle(self) -> None:
        self.db.recover()

    def close(self) -> None:
        self.db.close()
