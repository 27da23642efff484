"""Pools, batches and the watchdog: bounded, fair, and nothing dirty comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from kit import until
from nodoubt import Coordinator, Settings
from nodoubt.engine.pool import AsyncPool, ThreadPool
from nodoubt.engine.shell import AsyncShell, ThreadShell, Watchdog, _Threads
from nodoubt.errors import ClosedTransaction, PoolExhausted, ResourceUnavailable
from nodoubt.ports import Reply, SessionLost, Unclear
from nodoubt.script import Do, Script, do, every


class Fake:
    """A session that does nothing, and remembers what was done to it."""

    def __init__(self) -> None:
        self.usable, self.killed, self.closed = True, False, False
        self.stuck = threading.Event()

    def run(self, sql: str) -> tuple[Reply, ...]:
        return (Reply(),)

    def hang(self) -> None:
        self.stuck.wait(30)
        raise OSError("cut off")

    def close(self) -> None:
        self.closed, self.usable = True, False

    def kill(self) -> None:
        self.killed, self.usable = True, False
        self.stuck.set()

    def timed_out(self, seconds: float) -> Exception:
        return SessionLost(f"{seconds:g}")


class AFake:
    """The async twin."""

    def __init__(self) -> None:
        self.usable, self.killed = True, False

    async def run(self, _: str) -> tuple[Reply, ...]:
        return (Reply(),)

    async def hang(self) -> None:
        await asyncio.sleep(30)

    async def close(self) -> None:
        self.usable = False

    def kill(self) -> None:
        self.killed, self.usable = True, False

    def timed_out(self, seconds: float) -> Exception:
        return SessionLost(f"{seconds:g}")


def pool(size: int = 2, acquire_s: float = 0.05) -> ThreadPool:
    return ThreadPool("db", Fake, size=size, acquire_s=acquire_s)  # type: ignore[arg-type]


def test_a_pool_never_holds_more_than_its_size_and_says_so() -> None:
    two = pool()
    held = [two.acquire(), two.acquire()]
    with pytest.raises(PoolExhausted, match="pool_size"):
        two.acquire()
    two.release(held[0])
    assert two.acquire() is held[0]


def test_a_session_that_is_not_usable_never_comes_back() -> None:
    two = pool()
    one = two.acquire()
    one.usable = False
    two.release(one)
    assert one.killed  # type: ignore[attr-defined]
    assert two.acquire() is not one


def test_waiters_are_served_in_the_order_they_came() -> None:
    single = pool(1, acquire_s=10)
    held = single.acquire()
    served: list[int] = []
    queued: list[threading.Thread] = []
    for number in range(5):

        def wait(number: int = number) -> None:
            session = single.acquire()
            served.append(number)
            single.release(session)

        thread = threading.Thread(target=wait)
        thread.start()
        queued.append(thread)
        while len(single._waiting) <= number:
            time.sleep(0)
    single.release(held)
    for thread in queued:
        thread.join()
    assert served == [0, 1, 2, 3, 4]


def test_a_failed_connect_gives_its_place_back_and_names_the_database() -> None:
    def refuse() -> Fake:
        raise OSError("refused")

    broken = ThreadPool("orders", refuse, size=1, acquire_s=0.05)  # type: ignore[arg-type]
    for _ in range(3):
        with pytest.raises(ResourceUnavailable, match="orders"):
            broken.acquire()


def test_a_closed_pool_ends_what_comes_back() -> None:
    two = pool()
    one = two.acquire()
    two.close()
    two.release(one)
    assert one.killed  # type: ignore[attr-defined]
    with pytest.raises(ClosedTransaction):
        two.acquire()


def test_a_full_reserve_takes_what_is_idle_beside_it_and_gives_it_back_there() -> None:
    work = pool()
    reserve = ThreadPool("db", Fake, size=1, acquire_s=0.05, beside=work)  # type: ignore[arg-type]
    own = reserve.acquire()
    with pytest.raises(PoolExhausted):
        reserve.acquire()  # nothing is connected for it
    idle = work.acquire()
    work.release(idle)
    assert reserve.acquire() is idle
    others = [work.acquire()]
    with pytest.raises(PoolExhausted):
        work.acquire()  # it counts there as well
    reserve.release(idle)
    others.append(work.acquire())
    assert others[1] is idle
    reserve.release(own)
    assert reserve.acquire() is own  # its own come first


def test_a_reserve_takes_nothing_that_somebody_waits_for_beside_it() -> None:
    work = pool(1, acquire_s=10)
    reserve = ThreadPool("db", Fake, size=1, acquire_s=0.01, beside=work)  # type: ignore[arg-type]
    reserve.acquire()
    held = work.acquire()
    served: list[object] = []
    waiter = threading.Thread(target=lambda: served.append(work.acquire()))
    waiter.start()
    while not work._waiting:
        time.sleep(0)
    work.release(held)
    with pytest.raises(PoolExhausted):
        reserve.acquire()
    waiter.join()
    assert served == [held]


def test_an_async_reserve_borrows_by_the_same_rules() -> None:
    async def main() -> None:
        async def connect() -> AFake:
            return AFake()

        work = AsyncPool("db", connect, size=1, acquire_s=10)
        reserve = AsyncPool("db", connect, size=1, acquire_s=0.01, beside=work)
        await reserve.acquire()
        idle = await work.acquire()
        work.release(idle)
        assert await reserve.acquire() is idle
        waiter = asyncio.create_task(work.acquire())
        await asyncio.sleep(0)
        reserve.release(idle)
        with pytest.raises(PoolExhausted):
            await reserve.acquire()
        assert await waiter is idle
        idle.usable = False
        work.release(idle)
        with pytest.raises(PoolExhausted):
            await reserve.acquire()  # what is not usable comes back to nobody

    asyncio.run(main())


def test_a_child_of_a_fork_never_touches_its_parents_sessions() -> None:
    two = pool()
    idle, held = two.acquire(), two.acquire()
    two.release(idle)
    pid = os.fork()
    if pid == 0:
        two.release(held)
        fresh = two.acquire()
        untouched = not idle.killed and not held.killed  # type: ignore[attr-defined]
        os._exit(0 if untouched and fresh is not idle and fresh is not held else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert two.acquire() is idle


def test_async_waiters_are_served_in_order_and_a_cancelled_one_loses_nothing() -> None:
    async def main() -> None:
        async def connect() -> AFake:
            return AFake()

        single = AsyncPool("db", connect, size=1, acquire_s=10)
        held = await single.acquire()
        tasks = [asyncio.create_task(single.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)
        single.release(held)
        assert await tasks[1] is held
        single.release(held)
        assert await tasks[2] is held
        single.release(held)
        assert await single.acquire() is held

    asyncio.run(main())


def test_a_place_handed_to_a_waiter_who_is_cancelled_at_that_moment_is_not_lost() -> None:
    async def main() -> None:
        async def connect() -> AFake:
            return AFake()

        single = AsyncPool("db", connect, size=1, acquire_s=10)
        held = await single.acquire()
        waiter = asyncio.create_task(single.acquire())
        await asyncio.sleep(0)
        single.release(held)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert await asyncio.wait_for(single.acquire(), 5) is held

    asyncio.run(main())


def test_a_blocking_call_that_takes_too_long_is_cut_off_by_the_watchdog() -> None:
    def script(session: Fake) -> Script[None]:
        yield Do(session, "hang", (), 0.05)

    shell, session = ThreadShell(), Fake()
    with pytest.raises(ResourceUnavailable):
        shell.run(script(session))
    assert session.killed


def test_a_watchdog_that_has_gone_to_sleep_wakes_for_the_next_call() -> None:
    dog, session = Watchdog(), Fake()
    for _ in range(2):
        dog.call(Do(session, "run", ("",), 30.0))
        until(lambda: not dog._awake.is_set())
    with pytest.raises(SessionLost):
        dog.call(Do(session, "hang", (), 0.05))
    assert session.killed


class Slow(Fake):
    """Its call is answered at the moment at which it is cut off, and its end takes a while."""

    def __init__(self, waits_s: float) -> None:
        super().__init__()
        self.waits_s, self.returned, self.over = waits_s, threading.Event(), False

    def hang(self) -> None:
        self.stuck.wait(30)

    def kill(self) -> None:
        super().kill()
        self.returned.wait(self.waits_s)
        self.over = True


@pytest.mark.parametrize("sound", [True, False])
def test_a_call_that_is_answered_as_it_is_cut_off_returns_when_its_target_is_dead(*, sound: bool) -> None:
    """Who is given the target next must not be met by the end of somebody else's call. The mutant does not wait."""
    dog, session = Watchdog(), Slow(0.1 if sound else 10.0)
    if not sound:
        dog._killing = contextlib.nullcontext()  # type: ignore[assignment]
    dog.call(Do(session, "hang", (), 0.05))
    assert session.over is sound
    session.returned.set()


