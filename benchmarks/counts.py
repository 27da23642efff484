"""What a transaction costs where no clock and no neighbour can blur it: counted, with one client.

Forced writes: every fsync and fdatasync of the servers' processes and the client's, by strace. Round trips and bytes:
by a proxy in front of each database (SQLite has no wire). Statements: by the servers' own counters; a message of
several statements is several. What nodoubt does behind (the end of records, once in some hundred transactions) is not
among them: it is one forced write of the journal and one of each database, however many transactions it ends.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nodoubt.testing.servers import Setting
from nodoubt.testing.tracing import Trace
from nodoubt.url import parse_url

from .contenders import BUN
from .places import Places, proxied, statement
from .rounds import label
from .scenarios import (
    ALCHEMY,
    BY_ANOTHER,
    ELSEWHERE,
    HAND,
    HAND_THREADS,
    IN_BRANCH,
    LITE,
    LOCAL,
    LOCAL_THREADS,
    MARIA,
    MERGED,
    OURS,
    OURS_THREADS,
    PG,
    Scenario,
)  # fmt: skip
from .task import Order, Task
from .workers import Worker

COUNT = 20
WARM_UP = 8  # drivers prepare a statement on the server when it has run a few times
RUNS_MAX = 3  # InnoDB's own threads only add forced writes now and then: the fewest of so many runs
#: No background process may force anything by itself while we count. Nothing here changes what a commit does.
QUIET: dict[str, dict[str, Setting]] = {
    "postgres": {
        "wal_writer_delay": "10s",
        "checkpoint_timeout": "1h",
        "autovacuum": False,
        "shared_preload_libraries": "pg_stat_statements",
    },
    "mariadb": {
        "innodb-flush-log-at-timeout": 2700,
        "innodb-adaptive-flushing": False,
        "innodb-log-file-size": "256M",
    },
}
SCENARIOS = (
    Scenario(name="PostgreSQL alone, at once", kinds=(PG,), contenders=(LOCAL, OURS)),
    Scenario(
        name="PostgreSQL + PostgreSQL at once",
        kinds=(PG, PG),
        contenders=(HAND, OURS, OURS_THREADS, MERGED, IN_BRANCH, HAND_THREADS, ALCHEMY, BUN, LOCAL, ELSEWHERE),
    ),
    Scenario(
        name="PostgreSQL staged, then committed",
        kinds=(PG,),
        staged=True,
        contenders=(BUN, OURS, BY_ANOTHER, OURS_THREADS, HAND),
    ),
    Scenario(
        name="PostgreSQL + PostgreSQL staged, then committed",
        kinds=(PG, PG),
        staged=True,
        contenders=(HAND, OURS, BY_ANOTHER, BUN),
    ),
    Scenario(name="PostgreSQL + MariaDB at once", kinds=(PG, MARIA), contenders=(HAND, OURS, LOCAL)),
    Scenario(
        name="MariaDB staged, then committed",
        kinds=(MARIA,),
        staged=True,
        contenders=(HAND, OURS, BY_ANOTHER, MERGED, "by hand, closed after prepare"),
    ),
    Scenario(name="SQLite, journal in the same file", kinds=(LITE,), contenders=(LOCAL_THREADS, OURS_THREADS)),
    Scenario(name="SQLite + SQLite at once", kinds=(LITE, LITE), contenders=(LOCAL_THREADS, OURS_THREADS)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Per transaction. None: it cannot be counted there."""

    forced_writes: float
    round_trips: float | None
    bytes_sent: float | None
    bytes_received: float | None
    statements: float | None


def quiet_places(under: str) -> Places:
    """Servers that force nothing by themselves, and count statements."""
    return Places(under, more=QUIET)


def count(scenario: Scenario, places: Places) -> dict[str, Counts]:
    """Every contender's counts."""
    return {label(task): _count(task, places) for task in scenario.tasks(places, clients=1)}


def forced_writes(branches: int, first: str, staged: bool, *, elsewhere: bool) -> int:
    """nodoubt's, by the contract's table; `first`: the kind of the branch whose database holds the journal."""
    if staged:
        return 2 * branches if first != MARIA and not elsewhere else 2 * branches + 2
    if branches == 1:
        return 1
    return 2 * branches + 1 if elsewhere else 2 * branches - 1


def _count(task: Task, places: Places) -> Counts:
    forced = min(_forced_writes(task, places) for _ in range(RUNS_MAX))
    urls = (*task.urls, *([task.journal] if task.journal else ()))
    with proxied(urls) as (through, proxies):
        via = replace(task, urls=through[: len(task.urls)], journal=through[-1] if task.journal else None)
        with Worker(via) as worker:
            worker.ask(Order(count=WARM_UP))
            _forget(urls)
            first, before = _questions(urls), _questions(urls)  # to ask is a question, too
            for proxy in proxies:
                proxy.reset_counts()
            worker.ask(Order(count=COUNT, settle=False))
            trips = sum(proxy.round_trips for proxy in proxies)
            sent = sum(proxy.bytes_to_server for proxy in proxies)
            received = sum(proxy.bytes_to_client for proxy in proxies)
            said = _questions(urls) - before - (before - first)
    if not proxies:
        return Counts(
            forced_writes=forced / COUNT, round_trips=None, bytes_sent=None, bytes_received=None, statements=None
        )
    return Counts(
        forced_writes=forced / COUNT,
        round_trips=trips / COUNT,
        bytes_sent=sent / COUNT,
        bytes_received=received / COUNT,
        statements=said / COUNT,
    )


def _forced_writes(task: Task, places: Places) -> int:
    for url in task.urls:
        if parse_url(url).kind == "postgres":
            # A new segment of the log is flushed as a file: let it come now, and not among what is counted.
            statement(url, "SELECT pg_switch_wal()")
    servers = [server.pid for server in places.servers.values()]
    with tempfile.TemporaryDirectory(dir=places.folder) as folder, Worker(task) as worker:
        worker.ask(Order(count=WARM_UP))
        with Trace([worker.pid, *servers], Path(folder)) as trace:
            worker.ask(Order(count=COUNT, settle=False, marks=folder))
            forced = trace.between("begin", "end")
    return _of_transactions(forced).total()


def _of_transactions(forced: Counter[str]) -> Counter[str]:
    """Without what belongs to none: a folder, flushed once for each new file; a table's file that InnoDB extends."""
    return Counter({path: n for path, n in forced.items() if not path.endswith(".ibd") and not Path(path).is_dir()})


def _questions(urls: Sequence[str]) -> int:
    """How many statements MariaDB has been given so far; and PostgreSQL, since it was asked to forget (`_forget`).

    pg_stat_statements does not see a BEGIN that a driver has prepared (psycopg does that to whatever it sends often).
    """
    total = 0
    for url in urls:
        if parse_url(url).kind == "postgres":
            seen = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements WHERE query !~ 'pg_stat_statements'"
            total += statement(url, seen)[0][0]
        elif parse_url(url).kind == "mariadb":
            total += int(statement(url, "SHOW GLOBAL STATUS LIKE 'Questions'")[0][1])
    return total


def _forget(urls: Sequence[str]) -> None:
    for url in urls:
        if parse_url(url).kind == "postgres":
            statement(url, "CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
            statement(url, "SELECT pg_stat_statements_reset()")
