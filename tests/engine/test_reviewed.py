"""Holes that reviews have found, each with the interleaving that fell into it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from kit import QUICK, Watching, make_database, opened, until
from nodoubt import (
    AsyncCoordinator,
    ClosedTransaction,
    Coordinator,
    DuplicateTransaction,
    JournalUnavailable,
    NoDoubtError,
    ResourceUnavailable,
    Settings,
    State,
    step,
)
from nodoubt.engine import sweep
from nodoubt.engine.pool import AsyncPool, ThreadPool
from nodoubt.engine.shell import ThreadShell
from nodoubt.ports import Prepared, Reply, Unclear
from nodoubt.script import Script
from nodoubt.testing.proxy import TcpProxy
from nodoubt.testing.servers import PostgresServer
from nodoubt.xid import Xid, new_attempt

BRIEF = Settings(
    connect_s=2, acquire_s=2, prepare_s=1, decide_s=2, apply_s=2, answer_s=1, grace_s=2, sweep_s=0.2, deadline_s=3600
)


def test_a_child_of_a_fork_that_falls_out_of_the_block_ends_nothing_of_its_parents(postgres: PostgresServer) -> None:
    """It committed on the parent's socket, and the parent was told that nothing had happened."""
    url = postgres.url()
    with Coordinator(url, settings=QUICK, recovery=False) as db:
        db.setup()
        with db.transaction() as tx:
            tx.execute("create table t (x int)")
        pid = 0
        try:
            with db.transaction() as tx:
                tx.execute("insert into t values (1)")
                pid = os.fork()
        except ClosedTransaction:
            if pid == 0:
                os._exit(7)
            raise
        if pid == 0:
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert tx.result is not None and tx.result.state is State.COMMITTED
        with db.transaction() as tx:
            assert tx.execute("select count(*) from t").scalar() == 1


def test_a_child_of_a_fork_that_fails_in_the_block_takes_nothing_of_its_parents_back(postgres: PostgresServer) -> None:
    """Its ROLLBACK would go to the parent's socket."""
    with Coordinator(postgres.url(), settings=QUICK, recovery=False) as db:
        db.setup()
        with db.transaction() as tx:
            tx.execute("create table t (x int)")
        pid = 0
        try:
            with db.transaction() as tx:
                tx.execute("insert into t values (1)")
                pid = os.fork()
                if pid == 0:
                    raise ZeroDivisionError
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
                assert tx.execute("select count(*) from t").scalar() == 1
        except BaseException:
            if pid == 0:
                os._exit(7)
            raise
        with db.transaction() as tx:
            assert tx.execute("select count(*) from t").scalar() == 1


