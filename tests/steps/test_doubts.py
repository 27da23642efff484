"""What an answer says of a step that has been tried before, or that its block has not waited for."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

import nodoubt
from kit import until
from nodoubt import (
    AsyncCoordinator,
    BranchDoomed,
    Coordinator,
    JournalUnavailable,
    TransactionAborted,
    TransactionDoomed,
)
from nodoubt.ports import Unclear
from nodoubt.protocol.records import CallState

pytestmark = pytest.mark.anyio
TRIES: list[int] = []
EFFECTS: list[str] = []
GO_ON = threading.Event()


class TooMany(Exception):
    """The outside says that it does nothing now."""


@nodoubt.step(idempotent=True, refused=(TooMany,), timeout=0.2)
def charge(amount: int) -> str:
    TRIES.append(amount)
    if len(TRIES) == 1:
        EFFECTS.append("charged")
        GO_ON.wait(20)  # its answer comes too late
        return "too late"
    raise TooMany("one at a time")


@nodoubt.compensation
def refund(amount: int) -> None:
    EFFECTS.append("refunded")


@nodoubt.step
async def slow(amount: int) -> str:
    await asyncio.to_thread(GO_ON.wait, 20)
    EFFECTS.append("charged")
    return "done"


@nodoubt.compensation
async def take_back(amount: int) -> None:
    EFFECTS.append("refunded")


@pytest.fixture(autouse=True)
def _afresh() -> Any:
    TRIES.clear()
    EFFECTS.clear()
    GO_ON.clear()
    yield
    GO_ON.set()


@pytest.fixture
def urls(tmp_path: Path) -> Any:
    places = {"a": f"sqlite:///{tmp_path}/a.db"}, f"sqlite:///{tmp_path}/journal.db"
    with Coordinator(places[0], journal=places[1]) as db:
        db.setup()
        with db.transaction() as tx:
            tx.execute("create table t (x int)")
    return places


def looked(urls: Any, attempt: str) -> list[Any]:
    with Coordinator(urls[0], journal=urls[1], read_only=True) as db:
        return list(db.steps(attempt))


def test_a_refusal_does_not_say_that_an_earlier_try_did_nothing(urls: Any) -> None:
    with Coordinator(urls[0], journal=urls[1], recovery=False) as db:
        with (
            pytest.raises((BranchDoomed, TransactionAborted)),
            db.transaction() as tx,
            pytest.raises(TransactionDoomed, match="earlier try"),
        ):
            tx.call(charge, 5, undo=refund)
        GO_ON.set()
        db.undo_steps(grace=0)
        assert len(TRIES) == 2 and EFFECTS == ["charged", "refunded"]
        assert [one.state for one in db.steps(tx.attempt)] == [CallState.UNDONE]


async def test_a_step_that_its_block_has_left_behind_is_not_overtaken_by_its_compensation(urls: Any) -> None:
    async with AsyncCoordinator(urls[0], journal=urls[1], recovery=False) as db:
        with pytest.raises(KeyError):
            async with db.transaction() as tx:
                task = asyncio.create_task(tx.call(slow, 1, undo=take_back))
                await asyncio.to_thread(
                    until, lambda: [one.state for one in looked(urls, tx.attempt)] == [CallState.BEGUN]
                )
                raise KeyError
        assert EFFECTS == []
        GO_ON.set()
        with pytest.raises(TransactionAborted):
            await task
        await db.undo_steps()
        assert EFFECTS == ["charged", "refunded"]


def test_a_change_whose_answer_is_lost_is_not_told_as_nothing(urls: Any) -> None:
    with Coordinator(urls[0], journal=urls[1], recovery=False) as db:
        with db.begin_distributed("order", confirmations={"billing"}) as tx:
            tx.execute("insert into t values (1)")
        journal: Any = db._ctx.journal
        sound = journal.answer

        def lost(*args: Any, **options: Any) -> Any:
            yield from sound(*args, **options)
            raise Unclear("the reply was lost")

        journal.answer = lost
        with pytest.raises(JournalUnavailable, match="not known"):
            db.refuse("order", "billing", "no")
        del journal.answer
        db.rollback_distributed("order")
