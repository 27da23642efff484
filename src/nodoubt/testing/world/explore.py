"""Goes through every order of the messages of a small world, and every place where something can go wrong in it.

A `Scene` is a world with a few processes at work at the same time. `explored` visits every state that can be reached
by taking, at each state, each message that can be carried out next, and, for as long as the scene's budget of faults
lasts, each fault: kill a process (what it has sent may still arrive, or not), crash a server (with or without what it
has not flushed), lose a request, lose a reply, deliver a request when its client has given up. The checker looks after
every step; at the end of every way recovery runs, and all must be at rest.

What is exhaustive and what is bounded: all orders of messages (or those with at most `switches` switches), all places
for at most `faults` faults of the scene's `kinds`, for scenes of this size; each recoverer makes one sweep (and one
more at the end). What is left out of the orders, and why that loses nothing, stands in `steps`, and here:

- *Of several recoverers that have done nothing yet the first begins*: all do the same.
- *A process is killed, or its request lost, where it could go on next*: nobody sees either before, for what either
  leaves on the servers goes its own way from then on.

States that have been seen are not gone through again: see `steps.Keys`. A script cannot be copied, so a state is
reached again by repeating the choices that lead to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...engine import ends
from ...engine.context import Settings, plainly
from ...errors import NoDoubtError
from ...protocol.records import Epoch
from ...script import Outcome, Script
from .acts import Finish, Pay, Stage, script_of
from .checker import Violated
from .diagram import diagram
from .process import Process
from .running import SOUND, Variant, no_broken_invariant_goes_unseen
from .steps import FREE_WITHOUT_NAMES, Keys, Step, stepwise
from .world import Layout, Silenced

# Of faults: a process is killed (what it has sent arrives at some time, or never), a server crashes, a message is lost.
# A sudden kill is a smaller thing: what the process has sent arrives right then, all of it, or never.
KINDS = ("kill", "crash", "loss")
SUDDEN = ("sudden kill", "crash")
STEPS_MAX = 400
TIME_MAX_S = 1000.0
# Short, so that whoever tries again soon gives up; time only passes where no message is left.
BRIEF = Settings(
    connect_s=1, acquire_s=1, prepare_s=0.2, decide_s=0.05, apply_s=0.05, answer_s=0.2, grace_s=0.2, deadline_s=50
)


@dataclass(frozen=True, slots=True)
class Scene:
    """A small world. `recoverers`: each makes one sweep that spares nothing, at the same time as all others."""

    servers: tuple[str, ...]
    journal: str = "a"
    journal_kind: str = "postgres"
    staged: bool = False
    recoverers: int = 1
    faults: int = 1
    switches: int | None = None  # how often a process may be left although it could go on; None: as often as can be
    rival: bool = False  # staged: somebody rolls the name back while another commits it
    kinds: tuple[str, ...] = KINDS  # of faults

    @property
    def layout(self) -> Layout:
        return Layout(tuple(zip("abc", self.servers, strict=False)), self.journal, self.journal_kind, BRIEF)

    def __str__(self) -> str:
        way = "staged" if self.staged else "at once"
        rival = ", a rival" if self.rival else ""
        at = f"on {self.journal}" if self.journal != "j" else f"on a {self.journal_kind} of its own"
        faults = "faults" if self.kinds == KINDS else " or ".join(self.kinds)
        switches = "any number of" if self.switches is None else f"at most {self.switches}"
        return (
            f"{way} on {'+'.join(self.servers)}, journal {at}, {self.recoverers} recoverers{rival}, "
            f"{self.faults} {faults}, {switches} switches"
        )


@dataclass(slots=True)
class Explored:
    """What was gone through. `states`: different ones; `ends`: of those, where nothing was left to do."""

    scene: Scene
    states: int = 0
    ways: int = 0
    ends: int = 0
    steps: int = 0
    seconds: float = 0.0
    complete: bool = True
    violated: Violated | None = None
    story: str = ""  # of the violation: the choices, and the diagram

    def __str__(self) -> str:
        how = "all" if self.complete else "the first"
        return f"{self.scene}: {how} {self.states} states, {self.ends} ends, {self.ways} ways, {self.steps} steps"


Choice = tuple[str, Callable[[], None]]


class _Way:
    """One way through a scene: a world, and the choices taken so far."""

    def __init__(self, scene: Scene, variant: Variant) -> None:
        self.scene = scene
        self.world, self.steps = stepwise(scene.layout, variant)
        self.budget = scene.faults
        self.switches = scene.switches
        self.turn = ""  # whose step was the last
        if not scene.staged:
            self.steps.free_applies |= FREE_WITHOUT_NAMES
        self.taken: list[str] = []
        self._left: list[str] = []  # scripts that have not ended
        self._unbegun: list[str] = []  # recoverers of whose messages none has been chosen
        self._begin()

    def _begin(self) -> None:
        servers = [name for name, _ in self.scene.layout.servers]
        first, last = servers[0], servers[-1]
        parts = ((first, "x", -1), *((name, "x", 0) for name in servers[1:-1]), (last, "x", 1))
        p = self._process("p")
        if not self.scene.staged:
            self._run("pay", p, self._paid(p, Pay(process="p", at_s=0, parts=parts)))
        else:
            q = self._process("q")
            self._run("stage", p, script_of(p, Stage(process="p", at_s=0, name="n", parts=parts)))
            self._run("commit", q, self._finished(q, commit=True))
            if self.scene.rival:
                s = self._process("s")
                self._run("roll back", s, self._finished(s, commit=False))
        for number in range(self.scene.recoverers):
            r = self._process(f"r{number + 1}")
            self._unbegun.append(r.name)
            self._run(f"sweep {number + 1}", r, self._swept(r))

    def _process(self, name: str) -> Process:
        """A process whose coordinator is open: who is who it knows, as if it had asked."""
        process = self.world.start(name)
        ctx = process.ctx
        founding = self.world.machines[self.world.journal_at].server.tables.guest
        ctx.cluster, ctx.epoch = self.world.cluster, Epoch(founding.epochs[-1].number, founding.epochs[-1].mark)
        for participant in ctx.participants.values():
            identity = self.world.machines[participant.name].server.tables.identity
            assert identity is not None
            participant.resource_id = identity.resource_id
        process.db.take_for_open()
        return process

    def _run(self, name: str, process: Process, script: Script[Any]) -> None:
        self._left.append(name)

        def done(outcome: Outcome[Any]) -> None:
            self._left.remove(name)
            if outcome.error is not None and process.alive and not isinstance(outcome.error, NoDoubtError):
                raise outcome.error

        process.spawn(script, done)

    def _paid(self, process: Process, act: Pay) -> Script[None]:
        yield from script_of(process, act)
        yield from plainly(ends.flush_or_keep(process.ctx))

    def _finished(self, process: Process, *, commit: bool) -> Script[None]:
        yield from script_of(process, Finish(process=process.name, at_s=0, name="n", commit=commit, tries=1))
        yield from plainly(ends.flush_or_keep(process.ctx))

    def _swept(self, process: Process) -> Script[None]:
        yield from process.db.recover(grace=0.0)

    # ---- what can be chosen

    def settle(self) -> None:
        """Let every process go on until it waits for a message; let time pass if none is left."""
        kernel = self.world.kernel
        while True:
            while kernel.step(kernel.now):
                self._alarm()
            if self.steps.pending and any(self.steps.enabled(step) and not step.orphan for step in self.steps.pending):
                return
            if self.steps.pending and any(self.steps.enabled(step) for step in self.steps.pending):
                return
            if not self._left_alive() or not kernel.step(kernel.now + TIME_MAX_S):
                return
            self._alarm()

    def _left_alive(self) -> bool:
        return any(process.alive and process.busy for process in self.world.processes.values())

    def _alarm(self) -> None:
        if self.world.alarms:
            raise self.world.alarms[0]

    def choices(self) -> list[Choice]:
        """All that can happen next, the orderly things first."""
        steps = self.steps
        choices: list[Choice] = []
        able = [step for step in steps.pending if steps.enabled(step) and not self._comes_later(step.link.process)]
        goes_on = any(step.link.process.name == self.turn and not step.orphan for step in able)
        for step in able:
            mine = step.link.process.name == self.turn and not step.orphan
            if mine or not goes_on or self.switches != 0:
                choices.append((step.name, self._turn_to(step, switches=goes_on and not mine)))
        if not able:
            choices += [(f"{step.name} times out", partial(steps.time_out, step)) for step in steps.pending]
        may_leave = not goes_on or self.switches != 0
        if not goes_on:
            self.turn = ""  # whoever goes on now has not been left
        for link in steps.hang_ups:
            if steps.can_hang_up(link) and may_leave:
                name = f"{link.process.name} is missed on {link.machine.name}"
                choices.append((name, self._spend_switch(partial(steps.hang_up, link), goes_on)))
        if self.budget > 0:
            choices += self._faults(may_leave=may_leave)
        return choices

    def _comes_later(self, process: Process) -> bool:
        """Recoverers do the same, so of those that have done nothing yet only the first may begin."""
        return process.name in self._unbegun[1:]

    def _has_begun(self, process: Process) -> None:
        if process.name in self._unbegun:
            self._unbegun.remove(process.name)

    def _turn_to(self, step: Step, *, switches: bool) -> Callable[[], None]:
        def do() -> None:
            if not step.orphan:
                self.turn = step.link.process.name
                self._has_begun(step.link.process)
            self.steps.carry_out(step)

        return self._spend_switch(do, switches)

    def _spend_switch(self, act: Callable[[], None], switches: bool) -> Callable[[], None]:
        def do() -> None:
            if switches and self.switches is not None:
                self.switches -= 1
            act()

        return do

    def _befalls_now(self, process: Process, may_leave: bool) -> bool:
        """What befalls a process, or its request, while it is another's turn, nobody sees before its own turn comes."""
        return (may_leave or process.name == self.turn) and not self._comes_later(process)

    def _faults(self, *, may_leave: bool) -> Iterator[Choice]:
        world, steps, kinds = self.world, self.steps, self.scene.kinds

        def spend(act: Callable[[], None], process: Process | None = None) -> Callable[[], None]:
            def do() -> None:
                self.budget -= 1
                if process is not None:
                    self._has_begun(process)
                act()

            return do

        for name, process in world.processes.items() if "kill" in kinds else ():
            if process.alive and process.busy and self._befalls_now(process, may_leave):
                yield f"kill {name}", spend(partial(steps.kill, process), process)
        for name, process in world.processes.items() if "sudden kill" in kinds else ():
            if process.alive and process.busy and self._befalls_now(process, may_leave):
                for arrives in (False, True):
                    how = "what it has sent arrives" if arrives else "nothing arrives"
                    act = partial(steps.kill_suddenly, process, arrives=arrives)
                    yield f"kill {name}, {how}", spend(act, process)
        for name, machine in world.machines.items() if "crash" in kinds else ():
            for keep in sorted({0, len(machine.server.log.states) - 1}):
                yield f"crash {name}, keeping {keep}", spend(partial(steps.crash, machine, keep))
        for step in steps.pending if "loss" in kinds else ():
            process = step.link.process
            if step.orphan or self._comes_later(process):
                continue
            if step.handling is None and self._befalls_now(process, may_leave):
                yield f"{step.name} is lost", spend(partial(steps.lose_request, step, late=False), process)
                yield f"{step.name} comes too late", spend(partial(steps.lose_request, step, late=True), process)
            if steps.enabled(step):
                yield f"{step.name} is not answered", spend(partial(steps.carry_out, step, reply=False), process)

    # ---- its end

    def finish(self) -> None:
        """What never arrives is dropped; then recovery, and rest."""
        world, steps = self.world, self.steps
        for step in list(steps.pending):
            steps.drop(step)
        for link in list(steps.hang_ups):
            steps.hang_up(link)
        steps.free = True
        last = self._process("last")
        last.run_alone(last.db.recover(), TIME_MAX_S)
        world.run(max(world.layout.settings.grace_s, world.last_deadline() - last.clock.now()) + 1.0)
        for _ in range(2):
            last.run_alone(last.db.recover(), TIME_MAX_S)
            world.run(1.0)
        world.checker.rest()

    def drop(self) -> None:
        for process in self.world.processes.values():
            process.drop()


