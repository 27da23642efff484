"""Running a function with a time limit, in a thread or on a loop: whoever waits is answered when the time is up."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kit import until
from nodoubt import IdempotencyKey, StepContext
from nodoubt.steps import running
from nodoubt.steps.registry import Options, Step
from nodoubt.steps.running import BLOCKING, LOOPING, Broke, GaveNoAnswer, Job, TooManyHang

pytestmark = pytest.mark.anyio
HERE: contextvars.ContextVar[str] = contextvars.ContextVar("here")
KEY = IdempotencyKey("k")


def job(function: Callable[..., Any], within_s: float = 30.0, **values: Any) -> Job:
    declared: Step[..., Any, Any] = Step("test", function, Options())
    return Job(declared, values, StepContext(KEY, KEY, "0" * 32, "", 0, 1), within_s)


async def run(mode: str, one: Job) -> Any:
    return BLOCKING.run(one) if mode == "sync" else await LOOPING.run(one)


def both(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The function, and an async one that does the same."""

    async def coroutine(*args: Any, **named: Any) -> Any:
        await asyncio.sleep(0)
        return function(*args, **named)

    coroutine.__annotations__ = function.__annotations__
    coroutine.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return [function, coroutine]


def plain(x: int, key: IdempotencyKey, context: StepContext) -> tuple[int, str, bool]:
    return x + 1, key, 0 < context.left_s <= 30


async def test_it_is_given_what_it_asks_for_and_its_answer_is_returned(plain_mode: str) -> None:
    for function in both(plain):
        assert await run(plain_mode, job(function, x=1)) == (2, "k", True)


async def test_its_error_comes_out_unchanged(plain_mode: str) -> None:
    error = KeyError("mine")

    def fail() -> None:
        raise error

    for function in both(fail):
        with pytest.raises(KeyError) as caught:
            await run(plain_mode, job(function))
        assert caught.value is error


async def test_it_sees_the_callers_context(plain_mode: str) -> None:
    def look() -> str:
        return HERE.get()

    HERE.set("mine")
    for function in both(look):
        assert await run(plain_mode, job(function)) == "mine"


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()
    until(lambda: running._THREADS.hanging == 0)


async def test_one_that_hangs_is_not_waited_for_and_is_told_so(plain_mode: str, go_on: threading.Event) -> None:
    wanted: list[Exception | None] = []

    def hang(context: StepContext) -> None:
        go_on.wait(60)
        try:
            context.require_wanted()
            wanted.append(None)
        except TimeoutError as error:
            wanted.append(error)

    with pytest.raises(GaveNoAnswer, match=r"within 0\.05 s"):
        await run(plain_mode, job(hang, 0.05))
    assert running._THREADS.hanging == 1
    go_on.set()
    until(lambda: bool(wanted))
    assert isinstance(wanted[0], TimeoutError), "the last thing to do before something that can't be undone"


async def test_an_async_one_that_hangs_is_cancelled(plain_mode: str) -> None:
    ended: list[str] = []

    async def hang() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with pytest.raises(GaveNoAnswer):
        await run(plain_mode, job(hang, 0.05))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert ended == ["cancelled"]


async def test_its_own_time_out_is_an_error_like_any_other(plain_mode: str) -> None:
    def give_up() -> None:
        raise TimeoutError("the bank's")

    for function in both(give_up):
        with pytest.raises(TimeoutError, match="bank"):
            await run(plain_mode, job(function))


@pytest.mark.parametrize("leaves", [SystemExit(3), KeyboardInterrupt()])
async def test_one_that_wants_to_leave_the_process_has_failed(plain_mode: str, leaves: BaseException) -> None:
    def leave() -> None:
        raise leaves

    with pytest.raises(Broke, match=type(leaves).__name__):
        await run(plain_mode, job(leave))


async def test_one_that_cancels_itself_has_failed() -> None:
    async def cancel() -> None:
        raise asyncio.CancelledError

    with pytest.raises(Broke, match="cancelled itself"):
        await LOOPING.run(job(cancel))


async def test_so_many_hang_and_no_more(
    plain_mode: str, go_on: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "HANGING_MAX", 2)
    for _ in range(2):
        with pytest.raises(GaveNoAnswer):
            await run(plain_mode, job(lambda: go_on.wait(60), 0.01))
    with pytest.raises(TooManyHang, match="restarted"):
        await run(plain_mode, job(lambda: None))
    go_on.set()
    until(lambda: running._THREADS.hanging == 0)
    assert await run(plain_mode, job(lambda: 7)) == 7


async def test_a_stop_iteration_is_told_at_once_as_a_generator_of_pythons_tells_it(plain_mode: str) -> None:
    """No future, and no generator, lets one through."""

    def first() -> int:
        return next(iter([]))

    for function in both(first):
        with pytest.raises(RuntimeError, match="StopIteration") as caught:
            await asyncio.wait_for(run(plain_mode, job(function)), 10)
        assert isinstance(caught.value.__cause__, StopIteration)
