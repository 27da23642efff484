"""A schedule: which world, who does what in it and when, and what goes wrong.

All of it is drawn from one seed, before the world begins; the world itself draws nothing. So a schedule can be printed,
replayed and shrunk: `keep` names those of its acts and faults, by number, that are left.

Must not: run anything.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from .acts import LATEST_S, Act, CleanUp, Finish, Parts, Pay, Recover, Settle, Stage, Sweep
from .calls import Ask, Mend, Undo, Use
from .faults import (
    CancelCallers,
    ClockJump,
    CrashServer,
    Cut,
    EndByHand,
    Fault,
    Freeze,
    FullDisk,
    Jitter,
    Kill,
    LateReply,
    LateRequest,
    LoseReply,
    LoseRequest,
    OnNotice,
    Restore,
    SlowDisk,
    SlowEnds,
    Stop,
    Twice,
    When,
)
from .keys import Once
from .outside import NAME as OUTSIDE
from .outside import Plan, Say
from .process import OPENING
from .world import Layout

KINDS = ("postgres", "mariadb", "sqlite")
HORIZON_S = LATEST_S  # after that nothing goes wrong any more
CALLERS_MAX, RECOVERERS_MAX, FAULTS_MAX, ACCOUNTS = 3, 5, 10, 3
CALLER_MESSAGES, RECOVERER_MESSAGES, SERVER_MESSAGES = 50, 150, 150
OPENING_MESSAGES = 18
# Where most of what can go wrong goes wrong: faults are tied to these more often than to any other moment.
POINTS = (
    ("P2", "work"), ("P3", "prepare"), ("P3", "prepared"), ("P4", "all prepared"), ("P4", "staged"), ("P5", "deciding"),
    ("P6", "committed"), ("P6", "aborted"), ("P8", "commit"), ("P7", "branch committed"), ("P9", "every branch proved"),
)  # fmt: skip
STEP_POINTS = (
    ("S1", "calling"), ("S2", "intended"), ("S3", "answered"), ("S4", "recorded"), ("S5", "undoing"), ("S6", "undone"),
    ("S7", "undo recorded"), ("P6", "aborted"), ("P6", "committed"), ("P4", "staged"),
)  # fmt: skip
USES_MAX, STEP_FAULTS_MAX = 3, 4
PREPARED = (("P3", "prepared"), ("P4", "all prepared"), ("P4", "staged"), ("P5", "deciding"), ("P6", "committed"))

Item = Act | Fault


@dataclass(frozen=True, slots=True)
class Schedule:
    """See the module. `opens`: when each process opens its coordinator. `seed` None: it was written by hand.

    `beyond`: it was drawn with `BEYOND`.
    """

    seed: int | None
    layout: Layout
    opens: tuple[tuple[str, float], ...]
    items: tuple[Item, ...]
    keep: tuple[int, ...] = ()
    beyond: bool = False

    @property
    def kept(self) -> list[tuple[int, Item]]:
        return [(number, self.items[number]) for number in self.keep]

    @property
    def acts(self) -> list[Act]:
        return [item for _, item in self.kept if isinstance(item, Act)]

    @property
    def faults(self) -> list[Fault]:
        return [item for _, item in self.kept if not isinstance(item, Act)]

    def only(self, keep: Sequence[int]) -> Schedule:
        """The same with these items alone. Raises `ValueError` for a number that it does not have."""
        if not set(keep) <= set(range(len(self.items))):
            raise ValueError(f"seed {self.seed} has acts and faults 0 to {len(self.items) - 1}, not all of {keep}")
        return replace(self, keep=tuple(keep))

    @property
    def command(self) -> str:
        """What replays it."""
        if self.seed is None:
            return "the test that has it"
        some = "" if len(self.keep) == len(self.items) else f" KEEP={','.join(map(str, self.keep))}"
        return f"make sim SEED={self.seed}{some}{' BEYOND=1' if self.beyond else ''}"

    def __str__(self) -> str:
        opens = ", ".join(f"{name} at {at_s:.3g} s" for name, at_s in self.opens)
        return "\n".join(
            [f"servers: {self.layout}", f"processes: {opens}", *(f"{n:3} {_brief(item)}" for n, item in self.kept)]
        )


def _brief(item: Item) -> str:
    """As it would be written by hand: what is as usual is left out."""
    values = [(one.name, getattr(item, one.name)) for one in fields(item) if getattr(item, one.name) != one.default]
    said = [f"{name}={_brief(value) if isinstance(value, Item) else repr(value)}" for name, value in values]
    return f"{type(item).__name__}({', '.join(said)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Focus:
    """What to draw more of, for a hunt after one thing. `weights`: of these faults, and no others."""

    servers: tuple[str, ...] = ()  # kinds
    journal: str = ""
    weights: Mapping[str, int] = field(default_factory=dict)
    staged: float = 0.5
    fails: float = 0.1
    clean_ups: float = 0.2
    settles: float = 0.2
    steps: float = 0.0  # how likely it is that steps are called outside
    keys: float = 0.0  # and that callers have idempotency keys
    strangers: float = 0.05
    slow_ends: float = 0.4  # of a MariaDB's sessions
    lingers: float = 0.5  # and that those which have prepared a staged branch are kept


EVERYDAY = Focus(steps=0.3, keys=0.3)
BEYOND = Focus(steps=1.0, keys=1.0)  # what stands on transactions, in every schedule


def scripted(layout: Layout, opens: Mapping[str, float], *items: Item) -> Schedule:
    """A schedule written by hand."""
    return Schedule(None, layout, tuple(opens.items()), items, tuple(range(len(items))))


def drawn(seed: int, focus: Focus | None = None) -> Schedule:
    """The schedule of this seed."""
    return _Drawing(seed, focus or EVERYDAY).schedule()


class _Drawing:
    """One seed's draws, in order."""

    def __init__(self, seed: int, focus: Focus) -> None:
        self.seed, self.focus = seed, focus
        self.random = random.Random(seed)  # noqa: S311 - it is to be foretold
        self.layout = self._layout()
        self.servers = [name for name, _ in self.layout.servers]
        self.machines = sorted({*self.servers, self.layout.journal})
        self.callers = [f"p{n + 1}" for n in range(self.random.randint(1, CALLERS_MAX))]
        self.recoverers = [f"r{n + 1}" for n in range(self.random.choice([1, 2, 2, 2, 3, RECOVERERS_MAX]))]
        self.names = [f"order-{n + 1}" for n in range(2)]
        self.points: tuple[tuple[str, str], ...] = POINTS
        self.victims = self.callers

    def schedule(self) -> Schedule:
        rnd = self.random
        opens = [(name, round(rnd.choice([0.0, 0.0, rnd.uniform(0, 4)]), 3)) for name in self.callers]
        opens += [(name, round(rnd.choice([0.0, rnd.uniform(0, 1), rnd.uniform(0, 6)]), 3)) for name in self.recoverers]
        acts: list[Item] = []
        for _ in range(rnd.randint(1, 5)):
            acts += self._staging() if rnd.random() < self.focus.staged else self._payment()
        for name in self.callers:
            if rnd.random() < 0.6:
                acts.append(Recover(process=name, at_s=0.0, every_s=rnd.choice([1.0, 2.5, 4.0])))
        for name in self.recoverers:
            if rnd.random() < 0.5:
                acts.append(Recover(process=name, at_s=0.0, every_s=rnd.choice([1.0, 2.5, 4.0])))
            else:
                acts += self._sweeps(name, [act.at_s for act in acts if isinstance(act, Pay | Stage | Finish)])
        if rnd.random() < self.focus.settles:
            at_s = rnd.choice([act.at_s for act in acts if isinstance(act, Pay | Stage)]) + rnd.uniform(0, 0.04)
            acts.append(Settle(process=self._process(), at_s=round(at_s, 4)))
        if rnd.random() < self.focus.clean_ups:
            acts += [CleanUp(process=rnd.choice(self.recoverers), at_s=self._when()) for _ in range(2)]
        faults = [self._fault() for _ in range(rnd.randint(0, FAULTS_MAX))]
        items = [*acts, *faults, Jitter(salt=rnd.randrange(1 << 20))]
        # From a source of their own: what else a seed draws is the same with steps and without.
        self.random = random.Random(f"{self.seed} outside")  # noqa: S311 - it is to be foretold
        if self.random.random() < self.focus.steps:
            items = [*map(self._calling, items), *self._about_steps(acts)]
        self.random = random.Random(f"{self.seed} once")  # noqa: S311 - likewise
        self.points, self.victims = POINTS, self.callers
        if self.random.random() < self.focus.keys:
            items += self._about_keys()
        self.random = random.Random(f"{self.seed} stranger")  # noqa: S311 - likewise
        if self.random.random() < self.focus.strangers:
            items.append(self._stranger())
        self.random = random.Random(f"{self.seed} sessions")  # noqa: S311 - likewise
        items += self._slow_ends()
        layout = replace(self.layout, linger_s=self._linger_s())
        keep, beyond = tuple(range(len(items))), self.focus == BEYOND
        return Schedule(self.seed, layout, tuple(opens), tuple(items), keep, beyond)

    # ---- steps outside

    def _calling(self, item: Item) -> Item:
        """An act that calls steps now, and fails more often."""
        rnd = self.random
        if not isinstance(item, Pay | Stage) or rnd.random() < 0.2:
            return item
        uses = tuple(self._use(f"{number}") for number in range(rnd.randint(1, USES_MAX)))
        if isinstance(item, Stage):
            return replace(item, uses=uses, fails=item.fails or rnd.random() < 0.2)
        return replace(item, uses=uses, fails=item.fails or rnd.random() < 0.4)

    def _about_keys(self) -> list[Item]:
        """Several callers who want one thing done once, most of them at the same time; and what goes wrong with it."""
        rnd = self.random
        parts, on, at_s = self._parts(), rnd.choice(self.servers), self._when()
        calls = [
            Once(
                process=rnd.choice(self.callers),
                at_s=round(at_s + rnd.choice([0.0, rnd.uniform(0, 0.05), rnd.uniform(0, 3)]), 3),
                key="key-1",
                on=on,
                parts=parts,
                payload=rnd.choice([0, 0, 0, 0, 1]),
                fails=rnd.random() < self.focus.fails,
                tries=rnd.randint(1, 4),
            )
            for _ in range(rnd.randint(2, 5))
        ]
        finishes: list[Item] = []
        if rnd.random() < 0.4:
            calls[0] = replace(calls[0], name=self.names[0])
            finishes = [self._finish(self.names[0], at_s) for _ in range(rnd.randint(0, 2))]
        return [*calls, *finishes, *(self._fault() for _ in range(rnd.randint(0, STEP_FAULTS_MAX)))]

    def _use(self, name: str) -> Use:
        rnd = self.random
        says = [Say.DONE, Say.DONE, Say.DONE, Say.REFUSED, Say.BROKEN, Say.BROKEN_AFTER, Say.LATE]
        undo = [Say.DONE, Say.DONE, Say.BROKEN, Say.BROKEN_AFTER, Say.LATE]
        plan = Plan(
            name,
            tuple(rnd.choices(says, k=rnd.randint(0, 2))),
            tuple(rnd.choices(undo, k=rnd.randint(0, 2))),
            poison=rnd.random() < 0.1,
        )
        # A file that is locked takes no intent: where the journal is one, steps come before the work.
        file = dict(self.layout.servers).get(self.layout.journal) == "sqlite"
        return Use(
            plan=plan,
            keyed=rnd.random() < 0.7,
            bare=rnd.random() < 0.1,
            first=file or rnd.random() < 0.3,
            swallowed=rnd.random() < 0.1,
        )

    def _about_steps(self, acts: Sequence[Item]) -> list[Item]:
        """Steps that are called by name, who undoes them, and what goes wrong with all that."""
        rnd = self.random
        items: list[Item] = []
        for stage in [act for act in acts if isinstance(act, Stage)]:
            use = self._use("by name")
            for _ in range(rnd.choice([0, 1, 1, 2])):
                at_s = round(stage.at_s + rnd.choice([rnd.uniform(0, 0.1), rnd.uniform(0, 2)]), 3)
                process, tries = rnd.choice(self.callers), rnd.randint(1, 3)
                items.append(Ask(process=process, at_s=at_s, name=stage.name, use=use, tries=tries))
        workers = [name for name in self.recoverers if rnd.random() < 0.7]
        for name in workers:
            blind = rnd.random() < 0.15
            items.append(Undo(process=name, at_s=0.0, every_s=rnd.choice([0.5, 1.0, 2.5]), blind=blind))
        if rnd.random() < 0.4:
            at_s = round(rnd.uniform(4, HORIZON_S), 3)
            items.append(Mend(process=rnd.choice(self.recoverers), at_s=at_s, skip=rnd.random() < 0.5))
        if rnd.random() < 0.3:
            process = rnd.choice(self.victims)
            items.append(Cut(process=process, machine=OUTSIDE, at_s=self._when(), for_s=self._for_s()))
        self.points, self.victims = STEP_POINTS, [*self.callers, *self.recoverers]
        return items + [self._fault() for _ in range(rnd.randint(0, STEP_FAULTS_MAX))]

    def _stranger(self) -> Fault:
        """Where something is prepared, most of the time."""
        rnd = self.random
        machine, at_s, commit = rnd.choice(self.servers), rnd.choice([0.0, 0.0, 0.001]), rnd.random() < 0.5
        fault = EndByHand(machine=machine, at_s=at_s, commit=commit)
        process, (point, what) = rnd.choice(self.callers), rnd.choice(PREPARED)
        return OnNotice(process=process, point=point, what=what, fault=fault, nth=rnd.choice([1, 1, 2]))

    def _linger_s(self) -> float:
        return self.random.choice([0.05, 0.5, 3.0, 9.0]) if self.random.random() < self.focus.lingers else 0.0

    def _slow_ends(self) -> list[Item]:
        """Of each MariaDB; from the beginning, most of the time, for only some sessions have prepared anything."""
        rnd = self.random
        if rnd.random() >= self.focus.slow_ends:
            return []
        return [
            SlowEnds(
                machine=name,
                at_s=rnd.choice([0.0, 0.0, self._when()]),
                for_s=rnd.choice([HORIZON_S, self._for_s()]),
                listed_s=rnd.choice([0.0, 0.002, 0.05, 1.0]),
                engine_s=rnd.choice([0.002, 0.05, 1.0, 4.0]),
            )
            for name, kind in self.layout.servers
            if kind == "mariadb"
        ]

    def _sweeps(self, process: str, busy_s: list[float]) -> list[Item]:
        """Most of them just when somebody is at work, and sparing nothing."""
        rnd = self.random
        at_s = [rnd.choice([rnd.choice(busy_s) + rnd.uniform(0, 0.04), self._when()]) for _ in range(3)]
        return [Sweep(process=process, at_s=round(one, 4), grace_s=rnd.choice([None, 0.0, 0.0])) for one in at_s]

    def _layout(self) -> Layout:
        rnd = self.random
        count = rnd.choice([1, 2, 2, 2, 2, 3, 3])
        kinds = self.focus.servers or tuple(rnd.choice(KINDS) for _ in range(count))
        servers = tuple(zip("abc", kinds, strict=False))
        journal = self.focus.journal or rnd.choice([servers[0][0], servers[-1][0], "j"])
        return Layout(servers, journal, rnd.choice(KINDS))

    def _when(self) -> float:
        return round(self.random.choice([self.random.uniform(0, 3), self.random.uniform(0, 9)]), 3)

    def _parts(self) -> Parts:
        rnd = self.random
        some = rnd.sample(self.servers, rnd.choice([len(self.servers), rnd.randint(1, len(self.servers))]))
        account = f"account/{rnd.randrange(ACCOUNTS)}"
        amount = rnd.randint(1, 9)
        first = [(server, account, -amount) for server in some[:1]]
        rest = [(server, account, amount if server == some[-1] else 0) for server in some[1:]]
        if not rest:
            return ((some[0], account, 0),)
        return (*first, *rest)

    def _payment(self) -> list[Item]:
        rnd = self.random
        parts = self._parts()
        others = [server for server in self.servers if server not in {part[0] for part in parts}]
        return [
            Pay(
                process=rnd.choice(self.callers),
                at_s=self._when(),
                parts=parts,
                reads=tuple(others) if rnd.random() < 0.3 else (),
                fails=(fails := rnd.random() < self.focus.fails),
                swallowed=fails and rnd.random() < 0.5,
                cured=fails and rnd.random() < 0.5,
                timeout_s=rnd.choice([None, None, 0.5, 5.0]),
                decided=rnd.random() < 0.3,
                settles=rnd.random() < 0.5,
            )
        ]

    def _staging(self) -> list[Item]:
        rnd = self.random
        name, at_s = rnd.choice(self.names), self._when()
        acts: list[Item] = [
            Stage(
                process=rnd.choice(self.callers),
                at_s=at_s,
                name=name,
                parts=self._parts(),
                fails=rnd.random() < self.focus.fails,
                deadline_s=rnd.choice([None, 1.0, 6.0]),
                timeout_s=rnd.choice([None, 3.0]),
                reuse=rnd.random() < 0.3,
                undo=rnd.random() < 0.5,
                settles=rnd.random() < 0.5,
            )
        ]
        return acts + [self._finish(name, at_s) for _ in range(rnd.choice([0, 1, 1, 2, 3]))]

    def _finish(self, name: str, staged_s: float) -> Finish:
        rnd = self.random
        return Finish(
            process=rnd.choice(self.callers),
            at_s=round(staged_s + rnd.choice([0.0, 0.05, rnd.uniform(0, 1), rnd.uniform(0, 10)]), 3),
            name=name,
            commit=rnd.random() < 0.75,
            first=rnd.random() < 0.3,
            tries=rnd.randint(1, 4),
            decided=rnd.random() < 0.2,
        )

    # ---- what goes wrong

    def _fault(self) -> Fault:
        rnd = self.random
        weights = self.focus.weights or WEIGHTS
        kind = rnd.choices(list(weights), weights=list(weights.values()))[0]
        if kind == "restore" or rnd.random() < 0.4:
            return self._any(kind, self._process(), near=False)
        process, (point, what) = rnd.choice(self.victims), rnd.choice(self.points)
        fault = self._any(kind, process, near=True)
        return OnNotice(process=process, point=point, what=what, fault=fault, nth=rnd.choice([1, 1, 1, 2, 3]))

    def _any(self, kind: str, process: str, *, near: bool) -> Fault:
        """A fault of this kind; `near`: to be counted from a notice."""
        return (
            self._of_message(kind, process, near) or self._of_server(kind, near) or self._of_time(kind, process, near)
        )

    def _for_s(self) -> float:
        return round(self.random.choice([self.random.uniform(0, 0.5), self.random.uniform(0.5, 6)]), 3)

    def _process(self) -> str:
        return self.random.choice([*self.callers, *self.callers, *self.recoverers])

    def _message(self, process: str, near: bool) -> int:
        rnd = self.random
        if near:
            return rnd.choice([1, 1, 1, 2, 3])
        if rnd.random() < 0.1:
            return rnd.randint(-OPENING, -OPENING + OPENING_MESSAGES)
        return rnd.randint(1, CALLER_MESSAGES if process in self.callers else RECOVERER_MESSAGES)

    def _of_message(self, kind: str, process: str, near: bool) -> Fault | None:
        rnd = self.random
        message, told, half_open_s = self._message(process, near), rnd.random() < 0.7, rnd.choice([0.0, 0.0, 8.0])
        match kind:
            case "kill":
                when = rnd.choice([When.BEFORE, When.SENT, When.DONE])
                return Kill(process=process, message=message, when=when, silent_s=half_open_s)
            case "lose request":
                return LoseRequest(process=process, message=message, told=told, half_open_s=half_open_s)
            case "lose reply":
                return LoseReply(process=process, message=message, told=told, half_open_s=half_open_s)
            case "late request":
                return LateRequest(process=process, message=message, by_s=self._for_s())
            case "late reply":
                return LateReply(process=process, message=message, by_s=self._for_s())
            case "twice":
                return Twice(process=process, message=message)
            case "cancel":
                return CancelCallers(process=process, message=message)
        return None

    def _of_server(self, kind: str, near: bool) -> Fault | None:
        rnd = self.random
        machine = rnd.choice(self.machines)
        message = rnd.choice([1, 1, 2, 3]) if near else rnd.randint(1, SERVER_MESSAGES)
        match kind:
            case "crash":
                when = rnd.choice([When.BEFORE, When.DURING, When.DURING, When.DONE])
                down_s, keep = rnd.choice([0.01, 0.5, self._for_s()]), rnd.choice([0, 0, 1, 2])
                writing_s = rnd.choice([0.0, 0.002, 0.4])
                return CrashServer(
                    machine=machine, message=message, when=when, down_s=down_s, writing_s=writing_s, keep=keep
                )
            case "lie":
                return CrashServer(machine=machine, message=message, lose=rnd.randint(1, 3))
        return None

    def _of_time(self, kind: str, process: str, near: bool) -> Fault:
        rnd = self.random
        machine, at_s = rnd.choice(self.machines), 0.0 if near else self._when()
        match kind:
            case "freeze":
                return Freeze(machine=machine, at_s=at_s, for_s=self._for_s())
            case "cut":
                return Cut(process=process, machine=machine, at_s=at_s, for_s=self._for_s())
            case "stop":
                return Stop(process=process, at_s=at_s, for_s=self._for_s())
            case "jump":
                by_s = rnd.choice([rnd.uniform(-5, 5), rnd.uniform(-90, 90), DAY_S, -DAY_S])
                return ClockJump(process=process, at_s=at_s, by_s=round(by_s, 3))
            case "full":
                return FullDisk(machine=machine, at_s=at_s, for_s=self._for_s())
            case "slow disk":
                flush_s = rnd.choice([0.02, 0.3, 1.5])
                return SlowDisk(machine=machine, at_s=at_s, for_s=self._for_s(), flush_s=flush_s)
            case "restore":
                return Restore(machine=machine, at_s=at_s + 2, backup_s=round(max(at_s - rnd.uniform(0, 6), 0.0), 3))
        raise ValueError(f"there is no fault of the kind {kind!r}")


DAY_S = 86400.0
WEIGHTS = {
    "kill": 20,
    "lose request": 8,
    "lose reply": 12,
    "late request": 12,
    "late reply": 8,
    "twice": 5,
    "cancel": 6,
    "crash": 18,
    "freeze": 5,
    "cut": 6,
    "stop": 8,
    "jump": 6,
    "full": 4,
    "slow disk": 6,
    "lie": 1,
    "restore": 1,
}