def explored(
    scene: Scene, variant: Variant = SOUND, *, states_max: int | None = None, seconds_max: float | None = None
) -> Explored:
    """Go through the scene; stop at the first rule that is broken, or at the bounds."""
    result, seen, ended, began = Explored(scene), set[bytes](), set[bytes](), time.monotonic()
    todo: list[tuple[int, ...]] = [()]
    while todo:
        late = seconds_max is not None and time.monotonic() - began > seconds_max
        if late or (states_max is not None and len(seen) >= states_max):
            result.complete = False
            break
        prefix = todo.pop()
        result.ways += 1
        way = _Way(scene, variant)
        with Silenced(way.world), no_broken_invariant_goes_unseen(way.world):
            try:
                _follow(way, prefix, seen, ended, todo, result)
            except Violated as violated:
                result.violated = violated
                result.story = "\n".join([f"{violated}", "", *way.taken, "", diagram(way.world)])
                break
            finally:
                way.drop()
    result.states, result.seconds = len(seen), time.monotonic() - began
    return result


def _follow(
    way: _Way,
    prefix: tuple[int, ...],
    seen: set[bytes],
    ended: set[bytes],
    todo: list[tuple[int, ...]],
    result: Explored,
) -> None:
    """Repeat the choices of the prefix, then always take the first, until a state that has been seen, or the end."""
    keys, path = Keys(), list(prefix)
    for depth in range(STEPS_MAX):
        way.settle()
        choices = way.choices()
        if depth >= len(prefix):
            key = keys.of(way.world, way.steps, (way.budget, way.switches, way.switches is not None and way.turn))
            if key in seen:
                return
            seen.add(key)
            orderly = [name for name, _ in choices if name]
            if not orderly or not (way.steps.pending or way.steps.hang_ups):
                # Recovery begins anew, so only what the servers hold matters to it.
                key = keys.of_servers(way.world)
                if key not in ended:
                    ended.add(key)
                    result.ends += 1
                    way.finish()
                return
            todo.extend((*path, other) for other in reversed(range(1, len(choices))))
            path.append(0)
        name, act = choices[path[depth]]
        way.taken.append(name)
        result.steps += 1
        act()
    raise AssertionError(f"a way of more than {STEPS_MAX} steps: {way.taken}")


