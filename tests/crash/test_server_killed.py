"""kill -9 of each server, while a transaction is at P3 to P9: of the branches' databases, and of the journal's.

The servers are killed in the moment an observer is told of the point, and come back as fast as they can start; the
coordinator lives on and is not told. After it: what the caller was told is true (I5), and, with all servers up again,
two sweeps of that same coordinator bring everything to one end: everywhere or nowhere, nothing prepared, nothing
locked.

How the cases were chosen: every way and point, with every victim of every pair. Which of two places holds the journal,
and whether it runs sync or async, alternates with them, so that each point and each victim meets both. (The full
product would be four times as long.)
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from kit import Database, Face, opened
from nodoubt import (
    InDoubt,
    JournalUnavailable,
    Notice,
    ResourceUnavailable,
    State,
    TransactionAborted,
    UnknownTransaction,
)
from nodoubt.engine import phases
from nodoubt.engine.branches import End, Ending
from nodoubt.script import Script
from nodoubt.testing.servers import MariaDBServer, PostgresServer, Server

pytestmark = pytest.mark.anyio

ONCE = [
    ("P3", "prepare", 1),
    ("P3", "prepared", 1),
    ("P4", "all prepared", 1),
    ("P5", "deciding", 1),
    ("P6", "committed", 1),
    ("P8", "commit", 1),
    ("P7", "branch committed", 1),
    ("P9", "every branch proved", 1),
]
STAGED = [
    ("P3", "prepare", 1),
    ("P3", "prepared", 1),
    ("P3", "prepare", 2),
    ("P3", "prepared", 2),
    ("P4", "staged", 1),
    *ONCE[3:],
]
SWEEPS = 2
TRIES_MAX = 2


class Place(NamedTuple):
    """Where it happens. p and q are PostgreSQL servers, m is MariaDB's, s is a SQLite file, which nobody can kill."""

    first: str
    second: str
    journal: str  # "": in the first one's database
    victim: str

    def __str__(self) -> str:
        return f"{self.first}+{self.second}, journal {self.journal or 'in ' + self.first}, kill {self.victim}"


# Of places that differ only in where the journal is, or in which branch is the commit point, each point takes one.
PLACES = [
    [Place("p", "q", "", "p"), Place("p", "q", "s", "p")],
    [Place("p", "q", "", "q")],
    [Place("p", "m", "", "p")],
    [Place("p", "m", "", "m"), Place("m", "p", "", "m")],
    [Place("p", "m", "q", "q"), Place("s", "m", "q", "q")],
    [Place("p", "s", "", "p"), Place("p", "s", "s", "p")],
    [Place("m", "s", "", "m"), Place("m", "s", "s", "m")],
]


class Case(NamedTuple):
    """One test: the `nth` notice of a point, of a transaction of that way, with the coordinator of that mode."""

    way: str
    point: str
    what: str
    nth: int
    mode: str
    place: Place

    def __str__(self) -> str:
        return f"{self.way} {self.point} {self.what} {self.nth} {self.mode} {self.place}"


CASES = [
    Case(way, *point, ("sync", "async")[(number + other + (way == "once")) % 2], places[number // 2 % len(places)])
    for way, points in (("once", ONCE), ("staged", STAGED))
    for number, point in enumerate(points)
    for other, places in enumerate(PLACES)
]


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Server]]:
    # MariaDB not in memory: there it maps its log, and a SIGKILL takes nothing from it that was not flushed.
    everyone: dict[str, Server] = {
        "p": PostgresServer(),
        "q": PostgresServer(),
        "m": MariaDBServer(under="/var/tmp"),
    }
    try:
        for server in everyone.values():
            server.start()
        yield everyone
    finally:
        for server in everyone.values():
            server.stop()


class Nemesis:
    """Kills a server at the `count`-th notice of a point, and has it started again."""

    def __init__(self, server: Server, point: str, what: str, count: int) -> None:
        self.server, self.point, self.what, self.count = server, point, what, count
        self.lock = threading.Lock()
        self.restarting: threading.Thread | None = None

    def notice(self, notice: Notice) -> None:
        if (notice.point, notice.what) != (self.point, self.what):
            return
        with self.lock:
            self.count -= 1
            if self.count == 0:
                self.server.kill()
                self.restarting = threading.Thread(target=self.server.restart)
                self.restarting.start()

    def wait(self) -> None:
        """Until the server is up again, if it was killed."""
        if self.restarting is not None:
            self.restarting.join()


