"""A server on which '' is NULL (its operator's sql_mode EMPTY_STRING_IS_NULL): nothing of ours is hidden or refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit import Database, Face, make_database, opened
from nodoubt import State
from nodoubt.engine import ends
from nodoubt.engine.context import using
from nodoubt.journals.dialects import MariaDBDialect
from nodoubt.protocol.records import Quarantined
from nodoubt.script import Script
from nodoubt.testing.servers import MariaDBServer
from traps.scenes import context

pytestmark = pytest.mark.anyio
MODE = "EMPTY_STRING_IS_NULL"


@pytest.fixture(params=["sync", "async"])
def mode(request: Any) -> str:
    return str(request.param)


@pytest.fixture
def pair(request: Any, tmp_path: Path) -> list[Database]:
    """The journal is in the first."""
    return [make_database(kind, name, request, tmp_path) for kind, name in (("mariadb", "a"), ("postgres", "b"))]


@pytest.fixture
def nothing_is_null(mariadb: MariaDBServer) -> Iterator[None]:
    """For every session that begins from now on, a stranger's too."""
    server = Database("server", mariadb.url())
    ((before,),) = server.query("select @@global.sql_mode")
    server.query("set global sql_mode = ?", f"{before},{MODE}")
    assert server.query("select '' is null") == [(1,)]
    yield
    server.query("set global sql_mode = ?", before)


async def run(db: Face, script: Script[Any]) -> Any:
    answer = db.db._shell.run(script)
    return answer if db.mode == "sync" else await answer


async def quarantine(db: Face, attempt: str) -> None:
    ctx = context(db)
    entry = Quarantined(attempt, 1, "b", "somebody ended it", ctx.clock.now())
    await run(db, using(ctx.journal_pool, lambda session: ctx.journal.quarantine(session, entry)))


async def add(db: Face, tx: Any, amount: int) -> None:
    for name in ("a", "b"):
        answer = tx[name].execute(f"update accounts set balance = balance + {amount} where id = 0")
        if db.mode == "async":
            await answer


async def one_chunk(db: Face) -> None:
    """A job's key has no payload."""
    if db.mode == "sync":
        with db.db.job("sum", total=1) as job:
            for chunk in job.chunks([7], 1):
                with chunk as tx:
                    await add(db, tx, sum(chunk.items))
    else:
        async with db.db.job("sum", total=1) as job:
            for chunk in job.chunks([7], 1):
                async with chunk as tx:
                    await add(db, tx, sum(chunk.items))


@pytest.mark.usefixtures("nothing_is_null")
async def test_everything_is_done_where_nothing_is_null(mode: str, pair: list[Database]) -> None:
    async with opened(mode, pair) as db:  # which has just made the tables
        async with db.transaction() as tx:
            await tx.move("a", "b", 10)
        async with db.staged("pay", confirmations=["warehouse"]) as tx:
            await tx.move("a", "b", 20)
        await db.confirm("pay", "warehouse")
        assert (await db.commit_distributed("pay")).complete
        await one_chunk(db)
        assert (await db.recover(grace=0)).clean
    assert [one.balance() for one in pair] == [77, 137]


@pytest.mark.usefixtures("nothing_is_null")
async def test_what_is_quarantined_is_listed_and_kept_until_it_is_cleared(mode: str, pair: list[Database]) -> None:
    async with opened(mode, pair) as db:
        async with db.staged("pay") as tx:
            await tx.move("a", "b", 30)
        attempt = str(tx.handle.attempt)
        await db.rollback_distributed("pay")
        for _ in range(2):
            await quarantine(db, attempt)
        assert [one.attempt for one in await db.quarantined()] == [attempt]
        assert [event.what for event in await db.events(attempt)].count("quarantined") == 1
        await forget_later(db)
        assert (await db.status("pay")).state is State.ABORTED
        await db.clear_quarantined(attempt, 1, by="ada")
        assert await db.quarantined() == []
        await forget_later(db)
        assert await db.transactions() == []


async def forget_later(db: Face) -> None:
    """A clean-up to which all of this is old, and to its journal."""
    ctx = context(db)
    sound = ctx.clock

    def shown(_: Any) -> Script[float]:
        return ctx.clock.now()
        yield

    class Later:
        elapsed = sound.elapsed

        @staticmethod
        def now() -> float:
            return sound.now() + 8 * 24 * 3600.0

    ctx.clock = Later()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ctx.journal, "now", shown)
        await run(db, ends.retire(ctx))
    ctx.clock = sound


async def test_a_statement_that_says_nothing_by_two_quotes_hides_what_is_quarantined(
    mode: str, pair: list[Database], request: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant; and its row was written before the operator has set the mode."""
    async with opened(mode, pair) as db:
        await quarantine(db, "01" * 16)
    request.getfixturevalue("nothing_is_null")
    for literal, hidden in ((MariaDBDialect.nothing, False), ("''", True)):
        monkeypatch.setattr(MariaDBDialect, "nothing", literal)
        async with opened(mode, pair) as db:
            assert (await db.quarantined() == []) is hidden