def test_an_async_call_that_takes_too_long_is_cut_off() -> None:
    def script(session: AFake) -> Script[None]:
        yield Do(session, "hang", (), 0.05)

    session = AFake()
    with pytest.raises(ResourceUnavailable):
        asyncio.run(AsyncShell().run(script(session)))
    assert session.killed


def test_what_runs_at_the_same_time_runs_at_the_same_time() -> None:
    """Two scripts that each wait for the other end only if both run at once."""
    barrier = threading.Barrier(2, timeout=10)

    class Meeting:
        def meet(self) -> int:
            return barrier.wait()

    def one() -> Script[int]:
        place: int = yield Do(Meeting(), "meet")
        return place

    outcomes = ThreadShell().run(every([one(), one()]))
    assert sorted(o.get() for o in outcomes) == [0, 1]


def test_concurrent_submits_share_a_write_and_each_gets_its_own_answer() -> None:
    shell = ThreadShell()
    writes: list[int] = []
    gate = threading.Event()

    def write(items: list[int]) -> Script[list[int]]:
        writes.append(len(items))
        if len(writes) == 1:
            gate.wait(10)  # while the first writes, the others queue up
        yield from ()
        return [item * 2 for item in items]

    batch = shell.batch(write)
    answers: dict[int, int] = {}
    threads = [threading.Thread(target=lambda n=n: answers.update({n: batch.submit(n)})) for n in range(20)]
    threads[0].start()
    while not writes:
        time.sleep(0)
    for thread in threads[1:]:
        thread.start()
    while len(batch._waiting) < 19:
        time.sleep(0)
    gate.set()
    for thread in threads:
        thread.join()
    assert answers == {n: n * 2 for n in range(20)}
    assert writes == [1, 19]


