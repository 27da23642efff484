"""The outcome of a run as one document: what was measured, on what, how noisily, and which targets were met.

It is written as JSON, and read back to make the tables and the plot.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nodoubt.testing.machine import command, mariadb_program, postgres_program

from .counts import Counts, forced_writes
from .rounds import Quartiles, Race
from .scenarios import ELSEWHERE, HAND, LOCAL, OURS, OURS_THREADS, Scenario, Target
from .task import Round

PACKAGES = ("nodoubt", "asyncpg", "psycopg", "asyncmy", "PyMySQL", "apsw", "SQLAlchemy", "uvloop")
FSYNCS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One contender in one race. Absolute figures are of this machine at that time: compare ratios."""

    name: str
    per_second: float
    p50_ms: float
    p99_ms: float
    client_ms: float  # CPU time of the client's process, per transaction
    servers_ms: float  # CPU time of all servers, per transaction
    bytes_per_client: float
    throughput: Quartiles  # over the yardstick's, round by round
    p50: Quartiles  # the yardstick's time over ours: more is better
    cpu: Quartiles  # the client's, over the yardstick's: less is better
    rounds: list[Round]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One race, against its yardstick, which is the first row."""

    scenario: str
    clients: int
    load: float  # the machine's run queue as the race began: what others had it do
    spread: float  # half of the yardstick's own rounds differed by less than this from each other
    rows: list[Figures]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A target and what was measured."""

    target: str
    least: float
    measured: Quartiles

    @property
    def met(self) -> bool:
        return self.measured.median >= self.least


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """A target that is counted: at most so many."""

    target: str
    most: float
    counted: float

    @property
    def met(self) -> bool:
        return self.counted <= self.most


@dataclass(frozen=True, slots=True, kw_only=True)
class CountTable:
    """The counts of one scenario."""

    scenario: str
    rows: dict[str, Counts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One figure of a scale scenario, in words."""

    scenario: str
    what: str
    value: str


@dataclass(slots=True, kw_only=True)
class Results:
    """The document."""

    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d"))
    machine: dict[str, str] = field(default_factory=dict)
    rounds: int = 0
    seconds: float = 0.0
    tables: list[Table] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)
    counts: list[CountTable] = field(default_factory=list)
    scale: list[Finding] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # what could not be measured, and why


def table_of(scenario: Scenario, clients: int, race: Race, load: float) -> Table:
    yardstick = next(iter(race.rounds))
    rates = Quartiles.of([one.per_second for one in race.rounds[yardstick]])
    return Table(
        scenario=scenario.name,
        clients=clients,
        load=load,
        spread=(rates.high - rates.low) / rates.median,
        rows=[_figures(race, name, yardstick, clients) for name in race.rounds],
    )


def _figures(race: Race, name: str, yardstick: str, clients: int) -> Figures:
    rounds = race.rounds[name]

    def median(values: Sequence[float]) -> float:
        return statistics.median(values)

    return Figures(
        name=name,
        per_second=median([one.per_second for one in rounds]),
        p50_ms=median([one.p50_ms for one in rounds]),
        p99_ms=median([one.p99_ms for one in rounds]),
        client_ms=median([one.cpu_ms for one in rounds]),
        servers_ms=median([one.servers_ms for one in rounds]),
        bytes_per_client=race.bytes_per_client(name, clients),
        throughput=race.ratio(name, yardstick, lambda one: one.per_second),
        p50=race.ratio(yardstick, name, lambda one: one.p50_ms),
        cpu=race.ratio(name, yardstick, lambda one: one.cpu_ms),
        rounds=rounds,
    )


def judged(target: Target, race: Race) -> Verdict:
    """Against the better of its peers, in each round."""
    ratios = [_ratios(target, race, other) for other in target.against]
    worst = [min(each) for each in zip(*ratios, strict=True)]
    return Verdict(target=str(target), least=target.least, measured=Quartiles.of(worst))


def counted(scenario: Scenario, rows: dict[str, Counts]) -> list[Counted]:
    """The forced writes of nodoubt against the contract's table, and its round trips against the loop by hand."""
    found = []
    for name in (OURS, OURS_THREADS, ELSEWHERE):
        if name in rows:
            wanted = forced_writes(len(scenario.kinds), scenario.kinds[0], scenario.staged, elsewhere=name == ELSEWHERE)
            what = f"{scenario.name}: forced writes of {name}, by the contract's table"
            found.append(Counted(target=what, most=wanted, counted=rows[name].forced_writes))
    ours, hand = rows.get(OURS), rows.get(HAND, rows.get(LOCAL))
    if ours and hand and ours.round_trips is not None and hand.round_trips is not None:
        what = f"{scenario.name}: round trips of nodoubt, no more than by hand"
        found.append(Counted(target=what, most=hand.round_trips, counted=ours.round_trips))
    return found


def _ratios(target: Target, race: Race, other: str) -> list[float]:
    pairs = list(zip(race.rounds[target.ours], race.rounds[other], strict=True))
    if target.measure == "p50":
        return [theirs.p50_ms / ours.p50_ms for ours, theirs in pairs]
    return [ours.per_second / theirs.per_second for ours, theirs in pairs]


def machine(folder: Path) -> dict[str, str]:
    """What it ran on."""
    cpu = next((line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "?")
    memory = int(next(line for line in _lines("/proc/meminfo") if line.startswith("MemTotal")).split()[1]) >> 20
    return {
        "processor": f"{os.cpu_count()} of {cpu}, {memory} GiB",
        "system": f"Linux {platform.release()}, Python {platform.python_version()}",
        "PostgreSQL": command([postgres_program("postgres"), "--version"], None).stdout.split()[2],
        "MariaDB": command([mariadb_program("mariadbd"), "--version"], None).stdout.split()[2],
        "drivers": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES),
        "forced write of 8 KiB": f"{fsync_ms(folder):.2f} ms in the median, with nothing else going on in the run",
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()


def fsync_ms(folder: Path) -> float:
    """How long a forced write of a page takes there, in the median."""
    number = os.open(folder / "fsync", os.O_CREAT | os.O_RDWR)
    taken = []
    try:
        for turn in range(FSYNCS):
            os.pwrite(number, b"x" * 8192, turn % 128 * 8192)
            began = time.perf_counter()
            os.fdatasync(number)
            taken.append(time.perf_counter() - began)
    finally:
        os.close(number)
    return statistics.median(taken) * 1e3
