"""A world that takes one step at a time, when it is told which: what `explore` goes through.

A step is one message: it is carried out by its server and its answer taken by its process, both at once. What is left
out of the product of all orders, and why nothing is lost by it:

- *Answers travel in no time.* A late answer only delays its own process, which is the same as taking that process's
  next step later. (A lost one is a fault, and one that comes too late is lost.)
- *A process does at once what needs no message.* Nobody else can see it.
- *Some messages are carried out at once, without asking which comes first* (`FREE_…`): they read what nobody in the
  scene changes (who is who, which epoch it is, the floor), or touch only their own transaction, before it has
  prepared or committed anything. They commute with every other message.
- *Time stands still while any message can be carried out.* Clocks only choose when to try (I14); a try at another time
  is another order of the same messages.

The key of a state is made of the tables of all servers as shown and as on disk, what each connection is in the middle
of, and, for each process, every answer it has been given, session by session, in order. A script is a function of its
answers, so two worlds with one key go on alike. In which order the answers of several sessions came is left out: what a
script does at the same time (`Every`) it hears of together, in the order in which it gave it. Left out, too, is what
nobody reads (the trail of events, how often a row was confirmed).

Must not: choose.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import NoDoubtError
from ...ports import SessionLost, StatementFailed
from ...resources.memory.server import Connection, Handling, Locked, LockTimeout, Tables
from ...script import Outcome
from .driver import Answer
from .machine import Machine
from .network import Link, Network
from .process import Process
from .running import Variant
from .world import Layout, World

FREE_VERBS = frozenset({"execute", "run"})
FREE_STATEMENTS = frozenset({"identity", "server", "begin", "mark", "xa_start", "wrote", "rollback"})
FREE_APPLIES = frozenset({"registered", "epoch", "minted", "cluster", "floor"})
FREE_WITHOUT_NAMES = frozenset({"staged", "undecided"})  # where no name is ever staged


@dataclass(slots=True, eq=False)
class Step:
    """A message that has been sent and not been answered. `orphan`: nobody waits for its answer any more."""

    link: Link
    number: int
    verb: str
    args: tuple[Any, ...]
    answer: Answer | None
    handling: Handling | None = None
    waits: Locked | None = None
    orphan: bool = False
    progress: int = 0  # how often it has had to wait

    @property
    def name(self) -> str:
        return f"{self.link.process.name}#{self.number}{'?' if self.orphan else ''}"

    @property
    def key(self) -> tuple[object, ...]:
        """What tells it from another."""
        waits = None if self.waits is None else self.waits.key
        connection = self.link.connection.number
        return self.link.process.name, connection, self.orphan, self.progress, str(waits), self.verb, repr(self.args)


@dataclass(slots=True)
class History:
    """All that a process has been told, by connection, in order."""

    digests: dict[int, bytes] = field(default_factory=dict)

    def add(self, connection: int, outcome: Outcome[Any]) -> None:
        words = f"{outcome.value!r} {type(outcome.error).__name__} {outcome.error}"
        before = self.digests.get(connection, b"")
        self.digests[connection] = hashlib.blake2b(before + words.encode(), digest_size=16).digest()


class Steps(Network):
    """The network of such a world: messages wait until they are chosen."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.pending: list[Step] = []
        self.hang_ups: list[Link] = []  # sessions whose client has gone, which their server has not noticed
        self.histories: dict[str, History] = {}
        self.free = False  # while True every message is carried out as it is sent
        self.free_applies = FREE_APPLIES
        self._connections: dict[str, int] = {}

    # ---- what processes ask for

    def connect(self, process: Process, machine: Machine, within_s: float, answer: Answer) -> Callable[[], None]:
        """A session at once. Its number depends on its process alone, and not on who else has connected."""
        connection = machine.accept()
        place = list(self.world.processes).index(process.name)
        count = self._connections[process.name] = self._connections.get(process.name, 0) + 1
        machine.server.connections.pop(connection.number)
        connection.number = 1000 * (place + 1) + count
        machine.server.connections[connection.number] = connection
        link = Link(self, process, machine, connection)
        machine.links.append(link)
        process.links.append(link)
        return process.after(0.0, answer, Outcome(link)).cancel

    def request(self, link: Link, verb: str, args: tuple[Any, ...], answer: Answer) -> None:
        number = link.process.next_message()
        self.world.trace.sent(link.process.name, link.machine.name, number, verb, args)
        step = Step(link, number, verb, args, answer)
        if self.free or self._is_free(verb, args):
            self.carry_out(step)
            if step in self.pending:
                return
        else:
            self.pending.append(step)

    def end(self, link: Link, silent_s: float = 0.0) -> None:
        """What an ended session leaves behind is rolled back at some time; where it leaves nothing, now."""
        connection = link.connection
        if connection.transaction is None and not connection.bound and not self._in_flight(link):
            self.hang_up(link)
        else:
            self.hang_ups.append(link)

    def _in_flight(self, link: Link) -> bool:
        return any(step.link is link for step in self.pending)

    def _is_free(self, verb: str, args: tuple[Any, ...]) -> bool:
        if verb == "apply":
            return args[0] in self.free_applies
        if verb == "send":
            return all(statement[0] in FREE_STATEMENTS for statement in args)
        return verb in FREE_VERBS

    # ---- what can be done next

    def enabled(self, step: Step) -> bool:
        """Whether its server could go on with it now."""
        return step.waits is None or not step.link.machine.server.holder(step.waits.key, but=step.link.connection)

    def can_hang_up(self, link: Link) -> bool:
        """A session ends after what was sent in it."""
        return not self._in_flight(link)

    def carry_out(self, step: Step, *, reply: bool = True) -> None:
        """Go on with a message until it is answered, or waits for a lock or for the disk."""
        if step in self.pending:
            self.pending.remove(step)
        server, connection = step.link.machine.server, step.link.connection
        if connection.number not in server.connections:
            self.answer(step, Outcome(None, SessionLost(f"the connection to {server.name} was lost")), reply=reply)
            return
        if step.handling is None:
            step.handling = server.handle(connection, step.verb, step.args)
        step.waits = None
        while True:
            try:
                wait = next(step.handling)
            except StopIteration as stop:
                self.answer(step, Outcome(stop.value), reply=reply)
                break
            except (StatementFailed, NoDoubtError) as error:
                self.answer(step, Outcome(None, error), reply=reply)
                break
            if isinstance(wait, Locked):
                step.progress += 1
                if server.holder(wait.key, but=connection):
                    step.waits = wait
                    self.pending.append(step)
                    break
                continue
            step.progress += 1
            if not self.free and reply:
                self.pending.append(step)  # it can be seen, and is being flushed
                break
        self.world.look()

    def time_out(self, step: Step) -> None:
        """Nobody will free the lock that it waits for."""
        self.pending.remove(step)
        assert step.handling is not None
        try:
            step.handling.throw(LockTimeout())
        except (StatementFailed, NoDoubtError) as error:
            self.answer(step, Outcome(None, error))
        self.world.look()

    def answer(self, step: Step, outcome: Outcome[Any], *, reply: bool = True) -> None:
        """Its process takes the answer, if there is somebody to take it; or the link breaks before it has it."""
        process = step.link.process
        if step.orphan or not process.alive or step.answer is None:
            return
        if not reply:
            step.link.broken = step.link.killed = True
            step.link.usable = False
            outcome = Outcome(None, SessionLost(f"the connection to {step.link.machine.name} was lost"))
        self.world.trace.answered(step.link.machine.name, process.name, step.number, outcome)
        self.histories.setdefault(process.name, History()).add(step.link.connection.number, outcome)
        process.after(0.0, step.answer, outcome)
        if not reply and not step.link.ended:
            step.link.ended = True
            self.end(step.link)

    def hang_up(self, link: Link) -> None:
        if link in self.hang_ups:
            self.hang_ups.remove(link)
        link.machine.server.disconnect(link.connection)
        self.world.look()

    # ---- what can go wrong

    def lose_request(self, step: Step, *, late: bool) -> None:
        """It never arrives; or it does, when its client has given up waiting."""
        self.pending.remove(step)
        answer = Step(step.link, step.number, step.verb, step.args, step.answer)
        if late:
            step.orphan = True
            self.pending.append(step)
        self.answer(answer, Outcome(None), reply=False)

    def kill(self, process: Process) -> None:
        """What it has sent is still on its way, and arrives at some time, or never."""
        for step in self.pending:
            if step.link.process is process:
                step.orphan = True
        process.crash()

    def kill_suddenly(self, process: Process, *, arrives: bool) -> None:
        """And nothing of it is left on its way; but what waits for a lock goes on waiting."""
        self.kill(process)
        for step in [step for step in self.pending if step.link.process is process]:
            if not arrives:
                self.drop(step)
            while arrives and step in self.pending and self.enabled(step):
                self.carry_out(step)
        for link in [link for link in self.hang_ups if link.process is process and self.can_hang_up(link)]:
            self.hang_up(link)

    def drop(self, step: Step) -> None:
        """An orphan that never arrives."""
        self.pending.remove(step)
        if step.handling is not None:
            step.handling.close()

    def crash(self, machine: Machine, keep: int) -> None:
        """And up again at once."""
        lost = [step for step in self.pending if step.link.machine is machine]
        self.pending = [step for step in self.pending if step.link.machine is not machine]
        self.hang_ups = [link for link in self.hang_ups if link.machine is not machine]
        for link in machine.links:
            link.broken = True
            link.ended = True
        machine.links.clear()
        machine.up = False
        machine.server.crash(keep)
        self.world.trace.note(machine.name, "crashes")
        self.world.look()
        machine.up = True
        for step in lost:
            self.answer(step, Outcome(None, SessionLost(f"the connection to {machine.name} was lost")))


