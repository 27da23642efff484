"""`run_distributed`: the page's robust pattern, and each place where the page's is not robust."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit import Database, Face, make_database, opened, until
from nodoubt import (
    CallState,
    Coordinator,
    InDoubt,
    Settings,
    State,
    UsageError,
)
from nodoubt.testing.proxy import TcpProxy
from steps import app
from steps.conftest import Outside
from steps.outside import Declined, ask

pytestmark = pytest.mark.anyio


@pytest.fixture
def pair(request: Any, tmp_path: Path) -> list[Database]:
    return [make_database("postgres", "a", request, tmp_path), make_database("sqlite", "b", request, tmp_path)]


@pytest.fixture
def order() -> str:
    return f"order-{secrets.token_hex(4)}"


class Broken(Exception):
    """The work's own."""


async def run(db: Face, order: str, *, card: str = "good", fails: Exception | None = None, **options: Any) -> Any:
    """On either coordinator."""
    take, give = (f"update accounts set balance = balance {sign} 30 where id = 0" for sign in "-+")

    def work(tx: Any) -> None:
        tx["a"].execute(take)
        tx["b"].execute(give)
        if fails is not None:
            raise fails

    async def awork(tx: Any) -> None:
        await tx["a"].execute(take)
        await tx["b"].execute(give)
        if fails is not None:
            raise fails

    if db.mode == "sync":
        return db.db.run_distributed(order, work, app.charge, app.refund, order, card, **options)
    return await db.db.run_distributed(order, awork, app.acharge, app.arefund, order, card, **options)


def balances(pair: list[Database]) -> tuple[int, int]:
    return pair[0].balance(), pair[1].balance()


async def test_all_goes_well(plain_mode: str, pair: list[Database], outside: Outside, order: str) -> None:
    async with opened(plain_mode, pair) as db:
        assert await run(db, order) == f"p-{order}"
        assert (await db.status(order)).state is State.COMMITTED
    assert balances(pair) == (70, 130) and outside.of(order).balance == 1


async def test_work_that_fails_compensates_nothing_for_nothing_was_done_outside(
    plain_mode: str, pair: list[Database], outside: Outside, order: str
) -> None:
    """The page issues a refund although it never came to the charge."""
    error = Broken()
    async with opened(plain_mode, pair) as db:
        with pytest.raises(Broken) as caught:
            await run(db, order, fails=error)
        assert caught.value is error
    assert balances(pair) == (100, 100) and app.SEEN == [] and outside.of(order).asked == 0


async def test_an_external_operation_that_fails_is_compensated_and_its_error_comes_out_unchanged(
    plain_mode: str, pair: list[Database], outside: Outside, order: str
) -> None:
    error = Broken("the answer was lost")

    def lose() -> None:
        raise error

    app.MISCHIEF["charge: after"] = lose
    async with opened(plain_mode, pair) as db:
        with pytest.raises(Broken) as caught:
            await run(db, order)
        assert caught.value is error and not getattr(error, "__notes__", [])
        assert [call.state for call in await db.steps(order)] == [CallState.UNDONE]
    assert balances(pair) == (100, 100) and not pair[0].locked()
    assert (outside.of(order).charges, outside.of(order).refunds) == (1, 1)


async def test_an_external_operation_that_is_in_doubt_about_something_else_is_compensated_too(
    plain_mode: str, pair: list[Database], outside: Outside, order: str
) -> None:
    """It leaves open whether it happened, as any error of it does; not what becomes of this transaction."""

    def lose() -> None:
        raise InDoubt("the reply was lost", name="another", attempt="0" * 32)

    app.MISCHIEF["charge: after"] = lose
    async with opened(plain_mode, pair) as db:
        with pytest.raises(InDoubt, match="another"):
            await run(db, order)
        assert (await db.status(order)).state is State.ABORTED
        assert [call.state for call in await db.steps(order)] == [CallState.UNDONE]
    assert balances(pair) == (100, 100) and not pair[0].locked() and not pair[0].prepared()
    assert (outside.of(order).charges, outside.of(order).refunds) == (1, 1)


async def test_a_refusal_that_is_declared_rolls_back_and_refunds_nothing(
    plain_mode: str, pair: list[Database], outside: Outside, order: str
) -> None:
    async with opened(plain_mode, pair) as db:
        with pytest.raises(Declined):
            await run(db, order, card="stolen")
        assert (await db.status(order)).state is State.ABORTED
    assert balances(pair) == (100, 100) and app.SEEN == []


async def test_a_compensation_that_fails_is_no_secret_and_is_not_given_up(
    plain_mode: str, pair: list[Database], outside: Outside, order: str
) -> None:
    """The page writes it to the console, throws the first error alone, and has done."""
    failures = [Broken("refund: the bank is closed")]

    def fail() -> None:
        if failures:
            raise failures.pop()

    def lose() -> None:
        raise Broken("charge: the answer was lost")

    app.MISCHIEF["charge: after"], app.MISCHIEF["refund: before"] = lose, fail
    eager = Settings(prepare_s=5, grace_s=5, retry_first_s=0.001, retry_most_s=0.001)
    async with opened(plain_mode, pair, settings=eager) as db:
        with pytest.raises(Broken, match="charge") as caught:
            await run(db, order)
        left = [call.state for call in await db.steps(order)]
        assert left == [CallState.UNDONE] or "1 steps" in caught.value.__notes__[0]
        while [call.state for call in await db.steps(order)] != [CallState.UNDONE]:
            await db.undo_steps()
    assert outside.of(order).balance == 0 and len(app.SEEN) == 2


