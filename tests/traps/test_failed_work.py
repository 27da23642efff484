"""Work that failed and an error that the user swallowed: nothing of it may be prepared, let alone committed (I16).

What keeps a swallowed error out is the doom of the branch; on PostgreSQL the command tag would, too. Both are
shown here by taking the doom away. Their own tests: `tests/postgres/test_postgres_two_phase.py`,
`tests/mariadb/test_mariadb_branch.py`; a swallowed error on every pair: `tests/integration/test_transactions.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from kit import Database, FaceTransaction, opened
from nodoubt import ResourceUnavailable, TransactionAborted, UsageError
from traps.scenes import UNTOUCHED, at_rest, balances, context, databases

pytestmark = pytest.mark.anyio

DUPLICATE = r"(?i)duplicate|unique"


async def half_done(tx: FaceTransaction, failing: str) -> None:
    """Two rows, of which the second one fails half way through its statement, and nobody is told."""
    await tx.move("a", "b", 30)
    with pytest.raises(Exception, match=DUPLICATE):
        await tx.execute(failing, "insert into accounts values (?, ?), (?, ?)", 7, 7, 1, 0)


def forgive(tx: FaceTransaction, name: str) -> None:
    """The mutant: the branch is not doomed by its error."""
    tx.handle._attempt.branches[name].work.doomed = None


def untouched(pair: list[Database]) -> bool:
    return balances(pair) == UNTOUCHED and [d.total() for d in pair] == [200, 200] and at_rest(pair)


@pytest.mark.parametrize("kinds", ["postgres+sqlite", "mariadb+sqlite"])
@pytest.mark.parametrize("way", ["once", "staged"])
async def test_a_swallowed_error_aborts_everywhere(
    kinds: str, way: str, mode: str, request: Any, tmp_path: Path
) -> None:
    pair = databases(kinds, request, tmp_path)
    async with opened(mode, pair) as db:
        block = db.transaction() if way == "once" else db.staged("order")
        with pytest.raises(TransactionAborted, match=DUPLICATE):
            async with block as tx:
                await half_done(tx, "a")
    assert untouched(pair)


@pytest.mark.parametrize("kind", ["postgres", "mariadb", "sqlite"])
@pytest.mark.parametrize("way", ["once", "staged"])
async def test_a_swallowed_error_of_a_branch_that_only_reads_aborts_everywhere(
    kind: str, way: str, mode: str, request: Any, tmp_path: Path
) -> None:
    """It has nothing to prepare; but what its caller went on with may hang on what it failed to read."""
    pair = databases(f"sqlite+{kind}", request, tmp_path)
    async with opened(mode, pair) as db:
        block = db.transaction() if way == "once" else db.staged("order")
        with pytest.raises(TransactionAborted, match="nowhere"):
            async with block as tx:
                await tx.execute("a", "update accounts set balance = 0 where id = 0")
                with pytest.raises(Exception, match="nowhere"):
                    await tx.execute("b", "select balance from nowhere")
    assert untouched(pair)


@pytest.mark.parametrize("journal", ["postgres", "sqlite"])
@pytest.mark.parametrize("way", ["once", "staged"])
async def test_postgres_answers_prepare_of_a_failed_transaction_without_an_error_and_we_see_it(
    way: str, journal: str, mode: str, request: Any, tmp_path: Path
) -> None:
    """Its tag is ROLLBACK. `journal`: with the failed branch as the commit point, and as one that prepares."""
    pair = databases("postgres+sqlite", request, tmp_path)
    async with opened(mode, pair, journal="a" if journal == "postgres" else "b") as db:
        block = db.transaction() if way == "once" else db.staged("order")
        with pytest.raises(TransactionAborted):
            async with block as tx:
                await half_done(tx, "a")
                forgive(tx, "a")
    assert untouched(pair)


async def test_without_the_doom_mariadb_commits_what_is_left_of_the_work(request: Any, tmp_path: Path) -> None:
    """The mutant: InnoDB undoes the failed statement alone and goes on to prepare and commit the rest."""
    pair = databases("mariadb+sqlite", request, tmp_path)
    async with opened("sync", pair, journal="b") as db:
        with contextlib.suppress(TransactionAborted):
            async with db.transaction() as tx:
                await half_done(tx, "a")
                forgive(tx, "a")
    assert balances(pair) == [70, 130], "the mutant is not caught: half of the work should be there"


# ---- a branch that cannot even begin --------------------------------------------------------------


async def test_a_swallowed_refusal_to_begin_a_branch_aborts_everywhere(
    mode: str, postgres: Any, request: Any, tmp_path: Path
) -> None:
    """The database went away, and is admitted anew when it is first used again."""
    pair = databases("sqlite+postgres", request, tmp_path)
    async with opened(mode, pair) as db:
        for pool in (context(db).participants["b"].pool, context(db).participants["b"].reserve):
            pool.drop_idle()
        context(db).participants["b"].resource_id = ""
        postgres.kill()
        with pytest.raises(TransactionAborted, match="cannot connect"):
            async with db.transaction() as tx:
                await tx.execute("a", "update accounts set balance = 0")
                with pytest.raises(ResourceUnavailable):
                    await tx.execute("b", "update accounts set balance = 0")
        postgres.restart()
    assert untouched(pair)


async def test_two_tasks_that_use_a_database_for_the_first_time_begin_one_branch(request: Any, tmp_path: Path) -> None:
    pair = databases("sqlite+postgres", request, tmp_path)
    async with opened("async", pair) as db:
        context(db).participants["b"].resource_id = ""
        async with db.transaction() as tx:
            update = "update accounts set balance = balance + 1 where id = 0"
            both = await asyncio.gather(*(tx.execute("b", update) for _ in range(2)), return_exceptions=True)
            assert sum(isinstance(one, UsageError) for one in both) == 1, both
        pool: Any = context(db).participants["b"].pool
        assert pool._count == 0 and not pool._ours
    assert balances(pair) == [100, 101] and at_rest(pair)
