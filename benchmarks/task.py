"""What the harness and a worker say to each other: one JSON document a line.

The harness starts `python -m benchmarks.worker TASK` (or the same in another language), reads `Ready`, sends an `Order`
a line and reads a `Round` for each. The end of its input ends the worker.
"""

from __future__ import annotations

from dataclasses import dataclass

ROWS_PER_CLIENT = 8
ACCOUNTS = 1000 * ROWS_PER_CLIENT
ADD = "UPDATE accounts SET balance = balance + 1 WHERE id = "


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One contender's work: the same transaction again and again, by so many clients at a time."""

    contender: str
    urls: tuple[str, ...]  # a branch each, all of them written
    staged: bool = False  # prepared first, then decided in a step of its own
    statements: int = 1  # on each branch
    clients: int = 1
    pool: int = 16  # connections per database, as far as there are clients for them
    journal: str | None = None  # a URL of its own; None: the first branch's database
    uvloop: bool = False
    called: str = ""  # what tables call it, if not by its contender's name

    @property
    def connections(self) -> int:
        return min(self.pool, self.clients)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Work for so long, or so many transactions."""

    seconds: float = 0.0
    count: int = 0
    settle: bool = True  # whether what a contender leaves to be done behind is done, and counted, in the round
    marks: str = ""  # a folder: leave the marks "begin", "end" and "done" of a trace there
    profile: str = ""  # a file: where the client's CPU time went, sampled, as JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The worker is connected: before the first transaction."""

    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round was. User and system time are the worker's own process's, all its threads."""

    transactions: int
    seconds: float
    p50_ms: float
    p99_ms: float
    user_s: float
    system_s: float
    fewest: int = 0  # transactions of the client that was served least, and most: how fairly they wait
    most: int = 0
    servers_s: float = 0.0  # CPU time of all servers meanwhile, warm-up excluded; the harness adds it

    @property
    def per_second(self) -> float:
        return self.transactions / self.seconds

    @property
    def cpu_ms(self) -> float:
        """The client's, per transaction."""
        return (self.user_s + self.system_s) * 1e3 / self.transactions

    @property
    def servers_ms(self) -> float:
        """The servers', per transaction."""
        return self.servers_s * 1e3 / self.transactions
