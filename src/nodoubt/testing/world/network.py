"""What lies between processes and servers: links that keep their order, and messages that are late or lost.

A link is one session. It is a TCP connection: what arrives arrives in order, and what a dead client has sent still
arrives before the server learns that it is gone. A lost message breaks its link, at once or when somebody stops
waiting. Only messages of our own can arrive twice (a driver or a pooler that sends again), and requests with a key; no
server survives that for a user's statement.

Must not: know what is in a message.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import ResourceUnavailable
from ...ports import SessionLost
from ...resources.memory.server import Connection
from ...script import Outcome
from .driver import Answer, Answering
from .faults import Mishap, When

if TYPE_CHECKING:
    from .machine import Machine
    from .process import Process
    from .world import World

LATENCY_S = 0.001
FOREVER_S = 30.0  # after that the client's own kernel gives a silent connection up
_TWICE = frozenset({"send", "apply", "charge", "refund"})


class Link(Answering):
    """`ports.Session`, as a simulated process has it."""

    def __init__(self, network: Network, process: Process, machine: Machine, connection: Connection) -> None:
        self.network, self.process, self.machine, self.connection = network, process, machine, connection
        self.connection_id = connection.number
        self.server_started = machine.server.started
        self.usable = True
        self.killed = False  # by this side
        self.ended = False  # the server has been told, or will find out
        self.broken = False  # by the other, or on the way
        self.arrived_at = 0.0  # when the last message gets there: the next one comes no earlier
        self.busy = 0
        self.hung_up = False  # the server is in the middle of a message, and will notice after it

    def start(self, verb: str, args: tuple[Any, ...], answer: Answer) -> Callable[[], None]:
        if verb == "close":
            self.kill()
            return self.process.after(0.0, answer, Outcome(None)).cancel
        if self.killed or self.broken:
            self.usable = False
            return self.process.after(0.0, answer, Outcome(None, self._gone())).cancel
        self.busy += 1
        checker = self.network.world.checker
        checker.sends(self.process, verb, args)

        def answered(outcome: Outcome[Any]) -> None:
            self.busy -= 1
            if not self.killed and self.process.alive:
                checker.answered(self, verb, args, outcome)
                answer(outcome)

        self.network.request(self, verb, args, answered)
        return self.kill  # whoever gives a call up leaves the session in the middle of it

    def kill(self) -> None:
        """End it at once; the server learns of it after what was sent before."""
        self.usable = False
        self.killed = True
        if not self.ended and self.process.alive:
            self.ended = True
            self.network.end(self)

    def close(self) -> None:
        self.kill()

    def lost(self, error: BaseException) -> bool:
        return isinstance(error, SessionLost)

    def timed_out(self, seconds: float) -> Exception:
        return SessionLost(f"no answer within {seconds:.3g} s")

    def _gone(self) -> SessionLost:
        return SessionLost(f"the connection to {self.machine.name} has ended")


@dataclass(slots=True)
class Partition:
    """Between this process and this server nothing passes until then; what was sent arrives after it."""

    process: str
    machine: str
    until: float


class Network:
    """All links."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.partitions: list[Partition] = []

    def passes_at(self, process: str, machine: str, when: float) -> float:
        """When something that is at that place of its way gets on."""
        for partition in self.partitions:
            if (partition.process, partition.machine) == (process, machine) and when < partition.until:
                when = partition.until + LATENCY_S
        return when

    # ---- connecting

    def connect(self, process: Process, machine: Machine, within_s: float, answer: Answer) -> Callable[[], None]:
        """A link, or `ResourceUnavailable`."""
        kernel = self.world.kernel
        given_up = False

        def done(outcome: Outcome[Any]) -> None:
            late.cancel()
            if given_up and outcome.value is not None:
                outcome.value.kill()
            elif not given_up:
                answer(outcome)

        def refuse(why: str) -> None:
            error = ResourceUnavailable(f"{machine.name} cannot be reached: {why}; nothing was done")
            process.after(LATENCY_S, done, Outcome(None, error))

        def arrive() -> None:
            if not machine.up:
                return refuse("connection refused")
            if machine.frozen_until > kernel.now:
                kernel.at(machine.frozen_until, arrive)
                return None
            link = Link(self, process, machine, machine.accept())
            machine.links.append(link)
            back = self.passes_at(process.name, machine.name, kernel.now + LATENCY_S)
            process.links.append(link)
            process.after(back - kernel.now, done, Outcome(link))
            return None

        def give_up() -> None:
            nonlocal given_up
            given_up = True
            late.cancel()

        def too_late() -> None:
            nonlocal given_up
            given_up = True
            error = ResourceUnavailable(f"{machine.name} cannot be reached: no answer; nothing was done")
            answer(Outcome(None, error))

        late = process.after(within_s, too_late)
        delay = self.world.jitter(process)
        kernel.at(self.passes_at(process.name, machine.name, kernel.now + delay), arrive)
        return give_up

    # ---- messages

    def request(self, link: Link, verb: str, args: tuple[Any, ...], answer: Answer) -> None:
        """Send it, with what the schedule has in store for this message of this process."""
        process, kernel, world = link.process, self.world.kernel, self.world
        number = process.next_message()
        fault = world.faults.on_message(process, number)
        world.trace.sent(process.name, link.machine.name, number, verb, args)
        if fault.crash is When.BEFORE:
            process.crash(fault.silent_s)
            return
        world.faults.note_request(fault)
        arrives = kernel.now + world.jitter(process) + fault.late_s
        arrives = max(self.passes_at(process.name, link.machine.name, arrives), link.arrived_at)
        link.arrived_at = arrives
        if fault.crash is When.SENT:
            kernel.after(0.0, process.crash, fault.silent_s)
        if fault.cancel:
            process.after(0.0, process.cancel_callers)
        if fault.request_lost:
            self._break(link, answer, fault)
        else:
            kernel.at(arrives, self._arrive, link, verb, args, answer, number)
            if fault.twice and verb in _TWICE:
                kernel.at(arrives, self._arrive, link, verb, args, _nobody, number)

    def _arrive(self, link: Link, verb: str, args: tuple[Any, ...], answer: Answer, number: int) -> None:
        link.machine.receive(link, verb, args, lambda outcome: self._reply(link, outcome, answer, number))

    def _reply(self, link: Link, outcome: Outcome[Any], answer: Answer, number: int) -> None:
        process, kernel, world = link.process, self.world.kernel, self.world
        fault = world.faults.on_message(process, number)
        world.trace.answered(link.machine.name, process.name, number, outcome)
        if answer is _nobody:
            return
        world.faults.note_reply(fault)
        if fault.crash is When.DONE:
            kernel.after(0.0, process.crash, fault.silent_s)
            return
        if fault.reply_lost:
            self._break(link, answer, fault)
            return
        arrives = kernel.now + world.jitter(process) + fault.reply_late_s
        arrives = self.passes_at(process.name, link.machine.name, arrives)
        process.after(arrives - kernel.now, answer, outcome)

    def _break(self, link: Link, answer: Answer, mishap: Mishap) -> None:
        """The link is cut. The client is told at once, or when it stops waiting; the server after a while."""
        link.broken = link.ended = True
        link.process.after(LATENCY_S if mishap.told else FOREVER_S, self._reset, link, answer)
        self.end(link, mishap.half_open_s)

    def _reset(self, link: Link, answer: Answer) -> None:
        link.usable = False
        answer(Outcome(None, SessionLost(f"the connection to {link.machine.name} was lost")))

    def end(self, link: Link, silent_s: float = 0.0) -> None:
        """Tell the server that the client has gone, after what it has sent; or let it find out by itself."""
        kernel = self.world.kernel
        arrives = self.passes_at(link.process.name, link.machine.name, kernel.now + LATENCY_S)
        link.arrived_at = max(arrives, link.arrived_at)
        kernel.at(link.arrived_at + silent_s, link.machine.hang_up, link)


def _nobody(outcome: Outcome[Any]) -> None: ...