_P, _M = "postgres", "mariadb"

# What CI goes through, whole: all places for one fault with two branches and with three, with one recoverer and with
# two, at once and staged, where a process is left only when it waits or dies; and, without a fault, all orders, or
# those of so many switches. Where there is most of everything (two recoverers, and three branches or a name) the faults
# are fewer: what a process has sent arrives as it dies or never, and no message is lost; with three branches and a name
# no server crashes. `LARGE` begins with these scenes under all faults.
SCENES = (
    Scene((_P, _P), faults=0),
    Scene((_P, _P), recoverers=2, switches=0),
    Scene((_P, _P), recoverers=2, faults=0, switches=1),
    Scene((_P, _P, _P), switches=0),
    Scene((_P, _P, _P), recoverers=2, switches=0, kinds=SUDDEN),
    Scene((_M, _M), switches=0),
    Scene(("sqlite", _P), switches=0),
    Scene((_P, _P), journal="j", switches=0),
    Scene((_P, _P), staged=True, switches=0),
    Scene((_P, _P), staged=True, recoverers=2, switches=0, kinds=SUDDEN),
    Scene((_P, _P), staged=True, rival=True, faults=0, switches=1),
    Scene((_P, _P, _P), staged=True, faults=0, switches=1),
    Scene((_P, _P, _P), staged=True, recoverers=2, switches=0, kinds=SUDDEN[:1]),
)

# What a campaign goes through, the smaller first: all places for one fault with two recoverers, where a process is left
# only when it waits or dies; then the same in all orders.
LARGE = tuple(
    Scene(servers, staged=staged, recoverers=2, switches=0)
    for servers in ((_P, _P), (_P, _P, _P), (_M, _M))
    for staged in (False, True)
) + tuple(
    Scene(servers, journal=journal, staged=staged, recoverers=recoverers, rival=staged)
    for recoverers in (1, 2)
    for servers in ((_P, _P), (_M, _M), (_P, _M), (_P, "sqlite"), (_P, _P, _P), (_P, _M, "sqlite"))
    for staged in (False, True)
    for journal in ("a", "j")
)

__all__ = ["LARGE", "SCENES", "Explored", "Scene", "explored"]
