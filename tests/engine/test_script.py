"""Scripts: the two drivers do the same, and throw whatever is raised into the script."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

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
