"""Scripts: a sequence of I/O is written once, as a generator, and run sync or async by a driver.

A script yields effects and is sent their results. There are three effects: `Do` calls one method of
one object, `Every` runs several scripts at the same time, `Pause` waits. `drive` (threads) and `adrive`
(asyncio) are the only places where anything happens, so a test or a simulator that replaces
them owns every step.

Guarantees: whatever an effect raises, BaseException included, is thrown into the script at its
`yield`, so that its `finally` blocks run; a script abandoned halfway is closed.

Must not: know databases, transactions or the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Generator, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures import wait as wait_for
from typing import Any, Generic, TypeVar, cast

import msgspec

R = TypeVar("R")

TICK_S = 0.1  # how late a call may be cut off


class Do(msgspec.Struct, frozen=True):
    """Call `target.verb(*args)`; the async driver awaits what it returns.

    `within_s` bounds it: when it has passed the target's `kill()` is called (it must make the call fail
    at once) and the call ends in an error of the target's own.
    """

    target: Any
    verb: str
    args: tuple[Any, ...] = ()
    within_s: float | None = None


class Every(msgspec.Struct, frozen=True):
    """Run the scripts at the same time; the result is a tuple of `Outcome`, in their order.

    Raises only what is no `Exception` (an interrupt), and only once all have ended.
    """

    scripts: Sequence[Script[Any]]


class Pause(msgspec.Struct, frozen=True):
    """Wait this long."""

    seconds: float


Effect = Do | Every | Pause
Script = Generator[Effect, Any, R]


class Outcome(msgspec.Struct, Generic[R], frozen=True):
    """How one of several scripts ended: `error` is None, or what it raised."""

    value: R | None
    error: BaseException | None = None

    def get(self) -> R:
        """The value, or raise the error."""
        if self.error is not None:
            raise self.error
        return cast(R, self.value)


def do(target: object, verb: str, *args: object, within_s: float | None = None) -> Script[Any]:
    """A script of one `Do`."""
    return (yield Do(target, verb, args, within_s))


def every(scripts: Sequence[Script[R]]) -> Script[tuple[Outcome[R], ...]]:
    """A script of one `Every`; a single script runs in place, without a thread or task."""
    if not scripts:
        return ()
    if len(scripts) > 1:
        return (yield Every(scripts))  # type: ignore[no-any-return]
    try:
        return (Outcome((yield from scripts[0])),)
    except Exception as error:
        return (Outcome(None, error),)


class Watch:
    """Bounds blocking calls of the sync driver. See `engine.shell`."""

    def call(self, do: Do) -> Any:
        """Make the call. A watch without a clock just makes it."""
        return getattr(do.target, do.verb)(*do.args)


def drive(script: Script[R], *, executor: Executor, watch: Watch) -> R:
    """Run a script to its end with blocking calls; `Every` uses the executor's threads."""
    send: Callable[[Any], Effect] = script.send
    result: Any = None
    try:
        while True:
            effect = send(result)
            try:
                result = _perform(effect, executor, watch)
            except BaseException as error:
                result, send = error, script.throw
            else:
                send = script.send
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        script.close()


def _perform(effect: Effect, executor: Executor, watch: Watch) -> Any:
    if isinstance(effect, Do):  # a class in a `match` costs several times as much, here and in each call
        return watch.call(effect)
    if isinstance(effect, Pause):
        time.sleep(effect.seconds)
        return None
    return _all_of(effect.scripts, executor, watch)


def _all_of(scripts: Sequence[Script[Any]], executor: Executor, watch: Watch) -> tuple[Outcome[Any], ...]:
    def run(script: Script[Any]) -> Outcome[Any]:
        return _outcome(script, executor, watch)

    # The last one runs here: N branches need N - 1 threads, and one branch none.
    others: list[Future[Outcome[Any]]] = []
    try:
        for one in scripts[:-1]:
            others.append(executor.submit(run, one))  # noqa: PERF401 — an interrupt must find those that run
        last = run(scripts[-1])
        outcomes = (*(other.result() for other in others), last)
    except BaseException:  # Ctrl-C as we began them, or waited; a second one leaves them to themselves
        wait_for(others)
        raise
    return _uninterrupted(outcomes)


def _uninterrupted(outcomes: tuple[Outcome[Any], ...]) -> tuple[Outcome[Any], ...]:
    """An interrupt is no answer: it goes to whoever waits, once all have ended."""
    for outcome in outcomes:
        if outcome.error is not None and not isinstance(outcome.error, Exception):
            raise outcome.error
    return outcomes


