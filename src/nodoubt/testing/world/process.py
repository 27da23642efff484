"""A simulated process: a coordinator of its own, with its own context, pools, sessions, clocks and ids.

`Coordinator` is the third face beside `nodoubt.Coordinator` and `AsyncCoordinator`: the same scripts behind the same
verbs, as scripts, so that callers are scripts too.

Guarantees: a dead process does nothing any more, whatever was still to come; a stopped one does it later.

Must not: know what the world checks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ...engine import start, verbs
from ...engine.attempt import Attempt
from ...engine.context import Context, Participant, Settings, plainly
from ...engine.sweep import SweepReport
from ...engine.verbs import Result, Wait
from ...life import Life
from ...ports import Journal, Notice, Resource
from ...protocol.records import Verdict
from ...script import Outcome, Script
from ...steps import calling
from ...steps.undoing import Hand
from ...transaction import _finish, _hold, _take_back
from ...wiring import register_batch
from .checker import Told
from .driver import Answer, Cancelled, Task
from .kernel import Event
from .network import Link
from .outside import KNOWN, Hands
from .shell import Pool, Shell

if TYPE_CHECKING:
    from .keys import Once
    from .world import World

EPOCH_S = 1_800_000_000.0  # what every clock shows at the beginning
JOURNAL_SESSIONS = 4
TASKS_KEPT = 256
OPENING = 40  # messages, at most, of a coordinator that opens at the first try

Work = Callable[["Process", Attempt], Script[Any]]


class Clock:
    """`ports.Clock`. The wall clock of a process can jump; the other one only ever goes on."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.off_s = 0.0

    def now(self) -> float:
        return EPOCH_S + self._world.kernel.now + self.off_s

    def elapsed(self) -> float:
        return self._world.kernel.now


class Ids:
    """`ports.Ids`, from a seed of its own: what other processes do does not change them."""

    def __init__(self, seed: str, clock: Clock) -> None:
        self._random, self._clock = random.Random(seed), clock  # noqa: S311 - it is to be foretold

    def attempt(self) -> str:
        bits = f"{self._random.getrandbits(72):018x}"
        return f"{int(self._clock.now() * 1000):012x}7{bits[:3]}8{bits[3:]}"

    def cluster(self) -> str:
        return f"{self._random.getrandbits(64):016x}"

    def mark(self) -> str:
        return f"{self._random.getrandbits(64):016x}"