def test_while_a_database_is_away_sweeps_do_not_remember_more_and_more_branches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each sweep remembered what was prepared at that moment, for as long as one database could not be asked."""
    monkeypatch.setattr(sweep, "SEEN_MAX", 100)
    ctx = Coordinator(f"sqlite:///{tmp_path}/a.db", recovery=False)._ctx
    (participant,) = ctx.participants.values()
    away = Xid("0" * 16, new_attempt(), 0)
    for turn in range(500):
        listed = {Xid("0" * 16, new_attempt(), 0) for _ in range(5)} | ({away} if turn == 0 else set())
        found = {xid: sweep._Found(participant, Prepared(xid)) for xid in listed}
        sweep._tell_ages(ctx, found, ctx.clock.elapsed(), complete=False)
        assert listed <= set(ctx.first_seen) and len(ctx.first_seen) <= 100 + 5 + 5
        assert turn > 15 or away in ctx.first_seen, "its grace goes on, if the database is away for a moment"


@pytest.mark.anyio
async def test_a_branch_that_begins_after_its_block_has_ended_is_given_back(request: Any, tmp_path: Path) -> None:
    """`gather` whose first statement fails leaves the second at work; its session was never handed back."""
    pair = [make_database("postgres", name, request, tmp_path) for name in "ab"]
    async with opened("async", pair) as db:
        pool = db.db._ctx.participants["b"].pool
        pool.drop_idle()
        with pytest.raises(Exception, match="nonsense"):
            async with db.db.transaction() as tx:
                await asyncio.gather(
                    tx["a"].execute("nonsense"), tx["b"].execute("update accounts set balance = balance + 1")
                )
        await asyncio.sleep(0)
        deadline = time.monotonic() + 10
        while pool._count:  # places taken; a session that lies idle takes none
            assert time.monotonic() < deadline, "a place of the pool is gone"
            await asyncio.sleep(0.01)
        assert not pair[1].locked()


@pytest.mark.parametrize("which", ["journal", "participant"])
def test_a_server_that_stops_answering_holds_up_nobody_for_ever(which: str) -> None:
    """Neither the decision nor the sweep was bounded; the decision's one writer held up the whole process."""
    with PostgresServer() as frozen, PostgresServer() as other:
        urls = {"a": frozen.url(), "b": other.url()} if which == "journal" else {"a": other.url(), "b": frozen.url()}

        armed = threading.Event()

        def freeze(notice: Any) -> None:
            if armed.is_set() and (notice.point, notice.what) == ("P5", "deciding"):
                frozen.freeze()

        with Coordinator(urls, settings=BRIEF, recovery=False, observer=Watching(freeze)) as db:
            db.setup()
            for name in "ab":
                with db.transaction() as tx:
                    tx[name].execute("create table t (x int)")
            armed.set()
            ended = threading.Event()

            def pay() -> None:
                with contextlib.suppress(NoDoubtError), db.transaction() as tx:
                    tx["a"].execute("insert into t values (1)")
                    tx["b"].execute("insert into t values (1)")
                ended.set()

            threading.Thread(target=pay, daemon=True).start()
            assert ended.wait(30), "the caller never got an answer"
            swept = threading.Event()

            def sweep() -> None:
                with contextlib.suppress(NoDoubtError):
                    db.recover(grace=0)
                swept.set()

            threading.Thread(target=sweep, daemon=True).start()
            assert swept.wait(30), "the sweep never ended"
            frozen.thaw()
            until(lambda: db.recover(grace=0).clean, 30)
            assert db.recover(grace=0).prepared == 0


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
async def test_the_except_block_after_a_duplicate_rolls_back_nobody_elses_work(
    kind: str, request: Any, tmp_path: Path
) -> None:
    only = make_database(kind, "a", request, tmp_path)
    async with opened("sync", [only]) as db, opened("sync", [only]) as other:
        async with other.staged("order") as tx:
            await tx.execute("a", "update accounts set balance = 7 where id = 0")
        with pytest.raises(DuplicateTransaction):
            async with db.staged("order"):
                pass
        assert (await db.rollback_distributed("order")).state is State.ABORTED
        assert (await other.commit_distributed("order")).state is State.COMMITTED
    assert only.balance() == 7


@pytest.mark.anyio
async def test_the_loser_of_two_begins_of_a_name_is_told_that_it_is_a_duplicate(request: Any, tmp_path: Path) -> None:
    pair = [make_database("postgres", name, request, tmp_path) for name in "ab"]
    async with opened("sync", pair) as db, opened("sync", pair) as other:
        with pytest.raises(DuplicateTransaction):
            async with db.staged("order") as tx:
                await tx.execute("a", "update accounts set balance = 1 where id = 0")
                async with other.staged("order") as winner:
                    await winner.execute("b", "update accounts set balance = 2 where id = 1")
        await db.rollback_distributed("order")
        assert (await other.commit_distributed("order")).state is State.COMMITTED
    assert (pair[0].balance(), pair[1].balance(1)) == (100, 2)


@pytest.mark.anyio
async def test_a_failed_begin_whose_fence_is_not_known_is_fenced_before_it_is_called_aborted(
    request: Any, tmp_path: Path
) -> None:
    """The row was lost on its way, and the fence too: "aborted" was a guess, and another process could commit."""
    pair = [make_database("sqlite", name, request, tmp_path) for name in "ab"]
    async with opened("sync", pair, journal=f"sqlite:///{tmp_path}/journal.db", settings=BRIEF) as db:
        ctx = db.db._ctx
        journal, late = ctx.journal, []

        class Lossy:
            def __getattr__(self, verb: str) -> Any:
                def lose(session: Any, *args: Any, **options: Any) -> Script[Any]:
                    if verb == "stage":
                        late.append((args, options))
                    raise Unclear("lost")
                    yield

                return lose if verb in ("stage", "insert", "confirm") else getattr(journal, verb)

        ctx.journal = Lossy()
        with pytest.raises(NoDoubtError):
            async with db.staged("order") as tx:
                await tx.move("a", "b", 30)
        with pytest.raises(JournalUnavailable):
            await db.rollback_distributed("order")
        ctx.journal = journal
        assert (await db.rollback_distributed("order")).state is State.ABORTED
        (args, options), *_ = late
        with pytest.raises(NoDoubtError):
            db.db._shell.run(_write_late(ctx, args, options))
        await db.recover(grace=0)
    assert [d.total() for d in pair] == [200, 200]