def _outcome(script: Script[R], executor: Executor, watch: Watch) -> Outcome[R]:
    try:
        return Outcome(drive(script, executor=executor, watch=watch))
    except BaseException as error:
        return Outcome(None, error)


async def adrive(script: Script[R]) -> R:
    """Run a script to its end on the running event loop; `Every` uses tasks."""
    send: Callable[[Any], Effect] = script.send
    result: Any = None
    try:
        while True:
            effect = send(result)
            try:
                result = await _aperform(effect)
            except BaseException as error:
                result, send = error, script.throw
            else:
                send = script.send
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        script.close()


def _aperform(effect: Effect) -> Awaitable[Any]:
    if isinstance(effect, Do):
        call: Awaitable[Any] = getattr(effect.target, effect.verb)(*effect.args)
        return call if effect.within_s is None else within(call, effect.within_s, effect.target)
    if isinstance(effect, Pause):
        return asyncio.sleep(effect.seconds)
    return _all_outcomes(effect.scripts)


async def _all_outcomes(scripts: Sequence[Script[Any]]) -> tuple[Outcome[Any], ...]:
    """Whoever is cancelled here cancels them all, and is told once all have ended, whatever they made of it.

    `gather` would tell at the first that is cancelled, and keep back what the canceller says of himself: anyio knows
    its own by that.
    """
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(_aoutcome(script)) for script in scripts]
    try:
        await asyncio.wait(tasks)
    except asyncio.CancelledError as error:
        while left := [task for task in tasks if not task.done()]:
            for task in left:
                task.cancel(*error.args)
            with contextlib.suppress(asyncio.CancelledError):  # who is cancelled again cancels them again
                await asyncio.wait(left)
        raise
    return _uninterrupted(tuple([task.result() for task in tasks]))


async def within(call: Awaitable[R], seconds: float, target: Any = None) -> R:
    """Await it for so long; then, at most `TICK_S` later, cancel it and raise `TimeoutError`.

    `target`: whose call it is. It is killed then, and the error is its own; so it is if the call says by itself that
    it took too long. It is `asyncio.timeout`, but all who wait share a timer: that costs a tenth.
    """
    loop = asyncio.get_running_loop()
    guards = _HERE.guards
    if guards is None or guards.loop() is not loop:
        guards = _HERE.guards = _Guards(loop)
    guard = guards.begin(loop, seconds)
    try:
        result = await call
    except BaseException as error:
        ours_alone = guards.end(guard) and guard.task.uncancel() <= guard.cancelling
        late = ours_alone and isinstance(error, asyncio.CancelledError)
        if target is not None and (late or isinstance(error, TimeoutError)):
            target.kill()
            raise target.timed_out(seconds) from error
        if late:
            raise TimeoutError from error
        raise
    if guards.end(guard):
        guard.task.uncancel()  # it was answered all the same
    return result


class _Guard(msgspec.Struct, eq=False):
    """One call. `cancelling`: how many others had asked for its task to be cancelled before."""

    deadline: float
    task: asyncio.Task[Any]
    cancelling: int
    fired: bool = False


class _Guards:
    """The calls of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = weakref.ref(loop)
        self._open: set[_Guard] = set()
        self._ticking = False

    def begin(self, loop: asyncio.AbstractEventLoop, seconds: float) -> _Guard:
        task = asyncio.current_task(loop)
        assert task is not None, "scripts run in tasks"
        guard = _Guard(time.monotonic() + seconds, task, task.cancelling())
        self._open.add(guard)
        if seconds < TICK_S:
            loop.call_later(seconds, self._cut_off)
        if not self._ticking:
            self._ticking = True
            loop.call_later(TICK_S, self._tick, loop)
        return guard

    def end(self, guard: _Guard) -> bool:
        """Whether it was cut off."""
        self._open.discard(guard)
        return guard.fired

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._cut_off()
        self._ticking = bool(self._open)
        if self._ticking:
            loop.call_later(TICK_S, self._tick, loop)

    def _cut_off(self) -> None:
        now = time.monotonic()
        for guard in [one for one in self._open if one.deadline <= now and not one.fired]:
            guard.fired = True
            guard.task.cancel()


class _Here(threading.local):
    """Those of the loop that runs in this thread, or ran last."""

    guards: _Guards | None = None


_HERE = _Here()


async def _aoutcome(script: Script[R]) -> Outcome[R]:
    try:
        return Outcome(await adrive(script))
    except BaseException as error:
        return Outcome(None, error)
