"""Where the time of one transaction goes: its messages, its client's CPU time, and what of it no program can save.

Written as Markdown, ready for the docs. Figures are of the machine that ran it; the shape of them is what to read.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from nodoubt.testing.servers import Setting
from nodoubt.url import parse_url

from .contenders import make
from .overhearing import listening, place_of
from .places import Places, statement
from .report import grid
from .results import fsync_ms
from .scenarios import HAND, IN_BRANCH, MARIA, MERGED, OURS, PG
from .task import Order, Task
from .workers import Worker

TRANSACTIONS = 200
SAMPLED_S = 10.0
CLIENTS = 64
TOP = 20
INSTRUCTIONS = (20, 120)  # transactions of two runs under valgrind: what they differ by is theirs alone
INTRODUCTION = """Written by `python -m benchmarks profile`. One statement on each branch, nodoubt with its defaults on
asyncio; all servers, and their data, on this machine.
"""
COUNTING: dict[str, dict[str, Setting]] = {
    "postgres": {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track_planning": True}
}
STATEMENTS = r"""
    SELECT regexp_replace(left(regexp_replace(query, '\s+', ' ', 'g'), 90), $$'.*$$, '...') AS gist,
        sum(calls)::float8, sum(total_plan_time), sum(total_exec_time)
    FROM pg_stat_statements WHERE query !~ 'pg_stat_statements' GROUP BY gist ORDER BY sum(total_exec_time) DESC
"""
COUNTED = r"""
    SHOW GLOBAL STATUS WHERE Variable_name RLIKE
    '^(Com_(begin|commit|delete|insert|select|set_option|update|xa_.*)|Queries|Innodb_os_log_written)$'
"""
MATTERS = 0.05
#: By the innermost file that is somebody's: what a helper of the standard library uses is its caller's.
GROUPS = (
    ("event loop and sockets (asyncio; the kernel's share is in it)", r"asyncio/|selectors\.py"),
    ("driver (libpq, psycopg)", r"psycopg\w*/\w+\.py|\.pyx"),
    ("nodoubt: reading answers (drivers)", r"nodoubt/drivers/"),
    ("nodoubt: running scripts (script, shell)", r"nodoubt/script\.py|engine/shell\.py"),
    ("nodoubt: pools", r"engine/pool\.py"),
    ("nodoubt: engine", r"nodoubt/engine/|nodoubt/(transaction|coordinator|wiring)\.py"),
    ("nodoubt: what a branch sends (resources)", r"nodoubt/resources/|resources/\w+\.py"),
    ("nodoubt: what the journal sends (journals)", r"nodoubt/journals/|journals/\w+\.py"),
    ("nodoubt: the machine (protocol, records, xids)", r"nodoubt/protocol/|nodoubt/(xid|errors|ports)\.py"),
    ("the benchmark's own loop", r"benchmarks/"),
)


@dataclass(frozen=True, slots=True)
class Message:
    """One message and its answer, in one transaction."""

    database: str
    sql: str
    sent_ms: float  # since the transaction began
    took_ms: float


def document(under: str) -> str:
    """The whole, for the shapes that matter most."""
    with Places(under, more=COUNTING) as places:
        shapes = (
            ("Two PostgreSQL databases, at once", Task(contender=OURS, urls=places.urls((PG, PG)))),
            (
                "One PostgreSQL database, staged, then committed",
                Task(contender=OURS, urls=places.urls((PG,)), staged=True),
            ),
            (
                "One MariaDB database, staged, then committed",
                Task(contender=OURS, urls=places.urls((MARIA,)), staged=True),
            ),
        )
        parts = [
            f"# Where a transaction's time goes, {time.strftime('%Y-%m-%d')}\n",
            INTRODUCTION,
            _floor(places),
        ]
        for title, task in shapes:
            parts += [f"## {title}\n", messages(task), servers(task), _cpu(task, places)]
            if shutil.which("valgrind"):
                parts.append(_instructions(task))
        if not shutil.which("valgrind"):
            parts.append("Valgrind is not installed, so the client's instructions were not counted.\n")
    return "\n".join(parts)


def _floor(places: Places) -> str:
    url = places.url(PG, 0)
    forced, trip = fsync_ms(places.folder), asyncio.run(_round_trip_ms(url))
    decided, applied = 2 * forced + 3 * trip, 3 * forced + 4 * trip
    return f"""## The floor

A forced write of 8 KiB takes {forced:.2f} ms here in the median, an empty round trip to a server {trip:.2f} ms.
Whatever program runs it, two-phase commit over several databases forces two writes one after the other, a prepare and
the decision, and the application's statements are a round trip of their own. So with one statement on each branch, in
parallel, nobody is told in less than {decided:.2f} ms that it is decided, and in less than {applied:.2f} ms that it is
applied everywhere. All else is CPU time: the servers', and the client's below.
"""


async def _round_trip_ms(url: str) -> float:
    connection = await asyncpg.connect(parse_url(url).secret())
    taken = []
    for _ in range(TRANSACTIONS):
        began = time.perf_counter()
        await connection.execute("SELECT 1")
        taken.append(time.perf_counter() - began)
    await connection.close()
    return statistics.median(taken) * 1e3


# ---- messages -------------------------------------------------------------------------------------


def messages(task: Task) -> str:
    """What one client says and waits for, in the order of a transaction: the median of each position."""
    transactions = asyncio.run(_overheard(task))
    usual = Counter(len(one) for one in transactions).most_common(1)[0][0]
    alike = [one for one in transactions if len(one) == usual]
    rows = []
    for position in range(usual):
        each = [one[position] for one in alike]
        first = each[0]
        rows.append((
            str(position + 1),
            first.database,
            f"{statistics.median(m.sent_ms for m in each):.2f}",
            f"{statistics.median(m.took_ms for m in each):.2f}",
            str(_statements(first.sql)),
            str(len(first.sql)),
            f"`{_gist(first.sql)}`",
        ))  # fmt: skip
    whole = statistics.median(max(m.sent_ms + m.took_ms for m in one) for one in alike)
    waited = statistics.median(_covered_ms(one) for one in alike)
    head = ("", "to", "sent at ms", "answered after ms", "statements", "bytes", "begins with")
    return (
        f"### Messages, one client\n\n{grid(head, rows)}\n"
        f"A transaction takes {whole:.2f} ms in the median. For {waited:.2f} ms of it at least one message is under "
        f"way; for {whole - waited:.2f} ms only the client is at work.\n"
    )


async def _overheard(task: Task) -> list[list[Message]]:
    """Run transactions in this process, and listen to what its sessions say."""
    urls = map(parse_url, task.urls)
    letters = {(url.port, url.database): letter for letter, url in zip("abcdefgh", urls, strict=False)}
    contender: Any = make(task)
    transactions = []
    await contender.open()
    with listening() as ear:
        for number in range(-20, TRANSACTIONS):
            ear.take()
            began = time.perf_counter()
            await contender.transact(0)
            if number >= 0:
                transactions.append([
                    Message(
                        letters[place_of(said.session)],
                        said.sql,
                        (said.sent_s - began) * 1e3,
                        (said.answered_s - said.sent_s) * 1e3,
                    )
                    for said in ear.take()
                ])  # fmt: skip
    await contender.close()
    return transactions


def servers(task: Task) -> str:
    """What the servers did for a transaction, by their own account: waiting for the disk is in it, parsing is not."""
    if not all(url.startswith("postgresql") for url in task.urls):
        return _status(task)
    for url in task.urls:
        statement(url, "CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    with Worker(task) as worker:
        worker.ask(Order(count=20))
        for url in task.urls:
            statement(url, "SELECT pg_stat_statements_reset()")
        worker.ask(Order(count=TRANSACTIONS, settle=False))
    rows = []
    for letter, url in zip("abcdefgh", task.urls, strict=False):
        for gist, *each in statement(url, STATEMENTS):
            if each[0] >= TRANSACTIONS / 2:
                rows.append((letter, *(f"{value / TRANSACTIONS:.3f}" for value in each), f"`{_gist(gist)}`"))
    head = ("server", "calls", "planned for ms", "ran for ms", "statement")
    return f"### The servers' own account, one client, for each transaction\n\n{grid(head, rows)}"


def _status(task: Task) -> str:
    """What a MariaDB counts, for nodoubt and for the loop by hand."""
    [url] = task.urls
    found = {}
    for name in (OURS, HAND):
        with Worker(replace(task, contender=name)) as worker:
            worker.ask(Order(count=20))
            before = _counters(url)
            worker.ask(Order(count=TRANSACTIONS, settle=False))
            found[name] = {key: (value - before[key]) / TRANSACTIONS for key, value in _counters(url).items()}
    rows = [
        (f"`{key}`", f"{ours:.2f}", f"{found[HAND][key]:.2f}") for key, ours in found[OURS].items() if ours >= MATTERS
    ]
    head = ("counter", "nodoubt", "by hand")
    return f"### The server's own account, one client, for each transaction\n\n{grid(head, rows)}"


def _counters(url: str) -> dict[str, float]:
    return {name: float(value) for name, value in statement(url, COUNTED)}


def _covered_ms(messages: Sequence[Message]) -> float:
    """For how long at least one of them is under way."""
    covered, until = 0.0, 0.0
    for one in sorted(messages, key=lambda message: message.sent_ms):
        end = one.sent_ms + one.took_ms
        covered += max(0.0, end - max(one.sent_ms, until))
        until = max(until, end)
    return covered


def _statements(sql: str) -> int:
    return len([part for part in re.sub(r"'[^']*'", "''", sql).split(";") if part.strip()])


def _gist(sql: str) -> str:
    short = re.sub(r"[0-9a-f]{16,}", "…", " ".join(sql.split()))
    return (short[:90] + "…" if len(short) > 90 else short).replace("|", "\\|")


# ---- the client's CPU time ------------------------------------------------------------------------


def _cpu(task: Task, places: Places) -> str:
    """By group, beside the hand-written loop; then the functions that stand out."""
    many = replace(task, clients=CLIENTS)
    ours, cost = _sampled(many, places)
    theirs, their_cost = _sampled(replace(many, contender=HAND), places)
    rows = [
        (name, f"{_share(ours, pattern) * cost:.0f}", f"{_share(theirs, pattern) * their_cost:.0f}")
        for name, pattern in (*GROUPS, ("anything else", ""))
    ]
    rows.append(("**all**", f"**{cost:.0f}**", f"**{their_cost:.0f}**"))
    inside: Counter[str] = Counter()
    for stack, times in ours:
        inside.update(dict.fromkeys({one for one in stack if "nodoubt/" in one or "psycopg" in one}, times))
    total = sum(times for _, times in ours)
    functions = [(f"`{name}`", f"{times / total * cost:.0f}") for name, times in inside.most_common(TOP)]
    return (
        f"### The client's CPU time, {CLIENTS} clients: µs for each transaction\n\n"
        f"{grid(('', 'nodoubt', 'by hand'), rows)}\n"
        f"With all that they call:\n\n{grid(('function', 'µs'), functions)}"
    )


Stacks = list[tuple[list[str], int]]


def _sampled(task: Task, places: Places) -> tuple[Stacks, float]:
    """The stacks met, and the CPU time of one transaction in µs."""
    with tempfile.TemporaryDirectory(dir=places.folder) as folder, Worker(task) as worker:
        worker.ask(Order(seconds=1.0))
        file = Path(folder) / "profile"
        done = worker.ask(Order(seconds=SAMPLED_S, profile=str(file)))
        return read(file), done.cpu_ms * 1e3


def read(profile: str | Path) -> Stacks:
    """What a worker has written where an order's `profile` said."""
    return msgspec.json.decode(Path(profile).read_bytes(), type=Stacks)


def _share(stacks: Stacks, pattern: str) -> float:
    """The share of the samples whose innermost own file matches; with no pattern, of those that match none."""
    shares: dict[str, int] = defaultdict(int)
    for stack, times in stacks:
        shares[next((p for one in stack for _, p in GROUPS if re.search(p, one)), "")] += times
    return shares[pattern] / sum(times for _, times in stacks)


# ---- instructions ---------------------------------------------------------------------------------


def _instructions(task: Task) -> str:
    """The client's instructions for each transaction, counted by valgrind: a figure that no neighbour changes."""
    names = (OURS, HAND, MERGED, IN_BRANCH) if len(task.urls) > 1 else (OURS, HAND, MERGED)
    found = {name: _counted(replace(task, contender=name)) for name in names}
    rows = [(name, f"{n / 1e6:.2f}", f"{n / found[HAND]:.2f}") for name, n in found.items()]
    head = ("", "million instructions", "ratio")
    return f"### The client's own instructions, one client, without the kernel's\n\n{grid(head, rows)}"


def _counted(task: Task) -> float:
    totals = []
    prefix = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")
    for count in INSTRUCTIONS:
        worker = Worker(task, prefix=prefix)
        worker.ask(Order(count=10, settle=False))
        worker.ask(Order(count=count, settle=False))
        worker.close()
        match = re.search(r"I\s+refs:\s+([\d,]+)", worker.errors())
        assert match is not None, worker.errors()
        totals.append(int(match[1].replace(",", "")))
    return (totals[1] - totals[0]) / (INSTRUCTIONS[1] - INSTRUCTIONS[0])
