"""A SQLite file that somebody else has locked for writing: a begin waits for so long, and then says what it met."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import apsw
import pytest

from kit import QUICK, Database, Face, opened
from nodoubt import Coordinator, ResourceUnavailable, TransactionAborted, wiring
from nodoubt.drivers import sqlite_connection
from nodoubt.url import parse_url

pytestmark = pytest.mark.anyio
modes = pytest.mark.parametrize("mode", ["sync", "async"])
SETTINGS = replace(QUICK, pool_size=1)
ADD = "update accounts set balance = balance + 1 where id = 0"


@pytest.fixture
def pair(tmp_path: Path) -> list[Database]:
    some = [Database(name, f"sqlite:///{tmp_path}/{name}.db") for name in "ab"]
    for one in some:
        one.create()
    with Coordinator({one.name: one.url for one in some}) as db:
        db.setup()  # with all patience: our tables' commits are forced, and may take longer than a test is to wait
    return some


@contextlib.contextmanager
def locked(database: Database) -> Iterator[str]:
    """As a stranger's transaction does it; gives the file's path."""
    path = parse_url(database.url).database
    with contextlib.closing(apsw.Connection(path)) as stranger:
        stranger.execute("begin immediate")
        yield path
        stranger.execute("rollback")


@contextlib.asynccontextmanager
async def begun(db: Face, how: str, timeout: float | None = None) -> AsyncIterator[None]:
    """A branch on b whose begin goes with its first statement, or stands alone."""
    if how == "with a statement":
        async with db.transaction(timeout=timeout) as tx:
            await tx.execute("a", ADD)
            await tx.execute("b", ADD)
            yield
    elif db.mode == "sync":
        with db.db.once("k", on="b", timeout=timeout):
            yield
    else:
        async with db.db.once("k", on="b", timeout=timeout):
            yield


hows = pytest.mark.parametrize("how", ["with a statement", "alone"])


async def refused(db: Face, how: str, pair: list[Database], timeout: float | None = None) -> tuple[Exception, str]:
    """What is raised while a stranger has b locked, and b's path. Afterwards all is well."""
    with locked(pair[1]) as path, pytest.raises((ResourceUnavailable, TransactionAborted)) as caught:
        async with begun(db, how, timeout):
            pass
    assert not any(one.locked() for one in pair), "what was begun on a is rolled back"
    async with begun(db, how):
        pass
    expected = 101 if how == "with a statement" else 100
    assert pair[0].balance() == pair[1].balance() == expected and not any(one.prepared() for one in pair)
    return caught.value, path


@modes
@hows
async def test_a_begin_that_waits_too_long_for_a_file_says_who_has_it_and_what_to_do(
    how: str, mode: str, pair: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which database, who has it, how long we waited, that nothing was done, and what helps."""
    monkeypatch.setattr(wiring, "LOCK_WAIT_SHARE", 1 / 60)
    async with opened(mode, pair, settings=replace(SETTINGS, prepare_s=60, grace_s=60)) as db:
        error, path = await refused(db, how, pair)
    assert type(error) is ResourceUnavailable and str(error) == (
        f"b did not begin, and nothing was done: begin: {path} is locked for writing by another connection of this "
        "process, for longer than the 1 s that we wait; nothing was done, try again. If it comes often: shorten the "
        "transactions that hold the file, or raise prepare_s, half of which is waited"
    )


@modes
async def test_a_session_that_has_met_a_locked_file_goes_on_with_the_next_transaction(
    mode: str, pair: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "LOCK_WAIT_SHARE", 1 / 60)
    async with opened(mode, pair, settings=replace(SETTINGS, prepare_s=60, grace_s=60)) as db:
        async with begun(db, "with a statement"):
            pass
        pool = db.db._ctx.participants["b"].pool
        before = [session for session, _ in pool._idle]
        with locked(pair[1]), pytest.raises(ResourceUnavailable, match="locked for writing"):
            async with begun(db, "with a statement"):
                pass
        assert [session for session, _ in pool._idle] == before != []


async def test_mutant_that_waits_longer_than_its_call_may_take_is_cut_off(
    pair: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It loses its session, and cannot say what it met."""
    monkeypatch.setattr(wiring, "LOCK_WAIT_SHARE", 1000.0)
    async with opened("sync", pair, settings=replace(SETTINGS, prepare_s=0.2)) as db:
        error, _ = await refused(db, "alone", pair)
    assert "b gave no answer" in str(error) and "we wait" not in str(error)


@modes
@hows
async def test_a_timeout_that_comes_first_says_what_was_waited_for(
    how: str, mode: str, pair: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sqlite_connection, "_WAITED_S", 60.0
    )  # of who has let go of the file this would be said as well
    async with opened(mode, pair, settings=replace(SETTINGS, prepare_s=60, grace_s=60)) as db:
        error, path = await refused(db, how, pair, timeout=0.2)
    assert type(error) is TransactionAborted
    assert str(error).startswith("the timeout of 0.2 s had passed before the work was done (b")
    assert str(error).endswith(
        f"it waited for {path}, which is locked for writing by another connection of this process); nothing happened"
    )


async def test_no_session_waits_for_a_file_for_as_long_as_a_call_on_it_may_take(pair: list[Database]) -> None:
    times = replace(SETTINGS, prepare_s=3, apply_s=2, answer_s=4, decide_s=1)
    async with opened("sync", pair, settings=times) as db:
        ctx = db.db._ctx
        pools = (ctx.participants["b"].pool, ctx.participants["b"].reserve, ctx.journal_pool)
        waits = []
        for pool in pools:
            session = pool.acquire()
            waits.append(session.connection.lock_wait_s)
            pool.release(session)
    assert waits == [1.5, 1.0, 0.5]
