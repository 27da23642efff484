"""Running a user's function with a time limit: in a thread of its own, or on the running event loop.

Both take functions of both kinds. From `Coordinator` an `async` function gets an event loop of its own, in a thread of
its own, for each call: it must bring its own clients, for those that belong to another loop do not work there. From
`AsyncCoordinator` it runs on the loop that called; an ordinary function runs in a thread.

Guarantees: whoever waits is answered when the time is up, whatever the function does; it is told so (`given_up`). What
cannot be done: a thread cannot be stopped, so an ordinary function that hangs goes on hanging, and may act later. They
are counted, and beyond a bound no more are begun.

Must not: know transactions.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import NoDoubtError, text_of
from ..script import Script, do
from .registry import Declared, StepContext

HANGING_MAX = 256  # threads of functions that nobody waits for any more
ASYNC_SLACK_S = 1.0  # for an async function that is cancelled in another thread to be gone


class GaveNoAnswer(NoDoubtError):
    """The time was up. The function may have acted, or may yet."""


class Broke(NoDoubtError):
    """The function ended in a way that is no exception: it left the process, or cancelled itself."""


class TooManyHang(NoDoubtError):
    """Nothing was begun."""


@dataclass(frozen=True, slots=True)
class Job:
    """A function with everything it is given."""

    function: Declared[..., Any]
    values: Mapping[str, Any]
    context: StepContext
    within_s: float

    @property
    def arguments(self) -> dict[str, Any]:
        given = {
            name: self.context if kind is StepContext else self.context.key
            for name, kind in self.function.given.items()
        }
        return {**self.values, **given}

    def begun(self) -> Job:
        """The same, with its time running."""
        return replace(self, context=replace(self.context, deadline=time.monotonic() + self.within_s))

    def silent(self) -> GaveNoAnswer:
        self.context.given_up.set()
        return GaveNoAnswer(f"{self.function.name} gave no answer within {self.within_s:g} s")


def run(runner: Blocking | Looping, job: Job) -> Script[Any]:
    """Call it; raises what it raises, or `GaveNoAnswer`, `Broke`, `TooManyHang`."""
    return do(runner, "run", job)


class _Threads:
    """Threads of which each runs one function and ends. Daemons: a process may end while one of them hangs."""

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """In the child of a fork, too: no thread of the parent's is here to let go of the lock, or to hang."""
        self._lock = threading.Lock()
        self.hanging = 0

    def start(self, job: Job, ended: Callable[[Any, BaseException | None], None]) -> Callable[[], None]:
        """Run it in a thread, which calls `ended`. What is returned is to be called when nobody waits any more."""
        with self._lock:
            if saturated():
                raise TooManyHang(f"{self.hanging} steps hang in this process already: it must be restarted")
        left, over = False, False

        def body() -> None:
            nonlocal over
            value: Any = None
            error: Exception | None = None
            try:
                value = _call(job)
            except StopIteration as failure:  # no future takes one, and no generator lets one through
                error = RuntimeError(f"{job.function.name} raised StopIteration")
                error.__cause__ = failure
            except BaseException as failure:
                error = failure if isinstance(failure, Exception) else _broken(job, failure)
            with self._lock:
                over = True
                self.hanging -= left
            ended(value, error)

        def leave() -> None:
            nonlocal left
            with self._lock:
                left = not over
                self.hanging += left

        run_there = contextvars.copy_context().run
        threading.Thread(target=run_there, args=(body,), name=f"nodoubt-{job.function.name}", daemon=True).start()
        return leave


def _call(job: Job) -> Any:
    if job.function.is_async:
        return asyncio.run(_limited(job))
    return job.function.function(**job.arguments)


async def _limited(job: Job) -> Any:
    return await asyncio.wait_for(job.function.function(**job.arguments), job.within_s)


def _broken(job: Job, failure: BaseException) -> Broke:
    return Broke(f"{job.function.name} ended by {type(failure).__name__}: {text_of(failure)}")


_THREADS = _Threads()
os.register_at_fork(after_in_child=_THREADS.begin_anew)


def saturated() -> bool:
    """Whether so many functions hang in this process that no more are begun."""
    return _THREADS.hanging >= HANGING_MAX


class Blocking:
    """For callers in threads."""

    def run(self, job: Job) -> Any:
        """Wait for it, not longer than its time."""
        job = job.begun()
        answered = threading.Event()
        answer: list[tuple[Any, BaseException | None]] = []

        def ended(value: Any, error: BaseException | None) -> None:
            answer.append((value, error))
            answered.set()

        leave = _THREADS.start(job, ended)
        slack_s = ASYNC_SLACK_S if job.function.is_async else 0.0
        try:
            in_time = answered.wait(job.within_s + slack_s)
        except BaseException:
            job.silent()  # Ctrl-C: whoever waited has left
            leave()
            raise
        if not in_time:
            leave()
            raise job.silent()
        value, error = answer[0]
        if isinstance(error, TimeoutError) and job.function.is_async and job.context.left_s <= 0:
            raise job.silent() from error
        if error is not None:
            raise error
        return value

    def kill(self) -> None:
        """A thread can't be stopped."""

    def timed_out(self, seconds: float) -> Exception:
        return GaveNoAnswer(f"no answer within {seconds:.3g} s")


class Looping:
    """For callers on an event loop."""

    async def run(self, job: Job) -> Any:
        """Wait for it, not longer than its time; cancelled, it is cancelled, too."""
        job = job.begun()
        loop = asyncio.get_running_loop()
        leave: Callable[[], None] = _nothing
        if job.function.is_async:
            waiting: asyncio.Future[Any] = loop.create_task(job.function.function(**job.arguments))
            leave = waiting.cancel  # type: ignore[assignment]
        else:
            waiting = loop.create_future()
            leave = _THREADS.start(job, lambda value, error: _tell(loop, waiting, value, error))
        try:
            await asyncio.wait({waiting}, timeout=job.within_s)
        finally:
            if not waiting.done():
                job.context.given_up.set()
                leave()
                waiting.add_done_callback(_retrieved)
        if not waiting.done():
            raise job.silent()
        if waiting.cancelled():
            raise Broke(f"{job.function.name} cancelled itself")
        return waiting.result()

    def kill(self) -> None:
        """Its own time limit ends the wait."""

    def timed_out(self, seconds: float) -> Exception:
        return GaveNoAnswer(f"no answer within {seconds:.3g} s")


def _nothing() -> None:
    return


def _retrieved(future: asyncio.Future[Any]) -> None:
    """So that nobody is warned of an error that came too late."""
    if not future.cancelled():
        future.exception()


def _tell(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], value: Any, error: BaseException | None
) -> None:
    def tell() -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    try:
        loop.call_soon_threadsafe(tell)
    except RuntimeError:
        return  # the loop has been closed, and with it everybody who waited


BLOCKING, LOOPING = Blocking(), Looping()
Runner = Blocking | Looping
