"""Runs a schedule to its end: nothing goes wrong any more, all comes up again, two sweeps pass; then all is at rest.

Must not: decide what is right; that is the checker's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from ...engine import ends
from ...engine.context import plainly
from ...errors import InvariantViolated, LineageBroken, NoDoubtError, ResourceUnavailable
from ...ports import Journal, Resource
from ...script import Pause, Script
from .acts import Act, opening
from .checker import Violated
from .faults import CrashServer
from .process import Process
from .schedule import HORIZON_S, Schedule
from .world import RESOURCES, Silenced, World

SETTLE_S = 40.0  # for what was still under way when the last fault had passed
SWEEPS_S = 60.0
RESTART_S = 1.0
UNDOING_TURNS = 12  # enough for every try of three steps, with its pause
ADOPTIONS_MAX = 3  # a coordinator that starts in the middle of one can make another necessary


@dataclass(frozen=True, slots=True)
class Variant:
    """The product, or other scripts over the same servers: a mutant's, or yours. `place`: where it is imported from."""

    resources: Mapping[str, Callable[[str], Resource]] = field(default_factory=lambda: RESOURCES)
    journal: Journal | None = None
    place: str = ""


SOUND = Variant()


@dataclass(slots=True)
class Ran:
    """How a schedule went. `violated`: the rule that did not hold, if one did not."""

    schedule: Schedule
    world: World
    violated: Violated | None = None


def run(schedule: Schedule, variant: Variant = SOUND, *, rules: Collection[str] | None = None) -> Ran:
    """Run it. Never raises for what the world under it does wrong. `rules`: those to hold to, if not all."""
    seed, layout = schedule.seed or 0, schedule.layout
    world = World(seed, layout, resources=variant.resources, journal=variant.journal, rules=rules)
    ran = Ran(schedule, world)
    with Silenced(world), no_broken_invariant_goes_unseen(world):
        try:
            live(world, schedule)
            come_to_rest(world)
        except Violated as violated:
            ran.violated = violated
        except Exception as error:
            error.add_note(f"in {schedule.command}")
            raise
        finally:
            for process in world.processes.values():
                process.drop()
    return ran


def live(world: World, schedule: Schedule) -> None:
    """Until the last fault has come to pass."""
    world.add(schedule.faults)
    for name, at_s in schedule.opens:
        process = world.start(name)
        acts: list[Act] = [act for act in schedule.acts if act.process == name]
        process.spawn(opening(process, acts, at_s), _raise)
    world.run(HORIZON_S)


def come_to_rest(world: World) -> None:
    """What is under way comes to its end; then recovery, by a process whose clock is right."""
    settings = world.layout.settings
    world.faults.on_messages.clear()
    world.faults.crashes.clear()
    world.faults.on_notices.clear()
    world.run(SETTLE_S)
    _restart_what_has_mislaid(world)
    last = world.start("last")
    last.run_alone(_opened(last), SWEEPS_S)
    # The first sweep sees what there is; of the two that follow the last grace and deadline, each must do (I8).
    last.run_alone(_swept(last), SWEEPS_S)
    world.run(max(settings.grace_s, world.last_deadline() - last.clock.now()) + 1.0)
    for _ in range(2):
        last.run_alone(_swept(last), SWEEPS_S)
        world.run(1.0)
    if world.effects.used:
        last.run_alone(_undone(last), SWEEPS_S)
    world.run(1.0)
    if any(deed.by_hand for deed in world.checker.deeds.values()):
        # Where all who knew of an abort are dead, its breach is found by those who would forget it.
        world.run(settings.retention_s + 1.0)
        last.run_alone(plainly(ends.retire(last.ctx)), SWEEPS_S)
    world.checker.rest()
    world.effects.rest()


def _restart_what_has_mislaid(world: World) -> None:
    """No recovery can end a branch that its server lists no more, and has not ended; an operator restarts that one."""
    for machine in world.machines.values():
        if machine.mislaid():
            machine.crash(CrashServer(machine=machine.name, message=0, down_s=RESTART_S))
    world.run(2 * RESTART_S)


def _opened(process: Process) -> Script[None]:
    """Open; what was set back, and is refused for it, an operator looks at and adopts (I15)."""
    for _ in range(ADOPTIONS_MAX):
        try:
            return (yield from process.db.open())
        except LineageBroken as error:
            yield from _adopted(process, str(error))
        except ResourceUnavailable as error:
            raise process.world.checker.violated("I8", f"nobody is at work, and still: {error}") from error
    raise process.world.checker.violated("I15", "what was adopted is still refused")


def _adopted(process: Process, why: str) -> Script[None]:
    world = process.world
    world.trace.told(process.name, why)
    if not world.restored:
        raise world.checker.violated("I15", f"nothing was set back, and still: {why}")
    for name in process.ctx.participants:
        yield from process.db.adopt(name)
    world.set_back = ""


def _swept(process: Process) -> Script[None]:
    """A branch that was prepared before the restore can bring back, as it commits, the epoch that was adopted away."""
    yield from process.db.recover()
    if process.db.barred:
        yield from _adopted(process, str(process.db.barred))
        yield from process.db.recover()


def _undone(process: Process) -> Script[None]:
    """What can be undone, and has been tried too often to be tried again, within so many turns."""
    for _ in range(UNDOING_TURNS):
        yield from process.db.undo_steps()
        yield Pause(1.0)


@contextlib.contextmanager
def no_broken_invariant_goes_unseen(world: World) -> Iterator[None]:
    """The engine stops the work where an invariant of its own does not hold, which can look like a lost answer."""

    def seen(self: InvariantViolated, *args: object) -> None:
        NoDoubtError.__init__(self, *args)
        number = str(args[0]).split(" ", maxsplit=1)[0]
        if world.checker.holds(number):
            world.alarms.append(Violated(number, f"the engine itself says: {args[0]}"))

    setattr(InvariantViolated, "__init__", seen)  # noqa: B010
    try:
        yield
    finally:
        delattr(InvariantViolated, "__init__")


def _raise(outcome: object) -> None:
    error = getattr(outcome, "error", None)
    if error is not None:
        raise error
