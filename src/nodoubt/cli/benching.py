"""`bench`: what a transaction costs on these databases, over this network: each alone, then all in one.

A commit on one database alone is a plain commit and a receipt; what the transaction over all of them takes longer is
the price of its atomicity. The work is one UPDATE on each database, of a row that no other client has.

Guarantees: works in a table of its own, `benchmark_of_nodoubt`, which it creates and drops; where there is one already,
it is left alone, and that is an error. Asks first, unless told `--yes`.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import rich_click as click

from .. import wiring
from ..engine.context import using
from ..errors import ResourceUnavailable, TransactionAborted, UsageError
from ..ports import Session
from ..script import Script, do
from .asking import Duration
from .desk import Desk, desk_command, yes_option

if TYPE_CHECKING:
    from ..coordinator import Coordinator

TABLE = "benchmark_of_nodoubt"
COLUMNS = ("transaction on", "clients", "per second", "p50 ms", "p99 ms", "tried again")
PAUSE_S = 0.001  # before a client tries again: SQLite refuses whoever meets a prepared branch


@click.command()
@desk_command
@click.option("--clients", type=click.IntRange(1, 64), default=8, show_default=True, help="Threads at work.")
@click.option("--for", "seconds", type=Duration(), default=3.0, metavar="TIME", help="For each figure [3s].")
@yes_option
def bench(desk: Desk, clients: int, seconds: float, yes: bool) -> None:
    """Measure commits on these databases: on each alone, then on all of them in one transaction."""
    if not yes:
        desk.require_terminal()
    urls = desk.databases.urls
    desk.databases.require_files()
    if not yes:
        desk.ask(f"This creates a table {TABLE} on {', '.join(urls)}, works on it for a while, and drops it again.")
    names = list(urls)
    shapes = [*([name] for name in names), *([names] if len(names) > 1 else [])]
    with _table(desk, clients), _coordinator(desk, clients) as db:
        figures = [_measured(db, shape, clients, seconds) for shape in shapes]
    if desk.out.json:
        desk.out.document({"clients": clients, "figures": figures})
        return
    rows = [
        (
            " + ".join(one["on"]),
            str(clients),
            f"{one['per_second']:.0f}",
            f"{one['p50_ms']:.1f}",
            f"{one['p99_ms']:.1f}",
            str(one["tried_again"]),
        )
        for one in figures
    ]
    desk.out.table("", COLUMNS, rows)


def _coordinator(desk: Desk, clients: int) -> Coordinator:
    from ..coordinator import Coordinator

    return Coordinator(
        desk.databases.resources,
        journal=desk.databases.journal,
        settings=replace(desk.config.settings, pool_size=clients),
        recovery=False,
    )


@contextmanager
def _table(desk: Desk, clients: int) -> Iterator[None]:
    rows = ",".join(f"({number},0)" for number in range(clients))
    made: list[str] = []
    with wiring.onlooker(desk.databases.resources, desk.databases.journal, desk.config.settings) as (ctx, shell):

        def run(name: str, sql: str) -> None:
            def body(session: Session) -> Script[Any]:
                return do(session, "run", sql)

            shell.run(using(ctx.participants[name].pool, body))

        try:
            for name in ctx.participants:
                run(name, f"CREATE TABLE {TABLE} (id int PRIMARY KEY, value int NOT NULL)")
                made.append(name)
                run(name, f"INSERT INTO {TABLE} VALUES {rows}")
            yield
        finally:
            for name in made:
                run(name, f"DROP TABLE {TABLE}")


def _measured(db: Coordinator, names: Sequence[str], clients: int, seconds: float) -> dict[str, Any]:
    """Clients at work until the time is up; each begins its next transaction as soon as its last has ended."""
    _transact(db, names, 0)  # connects
    latencies_s: list[float] = []
    refused: list[Exception] = []
    failures: list[Exception] = []
    began = time.perf_counter()

    def client(number: int) -> None:
        try:
            while time.perf_counter() < began + seconds and not failures:
                at = time.perf_counter()
                while not _done(db, names, number, refused):
                    if time.perf_counter() > began + seconds:
                        return
                    time.sleep(PAUSE_S)
                latencies_s.append(time.perf_counter() - at)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.perf_counter() - began
    if failures:
        raise failures[0]
    if not latencies_s:
        why = f": {refused[-1]}" if refused else ""
        raise UsageError(f"no transaction ended in {seconds:g} s; give it longer with --for{why}")
    return {
        "on": list(names),
        "transactions": len(latencies_s),
        "tried_again": len(refused),
        "per_second": len(latencies_s) / took_s,
        "p50_ms": statistics.median(latencies_s) * 1e3,
        "p99_ms": sorted(latencies_s)[len(latencies_s) * 99 // 100] * 1e3,
    }


def _done(db: Coordinator, names: Sequence[str], client: int, refused: list[Exception]) -> bool:
    """One transaction; False if it was refused, and may be tried again."""
    try:
        _transact(db, names, client)
    except (ResourceUnavailable, TransactionAborted) as error:
        refused.append(error)
        return False
    return True


def _transact(db: Coordinator, names: Sequence[str], client: int) -> None:
    with db.transaction() as tx:
        for name in names:
            tx[name].execute(f"UPDATE {TABLE} SET value = value + 1 WHERE id = {client}")