class Coordinator(Life):
    """The verbs of a coordinator, as scripts."""

    def __init__(self, ctx: Context, shell: Shell, hands: Hands) -> None:
        super().__init__(ctx, shell, recovery=False, read_only=False)  # type: ignore[arg-type]
        self.ctx, self._shell, self._runner = ctx, shell, hands  # type: ignore[assignment]
        self.registry = KNOWN

    def _hand(self, grace_s: float | None = None) -> Hand:
        return Hand(self._ctx, self.registry, self._runner, grace_s=grace_s)

    def open(self) -> Script[None]:
        yield from plainly(self._open_script())
        self._opened = True

    def take_for_open(self) -> None:
        """For a world that begins with coordinators that are open."""
        self._opened = True

    def setup(self) -> Script[None]:
        return plainly(self._setup_script(migrate=False))

    def transaction(
        self,
        process: Process,
        work: Work,
        *,
        name: str | None = None,
        timeout: float | None = None,
        wait: Wait = "applied",
    ) -> Script[Result]:
        """A block that does this work and commits."""

        def beginning() -> Script[Attempt]:
            yield from ()
            return verbs.begin_now(self._writable(), name, timeout)

        return self.block(process, beginning(), work, wait)

    def begin_distributed(
        self,
        process: Process,
        work: Work,
        *,
        name: str,
        timeout: float | None = None,
        deadline: float | None = None,
        reuse: bool = False,
    ) -> Script[Result]:
        """A block that does this work and stages it."""
        ctx = self._writable()
        beginning = verbs.begin_staged(ctx, name, timeout_s=timeout, deadline_s=deadline, metadata=None, reuse=reuse)
        return self.block(process, beginning, work, "applied")

    def block(self, process: Process, beginning: Script[Attempt], work: Work, wait: Wait) -> Script[Result]:
        """A block of the attempt that is begun so."""
        attempt = yield from plainly(beginning)
        try:
            yield from plainly(work(process, attempt))
        except BaseException as error:
            try:
                yield from self._shell.shielded(_take_back(self._ctx, attempt, error, self._hand))
            except Exception as failure:
                error.add_note(str(failure))
            raise
        ending = _finish(self._ctx, self._shell, attempt, wait, self._hand)  # type: ignore[arg-type]
        result: Result = yield from self._shell.shielded(ending)
        return result

    def commit_distributed(self, name: str, *, attempt: str | None = None, wait: Wait = "applied") -> Script[Result]:
        return self._shell.shielded(self._finish_script(name, Verdict.COMMIT, attempt, wait))

    def rollback_distributed(self, name: str, *, attempt: str | None = None, wait: Wait = "applied") -> Script[Result]:
        return self._shell.shielded(self._finish_script(name, Verdict.ABORT, attempt, wait))

    def settle(self, attempt: str) -> Script[Result]:
        return self._shell.shielded(self._settle_script(attempt))

    def call(self, attempt: Attempt, use: calling.Use) -> Script[Any]:
        """A step, in a block."""
        _hold(self._ctx, self._shell)  # type: ignore[arg-type]
        return plainly(calling.call(self._ctx, attempt, self._runner, use))

    def call_named(self, name: str, use: calling.Use) -> Script[Any]:
        """A step, in a staged transaction."""
        return plainly(calling.call_named(self._writable(), name, None, self._runner, use))

    def undo_steps(self) -> Script[None]:
        """What runs beside recovery in the background."""
        return plainly(self._steps_turn())

    def recover(self, *, grace: float | None = None) -> Script[SweepReport]:
        return plainly(self._sweep_script(grace))

    def adopt(self, name: str) -> Script[None]:
        return plainly(start.adopt(self.ctx, name))

    def renew(self) -> Script[None]:
        """Begin a new epoch, as a coordinator does that has been open for long."""
        return plainly(start.renew(self._writable()))

    def turn(self) -> Script[None]:
        """What recovery in the background does each time."""
        return plainly(self._turn())