def _write_late(ctx: Any, args: Any, options: Any) -> Script[None]:
    from nodoubt.engine.context import using

    return using(ctx.journal_pool, lambda session: ctx.journal.stage(session, *args, **options))


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
async def test_work_longer_than_the_grace_is_not_aborted_under_its_open_block(
    kind: str, request: Any, tmp_path: Path
) -> None:
    """On one server the row goes before the work, and looked like that of a begin that had died."""
    only = make_database(kind, "a", request, tmp_path)
    async with opened("sync", [only]) as db, opened("sync", [only]) as sweeper:
        async with db.staged("long") as tx:
            await tx.execute("a", "update accounts set balance = 7 where id = 0")
            await sweeper.recover(grace=0)
            await sweeper.recover(grace=0)
        assert (await db.commit_distributed("long")).state is State.COMMITTED
    assert only.balance() == 7


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
async def test_work_whose_name_is_listed_is_not_asked_whether_it_wrote(kind: str, request: Any, tmp_path: Path) -> None:
    """Nor are MariaDB's counters read before it reads: it is prepared either way."""
    only = make_database(kind, "a", request, tmp_path)
    with TcpProxy.to(only.url) as proxy:
        async with opened("sync", [replace(only, url=proxy.url_for(only.url))]) as db:
            trips = []
            for order in range(3):
                proxy.reset_counts()
                async with db.staged(f"order-{order}") as tx:
                    await tx.execute("a", "select balance from accounts where id = 0")
                trips.append(proxy.round_trips)
                await db.commit_distributed(f"order-{order}")
    assert trips[-1] == 3


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
async def test_a_failed_begin_does_not_reserve_its_name_against_its_own_retry(
    kind: str, request: Any, tmp_path: Path
) -> None:
    only = make_database(kind, "a", request, tmp_path)
    async with opened("sync", [only]) as db:
        with pytest.raises(ValueError, match="mine"):
            async with db.staged("order"):
                raise ValueError("mine")
        async with db.staged("order") as tx:
            await tx.execute("a", "update accounts set balance = 7 where id = 0")
        assert (await db.commit_distributed("order")).state is State.COMMITTED
    assert only.balance() == 7


