"""An exception of somebody's that cannot say what it is, because its `__str__` raises, disturbs nothing of ours."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nodoubt
from kit import make_database, opened
from nodoubt import BranchDoomed, CallState, JobState, TransactionAborted

pytestmark = pytest.mark.anyio


class Unsayable(Exception):
    """Its text needs what is not there any more."""

    def __str__(self) -> str:
        raise LookupError("the text is gone")

    __repr__ = __str__


class Values(list[int]):
    """Parameters that break while the driver reads them."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: Any) -> Any:
        raise Unsayable

    def __iter__(self) -> Iterator[int]:
        raise Unsayable


@nodoubt.step
def fail(order: str) -> str:
    raise Unsayable


@nodoubt.compensation(tries=1)
def fail_to_undo(order: str) -> None:
    raise Unsayable


@pytest.fixture(params=["sync", "async"])
def mode(request: Any) -> str:
    return str(request.param)


@pytest.fixture
def face(mode: str, request: Any, tmp_path: Path) -> Any:
    return opened(mode, [make_database("sqlite", name, request, tmp_path) for name in "ab"],
                  journal=f"sqlite:///{tmp_path}/journal.db")  # fmt: skip


async def test_a_block_that_it_ends_is_rolled_back_and_it_comes_out(face: Any) -> None:
    async with face as db:
        with pytest.raises(Unsayable):
            async with db.transaction() as tx:
                await tx.move("a", "b", 30)
                raise Unsayable
        assert [one.balance() for one in db.databases.values()] == [100, 100]


async def test_a_statement_that_it_ends_dooms_its_branch_and_whoever_goes_on_is_told_so(face: Any) -> None:
    async with face as db:
        with pytest.raises(TransactionAborted, match="rolled back everywhere") as caught:
            async with db.transaction() as tx:
                await tx.move("a", "b", 30)
                branch = tx.handle["a"]
                for values, error in ((Values(), Unsayable), ([1], BranchDoomed)):
                    with pytest.raises(error):
                        done = branch.execute("update accounts set balance = balance + ?", values)
                        if asyncio.iscoroutine(done):
                            await done
        assert "no text: its __str__ raises LookupError" in str(caught.value)
        assert [one.balance() for one in db.databases.values()] == [100, 100]


async def test_a_step_that_it_ends_is_in_the_trail_and_so_is_its_compensation(face: Any) -> None:
    order = f"order-{secrets.token_hex(4)}"
    async with face as db:
        async with db.staged(order) as tx:
            await tx.move("a", "b", 30)
        with pytest.raises(Unsayable):
            await db.call(order, fail, order, undo=fail_to_undo)
        await db.rollback_distributed(order)
        (call,) = await db.steps(order)
        assert call.state is CallState.PARKED and "Unsayable: <no text" in call.error
        trail = [(one.what, one.detail) for one in await db.events(call.attempt)]
        assert any(what == "step parked" and "<no text" in detail for what, detail in trail), trail
        assert [one.balance() for one in db.databases.values()] == [100, 100]


async def test_a_job_that_it_ends_is_left_to_be_begun_again(face: Any, mode: str) -> None:
    async with face as db:
        block = db.db.job("walk", on="a")
        with pytest.raises(Unsayable):
            if mode == "sync":
                with block:
                    raise Unsayable
            else:
                async with block:
                    raise Unsayable
        record = await db.progress("walk")
        assert record.state is JobState.STOPPED and record.note.startswith("Unsayable: <no text")