# ---- the key of a state -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Keys:
    """The keys of states; tables that are the same object are not looked at twice."""

    _known: dict[int, tuple[Tables, bytes]] = field(default_factory=dict)

    def of(self, world: World, steps: Steps, rest: object) -> bytes:
        """16 bytes that tell this state from every other."""
        parts: list[object] = [rest, world.kernel.now, self.of_servers(world)]
        for name, process in world.processes.items():
            # What a process was told does not matter any more when it has nothing under way.
            busy = process.alive and process.busy
            told = sorted(steps.histories[name].digests.items()) if busy and name in steps.histories else []
            parts += [name, process.alive, told]
        parts += sorted((step.key for step in steps.pending), key=repr)
        parts += sorted((link.machine.name, link.connection.number) for link in steps.hang_ups)
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()

    def of_servers(self, world: World) -> bytes:
        """Of the servers alone, and of what the checker remembers."""
        parts: list[object] = [world.checker.memory()]
        for machine in world.machines.values():
            parts += [self._tables(tables) for tables in machine.server.log.states]
            parts += list(_connections(machine))
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()

    def _tables(self, tables: Tables) -> bytes:
        known = self._known.get(id(tables))
        if known is not None:
            return known[1]
        digest = hashlib.blake2b(repr(_plain(tables)).encode(), digest_size=16).digest()
        self._known[id(tables)] = (tables, digest)
        return digest


