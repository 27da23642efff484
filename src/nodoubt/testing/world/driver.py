"""The third driver of scripts, beside `drive` (threads) and `adrive` (asyncio): it owns every step.

A script of a simulated process runs as a `Task`. Each of its effects ends in an event of the kernel, so that between
any two of them everything else can happen: another process, a crash, a jump of the clock. Effects go to objects that
answer later (`Answering`: sessions, pools, batches, the shell), or at once, by a plain call.

Guarantees: as in `script`: whatever an effect raises is thrown into the script at its `yield`; `Every` raises only what
is no `Exception`, and only once all have ended; a call that is not answered within its time is cut off, its target is
killed, and it ends in the target's own error. A cancelled task is treated as asyncio treats one: what it waits for
is given up (its children first), and `Cancelled` is thrown into it.

Must not: know databases, transactions or the protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ...script import Do, Effect, Every, Outcome, Pause, Script
from .kernel import Event

Answer = Callable[[Outcome[Any]], None]
CLOSES_MAX = 100  # a script that is thrown away may want to do something first, in each of its `finally` blocks


class Cancelled(BaseException):
    """Thrown into a script whose task was cancelled, as asyncio throws `CancelledError`."""


class Answering:
    """What an effect may be addressed to, if its answer takes time."""

    def start(self, verb: str, args: tuple[Any, ...], answer: Answer) -> Callable[[], None]:
        """Begin the call; `answer` comes later, at most once. What is returned gives the call up."""
        raise NotImplementedError

    def kill(self) -> None:
        """Cut off what has been begun. Nothing to do where it is bounded by itself."""

    def timed_out(self, seconds: float) -> Exception:
        """What a call ends in that was cut off."""
        return TimeoutError(f"no answer within {seconds:.3g} s")


class Host(Protocol):
    """Where tasks run: a process. Its events come late while it is stopped, and not at all once it is dead."""

    @property
    def alive(self) -> bool: ...
    def after(self, seconds: float, call: Callable[..., Any], *args: Any) -> Event: ...


class Task:
    """One script under way."""

    def __init__(self, host: Host, script: Script[Any], done: Answer) -> None:
        self._host, self._script, self._done = host, script, done
        self._give_up: Callable[[], None] | None = None
        self._children: list[Task] = []
        self._cancelled = False
        self._turn = 0  # which effect is waited for: an answer to an earlier one is late
        self.over = False

    def go(self, value: Any = None, error: BaseException | None = None) -> None:
        """Send the script what it waits for, and begin its next effect."""
        if self.over or not self._host.alive:
            return
        self._turn += 1
        self._give_up = None
        try:
            effect = self._script.send(value) if error is None else self._script.throw(error)
        except StopIteration as stop:
            self._end(Outcome(stop.value))
        except (KeyboardInterrupt, SystemExit):
            raise  # somebody wants to leave the simulation itself
        except BaseException as failure:
            self._end(Outcome(None, failure))
        else:
            self._begin(effect)

    def _end(self, outcome: Outcome[Any]) -> None:
        self.over = True
        self._done(outcome)

    def _begin(self, effect: Effect) -> None:
        match effect:
            case Pause(seconds):
                self._give_up = self._host.after(seconds, self._answered, self._turn, Outcome(None)).cancel
            case Every(scripts):
                self._run_all(scripts)
            case Do(target) if isinstance(target, Answering):
                self._ask(effect)
            case Do(target, verb, args):
                self._give_up = self._host.after(0.0, self._call, self._turn, target, verb, args).cancel

    def _answered(self, turn: int, outcome: Outcome[Any]) -> None:
        if turn == self._turn:
            self.go(outcome.value, outcome.error)

    def _call(self, turn: int, target: Any, verb: str, args: tuple[Any, ...]) -> None:
        try:
            outcome: Outcome[Any] = Outcome(getattr(target, verb)(*args))
        except Exception as error:
            outcome = Outcome(None, error)
        self._answered(turn, outcome)

    def _ask(self, effect: Do) -> None:
        turn, target = self._turn, effect.target
        late: Event | None = None
        waiting = True

        def over() -> bool:
            """Whether this was the first to end the wait."""
            nonlocal waiting
            first, waiting = waiting, False
            if late is not None:
                late.cancel()
            return first

        def answer(outcome: Outcome[Any]) -> None:
            if over():
                self._answered(turn, outcome)

        give_up = target.start(effect.verb, effect.args, answer)

        def too_late() -> None:
            if over():
                give_up()
                target.kill()
                self._answered(turn, Outcome(None, target.timed_out(effect.within_s)))

        def leave() -> None:
            if over():
                give_up()

        if effect.within_s is not None:
            late = self._host.after(effect.within_s, too_late)
        self._give_up = leave

    def _run_all(self, scripts: Any) -> None:
        outcomes: list[Outcome[Any] | None] = [None] * len(scripts)
        turn = self._turn

        def done(number: int) -> Answer:
            def ended(outcome: Outcome[Any]) -> None:
                outcomes[number] = outcome
                if all(one is not None for one in outcomes):
                    self._children = []
                    interrupts = [o.error for o in outcomes if o is not None and not _plain(o.error)]
                    self._answered(turn, Outcome(tuple(outcomes), interrupts[0] if interrupts else None))

            return ended

        self._children = [Task(self._host, script, done(number)) for number, script in enumerate(scripts)]
        for child in self._children:
            self._host.after(0.0, child.go)

    def cancel(self) -> None:
        """Give up what it waits for, and throw `Cancelled` into it; with children, once they have all ended so."""
        if self.over:
            return
        if self._children:
            for child in list(self._children):
                child.cancel()
            return
        if self._give_up is not None:
            self._give_up()
        self.go(error=Cancelled())

    def abandon(self) -> None:
        """Its process is dead: let the script go without a word to anybody. Its effects go nowhere any more."""
        self.over = True
        for child in self._children:
            child.abandon()
        for _ in range(CLOSES_MAX):
            try:
                self._script.close()
            except Exception:  # noqa: S112 - "ignored GeneratorExit": it wanted to say something first
                continue
            except BaseException:  # noqa: S112 - likewise
                continue
            return


def _plain(error: BaseException | None) -> bool:
    return error is None or isinstance(error, Exception)
