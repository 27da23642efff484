"""Readiness: those who were asked confirm or refuse; a commit waits for all of them. One body for sync and async."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kit import QUICK, Database, Face, make_database, opened
from nodoubt import (
    ConfirmationConflict,
    Coordinator,
    NoDoubtError,
    NotAsked,
    NotReady,
    OutcomeConflict,
    Readiness,
    State,
    TransactionAborted,
    UnknownTransaction,
    UsageError,
)
from nodoubt.engine import readiness
from nodoubt.journals import rows

pytestmark = pytest.mark.anyio

KINDS = ["sqlite", "postgres", "mariadb"]
ASKED = {"shipping", "billing"}


@pytest.fixture(params=KINDS)
def only(request: Any, tmp_path: Path) -> list[Database]:
    return [make_database(request.param, "a", request, tmp_path)]


@pytest.fixture
def name() -> str:
    return f"order-{secrets.token_hex(4)}"


async def stage(db: Face, name: str, **options: Any) -> str:
    async with db.staged(name, **options) as tx:
        await tx.execute("a", "update accounts set balance = 7 where id = ?", 0)
    return str(tx.handle.attempt)


async def test_a_commit_before_all_are_in_says_who_is_missing(plain_mode: str, only: list[Database], name: str) -> None:
    async with opened(plain_mode, only) as db:
        await stage(db, name, confirmations=ASKED)
        with pytest.raises(NotReady, match="billing, shipping have not confirmed") as caught:
            await db.commit_distributed(name)
        assert caught.value.missing == ("billing", "shipping")
        await db.confirm(name, "shipping")
        with pytest.raises(NotReady, match="billing has not confirmed"):
            await db.commit_distributed(name)
        with pytest.raises(TimeoutError, match="billing has not confirmed"):
            await db.wait_ready(name, timeout=0.05)
        assert (await db.status(name)).state is State.PREPARED
    async with opened(plain_mode, only) as other:
        await other.confirm(name, "billing")
    async with opened(plain_mode, only) as third:
        assert [one.answer for one in await third.wait_ready(name, timeout=30)] == [Readiness.CONFIRMED] * 2
        assert (await third.commit_distributed(name)).state is State.COMMITTED
    assert only[0].balance() == 7


async def test_whoever_waits_for_what_was_rolled_back_learns_it(
    plain_mode: str, only: list[Database], name: str
) -> None:
    """Nobody has refused it, and nobody will confirm it any more."""
    async with opened(plain_mode, only) as db:
        await stage(db, name, confirmations=ASKED)
        await db.rollback_distributed(name)
        with pytest.raises(TransactionAborted, match="will not be committed"):
            await db.wait_ready(name, timeout=30)


async def test_an_answer_to_an_attempt_of_another_name_is_none(
    plain_mode: str, only: list[Database], name: str
) -> None:
    async with opened(plain_mode, only) as db:
        attempt = await stage(db, name, confirmations=ASKED)
        with pytest.raises(UnknownTransaction):
            await db.confirm("another", "shipping", attempt=attempt)
        with pytest.raises(NotReady, match="billing, shipping have not confirmed"):
            await db.commit_distributed(name)


async def test_a_refusal_aborts_and_whoever_waits_learns_it(plain_mode: str, only: list[Database], name: str) -> None:
    async with opened(plain_mode, only) as db:
        attempt = await stage(db, name, confirmations=ASKED)
        await db.confirm(name, "shipping")
        result = await db.refuse(name, "billing", "no credit")
        assert (result.state, result.complete) == (State.ABORTED, True)
        assert (await db.status(name)).reason == "refused by billing: no credit"
        with pytest.raises(TransactionAborted, match="billing has refused it: no credit"):
            await db.wait_ready(name)
        with pytest.raises(OutcomeConflict):
            await db.commit_distributed(name)
        trail = [(event.what, event.detail) for event in await db.events(attempt)]
        assert ("confirmed", "by shipping") in trail and ("refused", "by billing: no credit") in trail
    assert only[0].balance() == 100 and not only[0].prepared() and not only[0].locked()


async def test_answers_are_idempotent_and_the_first_of_each_stands(
    plain_mode: str, only: list[Database], name: str
) -> None:
    async with opened(plain_mode, only) as db:
        await stage(db, name, confirmations=ASKED)
        for _ in range(2):
            await db.confirm(name, "shipping")
        with pytest.raises(ConfirmationConflict, match="confirmed .* already") as caught:
            await db.refuse(name, "shipping", "changed my mind")
        assert caught.value.stands == "confirmed"
        assert (await db.status(name)).state is State.PREPARED, "nothing was rolled back"
        for _ in range(2):
            assert (await db.refuse(name, "billing")).state is State.ABORTED
        with pytest.raises(ConfirmationConflict, match="refused"):
            await db.confirm(name, "billing")


async def test_after_the_end_an_answer_agrees_or_conflicts(plain_mode: str, only: list[Database], name: str) -> None:
    async with opened(plain_mode, only) as db:
        await stage(db, name, confirmations=ASKED)
        await db.rollback_distributed(name)
        with pytest.raises(OutcomeConflict) as caught:
            await db.confirm(name, "shipping")
        assert caught.value.stands == "aborted"
        assert (await db.refuse(name, "billing")).state is State.ABORTED
        await stage(db, f"{name}-2", confirmations={"shipping"})
        await db.confirm(f"{name}-2", "shipping")
        await db.commit_distributed(f"{name}-2")
        await db.confirm(f"{name}-2", "shipping")
        with pytest.raises(ConfirmationConflict):
            await db.refuse(f"{name}-2", "shipping")


async def test_whoever_was_not_asked_has_no_say(plain_mode: str, only: list[Database], name: str) -> None:
    async with opened(plain_mode, only) as db:
        await stage(db, name, confirmations=ASKED)
        for verb in (db.confirm, db.refuse):
            with pytest.raises(NotAsked, match="only billing, shipping can"):
                await verb(name, "marketing")
            with pytest.raises(UnknownTransaction):
                await verb("nobody's", "billing")
        await db.rollback_distributed(name)
        await stage(db, f"{name}-2")
        with pytest.raises(NotAsked, match="without confirmations"):
            await db.confirm(f"{name}-2", "shipping")
        await db.commit_distributed(f"{name}-2")


@pytest.mark.parametrize("wrong", ["shipping", {""}, {"a\nb"}, {7}, 7, {"x" * 300}])
async def test_what_cannot_be_asked_is_found_before_any_work(
    plain_mode: str, wrong: Any, request: Any, tmp_path: Path, name: str
) -> None:
    one = make_database("sqlite", "a", request, tmp_path)
    async with opened(plain_mode, [one]) as db:
        with pytest.raises(UsageError, match="confirmations="):
            async with db.staged(name, confirmations=wrong):
                raise AssertionError("work must not start")


async def test_whoever_waits_is_told_when_the_last_one_confirms(
    plain_mode: str, request: Any, tmp_path: Path, name: str
) -> None:
    one = make_database("postgres", "a", request, tmp_path)
    async with opened(plain_mode, [one]) as db:
        await stage(db, name, confirmations={"shipping"})
        with Coordinator({"a": one.url}, settings=QUICK, recovery=False) as other, ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(other.wait_ready, name, timeout=60)
            await db.confirm(name, "shipping")
            assert [said.who for said in await asyncio.to_thread(waiting.result, 60)] == ["shipping"]
        await db.commit_distributed(name)


# ---- races: the answer and the decision cannot contradict each other ------------------------------


def at_once(verbs: list[Any]) -> list[Any]:
    """All at once; what each came to."""
    gate = threading.Barrier(len(verbs))

    def one(verb: Any) -> Any:
        gate.wait()
        try:
            return verb()
        except NoDoubtError as error:
            return error

    with ThreadPoolExecutor(len(verbs)) as threads:
        return list(threads.map(one, verbs))


def race(one: Database, rounds: int) -> list[tuple[State, set[Readiness]]]:
    """The last confirmation, a refusal by the same, a commit and a rollback, by four coordinators at once."""
    seen = []
    coordinators = [Coordinator({"a": one.url}, settings=QUICK, recovery=False).open() for _ in range(4)]
    first, second, third, fourth = coordinators
    try:
        for number in range(rounds):
            name = f"race-{number}"
            with first.begin_distributed(name, confirmations={"shipping", "billing"}) as tx:
                tx["a"].execute("update accounts set balance = balance + 1 where id = 0")
            first.confirm(name, "shipping")
            before = one.balance()
            verbs: list[Any] = [
                partial(first.confirm, name, "billing"),
                partial(second.refuse, name, "billing", "no"),
                partial(third.commit_distributed, name),
                partial(third.commit_distributed, name),
            ]
            if number % 3 == 0:
                verbs.append(partial(fourth.rollback_distributed, name))
            at_once(verbs)
            if first.status(name).state is State.PREPARED:
                first.commit_distributed(name)
            state = first.status(name).state
            said = {one.answer for one in first.confirmations(tx.attempt)}
            assert one.balance() - before == (1 if state is State.COMMITTED else 0)
            seen.append((state, said))
    finally:
        for db in coordinators:
            db.close()
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_confirmation_a_refusal_and_a_commit_at_once_have_one_outcome(
    kind: str, request: Any, tmp_path: Path
) -> None:
    one = make_database(kind, "a", request, tmp_path)
    with Coordinator({"a": one.url}, recovery=False) as db:
        db.setup()
    for state, said in race(one, 9):
        if state is State.COMMITTED:
            assert said == {Readiness.CONFIRMED}, "committed against an answer"


def a_refusal_comes_between_the_look_and_the_decision(db: Coordinator, other: Coordinator, name: str) -> State:
    """The committer has seen that all are in; or so it thinks: one of them has not answered, and then refuses."""
    with db.begin_distributed(name, confirmations={"billing"}) as tx:
        tx["a"].execute("update accounts set balance = 7 where id = 0")
    with pytest.MonkeyPatch.context() as patch:

        def fooled(ctx: Any, staging: Any) -> Any:
            other._shell.run(other._refuse_only(name))  # type: ignore[attr-defined]
            yield from ()

        patch.setattr(readiness, "require", fooled)
        with contextlib.suppress(NoDoubtError):
            db.commit_distributed(name)
    return db.status(name).state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checked", [True, False], ids=["checked with the decision", "mutant: only looked at before"])
def test_the_condition_is_checked_in_the_decisions_own_transaction(
    kind: str, checked: bool, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make_database(kind, "a", request, tmp_path)
    if not checked:
        for condition in ("ready", "plain"):
            monkeypatch.setattr(rows, condition, lambda *_: "1 = 1")
    with Coordinator({"a": one.url}, settings=QUICK, recovery=False) as db:
        db.setup()
        with Coordinator({"a": one.url}, settings=QUICK, recovery=False) as other:

            def refuse_only(name: str) -> Any:
                return readiness.answer(other._ctx, name, "billing", Readiness.REFUSED, attempt=None, why="no")

            other._refuse_only = refuse_only  # type: ignore[attr-defined]
            state = a_refusal_comes_between_the_look_and_the_decision(db, other, "order-1")
        (said,) = db.confirmations(db.status("order-1").attempt)
        assert said.answer is Readiness.REFUSED
        assert state is (State.PREPARED if checked else State.COMMITTED)
        if checked:
            # Whoever refused may have died before the decision: then the reaper decides.
            assert db.reap().reaped == 1
            assert db.status("order-1").reason == "recovery: somebody who was asked refused it"
