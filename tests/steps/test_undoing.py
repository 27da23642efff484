"""Undoing by workers: poison, hanging, missing and changed compensations; what a human may do; any number of
workers."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kit import QUICK, Database, Face, make_database, opened, until
from nodoubt import (
    CallState,
    Coordinator,
    Settings,
    State,
    StepContext,
    TransactionAborted,
    Undoing,
    UsageError,
    compensation,
    step,
)
from nodoubt.protocol.records import Call
from nodoubt.steps import REGISTRY, undoing
from steps import app, mutants
from steps.conftest import Outside

pytestmark = pytest.mark.anyio

EAGER = Settings(prepare_s=5, grace_s=5, sweep_s=60, retry_first_s=0.01, retry_most_s=0.02, tries_max=3)


@pytest.fixture
def order() -> str:
    return f"order-{secrets.token_hex(4)}"


@pytest.fixture
def only(request: Any, tmp_path: Path) -> list[Database]:
    return [make_database("sqlite", "a", request, tmp_path)]


async def aborted(db: Face, calls: list[tuple[Any, ...]], *, undo: bool = True) -> str:
    """A staged transaction with these steps, rolled back. `undo`: with what can be undone at once."""
    name = f"tx-{secrets.token_hex(4)}"
    async with db.staged(name) as tx:
        await tx.execute("a", "update accounts set balance = 7 where id = 0")
    for number, (function, undo_with, *args) in enumerate(calls):
        await db.call(name, function, *args, undo=undo_with, key=f"k{number}")
    if undo:
        await db.rollback_distributed(name)
    else:
        with without(*{undo_with.name for _, undo_with, *_ in calls}):
            await db.rollback_distributed(name)
    return name


@contextlib.contextmanager
def without(*names: str) -> Iterator[None]:
    """In the block this process does not have the code of these compensations."""
    kept = {name: REGISTRY.compensations.pop(name) for name in names}
    try:
        yield
    finally:
        REGISTRY.compensations.update(kept)


async def states(db: Face, name: str) -> list[CallState]:
    return [call.state for call in await db.steps(name)]


async def turns(db: Face, done: Callable[[list[CallState]], bool], name: str) -> list[CallState]:
    """Let a worker turn until it is done."""
    ends, now = time.monotonic() + 30, await states(db, name)
    while not done(now):
        assert time.monotonic() < ends, f"not done: {now}"
        await db.undo_steps()
        now = await states(db, name)
    return now


# ---- poison (I20) ---------------------------------------------------------------------------------

POISONED: list[StepContext] = []


@step("tests.buy")
def buy(order: str) -> None:
    """Nothing outside: these tests are about what undoes it."""


@compensation("tests.poison")
def poison(order: str, context: StepContext) -> None:
    POISONED.append(context)
    raise RuntimeError(f"{order} cannot be undone")


async def test_a_poison_compensation_is_parked_and_everything_else_proceeds(
    plain_mode: str, only: list[Database], outside: Outside, order: str
) -> None:
    POISONED.clear()
    async with opened(plain_mode, only, settings=EAGER) as db:
        first = (app.charge, app.refund, order, "good")
        name = await aborted(db, [first, (buy, poison, order)])
        after = await turns(db, lambda now: CallState.DUE not in now, name)
        assert after == [CallState.UNDONE, CallState.PARKED]
        other = await aborted(db, [(app.charge, app.refund, f"{order}-2", "good")])
        assert await states(db, other) == [CallState.UNDONE], "nor does it hold up another transaction"
        (parked,) = await db.parked_steps()
        assert parked.tries == EAGER.tries_max and "cannot be undone" in parked.error
        record = await db.status(name)
        assert record.state is State.ABORTED and record.status == "requires_manual_intervention"
        assert [one.name for one in await db.transactions(state="requires_manual_intervention")] == [name]
        assert (await db.undo_steps()).waiting == 0
    assert len(POISONED) == EAGER.tries_max and len({context.key for context in POISONED}) == 1, "one key for all tries"
    assert [context.tries for context in POISONED] == [1, 2, 3]
    assert [outside.of(one).balance for one in (order, f"{order}-2")] == [0, 0]


async def test_a_human_has_a_parked_one_tried_again_and_it_is_recorded(
    plain_mode: str, only: list[Database], order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(plain_mode, only, settings=EAGER) as db:
        name = await aborted(db, [(buy, poison, order)])
        await turns(db, lambda now: now == [CallState.PARKED], name)
        done: list[str] = []

        @compensation("tests.poison.mended")
        def mended(order: str) -> None:
            done.append(order)

        monkeypatch.setitem(REGISTRY.compensations, "tests.poison", mended)
        await db.undo_steps()
        assert done == [], "a parked one waits for a human"
        await db.retry_step(name, 0, by="ada")
        await db.undo_steps()
        assert done == [order] and await states(db, name) == [CallState.UNDONE]
        trail = [event.what for event in await db.events((await db.status(name)).attempt)]
        assert trail[-2:] == ["step undoing", "step undone"] and "step parked" in trail
        assert (await db.status(name)).status == "aborted"


async def test_a_human_skips_a_parked_one_and_says_why(plain_mode: str, only: list[Database], order: str) -> None:
    async with opened(plain_mode, only, settings=EAGER) as db:
        name = await aborted(db, [(buy, poison, order)])
        await turns(db, lambda now: now == [CallState.PARKED], name)
        for by, because in (("", "why"), ("ada", " ")):
            with pytest.raises(UsageError):
                await db.skip_step(name, 0, by=by, because=because)
        mended = await db.skip_step(name, 0, by="ada", because="refunded by hand")
        assert mended.call.state is CallState.SKIPPED
        assert await db.parked_steps() == []
        event = (await db.events((await db.status(name)).attempt))[-1]
        assert (event.what, event.detail) == ("step skipped", "#0 tests.poison by ada: refunded by hand")
        with pytest.raises(UsageError, match="skipped"):
            await db.retry_step(name, 0, by="ada")


async def test_what_stands_or_is_undecided_is_not_mended(
    plain_mode: str, only: list[Database], outside: Outside, order: str
) -> None:
    async with opened(plain_mode, only) as db:
        async with db.staged(order) as tx:
            await tx.execute("a", "update accounts set balance = 7 where id = 0")
        await db.call(order, app.charge, order, "good", undo=app.refund)
        with pytest.raises(UsageError, match="not decided"):
            await db.skip_step(order, 0, by="ada", because="why")
        with pytest.raises(UsageError, match="no step #7"):
            await db.skip_step(order, 7, by="ada", because="why")
        await db.commit_distributed(order)
        with pytest.raises(UsageError, match="stand"):
            await db.skip_step(order, 0, by="ada", because="why")
    assert outside.of(order).balance == 1


# ---- hanging --------------------------------------------------------------------------------------

GO_ON = threading.Event()
HANGING: list[str] = []


@compensation("tests.hang", timeout=0.3)
def hang(order: str) -> None:
    HANGING.append(order)
    GO_ON.wait(60)


@compensation("tests.ahang", timeout=0.3)
async def ahang(order: str) -> None:
    HANGING.append(order)
    await asyncio.sleep(60)


@pytest.fixture(autouse=True)
def _nothing_hangs_on() -> Iterator[None]:
    GO_ON.clear()
    HANGING.clear()
    yield
    GO_ON.set()


@pytest.mark.parametrize("function", [hang, ahang], ids=["function", "async function"])
async def test_a_compensation_that_hangs_is_given_up_tried_again_and_parked(
    plain_mode: str, only: list[Database], order: str, function: Any
) -> None:
    async with opened(plain_mode, only, settings=EAGER) as db:
        name = await aborted(db, [(buy, function, order)])
        assert await turns(db, lambda now: CallState.DUE not in now, name) == [CallState.PARKED]
        (call,) = await db.steps(name)
        assert "no answer within 0.3 s" in call.error
    assert [order] * EAGER.tries_max == HANGING


async def test_one_that_hangs_holds_up_no_other_transaction(
    plain_mode: str, only: list[Database], outside: Outside, order: str
) -> None:
    """They are undone while it hangs, in the same turn of the same worker."""

    @compensation("tests.hang.long", timeout=60)
    def long(order: str) -> None:
        until(lambda: all(outside.of(one).refunds for one in orders), 30)

    orders = [f"{order}-{number}" for number in range(10)]
    async with opened(plain_mode, only, settings=EAGER) as db:
        first = await aborted(db, [(buy, long, order)], undo=False)
        others = [await aborted(db, [(app.charge, app.refund, one, "good")], undo=False) for one in orders]
        report = await db.undo_steps()
        assert (report.undone, report.failed) == (11, 0), "the one that waited has seen all others undone"
        for name in (first, *others):
            assert await states(db, name) == [CallState.UNDONE]


# ---- code that is missing, or has changed ---------------------------------------------------------


async def test_a_worker_without_the_code_leaves_it_and_says_so(
    plain_mode: str, only: list[Database], outside: Outside, order: str
) -> None:
    async with opened(plain_mode, only) as db:
        name = await aborted(db, [(app.charge, app.refund, order, "good")], undo=False)
        with without(app.refund.name):
            report = (await db.recover(grace=0)).steps
            assert dict(report.without_code) == {app.refund.name: 1} and report.waiting == 1
            assert await states(db, name) == [CallState.DONE]
            assert outside.of(order).balance == 1
        assert (await db.recover()).steps.undone == 1
        assert await states(db, name) == [CallState.UNDONE]
    assert outside.of(order).balance == 0


async def test_what_no_worker_has_the_code_for_is_parked_in_the_end(
    plain_mode: str, only: list[Database], order: str
) -> None:
    soon = Settings(prepare_s=5, grace_s=5, sweep_s=60, unclaimed_s=0.001)
    async with opened(plain_mode, only, settings=soon) as db:
        name = await aborted(db, [(buy, poison, order)], undo=False)
        with without("tests.poison"):
            assert await turns(db, lambda now: now != [CallState.DONE], name) == [CallState.PARKED]
        assert "--app" in (await db.parked_steps())[0].error


async def test_arguments_that_no_longer_fit_are_parked_mended_and_undone(
    plain_mode: str, only: list[Database], order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []

    @compensation("tests.changed.v2")
    def changed(order: int, currency: str) -> None:
        done.append((order, currency))

    async with opened(plain_mode, only) as db:
        name = await aborted(db, [(buy, poison, order)], undo=False)
        monkeypatch.setitem(REGISTRY.compensations, "tests.poison", changed)
        assert (await db.undo_steps()).parked == 1
        (parked,) = await db.parked_steps()
        assert "'order' does not fit" in parked.error and parked.tries == 0
        with pytest.raises(UsageError, match="currency"):
            await db.edit_step(name, 0, '{"order": 7}', by="ada", because="numbers now")
        with pytest.raises(UsageError, match="JSON object"):
            await db.edit_step(name, 0, "[7]", by="ada", because="numbers now")
        mended = await db.edit_step(name, 0, '{"order": 7, "currency": "EUR"}', by="ada", because="numbers now")
        assert mended.checked and mended.call.arguments == '{"order":7,"currency":"EUR"}'
        await db.retry_step(name, 0, by="ada")
        assert (await db.undo_steps()).undone == 1
    assert done == [(7, "EUR")]


# ---- several workers, one of them slow ------------------------------------------------------------


async def a_worker_is_stopped_past_its_lease(only: list[Database], outside: Outside, order: str) -> list[Call]:
    """In the middle of a compensation; another takes it over and ends it; then the first goes on, and ends it, too."""
    go_on, turn = threading.Event(), threading.Lock()
    stopped: list[int] = []

    def stop() -> None:
        with turn:
            first = not stopped
            stopped.append(1)
        if first:
            go_on.wait(60)

    app.MISCHIEF["refund: before"] = stop
    async with opened("sync", only, settings=EAGER) as db:
        name = await aborted(db, [(app.charge, app.refund, order, "good")], undo=False)
        with ThreadPoolExecutor(1) as threads:
            slow = threads.submit(db.db.undo_steps)
            until(lambda: bool(stopped))
            with Coordinator({d.name: d.url for d in only}, settings=EAGER, recovery=False) as other:
                assert other.undo_steps().undone == 0, "it is somebody else's for a while"
                assert other.undo_steps(grace=0).undone == 1
            go_on.set()
            slow.result(60)
        return list(await db.steps(name))


async def test_a_worker_that_was_stopped_past_its_lease_has_no_second_effect(
    only: list[Database], outside: Outside, order: str
) -> None:
    (call,) = await a_worker_is_stopped_past_its_lease(only, outside, order)
    assert (call.state, call.tries) == (CallState.UNDONE, 2)
    assert (outside.of(order).charges, outside.of(order).refunds) == (1, 1)


async def test_with_another_key_for_each_try_it_refunds_twice(
    only: list[Database], outside: Outside, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutants.another_key_for_each_try(monkeypatch)
    await a_worker_is_stopped_past_its_lease(only, outside, order)
    assert (outside.of(order).charges, outside.of(order).refunds) == (1, 2)


async def test_a_failure_that_comes_late_takes_no_success_back(
    only: list[Database], outside: Outside, order: str
) -> None:
    """The slow worker fails in the end: what the other one has done stands."""

    def late() -> None:
        if len(app.SEEN) == 1:
            until(lambda: len(app.SEEN) == 2 and outside.of(order).refunds == 1, 30)
            raise ConnectionError("too late")

    app.MISCHIEF["refund: before"] = late
    async with opened("sync", only, settings=EAGER) as db:
        name = await aborted(db, [(app.charge, app.refund, order, "good")], undo=False)
        with ThreadPoolExecutor(1) as threads:
            slow = threads.submit(db.db.undo_steps)
            until(lambda: bool(app.SEEN))
            with Coordinator({d.name: d.url for d in only}, settings=EAGER, recovery=False) as other:
                assert other.undo_steps(grace=0).undone == 1
            assert slow.result(60).undone == 0
        assert await states(db, name) == [CallState.UNDONE]


@pytest.mark.parametrize("kind", ["postgres", "mariadb", "sqlite"])
async def test_many_workers_at_once_undo_each_step_once(
    kind: str, outside: Outside, order: str, request: Any, tmp_path: Path
) -> None:
    some = [make_database(kind, "a", request, tmp_path)]
    orders = [f"{order}-{number}" for number in range(12)]
    async with opened("sync", some, settings=QUICK) as db:
        names = [await aborted(db, [(app.charge, app.refund, one, "good")], undo=False) for one in orders]
        workers = [Coordinator({"a": some[0].url}, settings=QUICK, recovery=False).open() for _ in range(3)]
        try:
            with ThreadPoolExecutor(3) as threads:
                reports = list(threads.map(lambda worker: worker.undo_steps(), workers))
        finally:
            for worker in workers:
                worker.close()
        await db.undo_steps()
        assert sum(report.undone for report in reports) == len(orders)
        for name in names:
            assert await states(db, name) == [CallState.UNDONE]
    assert [(a.charges, a.refunds, a.asked) for a in map(outside.of, orders)] == [(1, 1, 2)] * len(orders)


# ---- the caller that is not heard of --------------------------------------------------------------


async def test_a_caller_that_is_alive_says_so_again_and_again_and_is_not_taken_for_dead(
    plain_mode: str, order: str, request: Any, tmp_path: Path
) -> None:
    some = [make_database("postgres", "a", request, tmp_path)]
    async with opened(plain_mode, some, settings=EAGER) as db:
        with Coordinator({"a": some[0].url}, settings=EAGER, recovery=False) as other:
            async with db.transaction() as tx:
                await tx.call(buy, order, undo=app.refund, timeout=1)  # then it must say that it lives
                attempt = tx.handle.attempt
                (first,) = other.steps(attempt)
                await asyncio.to_thread(until, lambda: other.steps(attempt)[0].until > first.until, 30)
                assert other.undo_steps().undone == 0
            assert (await db.status(attempt)).state is State.COMMITTED


async def test_a_caller_that_is_not_heard_of_is_aborted_and_learns_it(
    only: list[Database], outside: Outside, order: str
) -> None:
    async with opened("sync", only, settings=EAGER) as db:
        with pytest.raises(TransactionAborted):
            async with db.transaction() as tx:
                await tx.call(app.charge, order, "good", undo=app.refund)
                with Coordinator({"a": only[0].url}, settings=EAGER, recovery=False) as worker:
                    assert worker.undo_steps().undone == 0, "it has asked for some time"
                    assert worker.undo_steps(grace=0).undone == 1
                with pytest.raises(TransactionAborted):
                    await tx.call(app.charge, f"{order}-2", "good", undo=app.refund, key="late")
        assert await states(db, tx.handle.attempt) == [CallState.UNDONE]
    assert (outside.of(order).charges, outside.of(order).refunds) == (1, 1)
    assert outside.of(f"{order}-2").asked == 0


# ---- what must never be undone --------------------------------------------------------------------


def a_commit_whose_phase_two_is_not_over(db: Coordinator, order: str) -> str:
    with db.begin_distributed(order) as tx:
        tx["a"].execute("update accounts set balance = 70 where id = 0")
        tx["b"].execute("update accounts set balance = 130 where id = 0")
    db.call(order, app.charge, order, "good", undo=app.refund)
    db.commit_distributed(order, wait="decided")
    return str(tx.attempt)


@pytest.fixture
def pair(request: Any, tmp_path: Path) -> list[Database]:
    return [make_database("sqlite", "a", request, tmp_path), make_database("sqlite", "b", request, tmp_path)]


def test_what_was_committed_is_never_undone(pair: list[Database], outside: Outside, order: str) -> None:
    with Coordinator({d.name: d.url for d in pair}, settings=QUICK, recovery=False) as db:
        db.setup()
        attempt = a_commit_whose_phase_two_is_not_over(db, order)
        for _ in range(3):
            assert db.undo_steps(grace=0).undone == 0
            assert undo_directly(db, attempt).undone == 0, "whatever made a worker come to it"
            db.recover(grace=0)
    assert outside.of(order).balance == 1


def test_what_is_not_decided_is_never_undone(pair: list[Database], outside: Outside, order: str) -> None:
    """Nor what was seen to be aborted, and its server has forgotten that."""
    with Coordinator({d.name: d.url for d in pair}, settings=QUICK, recovery=False) as db:
        db.setup()
        with db.begin_distributed(order) as tx:
            tx["a"].execute("update accounts set balance = 7 where id = 0")
            tx["b"].execute("update accounts set balance = 7 where id = 0")
        db.call(order, app.charge, order, "good", undo=app.refund)
        assert undo_directly(db, str(tx.attempt)).undone == 0
        assert db.commit_distributed(order).state is State.COMMITTED
    assert outside.of(order).balance == 1


def test_a_worker_that_does_not_ask_the_register_refunds_what_was_committed(
    pair: list[Database], outside: Outside, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Coordinator({d.name: d.url for d in pair}, settings=QUICK, recovery=False) as db:
        db.setup()
        attempt = a_commit_whose_phase_two_is_not_over(db, order)
        mutants.undone_although_committed(monkeypatch)
        undo_directly(db, attempt)  # or the end of phase two, which runs behind, does: whoever comes first
    assert outside.of(order).balance == 0


def undo_directly(db: Coordinator, attempt: str) -> Undoing:
    """As a worker that has found the attempt among the unfinished."""
    return db._shell.run(undoing.undo(db._hand(), attempt))


async def test_in_order_instead_of_reverse_is_caught(
    only: list[Database], outside: Outside, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [(app.charge, app.refund, f"{order}-{number}", "good") for number in range(3)]
    async with opened("sync", only) as db:
        for expected in ((2, 1, 0), (0, 1, 2)):
            app.SEEN.clear()
            orders = [(function, undo, f"{name}-{expected[0]}", card) for function, undo, name, card in calls]
            await aborted(db, orders)
            assert [int(name.split("-")[2]) for name, _ in app.SEEN] == list(expected)
            mutants.in_order(monkeypatch)


@contextlib.contextmanager
def a_journal_that_was_set_back(
    pair: list[Database], outside: Outside, order: str, tmp_path: Path
) -> Iterator[Coordinator]:
    """To when the step had been called, and nothing decided. The COMMIT that followed is forgotten."""
    journal, backup = tmp_path / "journal.db", tmp_path / "backup.db"
    urls, at = {d.name: d.url for d in pair}, f"sqlite:///{journal}"
    with Coordinator(urls, journal=at, settings=QUICK, recovery=False) as db:
        db.setup()
        with db.transaction() as tx:
            tx.call(app.charge, order, "good", undo=app.refund)
            Database("journal", at).query(f"vacuum into '{backup}'")
            tx["a"].execute("update accounts set balance = 70 where id = 0")
            tx["b"].execute("update accounts set balance = 130 where id = 0")
    assert [d.balance() for d in pair] == [70, 130]
    with Coordinator(urls, journal=at, settings=QUICK, recovery=False) as db:
        db._ctx.drop_idle()
        for file in tmp_path.glob("journal.db*"):
            file.unlink()
        shutil.copy(backup, journal)
        yield db


def test_by_a_journal_that_was_set_back_nothing_is_undone(
    pair: list[Database], outside: Outside, order: str, tmp_path: Path
) -> None:
    with a_journal_that_was_set_back(pair, outside, order, tmp_path) as db:
        assert db.undo_steps(grace=0).undone == 0
    assert outside.of(order).balance == 1


def test_without_the_lineage_it_refunds_an_order_that_stands(
    pair: list[Database], outside: Outside, order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_journal_that_was_set_back(pair, outside, order, tmp_path) as db:
        mutants.any_journal_will_do(monkeypatch)
        assert db.undo_steps(grace=0).undone == 1
    assert (outside.of(order).balance, [d.balance() for d in pair]) == (0, [70, 130])
