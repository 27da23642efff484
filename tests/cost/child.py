"""The process whose transactions are counted: opens a coordinator on the databases it was told, and works in sections.

`python child.py '{"urls": {…}, "journal": …, "count": 20, "marks": "…", "label": "…"}'`. Each section is
`count` transactions of one way, after a few that warm pools and statement caches up; each is between two marks:
`sync-once`, `sync-once-end`.
It says "ready" when all is connected, begins when its standard input ends, and marks its own end: `done`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw

from kit import Database, Face, FaceTransaction
from nodoubt import Settings
from nodoubt.testing.tracing import mark

WARM_UP = 2
# Under strace, on a busy machine, nothing may be given up and left to recovery: the next transaction wants its row.
PATIENT = Settings(connect_s=60, acquire_s=60, prepare_s=60, decide_s=60, apply_s=60, answer_s=60, grace_s=60)


def without_checkpoints(connection: apsw.Connection) -> None:
    """SQLite writes its log back every so many pages, in whoever comes to be at work then: not what is counted."""
    connection.wal_autocheckpoint(0)


async def write(tx: FaceTransaction, name: str) -> None:
    await tx.execute(name, "update accounts set balance = balance + 1 where id = 0")


async def read(tx: FaceTransaction, name: str) -> None:
    await tx.execute(name, "select balance from accounts where id = 0")


class Worker:
    """One coordinator's sections."""

    def __init__(self, db: Face, marks: Path) -> None:
        self.db, self.marks = db, marks
        self.names = list(db.databases)

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        mark(self.marks, f"{self.db.mode}-{name}")
        yield
        mark(self.marks, f"{self.db.mode}-{name}-end")

    async def reads(self) -> None:
        with self.section("reads"):
            async with self.db.transaction() as tx:
                for name in self.names:
                    await read(tx, name)

    async def one(self) -> None:
        with self.section("one"):
            async with self.db.transaction() as tx:
                await write(tx, self.names[-1])
                for name in self.names[:-1]:
                    await read(tx, name)

    async def once(self) -> None:
        with self.section("once"):
            async with self.db.transaction() as tx:
                for name in self.names:
                    await write(tx, name)

    async def staged(self, order: str) -> None:
        with self.section("begin"):
            async with self.db.staged(order) as tx:
                for name in self.names:
                    await write(tx, name)
        with self.section("commit"):
            await self.db.commit_distributed(order)

    async def failed(self, order: str) -> None:
        with self.section("failed"), contextlib.suppress(KeyError):
            async with self.db.staged(order) as tx:
                for name in self.names:
                    await write(tx, name)
                raise KeyError

    async def run(self, count: int, label: str) -> None:
        for _ in range(count):
            await self.reads()
        for _ in range(count):
            await self.one()
        for _ in range(count):
            await self.once()
        for number in range(count):
            await self.staged(f"{self.db.mode}-{label}-{number}")
        for number in range(count):
            await self.failed(f"{self.db.mode}-{label}-{number}-failed")
        with self.section("flush"):
            await self.db.recover()


async def main(task: dict[str, Any]) -> None:
    apsw.connection_hooks.append(without_checkpoints)
    databases = [Database(name, url) for name, url in task["urls"].items()]
    marks = Path(task["marks"])
    faces = [Face(mode, databases, journal=task["journal"], settings=PATIENT) for mode in ("sync", "async")]
    workers = [Worker(face, marks) for face in faces]
    for worker in workers:
        await worker.db.open()
        await worker.db.setup()
    for worker in workers:
        await worker.run(WARM_UP, f"warm-{task['label']}")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    for worker in workers:
        await worker.run(task["count"], task["label"])
    mark(marks, "done")
    for worker in workers:
        await worker.db.close()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
