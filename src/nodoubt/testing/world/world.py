"""A world: servers, processes, a network between them, and a schedule of what goes wrong.

Guarantees: single-threaded, and deterministic to the byte for one seed: nothing in it reads a clock, draws randomness
or depends on a hash. Nothing is checked but by the checker, and it after every step.

Must not: be used by production code.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ...engine.attempt import Attempt
from ...engine.context import Settings, log
from ...journals.memory import MemoryJournal, MemoryStore
from ...journals.memory_state import State
from ...ports import Journal, Notice, Resource
from ...resources.memory import (
    MemoryMariaDB,
    MemoryMariaDBResource,
    MemoryPostgres,
    MemoryPostgresResource,
    MemoryServer,
    MemorySqlite,
    MemorySqliteResource,
    Tables,
)
from ...resources.memory.mariadb import Ending
from ...resources.memory.server import Promise
from .checker import Checker, Violated
from .effects import Effects
from .faults import (
    ClockJump,
    CrashAt,
    CrashServer,
    Cut,
    EndByHand,
    Fault,
    Faults,
    Freeze,
    FullDisk,
    KillAt,
    OnNotice,
    Restore,
    SlowDisk,
    SlowEnds,
    Stop,
    TimedFault,
    from_here,
)
from .kernel import Kernel
from .keys import KeyChecker, KeyStore
from .machine import FLUSH_S, Machine
from .network import LATENCY_S, Network, Partition
from .outside import Service
from .process import EPOCH_S, Process
from .trace import Trace

Key = TypeVar("Key")
QUICK = Settings(
    connect_s=1,
    acquire_s=2,
    prepare_s=1,
    decide_s=3,
    apply_s=2,
    begin_s=10,
    answer_s=1,
    grace_s=3,
    sweep_s=1,
    deadline_s=30,
    retention_s=60,
    step_s=1,
    retry_first_s=0.3,
    retry_most_s=2,
    tries_max=3,
)
SERVERS: Mapping[str, type[MemoryServer]] = {
    "postgres": MemoryPostgres,
    "mariadb": MemoryMariaDB,
    "sqlite": MemorySqlite,
}
RESOURCES: Mapping[str, Callable[[str], Resource]] = {
    "postgres": MemoryPostgresResource,
    "mariadb": MemoryMariaDBResource,
    "sqlite": MemorySqliteResource,
}
SETUP_S = 60.0
STATES_KEPT = 64
STRANGERS = ("order-7", "nd1.feedfeedfeedfeed.00000000000070008000000000000000.0", "nd1.x")


@dataclass(frozen=True, slots=True)
class Layout:
    """Which servers there are, by name and kind; where the journal is: on one of them, or on a server of its own.

    `linger_s`: how long a MariaDB's session is kept that has prepared a staged branch; 0: not at all.
    """

    servers: tuple[tuple[str, str], ...] = (("a", "postgres"), ("b", "postgres"))
    journal: str = "a"
    journal_kind: str = "postgres"  # of a server of its own
    settings: Settings = QUICK
    linger_s: float = 0.0

    def __str__(self) -> str:
        servers = ", ".join(f"{name}={kind}" for name, kind in self.servers)
        own = self.journal not in dict(self.servers)
        journal = f"on a {self.journal_kind} of its own" if own else f"on {self.journal}"
        lingers = f"; sessions linger for {self.linger_s:g} s" if self.linger_s else ""
        return f"{servers}; the journal {journal}{lingers}"


@dataclass(slots=True)
class History:
    """What each machine had on disk, for those that lie about it and for backups."""

    states: dict[str, deque[Tables]] = field(default_factory=dict)
    backups: dict[tuple[str, float], Tables] = field(default_factory=dict)

    def keep(self, machine: Machine) -> None:
        states = self.states.setdefault(machine.name, deque(maxlen=STATES_KEPT))
        if not states or states[-1] is not machine.server.durable:
            states.append(machine.server.durable)

    def older(self, machine: Machine, lose: int) -> Tables | None:
        """What was on disk so many flushes ago; None: nothing is to be lost."""
        states = self.states.get(machine.name)
        if lose <= 0 or not states or len(states) < 2:
            return None
        return states[max(len(states) - 1 - lose, 0)]


@dataclass(frozen=True, slots=True)
class Founding:
    """What every world of a layout begins with: all is set up, and some strangers' transactions are prepared."""

    cluster: str
    tables: Mapping[str, Tables]


