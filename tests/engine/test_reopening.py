"""A coordinator that is closed can be opened again; on asyncio it works in one event loop at a time, and says so."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from nodoubt import AsyncCoordinator, ClosedTransaction, Coordinator, State, TransactionAborted, UsageError
from nodoubt.testing import FakeCoordinator, run_sql

RUNS = ("nodoubt-recovery", "nodoubt-steps")


def behind() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name in RUNS)


@pytest.fixture
def url(tmp_path: Path) -> str:
    made = f"sqlite:///{tmp_path}/a.db"
    run_sql(made, "create table t (id integer primary key)")
    return made


def test_what_was_closed_is_opened_again_with_all_that_runs_behind(url: str) -> None:
    before = behind()
    db = Coordinator(url)
    for number in range(3):
        with db:
            db.setup()
            assert behind() == sorted([*before, *RUNS])
            with db.begin_distributed(f"t{number}") as tx:
                tx.execute("insert into t values (?)", (number,))
        assert behind() == before
        with pytest.raises(ClosedTransaction, match="not open"):
            db.commit_distributed(f"t{number}")
        with db:
            assert db.commit_distributed(f"t{number}").state is State.COMMITTED
            with db.transaction() as tx:
                assert tx.execute("select count(*) from t").scalar() == number + 1


def test_one_that_was_set_up_and_closed_is_opened_and_set_up_again(url: str) -> None:
    db = Coordinator(url)
    for _ in range(2):
        db.setup()
        db.close()
    with db, db.transaction() as tx:
        tx.execute("insert into t values (1)")


def test_a_block_that_outlives_its_coordinator_is_rolled_back_although_that_is_open_again(
    nodoubt_postgres: str,
) -> None:
    run_sql(nodoubt_postgres, "create table t (id integer primary key)")
    db = Coordinator(nodoubt_postgres, recovery=False).open()
    db.setup()
    block = db.transaction()
    tx = block.__enter__()
    tx.execute("insert into t values (1)")
    db._ctx.live.clear()  # else the close waits for it
    db.close()
    with db:
        with pytest.raises(TransactionAborted, match="closed"):
            block.__exit__(None, None, None)
        with db.transaction() as other:
            assert other.execute("select count(*) from t").scalar() == 0


def test_a_fake_says_that_it_is_over() -> None:
    with FakeCoordinator("shop") as db:
        pass
    with pytest.raises(ClosedTransaction, match="make another one"):
        db.open()


@pytest.fixture(params=["psycopg", "asyncpg", "asyncmy", "sqlite"])
def place(request: Any, url: str) -> str:
    if request.param == "sqlite":
        return url
    made: str = request.getfixturevalue("nodoubt_mariadb" if request.param == "asyncmy" else "nodoubt_postgres")
    run_sql(made, "create table t (id integer primary key)")
    return made.replace("postgresql:", "postgresql+asyncpg:") if request.param == "asyncpg" else made


async def write(db: AsyncCoordinator) -> None:
    async with db.transaction() as tx:
        await tx.execute("insert into t values (1)")
    async with db.transaction() as tx:
        await tx.execute("delete from t")


async def whole(db: AsyncCoordinator) -> None:
    async with db:
        await db.setup()
        await write(db)


def test_one_loop_after_the_other_may_open_it(place: str) -> None:
    db = AsyncCoordinator(place)
    for _ in range(2):
        asyncio.run(whole(db))


def test_in_another_loop_nothing_is_done_and_the_error_says_so(place: str) -> None:
    db = AsyncCoordinator(place)

    async def begin() -> None:
        await db.open()
        await db.setup()
        await write(db)

    async def status() -> None:
        await db.status("a")

    asyncio.run(begin())
    for verb in (write(db), status(), db.open()):
        with pytest.raises(UsageError, match="opened in another event loop, and works in that one only; nothing was"):
            asyncio.run(verb)
    asyncio.run(db.close())  # its own loop is gone
    asyncio.run(whole(db))


@pytest.mark.anyio
async def test_while_its_loop_lives_no_other_may_close_it(url: str) -> None:
    async with AsyncCoordinator(url) as db:
        await db.setup()

        def elsewhere() -> None:
            with pytest.raises(UsageError, match="another event loop"):
                asyncio.run(db.close())

        await asyncio.to_thread(elsewhere)
        await write(db)


def test_after_an_open_that_failed_python_finds_nothing_open(nodoubt_postgres: str) -> None:
    """As `python -X dev` tells it."""
    program = """
import sys
from nodoubt import Coordinator, UsageError
try:
    Coordinator({"p": sys.argv[1], "q": sys.argv[1].replace("127.0.0.1", "localhost")}).open()
except UsageError as error:
    print(error)
"""
    with Coordinator(nodoubt_postgres, recovery=False) as db:
        db.setup()
    command = [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c", program, nodoubt_postgres]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "name it once" in done.stdout
    assert done.stderr == ""
