"""Staged on PostgreSQL, the directory row is not forced: X's PREPARE, in the same log behind it, makes it durable.

The server crashes (SIGKILL to all of it) around that PREPARE. Its background flushes are put off, so that nothing but
the PREPARE can have saved the row.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kit import Database, Watching, opened
from nodoubt import Notice, State, TransactionAborted, UnknownTransaction
from nodoubt.engine import phases
from nodoubt.engine.context import using
from nodoubt.protocol.records import Staging
from nodoubt.testing.servers import PostgresServer
from nodoubt.xid import new_attempt

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer({"wal_writer_delay": "10s", "checkpoint_timeout": "1h"}) as running:
        yield running


@pytest.fixture(params=["sync", "async"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pair(server: PostgresServer, tmp_path: Path) -> list[Database]:
    """a holds the journal."""
    both = [Database("a", server.url()), Database("b", f"sqlite:///{tmp_path}/b.db")]
    for database in both:
        database.create()
    return both


async def test_a_row_that_nothing_covers_is_lost_in_a_crash(
    mode: str, pair: list[Database], server: PostgresServer
) -> None:
    """What the other tests rest on: otherwise they would prove nothing."""
    async with opened(mode, pair) as db:
        ctx, shell = db.db._ctx, db.db._shell
        staging = Staging("bare", new_attempt(), (), None, ctx.clock.now() + 3600)
        writing = shell.run(using(ctx.journal_pool, lambda session: ctx.journal.stage(session, staging, forced=False)))
        assert (writing if mode == "sync" else await writing) is None
        assert (await db.status("bare")).state is State.PREPARED
    server.kill()
    server.restart()
    async with opened(mode, pair) as db:
        with pytest.raises(UnknownTransaction):
            await db.status("bare")


async def test_what_was_answered_as_staged_survives_a_crash(
    mode: str, pair: list[Database], server: PostgresServer
) -> None:
    async with opened(mode, pair) as db:
        async with db.staged("order-7") as tx:
            await tx.move("a", "b", 30)
        server.kill()
    server.restart()
    async with opened(mode, pair) as db:
        assert (await db.status("order-7")).state is State.PREPARED
        assert (await db.commit_distributed("order-7")).state is State.COMMITTED
        assert [d.balance() for d in pair] == [70, 130]
        assert (await db.recover(grace=0)).clean


async def test_a_crash_between_the_row_and_the_prepare_that_covers_it_is_no_staging(
    mode: str, pair: list[Database], server: PostgresServer
) -> None:
    crashes: list[Notice] = []

    def crash(notice: Notice) -> None:
        if (notice.point, notice.what, notice.branch) == ("P3", "prepare", 0) and not crashes:
            crashes.append(notice)
            server.kill()
            server.restart()

    async with opened(mode, pair, observer=Watching(crash)) as db:
        with pytest.raises(TransactionAborted):
            async with db.staged("order-8") as tx:
                await tx.move("a", "b", 30)
        with pytest.raises(UnknownTransaction):
            await db.status("order-8")
        async with db.staged("order-9") as tx:
            await tx.execute("b", "update accounts set balance = 1")
        assert (await db.commit_distributed("order-9")).state is State.COMMITTED
        assert (await db.recover(grace=0)).clean
    assert [d.balance() for d in pair] == [100, 1]
    assert [d.prepared() for d in pair] == [[], []]


def elsewhere(server: PostgresServer, tmp_path: Path) -> tuple[list[Database], str]:
    """Two files, and the journal on the server: no branch there whose PREPARE could cover a row."""
    files = [Database(name, f"sqlite:///{tmp_path}/{name}.db") for name in "ab"]
    for database in files:
        database.create()
    return files, server.url()


async def staged_before_a_crash(mode: str, server: PostgresServer, tmp_path: Path) -> State | None:
    """What the journal says after the crash of a name that was answered as staged before it."""
    files, journal = elsewhere(server, tmp_path)
    async with opened(mode, files, journal=journal) as db:
        async with db.staged("order-7") as tx:
            await tx.move("a", "b", 30)
        server.kill()
    server.restart()
    async with opened(mode, files, journal=journal) as db:
        try:
            return State((await db.status("order-7")).state)
        except UnknownTransaction:
            return None


async def test_where_no_branch_covers_it_the_row_is_forced(mode: str, server: PostgresServer, tmp_path: Path) -> None:
    assert await staged_before_a_crash(mode, server, tmp_path) is State.PREPARED


async def test_mutant_that_forces_no_row_has_staged_what_nobody_knows(
    mode: str, server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = phases._list
    monkeypatch.setattr(phases, "_list", lambda *args, **_: plain(*args, forced=False))
    assert await staged_before_a_crash(mode, server, tmp_path) is None
