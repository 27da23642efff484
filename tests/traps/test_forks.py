"""A child of a fork, or of multiprocessing, that goes on with its parent's coordinator and transactions.

The child has the parent's sockets, but none of its threads. It must never speak on a session of the parent's,
nor wait for
a thread that is not there. (`tests/engine/test_shell.py` holds the pools to it; SQLite files are refused to
the child by their driver: `tests/sqlite/test_sqlite_session.py`.)
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nodoubt
from kit import QUICK, Watching
from nodoubt import AsyncCoordinator, ClosedTransaction, Coordinator, Notice
from nodoubt.steps import running
from nodoubt.testing.processes import wait_for
from traps.scenes import at_rest, context, databases

CHILD_TIME_MAX_S = 30.0
FAILED = 3


def in_a_child(work: Callable[[], None]) -> int:
    """Run it in the child of a fork; its exit code, which is 0 if nothing was raised."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(FAILED)
        os._exit(0)
    ended: list[int] = []

    def reaped() -> bool:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            ended.append(os.waitstatus_to_exitcode(status))
        return bool(done)

    try:
        wait_for(reaped, "the child to end", CHILD_TIME_MAX_S)
    except BaseException:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        raise
    return ended[0]


def move(db: Coordinator) -> None:
    with db.transaction() as tx:
        step(tx)


def step(tx: Any) -> None:
    tx["a"].execute("update accounts set balance = balance - 1 where id = 0")
    tx["b"].execute("update accounts set balance = balance + 1 where id = 0")


def connections(db: Coordinator) -> set[int]:
    """The server's ids of this coordinator's idle sessions."""
    pools: list[Any] = [p for one in context(db).participants.values() for p in (one.pool, one.reserve)]
    return {session.connection_id for pool in [*pools, context(db).journal_pool] for session, _ in pool._idle}


@pytest.fixture
def pair(request: Any, tmp_path: Path) -> Any:
    return databases("postgres+mariadb", request, tmp_path)


@pytest.fixture
def db(pair: Any) -> Any:
    with Coordinator({d.name: d.url for d in pair}, settings=QUICK, recovery=False) as one:
        one.setup()
        yield one


def test_the_child_works_on_sessions_of_its_own_and_the_parents_stay_whole(db: Coordinator, pair: Any) -> None:
    move(db)
    before = connections(db)

    def work() -> None:
        move(db)
        assert not connections(db) & before
        with db.begin_distributed("child's") as tx:
            step(tx)
        db.commit_distributed("child's")
        assert db.recover(grace=0).clean
        db.close()

    assert in_a_child(work) == 0
    assert connections(db) == before
    move(db)
    assert [d.balance() for d in pair] == [96, 104] and at_rest(pair)


def test_a_process_of_multiprocessing_may_use_the_parents_coordinator(db: Coordinator, pair: Any) -> None:
    process = multiprocessing.get_context("fork").Process(target=move, args=(db,))
    process.start()
    process.join(CHILD_TIME_MAX_S)
    assert process.exitcode == 0
    move(db)
    assert [d.balance() for d in pair] == [98, 102] and at_rest(pair)


def test_a_transaction_of_the_parents_is_refused_in_the_child_and_goes_on_in_the_parent(
    db: Coordinator, pair: Any
) -> None:
    """However the child leaves the block: by the refusal, by an error of its own, or in peace."""
    error = KeyError("mine")
    for leave in ("refusal", "error", "end"):
        with db.transaction() as tx:
            step(tx)

            def work(tx: Any = tx, leave: str = leave) -> None:
                if leave == "refusal":
                    with pytest.raises(ClosedTransaction, match="parent"):
                        step(tx)
                    tx.__exit__(ClosedTransaction, ClosedTransaction(), None)
                elif leave == "error":
                    tx.__exit__(KeyError, error, None)
                else:
                    with pytest.raises(ClosedTransaction, match="parent"):
                        tx.__exit__(None, None, None)

            assert in_a_child(work) == 0
            step(tx)
        assert tx.result is not None and tx.result.complete, leave
    assert [d.balance() for d in pair] == [94, 106] and at_rest(pair)


@nodoubt.step("traps.double")
def double(number: int) -> int:
    return 2 * number


@nodoubt.compensation("traps.halve")
def halve(number: int) -> None: ...


