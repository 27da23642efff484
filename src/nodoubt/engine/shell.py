"""The two ways to run the engine: with threads, and on asyncio. Same verbs, same guarantees.

`run` runs a script for the caller, who may be cancelled in it. `shielded` runs one that must not be: from the first
PREPARE on, the phases run outside the caller's cancel scope, with deadlines of their own (I18). Natively
cancelled asyncio tasks pass through any cancel scope, so the phases run in a task of their own.

`Batch` lets concurrent callers share one write: whoever finds nobody writing writes for all who wait.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Any, Generic, ParamSpec, TypeVar

from ..errors import text_of
from ..ports import Unclear
from ..script import TICK_S, Do, Script, Watch, adrive, drive
from .context import log, plainly

R = TypeVar("R")
T = TypeVar("T")
P = ParamSpec("P")

THREADS_MAX = 1024  # a bound against a leak, not a size: threads are made as they are needed
BATCH_MAX = 64
CLOSE_WAIT_S = 60.0


class Watchdog(Watch):
    """Cuts off blocking calls that take too long: a thread looks at all of them every `TICK_S`, while there are any.

    To make a call takes no lock. Whoever takes its number out of `_open` has ended it: the call, or the watchdog; then
    the call waits until its target has been killed, so that whoever gets the target next is not met by that.
    """

    def __init__(self) -> None:
        self._open: dict[int, tuple[float, Do]] = {}  # by number: when to cut it off
        self._numbers = itertools.count()
        self._awake = threading.Event()
        self._starting = threading.Lock()
        self._killing = threading.Lock()
        self._thread: threading.Thread | None = None

    def call(self, do: Do) -> Any:
        """Make the call; if it takes longer than `within_s`, kill its target and raise `timed_out`."""
        method = getattr(do.target, do.verb)
        if do.within_s is None:
            return method(*do.args)
        number = next(self._numbers)
        try:
            self._open[number] = (time.monotonic() + do.within_s, do)
            if not self._awake.is_set():
                self._wake()
            return method(*do.args)
        except Exception as error:
            if number not in self._open:
                raise do.target.timed_out(do.within_s) from error
            raise
        finally:
            if self._open.pop(number, None) is None:
                with self._killing:
                    pass

    def _wake(self) -> None:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._look, name="nodoubt-watchdog", daemon=True)
                self._thread.start()
        self._awake.set()

    def _look(self) -> None:
        while True:
            self._awake.clear()
            if not self._open:  # a call that comes after this look finds that it has to wake us
                self._awake.wait()
            self._awake.set()
            self._cut_off(time.monotonic())
            time.sleep(TICK_S)

    def _cut_off(self, now: float) -> None:
        with self._killing:
            for number, (deadline, do) in self._open.copy().items():
                if deadline <= now and self._open.pop(number, None) is not None:
                    try:
                        do.target.kill()
                    except Exception:
                        log.exception("a call that took too long could not be cut off")


_SHELLS: weakref.WeakSet[ThreadShell | AsyncShell] = weakref.WeakSet()


def _start_anew() -> None:
    """In the child of a fork there are no threads, and no loop runs: none of the parent's may be waited for."""
    for shell in list(_SHELLS):
        shell._start()


os.register_at_fork(after_in_child=_start_anew)


