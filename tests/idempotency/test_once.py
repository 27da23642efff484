"""I22: one effect per key, on every kind of database, sync and async by one body, at once and staged."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kit import QUICK, Database, Face, make_database, opened, until
from nodoubt import ClosedTransaction, Coordinator, KeyInFlight, KeyReused, State, UnreadableRecord, UsageError
from nodoubt.idempotency import claims, keys
from nodoubt.idempotency.store import Store

pytestmark = pytest.mark.anyio

PAIRS = [("sqlite", "sqlite"), ("postgres", "mariadb"), ("mariadb", "postgres")]
ADD = "update accounts set balance = balance + ? where id = ?"


@pytest.fixture(params=["sync", "async"])
def mode(request: Any) -> str:
    return str(request.param)


@pytest.fixture(params=PAIRS, ids="+".join)
def pair(request: Any, tmp_path: Path) -> list[Database]:
    """The journal is in the first, and so are the keys unless it is said."""
    return [make_database(kind, name, request, tmp_path) for kind, name in zip(request.param, "ab", strict=True)]


class OnceBlock:
    """A block of either coordinator."""

    def __init__(self, face: Face, once: Any) -> None:
        self.face, self.once = face, once

    async def add(self, amount: int = 1, *names: str) -> None:
        for name in names or tuple(self.face.databases):
            database = self.face.databases[name]
            statement = ADD if database.kind == "sqlite" else ADD.replace("?", "%s")
            answer = self.once[name].execute(statement, (amount, 0))
            if self.face.mode == "async":
                await answer


@contextlib.asynccontextmanager
async def once(face: Face, *args: Any, **options: Any) -> AsyncIterator[OnceBlock]:
    if face.mode == "sync":
        with face.db.once(*args, **options) as handle:
            yield OnceBlock(face, handle)
    else:
        async with face.db.once(*args, **options) as handle:
            yield OnceBlock(face, handle)


def balances(pair: list[Database]) -> list[int]:
    return [one.balance() for one in pair]


def settled(pair: list[Database]) -> bool:
    return not any(one.prepared() or one.locked() for one in pair)


async def test_a_repetition_has_no_effect_and_is_told_what_the_first_had_returned(
    mode: str, pair: list[Database]
) -> None:
    async with opened(mode, pair) as db:
        async with once(db, "charge-42", {"amount": 5, "to": "é"}) as first:
            assert not first.once.replayed
            await first.add(5)
            first.once.value = {"receipt": 7, "text": "naïve \x00 🎉"}
        assert first.once.result.state is State.COMMITTED
        for _ in range(2):
            async with once(db, "charge-42", {"to": "é", "amount": 5}) as again:
                assert again.once.replayed and again.once.result is None
                assert again.once.value == {"receipt": 7, "text": "naïve \x00 🎉"}
                with pytest.raises(ClosedTransaction, match="done before"):
                    await again.add(5)
    async with opened(mode, pair) as other, once(other, "charge-42", {"amount": 5, "to": "é"}) as again:
        assert again.once.replayed
    assert balances(pair) == [105, 105] and settled(pair)


async def test_another_payload_is_refused_and_changes_nothing(mode: str, pair: list[Database]) -> None:
    async with opened(mode, pair) as db:
        async with once(db, "k", {"amount": 5}) as first:
            await first.add(5)
        with pytest.raises(KeyReused, match="another payload"):
            async with once(db, "k", {"amount": 6}):
                raise AssertionError("work must not start")
        async with once(db, "k", {"amount": 6}, scope="another tenant") as other:
            await other.add(6)
    assert balances(pair) == [111, 111]


async def test_what_is_rolled_back_leaves_the_key_free(mode: str, pair: list[Database]) -> None:
    async with opened(mode, pair) as db:
        with pytest.raises(KeyError, match="mine"):
            async with once(db, "k") as first:
                await first.add(5)
                raise KeyError("mine")
        with pytest.raises(UsageError, match="must be JSON"):
            async with once(db, "k") as first:
                await first.add(5)
                first.once.value = object()
        assert balances(pair) == [100, 100] and settled(pair)
        async with once(db, "k") as first:
            assert not first.once.replayed
            await first.add(5)
    assert balances(pair) == [105, 105] and settled(pair)


@pytest.mark.parametrize("on", ["a", "b"])
async def test_staged_work_holds_its_key_until_it_is_decided(mode: str, pair: list[Database], on: str) -> None:
    """The PREPARE window: nobody waits in it, and nobody takes it for done."""
    async with opened(mode, pair) as db, opened(mode, pair) as other:
        async with once(db, "k", 1, staged="order-1", on=on) as first:
            await first.add(5)
            first.once.value = "order-1 it is"
        assert first.once.result.state is State.PREPARED
        for face in (db, other):
            for payload in (1, 2):
                with pytest.raises(KeyInFlight, match="in flight"):
                    async with once(face, "k", payload, on=on):
                        raise AssertionError("work must not start")
        await other.rollback_distributed("order-1")
        assert balances(pair) == [100, 100] and settled(pair)
        async with once(other, "k", 2, staged="order-2", on=on) as second:
            await second.add(5)
            second.once.value = "order-2 it is"
        await db.commit_distributed("order-2")
        async with once(db, "k", 2, on=on) as again:
            assert again.once.replayed and again.once.value == "order-2 it is"
    assert balances(pair) == [105, 105] and settled(pair)


@pytest.mark.parametrize("staged", [False, True], ids=["once", "staged"])
@pytest.mark.parametrize("kind", ["sqlite", "postgres", "mariadb"])
async def test_with_one_database_too(kind: str, staged: bool, mode: str, request: Any, tmp_path: Path) -> None:
    only = make_database(kind, "a", request, tmp_path)
    name = {"staged": "order"} if staged else {}
    async with opened(mode, [only]) as db:
        async with once(db, "k", **name) as first:
            await first.add(5)
        if staged:
            with pytest.raises(KeyInFlight):
                async with once(db, "k"):
                    pass
            await db.commit_distributed("order")
        async with once(db, "k") as again:
            assert again.once.replayed and again.once.value is None
    assert only.balance() == 105


async def test_a_second_caller_is_told_at_once_that_the_first_is_at_work(mode: str, pair: list[Database]) -> None:
    """In the same coordinator, and in another one; where SQLite is, whose file the first has locked, in the same."""
    async with opened(mode, pair) as db, opened(mode, pair) as other:
        async with once(db, "k", on="a") as first:
            await first.add(5)
            for face in (db, other) if pair[0].kind != "sqlite" else (db,):
                with pytest.raises(KeyInFlight):
                    async with once(face, "k", on="a"):
                        raise AssertionError("work must not start")
        async with once(other, "k", on="a") as again:
            assert again.once.replayed
    assert balances(pair) == [105, 105]


async def test_other_keys_are_not_in_each_others_way(mode: str, request: Any, tmp_path: Path) -> None:
    """Neighbours in the index, before and behind, while one is at work and one is prepared."""
    for kind in ("postgres", "mariadb"):
        (tmp_path / kind).mkdir()
        only = make_database(kind, "a", request, tmp_path / kind)
        async with opened(mode, [only]) as db, opened(mode, [only]) as other:
            async with once(db, "k5", staged="five"):
                pass
            async with once(db, "k3"):
                for key in ("k2", "k4", "k6", "k"):
                    async with once(other, key) as another:
                        assert not another.once.replayed
            await db.commit_distributed("five")
            for key in ("k", "k2", "k3", "k4", "k5", "k6"):
                async with once(other, key) as again:
                    assert again.once.replayed


class Receipt(msgspec.Struct):
    """A result with a type of its own."""

    number: int
    lines: tuple[str, ...]


async def test_with_the_work_given_it_returns_the_same_both_times(mode: str, pair: list[Database]) -> None:
    calls = []
    async with opened(mode, pair) as db:

        def work(tx: Any) -> Receipt:
            calls.append(tx.attempt)
            return Receipt(7, ("a", "b"))

        async def awaited(tx: Any) -> Receipt:
            return work(tx)

        for _ in range(2):
            given = await db.once("k", b"\x00raw", work if mode == "sync" else awaited, returns=Receipt)
            assert given == Receipt(7, ("a", "b"))
        plain = await db.once("k", b"\x00raw", work if mode == "sync" else awaited)
        assert plain == {"number": 7, "lines": ["a", "b"]}
    assert len(calls) == 1


async def test_a_key_that_cannot_be_read_is_neither_replayed_nor_done_again(
    mode: str, tmp_path: Path, request: Any
) -> None:
    pair = [make_database("sqlite", name, request, tmp_path) for name in "ab"]
    async with opened(mode, pair) as db:
        for key in ("torn", "whole"):
            async with once(db, key, on="a") as block:
                await block.add(1, "a")
        pair[0].query("update nodoubt_keys set payload = cast(x'ff00' as text) where idempotency_key = 'torn'")
        with pytest.raises(UnreadableRecord, match="idempotency key cannot be read"):
            async with once(db, "torn", on="a") as block:
                await block.add(1, "a")
        async with once(db, "whole", on="a") as block:
            assert block.once.replayed
    assert pair[0].balance() == 102


async def test_wrong_arguments_are_told_before_any_work(mode: str, tmp_path: Path, request: Any) -> None:
    pair = [make_database("sqlite", name, request, tmp_path) for name in "ab"]
    async with opened(mode, pair, journal=f"sqlite:///{tmp_path}/journal.db") as db:
        for args, options, told in (
            (("",), {"on": "a"}, "1 to 255"),
            (("x" * 256,), {"on": "a"}, "1 to 255"),
            (("a\nb",), {"on": "a"}, "U\\+000A"),
            ((7,), {"on": "a"}, "not int"),
            (("k", object()), {"on": "a"}, "payload of an idempotency key must be JSON"),
            (("k", {"amount": math.nan}), {"on": "a"}, "payload of an idempotency key must be JSON"),
            (("k",), {"on": "c"}, "no resource 'c'"),
            (("k",), {}, "say which database keeps it"),
            (("k",), {"on": "a", "keep": 0}, "kept for is above zero seconds"),
            (("k",), {"on": "a", "keep": "5"}, "kept for is a number of seconds, not '5'"),
            (("k",), {"on": "a", "keep": True}, "kept for is a number of seconds, not True"),
            (("k",), {"on": "a", "deadline": 5}, "staged=name"),
        ):
            with pytest.raises(UsageError, match=told):
                async with once(db, *args, **options):
                    raise AssertionError("work must not start")


async def test_old_keys_are_forgotten_in_batches_and_no_others(
    mode: str, pair: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that is prepared is not old, whatever the clock says."""
    monkeypatch.setattr("nodoubt.idempotency.store.FORGET_MAX", 2)
    async with opened(mode, pair) as db:
        for on in "ab":
            for number in range(5):
                async with once(db, f"old-{number}", on=on, keep=0.001):
                    pass
            async with once(db, "kept", on=on, keep=3600):
                pass
            async with once(db, "staged", on=on, keep=0.001, staged=f"name-{on}", deadline=0.001) as block:
                await block.add(5, on)

        def asked() -> Any:
            return db.db._shell.run(claims.expire(db.db._ctx))

        until(lambda: all(_old(one) == 5 + (one.kind == "sqlite") for one in pair))
        gone = asked() if mode == "sync" else await asked()
        assert gone == 10
        for on in "ab":
            with pytest.raises(KeyInFlight):
                async with once(db, "staged", on=on):
                    pass
            async with once(db, "kept", on=on) as again:
                assert again.once.replayed
            async with once(db, "old-3", on=on) as anew:
                assert not anew.once.replayed
            await db.rollback_distributed(f"name-{on}")


