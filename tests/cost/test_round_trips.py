"""Round trips per shape, counted, against `round_trips.txt`: a ratchet. More than it says is a failure, and so is less.

A round trip is a message to a server, of whatever length, and the wait for its answer, counted on the wire by a proxy
in front of each database. SQLite has no wire: there it is a call into the session (with asyncio, a hop to its thread).
The user's own statement, one per branch, is among them. Pools, statement caches and admissions are warm; a staged
MariaDB branch ends its connection, so `begin` opens a new one each time.

After a change that is meant to change the number: NODOUBT_RATCHET=write pytest tests/cost/test_round_trips.py
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit import QUICK, Database, Face, opened
from nodoubt.drivers.sqlite import SqliteSession
from nodoubt.engine import recent
from nodoubt.testing.proxy import TcpProxy
from nodoubt.testing.servers import MariaDBServer, PostgresServer
from nodoubt.url import parse_url

pytestmark = pytest.mark.anyio

TABLE = Path(__file__).with_name("round_trips.txt")
WRITE = os.environ.get("NODOUBT_RATCHET") == "write"
WARM_UP = 6  # psycopg prepares a statement on the server when it has run five times
COUNT = 3
WAYS = ("reads", "one", "once", "begin", "commit", "rollback")
SEQUENCES = [("reads",), ("one",), ("once",), ("begin", "commit"), ("begin", "rollback")]
SHAPES = [
    (("postgres",), "first"),
    (("mariadb",), "first"),
    (("sqlite",), "first"),
    (("postgres", "postgres"), "first"),
    (("postgres", "postgres", "postgres"), "first"),
    (("postgres", "mariadb"), "first"),
    (("mariadb", "mariadb"), "first"),
    (("sqlite", "sqlite"), "first"),
    (("postgres", "postgres"), "postgres"),
    (("postgres", "mariadb"), "sqlite"),
]


class Meter:
    """Puts databases behind something that counts."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.proxies: dict[str, TcpProxy] = {}
        self.files: dict[str, str] = {}  # path: name
        self.calls: Counter[str] = Counter()

    def url_for(self, name: str, url: str) -> str:
        at = parse_url(url)
        if at.kind == "sqlite":
            self.files[at.database] = name
            return url
        self.proxies[name] = self.stack.enter_context(TcpProxy.to(url))
        return self.proxies[name].url_for(url)

    def watch_sqlite(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = SqliteSession.call

        def counted(session: SqliteSession, function: Callable[..., Any], *args: Any) -> Any:
            self.calls[self.files[session.connection.path]] += 1
            return plain(session, function, *args)

        monkeypatch.setattr(SqliteSession, "call", counted)

    def take(self) -> Counter[str]:
        """What has been counted since it was last taken."""
        found = self.calls + Counter({name: proxy.round_trips for name, proxy in self.proxies.items()})
        self.calls.clear()
        for proxy in self.proxies.values():
            proxy.reset_counts()
        return found


async def write(db: Face, tx: Any) -> None:
    for name in db.databases:
        await tx.execute(name, "update accounts set balance = balance + 1 where id = ?", 0)


async def read(db: Face, tx: Any, names: list[str]) -> None:
    for name in names:
        await tx.execute(name, "select balance from accounts where id = ?", 0)


def steps_of(db: Face) -> dict[str, Callable[[str], Awaitable[None]]]:
    names = list(db.databases)

    async def reads(_: str) -> None:
        async with db.transaction() as tx:
            await read(db, tx, names)

    async def one(_: str) -> None:
        async with db.transaction() as tx:
            await tx.execute(names[-1], "update accounts set balance = balance + 1 where id = ?", 0)
            await read(db, tx, names[:-1])

    async def once(_: str) -> None:
        async with db.transaction() as tx:
            await write(db, tx)

    async def begin(order: str) -> None:
        async with db.staged(order) as tx:
            await write(db, tx)

    async def commit(order: str) -> None:
        await db.commit_distributed(order)

    async def rollback(order: str) -> None:
        await db.rollback_distributed(order)

    return {"reads": reads, "one": one, "once": once, "begin": begin, "commit": commit, "rollback": rollback}


async def measured(db: Face, meter: Meter) -> dict[str, Counter[str]]:
    """Round trips of one transaction of each way, by database: of several, that with the fewest.

    Only what is asked again adds any: a MariaDB session that is just ending holds its branch for a moment longer.
    """
    steps = steps_of(db)
    found: dict[str, list[Counter[str]]] = {way: [] for way in WAYS}
    for sequence in SEQUENCES:
        for number in range(-WARM_UP, COUNT):
            for way in sequence:
                meter.take()
                await steps[way](f"{sequence[-1]}-{number}")
                if number >= 0:
                    found[way].append(meter.take())
    return {way: min(counts, key=Counter.total) for way, counts in found.items()}


def line_of(shape: tuple[str, ...], journal: str, mode: str, way: str, counts: Counter[str]) -> str:
    """`postgres+mariadb  journal in the first  once  sync  a 3  b 4  = 7`."""
    parts = [f"{name} {counts[name]}" for name in sorted(counts)]
    where = "first" if journal == "first" else f"own {journal}"
    total = counts.total()
    return f"{'+'.join(shape):<28} {where:<13} {way:<8} {mode:<5} {total:>3} = {', '.join(parts)}"


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, str]]:
    """What stands in the file, by case; written anew at the end where that was asked for."""
    head = [line for line in TABLE.read_text().splitlines() if line.startswith("#")]
    lines = {line[:57]: line for line in TABLE.read_text().splitlines() if line not in head}
    yield lines
    if WRITE:
        TABLE.write_text("\n".join([*head, *lines.values()]) + "\n")


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(
    ("shape", "journal"), SHAPES, ids=lambda case: case if isinstance(case, str) else "+".join(case)
)
async def test_a_transaction_makes_the_round_trips_that_the_table_says(
    shape: tuple[str, ...],
    journal: str,
    mode: str,
    table: dict[str, str],
    postgres: PostgresServer,
    mariadb: MariaDBServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    servers = {"postgres": postgres, "mariadb": mariadb}

    def url(kind: str, name: str) -> str:
        return f"sqlite:///{tmp_path}/{name}.db" if kind == "sqlite" else servers[kind].url()

    with contextlib.ExitStack() as stack:
        meter = Meter(stack)
        meter.watch_sqlite(monkeypatch)
        monkeypatch.setattr(recent, "TRUSTED_S", 600.0)  # on a loaded machine a moment is long
        databases = []
        for name, kind in zip("abc", shape, strict=False):
            plain = Database(name, url(kind, name))
            plain.create()
            databases.append(Database(name, meter.url_for(name, plain.url)))
        at = None if journal == "first" else meter.url_for("journal", url(journal, "journal"))
        async with opened(mode, databases, journal=at, settings=replace(QUICK, linger_s=600)) as db:
            found = await measured(db, meter)
    lines = [line_of(shape, journal, mode, way, found[way]) for way in WAYS]
    if WRITE:
        table.update({line[:57]: line for line in lines})
    assert [table.get(line[:57]) for line in lines] == lines