@contextlib.contextmanager
def interrupted(before: Callable[[], None]) -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread, as Ctrl-C would, in a moment; and what comes just before that."""

    def interrupt(*_: object) -> None:
        before()
        raise KeyboardInterrupt

    original = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, original)


@pytest.mark.parametrize("handed_over", [False, True], ids=["waiting", "as it is handed over"])
def test_an_interrupted_waiter_gives_its_place_in_the_pool_back(handed_over: bool) -> None:
    class Session:
        usable = True

        def kill(self) -> None: ...

    pool = ThreadPool("db", Session, size=1, acquire_s=10)  # type: ignore[arg-type]
    held = pool.acquire()

    def before() -> None:
        if handed_over:
            pool.release(held)

    with interrupted(before), pytest.raises(KeyboardInterrupt):
        pool.acquire()
    if not handed_over:
        pool.release(held)
    assert not pool.crowded
    assert pool.acquire() is held


def test_an_async_waiter_cancelled_in_the_tick_of_a_release_is_just_cancelled() -> None:
    class Session:
        usable = True

        def kill(self) -> None: ...

        async def run(self, _: str) -> tuple[Reply, ...]:
            return (Reply(),)

    async def main() -> None:
        async def connect() -> Session:
            return Session()

        pool = AsyncPool("db", connect, size=1, acquire_s=10)
        held = await pool.acquire()
        waiter = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        waiter.cancel()
        pool.release(held)
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert waiter.cancelled()
        assert await asyncio.wait_for(pool.acquire(), 5) is held

    asyncio.run(main())


@pytest.mark.parametrize("its_turn", [False, True], ids=["waiting", "as its turn comes"])
def test_an_interrupted_waiter_for_a_shared_write_does_not_become_its_writer(its_turn: bool) -> None:
    shell, gate = ThreadShell(), threading.Event()

    def write(items: list[int]) -> Script[list[int]]:
        if 1 in items:
            gate.wait(10)
        yield from ()
        return items

    batch = shell.batch(write)
    first = threading.Thread(target=batch.submit, args=(1,))
    first.start()
    until(lambda: batch._writer is not None and not batch._waiting)

    def before() -> None:
        if its_turn:
            gate.set()
            first.join()

    with interrupted(before), pytest.raises(KeyboardInterrupt):
        batch.submit(2)
    gate.set()
    first.join()
    answered = threading.Event()

    def later() -> None:
        batch.submit(3)
        answered.set()

    threading.Thread(target=later, daemon=True).start()
    assert answered.wait(10), "every later write waits for one that nobody will make"


def test_parts_of_what_runs_behind_never_wait_for_threads_that_wait_for_them() -> None:
    from nodoubt.engine import shell as module
    from nodoubt.script import Do, every

    class Step:
        def go(self) -> int:
            return 1

    original, module.THREADS_MAX = module.THREADS_MAX, 4
    try:
        shell, done = ThreadShell(), []

        def one() -> Script[int]:
            return (yield Do(Step(), "go"))  # type: ignore[no-any-return]

        def job() -> Script[None]:
            outcomes = yield from every([one(), one(), one()])
            done.append(sum(o.get() for o in outcomes))

        for _ in range(40):
            shell.behind(job())
        until(lambda: len(done) == 40)
        shell.stop()
    finally:
        module.THREADS_MAX = original


@pytest.mark.anyio
async def test_a_port_s_own_errors_never_reach_a_user(request: Any, tmp_path: Path) -> None:
    only = make_database("sqlite", "a", request, tmp_path)
    async with (
        opened("sync", [only], settings=BRIEF) as db,
        opened("sync", [only], settings=BRIEF) as other,
        other.transaction() as tx,
    ):
        await tx.execute("a", "update accounts set balance = 1")
        with pytest.raises(ResourceUnavailable, match="a"):
            async with db.transaction() as late:
                await late.execute("a", "update accounts set balance = 2")


def test_a_failed_open_can_be_tried_again() -> None:
    with PostgresServer() as server:
        url = server.url()
        with Coordinator(url, recovery=False) as db:
            db.setup()
        server.kill()
        db = Coordinator(url, settings=BRIEF, recovery=False)
        with pytest.raises(NoDoubtError):
            db.open()
        server.restart()
        with db:
            assert db.recover().clean


def test_a_verb_of_a_transaction_whose_block_has_ended_fails_as_it_is_awaited_and_leaves_nothing_unawaited(
    tmp_path: Path,
) -> None:
    """As of any coroutine function: an error at the call would leave behind what was made beside it, for `gather`."""

    @step("reviewed.charge")
    async def charge(cents: int) -> int:
        return cents

    async def main() -> list[Any]:
        async with AsyncCoordinator(f"sqlite:///{tmp_path}/a.db", recovery=False) as db:
            await db.setup()
            async with db.transaction() as over:
                await over.execute("select 1")
            made: list[Coroutine[Any, Any, Any]] = []
            for tx in (over, db.transaction()):
                for face in (tx, tx["db"]):
                    made += [face.execute("select 1"), face.execute(sqlalchemy.text("select 1"))]
                    made += [face.select_from("t").execute(), face.delete_from("t").where({"id": 1}).execute()]
                made.append(tx.call(charge, 1))
            return await asyncio.gather(*made, return_exceptions=True)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        errors = asyncio.run(main())
        gc.collect()
    assert [type(error) for error in errors] == [ClosedTransaction] * 18
    assert not [one for one in warned if "never awaited" in str(one.message)]