NOTHING = Founding("", {})


@functools.cache
def founded(layout: Layout) -> Founding:
    """`setup()`, by the product itself, on empty servers."""
    world = World("founding", layout, founding=NOTHING)
    founder = world.start("setup")
    founder.run_alone(founder.db.setup(), SETUP_S)
    tables = {}
    for name, machine in world.machines.items():
        strange = {gid: Promise((), (), 0, EPOCH_S) for gid in STRANGERS}
        tables[name] = replace(machine.server.durable, prepared=strange)
    founder.drop()
    return Founding(founder.ctx.cluster, tables)


class World:
    """See the module. `resources` and `journal`: other scripts over the same servers, such as a mutant's.

    `rules`: what the checker holds to, if not to all.
    """

    def __init__(
        self,
        seed: int | str = 0,
        layout: Layout | None = None,
        faults: Iterable[Fault] = (),
        *,
        resources: Mapping[str, Callable[[str], Resource]] = RESOURCES,
        journal: Journal | None = None,
        founding: Founding | None = None,
        rules: Collection[str] | None = None,
    ) -> None:
        self.seed, self.layout = seed, layout or Layout()
        self.kernel = Kernel()
        self.trace = Trace(self.kernel, hidden=(*STRANGERS, None))
        self.faults = Faults()
        self.network = Network(self)
        self.machines: dict[str, Machine] = {}
        self.processes: dict[str, Process] = {}
        self.history = History()
        self.checker = Checker(self, rules)
        self.service = Service(self)
        self.effects = Effects(self)
        self.keys = KeyChecker(self)
        self.cluster = ""
        self.restored: set[str] = set()  # machines that have forgotten what was on disk
        self.set_back = ""  # the one of which epochs can tell it, until an operator has adopted it
        self.staged: dict[str, list[str]] = {}  # name -> attempts that were told to be staged, in that order
        self.attempts: dict[str, Attempt] = {}  # at work on, by their ids
        self.alarms: list[Violated] = []
        self.watchers: list[Callable[[Process, Notice], None]] = []
        self._resources, self._journal = resources, journal or MemoryJournal()
        self._notices: dict[tuple[str, str, str], int] = {}
        self._keeps_history = False
        self._build()
        if founding is None:
            founding = founded(replace(self.layout, linger_s=0.0))
        self.cluster = founding.cluster
        for name, tables in founding.tables.items():
            self.machines[name].server.restore(tables)
        self.checker.look()
        self.add(faults)

    # ---- how it begins

    def _build(self) -> None:
        kinds = dict(self.layout.servers)
        if self.layout.journal not in kinds:
            kinds[self.layout.journal] = self.layout.journal_kind
        for name, kind in kinds.items():
            guest = MemoryStore(self._now) if name == self.layout.journal else None
            self.machines[name] = Machine(self, SERVERS[kind](name, now=self._now, guest=guest))

    def _now(self) -> float:
        return EPOCH_S + self.kernel.now

    @property
    def journal_at(self) -> str:
        return self.layout.journal

    def journal_view(self, tables: Tables) -> State:
        """The journal's tables in these."""
        return tables.guest if tables.guest is not None else State()

    def last_deadline(self) -> float:
        """Of the staged names that nobody has decided, by whatever clock they were given it."""
        journal = self.journal_view(self.machines[self.journal_at].server.tables)
        return max(
            (one.deadline for one in journal.names.values() if one.attempt not in journal.decisions), default=0.0
        )

    def start(self, name: str) -> Process:
        """A process that has not opened its coordinator yet."""
        settings, linger_s = self.layout.settings, self.layout.linger_s
        process = Process(
            self,
            name,
            resources={n: self._resources[kind](n) for n, kind in self.layout.servers},
            journal=self._journal,
            journal_at=self.journal_at,
            settings=replace(settings, linger_s=linger_s) if linger_s else settings,
            lingers=linger_s > 0,
        )
        for participant in process.ctx.participants.values():
            kind = participant.resource.traits.kind
            setattr(participant.resource, "key_store", KeyStore(kind))  # noqa: B010 - it is no part of the port
        self.processes[name] = process
        return process

    # ---- how it goes on

    def run(self, within_s: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let it go on for so long, or until then; whether that has come."""
        end = self.kernel.now + within_s
        while not until():
            more = self.kernel.step(end)
            if self.alarms:
                raise self.alarms[0]
            if not more:
                return until()
        return True

    def look(self) -> None:
        """Something may have changed."""
        if self._keeps_history:
            for machine in self.machines.values():
                self.history.keep(machine)
        self.checker.look()
        self.effects.look()
        self.keys.look()

    def jitter(self, process: Process) -> float:
        """How long a message of this process takes now."""
        if self.faults.salt is None:
            return LATENCY_S
        # A multiplicative hash of salt, process and the count of its messages: no state, the same everywhere.
        mixed = (self.faults.salt * 1_000_003 + sum(map(ord, process.name)) * 10_007 + process.messages) * 2654435761
        return LATENCY_S * (0.2 + (mixed >> 7) % 1024 / 256)

    def noticed(self, process: Process, notice: Notice) -> None:
        """A process has come to a point of the protocol."""
        what = " ".join(filter(None, [notice.what, str(notice.fields.get("resource", ""))]))
        self.trace.note(process.name, f"{notice.point} {what} {notice.attempt}")
        if notice.point == "S2":
            self.effects.intended(process, notice)
        self.checker.noticed(process, notice)
        for watcher in self.watchers:
            watcher(process, notice)
        key = (process.name, notice.point, notice.what)
        self._notices[key] = self._notices.get(key, 0) + 1
        for one in self.faults.on_notices:
            if (one.process, one.point, one.what, one.nth) == (*key, self._notices[key]):
                arrived = {machine.name: machine.arrived for machine in self.machines.values()}
                self.add([from_here(one.fault, messages=process.messages, arrived=arrived, now=self.kernel.now)])

    def reached(self, fault: OnNotice) -> bool:
        """Whether the process has come to that point, so often."""
        return self._notices.get((fault.process, fault.point, fault.what), 0) >= fault.nth

    def crashed(self, machine: Machine, before: Tables, *, honest: bool) -> None:
        """A server is down."""
        self.faults.note("server crashed")
        self.trace.note(machine.name, "crashes")
        if not honest:
            self._excuse_lost(machine, before)
            if self._epochs_tell(machine, before):
                self.set_back = machine.name
            elif self.set_back == machine.name:
                self.set_back = ""  # by another backup, which is new enough to look right
        self.look()

    def _excuse_lost(self, machine: Machine, before: Tables) -> None:
        """Its disk has lied, or it was set back: whatever it has forgotten is beyond the contract, and nothing else."""
        self.restored.add(machine.name)
        now = machine.server.tables
        lost = {key.partition("/")[2] for key in _changed(before.rows, now.rows) if key.startswith("paid/")}
        lost |= {gid.split(".")[2] for gid in before.prepared.keys() ^ now.prepared.keys() if gid.count(".") == 3}
        lost |= {row.gid.split(".")[2] for row in (set(before.keys.values()) ^ set(now.keys.values()))}
        lost |= {attempt for attempt, _ in before.receipts.keys() ^ now.receipts.keys()}
        if machine.name == self.journal_at:
            was, is_now = self.journal_view(before), self.journal_view(now)
            lost |= _changed(was.decisions, is_now.decisions)
            lost |= {attempt for attempt, _ in _changed(was.calls, is_now.calls)}
            lost |= {one.attempt for name in _changed(was.names, is_now.names) for one in _rows(name, was, is_now)}
        self.checker.excuse(sorted(lost), f"{machine.name} has lost what it had written")

    def _epochs_tell(self, machine: Machine, before: Tables) -> bool:
        """Whether an epoch that has been witnessed is missing now."""
        was, now = before.identity, machine.server.tables.identity
        if machine.name != self.journal_at:
            return was is not None and now is not None and self._registered(now.resource_id) > now.epoch
        epochs = self.journal_view(machine.server.tables).epochs
        witnessed = [m.server.tables.identity for m in self.machines.values() if m is not machine]
        return any(one is not None and one.epoch > (epochs[-1].number if epochs else 0) for one in witnessed)

    def _registered(self, resource_id: str) -> int:
        resources = self.journal_view(self.machines[self.journal_at].server.tables).resources
        return resources[resource_id][1].epoch if resource_id in resources else 0

    # ---- faults

    def add(self, faults: Iterable[Fault]) -> None:
        """Let these happen, too."""
        every = list(faults)
        self._keeps_history |= any(isinstance(fault, CrashServer) and fault.lose for fault in every)
        for fault in self.faults.add(every):
            self.kernel.at(fault.at_s, self._bring_about, fault)
            if isinstance(fault, Restore):
                self.kernel.at(fault.backup_s, self._back_up, fault)

    def _back_up(self, fault: Restore) -> None:
        self.history.backups[fault.machine, fault.backup_s] = self.machines[fault.machine].server.durable

    def _bring_about(self, fault: TimedFault) -> None:
        self.trace.note("", str(fault))
        if not isinstance(fault, KillAt | CrashAt | EndByHand):  # counted where they come to pass
            self.faults.note(_NAMES[type(fault)])
        if isinstance(fault, KillAt | Stop | ClockJump):
            if fault.process in self.processes:
                self._befall(self.processes[fault.process], fault)
        elif isinstance(fault, Cut):
            until = self.kernel.now + fault.for_s
            self.network.partitions.append(Partition(fault.process, fault.machine, until))
        else:
            self._strike(self.machines[fault.machine], fault)

    def _befall(self, process: Process, fault: KillAt | Stop | ClockJump) -> None:
        match fault:
            case KillAt():
                process.crash()
            case Stop(for_s=for_s):
                process.stopped_until = self.kernel.now + for_s
            case ClockJump(by_s=by_s):
                process.clock.off_s += by_s

    def _strike(
        self, machine: Machine, fault: CrashAt | Freeze | FullDisk | SlowDisk | SlowEnds | Restore | EndByHand
    ) -> None:
        match fault:
            case CrashAt(down_s=down_s):
                if machine.up:
                    machine.crash(CrashServer(machine=machine.name, message=0, down_s=down_s))
            case Freeze(for_s=for_s):
                machine.frozen_until = max(machine.frozen_until, self.kernel.now + for_s)
            case FullDisk(for_s=for_s):
                machine.server.full = True
                self.kernel.after(for_s, setattr, machine.server, "full", False)
            case SlowDisk(for_s=for_s, flush_s=flush_s):
                machine.flush_s = flush_s
                self.kernel.after(for_s, setattr, machine, "flush_s", FLUSH_S)
            case SlowEnds(listed_s=listed_s, engine_s=engine_s):
                if isinstance(machine.server, MemoryMariaDB):
                    machine.server.ending = Ending(listed_s, engine_s)
                    self.kernel.after(fault.for_s, setattr, machine.server, "ending", Ending())
            case Restore(down_s=down_s, backup_s=backup_s):
                crash = CrashServer(machine=machine.name, message=0, down_s=down_s)
                machine.crash(crash, backup=self.history.backups[machine.name, backup_s])
            case EndByHand(commit=commit):
                if machine.up and machine.end_by_hand(commit=commit):
                    self.faults.note("branch ended by hand")


_NAMES: Mapping[type[TimedFault], str] = {
    Freeze: "server frozen",
    Cut: "way cut",
    Stop: "process stopped",
    ClockJump: "clock jumped",
    FullDisk: "disk full",
    SlowDisk: "disk slow",
    SlowEnds: "sessions end slowly",
    Restore: "server set back",
}


def _changed(before: Mapping[Key, Any], now: Mapping[Key, Any]) -> set[Key]:
    return {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}


def _rows(name: str, *states: State) -> list[Any]:
    return [state.names[name] for state in states if name in state.names]


class Silenced:
    """While worlds run, what the engine logs goes nowhere but into their traces."""

    def __init__(self, world: World) -> None:
        self._handler = _IntoTrace(world)

    def __enter__(self) -> None:
        self._propagate, log.propagate = log.propagate, False
        log.addHandler(self._handler)

    def __exit__(self, *_: object) -> None:
        log.removeHandler(self._handler)
        log.propagate = self._propagate


class _IntoTrace(logging.Handler):
    def __init__(self, world: World) -> None:
        super().__init__(logging.WARNING)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        self._world.trace.note("log", record.getMessage())