def test_a_write_that_fails_fails_for_all_and_the_next_one_works() -> None:
    shell = ThreadShell()

    def write(items: list[int]) -> Script[list[int]]:
        yield from ()
        if 13 in items:
            raise OSError("disk")
        return items

    batch = shell.batch(write)
    with pytest.raises(OSError, match="disk"):
        batch.submit(13)
    assert batch.submit(7) == 7


def test_async_submits_share_a_write_even_when_the_first_caller_is_cancelled() -> None:
    async def main() -> None:
        writes: list[int] = []

        class Gate:
            async def pass_(self) -> None:
                await asyncio.sleep(0)

        def write(items: list[int]) -> Script[list[int]]:
            writes.append(len(items))
            yield Do(Gate(), "pass_")
            return items

        batch = AsyncShell().batch(write)
        tasks = [asyncio.create_task(batch.submit(n)) for n in range(10)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(done[0], asyncio.CancelledError)
        assert done[1:] == list(range(1, 10))
        assert len(writes) <= 2

    asyncio.run(main())


class TimeIsOver(Exception):
    """What a signal handler may raise, as Celery's does."""


async def the_writer_is_cancelled() -> tuple[list[object], str]:
    """With all the tasks of its loop but those who wait: what they are told, and who comes later."""
    shell, writing, go_on = AsyncShell(), asyncio.Event(), asyncio.Event()

    def write(items: list[str]) -> Script[list[str]]:
        writing.set()
        yield from do(go_on, "wait")
        return [item.upper() for item in items]

    batch = shell.batch(write)
    waiting = [asyncio.create_task(batch.submit("first"))]
    await writing.wait()
    waiting.append(asyncio.create_task(batch.submit("second")))
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {*waiting, asyncio.current_task()}:
        task.cancel()
    go_on.set()
    told = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
    return told, await asyncio.wait_for(batch.submit("later"), 5)


def test_a_writer_that_is_cancelled_leaves_nobody_waiting_and_the_next_one_writes() -> None:
    """Every later decision of that coordinator waited for ever, recovery's too."""
    told, later = asyncio.run(the_writer_is_cancelled())
    assert [type(one) for one in told] == [Unclear, Unclear] and later == "LATER"


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, TimeIsOver, SystemExit])
@pytest.mark.parametrize("begun", [True, False])
def test_an_interrupt_as_a_script_is_handed_over_finds_it_done_all_the_same(
    begun: bool, interrupt: type[BaseException]
) -> None:
    shell, done = ThreadShell(), list[str]()
    at_work, may_end = threading.Event(), threading.Event()

    def script() -> Script[None]:
        at_work.set()
        assert may_end.wait(10)
        done.append("yes")
        return
        yield

    class Interrupted(_Threads):
        """Ctrl-C comes in the middle of `submit`."""

        def submit(self, *args: Any, **named: Any) -> Any:
            if begun:
                super().submit(*args, **named)
                assert at_work.wait(10)
                threading.Timer(0.05, may_end.set).start()
            else:
                may_end.set()
            raise interrupt

    shell._parents = Interrupted(1)
    with pytest.raises(interrupt):
        shell.shielded(script())
    assert done == ["yes"]
    shell.close()