def _connections(machine: Machine) -> Iterator[object]:
    for number, connection in sorted(machine.server.connections.items()):
        if connection.transaction is not None or connection.bound:
            yield number, connection.bound, _transaction(connection)


def _transaction(connection: Connection) -> object:
    transaction = connection.transaction
    if transaction is None:
        return None
    return (
        transaction.mark, repr(transaction.handle), transaction.idle, transaction.gid, transaction.failed,
        repr(transaction.changes), sorted(transaction.locks),
    )  # fmt: skip


def _plain(tables: Tables) -> object:
    """The tables without what nobody reads."""
    receipts = sorted((key, replace(receipt, confirms=0)) for key, receipt in tables.receipts.items())
    guest = tables.guest
    journal: object = None
    if guest is not None:
        journal = (
            guest.floor,
            sorted((key, row.decision, row.ended_at) for key, row in guest.decisions.items()),
            sorted(guest.names.items()),
            sorted(guest.quarantine.items()),
        )
    keys = sorted(tables.keys.items())
    return sorted(tables.rows.items()), receipts, sorted(tables.prepared.items()), keys, tables.identity, journal


def stepwise(layout: Layout, variant: Variant) -> tuple[World, Steps]:
    """A world that has been founded, whose messages wait from now on."""
    world = World("explore", layout, resources=variant.resources, journal=variant.journal)
    steps = Steps(world)
    world.network = steps
    return world, steps