class Yesterday:
    """The clock of whoever cleans up: to it, the clocks of all databases have jumped ahead by a day."""

    elapsed = staticmethod(time.monotonic)

    @staticmethod
    def now() -> float:
        return time.time() - 24 * 3600.0


def forgotten_ahead_of_time(pair: list[Database]) -> int:
    """How many keys a clean-up takes, all of them old by the clocks of their databases alone."""
    places = {one.name: one.url for one in pair}
    with Coordinator(places, settings=QUICK, recovery=False, clock=Yesterday()) as db:
        db.setup()
        for on in "ab":
            with db.once("k", on=on, keep=0.001):
                pass
        until(lambda: all(_old(one) == 1 for one in pair))
        return db._shell.run(claims.expire(db._ctx))


def test_a_key_is_not_old_by_the_clock_of_its_database_alone(pair: list[Database]) -> None:
    assert forgotten_ahead_of_time(pair) == 0


def test_mutant_that_goes_by_that_clock_alone_forgets_keys_ahead_of_time(
    pair: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "due", lambda store, _: f"kept_until < {store.dialect.now}")
    assert forgotten_ahead_of_time(pair) == 2


def _old(one: Database) -> int:
    table = "nodoubt.keys" if one.kind == "postgres" else "nodoubt_keys"
    now = {
        "postgres": "extract(epoch from clock_timestamp())",
        "mariadb": "unix_timestamp(now(6))",
        "sqlite": "unixepoch('subsec')",
    }[one.kind]
    return int(one.query(f"select count(*) from {table} where kept_until < {now}")[0][0])


