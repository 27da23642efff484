"""What is measured, and what has to come out: scenarios, each with its contenders, and targets.

A target is reported, never asserted: time is not something a test can fail on. What can be counted is (counts.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from .contenders import BUN
from .places import Places
from .task import Task

EACH = (1, 8, 64)
OURS, OURS_THREADS = "nodoubt", "nodoubt, threads"
HAND, HAND_THREADS = "by hand", "by hand, threads"
PARALLEL_THREADS = "by hand, threads, in parallel"
ALCHEMY, OBJECTS = "SQLAlchemy twophase", "SQLAlchemy twophase, objects"
LOCAL, LOCAL_THREADS = "local", "local, threads"
MERGED, IN_BRANCH = "by hand, merged", "by hand, merged, decision in a branch"
CLOSED = "by hand, closed after prepare"
ELSEWHERE = "nodoubt, journal elsewhere"
UNDECIDED = "nodoubt, nothing decided"
BY_ANOTHER = "nodoubt, committed elsewhere"
MESSAGES, ROWS = "nodoubt's messages, no engine", "nodoubt's rows, no engine"
MESSAGES_THREADS = f"{MESSAGES}, threads"
# In databases of its own: those of the others are bound to the journal in the first of them, or would be swept of what
# it leaves undone. CLOSED now and then leaves a row locked that only a restart of MariaDB frees: XA COMMIT answers OK
# and does nothing where the session that prepared is not quite gone. With more than one client it stops soon.
OF_ITS_OWN = {
    ELSEWHERE: " elsewhere",
    UNDECIDED: " undecided",
    MESSAGES: " messages",
    MESSAGES_THREADS: " messages of threads",
    ROWS: " rows",
    CLOSED: " closed",
}
UVLOOP = ", uvloop"  # after a contender's name: on that event loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """The same transaction, by all of these contenders, at each of these numbers of clients."""

    name: str
    kinds: tuple[str, ...]
    contenders: tuple[str, ...]
    clients: tuple[int, ...] = EACH
    staged: bool = False
    statements: int = 1

    def tasks(self, places: Places, clients: int) -> list[Task]:
        """One for each contender."""
        work = Task(
            contender="",
            urls=places.urls(self.kinds),
            staged=self.staged,
            statements=self.statements,
            clients=clients,
        )
        return [self._task(work, name, places) for name in self.contenders]

    def _task(self, work: Task, name: str, places: Places) -> Task:
        if name in OF_ITS_OWN:
            urls = tuple(places.url(kind, number, OF_ITS_OWN[name]) for number, kind in enumerate(self.kinds))
            work = replace(work, urls=urls)
            if name in (ELSEWHERE, UNDECIDED):
                journal = places.url("postgres", len(urls), OF_ITS_OWN[name])
                return replace(work, contender=OURS if name == ELSEWHERE else name, journal=journal, called=name)
        return replace(work, contender=name.removesuffix(UVLOOP), uvloop=name.endswith(UVLOOP))


PG, MARIA, LITE = "postgres", "mariadb", "sqlite"
PAIR = Scenario(
    name="PostgreSQL + PostgreSQL at once",
    kinds=(PG, PG),
    contenders=(
        HAND,
        OURS,
        OURS + UVLOOP,
        HAND + UVLOOP,
        MERGED,
        IN_BRANCH,
        MESSAGES,
        "by hand, psycopg pipelined",
        ALCHEMY,
        OBJECTS,
        BUN,
        LOCAL,
        "nodoubt, in turn",
        "nodoubt, wait=decided",
    ),
)
PAIR_THREADS = Scenario(
    name="PostgreSQL + PostgreSQL at once, threads",
    kinds=(PG, PG),
    contenders=(HAND_THREADS, PARALLEL_THREADS, OURS_THREADS, MESSAGES_THREADS, LOCAL_THREADS),
)
STAGED = Scenario(
    name="PostgreSQL staged, then committed",
    kinds=(PG,),
    staged=True,
    contenders=(BUN, OURS, OURS + UVLOOP, BY_ANOTHER, MESSAGES, HAND, HAND + UVLOOP, MERGED),
)
STAGED_PAIR = Scenario(
    name="PostgreSQL + PostgreSQL staged, then committed",
    kinds=(PG, PG),
    staged=True,
    clients=(8,),
    contenders=(HAND, OURS, BY_ANOTHER, BUN),
)
ONE = Scenario(name="PostgreSQL alone, at once", kinds=(PG,), clients=(1, 8), contenders=(LOCAL, OURS))
MIXED = Scenario(
    name="PostgreSQL + MariaDB at once", kinds=(PG, MARIA), contenders=(HAND, OURS, MESSAGES, MERGED, LOCAL)
)  # fmt: skip
MIXED_THREADS = Scenario(
    name="PostgreSQL + MariaDB at once, threads",
    kinds=(PG, MARIA),
    clients=(8,),
    contenders=(HAND_THREADS, PARALLEL_THREADS, OURS_THREADS),
)
MIXED_STAGED = Scenario(
    name="PostgreSQL + MariaDB staged, then committed",
    kinds=(PG, MARIA),
    staged=True,
    clients=(8,),
    contenders=(HAND, OURS),
)
MARIA_STAGED = Scenario(
    name="MariaDB staged, then committed",
    kinds=(MARIA,),
    staged=True,
    contenders=(HAND, OURS, MESSAGES, MERGED),
)
MARIA_CLOSED = replace(MARIA_STAGED, name=f"{MARIA_STAGED.name} from anywhere", clients=(1,), contenders=(HAND, CLOSED))
MARIA_ONE = Scenario(name="MariaDB alone, at once", kinds=(MARIA,), clients=(1, 8), contenders=(LOCAL, OURS))
FILE = Scenario(
    name="SQLite, journal in the same file",
    kinds=(LITE,),
    clients=(1, 8),
    contenders=(LOCAL_THREADS, OURS_THREADS, OURS, ROWS),
)
FILES = Scenario(
    # One client: a prepared branch locks its table, and whoever comes meanwhile is refused, and has to try again.
    name="SQLite + SQLite at once",
    kinds=(LITE, LITE),
    clients=(1,),
    contenders=(LOCAL_THREADS, OURS_THREADS, OURS, ROWS),
)
FILE_STAGED = Scenario(
    name="SQLite staged, then committed",  # nobody else has a prepare there: against a plain commit
    kinds=(LITE,),
    staged=True,
    clients=(1,),
    contenders=(LOCAL_THREADS, OURS_THREADS),
)
JOURNAL = Scenario(
    name="PostgreSQL + PostgreSQL, the journal on a third",
    kinds=(PG, PG),
    clients=(64,),
    contenders=(OURS, ELSEWHERE, UNDECIDED),
)
FIVE = replace(
    PAIR, name=f"{PAIR.name}, 5 statements a branch", statements=5, clients=(8,), contenders=(HAND, OURS, LOCAL)
)
MANY = tuple(
    Scenario(name=f"{n} PostgreSQL at once", kinds=(PG,) * n, clients=(1, 8), contenders=(HAND, OURS)) for n in (4, 8)
)
SCENARIOS = (
    PAIR, STAGED, PAIR_THREADS, MIXED, MARIA_STAGED, FILE, FILES, JOURNAL, FIVE, STAGED_PAIR, MIXED_STAGED,
    MIXED_THREADS, FILE_STAGED, ONE, MARIA_ONE, MARIA_CLOSED, *MANY,
)  # fmt: skip

Measure = Literal["throughput", "p50"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """At least so many times the better of these. For p50 it is their time over ours: more is better, as everywhere."""

    scenario: Scenario
    clients: int
    least: float
    against: tuple[str, ...]
    ours: str = OURS
    measure: Measure = "throughput"

    def __str__(self) -> str:
        unit = "in p50" if self.measure == "p50" else "in throughput"
        which = " and ".join(self.against)
        at = f"{self.scenario.name}, {self.clients} client{'s' if self.clients > 1 else ''}"
        return f"{at}: {self.ours} at least {self.least:.3g} times {which} {unit}"


TARGETS = (
    Target(scenario=PAIR, clients=64, least=1.5, against=(HAND,)),
    Target(scenario=PAIR, clients=8, least=1.3, against=(HAND,)),
    Target(scenario=PAIR, clients=1, least=1.0, against=(HAND,), measure="p50"),
    Target(scenario=PAIR, clients=64, least=4.0, against=(OBJECTS,)),
    Target(scenario=STAGED, clients=64, least=1.2, against=(BUN,)),
    Target(scenario=STAGED, clients=8, least=1.2, against=(BUN,)),
    Target(scenario=STAGED, clients=1, least=1.0, against=(BUN,)),
    Target(scenario=MIXED, clients=8, least=1.2, against=(HAND,)),
    *(Target(scenario=MARIA_STAGED, clients=clients, least=1.0, against=(HAND,)) for clients in EACH),
    *(
        Target(
            scenario=PAIR_THREADS,
            clients=clients,
            least=1.0,
            against=(HAND_THREADS, PARALLEL_THREADS),
            ours=OURS_THREADS,
        )
        for clients in EACH
    ),
    Target(scenario=FILE, clients=1, least=0.9, against=(LOCAL_THREADS,), ours=OURS_THREADS),
    Target(scenario=FILES, clients=1, least=1 / 3, against=(LOCAL_THREADS,), ours=OURS_THREADS),
    Target(scenario=JOURNAL, clients=64, least=0.95, against=(UNDECIDED,), ours=ELSEWHERE),
    Target(scenario=JOURNAL, clients=64, least=0.95, against=(OURS,), ours=ELSEWHERE),
)
