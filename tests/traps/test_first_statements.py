"""The first statement of a branch, which goes with its begin; and statements of ours that a session keeps prepared."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kit import Database, Face, opened, until
from nodoubt import BranchDoomed, Settings, TransactionAborted
from nodoubt.url import parse_url
from traps.scenes import databases

pytestmark = pytest.mark.anyio
modes = pytest.mark.parametrize("mode", ["sync", "async"])
ONE = Settings(pool_size=1)


async def move(db: Face) -> None:
    async with db.transaction() as tx:
        await tx.execute("a", "update accounts set balance = balance + 1 where id = ?", 0)


@modes
async def test_after_a_rollback_a_session_still_commits(mode: str, request: Any, tmp_path: Path) -> None:
    """psycopg deallocates all prepared statements when it sees a ROLLBACK, once it has prepared one of the user's."""
    pair = databases("postgres+sqlite", request, tmp_path)
    async with opened(mode, pair, settings=ONE) as db:
        for _ in range(8):
            await move(db)
        with pytest.raises(KeyError):
            async with db.transaction() as tx:
                await tx.execute("a", "update accounts set balance = balance + 1 where id = ?", 0)
                raise KeyError
        for _ in range(8):
            await move(db)
    assert pair[0].balance() == 116


@modes
async def test_what_is_deallocated_behind_our_back_costs_one_transaction(
    mode: str, request: Any, tmp_path: Path
) -> None:
    pair = databases("postgres+sqlite", request, tmp_path)
    pair[0].query("create function forget() returns void language plpgsql as $$ begin execute 'deallocate all'; end $$")
    async with opened(mode, pair, settings=ONE) as db:
        await move(db)
        try:
            async with db.transaction() as tx:
                await tx.execute("a", "select forget()")
                await tx.execute("a", "update accounts set balance = balance + 1 where id = ?", 0)
        except TransactionAborted:
            pass
        before = pair[0].balance()
        await move(db)
        assert pair[0].balance() == before + 1


@modes
async def test_an_update_counts_the_rows_that_matched_also_as_the_first_statement(
    mode: str, request: Any, tmp_path: Path
) -> None:
    pair = databases("mariadb+sqlite", request, tmp_path)
    async with opened(mode, pair) as db, db.transaction() as tx:
        for _ in range(2):
            reply = await tx.execute("a", "update accounts set balance = balance where id = 0")
            assert reply.count == 1


def locked(database: Database) -> Any:
    where = parse_url(database.url)
    stranger = psycopg.connect(where.secret())
    stranger.execute("update accounts set balance = balance where id = 0")
    return stranger


async def test_a_first_statement_that_runs_out_of_time_says_so_and_leaves_the_pool_alone(
    request: Any, tmp_path: Path
) -> None:
    pair = databases("postgres+sqlite", request, tmp_path)
    async with opened("async", pair) as db:
        await asyncio.gather(*(move(db) for _ in range(4)))
        pool = db.db._ctx.participants["a"].pool
        idle = len(pool._idle)
        with locked(pair[0]), pytest.raises(TransactionAborted, match="timeout"):
            async with db.db.transaction(timeout=0.5) as tx:
                await tx["a"].execute("update accounts set balance = balance + 1 where id = %s", (0,))
        assert idle > 1 and len(pool._idle) == idle - 1


async def test_a_first_statement_whose_session_an_operator_ends_is_not_run_again(request: Any, tmp_path: Path) -> None:
    pair = databases("postgres+sqlite", request, tmp_path)
    waiting = (
        "select pid from pg_stat_activity where wait_event_type = 'Lock' and starts_with(query, 'update accounts')"
    )
    async with opened("async", pair) as db:
        await move(db)
        with locked(pair[0]) as stranger:

            async def work() -> None:
                async with db.transaction() as tx:
                    await tx.execute("a", "update accounts set balance = balance + 1 where id = ?", 0)

            task = asyncio.create_task(work())
            await asyncio.to_thread(until, lambda: bool(pair[0].query(waiting)))
            pair[0].query(f"select pg_terminate_backend(({waiting}))")
            with pytest.raises((TransactionAborted, BranchDoomed, psycopg.Error)):
                await task
            assert pair[0].query(waiting) == []
            stranger.rollback()
    assert pair[0].balance() == 101