async def told(db: Face, way: str, nemesis: Nemesis) -> list[str]:
    """Pay; what the caller was told, in order. A caller who is told to try again does, when all servers are up."""
    said: list[str] = []
    try:
        if way == "once":
            async with db.transaction("pay") as tx:
                await tx.move("a", "b", 30)
            return [*said, str(tx.handle.result.state)]
        async with db.staged("pay") as tx:
            await tx.move("a", "b", 30)
        said.append("staged")
    except (TransactionAborted, JournalUnavailable):
        return [*said, "aborted"]
    except InDoubt:
        return [*said, "in doubt"]
    for _ in range(TRIES_MAX):
        try:
            result = await db.commit_distributed("pay")
            return [*said, str(result.state)]
        except (JournalUnavailable, ResourceUnavailable):
            said.append("try again")  # said only where nothing was decided
        except InDoubt:
            said.append("in doubt")
        nemesis.wait()
    raise AssertionError(f"it never ended: {said}")


async def where_it_is(db: Face, pair: list[Database]) -> str:
    balances = [d.balance() for d in pair]
    assert balances in ([100, 100], [70, 130]), f"atomicity is broken: {balances}"
    if balances == [70, 130]:
        return "committed"
    try:
        return "staged" if (await db.status("pay")).state is State.PREPARED else "aborted"
    except UnknownTransaction:
        return "aborted"


async def check(case: Case, servers: dict[str, Server], tmp_path: Path) -> None:
    """Run the case; whatever happens, its server is up again at the end."""

    def url(server: str, name: str) -> str:
        return f"sqlite:///{tmp_path}/{name}.db" if server == "s" else servers[server].url()

    place = case.place
    pair = [Database("a", url(place.first, "a")), Database("b", url(place.second, "b"))]
    for database in pair:
        database.create()
    journal = url(place.journal, "journal") if place.journal else None
    nemesis = Nemesis(servers[place.victim], case.point, case.what, case.nth)
    try:
        async with opened(case.mode, pair, journal=journal, observer=nemesis) as db:
            said = await told(db, case.way, nemesis)
            assert nemesis.restarting is not None, f"nobody came to {case.point} {case.what}: {said}"
            nemesis.wait()
            reports = [await db.recover(grace=0) for _ in range(SWEEPS)]
            assert reports[-1].clean, (said, reports)
            came = await where_it_is(db, pair)
            if "committed" in said or "aborted" in said:
                assert came in said, (said, reports)
            assert came != "staged", (said, reports)
            assert [d.prepared() for d in pair] == [[], []], (said, reports)
            assert [d.locked() for d in pair] == [False, False]
            assert await db.quarantined() == []
    finally:
        nemesis.wait()


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_kill_9_of_a_server_ends_one_way_and_the_caller_was_told_the_truth(
    case: Case, servers: dict[str, Server], tmp_path: Path
) -> None:
    await check(case, servers, tmp_path)


async def test_mutant_that_takes_silence_in_phase_two_for_success_is_caught(
    servers: dict[str, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I6, I7: the record then ends while the branch is prepared, and no sweep may finish that any more."""

    def believing(*_: object, **__: object) -> Script[Ending]:
        yield from ()
        return Ending(End.PROVED)

    monkeypatch.setattr(phases, "carry_out", believing)
    case = Case("once", "P8", "commit", 1, "sync", Place("p", "q", "", "q"))
    with pytest.raises(AssertionError):
        await check(case, servers, tmp_path)


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_question_after_a_restart_is_answered_however_many_idle_sessions_have_died(
    mode: str, servers: dict[str, Server]
) -> None:
    """Fails where a session that proves dead does not take the idle ones of its pool along (`using`)."""
    only = Database("a", servers["p"].url())
    async with opened(mode, [only]) as db:
        pool = db.db._ctx.journal_pool
        held = [pool.acquire() if mode == "sync" else await pool.acquire() for _ in range(3)]
        for session in held:
            pool.release(session)
        servers["p"].kill()
        servers["p"].restart()
        with pytest.raises(UnknownTransaction):
            await db.status("nobody")


@pytest.mark.parametrize("how", ["in good order", "killed"])
@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_the_first_transaction_after_a_restart_commits_however_its_server_ended(
    mode: str, how: str, servers: dict[str, Server]
) -> None:
    only = Database("a", servers["p"].url())
    only.create()
    async with opened(mode, [only]) as db:
        for _ in range(3):
            async with db.transaction() as tx:
                await tx.execute("a", "update accounts set balance = balance + 1")
            if how == "killed":
                servers["p"].kill()
            servers["p"].restart()
    assert only.balance() == 103
