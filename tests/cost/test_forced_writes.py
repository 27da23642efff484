"""Forced writes per shape, counted exactly, against the contract's table (PROTOCOL.md, Cost).

Each shape runs in a child process, sync and async: so many transactions of each way one after the other, with the
servers and the child under strace (`tracing`). Every branch and the journal have a server of their own, because two
branches on one server would now and then share a flush. What is counted is every fsync and fdatasync of whatever file
by a process that serves a session, so that a forced write nobody thought of makes the number wrong.

Beyond the contract's table:

- Staged, with a PostgreSQL branch in the journal's database: 2N, as the contract says. The directory row is committed
  unforced, and X's PREPARE flushes the log it stands in: see `Plan.covered`, and tests/crash/test_directory_row.py.
- Staged, with the journal elsewhere or a MariaDB branch in its database: 2N + 2. The directory row and the decision are
  forced by themselves: InnoDB can leave no row unforced, and a prepared branch of its takes no rows along.
- Staged, with a SQLite branch in the journal's database: 2N. Both rows go inside X's prepare and commit.
- Staged work that fails: nothing, but where one PostgreSQL or MariaDB database is all there is. There its name stands
  before it, which MariaDB forces, and its ABORT is forced.
- SQLite is counted in WAL mode, which new files get. A file that somebody has made in DELETE mode stays in it: there a
  local commit is 5 forced writes instead of 1 (journal, directory and database, as SQLite does it).
- The ends of records are written in batches behind, and not counted with the transactions: one flush is one forced
  write of the journal, and one per database for its receipts, however many attempts it ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit import Database
from nodoubt.testing.servers import MariaDBServer, PostgresServer, Server
from nodoubt.testing.tracing import Trace

COUNT = 20
# InnoDB's own threads (purge, page cleaner) force their log now and then, on no transaction's behalf. That only adds:
# what is counted is the fewest of so many runs, and one forced write too many in each transaction is in all of them.
RUNS_MAX = 3
# Not in memory: there MariaDB takes its log for persistent memory, maps it, and forces nothing.
DISK = "/var/tmp"
SERVERS_PER_KIND = {"postgres": 4, "mariadb": 3}
# No background process may force anything by itself while we count. Nothing here changes what a commit does.
QUIET: dict[str, dict[str, str | int]] = {
    "postgres": {"wal_writer_delay": "10s", "checkpoint_timeout": "1h"},
    "mariadb": {
        "innodb-flush-log-at-timeout": 2700,
        "innodb-adaptive-flushing": False,  # pages are written back, behind their log, when a tenth of it is full
        "innodb-log-file-size": "256M",
        "innodb-buffer-pool-size": "128M",
    },
}
SHAPES = [
    ("postgres",),
    ("mariadb",),
    ("sqlite",),
    ("postgres", "postgres"),
    ("postgres", "mariadb"),
    ("mariadb", "postgres"),
    ("mariadb", "mariadb"),
    ("postgres", "sqlite"),
    ("sqlite", "sqlite"),
    ("postgres", "postgres", "postgres"),
]
CASES = [(shape, "first") for shape in SHAPES] + [
    (("postgres", "postgres"), "postgres"),
    (("postgres", "mariadb"), "sqlite"),
    (("mariadb", "mariadb"), "mariadb"),
    (("sqlite", "sqlite"), "sqlite"),
]


def contract(shape: tuple[str, ...], journal: str) -> dict[str, int]:
    """Forced writes per transaction of each way."""
    branches = len(shape)
    here = shape[0] if journal == "first" else ""  # the kind of the branch in the journal's database
    several = {"once": 2 * branches - 1} if here else {"once": 2 * branches + 1}
    rides = here in ("postgres", "sqlite")
    return {
        "reads": 0,
        "one": 1,
        **(several if branches > 1 else {"once": 1}),
        "begin": branches if rides else branches + 1,
        "commit": branches if rides else branches + 1,
        "failed": {"postgres": 1, "mariadb": 2}.get(here, 0) if branches == 1 else 0,
    }


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, list[Server]]]:
    """Of each kind as many as a shape and its journal may need, quiet."""
    kinds: dict[str, type[Server]] = {"postgres": PostgresServer, "mariadb": MariaDBServer}
    started = {kind: [kinds[kind](QUIET[kind], under=DISK) for _ in range(n)] for kind, n in SERVERS_PER_KIND.items()}
    everyone = [server for group in started.values() for server in group]
    try:
        for server in everyone:
            server.start()
        yield started
    finally:
        for server in everyone:
            server.stop()


def counted(task: dict[str, Any], servers: list[Server], directory: Path) -> dict[str, Counter[str]]:
    """Run the child under the trace; what was forced in each of its sections."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), *sys.path])}
    child = subprocess.Popen(
        [sys.executable, str(here / "child.py"), json.dumps(task)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with Trace([child.pid, *(server.pid for server in servers)], directory) as trace:
            child.communicate()
            assert child.returncode == 0
            sections = [f"{mode}-{way}" for mode in ("sync", "async") for way in (*contract(("",), ""), "flush")]
            return {section: trace.between(section, f"{section}-end") for section in sections}


@pytest.mark.parametrize(
    ("shape", "journal"), CASES, ids=lambda case: case if isinstance(case, str) else "+".join(case)
)
def test_a_transaction_forces_what_the_contract_says_and_nothing_else(
    shape: tuple[str, ...], journal: str, servers: dict[str, list[Server]], tmp_path: Path
) -> None:
    free = {kind: list(group) for kind, group in servers.items()}
    used: list[Server] = []

    def url(kind: str, name: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/{name}.db"
        used.append(free[kind].pop())
        return used[-1].url()

    databases = [Database(name, url(kind, name)) for kind, name in zip(shape, "abc", strict=False)]
    for database in databases:
        if database.kind == "sqlite":
            database.query("pragma journal_mode = wal")
        database.create()
    at = None if journal == "first" else url(journal, "journal")
    for server in used:
        if isinstance(server, PostgresServer):
            # A new segment of the log is flushed as a file: let it come now, and not among what is counted.
            Database("", server.url()).query("select pg_switch_wal()")
    task = {"urls": {d.name: d.url for d in databases}, "journal": at, "count": COUNT}
    wanted = {way: COUNT * number for way, number in contract(shape, journal).items()}
    # All ends of records at once: one write in the journal, and one in each database for its receipts.
    wanted["flush"] = 1 + len(shape)
    fewest: dict[str, Counter[str]] = {}
    for run in range(RUNS_MAX):
        directory = tmp_path / f"run{run}"
        directory.mkdir()
        found = counted({**task, "marks": str(directory), "label": f"run{run}"}, used, directory)
        for section, files in found.items():
            # Not a transaction's: each new connection to a SQLite file flushes the directory, once, with its first
            # write; and InnoDB flushes a table's file when it makes it longer, once in many rows.
            for path in [path for path in files if path == str(tmp_path) or path.endswith(".ibd")]:
                del files[path]
            fewest[section] = min(fewest.get(section, files), files, key=Counter.total)
        if all(files.total() <= wanted[name.split("-")[1]] for name, files in fewest.items()):
            break
    wrong = {name: dict(files) for name, files in fewest.items() if files.total() != wanted[name.split("-")[1]]}
    assert not wrong, f"per {COUNT} transactions {wanted}, but there were at least {wrong}"
