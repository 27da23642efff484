"""The third driver keeps the promises that `drive` and `adrive` keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nodoubt.script import Do, Every, Outcome, Pause, Script
from nodoubt.testing.world.driver import Answer, Answering, Cancelled, Task
from nodoubt.testing.world.kernel import Event, Kernel


class Alone:
    """A host that lives for ever."""

    alive = True

    def __init__(self) -> None:
        self.kernel = Kernel()

    def after(self, seconds: float, call: Callable[..., Any], *args: Any) -> Event:
        return self.kernel.after(seconds, call, *args)

    def run(self, script: Script[Any], cancel_after_s: float | None = None) -> Outcome[Any]:
        outcomes: list[Outcome[Any]] = []
        task = Task(self, script, outcomes.append)
        self.after(0.0, task.go)
        if cancel_after_s is not None:
            self.after(cancel_after_s, task.cancel)
        while self.kernel.step(1000.0):
            pass
        assert len(outcomes) == 1, "a task ends once"
        return outcomes[0]


class Slow(Answering):
    """Answers after a second."""

    def __init__(self, host: Alone) -> None:
        self.host, self.killed, self.given_up = host, False, False

    def start(self, verb: str, args: tuple[Any, ...], answer: Answer) -> Callable[[], None]:
        event = self.host.after(1.0, answer, Outcome((verb, *args)))

        def give_up() -> None:
            self.given_up = True
            event.cancel()

        return give_up

    def kill(self) -> None:
        self.killed = True


class Plain:
    def double(self, number: int) -> int:
        if number < 0:
            raise ValueError("negative")
        return 2 * number


@pytest.fixture
def host() -> Alone:
    return Alone()


def test_an_effect_answers_with_its_value_or_its_error(host: Alone) -> None:
    def script() -> Script[Any]:
        first = yield Do(Plain(), "double", (4,))
        try:
            yield Do(Plain(), "double", (-1,))
        except ValueError as error:
            return first, str(error)

    assert host.run(script()).get() == (8, "negative")


def test_what_runs_at_the_same_time_ends_with_an_outcome_for_each(host: Alone) -> None:
    def one(number: int) -> Script[int]:
        yield Pause(number)
        if number == 2:
            raise ValueError("two")
        return number

    def script() -> Script[Any]:
        outcomes = yield Every([one(3), one(2), one(1)])
        return [o.value if o.error is None else str(o.error) for o in outcomes]

    assert host.run(script()).get() == [3, "two", 1]
    assert host.kernel.now == 1000.0


def test_a_call_that_takes_too_long_is_cut_off_and_its_target_killed(host: Alone) -> None:
    slow = Slow(host)

    def script() -> Script[Any]:
        yield Do(slow, "ask", (), within_s=0.5)

    outcome = host.run(script())
    assert isinstance(outcome.error, TimeoutError) and slow.killed and slow.given_up


def test_a_call_that_is_answered_in_time_is_not(host: Alone) -> None:
    slow = Slow(host)

    def script() -> Script[Any]:
        return (yield Do(slow, "ask", (1,), within_s=1.5))

    assert host.run(script()).get() == ("ask", 1)
    assert not slow.killed


def test_a_cancelled_task_gives_up_its_call_and_runs_its_finally_blocks(host: Alone) -> None:
    slow, said = Slow(host), list[str]()

    def script() -> Script[Any]:
        try:
            yield Do(slow, "ask")
        finally:
            said.append("finally")

    assert isinstance(host.run(script(), cancel_after_s=0.5).error, Cancelled)
    assert slow.given_up and said == ["finally"]


def test_a_task_cancelled_while_its_children_work_ends_when_they_have(host: Alone) -> None:
    said: list[str] = []

    def child(name: str) -> Script[None]:
        try:
            yield Pause(10)
        finally:
            said.append(name)

    def script() -> Script[Any]:
        try:
            yield Every([child("one"), child("two")])
        finally:
            said.append("parent")

    assert isinstance(host.run(script(), cancel_after_s=1.0).error, Cancelled)
    assert said == ["one", "two", "parent"]


def test_a_cancelled_script_may_still_say_something(host: Alone) -> None:
    slow = Slow(host)

    def script() -> Script[Any]:
        try:
            yield Pause(10)
        except Cancelled:
            return (yield Do(slow, "rollback"))

    assert host.run(script(), cancel_after_s=1.0).get() == ("rollback",)


def test_events_happen_by_time_and_then_in_the_order_of_asking() -> None:
    kernel, said = Kernel(), list[str]()
    kernel.after(2, said.append, "late")
    kernel.after(1, said.append, "first")
    kernel.after(1, said.append, "second")
    kernel.after(1, said.append, "never").cancel()
    while kernel.step(5):
        pass
    assert said == ["first", "second", "late"]
    assert kernel.now == 5