def test_a_child_forked_while_another_thread_begins_a_step_can_call_its_own(db: Coordinator) -> None:
    """The parent's thread holds the lock of all steps, and others of them hang: none of that is in the child."""
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with running._THREADS._lock:
            held.set()
            go_on.wait(CHILD_TIME_MAX_S)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(CHILD_TIME_MAX_S)
    running._THREADS.hanging += running.HANGING_MAX

    def work() -> None:
        signal.alarm(int(CHILD_TIME_MAX_S) // 2)
        with db.transaction() as tx:
            assert tx.call(double, 4, undo=halve) == 8

    try:
        assert in_a_child(work) == 0
    finally:
        running._THREADS.hanging -= running.HANGING_MAX
        go_on.set()
        thread.join()


def test_recovery_runs_in_a_child_as_it_did_in_its_parent(pair: Any) -> None:
    """A service that goes into the background after it has opened its databases has no parent that would sweep."""
    with Coordinator({d.name: d.url for d in pair}, settings=QUICK) as db:
        db.setup()

        def work() -> None:
            with db.begin_distributed("forsaken", deadline=0.1) as tx:
                step(tx)
            names = [one.name for one in threading.enumerate()]
            assert names.count("nodoubt-recovery") == names.count("nodoubt-steps") == 1
            wait_for(lambda: at_rest(pair), "recovery to roll it back", CHILD_TIME_MAX_S / 2)
            db.close()

        for one in db._shell._loops.values():
            assert one.is_alive()
        db._shell._stop.set()  # the parent's: whoever rolls it back is the child
        for one in db._shell._loops.values():
            one.join()
        assert in_a_child(work) == 0


def test_an_asynchronous_coordinator_of_the_parent_s_can_be_used_and_closed_in_a_child(
    db: Coordinator, pair: Any
) -> None:
    async def parent() -> int:
        async with AsyncCoordinator({d.name: d.url for d in pair}, settings=QUICK) as other:
            return in_a_child(lambda: asyncio.run(child(other)))

    async def child(other: AsyncCoordinator) -> None:
        async with other.transaction() as tx:
            await tx["a"].execute("update accounts set balance = balance - 1 where id = 0")
            await tx["b"].execute("update accounts set balance = balance + 1 where id = 0")
        await other.close()

    assert asyncio.run(parent()) == 0
    assert [d.balance() for d in pair] == [99, 101] and at_rest(pair)


def test_what_the_child_does_is_told_as_its_own(db: Coordinator) -> None:
    """Whoever looks for the worker of a job, or for who decided, must not find its parent."""

    def work() -> None:
        with db.job("child's", quiet=True) as job:
            assert db.progress("child's").worker.endswith(f"/{os.getpid()}")
            job.pause()

    assert in_a_child(work) == 0
    assert not db.progress("child's").worker.endswith(f"/{os.getpid()}")


def test_a_child_forked_while_a_decision_is_being_written_can_decide_on_its_own(request: Any, tmp_path: Path) -> None:
    """The parent's thread holds the batch, its lock and a session of the journal: none of that is in the child."""
    pair = databases("mariadb+mariadb", request, tmp_path)
    own = request.getfixturevalue("postgres").url()
    deciding, go_on = threading.Event(), threading.Event()

    def notice(notice: Notice) -> None:
        if (notice.point, notice.what) == ("P2", "work"):
            return

    with Coordinator(
        {d.name: d.url for d in pair}, journal=own, settings=QUICK, recovery=False, observer=Watching(notice)
    ) as db:
        db.setup()
        ctx = context(db)
        insert = ctx.journal.insert

        def slow(session: Any, decisions: Any) -> Any:
            deciding.set()
            assert go_on.wait(CHILD_TIME_MAX_S)
            return insert(session, decisions)

        ctx.journal.insert = slow  # type: ignore[method-assign]
        thread = threading.Thread(target=move, args=(db,))
        thread.start()
        assert deciding.wait(CHILD_TIME_MAX_S)

        def work() -> None:
            ctx.journal.insert = insert  # type: ignore[method-assign]
            with db.transaction() as tx:
                tx["a"].execute("update accounts set balance = balance - 1 where id = 1")
                tx["b"].execute("update accounts set balance = balance + 1 where id = 1")

        assert in_a_child(work) == 0
        go_on.set()
        thread.join()
        ctx.journal.insert = insert  # type: ignore[method-assign]
        move(db)
    assert [d.balance(0) for d in pair] == [98, 102] and [d.balance(1) for d in pair] == [99, 101]
    assert at_rest(pair)
