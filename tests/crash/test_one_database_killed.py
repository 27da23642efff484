"""kill -9 while one database is all there is, and its name stands in the journal before the work does.

What is killed between the row and the prepare is never in doubt: nobody can commit it, and recovery aborts it when its
begin is overdue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crash.test_coordinator_killed import killed_at
from kit import QUICK, Database, Face, Watching, make_database, opened, until
from nodoubt import (
    Coordinator,
    DuplicateTransaction,
    NoDoubtError,
    Notice,
    OutcomeConflict,
    ResourceUnavailable,
    State,
    StillBeginning,
    UnknownTransaction,
)
from nodoubt.points import Point
from nodoubt.testing.proxy import TcpProxy
from nodoubt.testing.servers import MariaDBServer

DISK = "/var/tmp"  # in memory MariaDB takes its log for persistent memory, and kill -9 loses nothing at all
AT_WORK = [("P1", "begun"), ("P2", "work"), ("P3", "prepare")]
LATER = [
    ("P3", "prepared", State.PREPARED),
    ("P4", "staged", State.PREPARED),
    ("P5", "deciding", State.PREPARED),
    ("P6", "committed", State.COMMITTED),
    ("P9", "every branch proved", State.COMMITTED),
]


@pytest.fixture(params=["sync", "async"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["postgres", "mariadb"])
def only(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    return make_database(request.param, "a", request, tmp_path)


def names_of(database: Database) -> str:
    return "nodoubt.names" if database.kind == "postgres" else "nodoubt_names"


def killed(only: Database, mode: str, point: str, what: str) -> list[str]:
    with Coordinator({"a": only.url}, recovery=False) as db:
        db.setup()
    urls = {"a": only.url}
    return killed_at({"urls": urls, "journal": None, "way": "staged", "mode": mode, "kill": str(Point(point, what))})


def swept(db: Coordinator) -> None:
    until(lambda: db.recover(grace=0).clean)
    assert db.recover(grace=0).clean


def at_rest(only: Database, db: Coordinator) -> bool:
    return only.prepared() == [] and not only.locked() and db.quarantined() == []


@pytest.mark.parametrize(("point", "what"), AT_WORK)
def test_a_name_whose_work_died_is_aborted_when_its_begin_is_overdue(
    only: Database, mode: str, point: str, what: str
) -> None:
    assert killed(only, mode, point, what) == []
    with Coordinator({"a": only.url}, settings=QUICK, recovery=False) as db:
        swept(db)
        assert db.status("pay").state is State.BEGINNING
        with pytest.raises(StillBeginning):
            db.commit_distributed("pay")
        with pytest.raises(DuplicateTransaction), db.begin_distributed("pay"):
            pass
        only.query(f"update {names_of(only)} set begin_by = 1")
        swept(db)
        assert db.status("pay").state is State.ABORTED
        assert only.balance() == 100 and at_rest(only, db)
        with pytest.raises(OutcomeConflict):
            db.commit_distributed("pay")
        with db.begin_distributed("pay", reuse=True) as tx:
            tx.execute("update accounts set balance = 5 where id = 0")
        assert db.commit_distributed("pay").state is State.COMMITTED
        assert only.balance() == 5 and at_rest(only, db)


@pytest.mark.parametrize(("point", "what"), AT_WORK)
def test_or_by_whoever_rolls_it_back(only: Database, mode: str, point: str, what: str) -> None:
    killed(only, mode, point, what)
    with Coordinator({"a": only.url}, settings=QUICK, recovery=False) as db:
        assert db.rollback_distributed("pay").state is State.ABORTED
        swept(db)
        assert only.balance() == 100 and at_rest(only, db)


@pytest.mark.parametrize(("point", "what", "stands"), LATER)
def test_what_was_prepared_stays_and_what_was_decided_is_carried_out(
    only: Database, mode: str, point: str, what: str, stands: State
) -> None:
    told = killed(only, mode, point, what)
    with Coordinator({"a": only.url}, settings=QUICK, recovery=False) as db:
        only.query(f"update {names_of(only)} set begin_by = 1")  # overdue it is no more than any other
        swept(db)
        assert db.status("pay").state is stands, told
        if stands is State.PREPARED:
            until(lambda: committed(db))
        assert only.balance() == 70 and at_rest(only, db)


def committed(db: Coordinator) -> bool:
    """A server needs a moment to notice that a killed client is gone."""
    try:
        return db.commit_distributed("pay").complete or db.recover(grace=0).clean
    except NoDoubtError:
        return False


# ---- the answer to the row is lost, or the server


def test_a_begin_whose_row_was_not_answered_gives_its_name_back_itself(only: Database, mode: str) -> None:
    """The row stood, and nobody need wait until the begin were overdue."""

    async def begun(db: Face) -> None:
        async with db.staged("pay"):
            raise AssertionError("it has not begun")

    async def main() -> None:
        with TcpProxy.to(only.url) as proxy:
            async with opened(mode, [replace(only, url=proxy.url_for(only.url))]) as db:
                proxy.cut_reply(after=b"XA START" if only.kind == "mariadb" else b"nodoubt.attempt")
                with pytest.raises(ResourceUnavailable, match="did not begin"):
                    await begun(db)
                ended = await db.rollback_distributed("pay")
                async with opened(mode, [only]) as other:
                    record = await other.status(ended.attempt)
                    assert (record.state, record.reason) == (State.ABORTED, "its begin failed")
                    with pytest.raises(UnknownTransaction):
                        await other.status("pay")
                    async with other.staged("pay"):
                        pass
                    assert (await other.commit_distributed("pay")).state is State.COMMITTED
                    assert (await other.recover(grace=0)).clean
                assert (await db.rollback_distributed("pay")) == ended

    asyncio.run(main())


@pytest.fixture(scope="module")
def server() -> Iterator[MariaDBServer]:
    with MariaDBServer(under=DISK) as running:
        yield running


@pytest.mark.anyio
@pytest.mark.parametrize("point", ["P1", "P3"])
async def test_on_mariadb_the_row_outlives_a_crash_of_the_server_and_its_work_does_not(
    point: str, mode: str, server: MariaDBServer
) -> None:
    """It was forced before the work began. What fails at work gives its name back then. What was about to prepare, and
    may have been seen staged, keeps it from everybody but its own process.
    """
    only = Database("a", server.url())
    only.create()
    crashes: list[Notice] = []

    def crash(notice: Notice) -> None:
        if notice.point == point and not crashes:
            crashes.append(notice)
            server.kill()
            server.restart()

    async with opened(mode, [only], observer=Watching(crash)) as db:
        with pytest.raises(Exception, match=r"(?i)lost|no answer"):
            async with db.staged("order") as tx:
                await tx.execute("a", "update accounts set balance = 5 where id = 0")
        assert (await db.status(crashes[0].attempt)).state is State.ABORTED
        names = [name for (name,) in only.query("select name from nodoubt_names")]
        assert names == ([] if point == "P1" else [b"order"])
        async with db.staged("order") as tx:
            await tx.execute("a", "update accounts set balance = 7 where id = 0")
        assert (await db.commit_distributed("order")).state is State.COMMITTED
        assert (await db.recover(grace=0)).clean
    assert only.balance() == 7 and only.prepared() == []