async def test_the_background_forgets_old_keys(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodoubt.life.SELDOM", 1)
    only = make_database("sqlite", "a", request, tmp_path)
    async with opened("sync", [only], recovery=True) as db:
        async with once(db, "k", keep=0.001):
            pass
        until(lambda: not only.query("select 1 from nodoubt_keys"))


async def test_of_many_at_the_same_time_one_has_the_effect(mode: str, pair: list[Database]) -> None:
    """Eight callers over two coordinators, none of whom stops before it is told the result."""
    patient = replace(QUICK, acquire_s=60, prepare_s=60, grace_s=60)  # SQLite's lock is given to whoever is lucky
    async with opened(mode, pair, settings=patient) as db, opened(mode, pair, settings=patient) as other:

        async def caller(face: Face) -> Any:
            while True:
                try:
                    async with once(face, "k", {"amount": 5}, on="a") as block:
                        if not block.once.replayed:
                            await block.add(5)
                            block.once.value = "done"
                    return block.once.value
                except KeyInFlight:
                    await asyncio.sleep(0.01)

        if mode == "async":
            told = await asyncio.gather(*(caller(face) for face in (db, other) * 4))
        else:
            told = await asyncio.gather(*(asyncio.to_thread(asyncio.run, caller(face)) for face in (db, other) * 4))
        assert told == ["done"] * 8
    assert balances(pair) == [105, 105] and settled(pair)


def test_what_is_json_already_is_kept_as_it_is() -> None:
    assert keys.stored({"x": msgspec.Raw(b"null"), "y": None}) == b'{"x":null,"y":null}'
