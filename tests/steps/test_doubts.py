"""What an answer says of a step that has been tried before, or that its block has not waited for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Any

import pytest

import nodoubt
from kit import QUICK, until
from nodoubt import (
    AsyncCoordinator,
    BranchDoomed,
    Coordinator,
    InDoubt,
    JournalUnavailable,
    KeyInFlight,
    NoDoubtError,
    NotReady,
    StepTimedOut,
    TransactionAborted,
    TransactionDoomed,
    UsageError,
)
from nodoubt.ports import Unclear
from nodoubt.protocol.records import CallState
from nodoubt.steps import calling
from nodoubt.steps.running import Broke, GaveNoAnswer, TooManyHang

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


# ---- a broad refused= -----------------------------------------------------------------------------


@nodoubt.step(refused=(Exception,), timeout=0.2)
def hang(amount: int) -> None:
    GO_ON.wait(20)
    EFFECTS.append("charged")


@nodoubt.step(refused=(NoDoubtError,), timeout=0.2)
async def ahang(amount: int) -> None:
    await asyncio.sleep(20)


@nodoubt.step(refused=(Exception,))
def doubt(amount: int) -> None:
    EFFECTS.append("charged")
    raise InDoubt("the reply was lost", name=None, attempt="0" * 32)


@nodoubt.step(refused=(Exception,))
async def left(amount: int) -> None:
    EFFECTS.append("charged")
    raise asyncio.CancelledError


@nodoubt.step(refused=(Exception,))
async def together(amount: int) -> None:
    EFFECTS.append("charged")
    raise ExceptionGroup("both", [TooMany(), InDoubt("the reply was lost", name=None, attempt="0" * 32)])


@nodoubt.step(refused=(Exception,))
def odd(amount: int) -> Any:
    EFFECTS.append("charged")
    return object()


@nodoubt.step(refused=(Exception,))
def unreached(amount: int) -> None:
    raise TransactionAborted("somebody was faster")


OPEN: list[tuple[Any, type[Exception]]] = [
    (hang, StepTimedOut),
    (ahang, StepTimedOut),
    (doubt, InDoubt),
    (left, Broke),
    (together, ExceptionGroup),
    (odd, UsageError),
]


def is_undone(urls: Any, step: Any, error: type[Exception]) -> None:
    """At once, and staged."""
    with Coordinator(urls[0], journal=urls[1], recovery=False) as db:
        with pytest.raises(TransactionAborted), db.transaction() as tx, pytest.raises(error):
            tx.call(step, 5, undo=refund)
        GO_ON.set()
        db.undo_steps(grace=0)
        assert [one.state for one in db.steps(tx.attempt)] == [CallState.UNDONE]
        assert "refunded" in EFFECTS
        GO_ON.clear()
        with db.begin_distributed("order") as tx:
            tx.execute("insert into t values (1)")
        with pytest.raises(error):
            db.call("order", step, 5, undo=refund)
        with pytest.raises(NotReady):
            db.commit_distributed("order")
        db.rollback_distributed("order")
        GO_ON.set()
        db.undo_steps(grace=0)
        assert [one.state for one in db.steps("order")] == [CallState.UNDONE]


@pytest.mark.parametrize(("step", "error"), OPEN, ids=lambda of: getattr(of, "__name__", None))
def test_what_leaves_open_whether_it_happened_is_no_refusal_however_broad_that_is_declared(
    urls: Any, step: Any, error: type[Exception]
) -> None:
    is_undone(urls, step, error)


async def test_nor_on_asyncio(urls: Any) -> None:
    for step, error in OPEN:
        async with AsyncCoordinator(urls[0], journal=urls[1], recovery=False) as db:
            with pytest.raises(TransactionAborted):
                async with db.transaction() as tx:
                    with pytest.raises(error):
                        await tx.call(step, 5, undo=refund)
            GO_ON.set()
            await db.undo_steps(grace=0)
            assert [one.state for one in await db.steps(tx.attempt)] == [CallState.UNDONE]
            GO_ON.clear()


def test_the_mutant_that_takes_silence_for_a_refusal_is_found(urls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "leaves_open", lambda _: False)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        is_undone(urls, doubt, InDoubt)


@pytest.mark.parametrize("error", [GaveNoAnswer(""), Broke(""), TooManyHang(""), KeyInFlight("k"), StepTimedOut("")])
def test_only_an_error_of_ours_that_says_that_nothing_was_done_can_be_a_refusal(error: Exception) -> None:
    assert calling.leaves_open(error) and calling.leaves_open(ExceptionGroup("", [TooMany(), error]))
    assert not any(calling.leaves_open(one) for one in (TooMany(), ExceptionGroup("", [TooMany()]), UsageError()))


def test_what_surely_did_not_happen_owes_nothing_though_the_error_is_ours(urls: Any) -> None:
    with Coordinator(urls[0], journal=urls[1], recovery=False) as db:
        with db.transaction() as tx, contextlib.suppress(TransactionAborted):
            tx.call(unreached, 5, undo=refund)
        assert [one.state for one in db.steps(tx.attempt)] == [CallState.REFUSED] and EFFECTS == []


# ---- a broad retry_on= ----------------------------------------------------------------------------


@nodoubt.step(retry_on=(Exception,), timeout=0.2)
def hang_again(amount: int) -> None:
    TRIES.append(amount)
    GO_ON.wait(20)
    EFFECTS.append("charged")


@nodoubt.step(retry_on=(Exception,))
async def left_again(amount: int) -> None:
    TRIES.append(amount)
    raise asyncio.CancelledError


@nodoubt.step(retry_on=(Exception,))
def doubt_again(amount: int) -> None:
    TRIES.append(amount)
    raise InDoubt("the reply was lost", name=None, attempt="0" * 32)


@pytest.mark.parametrize(
    ("step", "error"), [(hang_again, StepTimedOut), (left_again, Broke), (doubt_again, InDoubt)],
    ids=["no answer", "cancelled", "in doubt"],
)  # fmt: skip
def test_what_may_have_happened_is_not_repeated_however_broad_retry_on_is(
    urls: Any, step: Any, error: type[Exception]
) -> None:
    """The first try may still be at work, and then it would be charged twice (I19)."""
    with Coordinator(urls[0], journal=urls[1], recovery=False) as db:
        with pytest.raises(error), db.transaction() as tx:
            tx.call(step, 5, undo=refund)
        assert TRIES == [5]


def test_the_mutant_that_repeats_it_charges_twice(urls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "NEVER_REPEATED", ())
    with Coordinator(urls[0], journal=urls[1], settings=QUICK, recovery=False) as db:
        with pytest.raises(StepTimedOut), db.transaction() as tx:
            tx.call(hang_again, 5, undo=refund, timeout=0.05)
        GO_ON.set()
        until(lambda: EFFECTS.count("charged") > 1)
