"""Steps in transactions, on real databases and a real service: one body for sync and async, at once and staged."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kit import Database, Face, make_database, opened, until
from nodoubt import (
    BranchDoomed,
    CallState,
    Coordinator,
    NotReady,
    OutcomeConflict,
    State,
    StepInDoubt,
    StepInFlight,
    StepRefused,
    StepTimedOut,
    TransactionAborted,
    TransactionDoomed,
    Undoing,
    UsageError,
    step,
)
from nodoubt.engine.context import Context
from nodoubt.protocol.records import Call
from nodoubt.script import Script
from nodoubt.steps import ledger
from nodoubt.wiring import RandomIds
from steps import app
from steps.conftest import Outside
from steps.outside import Declined, ask

pytestmark = pytest.mark.anyio

# Each way to call with each kind of function, and with each kind of database as the journal's.
WORLDS = [
    ("sync", "postgres+mariadb", (app.charge, app.refund)),
    ("sync", "sqlite+sqlite", (app.acharge, app.arefund)),
    ("async", "mariadb+sqlite", (app.charge, app.refund)),
    ("async", "postgres+mariadb", (app.acharge, app.arefund)),
]


@pytest.fixture(params=WORLDS, ids=lambda world: f"{world[0]}-{world[1]}-{world[2][0].function.__name__}")
def world(request: Any) -> tuple[str, str, Any]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def mode(world: tuple[str, str, Any]) -> str:
    return world[0]


@pytest.fixture
def pair(world: tuple[str, str, Any], request: Any, tmp_path: Path) -> list[Database]:
    return [make_database(kind, name, request, tmp_path) for kind, name in zip(world[1].split("+"), "ab", strict=True)]


@pytest.fixture
def functions(world: tuple[str, str, Any]) -> Any:
    return world[2]


@pytest.fixture
def order() -> str:
    return f"order-{secrets.token_hex(4)}"


def journal(pair: list[Database], tmp_path: Path) -> str | None:
    """A SQLite branch locks its file, the journal too, if that lives there: then it has a file of its own."""
    return f"sqlite:///{tmp_path}/journal.db" if pair[0].kind == "sqlite" else None


def balances(pair: list[Database]) -> tuple[int, int]:
    return pair[0].balance(), pair[1].balance()


async def states(db: Face, name: str) -> list[CallState]:
    return [call.state for call in await db.steps(name)]


async def test_a_step_that_was_answered_stands_with_its_commit(
    mode: str, pair: list[Database], functions: Any, outside: Outside, order: str, tmp_path: Path
) -> None:
    charge, refund = functions
    async with opened(mode, pair, journal=journal(pair, tmp_path)) as db:
        async with db.transaction() as tx:
            await tx.move("a", "b", 30)
            assert await tx.call(charge, order, "good", undo=refund) == f"p-{order}"
        attempt = tx.handle.attempt
        assert await states(db, attempt) == [CallState.DONE]
        assert (await db.status(attempt)).state is State.COMMITTED
        assert (await db.recover(grace=0)).clean
        assert await db.undo_steps() == Undoing(), "nothing is left to do"
    assert balances(pair) == (70, 130)
    assert (outside.of(order).charges, outside.of(order).refunds) == (1, 0)


async def test_an_exception_after_a_step_undoes_it_and_comes_out_unchanged(
    mode: str, pair: list[Database], functions: Any, outside: Outside, order: str, tmp_path: Path
) -> None:
    charge, refund = functions
    error = KeyError("mine")
    async with opened(mode, pair, journal=journal(pair, tmp_path)) as db:
        with pytest.raises(KeyError) as caught:
            async with db.transaction() as tx:
                await tx.move("a", "b", 30)
                await tx.call(charge, order, "good", undo=refund)
                raise error
        assert caught.value is error and not hasattr(error, "__notes__")
        assert await states(db, tx.handle.attempt) == [CallState.UNDONE]
        assert (await db.status(tx.handle.attempt)).state is State.ABORTED
    assert balances(pair) == (100, 100) and not any(d.prepared() or d.locked() for d in pair)
    account = outside.of(order)
    assert (account.charges, account.refunds) == (1, 1)
    ((_, context),) = app.SEEN
    assert context.result() == f"p-{order}" and context.answered and context.left_s > 0
    assert context.key == f"{context.action_key}.undo" == f"{tx.handle.attempt}.0.undo"


@pytest.mark.parametrize("wrote", [0, 1])
@pytest.mark.parametrize("end", ["commit", "abort"])
async def test_a_transaction_with_steps_ends_in_the_register_even_where_it_would_not_need_to(
    mode: str, pair: list[Database], outside: Outside, order: str, tmp_path: Path, wrote: int, end: str
) -> None:
    """No short cut for one writer, or none: whoever undoes steps has nothing but the register to go by."""
    attempt = ""
    async with opened(mode, pair, journal=journal(pair, tmp_path)) as db:
        with contextlib.suppress(KeyError):
            async with db.transaction() as tx:
                attempt = tx.handle.attempt
                await tx.call(app.charge, order, "good", undo=app.refund)
                if wrote:
                    await tx.execute("b", "update accounts set balance = 7 where id = ?", 0)
                if end == "abort":
                    raise KeyError(end)
        record = await db.status(attempt)
        assert record.state is (State.COMMITTED if end == "commit" else State.ABORTED)
        assert record.decided_at is not None
        assert (await db.recover(grace=0)).clean
    assert balances(pair) == (100, 7 if wrote and end == "commit" else 100)
    assert outside.of(order).balance == (1 if end == "commit" else 0)


async def test_steps_are_undone_from_the_last_to_the_first(
    mode: str, pair: list[Database], outside: Outside, order: str, tmp_path: Path
) -> None:
    async with opened(mode, pair, journal=journal(pair, tmp_path)) as db:
        with pytest.raises(KeyError):
            async with db.transaction() as tx:
                for number in range(4):
                    await tx.call(app.charge, f"{order}-{number}", "good", undo=app.refund, key=f"k{number}")
                raise KeyError
        assert await states(db, tx.handle.attempt) == [CallState.UNDONE] * 4
    assert [name for name, _ in app.SEEN] == [f"{order}-{number}" for number in (3, 2, 1, 0)]


async def test_a_refusal_that_the_step_declares_owes_nothing_and_the_transaction_may_go_on(
    mode: str, pair: list[Database], functions: Any, outside: Outside, order: str, tmp_path: Path
) -> None:
    charge, refund = functions
    async with opened(mode, pair, journal=journal(pair, tmp_path)) as db:
        async with db.transaction() as tx:
            await tx.move("a", "b", 30)
            with pytest.raises(Declined, match="declined"):
                await tx.call(charge, order, "stolen", undo=refund)
            with pytest.raises(StepRefused, match="another key"):
                await tx.call(charge, order, "stolen", undo=refund)
            await tx.call(charge, order, "good", undo=refund, key="second card")
        assert await states(db, tx.handle.attempt) == [CallState.REFUSED, CallState.DONE]
    assert balances(pair) == (70, 130) and outside.of(order).balance == 1 and app.SEEN == []


async def test_an_error_that_says_nothing_dooms_the_transaction_even_if_swallowed(
    mode: str, pair: list[Database], functions: Any, outside: Outside, order: str, tmp_path: Path
) -> None:
    """The charge was made, and its answer lost: to commit, or to leave it, would both be wrong."""
    charge, refund = functions

    def lose() -> None:
        raise ConnectionError("the answer was lost")

    app.MISCHIEF["charge: after"] = lose
    async with opened(mode, pair, journal=journal(pair, tmp_path)) as db:
        with pytest.raises(TransactionAborted) as caught:
            async with db.transaction() as tx:
                await tx.move("a", "b", 30)
                with pytest.raises(ConnectionError):
                    await tx.call(charge, order, "good", undo=refund)
                with pytest.raises(BranchDoomed):
                    await tx.call(charge, order, "good", undo=refund, key="again")
        assert isinstance(caught.value.__cause__, ConnectionError)
        assert await states(db, tx.handle.attempt) == [CallState.UNDONE]
    assert balances(pair) == (100, 100)
    assert (outside.of(order).charges, outside.of(order).refunds) == (1, 1)
    assert app.SEEN[0][1].answered is False and app.SEEN[0][1].result() is None


async def test_a_step_that_gives_no_answer_in_time_is_undone_and_shut_out(
    mode: str, pair: list[Database], functions: Any, outside: Outside, order: str, tmp_path: Path
) -> None:
    """Its compensation overtakes it: what comes after the fence has no effect."""
    charge, refund = functions
    go_on, gone = threading.Event(), threading.Event()

    def hang() -> None:
        go_on.wait(30)

    app.MISCHIEF["charge: before"] = hang
    app.MISCHIEF["charge: after"] = gone.set
    async with opened(mode, pair, journal=journal(pair, tmp_path)) as db:
        with pytest.raises(StepTimedOut, match="may have happened"):
            async with db.transaction() as tx:
                await tx.call(charge, order, "good", undo=refund, timeout=0.2)
        assert await states(db, tx.handle.attempt) == [CallState.UNDONE]
        go_on.set()
        with pytest.raises(Declined, match="refunded before"):
            ask(outside.url, "charge", key=f"{tx.handle.attempt}.0", order=order, card="good")
    assert outside.of(order).charges == 0 and not gone.is_set()


async def test_the_end_of_a_block_waits_for_no_step_that_still_runs(
    only: list[Database], outside: Outside, order: str
) -> None:
    async with opened("async", only) as db:
        go_on = threading.Event()
        app.MISCHIEF["charge: before"] = lambda: go_on.wait(30)
        with pytest.raises(TransactionAborted, match="still running"):
            async with db.transaction() as tx:
                task = asyncio.ensure_future(tx.call(app.charge, order, "good", undo=app.refund))
                await asyncio.to_thread(until, lambda: bool(tx.handle._open.calling))
        go_on.set()
        with pytest.raises((TransactionAborted, Declined)):
            await task
        await db.undo_steps()
    assert outside.of(order).balance == 0


# ---- between begin and commit, by name ------------------------------------------------------------


async def stage(db: Face, name: str, **options: Any) -> str:
    async with db.staged(name, **options) as tx:
        await tx.move("a", "b", 30)
    return str(tx.handle.attempt)


async def test_steps_are_called_by_name_between_begin_and_commit_from_any_process(
    mode: str, pair: list[Database], functions: Any, outside: Outside, order: str
) -> None:
    charge, refund = functions
    async with opened(mode, pair) as db:
        await stage(db, order)
    async with opened(mode, pair) as other:
        assert await other.call(order, charge, order, "good", undo=refund) == f"p-{order}"
    async with opened(mode, pair) as third:
        assert await third.call(order, charge, order, "good", undo=refund) == f"p-{order}", "asked again, told again"
        assert (await third.commit_distributed(order)).state is State.COMMITTED
        assert await third.call(order, charge, order, "good", undo=refund) == f"p-{order}"
        with pytest.raises(OutcomeConflict):
            await third.call(order, charge, order, "good", undo=refund, key="late")
    assert balances(pair) == (70, 130)
    assert (outside.of(order).charges, outside.of(order).asked) == (1, 1)


async def test_a_rollback_by_name_undoes_steps_and_fences_those_to_come(
    mode: str, pair: list[Database], functions: Any, outside: Outside, order: str
) -> None:
    charge, refund = functions
    async with opened(mode, pair) as db:
        attempt = await stage(db, order)
        await db.call(order, charge, order, "good", undo=refund)
    async with opened(mode, pair) as other:
        result = await other.rollback_distributed(order)
        assert (result.state, result.undoing) == (State.ABORTED, 0)
        for key in (None, "late"):
            with pytest.raises(TransactionAborted, match="not begun"):
                await other.call(order, charge, order, "good", undo=refund, key=key)
        assert await states(other, attempt) == [CallState.UNDONE]
    assert balances(pair) == (100, 100)
    assert (outside.of(order).charges, outside.of(order).refunds) == (1, 1)


async def test_what_is_staged_is_not_committed_while_a_step_is_in_doubt(
    mode: str, pair: list[Database], functions: Any, outside: Outside, order: str
) -> None:
    charge, refund = functions

    def lose() -> None:
        raise ConnectionError("the answer was lost")

    app.MISCHIEF["charge: after"] = lose
    async with opened(mode, pair) as db:
        await stage(db, order)
        with pytest.raises(ConnectionError):
            await db.call(order, charge, order, "good", undo=refund)
        with pytest.raises(NotReady, match="charge") as caught:
            await db.commit_distributed(order)
        assert len(caught.value.steps) == 1
        assert (await db.status(order)).state is State.PREPARED
        app.MISCHIEF.clear()
        with pytest.raises(TransactionDoomed, match="not declared idempotent"):
            await db.call(order, charge, order, "good", undo=refund)
        await db.rollback_distributed(order)
    assert balances(pair) == (100, 100)
    assert (outside.of(order).charges, outside.of(order).refunds) == (1, 1)


async def test_a_step_that_is_declared_idempotent_is_called_again_under_its_key(
    mode: str, pair: list[Database], outside: Outside, order: str
) -> None:
    def lose() -> None:
        raise ConnectionError("the answer was lost")

    app.MISCHIEF["charge: after"] = lose
    async with opened(mode, pair) as db:
        await stage(db, order)
        with pytest.raises(ConnectionError):
            await db.call(order, app.charge_idempotently, order, "good", undo=app.refund)
        app.MISCHIEF.clear()
        assert await db.call(order, app.charge_idempotently, order, "good", undo=app.refund) == f"p-{order}"
        await db.commit_distributed(order)
    assert balances(pair) == (70, 130)
    assert (outside.of(order).charges, outside.of(order).asked) == (1, 2)


async def test_while_a_step_is_under_way_whoever_calls_it_again_is_told_to_ask_later_and_nothing_is_lost(
    mode: str, pair: list[Database], outside: Outside, order: str
) -> None:
    told: list[StepInDoubt] = []

    def call_it_elsewhere() -> None:
        app.MISCHIEF.clear()
        with Coordinator({one.name: one.url for one in pair}, recovery=False) as other:
            try:
                other.call(order, app.charge_idempotently, order, "good", undo=app.refund)
            except StepInDoubt as error:
                told.append(error)

    app.MISCHIEF["charge: after"] = call_it_elsewhere
    async with opened(mode, pair) as db:
        await stage(db, order)
        again = app.charge_idempotently, order, "good"
        assert await db.call(order, *again, undo=app.refund) == f"p-{order}"
        assert [type(one) for one in told] == [StepInFlight] and "call it again with the same key" in str(told[0])
        assert await db.call(order, *again, undo=app.refund) == f"p-{order}"
        await db.commit_distributed(order)
    assert balances(pair) == (70, 130)
    assert (outside.of(order).charges, outside.of(order).asked) == (1, 1)


def two_call_at_once(database: Database, order: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two threads call one step under one key, neither of which has seen the other: what they are told.

    Their clock shows both the same time.
    """
    both, told = threading.Barrier(2), list[str]()
    at, intend = time.time(), ledger.intend

    def now(_: Context) -> Script[float]:
        return at
        yield

    def meet(ctx: Context, record: Call) -> Script[None]:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(5)
        yield from intend(ctx, record)

    def call() -> None:
        try:
            told.append(db.call(order, app.charge, order, "good", undo=app.refund))
        except TransactionDoomed:
            told.append("doomed")

    monkeypatch.setattr(ledger, "now", now)
    monkeypatch.setattr(ledger, "intend", meet)
    with Coordinator(database.url, recovery=False) as db:
        db.setup()
        with db.begin_distributed(order) as tx:
            tx.execute("update accounts set balance = 7 where id = 0")
        threads = [threading.Thread(target=call) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        db.rollback_distributed(order)
    return sorted(told)


def test_of_two_who_call_at_the_same_moment_under_one_key_one_acts(
    only: list[Database], outside: Outside, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert two_call_at_once(only[0], order, monkeypatch) == ["doomed", f"p-{order}"]


def test_two_who_are_told_apart_by_their_clocks_alone_both_act(
    only: list[Database], outside: Outside, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RandomIds, "mark", lambda _: "0" * 16)
    assert two_call_at_once(only[0], order, monkeypatch) == [f"p-{order}"] * 2


async def test_one_key_with_other_arguments_is_an_error_and_nothing_is_done(
    mode: str, pair: list[Database], outside: Outside, order: str
) -> None:
    async with opened(mode, pair) as db:
        await stage(db, order)
        await db.call(order, app.charge, order, "good", undo=app.refund)
        with pytest.raises(UsageError, match="key"):
            await db.call(order, app.charge, f"{order}-other", "good", undo=app.refund)
        with pytest.raises(UsageError, match="key"):
            await db.call(order, app.charge, order, "good")
        await db.commit_distributed(order)
    assert outside.of(order).balance == 1 and outside.of(f"{order}-other").charges == 0


async def test_a_step_in_the_block_of_what_is_staged_belongs_to_it(
    mode: str, pair: list[Database], outside: Outside, order: str, tmp_path: Path
) -> None:
    async with opened(mode, pair, journal=journal(pair, tmp_path)) as db:
        async with db.staged(order) as tx:
            await tx.call(app.charge, order, "good", undo=app.refund)
            await tx.move("a", "b", 30)
        await db.call(order, app.charge, f"{order}-2", "good", undo=app.refund, key="second")
        await db.rollback_distributed(order)
        assert await states(db, order) == [CallState.UNDONE] * 2
        with pytest.raises(KeyError):
            async with db.staged(f"{order}-b") as tx:
                await tx.call(app.charge, f"{order}-3", "good", undo=app.refund)
                await tx.move("a", "b", 30)
                raise KeyError
        assert (await db.rollback_distributed(f"{order}-b")).state is State.ABORTED
    assert balances(pair) == (100, 100) and not any(d.prepared() or d.locked() for d in pair)
    assert [outside.of(one).balance for one in (order, f"{order}-2", f"{order}-3")] == [0, 0, 0]


# ---- retries, and what cannot be stored -----------------------------------------------------------


class Busy(Exception):
    """Try again."""


TRIES: list[str] = []


@step("tests.flaky", retry_on=(Busy,), tries=3)
def flaky(failures: int) -> int:
    TRIES.append("flaky")
    if len(TRIES) <= failures:
        raise Busy
    return len(TRIES)


@step("tests.once")
def once() -> None:
    TRIES.append("once")
    raise Busy


@step("tests.odd")
def odd() -> Any:
    TRIES.append("odd")
    return object()


@pytest.fixture
def only(request: Any, tmp_path: Path) -> list[Database]:
    return [make_database("postgres", "a", request, tmp_path)]


async def test_an_action_is_repeated_only_where_its_function_declares_that_it_may_be(
    plain_mode: str, only: list[Database]
) -> None:
    async with opened(plain_mode, only) as db:
        db.db._ctx.settings = quick = type(db.db._ctx.settings)(retry_first_s=0.01, retry_most_s=0.01)
        assert quick.retry_first_s == 0.01
        TRIES.clear()
        async with db.transaction() as tx:
            assert await tx.call(flaky, 2) == 3
        for step_, args, tries in ((flaky, (9,), 3), (once, (), 1)):
            TRIES.clear()
            with pytest.raises(Busy):
                async with db.transaction() as tx:
                    await tx.call(step_, *args)
            assert len(TRIES) == tries
            assert await states(db, tx.handle.attempt) == [CallState.NOTHING], "there is nothing to undo it with"


async def test_a_result_that_cannot_be_stored_is_an_error_after_which_nothing_is_committed(
    plain_mode: str, only: list[Database]
) -> None:
    TRIES.clear()
    async with opened(plain_mode, only) as db:
        with pytest.raises(TransactionAborted, match="JSON"):
            async with db.transaction() as tx:
                with pytest.raises(UsageError, match="JSON"):
                    await tx.call(odd)
    assert TRIES == ["odd"]


def test_where_nothing_can_tell_that_this_process_is_alive_no_step_is_begun_and_the_next_is_told_of(
    only: list[Database], outside: Outside, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each later step of this process was taken for one of the dead after its time."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Coordinator(only[0].url, recovery=False) as db:
        db.setup()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="new thread"), db.transaction() as tx:
                tx.call(app.charge, order, "good", undo=app.refund)
        assert outside.of(order).asked == 0
        with db.transaction() as tx:
            tx.call(app.charge, order, "good", undo=app.refund)
        assert any(one.name == "nodoubt-holding" for one in threading.enumerate())


async def test_a_step_in_a_file_that_its_own_transaction_has_locked_is_refused_before_anything_is_done(
    plain_mode: str, outside: Outside, order: str, request: Any, tmp_path: Path
) -> None:
    one = make_database("sqlite", "a", request, tmp_path)
    async with opened(plain_mode, [one]) as db:
        began = time.monotonic()
        async with db.transaction() as tx:
            await tx.call(app.charge, order, "good", undo=app.refund)
            await tx.execute("a", "update accounts set balance = 7 where id = 0")
            with pytest.raises(UsageError, match="before the first statement"):
                await tx.call(app.charge, order, "good", undo=app.refund, key="late")
        assert time.monotonic() - began < 5, "nobody has waited for a lock"
    assert one.balance() == 7 and outside.of(order).balance == 1


async def test_a_cancelled_step_is_undone(only: list[Database], outside: Outside, order: str) -> None:
    """I18: its own task is cancelled in the middle of it; the end of the block is not."""
    reached, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        reached.set()
        go_on.wait(30)

    app.MISCHIEF["charge: after"] = wait
    async with opened("async", only) as db:
        handles: list[Any] = []

        async def work() -> None:
            async with db.transaction() as tx:
                handles.append(tx.handle)
                await tx.call(app.charge, order, "good", undo=app.refund)

        task = asyncio.ensure_future(work())
        await asyncio.to_thread(reached.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        assert await states(db, handles[0].attempt) == [CallState.UNDONE]
    assert (outside.of(order).charges, outside.of(order).refunds) == (1, 1)