def told(what: list[str], error: Exception | None = None) -> Script[None]:
    what.append("done")
    if error is not None:
        raise error
    return
    yield


def no_more_threads(*_: Any) -> None:
    raise RuntimeError("can't start new thread")


def test_where_no_thread_can_be_started_a_script_runs_in_the_callers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    shell, done = ThreadShell(), list[str]()
    monkeypatch.setattr(threading.Thread, "start", no_more_threads)
    shell.shielded(told(done))
    assert done == ["done"]
    shell.close()


def test_what_could_not_be_begun_to_run_behind_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = ThreadShell()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more_threads)
        with pytest.raises(RuntimeError, match="new thread"):
            shell.loop("never", lambda: iter(()), 0.01)  # type: ignore[arg-type, return-value]
    shell.stop()


def test_two_threads_that_begin_the_same_loop_begin_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first verbs in the child of a fork: recovery ran there as often as there were threads."""
    shell, begin = ThreadShell(), threading.Thread.start
    other = threading.Thread(target=lambda: shell.loop("twice", lambda: told([]), 60))

    def overtaken(thread: threading.Thread) -> None:
        if thread.name == "nodoubt-twice" and not other.is_alive():
            begin(other)
            other.join(0.2)  # it waits, or has begun one of its own by now
        begin(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", overtaken)
        shell.loop("twice", lambda: told([]), 60)
        other.join()
    assert [one.name for one in threading.enumerate()].count("nodoubt-twice") == 1
    shell.stop()


def test_coordinators_that_begin_together_do_not_sweep_in_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Processes that were started together would all look in the same moment, and meet at each row."""
    waits: list[float] = []

    def noted(_shell: ThreadShell, _name: str, _turn: Any, interval_s: float) -> None:
        waits.append(interval_s)

    monkeypatch.setattr(ThreadShell, "loop", noted)
    with Coordinator(f"sqlite:///{tmp_path}/a.db", settings=Settings(sweep_s=10)) as db:
        for _ in range(50):
            db._begin_behind()
    assert 8 <= min(waits) < 9 < max(waits) <= 10


