"""A MariaDB session that has prepared a staged branch is kept for a moment, for a commit that comes at once.

It changes how long things take, and nothing else: whoever else comes first ends the session and finishes the branch.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pymysql
import pytest

from kit import QUICK, Database, Face, opened
from nodoubt import Heuristic, Settings, State
from nodoubt.engine import lingering, recent
from traps.scenes import MOVED, UNTOUCHED, at_rest, balances, context, databases, joined

pytestmark = pytest.mark.anyio
PATIENT = replace(QUICK, linger_s=600.0)
ONE_SESSION = replace(PATIENT, pool_size=1)


@pytest.fixture
def pair(request: Any, tmp_path: Path) -> list[Database]:
    return databases("sqlite+mariadb", request, tmp_path)


async def staged(db: Face, name: str = "order", amount: int = 30) -> None:
    async with db.staged(name) as tx:
        await tx.move("a", "b", amount)


def holder(db: Face) -> int:
    """The id of the one connection that lingers; 0: none does."""
    found = [kept.session.connection_id for kept in context(db).lingering.values()]
    assert len(found) <= 1
    return found[0] if found else 0


def connected(database: Database, connection: int) -> bool:
    return bool(database.query("select 1 from information_schema.processlist where id = ?", connection))


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


def connections_made(database: Database) -> int:
    return int(database.query("show global status like 'Connections'")[0][1])


@pytest.mark.parametrize("verb", ["commit", "rollback"])
async def test_a_branch_is_finished_at_once_in_the_session_that_prepared_it(
    verb: str, mode: str, pair: list[Database]
) -> None:
    async with opened(mode, pair, settings=PATIENT) as db:
        await staged(db, "first")
        await db.rollback_distributed("first")
        made = connections_made(pair[1])
        for name in ("second", "third"):
            await staged(db, name)
            connection = holder(db)
            result = await (db.commit_distributed if verb == "commit" else db.rollback_distributed)(name)
            assert result.complete and not holder(db)
            assert connected(pair[1], connection), "it went back into the pool"
        assert connections_made(pair[1]) - made <= 4, "those of the test itself"
    moved = 60 if verb == "commit" else 0
    assert balances(pair) == [100 - moved, 100 + moved] and at_rest(pair)


@pytest.mark.parametrize("verb", ["commit", "rollback"])
async def test_another_process_need_not_wait_for_it(verb: str, mode: str, pair: list[Database]) -> None:
    async with opened(mode, pair, settings=PATIENT) as db:
        await staged(db)
        connection = holder(db)
        async with joined(mode, pair) as other:
            result = await (other.commit_distributed if verb == "commit" else other.rollback_distributed)("order")
            assert result.complete
        assert not connected(pair[1], connection)
        # And whoever had kept it is told the same.
        again = await (db.commit_distributed if verb == "commit" else db.rollback_distributed)("order")
        assert again.state is result.state
    assert balances(pair) == (MOVED if verb == "commit" else UNTOUCHED) and at_rest(pair)


async def test_it_is_ended_when_its_time_is_over(mode: str, pair: list[Database]) -> None:
    async with opened(mode, pair, settings=replace(QUICK, linger_s=0.05)) as db:
        await staged(db)
        await until(lambda: not context(db).lingering and not context(db).lingering_minded)
        await until(lambda: len(pair[1].prepared()) == 1)
        async with joined(mode, pair) as other:
            await until_committed(other)
    assert balances(pair) == MOVED and at_rest(pair)


async def until_committed(db: Face) -> None:
    result = await db.commit_distributed("order")
    assert result.state is State.COMMITTED and result.complete


async def add(db: Face, name: str, account: int) -> None:
    async with db.staged(name) as tx:
        await tx.execute("a", "update accounts set balance = balance + 5 where id = ?", account)


async def test_nobody_waits_for_a_session_that_lingers(mode: str, request: Any, tmp_path: Path) -> None:
    (one,) = databases("mariadb", request, tmp_path)
    async with opened(mode, [one], settings=ONE_SESSION) as db:
        await add(db, "one", 0)
        began = time.monotonic()
        await add(db, "two", 1)
        assert time.monotonic() - began < PATIENT.linger_s
        assert len(context(db).lingering) == 1
        for name in ("one", "two"):
            assert (await db.commit_distributed(name)).complete
    assert [one.balance(account) for account in (0, 1)] == [105, 105] and at_rest([one])


async def test_whoever_is_to_end_it_may_be_cancelled_and_its_place_is_not_lost(request: Any, tmp_path: Path) -> None:
    """A program that cancels all tasks of its loop, to stop something, and goes on."""
    (one,) = databases("mariadb", request, tmp_path)
    async with opened("async", [one], settings=ONE_SESSION) as db:
        await add(db, "one", 0)
        connection = holder(db)
        behind = list(db.db._shell._behind)
        for task in behind:
            task.cancel()
        await asyncio.wait(behind)
        assert not context(db).lingering
        await until(lambda: not connected(one, connection))
        await add(db, "two", 1)
        assert len(context(db).lingering) == 1, "the next one lingers as ever"
        for name in ("one", "two"):
            assert (await db.commit_distributed(name)).complete
    assert [one.balance(account) for account in (0, 1)] == [105, 105] and at_rest([one])


LEAVES = """
import asyncio, json, sys
from traps.test_lingering import Face, PATIENT, Database, context, staged