async def test_what_is_not_declared_is_refused_before_any_work(
    plain_mode: str, pair: list[Database], order: str
) -> None:
    """A closure dies with its process: the page's compensation is one."""

    def plain(order: str) -> None:
        raise AssertionError

    async with opened(plain_mode, pair) as db:
        for external, compensate in ((plain, app.refund), (app.charge, plain)):
            with pytest.raises(UsageError, match="is not declared: write @nodoubt"):
                answer = db.db.run_distributed(order, plain, external, compensate, order)
                if plain_mode == "async":
                    await answer
        assert await db.transactions() == []


# ---- the reply to the commit is lost --------------------------------------------------------------

DECISION = b"EXECUTE nodoubt_decision"
IMPATIENT = Settings(connect_s=2, acquire_s=1, prepare_s=1, decide_s=0.5, apply_s=0.5, grace_s=60, sweep_s=60)


def page(db: Coordinator, order: str) -> None:
    """The page's `executeDistributedOperation`, line by line."""
    committed = False
    payment = None
    try:
        with db.begin_distributed(order) as tx:
            tx["a"].execute("update accounts set balance = balance - 30 where id = 0")
            tx["b"].execute("update accounts set balance = balance + 30 where id = 0")
        payment = ask(app.url(), "charge", key=order, order=order, card="good")
        db.commit_distributed(order)
        committed = True
    except Exception:
        if not committed:
            with contextlib.suppress(Exception):
                db.rollback_distributed(order)
        if payment:
            ask(app.url(), "refund", key=f"{order}.undo", of=order)
        raise


def ours(db: Coordinator, order: str) -> None:
    def work(tx: Any) -> None:
        tx["a"].execute("update accounts set balance = balance - 30 where id = 0")
        tx["b"].execute("update accounts set balance = balance + 30 where id = 0")

    db.run_distributed(order, work, app.charge, app.refund, order, "good")


def the_reply_to_the_commit_is_lost(
    pair: list[Database], pattern: Callable[[Coordinator, str], None], order: str
) -> None:
    """The decision stands, and for a while nobody can be asked for it; then recovery carries it out."""
    with Coordinator({d.name: d.url for d in pair}, recovery=False) as db:
        db.setup()
        with TcpProxy.to(pair[0].url) as proxy:
            urls = {"a": proxy.url_for(pair[0].url), "b": pair[1].url}
            with Coordinator(urls, settings=IMPATIENT, recovery=False) as seen:
                lost = proxy.cut_reply(DECISION, isolate=True)
                with pytest.raises(InDoubt):
                    pattern(seen, order)
                lost.wait_hit()
        until(lambda: db.recover(grace=0).clean)
        assert db.recover(grace=0).clean and db.undo_steps(grace=0).undone == 0
        assert db.status(order).state is State.COMMITTED
    assert balances(pair) == (70, 130)


def test_a_commit_whose_reply_is_lost_is_never_compensated(pair: list[Database], outside: Outside, order: str) -> None:
    the_reply_to_the_commit_is_lost(pair, ours, order)
    assert (outside.of(order).charges, outside.of(order).refunds) == (1, 0) and app.SEEN == []


def test_the_pages_own_pattern_refunds_an_order_that_stands(pair: list[Database], outside: Outside, order: str) -> None:
    the_reply_to_the_commit_is_lost(pair, page, order)
    assert (outside.of(order).charges, outside.of(order).refunds) == (1, 1)


# ---- answers of the journal that are lost ---------------------------------------------------------


@pytest.mark.parametrize("lost", [b"INSERT INTO nodoubt.calls", b"UPDATE nodoubt.calls SET"], ids=["intent", "result"])
@pytest.mark.parametrize("fault", ["cut_reply", "cut_request"])
async def test_a_lost_answer_about_a_step_has_it_called_once_all_the_same(
    plain_mode: str, pair: list[Database], outside: Outside, order: str, lost: bytes, fault: str
) -> None:
    with TcpProxy.to(pair[0].url) as proxy:
        seen = [Database("a", proxy.url_for(pair[0].url)), pair[1]]
        async with opened(plain_mode, seen) as db:
            async with db.staged(order) as tx:
                await tx.move("a", "b", 30)
            hit = getattr(proxy, fault)(lost)
            assert await db.call(order, app.charge, order, "good", undo=app.refund) == f"p-{order}"
            hit.wait_hit()
            assert [call.state for call in await db.steps(order)] == [CallState.DONE]
            await db.commit_distributed(order)
    assert balances(pair) == (70, 130)
    assert (outside.of(order).charges, outside.of(order).asked) == (1, 1)
