"""The fake coordinator: the real verbs, what was done, and what was told to go wrong; sync and async by one body."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nodoubt import (
    AsyncCoordinator,
    Coordinator,
    DuplicateTransaction,
    InDoubt,
    OutcomeConflict,
    State,
    TransactionAborted,
    UnknownTransaction,
    UsageError,
)
from nodoubt.testing import AsyncFakeCoordinator, FakeCoordinator, Statement
from nodoubt.testing.fakes import _Fake

pytestmark = pytest.mark.anyio
TAKE = "update products set stock = stock - ?"
ORDER = "insert into orders values (?)"


@pytest.fixture(params=["sync", "async"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Both:
    """Either fake behind the same coroutines."""

    def __init__(self, mode: str, resources: Any) -> None:
        self.mode = mode
        self.db: Any = (FakeCoordinator if mode == "sync" else AsyncFakeCoordinator)(resources)

    async def call(self, verb: str, *args: Any, **options: Any) -> Any:
        answer = getattr(self.db, verb)(*args, **options)
        return answer if self.mode == "sync" else await answer

    @contextlib.asynccontextmanager
    async def block(self, verb: str, *args: Any) -> AsyncIterator[Any]:
        block = getattr(self.db, verb)(*args)
        if self.mode == "sync":
            with block as tx:
                yield tx
        else:
            async with block as tx:
                yield tx

    async def execute(self, on: Any, *args: Any) -> Any:
        answer = on.execute(*args)
        return answer if self.mode == "sync" else await answer

    async def order(self, number: int, verb: str = "transaction") -> Any:
        async with self.block(verb, f"order-{number}") as tx:
            await self.execute(tx["shop"], ORDER, (number,))
            await self.execute(tx["stock"], TAKE, (number,))
        return tx.result


@contextlib.asynccontextmanager
async def opened(mode: str, resources: Any = ("shop", "stock")) -> AsyncIterator[Both]:
    both = Both(mode, resources)
    await both.call("open")
    try:
        yield both
    finally:
        await both.call("close")


def done(number: int) -> set[Statement]:
    return {Statement("shop", ORDER, (number,)), Statement("stock", TAKE, (number,))}


# ---- the surface ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("fake", "real"), [(FakeCoordinator, Coordinator), (AsyncFakeCoordinator, AsyncCoordinator)])
def test_every_verb_is_the_real_one_with_its_signature(fake: type[Any], real: type[Any]) -> None:
    assert issubclass(fake, real)
    verbs = [name for name in dir(real) if not name.startswith("_")]
    assert {"transaction", "begin_distributed", "commit_distributed", "settle", "status", "recover"} <= set(verbs)
    for name in verbs:
        assert inspect.getattr_static(fake, name) is inspect.getattr_static(real, name), name


def test_sync_and_async_fakes_have_the_same_surface() -> None:
    both = [
        {
            name: inspect.signature(one) if inspect.isfunction(one) else type(one)
            for name, one in inspect.getmembers_static(fake)
            if not name.startswith("_") or name == "__init__"
        }
        for fake in (FakeCoordinator, AsyncFakeCoordinator)
    ]
    names = {name for name in _Fake.__dict__ if not name.startswith("_")} | {"__init__"}
    assert {"reply", "fail_at", "ends", "heal", "executed", "committed"} <= names
    assert {name: both[0][name] for name in names} == {name: both[1][name] for name in names}


def test_it_goes_where_a_coordinator_goes() -> None:
    def place_order(db: Coordinator) -> None:
        with db.transaction() as tx:
            tx.execute(ORDER, (1,))

    with FakeCoordinator() as db:  # the type checker says so, too
        place_order(db)
        assert db.committed == (Statement("db", ORDER, (1,)),)


# ---- what was done --------------------------------------------------------------------------------


async def test_what_was_committed_is_told_and_what_was_rolled_back_is_not(mode: str) -> None:
    async with opened(mode) as fake:
        result = await fake.order(1)
        assert result.state is State.COMMITTED and result.complete
        with pytest.raises(LookupError):
            async with fake.block("transaction") as tx:
                await fake.execute(tx["shop"], ORDER, (2,))
                raise LookupError
        assert set(fake.db.committed) == done(1)
        assert fake.db.executed[-1] == Statement("shop", ORDER, (2,))


async def test_staged_work_is_decided_by_name_with_every_rule_of_the_real_verbs(mode: str) -> None:
    async with opened(mode) as fake:
        await fake.order(1, "begin_distributed")
        assert fake.db.committed == ()
        assert (await fake.call("status", "order-1")).state is State.PREPARED
        for _ in range(2):
            assert (await fake.call("commit_distributed", "order-1")).state is State.COMMITTED
        with pytest.raises(OutcomeConflict):
            await fake.call("rollback_distributed", "order-1")
        with pytest.raises(DuplicateTransaction):
            await fake.order(1, "begin_distributed")
        with pytest.raises(UnknownTransaction):
            await fake.call("commit_distributed", "order-2")
        assert set(fake.db.committed) == done(1)


async def test_answers_are_given_as_scripted_the_newest_that_fits_first(mode: str) -> None:
    async with opened(mode) as fake:
        fake.db.reply("from products", [{"id": 7, "stock": 3}, {"id": 8, "stock": 0}])
        fake.db.reply("FROM products where", [{"stock": 2}], on="stock")
        fake.db.reply("update products", count=0)
        async with fake.block("transaction") as tx:
            rows = await fake.execute(tx["stock"], "select * from products")
            assert list(rows) == [{"id": 7, "stock": 3}, {"id": 8, "stock": 0}]
            assert (await fake.execute(tx["stock"], "select stock from products where id = 7")).scalar() == 2
            assert (await fake.execute(tx["shop"], "select stock from products where id = 7")).scalar() == 7
            assert (await fake.execute(tx["stock"], TAKE, (1,))).count == 0
            assert (await fake.execute(tx["shop"], ORDER, (1,))).count == 1


async def test_the_query_verbs_are_recorded_as_they_are_compiled(mode: str) -> None:
    async with opened(mode) as fake:
        fake.db.reply('from "products"', [{"stock": 3}])
        async with fake.block("transaction") as tx:
            assert await fake.execute(tx["shop"].insert_into("orders").values({"id": 42})) == 1
            rows = await fake.execute(tx["stock"].select_from("products").columns("stock"))
            assert list(rows) == [{"stock": 3}]
        assert fake.db.committed == (Statement("shop", 'INSERT INTO "orders" ("id") VALUES (?)', (42,)),)


async def test_a_statement_that_fails_dooms_its_branch(mode: str) -> None:
    async with opened(mode) as fake:
        fake.db.reply("insert into orders", error=KeyError("duplicate"))
        with pytest.raises(TransactionAborted, match="duplicate"):
            async with fake.block("transaction") as tx:
                await fake.execute(tx["stock"], TAKE, (1,))
                with pytest.raises(KeyError):
                    await fake.execute(tx["shop"], ORDER, (1,))
        with pytest.raises(UsageError, match="COMMIT"):
            async with fake.block("transaction") as tx:
                await fake.execute(tx["shop"], "COMMIT")
        assert fake.db.committed == ()


# ---- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["aborted", "P3.prepare@stock", "P2.work@stock"])
async def test_told_to_abort_it_aborts_until_it_is_healed(mode: str, how: str) -> None:
    async with opened(mode) as fake:
        (fake.db.ends if how == "aborted" else fake.db.fail_at)(how)
        with pytest.raises(TransactionAborted):
            await fake.order(1)
        fake.db.heal()
        await fake.order(2)
        assert set(fake.db.committed) == done(2)


@pytest.mark.parametrize("was_done", [False, True])
async def test_told_to_leave_it_in_doubt_it_does_and_the_attempt_can_be_settled(mode: str, was_done: bool) -> None:
    async with opened(mode) as fake:
        fake.db.fail_at("P5.deciding", done=was_done)
        with pytest.raises(InDoubt) as caught:
            await fake.order(1)
        assert fake.db.committed == ()
        fake.db.heal()
        settled = await fake.call("settle", caught.value.attempt)
        assert settled.state is (State.COMMITTED if was_done else State.ABORTED)
        assert (await fake.call("recover", grace=0)).clean
        assert set(fake.db.committed) == (done(1) if was_done else set())


@pytest.mark.parametrize("was_done", [False, True])
async def test_with_one_database_that_wrote_its_own_reply_can_be_lost(mode: str, was_done: bool) -> None:
    async with opened(mode, "shop") as fake:
        fake.db.fail_at("P5.deciding@shop", done=was_done)
        with pytest.raises(InDoubt) as caught:
            async with fake.block("transaction") as tx:
                await fake.execute(tx, ORDER, (1,))
        fake.db.heal()
        settled = await fake.call("settle", caught.value.attempt)
        assert settled.state is (State.COMMITTED if was_done else State.ABORTED)
        assert len(fake.db.committed) == was_done


async def test_told_to_be_unfinished_it_is_committed_and_recovery_does_the_rest(mode: str) -> None:
    async with opened(mode) as fake:
        fake.db.ends("unfinished")
        result = await fake.order(1)
        assert result.state is State.COMMITTED and not result.complete and fake.db.committed == ()
        fake.db.heal()
        assert (await fake.call("recover", grace=0)).committed == 2
        assert set(fake.db.committed) == done(1)


async def test_it_fails_from_the_occurrence_that_was_named(mode: str) -> None:
    async with opened(mode) as fake:
        fake.db.fail_at("P3.prepare@stock#2")
        await fake.order(1)
        for number in (2, 3):
            with pytest.raises(TransactionAborted):
                await fake.order(number)
        assert set(fake.db.committed) == done(1)


def test_what_cannot_be_told_is_refused() -> None:
    fake = FakeCoordinator({"shop": "postgresql://me@host/shop"})
    for point, why in (("P9.every-branch-proved", "nothing is asked of a database"), ("P3", "names no point")):
        with pytest.raises(UsageError, match=why):
            fake.fail_at(point)
    with pytest.raises(UsageError, match="not 'well'"):
        fake.ends("well")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the same columns"):
        fake.reply("x", [{"a": 1}, {"b": 2}])
    with pytest.raises(UsageError, match="names of its resources"):
        FakeCoordinator([])
