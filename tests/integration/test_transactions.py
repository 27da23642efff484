"""Whole transactions on real databases, one body for sync and async, at once and staged."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from kit import Database, make_database, opened
from nodoubt import (
    BranchDoomed,
    ClosedTransaction,
    DuplicateTransaction,
    InvalidName,
    OutcomeConflict,
    State,
    TransactionAborted,
    UnknownTransaction,
    UsageError,
)
from nodoubt.engine.context import using
from nodoubt.protocol.records import BranchRef, Staging
from nodoubt.xid import new_attempt

pytestmark = pytest.mark.anyio

PAIRS = [
    ("sqlite", "sqlite"),
    ("postgres", "postgres"),
    ("mariadb", "mariadb"),
    ("postgres", "mariadb"),
    ("mariadb", "postgres"),
    ("postgres", "sqlite"),
    ("sqlite", "mariadb"),
    ("mariadb", "sqlite"),
]


@pytest.fixture(params=["sync", "async"])
def mode(request: Any) -> str:
    return str(request.param)


@pytest.fixture(params=PAIRS, ids="+".join)
def pair(request: Any, tmp_path: Path) -> list[Database]:
    return [make_database(kind, name, request, tmp_path) for kind, name in zip(request.param, "ab", strict=True)]


def balances(pair: list[Database]) -> tuple[int, int]:
    return pair[0].balance(), pair[1].balance()


def settled(pair: list[Database]) -> bool:
    return not any(d.prepared() or d.locked() for d in pair)


async def test_work_on_two_databases_happens_on_both(mode: str, pair: list[Database]) -> None:
    async with opened(mode, pair) as db:
        async with db.transaction("pay") as tx:
            await tx.move("a", "b", 30)
        assert tx.handle.result.state is State.COMMITTED and tx.handle.result.complete
    assert balances(pair) == (70, 130) and settled(pair)


async def test_an_exception_rolls_back_both_and_comes_out_unchanged(mode: str, pair: list[Database]) -> None:
    error = KeyError("mine")
    async with opened(mode, pair) as db:
        with pytest.raises(KeyError) as caught:
            async with db.transaction() as tx:
                await tx.move("a", "b", 30)
                raise error
        assert caught.value is error
    assert balances(pair) == (100, 100) and settled(pair)


async def test_a_failed_statement_dooms_the_transaction_even_if_swallowed(mode: str, pair: list[Database]) -> None:
    """I16: without the doom MariaDB would prepare, and commit, half of the work."""
    for failing in ("a", "b"):
        async with opened(mode, pair) as db:
            with pytest.raises(TransactionAborted):
                async with db.transaction() as tx:
                    await tx.move("a", "b", 30)
                    with pytest.raises(Exception, match=r"(?i)duplicate|unique"):
                        await tx.execute(failing, "insert into accounts values (?, ?)", 1, 0)
                    with pytest.raises(BranchDoomed):
                        await tx.execute(failing, "update accounts set balance = 0")
        assert balances(pair) == (100, 100) and settled(pair)


async def test_a_branch_that_only_reads_is_not_prepared(mode: str, pair: list[Database]) -> None:
    async with opened(mode, pair) as db:
        async with db.transaction() as tx:
            rows = await tx.execute("a", "select balance from accounts where id = ?", 0)
            assert rows.scalar() == 100 and rows[0] == {"balance": 100}
            await tx.execute("b", "update accounts set balance = balance + ? where id = ?", 5, 0)
        async with db.transaction() as tx:
            await tx.execute("a", "select balance from accounts")
        async with db.transaction():
            pass
    assert balances(pair) == (100, 105) and settled(pair)


async def test_staged_work_is_invisible_until_another_coordinator_commits_it(mode: str, pair: list[Database]) -> None:
    async with opened(mode, pair) as db:
        async with db.staged("order-7", metadata={"customer": "42"}) as tx:
            await tx.move("a", "b", 30)
        assert tx.handle.result.state is State.PREPARED
        assert balances(pair) == (100, 100)
        record = await db.status("order-7")
        assert record.state is State.PREPARED and set(record.branches) == {"a", "b"}
        assert dict(record.metadata) == {"customer": "42"}
    async with opened(mode, pair) as other:
        result = await other.commit_distributed("order-7")
        assert result.state is State.COMMITTED and result.complete
        assert balances(pair) == (70, 130) and settled(pair)
        again = await other.commit_distributed("order-7")
        assert again.state is State.COMMITTED
        with pytest.raises(OutcomeConflict):
            await other.rollback_distributed("order-7")
        with pytest.raises(DuplicateTransaction):
            async with other.staged("order-7"):
                pass
        assert [r.name for r in await other.transactions()] == ["order-7"]
    assert balances(pair) == (70, 130) and settled(pair)


async def test_staged_work_is_rolled_back_by_another_coordinator(mode: str, pair: list[Database]) -> None:
    async with opened(mode, pair) as db, db.staged("order-8") as tx:
        await tx.move("a", "b", 30)
    async with opened(mode, pair) as other:
        assert (await other.rollback_distributed("order-8")).state is State.ABORTED
        assert (await other.rollback_distributed("order-8")).state is State.ABORTED
        with pytest.raises(OutcomeConflict):
            await other.commit_distributed("order-8")
        with pytest.raises(UnknownTransaction):
            await other.commit_distributed("nobody")
        assert balances(pair) == (100, 100) and settled(pair)
        async with other.staged("order-8", reuse=True) as tx:
            await tx.move("a", "b", 1)
        assert (await other.commit_distributed("order-8")).state is State.COMMITTED
    assert balances(pair) == (99, 101) and settled(pair)


async def test_a_begin_that_fails_leaves_nothing_and_its_rollback_is_quiet(mode: str, pair: list[Database]) -> None:
    async with opened(mode, pair) as db:
        with pytest.raises(ValueError, match="mine"):
            async with db.staged("order-9") as tx:
                await tx.move("a", "b", 30)
                raise ValueError("mine")
        assert (await db.rollback_distributed("order-9")).state is State.ABORTED
        assert balances(pair) == (100, 100) and settled(pair)
        with pytest.raises((UnknownTransaction, OutcomeConflict)):
            await db.commit_distributed("order-9")


async def test_a_second_live_begin_of_a_name_is_refused_before_its_work(mode: str, pair: list[Database]) -> None:
    async with opened(mode, pair) as db:
        async with db.staged("order-7") as tx:
            await tx.move("a", "b", 30)
        with pytest.raises(DuplicateTransaction):
            async with db.staged("order-7") as tx:
                raise AssertionError("work must not start")
        await db.rollback_distributed("order-7")


async def test_an_abandoned_branch_is_swept_and_a_staged_one_is_left(mode: str, pair: list[Database]) -> None:
    """I8: what nobody decides is aborted after its grace; what is staged waits for its deadline."""
    async with opened(mode, pair) as db:
        async with db.staged("kept") as tx:
            await tx.move("a", "b", 30)
        assert (await db.recover(grace=0)).left == 2
        assert (await db.status("kept")).state is State.PREPARED
        await db.commit_distributed("kept")
        async with db.staged("due", deadline=0.001) as tx:
            await tx.move("a", "b", 30)
        await db.recover(grace=0)
        assert (await db.status("due")).state is State.ABORTED
        with pytest.raises(OutcomeConflict):
            await db.commit_distributed("due")
    assert balances(pair) == (70, 130) and settled(pair)


async def test_the_handle_is_dead_after_its_block(mode: str, pair: list[Database]) -> None:
    async with opened(mode, pair) as db:
        async with db.transaction() as tx:
            await tx.execute("a", "select 1")
        with pytest.raises(ClosedTransaction):
            await tx.execute("a", "select 1")


async def test_wait_decided_answers_before_phase_two_and_it_still_happens(mode: str, pair: list[Database]) -> None:
    async with opened(mode, pair) as db:
        async with db.transaction(wait="decided") as tx:
            await tx.move("a", "b", 30)
        assert tx.handle.result.state is State.COMMITTED
    assert balances(pair) == (70, 130) and settled(pair)


async def test_transaction_control_by_the_user_is_refused(mode: str, pair: list[Database]) -> None:
    for statement in ("commit", "ROLLBACK", " begin ", "/* hi */ commit", "-- x\nrollback", "savepoint s"):
        async with opened(mode, pair) as db:
            with pytest.raises((UsageError, TransactionAborted)):
                async with db.transaction() as tx:
                    await tx.move("a", "b", 30)
                    await tx.execute("a", statement)
        assert balances(pair) == (100, 100), statement
    assert settled(pair)


@pytest.mark.parametrize("name", ["O'Brien; drop table accounts", 'say "hi"', "emoji 🎉", "back\\slash", "x" * 200])
async def test_any_printable_name_works(name: str, mode: str, request: Any, tmp_path: Path) -> None:
    for kind in ("sqlite", "postgres", "mariadb"):
        (tmp_path / kind).mkdir()
        only = make_database(kind, "a", request, tmp_path / kind)
        async with opened(mode, [only]) as db:
            async with db.staged(name) as tx:
                await tx.execute("a", "update accounts set balance = 7 where id = 0")
            assert (await db.status(name)).name == name
            await db.commit_distributed(name)
            for bad in ("", "a\nb", "x" * 10_000):
                with pytest.raises(InvalidName):
                    async with db.staged(bad):
                        pass
        assert only.balance() == 7


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "mariadb"])
async def test_a_name_whose_begin_died_before_its_last_prepare_is_aborted(
    kind: str, mode: str, request: Any, tmp_path: Path
) -> None:
    """No resource lists a branch of it; without the journal's own list it would look alive for ever."""
    only = make_database(kind, "a", request, tmp_path)
    async with opened(mode, [only]) as db:
        ctx = db.db._ctx
        resource_id = ctx.participants["a"].resource_id
        now = time.time()
        dead = Staging("dead", new_attempt(), (BranchRef(0, "a", resource_id),), 0, now + 1000, created_at=now)

        def stage(session: Any) -> Any:
            return ctx.journal.stage(session, dead)

        run = db.db._shell.run(using(ctx.journal_pool, stage))
        if mode == "async":
            await run
        assert (await db.status("dead")).state is State.BEGINNING
        await db.recover(grace=60 * 60)
        assert (await db.status("dead")).state is State.BEGINNING, "its begin may still be at work"
        await db.recover(grace=0)
        assert (await db.status("dead")).state is State.ABORTED
