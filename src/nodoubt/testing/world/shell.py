"""The shell of a simulated process: what `engine.shell` and `engine.pool` are on asyncio, with the same semantics.

`shielded` runs a script in a task of its own, which whoever cancels the caller does not reach; `behind` runs one that
nobody waits for; `loop` comes again and again; `Batch` lets concurrent callers share one write; `Pool` hands out at
most `size` sessions, first come first served, and takes back none that is not usable.

The real shells and pools have their own tests (tests/engine), and their mutants: what is simulated here is not them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...engine.context import log, plainly
from ...engine.pool import CHECK_AFTER_IDLE_S, CHECK_WITHIN_S
from ...engine.shell import BATCH_MAX
from ...errors import PoolExhausted
from ...script import Do, Outcome, Pause, Script
from .driver import Answer, Answering, Task

if TYPE_CHECKING:
    from .network import Link
    from .process import Process


class Shell(Answering):
    """Runs scripts as tasks of one process."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def start(self, verb: str, args: tuple[Any, ...], answer: Answer) -> Callable[[], None]:
        """The one verb that a caller waits for is `shielded`: to give up waiting leaves the script at work."""
        assert verb == "shielded", verb
        self._process.spawn(plainly(args[0]), answer)
        return _nothing

    def shielded(self, script: Script[Any]) -> Script[Any]:
        """The result of the script, which goes on whatever becomes of the caller."""
        return (yield Do(self, "shielded", (script,)))

    def behind(self, script: Script[Any]) -> None:
        self._process.spawn(script, _ignore)

    aside = behind  # what is left undone when the process dies

    def loop(self, name: str, turn: Callable[[], Script[None]], interval_s: float) -> Task:
        def turns() -> Script[None]:
            while True:
                yield Pause(interval_s)
                try:
                    yield from turn()
                except Exception as error:
                    log.error("%s failed; the next turn is in %g s: %s", name, interval_s, error)

        return self._process.spawn(turns(), _ignore)

    def batch(self, write: Callable[[list[Any]], Script[list[Any]]]) -> Batch:
        return Batch(self._process, write)


class Batch(Answering):
    """As `engine.shell.AsyncBatch`: one task writes, batch after batch, while anybody waits."""

    def __init__(self, process: Process, write: Callable[[list[Any]], Script[list[Any]]]) -> None:
        self._process, self._write = process, write
        self._waiting: list[tuple[Any, list[Answer]]] = []
        self._busy = False

    def start(self, verb: str, args: tuple[Any, ...], answer: Answer) -> Callable[[], None]:
        waiting = [answer]  # emptied by whoever gives up
        self._waiting.append((args[0], waiting))
        if not self._busy:
            self._busy = True
            self._process.spawn(self._write_while_waiting(), _ignore)
        return waiting.clear

    def _write_while_waiting(self) -> Script[None]:
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
            try:
                answers = yield from self._write([item for item, _ in batch])
                outcomes = [Outcome(answer) for answer in answers]
            except Exception as error:
                outcomes = [Outcome(None, error)] * len(batch)
            for (_, waiting), outcome in zip(batch, outcomes, strict=True):
                for answer in waiting:
                    self._process.after(0.0, answer, outcome)
        self._busy = False


class Pool(Answering):
    """As `engine.pool.AsyncPool`."""

    def __init__(
        self,
        process: Process,
        name: str,
        connect: Callable[[Answer], Callable[[], None]],
        *,
        size: int,
        acquire_s: float,
    ) -> None:
        self.name, self.size, self.acquire_s = name, size, acquire_s
        self._process, self._connect = process, connect
        self._idle: list[tuple[Link, float]] = []
        self._waiting: deque[Callable[[], None]] = deque()
        self._count = 0

    @property
    def idle(self) -> list[Link]:
        """For whoever looks whether they are clean."""
        return [link for link, _ in self._idle]

    @property
    def crowded(self) -> bool:
        return bool(self._waiting)

    def start(self, verb: str, args: tuple[Any, ...], answer: Answer) -> Callable[[], None]:
        assert verb == "acquire", verb
        if self._count < self.size and not self._waiting and self._idle and self._fresh(self._idle[-1][1]):
            return self._hand_out(answer)
        return self._process.spawn(self._acquire(), answer).cancel

    def _fresh(self, idle_since: float) -> bool:
        return self._process.clock.elapsed() - idle_since <= CHECK_AFTER_IDLE_S

    def _hand_out(self, answer: Answer) -> Callable[[], None]:
        """The short way: a place is free, and a session that nobody needs to ask whether it lives."""
        self._count += 1
        link, idle_since = self._idle.pop()
        come = self._process.after(0.0, answer, Outcome(link))

        def give_back() -> None:
            if come.call is not None:
                come.cancel()
                self._idle.append((link, idle_since))
                self._leave_place()

        return give_back

    def _acquire(self) -> Script[Link]:
        yield Do(_Place(self), "take")
        try:
            while True:
                link, idle_since = self._idle.pop() if self._idle else (None, 0.0)
                if link is None:
                    opened: Link = yield Do(_Connecting(self._connect), "connect")
                    return opened
                if self._fresh(idle_since) or (yield from self._alive(link)):
                    return link
        except BaseException:
            self._leave_place()
            raise

    def _alive(self, link: Link) -> Script[bool]:
        try:
            yield Do(link, "run", ("SELECT 1",), CHECK_WITHIN_S)
        except BaseException as error:
            link.kill()
            if not isinstance(error, Exception):
                raise
            return False
        return link.usable

    def _leave_place(self) -> None:
        if self._waiting:
            self._waiting.popleft()()
        else:
            self._count -= 1

    def release(self, link: Link) -> None:
        """Take it back if it is usable, else end it."""
        if not self._process.alive:
            return
        if link.usable:
            self._process.returned(link)
            self._idle.append((link, self._process.clock.elapsed()))
        else:
            link.kill()
        self._leave_place()

    def drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for link, _ in idle:
            link.kill()

    close = drop_idle

    def timed_out(self, seconds: float) -> Exception:
        return PoolExhausted(f"no connection to {self.name} within {seconds:.3g} s")


class _Place(Answering):
    """Waits for one of the pool's places."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def start(self, verb: str, args: tuple[Any, ...], answer: Answer) -> Callable[[], None]:
        pool, process = self._pool, self._pool._process
        if pool._count < pool.size and not pool._waiting:
            pool._count += 1
            come = process.after(0.0, answer, Outcome(None))

            def give_back() -> None:
                if come.call is not None:
                    come.cancel()
                    pool._leave_place()

            return give_back
        exhausted = f"all {pool.size} connections to {pool.name} were busy for {pool.acquire_s:g} s; nothing was done"
        handed_over = False

        def too_late() -> None:
            pool._waiting.remove(turn)
            answer(Outcome(None, PoolExhausted(exhausted)))

        def turn() -> None:
            nonlocal handed_over
            handed_over = True
            late.cancel()
            process.after(0.0, answer, Outcome(None))

        def give_up() -> None:
            late.cancel()
            if handed_over:
                pool._leave_place()
            elif turn in pool._waiting:
                pool._waiting.remove(turn)

        late = process.after(pool.acquire_s, too_late)
        pool._waiting.append(turn)
        return give_up


class _Connecting(Answering):
    """Opens a session."""

    def __init__(self, connect: Callable[[Answer], Callable[[], None]]) -> None:
        self._connect = connect

    def start(self, verb: str, args: tuple[Any, ...], answer: Answer) -> Callable[[], None]:
        return self._connect(answer)


def _nothing() -> None: ...
def _ignore(outcome: Outcome[Any]) -> None: ...
