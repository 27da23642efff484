"""Where there is much of something: prepared branches, ended transactions, clients, branches of one transaction.

Each finding is one figure and what it is of; none is asserted.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

from nodoubt import Coordinator
from nodoubt.drivers import psycopg as driver
from nodoubt.journals.dialects import PostgresDialect
from nodoubt.journals.sql import SqlJournal
from nodoubt.ports import Work
from nodoubt.protocol.records import BranchRef, Decision, Mode, Verdict
from nodoubt.resources.postgres import PostgresResource
from nodoubt.script import Watch, drive
from nodoubt.testing.proxy import TcpProxy
from nodoubt.url import parse_url
from nodoubt.xid import Xid, new_attempt

from .places import Places, proxied, statement
from .results import Finding
from .rounds import Quartiles, Race, race
from .scenarios import HAND, OURS, PG
from .task import Order, Round, Task
from .workers import Worker, WorkerFailed

PREPARERS = 8
SWEEP_TIME_MAX_S = 1200.0
DECISIONS_PER_WRITE = 250
CROWD, CROWD_POOL = 1000, 20
DELAY_S = 0.03
FILLED, EMPTY = "nodoubt, full journal", "nodoubt, empty journal"


def findings(under: str, *, prepared: int, ended: int, rounds: int) -> Iterator[Finding]:
    """All of them. A scenario that fails is a finding, too."""
    crowded: dict[str, int] = {"max_prepared_transactions": prepared + 100, "max_connections": 200}
    with Places(under, more={"postgres": crowded}) as places:
        for part in (
            sweep(places, prepared // 10),
            sweep(places, prepared),
            full_journal(places, ended, rounds=rounds),
            crowd(places, rounds=rounds),
            many_branches(places),
        ):
            try:
                yield from part
            except WorkerFailed as error:
                yield Finding(scenario="a part", what="could not be measured", value=str(error).splitlines()[0])


# ---- a sweep over many prepared branches ----------------------------------------------------------


def sweep(places: Places, how_many: int) -> Iterator[Finding]:
    """Time, memory and round trips of the sweep that follows the crash of many coordinators."""
    urls = (places.fresh(PG, 0), places.fresh(PG, 1))
    decided = _leave_prepared(urls, how_many)
    listed = "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()"
    with proxied(urls) as (through, proxies), Worker(Task(contender="nodoubt, one sweep", urls=through)) as worker:
        for proxy in proxies:
            proxy.reset_counts()
        done = worker.ask(Order(count=1, settle=False), within_s=SWEEP_TIME_MAX_S)
        trips = sum(proxy.round_trips for proxy in proxies)
        grown = worker.grown_bytes
    [(left,)] = statement(urls[1], listed)
    [(committed,)] = statement(urls[1], "SELECT sum(balance) FROM accounts")
    name = f"one sweep over {how_many} prepared branches, half of them decided"
    yield Finding(
        scenario=name,
        what="left prepared; committed",
        value=f"{left}; {committed} of the {decided} that were decided",
    )
    yield Finding(
        scenario=name, what="time", value=f"{done.seconds:.1f} s, {done.cpu_ms:.0f} ms of it the sweeper's CPU"
    )
    yield Finding(scenario=name, what="peak memory above that of an idle coordinator", value=f"{grown >> 20} MiB")
    yield Finding(scenario=name, what="round trips per branch", value=f"{trips / how_many:.2f}")


def _leave_prepared(urls: Sequence[str], how_many: int) -> int:
    """Branches as coordinators leave them that die before (half of them) or after the decision; how many were decided.

    One branch on the second database each; the first would have been the commit point.
    """
    with Coordinator({"a": urls[0], "b": urls[1]}, recovery=False) as db:
        db.setup()
    (first, cluster), (second, _) = (
        statement(url, "SELECT resource_id, cluster FROM nodoubt.identity")[0] for url in urls
    )
    attempts = [new_attempt() for _ in range(how_many)]
    rows = iter(range(how_many))
    lock, resource = threading.Lock(), PostgresResource("b")

    def prepare(some: Sequence[str]) -> None:
        with closing(driver.connect(parse_url(urls[1]))) as session, ThreadPoolExecutor(1) as threads:
            for attempt in some:
                with lock:
                    row = next(rows)
                work = Work(Xid(cluster, attempt, 1), 1)
                for script in (
                    resource.begin(session, work),
                    resource.execute(session, work, f"INSERT INTO accounts VALUES ({-1 - row}, 1)", None),
                    resource.prepare(session, work),
                ):
                    drive(script, executor=threads, watch=Watch())

    with ThreadPoolExecutor(PREPARERS) as threads:
        list(threads.map(prepare, [attempts[i::PREPARERS] for i in range(PREPARERS)]))
        refs = (BranchRef(0, "a", first), BranchRef(1, "b", second))
        decided = [Decision(one, Verdict.COMMIT, Mode.ONCE, "", refs, 0, "bench") for one in attempts[::2]]
        journal = SqlJournal(PostgresDialect())
        with closing(driver.connect(parse_url(urls[0]))) as session:
            for i in range(0, len(decided), DECISIONS_PER_WRITE):
                drive(journal.insert(session, decided[i : i + DECISIONS_PER_WRITE]), executor=threads, watch=Watch())
    return len(decided)


# ---- a journal with a long past -------------------------------------------------------------------


def full_journal(places: Places, ended: int, *, rounds: int, seconds: float = 1.0) -> Iterator[Finding]:
    """Begin and commit beside so many rows of what has ended."""
    full, empty = places.fresh(PG, 0), places.fresh(PG, 0)
    for url in (full, empty):
        with Coordinator(url, recovery=False) as db:
            db.setup()
    _fill(full, ended)
    statement(full, "VACUUM ANALYZE")
    statement(empty, "VACUUM ANALYZE")
    for staged, what in ((True, "begin and commit, staged"), (False, "at once")):
        others = () if staged else (places.fresh(PG, 1), places.fresh(PG, 1))
        tasks = [
            Task(contender=OURS, urls=(url, *others[i : i + 1]), staged=staged, clients=8, called=called)
            for i, (url, called) in enumerate([(full, FILLED), (empty, EMPTY)])
        ]
        found = race(tasks, rounds=rounds, seconds=seconds, servers_s=places.cpu_s)
        ratio = found.ratio(FILLED, EMPTY, lambda one: one.per_second)
        name = f"{ended:,} ended transactions in the journal, against none"
        yield Finding(scenario=name, what=f"{what}, 8 clients: throughput", value=str(ratio))


def _fill(url: str, ended: int) -> None:
    """Decisions and names that ended a millisecond after each other, until now."""
    attempt = "lpad(to_hex(began + n), 12, '0') || substr(md5(n::text), 1, 20)"
    series = f"generate_series(1, {ended}) n, (SELECT (extract(epoch FROM now()) * 1000)::bigint - {ended} began) t"
    refs = """'[{"number":0,"resource":"db","resource_id":"00000000000000000000000000000000"}]'"""
    statement(
        url,
        "INSERT INTO nodoubt.decisions (attempt, verdict, mode, name, branches, owner, reason, decided_at, ended_at) "
        f"SELECT {attempt}, 'commit', 'staged', 'old-' || n, {refs}, 'bench', '', (began + n) / 1e3, (began + n) / 1e3 "
        f"FROM {series}",
    )
    statement(
        url,
        "INSERT INTO nodoubt.names (name, attempt, branches, last_branch, deadline, owner, metadata, created_at, "
        "begin_by, confirmations, calls) "
        f"SELECT 'old-' || n, {attempt}, {refs}, 0, (began + n) / 1e3 + 86400, 'bench', '{{}}', "
        f"(began + n) / 1e3, 0, '[]', 0 FROM {series}",
    )


# ---- more clients than connections ----------------------------------------------------------------


def crowd(places: Places, *, rounds: int, seconds: float = 1.5) -> Iterator[Finding]:
    """Whether they are served in turn, and what each costs while it waits."""
    urls = (places.fresh(PG, 0), places.fresh(PG, 1))
    tasks = [Task(contender=name, urls=urls, clients=CROWD, pool=CROWD_POOL) for name in (HAND, OURS)]
    found = race(tasks, rounds=rounds, seconds=seconds, servers_s=places.cpu_s)
    name = f"{CROWD} clients on {CROWD_POOL} connections to each of two databases"
    for one in (OURS, HAND):
        yield Finding(scenario=name, what=f"{one}: p99 latency over p50", value=_spread(found, one))
        fewest, most = (sum(getattr(r, side) for r in found.rounds[one]) for side in ("fewest", "most"))
        yield Finding(
            scenario=name, what=f"{one}: transactions of the least and the most served", value=f"{fewest}, {most}"
        )
    kib = found.bytes_per_client(OURS, CROWD) / 1024
    yield Finding(scenario=name, what="nodoubt: memory per live transaction", value=f"{kib:.0f} KiB at the peak")


def _spread(found: Race, name: str) -> str:
    return str(Quartiles.of([one.p99_ms / one.p50_ms for one in found.rounds[name]]))


# ---- many branches --------------------------------------------------------------------------------


def many_branches(places: Places) -> Iterator[Finding]:
    """Every answer to a PREPARE and a COMMIT PREPARED comes 30 ms late: what N branches cost is how often one waits."""
    urls = tuple(places.fresh(PG, number) for number in range(8))
    took: dict[int, Round] = {}
    with ExitStack() as stack:
        proxies = [stack.enter_context(TcpProxy.to(url)) for url in urls]
        through = [proxy.url_for(url) for proxy, url in zip(proxies, urls, strict=True)]
        for branches in (2, 8):
            with Worker(Task(contender=OURS, urls=tuple(through[:branches]))) as worker:
                worker.ask(Order(count=5))
                faults = [
                    proxy.delay_reply(pattern, DELAY_S, times=None)
                    for proxy in proxies
                    for pattern in (b"PREPARE TRANSACTION", b"COMMIT PREPARED")
                ]
                took[branches] = worker.ask(Order(count=20, settle=False))
                for fault in faults:
                    fault.cancel()
    late_ms = DELAY_S * 1e3
    yield Finding(
        scenario="N = 8 branches, each answering PREPARE and COMMIT PREPARED 30 ms late",
        what="p50 of 2 and of 8 branches, in such delays (in turn it would be 2 and 14)",
        value=f"{took[2].p50_ms / late_ms:.1f}, {took[8].p50_ms / late_ms:.1f}",
    )
