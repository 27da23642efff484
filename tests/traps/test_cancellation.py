"""A caller that is cancelled at every step of a transaction, before the step's call and in the middle of it (I18).

Afterwards: the next transaction of the same coordinator works, no session or place of a pool is lost, and two sweeps
leave one outcome, nothing prepared, nothing locked, and no name that is neither live nor ended.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit import Database, Face, opened
from nodoubt import State, UnknownTransaction
from nodoubt.engine.shell import AsyncShell
from nodoubt.errors import OutcomeConflict
from traps.scenes import at_rest, balances, context, databases, joined
from traps.steps import at_step, every_step

pytestmark = pytest.mark.anyio


async def at_once(db: Face, name: str) -> None:
    async with db.transaction(name) as tx:
        await move(tx, db)


async def staged(db: Face, name: str) -> None:
    async with db.staged(name) as tx:
        await move(tx, db)
    await db.commit_distributed(name)


async def move(tx: Any, db: Face) -> None:
    """1 from the first database's account 0 to the last one's account 1."""
    first, last = next(iter(db.databases)), list(db.databases)[-1]
    await tx.execute(first, "update accounts set balance = balance - 1 where id = 0")
    await tx.execute(last, "update accounts set balance = balance + 1 where id = 1")


def in_the_middle(task: asyncio.Task[None]) -> None:
    """One turn of the loop later: the call has been sent, and its answer is awaited."""
    asyncio.get_running_loop().call_soon(task.cancel)


def before(task: asyncio.Task[None]) -> None:
    task.cancel()


async def cancelled_at(db: Face, at: int, how: Callable[[asyncio.Task[None]], None], work: Any, name: str) -> bool:
    """Whether there was such a step. The task ends well, or by its cancellation, and in no other way."""
    task = asyncio.create_task(work(db, name))
    with at_step(db, at, lambda: how(task)) as steps:
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await all_is_quiet(db)
    return steps.acted


async def all_is_quiet(db: Face) -> None:
    """What goes on behind the cancelled caller has come to its end."""
    while db.db._shell._behind:
        await asyncio.wait(list(db.db._shell._behind))


def nothing_is_lost(db: Face) -> bool:
    """Every session and every place is back in its pool."""
    ctx = context(db)
    pools: list[Any] = [ctx.journal_pool, *(p for one in ctx.participants.values() for p in (one.pool, one.reserve))]
    return not any(pool._count or pool._ours or pool._waiting for pool in pools) and not ctx.live


@pytest.mark.parametrize("work", [at_once, staged])
@pytest.mark.parametrize(
    ("kinds", "how"),
    [
        ("postgres+mariadb", in_the_middle),
        ("postgres+sqlite", in_the_middle),
        ("postgres+sqlite", before),
        ("postgres", in_the_middle),
        ("mariadb", in_the_middle),
    ],
)
async def test_cancelled_at_any_step_a_transaction_leaves_one_outcome_and_clean_sessions(
    kinds: str, work: Any, how: Any, request: Any, tmp_path: Path
) -> None:
    some = databases(kinds, request, tmp_path)
    moved, outcomes = 0, set()
    async with opened("async", some) as watcher:
        for at in every_step():
            name = f"order-{at}"
            async with joined("async", some) as db:
                acted = await cancelled_at(db, at, how, work, name)
                assert nothing_is_lost(db), f"step {at}"
                assert await is_whole(watcher, some, name), f"step {at}"
                assert (await watcher.recover(grace=0)).trouble == {}
                assert (await watcher.recover(grace=0)).clean
                await end(watcher, name)
                await at_once(db, "next")
                moved += 1
            happened = balances_of(some) - moved
            assert happened in (0, 1), f"step {at}: {some[0].balance(0)} and {some[-1].balance(1)}"
            outcomes.add(happened)
            moved += happened
            assert at_rest(some), f"step {at}"
            if not acted:
                break
        assert outcomes == {0, 1}
        assert await watcher.quarantined() == []


async def is_whole(watcher: Face, some: list[Database], name: str) -> bool:
    """Before any sweep: staged as a whole, or ended as a whole. From the first PREPARE on nobody is interrupted."""
    prepared = sum(len(d.prepared()) for d in some)
    try:
        state = (await watcher.status(name)).state
    except UnknownTransaction:
        return prepared == 0
    return prepared == (len(some) if state is State.PREPARED else 0)


@pytest.mark.parametrize("work", [at_once, staged])
async def test_without_the_shield_a_cancelled_caller_leaves_branches_in_doubt(
    work: Any, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: the phases run in the caller's own task. Recovery has to clean up, a grace later."""

    async def unshielded(self: AsyncShell, script: Any) -> Any:
        return await self.run(script)

    some = databases("postgres+sqlite", request, tmp_path)
    torn = 0
    async with opened("async", some) as watcher:
        monkeypatch.setattr(AsyncShell, "shielded", unshielded)
        for at in every_step():
            async with joined("async", some) as db:
                acted = await cancelled_at(db, at, in_the_middle, work, f"order-{at}")
            torn += not await is_whole(watcher, some, f"order-{at}")
            await watcher.recover(grace=0)
            await end(watcher, f"order-{at}")
            if not acted:
                break
    assert torn, "the mutant is not caught"


async def end(watcher: Face, name: str) -> None:
    """What was staged and never decided is rolled back; a name that is nothing of this is the trap."""
    try:
        record = await watcher.status(name)
    except UnknownTransaction:
        return
    assert record.state is not State.BEGINNING, "the name is taken by what will never be prepared"
    with contextlib.suppress(OutcomeConflict):
        await watcher.rollback_distributed(name)


def balances_of(some: list[Database]) -> int:
    """How often 1 has been moved; it must be the same on both sides."""
    taken, given = 100 - some[0].balance(0), some[-1].balance(1) - 100
    assert taken == given, f"atomicity is broken: {taken} taken, {given} given; {balances(some)}"
    return taken
