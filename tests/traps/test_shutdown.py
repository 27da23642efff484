"""close() while transactions are at work, at their commit, or answered and not yet carried out everywhere."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from kit import Face, opened
from nodoubt import ClosedTransaction, State, TransactionAborted
from traps.scenes import MOVED, UNTOUCHED, at_rest, balances, context, databases, joined
from traps.steps import at_step, every_step

pytestmark = pytest.mark.anyio
PATIENCE_S = 30.0


class Closing:
    """Closes the coordinator from another thread or task, beginning at some step of the work, and waits for it
    at the end.
    """

    def __init__(self, db: Face) -> None:
        self.db = db
        self.begun: Any = None

    def begin(self) -> None:
        if self.db.mode == "sync":
            self.begun = threading.Thread(target=self.db.db.close)
            self.begun.start()
            # Before the step goes on, the close must have gone as far as it can.
            self.begun.join(0.05)
        else:
            self.begun = asyncio.get_running_loop().create_task(self.db.db.close())

    async def end(self) -> None:
        if isinstance(self.begun, threading.Thread):
            await asyncio.to_thread(self.begun.join, PATIENCE_S)
            assert not self.begun.is_alive()
        elif self.begun is not None:
            await asyncio.wait_for(self.begun, PATIENCE_S)


async def pay(db: Face) -> None:
    async with db.transaction("pay") as tx:
        await tx.move("a", "b", 1)


@pytest.mark.parametrize("kinds", ["postgres+mariadb", "postgres+sqlite"])
async def test_a_coordinator_closed_at_any_step_of_a_transaction_ends_it_honestly_and_leaves_no_session(
    kinds: str, mode: str, request: Any, tmp_path: Path
) -> None:
    """Before its end has begun it is refused; from then on it is finished first."""
    pair = databases(kinds, request, tmp_path)
    moved, outcomes = 0, set()
    async with opened(mode, pair) as watcher:
        for at in every_step():
            db = Face(mode, pair)
            await db.open()
            closing = Closing(db)
            with at_step(db, at, closing.begin) as steps:
                try:
                    await pay(db)
                    told = True
                except (ClosedTransaction, TransactionAborted):
                    told = False
                await closing.end()
            if not steps.acted:
                await db.close()
            happened = 100 - balances(pair)[0] - moved
            assert happened == told, f"step {at} of {steps.trail}"
            assert not any(d.prepared() for d in pair), f"step {at} of {steps.trail}"
            moved += happened
            outcomes.add(told)
            assert nothing_is_open(db), f"step {at} of {steps.trail}"
            if not steps.acted:
                break
        assert outcomes == {True, False}
        assert (await watcher.recover(grace=0)).clean
    assert balances(pair) == [100 - moved, 100 + moved] and at_rest(pair)


def nothing_is_open(db: Face) -> bool:
    ctx = context(db)
    pools: list[Any] = [ctx.journal_pool, *(p for one in ctx.participants.values() for p in (one.pool, one.reserve))]
    return not any(pool._count or pool._ours or pool._idle for pool in pools)


async def test_a_close_waits_for_what_was_only_decided(mode: str, request: Any, tmp_path: Path) -> None:
    pair = databases("postgres+mariadb", request, tmp_path)
    async with opened(mode, pair) as db:
        for _ in range(10):
            async with db.transaction(wait="decided") as tx:
                await tx.move("a", "b", 3)
            assert tx.handle.result.state is State.COMMITTED
        async with db.staged("order") as tx:
            await tx.move("a", "b", 0)
        assert (await db.commit_distributed("order", wait="decided")).state is State.COMMITTED
    assert balances(pair) == MOVED and at_rest(pair)
    assert nothing_is_open(db)


async def test_a_block_that_outlives_its_coordinator_is_rolled_back_and_says_so(
    mode: str, request: Any, tmp_path: Path
) -> None:
    pair = databases("postgres+sqlite", request, tmp_path)
    async with opened(mode, pair):
        for way in ("once", "staged"):
            db = Face(mode, pair)
            await db.open()
            block = db.transaction() if way == "once" else db.staged("order")
            with pytest.raises((ClosedTransaction, TransactionAborted), match="closed"):
                async with block as tx:
                    await tx.move("a", "b", 30)
                    await db.close()
            assert balances(pair) == UNTOUCHED and at_rest(pair)
            assert nothing_is_open(db)


async def test_what_begins_after_the_close_is_refused(mode: str, request: Any, tmp_path: Path) -> None:
    pair = databases("sqlite+sqlite", request, tmp_path)
    async with opened(mode, pair):
        db = Face(mode, pair)
        await db.open()
        await db.close()
        for use in (pay(db), db.recover(), db.status("x"), db.commit_distributed("x")):
            with pytest.raises(ClosedTransaction):
                await use
        await db.close()
        async with joined(mode, pair) as again:
            await pay(again)
    assert balances(pair) == [99, 101]
