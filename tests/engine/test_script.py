"""Scripts: the two drivers do the same, and throw whatever is raised into the script."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest

import nodoubt.script
from nodoubt.engine.context import bounded
from nodoubt.script import Do, Every, Pause, Script, Watch, adrive, do, drive, every, within


class Thing:
    """Answers with its argument, or raises it; the async twin does the same."""

    def echo(self, value: Any) -> Any:
        if isinstance(value, BaseException):
            raise value
        return value

    def kill(self) -> None: ...


class AThing(Thing):
    async def echo(self, value: Any) -> Any:
        return super().echo(value)


Runner = Callable[[Callable[[Thing], Script[Any]]], Any]


def run_sync(make: Callable[[Thing], Script[Any]]) -> Any:
    with ThreadPoolExecutor() as executor:
        return drive(make(Thing()), executor=executor, watch=Watch())


def run_async(make: Callable[[Thing], Script[Any]]) -> Any:
    return asyncio.run(adrive(make(AThing())))


both = pytest.mark.parametrize("run", [run_sync, run_async])


@both
def test_a_script_is_sent_what_its_effects_answer(run: Runner) -> None:
    def script(thing: Thing) -> Script[list[int]]:
        one = yield from do(thing, "echo", 1)
        yield Pause(0)
        outcomes = yield from every([do(thing, "echo", 2), do(thing, "echo", 3)])
        return [one, *(o.get() for o in outcomes)]

    assert run(script) == [1, 2, 3]


@both
@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), GeneratorExit()])
def test_whatever_is_raised_is_thrown_into_the_script(run: Runner, error: BaseException) -> None:
    seen: list[BaseException] = []

    def script(thing: Thing) -> Script[str]:
        try:
            yield from do(thing, "echo", error)
        except BaseException as caught:
            seen.append(caught)
        return "went on"

    assert run(script) == "went on" and seen == [error]


@both
def test_one_failure_among_several_leaves_the_others_their_answers(run: Runner) -> None:
    def script(thing: Thing) -> Script[list[str]]:
        outcomes = yield from every([do(thing, "echo", 1), do(thing, "echo", OSError("no")), do(thing, "echo", 3)])
        return [str(o.error or o.value) for o in outcomes]

    assert run(script) == ["1", "no", "3"]


@both
def test_a_bounded_script_bounds_its_nested_calls_too(run: Runner) -> None:
    class Clock:
        def now(self) -> float:
            return 0.0

        def elapsed(self) -> float:
            return 100.0

    limits: list[float | None] = []

    def inner(thing: Thing) -> Script[int]:
        answer: int = yield Do(thing, "echo", (1,))
        return answer

    def script(thing: Thing) -> Script[int]:
        effects = bounded(inner(thing), 7.0, Clock())
        effect = next(effects)
        assert isinstance(effect, Do)
        limits.append(effect.within_s)
        effects.close()
        both_ = bounded(every([inner(thing), inner(thing)]), 7.0, Clock())
        nested = next(both_)
        assert isinstance(nested, Every)
        first = next(nested.scripts[0])
        assert isinstance(first, Do)
        limits.append(first.within_s)
        for one in nested.scripts:
            one.close()
        both_.close()
        return (yield from bounded(inner(thing), 7.0, Clock()))

    assert run(script) == 1 and limits == [7.0, 7.0]


@both
def test_cleanup_runs_when_a_script_fails(run: Runner) -> None:
    cleaned: list[str] = []

    def script(thing: Thing) -> Script[None]:
        try:
            yield from do(thing, "echo", ValueError("x"))
        finally:
            yield from do(thing, "echo", None)
            cleaned.append("yes")

    with pytest.raises(ValueError, match="x"):
        run(script)
    assert cleaned == ["yes"]


# ---- interrupts, and what runs at the same time ----------------------------------------------------


@both
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), SystemExit(), GeneratorExit(), asyncio.CancelledError()])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_interrupt_of_one_among_several_comes_out_once_all_have_ended(
    run: Runner, interrupt: BaseException, place: int
) -> None:
    ended: list[int] = []
    seen: list[tuple[BaseException, list[int]]] = []

    def longer(thing: Thing, number: int) -> Script[None]:
        for _ in range(5):
            yield Pause(0.001)
            yield from do(thing, "echo", None)
        ended.append(number)

    def script(thing: Thing) -> Script[None]:
        scripts = [longer(thing, number) for number in range(3)]
        scripts[place] = do(thing, "echo", interrupt)
        try:
            yield from every(scripts)
        except BaseException as caught:
            seen.append((caught, sorted(ended)))
            raise

    with pytest.raises(type(interrupt)):
        run(script)
    assert seen == [(interrupt, [number for number in range(3) if number != place])]


def test_ctrl_c_while_others_are_waited_for_comes_out_once_all_have_ended() -> None:
    """On asyncio it cancels the main task: below."""
    ended, last_has_ended = list[str](), threading.Event()

    def interrupting(thing: Thing) -> Script[None]:
        last_has_ended.wait(20)
        yield Pause(0.02)  # until the main thread waits; where it is late, the claim holds as well
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        for _ in range(5):
            yield Pause(0.02)
        ended.append("other")

    def last(thing: Thing) -> Script[None]:
        yield from do(thing, "echo", None)
        last_has_ended.set()

    def script(thing: Thing) -> Script[None]:
        try:
            yield from every([interrupting(thing), last(thing)])
        finally:
            ended.append("all")

    with pytest.raises(KeyboardInterrupt):
        run_sync(script)
    assert ended == ["other", "all"]


def test_ctrl_c_as_the_second_is_begun_comes_out_once_the_first_has_ended() -> None:
    class Interrupted(ThreadPoolExecutor):
        def submit(self, *args: Any, **named: Any) -> Any:
            if begun.is_set():
                raise KeyboardInterrupt
            begun.set()
            return super().submit(*args, **named)

    ended, begun = list[str](), threading.Event()

    def first() -> Script[None]:
        for _ in range(5):
            yield Pause(0.02)
        ended.append("first")

    def script() -> Script[None]:
        try:
            yield from every([first(), do(Thing(), "echo", 2), do(Thing(), "echo", 3)])
        finally:
            ended.append("all")

    with Interrupted() as executor, pytest.raises(KeyboardInterrupt):
        drive(script(), executor=executor, watch=Watch())
    assert ended == ["first", "all"]


Scripts = Callable[[list[str]], list[Script[Any]]]


def asleep_then(ended: list[str], name: str, turns: int, *, swallow: bool = False) -> Script[str]:
    """Sleeps until it is cancelled; then it still has this much to do."""
    try:
        yield Pause(3600)
    except asyncio.CancelledError:
        if not swallow:
            raise
    finally:
        for _ in range(turns):
            yield Pause(0)
        ended.append(name)
    return "went on"


def one_needs_longer(ended: list[str]) -> list[Script[Any]]:
    return [asleep_then(ended, "at once", 0), asleep_then(ended, "later", 20)]


def one_goes_on(ended: list[str]) -> list[Script[Any]]:
    return [asleep_then(ended, "at once", 0, swallow=True), asleep_then(ended, "later", 20, swallow=True)]


class Caller:
    """Runs those scripts at the same time, and writes down who had ended when it heard of its own end."""

    def __init__(self, scripts: Scripts) -> None:
        self.ended: list[str] = []
        self.seen: list[tuple[type[BaseException], list[str]]] = []
        self._scripts = scripts

    def run(self) -> Coroutine[Any, Any, Any]:
        return adrive(self._script())

    def _script(self) -> Script[Any]:
        try:
            return (yield from every(self._scripts(self.ended)))
        except BaseException as error:
            self.seen.append((type(error), list(self.ended)))
            raise

    def assert_cancelled_after_all(self) -> None:
        assert self.seen == [(asyncio.CancelledError, ["at once", "later"])]
        assert asyncio.all_tasks() == {asyncio.current_task()}


cancellable = pytest.mark.parametrize("scripts", [one_needs_longer, one_goes_on])


@cancellable
@pytest.mark.parametrize("times", [1, 2])
def test_who_is_cancelled_is_told_once_all_have_ended_and_ends_cancelled(scripts: Scripts, times: int) -> None:
    async def main() -> None:
        caller = Caller(scripts)
        task = asyncio.create_task(caller.run())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel("enough")
        if times == 2:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not task.done()
            task.cancel("enough")
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await task
        assert task.cancelled() and task.cancelling() == times
        if times == 1:  # the second cuts short what was being cleaned up
            caller.assert_cancelled_after_all()

    asyncio.run(main())


def test_who_is_cancelled_before_any_has_begun_ends_cancelled() -> None:
    async def main() -> None:
        caller = Caller(one_goes_on)
        task = asyncio.create_task(caller.run())
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled() and asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


@cancellable
def test_a_timeout_round_several_is_told_once_all_have_ended(scripts: Scripts) -> None:
    async def main() -> None:
        caller = Caller(scripts)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await caller.run()
        caller.assert_cancelled_after_all()
        task = asyncio.current_task()
        assert task is not None and task.cancelling() == 0
        await asyncio.sleep(0)  # and nothing is left that would be cancelled by and by

    asyncio.run(main())


def test_mutant_that_gathers_tells_who_is_cancelled_before_all_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def gathered(scripts: list[Script[Any]]) -> Any:
        return await asyncio.gather(*map(adrive, scripts))

    async def main() -> None:
        caller = Caller(one_needs_longer)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await caller.run()
        assert caller.seen == [(asyncio.CancelledError, ["at once"])]

    monkeypatch.setattr(nodoubt.script, "_all_outcomes", gathered)
    asyncio.run(main())


@cancellable
def test_a_scope_of_anyios_round_several_knows_its_own_cancellation(scripts: Scripts) -> None:
    async def main() -> None:
        caller = Caller(scripts)
        with anyio.move_on_after(0.01) as scope:
            await caller.run()
        assert scope.cancelled_caught and [kind for kind, _ in caller.seen] == [asyncio.CancelledError]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


# ---- within ---------------------------------------------------------------------------------------


async def asleep(seconds: float = 3600.0) -> str:
    await asyncio.sleep(seconds)
    return "woke"


def test_a_call_that_takes_too_long_is_cut_off_and_nothing_of_it_is_left() -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        for seconds in (0.01, 0.15):
            with pytest.raises(TimeoutError):
                await within(asleep(), seconds)
            assert task.cancelling() == 0
        assert await within(asleep(0.0), 3600.0) == "woke"

    asyncio.run(main())


def test_who_is_cancelled_from_outside_is_cancelled_also_where_its_time_is_up_as_well() -> None:
    async def main(seconds: float) -> None:
        task = asyncio.create_task(within(asleep(), seconds))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main(0.0))
    asyncio.run(main(3600.0))


def test_only_the_innermost_call_whose_time_is_up_is_cut_off() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await within(asleep(), 0.01)

        async def outer() -> str:
            with pytest.raises(TimeoutError):
                await within(asleep(), 0.01)
            return "went on"

        assert await within(outer(), 3600.0) == "went on"

    asyncio.run(main())
