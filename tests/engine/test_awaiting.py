"""What was asked for and never awaited, or never done, is not left out of what commits."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nodoubt import AsyncCoordinator, Coordinator, State, TransactionAborted, UnknownTransaction, UsageError, step
from nodoubt.testing import run_sql
from nodoubt.transaction import AsyncTransaction

pytestmark = pytest.mark.anyio


@step("awaiting.charge")
async def charge(cents: int) -> int:
    return cents


@pytest.fixture
def urls(tmp_path: Path) -> dict[str, str]:
    made = {name: f"sqlite:///{tmp_path}/{name}.db" for name in ("a", "b")}
    with Coordinator(made, recovery=False) as db:
        db.setup()
    for url in made.values():
        run_sql(url, "create table t (id integer primary key)")
    return made


@pytest.fixture
async def db(urls: dict[str, str]) -> AsyncIterator[AsyncCoordinator]:
    async with AsyncCoordinator(urls, recovery=False) as made:
        yield made


async def rows(db: AsyncCoordinator) -> list[int]:
    async with db.transaction() as tx:
        return [len(await tx[name].execute("select id from t")) for name in ("a", "b")]


@contextmanager
def forgetful() -> Iterator[None]:
    """Python's own warning comes as well, when the coroutine is collected."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        yield
        gc.collect()


FORGOTTEN: dict[str, Callable[[Any], Any]] = {
    "a text": lambda tx: tx["a"].execute("insert into t values (1)"),
    "a verb that counts": lambda tx: tx["a"].insert_into("t").values({"id": 1}).execute(),
    "a verb that returns": lambda tx: tx["a"].insert_into("t").values({"id": 1}).returning("id").execute(),
    "a step": lambda tx: tx.call(charge, 1),
}


@pytest.mark.parametrize("what", FORGOTTEN)
@pytest.mark.parametrize("way", ["at once", "staged"])
async def test_a_block_in_which_an_await_was_forgotten_is_rolled_back(
    way: str, what: str, db: AsyncCoordinator
) -> None:
    block: Any = db.transaction("order") if way == "at once" else db.begin_distributed("order")
    refusal = r"'order' is rolled back everywhere: 1 of its .* write await"
    with forgetful(), pytest.raises(TransactionAborted, match=refusal):
        async with block as tx:
            FORGOTTEN[what](tx)
            await tx["b"].execute("insert into t values (1)")
    assert await rows(db) == [0, 0]
    if way == "staged":
        with pytest.raises(UnknownTransaction):
            await db.status("order")


async def test_so_is_the_block_of_a_key_which_can_be_used_again(urls: dict[str, str]) -> None:
    async with AsyncCoordinator(urls, recovery=False) as db:
        with forgetful(), pytest.raises(TransactionAborted, match="never awaited"):
            async with db.once("k") as once:
                FORGOTTEN["a text"](once)
        async with db.once("k") as once:
            assert not once.replayed
            await once["a"].execute("insert into t values (1)")


async def test_a_task_that_has_not_begun_as_the_block_ends_is_missed(db: AsyncCoordinator) -> None:
    with pytest.raises(TransactionAborted, match="never awaited"):
        async with db.transaction() as tx:
            await tx["b"].execute("insert into t values (1)")
            task = asyncio.create_task(tx["a"].execute("insert into t values (1)"))
    with pytest.raises(Exception, match="has ended"):
        await task
    assert await rows(db) == [0, 0]


async def test_a_statement_whose_time_was_over_before_it_began_is_missed(db: AsyncCoordinator) -> None:
    with pytest.raises(TransactionAborted, match="never awaited"):
        async with db.transaction() as tx:
            await tx["b"].execute("insert into t values (1)")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(tx["a"].execute("insert into t values (1)"), 0)
    assert await rows(db) == [0, 0]


async def test_what_is_awaited_in_any_order_commits(db: AsyncCoordinator) -> None:
    async with db.transaction() as tx:
        later = tx["a"].execute("insert into t values (1)")
        await asyncio.gather(tx["b"].execute("insert into t values (1)"), later)
    assert await rows(db) == [1, 1]


async def test_an_error_of_the_block_itself_comes_out_and_not_what_was_forgotten(db: AsyncCoordinator) -> None:
    with forgetful(), pytest.raises(KeyError):
        async with db.transaction() as tx:
            FORGOTTEN["a text"](tx)
            raise KeyError
    assert await rows(db) == [0, 0]


def test_a_mutant_that_does_not_look_commits_half_of_the_work(
    urls: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AsyncTransaction, "_require_awaited", lambda _: None)

    async def main() -> list[int]:
        async with AsyncCoordinator(urls, recovery=False) as db:
            with forgetful():
                async with db.transaction() as tx:
                    FORGOTTEN["a text"](tx)
                    await tx["b"].execute("insert into t values (1)")
            return await rows(db)

    assert asyncio.run(main()) == [0, 1]


# ---- the work as a function


@pytest.mark.parametrize("verb", ["begin_distributed", "once"])
async def test_work_that_was_given_and_not_awaited_is_warned_of(verb: str, db: AsyncCoordinator) -> None:
    with pytest.warns(RuntimeWarning, match=rf"{verb}\(.*work\) was never awaited: nothing of it was done"):
        getattr(db, verb)("order", work=asynchronous)  # collected at once
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await getattr(db, verb)("order", work=asynchronous)
        async with getattr(db, verb)("other"):
            pass
        getattr(db, verb)("a block that is not entered")
        gc.collect()


async def asynchronous(tx: Any) -> None:
    await tx["a"].execute("insert into t values (1)")


def generating(tx: Any) -> Iterator[Any]:
    yield tx["a"].execute("insert into t values (1)")


@pytest.mark.parametrize("work", [asynchronous, generating])
@pytest.mark.parametrize("verb", ["begin_distributed", "once"])
def test_a_coordinator_for_threads_refuses_work_that_it_cannot_do(verb: str, work: Any, urls: dict[str, str]) -> None:
    with Coordinator(urls, recovery=False) as db:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UsageError, match="has done nothing: give a Coordinator an ordinary function"):
                getattr(db, verb)("order", work=work)
            gc.collect()
        if verb == "begin_distributed":
            assert db.rollback_distributed("order").state is State.ABORTED
            with pytest.raises(UnknownTransaction):
                db.status("order")
        else:
            assert db.once("order", work=lambda _: 7) == 7


@pytest.mark.parametrize("verb", ["begin_distributed", "once"])
async def test_one_for_asyncio_refuses_a_function_that_cannot_be_awaited(verb: str, db: AsyncCoordinator) -> None:
    def work(tx: Any) -> None:
        tx["a"].execute("insert into t values (1)")

    refusal = "returned a NoneType, which cannot be awaited: write it as async def"
    with forgetful(), pytest.raises(UsageError, match=refusal):
        await getattr(db, verb)("order", work=work)
    assert await rows(db) == [0, 0]