class _Threads(ThreadPoolExecutor):
    """Threads; what they cannot take is done in the caller's own, at once.

    A block can outlive its coordinator, and still has to roll back what it began. And where no thread can be started,
    one that is there may have taken it all the same: it is done once.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        try:
            super().submit(_fulfil, future, fn, *args, **kwargs)
        except RuntimeError:
            if future.cancel():  # nobody has begun it, or will
                future = Future()
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)
        return future


def _fulfil(future: Future[T], fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> None:
    try:
        if future.set_running_or_notify_cancel():
            future.set_result(fn(*args, **kwargs))
    except BaseException as error:
        if not future.done():
            future.set_exception(error)
        if not isinstance(error, Exception):
            raise


class ThreadShell:
    """Runs scripts with blocking calls; what runs at the same time runs in threads."""

    def __init__(self) -> None:
        self._start()
        _SHELLS.add(self)

    def _start(self) -> None:
        # What is waited for has threads of its own: in one pool, waiting parents could leave none for their children.
        self._children = _Threads(THREADS_MAX, thread_name_prefix="nodoubt-part")
        self._parents = _Threads(THREADS_MAX, thread_name_prefix="nodoubt")
        self._watch = Watchdog()
        self._behind: set[Future[Any]] = set()
        self._aside: set[threading.Thread] = set()
        self._stop = threading.Event()
        self._starting = threading.Lock()
        self._loops: dict[str, threading.Thread] = {}

    def run(self, script: Script[R]) -> R:
        """Run it for the caller, who may be interrupted in it."""
        return self._drive(plainly(script))

    def _drive(self, script: Script[R]) -> R:
        return drive(script, executor=self._children, watch=self._watch)

    def call(self, do: Do) -> Any:
        """One call, cut off after its `within_s`."""
        return self._watch.call(do)

    def shielded(self, script: Script[R]) -> R:
        """Only the main thread is interrupted: there the script runs in another, and is waited for.

        By Ctrl-C, or by whatever a signal handler raises. How the script ended is then a note to that.
        """
        future: Future[R] | None = None
        try:
            if threading.current_thread() is not threading.main_thread():
                return self.run(script)
            future = Future()
            self._parents.submit(_fulfil, future, self.run, script)
            return future.result()
        except BaseException as error:
            if future is not None and not future.cancel() and not future.done():
                log.warning("interrupted in the middle of a commit: finishing it first; interrupt again to leave now")
                wait_for([future], timeout=CLOSE_WAIT_S)
                failure = future.exception() if future.done() else None
                if failure is not None:
                    error.add_note(f"the transaction ended in {type(failure).__name__}: {text_of(failure)}")
            elif inspect.getgeneratorstate(script) == inspect.GEN_CREATED:  # nobody has begun it, or will
                try:
                    self.run(script)
                except Exception as failed:
                    error.add_note(f"the transaction ended in {type(failed).__name__}: {text_of(failed)}")
            raise

    def behind(self, script: Script[Any]) -> None:
        """Run it in the background; `close` waits for it."""
        future: Future[Any] = self._parents.submit(self.run, script)
        self._behind.add(future)
        future.add_done_callback(self._behind.discard)

    def aside(self, script: Script[Any]) -> None:
        """The same for what may be left undone: a process that ends, its coordinator open, does not wait for it."""

        def body() -> None:
            try:
                self.run(script)
            except Exception:
                log.exception("what ran aside failed")
            finally:
                self._aside.discard(thread)

        thread = threading.Thread(target=body, name="nodoubt-aside", daemon=True)
        self._aside.add(thread)
        try:
            thread.start()
        except BaseException:
            self._aside.discard(thread)
            raise

    def loop(self, name: str, turn: Callable[[], Script[None]], interval_s: float) -> None:
        """Run `turn` every `interval_s` until `close`, once if two threads ask for it.

        A turn that fails is logged; the next one comes.
        """

        def turns() -> None:
            while not self._stop.wait(interval_s):
                try:
                    self.run(turn())
                except Exception:
                    log.exception("%s failed; the next turn is in %g s", name, interval_s)

        with self._starting:
            if name not in self._loops:
                thread = threading.Thread(target=turns, name=f"nodoubt-{name}", daemon=True)
                thread.start()
                self._loops[name] = thread  # once it runs: one that could not be started is not waited for

    def stop(self) -> None:
        """Stop the loops and wait for what runs behind."""
        self._stop.set()
        for thread in (*self._loops.values(), *self._aside.copy()):
            thread.join(CLOSE_WAIT_S)
        if self._behind:
            wait_for(list(self._behind), timeout=CLOSE_WAIT_S)

    def close(self) -> None:
        self._parents.shutdown(wait=False)
        self._children.shutdown(wait=False)

    def batch(self, write: Callable[[list[Any]], Script[list[Any]]]) -> ThreadBatch[Any]:
        return ThreadBatch(self._drive, write)


class _Entry(Generic[T]):
    """One item that waits to be written."""

    __slots__ = ("answer", "answered", "error", "item", "turn")

    def __init__(self, item: T) -> None:
        self.item = item
        self.turn = threading.Lock()  # taken until it is answered, or to be written by whoever waits here
        self.turn.acquire()
        self.answered = False
        self.answer: Any = None
        self.error: BaseException | None = None


class ThreadBatch(Generic[T]):
    """Concurrent `submit`s share one write.

    The first writes for itself; then one of those who came meanwhile, for all of them.
    """

    def __init__(self, run: Callable[[Script[Any]], Any], write: Callable[[list[T]], Script[list[Any]]]) -> None:
        self._run, self._write = run, write
        self._lock = threading.Lock()
        self._waiting: list[_Entry[T]] = []
        self._writer: _Entry[T] | None = None  # whose turn it is to write

    def submit(self, item: T) -> Any:
        entry = _Entry(item)
        with self._lock:
            self._waiting.append(entry)
            mine = self._writer is None
            if mine:
                self._writer = entry
        if not mine:
            self._wait_for_turn(entry)
        if not entry.answered:
            self._write_for_all(entry)
        if entry.error is not None:
            raise entry.error
        return entry.answer

    def _wait_for_turn(self, entry: _Entry[T]) -> None:
        try:
            entry.turn.acquire()
        except BaseException:
            # Ctrl-C: nobody will come back for this entry, so it must not be the one who writes next.
            with self._lock:
                if entry in self._waiting:
                    self._waiting.remove(entry)
                mine = self._writer is entry
            if mine:
                self._pass_on()
            raise

    def _write_for_all(self, own: _Entry[T]) -> None:
        with self._lock:
            batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
        try:
            answers = self._run(self._write([entry.item for entry in batch]))
            for entry, answer in zip(batch, answers, strict=True):
                entry.answer = answer
        except BaseException as error:
            for entry in batch:
                mine = entry is own or isinstance(error, Exception)
                entry.error = error if mine else Unclear("whoever was writing this was interrupted")
        for entry in batch:
            entry.answered = True
        self._pass_on()
        for entry in batch:
            entry.turn.release()

    def _pass_on(self) -> None:
        """Let the next who waits write, if anybody does."""
        with self._lock:
            following = self._writer = self._waiting[0] if self._waiting else None
        if following is not None:
            following.turn.release()

    def kill(self) -> None:
        """Nothing to cut off: a write is bounded by its sessions."""

    def timed_out(self, seconds: float) -> Exception:
        return TimeoutError(f"no write within {seconds:.3g} s")


class AsyncShell:
    """Runs scripts on the running event loop."""

    def __init__(self) -> None:
        self._left: list[object] = []  # the parent's tasks, in the child of a fork: they neither run nor end there
        self._start()
        _SHELLS.add(self)

    def _start(self) -> None:
        self._left += [getattr(self, "_behind", ()), getattr(self, "_loops", ())]
        self._behind: dict[asyncio.Task[Any], asyncio.Future[Any] | None] = {}  # and who waits for it
        self._loops: list[asyncio.Task[None]] = []

    def run(self, script: Script[R]) -> Coroutine[Any, Any, R]:
        """Run it for the caller, who may be cancelled in it."""
        return adrive(plainly(script))

    async def shielded(self, script: Script[R]) -> R:
        """In a task of its own: whoever cancels the caller does not reach it, and `stop` waits for it.

        It is `asyncio.shield`, in a turn of the loop less.
        """
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._spawn(_told(answer, plainly(script)), answer)
        return await answer

    def behind(self, script: Script[Any]) -> None:
        self._spawn(adrive(script))

    aside = behind  # a loop that ends cancels its tasks

    def _spawn(self, coroutine: Coroutine[Any, Any, Any], answer: asyncio.Future[Any] | None = None) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._behind[task] = answer
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        """Tell whoever still waits how it ended, if it did not end well: cancelled before it began, too."""
        answer = self._behind.pop(task, None)
        if task.cancelled():
            if answer is not None:
                answer.cancel()
        elif (error := task.exception()) is not None and answer is not None and not answer.done():
            answer.set_exception(error)

    def loop(self, name: str, turn: Callable[[], Script[None]], interval_s: float) -> None:
        async def turns() -> None:
            while True:
                await asyncio.sleep(interval_s)
                try:
                    await adrive(turn())
                except Exception:
                    log.exception("%s failed; the next turn is in %g s", name, interval_s)

        self._loops.append(asyncio.get_running_loop().create_task(turns(), name=f"nodoubt-{name}"))

    async def stop(self) -> None:
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        if self._behind:
            await asyncio.wait(list(self._behind), timeout=CLOSE_WAIT_S)

    async def close(self) -> None:
        """Nothing is left to end."""

    def batch(self, write: Callable[[list[Any]], Script[list[Any]]]) -> AsyncBatch[Any]:
        return AsyncBatch(self._spawn, write)


async def _told(answer: asyncio.Future[R], script: Script[R]) -> None:
    """Run it, and tell whoever has not left what it returned: while it ends, a turn before anybody sees that it has."""
    result = await adrive(script)
    if not answer.done():
        answer.set_result(result)


def _answer(batch: list[tuple[T, asyncio.Future[Any]]], results: list[tuple[Any, BaseException | None]]) -> None:
    """Those who still wait."""
    for (_, future), (answer, failure) in zip(batch, results, strict=True):
        if future.done():
            continue
        if failure is None:
            future.set_result(answer)
        else:
            future.set_exception(failure)


class AsyncBatch(Generic[T]):
    """The same for tasks: one task writes, batch after batch, while anybody waits."""

    def __init__(
        self, spawn: Callable[[Coroutine[Any, Any, None]], Any], write: Callable[[list[T]], Script[list[Any]]]
    ) -> None:
        self._spawn, self._write = spawn, write
        self._waiting: list[tuple[T, asyncio.Future[Any]]] = []
        self._busy = False

    async def submit(self, item: T) -> Any:
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if not self._busy:
            self._busy = True
            self._spawn(self._write_while_waiting())
        return await answer

    async def _write_while_waiting(self) -> None:
        try:
            while self._waiting:
                await self._write_some()
        finally:
            self._busy = False  # cancelled, with all the tasks of its loop: whoever comes next writes

    async def _write_some(self) -> None:
        batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
        try:
            answers = await adrive(self._write([item for item, _ in batch]))
            results: list[tuple[Any, BaseException | None]] = [(answer, None) for answer in answers]
        except Exception as error:
            results = [(None, error)] * len(batch)
        except asyncio.CancelledError:
            batch, self._waiting = batch + self._waiting, []
            _answer(batch, [(None, Unclear("whoever was writing this was cancelled"))] * len(batch))
            raise
        _answer(batch, results)

    def kill(self) -> None:
        """Nothing to cut off: a write is bounded by its sessions."""

    def timed_out(self, seconds: float) -> Exception:
        return TimeoutError(f"no write within {seconds:.3g} s")