def test_a_coordinator_that_cannot_begin_what_runs_behind_is_not_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It took itself for open, without recovery, and could not be closed."""
    db = Coordinator(f"sqlite:///{tmp_path}/a.db")
    db.setup()
    started: list[str] = []

    def one_only(thread: threading.Thread) -> None:
        if thread.name == "nodoubt-steps":
            no_more_threads()
        started.append(thread.name)
        start(thread)

    start = threading.Thread.start
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", one_only)
        with pytest.raises(RuntimeError, match="new thread"):
            db.open()
    assert "nodoubt-recovery" in started and not any(one.name == "nodoubt-recovery" for one in threading.enumerate())
    with pytest.raises(ClosedTransaction):
        db.transaction()


def test_where_no_more_threads_can_be_started_every_script_runs_once_and_all_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The one that was handed over waits in the queue of a thread that is busy, and must not be done there later."""
    shell, ran = ThreadShell(), list[int]()
    busy, may_end = threading.Event(), threading.Event()

    def occupy() -> None:
        busy.set()
        assert may_end.wait(10)

    occupied = shell._children.submit(occupy)
    assert busy.wait(10)

    def one(number: int) -> Script[None]:
        ran.append(number)
        return
        yield

    monkeypatch.setattr(threading.Thread, "start", no_more_threads)
    outcomes = shell.run(every([one(number) for number in range(3)]))
    assert [outcome.error for outcome in outcomes] == [None] * 3
    may_end.set()
    occupied.result(10)
    shell._children.shutdown(wait=True)
    assert sorted(ran) == [0, 1, 2]
    shell.close()


def test_after_the_close_an_interrupt_before_a_script_has_begun_finds_it_done_and_how_it_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It runs in the caller's own thread then, where Ctrl-C may come at any moment."""
    shell, done = ThreadShell(), list[str]()
    shell.close()

    def interrupted(_: Any) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Future, "set_running_or_notify_cancel", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        shell.shielded(told(done, ValueError("in doubt")))
    assert done == ["done"]
    assert any("ValueError: in doubt" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_whoever_waits_for_a_shielded_script_that_somebody_cancels_does_not_wait_for_ever(turns: int) -> None:
    """As a program does that ends all its tasks but one: before the script has begun, or in the middle of it."""

    async def main() -> None:
        async def interfere() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in asyncio.all_tasks():
                if task not in (waiting, asyncio.current_task()):
                    task.cancel()

        waiting = asyncio.current_task()
        meddler = asyncio.create_task(interfere())
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(5):
                await AsyncShell().shielded(do(asyncio, "sleep", 60))
        await meddler

    asyncio.run(main())


def test_whoever_waits_for_a_shielded_script_is_told_in_the_turn_in_which_it_ends() -> None:
    """A turn of the loop costs as much as a good deal of the engine."""

    async def main() -> int:
        loop, turns = asyncio.get_running_loop(), 0

        def turn() -> None:
            nonlocal turns
            turns += 1
            loop.call_soon(turn)

        turn()
        assert await AsyncShell().shielded(every([])) == ()
        return turns

    assert asyncio.run(main()) == 1 + 2  # to run it, and to wake whoever waits


def test_a_shielded_script_outlives_the_caller_who_is_cancelled_in_it() -> None:
    async def main() -> None:
        reached: list[str] = []

        class Step:
            async def go(self, name: str) -> None:
                await asyncio.sleep(0.01)
                reached.append(name)

        def script() -> Script[None]:
            step = Step()
            for name in ("prepare", "decide", "commit"):
                yield Do(step, "go", (name,))

        shell = AsyncShell()
        caller = asyncio.create_task(shell.shielded(script()))
        await asyncio.sleep(0.005)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await shell.stop()
        assert reached == ["prepare", "decide", "commit"]

    asyncio.run(main())