class Process:
    """See the module."""

    def __init__(
        self,
        world: World,
        name: str,
        *,
        resources: Mapping[str, Resource],
        journal: Journal,
        journal_at: str,
        settings: Settings,
        lingers: bool,
    ) -> None:
        self.world, self.name = world, name
        self.alive = True
        self.stopped_until = 0.0
        self.messages = -OPENING  # those of its opening come before the first
        self.links: list[Link] = []
        self._acts: list[Task] = []
        self.clock = Clock(world)
        self.ids = Ids(f"{world.seed}/{name}", self.clock)
        self.shell = Shell(self)
        self._tasks: list[Task] = []
        ctx = Context(
            participants={
                n: Participant(
                    n,
                    resource,
                    self._pool(n, n, settings, settings.pool_size),
                    self._pool(n, n, settings, settings.reserve_size),
                    holds_journal=n == journal_at,
                    lingers=lingers and resource.traits.holds_session,
                )
                for n, resource in resources.items()
            },
            journal=journal,
            journal_pool=self._pool("the journal", journal_at, settings, JOURNAL_SESSIONS),
            register_batch=None,
            settings=settings,
            clock=self.clock,
            ids=self.ids,
            observer=self,
            owner=f"{name}/1",
        )
        ctx.register_batch = register_batch(ctx, self.shell)  # type: ignore[arg-type]
        ctx.aside = self.shell.aside
        self.db = Coordinator(ctx, self.shell, Hands(self))

    @property
    def ctx(self) -> Context:
        return self.db.ctx

    def _pool(self, name: str, machine: str, settings: Settings, size: int) -> Any:
        def connect(answer: Answer) -> Callable[[], None]:
            return self.world.network.connect(self, self.world.machines[machine], settings.connect_s, answer)

        return Pool(self, name, connect, size=size, acquire_s=settings.acquire_s)

    def pools(self) -> list[Pool]:
        every: list[Any] = [self.ctx.journal_pool]
        for participant in self.ctx.participants.values():
            every += [participant.pool, participant.reserve]
        return every

    # ---- what happens in it

    def after(self, seconds: float, call: Callable[..., Any], *args: Any) -> Event:
        """As the kernel's, for as long as the process lives; while it is stopped, later."""
        event = self.world.kernel.after(seconds, self._happen)
        event.args = (event, call, args)
        return event

    def _happen(self, event: Event, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if not self.alive:
            return
        if self.stopped_until > self.world.kernel.now:
            self.world.kernel.again(event, self.stopped_until, self._happen, event, call, args)
            return
        call(*args)

    def spawn(self, script: Script[Any], done: Answer) -> Task:
        """Run a script at the same time as all others."""
        task = Task(self, script, done)
        if len(self._tasks) > TASKS_KEPT:
            self._tasks = [one for one in self._tasks if not one.over]
        self._tasks.append(task)
        self.after(0.0, task.go)
        return task

    @property
    def busy(self) -> bool:
        """Whether anything is under way in it."""
        return any(not task.over for task in self._tasks)

    def act(self, script: Script[Any]) -> None:
        """Run a caller's script."""
        self._acts.append(self.spawn(script, _only_cancelled))

    def cancel_callers(self) -> None:
        for task in self._acts:
            task.cancel()

    def next_message(self) -> int:
        self.messages += 1
        return self.messages

    def returned(self, link: Link) -> None:
        """A session goes back into a pool."""
        self.world.checker.session_returned(self, link)

    def notice(self, notice: Notice) -> None:
        """`ports.Observer`."""
        self.world.noticed(self, notice)

    def told(self, what: str) -> None:
        """A caller in it was told so."""
        if self.alive:
            self.world.trace.told(self.name, what)

    def tells(self, attempt: str, outcome: Told) -> None:
        """The same of an outcome. What a script that is thrown away says on its way is said to nobody."""
        if self.alive:
            self.world.checker.tell(attempt, outcome)

    def answered(self, attempt: str, use: str, value: object) -> None:
        """A caller in it was told what a step returned."""
        if self.alive:
            self.world.trace.told(self.name, f"{use} returned {value}")
            self.world.effects.answered(attempt, use, value)

    def replayed(self, act: Once, attempt: str) -> None:
        """A caller in it was told that this had been done before, by that attempt."""
        if self.alive:
            self.world.trace.told(self.name, f"{act.key} was done by {attempt}")
            self.world.keys.replayed(act, attempt)

    def tells_finished(self, name: str, *, asked: Told, stands: Told, conflict: bool) -> None:
        """The same of a verb with a name: how it stands, as a conflict or not."""
        if self.alive:
            self.world.checker.tell_finished(name, asked=asked, stands=stands, conflict=conflict)

    # ---- its end

    def crash(self, silent_s: float = 0.0) -> None:
        """As by kill -9. What it has sent still arrives; then its connections end, `silent_s` later."""
        if not self.alive:
            return
        self.world.trace.note(self.name, "is killed")
        self.alive = False
        for link in self.links:
            if not link.ended:
                link.ended = True
                self.world.network.end(link, silent_s)
        self.drop()
        self.world.faults.note("process killed")

    def drop(self) -> None:
        """Nothing more happens in it, and nobody is told."""
        self.alive = False
        for task in self._tasks:
            task.abandon()

    def run_alone(self, script: Script[Any], within_s: float) -> Any:
        """For a world that waits for nothing else: the result of a script, or what it raised."""
        outcomes: list[Outcome[Any]] = []
        self.spawn(script, outcomes.append)
        self.world.run(within_s, until=lambda: bool(outcomes) or not self.alive)
        if not outcomes:
            raise TimeoutError(f"{self.name} did not come to an end in {within_s:g} s")
        return outcomes[0].get()


def _only_cancelled(outcome: Outcome[Any]) -> None:
    """A caller deals with every error itself; anything else is a bug of the simulation."""
    if outcome.error is not None and not isinstance(outcome.error, Cancelled):
        raise outcome.error