async def main(mode, databases):
    db = Face(mode, [Database(*one) for one in databases], settings=PATIENT, recovery=True)
    await db.open()
    await staged(db)
    assert len(context(db).lingering) == 1

asyncio.run(main(*json.loads(sys.argv[1])))
"""


async def test_a_process_that_ends_without_a_close_waits_for_no_session_that_lingers(
    mode: str, pair: list[Database]
) -> None:
    """What it has prepared stays, for whoever commits it."""
    async with opened(mode, pair):
        pass
    told = json.dumps([mode, [(one.name, one.url) for one in pair]])
    paths = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", LEAVES, told],
        env={**os.environ, "PYTHONPATH": paths},
        timeout=PATIENT.linger_s / 5,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(pair[1].prepared()) == 1
    async with joined(mode, pair) as other:
        await until_committed(other)
    assert balances(pair) == MOVED and at_rest(pair)


async def test_where_nobody_can_be_found_to_end_it_it_does_not_linger(
    mode: str, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = databases("mariadb", request, tmp_path)

    def no_thread(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    async with opened(mode, [one], settings=ONE_SESSION) as db:
        with monkeypatch.context() as patch:
            patch.setattr(context(db), "aside", no_thread)
            await add(db, "one", 0)
        assert not context(db).lingering
        await add(db, "two", 1)
        assert len(context(db).lingering) == 1
        for name in ("one", "two"):
            assert (await db.commit_distributed(name)).complete
    assert [one.balance(account) for account in (0, 1)] == [105, 105] and at_rest([one])


async def test_with_its_coordinator_it_ends_and_the_branch_stays(mode: str, pair: list[Database]) -> None:
    async with opened(mode, pair, settings=PATIENT) as db:
        await staged(db)
        connection = holder(db)
    await until(lambda: not connected(pair[1], connection))
    assert len(pair[1].prepared()) == 1
    async with joined(mode, pair) as other:
        await until_committed(other)
    assert balances(pair) == MOVED and at_rest(pair)


async def test_a_session_that_has_died_meanwhile_costs_a_look_and_nothing_else(mode: str, pair: list[Database]) -> None:
    async with opened(mode, pair, settings=PATIENT) as db:
        await staged(db)
        pair[1].query(f"kill connection {holder(db)}")
        await until_committed(db)
    assert balances(pair) == MOVED and at_rest(pair)


def rolled_back_by_hand(database: Database, xid: str) -> bool:
    with contextlib.suppress(pymysql.OperationalError):  # as long as the session that was killed still holds it
        database.query(f"xa rollback {xid}")
        return True
    return False


@pytest.mark.parametrize(("trusted_s", "answer"), [(0.0, "heuristic"), (float("inf"), "committed by half")])
async def test_a_branch_that_has_lingered_for_long_is_asked_for_before_its_commit(
    trusted_s: float, answer: str, mode: str, pair: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: with a long `linger_s`, that it was kept is proof enough that no stranger has ended it."""
    monkeypatch.setattr(recent, "TRUSTED_S", trusted_s)
    async with opened(mode, pair, settings=replace(PATIENT, apply_s=1)) as db:
        await staged(db)
        (kept,) = context(db).lingering.values()
        pair[1].query(f"kill connection {kept.session.connection_id}")
        await until(lambda: rolled_back_by_hand(pair[1], kept.prepared.handle.sql))
        if answer == "heuristic":
            with pytest.raises(Heuristic, match="Nothing was decided"):
                await db.commit_distributed("order")
            await db.rollback_distributed("order")
            assert balances(pair) == UNTOUCHED and at_rest(pair)
        else:
            assert not (await db.commit_distributed("order")).complete
            assert balances(pair) == [MOVED[0], UNTOUCHED[1]]


def in_a_child(condition: Callable[[], bool]) -> bool:
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            code = 0 if condition() else 1
        os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


async def test_a_child_of_a_fork_leaves_it_to_its_parent(pair: list[Database]) -> None:
    async with opened("sync", pair, settings=PATIENT) as db:
        await staged(db)
        connection = holder(db)
        assert in_a_child(lambda: not context(db).lingering)
        assert connected(pair[1], connection)
        await until_committed(db)
    assert balances(pair) == MOVED and at_rest(pair)


async def test_handed_back_to_the_pool_it_would_refuse_the_next_one_and_hold_the_branch(
    pair: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: a session that lingers is one that is idle."""

    def stay(ctx: Any, branch: Any) -> bool:
        branch.session.usable = True
        branch.let_go()
        return True

    monkeypatch.setattr(lingering, "stay", stay)
    async with opened("sync", pair, settings=Settings(pool_size=1, sweep_s=60, grace_s=10)) as db:
        await staged(db)
        with pytest.raises(Exception, match="XAER|did not begin|refuse"):
            await staged(db, "next", 5)
        monkeypatch.undo()
        context(db).drop_idle()
        await until_committed(db)
    assert balances(pair) == MOVED
